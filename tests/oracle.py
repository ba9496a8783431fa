"""PyTorch as the oracle: run live where it is installed, else the numbers recorded from it.

A `Case` is one configuration of a layer with all of its inputs, drawn from a frozen generator.
`python -m tests.golden` records the results of all cases.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    torch = None

GOLDEN = Path(__file__).parent / "golden"
N, T, D, H, P = 2, 4, 3, 4, 2
MODES = ("RNN_TANH", "RNN_RELU", "LSTM", "LSTM_PROJECTED", "GRU")
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "LSTM_PROJECTED": 4, "GRU": 3}


@dataclass(frozen=True)
class Case:
    """One configuration of a layer and a call."""

    mode: str
    num_layers: int
    bias: bool
    bidirectional: bool
    batch_first: bool
    hx: bool
    steps: int = T

    @property
    def name(self) -> str:
        flags = ("bias", "bidirectional", "batch_first", "hx")
        words = [self.mode.lower(), f"{self.num_layers}x{self.steps}"]
        return "-".join(words + [flag for flag in flags if getattr(self, flag)])

    @property
    def layer(self) -> str:
        return self.mode.split("_")[0]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the layer, PyTorch's and ours."""
        options: dict[str, Any] = {
            "num_layers": self.num_layers,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
        }
        if self.mode == "RNN_RELU":
            options["nonlinearity"] = "relu"
        if self.mode == "LSTM_PROJECTED":
            options["proj_size"] = P
        return options

    def draw(self) -> tuple[dict[str, np.ndarray], np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Weights, input, states and the cotangents of output and states, in float64."""
        random = np.random.RandomState(zlib.crc32(self.name.encode()))  # a frozen generator
        rows, size = GATES[self.mode] * H, P if self.mode == "LSTM_PROJECTED" else H
        directions = 2 if self.bidirectional else 1
        weights = {}
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse")[:directions]:
                end = f"_l{layer}{suffix}"
                features = D if layer == 0 else directions * size
                weights["weight_ih" + end] = random.uniform(-0.7, 0.7, (rows, features))
                weights["weight_hh" + end] = random.uniform(-0.7, 0.7, (rows, size))
                if self.bias:
                    weights["bias_ih" + end] = random.uniform(-0.7, 0.7, rows)
                    weights["bias_hh" + end] = random.uniform(-0.7, 0.7, rows)
                if size != H:
                    weights["weight_hr" + end] = random.uniform(-0.7, 0.7, (size, H))
        lead = (N, self.steps) if self.batch_first else (self.steps, N)
        sizes = [size, H] if self.layer == "LSTM" else [size]
        states = [(self.num_layers * directions, N, s) for s in sizes]
        x = random.uniform(-1, 1, (*lead, D))
        hx = [random.uniform(-1, 1, s) for s in states]
        shapes = [(*lead, directions * size), *states]
        return weights, x, hx, [random.uniform(-1, 1, s) for s in shapes]


CASES = [
    Case(mode, num_layers, *flags)
    for mode in MODES
    for num_layers in (1, 2, 3)
    for flags in itertools.product((False, True), repeat=4)
] + [Case(mode, 1, True, True, False, True, steps=107) for mode in MODES]


def torch_results(case: Case) -> dict[str, np.ndarray]:
    """What PyTorch computes in float64: outputs, states and every gradient."""
    assert torch is not None
    weights, x, hx, cotangents = case.draw()
    layer = getattr(torch.nn, case.layer)(D, H, **case.options).double()
    layer.load_state_dict({name: torch.tensor(w) for name, w in weights.items()})
    x, *hx = (torch.tensor(a, requires_grad=True) for a in (x, *hx))
    state: Any = tuple(hx) if case.layer == "LSTM" else hx[0]
    output, last = layer(x, state) if case.hx else layer(x)
    outputs = [output, *(last if case.layer == "LSTM" else [last])]
    total = sum((o * torch.tensor(c)).sum() for o, c in zip(outputs, cotangents, strict=True))
    assert isinstance(total, torch.Tensor)
    total.backward()
    results = {f"output_{i}": o for i, o in enumerate(outputs)}
    results |= {f"grad_{name}": p.grad for name, p in layer.named_parameters()}
    results["grad_x"] = x.grad
    if case.hx:
        results |= {f"grad_hx_{i}": h.grad for i, h in enumerate(hx)}
    return {name: value.detach().numpy() for name, value in results.items()}


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    """All recorded results, each case's laid end to end."""
    with np.load(GOLDEN / "layers.npz") as file:
        return dict(file)


def flatten(results: dict[str, np.ndarray]) -> np.ndarray:
    """The results of a case end to end, in the order of their names."""
    return np.concatenate([results[name].ravel() for name in sorted(results)])


def expected(case: Case) -> np.ndarray:
    """PyTorch's results of a case, end to end."""
    return recorded()[case.name] if torch is None else flatten(torch_results(case))


def state_of(module: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Copies of the parameters of PyTorch's module."""
    return {prefix + n: p.detach().numpy().copy() for n, p in module.named_parameters()}


def live_or_recorded(name: str, run: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A training job as PyTorch runs it, or as it did."""
    if torch is not None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads that wait for each other are slow on a shared machine
        try:
            return run()
        finally:
            torch.set_num_threads(threads)
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)
