"""Figures: no display needed, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxrnn.files import write_whole

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#666666"  # from the palette of Okabe and Ito
FORMATS = ("png", "svg", "pdf")


def check_target(path: str | os.PathLike[str], formats: Sequence[str] = FORMATS) -> Path:
    """Whether a figure can be written there, to be asked before the work is done.

    Raises:
        ValueError: for a format that is not one of `formats`.
        OSError: for a folder that is not there or can't be written to.
    """
    path = Path(path)
    if path.suffix.lower().lstrip(".") not in formats:
        raise ValueError(f"figure {str(path)!r} should end in .{' or .'.join(formats)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"figure {str(path)!r}: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"figure {str(path)!r}: that is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"figure {str(path)!r}: the folder can't be written to")
    return path


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as its suffix says; what was there before stays until it is written whole."""
    return write_whole(check_target(path), lambda temporary: figure.savefig(temporary, dpi=120))


def predictions(
    times: Any,
    inputs: Any,
    targets: Any,
    predicted: Any,
    titles: Sequence[str],
    losses: Any,
    *,
    title: str,
) -> Figure:
    """Panels of inputs, targets and predictions during training, and a panel of the loss.

    Args:
        times: the abscissae of each panel (panels, T), in radians.
        inputs: the inputs of each panel (panels, T).
        targets: what was to be predicted (panels, T).
        predicted: the predictions (panels, T).
        titles: a title for each panel.
        losses: the loss at each step (steps,).
        title: the title of the figure.
    """
    count = len(times) + 1
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, t, x, y, p, name in zip(axes, times, inputs, targets, predicted, titles):
        axis.plot(t, x, "o", color=VERMILLION, markersize=4, label="input")
        axis.plot(t, y, "-", color=GREY, label="target")
        axis.plot(t, p, "s", color=BLUE, markersize=4, label="prediction")
        axis.set(title=name, xlabel="time [rad]", ylabel="value", ylim=(-1.3, 1.3))
    axes[0].legend(loc="best")
    axis = axes[count - 1]
    axis.semilogy(np.arange(len(losses)), losses, color=BLUE)
    axis.set(title="training", xlabel="step", ylabel="mean squared error")
    axis.grid(color=GREY, alpha=0.25)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure
