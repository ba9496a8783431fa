"""Selection of test cases: every pair of option values occurs in at least one case.

Most faults need one option or the interaction of two, so the quick tests run such a selection; the
slow tests run the full product.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def pairwise(strength: int = 2, **options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return tuples of option values in which all combinations of two options' values occur.

    Greedy: each next case of the full product covers as many missing combinations as possible, the
    first of them on a tie, so that the selection is deterministic.

    Args:
        strength: how many options are combined; 3 for all combinations of three options.
        options: the values of each option.

    Example:
        >>> pairwise(bias=(False, True), layers=(1, 2), reverse=(False, True))
        [(False, 1, False), (False, 2, True), (True, 1, True), (True, 2, False)]
    """
    product = list(itertools.product(*(range(len(values)) for values in options.values())))
    combinations = {
        case: set(itertools.combinations(enumerate(case), strength)) for case in product
    }
    missing = set().union(*combinations.values())
    cases = []
    while missing:
        best = max(product, key=lambda case: len(combinations[case] & missing))
        missing -= combinations[best]
        cases.append(best)
    values = list(options.values())
    return [tuple(values[i][k] for i, k in enumerate(case)) for case in cases]
