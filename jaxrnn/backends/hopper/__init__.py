"""The kernels for Hopper GPUs (Pallas, Mosaic GPU): the loop of a layer, and its linear backward.

.. code-block:: text

    zx = x @ W_ih.T + b             for all steps in one product of XLA's
    z_t = zx_t + W_hh @ h_{t-1}     W_hh in the shared memory of a cluster of blocks
    h_t, c_t, ... = cell(z_t, ...)  in registers, float32

A cluster takes a slice of the rows through all steps; clusters know nothing of each other. A block
of it holds the weights of U units, computes these units' gates on the tensor cores, and sends the
new h to all blocks of its cluster, twice buffered: each step waits once, until all have come
(`jaxrnn.backends.hopper.peers`). Backward, each block multiplies its dz by its columns of W_hh and
sends each block its part of the derivative by h. So weights are read from global memory once, and
states never.

Weights that have no room in a cluster are shared by a group of clusters, which exchange h through
global memory (`jaxrnn.backends.hopper.tiling`, `hopper_far`). Groups have been interpreted, and
compiled for an H100, but have never run: "auto" leaves them out.

Products are of bfloat16, of float16, or of TF32: once where ``jax_default_matmul_precision`` says
"tensorfloat32", and else three of them, on float32 split into two, which keeps 22 of its 24 bits.
Sums, states and pointwise functions are float32.

Sources: persistent recurrent networks, G. Diamos et al., ICML 2016; three products of a split
number, H. Ootomo and R. Yokota, Int. J. High Performance Computing Applications 36 (2022).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends.elementwise import lower
from jaxrnn.backends.hopper.tiling import PROCESSORS, Tiles, choose
from jaxrnn.backends.products import rows_product
from jaxrnn.backends.step import plus
from jaxrnn.cells import Cell

DTYPES = ("float32", "bfloat16", "float16")
OLDEST, NEWEST = (0, 10, 2), (0, 13)
"""The versions of JAX whose Mosaic GPU these kernels are written for: from, and below."""

SCAN_STEP = 6.5
"""Microseconds that a step of a scan takes at least, as measured on an H200."""

GROUPS = False
"""Whether "auto" takes groups of clusters: not before they have been measured."""

INTERPRET = False
"""Whether to run in Mosaic's interpreter, which needs no GPU."""


def unsupported_reason(cell: Cell, dtype: Any, T: int, N: int, D: int, H: int) -> str | None:
    """Why the kernels can't serve; None if they can."""
    del D
    name = jnp.dtype(dtype).name
    if not OLDEST <= jax.__version_info__ < NEWEST:
        return f"it is written for jax 0.10.2 to 0.12, not {jax.__version__}"
    reason = None if INTERPRET else _why_not_here()
    if reason is None and name not in DTYPES:
        reason = f"it computes in {' or '.join(DTYPES)}, not in {name}"
    reason = reason or lower.unsupported_reason(cell)
    if reason is None and any("sqrt" in _operations(n) for n in _outputs(cell)):
        reason = f"Mosaic has no square root, which {type(cell).__name__} takes"
    if reason is None and tiles_of(cell, dtype, N, H) is None:
        reason = (
            f"W_hh of H {H} in {name} does not fit into the shared memory of {processors()} "
            "multiprocessors beside what goes through it"
        )
    return reason


def unprofitable_reason(cell: Cell, dtype: Any, T: int, N: int, D: int, H: int) -> str | None:
    """Why "auto" should not take them though they can serve, or None."""
    del T, D
    tiles = tiles_of(cell, dtype, N, H)
    if tiles is not None and tiles.K > 1 and not GROUPS:
        return (
            f"W_hh takes the shared memory of {tiles.K} clusters, and such kernels have been "
            'compiled and interpreted but never run on a GPU: backend="kernel" asks for them'
        )
    if slower(cell, dtype, N, H):
        return "so many rows keep the whole processor busy in a scan, too"
    return None


