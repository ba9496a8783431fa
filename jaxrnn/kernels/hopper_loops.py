"""The loops of the kernels for Hopper: what a block does with its units, step by step.

All arrays in global memory are in the kernel's own order, (T, clusters, blocks, what, tile), so
that what a block reads or writes at a step is one contiguous piece; see `jaxrnn.kernels.hopper`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.cells import Cell
from jaxrnn.kernels import values
from jaxrnn.kernels.hopper_device import Arrivals, Copies, Device, slot_of
from jaxrnn.kernels.hopper_tiles import Tiles

AHEAD = False
"""Whether a step's inputs are fetched during the step before it.

It should take the time of a load, some 0.4 microseconds, from each step; it compiles for the
machine and passes in the interpreter, but has not been run on a GPU yet.
"""


def factors(tile: jax.Array, tiles: Tiles, dtype: Any) -> list[jax.Array]:
    """What goes into the products for a tile of float32: itself, or two that sum up to it.

    TF32 has 11 bits of float32's 24. The first factor has the upper ones, the second the rest.
    """
    if tiles.parts == 1:
        return [tile.astype(dtype)]
    bits = lax.bitcast_convert_type(tile, jnp.int32) & jnp.int32(-0x2000)
    upper = lax.bitcast_convert_type(bits, jnp.float32)
    return [upper, tile - upper]


def _products(tiles: Tiles) -> list[tuple[int, int]]:
    """Which parts of the weights meet which parts of the other factor; the least first."""
    return [(0, 0)] if tiles.parts == 1 else [(1, 0), (0, 1), (0, 0)]


def _gate(device: Device, sums: Any, first: int) -> jax.Array:
    """The tile of U rows of the sums."""
    return device.load(sums.at[pl.ds(first, device.tiles.U)], turn=device.tiles.rows_first)


def _when(mask: Any, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.where(mask > 0.5, one, other)


def forward(
    device: Device,
    cell: Cell,
    steps: int,
    masked: bool,
    padded: bool,
    reverse: bool,
    keep: bool,
    dtype: Any,
) -> tuple[Callable[..., None], dict[str, Any]]:
    """The forward loop, and the shared memory it takes.

    Operands: zx (T, B, C, G), the bias of h (C, G) if split, first states (B, C, S), resets and
    own steps (T, B, 2) if masked, which units are no padding (C,) if padded, weights (C, parts, C,
    M, U). Results: h (T, B, C, 1); other states and what is saved (T, B, C, ...), or the last other
    states (B, C, S - 1).
    """
    tiles, graph = device.tiles, values.graph(cell)
    gates, states, saved = len(cell.gates), len(cell.states), sum(graph.saved)
    C, U = tiles.C, tiles.U
    time: Any = (lambda s: steps - 1 - s) if reverse else (lambda s: s)

    def body(*refs: Any, w: Any, hs: Any, sums: Any, full: Any, copied: Any) -> None:
        left = list(refs)
        take: Any = lambda there: left.pop(0) if there else None  # noqa: E731
        zx, bias, first, flags, inside, weights = map(take, (1, cell.split, 1, masked, padded, 1))
        h_out, rest_out, saved_out = map(take, (1, states > 1, keep and saved))
        me, b = device.me, device.cluster
        w, sums = device.own(w), device.own(sums)
        pieces = [(p, c) for p in range(tiles.parts) for c in range(C)]
        device.fetch([(weights.at[me, p, c], w.at[p, c]) for p, c in pieces], copied)

        device.begin(full)

        def marked(s: Any) -> Any:
            t = time(lax.min(s, jnp.int32(steps - 1)))
            return tuple(device.raw(flags.at[t, b, i]) for i in (0, 1)) if masked else ()

        def inputs(s: Any) -> Any:
            """What step s takes from global memory."""
            t = time(lax.min(s, jnp.int32(steps - 1)))
            return tuple(device.raw(zx.at[t, b, me, g]) for g in range(gates)), marked(s)

        def send(h: jax.Array, s: Any, marks: Any) -> None:
            """H as step s is to see it."""
            if inside is not None:
                h = _when(device.load(inside.at[me]), h, jnp.zeros_like(h))
            if marks:
                h = _when(marks[0], jnp.zeros_like(h), h)
            mine = device.own(hs)
            for part, factor in enumerate(factors(h, tiles, dtype)):
                mine.at[slot_of(s), me, part][...] = factor
            plgpu.commit_smem()
            device.share(hs, full, s)

        def step(s: Any, carry: Any) -> Any:
            state, fetched = carry
            zs, marks = fetched if AHEAD else inputs(s)
            t, slot = time(s), slot_of(s)
            following: Any = inputs(s + 1) if AHEAD else ()
            device.wait(full, s)
            mine = device.own(hs)
            sums[...] = device.products(
                tiles.M,
                [(w.at[i, c], mine.at[slot, c, j]) for i, j in _products(tiles) for c in range(C)],
            )
            plgpu.commit_smem()
            zh = [_gate(device, sums, g * U) for g in range(gates)]
            if bias is not None:
                z = [*zs, *(zh[g] + device.load(bias.at[me, g]) for g in range(gates))]
            else:
                z = [zs[g] + zh[g] for g in range(gates)]
            old = state
            if masked:
                old = [_when(marks[0], jnp.zeros_like(x), x) for x in state]
            leaves = dict(z=z, old=old)
            leaf = lambda name, i: leaves[name][i]  # noqa: E731
            new = list(map(device.placed, values.evaluate(graph.forward, leaf, zs[0])))
            new, kept = new[:states], new[states:]
            if masked:
                new = [_when(marks[1], x, y) for x, y in zip(new, state, strict=True)]
            pl.when(s + 1 < steps)(
                lambda: send(new[0], s + 1, following[1] if AHEAD else marked(s + 1))
            )
            h_out.at[t, b, me, 0][...] = new[0].astype(dtype)
            if keep:
                for out, arrays in ((rest_out, new[1:]), (saved_out, kept)):
                    for i, array in enumerate(arrays):
                        out.at[t, b, me, i][...] = array.astype(dtype)
            return tuple(new), following

        state = tuple(device.load(first.at[b, me, k]) for k in range(states))
        send(state[0], jnp.int32(0), marked(jnp.int32(0)))
        begun = inputs(jnp.int32(0)) if AHEAD else ()
        state, _ = lax.fori_loop(jnp.int32(0), jnp.int32(steps), step, (state, begun))
        if not keep:
            for k in range(1, states):
                rest_out.at[b, me, k - 1][...] = state[k].astype(dtype)
        device.end()

    scratch = dict(
        w=((tiles.parts, C, tiles.M, U), dtype, tiles.swizzle),
        hs=((2, C, tiles.parts, *tiles.tile), dtype, tiles.swizzle),
        sums=((tiles.M, tiles.L), jnp.float32, None),
        full=Arrivals(),
        copied=Copies(tiles.parts * C),
    )
    return body, scratch


def backward(
    device: Device,
    cell: Cell,
    steps: int,
    masked: bool,
    padded: bool,
    reverse: bool,
    dtype: Any,
) -> tuple[Callable[..., None], dict[str, Any]]:
    """The transpose of the linear loop, from the last step to the first, and its shared memory.

    Each block multiplies the dz of its own units with its columns of W_hh, which gives a part of
    the derivative by the h of all units; each block gets the parts of its own and adds them up.

    Operands: dh (T, B, C, 1), by the last states (B, C, S), states (T + 1, B, C, S) from the first
    on, saved (T, B, C, ...), flags and units as forward, weights (C, parts, G, M_back, U). Results:
    dz (T, B, C, G or 2 * G), by the first states (B, C, S).
    """
    tiles, graph = device.tiles, values.graph(cell)
    gates, states, saved = len(cell.gates), len(cell.states), sum(graph.saved)
    C, U, chunk = tiles.C, tiles.U, tiles.chunk
    given_leaves = sorted(leaf for leaf in values.leaves(cell, "backward") if leaf[0] != "ct")
    time: Any = (lambda s: steps - 1 - s) if reverse else (lambda s: s)

    def body(
        *refs: Any, w: Any, dzs: Any, sums: Any, turned: Any, inbox: Any, full: Any, copied: Any
    ) -> None:
        left = list(refs)
        take: Any = lambda there: left.pop(0) if there else None  # noqa: E731
        dh, dlast, around, kept, flags, inside, weights = map(
            take, (1, 1, 1, saved, masked, padded, 1)
        )
        dz_out, dfirst = left
        me, b = device.me, device.cluster
        w, dzs, sums, turned = map(device.own, (w, dzs, sums, turned))
        pieces = [(p, g) for p in range(tiles.parts) for g in range(gates)]
        device.fetch([(weights.at[me, p, g], w.at[p, g]) for p, g in pieces], copied)

        device.begin(full)

        def received(i: Any) -> jax.Array:
            device.wait(full, i)
            return device.collect(device.own(inbox).at[slot_of(i)], turned)

        def leaf(s: Any, name: str, i: int) -> jax.Array:
            if name == "saved":
                return device.raw(kept.at[time(s), b, me, i])
            after = (name == "new") != reverse
            return device.raw(around.at[time(s) + int(after), b, me, i])

        def inputs(i: Any) -> Any:
            """What turn i takes from global memory."""
            s = lax.max(steps - 1 - i, jnp.int32(0))
            marks = [device.raw(flags.at[time(s), b, k]) for k in (0, 1)] if masked else []
            given = tuple(leaf(s, name, k) for name, k in given_leaves)
            return device.raw(dh.at[time(s), b, me, 0]), given, tuple(marks)

        def step(i: Any, carry: Any) -> Any:
            dstate, fetched = carry
            by_output, given, marks = fetched if AHEAD else inputs(i)
            following = inputs(i + 1) if AHEAD else ()
            t = time(steps - 1 - i)
            leaves: Any = {
                k: a.astype(jnp.float32) for k, a in zip(given_leaves, given, strict=True)
            }
            reset, own = marks if masked else (None, None)
            if reset is not None:
                for k in range(states):
                    if ("old", k) in leaves:
                        leaves["old", k] = _when(reset, nothing, leaves["old", k])
            ct = [dstate[0] + by_output + received(i), *dstate[1:]]
            leaves |= {("ct", k): ct[k] for k in range(states)}
            by = values.evaluate(graph.backward, lambda name, k: leaves[name, k], nothing)
            by = list(map(device.placed, by))
            dz, dold = by[:-states], by[-states:]
            if own is not None:
                dz = [_when(own, d, nothing) for d in dz]
            for k, d in enumerate(dz):
                dz_out.at[t, b, me, k][...] = d
            to_h = dz[-gates:]
            if reset is not None:
                to_h = [_when(reset, nothing, d) for d in to_h]
                dold = [_when(reset, nothing, d) for d in dold]
                dold = [_when(own, d, c) for d, c in zip(dold, ct, strict=True)]
            if inside is not None:
                real = device.load(inside.at[me])
                to_h = [_when(real, d, nothing) for d in to_h]
            for g, d in enumerate(to_h):
                for part, factor in enumerate(factors(d, tiles, dtype)):
                    dzs.at[part, g][...] = factor
            plgpu.commit_smem()
            device.expect(full, i + 1)
            for m in range(0, tiles.M_back, chunk):
                pairs = [
                    (w.at[p, g, pl.ds(m, chunk)], dzs.at[q, g])
                    for p, q in _products(tiles)
                    for g in range(gates)
                ]
                part = device.products(chunk, pairs)
                if m:
                    plgpu.commit_smem()  # all warps have read the sums before
                sums[...] = part
                plgpu.commit_smem()
                count = min((m + chunk) // U, C) - m // U
                device.give(sums, inbox, full, i + 1, m // U, count)
            return tuple(dold), following

        dstate = tuple(device.load(dlast.at[b, me, k]) for k in range(states))
        nothing = device.placed(jnp.zeros_like(dstate[0]))
        for c in range(C):
            device.clear(device.own(inbox).at[0, c])
        device.nothing(full)
        carry = dstate, inputs(jnp.int32(0)) if AHEAD else ()
        dstate, _ = lax.fori_loop(jnp.int32(0), jnp.int32(steps), step, carry)
        dstate = (dstate[0] + received(jnp.int32(steps)), *dstate[1:])
        for k in range(states):
            dfirst.at[b, me, k][...] = dstate[k]
        device.end()

    scratch = dict(
        w=((tiles.parts, gates, tiles.M_back, U), dtype, tiles.swizzle),
        dzs=((tiles.parts, gates, *tiles.tile), dtype, tiles.swizzle),
        sums=((chunk, tiles.L), jnp.float32, None),
        turned=((U, tiles.L), jnp.float32, None),
        inbox=((2, C, U, tiles.L), jnp.float32, None),
        full=Arrivals(),
        copied=Copies(tiles.parts * gates),
    )
    return body, scratch
