"""Kernels for NVIDIA Hopper GPUs (Pallas, Mosaic GPU): the recurrence and its linear backward pass.

.. code-block:: text

    zx = x @ W_ih.T + b             for all steps, one product of XLA's
    z_t = zx_t + W_hh @ h_{t-1}     W_hh stays in the shared memory of a cluster of blocks
    h_t, c_t, ... = cell(z_t, ...)  in registers, float32

Clusters are independent: each runs a slice of the batch through all steps. Its blocks hold W_hh,
compute the gates of their units on the tensor cores, and send the new h to each other once a step.
In the backward pass they exchange partial sums of dh instead. Weights are thus read from global
memory once, and states never.

Products use bfloat16, float16 or TF32 factors: one TF32 product if ``jax_default_matmul_precision``
is "tensorfloat32", else three on float32 split into two terms, which keep 22 of its 24 significant
bits. Sums, states and elementwise functions are float32.

See `README.md` in this folder.

Sources: persistent recurrent networks, G. Diamos et al., ICML 2016; products of split floats,
H. Ootomo and R. Yokota, Int. J. High Performance Computing Applications 36 (2022).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends.elementwise import lower
from jaxrnn.backends.elementwise.trace import topological_order
from jaxrnn.backends.hopper.tiling import MIN_SMS, Tiling, select_tiling
from jaxrnn.backends.step import add_bias, project
from jaxrnn.cells import Cell

DTYPES = ("float32", "bfloat16", "float16")
_FIRST_JAX, _END_JAX = (0, 10, 2), (0, 13)  # the second is excluded
_SCAN_STEP = 6.5  # least time of a scan step in microseconds, measured on an H200


def unsupported_reason(cell: Cell, dtype: Any, T: int, N: int, D: int, H: int) -> str | None:
    """Return the reason why the kernels do not support a layer, or None if they do."""
    del T, D
    name = jnp.dtype(dtype).name
    if not _FIRST_JAX <= jax.__version_info__ < _END_JAX:
        return f"it supports jax 0.10.2 to 0.12, not {jax.__version__}"
    if (reason := _unsupported_gpu()) is not None:
        return reason
    if name not in DTYPES:
        return f"it computes in {' or '.join(DTYPES)}, not in {name}"
    if (reason := lower.unsupported_reason(cell)) is not None:
        return reason
    if _uses_sqrt(cell):
        return f"Mosaic has no square root, which {type(cell).__name__} uses"
    if tiling_for(cell, dtype, N, H) is None:
        return (
            f"W_hh of H {H} in {name} does not fit into the shared memory of {num_sms()} "
            "multiprocessors beside the states"
        )
    return None


def unprofitable_reason(cell: Cell, dtype: Any, T: int, N: int, D: int, H: int) -> str | None:
    """Return the reason why "auto" should not use the kernels for a layer, or None."""
    del T, D
    t = tiling_for(cell, dtype, N, H)
    if t is not None and t.K > 1:
        return (
            f"W_hh needs the shared memory of {t.K} clusters, and such kernels have been compiled "
            'and interpreted but never run on a GPU. Use backend="kernel" to run them'
        )
    if t is None or t.waves(N) * t.step_time() > _scan_step_time(t, N, H):
        return "a batch of this size keeps all multiprocessors busy in a scan, too"
    return None


@functools.cache
def _unsupported_gpu() -> str | None:
    """Return the reason why this machine's GPU is not supported, or None; None without a GPU."""
    if jax.default_backend() not in ("gpu", "cuda"):
        return None
    capability = str(getattr(jax.devices()[0], "compute_capability", "unknown"))
    if capability.split(".")[0] != "9":
        return f"it needs a GPU of compute capability 9, this one has {capability}"
    return None


@functools.cache
def _uses_sqrt(cell: Cell) -> bool:
    graph = lower.cell_graphs(cell)
    nodes = topological_order((*graph.forward, *graph.backward))
    return any(node.operation == "sqrt" for node in nodes)


def tiling_for(cell: Cell, dtype: Any, N: int, H: int) -> Tiling | None:
    """Return the tiling of a layer, or None if it does not fit."""
    precision = str(getattr(jax.config, "jax_default_matmul_precision", None)).lower()
    tf32 = precision in ("tensorfloat32", "high")
    terms = 2 if jnp.dtype(dtype) == jnp.float32 and not tf32 else 1
    return select_tiling(cell, jnp.dtype(dtype).itemsize, terms, N, H, num_sms())


@functools.cache
def num_sms() -> int:
    """Return the number of multiprocessors that a group of clusters may use.

    This is the number of the smallest Hopper GPU, or of this machine's if it has fewer (MIG). A
    program may be exported to a smaller GPU, where a group that is not resident would deadlock.
    """
    if jax.default_backend() not in ("gpu", "cuda"):
        return MIN_SMS
    return min(MIN_SMS, getattr(jax.devices()[0], "core_count", MIN_SMS))


