"""Loops over time, as one block runs them.

All arrays in global memory are in kernel order (T, clusters, blocks, count, *tile), so that a block
reads and writes contiguous pieces; see `jaxrnn.backends.hopper`. "Clusters" stands for groups of
clusters where a tiling has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.elementwise import lower
from jaxrnn.backends.hopper.device import (
    Cluster,
    CopyBarrier,
    MessageBarriers,
    SharedMemory,
    buffer_of,
)
from jaxrnn.backends.hopper.tiling import Tiling
from jaxrnn.cells import Cell

PREFETCH_INPUTS = False
"""If True, load the inputs of the next step during a step. Not measured on a GPU."""


class LoopOptions(NamedTuple):
    """Static options of a loop."""

    cell: Cell
    T: int  # number of steps
    masked: bool  # if True, the operands include masks
    padded: bool  # if True, some units are padding
    reverse: bool  # if True, the forward pass runs from the last step to the first
    dtype: Any  # of the factors of products

    def time(self, s: Any) -> Any:
        """Return the time index of step `s` of the forward pass."""
        return self.T - 1 - s if self.reverse else s


def forward(
    device: Cluster, options: LoopOptions, store_residuals: bool
) -> tuple[Callable[..., None], dict[str, Any]]:
    """Return the body of the forward kernel and its scratch memory.

    Operands, without the axes of tiles: W_ih x + b (T, clusters, blocks, G), b_hh (blocks, G) of
    cells with `split`, initial states (clusters, blocks, S), masks (T, clusters, 2) and unit mask
    (blocks,) if there are any, W_hh (blocks, terms, ...). Results: h (T, clusters, blocks, 1), the
    other states, at each step if `store_residuals`, else the final ones, and the residuals.
    """
    t, (cell, T, masked, padded, _, dtype), time = device.tiling, options, options.time
    graph, G, S = lower.cell_graphs(cell), len(cell.gates), len(cell.states)
    saved = sum(graph.residual_counts)

    def _body(*refs: Any) -> None:
        present = 1, cell.split, 1, masked, padded, 1, 1, S > 1, store_residuals and saved
        operands: Any = _assign(refs, present)
        zx, bias, initial, masks, unit_mask, weights, h_out, states_out, saved_out = operands
        block, batch = device.position()
        w, sums = device.local("weights"), device.local("sums")
        _start(device, weights.at[block], w, t.h_blocks)

        def _load_masks(s: Any) -> Any:
            i = time(lax.min(s, jnp.int32(T - 1)))
            return [device.load_raw(masks.at[i, batch, k]) for k in range(2 * masked)]

        def _load_inputs(s: Any) -> Any:
            i = time(lax.min(s, jnp.int32(T - 1)))
            zs = [device.load_raw(zx.at[i, batch, block, g]) for g in range(G)]
            return zs, _load_masks(s)

        def _send(h: jax.Array, s: Any, step_masks: Any) -> None:
            """Send h as step `s` reads it: zero for padding units and after resets."""
            if unit_mask is not None:
                h = _where(device.load(unit_mask.at[block]), h, jnp.zeros_like(h))
            if step_masks:
                h = _where(step_masks[0], jnp.zeros_like(h), h)
            target = device.local("h")
            for k, factor in enumerate(factors(h, t, dtype)):
                target.at[device.h_buffer(s), device.h_rank, k][...] = factor
            plgpu.commit_smem()
            device.send_h(s)

        def _recurrent_product(s: Any) -> list[jax.Array]:
            """Return W_hh @ h for the gates of this block."""
            h, buffer = device.local("h"), device.h_buffer(s)

            def _pairs(*index: Any) -> list[tuple[Any, Any]]:
                return [
                    (w.at[(i, c, *index)], h.at[buffer, c, j])
                    for i, j in _term_products(t)
                    for c in range(t.h_blocks)
                ]

            slices = [pl.ds(g * t.U, t.U) for g in range(G)]
            if t.gate_blocks == 1:
                device.store_sums(sums, device.matmul(t.forward_m, _pairs()))
                plgpu.commit_smem()
                return [device.load(sums.at[g], t.batch_major) for g in slices]
            m = G * t.U
            device.expect(s, m)
            _chunked_product(
                *(device, t.forward_m, t.forward_chunk, m, t.gate_blocks, _pairs),
                lambda first, count: device.scatter(s, first, count, m),
            )
            device.wait(s)
            inbox = device.local("inbox")
            sources = [[inbox.at[buffer_of(s), q, g] for q in range(t.gate_blocks)] for g in slices]
            return device.sum_tiles(sources, [sums.at[g] for g in slices])

        def _step(s: Any, carry: Any) -> Any:
            state, inputs = carry
            zs, step_masks = inputs if PREFETCH_INPUTS else _load_inputs(s)
            i = time(s)
            next_inputs: Any = _load_inputs(s + 1) if PREFETCH_INPUTS else ()
            device.receive_h(s)
            zh = _recurrent_product(s)
            if bias is not None:
                z = [*zs, *(zh[g] + device.load(bias.at[block, g]) for g in range(G))]
            else:
                z = [zs[g] + zh[g] for g in range(G)]
            old = state
            if masked:
                old = [_where(step_masks[0], jnp.zeros_like(x), x) for x in state]
            leaves = dict(z=z, old=old)
            out = lower.evaluate(graph.forward, lambda name, k: leaves[name][k], zs[0])
            out = list(map(device.cast_layout, out))
            new, residuals = out[:S], out[S:]
            if masked:
                new = [_where(step_masks[1], x, y) for x, y in zip(new, state, strict=True)]

            @pl.when(s + 1 < T)
            def _() -> None:
                _send(new[0], s + 1, next_inputs[1] if PREFETCH_INPUTS else _load_masks(s + 1))

            h_out.at[i, batch, block, 0][...] = new[0].astype(dtype)
            if store_residuals:
                for ref, arrays in ((states_out, new[1:]), (saved_out, residuals)):
                    for k, array in enumerate(arrays):
                        ref.at[i, batch, block, k][...] = array.astype(dtype)
            return tuple(new), next_inputs

        state = tuple(device.load(initial.at[batch, block, k]) for k in range(S))
        _send(state[0], jnp.int32(0), _load_masks(jnp.int32(0)))
        inputs = _load_inputs(jnp.int32(0)) if PREFETCH_INPUTS else ()
        state, _ = lax.fori_loop(jnp.int32(0), jnp.int32(T), _step, (state, inputs))
        if not store_residuals:
            for k in range(1, S):
                states_out.at[batch, block, k - 1][...] = state[k].astype(dtype)
        device.finish()

    h = (t.h_blocks, t.terms, *t.tile_shape)
    scratch: dict[str, Any] = dict(
        weights=SharedMemory((t.terms, t.h_blocks, t.forward_m, t.U), dtype, swizzled=True),
        h=SharedMemory((t.h_buffers, *h), dtype, swizzled=True),
        sums=SharedMemory((t.forward_chunk, t.B), jnp.float32),
        messages=MessageBarriers(),
        copies=CopyBarrier(t.terms * t.h_blocks),
    )
    if t.K > 1:
        scratch["mailboxes"] = jax.ShapeDtypeStruct((2, t.gate_blocks, *h), dtype)
    if t.gate_blocks > 1:
        scratch["inbox"] = SharedMemory((2, t.gate_blocks, G * t.U, t.B), jnp.float32)
    return _body, scratch


def backward(device: Cluster, options: LoopOptions) -> tuple[Callable[..., None], dict[str, Any]]:
    """Return the body of the backward kernel and its scratch memory.

    It is the transpose of the linearised loop and runs from the last step of the forward pass to
    the first. Each block multiplies the dz of its units by its columns of W_hh, which gives partial
    sums of dh for all units; each block receives and adds the partial sums of its units.

    Operands, without the axes of tiles: cotangents of h (T, clusters, blocks, 1) and of the final
    states (clusters, blocks, S), states (T + 1, clusters, blocks, S) with the initial ones,
    residuals (T, clusters, blocks, ...), masks, unit mask and W_hh as in `forward`. Results: dz
    (T, clusters, blocks, G or 2 * G), cotangents of the initial states (clusters, blocks, S).
    """
    t, (cell, T, masked, padded, reverse, dtype), time = device.tiling, options, options.time
    graph, G, S = lower.cell_graphs(cell), len(cell.gates), len(cell.states)
    given_leaves = sorted(leaf for leaf in lower.graph_leaves(cell, "backward") if leaf[0] != "ct")

    def _body(*refs: Any) -> None:
        present = 1, 1, 1, sum(graph.residual_counts), masked, padded, 1, 1, 1
        operands: Any = _assign(refs, present)
        dh, dfinal, states, saved, masks, unit_mask, weights, dz_out, dinitial = operands
        block, batch = device.position()
        w = device.local("weights")
        _start(device, weights.at[block], w, t.gate_blocks * G)

        def _load_leaf(s: Any, name: str, k: int) -> jax.Array:
            if name == "residuals":
                return device.load_raw(saved.at[time(s), batch, block, k])
            after = (name == "new") != reverse
            return device.load_raw(states.at[time(s) + int(after), batch, block, k])

        def _load_inputs(i: Any) -> Any:
            s = lax.max(T - 1 - i, jnp.int32(0))
            step_masks = [device.load_raw(masks.at[time(s), batch, k]) for k in range(2 * masked)]
            given = [_load_leaf(s, name, k) for name, k in given_leaves]
            return device.load_raw(dh.at[time(s), batch, block, 0]), given, step_masks

        def _step(i: Any, carry: Any) -> Any:
            dstate, inputs = carry
            dh_i, given, step_masks = inputs if PREFETCH_INPUTS else _load_inputs(i)
            next_inputs = _load_inputs(i + 1) if PREFETCH_INPUTS else ()
            time_index = time(T - 1 - i)
            given = [a.astype(jnp.float32) for a in given]
            leaves: Any = dict(zip(given_leaves, given, strict=True))
            if masked:
                reset, valid = step_masks
                for k in range(S):
                    if ("old", k) in leaves:
                        leaves["old", k] = _where(reset, zeros, leaves["old", k])
            ct = [dstate[0] + dh_i + device.receive_dh(i), *dstate[1:]]
            leaves |= {("ct", k): ct[k] for k in range(S)}
            out = lower.evaluate(graph.backward, lambda name, k: leaves[name, k], zeros)
            out = list(map(device.cast_layout, out))
            dz, dold = out[:-S], out[-S:]
            if masked:
                dz = [_where(valid, d, zeros) for d in dz]
            for k, d in enumerate(dz):
                dz_out.at[time_index, batch, block, k][...] = d
            dz_h = dz[-G:]
            if masked:
                dz_h = [_where(reset, zeros, d) for d in dz_h]
                dold = [_where(reset, zeros, d) for d in dold]
                dold = [_where(valid, d, c) for d, c in zip(dold, ct, strict=True)]
            if unit_mask is not None:
                real = device.load(unit_mask.at[block])
                dz_h = [_where(real, d, zeros) for d in dz_h]
            all_dz = device.local("dz")
            if t.gate_blocks > 1:
                all_dz = all_dz.at[buffer_of(i)]
            my_dz = all_dz if t.gate_blocks == 1 else all_dz.at[device.rank]
            for g, d in enumerate(dz_h):
                for k, factor in enumerate(factors(d, t, dtype)):
                    my_dz.at[k, g][...] = factor
            plgpu.commit_smem()
            if t.gate_blocks > 1:
                device.broadcast("dz", i, G)
                device.wait(i)

            def _pairs(index: Any) -> list[tuple[Any, Any]]:
                return [
                    (w.at[p, g, index], all_dz.at[(*_owner(g // G), q, g % G)])
                    for p, q in _term_products(t)
                    for g in range(t.gate_blocks * G)
                ]

            def _owner(q: int) -> tuple[int, ...]:
                return () if t.gate_blocks == 1 else (q,)

            device.expect_dh(i + 1)
            _chunked_product(
                *(device, t.backward_m, t.backward_chunk, t.U, t.h_blocks, _pairs),
                lambda first, count: device.send_dh(i + 1, first, count),
            )
            device.flush_dh()
            return tuple(dold), next_inputs

        dstate = tuple(device.load(dfinal.at[batch, block, k]) for k in range(S))
        zeros = device.cast_layout(jnp.zeros_like(dstate[0]))
        device.init_dh()
        carry = dstate, _load_inputs(jnp.int32(0)) if PREFETCH_INPUTS else ()
        dstate, _ = lax.fori_loop(jnp.int32(0), jnp.int32(T), _step, carry)
        dstate = (dstate[0] + device.receive_dh(jnp.int32(T)), *dstate[1:])
        for k in range(S):
            dinitial.at[batch, block, k][...] = dstate[k]
        device.finish()

    buffers = () if t.gate_blocks == 1 else (2, t.gate_blocks)
    weights = (t.terms, t.gate_blocks * G, t.backward_m, t.U)
    scratch: dict[str, Any] = dict(
        weights=SharedMemory(weights, dtype, swizzled=True),
        dz=SharedMemory((*buffers, t.terms, G, *t.tile_shape), dtype, swizzled=True),
        sums=SharedMemory((t.backward_chunk, t.B), jnp.float32),
        transposed=SharedMemory((t.U, t.B), jnp.float32),
    )
    if t.K == 1:
        scratch["inbox"] = SharedMemory((2, t.h_blocks, t.U, t.B), jnp.float32)
    scratch["messages"] = MessageBarriers()
    scratch["copies"] = CopyBarrier(t.terms * t.gate_blocks * G)
    if t.K > 1:
        mailboxes = (2, t.gate_blocks, t.h_blocks, t.h_blocks, t.U, t.B)
        scratch["mailboxes"] = jax.ShapeDtypeStruct(mailboxes, jnp.float32)
    return _body, scratch


def factors(tile: jax.Array, tiling: Tiling, dtype: Any) -> list[jax.Array]:
    """Return the terms of a float32 tile in products: one, or its TF32 part and the remainder."""
    if tiling.terms == 1:
        return [tile.astype(dtype)]
    bits = lax.bitcast_convert_type(tile, jnp.int32) & jnp.int32(-0x2000)
    upper = lax.bitcast_convert_type(bits, jnp.float32)
    return [upper, tile - upper]


def _term_products(tiling: Tiling) -> list[tuple[int, int]]:
    """Return the pairs of terms to multiply, the smallest product first."""
    return [(0, 0)] if tiling.terms == 1 else [(1, 0), (0, 1), (0, 0)]


def _chunked_product(
    device: Cluster,
    m: int,
    chunk: int,
    block_m: int,
    num_blocks: int,
    pairs: Callable[[Any], list[tuple[Any, Any]]],
    send: Callable[[int, int], None],
) -> None:
    """Compute a product in chunks of its M dimension and send `block_m` of it to each block.

    `pairs` returns the factors of a slice of the M dimension; ``send(first, count)`` sends the
    chunk in "sums" to `count` blocks.
    """
    sums = device.local("sums")
    for start in range(0, m, chunk):
        product = device.matmul(chunk, pairs(pl.ds(start, chunk)))
        if start:
            plgpu.commit_smem()  # all warps have read the previous sums
        device.store_sums(sums, product)
        plgpu.commit_smem()
        first = start // block_m
        send(first, min((start + chunk) // block_m, num_blocks) - first)


def _where(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Select x where a float mask is 1, and y where it is 0."""
    return jnp.where(mask > 0.5, x, y)


def _assign(refs: Sequence[Any], present: Sequence[Any]) -> list[Any]:
    """Return the references in order, with None for absent ones."""
    remaining = iter(refs)
    return [next(remaining) if here else None for here in present]


def _start(device: Cluster, weights: Any, w: Any, count: int) -> None:
    """Copy the weights of a block, `count` pieces of each term, to shared memory."""
    pieces = [(k, c) for k in range(device.tiling.terms) for c in range(count)]
    device.start([(weights.at[k, c], w.at[k, c]) for k, c in pieces])
