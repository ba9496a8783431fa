"""The result of a sweep as a reader wants it: groups of runs, seeds taken together, a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from jaxrnn import _checks as checks
from jaxrnn.training.sweeps import Swept


class Groups(NamedTuple):
    """Runs of a sweep, those that differ only in some axes, the seed say, side by side.

    Attributes:
        settings: what the runs of each group have in common, by the name of the axis (groups,).
        values: what came out of each run (groups, runs) or, a number for each step, (groups, runs,
            steps).
        mode: "min" if less is better, "max" if more is.
    """

    settings: dict[str, np.ndarray]
    values: np.ndarray
    mode: str = "min"

    @property
    def last(self) -> np.ndarray:
        """What came out in the end (groups, runs)."""
        return self.values if self.values.ndim == 2 else self.values[..., -1]

    @property
    def medians(self) -> np.ndarray:
        """The median over the runs of a group of what came out in the end (groups,)."""
        return self.quantile(0.5)[..., -1]

    @property
    def ranks(self) -> np.ndarray:
        """The place of each group among all, by its median, 0 for the best (groups,)."""
        medians = self.medians if self.mode == "min" else -self.medians
        ranks = np.empty(len(self.values), int)
        ranks[np.argsort(medians, kind="stable")] = np.arange(len(ranks))
        return ranks

    def quantile(self, part: float) -> np.ndarray:
        """A quantile over the runs of a group, at each step (groups, steps), or (groups, 1).

        A run that failed, that is infinite or not a number, is worse than all others; where the
        quantile would be one of those it is NaN.
        """
        worst = np.inf if self.mode == "min" else -np.inf
        values = np.sort(np.where(np.isfinite(self.values), self.values, worst), axis=1)
        place = part * (values.shape[1] - 1)
        low, high = values[:, math.floor(place)], values[:, math.ceil(place)]
        with np.errstate(invalid="ignore"):  # from a worst one to a worst one
            quantile = low + (high - low) * (place % 1) if place % 1 else low
        return np.where(np.isfinite(quantile), quantile, np.nan).reshape(len(values), -1)

    def labels(self) -> list[str]:
        """What each group is, as a text."""
        rows = zip(*self.settings.values())
        return [", ".join(f"{n} {shown(v)}" for n, v in zip(self.settings, row)) for row in rows]


def grouped(
    swept: Swept, values: Any = None, *, over: str | Sequence[str] = (), mode: str = "min"
) -> Groups:
    """Put the runs of a sweep into groups.

    Args:
        swept: what `sweep` gave out.
        values: an array whose first axes are those of the sweep, with a number for each run, or
            with one more axis, the steps; None for the results themselves.
        over: the axes whose runs are put together; the other axes make the groups.
        mode: "min" if less is better, "max" if more is.

    Raises:
        ValueError: for an axis or a mode that there is not, or values of other axes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.training import grouped, results_table, sweep
        >>> swept = sweep(lambda key, lr: lr + 0.01 * jax.random.uniform(key),
        ...               key=jax.random.split(jax.random.key(0), 5), lr=jnp.array([0.1, 0.2, 0.3]))
        >>> groups = grouped(swept, over="key")
        >>> groups.labels(), groups.values.shape
        (['lr 0.1', 'lr 0.2', 'lr 0.3'], (3, 5))
        >>> table = results_table(groups, name="error")
        >>> [column.header for column in table.columns]
        ['lr', 'runs', 'median', '25 %', '75 %', 'best', 'worst']
    """
    names = list(swept.grid)
    over = (over,) if isinstance(over, str) else tuple(over)
    checks.choice("mode", mode, ("min", "max"))
    for name in over:
        checks.choice("over", name, names)
    shape = np.shape(jax.tree.leaves(swept.grid)[0])[: len(names)]
    array = np.asarray(swept.results if values is None else values)
    if array.shape[: len(names)] != shape or array.ndim - len(names) not in (0, 1):
        raise ValueError(
            f"values should be an array {shape} over {', '.join(names)}, or with one more axis for "
            f"the steps, got {array.shape}"
        )
    apart = [index for index, name in enumerate(names) if name not in over]
    order = apart + [index for index, name in enumerate(names) if name in over]
    array = array.transpose(*order, *range(len(names), array.ndim))
    lengths = [shape[index] for index in apart]
    settings = {}
    for place, index in enumerate(apart):
        found = _settings(names[index], swept.grid[names[index]], index, len(names))
        for label, along in found.items():
            others = np.arange(len(lengths)) != place
            axis = along.reshape(np.where(others, 1, lengths))
            settings[label] = np.broadcast_to(axis, lengths).ravel()
    runs = int(np.prod([shape[index] for index in order[len(apart) :]]))
    values = array.reshape(int(np.prod(lengths)), runs, *array.shape[len(names) :])
    return Groups(settings, values, mode)


def _settings(name: str, grid: Any, index: int, axes: int) -> dict[str, np.ndarray]:
    """The values along an axis of the sweep; their places, where they are no single numbers."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(grid)[0]:
        words = jax.tree_util.keystr(path, simple=True, separator=".")
        along = leaf[tuple(slice(None) if axis == index else 0 for axis in range(axes))]
        if along.ndim > 1 or jnp.issubdtype(along.dtype, jax.dtypes.prng_key):
            along = np.arange(len(along))
        found[f"{name}.{words}" if path else name] = np.asarray(along)
    return found


def results_table(groups: Groups, *, title: str = "Sweep", name: str = "value") -> Table:
    """A table of groups, the best first, for ``rich.print`` or a ``rich.console.Console``.

    Args:
        groups: what `grouped` gave out.
        title: the title of the table.
        name: what the values are, with their unit.

    Returns:
        A line for each group: its settings, its runs and how many of them failed (are infinite or
        not a number), the median and the quartiles of what came out in the end, the best and the
        worst.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.training import grouped, results_table, sweep
        >>> swept = sweep(lambda a, b: a * b, a=jnp.array([3.0, 2.0]), b=jnp.arange(1, 4))
        >>> table = results_table(grouped(swept, over="b"), name="error")
        >>> [list(column.cells) for column in table.columns[:3]]
        [['2', '3'], ['3', '3'], ['4', '6']]
    """
    heading = Text(f"{title}: {name}")  # not markup: a unit may be in brackets
    table = Table(title=heading, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for header in (*groups.settings, "runs", "median", "25 %", "75 %", "best", "worst"):
        table.add_column(header, justify="right", no_wrap=True)
    parts = (0.5, 0.25, 0.75, *((0.0, 1.0) if groups.mode == "min" else (1.0, 0.0)))
    columns = [groups.quantile(part)[..., -1] for part in parts]
    for place, group in enumerate(np.argsort(groups.ranks)):
        runs = groups.last[group]
        failed = int((~np.isfinite(runs)).sum())
        table.add_row(
            *(shown(values[group]) for values in groups.settings.values()),
            f"{runs.size}" + (f", {failed} failed" if failed else ""),
            *(f"{column[group]:.3g}" for column in columns),
            style="bold" if place == 0 else None,
        )
    return table


def shown(value: Any) -> str:
    """A setting as a text."""
    return f"{value:.3g}" if isinstance(value, np.floating) else str(value)
