"""``torch.nn.utils.rnn`` for JAX: `PackedSequence` and conversions to and from padded batches.

Lengths determine shapes, so they must be concrete; NumPy computes all indices from them on the
host. The data may be traced, and gradients flow through every function. Axis letters: N sequences,
T steps of the longest, S steps in total.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from functools import partialmethod
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.interpreters import ad
from jax.sharding import Sharding, SingleDeviceSharding

from jaxrnn._checks import ShapeError
from jaxrnn.backends.operations import define_primitive
from jaxrnn.backends.platform import PLATFORMS

__all__ = [
    "PackedSequence",
    "PackingError",
    "invert_permutation",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "repack",
    "to_padded",
    "unpack_sequence",
    "unpad_sequence",
]


class PackingError(ShapeError):
    """Sequences, lengths or sizes that do not fit together."""


class _AxesError(PackingError, IndexError):
    """An array with too few axes."""


class _SequenceTypeError(TypeError, AttributeError):
    """An argument that is not a sequence or not packed."""


class _PairError(TypeError, AssertionError):
    """An argument that is not a pair (data, batch_sizes)."""


class _Fields(NamedTuple):
    data: Any
    batch_sizes: np.ndarray
    sorted_indices: np.ndarray | None
    unsorted_indices: np.ndarray | None


class PackedSequence(_Fields):
    """Sequences of different lengths in one array without padding.

    The data is time-major: the first step of every sequence, longest sequence first, then the
    second step of every sequence that has one, and so on. Layers accept and return it.

    It is a named tuple, and a pytree with `data` as its only leaf: `jit` recompiles for new
    lengths. A padded batch with ``lengths=`` compiles once.

    Attributes:
        data: array (S, ...) of any dtype. The constructor accepts a pair (data, batch_sizes) too.
        batch_sizes: number of sequences with a step t, NumPy int64 (T,), non-increasing.
        sorted_indices: indices of the sequences from longest to shortest, NumPy int64 (N,), or
            None for the original order.
        unsorted_indices: the inverse permutation. Each defaults to the inverse of the other.

    Raises:
        ValueError, RuntimeError: if the sizes and indices do not fit together.
        TypeError: if `batch_sizes` is missing (also an AssertionError), or an argument but `data`
            is traced.

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], enforce_sorted=False)
        >>> packed.data.tolist(), packed.batch_sizes.tolist(), packed.sorted_indices.tolist()
        ([3, 1, 4, 2, 5], [2, 2, 1], [1, 0])
        >>> data, batch_sizes, *indices = packed
        >>> PackedSequence(10 * data, batch_sizes, *indices).data.tolist()
        [30, 10, 40, 20, 50]
        >>> jax.jit(lambda p: jax.tree.map(jnp.square, p))(packed).data.tolist()
        [9, 1, 16, 4, 25]

    Differs from PyTorch: `batch_sizes` and the indices are read-only NumPy arrays and are
    validated.
    """

    __slots__ = ()

    def __new__(  # noqa: D102
        cls,
        data: Any,
        batch_sizes: Any = None,
        sorted_indices: Any = None,
        unsorted_indices: Any = None,
    ) -> Self:
        if batch_sizes is None:
            if not isinstance(data, (tuple, list)) or len(data) != 2:
                raise _PairError(
                    "Expected data to be a list or tuple of length 2, (data, batch_sizes), if "
                    f"`batch_sizes` is None, got {type(data).__name__}"
                )
            data, batch_sizes = data
        sizes = _integers("batch_sizes", batch_sizes)
        if not isinstance(data, jax.Array):
            data = jax.device_put(np.array(data))
        if not sizes.size or sizes[-1] < 1 or (np.diff(sizes) > 0).any():
            raise PackingError(
                f"`batch_sizes` must be positive and non-increasing, got {_shorten(sizes)}"
            )
        if data.shape[:1] != (sizes.sum(),):
            raise PackingError(
                f"`data` must be ({sizes.sum()}, ...), the sum of batch_sizes, got shape "
                f"{data.shape}"
            )
        order = None if sorted_indices is None else _integers("sorted_indices", sorted_indices)
        inverse = invert_permutation(order)
        if unsorted_indices is not None:
            ranks = _integers("unsorted_indices", unsorted_indices)
            if inverse is not None and not np.array_equal(ranks, inverse):
                raise PackingError(
                    "`unsorted_indices` must be the inverse of sorted_indices, "
                    f"{_shorten(inverse)}, got {_shorten(ranks)}"
                )
            order, inverse = invert_permutation(ranks), ranks
        if order is not None and order.size != sizes[0]:
            raise PackingError(f"`sorted_indices` must be ({sizes[0]},), got ({order.size},)")
        return super().__new__(cls, data, sizes, order, inverse)

    def to(
        self,
        *target: Any,
        dtype: Any = None,
        device: Any = None,
        non_blocking: bool = False,
        copy: bool = False,
    ) -> Self:
        """Convert `data` to a dtype or move it to a device.

        `double`, `float`, `half`, `long`, `int`, `short`, `char` and `byte` convert to one dtype.

        Args:
            target: a dtype, a device, both, or an array with the target dtype and device.
            dtype: a dtype, optional. Without ``jax_enable_x64``, 64-bit dtypes become 32-bit.
            device: a `jax.Device`, sharding, or name such as "cpu" or "cuda:1", optional.
            non_blocking: ignored, since JAX transfers are asynchronous.
            copy: If True, copy even if nothing changes. Defaults to False.

        Returns:
            The converted `PackedSequence`, or `self` if nothing changes.

        Raises:
            TypeError: if a target is neither a dtype nor a device.
            RuntimeError, ValueError: if the device does not exist.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxrnn.packing import pack_sequence
            >>> packed = pack_sequence([jnp.array([1, 2])])
            >>> packed.to(jnp.float32).data.dtype.name, packed.to("cpu") is packed
            ('float32', True)
        """
        del non_blocking
        for item in target:
            if isinstance(item, (jax.Array, np.ndarray)):
                dtype = item.dtype
                device = getattr(item, "sharding", device)
            elif isinstance(item, (jax.Device, Sharding)) or (
                isinstance(item, str) and item.partition(":")[0] in ("gpu", *PLATFORMS)
            ):
                device = item
            else:
                dtype = item
        data = self.data
        if dtype is not None:  # without x64 the cast may change nothing
            cast = data.astype(dtype)
            data = cast if cast.dtype != data.dtype else data
        if device is not None:
            sharding = _sharding_of(device)
            if isinstance(data, Tracer) or not data.sharding.is_equivalent_to(sharding, data.ndim):
                data = jax.device_put(data, sharding)
        if copy and data is self.data:
            data = jnp.array(data, copy=True)
        return self if data is self.data else self._replace(data=data)

    def cpu(self) -> Self:
        """Move `data` to the host."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Self:
        """Move `data` to a GPU: a device or an index. Defaults to the first GPU."""
        if device is None or isinstance(device, int):
            device = f"gpu:{device or 0}"
        return self.to(device)

    def pin_memory(self) -> Self:
        """Return `self`: JAX pins memory for transfers itself."""
        return self

    def is_pinned(self) -> Any:
        """Return True if `data` is in pinned host memory."""
        return self.data.sharding.memory_kind == "pinned_host"

    @property
    def is_cuda(self) -> Any:
        """True if `data` is on a GPU."""
        return all(d.platform == "gpu" for d in self.data.devices()) and not self.is_pinned()

    double = partialmethod(to, "float64")
    float = partialmethod(to, "float32")
    half = partialmethod(to, "float16")
    long = partialmethod(to, "int64")
    int = partialmethod(to, "int32")
    short = partialmethod(to, "int16")
    char = partialmethod(to, "int8")
    byte = partialmethod(to, "uint8")


