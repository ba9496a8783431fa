"""The linear loop backward on a Hopper GPU, step by step: what a block does with its units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.elementwise import lower
from jaxrnn.backends.hopper import loops
from jaxrnn.backends.hopper.device import Arrivals, Copies, Device, Memory, slot_of
from jaxrnn.cells import Cell


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
    tiles, graph = device.tiles, lower.cell_graphs(cell)
    gates, states, saved = len(cell.gates), len(cell.states), sum(graph.residual_counts)
    P, Q, U = tiles.P, tiles.Q, tiles.U
    given_leaves = sorted(leaf for leaf in lower.graph_leaves(cell, "backward") if leaf[0] != "ct")
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
        there = 1, 1, 1, saved, masked, padded, 1, 1, 1
        dh, dlast, around, kept, flags, inside, weights, dz_out, dfirst = loops.pick(refs, there)
        me, b = device.places()
        w, sums, turned = map(device.own, (w, sums, turned))
        loops.start(device, weights.at[me], w, Q * gates, copied, full)

        def received(i: Any) -> jax.Array:
            return device.total(inbox, full, i, turned)

        def leaf(s: Any, name: str, i: int) -> jax.Array:
            if name == "residuals":
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
            by_output, given, marks = fetched if loops.AHEAD else inputs(i)
            following = inputs(i + 1) if loops.AHEAD else ()
            t = time(steps - 1 - i)
            leaves: Any = {
                k: a.astype(jnp.float32) for k, a in zip(given_leaves, given, strict=True)
            }
            reset, own = marks if masked else (None, None)
            if reset is not None:
                for k in range(states):
                    if ("old", k) in leaves:
                        leaves["old", k] = loops.when(reset, nothing, leaves["old", k])
            ct = [dstate[0] + by_output + received(i), *dstate[1:]]
            leaves |= {("ct", k): ct[k] for k in range(states)}
            by = lower.evaluate(graph.backward, lambda name, k: leaves[name, k], nothing)
            by = list(map(device.placed, by))
            dz, dold = by[:-states], by[-states:]
            if own is not None:
                dz = [loops.when(own, d, nothing) for d in dz]
            for k, d in enumerate(dz):
                dz_out.at[t, b, me, k][...] = d
            to_h = dz[-gates:]
            if reset is not None:
                to_h = [loops.when(reset, nothing, d) for d in to_h]
                dold = [loops.when(reset, nothing, d) for d in dold]
                dold = [loops.when(own, d, c) for d, c in zip(dold, ct, strict=True)]
            if inside is not None:
                real = device.load(inside.at[me])
                to_h = [loops.when(real, d, nothing) for d in to_h]
            by_gate = device.own(dzs) if Q == 1 else device.own(dzs).at[slot_of(i)]
            mine = by_gate if Q == 1 else by_gate.at[device.rank]
            block: Any = [()] if Q == 1 else [(q,) for q in range(Q)]
            for g, d in enumerate(to_h):
                for part, factor in enumerate(loops.factors(d, tiles, dtype)):
                    mine.at[part, g][...] = factor
            plgpu.commit_smem()
            if Q > 1:
                device.share(dzs, full, i, gates)
                device.wait(full, i)
            device.announce(full, i + 1)
            loops.in_pieces(
                device,
                (tiles.M_back, tiles.chunk, U, P),
                lambda rows: [
                    (w.at[p, g, rows], by_gate.at[(*block[g // gates], q, g % gates)])
                    for p, q in loops.products(tiles)
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
        carry = dstate, inputs(jnp.int32(0)) if loops.AHEAD else ()
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
