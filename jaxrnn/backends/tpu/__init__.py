"""Kernels for TPUs (Pallas): the recurrence and its linear backward pass.

.. code-block:: text

    zx = x @ W_ih.T + b          for all steps, one product of XLA's, streamed to the kernel
    zx_t + h @ W_hh.T            W_hh stays in VMEM, states in float32 beside it
    h, c, ... = cell(z, ...)     on vectors

The grid has batch tiles, which may run on different cores, and blocks of steps, in order. While a
block runs, Pallas copies the inputs of the next one and the outputs of the last one. Each gate and
state is padded to whole vectors of 128 lanes. See `README.md` in this folder.

Source: persistent recurrent networks, G. Diamos et al., ICML 2016.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn.backends.elementwise import lower
from jaxrnn.cells import Cell

DTYPES = ("float32", "bfloat16")
_WIDE = jnp.float32

INTERPRET: Any = False
"""Argument of `pl.pallas_call`: True or ``pltpu.InterpretParams()`` to run without a TPU."""

_ZERO = np.int32(0)
_LANES = 128
_BATCH_TILES = (256, 128, 64, 32, 16)  # sequences; 256 fill the matrix unit
_MAX_STEPS = 16  # of a block; they hide the overhead of a grid step
_MIN_VMEM = 16 << 20  # bytes that every TPU has, and that a program gets by default
_DEFAULT_VMEM = _MIN_VMEM * 9 // 10  # bytes that a call may use on any TPU


def unsupported_reason(cell: Cell, dtype: Any, T: int, N: int, D: int, H: int) -> str | None:
    """Return the reason why the kernels do not support a layer, or None if they do."""
    del D
    if jnp.dtype(dtype).name not in DTYPES:
        return f"it computes in {' or '.join(DTYPES)}, not in {jnp.dtype(dtype).name}"
    reason = lower.unsupported_reason(cell)
    if reason is None and tiling_for(cell, dtype, T, N, H) is None:
        size = len(cell.gates) * H * H * jnp.dtype(dtype).itemsize
        reason = (
            f"W_hh of H {H} takes {size / 2**20:.1f} MiB and does not fit into the "
            f"{_vmem_budget() / 2**20:.0f} MiB of VMEM beside the streamed blocks"
        )
    return reason


def tiling_for(cell: Cell, dtype: Any, T: int, N: int, H: int) -> Tiling | None:
    """Return the tiling of a layer, or None if it does not fit."""
    return select_tiling(cell, jnp.dtype(dtype), T, N, H, _vmem_budget())


def run_forward(
    operands: Sequence[jax.Array], *, cell: Cell, masked: bool, reverse: bool, store_residuals: bool
) -> list[jax.Array]:
    """Run the forward kernel, with the signature of `jaxrnn.backends.primitives.forward_p`."""
    graph, S = lower.cell_graphs(cell), len(cell.states)
    x, w_ih, w_hh, b_ih, b_hh, *more = operands
    (T, N, _), H = x.shape, w_hh.shape[1]
    t = tiling_for(cell, x.dtype, T, N, H)
    assert t is not None  # primitives check unsupported_reason
    G, Hp = t.G, t.Hp
    bias = b_ih.astype(_WIDE) if cell.split else b_ih.astype(_WIDE) + b_hh.astype(_WIDE)
    zx = _dot(x, t.pad(w_ih, G, 0).astype(x.dtype), 1) + t.pad(bias, G, 0).reshape(1, 1, -1)
    shared = [t.pad(t.pad(w_hh), G, 0).T]
    if cell.split:
        shared.append(t.pad(b_hh.astype(_WIDE), G, 0).reshape(1, -1))

    def _kernel(
        zx: Any, shared: Any, initial: Any, flags: Any, h: Any, rest: Any, saved: Any, *state: Any
    ) -> None:
        w, *b_h = shared

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            for ref, s in zip(state, initial, strict=True):
                ref[...] = s[...].astype(ref.dtype)

        def _step(j: Any, count: Any) -> None:
            i = count - 1 - j if reverse else j
            old = [ref[...] for ref in state]
            reset, valid = _masks(flags, i, old[0].shape)
            entering = [s if reset is None else jnp.where(reset, jnp.zeros_like(s), s) for s in old]
            zh = _dot(entering[0].astype(w.dtype), w[...], 0)
            z = [zx[i], zh + jnp.broadcast_to(b_h[0][...], zh.shape)] if b_h else [zh + zx[i]]
            leaves = dict(
                z=[a[:, k : k + Hp] for a in z for k in range(0, G * Hp, Hp)], old=entering
            )
            out = lower.evaluate(graph.forward, lambda name, k: leaves[name][k], old[0])
            out = [t.zero_padding_units(a) for a in out]
            for k in range(S):
                new = out[k] if valid is None else jnp.where(valid, out[k], old[k])
                state[k][...] = new
                if k == 0 or store_residuals:
                    ref = rest[k - 1] if k else h
                    ref[i] = new.astype(ref.dtype)
            residuals = iter(out[S:])
            for ref in saved:
                for start in range(0, ref.shape[2], Hp):
                    ref[i, :, start : start + Hp] = next(residuals).astype(ref.dtype)

        _run_steps(t, _step, reverse)
        if not store_residuals and S > 1:

            @pl.when(pl.program_id(1) == t.grid[1] - 1)
            def _() -> None:
                for ref, s in zip(rest, state[1:], strict=True):
                    ref[...] = s[...].astype(ref.dtype)

    initial = [t.pad(s) for s in more[:S]]
    arrays = zx, shared, initial, [f.astype(jnp.int32)[..., None] for f in more[S:]]
    spec = functools.partial(t.spec, backwards=reverse)
    specs = list(map(functools.partial(jax.tree.map, spec), arrays))
    specs[1] = list(map(_shared_spec, shared))
    h = jax.ShapeDtypeStruct((T, N, Hp), x.dtype)
    rest = h if store_residuals else jax.ShapeDtypeStruct((N, Hp), x.dtype)
    counts = graph.residual_counts if store_residuals else ()
    saved = [jax.ShapeDtypeStruct((T, N, n * Hp), x.dtype) for n in counts]
    shapes = h, [rest] * (S - 1), saved
    specs = tuple(specs), jax.tree.map(spec, shapes)
    out = _call(t, _kernel, "jaxrnn_forward", arrays, specs, shapes, S)
    return list(map(t.unpad, jax.tree.leaves(out)))


def run_backward(
    operands: Sequence[jax.Array], *, cell: Cell, masked: bool, reverse: bool
) -> list[jax.Array]:
    """Run the backward kernel, with the signature given in `jaxrnn.backends.platform`."""
    graph, S = lower.cell_graphs(cell), len(cell.states)
    counts, used = graph.residual_counts, lower.graph_leaves(cell)
    dh, *more = operands
    dfinal, (w_hh, *more) = more[:S], more[S:]
    initial, after = more[:S], more[S : 2 * S]
    saved, flags = more[2 * S :][: len(counts)], more[2 * S + len(counts) :]
    T, N, H = dh.shape
    t = tiling_for(cell, w_hh.dtype, T, N, H)
    assert t is not None  # primitives check unsupported_reason
    G, Hp = t.G, t.Hp
    old_leaves = [k for k in range(S) if ("old", k) in used]
    after_leaves = [k for k in range(S) if k in old_leaves or ("new", k) in used]

    def _kernel(*refs: Any) -> None:
        dh, w, dfinal, after, edge, initial, saved, flags, dz_out, dinitial_out, *carry = refs
        after = dict(zip(after_leaves, after, strict=True))
        edge, initial = (dict(zip(old_leaves, a, strict=True)) for a in (edge, initial))
        residuals = [(ref, k) for ref in saved for k in range(0, ref.shape[2], Hp)]
        last = t.grid[1] - 1
        first_block = t.block_index(pl.program_id(1), not reverse) == (last if reverse else 0)

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            for ref, d in zip(carry, dfinal, strict=True):
                ref[...] = d[...]

        def _step(j: Any, count: Any) -> None:
            i = j if reverse else count - 1 - j
            at_edge = j == count - 1  # the step before is in another block
            ct = [ref[...] for ref in carry]
            like = ct[0]
            ct[0] = ct[0] + dh[i].astype(like.dtype)
            reset, valid = _masks(flags, i, like.shape)
            zeros = jnp.zeros_like(like)
            ct_valid = ct if valid is None else [jnp.where(valid, c, zeros) for c in ct]

            def _leaf(name: str, k: int) -> jax.Array:
                if name == "ct":
                    return ct_valid[k]
                if name == "new":
                    return after[k][i].astype(like.dtype)
                if name == "residuals":
                    ref, start = residuals[k]
                    return ref[i][:, start : start + Hp].astype(like.dtype)
                inside = after[k][jnp.where(at_edge, i, i + 1 if reverse else i - 1)]
                outside = lax.select(first_block, initial[k][...], edge[k][0])
                old = lax.select(at_edge, outside, inside).astype(like.dtype)
                return old if reset is None else jnp.where(reset, zeros, old)

            out = lower.evaluate(graph.backward, _leaf, like)
            out = [t.zero_padding_units(a) for a in out]
            dz, dold = out[:-S], out[-S:]
            for index, a in enumerate(dz):
                ref, start = dz_out[index // G], index % G * Hp
                ref[i, :, start : start + Hp] = a if valid is None else jnp.where(valid, a, zeros)
            dold[0] = dold[0] + _dot(dz_out[-1][i].astype(w.dtype), w[...], 0)
            for k in range(S):
                d = dold[k] if reset is None else jnp.where(reset, zeros, dold[k])
                carry[k][...] = d if valid is None else jnp.where(valid, d, ct[k])

        _run_steps(t, _step, not reverse)

        @pl.when(pl.program_id(1) == last)
        def _() -> None:
            for ref, c in zip(dinitial_out, carry, strict=True):
                ref[...] = c[...]

    arrays = (
        t.pad(dh),
        t.pad(t.pad(w_hh), G, 0),
        [t.pad(d).astype(_WIDE) for d in dfinal],
        [t.pad(after[k]) for k in after_leaves],
        [t.pad(after[k]) for k in old_leaves],
        [t.pad(initial[k]) for k in old_leaves],
        [t.pad(a, n) for a, n in zip(saved, counts, strict=True)],
        [f.astype(jnp.int32)[..., None] for f in flags],
    )
    spec = functools.partial(t.spec, backwards=not reverse)
    specs: Any = list(map(functools.partial(jax.tree.map, spec), arrays))
    specs[1], specs[4] = _shared_spec(arrays[1]), [t.edge_spec(reverse) for _ in old_leaves]
    dz = jax.ShapeDtypeStruct((T, N, G * Hp), _WIDE)
    shapes = [dz] * (1 + cell.split), [jax.ShapeDtypeStruct((N, Hp), _WIDE)] * S
    specs = tuple(specs), jax.tree.map(spec, shapes)
    out = _call(t, _kernel, "jaxrnn_backward", arrays, specs, shapes, S)
    return list(map(t.unpad, jax.tree.leaves(out)))


def _call(t: Tiling, kernel: Any, name: str, arrays: Any, specs: Any, shapes: Any, S: int) -> Any:
    return pl.pallas_call(
        kernel,
        shapes,
        grid=t.grid,
        in_specs=specs[0],
        out_specs=specs[1],
        scratch_shapes=[pltpu.VMEM((t.B, t.Hp), _WIDE)] * S,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=t.vmem_limit
        ),
        interpret=INTERPRET,
        name=name,
    )(*arrays)


def _run_steps(t: Tiling, step: Callable[[Any, Any], None], backwards: bool) -> None:
    """Run the steps of a block; the last block in time may have fewer than K."""
    count: Any = t.K
    if t.T % t.K:
        block = t.block_index(pl.program_id(1), backwards)
        count = jnp.minimum(t.K, t.T - block * t.K)
    count = jnp.asarray(count, jnp.int32)
    lax.fori_loop(jnp.int32(0), count, lambda j, _: step(j, count), None)


def _masks(flags: Any, i: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the reset and valid masks of a step for each unit, or None without flags."""
    if not flags:
        return None, None
    bits = jnp.broadcast_to(flags[0][i], shape)
    return (bits & 1) != 0, (bits & 2) != 0


