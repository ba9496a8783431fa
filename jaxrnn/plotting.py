"""Figures: no display needed, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxrnn.files import write_whole

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#666666"  # from the palette of Okabe and Ito
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
FORMATS = ("png", "svg", "pdf")


def check_target(
    path: str | os.PathLike[str], formats: Sequence[str] = FORMATS, what: str = "figure"
) -> Path:
    """Whether a file can be written there, to be asked before the work is done.

    Args:
        path: where it shall be.
        formats: the suffixes it may have.
        what: what it is called in messages.

    Raises:
        ValueError: for a format that is not one of `formats`.
        OSError: for a folder that is not there or can't be written to.
    """
    path = Path(path)
    named = f"{what} {str(path)!r}"
    if path.suffix.lower().lstrip(".") not in formats:
        raise ValueError(f"{named} should end in .{' or .'.join(formats)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{named}: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"{named}: that is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{named}: the folder can't be written to")
    return path


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as its suffix says; what was there before stays until it is written whole."""
    return write_whole(check_target(path), lambda temporary: figure.savefig(temporary, dpi=120))


def spread(items: Sequence[Any], most: int = 8) -> list[Any]:
    """At most so many of the items, the first and the last among them, evenly spread.

    Example:
        >>> spread(range(0, 75, 15), most=3)
        [0, 30, 60]
    """
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).astype(int))]


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
    runs: Sequence[str] = ("",),
) -> Figure:
    """Panels of predictions beside the truth, and a panel of the loss during training.

    Args:
        panels: what is in the panels.
        losses: the loss at each step (steps,), or of several runs (runs, steps).
        title: the title of the figure.
        time_label: what the abscissae are, with their unit.
        loss_label: what the loss is.
        runs: the names of the runs.
    """
    figure, axes = _panels(len(panels) + 1, title)
    for axis, panel in zip(axes, panels):
        if panel.inputs is not None:
            axis.plot(panel.times, panel.inputs, "o", color=VERMILLION, markersize=4, label="input")
        style = "s" if len(panel.times) <= 50 else "-"
        axis.plot(panel.times, panel.targets, "-", color=GREY, label="target")
        axis.plot(panel.times, panel.predicted, style, color=BLUE, markersize=4, label="prediction")
        limit = np.clip(1.1 * np.abs(np.nan_to_num(panel.predicted)).max(), 1.3, 3.0)
        axis.set(title=panel.title, xlabel=time_label, ylabel="value", ylim=(-limit, limit))
    axes[0].legend(loc="best")
    _loss(axes[len(panels)], losses, loss_label, runs)
    return figure


def characters(
    losses: Any, right: Any, probabilities: Any, text: str, characters: str, *, title: str
) -> Figure:
    """The training of a network that predicts characters, and what it says in the end.

    Args:
        losses: the loss at each step (steps,).
        right: how many characters are right at each step (steps,).
        probabilities: of each character at each place (T, D), in [0, 1].
        text: what was to be predicted, T characters.
        characters: the characters there are, D of them.
        title: the title of the figure.
    """
    figure, axes = _panels(3, title)
    _loss(axes[0], losses, "cross-entropy [nats]")
    axes[1].plot(np.arange(len(right)), right, color=BLUE)
    axes[1].axhline(len(text), color=GREY, linestyle="--")
    axes[1].set(title=f"characters right, of {len(text)}", xlabel="step", ylabel="characters")
    image = axes[2].imshow(np.transpose(probabilities), cmap="Blues", vmin=0, aspect="auto")
    figure.colorbar(image, ax=axes[2])
    axes[2].plot([characters.index(c) for c in text], "o", color=VERMILLION, markersize=4)
    axes[2].set_xticks(range(len(text)), text.replace(" ", "␣"))
    axes[2].set_yticks(range(len(characters)), characters.replace(" ", "␣"))
    axes[2].set(title="probabilities, and the truth", xlabel="to predict", ylabel="character")
    return figure


def text_windows(losses: Any, accuracies: Any, by_place: Any, most: Any, *, title: str) -> Figure:
    """The training of a network that predicts the next characters of windows of a text.

    Args:
        losses: the loss at each step (steps,).
        accuracies: the part of all characters that is right at each step (steps,), in [0, 1].
        by_place: what is right in the end at each place of a window (T,).
        most: what can be right there at most (T,).
        title: the title of the figure.
    """
    figure, axes = _panels(3, title)
    _loss(axes[0], losses, "cross-entropy [nats]")
    axes[1].plot(np.arange(len(accuracies)), accuracies, color=BLUE)
    axes[1].axhline(np.mean(most), color=GREY, linestyle="--", label="at most")
    axes[1].set(title="all characters", xlabel="step")
    places = np.arange(1, len(most) + 1)
    axes[2].plot(places, most, "--", color=GREY, label="at most")
    axes[2].plot(places, by_place, "s", color=BLUE, markersize=4, label="right in the end")
    axes[2].set(title="at each place of a window", xlabel="characters known")
    for axis in axes[1:]:
        axis.set(ylabel="part that is right", ylim=(-0.02, 1.02))
        axis.legend(loc="lower right")
        axis.grid(color=GREY, alpha=0.25)
    return figure


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
    """
    figure, axes = _panels(len(panels) + (losses is not None), title)
    if losses is not None:
        _loss(axes[len(panels)], losses, loss_label, runs)
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
        axis.set_yticks(range(0, len(rows), every), list(rows)[::every])
        columns = [str(column) for column in panel.columns]
        every = -(-len(columns) * (max(map(len, columns)) + 1) // 40)
        axis.set_xticks(range(0, len(columns), every), columns[::every])
        axis.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
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
    figure.suptitle(title)
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
        axis.set(xlabel=time_label, ylabel=value_label)
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
    axes["losses"].grid(color=GREY, alpha=0.25)
    return figure


def _panels(count: int, title: str) -> tuple[Figure, Any]:
    """A figure with rows of three panels."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def _loss(axis: Any, losses: Any, label: str, runs: Sequence[str] = ("",)) -> None:
    """A panel of the loss at each step (steps,), or of several runs (runs, steps)."""
    for index, (run, values) in enumerate(zip(runs, np.atleast_2d(losses))):
        axis.semilogy(values, label=run, color=PALETTE[index % len(PALETTE)])
    if len(runs) > 1:
        axis.legend(loc="best", fontsize="x-small")
    axis.set(title="training", xlabel="step", ylabel=label)
    axis.grid(color=GREY, alpha=0.25)
