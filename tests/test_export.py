"""Exported programs with dynamic T and N, in a process without jaxrnn and Flax."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export as jax_export

import jaxrnn
from jaxrnn.interop.export import export
from jaxrnn.layers.heads import CharacterModel, Classifier, ManyToMany

CHILD = """
import sys
sys.modules["jaxrnn"] = sys.modules["flax"] = None  # import raises
import pathlib, jax, numpy as np
from jax import export
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.program")):
    program = export.deserialize(bytearray(path.read_bytes()))
    for given in sorted(folder.glob(path.stem + ".*.given.npz")):
        arrays = dict(np.load(given))
        args = [arrays.pop(f"arg{i}") for i in range(sum(k[:3] == "arg" for k in arrays))]
        called = program.vjp() if path.stem.endswith("_vjp") else program
        leaves = jax.tree.leaves(called.call(*args, **arrays))
        np.savez(str(given).replace("given", "actual"), *map(np.asarray, leaves))
assert sys.modules["jaxrnn"] is None and sys.modules["flax"] is None
"""
SHAPES = ((1, 1), (20, 3))  # T, N


@dataclass
class Job:
    """An export: model, specifications, a generator of arguments, and the reference."""

    model: Any
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    draw: Callable[[Any, int, int], tuple[list[Any], dict[str, Any]]]
    run: Callable[..., Any]
    options: dict[str, Any]


def x_of(random: Any, *shape: int) -> np.ndarray:
    return random.uniform(-1, 1, shape).astype(np.float32)


def ragged(random: Any, steps: int, batch: int) -> dict[str, np.ndarray]:
    lengths = random.randint(0, steps + 1, batch).astype(np.int32)
    return {"lengths": lengths, "resets": random.uniform(size=(steps, batch)) < 0.3}


def layer_job(kind: str) -> Job:
    """Two bidirectional layers with lengths and resets."""
    layer = getattr(jaxrnn, kind)(3, 4, 2, bidirectional=True, rngs=nnx.Rngs(0))

    def draw(random: Any, steps: int, batch: int) -> Any:
        return [x_of(random, steps, batch, 3)], ragged(random, steps, batch)

    named = {"lengths": "int32[N]", "resets": "bool[T, N]"}
    return Job(layer, ("T, N, 3",), named, draw, layer, {})


def vjp_job(kind: str) -> Job:
    """The vector-Jacobian product with respect to input and initial state."""
    layer = getattr(jaxrnn, kind)(3, 4, rngs=nnx.Rngs(0))

    def loss(x: Any, h: Any, lengths: Any) -> Any:
        hx = (h, jnp.zeros_like(h)) if kind == "LSTM" else h
        return layer(x, hx, lengths=lengths)[0]

    def draw(random: Any, steps: int, batch: int) -> Any:
        lengths = ragged(random, steps, batch)["lengths"]
        shapes = ((steps, batch, 3), (1, batch, 4), (steps, batch, 4))
        x, h, cotangent = (x_of(random, *shape) for shape in shapes)
        return [x, h, lengths, cotangent], {}

    def run(x: Any, h: Any, lengths: Any, cotangent: Any) -> Any:
        _, back = jax.vjp(lambda x, h: loss(x, h, lengths), x, h)
        return back(cotangent)

    return Job(loss, ("T, N, 3", "1, N, 4", "int32[N]"), {}, draw, run, {"vjp_order": 1})


def head_job() -> Job:
    """A batch-first classifier with lengths and inactive dropout."""
    rngs = nnx.Rngs(0)
    layer = jaxrnn.LSTM(3, 4, 2, batch_first=True, dropout=0.5, bidirectional=True, rngs=rngs)
    model = Classifier(layer, 5, rngs=rngs)

    def draw(random: Any, steps: int, batch: int) -> Any:
        lengths = ragged(random, steps, batch)["lengths"]
        return [x_of(random, batch, steps, 3)], {"lengths": lengths}

    def run(x: Any, lengths: Any) -> Any:
        return nnx.view(model, deterministic=True)(x, lengths=lengths)

    return Job(model, ("N, T, 3",), {"lengths": "int32[N]"}, draw, run, {})


def text_job() -> Job:
    """A character model, from indices to logits."""
    rngs = nnx.Rngs(0)
    model = CharacterModel(jaxrnn.GRU(4, 6, batch_first=True, rngs=rngs), "helo", rngs=rngs)

    def draw(random: Any, steps: int, batch: int) -> Any:
        return [random.randint(0, 4, (batch, steps)).astype(np.int32)], {}

    return Job(model, ("int32[N, T]",), {}, draw, model, {})


def learning_job() -> Job:
    """A gradient descent step as a pure function of the parameters."""
    rngs = nnx.Rngs(0)
    graph, params = nnx.split(ManyToMany(jaxrnn.GRU(3, 4, rngs=rngs), 2, rngs=rngs))
    flat, tree = jax.tree.flatten(params)

    def step(x: Any, y: Any, *flat: Any) -> Any:
        def loss(params: Any) -> Any:
            return ((nnx.merge(graph, params)(x)[0] - y) ** 2).mean()

        params = jax.tree.unflatten(tree, flat)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
        return jax.tree.leaves(moved)

    def draw(random: Any, steps: int, batch: int) -> Any:
        shapes = ((steps, batch, 3), (steps, batch, 2))
        return [*(x_of(random, *shape) for shape in shapes), *map(np.asarray, flat)], {}

    return Job(step, ("T, N, 3", "T, N, 2", *flat), {}, draw, step, {})


JOBS: dict[str, Callable[[], Job]] = {
    **{kind.lower(): lambda kind=kind: layer_job(kind) for kind in ("RNN", "LSTM")},
    **{f"{kind.lower()}_vjp": lambda kind=kind: vjp_job(kind) for kind in ("LSTM", "GRU")},
    "head": head_job,
    "text": text_job,
    "learning": learning_job,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export every program, run them in another process, and save the expected results."""
    folder = tmp_path_factory.mktemp("programs")
    for name, make in JOBS.items():
        job = make()
        path = folder / f"{name}.program"
        assert export(job.model, *job.inputs, path=path, **job.options, **job.named) == (
            path.read_bytes()
        )
        for number, (steps, batch) in enumerate(SHAPES):
            args, named = job.draw(np.random.RandomState(number), steps, batch)
            numbered = {f"arg{i}": a for i, a in enumerate(args)}
            np.savez(folder / f"{name}.{number}.given.npz", **numbered, **named)
            expected = jax.tree.leaves(jax.jit(job.run)(*args, **named))
            np.savez(folder / f"{name}.{number}.expected.npz", *map(np.asarray, expected))
    child = [sys.executable, "-c", CHILD, str(folder)]
    subprocess.run(child, check=True, cwd=folder, timeout=300)
    return folder


