"""The kernels for TPUs (Pallas): the loop of a layer, and the transpose of its linear loop.

.. code-block:: text

    zx = x @ W_ih.T + b          for all steps in one product of XLA's, streamed to the kernel
    zx_t + h @ W_hh.T            W_hh stays in VMEM, h and the other states in float32 beside it
    h, c, ... = cell(z, ...)     on the vectors that the product gave

The grid has two dimensions: tiles of rows, which may go to different cores, and blocks of steps,
one after another. While a block runs, the next one's gate inputs come in and the last one's output
goes out. The product with W_ih stands outside, where it is one large product; inside it would need
W_ih in VMEM as well, for the reading and writing of zx, which goes on beside the arithmetic.

Gates and states are padded to whole vectors of 128 lanes, each gate by itself, by padding weights.
Rows and steps need no padding. Products of float32 are done in float32, unless
``jax_default_matmul_precision`` says otherwise; those of bfloat16 are summed in float32.

Source of the layout: a persistent recurrent network, G. Diamos et al., ICML 2016; of grids and
blocks, Pallas' own documentation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn.backends.elementwise import lower
from jaxrnn.backends.tpu.tiling import Tiles, budget, tiles
from jaxrnn.cells import Cell

DTYPES = ("float32", "bfloat16")

INTERPRET: Any = False
"""What `pl.pallas_call` takes: True or ``pltpu.InterpretParams()`` to run without a TPU."""


def unsupported_reason(cell: Cell, dtype: Any, T: int, N: int, D: int, H: int) -> str | None:
    """Why the kernels can't serve; None if they can."""
    del D
    if jnp.dtype(dtype).name not in DTYPES:
        return f"it computes in {' or '.join(DTYPES)}, not in {jnp.dtype(dtype).name}"
    reason = lower.unsupported_reason(cell)
    if reason is None and tiles(cell, jnp.dtype(dtype), T, N, H, budget()) is None:
        size = len(cell.gates) * H * H * jnp.dtype(dtype).itemsize
        reason = (
            f"W_hh of H {H} takes {size / 2**20:.1f} MiB and does not fit beside what streams into "
            f"the {budget() / 2**20:.0f} MiB of VMEM"
        )
    return reason


def run_forward(
    operands: Sequence[jax.Array], *, cell: Cell, masked: bool, reverse: bool, store_residuals: bool
) -> list[jax.Array]:
    """The forward kernel; operands and results as of `jaxrnn.backends.primitives.forward_p`."""
    x, w_ih, w_hh, b_ih, b_hh, *start = operands[: 5 + len(cell.states)]
    flags = operands[5 + len(cell.states) :]
    (T, N, _), H = x.shape, w_hh.shape[1]
    p = _tiles(cell, x.dtype, T, N, H)
    wide, saved = jnp.float32, lower.cell_graphs(cell).residual_counts
    bias = b_ih.astype(wide) if cell.split else b_ih.astype(wide) + b_hh.astype(wide)
    w_x = p.gates(w_ih).astype(x.dtype)
    zx = lax.dot_general(
        *(x, w_x, (((2,), (1,)), ((), ()))),
        precision=_precision(x.dtype),
        preferred_element_type=wide,
    ) + p.gates(bias).reshape(1, 1, -1)

    step, fixed = p.step_spec(reverse), p.row_spec()
    inputs = [(zx, step(p.G)), (p.gates(p.units(w_hh)).T, p.whole_spec((p.Hp, p.G * p.Hp)))]
    if cell.split:
        row = p.gates(b_hh.astype(wide)).reshape(1, -1)
        inputs.append((row, p.whole_spec((1, p.G * p.Hp))))
    inputs += [(p.units(s), fixed) for s in start]
    inputs += [(f.astype(jnp.int32)[..., None], step(0)) for f in flags]
    steps = lambda n: (jax.ShapeDtypeStruct((T, N, n * p.Hp), x.dtype), step(n))  # noqa: E731
    outputs = [steps(1)]
    if store_residuals:
        outputs += [steps(1) for _ in start[1:]] + [steps(n) for n in saved]
    else:
        outputs += [(jax.ShapeDtypeStruct((N, p.Hp), x.dtype), fixed) for _ in start[1:]]
    kernel = functools.partial(
        _forward, cell=cell, p=p, masked=masked, reverse=reverse, store_residuals=store_residuals
    )
    h, *more = _call(kernel, p, inputs, outputs, len(cell.states), "jaxrnn_forward")
    counts = [1] * len(start) + list(saved)
    return [p.narrow(a, n) for a, n in zip((h, *more), counts, strict=False)]


