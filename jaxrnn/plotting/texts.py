"""Networks that predict characters: their training, and what they say in the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxrnn.plotting.base import BLUE, GREY, VERMILLION, loss_panel, rows_of_panels


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
    figure, axes = rows_of_panels(3, title)
    loss_panel(axes[0], losses, "cross-entropy [nats]")
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
    figure, axes = rows_of_panels(3, title)
    loss_panel(axes[0], losses, "cross-entropy [nats]")
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
