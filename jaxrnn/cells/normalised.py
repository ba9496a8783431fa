"""LSTM and GRU with layer normalisation, where the paper puts it.

.. code-block:: text

    N(z) = (z - mean(z)) / sqrt(var(z) + epsilon)        over the features of one row

Source: J. L. Ba, J. R. Kiros, G. E. Hinton, Layer normalization, arXiv:1607.06450, the equations of
its supplement. Differs from the paper: epsilon, without which a state of zeros has no value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid

from jaxrnn.cells.base import Parameter, State
from jaxrnn.cells.gated import Cell


@dataclass(frozen=True)
class LayerNormLSTM(Cell):
    """LSTM with three norms: of each product, all four gates together, and of the cell state.

    .. code-block:: text

        z = gain_x * N(W_ih x) + gain_h * N(W_hh h) + bias_z          N over all 4*H features
        i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g)
        c' = f * c + i * g                                            itself not normalised
        h' = o * tanh(gain_c * N(c') + bias_c)                        N over H

    Parameters: ``weight_ih`` (4*H, D), ``weight_hh`` (4*H, H) from U(-1/sqrt(H), 1/sqrt(H)), gates
    ``i, f, g, o``; ``gain_x``, ``gain_h`` (4*H,), ``gain_c`` (H,) from one; ``bias_z`` (4*H,),
    ``bias_c`` (H,) from zero. There is no ``bias_ih`` and ``bias_hh``: the two shifts of the norms
    and the bias of the paper meet in one sum, ``bias_z``.

    Attributes:
        epsilon: added to each variance.

    Source: see `jaxrnn.cells.normalised`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.LayerNormLSTM(), 3, 4, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, c_n.shape, layer.gain_x_l0.shape
        ((5, 2, 4), (1, 2, 4), (16,))
    """

    gates: ClassVar[tuple[str, ...]] = ("i", "f", "g", "o")
    states: ClassVar[tuple[str, ...]] = ("h", "c")
    split: ClassVar[bool] = True
    biased: ClassVar[bool] = False
    parameters: ClassVar[Mapping[str, Any]] = {
        "gain_x": Parameter(("G*H",), 1.0),
        "gain_h": Parameter(("G*H",), 1.0),
        "gain_c": Parameter(("H",), 1.0),
        "bias_z": Parameter(("G*H",), 0.0),
        "bias_c": Parameter(("H",), 0.0),
    }
    epsilon: float = 1e-5

    def step(self, z: Any, state: State, params: Any) -> State:
        (_, c), (zx, zh) = state, z
        zx, zh = _normalised(zx, self.epsilon), _normalised(zh, self.epsilon)
        z = params["gain_x"] * zx + params["gain_h"] * zh + params["bias_z"]
        i, f, g, o = self.split_gates(z)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        shown = params["gain_c"] * _normalised(c, self.epsilon) + params["bias_c"]
        return sigmoid(o) * jnp.tanh(shown), c


@dataclass(frozen=True)
class LayerNormGRU(Cell):
    """GRU with four norms: of each product, r and z together, n apart; none of the state.

    .. code-block:: text

        x_rz = gain_x_rz * N(W_ir x, W_iz x)      h_rz = gain_h_rz * N(W_hr h, W_hz h)    over 2*H
        x_n  = gain_x_n  * N(W_in x)              h_n  = gain_h_n  * N(W_hn h)            over H
        r, u = sigmoid(x_rz + h_rz + bias_z_rz)
        n = tanh(x_n + bias_z_n + r * (h_n + bias_hn))        the reset after the product, and norm
        h' = (1 - u) * n + u * h

    Parameters: ``weight_ih`` (3*H, D), ``weight_hh`` (3*H, H) from U(-1/sqrt(H), 1/sqrt(H)), gates
    ``r, z, n``; ``gain_x``, ``gain_h`` (3*H,) from one; ``bias_z`` (3*H,), ``bias_hn`` (H,) from
    zero. There is no ``bias_ih`` and ``bias_hh``; of the paper's shifts of r and z the sum is one.

    Attributes:
        epsilon: added to each variance.

    Source: see `jaxrnn.cells.normalised`. Differs from the paper: u keeps the old state, as in all
    GRUs here, where the z of the paper takes the new one, ``z = 1 - u``.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = jaxrnn.Recurrent(jaxrnn.cells.LayerNormGRU(), 3, 4, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape, layer.bias_hn_l0.shape
        ((5, 2, 4), (1, 2, 4), (4,))
    """

    gates: ClassVar[tuple[str, ...]] = ("r", "z", "n")
    split: ClassVar[bool] = True
    biased: ClassVar[bool] = False
    parameters: ClassVar[Mapping[str, Any]] = {
        "gain_x": Parameter(("G*H",), 1.0),
        "gain_h": Parameter(("G*H",), 1.0),
        "bias_z": Parameter(("G*H",), 0.0),
        "bias_hn": Parameter(("H",), 0.0),
    }
    epsilon: float = 1e-5

    def step(self, z: Any, state: State, params: Any) -> State:
        (h,), (zx, zh) = state, z
        rows = 2 * h.shape[0]
        x_rz, x_n = (_normalised(part, self.epsilon) for part in (zx[:rows], zx[rows:]))
        h_rz, h_n = (_normalised(part, self.epsilon) for part in (zh[:rows], zh[rows:]))
        gain_x, gain_h, bias = params["gain_x"], params["gain_h"], params["bias_z"]
        r, u = jnp.split(sigmoid(gain_x[:rows] * x_rz + gain_h[:rows] * h_rz + bias[:rows]), 2)
        reset = r * (gain_h[rows:] * h_n + params["bias_hn"])
        n = jnp.tanh(gain_x[rows:] * x_n + bias[rows:] + reset)
        return (n + u * (h - n),)


def _normalised(z: jax.Array, epsilon: float) -> jax.Array:
    """N of each row, whose features are first: (F, N)."""
    centred = z - z.mean(0, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(0, keepdims=True) + epsilon)
