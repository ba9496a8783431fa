"""`FromNnx` and `FromLinen`: Flax's cells as general cells, for `jaxrnn.Recurrent`.

What Flax calls the carry and the output of a step are the states here. The first state is what the
cell gives out: one of the arrays of the carry, where it is one, and else a state of its own, which
no step reads. The other arrays of the carry follow in their order.
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

from jaxrnn.cells import GeneralCell, Sizes, State, StateSpec
from jaxrnn.cells.checking import TAKEN
from jaxrnn.checks import ShapeError

_ANY = 64  # input features to look at a cell with, where it takes any number


class _Misfit(ShapeError):
    """A step that can't be traced with an input of so many features."""


class _Form(NamedTuple):
    """What is known of a Flax cell whose input has D features.

    Attributes:
        call: ``(parameters, carry, x) -> (carry, output)``, parameters a pytree.
        parameters: that pytree, of shapes and dtypes.
        names: of its arrays, in their order.
        carry: a pytree of shapes and dtypes.
        given: which of the carry's arrays is the output; None if it is none of them.
        output: the shape and dtype of the output.
    """

    call: Callable[..., Any]
    parameters: Any
    names: tuple[str, ...]
    carry: Any
    given: int | None
    output: Any

    @property
    def first(self) -> tuple[int | None, ...]:
        """The arrays of the carry in the order of the states; None for the output alone."""
        others = [i for i in range(len(jax.tree.leaves(self.carry))) if i != self.given]
        return self.given, *others


@dataclass(frozen=True)
class _FlaxCell(GeneralCell):
    """What both have in common."""

    def form(self, features: int) -> _Form:
        """The cell for an input of so many features."""
        raise NotImplementedError

    def draw(self, key: Any, sizes: Sizes, dtype: Any) -> dict[str, jax.Array]:  # pyright: ignore
        raise NotImplementedError

    def _any_form(self) -> _Form:
        return self.form(_ANY)

    @property
    def states(self) -> Mapping[str, StateSpec]:  # pyright: ignore
        form = self._any_form()
        paths = jax.tree_util.tree_leaves_with_path(form.carry)
        named = {}
        for index in form.first:
            path, leaf = ((), form.output) if index is None else paths[index]
            name = "output" if index is None else "carry" + jax.tree_util.keystr(path)
            whether = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
            named[name] = StateSpec(math.prod(leaf.shape), whether)
        return named

    @property
    def hidden_size(self) -> int:  # pyright: ignore
        return self._any_form().output.shape[0]

    def own_shapes(self, sizes: Sizes, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
        if not bias:
            raise ValueError(f"bias=False: the biases of {self} are its own, make it without them")
        if self.hidden_size != sizes.H:
            raise ValueError(
                f"hidden_size should be {self.hidden_size}, the features that {self} gives out, "
                f"got {sizes.H}"
            )
        form = self.form(sizes.D)
        leaves = jax.tree.leaves(form.parameters)
        return {name: leaf.shape for name, leaf in zip(form.names, leaves, strict=True)}

    def step(self, x: jax.Array, state: State, params: Any) -> State:  # pyright: ignore
        form = self.form(x.shape[-1])
        leaves, tree = jax.tree.flatten(form.carry)
        for index, array in zip(form.first, state, strict=True):
            if index is not None:
                leaves[index] = array.reshape(leaves[index].shape)
        structure = jax.tree.structure(form.parameters)
        parameters = jax.tree.unflatten(structure, [params[name] for name in form.names])
        carry, output = form.call(parameters, jax.tree.unflatten(tree, leaves), x)
        new = jax.tree.leaves(carry)
        return tuple(output if i is None else new[i].reshape(-1) for i in form.first)

    def carry(self, hx: Any) -> Any:
        """The carry in Flax's form, of a state of `jaxrnn.Recurrent` (..., S), of any rows."""
        form, states = self._any_form(), hx if isinstance(hx, (tuple, list)) else (hx,)
        leaves, tree = jax.tree.flatten(form.carry)
        for index, array in zip(form.first, states, strict=True):
            if index is not None:
                leaves[index] = array.reshape(*array.shape[:-1], *leaves[index].shape)
        return jax.tree.unflatten(tree, leaves)


@dataclass(frozen=True)
class FromNnx(_FlaxCell):
    """A cell of Flax's nnx for `jaxrnn.Recurrent`, with all that the layers can do.

    Args:
        source: a function ``(in_features, rngs=) -> nnx.RNNCellBase`` that makes one for an input
            of so many features: each layer and direction is one. Or a cell itself, whose weights
            they all begin with; it has an input of one size, so that a second layer fits only
            where what goes in and out has as many features.

    The parameters of the layer are those of the cell, their paths joined by "_":
    ``dense_i_kernel_l0``. Its states begin from zeros.

    The same function object is the same cell to ``jax.jit``: make it once.

    Raises:
        TypeError: for what is neither.
        ValueError: for a cell with several feature axes, with random numbers or variables that
            change, with a carry that does not begin from zeros, or of integers; for a
            `hidden_size` that is not the features that it gives out, an input that it does not
            take, and ``bias=False``.

    Example:
        >>> import functools, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.adapters import FromNnx
        >>> cell = FromNnx(functools.partial(nnx.GRUCell, hidden_features=4))
        >>> layer = jaxrnn.Recurrent(cell, 3, 4, 2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)), lengths=jnp.array([5, 2]))
        >>> output.shape, h_n.shape
        ((5, 2, 8), (4, 2, 4))

        One that is there, with its weights:

        >>> cell = FromNnx(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
        >>> layer = jaxrnn.Recurrent(cell, 3, 4, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape, layer.parameter_names[:2]
        ((5, 2, 4), (1, 2, 4), ('hf_bias_l0', 'hf_kernel_l0'))
    """

    source: Any

    def __post_init__(self):
        if isinstance(self.source, nnx.RNNCellBase):
            object.__setattr__(self, "source", _Instance(self.source))
        elif not callable(self.source) or isinstance(self.source, (nnx.Module, linen.Module)):
            raise TypeError(
                "source should be an nnx.RNNCellBase or a function (in_features, rngs=) that makes "
                f"one, got {self.source!r}"
            )

    def form(self, features: int) -> _Form:
        """The cell for an input of so many features."""
        if isinstance(self.source, _Instance):
            self.source.takes(features)
            return self.source.form
        return _nnx_form(self.source, features)

    def _any_form(self) -> _Form:
        return self.source.form if isinstance(self.source, _Instance) else super()._any_form()

    def draw(self, key: Any, sizes: Sizes, dtype: Any) -> dict[str, jax.Array]:  # pyright: ignore
        """The parameters that the cell begins with, by its own initialisers."""
        names = self.form(sizes.D).names
        if isinstance(self.source, _Instance):
            leaves = [jnp.asarray(value) for value in self.source.values]
        else:
            made = self.source(sizes.D, rngs=nnx.Rngs(key))
            leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(made, nnx.Param)))
        return {name: leaf.astype(dtype) for name, leaf in zip(names, leaves, strict=True)}


