"""The cells of PyTorch's layers: `Elman`, `LSTM`, `GRU`, with derivatives written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells.base import State
from jaxrnn.cells.gated import Cell


@dataclass(frozen=True)
class Elman(Cell):
    """The plain recurrent cell: ``h' = tanh(z)`` or ``h' = relu(z)``.

    Attributes:
        nonlinearity: "tanh" or "relu"; what else there may be is refused by the layers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> (h,) = cells.Elman("relu").step(jnp.array([[-1.0], [2.0]]), (jnp.zeros((2, 1)),))
        >>> h[:, 0].tolist()
        [0.0, 2.0]

    Source: J. L. Elman, Finding structure in time, Cognitive Science 14 (1990).
    """

    gates: ClassVar[tuple[str, ...]] = ("h",)
    nonlinearity: str = "tanh"

    def step(self, z: jax.Array, state: State) -> State:
        del state
        return (jnp.tanh(z) if self.nonlinearity == "tanh" else jax.nn.relu(z),)

    def save(self, z: jax.Array, state: State) -> tuple[State, Any]:
        return self.step(z, state), ()

    def linearize(self, saved: Any, old: State, new: State) -> Any:
        del saved, old
        (h,) = new
        return 1 - h * h if self.nonlinearity == "tanh" else (h > 0).astype(h.dtype)

    def tangent(self, coefficients: jax.Array, dz: jax.Array, dstate: State) -> State:
        del dstate
        return (coefficients * dz,)


@dataclass(frozen=True)
class LSTM(Cell):
    """Long short-term memory, PyTorch's gate order ``i, f, g, o``.

    .. code-block:: text

        i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g)
        c' = f * c + i * g
        h' = o * tanh(c')

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> z, state = jnp.zeros((4 * 2, 1)), (jnp.zeros((2, 1)), jnp.ones((2, 1)))
        >>> h, c = cells.LSTM().step(z, state)
        >>> c[:, 0].tolist()                                        # half of it is forgotten
        [0.5, 0.5]

    Source: S. Hochreiter, J. Schmidhuber, Long short-term memory, Neural Computation 9 (1997);
    forget gate: F. Gers et al., Learning to forget, Neural Computation 12 (2000).
    """

    gates: ClassVar[tuple[str, ...]] = ("i", "f", "g", "o")
    states: ClassVar[tuple[str, ...]] = ("h", "c")

    def step(self, z: jax.Array, state: State) -> State:
        return self.save(z, state)[0]

    def save(self, z: jax.Array, state: State) -> tuple[State, Any]:
        _, c = state
        activated = _sigmoid_or_tanh(z, (True, True, False, True))
        i, f, g, o = self.split_gates(activated)
        c = f * c + i * g
        return (o * jnp.tanh(c), c), activated

    def linearize(self, saved: jax.Array, old: State, new: State) -> Any:
        i, f, g, o = self.split_gates(saved)
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
        by_i, by_f, by_g, by_o, f, by_c = coefficients
        di, df, dg, do = self.split_gates(dz)
        dc = f * dstate[1] + by_i * di + by_f * df + by_g * dg
        return by_c * dc + by_o * do, dc


@dataclass(frozen=True)
class GRU(Cell):
    """Gated recurrent unit, PyTorch's gate order ``r, z, n``, reset after the product.

    .. code-block:: text

        r, u = sigmoid(zx_r + zh_r), sigmoid(zx_z + zh_z)
        n = tanh(zx_n + r * zh_n)          zh_n holds b_hn: the bias is inside the reset product
        h' = (1 - u) * n + u * h

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> zx = zh = jnp.zeros((3 * 2, 1))                         # apart: `split` is True
        >>> (h,) = cells.GRU().step((zx, zh), (jnp.ones((2, 1)),))
        >>> h[:, 0].tolist()
        [0.5, 0.5]

    Source: K. Cho et al., EMNLP 2014 (arXiv:1406.1078). Differs from the paper as PyTorch does:
    the reset gate acts after the product with ``W_hn``.
    """

    gates: ClassVar[tuple[str, ...]] = ("r", "z", "n")
    split: ClassVar[bool] = True

    def step(self, z: Any, state: State) -> State:
        return self.save(z, state)[0]

    def save(self, z: Any, state: State) -> tuple[State, Any]:
        (h,) = state
        zx, zh = z
        hidden = h.shape[0]
        ru = _sigmoid_or_tanh(zx[: 2 * hidden] + zh[: 2 * hidden], (True, True))
        r, u = jnp.split(ru, 2)
        zh_n = zh[2 * hidden :]
        n = jnp.tanh(zx[2 * hidden :] + r * zh_n)
        return (n + u * (h - n),), (ru, n, zh_n)

    def linearize(self, saved: Any, old: State, new: State) -> Any:
        del new
        ru, n, zh_n = saved
        r, u = jnp.split(ru, 2)
        by_n = (1 - u) * (1 - n * n)
        return by_n * zh_n * r * (1 - r), (old[0] - n) * u * (1 - u), by_n, by_n * r, u

    def tangent(self, coefficients: Any, dz: Any, dstate: State) -> State:
        by_r, by_u, by_xn, by_hn, u = coefficients
        (xr, xu, xn), (hr, hu, hn) = map(self.split_gates, dz)
        dh = by_r * (xr + hr) + by_u * (xu + hu) + by_xn * xn + by_hn * hn
        return (dh + u * dstate[0],)


def _sigmoid_or_tanh(z: jax.Array, sigmoid: tuple[bool, ...]) -> jax.Array:
    """Sigmoid or tanh, gate by gate, as one tanh: ``sigmoid(z) = tanh(z / 2) / 2 + 1 / 2``.

    One vector function over all gates is what a CPU runs fast; the factors are powers of two, so
    that nothing is lost by them.
    """
    size = z.shape[0] // len(sigmoid)
    scale = np.repeat(np.where(sigmoid, 0.5, 1.0), size).astype(z.dtype)
    shift = np.repeat(np.where(sigmoid, 0.5, 0.0), size).astype(z.dtype)
    scale, shift = (v.reshape((-1,) + (1,) * (z.ndim - 1)) for v in (scale, shift))
    return jnp.tanh(z * scale) * scale + shift
