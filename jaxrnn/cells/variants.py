"""Variants of the LSTM and the GRU, and cells with fewer gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid

from jaxrnn.cells._check import check_nonlinearity
from jaxrnn.cells.base import Cell, GeneralCell, Parameter, State


@dataclass(frozen=True)
class _LSTM(Cell):
    """An LSTM with a peephole per parameter ``weight_c<gate>``, coupled if it has no gate f."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    def step(self, z: jax.Array, state: State, *params: Any) -> State:
        """Return the new states h, c."""
        (_, c), z_of = state, dict(zip(self.gates, self.split_gates(z)))
        peepholes = params[0] if params else {}

        def _gate(name: str, c: jax.Array) -> jax.Array:
            weight = peepholes.get(f"weight_c{name}")
            return sigmoid(z_of[name] if weight is None else z_of[name] + weight * c)

        i, g = _gate("i", c), jnp.tanh(z_of["g"])
        c = _gate("f", c) * c + i * g if "f" in self.gates else c + i * (g - c)
        return _gate("o", c) * jnp.tanh(c), c


@dataclass(frozen=True)
class PeepholeLSTM(_LSTM):
    r"""LSTM whose gates read the cell state.

    .. math::
        i &= \sigma(z_i + w_{ci} \odot c), \quad f = \sigma(z_f + w_{cf} \odot c), \quad
        g = \tanh(z_g) \\
        c' &= f \odot c + i \odot g \\
        o &= \sigma(z_o + w_{co} \odot c') \\
        h' &= o \odot \tanh(c')

    Parameters: those of `LSTM`, and ``weight_ci``, ``weight_cf``, ``weight_co`` (H,), all drawn
    from U(-1/sqrt(H), 1/sqrt(H)).

    Source: F. Gers, J. Schmidhuber, Recurrent nets that time and count, IJCNN 2000. Differs from
    the paper as A. Graves, arXiv:1308.0850, does: tanh instead of scaled sigmoids.

    Example:
        >>> from jaxrnn.cells import PeepholeLSTM, Sizes
        >>> PeepholeLSTM().shapes(Sizes(D=3, H=4, R=4))["weight_cf"]
        (4,)
    """

    parameters: ClassVar = {f"weight_c{gate}": ("H",) for gate in "ifo"}


@dataclass(frozen=True)
class CoupledLSTM(_LSTM):
    r"""LSTM with coupled input and forget gates, f = 1 - i.

    .. math::
        c' = (1 - i) \odot c + i \odot g

    with i, g, o and h' as in `LSTM`.

    Parameters: ``weight_ih`` (3*H, D), ``weight_hh`` (3*H, R), ``bias_ih`` and ``bias_hh`` (3*H,),
    in the gate order i, g, o.

    Source: K. Greff et al., LSTM: a search space odyssey, IEEE TNNLS 28 (2017), arXiv:1503.04069,
    the variant CIFG without peepholes.

    Example:
        >>> from jaxrnn.cells import CoupledLSTM, Sizes
        >>> CoupledLSTM().shapes(Sizes(D=3, H=4, R=4))["weight_hh"]
        (12, 4)
    """

    gates = ("i", "g", "o")


@dataclass(frozen=True)
class CoupledPeepholeLSTM(CoupledLSTM):
    """`CoupledLSTM`, whose gates i and o read the cell state as in `PeepholeLSTM`.

    Parameters: those of `CoupledLSTM`, and ``weight_ci``, ``weight_co`` (H,).

    Source: see `CoupledLSTM`; the variant CIFG.

    Example:
        >>> from jaxrnn.cells import CoupledPeepholeLSTM, Sizes
        >>> CoupledPeepholeLSTM().shapes(Sizes(D=3, H=4, R=4))["weight_ci"]
        (4,)
    """

    parameters: ClassVar = {f"weight_c{gate}": ("H",) for gate in "io"}


def _normalize(z: jax.Array, epsilon: float) -> jax.Array:
    """Normalise each sequence of (F, N) over its features."""
    centred = z - z.mean(0, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(0, keepdims=True) + epsilon)


