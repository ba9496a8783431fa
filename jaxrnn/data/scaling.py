"""Columns brought to a common scale, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Scaling(NamedTuple):
    """Each column moved and divided; a pytree, to be passed through `jax.jit` and `jax.vmap`.

    .. code-block:: text

        scaling(x)         = (x - shift) / scale
        scaling.inverse(z) = z * scale + shift

    Attributes:
        shift: what becomes zero, in the units of each column (C,).
        scale: what becomes one above that (C,), nowhere zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.data import min_max, split
        >>> series = jnp.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0], [9.0, 5.0]])
        >>> train, test = split(4, (0.75, 0.25))
        >>> scaling = min_max(series, train)  # what is in the test part has no say
        >>> scaling(series).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.5, 0.0], [4.0, 0.0]]
        >>> scaling.columns([0]).inverse(jnp.array([[0.5]])).tolist()
        [[2.0]]
    """

    shift: jax.Array
    scale: jax.Array

    def __call__(self, values: Any) -> jax.Array:
        """Values (..., C) on the common scale."""
        shift, scale = self._fitting(values)
        return (values - shift) / scale

    def inverse(self, values: Any) -> jax.Array:
        """Values (..., C) on the common scale, back in the units of the data."""
        shift, scale = self._fitting(values)
        return values * scale + shift

    def columns(self, columns: Sequence[int]) -> Scaling:
        """The scaling of some of the columns, of the targets say."""
        picked = np.array(columns)
        return Scaling(self.shift[picked], self.scale[picked])

    def _fitting(self, values: Any) -> tuple[jax.Array, jax.Array]:
        """Shift and scale with the axes of the values; a series (T,) has one column."""
        shape, columns = jnp.shape(values), jnp.shape(self.shift)
        if columns and shape[-1:] != columns:
            raise ValueError(f"the scaling has {columns[0]} columns, the values' shape is {shape}")
        axes = (1,) * (len(shape) - len(columns)) + columns
        return self.shift.reshape(axes), self.scale.reshape(axes)


def min_max(values: Any, rows: range | None = None) -> Scaling:
    """The scaling that takes the least of each column to 0 and the greatest to 1.

    Args:
        values: a series (T, C), or (T,) of one column, floating point.
        rows: the steps to go by, those of the training part; None for all. What lies in other
            parts can then be below 0 or above 1.

    Returns:
        `Scaling`. A column that is constant goes to 0, whatever its value.

    Raises:
        ValueError: for values that are not floating point, or have no steps or other axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.data import min_max
        >>> min_max(jnp.array([2.0, 4.0, 3.0]))(jnp.array([3.0, 6.0])).tolist()
        [0.5, 2.0]
    """
    least, spread = _range(_part(values, rows))
    return Scaling(least[0], spread[0])


def standard(values: Any, rows: range | None = None) -> Scaling:
    """The scaling that takes each column to mean 0 and standard deviation 1 (that of all values).

    The arguments and errors are those of `min_max`. A column that is constant goes to 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.data import standard
        >>> scaling = standard(jnp.array([[2.0, 0.1], [4.0, 0.1]]))
        >>> scaling(jnp.array([[4.0, 0.1]])).tolist()
        [[1.0, 0.0]]
    """
    values = _part(values, rows)
    # From the values between 0 and 1: the mean of equal values is exact then, where its rounding
    # would be a spread to divide by; and squares of small differences don't vanish.
    least, spread = _range(values)
    unit = (values - least) / spread
    deviation = unit.std(0)
    return Scaling(
        least[0] + spread[0] * unit.mean(0), spread[0] * jnp.where(deviation > 0, deviation, 1)
    )


def _range(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least of each column, and how far the greatest is above it, or 1; with an axis for T."""
    least = values.min(0, keepdims=True)
    spread = values.max(0, keepdims=True) - least
    return least, jnp.where(spread > 0, spread, 1)


def _part(values: Any, rows: range | None) -> jax.Array:
    values = jnp.asarray(values)
    if values.ndim not in (1, 2) or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            "values should be floating point, (T,) or (T, C), "
            f"got {values.dtype.name} {values.shape}"
        )
    part = values if rows is None else values[rows.start : rows.stop]
    if not len(part):
        raise ValueError(f"there are no steps to go by: {len(values)} steps, rows {rows}")
    return part
