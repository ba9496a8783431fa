"""Stateful example in PyTorch: initial weights and all losses.

The notebook calls the network once per step and sums the losses. One call with the whole series is
the same computation and seconds faster; both losses agree to 3e-6.
"""

from __future__ import annotations

import functools

import numpy as np

from tests.oracle import live_or_recorded, state_of, torch


def torch_run(
    cell: str = "RNN", period: int = 16, window: int = 5, epochs: int = 33
) -> dict[str, np.ndarray]:
    """Train from seed 42, and return the initial weights and the loss of each epoch."""
    assert torch is not None
    torch.manual_seed(42)
    rnn = getattr(torch.nn, cell)(window, 30, 1, batch_first=True)
    fc = torch.nn.Linear(30, 1)
    results = state_of(rnn, "rnn.") | state_of(fc, "fc.")
    adam = torch.optim.Adam([*rnn.parameters(), *fc.parameters()], lr=0.01)
    wave = np.sin(2 * np.pi / period * np.arange(1000))
    x = np.stack([wave[i : i + window] for i in range(1000 - window)])
    x, y = torch.tensor(x).float(), torch.tensor(wave[window:, None]).float()
    losses = []
    for _ in range(epochs):
        adam.zero_grad()
        loss = ((fc(rnn(x[None])[0][0]) - y) ** 2).sum()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return results | {"losses": np.array(losses)}


VARIANTS = {  # name: cell, period, window, epochs
    "stateful": ("RNN", 16, 5, 33),
    "stateful_variant": ("LSTM", 160, 32, 8),
}


def expected(name: str) -> dict[str, np.ndarray]:
    """Return PyTorch's run from seed 42."""
    return live_or_recorded(name, functools.partial(torch_run, *VARIANTS[name]))
