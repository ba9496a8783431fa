"""Devices for the Hopper kernels that need no GPU.

`InterpretedCluster` and `InterpretedGroup` run in Mosaic's interpreter, which does not support
stores into other blocks' shared memory. Here the blocks of a cluster, or of a whole group, are the
threads of one block, with one slice each of its shared memory, and a message is a store followed by
an arrival at the receiver's barrier. Loops, products and tiles are those of the GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.hopper.device import (
    BLOCKS,
    CLUSTERS,
    Cluster,
    ClusterGroup,
    CopyBarrier,
    MessageBarriers,
    buffer_of,
)
from jaxrnn.backends.hopper.tiling import Tiling


class _GroupBarriers(MessageBarriers):
    """Barriers at which messages between clusters arrive."""


class HostTiles(Cluster):
    """Operations on tiles without layouts."""

    def load_raw(self, ref: Any) -> jax.Array:
        return jnp.asarray(ref[...])

    def load(self, ref: Any, transpose: bool = False) -> jax.Array:
        tile = self.load_raw(ref).astype(jnp.float32)
        return tile.T if transpose else tile

    def cast_layout(self, tile: jax.Array) -> jax.Array:
        return tile

    def matmul(self, m: int, pairs: Sequence[tuple[Any, Any]]) -> jax.Array:
        # The interpreter's wgmma takes no transposed factor, and its race detector ignores it.
        contract = ((1,), (1 if self.tiling.batch_major else 0,)), ((), ())
        total = jnp.zeros((m, self.tiling.B), jnp.float32)
        for a, b in pairs:
            total += lax.dot_general(self.load(a), self.load(b), contract, precision="highest")
        return total

    def store_sums(self, sums: Any, value: jax.Array) -> None:
        sums[...] = value

    def sum_tiles(
        self, sources: Sequence[Sequence[Any]], scratch: Sequence[Any]
    ) -> list[jax.Array]:
        sums = [functools.reduce(jnp.add, map(self.load, refs)) for refs in sources]
        return [total.T if self.tiling.batch_major else total for total in sums]

    def zero(self, ref: Any) -> None:
        ref[...] = jnp.zeros((self.tiling.U, self.tiling.B), jnp.float32)


class InterpretedCluster(HostTiles):
    """A cluster of blocks in the interpreter."""

    def _mesh(self, grid_size: int) -> dict[str, Any]:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        return dict(
            grid=(grid_size,),
            num_threads=self.tiling.num_blocks,
            thread_name=BLOCKS,
            interpret=InterpretGPUParams(detect_races=True),
        )

    def _scratch(self, kind: Any) -> Any:
        t = self.tiling
        if isinstance(kind, CopyBarrier):
            return plgpu.Barrier(num_arrivals=t.num_blocks)
        if isinstance(kind, MessageBarriers):
            senders = t.K if isinstance(kind, _GroupBarriers) else t.C
            return plgpu.Barrier(num_arrivals=senders, num_barriers=2 * t.num_blocks)
        return super()._scratch(kind._replace(shape=(t.num_blocks, *kind.shape)))

    @property
    def thread(self) -> Any:
        """Thread that stands for this block."""
        return lax.axis_index(BLOCKS)

    @property
    def cluster(self) -> list[Any]:
        """Threads of this block's cluster."""
        return list(range(self.tiling.C))

    def _barrier(self, name: str, thread: Any, s: Any) -> Any:
        """Return a thread's barrier for message `s`."""
        return self.memory[name].at[2 * thread + lax.rem(s, jnp.int32(2))]

    def local(self, name: str) -> Any:
        return self.memory[name].at[self.thread]

    def start(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        for source, target in pairs:
            target[...] = source[...]

    def finish(self) -> None:
        pass

    def broadcast(self, name: str, s: Any, num_tiles: int) -> None:
        del num_tiles
        ref, buffer = self.memory[name], buffer_of(s)
        for peer in self.cluster:
            ref.at[peer, buffer, self.rank][...] = ref[self.thread, buffer, self.rank]
            plgpu.barrier_arrive(self._barrier("messages", peer, s))

    def expect(self, s: Any, m: int) -> None:
        del s, m

    def scatter(self, s: Any, first: int, count: int, m: int) -> None:
        sums, inbox, buffer = self.local("sums"), self.memory["inbox"], buffer_of(s)
        for k, peer in enumerate(self.cluster[first : first + count]):
            inbox.at[peer, buffer, self.rank][...] = sums[pl.ds(k * m, m)]
            plgpu.barrier_arrive(self._barrier("messages", peer, s))

    def wait(self, s: Any) -> None:
        plgpu.barrier_wait(self._barrier("messages", self.thread, s))

    def init_dh(self) -> None:
        for c in range(self.tiling.C):
            self.zero(self.local("inbox").at[0, c])
        for peer in self.cluster:
            plgpu.barrier_arrive(self._barrier("messages", peer, jnp.int32(0)))


class InterpretedGroup(ClusterGroup, InterpretedCluster):
    """A group of clusters in the interpreter."""

    extra_scratch: ClassVar[dict[str, Any]] = dict(signals=_GroupBarriers())

    def enter(self, grid_size: int) -> None:
        del grid_size

    def position(self) -> tuple[Any, Any]:
        return self.thread, lax.axis_index(CLUSTERS)

    @property
    def rank(self) -> Any:
        return lax.rem(self.thread, jnp.int32(self.tiling.C))

    @property
    def h_rank(self) -> Any:
        return lax.div(self.thread, jnp.int32(self.tiling.C))

    @property
    def cluster(self) -> list[Any]:
        return [self.h_rank * self.tiling.C + c for c in range(self.tiling.C)]

    def _mailbox(self, s: Any) -> Any:
        return self.mailboxes.at[lax.axis_index(CLUSTERS), buffer_of(s), self.rank]

    def _signal(self, s: Any) -> None:
        for k in range(self.tiling.K):
            plgpu.barrier_arrive(self._barrier("signals", k * self.tiling.C + self.rank, s))

    def _wait_for_signals(self, s: Any) -> None:
        plgpu.barrier_wait(self._barrier("signals", self.thread, s))

    def send_h(self, s: Any) -> None:
        self._mailbox(s).at[self.h_rank][...] = self.local("h")[0, self.h_rank]
        self._signal(s)

    def receive_h(self, s: Any) -> None:
        self._wait_for_signals(s)
        self.local("h").at[0][...] = self._mailbox(s)[...]

    def init_dh(self) -> None:
        t, zero = self.tiling, jnp.int32(0)
        self._mailbox(zero).at[self.h_rank][...] = jnp.zeros((t.K, t.U, t.B), jnp.float32)
        self._signal(zero)

    def send_dh(self, s: Any, first: int, count: int) -> None:
        U = self.tiling.U
        for k in range(count):
            self._mailbox(s).at[first + k, self.h_rank][...] = self.local("sums")[pl.ds(k * U, U)]
        self._sent = s

    def flush_dh(self) -> None:
        self._signal(self._sent)

    def receive_dh(self, s: Any) -> jax.Array:
        self._wait_for_signals(s)
        parts = [self._mailbox(s)[self.h_rank, k] for k in range(self.tiling.K)]
        total = functools.reduce(jnp.add, parts)
        return total.T if self.tiling.batch_major else total


def device_for(tiling: Tiling) -> InterpretedCluster:
    """Return the device that interprets a tiling."""
    return (InterpretedGroup if tiling.K > 1 else InterpretedCluster)(tiling)
