"""Checks of a cell's declarations and of the shapes that its functions return."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError
from jaxrnn.cells.base import BaseCell, Cell, GeneralCell, LinearCell, Parameter, Sizes, StateSpec

WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
"""Parameters of every `Cell`."""

RESERVED_NAMES = (
    *("cell", "input_size", "hidden_size", "bias", "dtype", "param_dtype"),
    *("nonlinearity", "parameter_names", "training"),
)
"""Attributes of modules, which no parameter may be called."""


def check_nonlinearity(value: Any) -> None:
    """Check that a nonlinearity is "tanh" or "relu"."""
    if value not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{value}'. Select from 'tanh' or 'relu'.")


def check(cell: Any) -> None:
    """Check that a cell is an instance of a cell class with valid declarations.

    Raises:
        TypeError: for another object, and for a cell that does not define its function.
        ValueError: for invalid gates, states or parameters.
    """
    if inspect.isclass(cell) and issubclass(cell, BaseCell):
        name = cell.__name__
        raise TypeError(f"`cell` must be an instance, got the class {name}. Use {name}().")
    if not isinstance(cell, (Cell, GeneralCell)):
        raise TypeError(
            "`cell` must be a jaxrnn.cells.Cell, GeneralCell or LinearCell, got "
            f"{type(cell).__name__}: {cell!r}."
        )
    try:
        hash(cell)
    except TypeError as error:
        raise TypeError(
            f"{type(cell).__name__} must be a frozen dataclass without arrays, lists or dicts in "
            f"its fields: {error}."
        ) from None
    _check_declarations(cell)


@functools.lru_cache(maxsize=256)
def _check_declarations(cell: Any) -> None:
    for base, name, signature in (
        (Cell, "step", "step(z, state)"),
        (GeneralCell, "step", "step(x, state, params)"),
        (LinearCell, "coefficients", "coefficients(x, params)"),
    ):
        if isinstance(cell, base) and getattr(type(cell), name) is getattr(base, name):
            raise TypeError(f"{type(cell).__name__} must define {signature}.")

    states, gates = cell.states, cell.gates
    has_gates = isinstance(cell, Cell)
    specs = tuple(states.values()) if isinstance(states, Mapping) else ()
    names = "a non-empty tuple of names"
    real = "names; only GeneralCell and LinearCell support StateSpec"
    for attribute, valid, expected in (
        ("states", states and not isinstance(states, str), names),
        ("states", all(isinstance(s, StateSpec) for s in specs), "a mapping of names to StateSpec"),
        ("states", not isinstance(cell, LinearCell) or len(states) == 1, "one state"),
        ("states", not (has_gates and specs), real),
        ("gates", not has_gates or (gates and not isinstance(gates, str)), names),
        ("gates", has_gates or not gates, "empty for a GeneralCell; subclass Cell for gates"),
        ("split", not (has_gates and cell.split and not cell.recurrent), "False without W_hh"),
        ("parameters", isinstance(cell.parameters, Mapping), "a mapping of names to shapes"),
    ):
        if not valid:
            actual = getattr(cell, attribute)
            raise ValueError(f"`{attribute}` of {cell} must be {expected}, got {actual!r}.")
    for name, shape in cell.parameters.items():
        public = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
        of_cell = has_gates and name in WEIGHT_NAMES
        is_shape = isinstance(shape, (Parameter, tuple, list))
        for valid, expected in (
            (public, "have a public identifier as its name"),
            (name not in RESERVED_NAMES, "not have the name of a module's attribute; rename it"),
            (not of_cell, "not have the name of a weight that every Cell has; rename it"),
            (is_shape, f'be a shape such as ("H",) or a Parameter, got {shape!r}'),
        ):
            if not valid:
                raise ValueError(f"Parameter {name!r} of {cell} must {expected}.")


@functools.lru_cache(maxsize=256)
def check_step(cell: BaseCell, sizes: Sizes) -> None:
    """Check the shapes and dtypes that the functions of a cell return, by tracing them.

    Raises:
        ShapeError: a ValueError and a RuntimeError, for other results.
    """
    batch = (2,) if isinstance(cell, Cell) else ()
    real, array = jnp.dtype("float32"), jax.ShapeDtypeStruct
    sizes_and_dtypes = zip(cell.state_sizes(sizes), cell.state_dtypes(real), strict=True)
    state = tuple(array((size, *batch), dtype) for size, dtype in sizes_and_dtypes)
    params = {
        name: array((*shape, 1) if batch and len(shape) == 1 else shape, real)
        for name, shape in cell.cell_parameter_shapes(sizes).items()
    }
    if isinstance(cell, Cell):
        z = array((len(cell.gates) * sizes.H, *batch), real)
        new = _trace(cell, "step", (z, z) if cell.split else z, state, *[params] * bool(params))
        expected = (array((sizes.H, *batch), real), *state[1:])  # h before its projection
        _check_results(cell, "step", new, expected, cell.states)
        return
    x = array((sizes.D,), real)
    if isinstance(cell, LinearCell):
        pair = _trace(cell, "coefficients", x, params)
        _check_results(cell, "coefficients", pair, (state[0],) * 2, ("a", "b"))
    else:
        new = _trace(cell, "step", _trace(cell, "inputs", x, params), state, params)
        _check_results(cell, "step", new, state, cell.states)
    output = _trace(cell, "output", x, state, params)
    expected = array((cell.output_features(sizes),), real)
    _check_results(cell, "output", (output,), (expected,), ("output",))


def _trace(cell: BaseCell, name: str, *args: Any) -> Any:
    try:
        return jax.eval_shape(getattr(cell, name), *args)
    except Exception as error:
        shapes = ", ".join(str(jax.tree.map(_describe, arg)).replace("'", "") for arg in args)
        error.add_note(f"in {cell}.{name}, called with {shapes}")
        raise


def _check_results(cell: Any, function: str, actual: Any, expected: Any, names: Any) -> None:
    """Check that results have the expected shapes and are real or complex as expected."""
    shapes = ", ".join(f"{name} {_describe(one)}" for name, one in zip(names, expected))
    message = f"{type(cell).__name__}.{function} must return {shapes}"
    if not isinstance(actual, (tuple, list)) or len(actual) != len(expected):
        count = f"{len(actual)} of them" if isinstance(actual, (tuple, list)) else _describe(actual)
        raise ShapeError(f"{message}, a tuple of {len(expected)}, got {count}.")
    for one, want in zip(actual, expected):
        same_shape = getattr(one, "shape", None) == want.shape
        is_complex = same_shape and jnp.iscomplexobj(one)
        allowed = jnp.inexact if jnp.iscomplexobj(want) else jnp.floating
        if not same_shape or not jnp.issubdtype(one.dtype, allowed):
            hint = " Declare a complex state with StateSpec(complex=True)." if is_complex else ""
            raise ShapeError(f"{message}, got {', '.join(map(_describe, actual))}.{hint}")


def _describe(one: Any) -> str:
    return f"{one.dtype.name}{list(one.shape)}" if hasattr(one, "shape") else type(one).__name__
