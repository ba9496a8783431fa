"""Cells that are linear in their state, and so parallel in time: `MinGRU`, `MinLSTM`, `LRU`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid, sigmoid

from jaxrnn.cells.base import Parameter, State, StateSpec
from jaxrnn.cells.general import LinearCell


@dataclass(frozen=True)
class MinGRU(LinearCell):
    """A GRU whose gate and candidate do not see the state, gate order ``z, n``.

    .. code-block:: text

        z = sigmoid(W_iz x + b_iz);   n = W_in x + b_in
        h' = (1 - z) * h + z * n

    Parameters: ``weight_ih`` (2*H, D), ``bias_ih`` (2*H,) from U(-1/sqrt(H), 1/sqrt(H)).

    Attributes:
        positive: take ``q(n)`` for n, ``q(n) = n + 1/2`` from 0 and ``sigmoid(n)`` below, as the
            paper's form in logarithms does. From a state above 0 all states are.

    Source: L. Feng et al., Were RNNs all we needed?, arXiv:2410.01201 (2024).

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.MinGRU(), 3, 4, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape
        ((5, 2, 4), (1, 2, 4))
    """

    parameters: ClassVar[Mapping[str, Any]] = {"weight_ih": ("2*H", "D"), "bias_ih": ("2*H",)}
    positive: bool = False

    def coefficients(self, x: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        z, n = jnp.split(params["weight_ih"] @ x + params["bias_ih"], 2)
        return sigmoid(-z), sigmoid(z) * (_above_zero(n) if self.positive else n)


@dataclass(frozen=True)
class MinLSTM(LinearCell):
    """An LSTM whose gates do not see the state and add up to one, gate order ``f, i, n``.

    .. code-block:: text

        f, i = sigmoid(W_if x + b_if), sigmoid(W_ii x + b_ii);   n = W_in x + b_in
        h' = f / (f + i) * h + i / (f + i) * n

    It has one state, h. Parameters: ``weight_ih`` (3*H, D), ``bias_ih`` (3*H,) from
    U(-1/sqrt(H), 1/sqrt(H)).

    Attributes:
        positive: as of `MinGRU`.

    Source: L. Feng et al., Were RNNs all we needed?, arXiv:2410.01201 (2024), with its gates
    normalised, independent of time.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.MinLSTM(), 3, 4, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape
        (5, 2, 4)
    """

    parameters: ClassVar[Mapping[str, Any]] = {"weight_ih": ("3*H", "D"), "bias_ih": ("3*H",)}
    positive: bool = False

    def coefficients(self, x: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        f, i, n = jnp.split(params["weight_ih"] @ x + params["bias_ih"], 3)
        # f / (f + i), where both may be too small to divide.
        odds = log_sigmoid(f) - log_sigmoid(i)
        return sigmoid(odds), sigmoid(-odds) * (_above_zero(n) if self.positive else n)


def _above_zero(n: jax.Array) -> jax.Array:
    return jnp.where(n >= 0, n + 0.5, sigmoid(n))


def _drawn_from_unit_interval(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    """U(0, 1) without the zero, whose logarithm is taken."""
    return jax.random.uniform(key, shape, dtype, float(jnp.finfo(dtype).eps))


def _normal(axis: str) -> Any:
    """Entries of variance one over the number of columns, one over twice that for "D"."""

    def init(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
        scale = (2 if axis == "D" else 1) * shape[1]
        return jax.random.normal(key, shape, dtype) / math.sqrt(scale)

    return init


@dataclass(frozen=True)
class LRU(LinearCell):
    """Linear recurrent unit: a complex diagonal recurrence, from D features to D.

    .. code-block:: text

        lambda = exp(-exp(nu_log) + 1j * exp(theta_log))          within the unit circle
        s' = lambda * s + exp(gamma_log) * (B x)                  B = B_re + 1j * B_im
        y = Re(C s') + D * x                                      C = C_re + 1j * C_im

    The state s is H complex numbers, the output (D,): a layer has as many features out as in, in
    each direction. What a block of a deep model has around it, norms and dense layers, is not here.

    Parameters, all real:

    - ``nu_log``, ``theta_log`` (H,): lambda uniform on the ring between `r_min` and `r_max`, its
      phase uniform in (0, `max_phase`);
    - ``gamma_log`` (H,): ``sqrt(1 - |lambda|^2)``, which keeps the size of a state in bounds;
    - ``B_re``, ``B_im`` (H, D): normal, variance 1/(2*D); ``C_re``, ``C_im`` (D, H): normal,
      variance 1/H; ``D`` (D,): normal.

    Attributes:
        r_min, r_max: of the ring, 0 <= r_min < r_max <= 1. Long memory: 0.9 and 0.999, say.
        max_phase: the largest phase of lambda to begin with, in radians.

    Source: A. Orvieto et al., Resurrecting recurrent neural networks for long sequences, ICML 2023,
    arXiv:2303.06349.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.cells.LRU(r_min=0.9, r_max=0.999)
        >>> layer = jaxrnn.Recurrent(cell, 3, 16, rngs=nnx.Rngs(0))
        >>> output, s_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, s_n.shape, s_n.dtype
        ((5, 2, 3), (1, 2, 16), dtype('complex64'))
    """

    states: ClassVar[Mapping[str, StateSpec]] = {"s": StateSpec("H", complex=True)}
    output_size: ClassVar[str] = "D"
    parameters: ClassVar[Mapping[str, Any]] = {
        "nu_log": Parameter(("H",), _drawn_from_unit_interval),
        "theta_log": Parameter(("H",), _drawn_from_unit_interval),
        "gamma_log": Parameter(("H",), 0.0),
        "B_re": Parameter(("H", "D"), _normal("D")),
        "B_im": Parameter(("H", "D"), _normal("D")),
        "C_re": Parameter(("D", "H"), _normal("H")),
        "C_im": Parameter(("D", "H"), _normal("H")),
        "D": Parameter(("D",), jax.nn.initializers.normal(1.0)),
    }
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    def __post_init__(self) -> None:
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(
                f"expected 0 <= r_min < r_max <= 1, got r_min={self.r_min}, r_max={self.r_max}"
            )
        if not self.max_phase > 0:
            raise ValueError(f"expected max_phase above 0, got {self.max_phase}")

    def initialize(self, parameters: dict[str, jax.Array]) -> dict[str, jax.Array]:
        area = self.r_min**2 + parameters["nu_log"] * (self.r_max**2 - self.r_min**2)
        nu = -jnp.log(area) / 2  # |lambda| = exp(-nu)
        return parameters | {
            "nu_log": jnp.log(nu),
            "theta_log": jnp.log(self.max_phase * parameters["theta_log"]),
            "gamma_log": jnp.log(-jnp.expm1(-2 * nu)) / 2,
        }

    def coefficients(self, x: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        radius, phase = jnp.exp(-jnp.exp(params["nu_log"])), jnp.exp(params["theta_log"])
        gamma = jnp.exp(params["gamma_log"])
        a = lax.complex(radius * jnp.cos(phase), radius * jnp.sin(phase))
        return a, lax.complex(gamma * (params["B_re"] @ x), gamma * (params["B_im"] @ x))

    def output(self, x: Any, state: State, params: Any) -> jax.Array:
        (s,) = state
        return params["C_re"] @ s.real - params["C_im"] @ s.imag + params["D"] * x
