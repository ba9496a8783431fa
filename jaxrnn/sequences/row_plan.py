"""Where many short sequences lie in few rows: best fit, found on the host.

Axis letters: M sequences, S the steps of a row, N rows.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer

from jaxrnn._checks import ShapeError
from jaxrnn.packing import places


class RowPlan(NamedTuple):
    """Where each sequence lies, as arrays: data to a compiled function, and not part of it.

    Attributes:
        sequence: int32 (S, N), the number of the sequence in each cell; -1 where there is none.
        step: int32 (S, N), which of its steps that is.
        resets: bool (S, N), True where a sequence begins, and where the padding at the end of a
            row does: for a layer's call.
        row_lengths: int32 (N,), how many steps of a row are filled. As a layer's `lengths` it makes
            the output of the padding zero; sequences are kept from it by the resets alone.
        lengths: int32 (M,), the steps of each sequence.
        row: int32 (M,), the row it lies in.
        first: int32 (M,), its first step in that row.
    """

    sequence: Any
    step: Any
    resets: Any
    row_lengths: Any
    lengths: Any
    row: Any
    first: Any

    @property
    def last(self) -> Any:
        """The last step of each sequence in its row, int32 (M,); of an empty one, first - 1.

        >>> plan_rows([3, 0, 2]).last.tolist()
        [2, -1, 1]
        """
        return self.first + self.lengths - 1

    @property
    def filled(self) -> Any:
        """The cells in which there is a step, bool (S, N): weights of a loss over the rows.

        >>> plan_rows([3, 2]).filled.mean().item()  # the part of the compute that is not wasted
        0.8333333333333334
        """
        return self.sequence >= 0


def plan_rows(lengths: Any, *, row_length: int | None = None, rows: int | None = None) -> RowPlan:
    """Find a place for each sequence: best fit, the longest first.

    Each sequence goes into the fullest row that has room for it, a new one if none has. This takes
    at most ``11/9 OPT + 1`` rows of the least number OPT, seldom more than ``sum(lengths) /
    row_length`` rounded up if many sequences are short; 100,000 sequences take about 0.2 s.

    Args:
        lengths: integers (M,) in any order, 0 allowed, known: no traced ones.
        row_length: S, the steps of a row, at least the longest sequence. None: with `rows`, about
            the least in which all fit. Without, the longest sequence, for what can't be done at
            once are the steps of a row; or up to an eighth more, where that brings the rows down to
            a multiple of 8 and takes no more cells, for a CPU computes eight rows or more at a time
            (33 rows take as long as 36). A chosen length of more than 64 is a multiple of 4, so
            that it falls into blocks of steps.
        rows: N; None for as many as are needed. What is too much stays empty.

    Returns:
        The plan. With both `row_length` and `rows` its shapes are theirs and M, whatever the
        lengths: fill up a smaller batch with empty sequences, and nothing is compiled again.

    Raises:
        TypeError: for lengths that are traced or no integers.
        ValueError: if they are not (M,) with M at least 1, or below 0; if a sequence is longer than
            a row, or all together need more rows than there are: the error says how many.

    Example:
        >>> plan = plan_rows([2, 6, 0, 4])
        >>> plan.sequence.T.tolist()
        [[1, 1, 1, 1, 1, 1], [3, 3, 3, 3, 0, 0]]
        >>> plan.resets.T.astype(int).tolist()
        [[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]]
        >>> plan_rows([2, 6, 0, 4], row_length=8, rows=1)
        Traceback (most recent call last):
        ValueError: 4 sequences, 12 steps in all, need 2 rows of 8 steps, got rows=1

    Source: D. S. Johnson, Near-optimal bin packing algorithms, thesis, MIT (1973); its use for
    training: M. Kosec et al., arXiv:2107.02027.
    """
    known = _known_lengths(lengths)
    longest, total = max(1, int(known.max())), int(known.sum())
    row_length = _at_least("row_length", row_length, longest, ", the longest sequence")
    rows = _at_least("rows", rows, 1)
    if row_length is not None:
        row, first, needed = _best_fit(known, row_length)
        if rows is not None and needed > rows:
            raise ValueError(
                f"{len(known)} sequences, {total} steps in all, need {needed} rows of "
                f"{row_length} steps, got rows={rows}"
            )
    elif rows is not None:
        row_length = _in_blocks(max(longest, -(-total // rows)))
        row, first, needed = _best_fit(known, row_length)
        while needed > rows:
            row_length = _in_blocks(row_length + 1 + row_length // 128)
            row, first, needed = _best_fit(known, row_length)
    else:
        row_length, (row, first, needed) = _fewest_cells(known, longest)
    rows = needed if rows is None else rows
    return _plan(known, row_length, rows, row, first)


def _at_least(name: str, value: Any, least: int, what: str = "") -> int | None:
    if value is None:
        return None
    if operator.index(value) < least:
        raise ValueError(f"{name} should be at least {least}{what}, got {value}")
    return operator.index(value)


def _in_blocks(steps: int) -> int:
    """As many steps or a few more, for `jaxrnn.backends.blocks` to divide."""
    return steps if steps <= 64 else -(-steps // 4) * 4


def _known_lengths(lengths: Any) -> np.ndarray:
    if isinstance(lengths, Tracer):
        raise TypeError(
            "lengths are traced, and a plan is made on the host: call plan_rows outside of jit and "
            "hand the plan in as an argument"
        )
    known = np.asarray(lengths)
    if known.ndim != 1 or known.size == 0:
        raise ShapeError(f"lengths should be (M,) with M at least 1, got shape {known.shape}")
    if not np.issubdtype(known.dtype, np.integer):
        raise TypeError(f"lengths should be integers, got {known.dtype.name}")
    if (known < 0).any():
        raise ValueError(f"lengths should be at least 0, got {known.min()}")
    return known.astype(np.int64)


def _best_fit(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The row and first step of each sequence, and how many rows there are."""
    row, first = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    rows = 0
    rooms: list[int] = []  # the different amounts of room there are, in order
    with_room: dict[int, list[int]] = {}  # the rows that have so much
    order = np.argsort(-lengths, kind="stable")
    for sequence, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if length == 0:
            break  # and so are all others: anywhere
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, chosen = row_length, rows
            rows += 1
        else:
            room = rooms[place]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        row[sequence], first[sequence] = chosen, row_length - room
        room -= length
        if room in with_room:
            with_room[room].append(chosen)
        elif room:
            with_room[room] = [chosen]
            rooms.insert(bisect_left(rooms, room), room)
    return row, first, max(1, rows)


