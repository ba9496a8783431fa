"""History of a training, and its progress bar."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from rich import progress as bars
from rich.console import Console
from rich.text import Text

from jaxrnn._files import write_atomically
from jaxrnn.training.distributed import _is_first


class History(NamedTuple):
    """Metrics of a training, as NumPy arrays.

    Attributes:
        train: the loss of each step before its update under "loss", and the metrics of the loss
            by name, each (steps,).
        validation: the metrics of each evaluation by name, each (evaluations,).
        evaluated: the number of steps before each evaluation (evaluations,), int64.

    Example:
        >>> History({"loss": np.array([2.0, 0.5, 0.25])}, {}, np.array([], np.int64))
        History(3 steps: loss 2 ... 0.25)
    """

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    evaluated: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        """Loss of each step before its update (steps,)."""
        return self.train["loss"]

    def __repr__(self) -> str:
        """Return the first and the last value of each metric."""
        shown = f"{len(self.train.get('loss', ()))} steps: {_summary(self.train)}"
        if self.validation:
            shown += f"; {len(self.evaluated)} validations: {_summary(self.validation)}"
        return f"History({shown})"

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        r"""Write one line per step to a CSV file, in the first of several processes.

        The columns are ``step``, counted from 1, the names of `train`, and those of `validation`
        with the prefix ``validation_``, empty at steps without an evaluation. Numbers have all
        their digits. The file is replaced atomically.

        Args:
            path: the file.

        Returns:
            The path.

        Raises:
            OSError: if the file cannot be written.

        Example:
            >>> import tempfile
            >>> train, validation = {"loss": np.array([2.0, 0.5])}, {"loss": np.array([0.75])}
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = History(train, validation, np.array([2])).to_csv(f"{folder}/history.csv")
            ...     path.read_text()
            'step,loss,validation_loss\n1,2.0,\n2,0.5,0.75\n'
        """
        steps = range(1, len(self.losses) + 1)
        columns: dict[str, Any] = {"step": steps, **self.train}
        for name, values in self.validation.items():
            measured = dict(zip(self.evaluated.tolist(), values))
            columns[f"validation_{name}"] = [measured.get(step, "") for step in steps]

        def _write(file: Path) -> None:
            with file.open("w", newline="", encoding="utf-8") as opened:
                writer = csv.writer(opened, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(zip(*columns.values()))

        return write_atomically(Path(path), _write) if _is_first() else Path(path)


def _summary(series: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{k} {a[0]:.4g} ... {a[-1]:.4g}" if len(a) else k for k, a in series.items())


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Replace parts of a history by their concatenation, and return it.

    The loss is first: JAX does not preserve the order of a dict.
    """
    if not parts:
        return {}
    names = sorted(parts[0], key=lambda name: (name != "loss", name))
    parts[:] = [{name: np.concatenate([part[name] for part in parts]) for name in names}]
    return parts[0]


class Progress:
    """Progress bar on standard error with steps, loss, speed and time, as a context manager.

    The bar is drawn on a terminal only; elsewhere `tick` adds nothing to the compiled loop.

    Args:
        title: the text before the bar.
        total: the number of steps.
        updates: maximum number of updates from a compiled loop.
        console: a ``rich.console.Console``; None for standard error.

    Example:
        >>> with Progress("sine", 75) as progress:
        ...     progress.watched
        False
    """

    def __init__(self, title: str, total: int, *, updates: int = 50, console: Any = None):
        self._console = Console(stderr=True) if console is None else console
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("loss {task.fields[loss]}"),
            _SpeedColumn(),
            bars.TimeElapsedColumn(),
            console=self._console,
            disable=not self.watched,
        )
        self._task = self._bar.add_task(title, total=total, loss="")
        self._every = max(1, total // updates)

    @property
    def watched(self) -> bool:
        """True if the console is a terminal."""
        return self._console.is_terminal

    def tick(self, index: jax.Array, count: int, loss: jax.Array) -> None:
        """Report step `index` of `count` and its loss from inside a traced loop."""
        if not self.watched:
            return
        due = (index % self._every == 0) | (index == count - 1)
        lax.cond(due, lambda: jax.debug.callback(self._update, index, loss), lambda: None)

    def update(self, done: int, loss: float) -> None:
        """Report the number of completed steps and the last loss from the host."""
        self._bar.update(self._task, completed=done, loss=f"{loss:.3g}")

    def skip(self, done: int) -> None:
        """Set the number of steps completed before this run; the speed does not count them."""
        self._bar.reset(self._task, completed=done)

    def _update(self, index: Any, loss: Any) -> None:
        self.update(int(index) + 1, float(loss))

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        jax.effects_barrier()
        self._bar.stop()


class _SpeedColumn(bars.ProgressColumn):
    """Steps per second."""

    def render(self, task: bars.Task) -> Text:
        """Return the text of the column, empty before the first update."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} steps/s" if speed else "")
