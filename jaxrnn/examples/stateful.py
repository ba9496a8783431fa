r"""Predict a sine from its last values, with one state carried over the whole series.

Step t reads w consecutive values as the features of one input and predicts the next value:

.. math::

    s_t = \sin(2 \pi t / \mathrm{period}), \quad x_t = (s_t, \dots, s_{t + w - 1}), \quad
    y_t = s_{t + w}

The state passes through all steps and the gradient through all of them backwards: the summed
squared error of the whole series gives one update per epoch. Every few epochs, the network predicts
each value from a zero state. ``--table`` compares two cells, two periods and two windows.

Source: the notebook "RNN Example" of Hanyang University's course, in PyTorch.
"""

from __future__ import annotations

import itertools
from functools import partial
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
from jaxrnn.examples import Cell, FigurePath, Hidden, LearningRate, PositiveInt, Seed, make_table
from jaxrnn.layers.heads import LAYERS, ManyToMany
from jaxrnn.training import Progress, Trained, compile_and_run, train_steps


def make_model(cell: str, window: int, hidden: int, *, rngs: nnx.Rngs) -> ManyToMany:
    """Build a recurrent layer with a linear layer on each output."""
    return ManyToMany(LAYERS[cell](window, hidden, batch_first=True, rngs=rngs), 1, rngs=rngs)


def train(
    graph: Any,
    params: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    epochs: int,
    lr: Any,
    progress: Progress | None = None,
) -> Trained:
    """Train on the whole series, inputs x (T, window) and targets y (T, 1); a pure function.

    The metrics are the parameters before each update.
    """

    def _loss(params: Any, epoch: jax.Array) -> Any:
        predicted, _ = nnx.merge(graph, params)(x[None])  # one sequence of T steps
        return jnp.sum((predicted[0] - y) ** 2), params

    return train_steps(_loss, optax.adam(lr), params, jnp.arange(epochs), progress=progress)


def predict_from_zeros(graph: Any, trained: Trained, x: jax.Array, every: int) -> jax.Array:
    """Predict each value from a zero state, after the epochs 0, every, 2 * every, ..."""
    after = jax.tree.map(  # the parameters after an epoch are those before the next
        lambda before, final: jnp.concatenate([before[1:], final[None]])[::every],
        trained.metrics,
        trained.params,
    )
    # T sequences of one step each
    return jax.vmap(lambda params: nnx.merge(graph, params)(x[:, None])[0][:, 0, 0])(after)


class Run(NamedTuple):
    """Result of the training of a variant."""

    name: tuple[str, int, int]  # cell, period, window
    model: str
    losses: np.ndarray  # before each update (epochs,)
    targets: np.ndarray  # (T,)
    predictions: np.ndarray  # from zero states (evaluations, T)
    compile_seconds: float
    run_seconds: float


def run(
    model: ManyToMany, name: tuple[str, int, int], points: int, epochs: int, every: int, lr: float
) -> Run:
    """Train and evaluate a model in one compiled call."""
    _, period, window = name
    windows = data.Windows(window)
    x, y = windows.take(data.wave(points, period), jnp.arange(windows.count(points)))
    graph, params = nnx.split(model)

    def _train_and_evaluate(params: Any) -> tuple[jax.Array, jax.Array]:
        trained = train(graph, params, x, y, epochs=epochs, lr=lr, progress=progress)
        return trained.losses, predict_from_zeros(graph, trained, x, every)

    with Progress("stateful", epochs) as progress:
        (losses, predictions), *seconds = compile_and_run(_train_and_evaluate, params)
    losses, targets, predictions = map(np.asarray, (losses, y[:, 0], predictions))
    return Run(name, f"{model.rnn} + linear", losses, targets, predictions, *seconds)


def as_table(runs: list[Run]) -> Table:
    """Return the losses of runs, and their errors from zero states, as a table."""
    rows = []
    for one in runs:
        cell, period, window = one.name
        final = np.sum((one.predictions[-1] - one.targets) ** 2)
        errors = [f"{error:.4g}" for error in (one.losses[0], one.losses[-1], final)]
        rows.append([cell.upper(), period, window, *errors, f"{one.run_seconds * 1e3:.0f}"])
    columns = ("cell", "period", "values a step", "first", "last", "from zeros", "train, ms")
    return make_table("Summed squared errors", columns, rows, right=columns[1:])


def make_panel(title: str, one: Run, evaluation: int) -> plotting.Panel:
    """Return a panel of the first predictions of an evaluation."""
    shown = slice(max(100, 2 * one.name[1]))
    targets = one.targets[shown]
    predictions = one.predictions[evaluation][shown]
    return plotting.Panel(title, np.arange(len(targets)), targets, predictions)


def main(
    *,
    cell: Cell = "rnn",
    period: PositiveInt = 16,
    window: PositiveInt = 5,
    points: PositiveInt = 1000,
    hidden: Hidden = 30,
    epochs: PositiveInt = 33,
    every: PositiveInt = 8,
    lr: LearningRate = 0.01,
    seed: Seed = 0,
    table: bool = False,
    out: FigurePath = "stateful.png",
) -> str:
    """Predict a sine from its last values, with one state carried over the whole series.

    Args:
        period: points of one period of the sine.
        window: consecutive values that one step reads.
        points: points of the series.
        epochs: updates, each from the whole series.
        every: print the loss and predict every this number of epochs.
        table: compare RNN and LSTM, periods 16 and 160, 5 and 32 values a step.
    """
    variants: Any = itertools.product(("rnn", "lstm"), (16, 160), (5, 32))
    names = list(variants) if table else [(cell, period, window)]
    checks.at_least("points", points, max(window for *_, window in names) + 1)
    target = plotting.check_target(out)
    runs = []
    for name in names:
        model = make_model(name[0], name[2], hidden, rngs=nnx.Rngs(seed))
        runs.append(run(model, name, points, epochs, every, lr))
    first = runs[0]
    draw = partial(
        plotting.predictions,
        time_label="point",
        loss_label="summed squared error",
        step_label="epoch",
    )
    title = "A sine from its last values, each from a zero state"
    if table:
        Console().print(as_table(runs))
        labels = [f"{c.upper()}, period {p}, {w} values" for c, p, w in names]
        panels = [make_panel(label, one, -1) for label, one in zip(labels, runs)]
        losses = [one.losses for one in runs]
        figure = draw(panels, losses, title=f"{title}: after {epochs} epochs", runs=labels)
    else:
        for loss in first.losses[::every]:
            print("Loss: ", loss)
        print(f"compiled in {first.compile_seconds:.2f} s", end=", ")
        print(f"{epochs} epochs in {first.run_seconds * 1e3:.1f} ms")
        panels = [
            make_panel(f"after epoch {epoch}, loss {first.losses[epoch]:.3g}", first, index)
            for index, epoch in plotting.spread(list(enumerate(range(0, epochs, every))))
        ]
        figure = draw(panels, first.losses, title=f"{title}: {first.model}")
    print(f"figure: {plotting.save(figure, target)}")
    ninth = f", {first.losses[8]:.3g} at epoch 9" if epochs > 9 else ""
    return f"loss {first.losses[0]:.3g} at first{ninth}, {first.losses[-1]:.3g} at epoch {epochs}"
