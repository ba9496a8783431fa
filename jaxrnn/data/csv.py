"""Numeric columns of CSV files, with errors that name the line and the column."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn._files import decode_utf8


class Table(NamedTuple):
    """Named columns.

    Attributes:
        names: names of the C columns.
        values: the values (T, C), float64.
    """

    names: tuple[str, ...]
    values: np.ndarray


def read_csv(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    delimiter: str = ",",
    min_rows: int = 1,
    allow_constant: bool = False,
) -> Table:
    r"""Read numeric columns of a CSV file with a header, one time step a line.

    The encoding is UTF-8, with or without a byte order mark. Cells may be quoted. Spaces around
    cells and empty lines at the end are ignored. Numbers have a decimal point: ``-12.5``, ``3e-4``.

    Args:
        path: the file.
        columns: names of the columns to read, in this order. Defaults to all columns with at least
            one number.
        delimiter: the character between cells.
        min_rows: minimal number of data lines.
        allow_constant: If True, accept columns that have the same value in every line.

    Raises:
        ValueError: naming the file, the line and the column: for an invalid header, an unknown
            column, a cell that is not a finite number, a line with more or fewer cells than the
            header, an empty line, fewer lines than `min_rows`, a constant column, invalid UTF-8.
        OSError: if the file can't be opened.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "prices.csv")
        ...     _ = path.write_text("Date,Open,Close\n2024-01-02,10,10.5\n2024-01-03,10.4,9.8\n")
        ...     table = read_csv(path)
        >>> table.names, table.values.tolist()
        (('Open', 'Close'), [[10.0, 10.5], [10.4, 9.8]])
    """
    name = os.fspath(path)
    with _open(path, delimiter) as lines:
        header = _header(name, lines, delimiter)
        for column in columns or ():
            if column not in header:
                raise ValueError(
                    f"{name}, line 1: column {_shown(column)} must be one of the columns "
                    f"{list_columns(header)}"
                )
        selected = [_Column(title, index) for index, title in enumerate(header)]
        if columns is not None:
            selected = [_Column(title, header.index(title)) for title in columns]
        num_rows = _read_cells(name, lines, len(header), selected)
    if num_rows < max(min_rows, 1):
        raise ValueError(f"{name} must have at least {max(min_rows, 1)} data lines, got {num_rows}")
    if columns is None:
        selected = [column for column in selected if column.numeric]
    if not selected:
        raise ValueError(f"{name} has no column of numbers{_delimiter_hint(header, delimiter)}")
    errors = [(*column.error, column.name) for column in selected if column.error]
    if errors:
        line, message, title = min(errors)
        raise ValueError(f"{name}, line {line}, column {_shown(title)}: {message}")
    values = np.stack([np.frombuffer(column.values) for column in selected], axis=1)
    constant = (values == values[0]).all(0)
    if constant.any() and len(values) > 1 and not allow_constant:
        index = int(constant.argmax())
        raise ValueError(
            f"{name}, column {_shown(selected[index].name)} is constant: {values[0, index]:g} in "
            "every line"
        )
    return Table(tuple(column.name for column in selected), values)


def read_header(path: str | os.PathLike[str], *, delimiter: str = ",") -> list[str]:
    """Return the column names of a CSV file, with the errors of `read_csv`."""
    with _open(path, delimiter) as lines:
        return _header(os.fspath(path), lines, delimiter)


def list_columns(header: Sequence[str], limit: int = 20) -> str:
    """Format column names for a message, at most `limit` of them."""
    more = f" and {len(header) - limit} more" if len(header) > limit else ""
    return ", ".join(map(_shown, header[:limit])) + more


@contextlib.contextmanager
def _open(path: str | os.PathLike[str], delimiter: str) -> Iterator[Any]:
    """Yield a reader of the cells of each line."""
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"`delimiter` must be one character, got {delimiter!r}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            try:
                yield lines
            except csv.Error as error:
                name = f"{os.fspath(path)}, line {lines.line_num}"
                raise ValueError(f"{name}: {error}") from None
    except UnicodeDecodeError:
        decode_utf8(path, Path(path).read_bytes())
        raise


class _Column:
    """Numbers of a column, and its first error as a line number and a message."""

    def __init__(self, name: str, index: int):
        self.name, self.index = name, index
        self.values = array("d")
        self.numeric = False
        self.error: tuple[int, str] | None = None

    def add(self, line: int, cells: Sequence[str]) -> None:
        """Add the cell of a line."""
        cell = cells[self.index].strip()
        value = _number(cell)
        self.values.append(value)
        if math.isfinite(value):
            self.numeric = True
        elif self.error is None:
            message = f"{_shown(cell)} is not a finite number" if cell else "the cell is empty"
            if math.isfinite(_number(cell.replace(",", ".", 1))):
                message += ". Use a decimal point instead of the comma"
            self.error = line, message


def _read_cells(name: str, lines: Any, width: int, columns: Sequence[_Column]) -> int:
    """Read the data lines into columns and return their number."""
    count, empty = 0, 0
    for cells in lines:
        if len(cells) < 2 and not any(cell.strip() for cell in cells):
            empty = empty or lines.line_num
            continue
        if empty:
            raise ValueError(f"{name}, line {empty}: the line is empty")
        if len(cells) != width:
            raise ValueError(
                f"{name}, line {lines.line_num}: the line must have {width} cells, like the "
                f"header, got {len(cells)}"
            )
        count += 1
        for column in columns:
            column.add(lines.line_num, cells)
    return count


def _header(name: str, lines: Any, delimiter: str) -> list[str]:
    """Return the column names."""
    header = [cell.strip() for cell in next(lines, ())]
    if not any(header):
        raise ValueError(f"{name}, line 1: the header is missing, the line is empty")
    if not any(math.isnan(_number(cell)) for cell in header):
        raise ValueError(f"{name}, line 1: the header must be column names, got numbers")
    if len(header) == 1 and (hint := _delimiter_hint(header, delimiter)):
        raise ValueError(f"{name}, line 1: the header has a single column{hint}")
    title, count = Counter(filter(None, header)).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{name}, line 1: column {_shown(title)} occurs {count} times")
    return header


def _delimiter_hint(header: Iterable[str], delimiter: str) -> str:
    """Suggest a delimiter that occurs in a header."""
    text = "".join(header)
    likely = max((c for c in ";\t|," if c != delimiter), key=text.count)
    return f". The delimiter seems to be {likely!r}, not {delimiter!r}" if likely in text else ""


def _shown(cell: str) -> str:
    """Format a cell for a message."""
    return repr(cell if len(cell) <= 40 else f"{cell[:39]}…")


def _number(cell: str) -> float:
    """Return the number in a cell, or NaN. Python's ``1_000`` is no number in a CSV file."""
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan
