"""What the kernels for Hopper ask of the machine: a cluster of blocks, each of one warpgroup.

A group of clusters is in `jaxrnn.backends.hopper.group`, and what stands for both where there is no
such machine in `jaxrnn.backends.hopper.interpreted`.

Loading with a layout and the order of arguments differ between the versions of JAX, and only here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.hopper import peers
from jaxrnn.backends.hopper.tiling import Tiles

BLOCKS, CLUSTERS = "units", "rows"

SLOTS = 2
"""Places that messages go to in turns: with one, some would come where the last is still read."""

# What has other names and places in other versions of JAX.
_NEW = "out_type" in inspect.signature(plgpu.kernel).parameters
_RESULTS, _SCRATCH = ("out_type", "scratch_types") if _NEW else ("out_shape", "scratch_shapes")
_AT = inspect.signature(plgpu.load).parameters.get("idx")
_STORE: Any = getattr(plgpu, "store", None)
_INDEX: tuple[Any, ...] = ((),) if _AT is not None and _AT.default is _AT.empty else ()

# From 0.11 on JAX would search for the layouts of all arrays, which takes it up to minutes, and in
# 0.11.0 it finds none for an LSTM of 512 units in float32. They are all given here.
_PARAMS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)


class Copies(NamedTuple):
    """A barrier in scratch memory that so many copies from global memory arrive at."""

    count: int


class Arrivals(NamedTuple):
    """Barriers in scratch memory, in turns, for what the blocks of a cluster send each other."""


class Memory(NamedTuple):
    """Global memory that a group of clusters exchanges through, for each group; not initialised."""

    shape: tuple[int, ...]
    dtype: Any


def _rows(side: int, vector: int, most: int) -> Any:
    """Tiles with rows of `side`: neighbours in one thread, the lanes of a warp side by side."""
    wide = next(w for w in (64, 32, 16, 8) if side % w == 0 and w <= min(32 * vector, most))
    rows = 32 * vector // wide
    if rows > 1:
        tiling, dims = ((4 * rows, wide), (rows, wide), (vector,)), ((-5,), (-3, -2))
    else:
        tiling, dims = ((4, wide), (vector,)), ((-3,), (-2,))
    return plgpu.Layout.TILED(plgpu.Tiling(tiling), *dims, -1)


class Device:
    """A Hopper GPU: a cluster of blocks, each of one warpgroup."""

    def __init__(self, tiles: Tiles):
        self.tiles = tiles
        vector = 2 if tiles.itemsize == 2 else 1
        most = tiles.swizzle // tiles.itemsize  # a row of the tiles in shared memory
        self.layout = _rows(tiles.tile[1], vector, most)
        self.by_units = _rows(tiles.L, 1, 64) if tiles.rows_first else self.layout

    def launch(
        self, body: Any, results: Any, scratch: dict[str, Any], groups: int, name: str
    ) -> Any:
        """The kernel as a function of its operands.

        Args:
            body: called with references to operands, results and scratch memory, these by name.
            results: shapes and dtypes.
            scratch: shapes and dtypes of a block's shared memory, with the swizzle or None; or
                `Copies` or `Arrivals`; for a group of clusters, `Memory` under "exchanged", too.
            groups: how many clusters, or groups of them.
            name: of the kernel.
        """
        names = list(scratch)

        def run(*refs: Any) -> None:
            refs, own = refs[: -len(names)], refs[-len(names) :]
            body(*refs, **dict(zip(names, own, strict=True)))

        return plgpu.kernel(
            run,
            **{_RESULTS: results, _SCRATCH: [self._scratch(s) for s in scratch.values()]},
            grid_names=(CLUSTERS,),
            kernel_name=name,
            compiler_params=_PARAMS,
            **self._mesh(groups),
        )

    def _mesh(self, groups: int) -> dict[str, Any]:
        t = self.tiles
        return dict(grid=(groups * t.K,), cluster=(t.C,), cluster_names=(BLOCKS,))

    def _scratch(self, what: Any) -> Any:
        if isinstance(what, Copies):
            return plgpu.Barrier(num_arrivals=what.count)
        if isinstance(what, Arrivals):
            return plgpu.SMEM(*peers.BARRIERS)
        shape, dtype, swizzle = what
        return self._memory(shape, dtype, swizzle)

    def _memory(self, shape: Sequence[int], dtype: Any, swizzle: int | None) -> Any:
        if swizzle is None:
            return plgpu.SMEM(tuple(shape), dtype)
        return plgpu.SMEM(tuple(shape), dtype, transforms=self.tiles.transforms)

    def places(self) -> tuple[Any, Any]:
        """Which of the blocks that share the units this is, and of which rows."""
        return self.rank, lax.axis_index(CLUSTERS)

    @property
    def rank(self) -> Any:
        """Which block of its cluster this is."""
        return lax.axis_index(BLOCKS)

    @property
    def along(self) -> Any:
        """Which of the blocks that share h."""
        return self.rank

    def slot(self, s: Any) -> Any:
        """Which place in shared memory the h of step `s` has."""
        return slot_of(s)

    def own(self, ref: Any) -> Any:
        """This block's part of scratch memory."""
        return ref

    def raw(self, ref: Any) -> jax.Array:
        """A tile as it is, each thread with the same elements of every one."""
        return plgpu.load(ref, *_INDEX, layout=self.layout, optimized=False)

    def load(self, ref: Any, turn: bool = False) -> jax.Array:
        """A tile, or its transpose, as float32."""
        return self.raw(turned(ref) if turn else ref).astype(jnp.float32)

    def placed(self, tile: jax.Array) -> jax.Array:
        """A tile made by the kernel, in the layout of those that were loaded."""
        return plgpu.layout_cast(tile, self.layout)

    def products(self, rows: int, pairs: Sequence[tuple[Any, Any]]) -> jax.Array:
        """The sum of products of factors in shared memory, float32 (rows, L)."""
        turn = self.tiles.rows_first

        def multiply(acc: Any) -> jax.Array:
            for a, b in pairs:
                plgpu.wgmma(acc, a, turned(b) if turn else b)
            return acc[...]

        return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((rows, self.tiles.L), jnp.float32))

    def store(self, sums: Any, value: jax.Array) -> None:
        """Sums of a product into shared memory."""
        if _STORE is None or self.tiles.L == 16:
            sums[...] = value
        else:  # longer rows share banks, to which newer versions of JAX want a consent
            _STORE(sums, value, optimized=False)

    def fetch(self, pairs: Sequence[tuple[Any, Any]], barrier: Any) -> None:
        """Copy from global to shared memory, all at once, and wait."""
        for source, target in pairs:
            plgpu.copy_gmem_to_smem(source, target, barrier)
        plgpu.barrier_wait(barrier)

    def begin(self, barriers: Any) -> None:
        """Make the barriers of all blocks."""
        peers.begin(barriers)

    def end(self) -> None:
        """Leave together."""
        peers.end()

    def clear(self, ref: Any) -> None:
        """A tile of zeros (U, L) in shared memory."""
        zeros = jnp.zeros((self.tiles.U, self.tiles.L), jnp.float32)
        ref[...] = plgpu.layout_cast(zeros, self.by_units)

    def spread(self, hs: Any, barriers: Any, s: Any) -> None:
        """Send this block's h, as message `s`, to all that share it."""
        self.share(hs, barriers, s, 1)

    def gather(self, hs: Any, barriers: Any, s: Any) -> None:
        """Until all h of message `s` is here."""
        del hs
        self.wait(barriers, s)

    def share(self, ref: Any, barriers: Any, s: Any, tiles: int) -> None:
        """Send this block's part of `ref` (2, C, so many tiles) to its cluster, as message `s`."""
        t, slot = self.tiles, slot_of(s)
        count = tiles * t.parts * t.U * t.L * t.itemsize
        peers.expect(barriers, slot, (t.C - 1) * count)
        if t.C == 1:
            return
        part = ref.at[slot, self.rank]
        peers.push(
            *(part, part, barriers, slot),
            bytes_each=count,
            stride=0,
            first=0,
            count=t.C,
            others=True,
            steady=t.K > 1,
            transforms=(t.transforms, t.transforms),
        )

    def nothing(self, inbox: Any, barriers: Any) -> None:
        """Parts of dh, message 0: zeros."""
        for c in range(self.tiles.C):
            self.clear(self.own(inbox).at[0, c])
        peers.expect(barriers, jnp.int32(0), 0)

    def announce(self, barriers: Any, s: Any) -> None:
        """Parts of dh are to come, as message `s`."""
        self.expect(barriers, s, self.tiles.U)

    def scatter(self, sums: Any, inbox: Any, barriers: Any, s: Any, first: int, count: int) -> None:
        """Send parts of dh, of one block after the other, to these that share h."""
        self.give(sums, inbox, barriers, s, first, count, self.tiles.U)

    def scattered(self) -> None:
        """All parts of dh of a step are sent."""

    def total(self, inbox: Any, barriers: Any, s: Any, scratch: Any) -> jax.Array:
        """The sum of what message `s` brought, a tile."""
        self.wait(barriers, s)
        inbox = self.own(inbox).at[slot_of(s)]
        return self.collect([[inbox.at[c] for c in range(self.tiles.C)]], [scratch])[0]

    def expect(self, barriers: Any, s: Any, rows: int) -> None:
        """Message `s` is so many rows of L from each block of the cluster."""
        t, slot = self.tiles, slot_of(s)
        peers.expect(barriers, slot, t.C * rows * t.L * 4)

    def give(
        self, sums: Any, inbox: Any, barriers: Any, s: Any, first: int, count: int, rows: int
    ) -> None:
        """Send so many rows of `sums` to each block, one after the other, as message `s`."""
        size, slot = rows * self.tiles.L * 4, slot_of(s)
        peers.push(
            *(sums, inbox.at[slot, self.rank], barriers, slot),
            bytes_each=size,
            stride=size,
            first=first,
            count=count,
            steady=self.tiles.K > 1,
        )

    def wait(self, barriers: Any, s: Any) -> None:
        """Until all blocks have sent message `s`; what they have sent may then be multiplied."""
        peers.wait(barriers, slot_of(s), lax.div(s, jnp.int32(2)))
        plgpu.commit_smem()

    def collect(self, sources: Sequence[Sequence[Any]], scratch: Sequence[Any]) -> list[jax.Array]:
        """The sums of tiles (U, L), each as a tile of a state; scratch memory for each."""
        sums = []
        for refs in sources:
            parts = [
                plgpu.load(ref, *_INDEX, layout=self.by_units, optimized=False) for ref in refs
            ]
            sums.append(functools.reduce(jnp.add, parts))
        if not self.tiles.rows_first:
            return [plgpu.layout_cast(total, self.layout) for total in sums]
        for ref, total in zip(scratch, sums, strict=True):
            ref[...] = total
        plgpu.commit_smem()
        return [self.load(ref, turn=True) for ref in scratch]


def slot_of(s: Any) -> Any:
    """Which of the places message `s` goes to."""
    return lax.rem(s, jnp.int32(SLOTS))


def turned(ref: Any) -> Any:
    """A reference with its two axes exchanged."""
    if hasattr(ref, "transpose"):
        return ref.transpose((1, 0))
    return plgpu.transpose_ref(ref, (1, 0))
