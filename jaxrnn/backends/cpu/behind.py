"""What the derivative needs dz for past its loop, a few steps at a time, while dz is in the cache.

.. code-block:: text

    dx = dz @ W_ih      dW_ih += dz.T @ x      dW_hh += dz.T @ h_before      db += dz summed up
    and what the parameters get that the cell has of its own, as db
"""

from __future__ import annotations

from jaxrnn.backends.cpu import outer, threads, tiles
from jaxrnn.backends.cpu.backward_call import Call
from jaxrnn.backends.cpu.ir import INT
from jaxrnn.backends.cpu.variant import flags_of


def write(call: Call, turn0: str, steps: str) -> None:
    """What dz of a block of steps is needed for past the loop."""
    f, c, requested = call.f, call.c, call.kind.requested
    if requested.x:
        _by_x(call, turn0, steps)
    if not any(requested[1:]):
        return
    count = _rows_of_block(call, turn0, steps)
    first = f.compare("eq", turn0, 0)
    high = call.kind.h_patch.rows
    begin, end = threads.share(
        f, f.div(f.add(call.features, high - 1), high), "%number", c["THREADS"]
    )
    begin, end = f.mul(begin, high), f.least(f.mul(end, high), call.features)

    def add(patch: str, a: str, b: str, columns: str, to: str) -> None:
        """Rows of C are shared out; of a single one, its columns."""
        size = {"outer_x": call.kind.x_patch, "outer_h": call.kind.h_patch}[patch]
        rows, panels = (begin, end), None
        if a in ("ONES", "X_ROWS"):
            total = outer.panels_of(f, size, columns)
            rows, panels = ("0", "1"), threads.share(f, total, "%number", c["THREADS"])
        where = dict(a=call.own[a], b=call.own[b], panel=call.own["PANEL"], target=c[to])
        outer.add(f, patch, size, count=count, rows=rows, columns=columns, panels=panels,
                  first=first, **where)  # fmt: skip

    last = f"Z{call.kind.halves - 1}_ROWS"
    if requested.weight_hh:
        add("outer_h", last, "H_ROWS", c["H"], "dw_hh")
    if requested.weight_ih:
        with f.when(f.compare("ugt", c["D"], 1)):
            add("outer_x", "Z0_ROWS", "X_ROWS", c["D"], "dw_ih")
        # With a single feature the gates are what makes a vector.
        with f.when(f.compare("eq", c["D"], 1)):
            add("outer_h", "X_ROWS", "Z0_ROWS", call.features, "dw_ih")
    if requested.bias:
        for half in range(call.kind.halves):
            add("outer_h", "ONES", f"Z{half}_ROWS", call.features, f"db{half}")
    if requested.own:
        add("outer_h", "ONES", "P_ROWS", f.mul(c["H"], call.variant.graph.param_count), "down")


def _rows_of_block(call: Call, turn0: str, steps: str) -> str:
    """Where x, h before the step, and dz of the rows of a block are; how many rows."""
    f, c = call.f, call.c
    f.store("0", call.own["MANY"], INT)
    with f.loop(0, steps) as s:
        turn = f.add(turn0, s)
        t = call.time(turn)
        begin = f.compare("eq", turn, f.sub(c["T"], 1))
        before = f.mul(f.sub(t, c["TURN"]), c["N"])
        with f.loop(0, c["N"]) as n:
            x = f.at(c["x"], f.mul(f.add(f.mul(t, c["N"]), n), c["D"]))
            h = f.at(c["state0"], f.mul(f.add(before, n), c["H"]))
            h, one = f.choose(begin, f.at(c["first0"], f.mul(n, c["H"])), h, "ptr"), "1"
            if call.variant.masked:
                reset, valid = flags_of(f, c, t, n)
                h = f.choose(reset, call.nothing, h, "ptr")
                one = f.let(f"zext i1 {valid} to i64")
            at = f.load(call.own["MANY"], INT)
            rows = {"X_ROWS": x, "H_ROWS": h}
            for half in range(call.kind.halves):
                rows[f"Z{half}_ROWS"] = call.dz(half, turn, n)
            if call.kind.requested.own:
                rows["P_ROWS"] = f.at(rows["Z0_ROWS"], call.features)
            for name, row in rows.items():
                f.store(row, f.at(call.own[name], at, 8), "ptr")
            f.store(f.add(at, one), call.own["MANY"], INT)
    return f.load(call.own["MANY"], INT)


def _by_x(call: Call, turn0: str, steps: str) -> None:
    """``dx = dz @ W_ih`` of the rows that are a thread's own."""
    f, c, m, tile, mine = call.f, call.c, call.f.module, call.kind.x_tile, call.mine
    sums = tile.vectors * m.lanes
    f.store("0", call.own["MANY"], INT)
    with f.loop(0, steps) as s:
        turn = f.add(turn0, s)
        t = call.time(turn)
        with f.loop(mine.row0, mine.row1) as n:
            at, one = f.load(call.own["MANY"], INT), "1"
            f.store(call.dz(0, turn, n), f.at(call.own["OWN"], at, 8), "ptr")
            row = f.at(c["dx"], f.mul(f.add(f.mul(t, c["N"]), n), c["D"]))
            f.store(row, f.at(call.own["OWN_DX"], at, 8), "ptr")
            if call.variant.masked:
                valid = flags_of(f, c, t, n)[1]
                one = f.let(f"zext i1 {valid} to i64")
                with f.unless(valid):
                    first, end = mine.share_of_units(f, c["D"])
                    with f.loop(first, end) as i:
                        f.store("0.0", f.at(row, i), m.scalar)
            f.store(f.add(at, one), call.own["MANY"], INT)
    many = f.load(call.own["MANY"], INT)
    first, end = mine.share_of_units(f, c["XPANELS"])
    size = f.mul(call.features, sums)
    with (
        f.loop(first, end) as p,
        tiles.tiles(f, many, tile.rows) as (i, count),
    ):
        f.call(
            *("product_x", f"i64 {count}", f"ptr {f.at(call.w_ih, f.mul(size, p))}"),
            *(f"i64 {call.features}", f"ptr {f.at(call.own['OWN'], i, 8)}"),
            *(f"ptr {call.nothing}", "i64 0", f"ptr {call.own['SUMS']}"),
        )
        with f.loop(0, count) as j:
            row = f.load(f.at(call.own["OWN_DX"], f.add(i, j), 8), "ptr")
            here = f.at(call.own["SUMS"], f.mul(j, sums))
            for wide in range(tile.wide):
                unit = f.add(f.mul(p, tile.wide * m.lanes), wide * m.lanes)
                value = f.load(f.at(here, wide * m.lanes), m.vector)
                f.store_some(value, f.at(row, unit), tiles.lanes_there(f, unit, c["D"]))
