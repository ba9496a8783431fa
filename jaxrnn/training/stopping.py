"""When to stop: no better on an evaluation for a while."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxrnn import _checks as checks


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a metric of the evaluation has not improved for so many evaluations.

    The parameters of the best evaluation are those that the training ends with, whether it was
    stopped or not.

    Args:
        metric: its name among those that `evaluate` gives out.
        patience: the evaluations without an improvement after which it ends, at least 1.
        mode: "min" if less is better, "max" if more is.
        min_delta: what an improvement has to exceed, in the unit of the metric.

    Raises:
        ValueError: for a patience below 1, another mode, a negative or infinite `min_delta`.

    Example:
        >>> EarlyStopping("accuracy", patience=3, mode="max").better(0.9, than=0.8)
        True
    """

    metric: str = "loss"
    patience: int = 5
    mode: str = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least("patience", self.patience, 1)
        checks.choice("mode", self.mode, ("min", "max"))
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"min_delta should be a number from 0 on, got {self.min_delta!r}")

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value is an improvement; the first one is, NaN never."""
        if math.isnan(value):
            return False
        if than is None:
            return True
        return (than - value if self.mode == "min" else value - than) > self.min_delta


@dataclass
class Best:
    """The best evaluation until now.

    Attributes:
        stopping: the rule; None for none.
        value: the metric then; None before the first.
        step: the steps that had been done.
        since: evaluations since then.
        kept: the parameters and the other state of the model then.
    """

    stopping: EarlyStopping | None
    value: float | None = None
    step: int = 0
    since: int = 0
    kept: Any = None

    def better(self, step: int, value: float) -> bool:
        """Take note of an evaluation; whether it is the best."""
        assert self.stopping is not None
        if not self.stopping.better(value, self.value):
            self.since += 1
            return False
        self.value, self.step, self.since = value, step, 0
        return True

    @property
    def over(self) -> bool:
        """Whether patience is at its end."""
        return self.stopping is not None and self.since >= self.stopping.patience
