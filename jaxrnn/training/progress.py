"""A progress bar that a compiled loop can feed; silent where nobody watches."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import jax
from jax import lax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text


class Speed(ProgressColumn):
    """Steps per second, to three digits."""

    def render(self, task: Task) -> Text:
        """Empty until there is something to tell."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} steps/s" if speed else "")


class Progress:
    """A bar with steps, loss, speed and time on standard error, as a context manager.

    It is drawn on a terminal only; elsewhere :meth:`tick` adds nothing to the compiled loop. It is
    fed from inside of one by :meth:`tick`, or from the host by :meth:`update`.

    Args:
        title: the word before the bar.
        total: the number of steps.
        updates: how often at most the loop reports, so that a fast loop stays fast.
        console: where to draw; None for standard error.

    Example:
        >>> with Progress("sine", 75) as progress:
        ...     progress.watched
        False
    """

    def __init__(self, title: str, total: int, *, updates: int = 50, console: Any = None):
        self._console = Console(stderr=True) if console is None else console
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            Speed(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self.watched,
        )
        self._task = self._bar.add_task(title, total=total, loss="")
        self._every = max(1, total // updates)

    @property
    def watched(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._console.is_terminal

    def tick(self, index: jax.Array, count: int, loss: jax.Array) -> None:
        """Report step `index` of `count` from inside of a traced loop."""
        if not self.watched:
            return
        due = (index % self._every == 0) | (index == count - 1)
        lax.cond(
            due,
            lambda: jax.debug.callback(self._update, index, loss),
            lambda: None,
        )

    def update(self, done: int, loss: float) -> None:
        """Report from the host that so many steps are done, and the loss of the last."""
        self._bar.update(self._task, completed=done, loss=f"{loss:.3g}")

    def skip(self, done: int) -> None:
        """Begin after so many steps, done before: they don't count for the speed."""
        self._bar.reset(self._task, completed=done)

    def _update(self, index: Any, loss: Any) -> None:
        self.update(int(index) + 1, float(loss))

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        jax.effects_barrier()
        self._bar.stop()
