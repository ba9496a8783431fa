"""Whether a cell is one: what it declares, and what its functions give, before anything is run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError
from jaxrnn.cells.base import BaseCell, Parameter, Sizes, StateSpec
from jaxrnn.cells.gated import Cell
from jaxrnn.cells.general import GeneralCell, LinearCell

WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
"""The parameters that the recurrence gives to a cell of gates."""

RESERVED_NAMES = (
    *("cell", "input_size", "hidden_size", "bias", "dtype", "param_dtype"),
    *("nonlinearity", "parameter_names", "training"),
)
"""What a module has already, and so no parameter can be called."""

_ROWS = 2


def check_nonlinearity(value: Any) -> None:
    """Check that a nonlinearity is "tanh" or "relu"."""
    if value not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{value}'. Select from 'tanh' or 'relu'.")


def check(cell: Any) -> None:
    """Whether this is a cell, by what it declares.

    Raises:
        TypeError: for what is none, and for one that does not define its function.
        ValueError: for gates, states or parameters that can't be.
    """
    if inspect.isclass(cell) and issubclass(cell, BaseCell):
        raise TypeError(f"cell should be an instance, got the class {cell.__name__}: use it called")
    if not isinstance(cell, (Cell, GeneralCell)):
        raise TypeError(
            "cell should be a jaxrnn.cells.Cell, GeneralCell or LinearCell, got "
            f"{type(cell).__name__}: {cell!r}"
        )
    try:
        hash(cell)
    except TypeError as error:
        raise TypeError(
            f"{type(cell).__name__} should be a frozen dataclass without arrays, lists or dicts "
            f"in its fields: {error}"
        ) from None
    _declared(cell)


@functools.lru_cache(maxsize=256)
def _declared(cell: Any) -> None:
    kind = type(cell)
    for base, name, form in (
        (Cell, "step", "step(z, state)"),
        (GeneralCell, "step", "step(x, state, params)"),
        (LinearCell, "coefficients", "coefficients(x, params) -> (a, b)"),
    ):
        if isinstance(cell, base) and getattr(kind, name) is getattr(base, name):
            raise TypeError(f"{kind.__name__} must define {form}")
    if not cell.states or isinstance(cell.states, str):
        raise ValueError(f"{cell} should name its states in a tuple, got {cell.states!r}")
    if isinstance(cell.states, Mapping) and not all(
        isinstance(spec, StateSpec) for spec in cell.states.values()
    ):
        raise ValueError(f"{cell} should give its states as StateSpec, got {cell.states!r}")
    if isinstance(cell, LinearCell) and len(cell.states) != 1:
        raise ValueError(f"{cell} should have one state, got {tuple(cell.states)}")
    if isinstance(cell, Cell):
        if not cell.gates or isinstance(cell.gates, str):
            raise ValueError(f"{cell} should name its gates in a tuple, got {cell.gates!r}")
        if isinstance(cell.states, Mapping):
            raise ValueError(
                f"{cell} has states of its own size or dtype, {cell.states!r}: a Cell has states "
                "of H real numbers, a GeneralCell or LinearCell any"
            )
        if cell.split and not cell.recurrent:
            raise ValueError(f"{cell} has no W_hh (recurrent=False), so there is nothing to split")
    elif cell.gates:
        raise ValueError(f"{cell} is no Cell, and has no gates; got {cell.gates!r}")
    if not isinstance(cell.parameters, Mapping):
        raise ValueError(f"parameters of {cell} should be a mapping, got {cell.parameters!r}")
    for name, shape in cell.parameters.items():
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"{cell} has a parameter {name!r}, which is no name")
        if name in RESERVED_NAMES:
            raise ValueError(
                f"{cell} has a parameter {name!r}, as a module has: give it another name, "
                f"as {name + '_1'!r}"
            )
        if isinstance(cell, Cell) and name in WEIGHT_NAMES:
            raise ValueError(
                f"{cell} has a parameter {name!r}, but so have all cells of gates: give it another "
                "name, or make the cell a GeneralCell"
            )
        if not isinstance(shape, (Parameter, tuple, list)):
            raise ValueError(
                f'parameter {name!r} of {cell} should be a shape, as ("H",), or a Parameter, '
                f"got {shape!r}"
            )


@functools.lru_cache(maxsize=256)
def check_step(cell: BaseCell, sizes: Sizes) -> None:
    """Whether the functions of a cell give what they should, traced on arrays of these sizes.

    Raises:
        ShapeError: a ValueError and a RuntimeError, naming the cell, what came and what was
            expected.
    """
    rows = (_ROWS,) if isinstance(cell, Cell) else ()
    real = jnp.dtype("float32")
    array = jax.ShapeDtypeStruct
    dtypes = cell.state_dtypes(real)
    state = tuple(
        array((size, *rows), dtype)
        for size, dtype in zip(cell.state_sizes(sizes), dtypes, strict=True)
    )
    declared = cell.cell_parameter_shapes(sizes)
    column = lambda shape: (*shape, 1) if rows and len(shape) == 1 else shape  # noqa: E731
    params = {name: array(column(shape), real) for name, shape in declared.items()}
    if isinstance(cell, Cell):
        z = array((len(cell.gates) * sizes.H, *rows), real)
        own = (params,) if params else ()
        new = _traced(cell, "step", (z, z) if cell.split else z, state, *own)
        # What a projection makes of h is not the cell's business.
        after = (array((sizes.H, *rows), real), *state[1:])
        _same(cell, "step", new, after, cell.states)
        return
    assert isinstance(cell, GeneralCell)
    x = array((sizes.D,), real)
    if isinstance(cell, LinearCell):
        pair = _traced(cell, "coefficients", x, params)
        _same(cell, "coefficients", pair, (state[0],) * 2, ("a", "b"))
    else:
        given = _traced(cell, "inputs", x, params)
        _same(cell, "step", _traced(cell, "step", given, state, params), state, cell.states)
    output = _traced(cell, "output", x, state, params)
    want = array((cell.output_features(sizes),), real)
    _same(cell, "output", (output,), (want,), ("output",))


def _traced(cell: BaseCell, name: str, *args: Any) -> Any:
    try:
        return jax.eval_shape(getattr(cell, name), *args)
    except Exception as error:
        shown = ", ".join(str(jax.tree.map(_text, arg)).replace("'", "") for arg in args)
        error.add_note(f"in {cell}.{name}, called with {shown}")
        raise


def _same(cell: Any, name: str, got: Any, want: Any, parts: Any) -> None:
    """Whether arrays have the shapes and kinds of numbers that they should."""
    shown = ", ".join(f"{part} {_text(one)}" for part, one in zip(parts, want))
    head = f"{type(cell).__name__}.{name} should give {shown}"
    if not isinstance(got, (tuple, list)) or len(got) != len(want):
        what = f"{len(got)} of them" if isinstance(got, (tuple, list)) else _described(got)
        raise ShapeError(f"{head}, a tuple of {len(want)}; got {what}")
    for one, expected in zip(got, want):
        fits = hasattr(one, "shape") and one.shape == expected.shape
        kinds = (jnp.floating, jnp.complexfloating)
        wanted = kinds if jnp.issubdtype(expected.dtype, jnp.complexfloating) else kinds[:1]
        if not fits or not any(jnp.issubdtype(one.dtype, kind) for kind in wanted):
            turned = fits and jnp.issubdtype(one.dtype, jnp.complexfloating)
            hint = ": StateSpec(complex=True) declares a complex state" if turned else ""
            raise ShapeError(f"{head}; got {', '.join(map(_described, got))}{hint}")


def _text(one: Any) -> str:
    return f"{one.dtype.name}{list(one.shape)}"


def _described(one: Any) -> str:
    return _text(one) if hasattr(one, "shape") else type(one).__name__