def _scan_step_time(t: Tiling, N: int, H: int) -> float:
    """Return the modelled time of a scan step in microseconds."""
    rate = 3e8 if t.itemsize == 2 else 1.5e8 if t.terms == 1 else 4e7  # flop per microsecond
    return _SCAN_STEP + 2 * N * t.G * H * H / rate


def run_forward(
    operands: Sequence[jax.Array], *, cell: Cell, masked: bool, reverse: bool, store_residuals: bool
) -> list[jax.Array]:
    """Run the forward kernel, with the signature of `jaxrnn.backends.primitives.forward_p`."""
    from jaxrnn.backends.hopper.loops import LoopOptions, forward

    x, w_ih, w_hh, b_ih, b_hh, *more = operands
    S, saved = len(cell.states), lower.cell_graphs(cell).residual_counts
    (T, N), H, G = x.shape[:2], w_hh.shape[1], len(cell.gates)
    t = tiling_for(cell, x.dtype, N, H)
    assert t is not None  # primitives check unsupported_reason
    order = _KernelOrder(t, N, H)
    bias = (b_ih if cell.split else b_ih + b_hh).astype(jnp.float32)
    inputs = [order.to_tiles(add_bias(project(x, w_ih), bias, axis=-1), G)]
    if cell.split:
        b_h = jnp.broadcast_to(b_hh.astype(jnp.float32), (1, t.B, G * H))
        inputs.append(order.to_tiles(b_h, G)[0, 0])
    initial = jnp.concatenate(more[:S], axis=1).astype(jnp.float32)
    inputs.append(order.to_tiles(initial[None], S)[0])
    inputs += order.masks(more[S:]) + order.unit_mask()
    inputs.append(_forward_weights(w_hh, t))

    results = [order.result(x.dtype, 1, T)]
    if S > 1:
        results.append(order.result(x.dtype, S - 1, *([T] if store_residuals else [])))
    if store_residuals and sum(saved):
        results.append(order.result(x.dtype, sum(saved), T))
    device = device_for(t)
    options = LoopOptions(cell, T, masked, order.padded, reverse, x.dtype)
    body, scratch = forward(device, options, store_residuals)
    kernel = device.launch(body, tuple(results), scratch, order.clusters, "rnn_forward")
    h, *more = kernel(*inputs)
    out = [order.from_tiles(h)]
    if S > 1:
        states = more.pop(0)
        states = order.from_tiles(states) if store_residuals else order.from_tiles(states[None])[0]
        out += jnp.split(states, S - 1, axis=-1)
    if more:
        residuals, start = order.from_tiles(more[0]), 0
        for count in saved:
            out.append(residuals[..., start * H : (start + count) * H])
            start += count
    return out


def run_backward(
    operands: Sequence[jax.Array], *, cell: Cell, masked: bool, reverse: bool
) -> list[jax.Array]:
    """Run the backward kernel, with the signature given in `jaxrnn.backends.platform`."""
    from jaxrnn.backends.hopper.loops import LoopOptions, backward

    S, counts = len(cell.states), lower.cell_graphs(cell).residual_counts
    dh, *more = operands
    dfinal, (w_hh, *more) = more[:S], more[S:]
    initial, after = more[:S], more[S : 2 * S]
    saved, masks = more[2 * S :][: len(counts)], more[2 * S + len(counts) :]
    (T, N), H, G = dh.shape[:2], w_hh.shape[1], len(cell.gates)
    t = tiling_for(cell, w_hh.dtype, N, H)
    assert t is not None  # primitives check unsupported_reason
    order = _KernelOrder(t, N, H)
    f32 = jnp.float32
    inputs = [order.to_tiles(dh.astype(f32), 1)]
    inputs.append(order.to_tiles(jnp.concatenate(dfinal, axis=1).astype(f32)[None], S)[0])
    states = [jnp.concatenate(initial, axis=1)[None], jnp.concatenate(after, axis=2)]
    inputs.append(order.to_tiles(jnp.concatenate(states[::-1] if reverse else states), S))
    if saved:
        inputs.append(order.to_tiles(jnp.concatenate(saved, axis=2), sum(counts)))
    inputs += order.masks(masks) + order.unit_mask()
    inputs.append(_backward_weights(w_hh, t))

    results = order.result(f32, G * (1 + cell.split), T), order.result(f32, S)
    device = device_for(t)
    options = LoopOptions(cell, T, masked, order.padded, reverse, w_hh.dtype)
    body, scratch = backward(device, options)
    kernel = device.launch(body, results, scratch, order.clusters, "rnn_backward")
    dz, dinitial = kernel(*inputs)
    dinitial = order.from_tiles(dinitial[None])[0]
    return [
        *jnp.split(order.from_tiles(dz), 1 + cell.split, axis=2),
        *jnp.split(dinitial, S, axis=1),
    ]


