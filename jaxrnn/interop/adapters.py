"""Adapters that run jaxrnn cells in Flax's loops, and Flax cells in jaxrnn layers.

| adapter | from | to |
|---|---|---|
| `ToNnx` | `RecurrentCell`, `LSTMCell`, ... | a cell for `nnx.RNN` and `nnx.Bidirectional` |
| `ToLinen` | a cell of `jaxrnn.cells` | a cell for ``linen.RNN`` |
| `FromNnx` | an `nnx.RNNCellBase`, or a function that creates one | a cell for `Recurrent` |
| `FromLinen` | a ``linen.RNNCellBase`` | a cell for `Recurrent` |

`jaxrnn.interop.flax` converts layers with their weights instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.errors import InvalidRngError

from jaxrnn import cells
from jaxrnn._checks import ShapeError
from jaxrnn.cells import GeneralCell, Sizes, State, StateSpec
from jaxrnn.cells._check import RESERVED_NAMES
from jaxrnn.cells.weights import Weights
from jaxrnn.core.params import init, param_shapes
from jaxrnn.layers import _checks
from jaxrnn.layers.single_step import RecurrentCell, run_step

__all__ = ["FromLinen", "FromNnx", "ToLinen", "ToNnx"]


class ToNnx(nnx.RNNCellBase):
    """Adapter of a jaxrnn cell for `nnx.RNN` and `nnx.Bidirectional`.

    Call it as ``adapter(carry, inputs) -> (carry, output)`` with inputs (..., D), output (..., R).
    The carry is the state of the cell, h (..., H), or (h, c) for an LSTM.

    Args:
        cell: a `RecurrentCell`, `RNNCell`, `LSTMCell` or `GRUCell`.

    Raises:
        TypeError: if `cell` is not a single-step module.
        ValueError, RuntimeError: if a call has wrong shapes or dtypes.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.adapters import ToNnx
        >>> rnn = nnx.RNN(ToNnx(jaxrnn.LSTMCell(3, 4, rngs=nnx.Rngs(0))), return_carry=True)
        >>> (h, c), output = rnn(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2]))
        >>> output.shape, h.shape
        ((2, 5, 4), (2, 4))

    Differs from Flax: the carry of an LSTM is (h, c) instead of (c, h).
    """

    def __init__(self, cell: RecurrentCell):
        if not isinstance(cell, RecurrentCell):
            raise TypeError(
                f"`cell` must be a RecurrentCell, RNNCell, LSTMCell or GRUCell, got {cell!r}"
            )
        self.cell = cell

    num_feature_axes = 1  # pyright: ignore

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Any:
        """Return the initial state for an input shape (..., D).

        `carry_init` is a function ``(key, shape, dtype) -> array``, which requires the random
        streams `rngs`. Defaults to zeros.
        """
        module = self.cell
        zeros = _initial_state(module.cell, module.hidden_size, module, input_shape[:-1])
        if carry_init is None:
            return _as_carry(zeros)
        if rngs is None:
            raise ValueError("`rngs` must be given with carry_init, got None")
        draw = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return _as_carry(tuple(carry_init(draw(), a.shape, a.dtype) for a in zeros))

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        """Return the next carry and the output."""
        return _run_batched(self.cell._run, carry, jnp.asarray(inputs))


class ToLinen(linen.RNNCellBase):
    """Adapter of a jaxrnn cell for ``linen.RNN``, with the parameters of `RecurrentCell`.

    Call it as `ToNnx`.

    Attributes:
        cell: a cell of `jaxrnn.cells`, or a custom one.
        hidden_size: H.
        bias: If True, the cell has biases. Defaults to True.
        dtype: computation dtype, optional. Defaults to that of the parameters.
        param_dtype: dtype of the parameters. Defaults to float32.

    Raises:
        TypeError, ValueError: if `cell` is not a cell.
        ValueError, RuntimeError: if a call has wrong shapes or dtypes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import linen
        >>> from jaxrnn.interop.adapters import ToLinen
        >>> rnn = linen.RNN(ToLinen(jaxrnn.cells.GRU(), 4), reverse=True, keep_order=True)
        >>> variables = rnn.init(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> rnn.apply(variables, jnp.ones((2, 5, 3))).shape
        (2, 5, 4)
    """

    cell: cells.BaseCell
    hidden_size: int
    bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32

    num_feature_axes = 1  # pyright: ignore

    @linen.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
        """Return the initial state of zeros for an input shape (..., D)."""
        del rng
        return _as_carry(_initial_state(self.cell, self.hidden_size, self, input_shape[:-1]))

    @linen.compact
    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        """Return the next carry and the output."""
        inputs = jnp.asarray(inputs)
        features = inputs.shape[-1]
        arguments: Any = (self.cell, features, self.hidden_size)
        if self.is_initializing():
            # All parameters come from one draw, since one may depend on another.
            key = self.make_rng("params")
            (drawn,) = init(key, *arguments, bias=self.bias, dtype=self.param_dtype)
            values = drawn.named()
        else:
            shapes = param_shapes(*arguments, bias=self.bias)
            values = {name: jnp.zeros(shape, self.param_dtype) for name, shape in shapes.items()}
        named = {n: self.param(n, lambda key, value=value: value) for n, value in values.items()}
        weights = Weights.from_named(self.cell, named)
        sizes = Sizes(features, self.hidden_size, self.hidden_size)

        def _run(x: jax.Array, hx: Any) -> tuple[jax.Array, State]:
            kind, names = type(self).__name__, tuple(self.cell.states)
            states = tuple(map(jnp.asarray, _checks.hidden_states(kind, hx, names)))
            _checks.cell_state_axes(kind, states)
            _checks.state_count(kind, states, names)
            _checks.cell_sizes(x, states, features, self.cell.state_sizes(sizes))
            if self.dtype is None:
                _checks.dtypes("input", (x,), (self.param_dtype,))
                _checks.dtypes("hx", states, self.cell.state_dtypes(self.param_dtype))
            return run_step(self.cell, self.dtype, weights, x, states)

        return _run_batched(_run, carry, inputs)


def _run_batched(run: Any, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """Run a step on inputs with any number of batch axes."""
    batch = inputs.shape[:-1]
    flat = jax.tree.map(lambda s: jnp.reshape(s, (-1, jnp.shape(s)[-1])), carry)
    output, states = run(inputs.reshape(-1, inputs.shape[-1]), flat)
    states, output = jax.tree.map(lambda a: a.reshape(*batch, a.shape[-1]), (states, output))
    return _as_carry(states), output


def _initial_state(cell: Any, hidden: int, options: Any, batch: tuple[int, ...]) -> State:
    cells.check(cell)
    sizes = cell.state_sizes(Sizes(1, hidden, hidden))
    dtypes = cell.state_dtypes(options.param_dtype if options.dtype is None else options.dtype)
    return tuple(jnp.zeros((*batch, size), dtype) for size, dtype in zip(sizes, dtypes))


def _as_carry(states: State) -> Any:
    return states[0] if len(states) == 1 else states


class _TracedCell(NamedTuple):
    """A traced Flax cell of D input features; arrays are shapes and dtypes."""

    call: Callable[..., Any]  # (parameters, carry, x) -> (carry, output)
    parameters: Any
    names: tuple[str, ...]  # of the parameters
    carry: Any
    output_index: int | None  # of the output in the carry
    output: Any

    @property
    def state_indices(self) -> tuple[int | None, ...]:
        """Indices in the carry of the states of the cell; None for the output."""
        indices = range(len(jax.tree.leaves(self.carry)))
        return self.output_index, *(index for index in indices if index != self.output_index)


_ANY = 64  # number of input features for questions that do not depend on it


class _FeaturesError(ShapeError):
    """A Flax cell does not accept the number of input features."""


@dataclass(frozen=True)
class _FlaxCell(GeneralCell):
    """A Flax cell as a `GeneralCell`.

    The first state is the output: a leaf of the carry if possible, else an additional state that no
    step reads. The other leaves of the carry follow in order.
    """

    source: Any

    def _traced(self, features: int | None = None) -> _TracedCell:
        """Trace the cell for a number of input features. States do not depend on it."""
        raise NotImplementedError

    def draw(self, key: Any, sizes: Sizes, dtype: Any) -> dict[str, jax.Array]:  # pyright: ignore
        """Draw the parameters with the initializers of the Flax cell."""
        named = zip(self._traced(sizes.D).names, self._drawn(key, sizes.D), strict=True)
        return {name: leaf.astype(dtype) for name, leaf in named}

    def _drawn(self, key: Any, features: int) -> list[Any]:
        raise NotImplementedError

    @property
    def states(self) -> Mapping[str, StateSpec]:  # pyright: ignore
        """The states by name."""
        traced = self._traced()
        leaves = jax.tree_util.tree_leaves_with_path(traced.carry)
        specs = {}
        for index in traced.state_indices:
            path, leaf = ((), traced.output) if index is None else leaves[index]
            name = "output" if index is None else "carry" + jax.tree_util.keystr(path)
            is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
            specs[name] = StateSpec(math.prod(leaf.shape), is_complex)
        return specs

    @property
    def hidden_size(self) -> int:  # pyright: ignore
        """Number of output features."""
        return self._traced().output.shape[0]

    def cell_parameter_shapes(
        self, sizes: Sizes, *, bias: bool = True
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters by name."""
        if not bias:
            raise ValueError(f"`bias` must be True for {self}, got False. Disable it in the cell.")
        if (size := self.hidden_size) != sizes.H:
            raise ValueError(
                f"`hidden_size` must be {size}, the output size of {self}, got {sizes.H}"
            )
        traced = self._traced(sizes.D)
        leaves = jax.tree.leaves(traced.parameters)
        return {name: leaf.shape for name, leaf in zip(traced.names, leaves, strict=True)}

    def step(self, x: jax.Array, state: State, params: Any) -> State:  # pyright: ignore
        """Return the next state."""
        traced = self._traced(x.shape[-1])
        structure = jax.tree.structure(traced.parameters)
        parameters = jax.tree.unflatten(structure, [params[name] for name in traced.names])
        carry, output = traced.call(parameters, self.carry(state), x)
        leaves = jax.tree.leaves(carry)
        indices = traced.state_indices
        return tuple(output if i is None else leaves[i].reshape(-1) for i in indices)

    def carry(self, hx: Any) -> Any:
        """Convert a state of `Recurrent`, arrays (..., S), to the carry of the Flax cell."""
        traced, states = self._traced(), hx if isinstance(hx, (tuple, list)) else (hx,)
        leaves, tree = jax.tree.flatten(traced.carry)
        for index, array in zip(traced.state_indices, states, strict=True):
            if index is not None:
                leaves[index] = array.reshape(*array.shape[:-1], *leaves[index].shape)
        return jax.tree.unflatten(tree, leaves)


@dataclass(frozen=True)
class FromNnx(_FlaxCell):
    """Adapter of a Flax nnx cell for `jaxrnn.Recurrent`.

    The parameters of the layer are those of the cell, their paths joined by "_":
    ``dense_i_kernel_l0``. Initial states are zero. Equal function objects compile once, so create
    the function once.

    Args:
        source: a function ``(in_features, rngs=) -> nnx.RNNCellBase``, called for each layer and
            direction; or a cell, whose weights initialise all of them. A cell has a fixed number
            of input features, and stacks if it equals the number of output features.

    Raises:
        TypeError: if `source` is neither.
        ValueError: if the cell has several feature axes, random numbers, mutable variables, or an
            initial carry that is not zero; or does not fit the sizes and `bias` of the layer.

    Example:
        >>> import functools, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.adapters import FromNnx
        >>> cell = FromNnx(functools.partial(nnx.GRUCell, hidden_features=4))
        >>> layer = jaxrnn.Recurrent(cell, 3, 4, 2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)), lengths=jnp.array([5, 2]))
        >>> output.shape, h_n.shape
        ((5, 2, 8), (4, 2, 4))
    """

    def __post_init__(self):
        if isinstance(self.source, nnx.RNNCellBase):
            object.__setattr__(self, "source", _NnxInstance(self.source))
        elif not callable(self.source) or isinstance(self.source, (nnx.Module, linen.Module)):
            raise TypeError(
                "`source` must be an nnx.RNNCellBase or a function (in_features, rngs=) that "
                f"returns one, got {self.source!r}"
            )

    def _traced(self, features: int | None = None) -> _TracedCell:
        if isinstance(self.source, _NnxInstance):
            return self.source.traced_for(features)
        return _trace_nnx_function(self.source, features or _ANY)

    def _drawn(self, key: Any, features: int) -> list[Any]:
        if isinstance(self.source, _NnxInstance):
            return list(map(jnp.asarray, self.source.values))
        return _parameters(self.source(features, rngs=nnx.Rngs(key)))


@dataclass(frozen=True)
class FromLinen(_FlaxCell):
    """Adapter of a Flax linen cell for `jaxrnn.Recurrent`.

    The parameters of the layer are those of the cell, their paths joined by "_".

    Args:
        source: an unbound ``linen.RNNCellBase``. It initialises each layer and direction.

    Raises:
        TypeError, ValueError: as `FromNnx`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import linen, nnx
        >>> from jaxrnn.interop.adapters import FromLinen
        >>> cell = FromLinen(linen.MGUCell(4))
        >>> layer = jaxrnn.Recurrent(cell, 3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape
        (5, 2, 8)
    """

    def __post_init__(self):
        if not isinstance(self.source, linen.RNNCellBase):
            raise TypeError(f"`source` must be a linen.RNNCellBase, got {self.source!r}")

    def _traced(self, features: int | None = None) -> _TracedCell:
        return _trace_linen(self.source, features or _ANY)

    def _drawn(self, key: Any, features: int) -> list[Any]:
        carry = self._traced(features).carry
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), carry)
        return jax.tree.leaves(self.source.init(key, zeros, jnp.zeros(features))["params"])


