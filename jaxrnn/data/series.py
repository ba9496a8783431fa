"""Sliding windows of a series by their numbers, and its parts in the order of time.

A series of T steps has about T windows of K steps: together K times the series. They are never
made. `Windows` says how the series is cut, and a batch is gathered from the series by the numbers
of its windows, inside of the compiled step:

.. code-block:: text

    series        0  1  2  3  4  5  6  7  8  9          T = 10
    window 0      x  x  x  y  y                         size 3, horizon 2, stride 2
    window 1            x  x  x  y  y
    window 2                  x  x  x  y  y
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import _checks as checks


def windows(values: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Every `size` values in a row, and the value that follows them, all at once.

    For short series: this is `size` times the series. `Windows` makes a batch at a time.

    Args:
        values: a series (T,).
        size: D, less than T.

    Returns:
        x, the windows (T - D, D), and y, the next values (T - D, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = windows(jnp.arange(5), 3)
        >>> x.tolist(), y.tolist()
        ([[0, 1, 2], [1, 2, 3]], [[3], [4]])
    """
    starts = jnp.arange(len(values) - size)
    return values[starts[:, None] + jnp.arange(size)[None]], values[size:, None]


@dataclass(frozen=True)
class Windows:
    """How a series is cut into windows: inputs, and the targets that follow them.

    .. code-block:: text

        s   = k * stride                                        window k begins here
        x_k = series[s : s + size, features]
        y_k = series[s + size : s + size + horizon, targets]
        y_k = series[s + horizon : s + horizon + size, targets]       with every_step

    It is a description, hashable, without data: the same one serves the training and the test
    series, inside and outside of `jax.jit`.

    Args:
        size: steps of input in a window.
        horizon: the number of steps after them that are targets; with `every_step`, how far ahead
            of each input its target is.
        stride: steps from the beginning of a window to that of the next.
        features: the columns of the inputs; None for all.
        targets: the columns of the targets; None for all.
        every_step: a target for each step of input, instead of for what follows the window: from
            each character the next, say.

    Raises:
        ValueError: for sizes that are not whole numbers of at least 1, or no columns.

    Example:
        Three days of four columns, and the last column of the two days that follow:

        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.data import Windows
        >>> series = jnp.arange(40.0).reshape(10, 4)
        >>> cut = Windows(3, horizon=2, targets=(3,))
        >>> cut.count(len(series))
        6
        >>> x, y = jax.jit(cut.take)(series, jnp.array([0, 5]))
        >>> x.shape, y.shape, y[0, :, 0].tolist()
        ((2, 3, 4), (2, 2, 1), [15.0, 19.0])

        It is what `jaxrnn.training.fit` takes, with the rows of the training part alone:

        .. code-block:: python

            train, test = data.split(len(series), (0.8, 0.2))
            fit(loss, optimizer, model, series, take=cut.take, examples=len(cut.within(train)),
                batch_size=64, epochs=10)
    """

    size: int
    horizon: int = 1
    stride: int = 1
    features: tuple[int, ...] | None = None
    targets: tuple[int, ...] | None = None
    every_step: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "horizon", "stride"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("features", "targets"):
            columns = getattr(self, name)
            if columns is None:
                continue
            if not isinstance(columns, Sequence) or not columns:
                raise ValueError(f"{name} should be the numbers of columns, got {columns!r}")
            for number, column in enumerate(columns):
                checks.at_least(f"{name}[{number}]", column, 0)
            object.__setattr__(self, name, tuple(columns))  # hashable, a list too

    @property
    def span(self) -> int:
        """Steps from the first input of a window to its last target, both included."""
        return self.size + self.horizon

    def count(self, steps: int) -> int:
        """The number of windows in a series of so many steps: those that are wholly in it."""
        return max(0, (steps - self.span) // self.stride + 1)

    def within(self, rows: range, *, context: bool = False) -> range:
        """The numbers of the windows in a part of a series.

        Args:
            rows: the steps of the part, as `split` gives them.
            context: let the inputs reach back before the part: only the targets have to be in it.
                When the first step of a test part is to be predicted, the steps before it are
                known, so this takes nothing from the future; without it, the first `size` steps of
                the part are never predicted. With `every_step` some targets are before the part
                then, and it is an error.

        Returns:
            The numbers of the windows. Without `context`, windows of different parts have no
            step in common.

        Raises:
            ValueError: for a part that is too short for a window.

        Example:
            >>> from jaxrnn.data import Windows, split
            >>> train, test = split(100, (0.8, 0.2))
            >>> cut = Windows(7)
            >>> cut.within(train), cut.within(test), cut.within(test, context=True)
            (range(0, 73), range(80, 93), range(73, 93))
        """
        if context and self.every_step:
            raise ValueError("context=True is for targets after the window, not at every step")
        if rows.step != 1 or rows.start < 0:
            raise ValueError(f"rows should be steps in a row, from 0 on, got {rows}")
        first = max(0, rows.start - (self.size if context else 0))
        found = range(-(-first // self.stride), self.count(rows.stop))
        if not found:
            raise ValueError(
                f"the {len(rows)} steps from {rows.start} on are too few for a window of "
                f"{self.size} and a horizon of {self.horizon}"
            )
        return found

    def take(self, series: Any, index: Any) -> tuple[jax.Array, jax.Array]:
        """A batch of windows: a pure function to compile, to map and to differentiate.

        Nothing but the batch itself is made, however long the series is.

        Args:
            series: (T, C), or (T,) of one column.
            index: the numbers of the windows, integers (B,), or () for one window. One that is
                not in the series is taken as the nearest that is, as JAX does it.

        Returns:
            x (B, size, D) and y (B, horizon, K), or (B, size, K) with `every_step`, in the dtype
            of the series, D and K the numbers of columns; without B for one window, without D and
            K for a series (T,).

        Raises:
            ValueError: for a series of other axes, or too short for a window, a column it does
                not have, or an index that is not of integers.
        """
        series, index = jnp.asarray(series), jnp.asarray(index)
        self.check(series.shape)
        if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim > 1:
            raise ValueError(
                f"index should be integers (B,) or (), got {index.dtype} {index.shape}"
            )
        if index.ndim:
            return jax.vmap(self.take, in_axes=(None, 0))(series, index)
        index = index.astype(jnp.int32)  # the product with the stride could be more than an int8
        return self.cut(lax.dynamic_slice_in_dim(series, index * self.stride, self.span))

    def cut(self, window: Any) -> tuple[Any, Any]:
        """The inputs and the targets of a window (span, C) or (span,), a JAX or a NumPy array."""
        x = window[: self.size]
        y = window[self.horizon :] if self.every_step else window[self.size :]
        if self.features is not None:
            x = x[:, np.array(self.features)]
        if self.targets is not None:
            y = y[:, np.array(self.targets)]
        return x, y

    def check(self, shape: tuple[int, ...]) -> None:
        """Whether windows can be cut from a series of a shape, by its shape alone."""
        columns = [*(self.features or ()), *(self.targets or ())]
        if len(shape) not in (1, 2) or (columns and len(shape) == 1):
            axes = "(T, C)" if columns else "(T,) or (T, C)"
            raise ValueError(f"series should be {axes}, its shape is {shape}")
        if shape[0] < self.span:
            raise ValueError(
                f"a series of {shape[0]} steps is too short for a window of {self.size} and a "
                f"horizon of {self.horizon}"
            )
        if shape[0] >= 2**31:
            raise ValueError(f"a series of {shape[0]} steps has more than an int32 can number")
        if columns and max(columns) >= shape[1]:
            raise ValueError(
                f"the series has {shape[1]} columns, there is no column {max(columns)}"
            )


def split(steps: int, fractions: Sequence[float] = (0.7, 0.15, 0.15)) -> tuple[range, ...]:
    """The steps of a series in parts, one after the other in time.

    What is to be learned from, scalings included, comes from the first part; no step is in two.
    `Windows.within` gives the windows of a part.

    Args:
        steps: T.
        fractions: the share of each part; they sum to 1.

    Returns:
        The steps of each part, as ranges that together are ``range(T)``.

    Raises:
        ValueError: for fractions that are not positive or don't sum to 1; a part without steps.

    Example:
        >>> from jaxrnn.data import split
        >>> split(10, (0.7, 0.3))
        (range(0, 7), range(7, 10))
    """
    checks.at_least("steps", steps, 1)
    sane = all(0 < fraction <= 1 for fraction in fractions)
    if not sane or not math.isclose(sum(fractions), 1, abs_tol=1e-9):
        raise ValueError(f"fractions should be above 0 and sum to 1, got {tuple(fractions)}")
    # Rounded, so that 0.7 + 0.1 of ten steps, 7.999 in binary, are eight.
    ends = [0, *(round(steps * total) for total in itertools.accumulate(fractions))]
    parts = tuple(range(*pair) for pair in itertools.pairwise(ends))
    if not all(parts):
        raise ValueError(f"{steps} steps are too few for parts of {tuple(fractions)}")
    return parts
