"""Devices: the operations of loops on a cluster of blocks and on a group of clusters.

Each block has one warpgroup. The tests implement the same operations without a GPU. Differences
between versions of JAX are confined to this module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.hopper import exchange
from jaxrnn.backends.hopper.tiling import Tiling

BLOCKS, CLUSTERS = "units", "batch"  # axes of the launch

NUM_BUFFERS = 2
"""Number of buffers for messages; with one, a message could overwrite one that is still read."""

# Names that differ between versions of JAX.
_IDX = inspect.signature(plgpu.load).parameters.get("idx")
_INDEX: tuple[Any, ...] = ((),) if _IDX is not None and _IDX.default is _IDX.empty else ()
_STORE: Any = getattr(plgpu, "store", None)

# JAX 0.11 and later infer layouts, which takes minutes, and 0.11.0 fails for an LSTM with 512 units
# in float32. Lane semantics use the layouts given here.
_PARAMS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)


class SharedMemory(NamedTuple):
    """Array in the shared memory of each block."""

    shape: tuple[int, ...]
    dtype: Any
    swizzled: bool = False


class CopyBarrier(NamedTuple):
    """Barrier at which copies from global memory arrive."""

    num_arrivals: int


class MessageBarriers(NamedTuple):
    """Barriers at which messages within a cluster arrive, one for each buffer."""


class Cluster:
    """A cluster of blocks on a Hopper GPU. Message `s` is the one that step `s` reads."""

    memory: dict[str, Any]
    """References to scratch memory by name, while a kernel is traced."""

    def __init__(self, tiling: Tiling):
        self.tiling = tiling
        vector = 2 if tiling.itemsize == 2 else 1
        max_width = tiling.swizzle // tiling.itemsize
        self.layout = _tile_layout(tiling.tile_shape[1], vector, max_width)
        self.sum_layout = _tile_layout(tiling.B, 1, 64) if tiling.batch_major else self.layout

    def launch(
        self, body: Any, results: Any, scratch: dict[str, Any], grid_size: int, name: str
    ) -> Callable[..., Any]:
        """Return a kernel as a function of its operands.

        `body` takes references to operands and results; `scratch` is memory and barriers by name;
        `grid_size` is the number of clusters, or of groups of clusters.
        """
        names = list(scratch)

        def _run(*refs: Any) -> None:
            self.memory = dict(zip(names, refs[-len(names) :], strict=True))
            body(*refs[: -len(names)])

        return plgpu.kernel(
            _run,
            out_type=results,
            scratch_types=[self._scratch(kind) for kind in scratch.values()],
            grid_names=(CLUSTERS,),
            kernel_name=name,
            compiler_params=_PARAMS,
            **self._mesh(grid_size),
        )

    def _mesh(self, grid_size: int) -> dict[str, Any]:
        t = self.tiling
        return dict(grid=(grid_size * t.K,), cluster=(t.C,), cluster_names=(BLOCKS,))

    def _scratch(self, kind: Any) -> Any:
        if isinstance(kind, CopyBarrier):
            return plgpu.Barrier(num_arrivals=kind.num_arrivals)
        if isinstance(kind, MessageBarriers):
            return plgpu.SMEM(*exchange.BARRIERS)
        transforms = self.tiling.transforms if kind.swizzled else ()
        return plgpu.SMEM(kind.shape, kind.dtype, transforms=transforms)

    # Position

    def position(self) -> tuple[Any, Any]:
        """Return the index of this block among those that share W_hh, and of its batch tile."""
        return self.rank, lax.axis_index(CLUSTERS)

    @property
    def rank(self) -> Any:
        """Rank of this block in its cluster."""
        return lax.axis_index(BLOCKS)

    @property
    def h_rank(self) -> Any:
        """Rank of this block among those that exchange h."""
        return self.rank

    # Memory and arithmetic

    def local(self, name: str) -> Any:
        """Return this block's scratch memory."""
        return self.memory[name]

    def load_raw(self, ref: Any) -> jax.Array:
        """Load a tile in its dtype; each thread holds the same elements of every tile."""
        return plgpu.load(ref, *_INDEX, layout=self.layout, optimized=False)

    def load(self, ref: Any, transpose: bool = False) -> jax.Array:
        """Load a tile or its transpose as float32."""
        return self.load_raw(_transposed(ref) if transpose else ref).astype(jnp.float32)

    def cast_layout(self, tile: jax.Array) -> jax.Array:
        """Convert a computed tile to the layout of loaded tiles."""
        return plgpu.layout_cast(tile, self.layout)

    def matmul(self, m: int, pairs: Sequence[tuple[Any, Any]]) -> jax.Array:
        """Return the sum of products of factors in shared memory, float32 (m, B)."""
        transpose = self.tiling.batch_major

        def _multiply(acc: Any) -> jax.Array:
            for a, b in pairs:
                plgpu.wgmma(acc, a, _transposed(b) if transpose else b)
            return acc[...]

        return pl.run_scoped(_multiply, plgpu.WGMMAAccumulatorRef((m, self.tiling.B), jnp.float32))

    def store_sums(self, sums: Any, value: jax.Array) -> None:
        """Store the result of `matmul` in shared memory."""
        if _STORE is None or self.tiling.B == 16:
            sums[...] = value
        else:  # wider tiles have bank conflicts, which newer versions of JAX report
            _STORE(sums, value, optimized=False)

    def sum_tiles(
        self, sources: Sequence[Sequence[Any]], scratch: Sequence[Any]
    ) -> list[jax.Array]:
        """Return sums of (U, B) tiles in the layout of states; one scratch tile for each sum."""
        sums = []
        for refs in sources:
            tiles = [
                plgpu.load(ref, *_INDEX, layout=self.sum_layout, optimized=False) for ref in refs
            ]
            sums.append(functools.reduce(jnp.add, tiles))
        if not self.tiling.batch_major:
            return [plgpu.layout_cast(total, self.layout) for total in sums]
        for ref, total in zip(scratch, sums, strict=True):
            ref[...] = total
        plgpu.commit_smem()
        return [self.load(ref, transpose=True) for ref in scratch]

    def start(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Copy from global to shared memory, and initialise the message barriers."""
        for source, target in pairs:
            plgpu.copy_gmem_to_smem(source, target, self.memory["copies"])
        plgpu.barrier_wait(self.memory["copies"])
        exchange.init_barriers(self.memory["messages"])

    def finish(self) -> None:
        """Wait for the other blocks of the cluster before exiting."""
        exchange.exit_together()

    def zero(self, ref: Any) -> None:
        """Store zeros in a (U, B) tile of shared memory."""
        zeros = jnp.zeros((self.tiling.U, self.tiling.B), jnp.float32)
        ref[...] = plgpu.layout_cast(zeros, self.sum_layout)

    # Messages within a cluster

    def broadcast(self, name: str, s: Any, num_tiles: int) -> None:
        """Send this block's part of `name`, (NUM_BUFFERS, C, num_tiles, ...), to its cluster."""
        t, buffer = self.tiling, buffer_of(s)
        num_bytes = num_tiles * t.factor_bytes
        exchange.expect(self.memory["messages"], buffer, (t.C - 1) * num_bytes)
        if t.C == 1:
            return
        part = self.memory[name].at[buffer, self.rank]
        exchange.send(
            *(part, part, self.memory["messages"], buffer),
            *(num_bytes, 0, 0, t.C),
            skip_self=True,
            fixed_offsets=t.K > 1,
            transforms=(t.transforms, t.transforms),
        )

    def expect(self, s: Any, m: int) -> None:
        """Expect (m, B) sums from each block of the cluster."""
        t, buffer = self.tiling, buffer_of(s)
        exchange.expect(self.memory["messages"], buffer, t.C * m * t.B * 4)

    def scatter(self, s: Any, first: int, count: int, m: int) -> None:
        """Send (m, B) slices of "sums" to the inboxes of the blocks from `first` on."""
        num_bytes, buffer = m * self.tiling.B * 4, buffer_of(s)
        inbox = self.memory["inbox"].at[buffer, self.rank]
        exchange.send(
            *(self.memory["sums"], inbox, self.memory["messages"], buffer),
            *(num_bytes, num_bytes, first, count),
            fixed_offsets=self.tiling.K > 1,
        )

    def wait(self, s: Any) -> None:
        """Wait until all blocks have sent message `s`; the tensor cores may then read it."""
        exchange.wait(self.memory["messages"], buffer_of(s), lax.div(s, jnp.int32(2)))
        plgpu.commit_smem()

    # Exchange of h and of its cotangent

    def h_buffer(self, s: Any) -> Any:
        """Return the buffer of "h" that step `s` reads."""
        return buffer_of(s)

    def send_h(self, s: Any) -> None:
        """Send this block's h to the blocks that read it at step `s`."""
        self.broadcast("h", s, 1)

    def receive_h(self, s: Any) -> None:
        """Wait for h of step `s`."""
        self.wait(s)

    def init_dh(self) -> None:
        """Make the partial sums of dh that step 0 reads zero."""
        for c in range(self.tiling.C):
            self.zero(self.local("inbox").at[0, c])
        exchange.expect(self.memory["messages"], jnp.int32(0), 0)

    def expect_dh(self, s: Any) -> None:
        """Expect the partial sums of dh that step `s` reads."""
        self.expect(s, self.tiling.U)

    def send_dh(self, s: Any, first: int, count: int) -> None:
        """Send partial sums of dh to the blocks from `first` on."""
        self.scatter(s, first, count, self.tiling.U)

    def flush_dh(self) -> None:
        """Publish what `send_dh` has sent."""

    def receive_dh(self, s: Any) -> jax.Array:
        """Wait for the partial sums of dh and return their sum, a tile."""
        self.wait(s)
        inbox = self.local("inbox").at[buffer_of(s)]
        parts = [inbox.at[c] for c in range(self.tiling.C)]
        return self.sum_tiles([parts], [self.local("transposed")])[0]


class ClusterGroup(Cluster):
    """A group of clusters on a Hopper GPU, which exchange data through global memory."""

    mailboxes: Any
    """Reference to the global memory of all groups, while a kernel is traced."""

    extra_scratch: ClassVar[dict[str, Any]] = dict(ticket=SharedMemory(*exchange.TICKET))

    def launch(
        self, body: Any, results: Any, scratch: dict[str, Any], grid_size: int, name: str
    ) -> Callable[..., Any]:
        """Return a kernel as a function of its operands, see `Cluster.launch`."""
        scratch = scratch | self.extra_scratch
        mailboxes: jax.ShapeDtypeStruct = scratch.pop("mailboxes")
        shape = jax.ShapeDtypeStruct((grid_size, *mailboxes.shape), mailboxes.dtype)

        def _run(*refs: Any) -> None:
            *given, self.mailboxes = refs
            self.enter(grid_size)
            body(*given)

        kernel = super().launch(_run, (*results, shape), scratch, grid_size, name)
        return lambda *operands: kernel(*operands)[:-1]

    def enter(self, grid_size: int) -> None:
        """Draw a ticket and derive this block's place from it."""
        t = self.tiling
        # Pallas passes counters in and out of the kernel, and the program zeroes them each time.
        size = (1 + grid_size * t.C) * exchange.COUNTER_STRIDE
        counters = pl.get_global(plgpu.SemaphoreType.REGULAR((size,)))
        ticket = exchange.draw_ticket(self.memory["ticket"], counters.at[pl.ds(0, 1)])
        self.group, self.index = lax.div(ticket, jnp.int32(t.K)), lax.rem(ticket, jnp.int32(t.K))
        place = (1 + self.group * t.C + self.rank) * exchange.COUNTER_STRIDE
        self.counter = counters.at[pl.ds(place, 1)]

    def position(self) -> tuple[Any, Any]:
        """Return the index of this block in its group, and of its batch tile."""
        return self.index * self.tiling.C + self.rank, self.group

    @property
    def h_rank(self) -> Any:
        """Rank of this block among those that exchange h: the index of its cluster."""
        return self.index

    def h_buffer(self, s: Any) -> Any:
        """Return the buffer of "h": the first, as no other block writes it."""
        return 0

    def _mailbox(self, s: Any) -> Any:
        """Return the global memory of messages `s` to and from the blocks that exchange h."""
        return self.mailboxes.at[self.group, buffer_of(s), self.rank]

    def send_h(self, s: Any) -> None:
        """Send this block's h to the blocks that read it at step `s`."""
        t = self.tiling
        source, target = self.local("h").at[0, self.index], self._mailbox(s).at[self.index]
        exchange.write_global(source, target, t.factor_bytes, transforms=(t.transforms,))
        exchange.signal(self.counter)

    def receive_h(self, s: Any) -> None:
        """Wait for h of step `s`, and copy it to shared memory."""
        t = self.tiling
        exchange.wait_for_signals(self.counter, (s + 1) * t.K)
        target = self.local("h").at[0]
        exchange.read_global(self._mailbox(s), target, t.K * t.factor_bytes, t.transforms)
        plgpu.commit_smem()  # the tensor cores read it through the async proxy

    def init_dh(self) -> None:
        """Make the partial sums of dh that step 0 reads zero."""
        t = self.tiling
        exchange.zero_global(self._mailbox(jnp.int32(0)).at[self.index], t.K * t.sum_bytes)

    def expect_dh(self, s: Any) -> None:
        """Do nothing: counters need no announcement."""

    def send_dh(self, s: Any, first: int, count: int) -> None:
        """Send partial sums of dh to the blocks from `first` on."""
        t = self.tiling
        target, stride = self._mailbox(s).at[0, self.index], t.K * t.sum_bytes
        exchange.write_global(self.local("sums"), target, t.sum_bytes, stride, first, count)

    def flush_dh(self) -> None:
        """Publish what `send_dh` has sent."""
        exchange.signal(self.counter)

    def receive_dh(self, s: Any) -> jax.Array:
        """Wait for the partial sums of dh and return their sum, a tile."""
        t = self.tiling
        exchange.wait_for_signals(self.counter, s * t.K)
        total = self.local("transposed")
        exchange.sum_global(self._mailbox(s).at[self.index], total, t.U * t.B, t.K)
        plgpu.commit_smem()
        return self.load(total, transpose=t.batch_major)


def buffer_of(s: Any) -> Any:
    """Return the buffer of message `s`."""
    return lax.rem(s, jnp.int32(NUM_BUFFERS))


def _tile_layout(width: int, vector: int, max_width: int) -> Any:
    """Return a layout of tiles that are `width` wide, with `vector` neighbours in each thread.

    The lanes of a warp hold adjacent vectors.
    """
    wide = next(w for w in (64, 32, 16, 8) if width % w == 0 and w <= min(32 * vector, max_width))
    lines = 32 * vector // wide  # of a warp
    if lines > 1:
        tiling, dims = ((4 * lines, wide), (lines, wide), (vector,)), ((-5,), (-3, -2))
    else:
        tiling, dims = ((4, wide), (vector,)), ((-3,), (-2,))
    return plgpu.Layout.TILED(plgpu.Tiling(tiling), *dims, -1)


def _transposed(ref: Any) -> Any:
    if hasattr(ref, "transpose"):
        return ref.transpose((1, 0))
    return plgpu.transpose_ref(ref, (1, 0))
