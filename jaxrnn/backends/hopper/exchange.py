"""Messages between the blocks of a cluster and between clusters, as inline PTX.

**Within a cluster** blocks store into each other's shared memory (``st.async``). A block has two
mbarriers, used alternately. It announces the number of bytes to arrive, each store counts its own
bytes, and the phase completes when all have arrived. Pallas's remote stores make every thread of
every sender arrive instead, thousands of arrivals a step, which costs more than the rest of it.

**Between clusters** blocks write to global memory and add to a counter (release); receivers wait
for the counter (acquire). Both sides use the generic proxy and need no proxy fence; shared memory
needs that of `plgpu.commit_smem` before the tensor cores read it through the async proxy. A block
that waits needs the blocks that it waits for to be resident, so clusters take a ticket when they
start and derive their place in a group from it.

`README.md` argues why two buffers suffice and why groups cannot deadlock.

Sources: NVIDIA, PTX ISA version 8: st.async, mapa, mbarrier, memory consistency model; tickets:
D. Merrill and M. Garland, Single-pass parallel prefix scan with decoupled look-back, NVIDIA 2016.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

_THREADS = 128  # of a block
_PIECE = 16  # bytes that a thread moves at once

BARRIERS = ((4,), jnp.int32)
"""Shape and dtype of two mbarriers of 8 bytes each."""

TICKET = ((1,), jnp.int32)
"""Shape and dtype of the shared memory for a cluster's ticket."""

COUNTER_STRIDE = 32
"""Distance of counters in 32-bit words: one cache line each."""


def emit(text: str, *operands: Any, transforms: tuple[Any, ...] = (), returns: bool = False) -> Any:
    """Emit PTX into the kernel that is being traced.

    Args:
        text: the instructions. ``$0``, ``$1``, ... are the result, if any, and the operands.
        operands: scalars, as 32-bit registers, and references, as addresses: 32 bits for shared
            memory, 64 bits for global memory.
        transforms: transforms of the references, in order.
        returns: if True, the instructions return a 32-bit scalar.
    """
    scalar = plgpu.Layout.WG_SPLAT(())
    given = iter(transforms)
    kinds = [
        scalar if getattr(operand, "shape", None) == () else plgpu.RefType(next(given, ()))
        for operand in operands
    ]

    def _body(_: Any, *operands: Any) -> Any:
        i32, i64 = map(ir.IntegerType.get_signless, (32, 64))
        registers = list(map(_register, operands))
        constraints = ["l" if r.type == i64 else "r" for r in registers]
        result: Any = llvm.inline_asm(
            i32 if returns else ir.Type.parse("!llvm.void"),
            registers,
            "{\n" + text + "\n}",
            ",".join(["=r"] * returns + constraints),
            has_side_effects=True,
        )
        return FragmentedArray.splat(result, shape=(), is_signed=True) if returns else None

    result = plgpu.ShapeDtypeStruct((), jnp.int32, layout=scalar) if returns else None
    inlined: Any = plgpu.inline_mgpu(arg_types=tuple(kinds), return_type=result)(_body)
    return inlined(*operands)


def _register(operand: Any) -> Any:
    """Return a scalar's value or a reference's address."""
    i32, i64 = map(ir.IntegerType.get_signless, (32, 64))
    if isinstance(operand, FragmentedArray):
        value: Any = operand.registers.flat[0]
        return arith.index_cast(i32, value) if value.type == ir.IndexType.get() else value
    pointer = utils.memref_ptr(operand)
    return llvm.ptrtoint(i32 if utils.is_smem_ref(operand) else i64, pointer)


# Within a cluster


def init_barriers(barriers: Any) -> None:
    """Initialise the mbarriers, and wait until all blocks of the cluster have done so."""
    emit(
        """.reg .pred p;
        .reg .b32 t;
        mov.u32 t, %tid.x;
        setp.eq.u32 p, t, 0;
        @p mbarrier.init.shared::cta.b64 [$0], 1;
        @p mbarrier.init.shared::cta.b64 [$0+8], 1;
        fence.mbarrier_init.release.cluster;
        barrier.cluster.arrive.release.aligned;
        barrier.cluster.wait.acquire.aligned;""",
        barriers,
    )


def exit_together() -> None:
    """Wait until all blocks of the cluster arrive here; none may exit while others write to it."""
    emit("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;")


def expect(barriers: Any, index: Any, num_bytes: int) -> None:
    """Announce the bytes that complete the current phase of mbarrier `index`."""
    emit(
        f""".reg .pred p;
        .reg .b32 t, bar;
        mov.u32 t, %tid.x;
        setp.eq.u32 p, t, 0;
        mad.lo.u32 bar, $1, 8, $0;
        @p mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {num_bytes};""",
        *(barriers, index),
    )


def wait(barriers: Any, index: Any, phase: Any) -> None:
    """Wait for a phase of mbarrier `index`. Phases count from 0; the hardware tests the parity."""
    emit(
        """.reg .pred p;
        .reg .b32 bar, bit;
        mad.lo.u32 bar, $1, 8, $0;
        and.b32 bit, $2, 1;
        again:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [bar], bit;
        @p bra.uni over;
        bra.uni again;
        over:""",
        *(barriers, index, phase),
    )