@dataclass(frozen=True)
class LayerNormLSTM(Cell):
    r"""LSTM with layer normalisation of both products and of the cell state.

    .. math::
        \operatorname{N}(z) &= (z - \operatorname{mean}(z)) / \sqrt{\operatorname{var}(z) +
        \epsilon} \\
        z &= \gamma_x \odot \operatorname{N}(W_{ih} x) + \gamma_h \odot \operatorname{N}(W_{hh} h)
        + b_z \\
        i, f, o &= \sigma(z_i), \sigma(z_f), \sigma(z_o), \quad g = \tanh(z_g) \\
        c' &= f \odot c + i \odot g \\
        h' &= o \odot \tanh(\gamma_c \odot \operatorname{N}(c') + b_c)

    The first two norms are over all 4*H features.

    Parameters: ``weight_ih`` (4*H, D) and ``weight_hh`` (4*H, H) as those of `LSTM`; ``gain_x``,
    ``gain_h`` (4*H,) and ``gain_c`` (H,), initially one; ``bias_z`` (4*H,) and ``bias_c`` (H,),
    initially zero. ``bias_z`` is the sum of the paper's bias and the shifts of both norms.

    Attributes:
        epsilon: added to each variance.

    Source: J. L. Ba, J. R. Kiros, G. E. Hinton, Layer normalization, arXiv:1607.06450, supplement.
    Differs from the paper: epsilon, without which a zero state gives NaN.

    Example:
        >>> from jaxrnn.cells import LayerNormLSTM, Sizes
        >>> LayerNormLSTM().shapes(Sizes(D=3, H=4, R=4))["gain_x"]
        (16,)
    """

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    split = True
    biased = False
    parameters: ClassVar = {
        "gain_x": Parameter(("G*H",), 1.0),
        "gain_h": Parameter(("G*H",), 1.0),
        "gain_c": Parameter(("H",), 1.0),
        "bias_z": Parameter(("G*H",), 0.0),
        "bias_c": Parameter(("H",), 0.0),
    }
    epsilon: float = 1e-5

    def step(self, z: Any, state: State, params: Any) -> State:
        """Return the new states h, c."""
        (_, c), (zx, zh) = state, (_normalize(part, self.epsilon) for part in z)
        z = params["gain_x"] * zx + params["gain_h"] * zh + params["bias_z"]
        i, f, g, o = self.split_gates(z)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        normalized = params["gain_c"] * _normalize(c, self.epsilon) + params["bias_c"]
        return sigmoid(o) * jnp.tanh(normalized), c


@dataclass(frozen=True)
class LayerNormGRU(Cell):
    r"""GRU with layer normalisation of both products, of r and z together and of n.

    .. math::
        r, z &= \sigma(\gamma_x \odot \operatorname{N}(W_{irz} x) + \gamma_h \odot
        \operatorname{N}(W_{hrz} h) + b_{rz}) \\
        n &= \tanh(\gamma_{xn} \odot \operatorname{N}(W_{in} x) + b_n + r \odot (\gamma_{hn} \odot
        \operatorname{N}(W_{hn} h) + b_{hn})) \\
        h' &= (1 - z) \odot n + z \odot h

    with N as in `LayerNormLSTM`, over 2*H features for r and z and over H for n.

    Parameters: ``weight_ih`` (3*H, D) and ``weight_hh`` (3*H, H) as those of `GRU`; ``gain_x`` and
    ``gain_h`` (3*H,), initially one; ``bias_z`` (3*H,) and ``bias_hn`` (H,), initially zero.

    Attributes:
        epsilon: added to each variance.

    Source: see `LayerNormLSTM`. Differs from the paper: its z weights the new state, 1 - z here.

    Example:
        >>> from jaxrnn.cells import LayerNormGRU, Sizes
        >>> LayerNormGRU().shapes(Sizes(D=3, H=4, R=4))["bias_hn"]
        (4,)
    """

    gates = ("r", "z", "n")
    split = True
    biased = False
    parameters: ClassVar = {
        "gain_x": Parameter(("G*H",), 1.0),
        "gain_h": Parameter(("G*H",), 1.0),
        "bias_z": Parameter(("G*H",), 0.0),
        "bias_hn": Parameter(("H",), 0.0),
    }
    epsilon: float = 1e-5

    def step(self, z: Any, state: State, params: Any) -> State:
        """Return the new state."""
        (h,), (zx, zh) = state, z
        rz, n = slice(2 * h.shape[0]), slice(2 * h.shape[0], None)
        x_rz, x_n, h_rz, h_n = (
            _normalize(part, self.epsilon) for part in (zx[rz], zx[n], zh[rz], zh[n])
        )
        gain_x, gain_h, bias = params["gain_x"], params["gain_h"], params["bias_z"]
        r, u = jnp.split(sigmoid(gain_x[rz] * x_rz + gain_h[rz] * h_rz + bias[rz]), 2)
        reset = r * (gain_h[n] * h_n + params["bias_hn"])
        new = jnp.tanh(gain_x[n] * x_n + bias[n] + reset)
        return (new + u * (h - new),)


