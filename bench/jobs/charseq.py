# pyright: reportMissingImports=false
"""Memorizing a string: RNN(10, 10) on 15 one-hot characters, outputs are logits.

100 steps of Adam, learning rate 0.1, cross-entropy.
"""

from functools import partial
from typing import Any

import numpy as np

from bench.jobs.base import Job, Weights, load_jaxrnn, load_torch
from bench.layers import Spec, draw_weights

TEXT, STEPS, RATE = " if you want you", 100, 0.1
CHARACTERS = "".join(dict.fromkeys(TEXT))
SIZE = len(CHARACTERS)


def initial_weights() -> Weights:
    """Draw the weights of the layer."""
    return draw_weights(Spec("rnn", 1, len(TEXT) - 1, SIZE, SIZE))


def torch_job(weights: Weights, dtype: Any, device: Any) -> Any:
    """Return the training loop of a PyTorch user."""
    import torch
    from torch import nn

    rnn = nn.RNN(SIZE, SIZE, batch_first=True).to(device, dtype)
    restart = load_torch(rnn, weights)
    numbers = [CHARACTERS.index(c) for c in TEXT]
    x = torch.tensor(np.eye(SIZE)[None, numbers[:-1]], dtype=dtype, device=device)
    y = torch.tensor([numbers[1:]], device=device)

    def train() -> Any:
        restart()
        criterion = nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(rnn.parameters(), RATE)
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            outputs, _ = rnn(x)
            loss = criterion(outputs.view(-1, SIZE), y.view(-1))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


def jaxrnn_job(weights: Weights) -> Any:
    """Return the training of the example, and its parameters."""
    from flax import nnx

    from jaxrnn.examples import characters

    model = characters.make_model(TEXT, "rnn", rngs=nnx.Rngs(0))
    train = partial(characters.train, nnx.graphdef(model), text=TEXT, steps=STEPS, lr=RATE)
    return train, load_jaxrnn(model, weights)


JOB = Job(initial_weights, torch_job, jaxrnn_job, "eager loop, one loss a step")
build = JOB.build
