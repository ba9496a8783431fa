"""Temporary memory of the compiled gradient, as the compiler reports it; nothing is run."""

from functools import partial
from typing import Any

from bench.core import Case, Contender, Suite, Unsupported
from bench.layers import NAMES, Spec
from bench.peers import JAX_PEERS, PEERS

LENGTHS = (256, 1024, 4096)


def temporary_bytes(peer: Any, spec: Spec) -> float:
    """Temporary bytes of d(sum of the output)/d(weights): residuals, output and cotangent."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    forward, _, params, _ = peer.functions(spec)
    shape = peer.to_layout(np.empty((spec.T, spec.N, spec.D), np.bool_)).shape
    gradient = jax.jit(jax.grad(lambda params, x: forward(params, x).sum()))
    lowered = gradient.lower(params, jax.ShapeDtypeStruct(shape, jnp.float32))
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        raise Unsupported("this backend reports no memory analysis")
    return float(analysis.temp_size_in_bytes)


def build(spec: Spec, name: str) -> Contender:
    found = temporary_bytes(PEERS[name].load(), spec)
    return Contender(value=lambda: found)


SUITE = Suite(
    name="memory",
    about="temporary bytes of the compiled gradient against T (N 32, D = H 256)",
    cases=tuple(
        Case(
            name=f"{cell}-T{T}",
            build=partial(build, Spec(cell, 32, T, 256, 256)),
            peers=JAX_PEERS,
            table="temporary memory of the gradient",
            row=f"{NAMES[cell]} T {T}",
            group=NAMES[cell],
            detail={"N": 32, "T": T, "D": 256, "H": 256},
            unit="MB",
            exact=True,
        )
        for cell in NAMES
        for T in LENGTHS
    ),
    quick=("lstm-T256", "lstm-T1024"),
    notes=(
        "One layer; the gradient of the sum of its output with respect to its weights. The output "
        "and its cotangent count among the temporaries. PyTorch compiles nothing and is left out.",
    ),
)
