"""What counting says of a text: the loss of the likeliest guesses from the last few characters."""

from __future__ import annotations

import numpy as np

from jaxrnn import _checks as checks


def counted_loss(numbers: np.ndarray, cut: int, places: np.ndarray, order: int, size: int) -> float:
    """The loss of predicting a character from the frequencies of groups of `order` characters.

    .. code-block:: text

        p_0(b)   = 1 / V
        p_k(b|a) = (n(ab) + d(a) p_{k-1}(b|a')) / (n(a) + d(a))     a the last k - 1 characters

    with n(ab) how often b follows a in the part to learn from, n(a) how often anything does, d(a)
    how many different characters do, and a' the group a without its first. Where a never was,
    p_k = p_{k-1}. Order 1 goes by the frequency of each character, 2 by that of pairs.

    Args:
        numbers: the numbers of the characters of the text (S,), integers.
        cut: how many of them are to learn from.
        places: the places of the characters to predict, of any shape, `order` - 1 at least.
        order: k, the characters in a group; 0 for odds that know nothing.
        size: V, the characters there are.

    Returns:
        The mean of -log p_k, in nats.

    Example:
        >>> text = np.array([0, 1] * 50)
        >>> at = np.arange(80, 100)
        >>> [round(counted_loss(text, 80, at, order, 2), 3) for order in (0, 1, 2)]
        [0.693, 0.693, 0.012]

    Source: I. Witten, T. Bell, The zero-frequency problem, IEEE Transactions on Information Theory
    37 (1991), method C.
    """
    checks.at_least("order", order, 0)
    places = places.ravel()
    odds = np.full(places.shape, 1 / size)
    for before in range(order):
        known = np.arange(before, cut)
        # A group is numbered by its characters as digits; anew at each length, or they overflow.
        groups = np.zeros(len(numbers), np.int64)
        for back in range(before, 0, -1):
            groups[before:] = groups[before:] * size + numbers[before - back : len(numbers) - back]
            groups = np.unique(groups, return_inverse=True)[1]
        pairs = groups * size + numbers
        seen, times = np.unique(pairs[known], return_counts=True)
        follow = np.bincount(groups[known], minlength=groups.max() + 1)[groups[places]]
        kinds = np.bincount(seen // size, minlength=groups.max() + 1)[groups[places]]
        found = np.searchsorted(seen, pairs[places]).clip(max=len(seen) - 1)
        here = np.where(seen[found] == pairs[places], times[found], 0)
        odds = np.where(follow > 0, (here + kinds * odds) / np.maximum(follow + kinds, 1), odds)
    return float(-np.log(odds).mean())
