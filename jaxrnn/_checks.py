"""Exceptions for invalid shapes and states, and checks of arguments.

The checks look at shapes and dtypes alone, so they work on traced arrays, and they run before any
computation. Each exception is an instance of the type that PyTorch raises; a shape error is both a
ValueError, as the JAX world expects, and a RuntimeError, as PyTorch has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


class ShapeError(ValueError, RuntimeError):
    """Invalid shape or dtype of an array, or invalid number of arrays."""


class StateTypeError(TypeError, AttributeError):
    """State that is not an array."""


class StateCountError(ShapeError, IndexError):
    """Too few states in a tuple of states, or too few axes in one of them."""


def leading_axis(name: str, tree: Any, items: str, *, allow_empty: bool = False) -> int:
    """Return the length of the leading axis that all arrays of a pytree share.

    `items` is a plural noun for the elements along the axis, for messages.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    shown = ", ".join(map(str, shapes)) or "none"
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"`{name}` must be arrays with a leading axis of {items}, of equal length, got {shown}"
        )
    if not (shapes[0][0] or allow_empty):
        raise ValueError(f"`{name}` must have a nonempty axis of {items}, got {shown}")
    return shapes[0][0]


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Check that a value is one of `choices`."""
    if value not in choices:
        known = ", ".join(repr(c) for c in choices)
        raise ValueError(f"`{name}` must be one of {known}, got {value!r}")


def at_least(name: str, value: Any, minimum: int) -> None:
    """Check that a value is an integer of at least `minimum`."""
    if not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}, got {value!r}")


def positive(name: str, value: Any) -> None:
    """Check that a value is a finite number greater than zero."""
    if not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a finite number > 0, got {value!r}")


def seed(value: Any) -> None:
    """Check that a value is an integer that seeds a random generator."""
    at_least("seed", value, 0)
    if value >= 2**63:
        raise ValueError(f"`seed` must be < 2**63, got {value}")
