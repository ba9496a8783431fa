"""Run every experiment, and hold what came out against what its source reports.

Each runs with its default settings and leaves, in one folder, its figure and as a text file what
it prints. If one fails, the others run all the same.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxrnn import _checks as checks
from jaxrnn._files import write_atomically
from jaxrnn.examples import NAMES


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run all``."""

    out: str = field(
        default="experiments", metadata={"help": "the folder to write into, made if there is none"}
    )
    only: str = field(
        default="", metadata={"help": "some of the experiments, with commas between them"}
    )

    def __post_init__(self) -> None:
        for name in self.names:
            checks.choice("only", name, tuple(NAMES))

    @property
    def names(self) -> list[str]:
        """The experiments that are to run."""
        return [name.strip() for name in self.only.split(",")] if self.only else list(NAMES)


class Row(NamedTuple):
    """What became of an experiment.

    Attributes:
        name: which one.
        reported: what its source reports.
        result: what came out, or why nothing did.
        failed: whether nothing did.
        seconds: what it took, compiling included.
    """

    name: str
    reported: str
    result: str
    failed: bool
    seconds: float


def check_folder(path: str) -> Path:
    """The folder, made if there is none.

    Raises:
        OSError: if it can't be made or written to.
    """
    folder = Path(path)
    folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder {path!r} can't be written to")
    return folder


def run(name: str, folder: Path) -> Row:
    """Run an experiment, what it prints written to a file in the folder."""
    module: Any = importlib.import_module(NAMES[name])
    figure = folder / (module.Settings().out or f"{name}.svg")
    printed, failed, start = io.StringIO(), False, time.perf_counter()
    with contextlib.redirect_stdout(printed):
        try:
            result = module.result(module.main(module.Settings(out=str(figure))))
        except Exception as error:  # whatever it is, the others are to run
            failed, result = True, f"{type(error).__name__}: {error}".splitlines()[0]
            traceback.print_exc(file=printed)
    seconds = time.perf_counter() - start
    write_atomically(
        folder / f"{name}.txt", lambda path: path.write_text(printed.getvalue(), encoding="utf-8")
    )
    return Row(name, module.REPORTED, result, failed, seconds)


def as_table(rows: list[Row]) -> Table:
    """The rows as a table for the terminal."""
    table = Table(title="All experiments", title_justify="left", show_lines=True)
    for name in ("experiment", "the source reports", "came out"):
        table.add_column(name)
    table.add_column("seconds", justify="right")
    for row in rows:
        result = Text(f"failed: {row.result}" if row.failed else row.result)
        result.stylize("bold red" if row.failed else "")
        table.add_row(row.name, Text(row.reported), result, f"{row.seconds:.1f}")
    return table


def main(settings: Settings) -> list[Row]:
    """Run them, a line each as they end, then the table.

    Raises:
        ValueError: in the end, if some have failed.
        OSError: for a folder that can't be made or written to, before any runs.
    """
    folder = check_folder(settings.out)
    rows = []
    for name in settings.names:
        rows.append(row := run(name, folder))
        print(f"{row.name:<10}{row.seconds:5.1f} s{'  failed' if row.failed else ''}", flush=True)
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(as_table(rows))
    total = sum(row.seconds for row in rows)
    print(f"{len(rows)} experiments in {total:.1f} s; figures and texts: {folder}")
    wrong = [row.name for row in rows if row.failed]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} experiments failed: {', '.join(wrong)}")
    return rows
