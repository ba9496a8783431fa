"""`ToNnx` and `ToLinen`: our cells with the faces of Flax's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxrnn import cells
from jaxrnn.cells import State
from jaxrnn.cells.weights import Weights
from jaxrnn.core import params as initial_weights
from jaxrnn.layers import _checks
from jaxrnn.layers.single_step import RecurrentCell, run_step


class ToNnx(nnx.RNNCellBase):
    """A single-step module as a cell for `nnx.RNN`.

    Args:
        cell: a `RecurrentCell`, `RNNCell`, `LSTMCell` or `GRUCell`; its parameters stay its own.

    Call: ``adapter(carry, inputs) -> (carry, output)``, inputs (..., D), output (..., R). The carry
    is the state as the cell takes it, h (..., H) first; for an LSTM (h, c).

    Raises:
        TypeError: for what is no such module.
        ValueError, RuntimeError: by the call, for wrong sizes or dtypes.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.adapters import ToNnx
        >>> rnn = nnx.RNN(ToNnx(jaxrnn.LSTMCell(3, 4, rngs=nnx.Rngs(0))), return_carry=True)
        >>> (h, c), output = rnn(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2]))
        >>> output.shape, h.shape
        ((2, 5, 4), (2, 4))

    Differs from Flax's own LSTM: the carry is (h, c), not (c, h).
    """

    def __init__(self, cell: RecurrentCell):
        if not isinstance(cell, RecurrentCell):
            raise TypeError(
                f"cell should be a RecurrentCell, RNNCell, LSTMCell or GRUCell, got {cell!r}"
            )
        self.cell = cell

    @property
    def num_feature_axes(self) -> int:
        """1."""
        return 1

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Any:
        """The state before the first step.

        Args:
            input_shape: of the input of a step, (..., D).
            rngs: a stream of keys for `carry_init`.
            carry_init: ``(key, shape, dtype) -> array``; None for zeros.
        """
        module = self.cell
        shapes, dtypes = _states(module.cell, module.hidden_size, module, input_shape[:-1])
        if carry_init is None:
            return _alone(tuple(map(jnp.zeros, shapes, dtypes)))
        if rngs is None:
            raise ValueError("carry_init needs rngs to draw from")
        draw = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return _alone(tuple(carry_init(draw(), s, d) for s, d in zip(shapes, dtypes)))

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        """The state after a step, and what the cell gives out."""
        return _over_rows(self.cell._run, carry, jnp.asarray(inputs))


class ToLinen(linen.RNNCellBase):
    """A cell for ``flax.linen.RNN``; its parameters are those of `RecurrentCell`, by name.

    Attributes:
        cell: of `jaxrnn.cells`, or of your own.
        hidden_size: H.
        bias: whether there are biases.
        dtype: what to compute in; None, the default, takes that of the parameters.
        param_dtype: the dtype of the parameters.

    Call: ``adapter(carry, inputs) -> (carry, output)``, as of `ToNnx`.

    Raises:
        TypeError, ValueError: for what is no cell.
        ValueError, RuntimeError: for a carry of wrong sizes, or wrong dtypes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import linen
        >>> from jaxrnn.interop.adapters import ToLinen
        >>> rnn = linen.RNN(ToLinen(jaxrnn.cells.GRU(), 4), reverse=True, keep_order=True)
        >>> variables = rnn.init(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> rnn.apply(variables, jnp.ones((2, 5, 3))).shape
        (2, 5, 4)
        >>> sorted(variables["params"]["cell"])
        ['bias_hh', 'bias_ih', 'weight_hh', 'weight_ih']
    """

    cell: cells.BaseCell
    hidden_size: int
    bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def num_feature_axes(self) -> int:
        """1."""
        return 1

    @linen.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
        """The state of zeros before the first step, for an input (..., D) of a step."""
        del rng
        shapes, dtypes = _states(self.cell, self.hidden_size, self, input_shape[:-1])
        return _alone(tuple(map(jnp.zeros, shapes, dtypes)))

    @linen.compact
    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        """The state after a step, and what the cell gives out."""
        inputs = jnp.asarray(inputs)
        features, about = inputs.shape[-1], {"bias": self.bias}
        if self.is_initializing():
            # All of one draw, since the one may depend on the other.
            (drawn,) = initial_weights.init(
                self.make_rng("params"), self.cell, features, self.hidden_size,
                dtype=self.param_dtype, **about,
            )  # fmt: skip
            begin = drawn.named()
        else:
            shapes = initial_weights.shapes(self.cell, features, self.hidden_size, **about)
            begin = {name: jnp.zeros(s, self.param_dtype) for name, s in shapes.items()}
        named = {n: self.param(n, lambda key, value=value: value) for n, value in begin.items()}
        weights = Weights.from_named(self.cell, named)
        sizes = cells.Sizes(features, self.hidden_size, self.hidden_size)

        def run(x: jax.Array, hx: Any) -> tuple[jax.Array, State]:
            kind, names = type(self).__name__, tuple(self.cell.states)
            states = tuple(map(jnp.asarray, _checks.hidden_states(kind, hx, names)))
            _checks.cell_state_axes(kind, states)
            _checks.state_count(kind, states, names)
            _checks.cell_sizes(x, states, features, self.cell.state_sizes(sizes))
            if self.dtype is None:
                _checks.dtypes("input", (x,), (self.param_dtype,))
                _checks.dtypes("hx", states, self.cell.state_dtypes(self.param_dtype))
            return run_step(self.cell, self.dtype, weights, x, states)

        return _over_rows(run, carry, inputs)


def _over_rows(run: Any, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """A step of (N, D), for inputs with any axes before D."""
    rows = inputs.shape[:-1]
    flat = jax.tree.map(lambda s: jnp.reshape(s, (-1, jnp.shape(s)[-1])), carry)
    output, states = run(inputs.reshape(-1, inputs.shape[-1]), flat)
    back = lambda a: a.reshape(*rows, a.shape[-1])  # noqa: E731
    return _alone(tuple(map(back, states))), back(output)


def _states(cell: Any, hidden: int, options: Any, rows: tuple[int, ...]) -> Any:
    """The shapes and dtypes of the states of a step."""
    cells.check(cell)
    sizes = cell.state_sizes(cells.Sizes(1, hidden, hidden))
    dtype = options.param_dtype if options.dtype is None else options.dtype
    return [(*rows, size) for size in sizes], cell.state_dtypes(dtype)


def _alone(states: State) -> Any:
    return states[0] if len(states) == 1 else states
