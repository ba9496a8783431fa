"""Examples hello and packed in PyTorch: weights, outputs and states."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.oracle import live_or_recorded, state_of, torch

CELLS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def one_hot(words: list[str]) -> list[Any]:
    """Return each word as one-hot letters, numbered in order of appearance."""
    assert torch is not None
    letters = list(dict.fromkeys("".join(words)))
    return [torch.eye(len(letters))[[letters.index(letter) for letter in word]] for word in words]


def states(last: Any) -> dict[str, Any]:
    """Return the final states by name, two of an LSTM, else one."""
    return dict(zip(("h_n", "c_n"), last if isinstance(last, tuple) else (last,)))


def hello_run(cell: str, source: bool) -> dict[str, np.ndarray]:
    """Run three words of five letters as a batch, or as steps like the source."""
    assert torch is not None
    torch.manual_seed(0)
    rnn = getattr(torch.nn, CELLS[cell])(4, 2, batch_first=not source)
    outputs, last = rnn(torch.stack(one_hot(["hello", "eolll", "lleel"])))
    results = {"outputs": outputs, **states(last)}
    return state_of(rnn) | {name: a.detach().numpy() for name, a in results.items()}


def packed_run(cell: str, bidirectional: bool) -> dict[str, np.ndarray]:
    """Pad, pack, run and unpack words of unequal length."""
    assert torch is not None
    torch.manual_seed(0)
    functions = torch.nn.utils.rnn
    encoded = one_hot(["rain", "thunderstorm", "sun", "umbrella", "wind"])
    rnn = getattr(torch.nn, CELLS[cell])(encoded[0].shape[1], 8, bidirectional=bidirectional)
    lengths = torch.tensor([len(word) for word in encoded])
    padded = functions.pad_sequence(encoded)
    packed = functions.pack_padded_sequence(padded, lengths, enforce_sorted=False)
    outputs, last = rnn(packed)
    unpacked, lengths = functions.pad_packed_sequence(outputs)
    results = {"padded": padded, "unpacked": unpacked, "lengths": lengths, **states(last)}
    results |= {f"packed_{name}": a for name, a in packed._asdict().items()}
    results |= {f"outputs_{name}": a for name, a in outputs._asdict().items()}
    return state_of(rnn) | {name: a.detach().numpy() for name, a in results.items()}


RUNS = {"hello": hello_run, "packed": packed_run}


def torch_runs(name: str) -> dict[str, np.ndarray]:
    """Return all runs of an example: each cell, with its option off and on."""
    results = {}
    for cell in CELLS:
        for option in (False, True):
            run = RUNS[name](cell, option)
            results |= {f"{cell}-{option}/{key}": a for key, a in run.items()}
    return results


@functools.cache
def expected(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the runs of an example by cell and option, such as ``rnn-False``."""
    runs: dict[str, dict[str, np.ndarray]] = {}
    for key, value in live_or_recorded(name, functools.partial(torch_runs, name)).items():
        run, _, result = key.partition("/")
        runs.setdefault(run, {})[result] = value
    return runs
