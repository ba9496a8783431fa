"""Tilings: partition of a layer among blocks, clusters and groups of clusters.

A cluster of C blocks holds W_hh in shared memory and runs B sequences through all steps. Each block
owns U hidden units: it holds the weights to their gates in the forward pass, and the weights from
their h in the backward pass. H is padded to C*U and N to a multiple of B.

If W_hh does not fit into one cluster, a group of K clusters shares it. Block (k, q) of the group
holds the weights from the units of the blocks (., q) to the gates of the blocks (k, .):

.. code-block:: text

                       hidden state h            gates
    exchanged among    the K blocks (., q)       the C blocks (k, .) of a cluster
    through            global memory             distributed shared memory
    forward            all-gather of h           reduce-scatter of z
    backward           reduce-scatter of dh      all-gather of dz

Each block thus exchanges K*U units instead of all of them. In a single cluster all C blocks
exchange h, and no gates are exchanged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxrnn.backends.elementwise import lower
from jaxrnn.cells import Cell

_SHARED_MEMORY = 227 * 1024  # bytes that a block may use
_ALIGNMENT = 1024  # bytes; Pallas aligns each array in shared memory
_MAX_CLUSTER = 16  # blocks; more than 8 are non-portable, and Mosaic requests them
MIN_SMS = 114
"""Streaming multiprocessors (SMs) of the smallest Hopper GPU. H100: 114 or 132, H200: 132."""

GROUP_CLUSTER_SIZES = (1, 2, 4)
"""Cluster sizes C within a group. Too few larger clusters are guaranteed to be resident at once."""

UNITS = (16, 32, 48, 64, 80, 96)
BATCH_TILES = (16, 32, 64)


@dataclass(frozen=True)
class Tiling:
    """Partition of one layer."""

    G: int  # gates of the cell
    terms: int  # terms of a factor of products: 2 for float32 without TF32, else 1
    itemsize: int  # bytes of a term
    C: int  # blocks per cluster
    U: int  # hidden units per block
    B: int  # sequences per cluster, or per group of clusters
    K: int = 1  # clusters per group

    @property
    def num_blocks(self) -> int:
        """Number of blocks that share W_hh."""
        return self.K * self.C

    @property
    def padded_hidden_size(self) -> int:
        """Hidden size after padding, at least H."""
        return self.num_blocks * self.U

    @property
    def h_blocks(self) -> int:
        """Number of blocks that exchange h with a block, itself included."""
        return self.C if self.K == 1 else self.K

    @property
    def gate_blocks(self) -> int:
        """Number of blocks that exchange gates with a block, itself included."""
        return 1 if self.K == 1 else self.C

    @property
    def h_buffers(self) -> int:
        """Number of buffers of h in shared memory; two if other blocks write into them."""
        return 2 if self.K == 1 else 1

    @property
    def batch_major(self) -> bool:
        """True if tiles of states are (B, U), False if they are (U, B).

        The tensor cores accept 16-bit factors in both orders, TF32 factors in K-major order alone.
        """
        return self.itemsize == 4

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Shape of a block's tile of one state or gate."""
        return (self.B, self.U) if self.batch_major else (self.U, self.B)

    @property
    def factor_bytes(self) -> int:
        """Bytes of a tile as a factor of products."""
        return self.terms * self.U * self.B * self.itemsize

    @property
    def sum_bytes(self) -> int:
        """Bytes of a float32 tile."""
        return self.U * self.B * 4

    @property
    def swizzle(self) -> int:
        """Swizzle of factors in shared memory, in bytes."""
        sides = [self.U] if self.batch_major else [self.U, self.B]
        return next(s for s in (128, 64, 32) if all(n * self.itemsize % s == 0 for n in sides))

    @property
    def transforms(self) -> tuple[Any, Any]:
        """Tiling and swizzle transforms of factors in shared memory."""
        from jax.experimental.pallas import mosaic_gpu as plgpu

        width = self.swizzle // self.itemsize
        return plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(self.swizzle)

    @property
    def forward_m(self) -> int:
        """M dimension of the forward product W_hh @ h, a multiple of 64."""
        return _round_up(self.gate_blocks * self.G * self.U, 64)

    @property
    def backward_m(self) -> int:
        """M dimension of the backward product W_hh.T @ dz, a multiple of 64 and of U."""
        return _round_up(self.h_blocks * self.U, math.lcm(64, self.U))

    @property
    def forward_chunk(self) -> int:
        """M dimension of one forward product; the whole of it unless its sums are sent on."""
        unit = math.lcm(64, self.G * self.U)  # whole products that end with the share of a block
        if self.gate_blocks == 1 or self.forward_m % unit:
            return self.forward_m
        return self._chunk(self.forward_m, unit, self.forward_bytes)

    @property
    def backward_chunk(self) -> int:
        """M dimension of one backward product, the largest whose sums fit."""
        return self._chunk(self.backward_m, math.lcm(64, self.U), self.backward_bytes)

    def _chunk(self, m: int, unit: int, num_bytes: Callable[[int], int]) -> int:
        units = m // unit
        for count in range(1, units):
            chunk = m // count
            fits = chunk * self.B <= 64 * 128 and num_bytes(chunk) <= _SHARED_MEMORY
            if units % count == 0 and fits:
                return chunk
        return unit

    @property
    def fits(self) -> bool:
        """True if both kernels fit into shared memory."""
        return max(self.forward_bytes(), self.backward_bytes()) <= _SHARED_MEMORY

    def forward_bytes(self, chunk: int = 0) -> int:
        """Return the shared memory of the forward kernel, by default with `forward_chunk`."""
        chunk = chunk or self.forward_chunk
        weights = self.h_blocks * self.forward_m * self.U * self.terms * self.itemsize
        h = self.h_buffers * self.h_blocks * self.factor_bytes
        inbox = 2 * self.C * self.G * self.sum_bytes if self.gate_blocks > 1 else 0
        return self._aligned(weights, h, chunk * self.B * 4, inbox)

    def backward_bytes(self, chunk: int = 0) -> int:
        """Return the shared memory of the backward kernel, by default with `backward_chunk`."""
        chunk, weights = chunk or self.backward_chunk, self.backward_m * self.U
        weights *= self.gate_blocks * self.G * self.terms * self.itemsize
        dz = self.G * self.factor_bytes
        if self.gate_blocks > 1:  # two buffers with dz of all blocks of the cluster
            dz *= 2 * self.gate_blocks
        inbox = 2 * self.C * self.sum_bytes if self.K == 1 else 0  # else in global memory
        return self._aligned(weights, dz, self.sum_bytes, chunk * self.B * 4, inbox)

    def _aligned(self, *sizes: int) -> int:
        """Return the bytes of arrays, of two message barriers, a ticket, and a copy barrier."""
        ticket = 4 * (self.K > 1)
        return sum(_round_up(n, _ALIGNMENT) for n in (*sizes, 16, ticket)) + 8

    def step_time(self) -> float:
        """Return the modelled time of a step in microseconds, at 1,755 cycles each.

        Weights are read from shared memory at 128 bytes a cycle, or multiplied at 2,048 (TF32:
        1,024) multiply-adds a cycle; h is broadcast at 32 bytes a cycle; elementwise work costs a
        constant per element, and every step a constant. The last two constants are fitted to 13
        tilings measured on an H200, to within a sixth. Exchanges within a group have not been
        measured. Groups are charged for the slower direction, single clusters for the forward one.
        """
        products = 3 if self.terms == 2 else 1
        elements = self.h_blocks * self.forward_m * self.U
        read = products * elements * self.itemsize / 128
        multiply = products * elements * self.B / (2048 if self.itemsize == 2 else 1024)
        exchange = (self.C - 1) * self.factor_bytes / 32
        if self.K > 1:
            exchange = self._group_exchange()
        elementwise = self.U * self.B * (1.6 if self.itemsize == 2 else 2.2)
        fixed = 1900 + 500 * (self.C > 1) + 200 * (self.C > 8)
        return (max(read, multiply) + exchange + elementwise + fixed) / 1755

    def _group_exchange(self) -> float:
        """Return the cycles of a group's exchanges: estimates, NOT MEASURED.

        A signal through global memory takes 1.5 microseconds, and data follow at 50 bytes a cycle.
        The exchange within a cluster adds 0.5 microseconds, at 32 bytes a cycle.
        """
        peers = (self.gate_blocks - 1) * self.G
        forward = self.h_blocks * self.factor_bytes / 50 + peers * self.sum_bytes / 32
        backward = 2 * self.h_blocks * self.sum_bytes / 50 + peers * self.factor_bytes / 32
        return 1755 * (1.5 + 0.5 * (peers > 0)) + max(forward, backward)

    def waves(self, N: int) -> int:
        """Return the number of waves of resident clusters that run N sequences.

        A cluster lies within one GPC. The GPU has eight of them with about 16 SMs each, some with
        fewer: on an H200, 8 clusters of 16 blocks took two waves.
        """
        resident = {1: 132, 16: 6}.get(self.C, 8 * (16 // self.C)) // self.K
        clusters = -(-N // self.B)
        return -(-clusters // resident)


@functools.lru_cache(maxsize=256)
def select_tiling(
    cell: Cell, itemsize: int, terms: int, N: int, H: int, num_sms: int = MIN_SMS
) -> Tiling | None:
    """Return the fastest tiling by `Tiling.step_time` and `Tiling.waves`, or None if none fits.

    A single cluster is preferred; a group is used if W_hh does not fit into the largest cluster.
    """
    for sms in (1, num_sms):
        fitting = [
            t
            for t in candidate_tilings(len(cell.gates), itemsize, terms, H, sms)
            if t.fits and _register_pressure(cell, t) <= 96
        ]
        if fitting:
            return min(fitting, key=lambda t: t.waves(N) * t.step_time())
    return None


def candidate_tilings(G: int, itemsize: int, terms: int, H: int, num_sms: int) -> Iterator[Tiling]:
    """Yield the tilings of H units by a cluster, or by a group if `num_sms` is larger than 1."""
    group = num_sms > 1
    for U in (8, *UNITS) if group and itemsize == 4 else UNITS:
        blocks = -(-H // U)
        for C in GROUP_CLUSTER_SIZES if group else (blocks,):
            K = -(-blocks // C) if group else 1
            if C > _MAX_CLUSTER or (group and not 2 <= K <= guaranteed_clusters(C, num_sms)):
                continue
            for B in BATCH_TILES:
                yield Tiling(G, terms, itemsize, C, U, B, K)


def guaranteed_clusters(C: int, num_sms: int) -> int:
    """Return the number of clusters of C blocks that are resident at once on any GPU of this size.

    SMs belong to at most 8 GPCs with an even number each, and a cluster lies within one GPC.
    """
    return (num_sms - 8 * max(0, C - 2)) // C


def _register_pressure(cell: Cell, t: Tiling) -> int:
    """Return a lower bound of the registers of a thread that hold tiles."""
    leaves = max(len(lower.graph_leaves(cell, graph)) for graph in ("forward", "backward"))
    return (leaves + len(cell.gates)) * t.U * t.B // 128


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