class _Instance:
    """An nnx cell as it was, compared by value: what was compiled for one serves its equal."""

    def __init__(self, cell: nnx.RNNCellBase):
        parameters = jax.tree.leaves(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
        self.values = tuple(map(np.asarray, parameters))
        self.graph = nnx.graphdef(cell)
        self.name = type(cell).__name__
        sizes = {size: None for value in self.values for size in value.shape}
        own = getattr(cell, "in_features", None)
        for features in [own] if isinstance(own, int) else sizes:
            try:
                self.form = _read_nnx(cell, features)
                return
            except _Misfit as error:
                problem = error.__cause__
        raise ValueError(f"no number of input features was found that {self.name} takes: {problem}")

    def takes(self, features: int) -> None:
        """Whether the cell has an input of so many features.

        Raises:
            ValueError: if it has not.
        """
        try:
            got = _traced(self.form, features)
        except _Misfit as error:
            raise ValueError(
                f"{self.name} does not take an input of {features} features, as a layer here has: "
                "give FromNnx a function that makes the cell, (in_features, rngs=) -> cell"
            ) from error
        if jax.tree.map(_shape, got) != jax.tree.map(_shape, (self.form.carry, self.form.output)):
            raise ValueError(f"{self.name} gives another output for {features} input features")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Instance)
            and self.graph == other.graph
            and self._content == other._content
        )

    def __hash__(self) -> int:
        return hash((self.graph, self._content))

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        return tuple((value.shape, value.dtype, value.tobytes()) for value in self.values)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FromLinen(_FlaxCell):
    """A cell of Flax's linen for `jaxrnn.Recurrent`, with all that the layers can do.

    Args:
        source: the unbound ``linen.RNNCellBase``; each layer and direction has parameters of its
            own, drawn by it, named by their paths joined by "_".

    Raises:
        TypeError, ValueError: as of `FromNnx`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import linen, nnx
        >>> from jaxrnn.adapters import FromLinen
        >>> cell = FromLinen(linen.MGUCell(4))
        >>> layer = jaxrnn.Recurrent(cell, 3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape
        (5, 2, 8)
    """

    source: Any

    def __post_init__(self):
        if not isinstance(self.source, linen.RNNCellBase):
            raise TypeError(f"source should be a linen.RNNCellBase, got {self.source!r}")

    def form(self, features: int) -> _Form:
        """The cell for an input of so many features."""
        return _linen_form(self.source, features)

    def draw(self, key: Any, sizes: Sizes, dtype: Any) -> dict[str, jax.Array]:  # pyright: ignore
        """The parameters that the cell begins with, by its own initialisers."""
        form = self.form(sizes.D)
        x = jnp.zeros(sizes.D)
        carry = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), form.carry)
        leaves = jax.tree.leaves(self.source.init(key, carry, x)["params"])
        return {name: leaf.astype(dtype) for name, leaf in zip(form.names, leaves, strict=True)}


