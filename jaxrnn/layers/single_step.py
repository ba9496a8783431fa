"""`RecurrentCell`, one time step of any cell as a Flax (NNX) module; `RNNCell` and its like.

The same cells and the same step as the layers', `jaxrnn.backends.step.advance`, without the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import cells
from jaxrnn._checks import ShapeError
from jaxrnn.backends.step import advance, gate_inputs, gives_output, outputs, turned
from jaxrnn.cells import State
from jaxrnn.cells.weights import Weights, infer_sizes, with_default_biases, zero_state
from jaxrnn.core import params as initial_weights
from jaxrnn.layers import _checks as torch_checks
from jaxrnn.layers._module import Printed, check_rngs


class RecurrentCell(Printed, nnx.Module):
    """One step of any cell; `RNNCell`, `LSTMCell` and `GRUCell` are three of them.

    Args:
        cell: what the step is, see `jaxrnn.cells`.
        input_size: D.
        hidden_size: H.
        bias: whether there are biases.
        rngs: the stream for the parameters (``params``).
        dtype, param_dtype: as of the layers.

    Call: ``module(input, hx=None) -> state``, input (N, D) or (D,), hx and the state as those of
    `Recurrent` without their first axis; None stands for zeros. A cell whose output is not its
    first state gives ``(output, state)``. Parameters are named as those of `Recurrent`, without
    ``_l{k}``.

    Raises:
        TypeError, ValueError: for what is no cell; for sizes that are not whole or below 0.
        ValueError, RuntimeError: by the call, for wrong axes or sizes, in PyTorch's words.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.RecurrentCell(jaxrnn.cells.GRU(), 3, 4, rngs=nnx.Rngs(0))
        >>> cell, cell(jnp.ones((2, 3))).shape
        (RecurrentCell(GRU(), 3, 4), (2, 4))
    """

    nonlinearity: str = "tanh"

    def __init__(
        self,
        cell: cells.BaseCell,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        **unknown: Any,
    ):
        torch_checks.no_such_argument(type(self).__name__, unknown)
        check_rngs(rngs)
        input_size = torch_checks.cell_size("input_size", input_size)
        hidden_size = torch_checks.cell_size("hidden_size", hidden_size)
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        (weights,) = initial_weights.init(
            rngs.params(), cell, input_size, hidden_size, bias=bool(bias), dtype=param_dtype
        )
        there = weights.named()
        for name, value in there.items():
            setattr(self, name, nnx.Param(value))
        self._names = tuple(there)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of the parameters, in PyTorch's order."""
        return self._names

    def extra_repr(self) -> str:
        """The arguments as PyTorch prints them: only those that are not the default."""
        cell = f"{self.cell}, " if type(self) is RecurrentCell else ""
        text = f"{cell}{self.input_size}, {self.hidden_size}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if self.nonlinearity != "tanh":
            text += f", nonlinearity={self.nonlinearity}"
        return text

    def __call__(self, input: Any, hx: Any = None) -> Any:
        """The new state: an array for a cell of one, a tuple for one of several."""
        output, states = self._run(input, hx)
        state = states[0] if len(states) == 1 else states
        return (output, state) if gives_output(self.cell) else state

    def _states(self, hx: Any) -> Sequence[Any]:
        """The states of a call."""
        return tuple(torch_checks.states(hx, tuple(self.cell.states)))

    def _run(self, input: Any, hx: Any) -> tuple[jax.Array, State]:
        """Check the call, in PyTorch's order, and compute it: the output and the new state."""
        x, kind = jnp.asarray(input), type(self).__name__
        torch_checks.cell_input(kind, x)
        states = None if hx is None else tuple(map(jnp.asarray, self._states(hx)))
        torch_checks.cell_state_axes(kind, states or ())
        if states is not None:
            torch_checks.cell_state_count(states, len(self.cell.states))
        if self.nonlinearity not in ("tanh", "relu"):
            raise ShapeError(f"Unknown nonlinearity: {self.nonlinearity}")
        sizes = cells.Sizes(self.input_size, self.hidden_size, self.hidden_size)
        torch_checks.cell_sizes(x, states or (), self.input_size, self.cell.state_sizes(sizes))
        if self.dtype is None:
            torch_checks.state_dtypes((x,), (self.param_dtype,), "input")
            if states is not None:
                torch_checks.state_dtypes(states, self.cell.state_dtypes(self.param_dtype))
        weights = Weights.from_named(
            self.cell, {name: getattr(self, name)[...] for name in self._names}
        )
        return step(self.cell, self.dtype, weights, x, states)


