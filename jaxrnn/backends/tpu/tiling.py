"""How a call of the TPU kernels is cut up, so that all of it fits into VMEM."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from jaxrnn.backends.elementwise import lower
from jaxrnn.cells import Cell

LANES = 128
ROWS = 256  # the rows of a tile: from there on the matrix unit is busy
STEPS = 16  # of a block: what a turn of the grid costs is then little beside them
LEAST = 16 << 20  # the VMEM that every TPU has, and that a program gets without asking


@functools.cache
def budget() -> int:
    """The bytes of VMEM that a call may take.

    Three quarters of what this process' TPU has; without one, where a program is written for a TPU
    elsewhere, nine tenths of what each has.
    """
    if jax.default_backend() == "tpu":
        from jax.experimental.pallas import tpu as pltpu

        return max(pltpu.get_tpu_info().vmem_capacity_bytes * 3 // 4, LEAST * 9 // 10)
    return LEAST * 9 // 10


@dataclass(frozen=True)
class Tiles:
    """A call cut up, and the arrays and blocks that it takes.

    Attributes:
        T, N, H, G: steps, rows, units, gates.
        rows, steps: of a block.
        limit: the bytes of VMEM to ask for; None for the default.
    """

    T: int
    N: int
    H: int
    G: int
    rows: int
    steps: int
    limit: int | None = None

    @property
    def Hp(self) -> int:
        """H in whole vectors."""
        return padded(self.H)

    @property
    def row_tiles(self) -> int:
        """How many tiles of rows there are."""
        return -(-self.N // self.rows)

    @property
    def blocks(self) -> int:
        """How many blocks of steps there are."""
        return -(-self.T // self.steps)

    # Arrays

    def units(self, a: jax.Array, count: int = 1) -> jax.Array:
        """(..., count*H) with each H padded by zeros."""
        if self.Hp == self.H:
            return a
        a = a.reshape(*a.shape[:-1], count, self.H)
        a = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, self.Hp - self.H)])
        return a.reshape(*a.shape[:-2], -1)

    def narrow(self, a: jax.Array, count: int) -> jax.Array:
        """The other way round."""
        if self.Hp == self.H:
            return a
        a = a.reshape(*a.shape[:-1], count, self.Hp)[..., : self.H]
        return a.reshape(*a.shape[:-2], -1)

    def gates(self, w: jax.Array) -> jax.Array:
        """(G*H, ...) with each H padded by zeros."""
        if self.Hp == self.H:
            return w
        w = w.reshape(self.G, self.H, *w.shape[1:])
        w = jnp.pad(w, [(0, 0), (0, self.Hp - self.H)] + [(0, 0)] * (w.ndim - 2))
        return w.reshape(-1, *w.shape[2:])

    def gate(self, z: jax.Array, k: int) -> jax.Array:
        """The k-th of gates (rows, G*Hp)."""
        return z[:, k * self.Hp : (k + 1) * self.Hp]

    def inside(self, a: jax.Array) -> jax.Array:
        """Zeros for units that are padding: a cell may make anything of them, even nan."""
        if self.Hp == self.H:
            return a
        unit = jax.lax.broadcasted_iota(jnp.int32, a.shape, 1)
        return jnp.where(unit < self.H, a, jnp.zeros_like(a))

    # Blocks

    def block(self, backwards: bool) -> Any:
        """The block of steps of a turn of the grid."""
        return self._block(pl.program_id(1), backwards)

    def _block(self, i: Any, backwards: bool) -> Any:
        return np.int32(self.blocks - 1) - i if backwards else i

    def step_spec(self, backwards: bool) -> Callable[[int], pl.BlockSpec]:
        """A block of (T, N, count*Hp), or of flags (T, N, 1) for a count of 0."""
        zero = np.int32(0)
        return lambda count: pl.BlockSpec(
            (self.steps, self.rows, count * self.Hp or 1),
            lambda r, i: (self._block(i, backwards), r, zero),
        )

    def edge_spec(self, reverse: bool) -> pl.BlockSpec:
        """The step of (T, N, Hp) before a block, of a transposed loop."""
        zero = np.int32(0)

        def index(r: Any, i: Any) -> Any:
            b = self._block(i, not reverse)
            if reverse:
                return jnp.minimum((b + 1) * self.steps, self.T - 1), r, zero
            return jnp.maximum(b * self.steps - 1, 0), r, zero

        return pl.BlockSpec((1, self.rows, self.Hp), index)

    def row_spec(self) -> pl.BlockSpec:
        """A tile of (N, Hp)."""
        zero = np.int32(0)
        return pl.BlockSpec((self.rows, self.Hp), lambda r, i: (r, zero))

    def whole_spec(self, shape: tuple[int, int]) -> pl.BlockSpec:
        """An array that is the same for all, and needs one buffer."""
        zero = np.int32(0)
        return pl.BlockSpec(shape, lambda r, i: (zero, zero), pipeline_mode=pl.Buffered(1))


def padded(H: int) -> int:
    """H in whole vectors."""
    return -(-H // LANES) * LANES


@functools.lru_cache(maxsize=1024)
def tiles(cell: Cell, dtype: Any, T: int, N: int, H: int, budget: int) -> Tiles | None:
    """The largest tiles that fit, of rows before steps; None if none do.

    Blocks of steps hide what a turn of the grid costs, and rows what it takes to load the weights
    into the matrix unit, so that a few steps come first, then as many rows as there are.
    """
    least = 32 // dtype.itemsize
    few = min(T, 4)
    wished = [tile for tile in (256, 128, 64, 32, 16, least) if least <= tile <= ROWS]
    shares = sorted({_rows(N, tile, least) for tile in wished})
    for rows in reversed(shares):
        for steps in range(min(T, STEPS), 0 if rows == shares[0] else few - 1, -1):
            need = max(bytes_needed(cell, dtype, rows, steps, H))
            if need <= budget:
                limit = None if need <= LEAST * 9 // 10 else need + need // 8
                return Tiles(T, N, H, len(cell.gates), rows, steps, limit)
    return None


def _rows(N: int, most: int, least: int) -> int:
    """The rows of a tile: all, or an equal share of them in whole vectors."""
    if most >= N:
        return N
    count = -(-N // most)
    return -(-N // (count * least)) * least


def bytes_needed(cell: Cell, dtype: Any, rows: int, steps: int, H: int) -> tuple[int, int]:
    """What the forward and the backward kernel keep in VMEM: what streams has two buffers."""
    item, wide = dtype.itemsize, 4
    least = 32 // item
    rows = -(-rows // least) * least
    G, states, saved = (
        len(cell.gates),
        len(cell.states),
        sum(lower.cell_graphs(cell).residual_counts),
    )
    unit = rows * padded(H)
    weights = G * padded(H) ** 2 * item
    flags = 2 * steps * rows * LANES * 4
    working = 4 * G * (1 + cell.split) * unit * wide
    forward = unit * (2 * steps * (G * wide + (states + saved) * item))
    forward += unit * states * (3 * item + wide)
    used = lower.graph_leaves(cell)
    read = len({k for name, k in used if name in ("old", "new")})
    backward = unit * 2 * steps * (wide + (read + saved) * item + (1 + cell.split) * G * wide)
    backward += unit * states * (6 * wide + 4 * item)
    return tuple(weights + flags + working + b for b in (forward, backward))
