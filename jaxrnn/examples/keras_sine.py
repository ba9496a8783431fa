"""Three values of a sine give the next: two Keras networks beside a linear regression.

The networks are ``SimpleRNN(1)``, and the same with ``Dense(10)`` and ``Dense(1)`` on it, as Keras
makes and trains them: stochastic gradient descent at 0.01, in shuffled batches of 32 and the 15
that are left, for 150 epochs. All three models are judged on the windows they have seen.

The regression is exact: any sine at equal steps is s[t] = 2 cos(w) s[t-1] - s[t-2]. The networks
are not, from whatever seed: the median of their errors is 0.13, the least near 0.04. What matters
for that is how they begin and end. Keras draws kernels from Glorot's uniform distribution,
a recurrent kernel as an orthogonal matrix, which for one unit is 1 or -1, and has zeros for the one
bias there is (PyTorch's second one stays zero here). The output of ``SimpleRNN(1)`` is its one
state, a tanh, with three numbers to learn. The dense layers on it are linear: they stretch and move
that state, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import RNN, data, plotting
from jaxrnn import _checks as checks
from jaxrnn.training import Progress, Trained, sweep, train_steps

NETWORKS = ("SimpleRNN", "SimpleRNN + Dense")

TRAINED = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("bias_hh_l0")))
"""Keras has one bias where PyTorch has two, which would learn together at twice the rate."""


REPORTED = "a picture: the networks predict worse than the regression"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run keras``."""

    window: int = field(default=3, metadata={"help": "values that the next one is predicted from"})
    epochs: int = field(default=150, metadata={"help": "how often all windows are seen"})
    batch: int = field(default=32, metadata={"help": "windows in a batch"})
    lr: float = field(default=0.01, metadata={"help": "learning rate of the gradient descent"})
    seed: int = field(default=1, metadata={"help": "seed of the initial weights and the batches"})
    out: str = field(
        default="keras.svg", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        for name in ("window", "epochs", "batch"):
            checks.at_least(name, getattr(self, name), 1)
        if self.window > 40:
            raise ValueError(f"window should be at most 40, of 50 values, got {self.window}")
        checks.seed(self.seed)
        checks.positive("lr", self.lr)


class Network(nnx.Module):
    """``SimpleRNN(1)``, with `dense` also ``Dense(10)`` and ``Dense(1)``, as Keras begins them.

    Call: ``network(x) -> y``, x (N, T, 1), y (N, 1), after the last step.
    """

    def __init__(self, dense: bool, *, rngs: nnx.Rngs):
        glorot = nnx.initializers.glorot_uniform()
        self.rnn = RNN(1, 1, batch_first=True, rngs=rngs)
        weights = {
            "weight_ih_l0": glorot(rngs.params(), (1, 1)),
            "weight_hh_l0": nnx.initializers.orthogonal()(rngs.params(), (1, 1)),
            "bias_ih_l0": jnp.zeros(1, jnp.float32),
            "bias_hh_l0": jnp.zeros(1, jnp.float32),
        }
        for name, value in weights.items():
            getattr(self.rnn, name)[...] = value.astype(jnp.float32)
        sizes = [(1, 10), (10, 1)] if dense else []
        self.dense = nnx.List(nnx.Linear(*s, kernel_init=glorot, rngs=rngs) for s in sizes)

    def __call__(self, x: Any) -> jax.Array:
        """The output after the last step."""
        y = self.rnn(x)[0][:, -1]
        for layer in self.dense:
            y = layer(y)
        return y


class History(NamedTuple):
    """What a run leaves. S windows.

    Attributes:
        targets: the value that follows each window (S,), float64.
        predictions: those of each model, by its name (S,): the two networks, "linear regression".
        errors: the mean squared error of each.
        losses: of each network, the mean over the windows of an epoch, as they came (epochs,).
        models: the trained networks.
    """

    targets: np.ndarray
    predictions: dict[str, np.ndarray]
    errors: dict[str, float]
    losses: dict[str, np.ndarray]
    models: dict[str, Network]


def series(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The windows (S, window, 1) of the source's sine, and what follows them (S, 1), float64."""
    values = np.sin(2 * np.pi * 0.125 * np.linspace(0, 20, 50))
    source = data.WindowSource(values[:, None], data.Windows(settings.window))
    x, y = source.take(range(len(source)))
    return x, y[:, 0]


def regress(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the best linear function of the windows (S, window, 1) says of y (S, 1): (S, 1)."""
    design = np.concatenate([x[..., 0], np.ones_like(y)], axis=1)
    return design @ np.linalg.lstsq(design, y)[0]


def make_network(name: str, rngs: nnx.Rngs) -> Network:
    """One of `NETWORKS`, new."""
    return Network(name != NETWORKS[0], rngs=rngs)


def make_training(settings: Settings, network: Network, progress: Progress | None = None) -> Any:
    """The whole training as one pure function of the parameters and a key, None for no shuffle.

    Its outputs are the summed squared errors of the batches.
    """
    graph, _, rest = nnx.split(network, TRAINED, ...)
    x, y = (jnp.asarray(a, jnp.float32) for a in series(settings))

    def loss(params: Any, batch: data.Batches) -> Any:
        predicted = nnx.merge(graph, params, rest)(x[batch.index])
        errors = (predicted - y[batch.index])[:, 0] ** 2
        total = (errors * batch.mask).sum()
        return total / batch.mask.sum(), total

    def training(params: Any, key: Any) -> Trained:
        def epoch(key: Any) -> data.Batches:
            return data.epoch(len(x), settings.batch, key=key)

        keys = None if key is None else jax.random.split(key, settings.epochs)
        epochs = jax.vmap(epoch, axis_size=settings.epochs)(keys)
        batches = jax.tree.map(lambda a: a.reshape(-1, settings.batch), epochs)
        return train_steps(loss, optax.sgd(settings.lr), params, batches, progress=progress)

    return training


def train(settings: Settings, network: Network, key: Any) -> tuple[Network, np.ndarray]:
    """A trained copy of a network, and the mean loss of each epoch (epochs,)."""
    network = nnx.clone(network)
    examples = len(series(settings)[0])
    with Progress("network", settings.epochs * -(-examples // settings.batch)) as progress:
        training = make_training(settings, network, progress)
        trained = jax.jit(training)(nnx.state(network, TRAINED), key)
    nnx.update(network, trained.params)
    return network, np.asarray(trained.metrics).reshape(settings.epochs, -1).sum(1) / examples


def run(settings: Settings = Settings()) -> History:
    """Fit the regression, train the networks, and predict with all three."""
    x, y = series(settings)
    predictions, losses, networks = {}, {}, {}
    for name in NETWORKS:
        network = make_network(name, nnx.Rngs(settings.seed))
        networks[name], losses[name] = train(settings, network, jax.random.key(settings.seed))
        predictions[name] = np.asarray(networks[name](jnp.asarray(x, jnp.float32))[:, 0])
    predictions["linear regression"] = regress(x, y)[:, 0]
    errors = {name: float(np.mean((p - y[:, 0]) ** 2)) for name, p in predictions.items()}
    return History(y[:, 0], predictions, errors, losses, networks)


def errors_by(settings: Settings, name: str, seed: jax.Array) -> np.ndarray:
    """The mean squared errors of a trained network for many seeds at once."""
    x, y = (jnp.asarray(a, jnp.float32) for a in series(settings))

    def one(seed: jax.Array) -> jax.Array:
        network = make_network(name, nnx.Rngs(jax.random.key(seed)))
        graph, params, rest = nnx.split(network, TRAINED, ...)
        trained = make_training(settings, network)(params, jax.random.key(seed))
        return jnp.mean((nnx.merge(graph, trained.params, rest)(x) - y) ** 2)

    return np.asarray(sweep(one, seed=seed).results)


def draw(history: History, settings: Settings) -> Any:
    """The four curves of the source, and the loss of the networks."""
    return plotting.forecasts(
        np.arange(len(history.targets)) + settings.window,
        history.targets,
        history.predictions,
        title=f"The next value of a sine from the last {settings.window}",
        time_label="point",
        losses=history.losses,
        step_label="epoch",
    )


def result(history: History) -> str:
    """What came out, in a line."""
    errors = ", ".join(f"{error:.2g}" for error in history.errors.values())
    return f"errors of the two networks and the regression: {errors}"


def main(settings: Settings) -> History:
    """Run the three models, print their errors, save the figure."""
    target = plotting.check_target(settings.out)
    history = run(settings)
    for name, error in history.errors.items():
        print(f"{name + ':':<20} mean squared error {error:.3g}")
    print(f"figure: {plotting.save(draw(history, settings), target)}")
    return history
