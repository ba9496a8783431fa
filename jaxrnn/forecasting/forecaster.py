"""`Forecaster`: a model with what it takes to use it on rows as they are in a file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import data
from jaxrnn.forecasting.options import Options
from jaxrnn.forecasting.series import as_rows
from jaxrnn.forecasting.units import Units
from jaxrnn.layers.heads import LAYERS, Regressor


@dataclass(frozen=True)
class Forecaster:
    """A trained model, in the units of the data; `fit_forecaster` makes one.

    Attributes:
        model: a `Regressor` from windows (N, W, 2C) to H outputs, in evaluation mode.
        columns: the names of the columns it reads, C of them, that which it forecasts first.
        cut: its windows, of W rows and a horizon of H.
        units: the scales.
        ahead: how many rows `predict` goes ahead if it isn't told.
    """

    model: Regressor
    columns: tuple[str, ...]
    cut: data.Windows
    units: Units
    ahead: int

    @property
    def name(self) -> str:
        """The name of its layer."""
        return type(self.model.rnn).__name__

    def predict(self, values: Any, ahead: int | None = None) -> np.ndarray:
        """Forecast the rows that follow.

        Args:
            values: (T, C), the columns in the order of `columns`, or (T,) of one column, in order
                of time; the last W rows are what it goes by.
            ahead: how many rows; None for `ahead` of the forecaster. Beyond the horizon it goes on
                from its own forecasts, H at a time, which needs that it reads no other column.

        Returns:
            The forecasts (ahead,), float64, in the units of the data. The same numbers, bit for
            bit, before saving and after loading.

        Raises:
            ValueError: for values of other axes or that are not finite numbers, fewer than W rows,
                more rows ahead than the horizon with other columns, or numbers too far away from
                those that were learned from.
        """
        rows = as_rows(values, self.columns, "values")
        ahead = self.ahead if ahead is None else ahead
        check_ahead(ahead, self.cut.horizon, self.columns)
        if len(rows) < self.cut.size:
            raise ValueError(f"{len(rows)} rows are too few, the model goes by {self.cut.size}")
        graph, weights = nnx.split(self.model)

        def once(rows: np.ndarray) -> np.ndarray:
            """The H rows after a window (W, C)."""
            said = _say(graph, weights, self.units, self.units.scaled(rows)[None])
            return self.units.answers(rows[-1:, 0], said)[0]

        return roll(once, rows[-self.cut.size :], ahead)

    def backtest(self, values: np.ndarray, numbers: range) -> np.ndarray:
        """The forecasts after many windows of a series.

        Args:
            values: the series (T, C), float64.
            numbers: the numbers of the windows, K of them in a row.

        Returns:
            The forecasts (K, H), each from its window alone.
        """
        z = jnp.asarray(self.units.scaled(values))
        places = jnp.arange(numbers.start, numbers.stop, dtype=jnp.int32)
        graph, weights = nnx.split(self.model)
        said = _say_many(graph, weights, self.units, self.cut, z, places)
        last = values[numbers.start + self.cut.size - 1 : numbers.stop + self.cut.size - 1, 0]
        return self.units.answers(last, said)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one safetensors file; see `jaxrnn.forecasting.save`."""
        from jaxrnn.forecasting.saved import save

        return save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Forecaster:
        """Read one that `save` has written; see `jaxrnn.forecasting.load`."""
        from jaxrnn.forecasting.saved import load

        return load(path)


def check_ahead(ahead: int, horizon: int, columns: Sequence[str]) -> None:
    """Whether so many rows can be forecast."""
    checks.at_least("ahead", ahead, 1)
    if ahead > horizon and len(columns) > 1:
        raise ValueError(
            f"ahead should be at most {horizon}, the horizon, got {ahead}: beyond it the model "
            f"would need {', '.join(map(repr, columns[1:]))}, which it doesn't forecast"
        )


def roll(once: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, ahead: int) -> np.ndarray:
    """So many rows after a window (W, C), of one column where they are more than `once` gives."""
    pieces: list[np.ndarray] = []
    count = 0
    while count < ahead:
        if pieces:
            rows = np.concatenate([rows, pieces[-1][:, None]])[-len(rows) :]
        pieces.append(once(rows))
        count += len(pieces[-1])
    return np.concatenate(pieces)[:ahead]


def make_model(options: Options, columns: int) -> Regressor:
    """A model with weights from the seed, for so many columns."""
    rngs = nnx.Rngs(options.seed)
    layer = LAYERS[options.cell]
    rnn = layer(2 * columns, options.hidden_size, options.layers, batch_first=True, rngs=rngs)
    return Regressor(rnn, options.horizon, rngs=rngs)


def say(model: Regressor, units: Units, z: jax.Array) -> jax.Array:
    """The answers of a model to windows z (N, W, C): (N, H)."""
    y, _ = model(units.inputs(z))
    return y


def over(function: Callable[[jax.Array], jax.Array], numbers: jax.Array) -> jax.Array:
    """A function of the number of a window, over many of them (K,), some at a time: (K, ...)."""
    return jax.lax.map(function, numbers, batch_size=min(1024, len(numbers)))


@functools.partial(jax.jit, static_argnums=0)
def _say(graph: Any, weights: Any, units: Units, z: jax.Array) -> jax.Array:
    return say(nnx.merge(graph, weights), units, z)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _say_many(
    graph: Any, weights: Any, units: Units, cut: data.Windows, z: jax.Array, numbers: jax.Array
) -> jax.Array:
    model = nnx.merge(graph, weights)
    return over(lambda number: say(model, units, cut.take(z, number)[0][None])[0], numbers)
