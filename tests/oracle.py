"""PyTorch as the oracle: run live if it is installed, else recorded results.

A `Case` is one configuration of a layer with all its inputs, drawn from a fixed seed.
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

from tests.pairwise import pairwise

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
    lengths: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        flags = ("bias", "bidirectional", "batch_first", "hx")
        words = [self.mode.lower(), f"{self.num_layers}x{self.steps}"]
        words += [flag for flag in flags if getattr(self, flag)]
        words += [] if self.lengths is None else ["_".join(map(str, self.lengths))]
        return "-".join(words)

    @property
    def layer(self) -> str:
        return self.mode.split("_")[0]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the layer, in PyTorch and here."""
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
        """Draw weights, input, states and cotangents of output and states, in float64."""
        random = np.random.RandomState(zlib.crc32(self.name.encode()))  # a fixed seed
        gate_rows, size = GATES[self.mode] * H, P if self.mode == "LSTM_PROJECTED" else H
        directions = 2 if self.bidirectional else 1
        weights = {}
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse")[:directions]:
                end = f"_l{layer}{suffix}"
                features = D if layer == 0 else directions * size
                weights["weight_ih" + end] = random.uniform(-0.7, 0.7, (gate_rows, features))
                weights["weight_hh" + end] = random.uniform(-0.7, 0.7, (gate_rows, size))
                if self.bias:
                    weights["bias_ih" + end] = random.uniform(-0.7, 0.7, gate_rows)
                    weights["bias_hh" + end] = random.uniform(-0.7, 0.7, gate_rows)
                if size != H:
                    weights["weight_hr" + end] = random.uniform(-0.7, 0.7, (size, H))
        batch = N if self.lengths is None else len(self.lengths)
        lead = (batch, self.steps) if self.batch_first else (self.steps, batch)
        sizes = [size, H] if self.layer == "LSTM" else [size]
        states = [(self.num_layers * directions, batch, s) for s in sizes]
        x = random.uniform(-1, 1, (*lead, D))
        hx = [random.uniform(-1, 1, s) for s in states]
        shapes = [(*lead, directions * size), *states]
        return weights, x, hx, [random.uniform(-1, 1, s) for s in shapes]


OPTIONS: dict[str, tuple[Any, ...]] = {
    "num_layers": (1, 2, 3),
    "bias": (False, True),
    "bidirectional": (False, True),
    "batch_first": (False, True),
    "hx": (False, True),
}
CASES = [Case(mode, *options) for mode in MODES for options in pairwise(3, **OPTIONS)]
CASES += [Case(mode, 1, True, True, False, True, steps=107) for mode in MODES]
PRODUCT = [
    Case(mode, *options) for mode in MODES for options in itertools.product(*OPTIONS.values())
]
"""The full product of the options, for the slow tests."""

RAGGED = [
    Case(mode, num_layers, True, bidirectional, bidirectional, True, 5, lengths)
    for mode in MODES
    for num_layers in (1, 2)
    for bidirectional in (False, True)
    for lengths in ((5, 4, 4, 1), (2, 5, 0, 3), (0, 1, 3, 0))  # sorted; not; all short, some empty
]


def packed_run(layer: Any, case: Case, x: Any, state: Any) -> tuple[Any, Any]:
    """Run PyTorch's layer on packed sequences. Empty ones, which it rejects, keep their state."""
    assert torch is not None
    assert case.lengths is not None
    utils = torch.nn.utils.rnn
    nonempty = [i for i, length in enumerate(case.lengths) if length > 0]
    lengths = [case.lengths[i] for i in nonempty]
    axis = 0 if case.batch_first else 1
    some = x[nonempty] if case.batch_first else x[:, nonempty]
    packed = utils.pack_padded_sequence(some, lengths, case.batch_first, enforce_sorted=False)
    states = state if isinstance(state, tuple) else (state,)
    initial = tuple(s[:, nonempty].contiguous() for s in states)
    output, last = layer(packed, initial if case.layer == "LSTM" else initial[0])
    output, _ = utils.pad_packed_sequence(output, case.batch_first, total_length=case.steps)
    last = last if case.layer == "LSTM" else (last,)
    index = torch.tensor(nonempty)
    shape = [*x.shape[:2], output.shape[2]]
    output = torch.zeros(shape, dtype=x.dtype).index_copy(axis, index, output)
    last = tuple(s.index_copy(1, index, n) for s, n in zip(states, last, strict=True))
    return output, last if case.layer == "LSTM" else last[0]


def torch_results(case: Case) -> dict[str, np.ndarray]:
    """Return PyTorch's outputs, states and gradients in float64."""
    assert torch is not None
    weights, x, hx, cotangents = case.draw()
    layer = getattr(torch.nn, case.layer)(D, H, **case.options).double()
    layer.load_state_dict({name: torch.tensor(w) for name, w in weights.items()})
    x, *hx = (torch.tensor(a, requires_grad=True) for a in (x, *hx))
    state: Any = tuple(hx) if case.layer == "LSTM" else hx[0]
    if case.lengths is not None:
        output, last = packed_run(layer, case, x, state)
    else:
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
    """Return all recorded results, those of a case concatenated."""
    results = {}
    for name in ("layers", "ragged"):
        with np.load(GOLDEN / f"{name}.npz") as file:
            results |= dict(file)
    return results


def flatten(results: dict[str, np.ndarray]) -> np.ndarray:
    """Concatenate the results of a case in the order of their names."""
    return np.concatenate([results[name].ravel() for name in sorted(results)])


def expected(case: Case) -> np.ndarray:
    """Return PyTorch's results of a case, concatenated."""
    return recorded()[case.name] if torch is None else flatten(torch_results(case))


def state_of(module: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Copy the parameters of a PyTorch module."""
    return {prefix + n: p.detach().numpy().copy() for n, p in module.named_parameters()}


def live_or_recorded(name: str, run: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Run a training job of PyTorch, or load its recorded results."""
    if torch is not None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads that wait for each other are slow on a shared machine
        try:
            return run()
        finally:
            torch.set_num_threads(threads)
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)