def _flatten(packed: PackedSequence) -> Any:
    # Bytes compare and hash by value, and np.frombuffer returns read-only arrays.
    static = tuple(None if a is None else a.tobytes() for a in packed[1:])
    return ((jax.tree_util.GetAttrKey("data"), packed.data),), static


def _unflatten(static: Any, leaves: Any) -> PackedSequence:
    arrays = (None if a is None else np.frombuffer(a, np.int64) for a in static)
    return PackedSequence._make((*leaves, *arrays))


jax.tree_util.register_pytree_with_keys(PackedSequence, _flatten, _unflatten)


def invert_permutation(permutation: Any) -> np.ndarray | None:
    """Return the inverse of a permutation: ``inverse[permutation[i]] = i``.

    Args:
        permutation: permutation of 0 ... N - 1, integers (N,), or None.

    Raises:
        ValueError, RuntimeError: if it is not a permutation.
        TypeError: if it is traced.

    Example:
        >>> invert_permutation([2, 0, 1])
        array([1, 2, 0])

    Differs from PyTorch: accepts lists and validates the permutation.
    """
    if permutation is None:
        return None
    permutation = _integers("permutation", permutation)
    inverse = np.argsort(permutation, kind="stable")
    if (permutation[inverse] != np.arange(permutation.size)).any():
        raise PackingError(
            f"expected a permutation of 0 ... {permutation.size - 1}, got {_shorten(permutation)}"
        )
    inverse.setflags(write=False)
    return inverse


