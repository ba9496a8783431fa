r"""Predict the next value of a sine with two Keras networks and a linear regression.

The networks are ``SimpleRNN(1)`` and ``SimpleRNN(1) + Dense(10) + Dense(1)``, initialized and
trained as in Keras: stochastic gradient descent at 0.01 in shuffled batches of 32, 150 epochs. All
models are evaluated on their training windows.

The regression is exact, since every sine at equal steps :math:`\omega` satisfies

.. math::

    s_t = 2 \cos(\omega) s_{t-1} - s_{t-2}

The networks are not: the median of their mean squared errors over 20 seeds is 0.13, the smallest
near 0.04. The output of ``SimpleRNN(1)`` is a single tanh with three parameters, and the dense
layers are linear: they only scale and shift it. Keras draws kernels from Glorot's uniform
distribution, recurrent kernels as orthogonal matrices (1 or -1 for one unit), and starts its one
bias at zero. PyTorch's second bias stays zero here.

Source: a blog post on Keras's ``SimpleRNN`` after datascienceschool.net.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import RNN, data, plotting
from jaxrnn.examples import FigurePath, LearningRate, PositiveInt, Seed
from jaxrnn.training import train_steps

TRAINED = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("bias_hh_l0")))
"""Keras has one bias; two would learn at twice the rate."""


def windows(window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows (S, window, 1) of the sine and the next values (S, 1), float64."""
    values = np.sin(2 * np.pi * 0.125 * np.linspace(0, 20, 50))
    source = data.WindowSource(values[:, None], data.Windows(window))
    x, y = source.take(range(len(source)))
    return x, y[:, 0]


def regress(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the least-squares prediction of y (S, 1) from windows (S, window, 1)."""
    design = np.concatenate([x[..., 0], np.ones_like(y)], axis=1)
    return design @ np.linalg.lstsq(design, y)[0]


class Network(nnx.Module):
    """``SimpleRNN(1)``, optionally followed by ``Dense(10)`` and ``Dense(1)``.

    Call: ``network(x) -> y`` with x (N, T, 1) and y (N, 1), after the last step.

    Args:
        dense: True for the dense layers.
        rngs: random streams of the initial weights.
    """

    def __init__(self, dense: bool, *, rngs: nnx.Rngs):
        glorot = nnx.initializers.glorot_uniform()
        rnn: Any = RNN(1, 1, batch_first=True, rngs=rngs)
        orthogonal, shape = nnx.initializers.orthogonal(), (1, 1)
        rnn.weight_ih_l0[...] = glorot(rngs.params(), shape, jnp.float32)
        rnn.weight_hh_l0[...] = orthogonal(rngs.params(), shape, jnp.float32)
        rnn.bias_ih_l0[...] = rnn.bias_hh_l0[...] = jnp.zeros(1, jnp.float32)
        self.rnn = rnn
        sizes = [(1, 10), (10, 1)] if dense else []
        self.dense = nnx.List(nnx.Linear(*s, kernel_init=glorot, rngs=rngs) for s in sizes)

    def __call__(self, x: Any) -> jax.Array:
        """Return the prediction (N, 1) after the last step of x (N, T, 1)."""
        y = self.rnn(x)[0][:, -1]
        for layer in self.dense:
            y = layer(y)
        return y


def train(
    graph: Any, params: Any, rest: Any, key: Any, *, window: int, epochs: int, batch: int, lr: Any
) -> tuple[Any, jax.Array]:
    """Train a network; a pure function of its parameters.

    Returns:
        The trained parameters, and the mean loss of each epoch (epochs,).
    """
    x, y = (jnp.asarray(a, jnp.float32) for a in windows(window))

    def _loss(params: Any, batch: data.Batches) -> Any:
        predicted = nnx.merge(graph, params, rest)(x[batch.index])
        errors = (predicted - y[batch.index])[:, 0] ** 2
        total = (errors * batch.mask).sum()
        return total / batch.mask.sum(), total

    keys = None if key is None else jax.random.split(key, epochs)
    shuffled = jax.vmap(lambda key: data.epoch(len(x), batch, key=key), axis_size=epochs)(keys)
    batches = jax.tree.map(lambda a: a.reshape(-1, batch), shuffled)
    trained = train_steps(_loss, optax.sgd(lr), params, batches)
    return trained.params, trained.metrics.reshape(epochs, -1).sum(1) / len(x)


def main(
    *,
    window: PositiveInt = 3,
    epochs: PositiveInt = 150,
    batch: PositiveInt = 32,
    lr: LearningRate = 0.01,
    seed: Seed = 1,
    out: FigurePath = "keras.svg",
) -> str:
    """Predict the next value of a sine with two Keras networks and a linear regression.

    Args:
        window: number of values that each prediction depends on.
        epochs: passes over all windows.
        batch: batch size.
        lr: learning rate of stochastic gradient descent.
        seed: seed of the initial weights and the batches.
    """
    if window > 40:
        raise ValueError(f"`window` must be at most 40, of 50 values, got {window}.")
    target = plotting.check_target(out)
    x, y = windows(window)
    predictions, losses = {}, {}
    for name, dense in (("SimpleRNN", False), ("SimpleRNN + Dense", True)):
        network, key = Network(dense, rngs=nnx.Rngs(seed)), jax.random.key(seed)
        graph, params, rest = nnx.split(network, TRAINED, ...)
        run = partial(train, graph, window=window, epochs=epochs, batch=batch, lr=lr)
        params, losses[name] = jax.jit(run)(params, rest, key)
        nnx.update(network, params)
        predictions[name] = np.asarray(network(jnp.asarray(x, jnp.float32))[:, 0])
    predictions["linear regression"] = regress(x, y)[:, 0]
    errors = {name: float(np.mean((p - y[:, 0]) ** 2)) for name, p in predictions.items()}
    for name, error in errors.items():
        print(f"{name + ':':<20} mean squared error {error:.3g}")
    figure = plotting.forecasts(
        np.arange(len(y)) + window,
        y[:, 0],
        predictions,
        losses,
        title=f"The next value of a sine from {window} values",
        time_label="point",
        step_label="epoch",
    )
    print(f"figure: {plotting.save(figure, target)}")
    values = ", ".join(f"{error:.2g}" for error in errors.values())
    return f"errors of the two networks and the regression: {values}"
