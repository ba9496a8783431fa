"""Long sentence in PyTorch: weights, losses and accuracies."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.oracle import GOLDEN, live_or_recorded, state_of, torch

SENTENCE = (
    "if you want to build a ship, don't drum up people together to "
    "collect wood and don't assign them tasks and work, but rather "
    "teach them to long for the endless immensity of the sea."
)
SEEDS, STEPS = 3, 15


def torch_run(seed: int, steps: int, double: bool = False) -> tuple[dict[str, np.ndarray], Any]:
    """Train PyTorch's network: its initial weights, and losses and accuracies of each step."""
    assert torch is not None
    torch.manual_seed(seed)
    characters = list(dict.fromkeys(SENTENCE))
    size = len(characters)
    numbers = torch.tensor([characters.index(c) for c in SENTENCE])
    windows = numbers.unfold(0, 11, 1)
    x, y = torch.eye(size)[windows[:, :-1]], windows[:, 1:]
    rnn = torch.nn.RNN(size, size, 2, batch_first=True)
    fc = torch.nn.Linear(size, size)
    weights = state_of(rnn, "rnn.") | state_of(fc, "fc.")
    if double:
        rnn, fc, x = rnn.double(), fc.double(), x.double()
    adam = torch.optim.Adam([*rnn.parameters(), *fc.parameters()], 0.1)
    losses, right = [], []
    for _ in range(steps):
        adam.zero_grad()
        outputs = fc(rnn(x)[0])
        loss = torch.nn.functional.cross_entropy(outputs.view(-1, size), y.reshape(-1))
        loss.backward()
        adam.step()
        losses.append(loss.item())
        right.append((outputs.argmax(-1) == y).double().mean().item())
    return weights, (np.array(losses), np.array(right))


def torch_runs() -> dict[str, np.ndarray]:
    """Return the first steps of a few seeds in both precisions, stacked."""
    runs = []
    for seed in range(SEEDS):
        weights, (losses, _) = torch_run(seed, STEPS)
        _, (double, _) = torch_run(seed, STEPS, double=True)
        runs.append(weights | {"losses": losses, "double": double})
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def torch_accuracies() -> dict[str, np.ndarray]:
    """Return the accuracies after 100 steps from the seeds 0 to 19; this takes a minute."""
    return {"accuracies": np.array([torch_run(seed, 100)[1][1][-1] for seed in range(20)])}


@functools.cache
def expected() -> dict[str, np.ndarray]:
    """Return PyTorch's first steps."""
    return live_or_recorded("longseq", torch_runs)


def accuracies() -> np.ndarray:
    """Return the recorded accuracies of twenty seeds."""
    with np.load(GOLDEN / "longseq_accuracies.npz") as file:
        return file["accuracies"]
