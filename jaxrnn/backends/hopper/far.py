"""What the blocks of several clusters send each other through global memory, in PTX.

A block writes its part where all can read it, and then adds one to a counter; a block that wants
what others have written waits until the counter says that all have. What orders what:

.. code-block:: text

    writes of all threads, barrier of the block, red.release.gpu by one thread
    ld.acquire.gpu by one thread until the counter is there, barrier of the block, reads of all

A release and an acquire at the scope of the GPU also order what other threads of the block did
before, or do after, a barrier. Reads and writes are of the generic proxy on both sides (cp.async
too, unlike cp.async.bulk), so that no fence between proxies is needed here; what comes into shared
memory needs that of `plgpu.commit_smem` before the tensor cores, which are of the async proxy, read
it. Counters only grow within a launch and are zeros at its beginning.

Who writes message s + 2 where message s was has seen the counter of s + 1, so all have added to it,
each after its last look at message s; and nobody adds for s + 1 before all have added for s, so a
number that is reached means that all have come that far.

Whoever waits needs those that it waits for to be on the machine. So a cluster takes its place in
the order in which clusters begin, and not by its number: of all groups that have begun only the
last may lack clusters, and these have room as soon as an earlier group has gone, or at once if
there is none; `jaxrnn.backends.hopper.tiling.at_least` is how many are sure to. What else is on the
machine must not wait for this kernel. Two of such kernels at the same time might each have the
places that the other waits for. XLA runs the kernels of a program one after the other, also in a
CUDA graph, unless ``xla_gpu_command_buffer_scheduling_mode`` is set to CONCURRENT; and a GPU shares
its time between processes, unless they run under MPS.

Sources: the PTX instruction set, NVIDIA, version 8: memory consistency model; cooperative groups'
barrier of a grid; places in the order of beginning: D. Merrill and M. Garland, Single-pass parallel
prefix scan with decoupled look-back, NVIDIA 2016.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from jaxrnn.backends.hopper.peers import PIECE, SCALAR, THREADS, address, number, run, write

TICKET = ((1,), jnp.int32)
"""Shape and dtype of the shared memory for the number that a cluster draws."""

LINE = 32
"""Counters are so many numbers of 32 bits apart: in lines of their own."""


def _far(ref: Any) -> Any:
    """Where a reference to global memory begins, as 64 bits."""
    return llvm.ptrtoint(ir.IntegerType.get_signless(64), utils.memref_ptr(ref))


def draw(ticket: Any, counter: Any) -> Any:
    """How many clusters have begun before this one, by `ticket` to all blocks of it."""

    def inline(_: Any, ticket: Any, counter: Any) -> Any:
        drawn = write(
            """.reg .pred p, q;
            .reg .b32 t, rank, v, first;
            mov.u32 t, %tid.x;
            mov.u32 rank, %cluster_ctarank;
            setp.eq.u32 q, t, 0;
            setp.eq.and.u32 p, rank, 0, q;
            @p atom.relaxed.gpu.global.add.u32 v, [$2], 1;
            @p st.shared::cta.u32 [$1], v;
            barrier.cluster.arrive.release.aligned;
            barrier.cluster.wait.acquire.aligned;
            mapa.shared::cluster.u32 first, $1, 0;
            ld.shared::cluster.u32 v, [first];
            mov.u32 $0, v;""",
            *(address(ticket), _far(counter)),
            result=True,
        )
        return FragmentedArray.splat(drawn, shape=(), is_signed=True)

    result = plgpu.ShapeDtypeStruct((), jnp.int32, layout=SCALAR)
    return run(inline, ticket, counter, result=result)


def signal(counter: Any) -> None:
    """What this block has written may be read."""

    def inline(_: Any, counter: Any) -> None:
        write(
            """.reg .pred p;
            .reg .b32 t;
            barrier.sync 0;
            mov.u32 t, %tid.x;
            setp.eq.u32 p, t, 0;
            @p red.release.gpu.global.add.u32 [$0], 1;""",
            _far(counter),
        )

    run(inline, counter)


def wait(counter: Any, count: Any) -> None:
    """Until so many have signalled; what they had written before may then be read."""

    def inline(_: Any, counter: Any, count: Any) -> None:
        write(
            """.reg .pred p;
            .reg .b32 t, v;
            mov.u32 t, %tid.x;
            setp.ne.u32 p, t, 0;
            @p bra over;
            again:
            ld.acquire.gpu.global.u32 v, [$0];
            setp.lt.u32 p, v, $1;
            @p bra again;
            over:
            bar.warp.sync 0xffffffff;
            barrier.sync 0;""",
            *(_far(counter), number(count)),
        )

    run(inline, counter, count)


def _rounds(pieces: int) -> list[tuple[int, str]]:
    """The rounds in which all threads move a piece each: its first, and who takes part."""
    last = pieces % THREADS
    rounds = [(start, "") for start in range(0, pieces - last, THREADS)]
    return rounds + ([(pieces - last, "@few ")] if last else [])


_BEGIN = (
    ".reg .pred few;",
    ".reg .b32 t, which, word, near, a, b, c, d;",
    ".reg .b64 there;",
    "mov.u32 t, %tid.x;",
)


def put(
    source: Any,
    target: Any,
    *,
    bytes_each: int,
    stride: int = 0,
    first: int = 0,
    count: int = 1,
    transforms: tuple[Any, ...] = (),
) -> None:
    """Write from shared to global memory.

    Args:
        source: tiles of so many bytes, one after the other.
        target: where that of number 0 would go.
        bytes_each: a multiple of 16.
        stride: bytes between the places of two tiles.
        first: the number of the first tile.
        count: how many.
        transforms: of the source.
    """
    words = bytes_each // PIECE

    def place(start: int) -> list[str]:
        """Where a thread's piece of this round goes."""
        return [
            f"add.u32 word, t, {start};",
            f"div.u32 which, word, {words};",
            f"mul.lo.u32 near, which, {words};",
            "sub.u32 word, word, near;",
            f"mad.wide.u32 there, word, {PIECE}, $1;",
            f"mad.wide.u32 there, which, {stride}, there;",
        ]

    # Where rounds are whole tiles, or tiles whole rounds, places differ by what is known here.
    regular = THREADS % words == 0 or words % THREADS == 0

    def inline(_: Any, source: Any, target: Any) -> None:
        text = [*_BEGIN, f"setp.lt.u32 few, t, {count * words % THREADS};", *place(0)]
        for start, who in _rounds(count * words):
            on = first * stride + start // words * stride + start % words * PIECE
            if not regular:
                text += place(start)
                on = first * stride
            text += [
                f"mad.lo.u32 near, t, {PIECE}, $0;",
                f"{who}ld.shared::cta.v4.b32 {{a, b, c, d}}, [near+{start * PIECE}];",
                f"{who}st.global.v4.b32 [there+{on}], {{a, b, c, d}};",
            ]
        write("\n".join(text), address(source), _far(target))

    run(inline, source, target, transforms=(transforms,))


