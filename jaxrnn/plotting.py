"""Figures that need no display, in colours that colour-blind readers can distinguish."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxrnn._files import write_atomically

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#666666"  # the palette of Okabe and Ito
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
FORMATS = ("png", "svg", "pdf")


def check_target(
    path: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
    kind: str = "figure",
    *,
    inputs: Sequence[str] = (),
) -> Path:
    """Check that a file can be written, before the work whose result it stores.

    Args:
        path: the file to write.
        formats: allowed suffixes.
        kind: kind of the file, for messages.
        inputs: input files, which must not be overwritten.

    Raises:
        ValueError: for another suffix, or an input file.
        OSError: if the folder does not exist, or the folder or the file is not writable.
    """
    path = Path(path)
    name = f"{kind} {str(path)!r}"
    if path.suffix.lower().lstrip(".") not in formats:
        raise ValueError(f"{name} must end in .{' or .'.join(formats)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{name}: folder {str(path.parent)!r} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"{name} is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{name}: the folder is not writable")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{name} is not writable")
    for source in inputs:
        with contextlib.suppress(OSError):  # one of them does not exist
            if os.path.samefile(path, source):
                raise ValueError(f"{name} must not be the input file {os.fspath(source)!r}")
    return path


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure atomically, in the format of the suffix.

    Args:
        figure: a figure of this module or of Matplotlib.
        path: the file, whose suffix is one of `FORMATS`.

    Raises:
        ValueError, OSError: as `check_target`.
    """
    return write_atomically(check_target(path), lambda file: figure.savefig(file, dpi=120))


def spread(items: Sequence[Any], count: int = 8) -> list[Any]:
    """Return at most `count` evenly spaced items, including the first and the last.

    Example:
        >>> spread(range(0, 75, 15), count=3)
        [0, 30, 60]
    """
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))]


def plain(text: str, limit: int = 100) -> str:
    """Shorten a text to `limit` characters, and escape dollars, which delimit formulas."""
    return (text if len(text) <= limit else f"{text[: limit - 1]}…").replace("$", r"\$")


def plain_numbers(axis: Any) -> None:
    """Label a logarithmic y axis with plain numbers instead of powers of ten.

    Args:
        axis: Matplotlib axes.

    Example:
        >>> axis = Figure().subplots()
        >>> _ = axis.semilogy([0.3, 1.0, 2.0])
        >>> plain_numbers(axis)
        >>> [axis.yaxis.get_minor_formatter()(value) for value in (0.3, 0.5, 2.0)]
        ['0.3', '0.5', '2']
    """
    low, high = axis.get_ylim()
    narrow = high < 30 * low  # with hardly a power of ten in it
    number = FuncFormatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(number)
    few = 6 * low < high and narrow  # more labels would overlap
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5) if few else tuple(range(2, 10))))
    axis.yaxis.set_minor_formatter(number if narrow else NullFormatter())


