"""The numbers that a call of a kernel is given: sizes, and where what lies in its scratch memory.

All are known when the call is traced, so they are worked out here and the kernel is handed them.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxrnn.backends.cpu.threads import Sharing
from jaxrnn.backends.cpu.tiles import Machine, Tile

# Rows of gate inputs from x that are computed at once: enough for a fast product, few enough that
# they stay in the cache until their steps have come.
ROWS_AHEAD = 96

# Rows of dz that are gathered before what they are needed for is done: few enough that they stay in
# the cache. Large derivatives by weights, which do not, are read and written again less often.
ROWS_BEHIND, ROWS_BEHIND_LARGE, LARGE_BYTES = 128, 512, 1 << 24

# A thread has to have so many operations to do; starting one takes some 20 microseconds.
FLOP_A_THREAD = 4_000_000

# Weights up to here are read by each thread as a whole, from its own cache. Larger ones are shared
# out, at the price of a meeting after each step.
SHARED_BYTES = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call: steps, rows of the batch, input features, hidden units."""

    T: int
    N: int
    D: int
    H: int


def sharing(
    machine: Machine, tile: Tile, gates: int, sizes: Sizes, panels: int, weights: int
) -> Sharing:
    """How a call is shared out among threads.

    Args:
        machine: what it runs on.
        tile: of its products.
        gates: G.
        sizes: of the call.
        panels: how many panels the hidden units make.
        weights: bytes of the weights that are read at each step.
    """
    flop = 2 * sizes.T * sizes.N * sizes.H * (sizes.D + sizes.H) * gates
    threads = max(1, min(machine.cores, flop // FLOP_A_THREAD))
    by_rows = max(1, sizes.N // tile.rows)
    if by_rows >= threads and (weights <= SHARED_BYTES or panels < threads):
        return Sharing(threads, 1)
    if panels >= threads:
        return Sharing(1, threads)
    groups = min(threads, by_rows)
    return Sharing(groups, max(1, min(threads // groups, panels)))


def steps_behind(sizes: Sizes, weights: int) -> int:
    """Steps in a block of the backward kernel, for so many bytes of derivatives by weights."""
    rows = ROWS_BEHIND if weights <= LARGE_BYTES else ROWS_BEHIND_LARGE
    return max(1, min(sizes.T, rows // sizes.N))


class Areas:
    """Pieces of scratch memory one after another, each on a line of the cache of its own."""

    def __init__(self) -> None:
        self.size = 0
        self.places: dict[str, int] = {}

    def add(self, name: str, size: int) -> None:
        """A piece of so many bytes."""
        self.places[name] = self.size
        self.size += -(-size // 64) * 64


def numbers(
    order: tuple[str, ...], areas: Areas, private: Areas, sizes: Sizes, turn: int, **more: int
) -> list[int]:
    """The numbers of a call in the order in which its kernel reads them.

    Args:
        order: their names.
        areas: of the memory that all threads share; behind them are those of each thread.
        private: of a thread.
        sizes: of the call.
        turn: 1, or -1 from the last step to the first.
        more: what else the kernel reads.
    """
    begun = dict(FIRST=0 if turn > 0 else sizes.T - 1, TURN=turn)
    known = {**more, **areas.places, **private.places, **vars(sizes), **begun}
    known |= dict(PRIVATE=areas.size, STRIDE=private.size)
    return [known[name] for name in order]