def send(
    source: Any,
    target: Any,
    barriers: Any,
    index: Any,
    num_bytes: int,
    stride: int,
    first: int,
    count: int,
    *,
    skip_self: bool = False,
    fixed_offsets: bool = False,
    transforms: tuple[Any, Any] = ((), ()),
) -> None:
    """Send data to the blocks `first` to ``first + count`` of the cluster.

    Args:
        source: data of the first block; those of the next begin `stride` bytes later.
        target: destination, at the same address in each receiver, like `barriers`.
        barriers: mbarriers, of which `index` counts the message.
        index: 0 or 1.
        num_bytes: bytes for each block, a multiple of 16.
        stride: bytes between the data of two blocks; 0 sends the same data to all.
        first: rank of the first receiver.
        count: number of receivers.
        skip_self: if True, do not send to this block.
        fixed_offsets: if True, use immediate offsets where pieces divide evenly among threads, to
            save registers.
        transforms: transforms of source and target.
    """
    pieces = num_bytes // _PIECE

    def _send_piece(source: str, local: str, remote: str) -> list[str]:
        return [
            *(["setp.ne.and.u32 p, peer, me, p;"] if skip_self else []),
            f"@p ld.shared::cta.v4.b32 {{a, b, c, d}}, [{source}];",
            f"@p mapa.shared::cluster.u32 to, {local}, peer;",
            "@p mapa.shared::cluster.u32 their, bar, peer;",
            "@p st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
            f"[{remote}], {{a, b, c, d}}, [their];",
        ]

    text = [
        ".reg .pred p;",
        ".reg .b32 t, me, bar, item, peer, piece, from, to, their, a, b, c, d;",
        "mov.u32 t, %tid.x;",
        "mov.u32 me, %cluster_ctarank;",
        "mad.lo.u32 bar, $3, 8, $2;",
    ]
    fixed = fixed_offsets and (_THREADS % pieces == 0 or pieces % _THREADS == 0)
    if fixed:
        text += [
            f"div.u32 item, t, {pieces};",
            f"mul.lo.u32 piece, item, {pieces};",
            "sub.u32 piece, t, piece;",
            f"mad.lo.u32 from, piece, {_PIECE}, $0;",
            f"mad.lo.u32 from, item, {stride}, from;",
            ".reg .b32 place;",
            f"mad.lo.u32 place, piece, {_PIECE}, $1;",
        ]
    for start in range(0, count * pieces, _THREADS):
        if fixed:
            offset = start % pieces * _PIECE
            text += [
                f"setp.lt.u32 p, t, {count * pieces - start};",
                f"add.u32 peer, item, {first + start // pieces};",
                *_send_piece(f"from+{start // pieces * stride + offset}", "place", f"to+{offset}"),
            ]
        else:
            text += [
                f"add.u32 item, t, {start};",
                f"setp.lt.u32 p, item, {count * pieces};",
                f"div.u32 peer, item, {pieces};",
                f"mul.lo.u32 piece, peer, {pieces};",
                "sub.u32 piece, item, piece;",
                f"mad.lo.u32 from, piece, {_PIECE}, $0;",
                f"mad.lo.u32 to, piece, {_PIECE}, $1;",
                f"mad.lo.u32 from, peer, {stride}, from;",
                f"add.u32 peer, peer, {first};",
                *_send_piece("from", "to", "to"),
            ]
    emit("\n".join(text), source, target, barriers, index, transforms=transforms)


# Between clusters


def draw_ticket(ticket: Any, counter: Any) -> Any:
    """Return the number of clusters that started before this one, the same in all its blocks."""
    return emit(
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
        *(ticket, counter),
        returns=True,
    )


def signal(counter: Any) -> None:
    """Release this block's writes: add one to a counter."""
    emit(
        """.reg .pred p;
        .reg .b32 t;
        barrier.sync 0;
        mov.u32 t, %tid.x;
        setp.eq.u32 p, t, 0;
        @p red.release.gpu.global.add.u32 [$0], 1;""",
        counter,
    )


def wait_for_signals(counter: Any, count: Any) -> None:
    """Wait until a counter reaches `count`, and acquire what the senders wrote before."""
    emit(
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
        *(counter, count),
    )


_DECLARATIONS = (
    ".reg .pred few;",
    ".reg .b32 t, which, word, near, a, b, c, d;",
    ".reg .b64 there;",
    "mov.u32 t, %tid.x;",
)


def _rounds(pieces: int) -> list[tuple[int, str]]:
    """Return the first piece of each round of the threads, and the predicate of a partial round."""
    rest = pieces % _THREADS
    rounds = [(start, "") for start in range(0, pieces - rest, _THREADS)]
    return rounds + ([(pieces - rest, "@few ")] if rest else [])


