"""Predict the next point of a sine: an Elman network that carries its state along the wave.

Step k of the training shows the network the half wave from k*pi to (k+1)*pi, twenty points, and
asks for the same points one place later. The hidden state goes on from step to step; the
gradient does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.data import half_waves
from jaxrnn.layers.heads import LAYERS, ManyToMany
from jaxrnn.training import Progress, Trained, compile_and_run, sweep, train_steps

REPORTED = "loss 0.354 0.0550 0.0118 0.00131 0.00089, every 15 steps"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run sine``."""

    steps: int = field(default=75, metadata={"help": "training steps, one half wave each"})
    every: int = field(default=15, metadata={"help": "print the loss every so many steps"})
    points: int = field(default=20, metadata={"help": "points in a half wave"})
    hidden: int = field(default=32, metadata={"help": "hidden features"})
    layers: int = field(default=1, metadata={"help": "recurrent layers"})
    cell: str = field(default="rnn", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    lr: float = field(default=0.01, metadata={"help": "learning rate of Adam"})
    seed: int = field(default=0, metadata={"help": "seed of the initial weights"})
    out: str = field(default="sine.png", metadata={"help": "the figure: a .png, .svg or .pdf file"})

    def __post_init__(self) -> None:
        for name in ("steps", "every", "points", "hidden", "layers"):
            checks.at_least(name, getattr(self, name), 1)
        checks.seed(self.seed)
        checks.positive("lr", self.lr)
        checks.choice("cell", self.cell, tuple(LAYERS))


class History(NamedTuple):
    """What a run leaves.

    Attributes:
        losses: mean squared error at each step, before its update (steps,).
        inputs, targets, predictions: (steps, points).
        model: the trained model.
        compile_seconds, run_seconds: what compiling and what training took.
    """

    losses: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray
    model: ManyToMany
    compile_seconds: float
    run_seconds: float


def waves(settings: Settings) -> tuple[jax.Array, jax.Array]:
    """The inputs and targets of all steps, (steps, points, 1) each."""
    return jax.vmap(lambda k: half_waves(k, settings.points))(jnp.arange(settings.steps))


def make_model(settings: Settings, rngs: nnx.Rngs) -> ManyToMany:
    """The recurrent layer and a linear one on each of its outputs."""
    layer = LAYERS[settings.cell]
    rnn = layer(1, settings.hidden, settings.layers, batch_first=True, rngs=rngs)
    return ManyToMany(rnn, 1, rngs=rngs)


def make_training(settings: Settings, model: ManyToMany, progress: Progress | None = None) -> Any:
    """The whole training as one pure function, to be compiled or mapped."""
    graph = nnx.graphdef(model)

    def loss(params: Any, hidden: Any, batch: Any) -> Any:
        x, y = batch
        predicted, hidden = nnx.merge(graph, params)(x[None], hidden)
        return jnp.mean((predicted[0] - y) ** 2), (hidden, predicted[0, :, 0])

    def training(params: Any, lr: Any = settings.lr) -> Trained:
        hidden, optimizer = model.rnn.initial_state(1), optax.adam(lr)
        batches = waves(settings)
        return train_steps(loss, optimizer, params, batches, carry=hidden, progress=progress)

    return training


def train(settings: Settings = Settings(), model: ManyToMany | None = None) -> History:
    """Train, from the seed or from a model's weights; the model given is left as it was."""
    model = make_model(settings, nnx.Rngs(settings.seed)) if model is None else nnx.clone(model)
    params = nnx.state(model, nnx.Param)
    with Progress("sine", settings.steps) as progress:
        timed = compile_and_run(make_training(settings, model, progress), params)
    trained = timed.result
    nnx.update(model, trained.params)
    x, y = waves(settings)
    return History(
        losses=np.asarray(trained.losses),
        inputs=np.asarray(x[..., 0]),
        targets=np.asarray(y[..., 0]),
        predictions=np.asarray(trained.metrics),
        model=model,
        compile_seconds=timed.compile_seconds,
        run_seconds=timed.run_seconds,
    )


def losses_by(settings: Settings, **axes: jax.Array) -> np.ndarray:
    """The losses of many models at once, for every combination of seeds and learning rates.

    ``losses_by(settings, seed=jnp.arange(20), lr=jnp.array([0.003, 0.01]))`` is (20, 2, steps).
    """

    def run(seed: Any = settings.seed, lr: Any = settings.lr) -> jax.Array:
        model = make_model(settings, nnx.Rngs(jax.random.key(seed)))
        return make_training(settings, model)(nnx.state(model, nnx.Param), lr).losses

    return np.asarray(sweep(run, **axes).results)


def draw(history: History, settings: Settings) -> Any:
    """The panels of the source, inputs and predictions at the printed steps, and the loss."""
    panels = [
        plotting.Panel(
            title=f"step {k}, loss {history.losses[k]:.2g}",
            times=np.linspace(k * np.pi, (k + 1) * np.pi, settings.points + 1)[1:],
            targets=history.targets[k],
            predicted=history.predictions[k],
            inputs=history.inputs[k],
        )
        for k in plotting.spread(range(0, settings.steps, settings.every))
    ]
    title = f"Next point of a sine: {history.model.rnn} + linear"
    return plotting.predictions(panels, history.losses, title=title)


def result(history: History) -> str:
    """What came out, in a line."""
    return f"loss {' '.join(f'{loss:.3g}' for loss in history.losses[:61:15])}"


def main(settings: Settings) -> History:
    """Train, print the losses the source prints, save the figure."""
    target = plotting.check_target(settings.out)
    history = train(settings)
    for loss in history.losses[:: settings.every]:
        print("Loss: ", loss)
    print(f"compiled in {history.compile_seconds:.2f} s", end=", ")
    print(f"{settings.steps} steps in {history.run_seconds * 1e3:.1f} ms")
    print(f"figure: {plotting.save(draw(history, settings), target)}")
    return history
