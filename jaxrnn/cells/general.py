"""Cells that do not fit the gate form: any step, and steps that are linear in the state.

Both are written for a single row, as in a paper: x (D,), states (H,), weights (rows, columns),
``params["weight_ih"] @ x``. The batch is added by `jax.vmap`, all rows in one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from jaxrnn.cells.base import BaseCell, State


@dataclass(frozen=True)
class GeneralCell(BaseCell):
    """Any step, with any products inside: the parameters as data, one function.

    Attributes:
        parameters: all of them, names to shapes or to `Parameter`, see `jaxrnn.cells.base`.
        states, output_size: see `BaseCell`.

    Example:
        A GRU whose reset gate acts before the product (Cho et al., 2014):

        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.cells import GeneralCell
        >>> @dataclasses.dataclass(frozen=True)
        ... class ResetBefore(GeneralCell):
        ...     parameters = {
        ...         "weight_ih": ("3*H", "D"), "weight_hh": ("2*H", "H"),
        ...         "weight_hn": ("H", "H"), "bias_ih": ("3*H",),
        ...     }
        ...     def inputs(self, x, params):
        ...         return jnp.split(params["weight_ih"] @ x + params["bias_ih"], 3)
        ...     def step(self, x, state, params):
        ...         (h,), (xr, xz, xn) = state, x
        ...         hr, hz = jnp.split(params["weight_hh"] @ h, 2)
        ...         r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        ...         n = jnp.tanh(xn + params["weight_hn"] @ (r * h))
        ...         return ((1 - z) * n + z * h,)
        >>> layer = jaxrnn.Recurrent(ResetBefore(), 3, 4, num_layers=2, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape
        ((5, 2, 4), (2, 2, 4))
    """

    def inputs(self, x: Any, params: Any) -> Any:
        """What of a step does not need the state, for all steps of a block at once; x itself."""
        del params
        return x

    def step(self, *args: Any, **kwargs: Any) -> State:
        """``step(x, state, params)``: the new state of one row.

        Args:
            x: what `inputs` gave, by default the input (D,).
            state: the old state, a tuple of (H,), or of what `states` says.
            params: a dict.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(x, state, params)")

    def output(self, x: Any, state: State, params: Any) -> jax.Array:
        """What a step gives out, from its input (D,) and the state after it: the first state."""
        del x, params
        return state[0]


@dataclass(frozen=True)
class LinearCell(GeneralCell):
    """A state that is linear in the state before, given the input: parallel over time.

    .. code-block:: text

        a_t, b_t = coefficients(x_t)
        s_t = a_t * s_{t-1} + b_t          elementwise, real or complex
        y_t = output(x_t, s_t)             s_t itself, if it is real

    All coefficients are computed at once, and all states by `jax.lax.associative_scan`, or by a
    loop where that is faster (`jaxrnn.backends.select.LINEAR`).

    Attributes:
        states: one, H real numbers by default.
        parameters, output_size: see `GeneralCell`.

    Example:
        A minimal GRU (Feng et al., 2024, arXiv:2410.01201):

        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.cells import LinearCell
        >>> @dataclasses.dataclass(frozen=True)
        ... class MinGRU(LinearCell):
        ...     parameters = {"weight_ih": ("2*H", "D"), "bias_ih": ("2*H",)}
        ...     def coefficients(self, x, params):
        ...         z, n = jnp.split(params["weight_ih"] @ x + params["bias_ih"], 2)
        ...         z = jax.nn.sigmoid(z)
        ...         return 1 - z, z * n
        >>> layer = jaxrnn.Recurrent(MinGRU(), 3, 4, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape
        (5, 2, 4)

        A complex state of another size than the output, declared by the cell:

        >>> from jaxrnn.cells import Parameter, StateSpec
        >>> @dataclasses.dataclass(frozen=True)
        ... class Rotation(LinearCell):
        ...     modes: int = 8
        ...     states, output_size = {"s": StateSpec("modes", complex=True)}, "H"
        ...     parameters = {
        ...         "decay": Parameter(("modes",), 0.1), "angle": ("modes",),
        ...         "weight_in": ("modes", "D"), "weight_out": ("H", "modes"),
        ...     }
        ...     def coefficients(self, x, params):
        ...         a = jnp.exp(-jnp.exp(params["decay"]) + 1j * params["angle"])
        ...         return a, params["weight_in"] @ x
        ...     def output(self, x, state, params):
        ...         return params["weight_out"] @ state[0].real
        >>> layer = jaxrnn.Recurrent(Rotation(), 3, 4, rngs=nnx.Rngs(0))
        >>> output, s_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, s_n.shape, s_n.dtype
        ((5, 2, 4), (1, 2, 8), dtype('complex64'))
    """

    def coefficients(self, x: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        """A and b of a step for its input x (D,); each shaped as the state."""
        raise NotImplementedError(
            f"{type(self).__name__} must define coefficients(x, params) -> (a, b)"
        )

    def inputs(self, x: Any, params: Any) -> Any:
        """The coefficients, in the dtype of the state."""
        a, b = self.coefficients(x, params)
        dtype = self.state_dtypes(x.dtype)[0]
        return a.astype(dtype), b.astype(dtype)

    def step(self, *args: Any, **kwargs: Any) -> State:
        """The same one step after another, for a loop: ``a * s + b``."""
        (a, b), (s,), _ = args
        return (a * s + b,)
