"""Argument checks of layers and cells, in PyTorch's order and with PyTorch's deliberate messages.

Every error is an instance of the type that PyTorch raises, see `jaxrnn._checks`. Checks read
shapes and dtypes only, so that they work on traced arrays, before anything is computed.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError, StateCountError, StateTypeError


def constructor(
    input_size: Any,
    hidden_size: Any,
    num_layers: Any,
    bias: Any,
    batch_first: Any,
    dropout: Any,
    proj_size: Any,
    *,
    stacklevel: int,
) -> None:
    """Check the arguments of a layer; warn if dropout has no effect."""
    p = float(dropout)  # raises Python's own error
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
            stacklevel=stacklevel,
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
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")


def no_projection(options: Mapping[str, Any]) -> None:
    """Check that ``proj_size`` is absent, even as 0."""
    if "proj_size" in options:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def known_options(name: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check that a constructor got no unknown keyword argument."""
    unknown = [option for option in options if option not in known]
    if unknown:
        device = " Place arrays by jax.device_put." if "device" in unknown else ""
        raise TypeError(
            f"{name} got an unexpected keyword argument {unknown[0]!r}. "
            f"Its options are {', '.join(known)}.{device}"
        )


def layer_input(kind: str, x: jax.Array) -> bool:
    """Check the number of axes of a layer's input; return True if it is batched."""
    if x.ndim not in (2, 3):
        got = f"{x.ndim}D tensor instead" if kind == "RNN" else f"{x.ndim}D instead"
        raise ShapeError(f"{kind}: Expected input to be 2D or 3D, got {got}")
    return x.ndim == 3


def packed_input(data: jax.Array) -> None:
    """Check the number of axes of a PackedSequence's data."""
    if data.ndim != 2:
        raise ShapeError(f"input must have 2 dimensions, got {data.ndim}")


def hidden_states(kind: str, hx: Any, names: Sequence[str]) -> tuple[jax.Array, ...]:
    """Return `hx` as a tuple with at least one array per state; `state_count` refuses more."""
    if len(names) == 1:
        hx = (hx,)
    elif not isinstance(hx, (tuple, list)):
        # PyTorch's LSTMCell raises a TypeError, its LSTM an IndexError.
        error = StateTypeError if kind == "LSTMCell" else StateCountError
        raise error(
            f"{_expected(kind, names)}, got one {_describe(hx)}. Pass a tuple ({', '.join(names)})."
        )
    if len(hx) < len(names):
        raise StateCountError(f"{_expected(kind, names)}, got {len(hx)}")
    for name, state in zip(names, hx):
        if state is None or isinstance(state, (tuple, list)):
            raise StateTypeError(f"State {name} of `hx` must be an array, got {_describe(state)}.")
    return tuple(hx)


def state_count(kind: str, states: Sequence[Any], names: Sequence[str]) -> None:
    """Check that there are not too many states."""
    if len(states) > len(names):
        raise ShapeError(f"{_expected(kind, names)}, got {len(states)}")


def state_axes(states: Sequence[jax.Array], batched: bool) -> None:
    """Check the number of axes of a layer's initial states."""
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
    """Check that the input has the dtype of the weights."""
    if x.dtype != expected:
        name = jnp.dtype(expected).name
        raise ShapeError(
            f"RNN input dtype ({x.dtype.name}) does not match weight dtype ({name}). Convert "
            f"input: input.astype({name!r}), or compute in one dtype: the layer's dtype argument"
        )


def input_size(x: jax.Array, size: int) -> None:
    """Check the number of input features."""
    if x.shape[-1] != size:
        raise ShapeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {size}, got {x.shape[-1]} (input of shape {x.shape})"
        )


def sequence_length(steps: int) -> None:
    """Check that the input has at least one step."""
    if steps == 0:
        raise ShapeError("Expected sequence length to be larger than 0 in RNN")


def state_shapes(
    states: Sequence[jax.Array], expected: Sequence[tuple[int, ...]], batched: bool
) -> None:
    """Check the shapes of a layer's initial states, which are never broadcast."""
    for index, (state, shape) in enumerate(zip(states, expected)):
        got = state.shape if batched else (state.shape[0], 1, state.shape[1])
        if got != shape:
            which = "hidden size" if len(states) == 1 else f"hidden[{index}] size"
            raise ShapeError(f"Expected {which} {shape}, got {list(got)}")


def dtypes(name: str, arrays: Sequence[jax.Array], expected: Sequence[Any]) -> None:
    """Check that the input of a cell or initial states have the dtypes of the weights."""
    for array, dtype in zip(arrays, expected, strict=True):
        if array.dtype != dtype:
            dtype = jnp.dtype(dtype).name
            raise ShapeError(
                f"`{name}` must have dtype {dtype}, as the weights require, got {array.dtype.name}."
                f" Convert it: {name}.astype({dtype!r}), or pass dtype= to the constructor."
            )


def cell_size(name: str, value: Any) -> int:
    """Return a size of a cell as an int; like PyTorch, accept 0."""
    if not hasattr(value, "__index__"):
        raise TypeError(f"`{name}` must be an int, got {value!r}.")
    if value < 0:
        raise ShapeError(f"`{name}` must be 0 or greater, got {value}.")
    return value if isinstance(value, bool) else operator.index(value)


def cell_input(kind: str, x: jax.Array) -> None:
    """Check the number of axes of a cell's input."""
    if x.ndim not in (1, 2):
        raise ShapeError(f"{kind}: Expected input to be 1D or 2D, got {x.ndim}D instead")


def cell_state_axes(kind: str, states: Sequence[jax.Array]) -> None:
    """Check the number of axes of a cell's states."""
    for index, state in enumerate(states):
        if state.ndim not in (1, 2):
            which = "hidden" if len(states) == 1 else f"hx[{index}]"
            raise ShapeError(f"{kind}: Expected {which} to be 1D or 2D, got {state.ndim}D instead")


def cell_sizes(
    x: jax.Array, states: Sequence[jax.Array], input_size: int, state_sizes: Sequence[int]
) -> None:
    """Check the sizes of a cell's input and states."""
    if x.shape[-1] != input_size:
        raise ShapeError(
            f"input has inconsistent input_size: got {x.shape[-1]} expected {input_size}"
        )
    # Like PyTorch, add a batch axis to every state of an unbatched input.
    batch_size = x.shape[0] if x.ndim == 2 else 1
    for index, (state, size) in enumerate(zip(states, state_sizes)):
        first, *features = state.shape if x.ndim == 2 else (1, *state.shape)
        if first != batch_size:
            raise ShapeError(
                f"Input batch size {batch_size} doesn't match hidden{index} batch size {first}"
            )
        if not features:
            raise StateCountError(
                f"hidden{index} must have shape ({batch_size}, {size}), got {state.shape}."
            )
        if features != [size]:
            unbatched = f": {state.shape} for unbatched input" if len(features) > 1 else ""
            raise ShapeError(
                f"hidden{index} has inconsistent hidden_size: got {features[0]}, expected {size}"
                + unbatched
            )


def _expected(kind: str, names: Sequence[str]) -> str:
    count = "two" if len(names) == 2 else len(names)
    function = {"LSTM": "lstm", "LSTMCell": "lstm_cell"}.get(kind, kind)  # as PyTorch
    return f"{function} expects {count} hidden states ({', '.join(names)})"


def _describe(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of length {len(value)}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"array of shape {tuple(shape)}"
