"""The errors of wrong shapes and states, and checks that any function may have of its arguments.

Every check happens before anything is computed, and looks at shapes and dtypes only, so that it
works on traced arrays. An error is an instance of the type that PyTorch raises; a wrong shape is
both a ValueError, as the JAX world expects, and a RuntimeError, as PyTorch has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


class ShapeError(ValueError, RuntimeError):
    """An array of a wrong shape or dtype, or a wrong number of arrays."""


class StateTypeError(TypeError, AttributeError):
    """A state that is not an array where one is expected."""


class StateCountError(ShapeError, IndexError):
    """Too few states where a pair is expected, or too few axes of one."""


def first_axes(name: str, tree: Any, what: str, items: str | None) -> int:
    """The length that the first axes of all arrays of a pytree have.

    Args:
        name: what the pytree is called.
        tree: the pytree.
        what: how its arrays should be, after "arrays with".
        items: what there is at least one of; None if there may be none.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    shown = ", ".join(map(str, shapes)) or "none"
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"{name} should be arrays with {what}, got {shown}")
    if items is not None and not shapes[0][0]:
        raise ValueError(f"{name} has no {items}, its shapes are {shown}")
    return shapes[0][0]


def time_first(name: str, tree: Any) -> int:
    """The steps T of a pytree of arrays (T, ...)."""
    return first_axes(name, tree, "time first, all of one length", "steps")


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """One of a few names."""
    if value not in choices:
        known = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} should be one of {known}, got {value!r}")


def at_least(name: str, value: Any, least: int) -> None:
    """A whole number with a lower bound."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} should be a whole number of at least {least}, got {value!r}")


def positive(name: str, value: Any) -> None:
    """A finite number greater than zero."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} should be a number greater than zero, got {value!r}")


def seed(value: Any) -> None:
    """A whole number that a random generator takes."""
    at_least("seed", value, 0)
    if value >= 2**63:
        raise ValueError(f"seed should be less than 2**63, got {value}")
