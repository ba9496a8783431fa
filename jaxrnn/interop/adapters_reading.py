"""What a cell of Flax is, found by tracing it: its parameters, its carry, what it gives out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import InvalidRngError

from jaxrnn._checks import ShapeError
from jaxrnn.cells._check import RESERVED_NAMES


class Misfit(ShapeError):
    """A step that can't be traced with an input of so many features."""


class Form(NamedTuple):
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


class Instance:
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
            except Misfit as error:
                problem = error.__cause__
        raise ValueError(f"no number of input features was found that {self.name} takes: {problem}")

    def takes(self, features: int) -> None:
        """Whether the cell has an input of so many features.

        Raises:
            ValueError: if it has not.
        """
        try:
            got = _traced(self.form, features)
        except Misfit as error:
            raise ValueError(
                f"{self.name} does not take an input of {features} features, as a layer here has: "
                "give FromNnx a function that makes the cell, (in_features, rngs=) -> cell"
            ) from error
        if jax.tree.map(_shape, got) != jax.tree.map(_shape, (self.form.carry, self.form.output)):
            raise ValueError(f"{self.name} gives another output for {features} input features")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Instance)
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


@functools.lru_cache(maxsize=256)
def nnx_form(make: Any, features: int) -> Form:
    """The form of the nnx cell that a function makes, looked at without an array."""
    return _read_nnx(nnx.eval_shape(lambda: make(features, rngs=nnx.Rngs(0))), features)


def _read_nnx(cell: Any, features: int) -> Form:
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
def linen_form(module: Any, features: int) -> Form:
    """The form of a linen cell."""
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


def _read(name: str, call: Any, parameters: Any, begin: Any, features: int) -> Form:
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
        while (
            own in names or own in RESERVED_NAMES or not own.isidentifier() or own.startswith("_")
        ):
            own = f"w{own}" if not own.isidentifier() or own.startswith("_") else f"{own}_1"
        names.append(own)
    form = Form(call, parameters, tuple(names), jax.tree.map(_abstract, first), None, None)
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


def _traced(form: Form, features: int) -> Any:
    try:
        return jax.eval_shape(form.call, form.parameters, form.carry, _x(features))
    except (TypeError, ValueError) as error:
        raise Misfit(f"a step of {features} input features fails: {error}") from error


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
