"""Packed sequences made of padded batches and lists, and those made of packed ones.

Axis letters: N sequences, T steps of the longest, S steps of all together.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np

from jaxrnn.packing import checks, places
from jaxrnn.packing.checks import PackingError, PackingTypeError, whole_numbers
from jaxrnn.packing.gather import gather
from jaxrnn.packing.padding import filled, unpad_sequence
from jaxrnn.packing.sequence import PackedSequence


def pack_padded_sequence(
    input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Take the padding out of a batch.

    Args:
        input: (T, N, ...), or (N, T, ...) if `batch_first`, of any dtype: labels can be packed.
        lengths: of each sequence (N,), whole numbers from 1 to T: a list, or an array of NumPy,
            JAX or PyTorch. What is in `input` beyond them is never read.
        batch_first: the order of the axes of `input`.
        enforce_sorted: whether the longest sequence has to come first, each as long as the next
            or longer. If not, they are sorted, and the result knows how.

    Returns:
        A `PackedSequence` of as many steps as the lengths add up to.

    Raises:
        ValueError, RuntimeError: for lengths that are not whole numbers, not one for each
            sequence, less than 1, more than T, or not sorted; for an empty `input`.
        IndexError: for an `input` with less than two axes.
        TypeError: for lengths that are traced or no numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1, 2, 0], [3, 0, 0], [4, 5, 6]])
        >>> packed = pack_padded_sequence(x, [2, 1, 3], batch_first=True, enforce_sorted=False)
        >>> packed.data.tolist(), packed.batch_sizes.tolist()
        ([4, 1, 3, 5, 2, 6], [3, 2, 1])
        >>> packed.sorted_indices.tolist(), packed.unsorted_indices.tolist()
        ([2, 0, 1], [1, 2, 0])

    Differs from PyTorch: a length beyond T is an error, and so are lengths that are not whole or
    not N with ``enforce_sorted=False``, where PyTorch cuts them off, builds an object that fails
    later or loses rows. Sequences of equal length are sorted in the order given, in which PyTorch
    has them for up to 16. Lists and NumPy arrays are taken for `input`, and packed on the host.
    """
    x, numbers = checks.as_array(input), whole_numbers("lengths", lengths)
    if x.size == 0:
        raise PackingError(f"Cannot pack empty tensors. Got the shape {x.shape}")
    steps, batch = checks.steps_and_batch(x, batch_first)
    checks.sortable(numbers, steps, batch, enforce_sorted)
    batch_sizes, order = places.sort(numbers, enforce_sorted)
    there, back = places.of_packed(batch_sizes, order, steps, batch_first)
    data = gather(x.reshape(steps * batch, *x.shape[2:]), there, back)
    return PackedSequence(data, batch_sizes, order)


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: Any = 0.0,
    total_length: int | None = None,
) -> tuple[jax.Array, np.ndarray]:
    """Make a padded batch of packed sequences, in the order in which they were given.

    Args:
        sequence: what `pack_padded_sequence`, `pack_sequence` or a layer returns.
        batch_first: the order of the axes of the result.
        padding_value: what comes after the end of a sequence, a number; for integers without
            what is behind the point.
        total_length: T, if not the length of the longest sequence.

    Returns:
        The batch (T, N, ...), or (N, T, ...) if `batch_first`, and the lengths (N,), NumPy int64.

    Raises:
        ValueError: for a `total_length` less than the longest sequence.
        TypeError: if `sequence` is no `PackedSequence` (also an AttributeError), if
            `padding_value` is no number or `total_length` not a whole one.
        RuntimeError: for a `padding_value` that the dtype can't hold.

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], enforce_sorted=False)
        >>> x, lengths = pad_packed_sequence(packed, batch_first=True, padding_value=-1)
        >>> x.tolist(), lengths.tolist()
        ([[1, 2, -1], [3, 4, 5]], [2, 3])

    Differs from PyTorch: the lengths are a NumPy array.
    """
    if not isinstance(sequence, PackedSequence):
        name = type(sequence).__name__
        raise PackingTypeError(
            f"{name!r} object has no attribute 'batch_sizes': expected a jaxrnn PackedSequence"
        )
    steps = longest = len(sequence.batch_sizes)
    if total_length is not None:
        steps = operator.index(total_length)
        if steps < longest:
            raise PackingError(
                "Expected total_length to be at least the length of the longest sequence in input, "
                f"but got total_length={total_length} and max sequence length being {longest}"
            )
    padding = checks.padding(padding_value, sequence.data.dtype)
    x = _unpack(sequence, steps, batch_first, padding)
    return x, places.lengths(sequence.batch_sizes, sequence.unsorted_indices)


