"""The transpose of the linear loop of the derivative as a kernel, from the last step to the first.

.. code-block:: text

    dh_t = dy_t + carry + dz_{t+1} @ W_hh              dz_{t+1} of the step after, none at first
    dz_t, carry, ... = the transpose of cell.tangent at (dh_t, dc_t, ...)

and once more without a cell: the derivative by the states before the first step.
"""

from __future__ import annotations

from typing import Any

from jaxrnn.native import elementwise, layout, threads, tiles
from jaxrnn.native.forward import Variant, flags_of, product, select
from jaxrnn.native.ir import INT, Function, Module
from jaxrnn.native.layout import Areas, Sizes
from jaxrnn.native.tiles import Tile

NUMBERS = (
    *("T", "N", "H", "PANELS", "FIRST", "TURN"),
    *("W_HH", "NOTHING", "PRIVATE", "STRIDE", "SUMS", "ROWS"),
)
"""What a call is told, see `plan`."""


def inputs(variant: Variant) -> list[str]:
    """The operands, in their order."""
    states = range(variant.states)
    return [
        *("dy", "w_hh"),
        *(f"dlast{k}" for k in states),
        *(f"first{k}" for k in states),
        *(f"state{k}" for k in states),
        *(f"saved{i}" for i in range(len(variant.graph.saved))),
        *(["flags"] if variant.masked else []),
    ]


def outputs(variant: Variant) -> list[str]:
    """The results: by the gate inputs at each step, by the first states, scratch memory."""
    dz = ["dz0", "dz1"] if variant.split else ["dz0"]
    return [*dz, *(f"dfirst{k}" for k in range(variant.states)), "scratch"]


