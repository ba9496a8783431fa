"""How the kernels for Hopper share a layer out: which block holds which units, which rows.

A cluster of C blocks holds W_hh in shared memory, each block the rows (backward: the columns) of
U units of every gate, and takes L rows of the batch through all steps. Sizes are padded to C*U
units and whole clusters of rows.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from jaxrnn.cells import Cell
from jaxrnn.kernels import values

MEMORY = 227 * 1024 - 1024
"""Bytes of shared memory that a block may use, less what barriers take."""

CLUSTER = 16
"""The most blocks of a cluster; above 8 are granted on request, which Mosaic makes."""

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
        L: rows of a cluster.
    """

    gates: int
    parts: int
    itemsize: int
    C: int
    U: int
    L: int

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
        return _whole(self.gates * self.U, 64)

    @property
    def M_back(self) -> int:
        """Rows of the backward product: all units, in whole products of whole blocks."""
        return _whole(self.C * self.U, math.lcm(64, self.U))

    @property
    def chunk(self) -> int:
        """Rows of the backward product that are done at a time: as many as there is room for."""
        least = math.lcm(64, self.U)
        pieces = self.M_back // least
        for parts in range(1, pieces):
            rows = self.M_back // parts
            if pieces % parts == 0 and rows * self.L <= 64 * 128 and self._back(rows) <= MEMORY:
                return rows
        return least

    def forward_bytes(self) -> int:
        """Shared memory of the forward kernel: weights, h twice, sums."""
        weights = self.parts * self.C * self.M * self.U * self.itemsize
        h = 2 * self.parts * self.C * self.U * self.L * self.itemsize
        return weights + h + self.M * self.L * 4

    def backward_bytes(self) -> int:
        """Shared memory of the backward kernel: weights, dz, inbox twice, sums."""
        return self._back(self.chunk)

    def _back(self, rows: int) -> int:
        weights = self.parts * self.gates * self.M_back * self.U * self.itemsize
        dz = self.parts * self.gates * self.U * self.L * self.itemsize
        turned = self.U * self.L * 4
        return weights + dz + turned + 2 * self.C * self.U * self.L * 4 + rows * self.L * 4

    def fits(self) -> bool:
        """Whether both kernels have room."""
        return max(self.forward_bytes(), self.backward_bytes()) <= MEMORY

    def step(self) -> float:
        """Microseconds of a step forward, of 1,755 cycles each.

        Weights are read from shared memory at 128 bytes a cycle or multiplied at 2,048 (TF32:
        1,024) a cycle, h is sent to all blocks at 32 bytes a cycle; then there are the pointwise
        part of each number and what a step takes at least.

        The last two are fitted to 13 sharings measured on an H200; these are within a sixth.
        """
        products = 3 if self.parts == 2 else 1
        cells = self.C * self.M * self.U
        read = products * cells * self.itemsize / 128
        multiply = products * cells * self.L / (2048 if self.itemsize == 2 else 1024)
        sent = (self.C - 1) * self.parts * self.U * self.L * self.itemsize / 32
        pointwise = self.U * self.L * (1.6 if self.itemsize == 2 else 2.2)
        fixed = 1900 + 500 * (self.C > 1) + 200 * (self.C > 8)
        return (max(read, multiply) + sent + pointwise + fixed) / 1755

    def turns(self, N: int) -> int:
        """How often the processor is filled with clusters until all rows are done.

        A cluster lies within one of 8 groups of some 16 multiprocessors, of which each processor
        has some smaller ones: 8 clusters of 16 were seen to take two turns.
        """
        at_once = {1: 132, 16: 6}.get(self.C, 8 * (16 // self.C))
        return _whole(_whole(N, self.L) // self.L, at_once) // at_once


@functools.lru_cache(maxsize=256)
def choose(cell: Cell, itemsize: int, parts: int, N: int, H: int) -> Tiles | None:
    """The quickest sharing by `Tiles.step` and `Tiles.turns`; None where W_hh does not fit into the
    largest cluster.
    """
    best: tuple[float, Tiles] | None = None
    for U in UNITS:
        C = -(-H // U)
        if C > CLUSTER:
            continue
        for L in ROWS:
            t = Tiles(len(cell.gates), parts, itemsize, C, U, L)
            if not t.fits() or _pressure(cell, t) > 96:
                continue
            cost = t.turns(N) * t.step()
            if best is None or cost < best[0]:
                best = cost, t
    return None if best is None else best[1]


def _pressure(cell: Cell, t: Tiles) -> int:
    """Registers of a thread that hold tiles, at least."""
    numbers = max(len(values.leaves(cell, of)) for of in ("forward", "backward"))
    return (numbers + len(cell.gates)) * t.U * t.L // 128


def _whole(n: int, of: int) -> int:
    return -(-n // of) * of
