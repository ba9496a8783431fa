"""The kernels for Hopper GPUs alone: each way to share a layer out among blocks and clusters.

`jaxrnn` is the sharing that `jaxrnn.backends.hopper.tiling.choose` takes, by a model of a step's time
that was fitted to such figures. The products outside the loop and what puts arrays in order around
it are part of the time, as they are of a call, but small. Layers that have no room in a cluster are
shared out among groups of clusters, which "auto" does not take until they have been measured here.
"""

from functools import partial
from time import perf_counter
from typing import Any
from unittest import mock

from bench.core import Case, Contender, Suite, Unsupported
from bench.layers import NAMES, relative_error
from bench.precision import precision
from bench.suites.gpu import KINDS

T, D = 512, 64
LAYERS = (
    ("lstm", "bfloat16", 32, 512),
    ("gru", "bfloat16", 32, 512),
    ("lstm", "bfloat16", 64, 256),
    ("lstm", "tf32", 128, 256),
    ("lstm", "float32", 64, 128),
    ("lstm", "bfloat16", 1024, 256),
)
GROUPS = (
    ("lstm", "bfloat16", 16, 768),
    ("lstm", "bfloat16", 64, 1024),
    ("gru", "bfloat16", 32, 1024),
    ("lstm", "tf32", 32, 512),
    ("lstm", "float32", 32, 512),
    ("rnn", "bfloat16", 32, 1792),
    ("lstm", "bfloat16", 256, 1024),
)
"""Layers that have room in a group of clusters only; the last takes several, one after another."""

UNITS, ROWS = (16, 32, 48, 64, 80, 96), (16, 32, 64)
NAMED = {f"{U} units, {L} rows": (U, L) for U in UNITS for L in ROWS}
GROUPED = {
    f"{U} units, {L} rows, clusters of {C}": (U, L, C)
    for U in (8, 16, 32)
    for L in ROWS
    for C in (1, 2, 4)
}


def sharing(name: str, cell: Any, dtype: Any, N: int, H: int) -> Any:
    """The tiles of a contender."""
    import jax

    from jaxrnn.backends import hopper
    from jaxrnn.backends.hopper import tiling as hopper_tiling

    chosen = hopper.tiles_of(cell, dtype, N, H)
    if jax.default_backend() != "gpu":
        raise Unsupported("it needs a Hopper GPU")
    if chosen is None:
        raise Unsupported("W_hh has no room")
    if name == "jaxrnn":
        return chosen
    most = 1 if name in NAMED else hopper.processors()
    for tiles in hopper_tiling.sharings(chosen.gates, chosen.itemsize, chosen.parts, H, most):
        if (tiles.U, tiles.L, tiles.C)[: 2 if most == 1 else 3] == (NAMED | GROUPED)[name]:
            break
    else:
        raise Unsupported("there are too few blocks")
    if not tiles.fits():
        raise Unsupported("it does not fit")
    return tiles


def operands(cell: Any, dtype: Any, N: int, H: int) -> tuple[Any, ...]:
    """Of the forward kernel, drawn."""
    import jax.numpy as jnp
    import numpy as np

    rng, G = np.random.default_rng(0), len(cell.gates)

    def draw(*shape: int, bound: float = 1.0) -> Any:
        return jnp.asarray(rng.uniform(-bound, bound, shape), dtype)

    weights = ((G * H, D), (G * H, H), (G * H,), (G * H,))
    states = [draw(N, H) for _ in cell.states]
    return draw(T, N, D), *(draw(*shape, bound=H**-0.5) for shape in weights), *states


def build(layer: tuple[str, str, int, int], backward: bool, name: str) -> Contender:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrnn import cells
    from jaxrnn.backends import hopper
    from jaxrnn.backends import primitives as fused

    which, kind, N, H = layer
    cell: Any = {"lstm": cells.LSTM(), "gru": cells.GRU(), "rnn": cells.Elman()}[which]
    dtype = jnp.dtype(KINDS[kind][0])
    tiles = sharing(name, cell, dtype, N, H)
    how: dict[str, Any] = dict(cell=cell, masked=False, reverse=False)
    given, S = operands(cell, dtype, N, H), len(cell.states)
    expected = jax.jit(lambda *a: fused._forward_reference(*a, **how, keep=True))(*given)

    def compiled(run: Any, arguments: Any) -> Any:
        with mock.patch.object(hopper, "tiles_of", return_value=tiles):
            return jax.jit(lambda *a: run(a)).lower(*arguments).compile()

    start = perf_counter()
    call = compiled(lambda a: hopper.run_forward(a, **how, keep=True), given)
    if backward:
        kept = call(*given)
        wide = [jnp.cos(kept[0]), *(jnp.cos(a).astype(jnp.float32) for a in given[5:])]
        whole = (*wide, *given[:3], *given[5:], *kept)
        given = (*wide, given[2], *given[5:], *kept)
        by: dict[str, Any] = dict(wanted=(False, False, False, True))
        expected = jax.jit(lambda *a: fused._backward_reference(*a, **how, **by))(*whole)
        call = compiled(lambda a: hopper.run_backward(a, **how), given)
    compile_s = perf_counter() - start

    def check() -> dict[str, float]:
        found = [np.asarray(a, np.float64) for a in call(*given)]
        wanted = [np.asarray(a, np.float64) for a in expected]
        if not backward:
            return {"output": max(map(relative_error, found[:S], wanted))}
        found[:-S] = [dz.sum((0, 1)) for dz in found[:-S]]
        return {"gradient": max(map(relative_error, found, wanted))}

    return Contender(
        run=lambda: jax.block_until_ready(call(*given)),
        compile_s=compile_s,
        note=f"{f'groups of {tiles.K} ' if tiles.K > 1 else ''}clusters of {tiles.C} blocks of "
        f"{tiles.U} units, {tiles.L} rows",
        check=check,
    )


def case(layer: tuple[str, str, int, int], backward: bool) -> Case:
    cell, kind, N, H = layer
    dtype, tf32 = KINDS[kind]
    return Case(
        name=f"{cell}-{H}-{N}-{kind}-{'backward' if backward else 'forward'}",
        build=partial(build, layer, backward),
        peers=("jaxrnn", *(GROUPED if layer in GROUPS else NAMED)),
        table="backward" if backward else "forward",
        row=f"{NAMES[cell]} {H}, {N} rows, {kind}",
        detail={"N": N, "T": T, "D": D, "H": H},
        steps=T,
        precision=(dtype, tf32),
        within=partial(precision, tf32),
        gpu_only="kernels of a GPU",
    )


SUITE = Suite(
    name="sharings",
    about="the kernels for Hopper GPUs alone, shared out among blocks in each way that fits",
    cases=tuple(case(layer, backward) for layer in LAYERS + GROUPS for backward in (False, True)),
    quick=(),
    reps=3,
    budget_s=240.0,
    case_s=40.0,
    notes=(
        "Errors are those of the states against the scan in the same dtype, or of the derivatives "
        "by the biases and the first states.",
    ),
)
