"""What the kernels for Hopper ask of the machine, in Mosaic's interpreter, which needs no GPU.

On the machine the blocks of a cluster reach into each other's shared memory. The interpreter knows
no such stores; here the blocks of a cluster, or of all clusters of a group, are the threads of one
block, each with a part of its shared memory, and to send is to store and to arrive at the
receiver's barrier. All else, products, tiles in shared memory, loops, is the same program.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.hopper.device import (
    BLOCKS,
    CLUSTERS,
    Arrivals,
    Copies,
    Device,
    Memory,
    slot_of,
)
from jaxrnn.backends.hopper.group import Through


class Interpreted(Device):
    """Mosaic's interpreter."""

    def _mesh(self, groups: int) -> dict[str, Any]:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        return dict(
            grid=(groups,),
            num_threads=self.tiles.blocks,
            thread_name=BLOCKS,
            interpret=InterpretGPUParams(detect_races=True),
        )

    def _scratch(self, what: Any) -> Any:
        t = self.tiles
        if isinstance(what, Copies):
            return plgpu.Barrier(num_arrivals=t.blocks)
        if isinstance(what, Arrivals):
            return plgpu.Barrier(num_arrivals=t.C, num_barriers=2 * t.blocks)
        (*shape,), dtype, swizzle = what
        return self._memory((t.blocks, *shape), dtype, swizzle)

    @property
    def thread(self) -> Any:
        """Which block this stands for."""
        return lax.axis_index(BLOCKS)

    @property
    def cluster(self) -> list[Any]:
        """The threads of this cluster."""
        return list(range(self.tiles.C))

    def own(self, ref: Any) -> Any:  # noqa: D102
        return ref.at[self.thread]

    def raw(self, ref: Any) -> jax.Array:  # noqa: D102
        return ref[...]

    def load(self, ref: Any, turn: bool = False) -> jax.Array:  # noqa: D102
        tile = ref[...].astype(jnp.float32)
        return tile.T if turn else tile

    def placed(self, tile: jax.Array) -> jax.Array:  # noqa: D102
        return tile

    def products(self, rows: int, pairs: Sequence[tuple[Any, Any]]) -> jax.Array:  # noqa: D102
        # The interpreter's own take no transpose, and are not seen where it looks for races.
        contract = ((1,), (1 if self.tiles.rows_first else 0,)), ((), ())
        total = jnp.zeros((rows, self.tiles.L), jnp.float32)
        for a, b in pairs:
            factors = a[...].astype(jnp.float32), b[...].astype(jnp.float32)
            total += lax.dot_general(*factors, contract, precision="highest")
        return total

    def store(self, sums: Any, value: jax.Array) -> None:  # noqa: D102
        sums[...] = value

    def fetch(self, pairs: Sequence[tuple[Any, Any]], barrier: Any) -> None:  # noqa: D102
        for source, target in pairs:
            target[...] = source[...]

    def begin(self, barriers: Any) -> None:  # noqa: D102
        del barriers

    def end(self) -> None:  # noqa: D102
        pass

    def clear(self, ref: Any) -> None:  # noqa: D102
        ref[...] = jnp.zeros((self.tiles.U, self.tiles.L), jnp.float32)

    def share(self, ref: Any, barriers: Any, s: Any, tiles: int) -> None:  # noqa: D102
        del tiles
        slot = slot_of(s)
        for peer in self.cluster:
            ref.at[peer, slot, self.rank][...] = ref[self.thread, slot, self.rank]
            plgpu.barrier_arrive(turn(barriers, peer, s))

    def nothing(self, inbox: Any, barriers: Any) -> None:  # noqa: D102
        for c in range(self.tiles.C):
            self.clear(self.own(inbox).at[0, c])
        for peer in self.cluster:
            plgpu.barrier_arrive(turn(barriers, peer, jnp.int32(0)))

    def expect(self, barriers: Any, s: Any, rows: int) -> None:  # noqa: D102
        del barriers, s, rows

    def give(  # noqa: D102
        self, sums: Any, inbox: Any, barriers: Any, s: Any, first: int, count: int, rows: int
    ) -> None:
        slot = slot_of(s)
        for k, peer in enumerate(self.cluster[first : first + count]):
            inbox.at[peer, slot, self.rank][...] = sums[pl.ds(k * rows, rows)]
            plgpu.barrier_arrive(turn(barriers, peer, s))

    def wait(self, barriers: Any, s: Any) -> None:  # noqa: D102
        plgpu.barrier_wait(turn(barriers, self.thread, s))

    def collect(self, sources: Sequence[Sequence[Any]], scratch: Sequence[Any]) -> list[jax.Array]:  # noqa: D102
        del scratch
        sums = [functools.reduce(jnp.add, [ref[...] for ref in refs]) for refs in sources]
        return [total.T if self.tiles.rows_first else total for total in sums]


