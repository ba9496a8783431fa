# pyright: reportMissingImports=false
"""Next-step prediction of a sine: RNN(1, 32) + linear, 75 steps of Adam, with a carried state.

Step k sees sin on 21 points from k pi to (k + 1) pi: the first 20 are the input, the last 20 the
target; mean squared error, learning rate 0.01.
"""

from functools import partial
from typing import Any

import numpy as np

from bench.jobs.base import Job, Weights, draw, load_jaxrnn, load_torch
from bench.layers import Spec

STEPS, POINTS, HIDDEN, RATE = 75, 20, 32, 0.01


def initial_weights(seed: int = 0) -> Weights:
    """Draw the weights of ``rnn`` and ``fc``."""
    return draw(Spec("rnn", 1, POINTS, 1, HIDDEN), 1, seed)


def torch_job(weights: Weights, dtype: Any, device: Any) -> Any:
    """Return the training loop of a PyTorch user."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(1, HIDDEN, 1, batch_first=True)
            self.fc = nn.Linear(HIDDEN, 1)

        def forward(self, x: Any, hidden: Any) -> Any:
            r_out, hidden = self.rnn(x, hidden)
            return self.fc(r_out.view(-1, HIDDEN)), hidden

    model = Model().to(device, dtype)
    restart = load_torch(model, weights)

    def train() -> Any:
        restart()
        criterion = nn.MSELoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        hidden, losses = None, []
        for step in range(STEPS):
            data = np.sin(np.linspace(step * np.pi, (step + 1) * np.pi, POINTS + 1))[:, None]
            x = torch.as_tensor(data[:-1], dtype=dtype, device=device).unsqueeze(0)
            y = torch.as_tensor(data[1:], dtype=dtype, device=device)
            prediction, hidden = model(x, hidden)
            hidden = hidden.data
            loss = criterion(prediction, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


def jaxrnn_job(weights: Weights) -> Any:
    """Return the training of the example, and its parameters."""
    from flax import nnx

    from jaxrnn.examples import sine

    model = sine.make_model("rnn", HIDDEN, 1, rngs=nnx.Rngs(0))
    train = partial(sine.train, nnx.graphdef(model), steps=STEPS, points=POINTS, lr=RATE)
    return train, load_jaxrnn(model, weights)


JOB = Job(initial_weights, torch_job, jaxrnn_job, "eager loop, one loss a step")
build = JOB.build