class _NnxInstance:
    """A snapshot of an nnx cell, compared by value, so that equal cells compile once."""

    def __init__(self, cell: nnx.RNNCellBase):
        self.values = tuple(map(np.asarray, _parameters(cell)))
        self.graph = nnx.graphdef(cell)
        self.name = type(cell).__name__
        candidates = dict.fromkeys(size for value in self.values for size in value.shape)
        if isinstance(getattr(cell, "in_features", None), int):
            candidates = [cell.in_features]  # pyright: ignore
        for features in candidates:
            try:
                self.traced = _trace_nnx(cell, features)
                return
            except _FeaturesError as error:
                problem = error.__cause__
        raise ValueError(f"{self.name} accepts no number of input features: {problem}")

    def traced_for(self, features: int | None) -> _TracedCell:
        """Return the traced cell, after a check that it accepts a number of input features."""
        traced = self.traced
        if features is None:
            return traced
        try:
            result = _evaluate(traced.call, traced.parameters, traced.carry, features)
        except _FeaturesError as error:
            raise ValueError(
                f"{self.name} does not accept the {features} input features of the layer. Pass a "
                "function (in_features, rngs=) -> cell to FromNnx."
            ) from error
        if _shapes(result) != _shapes((traced.carry, traced.output)):
            raise ValueError(f"{self.name} has another output for {features} input features")
        return traced

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        arrays = ((value.shape, value.dtype, value.tobytes()) for value in self.values)
        return (self.graph, *arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NnxInstance) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return self.name


@functools.lru_cache(maxsize=256)
def _trace_nnx_function(create: Any, features: int) -> _TracedCell:
    return _trace_nnx(nnx.eval_shape(lambda: create(features, rngs=nnx.Rngs(0))), features)


def _trace_nnx(cell: Any, features: int) -> _TracedCell:
    """Trace an nnx cell, abstract or not."""
    name = type(cell).__name__
    if not isinstance(cell, nnx.RNNCellBase):
        raise TypeError(f"expected an nnx.RNNCellBase, got {name}")
    graph, state, rest = nnx.split(cell, nnx.Param, ...)
    variables = {"/".join(map(str, path)): value for path, value in nnx.to_flat_state(rest)}
    if random := [path for path in variables if isinstance(variables[path], nnx.RngState)]:
        raise ValueError(
            f"{name} must not draw random numbers in a step, got the streams {', '.join(random)}"
        )
    _check_variables(name, variables)
    structure = jax.tree.structure(state)

    def _call(parameters: Any, carry: Any, x: Any) -> Any:
        values = jax.tree.unflatten(structure, jax.tree.leaves(parameters))
        return nnx.merge(graph, values, nnx.State({}))(carry, x)

    parameters = jax.eval_shape(lambda tree: tree, nnx.to_pure_dict(state))
    initial_carry = lambda: cell.initialize_carry((features,), nnx.Rngs(0))  # noqa: E731
    return _trace(cell, _call, parameters, initial_carry, features)


