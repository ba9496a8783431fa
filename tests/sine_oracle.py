"""Sine example in PyTorch: initial weights and all losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracle import live_or_recorded, state_of, torch


def torch_run(seed: int = 0, steps: int = 75) -> dict[str, np.ndarray]:
    """Train from a seed, and return the initial weights and the loss of each step."""
    assert torch is not None
    torch.manual_seed(seed)
    rnn = torch.nn.RNN(1, 32, 1, batch_first=True)
    fc = torch.nn.Linear(32, 1)
    results = state_of(rnn, "rnn.") | state_of(fc, "fc.")
    adam = torch.optim.Adam([*rnn.parameters(), *fc.parameters()], lr=0.01)
    hidden: Any = None
    losses = []
    for step in range(steps):
        wave = np.sin(np.linspace(step * np.pi, (step + 1) * np.pi, 21))[:, None]
        x, y = torch.tensor(wave[:-1]).float(), torch.tensor(wave[1:]).float()
        output, hidden = rnn(x[None], hidden)
        hidden = hidden.detach()
        loss = torch.nn.functional.mse_loss(fc(output[0]), y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return results | {"losses": np.array(losses)}


def expected() -> dict[str, np.ndarray]:
    """Return PyTorch's run from seed 0."""
    return live_or_recorded("sine", torch_run)