def _forward(
    *refs: Any, cell: Cell, p: Tiles, masked: bool, reverse: bool, store_residuals: bool
) -> None:
    graph, states = lower.cell_graphs(cell), len(cell.states)
    (zx, w), refs = refs[:2], refs[2:]
    bias, refs = (refs[0], refs[1:]) if cell.split else (None, refs)
    start, refs = refs[:states], refs[states:]
    flags, refs = (refs[0], refs[1:]) if masked else (None, refs)
    out, state = refs[:-states], refs[-states:]
    h_out, rest, saved = out[0], out[1:states], out[states:]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        for s, first in zip(state, start, strict=True):
            s[...] = first[...].astype(s.dtype)

    def step(j: Any, count: Any) -> None:
        t = count - 1 - j if reverse else j
        old = [s[...] for s in state]
        reset, valid = _flags(flags, t, old[0].shape)
        entered = [s if reset is None else jnp.where(reset, jnp.zeros_like(s), s) for s in old]
        zh = _dot(entered[0].astype(w.dtype), w[...])
        z = [zh + zx[t]]
        if bias is not None:
            z = [zx[t], zh + jnp.broadcast_to(bias[...], zh.shape)]
        gates = [p.gate(a, k) for a in z for k in range(p.G)]
        leaf = lambda name, k: gates[k] if name == "z" else entered[k]  # noqa: E731
        new = lower.evaluate(graph.forward, leaf, old[0])
        new = [p.inside(a) for a in new]
        places = iter(new[states:])
        for k in range(states):
            after = new[k] if valid is None else jnp.where(valid, new[k], old[k])
            state[k][...] = after
            if k == 0:
                h_out[t] = after.astype(h_out.dtype)
            elif store_residuals:
                rest[k - 1][t] = after.astype(h_out.dtype)
        for ref, n in zip(saved, graph.residual_counts if store_residuals else (), strict=True):
            for k in range(n):
                ref[t, :, k * p.Hp : (k + 1) * p.Hp] = next(places).astype(ref.dtype)

    _each_step(p, step, reverse)
    if not store_residuals and states > 1:

        @pl.when(pl.program_id(1) == p.blocks - 1)
        def _() -> None:
            for ref, s in zip(rest, state[1:], strict=True):
                ref[...] = s[...].astype(ref.dtype)


def run_backward(
    operands: Sequence[jax.Array], *, cell: Cell, masked: bool, reverse: bool
) -> list[jax.Array]:
    """The backward kernel; operands and results as `jaxrnn.backends.platform` describes."""
    states, counts = len(cell.states), lower.cell_graphs(cell).residual_counts
    pieces, left = [], list(operands)
    for count in (1, states, 1, states, states, len(counts)):
        pieces.append(left[:count])
        left = left[count:]
    (dh,), dlast, (w_hh,), start, after, saved = pieces
    (T, N, H), wide = dh.shape, jnp.float32
    p = _tiles(cell, w_hh.dtype, T, N, H)
    used = lower.graph_leaves(cell)
    before = [k for k in range(states) if ("old", k) in used]
    steps = [k for k in range(states) if k in before or ("new", k) in used]

    step, fixed = p.step_spec(not reverse), p.row_spec()
    inputs = [
        (p.units(dh), step(1)),
        (p.gates(p.units(w_hh)), p.whole_spec((p.G * p.Hp, p.Hp))),
        *[(p.units(d).astype(wide), fixed) for d in dlast],
        *[(p.units(after[k]), step(1)) for k in steps],
        *[(p.units(after[k]), p.edge_spec(reverse)) for k in before],
        *[(p.units(start[k]), fixed) for k in before],
        *[(p.units(s, n), step(n)) for s, n in zip(saved, counts, strict=True)],
        *[(f.astype(jnp.int32)[..., None], step(0)) for f in left],
    ]
    rows = jax.ShapeDtypeStruct((N, p.Hp), wide)
    dz = jax.ShapeDtypeStruct((T, N, p.G * p.Hp), wide)
    outputs = [(dz, step(p.G))] * (1 + cell.split) + [(rows, fixed)] * states
    kernel = functools.partial(
        _backward, cell=cell, p=p, masked=masked, reverse=reverse, steps=steps, before=before
    )
    out = _call(kernel, p, inputs, outputs, states, "jaxrnn_backward")
    given = [p.G] * (1 + cell.split) + [1] * states
    return [p.narrow(a, n) for a, n in zip(out, given, strict=True)]


