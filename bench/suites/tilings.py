"""The kernels for Hopper GPUs alone, with each tiling that fits.

`jaxrnn` is the tiling that `jaxrnn.backends.hopper.tiling.select_tiling` chooses, by a model of a
step's time that was fitted to such figures. The products outside the loop and the conversion of
arrays are included, as in a call, and small. Layers that do not fit into a cluster run on groups of
clusters, which "auto" does not use until they have been measured here.
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
"""Layers that fit into a group of clusters alone; the last needs several groups, in waves."""

UNITS, BATCH_TILES = (16, 32, 48, 64, 80, 96), (16, 32, 64)
CLUSTERS = {f"{U} units, {B} sequences": (U, B) for U in UNITS for B in BATCH_TILES}
GROUPED = {
    f"{U} units, {B} sequences, clusters of {C}": (U, B, C)
    for U in (8, 16, 32)
    for B in BATCH_TILES
    for C in (1, 2, 4)
}


def tiling_of(name: str, cell: Any, dtype: Any, N: int, H: int) -> Any:
    """Return the tiling of a contender."""
    import jax

    from jaxrnn.backends import hopper
    from jaxrnn.backends.hopper.tiling import candidate_tilings

    chosen = hopper.tiling_for(cell, dtype, N, H)
    if jax.default_backend() != "gpu":
        raise Unsupported("it needs a Hopper GPU")
    if chosen is None:
        raise Unsupported("W_hh does not fit")
    if name == "jaxrnn":
        return chosen
    num_sms = 1 if name in CLUSTERS else hopper.num_sms()
    for t in candidate_tilings(chosen.G, chosen.itemsize, chosen.terms, H, num_sms):
        sizes = (t.U, t.B) if num_sms == 1 else (t.U, t.B, t.C)
        if sizes == (CLUSTERS | GROUPED)[name]:
            break
    else:
        raise Unsupported("it needs more blocks")
    if not t.fits:
        raise Unsupported("it does not fit into shared memory")
    return t


def operands(cell: Any, dtype: Any, N: int, H: int) -> tuple[Any, ...]:
    """Draw the operands of the forward kernel."""
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
    t = tiling_of(name, cell, dtype, N, H)
    options: dict[str, Any] = dict(cell=cell, masked=False, reverse=False)
    given, S = operands(cell, dtype, N, H), len(cell.states)
    expected = jax.jit(lambda *a: fused._forward_reference(*a, **options, store_residuals=True))(
        *given
    )

    def compiled(run: Any, arguments: Any) -> Any:
        with mock.patch.object(hopper, "tiling_for", return_value=t):
            return jax.jit(lambda *a: run(a)).lower(*arguments).compile()

    start = perf_counter()
    call = compiled(lambda a: hopper.run_forward(a, **options, store_residuals=True), given)
    if backward:
        results = call(*given)
        wide = [jnp.cos(results[0]), *(jnp.cos(a).astype(jnp.float32) for a in given[5:])]
        whole = (*wide, *given[:3], *given[5:], *results)
        given = (*wide, given[2], *given[5:], *results)
        backward_options: dict[str, Any] = dict(requested=(False, False, False, True))
        expected = jax.jit(lambda *a: fused._backward_reference(*a, **options, **backward_options))(
            *whole
        )
        call = compiled(lambda a: hopper.run_backward(a, **options), given)
    compile_s = perf_counter() - start

    def check() -> dict[str, float]:
        found = [np.asarray(a, np.float64) for a in call(*given)]
        references = [np.asarray(a, np.float64) for a in expected]
        if not backward:
            return {"output": max(map(relative_error, found[:S], references))}
        found[:-S] = [dz.sum((0, 1)) for dz in found[:-S]]
        return {"gradient": max(map(relative_error, found, references))}

    return Contender(
        run=lambda: jax.block_until_ready(call(*given)),
        compile_s=compile_s,
        note=f"{f'groups of {t.K} ' if t.K > 1 else ''}clusters of {t.C} blocks of {t.U} units, "
        f"{t.B} sequences",
        check=check,
    )


def case(layer: tuple[str, str, int, int], backward: bool) -> Case:
    cell, kind, N, H = layer
    dtype, tf32 = KINDS[kind]
    return Case(
        name=f"{cell}-{H}-{N}-{kind}-{'backward' if backward else 'forward'}",
        build=partial(build, layer, backward),
        peers=("jaxrnn", *(GROUPED if layer in GROUPS else CLUSTERS)),
        table="backward" if backward else "forward",
        row=f"{NAMES[cell]} {H}, batch {N}, {kind}",
        detail={"N": N, "T": T, "D": D, "H": H},
        steps=T,
        precision=(dtype, tf32),
        within=partial(precision, tf32),
        gpu_only="kernels of a GPU",
    )


SUITE = Suite(
    name="tilings",
    about="the kernels for Hopper GPUs alone, with each tiling that fits",
    cases=tuple(case(layer, backward) for layer in LAYERS + GROUPS for backward in (False, True)),
    quick=(),
    reps=3,
    budget_s=240.0,
    case_s=40.0,
    notes=(
        "Errors are those of the states against the scan in the same dtype, or of the gradients "
        "with respect to the biases and the initial states.",
    ),
)
