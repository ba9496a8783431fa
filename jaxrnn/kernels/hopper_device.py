"""What the kernels for Hopper ask of the machine, once on the machine and once interpreted.

On the machine the blocks of a cluster reach into each other's shared memory. Mosaic's interpreter
knows no such stores; there the blocks of a cluster are the threads of one block, each with a part
of its shared memory, and to send is to store and to arrive at the receiver's barrier. All else,
products, tiles in shared memory, barriers, loops, is the same program.

Loading with a layout and the order of arguments differ between the versions of JAX, and only here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

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
    """Two barriers in scratch memory that so many tiles arrive at, sent by blocks in turns."""

    count: int


class Device:
    """A Hopper GPU: a cluster of blocks, each of one warpgroup."""

    def __init__(self, tiles: Tiles):
        self.tiles = tiles
        # Two neighbours of 16 bits to a thread, as 32 bits are the least that is sent; the lanes of
        # a warp side by side, as shared memory is the fastest so.
        vector = 2 if tiles.itemsize == 2 else 1
        wide = next(w for w in (64, 32, 16) if tiles.tile[1] % w == 0 and w <= 32 * vector)
        rows = 32 * vector // wide
        if rows > 1:
            tiling, dims = ((4 * rows, wide), (rows, wide), (vector,)), ((-5,), (-3, -2))
        else:
            tiling, dims = ((4, wide), (vector,)), ((-3,), (-2,))
        self.layout = plgpu.Layout.TILED(plgpu.Tiling(tiling), *dims, -1)

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
            return plgpu.Barrier(num_arrivals=what.count, num_barriers=2)
        shape, dtype, swizzle = what
        return self._memory(shape, dtype, swizzle)

    def _memory(self, shape: Sequence[int], dtype: Any, swizzle: int | None) -> Any:
        if swizzle is None:
            return plgpu.SMEM(tuple(shape), dtype)
        wide = swizzle // jnp.dtype(dtype).itemsize
        transforms = (plgpu.TilingTransform((8, wide)), plgpu.SwizzleTransform(swizzle))
        return plgpu.SMEM(tuple(shape), dtype, transforms=transforms)

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

    def load(self, ref: Any, turn: bool = False) -> jax.Array:
        """A tile, or its transpose, as float32, each thread with the same elements of every one."""
        ref = turned(ref) if turn else ref
        tile = plgpu.load(ref, *_INDEX, layout=self.layout, optimized=False)
        return tile.astype(jnp.float32)

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

    def send(self, tile: jax.Array, ref: Any, at: Any, barriers: Any, slot: Any, peer: int) -> None:
        """Store a tile into a block's shared memory at an index, and arrive at its barrier."""
        plgpu.async_store_smem(
            tile,
            ref.at[at],
            barriers.at[slot],
            cluster_idx=jnp.int32(peer),
            cluster_dim=BLOCKS,
            optimized=False,
        )

    def wait(self, barriers: Any, slot: Any) -> None:
        """Until all blocks have sent; what they have sent may then be multiplied."""
        plgpu.barrier_wait(barriers.at[slot])
        plgpu.commit_smem()


class Interpreted(Device):
    """Mosaic's interpreter."""

    def _mesh(self) -> dict[str, Any]:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        return dict(num_threads=self.tiles.C, thread_name=BLOCKS, interpret=InterpretGPUParams())

    def _scratch(self, what: Any) -> Any:
        if isinstance(what, Copies):
            return plgpu.Barrier(num_arrivals=self.tiles.C)
        if isinstance(what, Arrivals):
            return plgpu.Barrier(num_arrivals=what.count, num_barriers=2 * self.tiles.C)
        (*shape,), dtype, swizzle = what
        return self._memory((self.tiles.C, *shape), dtype, swizzle)

    def own(self, ref: Any) -> Any:  # noqa: D102
        return ref.at[self.me]

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

    def send(self, tile: jax.Array, ref: Any, at: Any, barriers: Any, slot: Any, peer: int) -> None:  # noqa: D102
        ref.at[(peer, *at)][...] = tile
        plgpu.barrier_arrive(barriers.at[2 * peer + slot])

    def wait(self, barriers: Any, slot: Any) -> None:  # noqa: D102
        plgpu.barrier_wait(barriers.at[2 * self.me + slot])


def turned(ref: Any) -> Any:
    """A reference with its two axes exchanged."""
    if hasattr(ref, "transpose"):
        return ref.transpose((1, 0))
    return plgpu.transpose_ref(ref, (1, 0))
