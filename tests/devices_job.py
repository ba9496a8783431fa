"""Trainings that tests/test_devices.py runs in subprocesses.

python -m tests.devices_job FOLDER [eight | kill]
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn.layers.heads import ManyToMany
from jaxrnn.training import Checkpoints, EarlyStopping, fit, initialize

EXAMPLES, STEPS, BATCH = 24, 8, 8


def examples() -> dict[str, np.ndarray]:
    """Return sequences of unequal length."""
    random = np.random.default_rng(0)
    x = random.standard_normal((EXAMPLES, 6, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(-1, keepdims=True), "lengths": random.integers(0, 7, EXAMPLES)}


def loss(model: Any, batch: Any) -> Any:
    """Return the mean squared error over valid steps."""
    y, _ = model.rnn(batch["x"], lengths=batch["lengths"])
    valid = jnp.arange(6)[None, :, None] < batch["lengths"][:, None, None]
    wrong = jnp.where(valid, model.fc(y) - batch["y"], 0.0)
    return (wrong**2).sum() / valid.sum(), {"largest": jnp.abs(wrong).max()}


def make(kind: Any = jaxrnn.LSTM, hidden: int = 8, **options: Any) -> ManyToMany:
    """Return a model with an LSTM of two layers and dropout, or a layer of another kind."""
    rngs = nnx.Rngs(0)
    options |= {"num_layers": 2, "dropout": 0.3} if kind is jaxrnn.LSTM else {}
    rnn = kind(3, hidden, batch_first=True, rngs=rngs, **options)
    model = ManyToMany(rnn, 1, rngs=rngs)
    model.fc = nnx.Linear(hidden, 1, param_dtype=rnn.param_dtype, rngs=rngs)
    return model


OPTIMIZER = optax.adam(0.01)
HOW = {"LSTM": ("both",), "GRU": ("data",), "RNN": ("one",)}
PLAIN: dict[str, Any] = {"validation": None, "evaluate_every": None, "early_stopping": None}


def train(mesh: Any, model: Any = None, data: Any = None, **options: Any) -> Any:
    """Train with validation, early stopping, chunks and a mesh."""
    data = examples() if data is None else data
    usual: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "key": 1, "chunk": 4}
    usual |= {"validation": data if isinstance(data, dict) else None, "evaluate_every": 4}
    usual |= {"early_stopping": EarlyStopping("loss", patience=9), "mesh": mesh}
    return fit(loss, OPTIMIZER, make() if model is None else model, data, **usual | options)


def numbers(run: Any) -> dict[str, Any]:
    """Return the numbers to compare."""
    history = run.history
    params = [np.asarray(a).ravel() for a in jax.tree.leaves(nnx.state(run.model, nnx.Param))]
    return {
        "losses": history.losses.tolist(),
        "validation": history.validation.get("loss", np.zeros(0)).tolist(),
        "params": np.concatenate(params).tolist(),
    }


def parts(batches: int) -> list[Any]:
    """Return this process's part of each batch."""
    count, me, data = jax.process_count(), jax.process_index(), examples()
    each = BATCH // count
    starts = [(BATCH * k) % EXAMPLES + each * me for k in range(batches)]
    return [{n: a[s : s + each] for n, a in data.items()} for s in starts]


def eight(folder: Path) -> None:
    """Train on one device and on all, in float64; collect the errors of invalid arguments."""
    devices = np.array(jax.devices())
    both = jax.sharding.Mesh(devices.reshape(4, 2), ("data", "model"))
    data = jax.tree.map(lambda a: a.astype(float) if a.dtype == np.float32 else a, examples())
    meshes = {"none": None, "one": 1, "data": len(devices), "both": both}
    results: dict[str, Any] = {}
    for kind in (jaxrnn.LSTM, jaxrnn.GRU, jaxrnn.RNN):
        for name in ("none", *HOW[kind.__name__]):
            mesh = meshes[name]
            model = make(kind, param_dtype=jnp.float64)
            saved = Checkpoints(folder / f"{kind.__name__}-{name}", every=4, keep=9)
            more = {} if kind is jaxrnn.LSTM else PLAIN
            run = train(mesh, model, data, checkpoints=saved, **more)
            results[f"{kind.__name__} {name}"] = numbers(run)
            assert all(len(a.devices()) == 1 for a in jax.tree.leaves((run.opt_state, run.model)))
    for before, after in (("both", "none"), ("none", "data")):
        there = folder / f"LSTM-{before}"
        shutil.copytree(there / "step_00000004", folder / f"{before}-{after}" / "step_00000004")
        saved = Checkpoints(folder / f"{before}-{after}", every=4)
        model = make(param_dtype=jnp.float64)
        run = train(meshes[after], model, data, checkpoints=saved, resume=True)
        results[f"from {before} to {after}"] = numbers(run)
    wrong: dict[str, dict[str, Any]] = {
        "batch": {"batch_size": 12},
        "all of the data": {"batch_size": None, "data": {n: a[:20] for n, a in data.items()}},
        "fed": PLAIN | {"batch_size": None, "data": [{n: a[:3] for n, a in data.items()}]},
        "names": {"mesh": jax.sharding.Mesh(devices, ("rows",))},
        "too many": {"mesh": 9},
        "kind": {"mesh": "all"},
        "units": {"model": make(hidden=12), "mesh": jax.sharding.Mesh(devices, ("model",))},
    }
    for name, options in wrong.items():
        try:
            train(**{"mesh": len(devices)} | options)
        except (ValueError, TypeError) as error:
            results[f"wrong {name}"] = f"{type(error).__name__}: {error}"
    (folder / "results").write_text(json.dumps(results))


def main(folder: Path, what: str) -> None:
    """Run a training of each kind and write its numbers, or train until killed."""
    if what == "eight":
        return eight(folder)
    initialize(timeout=300)  # the processes may be suspended
    me, mesh = jax.process_index(), jax.device_count()
    if what == "kill":
        model = make(jaxrnn.RNN)
        nnx.update(model.fc, jax.tree.map(lambda a: a + me, nnx.state(model.fc)))
        try:
            train(mesh, model)
        except ValueError as error:
            (folder / f"unlike-{me}").write_text(str(error))

        def batches() -> Any:
            for batch in parts(STEPS) * 10_000:
                time.sleep(0.01)
                yield batch

        saved = Checkpoints(folder / "saved", every=4)
        options = PLAIN | {"batch_size": None, "steps": 10**5, "checkpoints": saved}
        train(mesh, make(jaxrnn.RNN), batches(), **options)
        return
    results = {}
    pieces = jax.sharding.Mesh(np.array(jax.devices()), ("model",))
    saved = Checkpoints(folder / f"saved-{jax.process_count()}", every=4)
    train(pieces, make(jaxrnn.GRU), steps=4, checkpoints=saved)
    again = train(pieces, make(jaxrnn.GRU), checkpoints=saved, resume=True)
    results["resumed"] = numbers(again)
    fed = train(mesh, make(jaxrnn.RNN), parts(STEPS), **PLAIN | {"batch_size": None})
    results["fed"] = numbers(fed)
    fed.history.to_csv(folder / f"history-{jax.process_count()}-{me}.csv")
    (folder / f"numbers-{jax.process_count()}-{me}").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
