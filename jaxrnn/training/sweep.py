"""Sweeps over seeds and hyperparameters in one compiled call, with their tables and figures."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from jaxrnn import _checks as checks


class Swept(NamedTuple):
    """Result of a sweep: `results` of the function and `grid`, the argument values, of all runs.

    Every array has one leading axis for each axis of the sweep, in order.
    """

    results: Any
    grid: dict[str, Any]


def sweep(train: Callable[..., Any], /, **axes: Any) -> Swept:
    r"""Call a function for every combination of argument values, in one compiled call.

    .. math::

        \mathrm{results}_{i, j, \ldots} = \mathrm{train}(a_i, b_j, \ldots)

    All runs share each step: batch size N becomes M * N for M runs. Computations that depend on
    one argument only run once per value of it. Sweeps of one function and shape compile once.

    Args:
        train: a pure function of keyword arguments. A hyperparameter is a traced scalar:
            ``optax.adam(lr)`` inside `train`.
        axes: the values of each argument along the first axis of an array, or of every array of a
            pytree. ``run={"key": keys, "lr": rates}`` pairs values instead of combining them.

    Returns:
        `Swept`: for ``sweep(train, key=keys, lr=rates)`` every array is (keys, rates, ...).

    Raises:
        TypeError: if there are no axes, if `train` does not accept them, or if they are not arrays.
        ValueError: if an axis is empty, or its arrays differ in length.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxrnn.training import sweep, train_steps
        >>> def train(key, lr):
        ...     def loss(w, x):
        ...         return (w * x - 1.0) ** 2
        ...     w = jax.random.normal(key)
        ...     return train_steps(loss, optax.adam(lr), w, jnp.ones(50)).losses
        >>> keys, rates = jax.random.split(jax.random.key(0), 8), jnp.logspace(-3, -1, 4)
        >>> losses, grid = sweep(train, key=keys, lr=rates)
        >>> losses.shape, grid["lr"].shape
        ((8, 4, 50), (8, 4))
    """
    if not axes:
        raise TypeError("`sweep` must have at least one axis, e.g. sweep(train, lr=rates)")
    with contextlib.suppress(ValueError):  # `train` is not a Python function
        signature = inspect.signature(train)
        try:
            signature.bind(**axes)
        except TypeError as error:
            name = getattr(train, "__name__", type(train).__name__)
            raise TypeError(
                f"`train` must accept the axes of the sweep, got {', '.join(axes)} for "
                f"{name}{signature}: {error}"
            ) from None
    lengths = tuple(_axis_length(name, values) for name, values in axes.items())
    results, grid = _sweep(train, tuple(axes), lengths, tuple(axes.values()))
    return Swept(results, dict(zip(axes, grid)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sweep(train: Any, names: tuple[str, ...], lengths: tuple[int, ...], axes: Any) -> Any:
    def run(*values: Any) -> Any:
        """Call `train` and return its arguments too."""
        return train(**dict(zip(names, values))), values

    for index in reversed(range(len(names))):  # the outermost axis is mapped last
        in_axes = [0 if other == index else None for other in range(len(names))]
        run = jax.vmap(run, in_axes, axis_size=lengths[index])
    return run(*axes)


def _axis_length(name: str, values: Any) -> int:
    """Return the number of values of an axis."""
    leaves = jax.tree.leaves(values)
    if not leaves or not all(isinstance(a, (jax.Array, np.ndarray)) and a.ndim for a in leaves):
        raise TypeError(
            f"`{name}` must be an array with the values along its first axis, or a pytree of such "
            f"arrays, got {reprlib.repr(values)}"
        )
    lengths = sorted({len(leaf) for leaf in leaves})
    if len(lengths) > 1:
        raise ValueError(f"`{name}` must have arrays of one length, got {lengths}")
    if lengths[0] == 0:
        raise ValueError(f"`{name}` must have values, got no values in shape {leaves[0].shape}")
    return lengths[0]


class Groups(NamedTuple):
    """Runs of a sweep in groups, whose members differ in some axes only, such as the seed.

    Attributes:
        settings: the common settings of the runs of each group, by axis (groups,).
        values: the result of each run (groups, runs), or of each step (groups, runs, steps).
        mode: "min" if smaller is better, "max" if larger is better.
    """

    settings: dict[str, np.ndarray]
    values: np.ndarray
    mode: str = "min"

    @property
    def medians(self) -> np.ndarray:
        """Median of the final results of each group (groups,)."""
        return self.quantile(0.5)[..., -1]

    @property
    def ranks(self) -> np.ndarray:
        """Rank of each group by its median, 0 for the best (groups,)."""
        medians = self.medians if self.mode == "min" else -self.medians
        return np.argsort(np.argsort(medians, kind="stable"), kind="stable")

    def quantile(self, part: float) -> np.ndarray:
        """Return a quantile over runs (groups, steps) or (groups, 1); failed runs are the worst.

        A run has failed if its result is infinite or NaN. A quantile among failed runs is NaN.
        """
        worst = np.inf if self.mode == "min" else -np.inf
        values = np.sort(np.where(np.isfinite(self.values), self.values, worst), axis=1)
        position = part * (values.shape[1] - 1)
        low, high = values[:, math.floor(position)], values[:, math.ceil(position)]
        with np.errstate(invalid="ignore"):  # inf - inf
            quantile = low + (high - low) * (position % 1) if position % 1 else low
        return np.where(np.isfinite(quantile), quantile, np.nan).reshape(len(values), -1)

    def labels(self) -> list[str]:
        """Return the settings of each group as text."""
        names = self.settings
        combinations = zip(*names.values())
        return [", ".join(f"{n} {_format(v)}" for n, v in zip(names, c)) for c in combinations]


def grouped(
    swept: Swept, values: Any = None, *, over: str | Sequence[str] = (), mode: str = "min"
) -> Groups:
    """Group the runs of a sweep.

    Args:
        swept: the result of `sweep`.
        values: an array with the axes of the sweep, and optionally one more axis for steps; None
            for the results of the sweep.
        over: the axes that vary within a group; the other axes distinguish the groups.
        mode: "min" if smaller is better, "max" if larger is better.

    Returns:
        `Groups`.

    Raises:
        ValueError: if `over` or `mode` is unknown, or `values` has other axes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.training import grouped, sweep
        >>> swept = sweep(lambda key, lr: lr + 0.01 * jax.random.uniform(key),
        ...               key=jax.random.split(jax.random.key(0), 5), lr=jnp.array([0.1, 0.2, 0.3]))
        >>> grouped(swept, over="key").labels()
        ['lr 0.1', 'lr 0.2', 'lr 0.3']
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
            f"`values` must have shape {shape} over {', '.join(names)}, or one more axis for "
            f"steps, got {array.shape}"
        )
    outer = [index for index, name in enumerate(names) if name not in over]
    inner = [index for index, name in enumerate(names) if name in over]
    lengths = [shape[index] for index in outer]
    array = array.transpose(*outer, *inner, *range(len(names), array.ndim))
    settings = {}
    for index, places in zip(outer, np.indices(lengths)):
        for label, along in _axis_settings(swept.grid, names, index).items():
            settings[label] = along[places.ravel()]
    sizes = math.prod(lengths), math.prod(shape[index] for index in inner)
    return Groups(settings, array.reshape(*sizes, *array.shape[len(names) :]), mode)