@functools.cache
def _why_not_here() -> str | None:
    """Why this machine's GPU can't run them. That of a machine without one is not judged."""
    if jax.default_backend() not in ("gpu", "cuda"):
        return None
    capability = str(getattr(jax.devices()[0], "compute_capability", "unknown"))
    if capability.split(".")[0] != "9":
        return f"it is for GPUs of compute capability 9, this one has {capability}"
    return None


def _outputs(cell: Cell) -> tuple[Any, ...]:
    graph = lower.cell_graphs(cell)
    return (*graph.forward, *graph.backward)


@functools.cache
def _operations(node: Any) -> frozenset[str]:
    return frozenset({node.operation}).union(*map(_operations, node.inputs))


def tiles_of(cell: Cell, dtype: Any, N: int, H: int) -> Tiles | None:
    """How a layer is shared out; None where it does not fit."""
    exact = jnp.dtype(dtype) == jnp.float32 and not tensorfloat32()
    return choose(cell, jnp.dtype(dtype).itemsize, 1 + exact, N, H, processors())


@functools.cache
def processors() -> int:
    """Multiprocessors that a group may take: those of the least of such GPUs, or of a part of one.

    Not those of this machine where it has more: a program may be exported from it, and a group
    with no room for all of it would wait for ever.
    """
    if jax.default_backend() not in ("gpu", "cuda"):
        return PROCESSORS
    return min(PROCESSORS, getattr(jax.devices()[0], "core_count", PROCESSORS))


def slower(cell: Cell, dtype: Any, N: int, H: int) -> bool:
    """Whether a step of the scan is quicker, by arithmetic: all multiprocessors share its rows."""
    tiles = tiles_of(cell, dtype, N, H)
    if tiles is None:
        return True
    rate = 3e8 if tiles.itemsize == 2 else 1.5e8 if tiles.parts == 1 else 4e7  # in a microsecond
    scan = SCAN_STEP + 2 * N * len(cell.gates) * H * H / rate
    return tiles.turns(N) * tiles.step() > scan


def tensorfloat32() -> bool:
    """Whether products of float32 may be of TF32."""
    return str(getattr(jax.config, "jax_default_matmul_precision", None)).lower() in (
        "tensorfloat32",
        "high",
    )


def run_forward(
    operands: Sequence[jax.Array], *, cell: Cell, masked: bool, reverse: bool, store_residuals: bool
) -> list[jax.Array]:
    """The forward kernel; operands and results are those of `jaxrnn.backends.primitives.forward_p`."""
    x, w_ih, w_hh, b_ih, b_hh, *more = operands
    states, saved = len(cell.states), lower.cell_graphs(cell).residual_counts
    (T, N), H, G = x.shape[:2], w_hh.shape[1], len(cell.gates)
    tiles, order = _plan(cell, x.dtype, N, H)
    bias = (b_ih if cell.split else b_ih + b_hh).astype(jnp.float32)
    inputs = [order.tiles(plus(rows_product(x, w_ih), bias, axis=-1), G)]
    if cell.split:
        per_row = jnp.broadcast_to(b_hh.astype(jnp.float32), (1, tiles.L, G * H))
        inputs.append(order.tiles(per_row, G)[0, 0])
    first = jnp.concatenate(more[:states], axis=1).astype(jnp.float32)
    inputs.append(order.tiles(first[None], states)[0])
    inputs += order.flags(more[states:]) + order.inside()
    inputs.append(_forward_weights(w_hh, tiles, G))

    shape = lambda *axes: jax.ShapeDtypeStruct((*axes, *tiles.tile), x.dtype)  # noqa: E731
    blocks = (order.groups, tiles.blocks)
    results = [shape(T, *blocks, 1)]
    if states > 1:
        results.append(shape(*((T,) if store_residuals else ()), *blocks, states - 1))
    if store_residuals and sum(saved):
        results.append(shape(T, *blocks, sum(saved)))
    device = _device(tiles)
    from jaxrnn.backends.hopper import forward as hopper_forward

    body, scratch = hopper_forward.forward(
        device, cell, T, masked, order.padded, reverse, store_residuals, x.dtype
    )
    run = device.launch(body, tuple(results), scratch, order.groups, "rnn_forward")
    h, *kept = run(*inputs)
    out = [order.rows(h)]
    if states > 1:
        rest = kept.pop(0)
        rest = order.rows(rest if store_residuals else rest[None])
        rest = rest if store_residuals else rest[0]
        out += jnp.split(rest, states - 1, axis=-1)
    if kept:
        everything, place = order.rows(kept[0]), 0
        for count in saved:
            out.append(everything[..., place * H : (place + count) * H])
            place += count
    return out