def pack_padded_sequence(
    input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Pack a padded batch of sequences.

    Args:
        input: padded batch (T, N, ...), or (N, T, ...) if `batch_first`, of any dtype. Padding is
            not read. NumPy arrays are packed on the host.
        lengths: integers from 1 to T, (N,): a list, or a NumPy, JAX or PyTorch array.
        batch_first: If True, the batch axis of `input` comes first. Defaults to False.
        enforce_sorted: If True, lengths must be non-increasing. If False, sort the sequences and
            store the permutation. Defaults to True.

    Returns:
        A `PackedSequence` with S = sum(lengths).

    Raises:
        ValueError, RuntimeError: if `lengths` are not N integers from 1 to T, or not sorted with
            `enforce_sorted`; if `input` is empty; also an IndexError if it has less than two axes.
        TypeError: if `lengths` are traced or not numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1, 2, 0], [3, 0, 0], [4, 5, 6]])
        >>> packed = pack_padded_sequence(x, [2, 1, 3], batch_first=True, enforce_sorted=False)
        >>> packed.data.tolist(), packed.batch_sizes.tolist(), packed.sorted_indices.tolist()
        ([4, 1, 3, 5, 2, 6], [3, 2, 1], [2, 0, 1])

    Differs from PyTorch: lengths that exceed T, are fractional, or are not N in number are errors.
    The sort is stable.
    """
    x = input if isinstance(input, jax.Array) else np.asarray(input)
    lengths = _integers("lengths", lengths)
    if x.size == 0:
        raise PackingError(f"Cannot pack empty tensors. `input` has shape {x.shape}")
    steps, batch = _time_and_batch(x, batch_first)
    batch_sizes, order = _sort_lengths(lengths, steps, batch, enforce_sorted)
    source, inverse = _packed_indices(batch_sizes, order, steps, batch_first)
    data = gather(x.reshape(steps * batch, *x.shape[2:]), source, inverse)
    return PackedSequence(data, batch_sizes, order)


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: Any = 0.0,
    total_length: int | None = None,
) -> tuple[jax.Array, np.ndarray]:
    """Convert packed sequences to a padded batch in the original order.

    Args:
        sequence: a `PackedSequence`.
        batch_first: If True, the batch axis of the result comes first. Defaults to False.
        padding_value: value of the padding, truncated for integer dtypes. Defaults to 0.
        total_length: T, optional. Defaults to the longest sequence.

    Returns:
        The batch (T, N, ...), or (N, T, ...) if `batch_first`, and the lengths, NumPy int64 (N,).

    Raises:
        ValueError: if `total_length` is less than the longest sequence.
        TypeError: if an argument has a wrong type; also an AttributeError for `sequence`.
        RuntimeError: if the dtype cannot represent `padding_value`.

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], enforce_sorted=False)
        >>> x, lengths = pad_packed_sequence(packed, batch_first=True, padding_value=-1)
        >>> x.tolist(), lengths.tolist()
        ([[1, 2, -1], [3, 4, 5]], [2, 3])

    Differs from PyTorch: lengths are a NumPy array.
    """
    if not isinstance(sequence, PackedSequence):
        raise _SequenceTypeError(
            f"expected a jaxrnn.PackedSequence, got {type(sequence).__name__}. Create one with "
            "jaxrnn.pack_padded_sequence."
        )
    steps = longest = len(sequence.batch_sizes)
    if total_length is not None:
        steps = operator.index(total_length)
        if steps < longest:
            raise PackingError(
                "Expected total_length to be at least the length of the longest sequence in input, "
                f"but got total_length={total_length} and max sequence length being {longest}"
            )
    padding = _padding_of(padding_value, sequence.data.dtype)
    return _unpack(sequence, steps, batch_first, padding), _lengths_of(sequence)


def pad_sequence(
    sequences: Any,
    batch_first: bool = False,
    padding_value: Any = 0.0,
    padding_side: str = "right",
) -> jax.Array:
    """Stack sequences of different lengths into a padded batch.

    Args:
        sequences: iterable of N arrays (L, ...) with equal trailing axes; L may be 0. Concatenated
            on the host unless traced, so that new lengths do not recompile.
        batch_first: If True, the batch axis of the result comes first. Defaults to False.
        padding_value: value of the padding, see `pad_packed_sequence`. Defaults to 0.
        padding_side: "right" (default) pads the end, "left" the start.

    Returns:
        The batch (T, N, ...), or (N, T, ...) if `batch_first`, in the dtype of the first sequence.

    Raises:
        ValueError, RuntimeError: if `sequences` is empty or not iterable, trailing axes differ, or
            `padding_side` is invalid.
        TypeError: if a sequence is not an array.

    Example:
        >>> import jax.numpy as jnp
        >>> pad_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], True, 9, "left").tolist()
        [[9, 1, 2], [3, 4, 5]]

    Differs from PyTorch: trailing axes of size 1 are not broadcast.
    """
    if not isinstance(sequences, Iterable):
        raise PackingError(
            "pad_sequence: Expected iterable for input sequences, but got arg of type: "
            f"{type(sequences)}"
        )
    sequences = tuple(sequences)
    data, lengths = concatenate(sequences)
    if padding_side not in ("left", "right"):
        raise PackingError(
            f"Expected padding_side to be one of left or right, but got {padding_side}."
        )
    padding = _padding_of(padding_value, data.dtype)
    steps, batch = int(lengths.max()), lengths.size
    index, step = ragged_indices(lengths)
    if padding_side == "left":
        step = step + (steps - lengths)[index]
    position = index * steps + step if batch_first else step * batch + index
    source = _invert(position, steps * batch)
    x = gather(data, source, position, _committed_device(sequences[0]))
    shape = (batch, steps) if batch_first else (steps, batch)
    return _fill_padding(x, source < len(data), shape, padding)


def unpad_sequence(
    padded_sequences: Any, lengths: Any, batch_first: bool = False
) -> list[jax.Array]:
    """Split a padded batch into its sequences.

    Args:
        padded_sequences: batch (T, N, ...), or (N, T, ...) if `batch_first`. Split on the host
            unless traced.
        lengths: integers from 0 to T, (N,).
        batch_first: If True, the batch axis comes first. Defaults to False.

    Returns:
        List of N arrays (L, ...).

    Raises:
        ValueError, RuntimeError: if `lengths` are not N integers from 0 to T; also an IndexError if
            the batch has less than two axes.
        TypeError: if `lengths` are traced or not numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1, 2, 0], [3, 4, 5]])
        >>> [sequence.tolist() for sequence in unpad_sequence(x, [2, 3], batch_first=True)]
        [[1, 2], [3, 4, 5]]

    Differs from PyTorch: the argument is not transposed in place, lengths outside [0, T] are
    errors, and lengths may be a list.
    """
    x = padded_sequences if isinstance(padded_sequences, Tracer) else np.asarray(padded_sequences)
    lengths = _integers("lengths", lengths)
    steps, batch = _time_and_batch(x, batch_first)
    _check_count(lengths, batch)
    _check_range(lengths, steps)
    sequences: list[Any] = [
        x[n, :length] if batch_first else x[:length, n] for n, length in enumerate(lengths.tolist())
    ]
    if isinstance(x, Tracer):
        return sequences
    # Slices on the device would be compiled for each new length.
    device = _committed_device(padded_sequences)
    return jax.device_put([sequence.copy() for sequence in sequences], device)


def pack_sequence(sequences: Any, enforce_sorted: bool = True) -> PackedSequence:
    """Pack a list of sequences.

    Args:
        sequences: iterable of N arrays (L, ...) with equal trailing axes and L at least 1.
            Concatenated on the host unless traced.
        enforce_sorted: see `pack_padded_sequence`. Defaults to True.

    Raises:
        ValueError, RuntimeError: if there are no sequences, a sequence is empty, trailing axes
            differ, or the lengths are not sorted with `enforce_sorted`.
        TypeError: if a sequence is not an array.

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2, 3]), jnp.array([4, 5]), jnp.array([6])])
        >>> packed.data.tolist(), packed.batch_sizes.tolist(), packed.sorted_indices
        ([1, 4, 6, 2, 5, 3], [3, 2, 1], None)
    """
    sequences = tuple(sequences)
    data, lengths = concatenate(sequences)
    if data.size == 0:
        raise PackingError(f"Cannot pack empty tensors. The concatenation has shape {data.shape}")
    steps = int(lengths.max())
    batch_sizes, order = _sort_lengths(lengths, steps, lengths.size, enforce_sorted)
    position, _ = _packed_indices(batch_sizes, order, steps, batch_first=True)
    index, step = np.divmod(position, steps)
    source = (np.cumsum(lengths) - lengths)[index] + step
    device = _committed_device(sequences[0])
    return PackedSequence(
        gather(data, source, _invert(source, len(data)), device), batch_sizes, order
    )


def unpack_sequence(packed_sequences: PackedSequence) -> list[jax.Array]:
    """Convert packed sequences to a list of sequences in the original order.

    Raises:
        TypeError, AttributeError: if the argument is not a `PackedSequence`.

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], enforce_sorted=False)
        >>> [sequence.tolist() for sequence in unpack_sequence(packed)]
        [[1, 2], [3, 4, 5]]
    """
    x, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(x, lengths, batch_first=True)


def to_padded(packed: PackedSequence) -> tuple[jax.Array, np.ndarray]:
    """Return the zero-padded batch and the lengths that a layer computes with.

    Returns:
        The batch (T, N, ...) in the original order and the lengths, NumPy int32 (N,).

    Example:
        >>> import jax.numpy as jnp
        >>> x, lengths = to_padded(pack_sequence([jnp.array([1, 2]), jnp.array([3])]))
        >>> x.tolist(), lengths.tolist()
        ([[1, 3], [2, 0]], [2, 1])
    """
    return _unpack(packed, len(packed.batch_sizes), False), _lengths_of(packed).astype(np.int32)


def repack(packed: PackedSequence, y: jax.Array) -> PackedSequence:
    """Pack a batch with the lengths and order of `packed`, the inverse of `to_padded`.

    Args:
        packed: a `PackedSequence`.
        y: batch (T, N, ...) of any dtype.

    Raises:
        ValueError, RuntimeError: if the first axes of `y` are not (T, N).

    Example:
        >>> import jax.numpy as jnp
        >>> packed = pack_sequence([jnp.array([1, 2]), jnp.array([3])])
        >>> repack(packed, jnp.array([[1.5, 2.5], [3.5, 4.5]])).data.tolist()
        [1.5, 2.5, 3.5]
    """
    batch_sizes, order = packed.batch_sizes, packed.sorted_indices
    steps, batch = len(batch_sizes), int(batch_sizes[0])
    if y.shape[:2] != (steps, batch):
        raise PackingError(f"`y` must be ({steps}, {batch}, ...), got shape {y.shape}")
    source, inverse = _packed_indices(batch_sizes, order, steps, batch_first=False)
    return packed._replace(data=gather(y.reshape(steps * batch, *y.shape[2:]), source, inverse))


def _unpack(
    packed: PackedSequence, steps: int, batch_first: bool, padding: Any = None
) -> jax.Array:
    """Return the padded batch of `steps` steps."""
    inverse, source = _packed_indices(packed.batch_sizes, packed.sorted_indices, steps, batch_first)
    x, batch = gather(packed.data, source, inverse), int(packed.batch_sizes[0])
    shape = (batch, steps) if batch_first else (steps, batch)
    return _fill_padding(x, source < len(packed.data), shape, padding)


def _fill_padding(
    x: jax.Array, valid: np.ndarray, shape: tuple[int, int], padding: Any
) -> jax.Array:
    """Reshape a batch (T*N, ...) with zeros for padding, and replace the zeros by `padding`."""
    x = x.reshape(*shape, *x.shape[1:])
    if padding is None or not padding:
        return x
    valid = valid.reshape(*shape, *(1,) * (x.ndim - 2))
    return jnp.where(valid, x, jnp.asarray(padding, x.dtype))


# Indices, computed by NumPy without a loop over steps or sequences.


def _sort_lengths(
    lengths: np.ndarray, steps: int, batch: int, enforce_sorted: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the batch sizes (T,), and the order (N,) unless `enforce_sorted`."""
    _check_count(lengths, batch)
    # With `enforce_sorted` the last length is the minimum. PyTorch checks it before the order.
    if (lengths[-1] if enforce_sorted else lengths.min()) <= 0:
        raise PackingError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' "
            f"that is <= 0: {lengths.min()}. Layers support empty sequences by lengths=."
        )
    if enforce_sorted and (np.diff(lengths) > 0).any():
        raise PackingError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You "
            "can pass `enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to "
            "sidestep this requirement if you do not need ONNX exportability."
        )
    _check_range(lengths, steps)
    order = None if enforce_sorted else np.argsort(-lengths, kind="stable")
    ascending = (lengths if order is None else lengths[order])[::-1]
    ended = np.searchsorted(ascending, np.arange(ascending[-1]), side="right")
    return lengths.size - ended, order


