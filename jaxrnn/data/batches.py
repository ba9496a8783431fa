"""Batches as indices of examples: arrays to scan over, while the data stays in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import _checks as checks


class Batches(NamedTuple):
    """Batches of an epoch, of equal shape; a pytree to scan over.

    Attributes:
        index: indices of the examples (steps, B), int32.
        mask: False for the examples that fill up the last batch (steps, B), bool.
    """

    index: jax.Array
    mask: jax.Array


def epoch(
    examples: int | range, size: int, *, key: jax.Array | None = None, drop_last: bool = False
) -> Batches:
    """Return batches with every example once; a pure function of the key.

    .. code-block:: text

        order       = permutation(key, examples)                        S of them
        index[k, i] = order[(k * B + i) mod S]
        mask[k, i]  = k * B + i < S                       loss: (mask * errors).sum() / mask.sum()

    Args:
        examples: number S of examples, or the range of their indices, as ``Windows.within(part)``.
        size: batch size B.
        key: key of the permutation. Defaults to the order of the indices.
        drop_last: If True, leave out the last S mod B examples. Otherwise the last batch is filled
            up from the start of the order, and masked.

    Returns:
        `Batches` with ceil(S / B) steps, or floor(S / B) with `drop_last`.

    Raises:
        ValueError: if there are no examples or no batches.

    Example:
        >>> index, mask = epoch(5, 2)
        >>> index.tolist(), mask.tolist()
        ([[0, 1], [2, 3], [4, 0]], [[True, True], [True, True], [True, False]])

        Ten epochs: ``jax.vmap(lambda key: epoch(5, 2, key=key))(jax.random.split(key, 10))``.
    """
    indices = examples if isinstance(examples, range) else range(examples)
    checks.at_least("size", size, 1)
    count = len(indices)
    if not count:
        raise ValueError(f"`examples` must not be empty, got {examples}")
    steps = count // size if drop_last else -(-count // size)
    if not steps:
        raise ValueError(f"`size` must be <= {count}, the number of examples, got {size}")
    if max(map(abs, (indices[0], indices[-1], steps * size))) >= 2**31:
        raise ValueError(f"`examples` must fit in int32, got {examples} in {steps} batches")
    order = jnp.arange(indices.start, indices.stop, indices.step, dtype=jnp.int32)
    if key is not None:
        order = jax.random.permutation(key, order)
    index, mask = _batched(order, steps, size)
    return Batches(index, jnp.asarray(mask))


class Bucket(NamedTuple):
    """Batches of sequences of similar length.

    Attributes:
        steps: length to pad the sequences to.
        index: indices of the sequences (batches, B), int32, on the host.
        mask: False for the sequences that fill up the last batch (batches, B), bool, on the host.
    """

    steps: int
    index: np.ndarray
    mask: np.ndarray


def buckets(
    lengths: Any,
    size: int,
    bounds: int | Sequence[int] = 4,
    *,
    key: jax.Array | None = None,
    drop_last: bool = False,
) -> tuple[Bucket, ...]:
    """Sort sequences into buckets of similar length, to reduce padding; runs on the host.

    A training step is compiled once per bucket, whose batches have one shape. For sequence packing
    see `jaxrnn.sequences.bin_packing`.

    Args:
        lengths: the length of each sequence (M,), integers, on the host.
        size: batch size B.
        bounds: the maximal length in each bucket, increasing; or the number of buckets, which then
            have equally many sequences.
        key: key of the permutation within each bucket. Defaults to the order of the sequences.
        drop_last: If True, leave out the sequences of a bucket that do not fill a batch.

    Returns:
        The buckets that have batches, shortest sequences first.

    Raises:
        ValueError: for invalid lengths or bounds.

    Example:
        >>> for steps, index, mask in buckets([3, 9, 2, 4, 8], 2, bounds=[4, 10]):
        ...     print(steps, index.tolist(), mask.tolist())
        4 [[0, 2], [3, 0]] [[True, True], [True, False]]
        10 [[1, 4]] [[True, True]]
    """
    checks.at_least("size", size, 1)
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer) or not lengths.size:
        raise ValueError(f"`lengths` must be integers (M,), got {lengths.dtype} {lengths.shape}")
    if lengths.min() < 0:
        raise ValueError(f"`lengths` must be >= 0, got {lengths.min()}")
    ends = _bounds(lengths, bounds)
    bucket_ids = np.searchsorted(ends, lengths)
    # NumPy shuffles, since JAX would compile a permutation for each size.
    random = None if key is None else np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    result = []
    for number, end in enumerate(ends):
        members = np.flatnonzero(bucket_ids == number).astype(np.int32)
        steps = len(members) // size if drop_last else -(-len(members) // size)
        if steps:
            order = members if random is None else random.permutation(members)
            result.append(Bucket(int(end), *_batched(order, steps, size)))
    return tuple(result)


def _batched(order: Any, steps: int, size: int) -> tuple[Any, np.ndarray]:
    """Return indices in batches, filled up from their start, and the mask."""
    positions = np.arange(steps * size, dtype=np.int32).reshape(steps, size)
    return order[positions % len(order)], positions < len(order)


def _bounds(lengths: np.ndarray, bounds: int | Sequence[int]) -> np.ndarray:
    """Return the maximal length in each bucket."""
    if isinstance(bounds, int):
        checks.at_least("bounds", bounds, 1)
        last = -(-len(lengths) * np.arange(1, bounds + 1) // bounds) - 1
        return np.unique(np.sort(lengths)[last.clip(min=0)].clip(min=1))
    ends = np.array(bounds)
    valid = ends.ndim == 1 and np.issubdtype(ends.dtype, np.integer) and ends.size
    if not valid or ends[0] < 1 or (np.diff(ends) <= 0).any():
        raise ValueError(f"`bounds` must be increasing integers >= 1, got {list(bounds)}")
    if lengths.max() > ends[-1]:
        raise ValueError(
            f"`bounds` must cover sequence {lengths.argmax()} of length {lengths.max()}, got "
            f"{ends[-1]}"
        )
    return ends


def streams(series: Any, batch_size: int, *, drop_last: bool = False) -> Any:
    """Cut a long series into N contiguous streams, the batch elements of stateful training.

    .. code-block:: text

        result[t, n] = series[n * (S // N) + t]

    In `jaxrnn.training.truncated_bptt` each stream continues from window to window with its state.

    Args:
        series: a pytree of arrays (S, ...), time first. Inputs and targets are two leaves; a target
            that is a later input must be paired with its input before the cut.
        batch_size: N, from 1 to S.
        drop_last: If True, leave out the last S mod N steps. Otherwise N must divide S.

    Returns:
        The pytree with leaves (S // N, N, ...).

    Raises:
        ValueError: for an invalid `batch_size`, or leaves without a common leading axis.

    Example:
        >>> streams(jnp.arange(6), 2).tolist()
        [[0, 3], [1, 4], [2, 5]]
        >>> streams(jnp.arange(7), 2, drop_last=True).shape
        (3, 2)
    """
    checks.at_least("batch_size", batch_size, 1)
    steps = checks.leading_axis("series", series, "time steps")
    length, rest = divmod(steps, batch_size)
    if not length:
        raise ValueError(f"`batch_size` must be <= {steps}, the number of steps, got {batch_size}")
    if rest and not drop_last:
        raise ValueError(
            f"`batch_size` must divide the {steps} steps of the series, got {batch_size}. "
            f"drop_last=True leaves out the last {rest}"
        )
    return jax.tree.map(
        lambda a: a[: batch_size * length].reshape(batch_size, length, *a.shape[1:]).swapaxes(0, 1),
        series,
    )