def _backward(
    *refs: Any,
    cell: Cell,
    p: Tiles,
    masked: bool,
    reverse: bool,
    steps: list[int],
    before: list[int],
) -> None:
    graph, states = lower.cell_graphs(cell), len(cell.states)
    (dh, w), refs = refs[:2], refs[2:]
    dlast, refs = refs[:states], refs[states:]
    after, refs = dict(zip(steps, refs)), refs[len(steps) :]
    edge, refs = dict(zip(before, refs)), refs[len(before) :]
    start, refs = dict(zip(before, refs)), refs[len(before) :]
    saved, refs = refs[: len(graph.residual_counts)], refs[len(graph.residual_counts) :]
    flags, refs = (refs[0], refs[1:]) if masked else (None, refs)
    dz, refs = refs[: 1 + cell.split], refs[1 + cell.split :]
    dstart, carry = refs[:states], refs[states:]
    kept = [(ref, k) for ref, n in zip(saved, graph.residual_counts, strict=True) for k in range(n)]
    first_block = p.block(not reverse) == (p.blocks - 1 if reverse else 0)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        for c, last in zip(carry, dlast, strict=True):
            c[...] = last[...]

    def step(j: Any, count: Any) -> None:
        t = j if reverse else count - 1 - j
        at_edge = j == count - 1
        ct = [c[...] for c in carry]
        like = ct[0]
        ct[0] = ct[0] + dh[t].astype(like.dtype)
        reset, valid = _flags(flags, t, like.shape)
        nothing = jnp.zeros_like(like)
        through = ct if valid is None else [jnp.where(valid, c, nothing) for c in ct]

        def old(k: int) -> jax.Array:
            near = after[k][jnp.where(at_edge, t, t + 1 if reverse else t - 1)]
            outside = lax.select(first_block, start[k][...], edge[k][0])
            value = lax.select(at_edge, outside, near).astype(like.dtype)
            return value if reset is None else jnp.where(reset, nothing, value)

        def leaf(name: str, k: int) -> jax.Array:
            if name == "ct":
                return through[k]
            if name == "old":
                return old(k)
            if name == "new":
                return after[k][t].astype(like.dtype)
            ref, place = kept[k]
            return p.gate(ref[t], place).astype(like.dtype)

        out = lower.evaluate(graph.backward, leaf, like)
        out = [p.inside(a) for a in out]
        for index, a in enumerate(out[:-states]):
            which, k = divmod(index, p.G)
            a = a if valid is None else jnp.where(valid, a, nothing)
            dz[which][t, :, k * p.Hp : (k + 1) * p.Hp] = a
        by_old = out[-states:]
        by_old[0] = by_old[0] + _dot(dz[-1][t].astype(w.dtype), w[...])
        for k in range(states):
            d = by_old[k] if reset is None else jnp.where(reset, nothing, by_old[k])
            carry[k][...] = d if valid is None else jnp.where(valid, d, ct[k])

    _each_step(p, step, not reverse)

    @pl.when(pl.program_id(1) == p.blocks - 1)
    def _() -> None:
        for ref, c in zip(dstart, carry, strict=True):
            ref[...] = c[...]


def _tiles(cell: Cell, dtype: Any, T: int, N: int, H: int) -> Tiles:
    found = tiles(cell, jnp.dtype(dtype), T, N, H, budget())
    if found is None:
        raise ValueError(unsupported_reason(cell, dtype, T, N, 0, H))
    return found


def _call(
    kernel: Any,
    p: Tiles,
    inputs: list[tuple[jax.Array, pl.BlockSpec]],
    outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    states: int,
    name: str,
) -> Sequence[jax.Array]:
    call = pl.pallas_call(
        kernel,
        [shape for shape, _ in outputs],
        grid=(p.row_tiles, p.blocks),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        scratch_shapes=[pltpu.VMEM((p.rows, p.Hp), jnp.float32)] * states,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=p.limit
        ),
        interpret=INTERPRET,
        name=name,
    )
    return call(*(array for array, _ in inputs))


def _each_step(p: Tiles, step: Any, backwards: bool) -> None:
    """Run the steps of a block; of the last block in time, those that there are."""
    count: Any = p.steps
    if p.T % p.steps:
        count = jnp.minimum(p.steps, p.T - p.block(backwards) * p.steps)
    count = jnp.asarray(count, jnp.int32)
    lax.fori_loop(jnp.int32(0), count, lambda j, _: step(j, count), None)


def _flags(ref: Any, t: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Whether each row is reset at step t, and whether the step is its own, for each unit."""
    if ref is None:
        return None, None
    bits = jnp.broadcast_to(ref[t], shape)
    return (bits & 1) != 0, (bits & 2) != 0


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.dot_general(
        *(a, b, (((1,), (0,)), ((), ()))),
        precision=_precision(a.dtype),
        preferred_element_type=jnp.float32,
    )


def _precision(dtype: Any) -> Any:
    """Float32 for float32, unless JAX has been told what products are to be."""
    told = jax.config.jax_default_matmul_precision  # pyright: ignore
    return lax.Precision.HIGHEST if dtype == jnp.float32 and told is None else None