def _one_step(
    cell: cells.BaseCell, dtype: Any, weights: Weights, x: jax.Array, states: State | None
) -> tuple[jax.Array, State]:
    if dtype is not None:
        weights, x = jax.tree.map(lambda a: a.astype(dtype), (weights, x))
        dtypes = cell.state_dtypes(dtype)
        states = states and tuple(s.astype(d) for s, d in zip(states, dtypes, strict=True))
    batched = x.ndim == 2
    x = x if batched else x[None]
    sizes = infer_sizes(cell, weights, x.shape[1])
    weights = with_default_biases(cell, weights, sizes)
    if states is None:
        states = zero_state(cell, sizes, x.shape[0], x.dtype)
    elif not batched:
        states = tuple(s[None] for s in states)
    new, _, _ = advance(cell, weights, gate_inputs(cell, weights, x), turned(states))
    new = turned(new)
    output = outputs(cell, weights, x, new) if gives_output(cell) else new[0]
    return (output, new) if batched else (output[0], tuple(s[0] for s in new))


step = jax.jit(_one_step, static_argnums=(0, 1))


class RNNCell(RecurrentCell):
    """One step of an Elman layer: ``h' = tanh(x @ W_ih.T + b_ih + h @ W_hh.T + b_hh)``, or relu.

    Args:
        input_size: D.
        hidden_size: H.
        bias: whether there are b_ih and b_hh.
        nonlinearity: "tanh" or "relu".
        rngs: the stream for the parameters (``params``).
        options: ``dtype`` and ``param_dtype``, as of the layers.

    Call: ``cell(input, hx=None) -> h'``, input (N, D) or (D,), hx and h' (N, H) or (H,); None
    stands for zeros. Parameters ``weight_ih`` (H, D), ``weight_hh`` (H, H), ``bias_ih`` (H,),
    ``bias_hh`` (H,), each drawn from U(-1/sqrt(H), 1/sqrt(H)).

    Raises:
        ValueError, RuntimeError: for wrong axes or sizes, in PyTorch's words. As PyTorch, a cell
            checks nothing at construction.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import RNNCell
        >>> cell = RNNCell(3, 4, rngs=nnx.Rngs(0))
        >>> cell, cell(jnp.ones((2, 3))).shape
        (RNNCell(3, 4), (2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.nonlinearity = nonlinearity
        cell = cells.Elman(nonlinearity)
        super().__init__(cell, input_size, hidden_size, bias, rngs=rngs, **options)

    def __call__(self, input: Any, hx: Any = None) -> jax.Array:
        """The new hidden state."""
        return self._run(input, hx)[0]


class LSTMCell(RecurrentCell):
    """One step of an LSTM layer, see `LSTM` for the equations.

    Call: ``cell(input, hx=None) -> (h', c')`` with hx a pair (h, c), each (N, H) or (H,). The
    arguments and parameters are those of `RNNCell`, but `nonlinearity`, with 4*H rows, gates in
    the order i, f, g, o.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import LSTMCell
        >>> h, c = LSTMCell(3, 4, rngs=nnx.Rngs(0))(jnp.ones((2, 3)))
        >>> h.shape, c.shape
        ((2, 4), (2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(cells.LSTM(), input_size, hidden_size, bias, rngs=rngs, **options)

    def __call__(self, input: Any, hx: Any = None) -> tuple[jax.Array, jax.Array]:
        """The new hidden state and cell state."""
        h, c = self._run(input, hx)[1]
        return h, c

    def _states(self, hx: Any) -> Sequence[Any]:
        return torch_checks.two_cell_states(hx)


class GRUCell(RecurrentCell):
    """One step of a GRU layer, see `GRU` for the equations.

    Call: ``cell(input, hx=None) -> h'``. The arguments and parameters are those of `RNNCell`,
    but `nonlinearity`, with 3*H rows, gates in the order r, z, n.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import GRUCell
        >>> GRUCell(3, 4, rngs=nnx.Rngs(0))(jnp.ones(3)).shape
        (4,)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(cells.GRU(), input_size, hidden_size, bias, rngs=rngs, **options)

    def __call__(self, input: Any, hx: Any = None) -> jax.Array:
        """The new hidden state."""
        return self._run(input, hx)[0]