def _packed_indices(
    batch_sizes: np.ndarray, order: np.ndarray | None, steps: int, batch_first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the padded index of each packed step (S,), and the inverse (T*N,), S for padding."""
    batch = int(batch_sizes[0])
    step, index = ragged_indices(batch_sizes)
    index = index if order is None else order[index]
    position = index * steps + step if batch_first else step * batch + index
    return position, _invert(position, steps * batch)


def ragged_indices(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group, and the index within the group, of each element of consecutive groups.

    Example:
        >>> [a.tolist() for a in ragged_indices(np.array([2, 0, 3]))]
        [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]
    """
    group = np.repeat(np.arange(counts.size), counts)
    return group, np.arange(group.size) - np.repeat(np.cumsum(counts) - counts, counts)


def _invert(index: np.ndarray, size: int) -> np.ndarray:
    """Return the inverse of an injective index into `size` elements; ``len(index)`` if not hit."""
    inverse = np.full(size, index.size)
    inverse[index] = np.arange(index.size)
    return inverse


def _lengths_of(packed: PackedSequence) -> np.ndarray:
    """Return the lengths, NumPy int64 (N,), in the original order."""
    batch_sizes, ranks = packed.batch_sizes, packed.unsorted_indices
    descending = (batch_sizes[:, None] > np.arange(batch_sizes[0])).sum(0)
    return descending if ranks is None else descending[ranks]


# JAX transposes a gather to a scatter-add, since an element may be read twice. With a known inverse
# index the transpose is a gather, 2 to 20 times as fast on CPUs.


def gather(x: Any, source: Any, inverse: Any, device: Any = None) -> jax.Array:
    """Gather elements of the first axis, each at most once: ``y[i] = x[source[i]]``.

    Args:
        x: array (S, ...). NumPy arrays are gathered on the host, and moved to `device`.
        source: index of each element of the result (M,), S for zero. Concrete on the host.
        inverse: index in the result of each element of `x` (S,), M for none.
        device: device of the result of a host gather, optional.
    """
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        y = np.zeros((len(source), *x.shape[1:]), x.dtype)
        valid = source < len(x)
        y[valid] = x[source[valid]]
        return jax.device_put(y, device)  # jnp.asarray would compile for each new shape.
    if max(len(x), len(source)) < 2**31:
        source, inverse = source.astype(np.int32), inverse.astype(np.int32)
    return _gather_p.bind(x, source, inverse)


def _take(x: jax.Array, source: jax.Array, inverse: jax.Array) -> jax.Array:
    del inverse
    return x.at[source].get(mode="fill", fill_value=0)


def _aval(x: Any, source: Any, inverse: Any) -> Any:
    del inverse
    return ShapedArray((*source.shape, *x.shape[1:]), x.dtype)


def _jvp(primals: Any, tangents: Any) -> Any:
    x, source, inverse = primals
    return _gather_p.bind(x, source, inverse), _gather_p.bind(tangents[0], source, inverse)


def _transpose(ct: Any, x: Any, source: Any, inverse: Any) -> Any:
    dx = ad.Zero(x.aval) if isinstance(ct, ad.Zero) else _gather_p.bind(ct, inverse, source)
    return dx, None, None


def _batch(args: Any, axes: Any) -> Any:
    x, source, inverse = args
    if axes[1] is None and axes[2] is None:
        x = jnp.moveaxis(x, axes[0], -1)
        return _gather_p.bind(x, source, inverse), source.ndim + x.ndim - 2
    return jax.vmap(_take, in_axes=tuple(axes))(x, source, inverse), 0


_gather_p = define_primitive(
    "packed_gather", _take, _aval, jvp=_jvp, transpose=_transpose, batch=_batch
)


# Checks, before any computation. Exceptions are instances of PyTorch's types.


def _integers(name: str, values: Any) -> np.ndarray:
    """Convert lengths, sizes or indices to a read-only NumPy int64 array (N,)."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise TypeError(
            f"`{name}` must be concrete, got a traced array. Inside jit, call the layer on the "
            "padded batch with lengths=lengths, which may be traced."
        )
    try:
        array = np.asarray(values)
    except ValueError:  # nested lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` must be integers, got {values!r}")
    integral = np.issubdtype(array.dtype, np.integer) or not array.size
    if array.ndim != 1 or not integral:
        raise PackingError(
            f"'{name}' argument should be a 1D CPU int64 tensor, but got {array.ndim}D cpu "
            f"{'Long' if integral else array.dtype.name} tensor"
        )
    array = array.astype(np.int64)
    array.setflags(write=False)
    return array


def _check_count(lengths: np.ndarray, batch: int) -> None:
    if lengths.size != batch:
        raise PackingError(
            "Expected `len(lengths)` to be equal to batch_size, but got "
            f"{lengths.size} (batch_size={batch})"
        )


def _check_range(lengths: np.ndarray, steps: int) -> None:
    wrong = lengths[(lengths < 0) | (lengths > steps)]
    if wrong.size:
        raise PackingError(
            f"`lengths` must be from 0 to {steps}, the steps of the batch, got {_shorten(wrong)}"
        )


def _time_and_batch(x: Any, batch_first: bool) -> tuple[int, int]:
    if x.ndim < 2:
        raise _AxesError(f"a padded batch must have at least two axes, got shape {x.shape}")
    return (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])


def _committed_device(x: Any) -> Any:
    """Return the sharding of an array committed to one device, else None."""
    if not isinstance(x, jax.Array) or isinstance(x, Tracer) or not x.committed:
        return None
    return x.sharding if isinstance(x.sharding, SingleDeviceSharding) else None


def concatenate(sequences: tuple[Any, ...]) -> tuple[Any, np.ndarray]:
    """Concatenate sequences in the dtype of the first, on the host unless traced."""
    if not sequences:
        raise PackingError("received an empty list of sequences")
    arrays = []
    for i, sequence in enumerate(sequences):
        if not hasattr(sequence, "shape") or not hasattr(sequence, "dtype"):
            raise _SequenceTypeError(
                f"each sequence must be a NumPy or JAX array, got {type(sequence).__name__} for "
                f"sequence {i}"
            )
        array = sequence if isinstance(sequence, jax.Array) else np.asarray(sequence)
        if array.ndim == 0:
            raise _AxesError(f"each sequence must be (L, ...), got a scalar for sequence {i}")
        arrays.append(array)
        if array.shape[1:] != arrays[0].shape[1:]:
            shapes = f"{arrays[0].shape} and {array.shape}"
            raise PackingError(f"sequences must have equal trailing axes, got shapes {shapes}")
    first = arrays[0]
    lengths = np.array([len(array) for array in arrays])
    if any(isinstance(array, Tracer) for array in arrays):
        dtype = jax.dtypes.canonicalize_dtype(first.dtype)
        return jnp.concatenate([jnp.asarray(array, dtype) for array in arrays]), lengths
    return np.concatenate([np.asarray(array).astype(first.dtype) for array in arrays]), lengths


def _padding_of(value: Any, dtype: Any) -> np.ndarray:
    """Convert a padding value to the dtype of the data, as PyTorch does."""
    if getattr(value, "shape", None) == () and not isinstance(value, Tracer):
        value = value.item()
    if not isinstance(value, (int, float, complex)):
        raise TypeError(f"`padding_value` must be a number, got {value!r}")
    dtype = jnp.dtype(dtype)
    error = PackingError(f"`padding_value` must be representable as {dtype.name}, got {value}")
    if isinstance(value, complex) and not jnp.issubdtype(dtype, jnp.complexfloating):
        if value.imag:
            raise error
        value = value.real
    if isinstance(value, complex) or jnp.issubdtype(dtype, jnp.bool_):
        return np.asarray(value, dtype)
    integral = jnp.issubdtype(dtype, jnp.integer)
    kind, info = (int, jnp.iinfo(dtype)) if integral else (float, jnp.finfo(dtype))
    low, high = kind(info.min), kind(info.max)
    if low == 0 and isinstance(value, int):  # PyTorch wraps negative values of unsigned dtypes
        low = -high
    if not (low <= value <= high or (not integral and not math.isfinite(value))):
        raise error
    return np.asarray(kind(value)).astype(dtype)


def _sharding_of(device: Any) -> Sharding:
    """Return the sharding of a device, a device name or a sharding."""
    if isinstance(device, str):
        platform, _, number = device.partition(":")
        devices = jax.devices(platform)
        if not (number or "0").isdecimal() or int(number or 0) >= len(devices):
            raise PackingError(f"no device {device!r}: {platform} has {len(devices)} devices")
        device = devices[int(number or 0)]
    return device if isinstance(device, Sharding) else SingleDeviceSharding(device)


def _shorten(values: np.ndarray) -> str:
    return f"[{', '.join(map(str, values[:8]))}{', ...' if values.size > 8 else ''}]"
