"""Arrays as colours: one-hot inputs, states over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxrnn.plotting.base import loss_panel, plain, rows_of_panels


class HeatMap(NamedTuple):
    """What one panel of :func:`heat_maps` shows.

    Attributes:
        title: what is over it.
        values: the rows from top to bottom, the columns from left to right (rows, columns); NaN
            is nothing, and grey.
        columns: what is written below each column, a string of as many letters or a sequence.
        rows: what is written beside each row; None for their numbers.
        xlabel, ylabel: what the columns and the rows are.
        signed: whether zero is the middle of the colours, from blue below it to red above.
        limit: the end of the colours, to compare panels; None for the largest value.
    """

    title: str
    values: Any
    columns: Sequence[Any]
    rows: Sequence[Any] | None = None
    xlabel: str = ""
    ylabel: str = ""
    signed: bool = False
    limit: float | None = None


def heat_maps(
    panels: Sequence[HeatMap],
    *,
    title: str,
    losses: Any = None,
    loss_label: str = "loss",
    runs: Sequence[str] = ("",),
) -> Figure:
    """Panels of arrays as colours, each with its scale: one-hot inputs, states over time, places.

    Args:
        panels: what is in the panels.
        title: the title of the figure.
        losses: for a last panel, the loss at each step (steps,) or of several runs (runs, steps).
        loss_label: what the loss is, with its unit.
        runs: the names of the runs.

    Example:
        >>> one_hot = HeatMap("hello", np.eye(4)[[0, 1, 2, 2, 3]].T, "hello", rows="helo")
        >>> len(heat_maps([one_hot], title="Letters").axes)  # a map and its scale
        2
    """
    figure, axes = rows_of_panels(len(panels) + (losses is not None), title)
    if losses is not None:
        loss_panel(axes[len(panels)], losses, loss_label, runs)
    for axis, panel in zip(axes, panels):
        values = np.asarray(panel.values, float)
        known = values[np.isfinite(values)]
        limit = panel.limit or np.abs(known).max(initial=1e-12)
        low = -limit if panel.signed else known.min(initial=0)
        colours = colormaps["RdBu_r" if panel.signed else "viridis"].with_extremes(bad="#C8C8C8")
        image = axis.imshow(values, cmap=colours, vmin=low, vmax=limit, aspect="auto")
        figure.colorbar(image, ax=axis)
        rows = range(len(values)) if panel.rows is None else panel.rows
        every = -(-len(rows) // 16)  # more labels, or more letters below, can't be read
        axis.set_yticks(range(0, len(rows), every), [plain(str(row)) for row in rows[::every]])
        columns = [plain(str(column)) for column in panel.columns]
        every = -(-len(columns) * (max(map(len, columns)) + 1) // 40)
        axis.set_xticks(range(0, len(columns), every), columns[::every])
        axis.set(title=plain(panel.title), xlabel=panel.xlabel, ylabel=panel.ylabel)
    return figure


def hidden_states(
    states: Mapping[str, Any],
    *,
    title: str,
    times: Sequence[Any] | None = None,
    time_label: str = "step",
    limit: float | None = None,
) -> Figure:
    """Hidden states over time as colours, a panel each: time to the right, features downward.

    Args:
        states: the states after each step (T, H), by what is over their panels.
        title: the title of the figure.
        times: what is written below each step; None for their numbers. A text of T characters will
            do.
        time_label: what the times are, with their unit.
        limit: the end of the colours in every panel; None for the largest magnitude of each.

    Raises:
        ValueError: for states of other axes, and of other steps than there are `times`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> rnn = jaxrnn.RNN(1, 8, num_layers=2, rngs=nnx.Rngs(0))
        >>> x = jnp.sin(jnp.linspace(0, 9, 40))[:, None, None]
        >>> _, h = rnn(x, return_all_states=True)                # (T, L, N, H)
        >>> layers = {f"layer {k}": h[:, k, 0] for k in range(2)}
        >>> len(hidden_states(layers, title="A sine", limit=1.0).axes)  # two maps, two scales
        4
    """
    panels = []
    for name, values in states.items():
        values = np.asarray(values)
        if values.ndim != 2 or (times is not None and len(times) != len(values)):
            steps = "T" if times is None else str(len(times))
            raise ValueError(f"states of {name!r} should be ({steps}, H), got shape {values.shape}")
        columns = range(len(values)) if times is None else times
        panels.append(
            HeatMap(
                name,
                values.T,
                columns,
                xlabel=time_label,
                ylabel="hidden feature",
                signed=True,
                limit=limit,
            )
        )
    return heat_maps(panels, title=title)
