"""The forward loop as a kernel: input product, recurrent product and cell, step by step.

.. code-block:: text

    for a block of steps:  zx = x @ W_ih.T + b        of the rows of a thread, in its cache
      for each step, panel of hidden units, tile of rows:
        z = zx + h @ W_hh.T                            the sums of a tile stay in registers
        h, c, ... = cell(z, ...)                       and go through the cell while they are there

The output (T, N, H) is the memory of h: a step reads what the step before has written. Rows that
have no step of their own, by their flags, are left out: their states stay, and nothing is saved.
"""

from __future__ import annotations

from typing import Any

from jaxrnn.backends.cpu import functions, layout, memory, threads, tiles
from jaxrnn.backends.cpu.ir import INT, Function, Module
from jaxrnn.backends.cpu.layout import Areas, Sizes
from jaxrnn.backends.cpu.tiles import Tile
from jaxrnn.backends.cpu.variant import Variant, flags_of, own_of

NUMBERS = (
    *("T", "N", "D", "H", "PANELS", "BLOCK", "FIRST", "TURN"),
    *("W_IH", "W_HH", "B_X", "B_H", "NOTHING", "PRIVATE", "STRIDE", "ZX", "SUMS", "X_ROWS"),
    *("H_ROWS", "WHO", "STARTS", "PANEL", "AT_ONCE"),
)
"""What a call is told, see `plan`."""


