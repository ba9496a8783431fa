"""The loop of a layer on a Hopper GPU, step by step: what a block does with its units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.elementwise import lower
from jaxrnn.backends.hopper import loops
from jaxrnn.backends.hopper.device import Arrivals, Copies, Device, Memory, slot_of
from jaxrnn.cells import Cell


def forward(
    device: Device,
    cell: Cell,
    steps: int,
    masked: bool,
    padded: bool,
    reverse: bool,
    store_residuals: bool,
    dtype: Any,
) -> tuple[Callable[..., None], dict[str, Any]]:
    """The forward loop, and the shared memory it takes.

    Operands: zx (T, B, C, G), the bias of h (C, G) if split, first states (B, C, S), resets and
    own steps (T, B, 2) if masked, which units are no padding (C,) if padded, weights (C, parts, C,
    M, U). Results: h (T, B, C, 1); other states and what is saved (T, B, C, ...), or the last other
    states (B, C, S - 1).
    """
    tiles, graph = device.tiles, lower.cell_graphs(cell)
    gates, states, saved = len(cell.gates), len(cell.states), sum(graph.residual_counts)
    P, Q, U = tiles.P, tiles.Q, tiles.U
    time: Any = (lambda s: steps - 1 - s) if reverse else (lambda s: s)

    def body(
        *refs: Any, w: Any, hs: Any, sums: Any, full: Any, copied: Any, inbox: Any = None
    ) -> None:
        there = 1, cell.split, 1, masked, padded, 1, 1, states > 1, store_residuals and saved
        zx, bias, first, flags, inside, weights, h_out, rest_out, saved_out = loops.pick(
            refs, there
        )
        me, b = device.places()
        w, sums = device.own(w), device.own(sums)
        loops.start(device, weights.at[me], w, P, copied, full)

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
                h = loops.when(device.load(inside.at[me]), h, jnp.zeros_like(h))
            if marks:
                h = loops.when(marks[0], jnp.zeros_like(h), h)
            mine = device.own(hs)
            for part, factor in enumerate(loops.factors(h, tiles, dtype)):
                mine.at[device.slot(s), device.along, part][...] = factor
            plgpu.commit_smem()
            device.spread(hs, full, s)

        def product(s: Any) -> list[jax.Array]:
            """W_hh @ h, the gates of this block."""
            mine, slot = device.own(hs), device.slot(s)
            if Q == 1:
                which = [(i, j, c) for i, j in loops.products(tiles) for c in range(P)]
                pairs = [(w.at[i, c], mine.at[slot, c, j]) for i, j, c in which]
                device.store(sums, device.products(tiles.M, pairs))
                plgpu.commit_smem()
                turn = tiles.rows_first
                return [device.load(sums.at[pl.ds(g * U, U)], turn) for g in range(gates)]
            device.expect(full, s, gates * U)
            loops.in_pieces(
                device,
                (tiles.M, tiles.chunk_forward, gates * U, Q),
                lambda rows: [
                    (w.at[i, c, rows], mine.at[slot, c, j])
                    for i, j in loops.products(tiles)
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
            zs, marks = fetched if loops.AHEAD else inputs(s)
            t = time(s)
            following: Any = inputs(s + 1) if loops.AHEAD else ()
            device.gather(hs, full, s)
            zh = product(s)
            if bias is not None:
                z = [*zs, *(zh[g] + device.load(bias.at[me, g]) for g in range(gates))]
            else:
                z = [zs[g] + zh[g] for g in range(gates)]
            old = state
            if masked:
                old = [loops.when(marks[0], jnp.zeros_like(x), x) for x in state]
            leaves = dict(z=z, old=old)
            leaf = lambda name, i: leaves[name][i]  # noqa: E731
            new = list(map(device.placed, lower.evaluate(graph.forward, leaf, zs[0])))
            new, kept = new[:states], new[states:]
            if masked:
                new = [loops.when(marks[1], x, y) for x, y in zip(new, state, strict=True)]
            pl.when(s + 1 < steps)(
                lambda: send(new[0], s + 1, following[1] if loops.AHEAD else marked(s + 1))
            )
            h_out.at[t, b, me, 0][...] = new[0].astype(dtype)
            if store_residuals:
                for out, arrays in ((rest_out, new[1:]), (saved_out, kept)):
                    for i, array in enumerate(arrays):
                        out.at[t, b, me, i][...] = array.astype(dtype)
            return tuple(new), following

        state = tuple(device.load(first.at[b, me, k]) for k in range(states))
        send(state[0], jnp.int32(0), marked(jnp.int32(0)))
        begun = inputs(jnp.int32(0)) if loops.AHEAD else ()
        state, _ = lax.fori_loop(jnp.int32(0), jnp.int32(steps), step, (state, begun))
        if not store_residuals:
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
