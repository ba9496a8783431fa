"""What a block sends to the others of its cluster, in PTX.

A block has two barriers, used in turns. It says how many bytes it is to get, and each piece that
arrives counts its own; the phase is over when all have come. Pallas's own stores to other blocks
have every thread of every sender arrive at the barrier, some thousands a step, which takes longer
than all else.

Messages are numbered, the even ones for one barrier and place, the odd ones for the other. Who
sends message s + 2 has had message s + 1 from all its receivers, and each sent that after it had
waited for message s and read it: threads have read it when they meet at the barrier of the block
before anything of message s + 1 is sent, and so have the tensor cores, as their results are in what
is sent. So no message comes where another is still read, none is counted in the phase before its
own, and no thread is two phases late. Pieces may come before they are expected: a phase is not over
before `expect` has arrived at its barrier, and its count of bytes may be less than zero until then.
Blocks leave together, all messages read, so that none is on its way to a block that is gone.

Source: the PTX instruction set, NVIDIA, version 8: st.async, mapa, mbarrier.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

THREADS = 128
PIECE = 16
"""Bytes that a thread sends at once."""

BARRIERS = ((4,), jnp.int32)
"""Shape and dtype of the shared memory of two barriers of 8 bytes."""


def write(text: str, *operands: Any, result: bool = False) -> Any:
    """Write PTX into the kernel here, for operands of 32 or 64 bits, after the result, if any."""
    i32, i64 = map(ir.IntegerType.get_signless, (32, 64))
    kinds = ["=r"] * result + ["l" if o.type == i64 else "r" for o in operands]
    returns = i32 if result else ir.Type.parse("!llvm.void")
    text = "{\n" + text + "\n}"
    return llvm.inline_asm(returns, list(operands), text, ",".join(kinds), has_side_effects=True)


def address(ref: Any) -> Any:
    """Where a reference to shared memory begins, as 32 bits."""
    i32 = ir.IntegerType.get_signless(32)
    return llvm.ptrtoint(i32, utils.memref_ptr(ref))


def number(array: Any) -> Any:
    """A scalar of the kernel as a register of 32 bits."""
    value = array.registers.flat[0]
    i32 = ir.IntegerType.get_signless(32)
    if value.type == ir.IndexType.get():
        return arith.index_cast(i32, value)
    return value


SCALAR = plgpu.Layout.WG_SPLAT(())


def run(body: Any, *arguments: Any, transforms: tuple[Any, ...] = (), result: Any = None) -> Any:
    """Write `body` into the kernel here, for arguments that are references or else scalars."""
    given = iter(transforms)
    kinds = [
        SCALAR if getattr(a, "shape", None) == () else plgpu.RefType(next(given, ()))
        for a in arguments
    ]
    inlined: Any = plgpu.inline_mgpu(arg_types=tuple(kinds), return_type=result)(body)
    return inlined(*arguments)


def begin(barriers: Any) -> None:
    """Make the barriers, and wait until all blocks of the cluster have made theirs."""

    def inline(_: Any, ref: Any) -> None:
        write(
            """.reg .pred p;
            .reg .b32 t;
            mov.u32 t, %tid.x;
            setp.eq.u32 p, t, 0;
            @p mbarrier.init.shared::cta.b64 [$0], 1;
            @p mbarrier.init.shared::cta.b64 [$0+8], 1;
            fence.mbarrier_init.release.cluster;
            barrier.cluster.arrive.release.aligned;
            barrier.cluster.wait.acquire.aligned;""",
            address(ref),
        )

    run(inline, barriers)


def end() -> None:
    """Wait until all blocks of the cluster are here: none leaves while others need it."""

    def inline(_: Any) -> None:
        write("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;")

    run(inline)


def expect(barriers: Any, slot: Any, count: int) -> None:
    """Say how many bytes this phase of a barrier is to get."""

    def inline(_: Any, ref: Any, slot: Any) -> None:
        write(
            f""".reg .pred p;
            .reg .b32 t, bar;
            mov.u32 t, %tid.x;
            setp.eq.u32 p, t, 0;
            mad.lo.u32 bar, $1, 8, $0;
            @p mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {count};""",
            *(address(ref), number(slot)),
        )

    run(inline, barriers, slot)


def wait(barriers: Any, slot: Any, phase: Any) -> None:
    """Until a phase of a barrier is over; they are numbered from 0, and the last bit is asked."""

    def inline(_: Any, ref: Any, slot: Any, phase: Any) -> None:
        write(
            """.reg .pred p;
            .reg .b32 bar, bit;
            mad.lo.u32 bar, $1, 8, $0;
            and.b32 bit, $2, 1;
            again:
            mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [bar], bit;
            @p bra.uni over;
            bra.uni again;
            over:""",
            *(address(ref), number(slot), number(phase)),
        )

    run(inline, barriers, slot, phase)


def push(
    source: Any,
    target: Any,
    barriers: Any,
    slot: Any,
    *,
    bytes_each: int,
    stride: int,
    first: int,
    count: int,
    others: bool = False,
    steady: bool = False,
    transforms: tuple[Any, Any] = ((), ()),
) -> None:
    """Send to blocks `first` to ``first + count``.

    Args:
        source: what the first gets; the next gets what is `stride` bytes on.
        target: where it is to be, in each block's own memory.
        barriers: of each block.
        slot: which of the two.
        bytes_each: how much each block gets, a multiple of 16.
        stride: 0 to send the same to all.
        first: the first block.
        count: how many.
        others: leave this block out.
        steady: places that differ by a number are written as such, if pieces and threads allow it;
            else the compiler may keep each in a register of its own.
        transforms: of source and target.
    """
    pieces = bytes_each // PIECE

    def send(source: str, place: str, target: str) -> list[str]:
        """One piece to a block, if it is to get any: `place` is `target`'s in this block."""
        return [
            *(["setp.ne.and.u32 p, peer, me, p;"] if others else []),
            f"@p ld.shared::cta.v4.b32 {{a, b, c, d}}, [{source}];",
            f"@p mapa.shared::cluster.u32 to, {place}, peer;",
            "@p mapa.shared::cluster.u32 their, bar, peer;",
            "@p st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
            f"[{target}], {{a, b, c, d}}, [their];",
        ]

    def inline(_: Any, source: Any, target: Any, ref: Any, slot: Any) -> None:
        text = [
            ".reg .pred p;",
            ".reg .b32 t, me, bar, item, peer, piece, from, to, their, a, b, c, d;",
            "mov.u32 t, %tid.x;",
            "mov.u32 me, %cluster_ctarank;",
            "mad.lo.u32 bar, $3, 8, $2;",
        ]
        regular = steady and (THREADS % pieces == 0 or pieces % THREADS == 0)
        if regular:
            text += [
                f"div.u32 item, t, {pieces};",
                f"mul.lo.u32 piece, item, {pieces};",
                "sub.u32 piece, t, piece;",
                f"mad.lo.u32 from, piece, {PIECE}, $0;",
                f"mad.lo.u32 from, item, {stride}, from;",
                ".reg .b32 place;",
                f"mad.lo.u32 place, piece, {PIECE}, $1;",
            ]
        for start in range(0, count * pieces, THREADS):
            if regular:
                on = start % pieces * PIECE
                text += [
                    f"setp.lt.u32 p, t, {count * pieces - start};",
                    f"add.u32 peer, item, {first + start // pieces};",
                    *send(f"from+{start // pieces * stride + on}", "place", f"to+{on}"),
                ]
            else:
                text += [
                    f"add.u32 item, t, {start};",
                    f"setp.lt.u32 p, item, {count * pieces};",
                    f"div.u32 peer, item, {pieces};",
                    f"mul.lo.u32 piece, peer, {pieces};",
                    "sub.u32 piece, item, piece;",
                    f"mad.lo.u32 from, piece, {PIECE}, $0;",
                    f"mad.lo.u32 to, piece, {PIECE}, $1;",
                    f"mad.lo.u32 from, peer, {stride}, from;",
                    f"add.u32 peer, peer, {first};",
                    *send("from", "to", "to"),
                ]
        write("\n".join(text), address(source), address(target), address(ref), number(slot))

    run(inline, source, target, barriers, slot, transforms=transforms)
