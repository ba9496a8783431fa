"""The figure of a sweep. Not imported by `jaxrnn.training`, which does without Matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxrnn.plotting import GREY, PALETTE
from jaxrnn.training.results import Groups


def sweep_figure(
    groups: Groups, along: str = "", *, title: str, label: str = "value", most: int = 8
) -> Figure:
    """The runs of a sweep: the median of each group as a line, the quartiles as a band.

    Args:
        groups: what `jaxrnn.training.grouped` gave out.
        along: the axis of the sweep that is the abscissa, a line for each combination of the
            others; "" for the steps, a line for each group.
        title: the title of the figure.
        label: what the values are, with their unit.
        most: how many lines at most; the best ones are shown.

    Returns:
        A figure for `jaxrnn.plotting.save`.

    Raises:
        ValueError: for an axis that there is not, or values without steps and no axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.training import grouped, sweep
        >>> from jaxrnn.training.figures import sweep_figure
        >>> swept = sweep(lambda a, b: a * b, a=jnp.array([3.0, 2.0]), b=jnp.arange(1, 4))
        >>> figure = sweep_figure(grouped(swept, over="b"), "a", title="a product")
        >>> figure.axes[0].get_xlabel()
        'a'
    """
    if along not in groups.settings and (along or groups.values.ndim == 2):
        raise ValueError(
            f"along should be one of {', '.join(map(repr, groups.settings))}"
            f"{', or empty for the steps' if groups.values.ndim > 2 else ''}, got {along!r}"
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
        here = np.array(lines[text])
        if along:
            here = here[np.argsort(groups.settings[along][here], kind="stable")]
            x, rows, style = groups.settings[along][here], (here, -1), "o-"
        else:
            x, rows, style = np.arange(middle.shape[-1]), (here[0],), "-"
        color = PALETTE[index % len(PALETTE)]
        axis.plot(x, middle[rows], style, color=color, label=text, markersize=4)
        axis.fill_between(x, low[rows], high[rows], color=color, alpha=0.2, linewidth=0)
    if along:
        axis.set_xscale(_scale(groups.settings[along]))
    axis.set_yscale(_scale(middle))
    axis.set(xlabel=along or "step", ylabel=f"{label}, median and quartiles")
    axis.grid(color=GREY, alpha=0.25)
    if others.settings:
        hidden = f"the best {most} of {len(lines)}" if len(lines) > most else None
        axis.legend(loc="best", fontsize="small", title=hidden)
    return figure


def _scale(values: Any) -> str:
    """Logarithms where the values are positive and far apart."""
    finite = values[np.isfinite(values)]
    far = finite.size and finite.min() > 0 and finite.max() > 30 * finite.min()
    return "log" if far else "linear"