def get(source: Any, target: Any, count: int, transforms: tuple[Any, ...]) -> None:
    """Read so many bytes from global into shared memory, whose transforms are given.

    ``.cg``: from the cache that all multiprocessors share. It is done when it returns, for this
    thread; `plgpu.commit_smem` makes it so for all.
    """
    pieces = count // PIECE

    def inline(_: Any, source: Any, target: Any) -> None:
        text = [
            *_BEGIN,
            f"setp.lt.u32 few, t, {pieces % THREADS};",
            f"mad.lo.u32 near, t, {PIECE}, $1;",
            f"mad.wide.u32 there, t, {PIECE}, $0;",
            *(
                f"{who}cp.async.cg.shared.global [near+{on}], [there+{on}], {PIECE};"
                for on, who in ((start * PIECE, who) for start, who in _rounds(pieces))
            ),
            "cp.async.wait_all;",
        ]
        write("\n".join(text), _far(source), address(target))

    run(inline, source, target, transforms=((), transforms))


def clear(target: Any, count: int) -> None:
    """Write so many bytes of zeros to global memory, for this block to read."""
    pieces = count // PIECE

    def inline(_: Any, target: Any) -> None:
        text = [
            *_BEGIN,
            f"setp.lt.u32 few, t, {pieces % THREADS};",
            f"mad.wide.u32 there, t, {PIECE}, $0;",
            "mov.u32 a, 0;",
            *(
                f"{who}st.global.v4.b32 [there+{start * PIECE}], {{a, a, a, a}};"
                for start, who in _rounds(pieces)
            ),
            "barrier.sync 0;",
        ]
        write("\n".join(text), _far(target))

    run(inline, target)


def add(source: Any, target: Any, size: int, count: int) -> None:
    """Add up `count` pieces of `size` numbers of float32, the first first, into shared memory.

    ``ld.relaxed.gpu``: from the cache that all multiprocessors share.
    """
    wide = next(w for w in (4, 2, 1) if size // w >= THREADS)
    suffix = {4: ".v4.f32", 2: ".v2.f32", 1: ".f32"}[wide]
    group = lambda regs: f"{{{', '.join(regs)}}}" if wide > 1 else regs[0]  # noqa: E731
    together = min(count, 32 // wide)
    total = [f"s{i}" for i in range(wide)]
    loaded = [[f"x{k}_{i}" for i in range(wide)] for k in range(together)]

    def inline(_: Any, source: Any, target: Any) -> None:
        text = [
            *_BEGIN,
            f".reg .f32 {', '.join([*total, *(r for regs in loaded for r in regs)])};",
            f"setp.lt.u32 few, t, {size // wide % THREADS};",
            f"mad.lo.u32 near, t, {4 * wide}, $1;",
            f"mad.wide.u32 there, t, {4 * wide}, $0;",
        ]
        for start, who in _rounds(size // wide):
            for begin in range(0, count, together):
                batch = loaded[: min(together, count - begin)]
                for k, regs in enumerate(batch):
                    on = 4 * ((begin + k) * size + start * wide)
                    text.append(f"{who}ld.relaxed.gpu.global{suffix} {group(regs)}, [there+{on}];")
                for k, regs in enumerate(batch):
                    for t, r in zip(total, regs, strict=True):
                        text.append(
                            f"add.f32 {t}, {t}, {r};" if begin + k else f"mov.f32 {t}, {r};"
                        )
            text.append(f"{who}st.shared::cta{suffix} [near+{4 * start * wide}], {group(total)};")
        write("\n".join(text), _far(source), address(target))

    run(inline, source, target)
