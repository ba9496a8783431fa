"""The cells of PyTorch's layers: `Elman`, `LSTM`, `GRU`.

They define their derivative rules, which are faster in the scan than those of a min-cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells.base import Cell, State


@dataclass(frozen=True)
class Elman(Cell):
    r"""The Elman cell, PyTorch's ``RNN``.

    .. math::
        h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Parameters: ``weight_ih`` (H, D), ``weight_hh`` (H, H), ``bias_ih`` and ``bias_hh`` (H,).

    Attributes:
        nonlinearity: "tanh" or "relu".

    Source: J. L. Elman, Finding structure in time, Cognitive Science 14 (1990).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> (h,) = cells.Elman("relu").step(jnp.array([[-1.0], [2.0]]), (jnp.zeros((2, 1)),))
        >>> h[:, 0].tolist()
        [0.0, 2.0]
    """

    gates = ("h",)
    nonlinearity: str = "tanh"

    def step(self, z: jax.Array, state: State) -> State:
        """Return the new state."""
        del state
        return (jnp.tanh(z) if self.nonlinearity == "tanh" else jax.nn.relu(z),)

    def save(self, z: jax.Array, state: State) -> tuple[State, Any]:
        """Return the new state; there are no residuals."""
        return self.step(z, state), ()

    def linearize(self, residuals: Any, old: State, new: State) -> Any:
        """Return the derivative of the nonlinearity from its result."""
        del residuals, old
        (h,) = new
        return 1 - h * h if self.nonlinearity == "tanh" else (h > 0).astype(h.dtype)

    def tangent(self, coefficients: jax.Array, dz: jax.Array, dstate: State) -> State:
        """Return the tangent of the new state."""
        del dstate
        return (coefficients * dz,)


@dataclass(frozen=True)
class LSTM(Cell):
    r"""Long short-term memory.

    .. math::
        i, f, o &= \sigma(z_i), \sigma(z_f), \sigma(z_o), \quad g = \tanh(z_g) \\
        c' &= f \odot c + i \odot g \\
        h' &= o \odot \tanh(c')

    with :math:`z = W_{ih} x + b_{ih} + W_{hh} h + b_{hh}` in the gate order i, f, g, o.

    Parameters: ``weight_ih`` (4*H, D), ``weight_hh`` (4*H, R), ``bias_ih`` and ``bias_hh`` (4*H,).

    Source: S. Hochreiter, J. Schmidhuber, Long short-term memory, Neural Computation 9 (1997);
    forget gate: F. Gers et al., Learning to forget, Neural Computation 12 (2000).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> z, state = jnp.zeros((4 * 2, 1)), (jnp.zeros((2, 1)), jnp.ones((2, 1)))
        >>> h, c = cells.LSTM().step(z, state)
        >>> c[:, 0].tolist()
        [0.5, 0.5]
    """

    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    def step(self, z: jax.Array, state: State) -> State:
        """Return the new states h, c."""
        return self.save(z, state)[0]

    def save(self, z: jax.Array, state: State) -> tuple[State, Any]:
        """Return the new states, and the activated gates as residuals."""
        _, c = state
        activated = _sigmoid_or_tanh(z, (True, True, False, True))
        i, f, g, o = self.split_gates(activated)
        c = f * c + i * g
        return (o * jnp.tanh(c), c), activated

    def linearize(self, residuals: jax.Array, old: State, new: State) -> Any:
        """Return the partial derivatives of c' and h'."""
        i, f, g, o = self.split_gates(residuals)
        tanh_c = jnp.tanh(new[1])
        return (
            g * i * (1 - i),
            old[1] * f * (1 - f),
            i * (1 - g * g),
            tanh_c * o * (1 - o),
            f,
            o * (1 - tanh_c * tanh_c),
        )

    def tangent(self, coefficients: Any, dz: jax.Array, dstate: State) -> State:
        """Return the tangents of the new states."""
        by_i, by_f, by_g, by_o, f, by_c = coefficients
        di, df, dg, do = self.split_gates(dz)
        dc = f * dstate[1] + by_i * di + by_f * df + by_g * dg
        return by_c * dc + by_o * do, dc


@dataclass(frozen=True)
class GRU(Cell):
    r"""Gated recurrent unit, with the reset gate after the product as in PyTorch.

    .. math::
        r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
        z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n &= \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) \odot n + z \odot h

    Parameters: ``weight_ih`` (3*H, D), ``weight_hh`` (3*H, H), ``bias_ih`` and ``bias_hh`` (3*H,),
    in the gate order r, z, n.

    Source: K. Cho et al., EMNLP 2014, arXiv:1406.1078. Differs from the paper as PyTorch does: its
    reset gate acts before the product with W_hn, see `GRUResetBefore`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> zx = zh = jnp.zeros((3 * 2, 1))
        >>> (h,) = cells.GRU().step((zx, zh), (jnp.ones((2, 1)),))
        >>> h[:, 0].tolist()
        [0.5, 0.5]
    """

    gates = ("r", "z", "n")
    split = True

    def step(self, z: Any, state: State) -> State:
        """Return the new state."""
        return self.save(z, state)[0]

    def save(self, z: Any, state: State) -> tuple[State, Any]:
        """Return the new state, and as residuals the activated gates and W_hn h + b_hn."""
        (h,) = state
        zx, zh = z
        hidden = h.shape[0]
        ru = _sigmoid_or_tanh(zx[: 2 * hidden] + zh[: 2 * hidden], (True, True))
        r, u = jnp.split(ru, 2)
        zh_n = zh[2 * hidden :]
        n = jnp.tanh(zx[2 * hidden :] + r * zh_n)
        return (n + u * (h - n),), (ru, n, zh_n)

    def linearize(self, residuals: Any, old: State, new: State) -> Any:
        """Return the partial derivatives of h'."""
        del new
        ru, n, zh_n = residuals
        r, u = jnp.split(ru, 2)
        by_n = (1 - u) * (1 - n * n)
        return by_n * zh_n * r * (1 - r), (old[0] - n) * u * (1 - u), by_n, by_n * r, u

    def tangent(self, coefficients: Any, dz: Any, dstate: State) -> State:
        """Return the tangent of the new state."""
        by_r, by_u, by_xn, by_hn, u = coefficients
        (xr, xu, xn), (hr, hu, hn) = map(self.split_gates, dz)
        dh = by_r * (xr + hr) + by_u * (xu + hu) + by_xn * xn + by_hn * hn
        return (dh + u * dstate[0],)


def _sigmoid_or_tanh(z: jax.Array, sigmoid: tuple[bool, ...]) -> jax.Array:
    """Apply sigmoid or tanh to each gate, as one tanh: ``sigmoid(z) = tanh(z / 2) / 2 + 1 / 2``.

    A CPU runs one vector function over all gates fastest. The factors are powers of two and exact.
    """
    size = z.shape[0] // len(sigmoid)
    scale = np.repeat(np.where(sigmoid, 0.5, 1.0), size).astype(z.dtype)
    shift = np.repeat(np.where(sigmoid, 0.5, 0.0), size).astype(z.dtype)
    scale, shift = (v.reshape((-1,) + (1,) * (z.ndim - 1)) for v in (scale, shift))
    return jnp.tanh(z * scale) * scale + shift
