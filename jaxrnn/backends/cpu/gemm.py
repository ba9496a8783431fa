"""Matrix products as tiles of sums in vector registers.

.. code-block:: text

    product with weights    C[i] = C[i] + A[i] @ B           A[i] (K,) by address, B (K, J) packed
    weight gradient         C += A.T @ B                     A (K, I) and B (K, J) by address

A product with weights computes a tile at a time: a few vectors A[i] times a panel of B, which is a
few registers of hidden units of each gate. The loop over K loads the vectors of B once and
broadcasts the scalars of A. A panel of B is packed in the order in which the loop reads it.

The weight gradient sums over K, the batch elements of several steps. The loop broadcasts the
scalars of A[k] and loads a panel of B[k], which is copied first because all tiles read it.

References:
    K. Goto, R. van de Geijn, Anatomy of high-performance matrix multiplication, ACM TOMS 34, 2008.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxrnn.backends.cpu.ir import INT, Function, Module

# Iterations of prefetch distance. A panel is often larger than the L1 cache.
PREFETCH = 16

# Terms of a partial sum of the weight gradient. Panels of this length stay in the cache, and
# float32 loses no digits.
MAX_TERMS = 1024


@dataclass(frozen=True)
class Tile:
    """Tile of a product with weights."""

    gates: int  # G, products per hidden unit
    width: int  # vector registers of hidden units in a panel
    height: int  # maximum number of vectors A[i]
    group: int  # vectors of sums in registers at once, for each A[i]

    @property
    def vectors(self) -> int:
        """Vectors of sums in a panel, gate by gate."""
        return self.gates * self.width


@dataclass(frozen=True)
class OuterTile:
    """Tile of a weight gradient: `height` vectors A[:, i] and `width` registers of B."""

    height: int
    width: int


def choose_tile(registers: int, lanes: int, gates: int, size: int) -> Tile:
    """Choose the tile with many sums in registers and little padding of hidden units.

    Example:
        >>> choose_tile(registers=32, lanes=16, gates=4, size=128)
        Tile(gates=4, width=1, height=6, group=4)
        >>> choose_tile(registers=16, lanes=8, gates=1, size=20)
        Tile(gates=1, width=3, height=4, group=3)
    """
    max_group = 6 if registers >= 32 else 3
    vectors = -(-size // lanes)
    widths = range(max(1, 4 // gates), 0, -1)
    width = min(widths, key=lambda w: -(-vectors // w) * w)
    group = max(a for a in range(1, max_group + 1) if gates * width % a == 0)
    return Tile(gates, width, min(registers * 3 // 4 // group, 12), group)


def choose_outer_tile(registers: int, lanes: int, size: int) -> OuterTile:
    """Choose the tile of a weight gradient with `size` columns.

    Example:
        >>> choose_outer_tile(registers=32, lanes=16, size=20)
        OuterTile(height=8, width=2)
    """
    return OuterTile(registers // 4, 1 if size <= lanes else 2)


# Product with weights


def write_matmul(m: Module, name: str, tile: Tile) -> None:
    """Write ``name(count, w, features, pointers, source, stride, target)``.

    It multiplies `count` vectors (K,), at most ``tile.height``, by a packed panel of weights. The
    initial sums are at `source`, `stride` elements apart, 0 for a bias.
    """
    arguments = dict(w="ptr", features=INT, pointers="ptr", source="ptr", stride=INT, target="ptr")
    for height in range(1, tile.height + 1):
        _write_micro_kernel(Function(m, f"{name}{height}", arguments), tile, height)
    f = Function(m, name, dict(count=INT, **arguments))
    labels = {height: f"height{height}" for height in range(1, tile.height + 1)}
    cases = " ".join(f"i64 {height}, label %{label}" for height, label in labels.items())
    f.emit(f"switch i64 %count, label %end [ {cases} ]")
    for height, label in labels.items():
        f.label(label)
        panel = f.mul("%features", tile.group * m.lanes)
        for group in range(tile.vectors // tile.group):
            offset = group * tile.group * m.lanes
            w = f.gep("%w", f.mul(panel, group)) if group else "%w"
            source, target = f.gep("%source", offset), f.gep("%target", offset)
            f.call(f"{name}{height}", w, "%features", "%pointers", source, "%stride", target)
        f.emit("br label %end")
    f.label("end")
    f.ret()


def _write_micro_kernel(f: Function, tile: Tile, height: int) -> None:
    """Write the loop over the features with all sums of a group in registers."""
    m = f.module
    vectors = [f.load(f.gep("%pointers", r, 8), "ptr") for r in range(height)]
    initial = []
    for r in range(height):
        base = f.gep("%source", f.mul("%stride", r)) if r else "%source"
        initial += [f.load(f.gep(base, a * m.lanes), m.vector) for a in range(tile.group)]

    def _body(k: str, sums: list[str]) -> list[str]:
        w = f.gep("%w", f.mul(k, tile.group * m.lanes))
        weights = [f.load(f.gep(w, a * m.lanes), m.vector) for a in range(tile.group)]
        if height > 1:  # a single vector does too little arithmetic to pay for prefetches
            for a in range(tile.group):
                f.prefetch(f.gep(w, (PREFETCH * tile.group + a) * m.lanes))
        new = []
        for r, vector in enumerate(vectors):
            x = f.broadcast(f.load(f.gep(vector, k), m.scalar))
            new += [f.fma(x, w, sums[r * tile.group + a]) for a, w in enumerate(weights)]
        return new

    for i, total in enumerate(f.accumulate("%features", initial, _body)):
        r, a = divmod(i, tile.group)
        f.store(total, f.gep("%target", (r * tile.vectors + a) * m.lanes), m.vector)
    f.ret()


def pack_transposed(
    f: Function, tile: Tile, weight: str, target: str, panel: str, k: str, h: str
) -> None:
    """Pack a panel of weights (G*H, K) as ``target[group][k][vector][lane]``."""
    m = f.module
    size = f.mul(k, tile.group * m.lanes)
    squares = f.mul(f.udiv(k, m.lanes), m.lanes)
    for group in range(tile.vectors // tile.group):
        base = f.gep(target, f.mul(size, group)) if group else target
        for a in range(tile.group):
            gate, vector = divmod(group * tile.group + a, tile.width)
            to = f.gep(base, a * m.lanes)
            first = f.add(f.mul(panel, tile.width * m.lanes), vector * m.lanes)
            sources = []
            for lane in range(m.lanes):
                # Lanes past H repeat the last unit; their results are never stored.
                unit = f.minimum(f.add(first, lane), f.sub(h, 1))
                sources.append(f.gep(weight, f.mul(f.add(f.mul(h, gate), unit), k)))
            with f.loop(0, squares, m.lanes) as i:
                square = _transpose(f, [f.load(f.gep(source, i), m.vector) for source in sources])
                for j, value in enumerate(square):
                    place = f.mul(f.add(i, j), tile.group * m.lanes)
                    f.store(value, f.gep(to, place), m.vector)
            with f.loop(squares, k) as i:
                place = f.gep(to, f.mul(i, tile.group * m.lanes))
                for lane, source in enumerate(sources):
                    f.store(f.load(f.gep(source, i), m.scalar), f.gep(place, lane), m.scalar)


def _transpose(f: Function, vectors: list[str]) -> list[str]:
    """Transpose a square matrix of vectors by perfect shuffles of pairs."""
    m, half = f.module, len(vectors) // 2
    places = [
        [lane // 2 + lane % 2 * m.lanes + low for lane in range(m.lanes)] for low in (0, half)
    ]
    masks = [f"<{m.lanes} x i32> <{', '.join(f'i32 {i}' for i in p)}>" for p in places]
    for _ in range(m.lanes.bit_length() - 1):
        vectors = [
            f.assign(f"shufflevector {m.vector} {a}, {m.vector} {b}, {mask}")
            for a, b in zip(vectors[:half], vectors[half:])
            for mask in masks
        ]
    return vectors


def pack(f: Function, tile: Tile, weight: str, target: str, panel: str, k: str, h: str) -> None:
    """Pack a panel of weights (K, H) as ``target[group][k][vector][lane]``."""
    m = f.module
    size = f.mul(k, tile.group * m.lanes)
    with f.loop(0, k) as i:
        for v in range(tile.vectors):
            group, a = divmod(v, tile.group)
            first = f.add(f.mul(panel, tile.width * m.lanes), v * m.lanes)
            source = f.gep(f.gep(weight, f.mul(i, h)), first)
            value = f.masked_load(source, f.active_lanes(first, h))
            base = f.gep(target, f.mul(size, group)) if group else target
            place = f.gep(base, f.mul(i, tile.group * m.lanes))
            f.store(value, f.gep(place, a * m.lanes), m.vector)


@contextmanager
def split_tiles(f: Function, total: str, height: int) -> Iterator[tuple[str, str]]:
    """Write a loop over tiles of `total` vectors: the first vector and the number of vectors.

    Tile sizes differ by one at most. Eight vectors are split 4 + 4 rather than 6 + 2, because with
    two vectors each fma waits for the one before.
    """
    count = f.ceildiv(total, height)
    size = f.udiv(total, f.select(f.icmp("eq", count, 0), "1", count))
    larger = f.sub(total, f.mul(size, count))
    with f.loop(0, count) as i:
        first = f.add(f.mul(i, size), f.minimum(i, larger))
        extra = f.assign(f"zext i1 {f.icmp('slt', i, larger)} to i64")
        yield first, f.add(size, extra)


# Weight gradient


def write_outer(m: Module, name: str, tile: OuterTile) -> None:
    """Write ``name(count, a, i, panel, j, columns, overwrite, target)`` and ``name_single(...)``.

    They add to a tile of C, and to one of height 1. `a` holds the addresses of A[k], with
    `PREFETCH` readable elements behind them; `target` is the address of C[i]. If `overwrite` holds,
    C is not read.
    """
    arguments = dict(count=INT, a="ptr", i=INT, panel="ptr", j=INT, columns=INT)
    for height, suffix in ((tile.height, ""), (1, "_single")):
        f = Function(m, name + suffix, dict(**arguments, overwrite="i1", target="ptr"))
        _write_outer_kernel(f, height, tile.width)


def _write_outer_kernel(f: Function, height: int, width: int) -> None:
    m = f.module
    lines = [f.gep("%target", f.mul("%columns", r)) if r else "%target" for r in range(height)]
    columns = [f.add("%j", v * m.lanes) for v in range(width)]
    for line in lines:
        for column in columns:
            f.prefetch(f.gep(line, column))

    def _body(k: str, sums: list[str]) -> list[str]:
        # The vectors of a large A are in different pages, which defeats hardware prefetching.
        f.prefetch(f.gep(f.load(f.gep("%a", f.add(k, PREFETCH), 8), "ptr"), "%i"))
        a = f.gep(f.load(f.gep("%a", k, 8), "ptr"), "%i")
        b = f.gep("%panel", f.mul(k, width * m.lanes))
        vectors = [f.load(f.gep(b, v * m.lanes), m.vector) for v in range(width)]
        new = []
        for r in range(height):
            x = f.broadcast(f.load(f.gep(a, r), m.scalar))
            new += [f.fma(x, vector, sums[r * width + v]) for v, vector in enumerate(vectors)]
        return new

    sums = f.accumulate("%count", ["zeroinitializer"] * (height * width), _body)
    overwrite = f.broadcast("%overwrite", "i1")
    for v, column in enumerate(columns):
        active = f.active_lanes(column, "%columns")
        # Uninitialised memory of C is not read.
        old = f.assign(f"select {m.mask} {overwrite}, {m.mask} zeroinitializer, {m.mask} {active}")
        for r, line in enumerate(lines):
            total = f.fadd(f.masked_load(f.gep(line, column), old), sums[r * width + v])
            f.masked_store(total, f.gep(line, column), active)
    f.ret()