def plan(
    variant: Variant, machine: Any, tile: Tile, lanes: int, itemsize: int, sizes: Sizes, turn: int
) -> tuple[threads.Sharing, list[int], int]:
    """How a call is shared out, its numbers, and the bytes of its scratch memory."""
    panels = -(-sizes.H // (tile.wide * lanes))
    sums = tile.vectors * lanes * itemsize
    features = variant.gates * sizes.H
    weights = panels * features * sums
    sharing = layout.sharing(machine, tile, variant.gates, sizes, panels, weights)
    areas, private = Areas(), Areas()
    areas.add("W_HH", weights)
    areas.add("NOTHING", features * itemsize)
    private.add("SUMS", tile.rows * sums)
    private.add("ROWS", -(-sizes.N // sharing.row_groups) * 8)
    numbers = layout.numbers(
        NUMBERS,
        areas,
        private,
        vars(sizes),
        PANELS=panels,
        FIRST=0 if turn > 0 else sizes.T - 1,
        TURN=turn,
        PRIVATE=areas.size,
        STRIDE=private.size,
    )
    return sharing, numbers, areas.size + sharing.threads * private.size


def write(m: Module, variant: Variant, tile: Tile) -> None:
    """``work(context, number)``: what one thread of a call does."""
    tiles.write_product(m, "product", tile)
    f = Function(m, "work", [("context", "ptr"), ("number", INT)])
    c = threads.slots(f, (*NUMBERS, *inputs(variant), *outputs(variant)))
    sums = tile.vectors * m.lanes
    w_hh, nothing = (f.at(c["scratch"], c[name], 1) for name in ("W_HH", "NOTHING"))
    private = f.at(f.at(c["scratch"], c["PRIVATE"], 1), f.mul(c["STRIDE"], "%number"), 1)
    tile_sums, pointers = (f.at(private, c[name], 1) for name in ("SUMS", "ROWS"))
    features = f.mul(c["H"], variant.gates)
    panel = f.mul(features, sums)
    dz = c["dz1" if variant.split else "dz0"]

    first, end = threads.share(f, c["PANELS"], "%number", c["THREADS"])
    with f.loop(first, end) as p:
        tiles.pack_columns(f, tile, c["w_hh"], f.at(w_hh, f.mul(panel, p)), p, features, c["H"])
    with f.when(f.compare("eq", "%number", 0)), f.loop(0, features) as i:
        f.store("0.0", f.at(nothing, i), m.scalar)
    f.call("barrier", f"ptr {c['barriers']}", f"i64 {c['THREADS']}", "i64 1")

    mine = threads.Share(f, c)
    row0, rows = mine.row0, f.sub(mine.row1, mine.row0)
    for k in range(variant.states):
        tiles.copy_states(f, tile, c, mine, f"dlast{k}", f"dfirst{k}")

    with f.loop(0, f.add(c["T"], 1)) as turn:
        step = f.sub(f.sub(c["T"], 1), turn)
        t = f.add(c["FIRST"], f.mul(step, c["TURN"]))
        after = f.add(t, c["TURN"])
        nothing_yet = f.compare("eq", turn, 0)
        many = f.choose(nothing_yet, "0", features)
        with f.loop(0, rows) as i:
            n = f.add(row0, i)
            row = f.at(dz, f.mul(f.add(f.mul(after, c["N"]), n), features))
            if variant.masked:
                # At first there is no step after, whose flags could be read.
                known = f.choose(nothing_yet, t, after)
                row = f.choose(flags_of(f, c, known, n)[0], nothing, row, "ptr")
            f.store(row, f.at(pointers, i, 8), "ptr")
        begin = f.compare("sle", step, 0)
        done = f.compare("slt", step, 0)
        before = f.mul(f.sub(t, c["TURN"]), c["N"])
        with f.loop(mine.panel0, mine.panel1) as p:
            w = f.at(w_hh, f.mul(panel, p))
            with tiles.tiles(f, 0, rows, tile.rows) as (i, count):
                zeros = (nothing, 0)
                product(f, count, w, many, f.at(pointers, i, 8), *zeros, tile_sums)
                with f.loop(0, count) as j:
                    n = f.add(row0, f.add(i, j))
                    at = f.at(tile_sums, f.mul(j, sums))
                    either = f.fresh("either")
                    finish, cell, joined = (f"{either}.{word}" for word in "fcj")
                    f.say(f"br i1 {done}, label %{finish}, label %{cell}")
                    f.label(finish)
                    _finish(f, tile, c, p, n, at)
                    f.say(f"br label %{joined}")
                    f.label(cell)
                    _cell(f, variant, tile, c, p, t, begin, before, n, at)
                    f.say(f"br label %{joined}")
                    f.label(joined)
        mine.meet(f, f.add(turn, 1))
    f.done()


def _finish(f: Function, tile: Tile, c: dict[str, str], p: str, n: str, sums: str) -> None:
    """The derivative by h before the first step."""
    m = f.module
    for wide in range(tile.wide):
        first, there = tiles.units(f, tile, c, p, wide)
        place = f.at(c["dfirst0"], f.add(f.mul(n, c["H"]), first))
        product_here = f.load(f.at(sums, wide * m.lanes), m.vector)
        total = f.let(f"fadd {m.vector} {f.load_some(place, there)}, {product_here}")
        f.store_some(total, place, there)


def _cell(
    f: Function,
    variant: Variant,
    tile: Tile,
    c: dict[str, str],
    p: str,
    t: str,
    begin: str,
    before: str,
    n: str,
    sums: str,
) -> None:
    """The transpose of the cell's tangent on one row of a panel."""
    m = f.module
    row = f.add(f.mul(t, c["N"]), n)
    zero = f.constant(0.0)
    if variant.masked:
        reset, valid = (f.spread(flag, "i1") for flag in flags_of(f, c, t, n))
    for wide in range(tile.wide):
        first, there = tiles.units(f, tile, c, p, wide)
        own = f.add(f.mul(n, c["H"]), first)
        here = f.add(f.mul(row, c["H"]), first)
        kept = f.add(f.mul(before, c["H"]), own)
        carries = [f.at(c[f"dfirst{k}"], own) for k in range(variant.states)]
        cts = [f.load_some(carry, there) for carry in carries]
        direct = f.load_some(f.at(c["dy"], here), there)
        through = f.load(f.at(sums, wide * m.lanes), m.vector)
        cts[0] = f.let(f"fadd {m.vector} {cts[0]}, {direct}")
        cts[0] = f.let(f"fadd {m.vector} {cts[0]}, {through}")
        loaded: dict[tuple[str, int], str] = {}

        def leaf(
            name: str,
            place: int,
            *,
            first: str = first,
            there: str = there,
            own: str = own,
            here: str = here,
            kept: str = kept,
            cts: list[str] = cts,
            loaded: dict[tuple[str, int], str] = loaded,
        ) -> str:
            if name == "ct":
                return cts[place]
            if (name, place) not in loaded:
                if name == "new":
                    value = f.load_some(f.at(c[f"state{place}"], here), there)
                elif name == "old":
                    one, other = f.at(c[f"first{place}"], own), f.at(c[f"state{place}"], kept)
                    value = f.load_some(f.choose(begin, one, other, "ptr"), there)
                    if variant.masked:
                        value = select(f, reset, zero, value)
                else:
                    index, i = variant.saved_place(place)
                    count = variant.graph.saved[index]
                    at = f.add(f.mul(f.add(f.mul(row, count), i), c["H"]), first)
                    value = f.load_some(f.at(c[f"saved{index}"], at), there)
                loaded[name, place] = value
            return loaded[name, place]

        values = elementwise.emit(f, variant.graph.backward, leaf)
        gates = len(values) - variant.states
        for index, value in enumerate(values[:gates]):
            half, gate = divmod(index, variant.gates)
            if variant.masked:
                value = select(f, valid, value, zero)
            at = f.add(f.mul(f.add(f.mul(row, variant.gates), gate), c["H"]), first)
            f.store_some(value, f.at(c[f"dz{half}"], at), there)
        for value, carry, ct in zip(values[gates:], carries, cts):
            if variant.masked:
                value = select(f, reset, zero, select(f, valid, value, ct))
            f.store_some(value, carry, there)