class InterpretedGroup(Through, Interpreted):
    """Mosaic's interpreter, and several clusters."""

    def more(self) -> dict[str, Any]:
        """Barriers between clusters, for each block."""
        return dict(between=Memory((), None))

    def _scratch(self, what: Any) -> Any:
        if isinstance(what, Memory):
            return plgpu.Barrier(num_arrivals=self.tiles.K, num_barriers=2 * self.tiles.blocks)
        return super()._scratch(what)

    def enter(self, groups: int, own: dict[str, Any]) -> None:  # noqa: D102
        del groups
        self.between = own.pop("between")

    def places(self) -> tuple[Any, Any]:  # noqa: D102
        return self.thread, lax.axis_index(CLUSTERS)

    @property
    def rank(self) -> Any:  # noqa: D102
        return lax.rem(self.thread, jnp.int32(self.tiles.C))

    @property
    def along(self) -> Any:  # noqa: D102
        return lax.div(self.thread, jnp.int32(self.tiles.C))

    @property
    def cluster(self) -> list[Any]:  # noqa: D102
        return [self.along * self.tiles.C + c for c in range(self.tiles.C)]

    def mine(self, s: Any) -> Any:
        """As `Group.mine`."""
        return self.exchanged.at[lax.axis_index(CLUSTERS), slot_of(s), self.rank]

    def arrive(self, s: Any) -> None:
        """Message `s` of this block may be read."""
        for k in range(self.tiles.K):
            peer = k * self.tiles.C + self.rank
            plgpu.barrier_arrive(turn(self.between, peer, s))

    def come(self, s: Any) -> None:
        """Until all of message `s` may be."""
        plgpu.barrier_wait(turn(self.between, self.thread, s))

    def spread(self, hs: Any, barriers: Any, s: Any) -> None:  # noqa: D102
        del barriers
        self.mine(s).at[self.along][...] = self.own(hs)[0, self.along]
        self.arrive(s)

    def gather(self, hs: Any, barriers: Any, s: Any) -> None:  # noqa: D102
        del barriers
        self.come(s)
        self.own(hs).at[0][...] = self.mine(s)[...]

    def nothing(self, inbox: Any, barriers: Any) -> None:  # noqa: D102
        del inbox, barriers
        ref = self.mine(jnp.int32(0)).at[self.along]
        ref[...] = jnp.zeros((self.tiles.K, self.tiles.U, self.tiles.L), jnp.float32)
        self.arrive(jnp.int32(0))

    def scatter(self, sums: Any, inbox: Any, barriers: Any, s: Any, first: int, count: int) -> None:  # noqa: D102
        del inbox, barriers
        U = self.tiles.U
        for k in range(count):
            self.mine(s).at[first + k, self.along][...] = sums[pl.ds(k * U, U)]
        self.sent = s

    def scattered(self) -> None:  # noqa: D102
        self.arrive(self.sent)

    def total(self, inbox: Any, barriers: Any, s: Any, scratch: Any) -> jax.Array:  # noqa: D102
        del inbox, barriers, scratch
        self.come(s)
        parts = [self.mine(s)[self.along, k] for k in range(self.tiles.K)]
        total = functools.reduce(jnp.add, parts)
        return total.T if self.tiles.rows_first else total


def turn(barriers: Any, thread: Any, s: Any) -> Any:
    """A thread's barrier for message `s`."""
    return barriers.at[2 * thread + lax.rem(s, jnp.int32(2))]
