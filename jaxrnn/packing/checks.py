"""Checks of what is to be packed or padded: PyTorch's conditions, order and words.

The errors are instances of the types that PyTorch raises, before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding


class PackingError(ValueError, RuntimeError):
    """Sequences, lengths or sizes that do not fit each other."""


class AxesError(PackingError, IndexError):
    """An array with too few axes."""


class PackingTypeError(TypeError, AttributeError):
    """Something else where sequences are expected."""


class PairError(TypeError, AssertionError):
    """Something else where a pair (data, batch_sizes) is expected."""


def whole_numbers(name: str, values: Any) -> np.ndarray:
    """Lengths, sizes or indices as NumPy int64 (N,), a read-only copy.

    Args:
        name: what they are, for the error.
        values: a list, or an array of NumPy, JAX or PyTorch.

    Raises:
        TypeError: if they are traced, or no numbers.
        PackingError: if they are not whole, or not a list of one axis.

    Example:
        >>> whole_numbers("lengths", [3, 2])
        array([3, 2])
        >>> whole_numbers("lengths", [3.5, 2.0])
        Traceback (most recent call last):
        jaxrnn.packing.checks.PackingError: 'lengths' argument should be a 1D CPU int64 tensor, ...
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise TypeError(
            f"{name} are traced, and have to be known to pack or unpack: shapes follow from them. "
            "Inside of jit, give a layer the padded batch with lengths=lengths, which may be traced"
        )
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} should be whole numbers, got {values!r}")
    whole = np.issubdtype(array.dtype, np.integer) or not array.size
    if array.ndim != 1 or not whole:
        raise PackingError(
            f"'{name}' argument should be a 1D CPU int64 tensor, but got {array.ndim}D cpu "
            f"{'Long' if whole else array.dtype.name} tensor"
        )
    array = array.astype(np.int64)
    array.setflags(write=False)
    return array


def sortable(lengths: np.ndarray, steps: int, batch: int, enforce_sorted: bool) -> None:
    """Lengths (N,) that a batch of T steps and N sequences can be packed by."""
    count(lengths, batch)
    # With `enforce_sorted` PyTorch looks at the last first, which is then the least.
    if (lengths[-1] if enforce_sorted else lengths.min()) <= 0:
        raise PackingError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' "
            f"that is <= 0: {lengths.min()}. The layers take empty sequences by lengths="
        )
    if enforce_sorted and (np.diff(lengths) > 0).any():
        raise PackingError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You "
            "can pass `enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to "
            "sidestep this requirement if you do not need ONNX exportability."
        )
    within(lengths, steps)


def count(lengths: np.ndarray, batch: int) -> None:
    """As many lengths as sequences."""
    if lengths.size != batch:
        raise PackingError(
            "Expected `len(lengths)` to be equal to batch_size, but got "
            f"{lengths.size} (batch_size={batch})"
        )


def within(lengths: np.ndarray, steps: int) -> None:
    """No length less than 0 or beyond T."""
    wrong = lengths[(lengths < 0) | (lengths > steps)]
    if wrong.size:
        raise PackingError(
            f"Expected lengths from 0 to {steps}, the steps that there are, got {shown(wrong)}"
        )


def steps_and_batch(x: Any, batch_first: bool) -> tuple[int, int]:
    """T and N of a batch.

    Raises:
        AxesError: if there are less than two axes.
    """
    if x.ndim < 2:
        words = "Dimension out of range (expected to be in range of [-1, 0], but got 1)"
        if x.ndim == 0:
            words = "Dimension specified as 1 but tensor has no dimensions"
        raise AxesError(f"{words}: expected steps and sequences, got the shape {x.shape}")
    return (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])


def as_array(x: Any) -> Any:
    """A JAX array as it is, anything else as a NumPy array."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def device_of(x: Any) -> Any:
    """Where an array was put on purpose, if that is one device; else None."""
    if not isinstance(x, jax.Array) or isinstance(x, Tracer) or not x.committed:
        return None
    return x.sharding if isinstance(x.sharding, SingleDeviceSharding) else None


def end_to_end(sequences: Iterable[Any]) -> tuple[Any, np.ndarray]:
    """Sequences (L, ...) laid end to end (S, ...), in the dtype of the first, and their lengths.

    The result is a NumPy array, unless there is a traced one among them: a JAX array would be
    compiled for, whenever the lengths are new.

    Raises:
        PackingTypeError: for what is no array.
        PackingError: for no sequences, or unequal axes behind the first.
        AxesError: for a sequence without axes.

    Example:
        >>> data, lengths = end_to_end([np.array([1, 2]), np.array([3.5])])
        >>> data.tolist(), lengths.tolist()
        ([1, 2, 3], [2, 1])
    """
    rows = tuple(sequences)
    for index, row in enumerate(rows):
        if not hasattr(row, "shape") or not hasattr(row, "dtype"):
            raise PackingTypeError(
                f"expected Tensor as element {index} in argument 0, but got {type(row).__name__}: "
                "each sequence should be an array of NumPy or JAX"
            )
    if not rows:
        raise PackingError("received an empty list of sequences")
    arrays = [as_array(row) for row in rows]
    first = arrays[0]
    for index, row in enumerate(arrays):
        if row.ndim == 0:
            raise AxesError(
                "Dimension specified as 0 but tensor has no dimensions: "
                f"sequence {index} is a single number"
            )
        if row.shape[1:] != first.shape[1:]:
            raise PackingError(
                f"Expected sequences that differ in their length alone, but got {first.shape} and "
                f"{row.shape}"
            )
    numbers = np.array([len(row) for row in arrays])
    if any(isinstance(row, Tracer) for row in arrays):
        dtype = jax.dtypes.canonicalize_dtype(first.dtype)
        return jnp.concatenate([jnp.asarray(row, dtype) for row in arrays]), numbers
    return np.concatenate([np.asarray(row).astype(first.dtype) for row in arrays]), numbers


def padding(value: Any, dtype: Any) -> np.ndarray:
    """What fills the padding, in the dtype of the data, as PyTorch converts a number.

    Raises:
        TypeError: for what is no number.
        PackingError: for a number that the dtype can't hold.

    Example:
        >>> padding(2.7, np.int32), padding(-1, np.uint8)
        (array(2, dtype=int32), array(255, dtype=uint8))
    """
    if getattr(value, "shape", None) == () and not isinstance(value, Tracer):
        value = value.item()
    if not isinstance(value, (int, float, complex)):
        raise TypeError(f"padding_value should be a number, got {value!r}")
    kind = jnp.dtype(dtype)
    error = PackingError(f"value cannot be converted to type {kind.name} without overflow: {value}")
    if isinstance(value, complex) and not jnp.issubdtype(kind, jnp.complexfloating):
        if value.imag:
            raise error
        value = value.real
    if isinstance(value, complex) or jnp.issubdtype(kind, jnp.bool_):
        return np.asarray(value, kind)
    whole = jnp.issubdtype(kind, jnp.integer)
    real, info = (int, jnp.iinfo(kind)) if whole else (float, jnp.finfo(kind))
    low, high = real(info.min), real(info.max)
    if low == 0 and isinstance(value, int):  # as PyTorch, which wraps what is below zero
        low = -high
    if not (low <= value <= high or (not whole and not math.isfinite(value))):
        raise error
    return np.asarray(real(value)).astype(kind)


def shown(values: np.ndarray) -> str:
    """The first few numbers."""
    return f"[{', '.join(map(str, values[:8]))}{', ...' if values.size > 8 else ''}]"
