"""What there is to choose about a forecaster: what it sees, what it is, how it learns."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxrnn import _checks as checks
from jaxrnn.layers.heads import LAYERS


@dataclass(frozen=True)
class Options:
    """How to make a forecaster; each field is an option of ``jaxrnn forecast`` as well.

    Attributes:
        window: the rows that a forecast is made from, at least 2.
        horizon: the rows that follow them, all forecast at once.
        cell: "rnn", "lstm" or "gru".
        layers: recurrent layers one on another.
        hidden_size: the features of each.
        epochs: how often all training windows are seen, at most.
        batch_size: windows at each step of the training; all of them if there are fewer.
        learning_rate: of Adam, at first; it falls to 0 along half a cosine over all epochs.
        patience: stop after so many epochs in which the error on the validation part got no less.
        validation: the share of the rows, before those held out, that tells when to stop.
        held_out: the share of the rows, at the end, on which the forecasts are judged.
        seed: of the weights and of the order of the windows.

    Raises:
        ValueError: for sizes that are not whole numbers of at least 1, another cell, or shares
            that leave nothing to learn from.
    """

    window: int = field(default=24, metadata={"help": "rows that a forecast is made from"})
    horizon: int = field(default=12, metadata={"help": "rows that are forecast at once"})
    cell: str = field(default="lstm", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    layers: int = field(default=1, metadata={"help": "recurrent layers"})
    hidden_size: int = field(default=64, metadata={"help": "features of a layer"})
    epochs: int = field(default=200, metadata={"help": "how often all windows are seen, at most"})
    batch_size: int = field(default=32, metadata={"help": "windows at each step of the training"})
    learning_rate: float = field(default=0.003, metadata={"help": "of Adam, at first"})
    patience: int = field(
        default=15, metadata={"help": "stop after so many epochs without an improvement"}
    )
    validation: float = field(
        default=0.15, metadata={"help": "share of the rows that tells when to stop"}
    )
    held_out: float = field(
        default=0.2, metadata={"help": "share of the rows, at the end, to judge the forecasts by"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the weights and of the order"})

    def __post_init__(self) -> None:
        checks.at_least("window", self.window, 2)
        for name in ("horizon", "layers", "hidden_size", "epochs", "batch_size", "patience"):
            checks.at_least(name, getattr(self, name), 1)
        checks.choice("cell", self.cell, tuple(LAYERS))
        checks.positive("learning_rate", self.learning_rate)
        checks.seed(self.seed)
        for name in ("validation", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} should be between 0 and 1, got {getattr(self, name)!r}")
        if self.validation + self.held_out > 0.9:
            raise ValueError(
                "validation and held_out should leave at least a tenth to learn from, got "
                f"{self.validation!r} and {self.held_out!r}"
            )

    @property
    def shares(self) -> tuple[float, float, float]:
        """The shares of the rows to learn from, to stop by, and to judge by."""
        return 1 - self.validation - self.held_out, self.validation, self.held_out
