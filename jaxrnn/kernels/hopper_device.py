"""What the kernels for Hopper ask of the machine, once on the machine and once interpreted.

On the machine the blocks of a cluster reach into each other's shared memory. Mosaic's interpreter
knows no such stores; there the blocks of a cluster are the threads of one block, each with a part
of its shared memory, and to send is to store and to arrive at the receiver's barrier. All else,
products, tiles in shared memory, barriers, loops, is the same program.

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

from jaxrnn.kernels import hopper_peers as peers
from jaxrnn.kernels.hopper_tiles import Tiles

BLOCKS, CLUSTERS = "units", "rows"

# What has other names and places in other versions of JAX.
_NEW = "out_type" in inspect.signature(plgpu.kernel).parameters
_RESULTS, _SCRATCH = ("out_type", "scratch_types") if _NEW else ("out_shape", "scratch_shapes")
_AT = inspect.signature(plgpu.load).parameters.get("idx")
_INDEX: tuple[Any, ...] = ((),) if _AT is not None and _AT.default is _AT.empty else ()


class Copies(NamedTuple):
    """A barrier in scratch memory that so many copies from global memory arrive at."""

    count: int


class Arrivals(NamedTuple):
    """Barriers in scratch memory, in turns, for what the blocks of a cluster send each other."""


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
        self, body: Any, results: Any, scratch: dict[str, Any], clusters: int, name: str
    ) -> Any:
        """The kernel as a function of its operands.

        Args:
            body: called with references to operands, results and scratch memory, these by name.
            results: shapes and dtypes.
            scratch: shapes and dtypes of a block's shared memory, with the swizzle or None; or
                `Copies` or `Arrivals`.
            clusters: how many.
            name: of the kernel.
        """
        names = list(scratch)

        def run(*refs: Any) -> None:
            refs, own = refs[: -len(names)], refs[-len(names) :]
            body(*refs, **dict(zip(names, own, strict=True)))

        return plgpu.kernel(
            run,
            **{_RESULTS: results, _SCRATCH: [self._scratch(s) for s in scratch.values()]},
            grid=(clusters,),
            grid_names=(CLUSTERS,),
            kernel_name=name,
            **self._mesh(),
        )

    def _mesh(self) -> dict[str, Any]:
        return dict(cluster=(self.tiles.C,), cluster_names=(BLOCKS,))

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

    @property
    def me(self) -> Any:
        """Which block of its cluster this is."""
        return lax.axis_index(BLOCKS)

    @property
    def cluster(self) -> Any:
        """Which cluster this is."""
        return lax.axis_index(CLUSTERS)

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

    def share(self, ref: Any, barriers: Any, s: Any) -> None:
        """Send this block's part of `ref` (2, C, parts, tile) to all others, as message `s`."""
        t, slot = self.tiles, slot_of(s)
        count = t.parts * t.U * t.L * t.itemsize
        peers.expect(barriers, slot, (t.C - 1) * count)
        if t.C == 1:
            return
        part = ref.at[slot, self.me]
        peers.push(
            *(part, part, barriers, slot),
            bytes_each=count,
            stride=0,
            first=0,
            count=t.C,
            others=True,
            transforms=(t.transforms, t.transforms),
        )

    def nothing(self, barriers: Any) -> None:
        """Message 0 has no bytes."""
        peers.expect(barriers, jnp.int32(0), 0)

    def expect(self, barriers: Any, s: Any) -> None:
        """Message `s` is one tile of (U, L) from each block."""
        t, slot = self.tiles, slot_of(s)
        peers.expect(barriers, slot, t.C * t.U * t.L * 4)

    def give(self, sums: Any, inbox: Any, barriers: Any, s: Any, first: int, count: int) -> None:
        """Send rows of U of `sums`, one block's after the other's, as message `s`."""
        t, slot = self.tiles, slot_of(s)
        size = t.U * t.L * 4
        peers.push(
            *(sums, inbox.at[slot, self.me], barriers, slot),
            bytes_each=size,
            stride=size,
            first=first,
            count=count,
        )

    def wait(self, barriers: Any, s: Any) -> None:
        """Until all blocks have sent message `s`; what they have sent may then be multiplied."""
        peers.wait(barriers, slot_of(s), lax.div(s, jnp.int32(2)))
        plgpu.commit_smem()

    def collect(self, ref: Any, scratch: Any) -> jax.Array:
        """The sum of a phase's messages (C, U, L), as a tile."""
        parts = [
            plgpu.load(ref.at[c], *_INDEX, layout=self.by_units, optimized=False)
            for c in range(self.tiles.C)
        ]
        total = functools.reduce(jnp.add, parts)
        if not self.tiles.rows_first:
            return plgpu.layout_cast(total, self.layout)
        scratch[...] = total
        plgpu.commit_smem()
        return self.load(scratch, turn=True)


