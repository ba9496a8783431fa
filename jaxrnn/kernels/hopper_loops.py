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
from jaxrnn.kernels.hopper_device import Arrivals, Copies, Device, Memory, slot_of
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


def _in_pieces(
    device: Device,
    sizes: tuple[int, int, int, int],
    pairs: Callable[[Any], list[tuple[Any, Any]]],
    sums: Any,
    hand: Callable[[int, int], None],
) -> None:
    """A product that goes to several blocks, so many rows to each, as many at a time as have room.

    Args:
        device: the machine.
        sizes: all rows; rows at a time; rows of a block; blocks.
        pairs: what is multiplied for such rows.
        sums: where they are put.
        hand: sends them, to so many blocks from that block on.
    """
    whole, chunk, each, blocks = sizes
    for m in range(0, whole, chunk):
        part = device.products(chunk, pairs(pl.ds(m, chunk)))
        if m:
            plgpu.commit_smem()  # all warps have read the sums before
        device.store(sums, part)
        plgpu.commit_smem()
        hand(m // each, min((m + chunk) // each, blocks) - m // each)


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
    P, Q, U = tiles.P, tiles.Q, tiles.U
    time: Any = (lambda s: steps - 1 - s) if reverse else (lambda s: s)

    def body(
        *refs: Any, w: Any, hs: Any, sums: Any, full: Any, copied: Any, inbox: Any = None
    ) -> None:
        left = list(refs)
        take: Any = lambda there: left.pop(0) if there else None  # noqa: E731
        zx, bias, first, flags, inside, weights = map(take, (1, cell.split, 1, masked, padded, 1))
        h_out, rest_out, saved_out = map(take, (1, states > 1, keep and saved))
        me, b = device.places()
        w, sums = device.own(w), device.own(sums)
        pieces = [(p, c) for p in range(tiles.parts) for c in range(P)]
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
                mine.at[device.slot(s), device.along, part][...] = factor
            plgpu.commit_smem()
            device.spread(hs, full, s)

        def product(s: Any) -> list[jax.Array]:
            """W_hh @ h, the gates of this block."""
            mine, slot = device.own(hs), device.slot(s)
            if Q == 1:
                which = [(i, j, c) for i, j in _products(tiles) for c in range(P)]
                pairs = [(w.at[i, c], mine.at[slot, c, j]) for i, j, c in which]
                device.store(sums, device.products(tiles.M, pairs))
                plgpu.commit_smem()
                return [_gate(device, sums, g * U) for g in range(gates)]
            device.expect(full, s, gates * U)
            _in_pieces(
                device,
                (tiles.M, tiles.chunk_forward, gates * U, Q),
                lambda rows: [
                    (w.at[i, c, rows], mine.at[slot, c, j])
                    for i, j in _products(tiles)
                    for c in range(P)
                ],
                sums,
                lambda first, count: device.give(sums, inbox, full, s, first, count, gates * U),
            )
            device.wait(full, s)
            of = lambda rows: [device.own(inbox).at[slot_of(s), q, rows] for q in range(Q)]  # noqa: E731
            rows = [pl.ds(g * U, U) for g in range(gates)]
            return device.collect([of(r) for r in rows], [sums.at[r] for r in rows])

        def step(s: Any, carry: Any) -> Any:
            state, fetched = carry
            zs, marks = fetched if AHEAD else inputs(s)
            t = time(s)
            following: Any = inputs(s + 1) if AHEAD else ()
            device.gather(hs, full, s)
            zh = product(s)
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

    scratch: dict[str, Any] = dict(
        w=((tiles.parts, P, tiles.M, U), dtype, tiles.swizzle),
        hs=((tiles.slots, P, tiles.parts, *tiles.tile), dtype, tiles.swizzle),
        sums=((tiles.chunk_forward, tiles.L), jnp.float32, None),
        full=Arrivals(),
        copied=Copies(tiles.parts * P),
    )
    if tiles.K > 1:
        scratch["exchanged"] = Memory((2, Q, P, tiles.parts, *tiles.tile), dtype)
    if Q > 1:
        scratch["inbox"] = ((2, Q, gates * U, tiles.L), jnp.float32, None)
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
    P, Q, U = tiles.P, tiles.Q, tiles.U
    given_leaves = sorted(leaf for leaf in values.leaves(cell, "backward") if leaf[0] != "ct")
    time: Any = (lambda s: steps - 1 - s) if reverse else (lambda s: s)

    def body(
        *refs: Any,
        w: Any,
        dzs: Any,
        sums: Any,
        turned: Any,
        full: Any,
        copied: Any,
        inbox: Any = None,
    ) -> None:
        left = list(refs)
        take: Any = lambda there: left.pop(0) if there else None  # noqa: E731
        dh, dlast, around, kept, flags, inside, weights = map(
            take, (1, 1, 1, saved, masked, padded, 1)
        )
        dz_out, dfirst = left
        me, b = device.places()
        w, sums, turned = map(device.own, (w, sums, turned))
        pieces = [(p, g) for p in range(tiles.parts) for g in range(Q * gates)]
        device.fetch([(weights.at[me, p, g], w.at[p, g]) for p, g in pieces], copied)

        device.begin(full)

        def received(i: Any) -> jax.Array:
            return device.total(inbox, full, i, turned)

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
            by_gate = device.own(dzs) if Q == 1 else device.own(dzs).at[slot_of(i)]
            mine = by_gate if Q == 1 else by_gate.at[device.rank]
            block: Any = [()] if Q == 1 else [(q,) for q in range(Q)]
            for g, d in enumerate(to_h):
                for part, factor in enumerate(factors(d, tiles, dtype)):
                    mine.at[part, g][...] = factor
            plgpu.commit_smem()
            if Q > 1:
                device.share(dzs, full, i, gates)
                device.wait(full, i)
            device.announce(full, i + 1)
            _in_pieces(
                device,
                (tiles.M_back, tiles.chunk, U, P),
                lambda rows: [
                    (w.at[p, g, rows], by_gate.at[(*block[g // gates], q, g % gates)])
                    for p, q in _products(tiles)
                    for g in range(Q * gates)
                ],
                sums,
                lambda first, count: device.scatter(sums, inbox, full, i + 1, first, count),
            )
            device.scattered()
            return tuple(dold), following

        dstate = tuple(device.load(dlast.at[b, me, k]) for k in range(states))
        nothing = device.placed(jnp.zeros_like(dstate[0]))
        device.nothing(inbox, full)
        carry = dstate, inputs(jnp.int32(0)) if AHEAD else ()
        dstate, _ = lax.fori_loop(jnp.int32(0), jnp.int32(steps), step, carry)
        dstate = (dstate[0] + received(jnp.int32(steps)), *dstate[1:])
        for k in range(states):
            dfirst.at[b, me, k][...] = dstate[k]
        device.end()

    turns = () if Q == 1 else (2, Q)
    inbox = dict(inbox=((2, P, U, tiles.L), jnp.float32, None)) if tiles.K == 1 else {}
    scratch: dict[str, Any] = dict(
        w=((tiles.parts, Q * gates, tiles.M_back, U), dtype, tiles.swizzle),
        dzs=((*turns, tiles.parts, gates, *tiles.tile), dtype, tiles.swizzle),
        sums=((tiles.chunk, tiles.L), jnp.float32, None),
        turned=((U, tiles.L), jnp.float32, None),
        **inbox,
        full=Arrivals(),
        copied=Copies(tiles.parts * Q * gates),
    )
    if tiles.K > 1:
        scratch["exchanged"] = Memory((2, Q, P, P, U, tiles.L), jnp.float32)
    return body, scratch
