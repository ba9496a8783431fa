"""Training of a forecaster, and its evaluation against persistence and linear regression."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxrnn import data
from jaxrnn.forecasting.forecaster import (
    Forecaster,
    Options,
    Scales,
    as_series,
    check_ahead,
    forecast_recursively,
    last_values,
    make_model,
    map_windows,
    model_outputs,
)
from jaxrnn.layers.heads import Regressor
from jaxrnn.training import EarlyStopping, History, fit

PERSISTENCE, LINEAR = "persistence", "linear"
"""Names of the baselines."""


class Series(NamedTuple):
    """A series of T steps and C columns with its training, validation and test set.

    Attributes:
        columns: names of the columns, the target column first.
        values: the series (T, C), float64, in the units of the data.
        windows: the windows.
        train: the steps of the training set.
        train_windows, validation_windows, test_windows: indices of the windows of each set. Inputs
            of the latter two may precede their set, targets do not; no target is in two sets.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    windows: data.Windows
    train: range
    train_windows: range
    validation_windows: range
    test_windows: range


def prepare(
    values: Any,
    columns: Sequence[str] = ("value",),
    options: Options = Options(),
    *,
    name: str = "the series",
) -> Series:
    """Check a series and split it chronologically; the arguments are those of `fit_forecaster`.

    Raises:
        ValueError: for invalid values, too few steps for a window in each set, or a column that is
            constant in the training set.

    Example:
        >>> series = prepare(np.sin(np.arange(100.0)), options=Options(window=8, horizon=2))
        >>> series.train, series.train_windows, series.validation_windows, series.test_windows
        (range(0, 65), range(0, 56), range(57, 71), range(72, 91))
    """
    columns = tuple(columns)
    values = as_series(values, columns, name)
    minimum = _min_steps(options)
    if len(values) < minimum:
        raise ValueError(
            f"{name} must have at least {minimum} steps for a window of {options.window} and a "
            f"horizon of {options.horizon}, got {len(values)}"
        )
    train, validation, test = data.split(len(values), options.fractions)
    for index, column in enumerate(columns):
        known = values[: train.stop, index]
        if (known == known[0]).all():
            raise ValueError(
                f"{name}, column {column!r} is constant: {known[0]:g} in the {train.stop} steps of "
                "the training set"
            )
    windows = data.Windows(options.window, options.horizon)
    held_out = (windows.within(part, context=True) for part in (validation, test))
    return Series(columns, values, windows, train, windows.within(train), *held_out)


def _min_steps(options: Options) -> int:
    """Return the minimal number of steps with a window in each set, after rounding."""
    needed = options.window + options.horizon, options.horizon, options.horizon
    steps = max(int(size / Fraction(part)) for size, part in zip(needed, options.fractions))
    while steps < 2**50:  # beyond it, floats do not resolve a step
        ends = [round(steps * part) for part in (options.fractions[0], 1 - options.held_out, 1)]
        sizes = ends[0], ends[1] - ends[0], ends[2] - ends[1]
        if all(size >= minimum for size, minimum in zip(sizes, needed)):
            break
        steps += 1
    return steps


def persistence(values: np.ndarray, windows: data.Windows, indices: range) -> np.ndarray:
    """Return the persistence forecasts (K, H) of K consecutive windows of values (T, C).

    The forecast of every step is the last value of the target column, the first column.
    """
    return np.repeat(last_values(values, windows, indices)[:, None], windows.horizon, axis=1)


def _future(values: np.ndarray, windows: data.Windows, indices: range) -> np.ndarray:
    """Return the target values after each window (K, H)."""
    future = np.lib.stride_tricks.sliding_window_view(values[:, 0], windows.horizon)
    return future[indices.start + windows.size : indices.stop + windows.size]


