"""What a training leaves of its course: a number for each step, as arrays and as a CSV file."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrnn._files import write_whole
from jaxrnn.training import processes


def _ends(series: dict[str, np.ndarray]) -> str:
    """The first and the last number of each."""
    return ", ".join(f"{k} {a[0]:.4g} ... {a[-1]:.4g}" if len(a) else k for k, a in series.items())


class History(NamedTuple):
    """The course of a training, NumPy arrays on the host.

    Attributes:
        train: the loss of each step, before its update, under "loss", and what else the loss
            function measured, each (steps,).
        validation: what each evaluation measured, by name, each (evaluations,).
        evaluated: how many steps had been done at each evaluation (evaluations,), int64.
    """

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    evaluated: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        """The loss of each step, before its update (steps,)."""
        return self.train["loss"]

    def __repr__(self) -> str:
        """Where each number began and ended.

        Example:
            >>> History({"loss": np.array([2.0, 0.5, 0.25])}, {}, np.array([], np.int64))
            History(3 steps: loss 2 ... 0.25)
        """
        shown = f"{len(self.train.get('loss', ()))} steps: {_ends(self.train)}"
        if self.validation:
            shown += f"; {len(self.evaluated)} validations: {_ends(self.validation)}"
        return f"History({shown})"

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a line for each step; what was there before stays until it is written whole.

        The columns are ``step``, counted from 1, those of `train`, and those of `validation` with
        ``validation_`` before their names, empty where there was no evaluation after the step.
        Numbers have as many digits as tell them apart. Of several processes, all of which have the
        same history, the first one writes; the others do nothing.

        Args:
            path: the file.

        Returns:
            Its path.

        Raises:
            OSError: if it can't be written.

        Example:
            >>> import tempfile
            >>> history = History(
            ...     {"loss": np.array([2.0, 0.5])}, {"loss": np.array([0.75])}, np.array([2])
            ... )
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     print(history.to_csv(Path(folder, "history.csv")).read_text())
            step,loss,validation_loss
            1,2.0,
            2,0.5,0.75
            <BLANKLINE>
        """
        rows = {int(step): index for index, step in enumerate(self.evaluated)}

        def write(file: Path) -> None:
            with file.open("w", newline="", encoding="utf-8") as opened:
                writer = csv.writer(opened, lineterminator="\n")
                names = [f"validation_{name}" for name in self.validation]
                writer.writerow(["step", *self.train, *names])
                for step, values in enumerate(zip(*self.train.values()), start=1):
                    at = rows.get(step)
                    measured = ["" if at is None else v[at] for v in self.validation.values()]
                    writer.writerow([step, *values, *measured])

        return write_whole(Path(path), write) if processes.is_first() else Path(path)


class Recorder:
    """A history that grows chunk by chunk."""

    def __init__(self, history: History | None = None):
        self._train = [history.train] if history is not None else []
        self._validation = (
            [history.validation] if history is not None and history.validation else []
        )
        self._evaluated = [] if history is None else history.evaluated.tolist()

    def train(self, chunk: dict[str, np.ndarray]) -> None:
        """Add what was measured at each step of a chunk."""
        self._train.append(chunk)

    def validation(self, step: int, measured: dict[str, np.ndarray]) -> None:
        """Add an evaluation after so many steps."""
        self._validation.append({name: value[None] for name, value in measured.items()})
        self._evaluated.append(step)

    def history(self) -> History:
        """All of it until now."""
        self._train, self._validation = _joined(self._train), _joined(self._validation)
        train = self._train[0] if self._train else {"loss": np.zeros(0)}
        validation = self._validation[0] if self._validation else {}
        evaluated = np.array(self._evaluated, np.int64)
        return History(_in_order(train), _in_order(validation), evaluated)


def _in_order(measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The loss first, then the metrics by name: the order of JAX's dicts is none."""
    return {n: measured[n] for n in sorted(measured, key=lambda n: (n != "loss", n))}


def _joined(parts: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The parts as one, so that they are joined once and not again at each call."""
    if len(parts) < 2:
        return parts
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}]
