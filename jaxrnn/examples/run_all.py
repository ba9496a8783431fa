"""Run all examples and compare their results with those that the sources report.

Each example runs with its default options. Its figure and its printed output go to one folder. An
example that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import time
import traceback
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxrnn import _checks as checks
from jaxrnn._files import write_atomically
from jaxrnn.examples import EXAMPLES, make_table


class Outcome(NamedTuple):
    """Outcome of one example."""

    name: str
    result: str  # its summary, or its error
    failed: bool
    seconds: float  # compilation included


def run(name: str, folder: Path) -> Outcome:
    """Run an example, with its figure and its printed output saved to a folder."""
    function = resolve_name(EXAMPLES[name].function)
    figure = folder / (inspect.signature(function).parameters["out"].default or f"{name}.svg")
    printed, failed, start = io.StringIO(), False, time.perf_counter()
    with contextlib.redirect_stdout(printed):
        try:
            result = function(out=str(figure))
        except Exception as error:  # the other examples still run
            failed, result = True, f"{type(error).__name__}: {error}".splitlines()[0]
            traceback.print_exc(file=printed)
    seconds = time.perf_counter() - start
    text = printed.getvalue()
    write_atomically(folder / f"{name}.txt", lambda path: path.write_text(text, encoding="utf-8"))
    return Outcome(name, result, failed, seconds)


def as_table(outcomes: list[Outcome]) -> Table:
    """Return the outcomes and the reported figures as a table for the terminal."""
    rows = []
    for name, result, failed, seconds in outcomes:
        text = Text(f"failed: {result}", "bold red") if failed else Text(result)
        rows.append([name, Text(EXAMPLES[name].reported), text, f"{seconds:.1f}"])
    columns = ("example", "the source reports", "result", "seconds")
    return make_table("All examples", columns, rows, right=columns[3:], lines=True)


def main(*, out: str = "experiments", only: str = "") -> str:
    """Run all examples, and print a table of their results beside those of the sources.

    Args:
        out: the folder for figures and printed output, created if missing.
        only: names of some examples, separated by commas.

    Raises:
        ValueError: if a name in `only` is unknown, or if an example failed.
        OSError: if the folder cannot be created or written to.
    """
    names = [name.strip() for name in only.split(",")] if only else list(EXAMPLES)
    for name in names:
        checks.choice("only", name, tuple(EXAMPLES))
    folder = Path(out)
    folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"Folder {out!r} can't be written to.")
    outcomes = []
    for name in names:
        outcomes.append(one := run(name, folder))
        print(f"{name:<10}{one.seconds:5.1f} s{'  failed' if one.failed else ''}", flush=True)
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(as_table(outcomes))
    total = sum(one.seconds for one in outcomes)
    summary = f"{len(names)} examples in {total:.1f} s"
    print(f"{summary}; figures and texts: {folder}")
    failed = [one.name for one in outcomes if one.failed]
    if failed:
        raise ValueError(f"{len(failed)} of {len(names)} examples failed: {', '.join(failed)}")
    return summary
