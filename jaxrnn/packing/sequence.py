"""`PackedSequence`: sequences of unequal length, step by step, without padding.

The functions that make one and take it apart are in `jaxrnn.packing`. Axis letters: N sequences,
T steps of the longest, S steps of all together.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Sharding, SingleDeviceSharding

from jaxrnn.backends import platform as tuning
from jaxrnn.packing.checks import PackingError, PairError, shown, whole_numbers

PLATFORMS = ("gpu", *tuning.PLATFORMS)
"""What `PackedSequence.to` takes for the name of a device, and not of a dtype."""


class _Fields(NamedTuple):
    data: Any
    batch_sizes: np.ndarray
    sorted_indices: np.ndarray | None
    unsorted_indices: np.ndarray | None


class PackedSequence(_Fields):
    """Sequences of unequal length as one array, ``torch.nn.utils.rnn.PackedSequence`` for JAX.

    First the first step of all sequences, the longest sequence first, then the second step of
    those that have one, and so on. Made by `pack_padded_sequence` and `pack_sequence`, taken and
    returned by the layers, taken apart by `pad_packed_sequence` and `unpack_sequence`.

    Attributes:
        data: the steps (S, ...), a JAX array of any dtype.
        batch_sizes: how many sequences have a step t (T,), NumPy int64, never increasing.
        sorted_indices: the sequences from the longest to the shortest, by their numbers (N,),
            NumPy int64; None if that is the order in which they were given.
        unsorted_indices: its inverse, the rank of each sequence (N,), or None.

    It is a named tuple. Of two ways to make one by hand, ``PackedSequence(data, batch_sizes,
    sorted_indices, unsorted_indices)`` and ``PackedSequence((data, batch_sizes), ...)``, each may
    leave out one of the indices or both.

    To JAX it is a pytree whose only leaf is `data`; the rest is static. It can be passed to and
    returned from functions under `jit`, `grad` and the like, and `jit` compiles anew whenever
    the lengths of the sequences change. For lengths that change from call to call, give a layer
    the padded batch and ``lengths=``: one compiled function serves them all.

    Raises:
        AssertionError, TypeError: if there are no `batch_sizes` and `data` is not a pair.
        ValueError, RuntimeError: if `batch_sizes` are not positive, increase or do not sum up to
            S; if the indices are not permutations of the N sequences or not each other's inverse.
        TypeError: if `batch_sizes` or the indices are traced.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.packing import PackedSequence, pack_sequence
        >>> packed = pack_sequence([jnp.array([1, 2]), jnp.array([3, 4, 5])], enforce_sorted=False)
        >>> packed.data.tolist(), packed.batch_sizes.tolist(), packed.sorted_indices.tolist()
        ([3, 1, 4, 2, 5], [2, 2, 1], [1, 0])
        >>> data, batch_sizes, *order = packed
        >>> PackedSequence(10 * data, batch_sizes, *order).data.tolist()
        [30, 10, 40, 20, 50]
        >>> jax.jit(lambda p: jax.tree.map(jnp.square, p))(packed).data.tolist()
        [9, 1, 16, 4, 25]

    Differs from PyTorch: `batch_sizes` and the indices are NumPy arrays, read-only and on the
    host, wherever `data` is; lists are taken for them too. They are checked against each other,
    where PyTorch fails later or gives wrong numbers.
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
                raise PairError(
                    "Expected data to be a list or tuple of length 2, (data, batch_sizes), where "
                    f"there are no batch_sizes beside it; got {type(data).__name__}"
                )
            data, batch_sizes = data
        sizes = whole_numbers("batch_sizes", batch_sizes)
        if not isinstance(data, jax.Array):
            data = jax.device_put(np.array(data))
        if not sizes.size:
            raise PackingError("batch_sizes can not be empty")
        if sizes[-1] < 1 or (np.diff(sizes) > 0).any():
            raise PackingError(
                f"batch_sizes should be positive and never increase, got {shown(sizes)}"
            )
        if data.shape[:1] != (sizes.sum(),):
            raise PackingError(
                "Expected data to have a row for each step of each sequence, the sum of "
                f"batch_sizes, which is {sizes.sum()}, but got the shape {data.shape}"
            )
        order, ranks = (
            None if indices is None else whole_numbers(name, indices)
            for name, indices in (
                ("sorted_indices", sorted_indices),
                ("unsorted_indices", unsorted_indices),
            )
        )
        inverse = invert_permutation(order)
        if ranks is None:
            ranks = inverse
        elif inverse is None:
            order = invert_permutation(ranks)
        elif not np.array_equal(ranks, inverse):
            raise PackingError(
                "Expected unsorted_indices to be the inverse of sorted_indices, "
                f"{shown(inverse)}, got {shown(ranks)}"
            )
        if order is not None and order.size != sizes[0]:
            raise PackingError(
                f"Expected an index for each of the {sizes[0]} sequences, got {order.size}"
            )
        return super().__new__(cls, data, sizes, order, ranks)

    def to(
        self,
        *target: Any,
        dtype: Any = None,
        device: Any = None,
        non_blocking: bool = False,
        copy: bool = False,
    ) -> Self:
        """`data` in another dtype or on another device; the object itself if nothing changes.

        Args:
            target: a dtype, a device, both, or an array that has the dtype and device wanted.
            dtype: a dtype, if not in `target`. Where ``jax_enable_x64`` is off, one of 64 bits
                gives 32 and JAX's warning.
            device: if not in `target`: a `jax.Device` or a sharding, or a name as "cpu", "gpu",
                "cuda:1".
            non_blocking: of no consequence: JAX never waits for a transfer.
            copy: whether to copy even if nothing changes.

        Raises:
            TypeError: for what is neither a dtype nor a device.
            RuntimeError, ValueError: for a device that is not there.

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
            elif isinstance(item, (jax.Device, Sharding)) or _names_a_device(item):
                device = item
            else:
                dtype = item
        data = self.data
        if dtype is not None and jnp.dtype(dtype) != data.dtype:
            cast = data.astype(dtype)
            data = cast if cast.dtype != data.dtype else data
        if device is not None:
            place = _placement(device)
            if not _lies_on(data, place):
                data = jax.device_put(data, place)
        if copy and data is self.data:
            data = jnp.array(data, copy=True)
        return self if data is self.data else self._replace(data=data)

    def cpu(self) -> Self:
        """`data` in the memory of the host."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Self:
        """`data` on a GPU.

        Args:
            device: its number or the device itself; None for the first.
        """
        if device is None or isinstance(device, int):
            device = f"gpu:{device or 0}"
        return self.to(device)

    def pin_memory(self) -> Self:
        """The object itself: JAX pins what it has to, on the way to a device."""
        return self

    def is_pinned(self) -> Any:
        """Whether `data` is in pinned memory of the host."""
        return self.data.sharding.memory_kind == "pinned_host"

    @property
    def is_cuda(self) -> Any:
        """Whether `data` is on a GPU."""
        return all(d.platform == "gpu" for d in self.data.devices()) and not self.is_pinned()

    def double(self) -> Self:
        """`data` as float64."""
        return self.to(jnp.float64)

    def float(self) -> Self:
        """`data` as float32."""
        return self.to(jnp.float32)

    def half(self) -> Self:
        """`data` as float16."""
        return self.to(jnp.float16)

    def long(self) -> Self:
        """`data` as int64."""
        return self.to(jnp.int64)

    def int(self) -> Self:
        """`data` as int32."""
        return self.to(jnp.int32)

    def short(self) -> Self:
        """`data` as int16."""
        return self.to(jnp.int16)

    def char(self) -> Self:
        """`data` as int8."""
        return self.to(jnp.int8)

    def byte(self) -> Self:
        """`data` as uint8."""
        return self.to(jnp.uint8)


