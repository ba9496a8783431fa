"""Columns of numbers from a CSV file, or one line that says what is wrong with it, and where."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np


class Table(NamedTuple):
    """Columns with names.

    Attributes:
        names: the names of the columns, C of them.
        values: one row for each line (T, C), float64.
    """

    names: tuple[str, ...]
    values: np.ndarray


def read_csv(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    delimiter: str = ",",
    min_rows: int = 1,
    constant: bool = False,
) -> Table:
    r"""Read the numbers of a CSV file with a header: one line for each step, in order of time.

    The text is UTF-8, with a byte order mark or without; cells may be quoted; spaces around them
    and empty lines at the end do nothing. Numbers are written with a point: ``-12.5``, ``3e-4``.

    Args:
        path: the file.
        columns: the names of the columns to read, in this order; None for all that have a number
            in any line (so not for a column of dates).
        delimiter: what is between the cells.
        min_rows: how many lines of numbers there have to be.
        constant: let columns be the same in every line.

    Returns:
        `Table`.

    Raises:
        ValueError: one line, with the file, and the line and the column where there is one, for

            - an empty file, a header without names or with a name twice, another delimiter;
            - a column that is not there, or no column of numbers;
            - an empty cell, a text or an infinite number in a column of numbers, a line with more
              or fewer cells than the header, an empty line between others;
            - fewer lines than `min_rows`, a column that is the same in every line;
            - text that is not UTF-8.
        OSError: for a file that can't be opened.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "prices.csv")
        ...     _ = path.write_text("Date,Open,Close\n2024-01-02,10,10.5\n2024-01-03,10.4,9.8\n")
        ...     table = read_csv(path)
        >>> table.names, table.values.tolist()
        (('Open', 'Close'), [[10.0, 10.5], [10.4, 9.8]])
    """
    with _lines(path, delimiter) as lines:
        return _read(os.fspath(path), lines, delimiter, columns, min_rows, constant)


def column_names(path: str | os.PathLike[str], *, delimiter: str = ",") -> list[str]:
    """The names in the header of a file, refused as `read_csv` does."""
    with _lines(path, delimiter) as lines:
        return _header(os.fspath(path), lines, delimiter)


@contextlib.contextmanager
def _lines(path: str | os.PathLike[str], delimiter: str) -> Iterator[Any]:
    """The cells of each line, and what is wrong with them in one line."""
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"delimiter should be one character, got {delimiter!r}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            try:
                yield lines
            except csv.Error as error:
                where = f"{os.fspath(path)}, line {lines.line_num}"
                raise ValueError(f"{where}: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(_not_utf8(path)) from None


class _Column:
    """The numbers of one column, and what is first wrong with it."""

    def __init__(self, name: str):
        self.name = name
        self.values = array("d")
        self.numeric = False
        self.wrong: tuple[int, str] | None = None

    def add(self, line: int, cell: str) -> None:
        value = _number(cell)
        self.values.append(value)
        if math.isfinite(value):
            self.numeric = True
        elif self.wrong is None:
            cell = cell.strip()
            got = f"{_cell(cell)} is not a finite number" if cell else "the cell is empty"
            if math.isfinite(_number(cell.replace(",", ".", 1))):
                got += ": numbers are written with a point, not a comma"
            self.wrong = line, got


def _cell(text: str) -> str:
    """A cell as a message shows it."""
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def listed(header: Sequence[str], most: int = 20) -> str:
    """The names of columns, those of a very wide table not all."""
    more = f" and {len(header) - most} more" if len(header) > most else ""
    return ", ".join(map(_cell, header[:most])) + more


def _number(cell: str) -> float:
    """The number in a cell, NaN if it is none; 1_000 is one in Python only."""
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _read(
    name: str,
    lines: Any,
    delimiter: str,
    chosen: Sequence[str] | None,
    min_rows: int,
    constant: bool,
) -> Table:
    header = _header(name, lines, delimiter)
    for wanted in chosen or ():
        if wanted not in header:
            raise ValueError(
                f"{name}, line 1: there is no column {_cell(wanted)}, there are {listed(header)}"
            )
    columns = {place: _Column(title) for place, title in enumerate(header)}
    if chosen is not None:
        columns = {header.index(title): _Column(title) for title in chosen}
    rows, empty = 0, 0
    for cells in lines:
        if not any(cell.strip() for cell in cells) and len(cells) < 2:
            empty = empty or lines.line_num
            continue
        if empty:
            raise ValueError(f"{name}, line {empty}: the line is empty")
        if len(cells) != len(header):
            raise ValueError(
                f"{name}, line {lines.line_num}: {len(cells)} cells, the header has {len(header)}"
            )
        rows += 1
        for place, column in columns.items():
            column.add(lines.line_num, cells[place])
    if rows < max(min_rows, 1):
        raise ValueError(f"{name}: {rows} lines of numbers, at least {max(min_rows, 1)} are needed")
    found = list(columns.values())
    if chosen is None:
        found = [column for column in found if column.numeric]
    if not found:
        raise ValueError(f"{name}: there is no column of numbers{_hint(header, delimiter)}")
    _check(name, found, constant)
    values = np.stack([np.frombuffer(column.values) for column in found], axis=1)
    return Table(tuple(column.name for column in found), values)


def _header(name: str, lines: Any, delimiter: str) -> list[str]:
    """The names of the columns."""
    header = [cell.strip() for cell in next(lines, ())]
    if not any(header):
        raise ValueError(f"{name}, line 1: the file is empty, or begins with an empty line")
    if not any(math.isnan(_number(cell)) for cell in header):
        raise ValueError(f"{name}, line 1: the header should be the names of the columns")
    if len(header) == 1 and (hint := _hint(header, delimiter)):
        raise ValueError(f"{name}, line 1: there is one column{hint}")
    seen: set[str] = set()
    for title in filter(None, header):
        if title in seen:
            raise ValueError(f"{name}, line 1: there are two columns {_cell(title)}")
        seen.add(title)
    return header


def _hint(header: Iterable[str], delimiter: str) -> str:
    """Another delimiter that a header seems to have."""
    text = "".join(header)
    likely = max((c for c in ";\t|," if c != delimiter), key=text.count)
    return f", the delimiter seems to be {likely!r} and not {delimiter!r}" * (likely in text)


def _check(name: str, columns: Sequence[_Column], constant: bool) -> None:
    """Every cell a number, and no column of the same number, as the first line that is wrong."""
    wrong = [(*column.wrong, column.name) for column in columns if column.wrong]
    if wrong:
        line, got, title = min(wrong)
        raise ValueError(f"{name}, line {line}, column {_cell(title)}: {got}")
    for column in columns:
        values = np.frombuffer(column.values)
        if not constant and len(values) > 1 and (values == values[0]).all():
            raise ValueError(
                f"{name}, column {_cell(column.name)}: it is {values[0]:g} in every line, there is "
                "nothing to learn from it"
            )


def _not_utf8(path: str | os.PathLike[str]) -> str:
    """Where a file is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"{line[error.start]:#04x}"
                return f"{os.fspath(path)}, line {number}: byte {byte} is not UTF-8 text"
    return f"{os.fspath(path)}: the text is not UTF-8"
