"""Results of PyTorch's packing functions, live or recorded."""

from __future__ import annotations

import functools
import itertools
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.oracle import GOLDEN, flatten, torch

N, T = 5, 6
KINDS = {  # dtype: trailing axes
    "float64": (3,),
    "float32": (),
    "int64": (2, 3),
    "int32": (),
    "uint8": (2,),
    "bool": (),
}


@dataclass(frozen=True)
class Case:
    """A batch and its lengths, drawn from a frozen generator."""

    dtype: str
    batch_first: bool
    enforce_sorted: bool

    @property
    def name(self) -> str:
        words = (self.dtype, self.batch_first and "batch_first", self.enforce_sorted and "sorted")
        return "-".join(word for word in words if word)

    @property
    def padding(self) -> float:
        """Padding value, truncated for integers."""
        return 7.5 if self.dtype != "bool" else 1.0

    def draw(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
        """Return the padded batch, lengths, list of sequences, and the cotangent of T + 3 steps."""
        random = np.random.RandomState(zlib.crc32(self.name.encode()))
        lengths = random.randint(1, T + 1, N)  # with ties
        if self.enforce_sorted:
            lengths = np.sort(lengths)[::-1].copy()
        sequences = random.uniform(0, 100, (N, T, *KINDS[self.dtype]))
        sequences = (sequences > 50 if self.dtype == "bool" else sequences).astype(self.dtype)
        cotangent = random.uniform(-1, 1, (N, T + 3, *KINDS[self.dtype]))
        listed = [sequence[:length] for sequence, length in zip(sequences, lengths)]
        if not self.batch_first:
            sequences, cotangent = sequences.swapaxes(0, 1).copy(), cotangent.swapaxes(0, 1).copy()
        return sequences, lengths, listed, cotangent


CASES = [Case(*options) for options in itertools.product(KINDS, (False, True), (False, True))]


def torch_results(case: Case) -> dict[str, np.ndarray]:
    """Return the results of PyTorch without those that are None."""
    assert torch is not None
    rnn = torch.nn.utils.rnn
    batch, lengths, listed, cotangent = case.draw()
    x, tensors = torch.tensor(batch), [torch.tensor(sequence) for sequence in listed]
    size, side = torch.tensor(lengths), ("left", "right")[case.enforce_sorted]
    first, padding = case.batch_first, case.padding
    packed = rnn.pack_padded_sequence(x, size, first, case.enforce_sorted)
    again, there = rnn.pad_packed_sequence(packed, first, padding, T + 3)
    results: dict[str, Any] = {f"packed_{name}": a for name, a in packed._asdict().items()}
    results |= {"padded": again, "lengths": there}
    results["shortest"] = rnn.pad_packed_sequence(packed, not first)[0]
    listed_packed = rnn.pack_sequence(tensors, case.enforce_sorted)
    results |= {f"listed_{name}": a for name, a in listed_packed._asdict().items()}
    results["sequences"] = rnn.pad_sequence(tensors, first, padding, side)
    unpadded = rnn.unpad_sequence(x.clone(), size, first)
    for name, sequences in (("unpadded", unpadded), ("unpacked", rnn.unpack_sequence(packed))):
        results |= {f"{name}_{n}": sequence for n, sequence in enumerate(sequences)}
    if x.is_floating_point():
        x.requires_grad_()
        packed = rnn.pack_padded_sequence(x, size, first, case.enforce_sorted)
        changed = rnn.PackedSequence(torch.tanh(packed.data) ** 2, *packed[1:])
        again, _ = rnn.pad_packed_sequence(changed, first, padding, T + 3)
        (again * torch.tensor(cotangent, dtype=x.dtype)).sum().backward()
        results["gradient"] = x.grad
    return {name: a.detach().numpy() for name, a in results.items() if a is not None}


def record() -> dict[str, np.ndarray]:
    """Return the flattened results of all cases for ``golden/packing.npz``."""
    return {case.name: flatten(torch_results(case)) for case in CASES}


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    """Return the recorded results."""
    with np.load(GOLDEN / "packing.npz") as file:
        return dict(file)


def expected(case: Case) -> np.ndarray:
    """Return the flattened results of a case."""
    return recorded()[case.name] if torch is None else flatten(torch_results(case))