def _dot(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Contract the last axis of a with an axis of b, accumulating in float32.

    Float32 operands use the highest precision unless JAX's default is set.
    """
    default = jax.config.jax_default_matmul_precision  # pyright: ignore
    exact = a.dtype == jnp.float32 and default is None
    return lax.dot_general(
        *(a, b, (((a.ndim - 1,), (axis,)), ((), ()))),
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=_WIDE,
    )


@functools.cache
def _vmem_budget() -> int:
    """Return the bytes of VMEM that a call may use: most of this TPU's, or those of any TPU."""
    if jax.default_backend() == "tpu":
        return max(pltpu.get_tpu_info().vmem_capacity_bytes * 3 // 4, _DEFAULT_VMEM)
    return _DEFAULT_VMEM


@dataclass(frozen=True)
class Tiling:
    """Tiling of a call, with the conversions of its arrays and their block specs."""

    T: int  # time steps
    N: int  # batch size
    H: int  # hidden size
    G: int  # gates
    B: int  # sequences in a batch tile
    K: int  # steps in a block
    vmem_limit: int | None = None  # bytes of VMEM to request, None for the default

    @property
    def Hp(self) -> int:
        """Hidden size, padded to whole vectors."""
        return -(-self.H // _LANES) * _LANES

    @property
    def grid(self) -> tuple[int, int]:
        """Number of batch tiles and of blocks of steps."""
        return -(-self.N // self.B), -(-self.T // self.K)

    def pad(self, a: jax.Array, count: int = 1, axis: int = -1) -> jax.Array:
        """Pad each of `count` slices of H along an axis with zeros, to count * Hp."""
        if self.Hp == self.H:
            return a
        axis %= a.ndim
        before, after = a.shape[:axis], a.shape[axis + 1 :]
        padding = [(0, 0)] * (a.ndim + 1)
        padding[axis + 1] = (0, self.Hp - self.H)
        a = jnp.pad(a.reshape(*before, count, self.H, *after), padding)
        return a.reshape(*before, count * self.Hp, *after)

    def unpad(self, a: jax.Array) -> jax.Array:
        """Remove the padding of (..., count * Hp)."""
        if self.Hp == self.H:
            return a
        a = a.reshape(*a.shape[:-1], -1, self.Hp)[..., : self.H]
        return a.reshape(*a.shape[:-2], -1)

    def zero_padding_units(self, a: jax.Array) -> jax.Array:
        """Set padding units to zero; a cell may compute NaN from them."""
        if self.Hp == self.H:
            return a
        unit = lax.broadcasted_iota(jnp.int32, a.shape, 1)
        return jnp.where(unit < self.H, a, jnp.zeros_like(a))

    def block_index(self, i: Any, backwards: bool) -> Any:
        """Return the block of steps of grid step `i`."""
        return np.int32(self.grid[1] - 1) - i if backwards else i

    def spec(self, a: Any, backwards: bool) -> pl.BlockSpec:
        """Return the block spec of an array (T, N, features) or of a state (N, Hp)."""
        if a.ndim == 2:
            return pl.BlockSpec((self.B, self.Hp), lambda n, i: (n, _ZERO))
        shape = self.K, self.B, a.shape[2]
        return pl.BlockSpec(shape, lambda n, i: (self.block_index(i, backwards), n, _ZERO))

    def edge_spec(self, reverse: bool) -> pl.BlockSpec:
        """Return the spec of the step of (T, N, Hp) before a block of the forward pass."""

        def _index(n: Any, i: Any) -> Any:
            b = self.block_index(i, not reverse)
            if reverse:
                return jnp.minimum((b + 1) * self.K, self.T - 1), n, _ZERO
            return jnp.maximum(b * self.K - 1, 0), n, _ZERO

        return pl.BlockSpec((1, self.B, self.Hp), _index)


def _shared_spec(a: jax.Array) -> pl.BlockSpec:
    """Return the spec of a matrix that all blocks share, with a single buffer."""
    return pl.BlockSpec(a.shape, lambda n, i: (_ZERO, _ZERO), pipeline_mode=pl.Buffered(1))


@functools.lru_cache(maxsize=1024)
def select_tiling(cell: Cell, dtype: Any, T: int, N: int, H: int, budget: int) -> Tiling | None:
    """Return the largest tiling that fits, or None: four steps, then sequences, then more steps.

    Steps hide the overhead of the grid, sequences the loading of weights into the matrix unit.
    """
    sublanes = 32 // dtype.itemsize
    sizes = [size for size in (*_BATCH_TILES, sublanes) if size >= sublanes]
    batch_tiles = sorted({_batch_tile(N, size, sublanes) for size in sizes})
    for B in reversed(batch_tiles):
        for K in range(min(T, _MAX_STEPS), 0 if batch_tiles[0] == B else min(T, 4) - 1, -1):
            need = max(vmem_bytes(cell, dtype, B, K, H))
            if need <= budget:
                limit = None if need <= _DEFAULT_VMEM else need + need // 8
                return Tiling(T, N, H, len(cell.gates), B, K, limit)
    return None


def _batch_tile(N: int, size: int, sublanes: int) -> int:
    """Return the batch tile: N, or an equal share of it in whole vectors of at most `size`."""
    count = -(-N // size)
    return N if count == 1 else -(-N // (count * sublanes)) * sublanes


def vmem_bytes(cell: Cell, dtype: Any, B: int, K: int, H: int) -> tuple[int, int]:
    """Return the VMEM of the forward and the backward kernel; streamed blocks have two buffers."""
    itemsize, wide, sublanes = dtype.itemsize, 4, 32 // dtype.itemsize
    B, Hp = -(-B // sublanes) * sublanes, -(-H // _LANES) * _LANES
    G, S, saved = len(cell.gates), len(cell.states), sum(lower.cell_graphs(cell).residual_counts)
    tile = B * Hp
    weights, flags = G * Hp**2 * itemsize, 2 * K * B * _LANES * 4
    working = 4 * G * (1 + cell.split) * tile * wide
    forward = tile * (2 * K * (G * wide + (S + saved) * itemsize) + S * (3 * itemsize + wide))
    read = len({k for name, k in lower.graph_leaves(cell) if name in ("old", "new")})
    backward = tile * 2 * K * (wide + (read + saved) * itemsize + (1 + cell.split) * G * wide)
    backward += tile * S * (6 * wide + 4 * itemsize)
    return tuple(weights + flags + working + b for b in (forward, backward))
