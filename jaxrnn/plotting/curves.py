"""Curves: predictions beside the truth, and series with what models say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxrnn.plotting.base import (
    BLUE,
    GREY,
    PALETTE,
    VERMILLION,
    loss_panel,
    plain,
    plain_numbers,
    rows_of_panels,
)


class Panel(NamedTuple):
    """What one panel of :func:`predictions` shows.

    Attributes:
        title: what is over it.
        times: the abscissae (T,).
        targets: what was to be predicted (T,).
        predicted: the predictions (T,).
        inputs: what was given (T,), if it is to be seen.
    """

    title: str
    times: Any
    targets: Any
    predicted: Any
    inputs: Any = None


def predictions(
    panels: Sequence[Panel],
    losses: Any,
    *,
    title: str,
    time_label: str = "time [rad]",
    loss_label: str = "mean squared error",
    step_label: str = "step",
    runs: Sequence[str] = ("",),
) -> Figure:
    """Panels of predictions beside the truth, and a panel of the loss during training.

    Args:
        panels: what is in the panels.
        losses: the loss at each step (steps,), or of several runs (runs, steps).
        title: the title of the figure.
        time_label: what the abscissae are, with their unit.
        loss_label: what the loss is.
        step_label: what the losses follow each other by.
        runs: the names of the runs.

    Example:
        >>> times = np.linspace(0, 6, 20)
        >>> panel = Panel("in the end", times, np.sin(times), 0.9 * np.sin(times))
        >>> len(predictions([panel], [1.0, 0.1, 0.01], title="A sine").axes)
        2
    """
    figure, axes = rows_of_panels(len(panels) + 1, title)
    for axis, panel in zip(axes, panels):
        if panel.inputs is not None:
            axis.plot(panel.times, panel.inputs, "o", color=VERMILLION, markersize=4, label="input")
        style = "s" if len(panel.times) <= 50 else "-"
        axis.plot(panel.times, panel.targets, "-", color=GREY, label="target")
        axis.plot(panel.times, panel.predicted, style, color=BLUE, markersize=4, label="prediction")
        limit = np.clip(1.1 * np.abs(np.nan_to_num(panel.predicted)).max(), 1.3, 3.0)
        axis.set(title=panel.title, xlabel=time_label, ylabel="value", ylim=(-limit, limit))
    axes[0].legend(loc="best")
    loss_panel(axes[len(panels)], losses, loss_label, runs)
    axes[len(panels)].set(xlabel=step_label)
    return figure


def forecasts(
    times: Any,
    targets: Any,
    predictions: Mapping[str, Any],
    losses: Mapping[str, Any],
    *,
    title: str,
    time_label: str = "step",
    value_label: str = "value",
    step_label: str = "step",
    loss_label: str = "mean squared error",
    last: int = 0,
) -> Figure:
    """A series and what models say of it, one wide panel, over the losses of their training.

    Args:
        times: the abscissae (T,).
        targets: the series (T,).
        predictions: what each model predicts (T,), by its name; dashed but for the last.
        losses: the loss of each training by its name (steps,); each may have its own steps.
        title: the title of the figure.
        time_label: what the abscissae are, with their unit.
        value_label: what the series is, with its unit.
        step_label: what the losses follow each other by.
        loss_label: what the losses are, with their unit.
        last: a panel of the last so many points, beside the losses; 0 for none.
    """
    figure = Figure(figsize=(12.6, 6.2), layout="constrained")
    figure.suptitle(plain(title, 200))
    mosaic = [["all", "all"], ["losses", "last"]] if last else [["all"] * 2, ["losses"] * 2]
    axes: Any = figure.subplot_mosaic(mosaic, height_ratios=[3, 2])  # pyright: ignore
    for panel, shown in (("all", slice(None)), *([("last", slice(-last, None))] if last else ())):
        axis, few = axes[panel], len(targets[shown]) <= 100
        marker = {"marker": "o", "markersize": 4} if few else {}
        axis.plot(times[shown], targets[shown], color=GREY, label="data", **marker)
        for index, (name, values) in enumerate(predictions.items()):
            style = "-" if index == len(predictions) - 1 else "--"
            axis.plot(
                *(times[shown], values[shown], style), label=name, color=PALETTE[index], linewidth=1
            )
        axis.set(xlabel=time_label, ylabel=plain(value_label, 40))
        axis.grid(color=GREY, alpha=0.25)
    if last:
        axes["last"].set(title=f"the last {last}")
    # Above the panel: beside a series that may go anywhere.
    axes["all"].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize="small")
    for index, (name, values) in enumerate(losses.items()):
        axes["losses"].semilogy(values, label=name, color=PALETTE[index])
    if len(losses) > 1:
        axes["losses"].legend(loc="best", fontsize="small")
    axes["losses"].set(title="training", xlabel=step_label, ylabel=loss_label)
    plain_numbers(axes["losses"])
    axes["losses"].grid(color=GREY, alpha=0.25)
    return figure
