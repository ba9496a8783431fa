"""Memorized strings in PyTorch: initial weights, losses and numbers of right characters."""

from __future__ import annotations

import functools

import numpy as np

from tests.oracle import live_or_recorded, state_of, torch

TEXTS = {"charseq": " if you want you", "hihello": "hihello"}


def torch_run(text: str, seed: int) -> dict[str, np.ndarray]:
    """Train PyTorch's network for 100 steps from a seed."""
    assert torch is not None
    torch.manual_seed(seed)
    characters = list(dict.fromkeys(text))
    numbers = torch.tensor([characters.index(c) for c in text])
    x, y = torch.eye(len(characters))[numbers[None, :-1]], numbers[1:]
    rnn = torch.nn.RNN(len(characters), len(characters), batch_first=True)
    results = state_of(rnn)
    adam = torch.optim.Adam(rnn.parameters(), 0.1)
    losses, right = [], []
    for _ in range(100):
        adam.zero_grad()
        outputs, _ = rnn(x)
        loss = torch.nn.functional.cross_entropy(outputs[0], y)
        loss.backward()
        adam.step()
        losses.append(loss.item())
        right.append((outputs[0].argmax(-1) == y).sum().item())
    return results | {"losses": np.array(losses), "right": np.array(right)}


def torch_runs(text: str) -> dict[str, np.ndarray]:
    """Return the runs from the seeds 0 to 19, stacked."""
    runs = [torch_run(text, seed) for seed in range(20)]
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def expected(name: str) -> dict[str, np.ndarray]:
    """Return PyTorch's twenty runs of an example."""
    return live_or_recorded(name, functools.partial(torch_runs, TEXTS[name]))
