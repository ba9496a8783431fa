"""Workload of a layer case: sizes, weights, input and floating-point operations.

Axis letters: N batch, T time, D input features, H hidden size, L layers, F directions, G gates.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


@dataclass(frozen=True)
class Spec:
    """A stack of recurrent layers and the shape of its input."""

    cell: str
    N: int
    T: int
    D: int
    H: int
    num_layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"
    """Dtype of input, weights and output; values are drawn in float32 and rounded."""
    tf32: bool | None = None
    """True allows TF32 in float32 products, False forbids it; None keeps the defaults."""
    sample: tuple[int, int] | None = None
    """Numbers of first sequences and steps to compare with the reference; None for all. The
    reference computes only these: the cotangent of the compared gradient is zero elsewhere."""

    @property
    def gates(self) -> int:
        return GATES[self.cell]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def width(self, layer: int) -> int:
        """Return the number of input features of a layer."""
        return self.D if layer == 0 else self.directions * self.H

    def parts(self) -> list[tuple[int, bool, str]]:
        """Return (layer, reverse, suffix of PyTorch's parameter names) in PyTorch's order.

        >>> Spec("gru", 1, 1, 1, 1, bidirectional=True).parts()
        [(0, False, 'l0'), (0, True, 'l0_reverse')]
        """
        return [
            (layer, reverse, f"l{layer}" + ("_reverse" if reverse else ""))
            for layer in range(self.num_layers)
            for reverse in ([False, True] if self.bidirectional else [False])
        ]


def flops(spec: Spec, backward: bool) -> float:
    """Return the operations of the matrix products; a multiply-add counts as two.

    Forward: ``2 T N G H (D + H)`` a layer and direction. Backward adds dW_ih (``2 T N G H D``),
    dW_hh and dh (``2 T N G H H`` each), and dx except for the first layer, whose input needs no
    gradient. Elementwise work is not counted.

    >>> flops(Spec("lstm", N=64, T=100, D=64, H=128), backward=False)
    1258291200.0
    """
    total = 0
    for layer, _, _ in spec.parts():
        D, H = spec.width(layer), spec.H
        per_weight = 2 * spec.T * spec.N * spec.gates * H
        total += per_weight * (D + H)
        if backward:
            total += per_weight * (D + 2 * H + (D if layer > 0 else 0))
    return float(total)


def draw_weights(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw PyTorch's parameters from U(-1/sqrt(H), 1/sqrt(H)), float32."""
    return dict(_drawn_weights(spec, seed))


@lru_cache(maxsize=1)  # shared by all contenders of a case
def _drawn_weights(spec: Spec, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    bound = spec.H**-0.5
    weights = {}
    for layer, _, suffix in spec.parts():
        size = spec.gates * spec.H
        for name, shape in (
            ("weight_ih", (size, spec.width(layer))),
            ("weight_hh", (size, spec.H)),
            ("bias_ih", (size,)),
            ("bias_hh", (size,)),
        ):
            drawn = rng.uniform(-bound, bound, shape).astype(np.float32)
            weights[f"{name}_{suffix}"] = rounded(drawn, spec.dtype)
    return weights


@lru_cache(maxsize=1)
def draw_input(spec: Spec, seed: int = 1) -> np.ndarray:
    """Draw a standard normal input (T, N, D), float32."""
    rng = np.random.default_rng(seed)
    return rounded(rng.standard_normal((spec.T, spec.N, spec.D), dtype=np.float32), spec.dtype)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to a narrower dtype, and return them in float32.

    >>> rounded(np.float32([1.001]), "bfloat16"), rounded(np.float32([1.001]), "float16").round(4)
    (array([1.], dtype=float32), array([1.001], dtype=float32))
    """
    import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16; it comes with JAX)

    return values if dtype == "float32" else values.astype(dtype).astype(np.float32)


def compared(spec: Spec) -> tuple[int, int]:
    """Return the numbers of sequences and steps that are compared with the reference."""
    batch, steps = spec.sample or (spec.N, spec.T)
    return min(batch, spec.N), spec.T if spec.bidirectional else min(steps, spec.T)


def draw_cotangent(spec: Spec) -> np.ndarray:
    """Return the cotangent of the output (T, N, F*H): ones for compared steps, else zeros.

    >>> int(draw_cotangent(Spec("rnn", N=3, T=4, D=1, H=2, sample=(1, 2))).sum())
    4
    """
    batch, steps = compared(spec)
    cotangent = np.zeros((spec.T, spec.N, spec.directions * spec.H), np.float32)
    cotangent[:steps, :batch] = 1.0
    return cotangent


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest absolute error over the largest reference; inf for NaN or wrong shape.

    >>> relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0]))
    0.25
    """
    value = np.asarray(value, np.float64)
    if value.shape != reference.shape or not np.isfinite(value).all():
        return float("inf")
    return float(np.abs(value - reference).max() / max(np.abs(reference).max(), 1e-300))
