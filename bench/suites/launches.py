"""Kernel launches per time step on a GPU, counted in the compiled program without a run."""

from functools import partial
from typing import Any

from bench.core import Case, Contender, Suite, Unsupported
from bench.launches import launches, target
from bench.layers import NAMES, Spec
from bench.peers import JAX_PEERS, PEERS

AS_ON_CPU = "jaxrnn (a CPU's loops)"


def compiled_launches(peer: Any, spec: Spec, backward: bool) -> float:
    """Return the launches per time step of a layer, compiled for `target`."""
    import jax

    where = target()

    def there(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    forward, gradient, params, _ = peer.functions(spec)
    shapes = [(spec.T, spec.N, spec.D), (spec.T, spec.N, spec.directions * spec.H)]
    if peer.batch_major:
        shapes = [(n, t, d) for t, n, d in shapes]
    x, dy = (there(shape, params[0].dtype) for shape in shapes)
    params = tuple(there(param.shape, param.dtype) for param in params)
    arguments = (params, x, dy) if backward else (params, x)
    lowered = jax.jit(gradient if backward else forward).lower(*arguments)
    return launches(lowered.compile().as_text() or "") / spec.T


def build(spec: Spec, backward: bool, name: str) -> Contender:
    from jaxrnn.backends import platform as tuning

    ours = name in ("jaxrnn", AS_ON_CPU)
    entry = PEERS["jaxrnn.scan" if ours else name]
    if not entry.uses_jax:
        raise Unsupported("it compiles nothing ahead of time")
    target()
    peer = entry.load()
    with tuning.traced_for("cpu" if name == AS_ON_CPU else "gpu"):
        found = compiled_launches(peer, spec, backward)
    return Contender(value=lambda: found)


def case(cell: str, dtype: str, backward: bool) -> Case:
    spec = Spec(cell, 32, 256, 512, 512, dtype=dtype)
    return Case(
        name=f"{cell}-{dtype}-{'backward' if backward else 'forward'}",
        build=partial(build, spec, backward),
        peers=("jaxrnn", AS_ON_CPU, *(name for name in JAX_PEERS if name != "jaxrnn")),
        table="forward+backward" if backward else "forward",
        row=f"{NAMES[cell]}, {dtype}",
        group=NAMES[cell],
        detail={"N": spec.N, "T": spec.T, "D": spec.D, "H": spec.H},
        unit="launches",
        exact=True,
    )


SUITE = Suite(
    name="launches",
    about="kernels a time step on a GPU, counted in XLA's optimised modules",
    cases=tuple(
        case(cell, dtype, backward)
        for dtype in ("float32", "bfloat16")
        for cell in NAMES
        for backward in (False, True)
    ),
    quick=("lstm-float32",),
    notes=(
        "All launches of a call, outside its loops as well, divided by T. Compiled for the local "
        "GPU, or for an H100 without a device: then XLA does not tune products and may select "
        "other kernels. jaxrnn is the scan.",
    ),
)