def write_global(
    source: Any,
    target: Any,
    num_bytes: int,
    stride: int = 0,
    first: int = 0,
    count: int = 1,
    transforms: tuple[Any, ...] = (),
) -> None:
    """Copy contiguous tiles of `num_bytes`, a multiple of 16, from shared to global memory.

    Tile number k, from `first` on, is written `k * stride` bytes after the target.
    """
    pieces = num_bytes // _PIECE

    def _set_address(start: int) -> list[str]:
        return [
            f"add.u32 word, t, {start};",
            f"div.u32 which, word, {pieces};",
            f"mul.lo.u32 near, which, {pieces};",
            "sub.u32 word, word, near;",
            f"mad.wide.u32 there, word, {_PIECE}, $1;",
            f"mad.wide.u32 there, which, {stride}, there;",
        ]

    # If rounds are whole tiles or tiles whole rounds, offsets between rounds are constants.
    fixed = _THREADS % pieces == 0 or pieces % _THREADS == 0
    text = [*_DECLARATIONS, f"setp.lt.u32 few, t, {count * pieces % _THREADS};", *_set_address(0)]
    for start, predicate in _rounds(count * pieces):
        offset = first * stride
        if fixed:
            offset += start // pieces * stride + start % pieces * _PIECE
        else:
            text += _set_address(start)
        text += [
            f"mad.lo.u32 near, t, {_PIECE}, $0;",
            f"{predicate}ld.shared::cta.v4.b32 {{a, b, c, d}}, [near+{start * _PIECE}];",
            f"{predicate}st.global.v4.b32 [there+{offset}], {{a, b, c, d}};",
        ]
    emit("\n".join(text), source, target, transforms=transforms)


def read_global(source: Any, target: Any, num_bytes: int, transforms: tuple[Any, ...]) -> None:
    """Copy from global to shared memory, whose transforms are given.

    ``.cg`` reads through L2, which all SMs share. Each thread has waited for its own copies on
    return; `plgpu.commit_smem` makes them visible to all threads.
    """
    pieces = num_bytes // _PIECE
    text = [
        *_DECLARATIONS,
        f"setp.lt.u32 few, t, {pieces % _THREADS};",
        f"mad.lo.u32 near, t, {_PIECE}, $1;",
        f"mad.wide.u32 there, t, {_PIECE}, $0;",
    ]
    for start, predicate in _rounds(pieces):
        at = start * _PIECE
        text.append(f"{predicate}cp.async.cg.shared.global [near+{at}], [there+{at}], {_PIECE};")
    emit("\n".join([*text, "cp.async.wait_all;"]), source, target, transforms=((), transforms))


def zero_global(target: Any, num_bytes: int) -> None:
    """Write zeros to global memory, visible to this block on return."""
    pieces = num_bytes // _PIECE
    text = [
        *_DECLARATIONS,
        f"setp.lt.u32 few, t, {pieces % _THREADS};",
        f"mad.wide.u32 there, t, {_PIECE}, $0;",
        "mov.u32 a, 0;",
    ]
    for start, predicate in _rounds(pieces):
        text.append(f"{predicate}st.global.v4.b32 [there+{start * _PIECE}], {{a, a, a, a}};")
    emit("\n".join([*text, "barrier.sync 0;"]), target)


def sum_global(source: Any, target: Any, size: int, count: int) -> None:
    """Write the sum of `count` contiguous float32 arrays of `size` elements to shared memory.

    The order of summation is fixed. ``ld.relaxed.gpu`` reads through L2, which all SMs share.
    """
    width = next(w for w in (4, 2, 1) if size // w >= _THREADS)  # elements of a load
    suffix = {4: ".v4.f32", 2: ".v2.f32", 1: ".f32"}[width]
    in_flight = min(count, 32 // width)
    total = [f"s{i}" for i in range(width)]
    loaded = [[f"x{k}_{i}" for i in range(width)] for k in range(in_flight)]

    def _vector(registers: list[str]) -> str:
        return f"{{{', '.join(registers)}}}" if width > 1 else registers[0]

    text = [
        *_DECLARATIONS,
        f".reg .f32 {', '.join([*total, *(r for registers in loaded for r in registers)])};",
        f"setp.lt.u32 few, t, {size // width % _THREADS};",
        f"mad.lo.u32 near, t, {4 * width}, $1;",
        f"mad.wide.u32 there, t, {4 * width}, $0;",
    ]
    for start, predicate in _rounds(size // width):
        for begin in range(0, count, in_flight):
            batch = loaded[: min(in_flight, count - begin)]
            for k, registers in enumerate(batch):
                at = 4 * ((begin + k) * size + start * width)
                load = f"ld.relaxed.gpu.global{suffix} {_vector(registers)}, [there+{at}];"
                text.append(predicate + load)
            for k, registers in enumerate(batch):
                for t, r in zip(total, registers, strict=True):
                    text.append(f"add.f32 {t}, {t}, {r};" if begin + k else f"mov.f32 {t}, {r};")
        at = 4 * start * width
        text.append(f"{predicate}st.shared::cta{suffix} [near+{at}], {_vector(total)};")
    emit("\n".join(text), source, target)
