"""The sine job as the PyTorch tutorial has it: the initial weights and all losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracle import GOLDEN, torch


def torch_run(seed: int, steps: int = 75) -> dict[str, np.ndarray]:
    """Train PyTorch's network from a seed: its initial weights, and the loss of each step."""
    assert torch is not None
    torch.manual_seed(seed)
    rnn = torch.nn.RNN(1, 32, 1, batch_first=True)
    fc = torch.nn.Linear(32, 1)
    named = [("rnn." + n, p) for n, p in rnn.named_parameters()]
    named += [("fc." + n, p) for n, p in fc.named_parameters()]
    results = {name: p.detach().numpy().copy() for name, p in named}
    adam = torch.optim.Adam([p for _, p in named], lr=0.01)
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
    """PyTorch's run from seed 0."""
    if torch is not None:
        return torch_run(0)
    with np.load(GOLDEN / "sine.npz") as file:
        return dict(file)