def _panels(count: int, title: str) -> tuple[Figure, Any]:
    """Return a figure with a grid of `count` panels, three to a line, and their axes."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * lines + 0.5), layout="constrained")
    figure.suptitle(plain(title, 200))
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def _loss_panel(axis: Any, losses: Any, label: str, runs: Sequence[str] = ("",)) -> None:
    """Draw the loss at each step (steps,), or of several runs (runs, steps)."""
    for index, (run, values) in enumerate(zip(runs, np.atleast_2d(losses))):
        axis.semilogy(values, label=run, color=PALETTE[index % len(PALETTE)])
    if len(runs) > 1:  # room for the legend above the curves
        low, high = axis.get_ylim()
        axis.set_ylim(top=high * (high / low) ** (0.08 * len(runs)))
        axis.legend(loc="upper right", fontsize="x-small")
    axis.set(title="training", xlabel="step", ylabel=label)
    plain_numbers(axis)
    axis.grid(color=GREY, alpha=0.25)


class HeatMap(NamedTuple):
    """A panel of `heat_maps`.

    Attributes:
        title: title of the panel.
        values: the array, from top to bottom and left to right (Y, X); NaN is grey.
        xticks: labels of the X columns, a string or a sequence.
        yticks: labels along Y. Defaults to their indices.
        xlabel, ylabel: labels of the axes.
        signed: If True, colours diverge from zero.
        limit: end of the colour scale. Defaults to the largest magnitude.
    """

    title: str
    values: Any
    xticks: Sequence[Any]
    yticks: Sequence[Any] | None = None
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
    """Draw arrays as colours, one panel each with its colour scale.

    Args:
        panels: the arrays.
        title: title of the figure.
        losses: If given, a last panel shows the loss at each step (steps,), or of several runs
            (runs, steps).
        loss_label: label of the loss, with its unit.
        runs: names of the runs.

    Example:
        >>> one_hot = HeatMap("hello", np.eye(4)[[0, 1, 2, 2, 3]].T, "hello", yticks="helo")
        >>> len(heat_maps([one_hot], title="Letters").axes)  # an array and its colour scale
        2
    """
    figure, axes = _panels(len(panels) + (losses is not None), title)
    if losses is not None:
        _loss_panel(axes[len(panels)], losses, loss_label, runs)
    for axis, panel in zip(axes, panels):
        values = np.asarray(panel.values, float)
        finite = values[np.isfinite(values)]
        limit = panel.limit or np.abs(finite).max(initial=1e-12)
        low = -limit if panel.signed else finite.min(initial=0)
        colours = colormaps["RdBu_r" if panel.signed else "viridis"].with_extremes(bad="#C8C8C8")
        image = axis.imshow(values, cmap=colours, vmin=low, vmax=limit, aspect="auto")
        figure.colorbar(image, ax=axis)
        yticks = range(len(values)) if panel.yticks is None else panel.yticks
        every = -(-len(yticks) // 16)  # as many labels as are legible
        axis.set_yticks(range(0, len(yticks), every), [plain(str(t)) for t in yticks[::every]])
        xticks = [plain(str(tick)) for tick in panel.xticks]
        every = -(-len(xticks) * (max(map(len, xticks)) + 1) // 40)
        axis.set_xticks(range(0, len(xticks), every), xticks[::every])
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
    """Draw hidden states over time, a panel each: time to the right, features downward.

    Args:
        states: the states after each step (T, H), by the title of their panel.
        title: title of the figure.
        times: labels of the steps, e.g. a text of T characters. Defaults to their indices.
        time_label: label of the time axis, with its unit.
        limit: end of the colour scales. Defaults to the largest magnitude in each panel.

    Raises:
        ValueError: for states of another shape.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> rnn = jaxrnn.RNN(1, 8, num_layers=2, rngs=nnx.Rngs(0))
        >>> x = jnp.sin(jnp.linspace(0, 9, 40))[:, None, None]
        >>> _, h = rnn(x, return_all_states=True)                # (T, L, N, H)
        >>> layers = {f"layer {k}": h[:, k, 0] for k in range(2)}
        >>> len(hidden_states(layers, title="A sine", limit=1.0).axes)
        4
    """
    panels = []
    for name, values in states.items():
        values = np.asarray(values)
        if values.ndim != 2 or (times is not None and len(times) != len(values)):
            steps = "T" if times is None else str(len(times))
            raise ValueError(f"`states[{name!r}]` must be ({steps}, H), got shape {values.shape}")
        xticks = range(len(values)) if times is None else times
        labels = {"xlabel": time_label, "ylabel": "hidden feature"}
        panels.append(HeatMap(name, values.T, xticks, signed=True, limit=limit, **labels))
    return heat_maps(panels, title=title)


class Panel(NamedTuple):
    """A panel of `predictions`.

    Attributes:
        title: title of the panel.
        times: abscissae (T,).
        targets: targets (T,).
        predicted: predictions (T,).
        inputs: inputs (T,), optional.
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
    """Draw predictions beside their targets, and a panel of the training loss.

    Args:
        panels: predictions and targets.
        losses: the loss at each step (steps,), or of several runs (runs, steps).
        title: title of the figure.
        time_label: label of the abscissae, with its unit.
        loss_label: label of the loss.
        step_label: label of the steps.
        runs: names of the runs.

    Example:
        >>> times = np.linspace(0, 6, 20)
        >>> panel = Panel("after training", times, np.sin(times), 0.9 * np.sin(times))
        >>> len(predictions([panel], [1.0, 0.1, 0.01], title="A sine").axes)
        2
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
    _loss_panel(axes[len(panels)], losses, loss_label, runs)
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
    zoom: int = 0,
) -> Figure:
    """Draw a series with the predictions of several models, and their training losses.

    Args:
        times: abscissae (T,).
        targets: the series (T,).
        predictions: predictions (T,) by model; all but the last are dashed.
        losses: the loss at each step (steps,) by training run; their lengths may differ.
        title: title of the figure.
        time_label: label of the abscissae, with its unit.
        value_label: label of the series, with its unit.
        step_label: label of the steps.
        loss_label: label of the losses, with their unit.
        zoom: If nonzero, a panel beside the losses shows this number of points at the end.
    """
    figure = Figure(figsize=(12.6, 6.2), layout="constrained")
    figure.suptitle(plain(title, 200))
    mosaic = [["all", "all"], ["losses", "zoom"]] if zoom else [["all"] * 2, ["losses"] * 2]
    axes: Any = figure.subplot_mosaic(mosaic, height_ratios=[3, 2])  # pyright: ignore
    for panel, shown in (("all", slice(None)), *([("zoom", slice(-zoom, None))] if zoom else ())):
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
    if zoom:
        axes["zoom"].set(title=f"the last {zoom}")
    axes["all"].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize="small")
    for index, (name, values) in enumerate(losses.items()):
        axes["losses"].semilogy(values, label=name, color=PALETTE[index])
    if len(losses) > 1:
        axes["losses"].legend(loc="best", fontsize="small")
    axes["losses"].set(title="training", xlabel=step_label, ylabel=loss_label)
    plain_numbers(axes["losses"])
    axes["losses"].grid(color=GREY, alpha=0.25)
    return figure


def characters(
    losses: Any, correct: Any, probabilities: Any, text: str, characters: str, *, title: str
) -> Figure:
    """Draw the training of a character model, and its final predictions of a short text.

    Args:
        losses: the loss at each step (steps,).
        correct: the number of correct characters at each step (steps,).
        probabilities: the probability of each character at each position (T, D).
        text: the T target characters.
        characters: the vocabulary, D characters.
        title: title of the figure.
    """
    figure, axes = _panels(3, title)
    _loss_panel(axes[0], losses, "cross-entropy [nats]")
    axes[1].plot(np.arange(len(correct)), correct, color=BLUE)
    axes[1].axhline(len(text), color=GREY, linestyle="--")
    axes[1].set(title=f"correct characters of {len(text)}", xlabel="step", ylabel="characters")
    image = axes[2].imshow(np.transpose(probabilities), cmap="Blues", vmin=0, aspect="auto")
    figure.colorbar(image, ax=axes[2])
    axes[2].plot([characters.index(c) for c in text], "o", color=VERMILLION, markersize=4)
    axes[2].set_xticks(range(len(text)), text.replace(" ", "␣"))
    axes[2].set_yticks(range(len(characters)), characters.replace(" ", "␣"))
    axes[2].set(title="probabilities and targets", xlabel="target", ylabel="character")
    return figure


def text_windows(
    losses: Any, accuracies: Any, by_position: Any, bound: Any, *, title: str
) -> Figure:
    """Draw the training of a model that predicts the next characters of windows of a text.

    Args:
        losses: the loss at each step (steps,).
        accuracies: the accuracy at each step (steps,), in [0, 1].
        by_position: the final accuracy at each position of a window (T,).
        bound: the maximal accuracy at each position (T,).
        title: title of the figure.
    """
    figure, axes = _panels(3, title)
    _loss_panel(axes[0], losses, "cross-entropy [nats]")
    axes[1].plot(np.arange(len(accuracies)), accuracies, color=BLUE)
    axes[1].axhline(np.mean(bound), color=GREY, linestyle="--", label="upper bound")
    axes[1].set(title="all characters", xlabel="step")
    positions = np.arange(1, len(bound) + 1)
    axes[2].plot(positions, bound, "--", color=GREY, label="upper bound")
    axes[2].plot(positions, by_position, "s", color=BLUE, markersize=4, label="after training")
    axes[2].set(title="each position of a window", xlabel="characters of context")
    for axis in axes[1:]:
        axis.set(ylabel="accuracy", ylim=(-0.02, 1.02))
        axis.legend(loc="lower right")
        axis.grid(color=GREY, alpha=0.25)
    return figure
