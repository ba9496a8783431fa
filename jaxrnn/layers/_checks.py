"""The arguments of layers and cells: PyTorch's conditions, order and words, with the fix.

An error is an instance of the type that PyTorch raises, see `jaxrnn._checks`.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError, StateCountError, StateTypeError


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _shown(value: Any) -> str:
    """What has come in place of several: an array by its shape, else its type."""
    shape = getattr(value, "shape", None)
    return _type_name(value) if shape is None else f"array of shape {tuple(shape)}"


def constructor(
    input_size: Any,
    hidden_size: Any,
    num_layers: Any,
    bias: Any,
    batch_first: Any,
    dropout: Any,
    proj_size: Any,
    above: int = 1,
) -> None:
    """The arguments of a layer; raises ValueError or TypeError, warns of a useless dropout.

    `above` are the constructors that have called that of `Recurrent`.
    """
    p = float(dropout)  # Python's own words for what is no number at all
    if not isinstance(dropout, Number) or not 0 <= p <= 1 or isinstance(dropout, bool):
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            f"element being zeroed, got {dropout!r}"
        )
    if p > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            "expects num_layers greater than 1, but got "
            f"dropout={dropout} and num_layers={num_layers}",
            stacklevel=6
            + above,  # past the constructors and the metaclass, to the line of the caller
        )
    for name, value, kind in (
        ("bias", bias, bool),
        ("batch_first", batch_first, bool),
        ("input_size", input_size, int),
        ("hidden_size", hidden_size, int),
    ):
        if not isinstance(value, kind):
            got = type(value).__name__
            raise TypeError(f"{name} should be of type {kind.__name__}, got: {got}")
        if kind is int and value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")
    if num_layers <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    if proj_size < 0:
        raise ValueError(
            "proj_size should be a positive integer or zero to disable projections, "
            f"got {proj_size}"
        )
    if proj_size >= hidden_size:
        raise ValueError(
            f"proj_size has to be smaller than hidden_size, got {proj_size} and {hidden_size}"
        )
    for name, value in (("num_layers", num_layers), ("proj_size", proj_size)):
        if not hasattr(value, "__index__"):
            raise TypeError(
                f"{name}: {_type_name(value)!r} object cannot be interpreted as an integer"
            )


def no_projection(options: Mapping[str, Any]) -> None:
    """``proj_size`` given to a layer that has none, even as 0."""
    if "proj_size" in options:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def no_such_argument(name: str, unknown: Mapping[str, Any]) -> None:
    """Keyword arguments that a layer does not have."""
    if unknown:
        hint = ": jax.device_put places a module's arrays" if "device" in unknown else ""
        raise TypeError(f"{name} got an unexpected keyword argument {next(iter(unknown))!r}{hint}")


def layer_input(kind: str, x: jax.Array) -> bool:
    """The number of axes of a layer's input; returns whether it has a batch."""
    if x.ndim not in (2, 3):
        got = f"{x.ndim}D tensor instead" if kind == "RNN" else f"{x.ndim}D instead"
        raise ShapeError(f"{kind}: Expected input to be 2D or 3D, got {got}")
    return x.ndim == 3


def packed_input(data: jax.Array) -> None:
    """The number of axes of the data of a PackedSequence."""
    if data.ndim != 2:
        raise ShapeError(f"input must have 2 dimensions, got {data.ndim}")


def state_axes(states: Sequence[jax.Array], batched: bool) -> None:
    """The number of axes of the initial states of a layer."""
    axes, word = (3, "batched") if batched else (2, "unbatched")
    if all(s.ndim == axes for s in states):
        return
    if len(states) == 1:
        which, got = "hx should", f"{states[0].ndim}-D tensor"
    else:
        which = "hx and cx should"
        got = "(" + ", ".join(f"{s.ndim}-D" for s in states) + ") tensors"
    raise ShapeError(f"For {word} {axes}-D input, {which} also be {axes}-D but got {got}")


def input_dtype(x: jax.Array, expected: Any) -> None:
    """The input's dtype against the weights', where no computation dtype was asked for."""
    if x.dtype != expected:
        name = jnp.dtype(expected).name
        raise ShapeError(
            f"RNN input dtype ({x.dtype.name}) does not match weight dtype ({name}). Convert "
            f"input: input.astype({name!r}), or compute in one dtype: the layer's dtype argument"
        )


def input_size(x: jax.Array, size: int) -> None:
    """The number of input features."""
    if x.shape[-1] != size:
        raise ShapeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {size}, got {x.shape[-1]} (input of shape {x.shape})"
        )


def sequence_length(steps: int) -> None:
    """At least one step."""
    if steps == 0:
        raise ShapeError("Expected sequence length to be larger than 0 in RNN")


def state_shapes(
    states: Sequence[jax.Array], expected: Sequence[tuple[int, ...]], batched: bool
) -> None:
    """The shapes of the initial states of a layer; they are never broadcast."""
    for index, (state, shape) in enumerate(zip(states, expected)):
        got = state.shape if batched else (state.shape[0], 1, state.shape[1])
        if got != shape:
            which = "hidden size" if len(states) == 1 else f"hidden[{index}] size"
            raise ShapeError(f"Expected {which} {shape}, got {list(got)}")


