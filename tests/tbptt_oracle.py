"""Truncated backpropagation in PyTorch: the loop over windows with a `detach` between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracle import live_or_recorded, state_of, torch

T, N, D, H, WINDOW, RATE = 11, 2, 3, 4, 4, 0.1  # 11 steps are windows of 4, 4 and 3


def draw() -> tuple[np.ndarray, np.ndarray]:
    """The stream: inputs (T, N, D) and targets (T, N, 1), in float64."""
    random = np.random.RandomState(5)  # a frozen generator
    return random.uniform(-1, 1, (T, N, D)), random.uniform(-1, 1, (T, N, 1))


def torch_run() -> dict[str, np.ndarray]:
    """Train an LSTM and a linear layer: weights before and after, losses, predictions, state."""
    assert torch is not None
    torch.manual_seed(0)
    rnn, fc = torch.nn.LSTM(D, H).double(), torch.nn.Linear(H, 1).double()
    results = state_of(rnn, "before.rnn.") | state_of(fc, "before.fc.")
    sgd = torch.optim.SGD([*rnn.parameters(), *fc.parameters()], lr=RATE, momentum=0.9)
    x, y = map(torch.tensor, draw())
    hx: Any = None
    losses, predictions = [], []
    for start in range(0, T, WINDOW):
        output, hx = rnn(x[start : start + WINDOW], hx)
        hx = tuple(state.detach() for state in hx)
        predicted = fc(output)
        loss = torch.nn.functional.mse_loss(predicted, y[start : start + WINDOW])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
        predictions.append(predicted.detach().numpy())
    results |= state_of(rnn, "after.rnn.") | state_of(fc, "after.fc.")
    results |= {"losses": np.array(losses), "predictions": np.concatenate(predictions)}
    return results | {"h_n": hx[0].numpy(), "c_n": hx[1].numpy()}


def expected() -> dict[str, np.ndarray]:
    """PyTorch's run."""
    return live_or_recorded("tbptt", torch_run)
