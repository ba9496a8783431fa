"""Forecast with a model that `jaxrnn forecast` has left, from the last rows of a CSV file.

``jaxrnn predict MODEL FILE`` reads the columns that the model knows and forecasts the rows after
the last one: of the file that it learned from, the numbers that `jaxrnn forecast` printed, bit for
bit; of the same file some rows later, or of another, what comes next there. MODEL is the folder of
a forecast, or its ``model.safetensors``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich.console import Console

from jaxrnn import _checks as checks
from jaxrnn import data, plotting
from jaxrnn.forecasting.forecaster import Forecaster, check_ahead
from jaxrnn.forecasting.report import ahead_table, write_ahead
from jaxrnn.forecasting.saved import load


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn predict``."""

    model: str = field(
        default="",
        metadata={"help": "the folder of a forecast, or its model.safetensors", "positional": True},
    )
    file: str = field(default="", metadata={"help": "a CSV file", "positional": True})
    delimiter: str = field(default=",", metadata={"help": "what is between the cells of the file"})
    ahead: int = field(
        default=0, metadata={"help": "rows to forecast after the last one; 0 for as many as before"}
    )
    out: str = field(default="", metadata={"help": "a .csv file for the forecasts"})

    def __post_init__(self) -> None:
        if not self.model or not self.file:
            raise ValueError("a MODEL that 'jaxrnn forecast' has left and a CSV FILE are needed")
        checks.at_least("ahead", self.ahead, 0)


class Predicted(NamedTuple):
    """What a run leaves.

    Attributes:
        forecaster: the model.
        rows: how many rows the file has.
        ahead: the forecasts of the rows after them (ahead,), in the units of the data.
    """

    forecaster: Forecaster
    rows: int
    ahead: np.ndarray


def main(settings: Settings) -> Predicted:
    """Load, read, forecast; print it, and write it if there is a file to write to."""
    read = [settings.file, settings.model]
    target = settings.out and plotting.check_target(settings.out, ("csv",), "forecasts", read=read)
    forecaster = load(settings.model)
    ahead = settings.ahead or forecaster.ahead
    check_ahead(ahead, forecaster.cut.horizon, forecaster.columns)
    table = data.read_csv(
        settings.file, forecaster.columns, delimiter=settings.delimiter, constant=True
    )
    rows, window = len(table.values), forecaster.cut.size
    if rows < window:
        raise ValueError(f"{settings.file}: {rows} rows are too few, the model goes by {window}")
    try:
        forecasts = forecaster.predict(table.values, ahead)
    except ValueError as error:
        raise ValueError(f"{settings.file}: {error}") from None
    print(f"{forecaster.columns[0]} after row {rows}, the last")
    Console().print(ahead_table({forecaster.name: forecasts}, rows))
    if target:
        print(f"forecasts: {write_ahead(forecasts, rows, target)}")
    return Predicted(forecaster, rows, forecasts)