def plan(
    variant: Variant, machine: Any, tile: Tile, lanes: int, itemsize: int, sizes: Sizes, turn: int
) -> tuple[threads.Sharing, list[int], int]:
    """How a call is shared out, its numbers, and the bytes of its scratch memory."""
    panels = -(-sizes.H // (tile.wide * lanes))
    sums = tile.vectors * lanes * itemsize  # of one row in a panel
    sharing = layout.sharing(machine, tile, variant.gates, sizes, panels, panels * sizes.H * sums)
    rows = -(-sizes.N // sharing.row_groups)
    # Where all inputs are fewer rows than W_ih has columns, what they give takes less memory than
    # W_ih in another order: all steps are one block, and one panel after the other is put in order.
    at_once = sharing.row_groups == 1 and sizes.T * sizes.N < sizes.D
    block = sizes.T if at_once else max(1, min(sizes.T, layout.ROWS_AHEAD // rows))
    areas, private = Areas(), Areas()
    areas.add("W_IH", 0 if at_once else panels * sizes.D * sums)
    areas.add("W_HH", panels * sizes.H * sums)
    areas.add("B_X", panels * sums)
    areas.add("B_H", panels * sums if variant.split else 0)
    areas.add("NOTHING", sizes.H * itemsize)
    private.add("ZX", -(-panels // sharing.unit_groups) * block * rows * sums)
    private.add("SUMS", tile.rows * sums)
    # One more: where a row would be written, and then is found to have no step of its own.
    private.add("X_ROWS", (block * rows + 1) * 8)
    private.add("H_ROWS", rows * 8)
    private.add("WHO", (block * rows + 1) * 8)
    private.add("STARTS", (block + 1) * 8)
    private.add("PANEL", sizes.D * sums if at_once else 0)
    numbers = layout.numbers(
        NUMBERS,
        areas,
        private,
        sizes,
        turn,
        PANELS=panels,
        BLOCK=block,
        AT_ONCE=int(at_once),
    )
    return sharing, numbers, areas.size + sharing.threads * private.size


def write(m: Module, variant: Variant, tile: Tile) -> None:
    """``work(context, number)``: what one thread of a call does."""
    tiles.write_product(m, "product", tile)
    f = Function(m, "work", [("context", "ptr"), ("number", INT)])
    c = threads.slots(f, (*NUMBERS, *variant.inputs, *variant.outputs))
    area = lambda name: f.at(c["scratch"], c[name], 1)  # noqa: E731
    sums = tile.vectors * m.lanes
    w_ih, w_hh, b_x, b_h = (area(name) for name in ("W_IH", "W_HH", "B_X", "B_H"))
    nothing = area("NOTHING")
    private = f.at(area("PRIVATE"), f.mul(c["STRIDE"], "%number"), 1)
    own = {name: f.at(private, c[name], 1) for name in NUMBERS[NUMBERS.index("ZX") : -1]}
    zx = own["ZX"]
    panel_ih, panel_hh = f.mul(c["D"], sums), f.mul(c["H"], sums)
    at_once = f.compare("ne", c["AT_ONCE"], 0)

    first, end = threads.share(f, c["PANELS"], "%number", c["THREADS"])
    with f.loop(first, end) as p:
        at_ih, at_hh = f.at(w_ih, f.mul(panel_ih, p)), f.at(w_hh, f.mul(panel_hh, p))
        with f.unless(at_once):
            tiles.pack_rows(f, tile, c["w_ih"], at_ih, p, c["D"], c["H"])
        tiles.pack_rows(f, tile, c["w_hh"], at_hh, p, c["H"], c["H"])
        at_x, at_h = f.at(b_x, f.mul(p, sums)), f.at(b_h, f.mul(p, sums))
        _pack_biases(f, variant, tile, c, p, at_x, at_h)
    with f.when(f.compare("eq", "%number", 0)):
        with f.loop(0, c["H"]) as i:
            f.store("0.0", f.at(nothing, i), m.scalar)
        _in_large_pages(f, variant, c)
    threads.meet(f, c, "1")

    mine = threads.Share(f, c)
    panel0, panel1 = mine.panel0, mine.panel1
    rows = f.sub(mine.row1, mine.row0)
    if (
        not variant.store_residuals
    ):  # the other states are then a single (N, H), changed at each step
        for k in range(1, variant.states):
            tiles.copy_states(f, tile, c, mine, f"first{k}", f"state{k}")

    with f.loop(0, c["T"], c["BLOCK"]) as s0:
        steps = f.least(f.sub(c["T"], s0), c["BLOCK"])
        ahead = _rows_of_block(f, variant, c, own, mine, s0, steps)
        with f.loop(panel0, panel1) as p:
            zx_here = f.at(zx, f.mul(f.mul(f.sub(p, panel0), f.mul(c["BLOCK"], rows)), sums))
            with f.when(at_once):
                tiles.pack_rows(f, tile, c["w_ih"], own["PANEL"], p, c["D"], c["H"])
            w = f.choose(at_once, own["PANEL"], f.at(w_ih, f.mul(panel_ih, p)), "ptr")
            with tiles.tiles(f, ahead, tile.rows) as (n, count):
                x_rows, to = f.at(own["X_ROWS"], n, 8), f.at(zx_here, f.mul(n, sums))
                bias = f.at(b_x, f.mul(p, sums))
                tiles.product(f, count, w, c["D"], x_rows, bias, "0", to)
        with f.loop(0, steps) as s:
            step = f.add(s0, s)
            t = f.add(c["FIRST"], f.mul(step, c["TURN"]))
            begin = f.compare("eq", step, 0)
            before = f.mul(f.sub(t, c["TURN"]), c["N"])
            first = f.load(f.at(own["STARTS"], s, 8), INT)
            many = f.sub(f.load(f.at(own["STARTS"], f.add(s, 1), 8), INT), first)
            who = f.at(own["WHO"], first, 8)
            with f.loop(0, many) as i:
                n = f.load(f.at(who, i, 8), INT)
                old = f.choose(begin, c["first0"], f.at(c["state0"], f.mul(before, c["H"])), "ptr")
                old = f.at(old, f.mul(n, c["H"]))
                if variant.masked:
                    reset, _ = flags_of(f, c, t, n)
                    old = f.choose(reset, nothing, old, "ptr")
                f.store(old, f.at(own["H_ROWS"], i, 8), "ptr")
            with f.loop(panel0, panel1) as p:
                place = f.add(f.mul(f.sub(p, panel0), f.mul(c["BLOCK"], rows)), first)
                zx_here = f.at(zx, f.mul(place, sums))
                with tiles.tiles(f, many, tile.rows) as (i, count):
                    source = f.at(zx_here, f.mul(i, sums))
                    bias = f.at(b_h, f.mul(p, sums))
                    start = (bias, "0") if variant.split else (source, str(sums))
                    h_rows = f.at(own["H_ROWS"], i, 8)
                    w = f.at(w_hh, f.mul(panel_hh, p))
                    tiles.product(f, count, w, c["H"], h_rows, *start, own["SUMS"])
                    with f.loop(0, count) as j:
                        row = f.add(i, j)
                        _cell(f, variant, tile, c, p, t, begin, before,
                              f.load(f.at(who, row, 8), INT),
                              f.load(f.at(own["H_ROWS"], row, 8), "ptr"),
                              f.at(source, f.mul(j, sums)),
                              f.at(own["SUMS"], f.mul(j, sums)))  # fmt: skip
            if variant.masked:
                _hold(f, variant, tile, c, mine, t, begin, before)
            mine.meet(f, f.add(step, 1))
    f.done()


def _in_large_pages(f: Function, variant: Variant, c: dict[str, str]) -> None:
    """What is written of all steps."""
    every = f.mul(f.mul(c["T"], c["N"]), c["H"])
    for k in range(variant.states if variant.store_residuals else 1):
        memory.ask(f, c[f"state{k}"], every)
    if variant.store_residuals:
        for index, count in enumerate(variant.graph.residual_counts):
            memory.ask(f, c[f"saved{index}"], f.mul(every, count))


def _rows_of_block(
    f: Function,
    variant: Variant,
    c: dict[str, str],
    own: dict[str, str],
    mine: threads.Share,
    s0: str,
    steps: str,
) -> str:
    """Which rows have a step of their own, for each step of a block, and where their input is.

    Only those are worked on: rows that have ended, or not yet begun, cost nothing.
    """
    total = f.at(own["STARTS"], 0, 8)
    f.store("0", total, INT)
    with f.loop(0, steps) as s:
        t = f.add(c["FIRST"], f.mul(f.add(s0, s), c["TURN"]))
        begin, end = f.at(own["STARTS"], s, 8), f.at(own["STARTS"], f.add(s, 1), 8)
        f.store(f.load(begin, INT), end, INT)
        with f.loop(mine.row0, mine.row1) as n:
            place = f.load(end, INT)
            x = f.at(c["x"], f.mul(f.add(f.mul(t, c["N"]), n), c["D"]))
            f.store(x, f.at(own["X_ROWS"], place, 8), "ptr")
            f.store(n, f.at(own["WHO"], place, 8), INT)
            one = f.let(f"zext i1 {flags_of(f, c, t, n)[1]} to i64") if variant.masked else 1
            f.store(f.add(place, one), end, INT)
    return f.load(f.at(own["STARTS"], steps, 8), INT)


def _hold(
    f: Function,
    variant: Variant,
    tile: Tile,
    c: dict[str, str],
    mine: threads.Share,
    t: str,
    begin: str,
    before: str,
) -> None:
    """The states of rows that have no step of their own stay what they were."""
    kept = range(variant.states if variant.store_residuals else 1)
    with f.loop(mine.row0, mine.row1) as n, f.unless(flags_of(f, c, t, n)[1]):
        own = f.mul(n, c["H"])
        from_ = f.add(f.mul(before, c["H"]), own)
        to = f.mul(f.add(f.mul(t, c["N"]), n), c["H"])
        for k in kept:
            old = f.choose(begin, f.at(c[f"first{k}"], own), f.at(c[f"state{k}"], from_), "ptr")
            new = f.at(c[f"state{k}"], to)
            with f.loop(mine.panel0, mine.panel1) as p:
                for wide in range(tile.wide):
                    first, there = tiles.units(f, tile, c, p, wide)
                    f.store_some(f.load_some(f.at(old, first), there), f.at(new, first), there)


def _pack_biases(
    f: Function, variant: Variant, tile: Tile, c: dict[str, str], p: str, at_x: str, at_h: str
) -> None:
    """The biases of a panel in the order of its sums; both at once unless the cell splits them."""
    m = f.module
    for vector in range(tile.vectors):
        gate, wide = divmod(vector, tile.wide)
        first, there = tiles.units(f, tile, c, p, wide)
        place = f.add(f.mul(c["H"], gate), first)
        one = f.load_some(f.at(c["b_ih"], place), there)
        other = f.load_some(f.at(c["b_hh"], place), there)
        if variant.split:
            f.store(other, f.at(at_h, vector * m.lanes), m.vector)
        else:
            one = f.let(f"fadd {m.vector} {one}, {other}")
        f.store(one, f.at(at_x, vector * m.lanes), m.vector)


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
    h_row: str,
    zx: str,
    sums: str,
) -> None:
    """The cell on one row of a panel."""
    m = f.module
    row = f.add(f.mul(t, c["N"]), n)
    if variant.masked:
        reset = f.spread(flags_of(f, c, t, n)[0], "i1")
    for wide in range(tile.wide):
        first, there = tiles.units(f, tile, c, p, wide)
        olds = [f.load_some(f.at(h_row, first), there)]
        places = [f.at(c["state0"], f.add(f.mul(row, c["H"]), first))]
        for k in range(1, variant.states):
            own = f.add(f.mul(n, c["H"]), first)
            if variant.store_residuals:
                kept = f.add(f.mul(before, c["H"]), own)
                old = f.choose(begin, f.at(c[f"first{k}"], own), f.at(c[f"state{k}"], kept), "ptr")
                places.append(f.at(c[f"state{k}"], f.add(f.mul(row, c["H"]), first)))
            else:
                old = f.at(c[f"state{k}"], own)
                places.append(old)
            olds.append(f.load_some(old, there))
        if variant.masked:
            zero = f.constant(0.0)
            olds[1:] = [functions.select(f, reset, zero, old) for old in olds[1:]]

        def leaf(
            name: str,
            place: int,
            wide: int = wide,
            olds: list[str] = olds,
            first: str = first,
            there: str = there,
        ) -> str:
            if name == "old":
                return olds[place]
            if name == "params":
                return own_of(f, c, place, first, there)
            from_x = variant.split and place < variant.gates
            gate = place % variant.gates if variant.split else place
            return f.load(
                f.at(zx if from_x else sums, (gate * tile.wide + wide) * m.lanes), m.vector
            )

        values = functions.emit(f, variant.graph.forward, leaf)
        for value, place in zip(values, places):
            f.store_some(value, place, there)
        if not variant.store_residuals:
            continue
        saved = iter(values[variant.states :])
        for index, count in enumerate(variant.graph.residual_counts):
            for i in range(count):
                place = f.add(f.mul(f.add(f.mul(row, count), i), c["H"]), first)
                f.store_some(next(saved), f.at(c[f"saved{index}"], place), there)