def run_backward(
    operands: Sequence[jax.Array], *, cell: Cell, masked: bool, reverse: bool
) -> list[jax.Array]:
    """The backward kernel; operands and results as `jaxrnn.backends.kernels` says."""
    states, counts = len(cell.states), lower.cell_graphs(cell).residual_counts
    dh, *more = operands
    dlast, (w_hh, *more) = more[:states], more[states:]
    first, after = more[:states], more[states : 2 * states]
    saved, flags = more[2 * states :][: len(counts)], more[2 * states + len(counts) :]
    (T, N), H, G = dh.shape[:2], w_hh.shape[1], len(cell.gates)
    tiles, order = _plan(cell, w_hh.dtype, N, H)
    wide = jnp.float32
    inputs = [order.tiles(dh.astype(wide), 1)]
    inputs.append(order.tiles(jnp.concatenate(dlast, axis=1).astype(wide)[None], states)[0])
    ends = [jnp.concatenate(first, axis=1)[None], jnp.concatenate(after, axis=2)]
    inputs.append(order.tiles(jnp.concatenate(ends[::-1] if reverse else ends), states))
    if saved:
        inputs.append(order.tiles(jnp.concatenate(saved, axis=2), sum(counts)))
    inputs += order.flags(flags) + order.inside()
    inputs.append(_backward_weights(w_hh, tiles, G))

    shape = lambda *axes: jax.ShapeDtypeStruct((*axes, *tiles.tile), wide)  # noqa: E731
    blocks = (order.groups, tiles.blocks)
    results = (shape(T, *blocks, G * (1 + cell.split)), shape(*blocks, states))
    device = _device(tiles)
    from jaxrnn.backends.hopper import backward as hopper_backward

    body, scratch = hopper_backward.backward(
        device, cell, T, masked, order.padded, reverse, w_hh.dtype
    )
    run = device.launch(body, results, scratch, order.groups, "rnn_backward")
    dz, dfirst = run(*inputs)
    dfirst = order.rows(dfirst[None])[0]
    return [
        *jnp.split(order.rows(dz), 1 + cell.split, axis=2),
        *jnp.split(dfirst, states, axis=1),
    ]


def _plan(cell: Cell, dtype: Any, N: int, H: int) -> tuple[Tiles, _Order]:
    tiles = tiles_of(cell, dtype, N, H)
    if tiles is None:
        raise ValueError(unsupported_reason(cell, dtype, 1, N, 1, H))
    return tiles, _Order(tiles, N, H)


def _device(tiles: Tiles) -> Any:
    if INTERPRET:
        from jaxrnn.backends.hopper.interpreted import Interpreted, InterpretedGroup

        return (InterpretedGroup if tiles.K > 1 else Interpreted)(tiles)
    from jaxrnn.backends.hopper.device import Device
    from jaxrnn.backends.hopper.group import Group

    return (Group if tiles.K > 1 else Device)(tiles)


