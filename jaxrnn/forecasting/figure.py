"""A picture of forecasts: the held-out end, the last rows and what follows, the errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxrnn.forecasting.learning import LINEAR, PERSISTENCE, Fitted
from jaxrnn.plotting import BLUE, GREY, PALETTE, VERMILLION, plain, plain_numbers

LONGEST = 600
"""Rows of the series that are shown at most."""

COLOURS = {PERSISTENCE: PALETTE[4], LINEAR: PALETTE[2]}


def draw(fitted: Fitted, title: str) -> Figure:
    """The series and its forecasts over the held-out part, its last rows, errors and training.

    One forecast of a horizon after another is shown, each from the rows before it alone; the
    errors are those of all of them, from every row. At most 600 rows are drawn.

    Args:
        fitted: what `fit_forecaster` gave out.
        title: the title of the figure.
    """
    figure = Figure(figsize=(12.6, 7.0), layout="constrained")
    figure.suptitle(plain(title))
    mosaic: Any = [["all"] * 3, ["last", "errors", "training"]]
    axes: Any = figure.subplot_mosaic(mosaic, height_ratios=[1, 1])
    rows, horizon = len(fitted.series.values), fitted.series.cut.horizon
    held_out = fitted.series.judge.start + fitted.series.cut.size
    first = max(0, rows - LONGEST, 2 * held_out - rows)
    _forecasts(axes["all"], fitted, first, held_out)
    axes["all"].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize="small")
    most = max(4 * horizon, 2 * len(fitted.ahead[fitted.forecaster.name]))
    _forecasts(axes["last"], fitted, max(first, rows - most), held_out)
    axes["last"].set(title="the last rows, and ahead")
    _errors(axes["errors"], fitted)
    _training(axes["training"], fitted)
    return figure


def _forecasts(axis: Any, fitted: Fitted, first: int, held_out: int) -> None:
    """The series from a row on, and the forecasts of the model one after another, then ahead."""
    values, name = fitted.series.values[:, 0], fitted.forecaster.name
    rows, horizon = len(values), fitted.series.cut.horizon
    dots = {"marker": "o", "markersize": 3} if rows - first <= 60 else {}
    axis.plot(np.arange(first, rows) + 1, values[first:], color=GREY, label="data", **dots)
    said, label = fitted.forecasts[name], f"{name}, from the rows before each"
    if horizon == 1:
        pieces = [(max(first, held_out), said[max(first - held_out, 0) :, 0])]
    else:  # back from the end, so that the last forecast to be judged is shown in full
        places = range(len(said) - 1, -1, -horizon)
        pieces = [(held_out + p, said[p]) for p in places if held_out + p >= first]
    for begin, piece in pieces:
        at = np.arange(begin, begin + len(piece)) + 1
        axis.plot(at, piece, color=BLUE, linewidth=1, label=label, **dots)
        label = "_"
    if first < held_out:
        axis.axvline(held_out + 0.5, color=GREY, linestyle=":", label="held out from here on")
    ahead = np.append(values[-1], fitted.ahead[name])
    at = np.arange(rows, rows + len(ahead))
    axis.plot(at, ahead, color=VERMILLION, linestyle="--", label=f"{name}, ahead", **dots)
    axis.set(xlabel="row", ylabel=plain(fitted.series.columns[0], 40))
    axis.xaxis.set_major_locator(MaxNLocator("auto" if first + 60 < rows else 6, integer=True))
    axis.grid(color=GREY, alpha=0.25)


def _errors(axis: Any, fitted: Fitted) -> None:
    """The error by row ahead, of the model and of what it has to beat."""
    horizon = fitted.series.cut.horizon
    steps = np.arange(1, horizon + 1)
    for place, (name, (rmse, _)) in enumerate(fitted.errors.items()):
        colour = COLOURS.get(name, BLUE)
        if horizon == 1:
            axis.bar(place, rmse[0], color=colour)
            continue
        style = {PERSISTENCE: "^--", LINEAR: "s-."}.get(name, "o-")
        label = f"{name}, {rmse[-1]:.3g} in all"
        axis.plot(steps, rmse[:-1], style, color=colour, markersize=4, label=label)
    highest = max(errors.rmse.max() for errors in fitted.errors.values())
    axis.set(title="held-out error", ylim=(0, 1.08 * highest or 1))
    axis.set(ylabel=f"RMSE in units of {plain(fitted.series.columns[0], 30)}")
    axis.grid(color=GREY, alpha=0.25)
    axis.set_axisbelow(True)
    if horizon == 1:
        axis.set_xticks(range(len(fitted.errors)), list(fitted.errors))
        return
    axis.set(xlabel="rows ahead")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="best", fontsize="small")


def _training(axis: Any, fitted: Fitted) -> None:
    """The loss of each step, and on the part that tells when to stop."""
    history = fitted.history
    steps, light = np.arange(1, len(history.losses) + 1), PALETTE[5]
    axis.semilogy(steps, history.losses, color=light, linewidth=1, label="windows learned")
    validation = history.validation["loss"]
    axis.semilogy(history.evaluated, validation, color=BLUE, label="windows to stop by")
    axis.semilogy(fitted.best, validation.min(), "D", color=VERMILLION, label="kept")
    axis.set(title="training", xlabel="step", ylabel="mean squared error, scaled")
    axis.legend(loc="best", fontsize="small")
    plain_numbers(axis)
    axis.grid(color=GREY, alpha=0.25)
