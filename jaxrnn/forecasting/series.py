"""A series in three parts, one after the other in time: to learn from, to stop by, to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import data
from jaxrnn.forecasting.options import Options


class Series(NamedTuple):
    """Rows of numbers, and how they are cut. T rows, C columns.

    Attributes:
        columns: the names of the columns, that which is forecast first.
        values: the rows, oldest first, in the units of the data (T, C), float64.
        cut: the windows.
        train: the rows to learn from, scales included.
        learn, stop, judge: the numbers of the windows of each part. The inputs of the latter two
            reach back before their part, their targets don't; no target is in two parts.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    cut: data.Windows
    train: range
    learn: range
    stop: range
    judge: range


def prepare(
    values: Any,
    columns: Sequence[str] = ("value",),
    options: Options = Options(),
    *,
    name: str = "the series",
) -> Series:
    """Check a series and cut it.

    Args:
        values: (T, C), or (T,) of one column, in order of time; the column to forecast first.
        columns: the names of the columns.
        options: window, horizon and the shares of the parts.
        name: what the series is called in messages.

    Raises:
        ValueError: for values that are not finite numbers (T, C), too few rows for a window in
            each part, or a column that is the same in all rows to learn from.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.forecasting import Options, prepare
        >>> series = prepare(np.sin(np.arange(100.0)), options=Options(window=8, horizon=2))
        >>> series.train, series.learn, series.stop, series.judge
        (range(0, 65), range(0, 56), range(57, 71), range(72, 91))
    """
    columns = tuple(columns)
    values = as_rows(values, columns, name)
    least = _least_rows(options)
    if len(values) < least:
        raise ValueError(
            f"{name}: {len(values)} rows are too few for a window of {options.window} and a "
            f"horizon of {options.horizon}: at least {least} are needed"
        )
    train, stop, judge = data.split(len(values), options.shares)
    for place, column in enumerate(columns):
        known = values[: train.stop, place]
        if (known == known[0]).all():
            raise ValueError(
                f"{name}, column {column!r}: it is {known[0]:g} in all {train.stop} rows to learn "
                "from"
            )
    cut = data.Windows(options.window, options.horizon)
    within = cut.within(train), *(cut.within(part, context=True) for part in (stop, judge))
    return Series(columns, values, cut, train, *within)


def as_rows(values: Any, columns: Sequence[str], name: str) -> np.ndarray:
    """Values as (T, C), float64.

    Raises:
        ValueError: for other axes, or values that are not finite numbers.
    """
    rows = np.asarray(values)
    if not (np.issubdtype(rows.dtype, np.floating) or np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(f"{name}: values should be numbers, got {rows.dtype}")
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != len(columns):
        raise ValueError(
            f"{name}: values should be (T, {len(columns)}), a column for each of "
            f"{', '.join(map(repr, columns))}, got shape {np.shape(values)}"
        )
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        row, place = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(f"{name}, row {row + 1}, column {columns[place]!r}: it is not a number")
    return rows


def _least_rows(options: Options) -> int:
    """How many rows it takes for a window in each part, the parts being rounded."""
    needed = options.window + options.horizon, options.horizon, options.horizon
    rows = max(int(least / Fraction(share)) for least, share in zip(needed, options.shares))
    while rows < 2**50:  # beyond it a row more or less is no longer seen
        ends = [round(rows * part) for part in (options.shares[0], 1 - options.held_out, 1)]
        have = ends[0], ends[1] - ends[0], ends[2] - ends[1]
        if all(got >= least for got, least in zip(have, needed)):
            break
        rows += 1
    return rows