class Interpreted(Device):
    """Mosaic's interpreter."""

    def _mesh(self) -> dict[str, Any]:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        return dict(num_threads=self.tiles.C, thread_name=BLOCKS, interpret=InterpretGPUParams())

    def _scratch(self, what: Any) -> Any:
        if isinstance(what, Copies):
            return plgpu.Barrier(num_arrivals=self.tiles.C)
        if isinstance(what, Arrivals):
            return plgpu.Barrier(num_arrivals=self.tiles.C, num_barriers=2 * self.tiles.C)
        (*shape,), dtype, swizzle = what
        return self._memory((self.tiles.C, *shape), dtype, swizzle)

    def own(self, ref: Any) -> Any:  # noqa: D102
        return ref.at[self.me]

    def raw(self, ref: Any) -> jax.Array:  # noqa: D102
        return ref[...]

    def load(self, ref: Any, turn: bool = False) -> jax.Array:  # noqa: D102
        tile = ref[...].astype(jnp.float32)
        return tile.T if turn else tile

    def placed(self, tile: jax.Array) -> jax.Array:  # noqa: D102
        return tile

    def products(self, rows: int, pairs: Sequence[tuple[Any, Any]]) -> jax.Array:  # noqa: D102
        if not self.tiles.rows_first:
            return super().products(rows, pairs)
        contract = (((1,), (1,)), ((), ()))
        total = jnp.zeros((rows, self.tiles.L), jnp.float32)
        for a, b in pairs:  # the interpreter has no products of what is transposed
            total += lax.dot_general(a[...], b[...], contract, precision="highest")
        return total

    def fetch(self, pairs: Sequence[tuple[Any, Any]], barrier: Any) -> None:  # noqa: D102
        for source, target in pairs:
            target[...] = source[...]

    def begin(self, barriers: Any) -> None:  # noqa: D102
        del barriers

    def end(self) -> None:  # noqa: D102
        pass

    def clear(self, ref: Any) -> None:  # noqa: D102
        ref[...] = jnp.zeros((self.tiles.U, self.tiles.L), jnp.float32)

    def share(self, ref: Any, barriers: Any, s: Any) -> None:  # noqa: D102
        slot = slot_of(s)
        for peer in range(self.tiles.C):
            ref.at[peer, slot, self.me][...] = ref[self.me, slot, self.me]
            plgpu.barrier_arrive(barriers.at[2 * peer + slot])

    def nothing(self, barriers: Any) -> None:  # noqa: D102
        for peer in range(self.tiles.C):
            plgpu.barrier_arrive(barriers.at[2 * peer])

    def expect(self, barriers: Any, s: Any) -> None:  # noqa: D102
        del barriers, s

    def give(self, sums: Any, inbox: Any, barriers: Any, s: Any, first: int, count: int) -> None:  # noqa: D102
        slot = slot_of(s)
        for k in range(count):
            part = sums[pl.ds(k * self.tiles.U, self.tiles.U)]
            inbox.at[first + k, slot, self.me][...] = part
            plgpu.barrier_arrive(barriers.at[2 * (first + k) + slot])

    def wait(self, barriers: Any, s: Any) -> None:  # noqa: D102
        plgpu.barrier_wait(barriers.at[2 * self.me + slot_of(s)])

    def collect(self, ref: Any, scratch: Any) -> jax.Array:  # noqa: D102
        del scratch
        total = functools.reduce(jnp.add, [ref[c] for c in range(self.tiles.C)])
        return total.T if self.tiles.rows_first else total


def slot_of(s: Any) -> Any:
    """Which of the two places message `s` goes to."""
    return lax.rem(s, jnp.int32(2))


def turned(ref: Any) -> Any:
    """A reference with its two axes exchanged."""
    if hasattr(ref, "transpose"):
        return ref.transpose((1, 0))
    return plgpu.transpose_ref(ref, (1, 0))
