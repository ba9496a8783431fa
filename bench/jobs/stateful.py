# pyright: reportMissingImports=false
"""A sine from its last five values: RNN(5, 30) + linear, state carried over 995 single steps.

The squared errors of all steps are summed, the gradient goes back through all of them, and each of
33 epochs is one update of Adam, learning rate 0.01. Neither side evaluates in between.
"""

from functools import partial
from typing import Any

import numpy as np

from bench.jobs.base import Job, Weights, draw, load_jaxrnn, load_torch
from bench.layers import Spec

EPOCHS, POINTS, PERIOD, WINDOW, HIDDEN, RATE = 33, 1000, 16, 5, 30, 0.01


def initial_weights() -> Weights:
    """Draw the weights of ``rnn`` and ``fc``."""
    return draw(Spec("rnn", 1, POINTS - WINDOW, WINDOW, HIDDEN), 1)


def torch_job(weights: Weights, dtype: Any, device: Any) -> Any:
    """Return the training loop of a PyTorch user, with one call per step."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(WINDOW, HIDDEN, 1, batch_first=True)
            self.fc = nn.Linear(HIDDEN, 1)

        def forward(self, inputs: Any, states: Any) -> Any:
            out, states = self.rnn(inputs, states)
            return self.fc(out), states

    model = Model().to(device, dtype)
    restart = load_torch(model, weights)
    wave = np.sin(2 * np.pi / PERIOD * np.arange(POINTS))
    train_x = np.stack([wave[i : i + WINDOW] for i in range(POINTS - WINDOW)])
    train_y = wave[WINDOW:, None]

    def train() -> Any:
        restart()
        criterion = nn.MSELoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        losses = []
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            state = torch.zeros(1, 1, HIDDEN, dtype=dtype, device=device)
            loss = torch.zeros((), dtype=dtype, device=device)
            for inputs, label in zip(train_x, train_y, strict=True):
                x = torch.as_tensor(inputs, dtype=dtype, device=device).view(1, 1, WINDOW)
                y = torch.as_tensor(label, dtype=dtype, device=device)
                out, state = model(x, state)
                loss = loss + criterion(out.squeeze(), y.squeeze())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


def jaxrnn_job(weights: Weights) -> Any:
    """Return the training of the example, and its parameters."""
    import jax.numpy as jnp
    from flax import nnx

    from jaxrnn import data
    from jaxrnn.examples import stateful

    windows = data.Windows(WINDOW)
    x, y = windows.take(data.wave(POINTS, PERIOD), jnp.arange(POINTS - WINDOW))
    model = stateful.make_model("rnn", WINDOW, HIDDEN, rngs=nnx.Rngs(0))
    train = partial(stateful.train, nnx.graphdef(model), x=x, y=y, epochs=EPOCHS, lr=RATE)
    return train, load_jaxrnn(model, weights)


JOB = Job(initial_weights, torch_job, jaxrnn_job, "eager loop, one call a step", seconds=True)
build = JOB.build