@dataclass(frozen=True)
class GRUResetBefore(GeneralCell):
    r"""GRU with the reset gate before the product with W_hn.

    .. math::
        n = \tanh(W_{in} x + b_{in} + W_{hn} (r \odot h) + b_{hn})

    with r, z, h' and the parameters of `GRU`. Keras calls it ``reset_after=False``, ONNX
    ``linear_before_reset=0``. A step has two dependent products and takes longer than one of `GRU`.

    Source: K. Cho et al., EMNLP 2014, arXiv:1406.1078, with biases.

    Example:
        >>> from jaxrnn.cells import GRUResetBefore, Sizes
        >>> GRUResetBefore().shapes(Sizes(D=3, H=4, R=4))["weight_hh"]
        (12, 4)
    """

    parameters: ClassVar = dict(
        weight_ih=("3*H", "D"), weight_hh=("3*H", "H"), bias_ih=("3*H",), bias_hh=("3*H",)
    )

    def inputs(self, x: Any, params: Any) -> Any:
        """Return the input part of the gate pre-activations, with both biases."""
        return params["weight_ih"] @ x + params["bias_ih"] + params["bias_hh"]

    def step(self, x: Any, state: State, params: Any) -> State:
        """Return the new state."""
        (h,), w, split = state, params["weight_hh"], 2 * state[0].shape[0]
        r, u = jnp.split(sigmoid(x[:split] + w[:split] @ h), 2)
        n = jnp.tanh(x[split:] + w[split:] @ (r * h))
        return (n + u * (h - n),)


@dataclass(frozen=True)
class MinimalGatedUnit(GeneralCell):
    r"""Minimal gated unit: one gate both resets and updates.

    .. math::
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h) \\
        n &= \tanh(W_{in} x + b_{in} + W_{hn} (f \odot h)) \\
        h' &= (1 - f) \odot h + f \odot n

    Parameters: ``weight_ih`` (2*H, D), ``weight_hh`` (2*H, H), ``bias_ih`` (2*H,), in gate order
    f, n.

    Source: G.-B. Zhou et al., Minimal gated unit for recurrent neural networks, IJAC 13 (2016),
    arXiv:1603.09420. Flax's ``MGUCell`` differs: its gate weights the old state, and resets after
    the product.

    Example:
        >>> from jaxrnn.cells import MinimalGatedUnit, Sizes
        >>> MinimalGatedUnit().shapes(Sizes(D=3, H=4, R=4))["weight_ih"]
        (8, 3)
    """

    parameters: ClassVar = dict(weight_ih=("2*H", "D"), weight_hh=("2*H", "H"), bias_ih=("2*H",))

    def inputs(self, x: Any, params: Any) -> Any:
        """Return the input part of the pre-activations."""
        return params["weight_ih"] @ x + params["bias_ih"]

    def step(self, x: Any, state: State, params: Any) -> State:
        """Return the new state."""
        (h,), w, split = state, params["weight_hh"], state[0].shape[0]
        f = sigmoid(x[:split] + w[:split] @ h)
        n = jnp.tanh(x[split:] + w[split:] @ (f * h))
        return (h + f * (n - h),)


@dataclass(frozen=True)
class IndRNN(Cell):
    r"""Independently recurrent network: an elementwise recurrence without W_hh.

    .. math::
        h' = \operatorname{relu}(W_{ih} x + b_{ih} + u \odot h)

    Parameters: ``weight_ih`` (H, D) and ``bias_ih`` (H,) from U(-1/sqrt(H), 1/sqrt(H));
    ``weight_u`` (H,) from U(0, 1). The paper clips u after each update to
    ``|u| <= c ** (1 / T)`` for sequences of length T and a bound c.

    Attributes:
        nonlinearity: "relu" as in the paper, or "tanh".

    Source: S. Li et al., Independently recurrent neural network (IndRNN), CVPR 2018,
    arXiv:1803.04831.

    Example:
        >>> from jaxrnn.cells import IndRNN, Sizes
        >>> IndRNN().shapes(Sizes(D=3, H=4, R=4))["weight_u"]
        (4,)
    """

    gates = ("h",)
    recurrent = False
    parameters: ClassVar = dict(weight_u=Parameter(("H",), jax.nn.initializers.uniform(1.0)))
    nonlinearity: str = "relu"

    def __post_init__(self) -> None:
        check_nonlinearity(self.nonlinearity)

    def step(self, z: jax.Array, state: State, params: Any) -> State:
        """Return the new state."""
        z = z + params["weight_u"] * state[0]
        return (jnp.tanh(z) if self.nonlinearity == "tanh" else jax.nn.relu(z),)