class _Order:
    """The order of arrays in the kernels, and back: (T, clusters, blocks, what, tile)."""

    def __init__(self, tiles: Tiles, N: int, H: int):
        self.t, self.N, self.H = tiles, N, H
        self.groups = -(-N // tiles.L)
        self.padded = tiles.units > H

    def inside(self) -> list[jax.Array]:
        """Where there are units that are padding, which are none, as tiles of zeros and ones."""
        if not self.padded:
            return []
        return [self.tiles(jnp.ones((1, self.t.L, self.H), jnp.float32), 1)[0, 0, :, 0]]

    def tiles(self, a: jax.Array, count: int) -> jax.Array:
        """Of (T, N, count * H)."""
        t, (T, N, _) = self.t, a.shape
        groups = -(-N // t.L)
        a = a.reshape(T, N, count, self.H)
        padding = (0, 0), (0, groups * t.L - N), (0, 0), (0, t.units - self.H)
        a = jnp.pad(a, padding).reshape(T, groups, t.L, count, t.blocks, t.U)
        return a.transpose(0, 1, 4, 3, *((2, 5) if t.rows_first else (5, 2)))

    def rows(self, a: jax.Array) -> jax.Array:
        """Back to (T, N, count * H)."""
        t, (T, _, _, count) = self.t, a.shape[:4]
        a = a.transpose(0, 1, *((4, 3, 2, 5) if t.rows_first else (5, 3, 2, 4)))
        a = a.reshape(T, self.groups * t.L, count, t.units)
        return a[:, : self.N, :, : self.H].reshape(T, self.N, count * self.H)

    def flags(self, flags: Sequence[jax.Array]) -> list[jax.Array]:
        """Resets and own steps, as one tile each of zeros and ones, the same for all blocks."""
        if not flags:
            return []
        t, bits = self.t, jnp.stack([flags[0] & 1, flags[0] >> 1], axis=1).astype(jnp.float32)
        bits = jnp.pad(bits, ((0, 0), (0, 0), (0, self.groups * t.L - self.N)))
        bits = bits.reshape(len(bits), 2, self.groups, t.L).swapaxes(1, 2)
        each = bits[..., None] if t.rows_first else bits[..., None, :]
        return [jnp.broadcast_to(each, (*each.shape[:3], *t.tile))]


def _forward_weights(w_hh: jax.Array, t: Tiles, G: int) -> jax.Array:
    """W_hh as (K*C, parts, P, M, U): of the gates of Q blocks, from P blocks' units."""
    w = _padded(w_hh, t, G).transpose(1, 5, 4, 2, 0, 3, 6)
    w = w.reshape(t.blocks, t.P, t.Q * G * t.U, t.U)
    w = jnp.pad(w, ((0, 0), (0, 0), (0, t.M - t.Q * G * t.U), (0, 0)))
    return _parts(w, t)


def _backward_weights(w_hh: jax.Array, t: Tiles, G: int) -> jax.Array:
    """W_hh as (K*C, parts, Q*G, M_back, U): to the units of P blocks, from Q blocks' gates."""
    w = _padded(w_hh, t, G).transpose(1, 5, 2, 0, 4, 6, 3)
    w = w.reshape(t.blocks, t.Q * G, t.P * t.U, t.U)
    w = jnp.pad(w, ((0, 0), (0, 0), (0, t.M_back - t.P * t.U), (0, 0)))
    return _parts(w, t)


def _padded(w_hh: jax.Array, t: Tiles, G: int) -> jax.Array:
    """W_hh (G*H, H) as (G, P, Q, U, P, Q, U)."""
    H = w_hh.shape[1]
    more = (0, t.units - H)
    w = jnp.pad(w_hh.reshape(G, H, H), ((0, 0), more, more))
    return w.reshape(G, t.P, t.Q, t.U, t.P, t.Q, t.U)


def _parts(w: jax.Array, t: Tiles) -> jax.Array:
    from jaxrnn.backends.hopper import loops as hopper_loops

    return jnp.stack(hopper_loops.factors(w, t, w.dtype), axis=1)