class LinearRegression:
    r"""Linear least-squares forecasts from all values of a window.

    .. math::

        z = (s - \text{mean}) / \text{deviation}, \qquad
        \hat z_h = \sum_{w, c} A_{wch} z_{wc} + b_h

    The triangular QR factor of the training windows is updated chunk by chunk, which bounds the
    memory and keeps the digits that the normal equations lose. Underdetermined weights are those of
    minimal norm.

    Args:
        values: the series (T, C), float64, the target column first.
        windows: the windows.
        indices: indices of consecutive training windows.
        train: the steps that determine mean and standard deviation.
        chunk: number of windows in a chunk.

    Example:
        A sine is a linear function of its past, at any phase:

        >>> values = np.sin(0.3 * np.arange(100.0))[:, None]
        >>> linear = LinearRegression(values, data.Windows(4, 2), range(60), range(66))
        >>> bool(np.abs(linear(values, range(70, 71)) - values[74:76, 0]).max() < 1e-12)
        True
    """

    def __init__(
        self, values: Any, windows: data.Windows, indices: range, train: range, chunk: int = 4096
    ):
        known = values[train.start : train.stop]
        self.windows, self.mean, self.deviation = windows, known.mean(0), known.std(0)
        self.chunk = chunk
        size = windows.size * values.shape[1] + 1
        factor: Any = np.zeros((0, size + windows.horizon))
        for part in self._chunks(indices):
            targets = (_future(values, windows, part) - self.mean[0]) / self.deviation[0]
            block = np.concatenate([self._inputs(values, part), targets], axis=1)
            factor = np.linalg.qr(np.concatenate([factor, block]), mode="r")
        self.weights = np.linalg.lstsq(factor[:size, :size], factor[:size, size:], rcond=None)[0]

    def __call__(self, values: np.ndarray, indices: range) -> np.ndarray:
        """Return the forecasts (K, H) from K consecutive windows, in the units of the data."""
        z = [self._inputs(values, part) @ self.weights for part in self._chunks(indices)]
        return self.mean[0] + self.deviation[0] * np.concatenate(z)

    def _inputs(self, values: np.ndarray, indices: range) -> np.ndarray:
        """Return the flat windows (K, W * C) with a column of ones."""
        steps = values[indices.start : indices.stop + self.windows.size - 1]
        z = (steps - self.mean) / self.deviation
        flat: Any = np.lib.stride_tricks.sliding_window_view(z, self.windows.size, axis=0)
        ones = np.ones((len(indices), 1))
        return np.concatenate([flat.reshape(len(indices), -1), ones], axis=1)

    def _chunks(self, indices: range) -> list[range]:
        return [indices[i : i + self.chunk] for i in range(0, len(indices), self.chunk)]


class Errors(NamedTuple):
    """Forecast errors in the units of the data.

    Attributes:
        rmse: root mean square error of each step ahead, and of all of them: (H + 1,).
        mae: mean absolute error, likewise.
    """

    rmse: np.ndarray
    mae: np.ndarray

    @classmethod
    def between(cls, forecasts: np.ndarray, truth: np.ndarray) -> Errors:
        """Return the errors of forecasts (K, H)."""
        error = forecasts - truth
        squares, sizes = (error**2).mean(0), np.abs(error).mean(0)
        return cls(np.sqrt(np.append(squares, squares.mean())), np.append(sizes, sizes.mean()))


class Fitted(NamedTuple):
    """Result of `fit_forecaster`, with K test windows and a horizon of H steps.

    Attributes:
        forecaster: the forecaster.
        series: the series with its sets.
        truth: the values after each test window (K, H), in the units of the data.
        forecasts: the test forecasts (K, H) by name: "persistence", "linear", and last the name of
            the recurrent layer.
        errors: the test errors by name.
        ahead: the forecasts after the end of the series (forecaster.ahead,) by name.
        history: losses and validation losses, mean squared errors of scaled changes.
        best: step with the smallest validation loss, whose parameters the forecaster has.
        seconds: duration of the training and the evaluation.
    """

    forecaster: Forecaster
    series: Series
    truth: np.ndarray
    forecasts: dict[str, np.ndarray]
    errors: dict[str, Errors]
    ahead: dict[str, np.ndarray]
    history: History
    best: int
    seconds: float