def pack_sequence(sequences: Any, enforce_sorted: bool = True) -> PackedSequence:
    """Pack sequences of unequal length.

    Args:
        sequences: N arrays (L, ...), equal but in L, which is at least 1; any iterable. If none
            is traced they are put together on the host, as by `pad_sequence`.
        enforce_sorted: whether the longest sequence has to come first, see
            `pack_padded_sequence`.

    Raises:
        ValueError, RuntimeError: for no sequences, empty ones, unequal axes; if they are not
            sorted.
        TypeError: for sequences that are no arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2, 3]), jnp.array([4, 5]), jnp.array([6])])
        >>> packed.data.tolist(), packed.batch_sizes.tolist(), packed.sorted_indices
        ([1, 4, 6, 2, 5, 3], [3, 2, 1], None)
    """
    sequences = tuple(sequences)
    data, lengths = checks.end_to_end(sequences)
    if data.size == 0:
        raise PackingError(f"Cannot pack empty tensors. Got the shape {data.shape} of all together")
    steps = int(lengths.max())
    checks.sortable(lengths, steps, lengths.size, enforce_sorted)
    batch_sizes, order = places.sort(lengths, enforce_sorted)
    there, _ = places.of_packed(batch_sizes, order, steps, batch_first=True)
    row, step = np.divmod(there, steps)
    there = (np.cumsum(lengths) - lengths)[row] + step
    back = places.inverse(there, len(data))
    data = gather(data, there, back, checks.device_of(sequences[0]))
    return PackedSequence(data, batch_sizes, order)


def unpack_sequence(packed_sequences: PackedSequence) -> list[jax.Array]:
    """The sequences of a packed batch, one by one, in the order in which they were given.

    Args:
        packed_sequences: what `pack_sequence`, `pack_padded_sequence` or a layer returns.

    Returns:
        N arrays (L, ...).

    Raises:
        TypeError, AttributeError: if it is no `PackedSequence`.

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], enforce_sorted=False)
        >>> [row.tolist() for row in unpack_sequence(packed)]
        [[1, 2], [3, 4, 5]]
    """
    x, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(x, lengths, batch_first=True)


def padded(packed: PackedSequence) -> tuple[jax.Array, np.ndarray]:
    """What a layer computes with: the batch (T, N, ...) and its lengths (N,), NumPy int32.

    The sequences are in the order in which they were given, as initial and last states are; the
    padding is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> x, lengths = padded(pack_sequence([jnp.array([1, 2]), jnp.array([3])]))
        >>> x.tolist(), lengths.tolist()
        ([[1, 3], [2, 0]], [2, 1])
    """
    lengths = places.lengths(packed.batch_sizes, packed.unsorted_indices)
    return _unpack(packed, len(packed.batch_sizes), False, None), lengths.astype(np.int32)


def repacked(packed: PackedSequence, y: jax.Array) -> PackedSequence:
    """The steps of a batch y (T, N, ...), packed as `packed` is; the inverse of `padded`.

    Raises:
        ValueError, RuntimeError: for another T or N.

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2]), jnp.array([3])])
        >>> repacked(packed, jnp.array([[1.5, 2.5], [3.5, 4.5]])).data.tolist()
        [1.5, 2.5, 3.5]
    """
    batch_sizes, order = packed.batch_sizes, packed.sorted_indices
    steps, batch = len(batch_sizes), int(batch_sizes[0])
    if y.shape[:2] != (steps, batch):
        raise PackingError(f"Expected the axes ({steps}, {batch}, ...), got {y.shape}")
    there, back = places.of_packed(batch_sizes, order, steps, batch_first=False)
    return packed._replace(data=gather(y.reshape(steps * batch, *y.shape[2:]), there, back))


def _unpack(packed: PackedSequence, steps: int, batch_first: bool, padding: Any) -> jax.Array:
    """The padded batch of so many steps."""
    data, batch_sizes, order, _ = packed
    back, there = places.of_packed(batch_sizes, order, steps, batch_first)
    batch = int(batch_sizes[0])
    shape = (batch, steps) if batch_first else (steps, batch)
    return filled(gather(data, there, back), there < len(data), shape, padding)
