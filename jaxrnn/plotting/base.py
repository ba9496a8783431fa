"""What all figures share: colours, where they are written, a row of panels, a panel of losses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxrnn._files import check_apart, write_whole

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#666666"  # from the palette of Okabe and Ito
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
FORMATS = ("png", "svg", "pdf")


def check_target(
    path: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
    what: str = "figure",
    *,
    read: Sequence[str] = (),
) -> Path:
    """Whether a file can be written there, to be asked before the work is done.

    Args:
        path: where it shall be.
        formats: the suffixes it may have.
        what: what it is called in messages.
        read: files that are read, none of which it may be.

    Raises:
        ValueError: for a format that is not one of `formats`, a file that is read.
        OSError: for a folder that is not there or can't be written to, a file that can't.
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
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{named}: there is one that can't be written to")
    check_apart(what, path, *read)
    return path


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as its suffix says; what was there before stays until it is written whole.

    Args:
        figure: what the functions of `jaxrnn.plotting` return, or any of matplotlib's.
        path: the file, which ends in one of `FORMATS`.

    Raises:
        ValueError, OSError: as by `check_target`.
    """
    return write_whole(check_target(path), lambda temporary: figure.savefig(temporary, dpi=120))


def spread(items: Sequence[Any], most: int = 8) -> list[Any]:
    """At most so many of the items, the first and the last among them, evenly spread.

    Example:
        >>> spread(range(0, 75, 15), most=3)
        [0, 30, 60]
    """
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).astype(int))]


def plain(text: str, most: int = 100) -> str:
    """A text as it is, shortened: between two dollars Matplotlib would read formulas."""
    return (text if len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")


def rows_of_panels(count: int, title: str) -> tuple[Figure, Any]:
    """A figure with rows of three panels."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.5), layout="constrained")
    figure.suptitle(plain(title, 200))
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def plain_numbers(axis: Any) -> None:
    """Mark a logarithmic axis of what is drawn by numbers as 0.2, and not by powers of ten.

    Args:
        axis: of Matplotlib, with its y axis logarithmic.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axis = Figure().subplots()
        >>> _ = axis.semilogy([0.3, 1.0, 2.0])
        >>> plain_numbers(axis)
        >>> [axis.yaxis.get_minor_formatter()(value) for value in (0.3, 0.5, 2.0)]
        ['0.3', '0.5', '2']
    """
    low, high = axis.get_ylim()
    narrow = high < 30 * low  # hardly a power of ten in it
    number = FuncFormatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(number)
    few = 6 * low < high and narrow  # so many that their labels would touch
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5) if few else tuple(range(2, 10))))
    axis.yaxis.set_minor_formatter(number if narrow else NullFormatter())


def loss_panel(axis: Any, losses: Any, label: str, runs: Sequence[str] = ("",)) -> None:
    """A panel of the loss at each step (steps,), or of several runs (runs, steps)."""
    for index, (run, values) in enumerate(zip(runs, np.atleast_2d(losses))):
        axis.semilogy(values, label=run, color=PALETTE[index % len(PALETTE)])
    if len(runs) > 1:  # room above the curves, whose beginnings are high
        low, high = axis.get_ylim()
        axis.set_ylim(top=high * (high / low) ** (0.08 * len(runs)))
        axis.legend(loc="upper right", fontsize="x-small")
    axis.set(title="training", xlabel="step", ylabel=label)
    plain_numbers(axis)
    axis.grid(color=GREY, alpha=0.25)
