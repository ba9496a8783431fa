"""Temporary memory of the compiled gradient, as reported by the compiler without a run."""

from functools import partial
from typing import Any

from bench.core import BASELINE, Case, Contender, Suite, Unsupported
from bench.layers import NAMES, Spec
from bench.peers import JAX_PEERS, PEERS

LENGTHS = (256, 1024, 4096)


def temporary_bytes(peer: Any, spec: Spec) -> float:
    """Return the temporary bytes of the gradient of the sum of the output."""
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


def load(name: str, remat: bool) -> Any:
    """Return a peer; `remat` is an option of jaxrnn only."""
    if name == BASELINE and remat:
        from bench.peers.ours import Peer

        return Peer(remat=True)
    return PEERS[name].load()


def build(spec: Spec, remat: bool, name: str) -> Contender:
    found = temporary_bytes(load(name, remat), spec)
    return Contender(value=lambda: found)


def build_timed(spec: Spec, remat: bool, name: str) -> Contender:
    return load(name, remat).contender(spec, True)


def case(cell: str, T: int, remat: bool, timed: bool = False) -> Case:
    spec = Spec(cell, 32, T, 256, 256)
    return Case(
        name="-".join([cell, f"T{T}"] + ["remat"] * remat + ["time"] * timed),
        build=partial(build_timed if timed else build, spec, remat),
        peers=(BASELINE, "flax.linen") if timed else JAX_PEERS,
        table="time of forward+backward" if timed else "temporary memory of the gradient",
        row=f"{NAMES[cell]} T {T}" + (", remat" if remat else ""),
        group="" if timed else NAMES[cell] + (", remat" if remat else ""),
        detail={"N": 32, "T": T, "D": 256, "H": 256},
        unit="ms" if timed else "MB",
        exact=not timed,
    )


SUITE = Suite(
    name="memory",
    about="temporary bytes of the compiled gradient against T (N 32, D = H 256), and its time",
    cases=(
        *(case(cell, T, remat) for remat in (False, True) for cell in NAMES for T in LENGTHS),
        *(case("lstm", 1024, remat, timed=True) for remat in (False, True)),
    ),
    quick=("lstm-T256", "lstm-T1024"),
    notes=(
        "One layer; the gradient of the sum of its output with respect to its weights. The output "
        "and its cotangent count among the temporaries. PyTorch compiles nothing and is left out.",
        "`remat` is an argument of jaxrnn's layers; other libraries ignore it.",
    ),
)
