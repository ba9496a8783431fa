"""How the kernels for Hopper share a layer out: which block holds which units, which rows.

A cluster of C blocks holds W_hh in shared memory, each block the rows (backward: the columns) of
U units of every gate, and takes L rows of the batch through all steps. Sizes are padded to C*U
units and whole clusters of rows.

Where that is too much for one cluster, a group of K clusters takes the L rows. Its K*C blocks hold
U units each, block (k, q) the weights from the units of all blocks (., q) to the gates of the units
of all blocks (k, .):

.. code-block:: text

                     the side of h               the side of the gates
    among            the K blocks (., q)         the C blocks (k, .), a cluster
    through          global memory               shared memory
    forward          all get h                   parts of z are added up
    backward         parts of dh are added up    all get dz

So a block exchanges K*U units and not all of them. A single cluster has its C blocks on the side of
h, and only one on the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxrnn.backends.elementwise import lower
from jaxrnn.cells import Cell

MEMORY = 227 * 1024
"""Bytes of shared memory that a block may use."""

ALIGNED = 1024
"""Bytes that each array in shared memory takes whole ones of."""

CLUSTER = 16
"""The most blocks of a cluster; above 8 are granted on request, which Mosaic makes."""

GROUPED = (1, 2, 4)
"""The blocks of a cluster where several make a group: of larger ones too few are sure to fit."""

PROCESSORS = 114
"""The multiprocessors of the least of the machines: an H100 has 114 or 132, an H200 132."""

UNITS = (16, 32, 48, 64, 80, 96)
ROWS = (16, 32, 64)


@dataclass(frozen=True)
class Tiles:
    """The sharing of one layer.

    Attributes:
        gates: gates of the cell.
        parts: 2 where a number of float32 goes into the products as a sum of two of TF32, else 1.
        itemsize: bytes of a factor of the products.
        C: blocks of a cluster.
        U: units of a block.
        L: rows of a cluster, or of a group.
        K: clusters of a group; 1 where a cluster is all.
    """

    gates: int
    parts: int
    itemsize: int
    C: int
    U: int
    L: int
    K: int = 1

    @property
    def blocks(self) -> int:
        """Blocks that share the units."""
        return self.K * self.C

    @property
    def units(self) -> int:
        """Units of all blocks: at least H."""
        return self.blocks * self.U

    @property
    def P(self) -> int:
        """Blocks on the side of h."""
        return self.C if self.K == 1 else self.K

    @property
    def Q(self) -> int:
        """Blocks on the side of the gates."""
        return 1 if self.K == 1 else self.C

    @property
    def slots(self) -> int:
        """How often h is in shared memory: twice, if other blocks write it there."""
        return 2 if self.K == 1 else 1

    @property
    def rows_first(self) -> bool:
        """Whether a tile of a state is (L, U), and not (U, L).

        The tensor cores take factors of 16 bits in either order, those of TF32 by their rows only.
        """
        return self.itemsize == 4

    @property
    def tile(self) -> tuple[int, int]:
        """The shape of a block's tile of one state or gate."""
        return (self.L, self.U) if self.rows_first else (self.U, self.L)

    @property
    def swizzle(self) -> int:
        """Bytes over which the factors in shared memory are interleaved."""
        sides = [self.U] if self.rows_first else [self.U, self.L]
        return next(s for s in (128, 64, 32) if all(n * self.itemsize % s == 0 for n in sides))

    @property
    def transforms(self) -> tuple[Any, Any]:
        """Of shared memory that is interleaved so."""
        from jax.experimental.pallas import mosaic_gpu as plgpu

        wide = self.swizzle // self.itemsize
        return plgpu.TilingTransform((8, wide)), plgpu.SwizzleTransform(self.swizzle)

    @property
    def M(self) -> int:
        """Rows of the forward product: all gates of the units, in whole products of 64."""
        return _whole(self.Q * self.gates * self.U, 64)

    @property
    def M_back(self) -> int:
        """Rows of the backward product: all units, in whole products of whole blocks."""
        return _whole(self.P * self.U, math.lcm(64, self.U))

    @property
    def chunk(self) -> int:
        """Rows of the backward product that are done at a time: as many as there is room for."""
        return self._chunk(self.M_back, math.lcm(64, self.U), self._back)

    @property
    def chunk_forward(self) -> int:
        """Of the forward product; all, but where its sums are sent on."""
        least = math.lcm(64, self.gates * self.U)  # whole products that end with a block's rows
        if self.Q == 1 or self.M % least:
            return self.M
        return self._chunk(self.M, least, self._forward)

    def _chunk(self, whole: int, least: int, size: Callable[[int], int]) -> int:
        pieces = whole // least
        for parts in range(1, pieces):
            rows = whole // parts
            if pieces % parts == 0 and rows * self.L <= 64 * 128 and size(rows) <= MEMORY:
                return rows
        return least

    def forward_bytes(self) -> int:
        """Shared memory of the forward kernel: weights, h, sums, parts of z twice, barriers."""
        return self._forward(self.chunk_forward)

    def _forward(self, rows: int) -> int:
        weights = self.parts * self.P * self.M * self.U * self.itemsize
        h = self.slots * self.parts * self.P * self.U * self.L * self.itemsize
        inbox = 2 * self.C * self.gates * self.U * self.L * 4 if self.Q > 1 else 0
        return self._room(weights, h, rows * self.L * 4, inbox)

    def backward_bytes(self) -> int:
        """Shared memory of the backward kernel: weights, dz, inbox twice, sums, barriers."""
        return self._back(self.chunk)

    def _back(self, rows: int) -> int:
        weights = self.parts * self.Q * self.gates * self.M_back * self.U * self.itemsize
        dz = self.parts * self.gates * self.U * self.L * self.itemsize
        turned = self.U * self.L * 4
        if self.K > 1:  # dz of the whole cluster twice; the inbox is in global memory
            dz *= 2 * self.Q if self.Q > 1 else 1
            return self._room(weights, dz, turned, rows * self.L * 4)
        inbox = 2 * self.C * self.U * self.L * 4
        return self._room(weights, dz, turned, rows * self.L * 4, inbox)

    def _room(self, *sizes: int) -> int:
        """Such arrays, the barriers of messages, the number of a cluster in a group; of copies."""
        return sum(_whole(n, ALIGNED) for n in (*sizes, 16, 4 * (self.K > 1))) + 8

    def fits(self) -> bool:
        """Whether both kernels have room."""
        return max(self.forward_bytes(), self.backward_bytes()) <= MEMORY

    def step(self) -> float:
        """Microseconds of a step forward, of 1,755 cycles each.

        Weights are read from shared memory at 128 bytes a cycle or multiplied at 2,048 (TF32:
        1,024) a cycle, h is sent to all blocks at 32 bytes a cycle; then there are the pointwise
        part of each number and what a step takes at least.

        The last two are fitted to 13 sharings measured on an H200; these are within a sixth. What
        is exchanged within a group has not been measured, see `_exchange`; of a group this is the
        dearer of both directions.
        """
        products = 3 if self.parts == 2 else 1
        cells = self.P * self.M * self.U
        read = products * cells * self.itemsize / 128
        multiply = products * cells * self.L / (2048 if self.itemsize == 2 else 1024)
        sent = (self.C - 1) * self.parts * self.U * self.L * self.itemsize / 32
        if self.K > 1:
            sent = self._exchange()
        pointwise = self.U * self.L * (1.6 if self.itemsize == 2 else 2.2)
        fixed = 1900 + 500 * (self.C > 1) + 200 * (self.C > 8)
        return (max(read, multiply) + sent + pointwise + fixed) / 1755

    def _exchange(self) -> float:
        """Cycles of the exchanges of a group: a guess, NOT MEASURED.

        1.5 microseconds until a flag has gone through global memory, 50 bytes a cycle from there;
        0.5 more for the second exchange, within the clusters, 32 bytes a cycle.
        """
        tile, factor = self.U * self.L, self.parts * self.itemsize
        forward = self.P * tile * factor / 50 + (self.Q - 1) * self.gates * tile * 4 / 32
        backward = 2 * self.P * tile * 4 / 50 + (self.Q - 1) * self.gates * tile * factor / 32
        return 1755 * (1.5 + 0.5 * (self.Q > 1)) + max(forward, backward)

    def turns(self, N: int) -> int:
        """How often the processor is filled with clusters until all rows are done.

        A cluster lies within one of 8 groups of some 16 multiprocessors, of which each processor
        has some smaller ones: 8 clusters of 16 were seen to take two turns.
        """
        at_once = {1: 132, 16: 6}.get(self.C, 8 * (16 // self.C)) // self.K
        return _whole(_whole(N, self.L) // self.L, at_once) // at_once


@functools.lru_cache(maxsize=256)
def choose(
    cell: Cell, itemsize: int, parts: int, N: int, H: int, processors: int = PROCESSORS
) -> Tiles | None:
    """The quickest sharing by `Tiles.step` and `Tiles.turns`: of those with a single cluster, or if
    W_hh does not fit into the largest, of those with a group of them that is sure to be on such a
    machine at once; None where none fits.
    """
    for most in (1, processors):
        best: tuple[float, Tiles] | None = None
        for t in sharings(len(cell.gates), itemsize, parts, H, most):
            if not t.fits() or _pressure(cell, t) > 96:
                continue
            cost = t.turns(N) * t.step()
            if best is None or cost < best[0]:
                best = cost, t
        if best is not None:
            return best[1]
    return None


def sharings(gates: int, itemsize: int, parts: int, H: int, processors: int) -> Iterator[Tiles]:
    """All ways to share H units out: in a cluster, or among so many processors in a group."""
    group = processors > 1
    for U in (8, *UNITS) if group and itemsize == 4 else UNITS:
        blocks = -(-H // U)
        for C in GROUPED if group else (blocks,):
            K = -(-blocks // C) if group else 1
            if C > CLUSTER or (group and not 2 <= K <= at_least(C, processors)):
                continue
            for L in ROWS:
                yield Tiles(gates, parts, itemsize, C, U, L, K)


def at_least(C: int, processors: int) -> int:
    """How many clusters of C blocks are sure to have room at once.

    Multiprocessors are in at most 8 groups, each of an even number, and a cluster lies within one.
    """
    return (processors - 8 * max(0, C - 2)) // C


def _pressure(cell: Cell, t: Tiles) -> int:
    """Registers of a thread that hold tiles, at least."""
    numbers = max(len(lower.graph_leaves(cell, of)) for of in ("forward", "backward"))
    return (numbers + len(cell.gates)) * t.U * t.L // 128


def _whole(n: int, of: int) -> int:
    return -(-n // of) * of
