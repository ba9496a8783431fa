"""Base classes of cells: declarations of states and parameters, and the function of a step.

A size is an integer or a product of integers and letters, such as ``"H"``, ``"3*H"``, ``"D"``:

| letter | meaning |
|---|---|
| D | input features of the layer |
| H | hidden size |
| G | number of gates |
| R | features of h: P if projected, else H |
| other names | an integer attribute of the cell |
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

State = tuple[jax.Array, ...]
Size = int | str


def compute_dtype(dtype: Any) -> Any:
    """Return the dtype of accumulation and of a cell's step: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def upcast(tree: Any) -> Any:
    """Cast every array of a pytree to its compute dtype."""
    return jax.tree.map(lambda a: a.astype(compute_dtype(a.dtype)), tree)


def cast(tree: Any, dtype: Any) -> Any:
    """Cast every array of a pytree to a dtype."""
    return jax.tree.map(lambda a: a.astype(dtype), tree)


class Parameter(NamedTuple):
    """Shape and initialiser of a cell parameter.

    Attributes:
        shape: a tuple of sizes, see `jaxrnn.cells.base`.
        init: None for PyTorch's U(-1/sqrt(H), 1/sqrt(H)); a number to fill with; or a function
            ``(key, shape, dtype) -> array`` such as one of `jax.nn.initializers`.
    """

    shape: tuple[Size, ...]
    init: float | Callable[..., jax.Array] | None = None


class StateSpec(NamedTuple):
    """Size and kind of a state.

    Attributes:
        size: number of features, see `jaxrnn.cells.base`.
        complex: if True, the state is complex.
    """

    size: Size = "H"
    complex: bool = False


class Sizes(NamedTuple):
    """Values of the letters D, H and R in one layer."""

    D: int
    H: int
    R: int


