"""What the kernels share: tiles of a product in registers, packed weights, threads.

A product of rows with weights is done a tile at a time: a few rows, and a panel of a few vectors of
hidden units for each gate. Its sums stay in registers while the loop goes over the features: a
vector of each weight is loaded, each row's feature is spread over a vector. What the tile needs of
the weights is packed beforehand in the order in which it is read.

Source of the scheme: K. Goto, R. van de Geijn, Anatomy of high-performance matrix multiplication,
ACM TOMS 34 (2008).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from jaxrnn.backends.cpu.ir import INT, Function, Module
from jaxrnn.backends.cpu.threads import Share

AHEAD = 16
"""Features whose weights are fetched ahead: a panel is often more than the nearest cache holds."""


@dataclass(frozen=True)
class Machine:
    """What a kernel is written for.

    Attributes:
        bits: of a vector register.
        registers: how many there are.
        cores: threads that may run at once.
    """

    bits: int
    registers: int
    cores: int

    def shared(self, among: int) -> Machine:
        """What one of so many has of it."""
        return replace(self, cores=max(1, self.cores // among))


@dataclass(frozen=True)
class Tile:
    """The sizes of a tile.

    Attributes:
        gates: G, products of one row of hidden units.
        wide: vectors of units in a panel.
        rows: rows in a tile, at most.
        group: vectors of sums that are in registers at once, for each row.
    """

    gates: int
    wide: int
    rows: int
    group: int

    @property
    def vectors(self) -> int:
        """Vectors of sums of a row in a panel, gate by gate."""
        return self.gates * self.wide


def choose(machine: Machine, lanes: int, gates: int, hidden: int) -> Tile:
    """The tile for so many gates and hidden units: many sums, few units that are not there.

    Example:
        >>> choose(Machine(512, 32, 2), 16, 4, 128)
        Tile(gates=4, wide=1, rows=6, group=4)
        >>> choose(Machine(256, 16, 2), 8, 1, 20)
        Tile(gates=1, wide=3, rows=4, group=3)
    """
    most = 6 if machine.registers >= 32 else 3
    sums = machine.registers * 3 // 4
    vectors = -(-hidden // lanes)
    widest = max(1, 4 // gates)
    wide = min(range(widest, 0, -1), key=lambda u: -(-vectors // u) * u)
    group = max(a for a in range(1, most + 1) if gates * wide % a == 0)
    return Tile(gates, wide, min(sums // group, 12), group)


def write_product(m: Module, name: str, tile: Tile) -> None:
    """A function that adds the product of up to ``tile.rows`` rows with a panel to their sums.

    ``name(rows, weights, features, pointers, source, stride, target)``: the sums begin as what is
    at `source`, `stride` apart for each row, and end at `target`, a panel apart.
    """
    arguments = [
        ("w", "ptr"),
        ("features", INT),
        ("pointers", "ptr"),
        ("source", "ptr"),
        ("stride", INT),
        ("target", "ptr"),
    ]
    for rows in range(1, tile.rows + 1):
        f = Function(m, f"{name}{rows}", arguments)
        row = [f.load(f.at("%pointers", r, 8), "ptr") for r in range(rows)]
        _product_loop(f, tile, row)
        f.done()
    f = Function(m, name, [("rows", INT), *arguments])
    labels = [f"rows{r}" for r in range(1, tile.rows + 1)]
    cases = " ".join(f"i64 {r}, label %{label}" for r, label in enumerate(labels, 1))
    f.say(f"switch i64 %rows, label %end [ {cases} ]")
    for rows, label in enumerate(labels, 1):
        f.label(label)
        panel = f.mul("%features", tile.group * m.lanes)
        for group in range(tile.vectors // tile.group):
            offset = group * tile.group * m.lanes
            w = f.at("%w", f.mul(panel, group)) if group else "%w"
            f.call(
                f"{name}{rows}",
                f"ptr {w}",
                "i64 %features",
                "ptr %pointers",
                f"ptr {f.at('%source', offset)}",
                "i64 %stride",
                f"ptr {f.at('%target', offset)}",
            )
        f.say("br label %end")
    f.label("end")
    f.done()


def product(
    f: Function, count: str, w: str, k: str, rows: str, source: str, stride: str, target: str
) -> None:
    """Add the product of some rows with a panel to sums, see `tiles.write_product`."""
    f.call(
        *("product", f"i64 {count}", f"ptr {w}", f"i64 {k}", f"ptr {rows}"),
        *(f"ptr {source}", f"i64 {stride}", f"ptr {target}"),
    )


def _product_loop(f: Function, tile: Tile, row: Sequence[str]) -> None:
    """The loop over the features, all sums in registers."""
    m = f.module
    begin = []
    for r in range(len(row)):
        base = f.at("%source", f.mul("%stride", r)) if r else "%source"
        begin.append([f.load(f.at(base, a * m.lanes), m.vector) for a in range(tile.group)])
    names = [[f.fresh("%sum") for _ in sums] for sums in begin]
    start = f.block
    f.say("br label %head")
    f.label("head")
    place = len(f.lines)
    f.say("%more = icmp slt i64 %k, %features")
    f.say("br i1 %more, label %body, label %exit")
    f.label("body")
    w = f.at("%w", f.mul("%k", tile.group * m.lanes))
    weights = [f.load(f.at(w, a * m.lanes), m.vector) for a in range(tile.group)]
    if len(row) > 1:  # a single row does so little with them that to ask is an eighth of the work
        for a in range(tile.group):
            f.prefetch(f.at(w, (AHEAD * tile.group + a) * m.lanes))
    after = []
    for r, pointer in enumerate(row):
        x = f.spread(f.load(f.at(pointer, "%k"), m.scalar))
        after.append([f.fma(x, weights[a], names[r][a]) for a in range(tile.group)])
    f.say("%k.next = add nsw i64 %k, 1")
    f.say("br label %head")
    phis = [f"  %k = phi i64 [ 0, %{start} ], [ %k.next, %body ]"]
    for old, name, new in zip(*map(itertools.chain.from_iterable, (begin, names, after))):
        phis.append(f"  {name} = phi {m.vector} [ {old}, %{start} ], [ {new}, %body ]")
    f.lines[place:place] = phis
    f.label("exit")
    for r, sums in enumerate(names):
        for a, name in enumerate(sums):
            f.store(name, f.at("%target", (r * tile.vectors + a) * m.lanes), m.vector)


def pack_rows(
    f: Function, tile: Tile, weight: str, target: str, panel: str, k: str, h: str
) -> None:
    """A panel of weights (G*H, K) for sums over K: ``target[group][k][vector][lane]``."""
    m = f.module
    groups = tile.vectors // tile.group
    size = f.mul(k, tile.group * m.lanes)
    squares = f.mul(f.div(k, m.lanes), m.lanes)
    for group in range(groups):
        base = f.at(target, f.mul(size, group)) if group else target
        for a in range(tile.group):
            gate, wide = divmod(group * tile.group + a, tile.wide)
            to = f.at(base, a * m.lanes)
            first = f.add(f.mul(panel, tile.wide * m.lanes), wide * m.lanes)
            rows = []
            for lane in range(m.lanes):
                # What is not there is read of the last unit, and never written out.
                unit = f.least(f.add(first, lane), f.sub(h, 1))
                rows.append(f.at(weight, f.mul(f.add(f.mul(h, gate), unit), k)))
            with f.loop(0, squares, m.lanes) as i:
                square = transposed(f, [f.load(f.at(row, i), m.vector) for row in rows])
                for j, vector in enumerate(square):
                    place = f.mul(f.add(i, j), tile.group * m.lanes)
                    f.store(vector, f.at(to, place), m.vector)
            with f.loop(squares, k) as i:
                place = f.at(to, f.mul(i, tile.group * m.lanes))
                for lane, row in enumerate(rows):
                    f.store(f.load(f.at(row, i), m.scalar), f.at(place, lane), m.scalar)


def transposed(f: Function, rows: list[str]) -> list[str]:
    """As many vectors as they have lanes, the other way round: by perfect shuffles of pairs."""
    m, half = f.module, len(rows) // 2
    kind = f"<{m.lanes} x i32>"
    places = [
        [lane // 2 + lane % 2 * m.lanes + low for lane in range(m.lanes)] for low in (0, half)
    ]
    masks = [f"{kind} <{', '.join(f'i32 {i}' for i in one)}>" for one in places]
    for _ in range(m.lanes.bit_length() - 1):
        pairs = zip(rows[:half], rows[half:])
        rows = [
            f.let(f"shufflevector {m.vector} {a}, {m.vector} {b}, {mask}")
            for a, b in pairs
            for mask in masks
        ]
    return rows


def pack_columns(
    f: Function, tile: Tile, weight: str, target: str, panel: str, k: str, h: str
) -> None:
    """A panel of weights (K, H) for sums over K: ``target[group][k][vector][lane]``."""
    m = f.module
    size = f.mul(k, tile.group * m.lanes)
    with f.loop(0, k) as i:
        for v in range(tile.vectors):
            group, a = divmod(v, tile.group)
            first = f.add(f.mul(panel, tile.wide * m.lanes), v * m.lanes)
            source = f.at(f.at(weight, f.mul(i, h)), first)
            value = f.load_some(source, lanes_there(f, first, h))
            base = f.at(target, f.mul(size, group)) if group else target
            f.store(value, f.at(f.at(base, f.mul(i, tile.group * m.lanes)), a * m.lanes), m.vector)


def lanes_there(f: Function, first: str, h: str) -> str:
    """Which lanes of a vector of units that begins at `first` are below H."""
    m = f.module
    left = f.let(f"trunc i64 {f.sub(h, first)} to i32")
    kind = f"<{m.lanes} x i32>"
    numbers = f"<{', '.join(f'i32 {i}' for i in range(m.lanes))}>"
    return f.let(f"icmp slt {kind} {numbers}, {f.spread(left, 'i32')}")


def units(f: Function, tile: Tile, c: dict[str, str], p: str, wide: int) -> tuple[str, str]:
    """The first unit of a vector of a panel, and which of its lanes are there."""
    lanes = f.module.lanes
    first = f.add(f.mul(p, tile.wide * lanes), wide * lanes)
    return first, lanes_there(f, first, c["H"])


def copy_states(
    f: Function, tile: Tile, c: dict[str, str], mine: Share, source: str, target: str
) -> None:
    """Copy what is a thread's own of a state (N, H)."""
    with f.loop(mine.row0, mine.row1) as n, f.loop(mine.panel0, mine.panel1) as p:
        for wide in range(tile.wide):
            first, there = units(f, tile, c, p, wide)
            place = f.add(f.mul(n, c["H"]), first)
            f.store_some(f.load_some(f.at(c[source], place), there), f.at(c[target], place), there)


@contextmanager
def tiles(f: Function, total: str, rows: int) -> Iterator[tuple[str, str]]:
    """Go over rows a tile at a time: the first, and how many.

    All tiles are alike, or differ by a row: eight rows are four and four, and not six and two,
    where the sums of two would wait for one another.
    """
    count = f.div(f.add(total, rows - 1), rows)
    most = f.choose(f.compare("eq", count, 0), "1", count)
    each = f.div(total, most)
    longer = f.sub(total, f.mul(each, count))
    with f.loop(0, count) as i:
        first = f.add(f.mul(i, each), f.least(i, longer))
        one_more = f.let(f"zext i1 {f.compare('slt', i, longer)} to i64")
        yield first, f.add(each, one_more)
