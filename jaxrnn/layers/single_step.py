"""Cells: one time step as a Flax (NNX) module, `RecurrentCell`, `RNNCell`, `LSTMCell`, `GRUCell`.

They share the cells of `jaxrnn.cells` and the step `jaxrnn.backends.step.advance` with the layers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import cells
from jaxrnn._checks import ShapeError
from jaxrnn.backends.step import (
    advance,
    cell_outputs,
    has_output_function,
    input_pre_activations,
    transpose_state,
)
from jaxrnn.cells import State
from jaxrnn.cells.weights import Weights, infer_sizes, with_default_biases, zero_state
from jaxrnn.core import params
from jaxrnn.layers import _checks
from jaxrnn.layers._module import PyTorchModule, check_rngs


class RecurrentCell(PyTorchModule):
    """One time step of any cell; the base class of `RNNCell`, `LSTMCell` and `GRUCell`.

    Args:
        cell: definition of the step, see `jaxrnn.cells`.
        input_size: D.
        hidden_size: H.
        bias: If True, add biases. Defaults to True.
        rngs: random streams; ``params`` draws the parameters.
        options: ``dtype`` and ``param_dtype``, as in the layers.

    Call: ``module(input, hx=None) -> state``, input (N, D) or (D,); `hx` and the state have the
    shapes of `Recurrent` without the first axis; None stands for zeros. A cell with an output other
    than its first state returns ``(output, state)``. Parameters have the names of `Recurrent`
    without ``_l{k}``.

    Raises:
        TypeError, ValueError: for an invalid cell or size; by a call, for wrong axes or sizes, with
            PyTorch's messages (also a RuntimeError).

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
        **options: Any,
    ):
        _checks.known_options(type(self).__name__, options, ("dtype", "param_dtype"))
        check_rngs(rngs)
        self.cell = cell
        self.input_size = _checks.cell_size("input_size", input_size)
        self.hidden_size = _checks.cell_size("hidden_size", hidden_size)
        self.bias = bias
        self.dtype = options.get("dtype")
        self.param_dtype = options.get("param_dtype", jnp.float32)
        sizes = (self.input_size, self.hidden_size)
        (weights,) = params.init(
            rngs.params(), cell, *sizes, bias=bool(bias), dtype=self.param_dtype
        )
        arrays = weights.named()
        for name, value in arrays.items():
            setattr(self, name, nnx.Param(value))
        self._names = tuple(arrays)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in PyTorch's order."""
        return self._names

    def extra_repr(self) -> str:
        """Return the arguments as PyTorch prints them, without those that have their default."""
        cell = f"{self.cell}, " if type(self) is RecurrentCell else ""
        text = f"{cell}{self.input_size}, {self.hidden_size}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if self.nonlinearity != "tanh":
            text += f", nonlinearity={self.nonlinearity}"
        return text

    def __call__(self, input: Any, hx: Any = None) -> Any:
        """Return the new state, an array or a tuple; before it the output, if the cell has one."""
        output, state = self._run(input, hx)
        hx = state[0] if len(state) == 1 else state
        return (output, hx) if has_output_function(self.cell) else hx

    def _run(self, input: Any, hx: Any) -> tuple[jax.Array, State]:
        """Check the arguments in PyTorch's order; return the output and the new state."""
        x, kind, names = jnp.asarray(input), type(self).__name__, tuple(self.cell.states)
        _checks.cell_input(kind, x)
        state = None
        if hx is not None:
            state = tuple(map(jnp.asarray, _checks.hidden_states(kind, hx, names)))
            _checks.cell_state_axes(kind, state)
            _checks.state_count(kind, state, names)
        if self.nonlinearity not in ("tanh", "relu"):
            raise ShapeError(f"Unknown nonlinearity: {self.nonlinearity}")
        sizes = cells.Sizes(self.input_size, self.hidden_size, self.hidden_size)
        _checks.cell_sizes(x, state or (), self.input_size, self.cell.state_sizes(sizes))
        if self.dtype is None:
            _checks.dtypes("input", (x,), (self.param_dtype,))
            if state is not None:
                _checks.dtypes("hx", state, self.cell.state_dtypes(self.param_dtype))
        weights = Weights.from_named(
            self.cell, {name: getattr(self, name)[...] for name in self._names}
        )
        return run_step(self.cell, self.dtype, weights, x, state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_step(
    cell: cells.BaseCell, dtype: Any, weights: Weights, x: jax.Array, state: State | None
) -> tuple[jax.Array, State]:
    """Run one step of a cell on checked arrays; return its output and the new state."""
    if dtype is not None:
        weights, x = jax.tree.map(lambda a: a.astype(dtype), (weights, x))
        dtypes = cell.state_dtypes(dtype)
        state = state and tuple(s.astype(d) for s, d in zip(state, dtypes, strict=True))
    batched = x.ndim == 2
    x = x if batched else x[None]
    sizes = infer_sizes(cell, weights, x.shape[1])
    weights = with_default_biases(cell, weights, sizes)
    if state is None:
        state = zero_state(cell, sizes, x.shape[0], x.dtype)
    elif not batched:
        state = tuple(s[None] for s in state)
    new_state, _, _ = advance(
        cell, weights, input_pre_activations(cell, weights, x), transpose_state(state)
    )
    new_state = transpose_state(new_state)
    output = (
        cell_outputs(cell, weights, x, new_state) if has_output_function(cell) else new_state[0]
    )
    return (output, new_state) if batched else (output[0], tuple(s[0] for s in new_state))


class RNNCell(RecurrentCell):
    r"""One step of an Elman layer, as ``torch.nn.RNNCell``.

    .. math::

        h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        nonlinearity: "tanh" or "relu". Defaults to "tanh".

    The other arguments are those of `RecurrentCell`, without `cell`.

    Call: ``cell(input, hx=None) -> h'``, input (N, D) or (D,), hx and h' (N, H) or (H,); None
    stands for zeros. Parameters ``weight_ih`` (H, D), ``weight_hh`` (H, H), ``bias_ih`` (H,),
    ``bias_hh`` (H,), each drawn from :math:`U(-1/\sqrt{H}, 1/\sqrt{H})`.

    Raises:
        ValueError, RuntimeError: by a call, for wrong axes, sizes or an unknown nonlinearity. Like
            PyTorch's, the constructor accepts any of them.

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


class LSTMCell(RecurrentCell):
    """One step of an LSTM layer, as ``torch.nn.LSTMCell``; for the equations see `LSTM`.

    Call: ``cell(input, hx=None) -> (h', c')``, hx a pair (h, c). Arguments and parameters are those
    of `RNNCell`, without `nonlinearity`, with first axis 4*H, gates in the order i, f, g, o.

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


class GRUCell(RecurrentCell):
    """One step of a GRU layer, as ``torch.nn.GRUCell``; for the equations see `GRU`.

    Call: ``cell(input, hx=None) -> h'``. Arguments and parameters are those of `RNNCell`, without
    `nonlinearity`, with first axis 3*H, gates in the order r, z, n.

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
