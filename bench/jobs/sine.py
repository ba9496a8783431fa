# pyright: reportMissingImports=false
"""Next-step prediction of a sine: RNN(1, 32) + linear, 75 steps of Adam, state carried and cut.

Step k sees sin on 21 points from k pi to (k + 1) pi: the first 20 are the input, the last 20 the
target; mean squared error, learning rate 0.01.
"""

from functools import lru_cache
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np

from bench.core import Contender
from bench.layers import Spec, draw_weights, relative_error
from bench.peers import PEERS

STEPS, POINTS, HIDDEN, RATE = 75, 20, 32, 0.01


def initial_weights() -> dict[str, np.ndarray]:
    """Both contenders' initial weights under PyTorch's names: ``rnn.*`` and ``fc.*``."""
    drawn = draw_weights(Spec("rnn", 1, POINTS, 1, HIDDEN))
    weights = {f"rnn.{name}": value for name, value in drawn.items()}
    rng, bound = np.random.default_rng(2), HIDDEN**-0.5
    weights["fc.weight"] = rng.uniform(-bound, bound, (1, HIDDEN)).astype(np.float32)
    weights["fc.bias"] = rng.uniform(-bound, bound, (1,)).astype(np.float32)
    return weights


def torch_job(dtype: Any, device: Any) -> Any:
    """The job as a PyTorch user writes it, as a function that trains and returns the losses."""
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

    start = {k: torch.from_numpy(v).to(device, dtype) for k, v in initial_weights().items()}
    model = Model().to(device, dtype)

    def train() -> Any:
        model.load_state_dict(start)
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


@lru_cache(maxsize=1)
def expected() -> np.ndarray:
    """The 75 losses of the job in PyTorch float64."""
    import torch

    return np.asarray(torch_job(torch.float64, torch.device("cpu"))())


def errors(losses: Any) -> dict[str, float]:
    """The largest relative difference of a step's loss."""
    reference = expected()
    return {"losses": relative_error(np.asarray(losses, np.float64) / reference, np.ones(STEPS))}


def build_torch() -> Contender:
    import torch

    from bench.peers.pytorch import device

    train = torch_job(torch.float32, device())
    return Contender(run=train, check=lambda: errors(train()), note="eager loop, one loss a step")


def build_jaxrnn() -> Contender:
    import jax
    from flax import nnx

    import jaxrnn
    from jaxrnn.experiments import sine

    settings = sine.Settings(steps=STEPS, points=POINTS, hidden=HIDDEN, lr=RATE)
    model = sine.make_model(settings, nnx.Rngs(0))
    jaxrnn.load_state_dict(model, initial_weights())
    params = nnx.state(model, nnx.Param)
    start = perf_counter()
    compiled = jax.jit(sine.make_training(settings, model)).lower(params).compile()
    compile_s = perf_counter() - start

    def train() -> Any:
        return jax.block_until_ready(compiled(params))

    return Contender(
        run=train,
        compile_s=compile_s,
        check=(lambda: errors(train().losses)) if find_spec("torch") else None,
        no_check="n/a (no PyTorch to compare with)",
        note="one compiled call",
    )


def build(peer: str) -> Contender:
    """The job of one contender."""
    PEERS[peer].require()
    return build_torch() if peer == "torch" else build_jaxrnn()