def state_dtypes(states: Sequence[jax.Array], expected: Sequence[Any], name: str = "hx") -> None:
    """The dtypes of the initial states, where no computation dtype was asked for."""
    for state, dtype in zip(states, expected, strict=True):
        if state.dtype != dtype:
            raise ShapeError(
                "mat1 and mat2 must have the same dtype, but got "
                f"{state.dtype.name} ({name}) and {jnp.dtype(dtype).name} (weights)"
            )


def one_state(hx: Any) -> None:
    """A state that has to be an array."""
    if hx is None or isinstance(hx, (tuple, list)):
        got = "None" if hx is None else f"{len(hx)} in a {type(hx).__name__}"
        raise StateTypeError(
            f"{type(hx).__name__!r} object has no attribute 'dim': expected one array as a state, "
            f"got {got}"
        )


def states(hx: Any, names: Sequence[str]) -> Sequence[Any]:
    """The states of a call as a sequence: an array for one, a tuple or list for several."""
    if len(names) == 1:
        one_state(hx)
        return (hx,)
    listed = ", ".join(names)
    if not isinstance(hx, (tuple, list)):
        raise StateCountError(
            f"expected {len(names)} states ({listed}) as a tuple, got one {_shown(hx)}"
        )
    if len(hx) != len(names):
        raise StateCountError(f"expected {len(names)} states ({listed}), got {len(hx)}")
    for state in hx:
        one_state(state)
    return hx


def two_states(hx: Any) -> Sequence[Any]:
    """The pair (h_0, c_0) of an LSTM layer as a tuple or list; `state_count` refuses a third."""
    if not isinstance(hx, (tuple, list)):
        raise StateCountError(
            "lstm expects two hidden states (h_0, c_0) as a tuple, got one "
            f"{_shown(hx)}: index 1 is out of bounds for dimension 0 with size 1"
        )
    if len(hx) < 2:
        raise StateCountError(
            f"{type(hx).__name__} index out of range: lstm expects two hidden states (h_0, c_0), "
            f"got {len(hx)}"
        )
    for state in hx[:2]:
        one_state(state)
    return hx


def state_count(states: Sequence[Any], expected: int) -> None:
    """Not more states than there are."""
    if len(states) > expected:
        raise ShapeError(f"lstm expects two hidden states, got {len(states)}")


def two_cell_states(hx: Any) -> Sequence[Any]:
    """The pair (h, c) of a single LSTM step as a tuple or list; `cell_state_count` counts it."""
    if not isinstance(hx, (tuple, list)):
        raise TypeError(
            f"lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not {_shown(hx)}"
        )
    for state in hx:
        one_state(state)
    return hx


def cell_state_count(states: Sequence[Any], expected: int) -> None:
    """As many states as a single step has."""
    if len(states) != expected:
        few = len(states) < expected
        raise (StateCountError if few else ShapeError)(
            f"lstm_cell expects two hidden states, got {len(states)}"
            + ": tuple index out of range" * few
        )


def cell_size(name: str, value: Any) -> int:
    """A size of a single step, of which PyTorch checks no more than that an array can have it."""
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name} should be a whole number, got {value!r}")
    if value < 0:
        raise ShapeError(f"Trying to create tensor with negative dimension {value}: {name}")
    return value if isinstance(value, bool) else operator.index(value)


def cell_input(kind: str, x: jax.Array) -> None:
    """The number of axes of the input of a single step."""
    if x.ndim not in (1, 2):
        raise ShapeError(f"{kind}: Expected input to be 1D or 2D, got {x.ndim}D instead")


def cell_state_axes(kind: str, states: Sequence[jax.Array]) -> None:
    """The number of axes of the states of a single step."""
    for index, state in enumerate(states):
        if state.ndim not in (1, 2):
            which = "hidden" if len(states) == 1 else f"hx[{index}]"
            raise ShapeError(f"{kind}: Expected {which} to be 1D or 2D, got {state.ndim}D instead")


def cell_sizes(
    x: jax.Array, states: Sequence[jax.Array], input_size: int, state_sizes: Sequence[int]
) -> None:
    """The sizes of the input and states of a single step."""
    if x.shape[-1] != input_size:
        raise ShapeError(
            f"input has inconsistent input_size: got {x.shape[-1]} expected {input_size}"
        )
    # As PyTorch, an unbatched input adds a batch axis to whatever state came with it.
    batch = x.shape[0] if x.ndim == 2 else 1
    for index, (state, size) in enumerate(zip(states, state_sizes)):
        shape: tuple[int, ...] = state.shape if x.ndim == 2 else (1, *state.shape)
        rows, *features = shape
        if rows != batch:
            raise ShapeError(
                f"Input batch size {batch} doesn't match hidden{index} batch size {rows}"
            )
        if not features:
            raise StateCountError(
                "Dimension out of range (expected to be in range of [-1, 0], but got 1): "
                f"hidden{index} should be ({batch}, {size}), got {shape}"
            )
        if features != [size]:
            batched = "" if len(features) == 1 else f": {state.shape}, where the input has no batch"
            raise ShapeError(
                f"hidden{index} has inconsistent hidden_size: got {features[0]}, expected {size}"
                + batched
            )
