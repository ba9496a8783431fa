"""Tomorrow's price from the last days: five columns of a week in, one column of the next day out.

A layer reads the days of a window, and a linear one makes the prediction of its last output. Every
column is scaled to lie between 0 and 1 in the training part, the first 70 % of the days; the model
never sees the rest, on which it is judged, in the units of the data, beside "tomorrow is as today".
For the prices made here, whose changes go on for a while, it comes out ahead with most seeds: the
epochs were chosen with the first three, and of five fresh ones, 11 to 15, the ratio of the errors
was .90, .95, .87, 1.24 and .96, the fourth leaving the range it was trained on. For real prices
hardly anything does: expect a ratio near one, and distrust one far below it.

Any CSV file with a header will do, a line a day and oldest first: ``--csv FILE --target COLUMN``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import data, plotting
from jaxrnn.layers.heads import LAYERS, ManyToMany
from jaxrnn.training import Progress, Trained, compile_and_run, sweep, train_steps

REPORTED = "a picture; persistence is what is to be beaten"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run stocks``."""

    csv: str = field(default="", metadata={"help": "a CSV file; a series is made up without one"})
    target: str = field(
        default="", metadata={"help": "the column to predict; the last one without it"}
    )
    delimiter: str = field(default=",", metadata={"help": "what is between the cells of the file"})
    window: int = field(default=7, metadata={"help": "days that the next one is predicted from"})
    share: float = field(default=0.7, metadata={"help": "share of the days to learn from"})
    change: bool = field(
        default=False, metadata={"help": "predict the change since the last day, not the value"}
    )
    hidden: int = field(default=10, metadata={"help": "hidden features"})
    layers: int = field(default=1, metadata={"help": "recurrent layers"})
    cell: str = field(default="lstm", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    epochs: int = field(default=200, metadata={"help": "how often all training windows are seen"})
    every: int = field(default=20, metadata={"help": "print the loss every so many epochs"})
    batch: int = field(default=64, metadata={"help": "windows in a batch"})
    lr: float = field(default=0.01, metadata={"help": "learning rate of Adam"})
    seed: int = field(default=0, metadata={"help": "seed of weights, batches and made-up prices"})
    out: str = field(
        default="stocks.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        for name in ("window", "hidden", "layers", "epochs", "every", "batch"):
            checks.at_least(name, getattr(self, name), 1)
        if not 0 < self.share < 1:
            raise ValueError(f"share should be between 0 and 1, got {self.share!r}")
        checks.seed(self.seed)
        checks.positive("lr", self.lr)
        checks.choice("cell", self.cell, tuple(LAYERS))


class Series(NamedTuple):
    """The days and how they are cut. T days, C columns.

    Attributes:
        table: the columns, in the units of the data (T, C), float64.
        target: the number of the column to predict.
        scaled: the columns as the model sees them (T, C), float32.
        scaling: of the target column.
        cut: the windows.
        train, test: the numbers of the windows in each part.
    """

    table: data.Table
    target: int
    scaled: jax.Array
    scaling: data.Scaling
    cut: data.Windows
    train: range
    test: range


class History(NamedTuple):
    """What a run leaves. S days of the test part.

    Attributes:
        losses: mean squared error of the scaled target at each epoch, as it came (epochs,).
        days: the numbers of the test days (S,).
        targets, predictions, persistence: the column on these days, what the model says it will
            be, and what it was the day before, in the units of the data (S,).
        error, baseline: root mean squared error of the model and of persistence, in these units.
        model: the trained model.
        compile_seconds, run_seconds: what compiling and what training took.
    """

    losses: np.ndarray
    days: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray
    persistence: np.ndarray
    error: float
    baseline: float
    model: ManyToMany
    compile_seconds: float
    run_seconds: float


def prices(days: int, seed: int) -> data.Table:
    """A made-up stock: its changes go on for a while, and draw it back to 100 in the long run.

    .. code-block:: text

        r_t     = 0.5 r_{t-1} - 0.02 log(close_{t-1} / 100) + 0.01 e_t         e_t ~ N(0, 1)
        close_t = close_{t-1} exp(r_t)
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


def load(settings: Settings) -> Series:
    """Read or make up the days, scale them by the training part, and cut them into windows."""
    if settings.csv:
        # A window with its target in the training part, and a day after it, parts being rounded.
        days = max((settings.window + 1) / settings.share, 0.5 / (1 - settings.share))
        table = data.read_csv(
            settings.csv, delimiter=settings.delimiter, min_rows=math.ceil(days) + 1, constant=True
        )
    else:
        table = prices(732, settings.seed)
    target, where = settings.target or table.names[-1], settings.csv or "the made-up prices"
    if target not in table.names:
        numbers = ", ".join(map(repr, table.names))
        raise ValueError(f"{where}: no column of numbers is named {target!r}, there are {numbers}")
    column = table.names.index(target)
    train, test = data.split(len(table.values), (settings.share, 1 - settings.share))
    if np.ptp(table.values[: train.stop, column]) == 0:
        raise ValueError(
            f"{where}, column {target!r}: it is {table.values[0, column]:g} on all {train.stop} "
            "days to learn from"
        )
    values = jnp.asarray(table.values, jnp.float32)
    scaling = data.min_max(values, train)
    cut = data.Windows(settings.window, targets=(column,))
    # The days before the first of the test part are known when it is predicted.
    numbers = cut.within(train), cut.within(test, context=True)
    return Series(table, column, scaling(values), scaling.columns([column]), cut, *numbers)


def make_model(settings: Settings, series: Series, rngs: nnx.Rngs) -> ManyToMany:
    """The recurrent layer and a linear one on its outputs, of which the last counts."""
    layer, columns = LAYERS[settings.cell], len(series.table.names)
    rnn = layer(columns, settings.hidden, settings.layers, batch_first=True, rngs=rngs)
    return ManyToMany(rnn, 1, rngs=rngs)


def predict(settings: Settings, series: Series, model: ManyToMany, x: jax.Array) -> jax.Array:
    """The scaled target of the day after each window of x (B, window, C): (B,)."""
    y, _ = model(x)
    last = x[:, -1, series.target] if settings.change else 0.0
    return last + y[:, -1, 0]


def make_training(
    settings: Settings, series: Series, model: ManyToMany, progress: Progress | None = None
) -> Any:
    """The training as one pure function of the parameters and a key, then the scaled predictions.

    The batches are numbers of windows, gathered from the series at each step. The outputs of the
    steps are their summed squared errors.
    """
    graph, size = nnx.graphdef(model), min(settings.batch, len(series.train))

    def loss(params: Any, batch: data.Batches) -> Any:
        x, y = series.cut.take(series.scaled, batch.index)
        predicted = predict(settings, series, nnx.merge(graph, params), x)
        total = ((predicted - y[:, 0, 0]) ** 2 * batch.mask).sum()
        return total / batch.mask.sum(), total

    def training(params: Any, key: jax.Array) -> tuple[Trained, jax.Array]:
        keys = jax.random.split(key, settings.epochs)
        epochs = jax.vmap(lambda key: data.epoch(series.train, size, key=key))(keys)
        batches = jax.tree.map(lambda a: a.reshape(-1, size), epochs)
        optimizer = optax.adam(settings.lr)
        trained = train_steps(loss, optimizer, params, batches, progress=progress)

        def one(number: jax.Array) -> jax.Array:
            x, _ = series.cut.take(series.scaled, number)
            return predict(settings, series, nnx.merge(graph, trained.params), x[None])[0]

        test = jnp.arange(series.test.start, series.test.stop)
        return trained, jax.lax.map(one, test, batch_size=min(1024, len(test)))

    return training


def root_mean_square(errors: np.ndarray) -> float:
    """The usual size of an error, in its unit."""
    return float(np.sqrt(np.mean(errors**2)))


def train(settings: Settings = Settings(), series: Series | None = None) -> History:
    """Train on the first part of the days, and predict each day of the rest from those before."""
    series = load(settings) if series is None else series
    model = make_model(settings, series, nnx.Rngs(settings.seed))
    size = min(settings.batch, len(series.train))
    with Progress("stocks", settings.epochs * -(-len(series.train) // size)) as progress:
        training = make_training(settings, series, model, progress)
        params = nnx.state(model, nnx.Param)
        timed = compile_and_run(training, params, jax.random.key(settings.seed))
    trained, scaled = timed.result
    nnx.update(model, trained.params)
    values = series.table.values[:, series.target]
    days = np.arange(series.test.start, series.test.stop) + settings.window
    predictions = np.asarray(series.scaling.inverse(scaled[:, None])[:, 0], np.float64)
    totals = np.asarray(trained.metrics).reshape(settings.epochs, -1).sum(1)
    return History(
        losses=totals / len(series.train),
        days=days,
        targets=values[days],
        predictions=predictions,
        persistence=values[days - 1],
        error=root_mean_square(predictions - values[days]),
        baseline=root_mean_square(values[days - 1] - values[days]),
        model=model,
        compile_seconds=timed.compile_seconds,
        run_seconds=timed.run_seconds,
    )


def errors_by(settings: Settings, seed: jax.Array) -> np.ndarray:
    """The errors on the test days of many models at once, each from a seed, on the same days."""
    series = load(settings)

    def run(seed: jax.Array) -> jax.Array:
        model = make_model(settings, series, nnx.Rngs(jax.random.key(seed)))
        training = make_training(settings, series, model)
        _, scaled = training(nnx.state(model, nnx.Param), jax.random.key(seed))
        return series.scaling.inverse(scaled[:, None])[:, 0]

    days = np.arange(series.test.start, series.test.stop) + settings.window
    predictions = np.asarray(sweep(run, seed=seed).results, np.float64)
    errors = predictions - series.table.values[days, series.target]
    return np.sqrt((errors**2).mean(-1))


def draw(history: History, settings: Settings, series: Series) -> Any:
    """Truth, persistence and prediction on the test days, the last of them larger, and the loss."""
    column, days = series.table.names[series.target], settings.window
    return plotting.forecasts(
        history.days,
        history.targets,
        {
            f"the day before ({history.baseline:.4g})": history.persistence,
            f"{settings.cell.upper()} + linear ({history.error:.4g})": history.predictions,
        },
        {"": history.losses},
        title=f"{column} from the {days} days before, on days after the training (error)",
        time_label="day",
        value_label=column,
        step_label="epoch",
        loss_label="mean squared error, scaled",
        zoom=min(60, len(history.days)),
    )


def result(history: History) -> str:
    """What came out, in a line."""
    ratio = history.error / history.baseline
    return f"error {history.error:.4g}, persistence {history.baseline:.4g}, ratio {ratio:.2f}"


def main(settings: Settings) -> History:
    """Train, print the losses and the errors on the test days, save the figure."""
    target = plotting.check_target(settings.out, inputs=[settings.csv])
    series = load(settings)
    history = train(settings, series)
    for loss in history.losses[:: settings.every]:
        print("Loss: ", loss)
    print(f"compiled in {history.compile_seconds:.2f} s", end=", ")
    print(f"{settings.epochs} epochs in {history.run_seconds * 1e3:.1f} ms")
    print(
        f"{series.table.names[series.target]}, {len(history.days)} days after the first "
        f"{history.days[0]}, root mean square error: {settings.cell.upper()} {history.error:.4g}, "
        f"persistence {history.baseline:.4g}, ratio {history.error / history.baseline:.3f}"
    )
    print(f"figure: {plotting.save(draw(history, settings, series), target)}")
    return history