@functools.lru_cache(maxsize=256)
def _nnx_form(make: Any, features: int) -> _Form:
    return _read_nnx(nnx.eval_shape(lambda: make(features, rngs=nnx.Rngs(0))), features)


def _read_nnx(cell: Any, features: int) -> _Form:
    """What is known of an nnx cell, its arrays there or abstract."""
    name = type(cell).__name__
    if not isinstance(cell, nnx.RNNCellBase):
        raise TypeError(f"expected an nnx.RNNCellBase, got {name}")
    _one_feature_axis(cell)
    graph, state, rest = nnx.split(cell, nnx.Param, ...)
    others = {"/".join(map(str, path)): value for path, value in nnx.to_flat_state(rest)}
    random = [path for path, value in others.items() if isinstance(value, nnx.RngState)]
    if random:
        raise ValueError(
            f"{name} draws random numbers in a step ({', '.join(random)}): no cell can"
        )
    if others:
        raise ValueError(f"{name} has variables beside its parameters: {', '.join(others)}")
    structure = jax.tree.structure(state)

    def call(parameters: Any, carry: Any, x: Any) -> Any:
        values = jax.tree.unflatten(structure, jax.tree.leaves(parameters))
        return nnx.merge(graph, values, nnx.State({}))(carry, x)

    parameters = jax.tree.map(_abstract, nnx.to_pure_dict(state))
    begin = lambda: cell.initialize_carry((features,), nnx.Rngs(0))  # noqa: E731
    return _read(name, call, parameters, begin, features)


@functools.lru_cache(maxsize=256)
def _linen_form(module: Any, features: int) -> _Form:
    name = type(module).__name__
    _one_feature_axis(module)
    begin = lambda: module.initialize_carry(jax.random.key(0), (features,))  # noqa: E731
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), begin(), jnp.zeros(features)))
    others = [collection for collection in variables if collection != "params"]
    if others:
        raise ValueError(f"{name} has variables beside its parameters: {', '.join(others)}")

    def call(parameters: Any, carry: Any, x: Any) -> Any:
        try:
            return module.apply({"params": parameters}, carry, x)
        except InvalidRngError as error:
            raise ValueError(f"{name} draws random numbers in a step: no cell can") from error

    return _read(name, call, dict(variables.get("params", {})), begin, features)


def _read(name: str, call: Any, parameters: Any, begin: Any, features: int) -> _Form:
    """The form of a cell that is called so, with these parameters and this first carry."""
    with jax.ensure_compile_time_eval():
        try:
            first = begin()
            zero = all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(first))
        except Exception as error:
            raise ValueError(f"{name}: its first carry can't be told: {error}") from error
    if not zero:
        raise ValueError(
            f"{name} has a first carry that is not zero (carry_init): "
            "make it without, and give such a state as hx"
        )
    names: list[str] = []
    for path, _ in jax.tree_util.tree_leaves_with_path(parameters):
        own = "_".join(str(getattr(key, "key", key)) for key in path)
        while own in names or own in TAKEN or not own.isidentifier() or own.startswith("_"):
            own = f"w{own}" if not own.isidentifier() or own.startswith("_") else f"{own}_1"
        names.append(own)
    form = _Form(call, parameters, tuple(names), jax.tree.map(_abstract, first), None, None)
    carry, output = _traced(form, features)
    if jax.tree.map(_shape, carry) != jax.tree.map(_shape, form.carry):
        raise ShapeError(f"{name} takes a carry {form.carry}, and gives {carry}")
    for leaf in jax.tree.leaves((carry, output)):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(f"{name} has a state of {leaf.dtype}: expected floating or complex")
    if not hasattr(output, "shape") or len(output.shape) != 1:
        raise ShapeError(f"{name} should give out one array (features,), got {output}")
    # The output is a state where the traced program says that they are one variable.
    flat = lambda p, c, x: jax.tree.leaves(call(p, c, x))  # noqa: E731
    out = jax.make_jaxpr(flat)(parameters, form.carry, _x(features)).jaxpr.outvars
    given = next((i for i, variable in enumerate(out[:-1]) if variable is out[-1]), None)
    return form._replace(given=given, output=output)


def _traced(form: _Form, features: int) -> Any:
    try:
        return jax.eval_shape(form.call, form.parameters, form.carry, _x(features))
    except (TypeError, ValueError) as error:
        raise _Misfit(f"a step of {features} input features fails: {error}") from error


def _one_feature_axis(cell: Any) -> None:
    if cell.num_feature_axes != 1:
        raise ValueError(
            f"{type(cell).__name__} has {cell.num_feature_axes} feature axes: a layer here has one"
        )


def _x(features: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((features,), jnp.float32)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape)
