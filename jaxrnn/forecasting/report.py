"""What came out: tables for the terminal, CSV files for whatever comes next."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jaxrnn import plotting
from jaxrnn._files import write_whole
from jaxrnn.forecasting.learning import LINEAR, PERSISTENCE, Fitted

MOST, LONGEST = 12, 24
"""Rows that a table of errors, and one of forecasts, shows at most."""


def errors_table(fitted: Fitted) -> Table:
    """The errors on the held-out part by row ahead, in the units of the data."""
    horizon = fitted.series.cut.horizon
    table = Table("rows\nahead")
    for name in fitted.errors:
        for kind in ("RMSE", "MAE"):
            table.add_column(f"{name}\n{kind}", justify="right", overflow="fold")
    for place in [*(plotting.spread(range(horizon), MOST) if horizon > 1 else []), horizon]:
        last = place == horizon
        label = str(place + 1) if not last else "1" if horizon == 1 else "all"
        cells = [f"{e[place]:.4g}" for errors in fitted.errors.values() for e in errors]
        table.add_row(label, *cells, style="bold" if last else None)
    return table


def verdict(fitted: Fitted) -> str:
    """How the model compares, in one line."""
    name = fitted.forecaster.name
    ours = fitted.errors[name].rmse[-1]
    ratios = [_ratio(ours, fitted.errors[other].rmse[-1]) for other in (PERSISTENCE, LINEAR)]
    return (
        f"{name}: RMSE {ours:.4g}, {ratios[0]} times that of persistence, {ratios[1]} times that "
        "of linear regression"
    )


def _ratio(ours: float, other: float) -> str:
    """How many times another error, which may be none."""
    return f"{ours / other:.3g}" if other > 0 else "infinitely many"


def ahead_table(forecasts: Mapping[str, np.ndarray], rows: int) -> Table:
    """The forecasts (ahead,) after the last of so many rows, by name."""
    count = max(map(len, forecasts.values()))
    rest = f"and {count - LONGEST} more, in the CSV file" if count > LONGEST else None
    table = Table(caption=rest, caption_justify="left")
    for name in ("row", *forecasts):
        table.add_column(name, justify="right", overflow="fold")
    for place in range(min(count, LONGEST)):
        table.add_row(str(rows + place + 1), *(f"{f[place]:.6g}" for f in forecasts.values()))
    return table


def write_csv(fitted: Fitted, path: str | os.PathLike[str]) -> Path:
    """Write all forecasts, a line each; what was there before stays until it is written whole.

    The columns are ``part``, "held out" or "ahead"; ``row``, which row is forecast, the first of
    the file being 1; ``rows_ahead``, how many rows after the last one that was known; ``truth``,
    empty for rows that are yet to come; and what each says: ``LSTM`` (or ``GRU``, ``RNN``),
    ``persistence``, ``linear``. Numbers have all their digits, in the units of the data.
    """
    name, cut = fitted.forecaster.name, fitted.series.cut
    names = [name, PERSISTENCE, LINEAR]
    rows = len(fitted.series.values)

    def lines() -> Iterable[Sequence[Any]]:
        yield ["part", "row", "rows_ahead", "truth", *names]
        came, said = fitted.truth, [fitted.forecasts[n] for n in names]
        for place, number in enumerate(fitted.series.judge):
            for step in range(cut.horizon):
                numbers = [float(a[place, step]) for a in (came, *said)]
                yield ["held out", number + cut.size + step + 1, step + 1, *numbers]
        for step in range(len(fitted.ahead[name])):
            numbers = [float(fitted.ahead[n][step]) for n in names]
            yield ["ahead", rows + step + 1, step + 1, "", *numbers]

    return _write(path, lines())


def write_ahead(forecasts: np.ndarray, rows: int, path: str | os.PathLike[str]) -> Path:
    """Write the forecasts after the last of so many rows: ``row``, ``rows_ahead``, ``forecast``."""
    lines = [[rows + place, place, float(value)] for place, value in enumerate(forecasts, 1)]
    return _write(path, [["row", "rows_ahead", "forecast"], *lines])


def _write(path: str | os.PathLike[str], lines: Iterable[Sequence[Any]]) -> Path:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)

    return write_whole(Path(path), write)
