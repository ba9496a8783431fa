# pyright: reportMissingImports=false
"""Sweep: M sine jobs in one compiled call, compared with PyTorch one by one."""

from functools import lru_cache, partial
from time import perf_counter
from typing import Any

import numpy as np

from bench.core import Case, Contender, Suite
from bench.jobs.base import errors
from bench.peers import PEERS

MODELS = (1, 16, 256)
MEASURED = 4
"""Number of models that PyTorch trains per measurement; more are extrapolated linearly."""


@lru_cache(maxsize=1)
def expected(models: int) -> np.ndarray:
    """Return the losses (models, steps) of the first models in PyTorch float64."""
    import torch

    from bench.jobs import sine

    jobs = [sine.initial_weights(seed) for seed in range(models)]
    device = torch.device("cpu")
    return np.array([sine.torch_job(weights, torch.float64, device)() for weights in jobs])


def build_torch(models: int) -> Contender:
    import torch

    from bench.jobs import sine
    from bench.peers.pytorch import device

    measured = min(models, MEASURED)
    weights = [sine.initial_weights(seed) for seed in range(measured)]
    jobs = [sine.torch_job(w, torch.float32, device()) for w in weights]

    def value() -> float:
        start = perf_counter()
        for train in jobs:
            train()
        return (perf_counter() - start) * models / measured

    return Contender(
        value=value,
        check=lambda: errors([train() for train in jobs], expected(measured)),
        note=f"one model after another; of more than {MEASURED}, {MEASURED} are trained and their "
        "time taken in proportion",
    )


def build_jaxrnn(models: int) -> Contender:
    import jax
    import jax.numpy as jnp

    from bench.jobs import sine
    from jaxrnn.training import sweep

    drawn = [sine.jaxrnn_job(sine.initial_weights(seed)) for seed in range(models)]
    training = drawn[0][0]
    params = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(params for _, params in drawn))

    def run_all(params: Any) -> Any:
        return sweep(training, params=params).results

    start = perf_counter()
    compiled = jax.jit(run_all).lower(params).compile()
    compile_s = perf_counter() - start

    def check() -> dict[str, float]:
        measured = min(models, MEASURED)
        return errors(compiled(params).losses[:measured], expected(measured))

    return Contender(
        run=lambda: jax.block_until_ready(compiled(params)),
        compile_s=compile_s,
        check=check if PEERS["torch"].installed else None,
        no_check="n/a (no PyTorch to compare with)",
        note="one compiled call",
    )


def build(models: int, name: str) -> Contender:
    PEERS[name].require()
    return build_torch(models) if name == "torch" else build_jaxrnn(models)


SUITE = Suite(
    name="sweep",
    about="M sine models, 75 steps each from different weights, trained at once",
    cases=tuple(
        Case(
            name=f"sine-M{models}",
            build=partial(build, models),
            peers=("jaxrnn", "torch"),
            table="M models at once",
            row=f"sine, M {models}",
            detail={"M": models},
        )
        for models in MODELS
    ),
    quick=("sine-M1", "sine-M16"),
    reps=5,
    notes=("The time is that of all M models.",),
)