def _fewest_cells(
    lengths: np.ndarray, longest: int
) -> tuple[int, tuple[np.ndarray, np.ndarray, int]]:
    """A row length near the longest sequence, and the best fit for it; see `plan_rows`."""
    least = _in_blocks(longest)
    found = _best_fit(lengths, least)
    eights = found[2] // 8 * 8
    if eights in (0, found[2]):
        return least, found
    row_length = _in_blocks(max(least + 1, -(-int(lengths.sum()) // eights)))
    while row_length <= min(longest + longest // 8, least * found[2] // eights):
        other = _best_fit(lengths, row_length)
        if other[2] <= eights:
            return row_length, other
        row_length = _in_blocks(row_length + 1)
    return least, found


def _plan(
    lengths: np.ndarray, row_length: int, rows: int, row: np.ndarray, first: np.ndarray
) -> RowPlan:
    """The plan's arrays, of the row and first step of each sequence."""
    numbers, steps = places.of_rows(lengths)
    cells = first[numbers] + steps, row[numbers]
    sequence = np.full((row_length, rows), -1, np.int32)
    step = np.zeros((row_length, rows), np.int32)
    sequence[cells], step[cells] = numbers, steps
    row_lengths = np.bincount(row, lengths, rows).astype(np.int32)
    resets = (step == 0) & (sequence >= 0)
    unfilled = np.flatnonzero(row_lengths < row_length)
    resets[row_lengths[unfilled], unfilled] = True
    narrow = (a.astype(np.int32) for a in (lengths, row, first))
    return RowPlan(sequence, step, resets, row_lengths, *narrow)
