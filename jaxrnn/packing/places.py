"""Where each step of each sequence is: in a padded batch, in a packed one, laid end to end.

Arithmetic of NumPy on known lengths, without a loop over steps or sequences. Axis letters: N
sequences, T steps of the longest, S steps of all together.
"""

from __future__ import annotations

import numpy as np


def of_packed(
    batch_sizes: np.ndarray, order: np.ndarray | None, steps: int, batch_first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The place of each packed step in the padded batch, and of each of that in the packed.

    Args:
        batch_sizes: how many sequences have a step t (T',), T' at most T.
        order: the sequences from the longest to the shortest (N,); None for as they are.
        steps: T of the padded batch.
        batch_first: whether that is (N, T), laid out flat, and not (T, N).

    Returns:
        Places (S,) from 0 to T*N - 1; and places (T*N,) from 0 to S - 1, S where there is none.

    Example:
        >>> padded_at, packed_at = of_packed(np.array([2, 1]), np.array([1, 0]), 2, False)
        >>> padded_at.tolist(), packed_at.tolist()
        ([1, 0, 3], [1, 0, 3, 2])
    """
    batch = int(batch_sizes[0])
    step, row = _counted(batch_sizes)
    row = row if order is None else order[row]
    padded_at = row * steps + step if batch_first else step * batch + row
    return padded_at, inverse(padded_at, steps * batch)


def of_rows(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the sequence, and of the step in it, of each step laid end to end (S,).

    Example:
        >>> row, step = of_rows(np.array([2, 0, 3]))
        >>> row.tolist(), step.tolist()
        ([0, 0, 2, 2, 2], [0, 1, 0, 1, 2])
    """
    return _counted(lengths)


def _counted(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each count k its number, k times, and 0 ... k - 1."""
    group = np.repeat(np.arange(counts.size), counts)
    return group, np.arange(group.size) - np.repeat(np.cumsum(counts) - counts, counts)


def inverse(places: np.ndarray, size: int) -> np.ndarray:
    """Which of the S places is each of 0 ... size - 1 (size,); S for none.

    Example:
        >>> inverse(np.array([2, 0]), 4).tolist()
        [1, 2, 0, 2]
    """
    index = np.full(size, places.size)
    index[places] = np.arange(places.size)
    return index


def lengths(batch_sizes: np.ndarray, ranks: np.ndarray | None) -> np.ndarray:
    """The length of each sequence (N,), NumPy int64, in the order in which they were given.

    Example:
        >>> lengths(np.array([2, 1]), np.array([1, 0]))
        array([1, 2])
    """
    longest_first = (batch_sizes[:, None] > np.arange(batch_sizes[0])).sum(0)
    return longest_first if ranks is None else longest_first[ranks]


def sort(lengths: np.ndarray, enforce_sorted: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Batch sizes (T',) and order (N,) of sequences of these lengths; no order if it is kept.

    Example:
        >>> batch_sizes, order = sort(np.array([1, 3]), False)
        >>> batch_sizes.tolist(), order.tolist()
        ([2, 1, 1], [1, 0])
    """
    order = None if enforce_sorted else np.argsort(-lengths, kind="stable")
    shortest_first = (lengths if order is None else lengths[order])[::-1]
    ended = np.searchsorted(shortest_first, np.arange(shortest_first[-1]), side="right")
    return lengths.size - ended, order