def fit_forecaster(
    values: Any,
    columns: Sequence[str] = ("value",),
    options: Options = Options(),
    *,
    ahead: int | None = None,
    name: str = "the series",
    progress: bool = True,
) -> Fitted:
    """Train a forecaster, evaluate it against two baselines, and forecast beyond the series.

    .. code-block:: text

        series   |---------- training ----------|-- validation --|--- test ---|  ... ahead
        loss     mean over windows and h of (model(x)_h - y_h)^2       x, y: see `Scales`

    The weights, the scales and the linear regression are fitted to the training set, the validation
    set determines when training stops and which parameters are restored. The optimiser is Adam with
    gradients clipped to norm 1. The result is a deterministic function of the arguments.

    Args:
        values: (T, C), or (T,) for one column; the target column first.
        columns: names of the columns.
        options: hyperparameters.
        ahead: number of steps to forecast after the end. Defaults to the horizon.
        name: name of the series in messages.
        progress: If True, show a progress bar on a terminal.

    Raises:
        ValueError: for a series that `prepare` rejects, or too many steps ahead.
        NonFiniteLoss: if the loss is not finite.

    Example:
        >>> trend = np.arange(240) + 5 * np.sin(np.arange(240) * 2 * np.pi / 12)
        >>> options = Options(window=12, horizon=3, hidden_size=16, learning_rate=0.01)
        >>> fitted = fit_forecaster(trend, options=options)
        >>> {name: ahead.shape for name, ahead in fitted.ahead.items()}
        {'persistence': (3,), 'linear': (3,), 'LSTM': (3,)}
        >>> bool(fitted.errors["LSTM"].rmse[-1] < 0.1 * fitted.errors["persistence"].rmse[-1])
        True
        >>> fitted.forecaster.predict(trend[:100], 24).shape
        (24,)
    """
    start = time.perf_counter()
    series = prepare(values, columns, options, name=name)
    ahead = options.horizon if ahead is None else ahead
    check_ahead(ahead, options.horizon, series.columns)
    values, windows, test = series.values, series.windows, series.test_windows
    scales = Scales.fit(values, series.train, options.horizon, name)
    model = make_model(options, len(series.columns))
    history = _train(model, scales, series, options, progress)
    model.eval()
    forecaster = Forecaster(model, series.columns, windows, scales, ahead)
    linear = LinearRegression(values, windows, series.train_windows, series.train)
    forecasts = {
        PERSISTENCE: persistence(values, windows, test),
        LINEAR: linear(values, test),
        forecaster.name: forecaster.backtest(values, test),
    }
    beyond = {
        PERSISTENCE: np.full(ahead, values[-1, 0]),
        LINEAR: forecast_recursively(
            lambda window: linear(window, range(1))[0], values[-windows.size :], ahead
        ),
        forecaster.name: forecaster.predict(values),
    }
    truth = _future(values, windows, test)
    return Fitted(
        forecaster,
        series,
        truth,
        forecasts,
        {name: Errors.between(forecast, truth) for name, forecast in forecasts.items()},
        beyond,
        history,
        best=int(history.evaluated[history.validation["loss"].argmin()]),
        seconds=time.perf_counter() - start,
    )


def _train(
    model: Regressor, scales: Scales, series: Series, options: Options, progress: bool
) -> History:
    """Train a model until its validation loss stops improving, and restore the best parameters."""
    windows, train, validation = series.windows, series.train_windows, series.validation_windows
    size = min(options.batch_size, len(train))
    steps = -(-options.epochs * len(train) // size)
    z = scales.normalise(series.values[: validation.stop + windows.span - 1])  # not the test set
    return fit(
        _loss,
        _optimizer(options.learning_rate, steps),
        model,
        (z[: series.train.stop], scales),
        steps=steps,
        batch_size=size,
        take=_Take(windows, train.start),
        examples=len(train),
        key=options.seed,
        evaluate=_Evaluate(windows),
        validation=(z, scales, np.arange(validation.start, validation.stop, dtype=np.int32)),
        early_stopping=EarlyStopping("loss", options.patience),
        progress=progress,
    ).history


# `fit` compiles for hashable functions. Those below are equal for equal sizes, and the scales are
# data, so a second training of the same sizes compiles nothing.


@functools.lru_cache(maxsize=16)
def _optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(rate, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


class _Take(NamedTuple):
    """Batch of training windows by index (B,), counted from the first."""

    windows: data.Windows
    first: int

    def __call__(self, data: Any, index: jax.Array) -> Any:
        z, scales = data
        return *self.windows.take(z, self.first + index), scales


class _Evaluate(NamedTuple):
    """Mean loss over windows by index (K,)."""

    windows: data.Windows

    def __call__(self, model: Regressor, validation: Any) -> dict[str, jax.Array]:
        z, scales, index = validation

        def _window_loss(i: jax.Array) -> jax.Array:
            window, future = self.windows.take(z, i)
            return _loss(model, (window[None], future[None], scales))

        return {"loss": map_windows(_window_loss, index).mean()}


def _loss(model: Regressor, batch: Any) -> jax.Array:
    """Return the mean squared error for windows (B, W, C) before future (B, H, C)."""
    window, future, scales = batch
    return ((model_outputs(model, scales, window) - scales.targets(window, future)) ** 2).mean()