def _axis_settings(grid: dict[str, Any], names: list[str], index: int) -> dict[str, np.ndarray]:
    """Return the values along an axis by label; the positions of values that are not scalars."""
    settings = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(grid[names[index]])[0]:
        along = leaf[tuple(slice(None) if axis == index else 0 for axis in range(len(names)))]
        if along.ndim > 1 or jnp.issubdtype(along.dtype, jax.dtypes.prng_key):
            along = np.arange(len(along))
        label = jax.tree_util.keystr(path, simple=True, separator=".")
        settings[".".join(filter(None, (names[index], label)))] = np.asarray(along)
    return settings


def results_table(groups: Groups, *, title: str = "Sweep", name: str = "value") -> Table:
    """Return a table of groups, the best first, for ``rich.print``.

    Args:
        groups: the result of `grouped`.
        title: the title of the table.
        name: the name of the values, with their unit.

    Returns:
        A table with one line per group: settings, number of runs and of failed runs (infinite or
        NaN), median, quartiles, best and worst of the final results.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.training import grouped, results_table, sweep
        >>> swept = sweep(lambda a, b: a * b, a=jnp.array([3.0, 2.0]), b=jnp.arange(1, 4))
        >>> table = results_table(grouped(swept, over="b"), name="error")
        >>> [[column.header, *column.cells] for column in table.columns[:3]]
        [['a', '2', '3'], ['runs', '3', '3'], ['median', '4', '6']]
    """
    heading = Text(f"{title}: {name}")  # not markup: a unit may be in brackets
    table = Table(title=heading, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for header in (*groups.settings, "runs", "median", "25 %", "75 %", "best", "worst"):
        table.add_column(header, justify="right", no_wrap=True)
    parts = (0.5, 0.25, 0.75, *((0.0, 1.0) if groups.mode == "min" else (1.0, 0.0)))
    columns = [groups.quantile(part)[..., -1] for part in parts]
    for place, group in enumerate(np.argsort(groups.ranks)):
        runs = groups.values[group].reshape(groups.values.shape[1], -1)[:, -1]
        failed = int((~np.isfinite(runs)).sum())
        table.add_row(
            *(_format(values[group]) for values in groups.settings.values()),
            f"{runs.size}" + (f", {failed} failed" if failed else ""),
            *(f"{column[group]:.3g}" for column in columns),
            style="bold" if place == 0 else None,
        )
    return table


def sweep_figure(
    groups: Groups, along: str = "", *, title: str, label: str = "value", most: int = 8
) -> Any:
    """Plot groups of runs: the median as a line, the quartiles as a band. Needs Matplotlib.

    Args:
        groups: the result of `grouped`.
        along: the axis of the sweep on the abscissa, with a line for each combination of the
            others; "" for steps, with a line for each group.
        title: the title of the figure.
        label: the name of the values, with their unit.
        most: maximum number of lines; the best are shown.

    Returns:
        A `matplotlib.figure.Figure` for `jaxrnn.plotting.save`.

    Raises:
        ValueError: if `along` is unknown, or empty for values without steps.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.training import grouped, sweep, sweep_figure
        >>> swept = sweep(lambda a, b: a * b, a=jnp.array([3.0, 2.0]), b=jnp.arange(1, 4))
        >>> figure = sweep_figure(grouped(swept, over="b"), "a", title="a product")
        >>> figure.axes[0].get_xlabel()
        'a'
    """
    from matplotlib.figure import Figure

    from jaxrnn.plotting import GREY, PALETTE

    if along not in groups.settings and (along or groups.values.ndim == 2):
        raise ValueError(
            f"`along` must be one of {', '.join(map(repr, groups.settings))}"
            f"{', or empty for steps' if groups.values.ndim > 2 else ''}, got {along!r}"
        )
    low, middle, high = (groups.quantile(part) for part in (0.25, 0.5, 0.75))
    others = groups._replace(settings={n: v for n, v in groups.settings.items() if n != along})
    lines: dict[str, list[int]] = {}
    for group, text in enumerate(others.labels() or [""] * len(middle)):
        lines.setdefault(text, []).append(group)
    ranks = groups.ranks
    chosen = sorted(lines, key=lambda text: ranks[lines[text]].min())[:most]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    figure.suptitle(title)
    axis = figure.subplots()
    for index, text in enumerate(text for text in lines if text in chosen):
        members = np.array(lines[text])
        if along:
            x = groups.settings[along][members]
            order = np.argsort(x, kind="stable")
            x, points, style = x[order], (members[order], -1), "o-"
        else:
            x, points, style = np.arange(middle.shape[-1]), (members[0],), "-"
        color = PALETTE[index % len(PALETTE)]
        axis.plot(x, middle[points], style, color=color, label=text, markersize=4)
        axis.fill_between(x, low[points], high[points], color=color, alpha=0.2, linewidth=0)
    if along:
        axis.set_xscale(_scale(groups.settings[along]))
    axis.set_yscale(_scale(middle))
    axis.set(xlabel=along or "step", ylabel=f"{label}, median and quartiles")
    axis.grid(color=GREY, alpha=0.25)
    if others.settings:
        hidden = f"the best {most} of {len(lines)}" if len(lines) > most else None
        axis.legend(loc="best", fontsize="small", title=hidden)
    return figure


def _scale(values: np.ndarray) -> str:
    """Return "log" for positive values that span more than a factor of 30."""
    finite = values[np.isfinite(values)]
    return "log" if finite.size and 0 < 30 * finite.min() < finite.max() else "linear"


def _format(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, np.floating) else str(value)