@dataclass(frozen=True)
class BaseCell:
    """Base class of `Cell`, `GeneralCell` and `LinearCell`.

    A cell is a frozen dataclass without arrays, so that it can be a static argument of `jax.jit`.

    Attributes:
        states: names of the states, each of H real features; or a mapping of names to
            `StateSpec`. The first is the hidden state h.
        parameters: a mapping of names to shapes or `Parameter`. A layer stores each one as
            ``<name>_l{k}{_reverse}``. With ``bias=False`` a layer has no parameter whose name
            begins with "bias"; the step gets zeros instead.
        output_size: features of the output at each step; None for those of the first state.
        hidden_size: H of a cell with a fixed hidden size; None to take it from the layer.
        draw: optional function ``(key, sizes, dtype) -> dict`` that draws all parameters.
    """

    states: ClassVar[Sequence[str] | Mapping[str, StateSpec]] = ("h",)
    parameters: ClassVar[Mapping[str, Any]] = {}
    output_size: ClassVar[Size | None] = None
    hidden_size: ClassVar[int | None] = None
    draw: ClassVar[Callable[..., dict[str, jax.Array]] | None] = None
    gates: ClassVar[tuple[str, ...]] = ()  # of a `Cell`
    split: ClassVar[bool] = False  # of a `Cell`

    def initialize(self, parameters: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the initial parameters of a layer from the drawn ones."""
        return parameters

    def parameter_specs(self) -> dict[str, Parameter]:
        """Return the declared parameters as `Parameter`."""
        declared = self.parameters.items()
        return {n: p if isinstance(p, Parameter) else Parameter(tuple(p)) for n, p in declared}

    def shapes(self, sizes: Sizes, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter of one layer and direction, in order."""
        return self.cell_parameter_shapes(sizes, bias=bias)

    def cell_parameter_shapes(
        self, sizes: Sizes, *, bias: bool = True
    ) -> dict[str, tuple[int, ...]]:
        """Return the shape of each declared parameter."""
        return {
            name: tuple(self.evaluate_size(size, sizes) for size in parameter.shape)
            for name, parameter in self.parameter_specs().items()
            if bias or not name.startswith("bias")
        }

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Return the specification of each state."""
        if isinstance(self.states, Mapping):
            return tuple(self.states.values())
        return (StateSpec("R"), *(StateSpec(),) * (len(self.states) - 1))

    def state_sizes(self, sizes: Sizes) -> tuple[int, ...]:
        """Return the number of features of each state."""
        return tuple(self.evaluate_size(spec.size, sizes) for spec in self.state_specs())

    def state_dtypes(self, dtype: Any) -> tuple[Any, ...]:
        """Return the dtype of each state, given that of real states."""
        complex_dtype = jnp.result_type(dtype, jnp.complex64)
        return tuple(complex_dtype if s.complex else jnp.dtype(dtype) for s in self.state_specs())

    def output_features(self, sizes: Sizes) -> int:
        """Return the number of features of the output."""
        size = self.state_specs()[0].size if self.output_size is None else self.output_size
        return self.evaluate_size(size, sizes)

    def evaluate_size(self, size: Size, sizes: Sizes) -> int:
        """Return the value of a size in a layer.

        Raises:
            ValueError: for a name that is not a letter or a non-negative integer attribute.

        Example:
            >>> from jaxrnn.cells import LSTM, Sizes
            >>> LSTM().evaluate_size("G*H", Sizes(D=3, H=5, R=5))
            20
        """
        letters, total = sizes._asdict() | {"G": len(self.gates)}, 1
        for factor in str(size).split("*"):
            name = factor.strip()
            value: Any = int(name) if name.isdigit() else letters.get(name)
            value = getattr(self, name, None) if value is None else value
            if not hasattr(value, "__index__") or value < 0:
                raise ValueError(
                    f"Size {size!r} of {self} must be a product of integers, D, H, G, R and "
                    f"integer attributes of the cell, got {value!r} for {name!r}."
                )
            total *= operator.index(value)
        return total


@dataclass(frozen=True)
class Cell(BaseCell):
    r"""A cell of gates: an elementwise step on the gate pre-activations.

    The layer computes the matrix products and calls :meth:`step`:

    .. math::
        z_x &= W_{ih} x_t + b_{ih} \\
        z_h &= W_{hh} h_{t-1} + b_{hh} \\
        s_t &= \operatorname{step}(z_x + z_h, s_{t-1})

    Arrays are feature-major inside a step, z (G*H, N) and the state a tuple of (H, N), so that each
    gate is contiguous in memory. Kernels run a step that is elementwise; the scan runs any.

    Attributes:
        gates: names of the gates, in the order of the weights.
        states: names of the states; W_hh multiplies the first, which is also the output.
        split: if True, the step takes the pair ``(zx, zh)`` instead of the sum.
        recurrent: if False, there is no W_hh and b_hh, and z is zx.
        biased: if False, there is no b_ih and b_hh.
        parameters: further parameters, see `BaseCell`. The step then takes a dict of them as a
            third argument, each vector (H,) as (H, 1).

    Example:
        A cell with one gate (Zhou et al., 2016, without reset):

        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> @dataclasses.dataclass(frozen=True)
        ... class OneGate(jaxrnn.Cell):
        ...     gates = ("f", "n")
        ...     def step(self, z, state):
        ...         (h,), (f, n) = state, self.split_gates(z)
        ...         f = jax.nn.sigmoid(f)
        ...         return ((1 - f) * h + f * jnp.tanh(n),)
        >>> layer = jaxrnn.Recurrent(OneGate(), 3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape
        ((5, 2, 8), (2, 2, 4))
    """

    recurrent: ClassVar[bool] = True
    biased: ClassVar[bool] = True

    def step(self, *args: Any, **kwargs: Any) -> State:
        """Return the new states, from ``step(z, state)`` or ``step(z, state, params)``."""
        raise NotImplementedError(f"{type(self).__name__} must define step(z, state).")

    def split_gates(self, z: jax.Array) -> list[jax.Array]:
        """Split z (G*H, N) into G arrays (H, N), in the order of `gates`."""
        return jnp.split(z, len(self.gates))

    def shapes(self, sizes: Sizes, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter of one layer and direction, in PyTorch's order."""
        features = len(self.gates) * sizes.H
        shape: dict[str, tuple[int, ...]] = {"weight_ih": (features, sizes.D)}
        if self.recurrent:
            shape["weight_hh"] = (features, sizes.R)
        if bias and self.biased:
            shape["bias_ih"] = (features,)
            if self.recurrent:
                shape["bias_hh"] = (features,)
        if sizes.R != sizes.H:
            shape["weight_hr"] = (sizes.R, sizes.H)
        return shape | self.cell_parameter_shapes(sizes, bias=bias)

    # The derivative rule of the step. These defaults are `jax.jvp`; `jaxrnn.backends.elementwise`
    # derives a better rule for an elementwise step, unless the cell overrides all three functions.

    def save(self, z: Any, state: State, *params: Any) -> tuple[State, Any]:
        """Compute one step in the forward loop; return the new states and the residuals."""
        return self.step(z, state, *params), z

    def linearize(self, residuals: Any, old: State, new: State, *params: Any) -> Any:
        """Return the coefficients of `tangent` from the residuals and the states of a step."""
        del new, params
        return residuals, old

    def tangent(self, coefficients: Any, dz: Any, dstate: State, *params: Any) -> State:
        """Return the tangents of the new states, linear in ``dz``, ``dstate`` and ``dparams``.

        For a cell with parameters ``*params`` is ``params, dparams``; ``dparams`` is None in the
        loop over time, where the parameters are constant.
        """
        values, dparams = params or (None, None)
        if dparams is None:
            step = lambda z, old: self.step(z, old, *params[:1])  # noqa: E731
            return jax.jvp(step, coefficients, (dz, dstate))[1]
        return jax.jvp(self.step, (*coefficients, values), (dz, dstate, dparams))[1]


@dataclass(frozen=True)
class GeneralCell(BaseCell):
    """A cell with any step, which may multiply matrices.

    The step is written for one sequence: x is the result of `inputs`, by default the input (D,), a
    state is a tuple of (H,) or of the declared sizes, and ``params`` is a dict of all `parameters`.
    `jax.vmap` adds the batch axis. The backend is the scan, and the derivative is JAX's.

    Example:
        A product of two projections of the state (multiplicative integration):

        >>> import dataclasses, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> @dataclasses.dataclass(frozen=True)
        ... class Multiplicative(jaxrnn.cells.GeneralCell):
        ...     parameters = {"weight_ih": ("H", "D"), "weight_hh": ("H", "H")}
        ...     def step(self, x, state, params):
        ...         return (jnp.tanh((params["weight_ih"] @ x) * (params["weight_hh"] @ state[0])),)
        >>> layer = jaxrnn.Recurrent(Multiplicative(), 3, 4, num_layers=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape
        (5, 2, 4)
    """

    def inputs(self, x: Any, params: Any) -> Any:
        """Return the part of a step that does not need the state; x by default.

        The layer computes it for a whole block of steps at once.
        """
        del params
        return x

    def step(self, *args: Any, **kwargs: Any) -> State:
        """Return the new states of one sequence, from ``step(x, state, params)``."""
        raise NotImplementedError(f"{type(self).__name__} must define step(x, state, params).")

    def output(self, x: Any, state: State, params: Any) -> jax.Array:
        """Return the output of a step from its input (D,) and its new states; by default h."""
        del x, params
        return state[0]


@dataclass(frozen=True)
class LinearCell(GeneralCell):
    r"""A cell whose state is linear in the previous state, and so parallel in time.

    .. math::
        a_t, b_t &= \operatorname{coefficients}(x_t) \\
        s_t &= a_t \odot s_{t-1} + b_t \\
        y_t &= \operatorname{output}(x_t, s_t)

    There is one state, of H real features by default, which is also the default output. The backend
    "parallel" is `jax.lax.associative_scan` over the steps.

    Example:
        An exponential moving average with learned rates:

        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> @dataclasses.dataclass(frozen=True)
        ... class Average(jaxrnn.cells.LinearCell):
        ...     parameters = {"weight_ih": ("H", "D"), "rate": ("H",)}
        ...     def coefficients(self, x, params):
        ...         a = jax.nn.sigmoid(params["rate"])
        ...         return a, (1 - a) * (params["weight_ih"] @ x)
        >>> layer = jaxrnn.Recurrent(Average(), 3, 4, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape
        (5, 2, 4)
    """

    def coefficients(self, x: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        """Return a and b of a step from its input x (D,), each with the shape of the state."""
        raise NotImplementedError(f"{type(self).__name__} must define coefficients(x, params).")

    def inputs(self, x: Any, params: Any) -> Any:
        """Return the coefficients in the dtype of the state."""
        a, b = self.coefficients(x, params)
        dtype = self.state_dtypes(x.dtype)[0]
        return a.astype(dtype), b.astype(dtype)

    def step(self, *args: Any, **kwargs: Any) -> State:
        """Compute one step ``a * s + b``."""
        (a, b), (s,), _ = args
        return (a * s + b,)
