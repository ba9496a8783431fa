"""The product that the derivatives by weights are: a sum over rows, ``C += A.T @ B``.

.. code-block:: text

    C[i, j] += sum over k of A[k, i] * B[k, j]         A (K, I), B (K, J), C (I, J)

A tile of C is summed up in registers: a row's numbers of A are spread over vectors one by one, its
vectors of B are loaded. The rows of A and B are found by their addresses and need no order. A panel
of B, a few vectors of each row, is copied together first, since all tiles below it read it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from jaxrnn.backends.cpu.ir import INT, Function, Module
from jaxrnn.backends.cpu.tiles import Machine, lanes_there

AHEAD = 16
"""Rows of A that are fetched ahead: so many addresses behind the last are read, if never used."""

ROWS = 1024
"""Rows that are summed up at once, at most: a panel of them stays in the cache, and no sum is of so
many terms that float32 loses digits."""


@dataclass(frozen=True)
class Patch:
    """The sizes of a tile of C: rows, and vectors in each."""

    rows: int
    wide: int


def choose(machine: Machine, lanes: int, columns: int) -> Patch:
    """The tile for so many columns of C: many sums, few columns that are not there.

    Example:
        >>> choose(Machine(512, 32, 2), 16, 128), choose(Machine(512, 32, 2), 16, 20)
        (Patch(rows=8, wide=2), Patch(rows=8, wide=2))
    """
    vectors = -(-columns // lanes)
    return Patch(machine.registers // 4, 1 if vectors == 1 else 2)


def write(m: Module, name: str, patch: Patch) -> None:
    """Functions that add to a tile of C, or to a single row of one.

    ``name(k, a, i, panel, j, columns, first, target)`` and ``name_row(...)``: `a` are the addresses
    of K rows, i and j where the tile begins, `first` whether C holds nothing yet, and `target` the
    address of C[i, 0].
    """
    for rows, ending in ((patch.rows, ""), (1, "_row")):
        arguments = [
            *(("count", INT), ("a", "ptr"), ("i", INT), ("panel", "ptr"), ("j", INT)),
            *(("columns", INT), ("first", "i1"), ("target", "ptr")),
        ]
        _write_one(Function(m, name + ending, arguments), patch.wide, rows)


def _write_one(f: Function, wide: int, rows: int) -> None:
    m = f.module
    sums = [[f.fresh("%sum") for _ in range(wide)] for _ in range(rows)]
    lines = [f.at("%target", f.mul("%columns", r)) if r else "%target" for r in range(rows)]
    columns = [f.add("%j", v * m.lanes) for v in range(wide)]
    for line in lines:
        for column in columns:
            f.prefetch(f.at(line, column))
    start = f.block
    f.say("br label %head")
    f.label("head")
    place = len(f.lines)
    f.say("%more = icmp slt i64 %k, %count")
    f.say("br i1 %more, label %body, label %exit")
    f.label("body")
    # A row of a large A is in a page of its own, which no processor foresees.
    f.prefetch(f.at(f.load(f.at("%a", f.add("%k", AHEAD), 8), "ptr"), "%i"))
    a = f.at(f.load(f.at("%a", "%k", 8), "ptr"), "%i")
    b = f.at("%panel", f.mul("%k", wide * m.lanes))
    vectors = [f.load(f.at(b, v * m.lanes), m.vector) for v in range(wide)]
    after = []
    for r, row in enumerate(sums):
        x = f.spread(f.load(f.at(a, r), m.scalar))
        after.append([f.fma(x, vector, s) for vector, s in zip(vectors, row)])
    f.say("%k.next = add nsw i64 %k, 1")
    f.say("br label %head")
    phis = [f"  %k = phi i64 [ 0, %{start} ], [ %k.next, %body ]"]
    zero = f"{m.vector} [ zeroinitializer, %{start} ]"
    for name, new in zip(*map(itertools.chain.from_iterable, (sums, after))):
        phis.append(f"  {name} = phi {zero}, [ {new}, %body ]")
    f.lines[place:place] = phis
    f.label("exit")
    old_one = f.spread("%first", "i1")
    for v, column in enumerate(columns):
        there = lanes_there(f, column, "%columns")
        # Nothing is read of what holds nothing yet.
        known = f.let(f"select {m.mask} {old_one}, {m.mask} zeroinitializer, {m.mask} {there}")
        for line, row in zip(lines, sums):
            total = f.let(f"fadd {m.vector} {f.load_some(f.at(line, column), known)}, {row[v]}")
            f.store_some(total, f.at(line, column), there)
    f.done()


def add(
    f: Function,
    name: str,
    patch: Patch,
    *,
    count: str,
    a: str,
    rows: tuple[str, str],
    b: str,
    columns: Any,
    panels: tuple[str, str] | None = None,
    first: str,
    panel: str,
    target: str,
) -> None:
    """Add ``A.T @ B`` to some of C.

    Args:
        f: where it is written.
        name: of the functions.
        patch: their tile.
        count: K.
        a: the addresses of the rows of A, with `AHEAD` more places behind them.
        rows: of C, the first and the end.
        b: the addresses of the rows of B.
        columns: of B and C.
        panels: of columns, the first and the end; None for all.
        first: whether C holds nothing yet.
        panel: memory for K rows of a panel, or `ROWS`.
        target: C.
    """
    m = f.module
    begin, end = rows
    whole = f.mul(f.div(f.sub(end, begin), patch.rows), patch.rows)
    whole = f.add(begin, whole)
    # No rows at all are a product too: of zeros, where C holds nothing yet.
    with f.loop(0, f.choose(f.compare("eq", count, 0), "1", count), ROWS) as k0:
        some = f.least(f.sub(count, k0), ROWS)
        some_a, some_b = f.at(a, k0, 8), f.at(b, k0, 8)
        nothing_yet = f.let(f"and i1 {first}, {f.compare('eq', k0, 0)}")
        with f.loop(*(panels or ("0", panels_of(f, patch, columns)))) as p:
            j = f.mul(p, patch.wide * m.lanes)
            places = [f.add(j, v * m.lanes) for v in range(patch.wide)]
            there = [lanes_there(f, place, columns) for place in places]
            with f.loop(0, some) as k:
                row, to = f.load(f.at(some_b, k, 8), "ptr"), f.mul(k, patch.wide * m.lanes)
                for v, (place, t) in enumerate(zip(places, there)):
                    value = f.load_some(f.at(row, place), t)
                    f.store(value, f.at(f.at(panel, to), v * m.lanes), m.vector)

            def tile(
                name: str,
                i: str,
                j: str = j,
                some: str = some,
                some_a: str = some_a,
                nothing_yet: str = nothing_yet,
            ) -> None:
                to = f.at(target, f.mul(i, columns))
                f.call(
                    *(name, f"i64 {some}", f"ptr {some_a}", f"i64 {i}", f"ptr {panel}", f"i64 {j}"),
                    *(f"i64 {columns}", f"i1 {nothing_yet}", f"ptr {to}"),
                )

            with f.loop(begin, whole, patch.rows) as i:
                tile(name, i)
            with f.loop(whole, end) as i:
                tile(f"{name}_row", i)


def panels_of(f: Function, patch: Patch, columns: Any) -> str:
    """How many panels so many columns are."""
    wide = patch.wide * f.module.lanes
    return f.div(f.add(columns, wide - 1), wide)
