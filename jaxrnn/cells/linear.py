"""Cells that are linear in their state, and so parallel in time: `MinGRU`, `MinLSTM`, `LRU`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid, sigmoid
from jax.nn.initializers import normal, variance_scaling

from jaxrnn.cells.base import LinearCell, Parameter, State, StateSpec


@dataclass(frozen=True)
class MinGRU(LinearCell):
    r"""Minimal GRU: the gate and the candidate do not depend on the state.

    .. math::
        z &= \sigma(W_{iz} x + b_{iz}), \quad n = W_{in} x + b_{in} \\
        h' &= (1 - z) \odot h + z \odot n

    Parameters: ``weight_ih`` (2*H, D), ``bias_ih`` (2*H,), in the gate order z, n.

    Attributes:
        positive: if True, n is replaced by n + 1/2 if n >= 0, else by sigmoid(n), as in the paper's
            log-space form; states stay positive.

    Source: L. Feng et al., Were RNNs all we needed?, arXiv:2410.01201 (2024).

    Example:
        >>> from jaxrnn.cells import MinGRU, Sizes
        >>> MinGRU().shapes(Sizes(D=3, H=4, R=4))["weight_ih"]
        (8, 3)
    """

    parameters: ClassVar = {"weight_ih": ("2*H", "D"), "bias_ih": ("2*H",)}
    positive: bool = False

    def coefficients(self, x: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        """Return a = 1 - z and b = z * n."""
        z, n = jnp.split(params["weight_ih"] @ x + params["bias_ih"], 2)
        return sigmoid(-z), sigmoid(z) * (_positive(n) if self.positive else n)


@dataclass(frozen=True)
class MinLSTM(LinearCell):
    r"""Minimal LSTM: the gates do not depend on the state and sum to one.

    .. math::
        f, i &= \sigma(W_{if} x + b_{if}), \sigma(W_{ii} x + b_{ii}), \quad n = W_{in} x + b_{in} \\
        h' &= \frac{f}{f + i} \odot h + \frac{i}{f + i} \odot n

    Parameters: ``weight_ih`` (3*H, D), ``bias_ih`` (3*H,), in the gate order f, i, n.

    Attributes:
        positive: see `MinGRU`.

    Source: see `MinGRU`; the form with normalised gates.

    Example:
        >>> from jaxrnn.cells import MinLSTM, Sizes
        >>> MinLSTM().shapes(Sizes(D=3, H=4, R=4))["weight_ih"]
        (12, 3)
    """

    parameters: ClassVar = {"weight_ih": ("3*H", "D"), "bias_ih": ("3*H",)}
    positive: bool = False

    def coefficients(self, x: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        """Return the normalised forget gate, and n times the normalised input gate."""
        f, i, n = jnp.split(params["weight_ih"] @ x + params["bias_ih"], 3)
        log_odds = log_sigmoid(f) - log_sigmoid(i)  # f / (f + i) without division by zero
        return sigmoid(log_odds), sigmoid(-log_odds) * (_positive(n) if self.positive else n)


def _positive(n: jax.Array) -> jax.Array:
    return jnp.where(n >= 0, n + 0.5, sigmoid(n))


def _unit_interval(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    """Draw from U(0, 1) without zero, whose logarithm is infinite."""
    return jax.random.uniform(key, shape, dtype, float(jnp.finfo(dtype).eps))


def _fan_in(variance: float) -> Any:
    """Return a normal initialiser with the given variance over the number of columns."""
    return variance_scaling(variance, "fan_in", "normal", in_axis=1, out_axis=0)


@dataclass(frozen=True)
class LRU(LinearCell):
    r"""Linear recurrent unit: a complex diagonal recurrence from D features to D.

    .. math::
        \lambda &= \exp(-\exp(\nu_{\log}) + i \exp(\theta_{\log})) \\
        s' &= \lambda \odot s + \exp(\gamma_{\log}) \odot (B x) \\
        y &= \operatorname{Re}(C s') + D \odot x

    The state s is H complex numbers; a layer has D output features in each direction. The norms
    and dense layers around it in a deep model are not included.

    Parameters, all real:

    - ``nu_log``, ``theta_log`` (H,): lambda is uniform on the ring from `r_min` to `r_max`, with
      a phase uniform in (0, `max_phase`);
    - ``gamma_log`` (H,): initially :math:`\sqrt{1 - |\lambda|^2}`, which normalises the state;
    - ``B_re``, ``B_im`` (H, D): normal, variance 1/(2*D); ``C_re``, ``C_im`` (D, H): normal,
      variance 1/H; ``D`` (D,): normal.

    Attributes:
        r_min, r_max: radii of the ring, 0 <= r_min < r_max <= 1; for long memory 0.9 and 0.999.
        max_phase: largest initial phase of lambda in radians.

    Source: A. Orvieto et al., Resurrecting recurrent neural networks for long sequences, ICML 2023,
    arXiv:2303.06349.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.cells.LRU(r_min=0.9, r_max=0.999)
        >>> output, s_n = jaxrnn.Recurrent(cell, 3, 16, rngs=nnx.Rngs(0))(jnp.ones((5, 2, 3)))
        >>> output.shape, s_n.shape, s_n.dtype
        ((5, 2, 3), (1, 2, 16), dtype('complex64'))
    """

    states: ClassVar = {"s": StateSpec("H", complex=True)}
    output_size = "D"
    parameters: ClassVar = {
        "nu_log": Parameter(("H",), _unit_interval),
        "theta_log": Parameter(("H",), _unit_interval),
        "gamma_log": Parameter(("H",), 0.0),
        "B_re": Parameter(("H", "D"), _fan_in(0.5)),
        "B_im": Parameter(("H", "D"), _fan_in(0.5)),
        "C_re": Parameter(("D", "H"), _fan_in(1.0)),
        "C_im": Parameter(("D", "H"), _fan_in(1.0)),
        "D": Parameter(("D",), normal(1.0)),
    }
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    def __post_init__(self) -> None:
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(
                "`r_min` and `r_max` must satisfy 0 <= r_min < r_max <= 1, got "
                f"r_min={self.r_min}, r_max={self.r_max}."
            )
        if not self.max_phase > 0:
            raise ValueError(f"`max_phase` must be positive, got {self.max_phase}.")

    def initialize(self, parameters: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the initial parameters from uniform draws for the radius and the phase."""
        area = self.r_min**2 + parameters["nu_log"] * (self.r_max**2 - self.r_min**2)
        nu = -jnp.log(area) / 2  # |lambda| = exp(-nu)
        return parameters | {
            "nu_log": jnp.log(nu),
            "theta_log": jnp.log(self.max_phase * parameters["theta_log"]),
            "gamma_log": jnp.log(-jnp.expm1(-2 * nu)) / 2,
        }

    def coefficients(self, x: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        """Return lambda and the normalised input."""
        radius, phase = jnp.exp(-jnp.exp(params["nu_log"])), jnp.exp(params["theta_log"])
        gamma = jnp.exp(params["gamma_log"])
        a = lax.complex(radius * jnp.cos(phase), radius * jnp.sin(phase))
        return a, lax.complex(gamma * (params["B_re"] @ x), gamma * (params["B_im"] @ x))

    def output(self, x: Any, state: State, params: Any) -> jax.Array:
        """Return the output (D,)."""
        (s,) = state
        return params["C_re"] @ s.real - params["C_im"] @ s.imag + params["D"] * x
