"""Variants of the LSTM and the GRU, and cells with less in them: gates changed, tied or left out.

Those that are a `Cell` serve every kernel that their parameters allow; `GRUResetBefore` and
`MinimalGatedUnit` multiply within the step, and are of the general kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from jaxrnn.cells._check import check_nonlinearity
from jaxrnn.cells.base import Parameter, State
from jaxrnn.cells.gated import Cell
from jaxrnn.cells.general import GeneralCell


def _peepholes(gates: str) -> dict[str, Any]:
    """A weight (H,) for each gate that sees the cell state."""
    return {f"weight_c{gate}": ("H",) for gate in gates}


@dataclass(frozen=True)
class _LSTM(Cell):
    """What an LSTM is with any of its gates seeing c, or with ``f = 1 - i`` if it has no f."""

    gates: ClassVar[tuple[str, ...]] = ("i", "f", "g", "o")
    states: ClassVar[tuple[str, ...]] = ("h", "c")

    def step(self, z: jax.Array, state: State, *params: Any) -> State:
        (_, c), z_of = state, dict(zip(self.gates, self.split_gates(z)))
        seen = params[0] if params else {}

        def opened(gate: str, c: jax.Array) -> jax.Array:
            weight = seen.get(f"weight_c{gate}")
            return sigmoid(z_of[gate] if weight is None else z_of[gate] + weight * c)

        i, g = opened("i", c), jnp.tanh(z_of["g"])
        c = opened("f", c) * c + i * g if "f" in self.gates else c + i * (g - c)
        return opened("o", c) * jnp.tanh(c), c


@dataclass(frozen=True)
class PeepholeLSTM(_LSTM):
    """LSTM whose gates see the cell state: i and f that before the step, o that after it.

    .. code-block:: text

        i = sigmoid(z_i + w_ci * c);   f = sigmoid(z_f + w_cf * c);   g = tanh(z_g)
        c' = f * c + i * g
        o = sigmoid(z_o + w_co * c')
        h' = o * tanh(c')

    Beside the weights of `LSTM`, in its order of gates: ``weight_ci``, ``weight_cf`` and
    ``weight_co`` (H,), drawn as all others, from U(-1/sqrt(H), 1/sqrt(H)).

    Source: F. Gers, J. Schmidhuber, Recurrent nets that time and count, IJCNN 2000. Differs from
    the paper as all have done since A. Graves, arXiv:1308.0850: tanh for its scaled sigmoids.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.PeepholeLSTM(), 3, 4, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, c_n.shape, layer.weight_cf_l0.shape
        ((5, 2, 4), (1, 2, 4), (4,))
    """

    parameters: ClassVar[Mapping[str, Any]] = _peepholes("ifo")


@dataclass(frozen=True)
class CoupledLSTM(_LSTM):
    """LSTM that forgets as much as it takes in: ``f = 1 - i``, three gates ``i, g, o``.

    .. code-block:: text

        i, o = sigmoid(z_i), sigmoid(z_o);   g = tanh(z_g)
        c' = c + i * (g - c)
        h' = o * tanh(c')

    Source: K. Greff et al., LSTM: a search space odyssey, IEEE TNNLS 28 (2017), arXiv:1503.04069,
    the variant CIFG without peepholes; with them: `CoupledPeepholeLSTM`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.CoupledLSTM(), 3, 4, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, c_n.shape, layer.weight_hh_l0.shape
        ((5, 2, 4), (1, 2, 4), (12, 4))
    """

    gates: ClassVar[tuple[str, ...]] = ("i", "g", "o")


@dataclass(frozen=True)
class CoupledPeepholeLSTM(_LSTM):
    """`CoupledLSTM` with the peepholes of `PeepholeLSTM`.

    .. code-block:: text

        i = sigmoid(z_i + w_ci * c);   g = tanh(z_g)
        c' = c + i * (g - c)
        o = sigmoid(z_o + w_co * c')
        h' = o * tanh(c')

    Beside the weights: ``weight_ci`` and ``weight_co`` (H,), drawn as all others.

    Source: K. Greff et al., LSTM: a search space odyssey, IEEE TNNLS 28 (2017), arXiv:1503.04069,
    the variant CIFG.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.CoupledPeepholeLSTM(), 3, 4, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape
        (5, 2, 4)
    """

    gates: ClassVar[tuple[str, ...]] = ("i", "g", "o")
    parameters: ClassVar[Mapping[str, Any]] = _peepholes("io")


@dataclass(frozen=True)
class GRUResetBefore(GeneralCell):
    """GRU whose reset gate acts before the product with ``W_hn``, gate order ``r, z, n``.

    .. code-block:: text

        r, u = sigmoid(W_ir x + b_ir + W_hr h + b_hr), sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)
        h' = (1 - u) * n + u * h

    Parameters as those of `GRU`: ``weight_ih`` (3*H, D), ``weight_hh`` (3*H, H), ``bias_ih`` and
    ``bias_hh`` (3*H,), drawn from U(-1/sqrt(H), 1/sqrt(H)). It is what Keras calls
    ``reset_after=False``, and ONNX ``linear_before_reset=0``. The two products stand one after the
    other, so that a step takes longer than one of `GRU`, which has one.

    Source: K. Cho et al., EMNLP 2014 (arXiv:1406.1078), with biases.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.GRUResetBefore(), 3, 4, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape, layer.weight_hh_l0.shape
        ((5, 2, 4), (1, 2, 4), (12, 4))
    """

    parameters: ClassVar[Mapping[str, Any]] = {
        "weight_ih": ("3*H", "D"),
        "weight_hh": ("3*H", "H"),
        "bias_ih": ("3*H",),
        "bias_hh": ("3*H",),
    }

    def inputs(self, x: Any, params: Any) -> Any:
        return params["weight_ih"] @ x + params["bias_ih"] + params["bias_hh"]

    def step(self, x: Any, state: State, params: Any) -> State:
        ((h,), w), rows = (state, params["weight_hh"]), 2 * state[0].shape[0]
        r, u = jnp.split(sigmoid(x[:rows] + w[:rows] @ h), 2)
        n = jnp.tanh(x[rows:] + w[rows:] @ (r * h))
        return (n + u * (h - n),)


@dataclass(frozen=True)
class MinimalGatedUnit(GeneralCell):
    """One gate, which resets before the product and updates after it, gate order ``f, n``.

    .. code-block:: text

        f = sigmoid(W_if x + b_if + W_hf h)
        n = tanh(W_in x + b_in + W_hn (f * h))
        h' = (1 - f) * h + f * n

    Parameters: ``weight_ih`` (2*H, D), ``weight_hh`` (2*H, H), ``bias_ih`` (2*H,), drawn from
    U(-1/sqrt(H), 1/sqrt(H)).

    Source: G.-B. Zhou et al., Minimal gated unit for recurrent neural networks, IJAC 13 (2016),
    arXiv:1603.09420. The ``MGUCell`` of Flax is another one: its gate keeps the old state, and
    resets after the product.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.MinimalGatedUnit(), 3, 4, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape
        ((5, 2, 4), (1, 2, 4))
    """

    parameters: ClassVar[Mapping[str, Any]] = {
        "weight_ih": ("2*H", "D"),
        "weight_hh": ("2*H", "H"),
        "bias_ih": ("2*H",),
    }

    def inputs(self, x: Any, params: Any) -> Any:
        return params["weight_ih"] @ x + params["bias_ih"]

    def step(self, x: Any, state: State, params: Any) -> State:
        ((h,), w), rows = (state, params["weight_hh"]), state[0].shape[0]
        f = sigmoid(x[:rows] + w[:rows] @ h)
        n = jnp.tanh(x[rows:] + w[rows:] @ (f * h))
        return (h + f * (n - h),)


@dataclass(frozen=True)
class IndRNN(Cell):
    """Neurons that each see of the state before their own alone: no recurrent matrix.

    .. code-block:: text

        h' = relu(W_ih x + b_ih + u * h)          or tanh

    Parameters: ``weight_ih`` (H, D) and ``bias_ih`` (H,) from U(-1/sqrt(H), 1/sqrt(H));
    ``weight_u`` (H,) from U(0, 1), where nothing grows over the steps. The paper keeps
    ``|u| <= c ** (1 / T)`` for T steps and a c of its choice by clipping u after each update.

    Attributes:
        nonlinearity: "relu", as in the paper, or "tanh"; else a ValueError.

    Source: S. Li et al., Independently recurrent neural network (IndRNN), CVPR 2018,
    arXiv:1803.04831.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.IndRNN(), 3, 4, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape, layer.parameter_names
        ((5, 2, 4), ('weight_ih_l0', 'bias_ih_l0', 'weight_u_l0'))
    """

    gates: ClassVar[tuple[str, ...]] = ("h",)
    recurrent: ClassVar[bool] = False
    parameters: ClassVar[Mapping[str, Any]] = {
        "weight_u": Parameter(("H",), jax.nn.initializers.uniform(1.0))
    }
    nonlinearity: str = "relu"

    def __post_init__(self) -> None:
        check_nonlinearity(self.nonlinearity)

    def step(self, z: jax.Array, state: State, params: Any) -> State:
        z = z + params["weight_u"] * state[0]
        return (jnp.tanh(z) if self.nonlinearity == "tanh" else jax.nn.relu(z),)