@pytest.mark.parametrize("name", JOBS)
def test_results_in_another_process(folder: Path, name: str) -> None:
    for number in range(len(SHAPES)):
        with (
            np.load(folder / f"{name}.{number}.actual.npz") as actual,
            np.load(folder / f"{name}.{number}.expected.npz") as expected,
        ):
            # A program with gradients returns one for each argument, lengths too.
            arrays = [a for a in actual.values() if a.dtype == np.float32]
            assert len(arrays) == len(expected) > 0
            for one, other in zip(arrays, expected.values(), strict=True):
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def gru() -> Any:
    return jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0))


def test_static_axes(gru: Any) -> None:
    x = jnp.linspace(-1, 1, 30, dtype="float32").reshape(5, 2, 3)
    program = jax_export.deserialize(bytearray(export(gru, "5, N, 3")))
    assert program.call(x)[0].shape == (5, 2, 4)
    with pytest.raises(ValueError, match=r"Expected shape|Shape mismatch|args\[0\]"):
        program.call(jnp.ones((6, 2, 3), "float32"))


def test_static_shapes_export_no_cpu_kernel(gru: Any) -> None:
    """CPU kernels are code of this process and not portable."""
    x = jnp.linspace(-1, 1, 30, dtype="float32").reshape(5, 2, 3)
    for model in (gru, lambda x: gru(x)):
        program = jax_export.deserialize(bytearray(export(model, x)))
        assert program.in_avals[0].shape == (5, 2, 3)
        np.testing.assert_allclose(program.call(x)[0], gru(x)[0], rtol=0, atol=1e-6)


def test_pair_of_specifications() -> None:
    lstm = jaxrnn.LSTM(3, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    data = export(lstm, "T, 3", ("1, 4", "1, 4"))
    assert {a.dtype.name for a in jax_export.deserialize(bytearray(data)).in_avals} == {"float64"}


def test_other_platforms(gru: Any) -> None:
    data = export(gru, "T, N, 3", platforms=["cpu", "cuda", "tpu"])
    assert jax_export.deserialize(bytearray(data)).platforms == ("cpu", "cuda", "tpu")


def test_model_is_unchanged() -> None:
    model = jaxrnn.LSTM(3, 4, 2, dropout=0.5, rngs=nnx.Rngs(0))
    export(model, "2, 1, 3")
    assert model.training


@pytest.mark.parametrize(
    ("specification", "kind", "words"),
    [
        ("float33[T, N, 3]", ValueError, r"expected a dtype before the axes, got 'float33'"),
        ("T, N, 3]", ValueError, r'an input must be "T, N, 10" or "int32\[N\]", got'),
        ("T, N, ?", ValueError, r"'T, N, \?'"),
        ((5, 2, 3), TypeError, r"or an array, got 5"),
        (3.0, TypeError, r"or an array, got 3\.0"),
        ("T, N, 7", ValueError, "Expected 3, got 7"),
        ("T, N", ValueError, "Expected 3, got N"),
        ("float16[T, N, 3]", ValueError, "does not match weight dtype"),
    ],
)
def test_bad_specifications(gru: Any, specification: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        export(gru, specification)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"platforms": ["cpu", "gpu"]}, "`platforms` must be one of 'cpu', .*got 'gpu'"),
        ({"vjp_order": -1}, "`vjp_order` must be an integer >= 0, got -1"),
    ],
    ids=str,
)
def test_bad_options(gru: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        export(gru, "T, N, 3", **options)


def test_axes_of_different_names(gru: Any) -> None:
    with pytest.raises(ValueError, match=r"\(N,\), got \(M,\)"):
        export(gru, "T, N, 3", lengths="int32[M]")


def test_file_is_unchanged_on_failure(gru: Any, tmp_path: Path) -> None:
    path = tmp_path / "gru.program"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="Expected 3"):
        export(gru, "T, N, 4", path=path)
    assert path.read_bytes() == b"before"
    with pytest.raises(OSError, match="missing"):
        export(gru, "2, 1, 3", path=tmp_path / "missing" / "gru.program")
