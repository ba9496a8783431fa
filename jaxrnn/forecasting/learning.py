"""Make a forecaster from a series, and judge it on the end that it has not seen."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxrnn.data import Windows
from jaxrnn.forecasting.baselines import LinearRegression, persistence, truth
from jaxrnn.forecasting.forecaster import Forecaster, check_ahead, make_model, over, roll, say
from jaxrnn.forecasting.options import Options
from jaxrnn.forecasting.series import Series, prepare
from jaxrnn.forecasting.units import Units
from jaxrnn.layers.heads import Regressor
from jaxrnn.training import EarlyStopping, History, fit

PERSISTENCE, LINEAR = "persistence", "linear"
"""The names of what a model has to beat: as now, and linear regression on the same windows."""


class Errors(NamedTuple):
    """How far forecasts are from what came, in the units of the data.

    Attributes:
        rmse: root mean square for each row ahead (H,), and last over all of them: (H + 1,).
        mae: mean of the absolute values, likewise.
    """

    rmse: np.ndarray
    mae: np.ndarray

    @classmethod
    def of(cls, forecasts: np.ndarray, truth: np.ndarray) -> Errors:
        """Those of forecasts (K, H)."""
        error = forecasts - truth
        squares, sizes = (error**2).mean(0), np.abs(error).mean(0)
        return cls(np.sqrt(np.append(squares, squares.mean())), np.append(sizes, sizes.mean()))


class Fitted(NamedTuple):
    """What `fit_forecaster` leaves. K windows before the rows held out, H rows ahead of each.

    Attributes:
        forecaster: the forecaster.
        series: what it was made from, and how that was cut.
        truth: what followed each window of the held-out part (K, H), in the units of the data.
        forecasts: what was forecast (K, H), by name: "persistence", "linear" for linear
            regression, and last the model's, "LSTM" say.
        errors: how far off that was, by name.
        ahead: what comes after the last row (forecaster.ahead,), by name.
        history: the course of the training; errors there are squares of scaled changes.
        best: the step whose parameters the forecaster has.
        seconds: what all of it took.
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
    """Train a forecaster, compare it with what knows nothing and with a line, look ahead.

    .. code-block:: text

        rows     |---------- learn ----------|-- stop --|--- judge ---|  ... ahead
        loss     mean over windows and h of (model(x)_h - y_h)^2         x, y: see `Units`

    The scales and the weights come from the first part, as does linear regression; the second
    tells when to stop, the parameters with the least error there being kept; the third has no part
    in any of it. Adam, the norm of the gradient clipped at 1. One seed, one result.

    Args:
        values: (T, C), or (T,) of one column, in order of time; the column to forecast first.
        columns: the names of the columns.
        options: see `Options`.
        ahead: rows to forecast after the last one; None for the horizon.
        name: what the series is called in messages.
        progress: whether to show a bar on a terminal.

    Raises:
        ValueError: for a series that `prepare` refuses, or rows ahead that can't be forecast.
        NonFiniteLoss: for a loss that is infinite or not a number: the rate is too high.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.forecasting import Options, fit_forecaster
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
    units = Units.of(series.values, series.train, options.horizon, name)
    model = make_model(options, len(series.columns))
    fitted = _train(model, units, series, options, progress)
    model.eval()
    forecaster = Forecaster(model, series.columns, series.cut, units, ahead)
    rows, cut, judge = series.values, series.cut, series.judge
    linear = LinearRegression(rows, cut, series.learn, series.train)
    forecasts = {
        PERSISTENCE: persistence(rows, cut, judge),
        LINEAR: linear(rows, judge),
        forecaster.name: forecaster.backtest(rows, judge),
    }
    came = truth(rows, cut, judge)
    return Fitted(
        forecaster,
        series,
        came,
        forecasts,
        {name: Errors.of(said, came) for name, said in forecasts.items()},
        {
            PERSISTENCE: np.full(ahead, rows[-1, 0]),
            LINEAR: roll(lambda rows: linear(rows, range(1))[0], rows[-cut.size :], ahead),
            forecaster.name: forecaster.predict(rows),
        },
        fitted.history,
        best=int(fitted.history.evaluated[fitted.history.validation["loss"].argmin()]),
        seconds=time.perf_counter() - start,
    )


def _train(model: Regressor, units: Units, series: Series, options: Options, bar: bool) -> Any:
    """Train a model on the windows to learn from, until those to stop by get no better."""
    cut, learn, stop = series.cut, series.learn, series.stop
    size = min(options.batch_size, len(learn))
    steps = -(-options.epochs * len(learn) // size)
    # What is learned from and what it stops by, apart: the rest is not even there.
    z = units.scaled(series.values[: stop.stop + cut.span - 1])
    return fit(
        _loss,
        _optimizer(options.learning_rate, steps),
        model,
        (z[: series.train.stop], units),
        steps=steps,
        batch_size=size,
        take=_Take(cut, learn.start),
        examples=len(learn),
        key=options.seed,
        evaluate=_Evaluate(cut),
        validation=(z, units, np.arange(stop.start, stop.stop, dtype=np.int32)),
        early_stopping=EarlyStopping("loss", options.patience),
        progress=bar,
    )


# What a training is compiled of are values that are equal for equal sizes, and the scales are data,
# so that a second one of the same sizes, from another seed say, compiles nothing.


@functools.lru_cache(maxsize=16)
def _optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(rate, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


class _Take(NamedTuple):
    """The windows to learn from, by their numbers from the first on (B,)."""

    cut: Windows
    first: int

    def __call__(self, data: Any, index: jax.Array) -> Any:
        z, units = data
        return *self.cut.take(z, self.first + index), units


class _Evaluate(NamedTuple):
    """The loss over windows by their numbers (K,), some at a time."""

    cut: Windows

    def __call__(self, model: Regressor, parts: Any) -> dict[str, jax.Array]:
        z, units, numbers = parts

        def one(number: jax.Array) -> jax.Array:
            window, later = self.cut.take(z, number)
            return _loss(model, (window[None], later[None], units))

        return {"loss": over(one, numbers).mean()}


def _loss(model: Regressor, batch: Any) -> jax.Array:
    """The mean squared error of the answers to windows (B, W, C), followed by (B, H, C)."""
    window, later, units = batch
    return ((say(model, units, window) - units.targets(window, later)) ** 2).mean()
