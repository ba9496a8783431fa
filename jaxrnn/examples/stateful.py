"""Predict a sine from its last values, with one state carried over the whole series.

Each of the steps shows the network five values in a row as the features of one input and asks
for the next. The state is carried from step to step from the first to the last, and the gradient
goes all the way back: the summed squared error of the whole series gives one update an epoch.
Every so many epochs the network predicts each value alone, from a state of zeros.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxrnn import _checks as checks
from jaxrnn import data, plotting
from jaxrnn.layers.heads import LAYERS, ManyToMany
from jaxrnn.training import Progress, Trained, compile_and_run, train_steps

REPORTED = "PyTorch, seed 42: loss 650 at first, 6.07 at epoch 9, 1.66 at epoch 33"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run stateful``."""

    cell: str = field(default="rnn", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    period: int = field(default=16, metadata={"help": "points in one wave of the sine"})
    window: int = field(default=5, metadata={"help": "values in a row that one step sees"})
    points: int = field(default=1000, metadata={"help": "points of the series"})
    hidden: int = field(default=30, metadata={"help": "hidden features"})
    epochs: int = field(default=33, metadata={"help": "updates, each from the whole series"})
    every: int = field(default=8, metadata={"help": "print and predict every so many epochs"})
    lr: float = field(default=0.01, metadata={"help": "learning rate of Adam"})
    seed: int = field(default=0, metadata={"help": "seed of the initial weights"})
    table: bool = field(
        default=False,
        metadata={"help": "compare RNN and LSTM, periods 16 and 160, 5 and 32 values a step"},
    )
    out: str = field(
        default="stateful.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        for name in ("period", "window", "hidden", "epochs", "every"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("points", self.points, self.window + 1)
        checks.seed(self.seed)
        checks.positive("lr", self.lr)
        checks.choice("cell", self.cell, tuple(LAYERS))


class History(NamedTuple):
    """What a run leaves.

    Attributes:
        losses: summed squared error at each epoch, before its update (epochs,).
        targets: the values to predict (T,).
        predictions: each of them from a state of zeros, after the epochs 0, every, 2 * every, ...
            (evaluations, T).
        model: the trained model.
        compile_seconds, run_seconds: what compiling and what training took.
    """

    losses: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray
    model: ManyToMany
    compile_seconds: float
    run_seconds: float


def series(settings: Settings) -> tuple[jax.Array, jax.Array]:
    """The inputs (T, window) and the targets (T, 1) of all steps."""
    windows = data.Windows(settings.window)
    index = jnp.arange(windows.count(settings.points))
    return windows.take(data.wave(settings.points, settings.period), index)


def make_model(settings: Settings, rngs: nnx.Rngs) -> ManyToMany:
    """The recurrent layer and a linear one on each of its outputs."""
    rnn = LAYERS[settings.cell](settings.window, settings.hidden, batch_first=True, rngs=rngs)
    return ManyToMany(rnn, 1, rngs=rngs)


def make_training(settings: Settings, model: ManyToMany, progress: Progress | None = None) -> Any:
    """All epochs as one pure function; its outputs are the parameters before each update."""
    graph = nnx.graphdef(model)
    x, y = series(settings)

    def loss(params: Any, epoch: jax.Array) -> Any:
        predicted, _ = nnx.merge(graph, params)(x[None])  # one sequence: N = 1, T steps
        return jnp.sum((predicted[0] - y) ** 2), params

    def training(params: Any, lr: Any = settings.lr) -> Trained:
        epochs = jnp.arange(settings.epochs)
        return train_steps(loss, optax.adam(lr), params, epochs, progress=progress)

    return training


def predict_alone(model: ManyToMany, x: jax.Array) -> jax.Array:
    """The value (T,) that follows each window of x (T, window), each from a state of zeros."""
    predicted, _ = model(x[:, None])  # T sequences of one step
    return predicted[:, 0, 0]


def train(settings: Settings = Settings(), model: ManyToMany | None = None) -> History:
    """Train, from the seed or from a model's weights; the model given is left as it was."""
    model = make_model(settings, nnx.Rngs(settings.seed)) if model is None else nnx.clone(model)
    graph, params = nnx.split(model)
    x, y = series(settings)

    def run(params: Any) -> tuple[Trained, jax.Array]:
        trained = make_training(settings, model, progress)(params)
        # What there is after an epoch is what there is before the next.
        after = jax.tree.map(
            lambda before, last: jnp.concatenate([before[1:], last[None]])[:: settings.every],
            trained.metrics,
            trained.params,
        )
        return trained, jax.vmap(lambda p: predict_alone(nnx.merge(graph, p), x))(after)

    with Progress("stateful", settings.epochs) as progress:
        timed = compile_and_run(run, params)
    trained, predictions = timed.result
    nnx.update(model, trained.params)
    return History(
        losses=np.asarray(trained.losses),
        targets=np.asarray(y[:, 0]),
        predictions=np.asarray(predictions),
        model=model,
        compile_seconds=timed.compile_seconds,
        run_seconds=timed.run_seconds,
    )


def variants(settings: Settings) -> dict[str, tuple[Settings, History]]:
    """The runs of the table by name: two cells, two waves, two numbers of values a step."""
    choices = itertools.product(("rnn", "lstm"), (16, 160), (5, 32))
    runs = [replace(settings, cell=c, period=p, window=w) for c, p, w in choices]
    return {
        f"{run.cell.upper()}, period {run.period}, {run.window} values": (run, train(run))
        for run in runs
    }


def as_table(runs: dict[str, tuple[Settings, History]]) -> Table:
    """The first and last loss of each run, and the same sum over its lone predictions."""
    table = Table(title="Summed squared errors", title_justify="left")
    for name in ("cell", "period", "values a step", "first", "last", "from zeros", "train, ms"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for run, history in runs.values():
        alone = np.sum((history.predictions[-1] - history.targets) ** 2)
        figures = [f"{v:.4g}" for v in (history.losses[0], history.losses[-1], alone)]
        milliseconds = f"{history.run_seconds * 1e3:.0f}"
        table.add_row(run.cell.upper(), str(run.period), str(run.window), *figures, milliseconds)
    return table


def panel(title: str, settings: Settings, history: History, evaluation: int) -> plotting.Panel:
    """The lone predictions of an evaluation over the first points, as the source shows them."""
    shown = slice(max(100, 2 * settings.period))
    targets = history.targets[shown]
    return plotting.Panel(
        title, np.arange(len(targets)), targets, history.predictions[evaluation][shown]
    )


def draw(panels: list[plotting.Panel], losses: Any, title: str, *runs: str) -> Any:
    """Lone predictions, and the loss of one run or of several with their names."""
    return plotting.predictions(
        panels,
        losses,
        title=f"A sine from its last values, each from a state of zeros: {title}",
        time_label="point",
        loss_label="summed squared error",
        runs=runs or ("",),
        step_label="epoch",
    )


def result(history: History) -> str:
    """What came out, in a line."""
    losses, last = history.losses, len(history.losses)
    ninth = f", {losses[8]:.3g} at epoch 9" if last > 9 else ""
    return f"loss {losses[0]:.3g} at first{ninth}, {losses[-1]:.3g} at epoch {last}"


def main(settings: Settings) -> History | list[History]:
    """Train, print the losses the source prints, save the figure; with `table`, eight runs."""
    target = plotting.check_target(settings.out)
    if settings.table:
        runs = variants(settings)
        Console().print(as_table(runs))
        panels = [panel(name, *run, -1) for name, run in runs.items()]
        losses = [history.losses for _, history in runs.values()]
        figure = draw(panels, losses, f"after {settings.epochs} epochs", *runs)
        print(f"figure: {plotting.save(figure, target)}")
        return [history for _, history in runs.values()]
    history = train(settings)
    for loss in history.losses[:: settings.every]:
        print("Loss: ", loss)
    print(f"compiled in {history.compile_seconds:.2f} s", end=", ")
    print(f"{settings.epochs} epochs in {history.run_seconds * 1e3:.1f} ms")
    evaluated = range(0, settings.epochs, settings.every)
    panels = [
        panel(f"after epoch {epoch}, loss {history.losses[epoch]:.3g}", settings, history, index)
        for index, epoch in plotting.spread(list(enumerate(evaluated)))
    ]
    figure = draw(panels, history.losses, f"{history.model.rnn} + linear")
    print(f"figure: {plotting.save(figure, target)}")
    return history