@functools.lru_cache(maxsize=256)
def _trace_linen(module: Any, features: int) -> _TracedCell:
    name = type(module).__name__

    initial_carry = lambda: module.initialize_carry(jax.random.key(0), (features,))  # noqa: E731

    def _call(parameters: Any, carry: Any, x: Any) -> Any:
        try:
            return module.apply({"params": parameters}, carry, x)
        except InvalidRngError as error:
            raise ValueError(f"{name} must not draw random numbers in a step") from error

    _check_feature_axes(module)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), initial_carry(), jnp.zeros(features))
    )
    _check_variables(name, [collection for collection in variables if collection != "params"])
    return _trace(module, _call, dict(variables.get("params", {})), initial_carry, features)


def _trace(cell: Any, call: Any, parameters: Any, initial_carry: Any, features: int) -> _TracedCell:
    """Trace a step, and check the carry and the output."""
    name = type(cell).__name__
    _check_feature_axes(cell)
    with jax.ensure_compile_time_eval():
        try:
            initial = initial_carry()
            is_zero = all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(initial))
        except Exception as error:
            raise ValueError(f"{name}: cannot evaluate the initial carry: {error}") from error
    if not is_zero:
        raise ValueError(f"{name} must have an initial carry of zeros. Pass the state as hx.")
    names: list[str] = []
    for path, _ in jax.tree_util.tree_leaves_with_path(parameters):
        key = "_".join(str(getattr(entry, "key", entry)) for entry in path)
        if not key.isidentifier() or key.startswith("_"):
            key = f"w{key}"
        while key in names or key in RESERVED_NAMES:
            key = f"{key}_1"
        names.append(key)
    carry = jax.eval_shape(lambda tree: tree, initial)
    next_carry, output = _evaluate(call, parameters, carry, features)
    if _shapes(next_carry) != _shapes(carry):
        raise ShapeError(f"{name} must return a carry {carry}, got {next_carry}")
    for leaf in jax.tree.leaves((next_carry, output)):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(f"{name} must have floating or complex states, got {leaf.dtype}")
    if not hasattr(output, "shape") or len(output.shape) != 1:
        raise ShapeError(f"{name} must return one output (features,), got {output}")

    # The output is a leaf of the carry if both are one variable of the traced program.
    jaxpr = jax.make_jaxpr(call)(parameters, carry, _input(features)).jaxpr
    *states, last = jaxpr.outvars
    index = next((i for i, variable in enumerate(states) if variable is last), None)
    return _TracedCell(call, parameters, tuple(names), carry, index, output)


def _evaluate(call: Any, parameters: Any, carry: Any, features: int) -> Any:
    """Return the shapes and dtypes of the results of a step."""
    try:
        return jax.eval_shape(call, parameters, carry, _input(features))
    except (TypeError, ValueError) as error:
        raise _FeaturesError(f"a step with {features} input features fails: {error}") from error


def _check_feature_axes(cell: Any) -> None:
    if cell.num_feature_axes != 1:
        raise ValueError(
            f"{type(cell).__name__} must have one feature axis, got {cell.num_feature_axes}"
        )


def _check_variables(name: str, variables: Any) -> None:
    if variables:
        raise ValueError(
            f"{name} must have no variables but parameters, got {', '.join(variables)}"
        )


def _parameters(cell: Any) -> list[Any]:
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))


def _input(features: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((features,), jnp.float32)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(np.shape, tree)