def device_for(tiling: Tiling) -> Any:
    """Return the device that runs a tiling."""
    from jaxrnn.backends.hopper.device import Cluster, ClusterGroup

    return (ClusterGroup if tiling.K > 1 else Cluster)(tiling)


class _KernelOrder:
    """Conversion of arrays to kernel order (T, clusters, blocks, count, *tile) and back."""

    def __init__(self, tiling: Tiling, N: int, H: int):
        self.tiling, self.N, self.H = tiling, N, H
        self.clusters = -(-N // tiling.B)
        self.padded = tiling.padded_hidden_size > H

    def result(self, dtype: Any, count: int, *steps: int) -> jax.ShapeDtypeStruct:
        """Return the shape and dtype of a result of a kernel."""
        t = self.tiling
        shape = (*steps, self.clusters, t.num_blocks, count, *t.tile_shape)
        return jax.ShapeDtypeStruct(shape, dtype)

    def unit_mask(self) -> list[jax.Array]:
        """Return tiles with 1 for units and 0 for padding, or nothing without padding."""
        if not self.padded:
            return []
        return [self.to_tiles(jnp.ones((1, self.tiling.B, self.H), jnp.float32), 1)[0, 0, :, 0]]

    def to_tiles(self, a: jax.Array, count: int) -> jax.Array:
        """Convert (T, N, count * H) to kernel order."""
        t, (T, N, _), clusters = self.tiling, a.shape, -(-a.shape[1] // self.tiling.B)
        a = a.reshape(T, N, count, self.H)
        padding = (0, 0), (0, clusters * t.B - N), (0, 0), (0, t.padded_hidden_size - self.H)
        a = jnp.pad(a, padding).reshape(T, clusters, t.B, count, t.num_blocks, t.U)
        return a.transpose(0, 1, 4, 3, *((2, 5) if t.batch_major else (5, 2)))

    def from_tiles(self, a: jax.Array) -> jax.Array:
        """Convert kernel order to (T, N, count * H)."""
        t, (T, _, _, count) = self.tiling, a.shape[:4]
        a = a.transpose(0, 1, *((4, 3, 2, 5) if t.batch_major else (5, 3, 2, 4)))
        a = a.reshape(T, self.clusters * t.B, count, t.padded_hidden_size)
        return a[:, : self.N, :, : self.H].reshape(T, self.N, count * self.H)

    def masks(self, flags: Sequence[jax.Array]) -> list[jax.Array]:
        """Return float reset and valid masks (T, clusters, 2, *tile), or nothing without masks."""
        if not flags:
            return []
        t, bits = self.tiling, jnp.stack([flags[0] & 1, flags[0] >> 1], axis=1).astype(jnp.float32)
        bits = jnp.pad(bits, ((0, 0), (0, 0), (0, self.clusters * t.B - self.N)))
        bits = bits.reshape(len(bits), 2, self.clusters, t.B).swapaxes(1, 2)
        bits = bits[..., None] if t.batch_major else bits[..., None, :]
        return [jnp.broadcast_to(bits, (*bits.shape[:3], *t.tile_shape))]


def _forward_weights(w_hh: jax.Array, t: Tiling) -> jax.Array:
    """Return W_hh as (K*C, terms, h_blocks, forward_m, U)."""
    w = _split_units(w_hh, t).transpose(1, 5, 4, 2, 0, 3, 6)
    m = t.gate_blocks * t.G * t.U
    w = w.reshape(t.num_blocks, t.h_blocks, m, t.U)
    return _terms(jnp.pad(w, ((0, 0), (0, 0), (0, t.forward_m - m), (0, 0))), t)


def _backward_weights(w_hh: jax.Array, t: Tiling) -> jax.Array:
    """Return W_hh.T as (K*C, terms, gate_blocks * G, backward_m, U)."""
    w = _split_units(w_hh, t).transpose(1, 5, 2, 0, 4, 6, 3)
    m = t.h_blocks * t.U
    w = w.reshape(t.num_blocks, t.gate_blocks * t.G, m, t.U)
    return _terms(jnp.pad(w, ((0, 0), (0, 0), (0, t.backward_m - m), (0, 0))), t)


def _split_units(w_hh: jax.Array, t: Tiling) -> jax.Array:
    """Pad W_hh (G*H, H) and reshape it to (G, *units, *units), units (h_blocks, gate_blocks, U)."""
    H = w_hh.shape[1]
    padding = (0, t.padded_hidden_size - H)
    w = jnp.pad(w_hh.reshape(t.G, H, H), ((0, 0), padding, padding))
    return w.reshape(t.G, *(t.h_blocks, t.gate_blocks, t.U) * 2)


def _terms(w: jax.Array, t: Tiling) -> jax.Array:
    from jaxrnn.backends.hopper.loops import factors

    return jnp.stack(factors(w, t, w.dtype), axis=1)
