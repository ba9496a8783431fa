"""Tables of results for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def make_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Iterable[Any]],
    *,
    right: Sequence[str] = (),
    lines: bool = False,
) -> Table:
    """Return a table; the columns in `right` are aligned to the right, `lines` separate rows."""
    table = Table(title=title, title_justify="left", show_lines=lines)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return table
