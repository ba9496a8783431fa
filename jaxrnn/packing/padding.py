"""Padded batches made of lists of sequences, and the sequences taken out of them.

Axis letters: N sequences, T steps of the longest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn.packing import checks, places
from jaxrnn.packing.checks import PackingError, whole_numbers
from jaxrnn.packing.gather import gather


def pad_sequence(
    sequences: Any,
    batch_first: bool = False,
    padding_value: Any = 0.0,
    padding_side: str = "right",
) -> jax.Array:
    """Stack sequences of unequal length, padded to the longest.

    Args:
        sequences: N arrays (L, ...), equal but in L, which may be 0; any iterable. If none is
            traced they are put together on the host: nothing is compiled for lengths that are new.
        batch_first: the order of the axes of the result.
        padding_value: what the padding is, see `pad_packed_sequence`.
        padding_side: "right", after the end of a sequence, or "left", before its beginning.

    Returns:
        (T, N, ...), or (N, T, ...) if `batch_first`, of the dtype of the first sequence.

    Raises:
        ValueError, RuntimeError: for no sequences, for unequal axes, for another side; what is
            not iterable.
        TypeError: for sequences that are no arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> pad_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], True).tolist()
        [[1, 2, 0], [3, 4, 5]]
        >>> pad_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], True, 9, "left").tolist()
        [[9, 1, 2], [3, 4, 5]]

    Differs from PyTorch: sequences with an axis of size 1 are not broadcast against others.
    """
    if not isinstance(sequences, Iterable):
        raise PackingError(
            "pad_sequence: Expected iterable for input sequences, but got arg of type: "
            f"{type(sequences)}"
        )
    sequences = tuple(sequences)
    data, lengths = checks.end_to_end(sequences)
    if padding_side not in ("left", "right"):
        raise PackingError(
            f"Expected padding_side to be one of left or right, but got {padding_side}."
        )
    padding = checks.padding(padding_value, data.dtype)
    steps, batch = int(lengths.max()), lengths.size
    row, step = places.of_rows(lengths)
    if padding_side == "left":
        step = step + (steps - lengths)[row]
    back = row * steps + step if batch_first else step * batch + row
    there = places.inverse(back, steps * batch)
    shape = (batch, steps) if batch_first else (steps, batch)
    x = gather(data, there, back, checks.device_of(sequences[0]))
    return filled(x, there < len(data), shape, padding)


def unpad_sequence(
    padded_sequences: Any, lengths: Any, batch_first: bool = False
) -> list[jax.Array]:
    """The sequences of a padded batch, one by one; cut on the host, if it is not traced.

    Args:
        padded_sequences: (T, N, ...), or (N, T, ...) if `batch_first`; it is not changed.
        lengths: of each sequence (N,), whole numbers from 0 to T, in any order.
        batch_first: the order of the axes.

    Returns:
        N arrays (L, ...).

    Raises:
        ValueError, RuntimeError: for lengths that are not whole numbers, not one for each
            sequence, less than 0 or more than T.
        IndexError: for an array with less than two axes.
        TypeError: for lengths that are traced or no numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> rows = unpad_sequence(jnp.array([[1, 2, 0], [3, 4, 5]]), [2, 3], batch_first=True)
        >>> [row.tolist() for row in rows]
        [[1, 2], [3, 4, 5]]

    Differs from PyTorch: there, with ``batch_first=False``, the caller's batch comes back with its
    axes swapped, a length beyond T is cut off and one below 0 taken for 0. Here lengths may be a
    list.
    """
    x, numbers = checks.as_array(padded_sequences), whole_numbers("lengths", lengths)
    steps, batch = checks.steps_and_batch(x, batch_first)
    checks.count(numbers, batch)
    checks.within(numbers, steps)
    traced, device = isinstance(x, Tracer), checks.device_of(x)
    if not traced:  # sliced on the device, each length that is new would be compiled for
        x = np.asarray(x)
    rows: list[Any] = [
        x[n, :length] if batch_first else x[:length, n] for n, length in enumerate(numbers.tolist())
    ]
    return rows if traced else jax.device_put([row.copy() for row in rows], device)


def filled(x: jax.Array, valid: np.ndarray, shape: tuple[int, int], padding: Any) -> jax.Array:
    """A batch whose padding is zero, as rows (T*N, ...), in its shape and with its padding."""
    x = x.reshape(*shape, *x.shape[1:])
    if padding is None or not padding:
        return x
    valid = valid.reshape(*shape, *(1,) * (x.ndim - 2))
    return jnp.where(valid, x, jnp.asarray(padding, x.dtype))
