r"""Predict the next point of a sine with a recurrent network that carries its state.

Training step k shows the network P points of the half wave from :math:`k\pi` to
:math:`(k + 1)\pi` and asks for the same points one place later:

.. math::

    x_i = \sin\left(\left(k + \tfrac{i}{P}\right) \pi\right), \quad
    y_i = \sin\left(\left(k + \tfrac{i + 1}{P}\right) \pi\right), \quad i = 0, \dots, P - 1

The hidden state passes from step to step, its gradient does not: truncated backpropagation through
time. The loss is the mean squared error.

Source: the lesson "Simple RNN" of Udacity's course on deep learning, in PyTorch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import plotting
from jaxrnn.examples import Cell, Every, FigurePath, Hidden, Layers, LearningRate, PositiveInt, Seed
from jaxrnn.layers.heads import LAYERS, ManyToMany
from jaxrnn.training import Progress, Trained, compile_and_run, train_steps


def half_waves(steps: int, points: int) -> tuple[jax.Array, jax.Array]:
    """Return inputs and targets of all training steps, (steps, points, 1) each."""
    # sin(k pi + t) = (-1)^k sin(t) is exact for any k, where float32 would lose the phase.
    sign = 1 - 2 * (jnp.arange(steps)[:, None] % 2)
    values = sign * jnp.sin(jnp.linspace(0.0, jnp.pi, points + 1, dtype=jnp.float32))[None]
    return values[:, :-1, None], values[:, 1:, None]


def make_model(cell: str, hidden: int, layers: int, *, rngs: nnx.Rngs) -> ManyToMany:
    """Build a recurrent layer with a linear layer on each output."""
    return ManyToMany(LAYERS[cell](1, hidden, layers, batch_first=True, rngs=rngs), 1, rngs=rngs)


def train(
    graph: Any, params: Any, *, steps: int, points: int, lr: Any, progress: Progress | None = None
) -> Trained:
    """Train with Adam, one half wave per step; a pure function of the parameters.

    The metrics are the predictions (steps, points).
    """

    def _loss(params: Any, state: Any, batch: Any) -> Any:
        x, y = batch  # (P, 1)
        predicted, state = nnx.merge(graph, params)(x[None], state)  # (1, P, 1)
        return jnp.mean((predicted[0] - y) ** 2), (state, predicted[0, :, 0])

    batches, state = half_waves(steps, points), nnx.merge(graph, params).rnn.initial_state(1)
    return train_steps(_loss, optax.adam(lr), params, batches, carry=state, progress=progress)


def main(
    *,
    steps: PositiveInt = 75,
    every: Every = 15,
    points: PositiveInt = 20,
    hidden: Hidden = 32,
    layers: Layers = 1,
    cell: Cell = "rnn",
    lr: LearningRate = 0.01,
    seed: Seed = 0,
    out: FigurePath = "sine.png",
) -> str:
    """Predict the next point of a sine, with the state carried from step to step.

    Args:
        steps: training steps, one half wave each.
        points: points of a half wave.
    """
    target = plotting.check_target(out)
    model = make_model(cell, hidden, layers, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(model)
    with Progress("sine", steps) as progress:
        run = partial(train, graph, steps=steps, points=points, lr=lr, progress=progress)
        trained, compile_seconds, run_seconds = compile_and_run(run, params)
    trained = jax.tree.map(np.asarray, trained)
    for loss in trained.losses[::every]:
        print("Loss: ", loss)
    print(f"compiled in {compile_seconds:.2f} s, {steps} steps in {run_seconds * 1e3:.1f} ms")
    x, y = half_waves(steps, points)
    panels = [
        plotting.Panel(
            title=f"step {k}, loss {trained.losses[k]:.2g}",
            times=np.linspace(k * np.pi, (k + 1) * np.pi, points + 1)[1:],
            targets=y[k, :, 0],
            predicted=trained.metrics[k],
            inputs=x[k, :, 0],
        )
        for k in plotting.spread(range(0, steps, every))
    ]
    title = f"Next point of a sine: {model.rnn} + linear"
    figure = plotting.predictions(panels, trained.losses, title=title)
    print(f"figure: {plotting.save(figure, target)}")
    return f"loss {' '.join(f'{loss:.3g}' for loss in trained.losses[:61:15])}"
