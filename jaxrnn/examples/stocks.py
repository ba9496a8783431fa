"""Predict the next day's price from the last days, many-to-one.

A recurrent layer reads the columns of a window of days, and a linear layer predicts one column of
the next day from its last output. The first 70 % of the days are the training set, the rest the
test set. Every column is scaled to [0, 1] over the training set. The test error is compared with
that of persistence ("tomorrow equals today"), in the units of the data.

The synthetic prices of this example have correlated changes, and the model beats persistence with
most seeds. The number of epochs was chosen with seeds 0 to 2. On seeds 11 to 15 the ratio of the
errors is .90, .95, .87, 1.24 and .96; the fourth series leaves the range of its training set. Real
prices are close to a random walk: expect a ratio near one, and distrust one far below.

``--csv FILE --target COLUMN`` reads any CSV file with a header, one line per day, oldest first.

Source: Lab 11-4 of the course "Introduction to deep learning with PyTorch".
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import data, plotting
from jaxrnn.examples import (
    Cell,
    FigurePath,
    Hidden,
    Layers,
    LearningRate,
    PositiveFloat,
    PositiveInt,
    Seed,
)
from jaxrnn.layers.heads import LAYERS, ManyToMany
from jaxrnn.training import Progress, compile_and_run, train_steps


class Series(NamedTuple):
    """Training and test windows of T days with C columns."""

    table: data.Table  # in the units of the data (T, C), float64
    column: int  # index of the target
    scaled: jax.Array  # (T, C), float32
    scaling: data.Scaling  # of the target
    windows: data.Windows
    train: range  # indices of windows
    test: range

    @property
    def test_days(self) -> np.ndarray:
        """Indices of the days to predict (S,)."""
        return np.arange(self.test.start, self.test.stop) + self.windows.size

    @property
    def values(self) -> np.ndarray:
        """The target column, in the units of the data (T,)."""
        return self.table.values[:, self.column]


def synthetic_prices(days: int, seed: int) -> data.Table:
    r"""Generate prices with correlated changes and reversion to 100.

    .. math::

        r_t = 0.5 r_{t-1} - 0.02 \log(c_{t-1} / 100) + 0.01 \epsilon_t, \quad
        c_t = c_{t-1} e^{r_t}, \quad \epsilon_t \sim N(0, 1)
    """
    random = np.random.default_rng(seed)
    shocks = random.normal(size=days)
    log_close, change = np.zeros(days), 0.0
    for day in range(1, days):
        change = 0.5 * change - 0.02 * log_close[day - 1] + 0.01 * shocks[day]
        log_close[day] = log_close[day - 1] + change
    gap, above, below, trade = random.normal(size=(4, days))
    log_open = np.append(0.0, log_close[:-1]) + 0.002 * gap
    high = np.maximum(log_open, log_close) + 0.004 * np.abs(above)
    low = np.minimum(log_open, log_close) - 0.004 * np.abs(below)
    volume = np.round(1e6 * np.exp(0.3 * trade + 20 * np.abs(log_close - log_open)))
    columns = [*(100 * np.exp(c) for c in (log_open, high, low)), volume, 100 * np.exp(log_close)]
    return data.Table(("Open", "High", "Low", "Volume", "Close"), np.stack(columns, axis=1))


def load(csv: str, target: str, delimiter: str, window: int, share: float, seed: int) -> Series:
    """Read or generate the days, scale them and split them; the arguments are those of `main`."""
    if csv:
        # The training set needs a window and its target, the test set one day, both rounded.
        days = max((window + 1) / share, 0.5 / (1 - share))
        table = data.read_csv(
            csv, delimiter=delimiter, min_rows=math.ceil(days) + 1, allow_constant=True
        )
    else:
        table = synthetic_prices(732, seed)
    name, target = csv or "synthetic prices", target or table.names[-1]
    if target not in table.names:
        names = ", ".join(map(repr, table.names))
        raise ValueError(f"{name}: `target` must be a numeric column, {names}, got {target!r}.")
    column = table.names.index(target)
    train, test = data.split(len(table.values), (share, 1 - share))
    if np.ptp(table.values[: train.stop, column]) == 0:
        raise ValueError(
            f"{name}, column {target!r}: all {train.stop} training days have the value "
            f"{table.values[0, column]:g}."
        )
    values = jnp.asarray(table.values, jnp.float32)
    scaling = data.min_max(values, train)
    windows = data.Windows(window, targets=(column,))
    # The first test windows begin with training days, which are known by then.
    parts = windows.within(train), windows.within(test, context=True)
    return Series(table, column, scaling(values), scaling.columns([column]), windows, *parts)


def make_model(cell: str, columns: int, hidden: int, layers: int, *, rngs: nnx.Rngs) -> ManyToMany:
    """Build a recurrent layer with a linear layer on each output."""
    rnn = LAYERS[cell](columns, hidden, layers, batch_first=True, rngs=rngs)
    return ManyToMany(rnn, 1, rngs=rngs)


def train(
    graph: Any,
    params: Any,
    key: jax.Array,
    *,
    series: Series,
    epochs: int,
    batch: int,
    lr: float,
    change: bool = False,
    progress: Progress | None = None,
) -> tuple[Any, jax.Array, jax.Array]:
    """Train with Adam and predict the test days; a pure function of parameters and key.

    Returns:
        The trained parameters, the mean loss of each epoch (epochs,), and the predictions of the
        test days in the units of the data (S,).
    """

    def _predict(params: Any, x: jax.Array) -> jax.Array:
        y, _ = nnx.merge(graph, params)(x)  # (N, window, 1)
        return y[:, -1, 0] + (x[:, -1, series.column] if change else 0.0)

    def _loss(params: Any, batch: data.Batches) -> Any:
        x, y = series.windows.take(series.scaled, batch.index)
        total = ((_predict(params, x) - y[:, 0, 0]) ** 2 * batch.mask).sum()
        return total / batch.mask.sum(), total

    size, keys = min(batch, len(series.train)), jax.random.split(key, epochs)
    shuffled = jax.vmap(lambda key: data.epoch(series.train, size, key=key))(keys)
    batches = jax.tree.map(lambda a: a.reshape(-1, size), shuffled)
    trained = train_steps(_loss, optax.adam(lr), params, batches, progress=progress)

    def _predict_one(index: jax.Array) -> jax.Array:
        x, _ = series.windows.take(series.scaled, index)
        return _predict(trained.params, x[None])[0]

    test = jnp.arange(series.test.start, series.test.stop)
    scaled = jax.lax.map(_predict_one, test, batch_size=min(1024, len(test)))
    losses = trained.metrics.reshape(epochs, -1).sum(1) / len(series.train)
    return trained.params, losses, series.scaling.inverse(scaled[:, None])[:, 0]


def root_mean_square(errors: np.ndarray) -> float:
    """Return the root mean square of an array."""
    return float(np.sqrt(np.mean(errors**2)))


def main(
    *,
    csv: str = "",
    target: str = "",
    delimiter: str = ",",
    window: PositiveInt = 7,
    share: PositiveFloat = 0.7,
    change: bool = False,
    hidden: Hidden = 10,
    layers: Layers = 1,
    cell: Cell = "lstm",
    epochs: PositiveInt = 200,
    every: PositiveInt = 20,
    batch: PositiveInt = 64,
    lr: LearningRate = 0.01,
    seed: Seed = 0,
    out: FigurePath = "stocks.png",
) -> str:
    """Predict the next day's price from the last days, compared with persistence.

    Args:
        csv: a CSV file; synthetic prices if empty.
        target: the column to predict; the last column if empty.
        delimiter: separator of the cells of the file.
        window: days that each prediction depends on.
        share: fraction of the days in the training set.
        change: predict the change since the last day instead of the value.
        epochs: passes over all training windows.
        every: print the loss every this number of epochs.
        batch: batch size.
        seed: seed of weights, batches and synthetic prices.
    """
    if share >= 1:
        raise ValueError(f"`share` must lie between 0 and 1, got {share}.")
    path = plotting.check_target(out, inputs=[csv])
    series = load(csv, target, delimiter, window, share, seed)
    model = make_model(cell, len(series.table.names), hidden, layers, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(model)
    updates = epochs * -(-len(series.train) // min(batch, len(series.train)))
    with Progress("stocks", updates) as progress:
        options: Any = {"epochs": epochs, "batch": batch, "lr": lr, "change": change}
        run = partial(train, graph, series=series, **options, progress=progress)
        results, compile_seconds, run_seconds = compile_and_run(run, params, jax.random.key(seed))
    _, losses, predictions = jax.tree.map(np.asarray, results)
    days = series.test_days
    truth, persistence = series.values[days], series.values[days - 1]
    error, baseline = (root_mean_square(p - truth) for p in (predictions, persistence))
    name = series.table.names[series.column]
    for loss in losses[::every]:
        print("Loss: ", loss)
    print(f"compiled in {compile_seconds:.2f} s, {epochs} epochs in {run_seconds * 1e3:.1f} ms")
    print(
        f"{name}, {len(days)} days after the first {days[0]}, root mean square error: "
        f"{cell.upper()} {error:.4g}, persistence {baseline:.4g}, ratio {error / baseline:.3f}"
    )
    figure = plotting.forecasts(
        days,
        truth,
        {
            f"the day before ({baseline:.4g})": persistence,
            f"{cell.upper()} + linear ({error:.4g})": predictions,
        },
        {"": losses},
        title=f"{name} from the {window} days before, on test days (error)",
        time_label="day",
        value_label=name,
        step_label="epoch",
        loss_label="mean squared error, scaled",
        zoom=min(60, len(days)),
    )
    print(f"figure: {plotting.save(figure, path)}")
    return f"error {error:.4g}, persistence {baseline:.4g}, ratio {error / baseline:.2f}"