def _flatten(packed: PackedSequence) -> tuple[tuple[Any], Any]:
    # Bytes are compared and hashed by value, and give read-only arrays back.
    return (packed.data,), tuple(None if a is None else a.tobytes() for a in packed[1:])


def _unflatten(static: Any, leaves: Any) -> PackedSequence:
    arrays = (None if a is None else np.frombuffer(a, np.int64) for a in static)
    return PackedSequence._make((*leaves, *arrays))


def _flatten_with_keys(packed: PackedSequence) -> Any:
    (data,), static = _flatten(packed)
    return ((jax.tree_util.GetAttrKey("data"), data),), static


jax.tree_util.register_pytree_with_keys(PackedSequence, _flatten_with_keys, _unflatten, _flatten)


def invert_permutation(permutation: Any) -> np.ndarray | None:
    """The permutation that takes another one back: ``inverse[permutation[i]] = i``.

    Args:
        permutation: each of 0 ... N - 1 once (N,), a list or an array; or None.

    Returns:
        NumPy int64 (N,), or None for None.

    Raises:
        ValueError, RuntimeError: if it is not a permutation.
        TypeError: if it is traced.

    Example:
        >>> invert_permutation([2, 0, 1])
        array([1, 2, 0])

    Differs from PyTorch: takes lists, any integers; a repeated index is an error.
    """
    if permutation is None:
        return None
    permutation = whole_numbers("permutation", permutation)
    inverse = np.argsort(permutation, kind="stable")
    if (permutation[inverse] != np.arange(permutation.size)).any():
        raise PackingError(
            f"Expected a permutation of 0 ... {permutation.size - 1}, got {shown(permutation)}"
        )
    inverse.setflags(write=False)
    return inverse


def _names_a_device(item: Any) -> bool:
    return isinstance(item, str) and item.partition(":")[0] in PLATFORMS


def _placement(device: Any) -> Sharding:
    """The sharding that a device, a device's name or a sharding stands for."""
    if isinstance(device, str):
        platform, _, number = device.partition(":")
        there = jax.devices(platform)
        if not (number or "0").isdecimal() or int(number or 0) >= len(there):
            raise PackingError(f"there is no device {device!r}: {platform} has {len(there)}")
        device = there[int(number or 0)]
    return device if isinstance(device, Sharding) else SingleDeviceSharding(device)


def _lies_on(data: jax.Array, place: Sharding) -> bool:
    """Whether an array is there; a traced one is nowhere yet."""
    if isinstance(data, Tracer):
        return False
    return data.sharding.is_equivalent_to(place, data.ndim)
