"""Batches as the numbers of their examples: arrays to scan over, with the data left in its place.

For one long series cut into streams side by side, whose state goes on from batch to batch, see
`streams`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import _checks as checks


class Batches(NamedTuple):
    """The batches of an epoch, all of one shape; a pytree to scan over.

    Attributes:
        index: the numbers of the examples of each batch (steps, B), int32.
        mask: which of them count (steps, B), bool: all but those that fill up the last batch.
    """

    index: jax.Array
    mask: jax.Array


def epoch(
    examples: int | range,
    size: int,
    *,
    key: jax.Array | None = None,
    drop_last: bool = False,
) -> Batches:
    """Every example once, in batches: a pure function of the key, to compile and to map.

    .. code-block:: text

        order       = permutation(key, examples)                        S of them; or as they are
        index[k, i] = order[(k * B + i) mod S]
        mask[k, i]  = k * B + i < S                       loss: (mask * errors).sum() / mask.sum()

    Args:
        examples: how many examples, S, or the range of their numbers: ``Windows.within(part)``.
        size: B, examples in a batch.
        key: where the order comes from; None for that of the numbers.
        drop_last: leave out the last S mod B examples of the order. Otherwise they are a batch
            that is filled up from the beginning of the order, and masked.

    Returns:
        `Batches` with ceil(S / B) steps, or floor(S / B) with `drop_last`.

    Raises:
        ValueError: for no examples, a size below 1, or no batch left with `drop_last`.

    Example:
        >>> import jax
        >>> from jaxrnn.data import epoch
        >>> index, mask = epoch(5, 2)
        >>> index.tolist(), mask.tolist()
        ([[0, 1], [2, 3], [4, 0]], [[True, True], [True, True], [True, False]])

        Ten epochs, each in an order of its own, one after the other:

        >>> keys = jax.random.split(jax.random.key(0), 10)
        >>> epochs = jax.vmap(lambda key: epoch(range(100, 147), 32, key=key))(keys)
        >>> batches = jax.tree.map(lambda a: a.reshape(-1, 32), epochs)
        >>> batches.index.shape, batches.mask.sum().item()
        ((20, 32), 470)
    """
    numbers = examples if isinstance(examples, range) else range(examples)
    checks.at_least("size", size, 1)
    count = len(numbers)
    if not count:
        raise ValueError(f"there are no examples in {examples}")
    steps = count // size if drop_last else -(-count // size)
    if not steps:
        raise ValueError(f"size={size} is more than the {count} examples there are")
    if max(map(abs, (numbers[0], numbers[-1], steps * size))) >= 2**31:
        raise ValueError(
            f"numbers up to {max(numbers[0], numbers[-1])} in {steps} batches of {size} are more "
            "than an int32 can be"
        )
    order = jnp.arange(numbers.start, numbers.stop, numbers.step, dtype=jnp.int32)
    if key is not None:
        order = jax.random.permutation(key, order)
    index, mask = _in_batches(order, steps, size)
    return Batches(index, jnp.asarray(mask))


class Bucket(NamedTuple):
    """Batches of sequences of similar length.

    Attributes:
        steps: what to pad them to, no less than any of their lengths.
        index: the numbers of the sequences of each batch (batches, B), int32, on the host.
        mask: which of them count (batches, B), bool, on the host.
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
    """Sequences sorted into few lengths, so that little of a padded batch is padding.

    A compiled step is compiled once for each bucket, as the batches of one have one shape. Found on
    the host. For sequence packing instead of buckets see `jaxrnn.sequences.bin_packing`.

    Args:
        lengths: the length of each sequence (M,), integers, on the host.
        size: B, sequences in a batch.
        bounds: the greatest length in each bucket, increasing; or how many buckets there should
            be, with as many sequences in each.
        key: shuffles the sequences of each bucket; None for their order.
        drop_last: leave out the last sequences of a bucket, if they don't fill a batch.

    Returns:
        A `Bucket` for each that has batches, the shortest sequences first.

    Raises:
        ValueError: for lengths that are not integers (M,) of at least 0, bounds that don't
            increase or are less than the greatest length.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.data import buckets
        >>> for steps, index, mask in buckets([3, 9, 2, 4, 8], 2, bounds=[4, 10]):
        ...     print(steps, index.tolist(), mask.tolist())
        4 [[0, 2], [3, 0]] [[True, True], [True, False]]
        10 [[1, 4]] [[True, True]]
    """
    checks.at_least("size", size, 1)
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer) or not lengths.size:
        raise ValueError(f"lengths should be integers (M,), got {lengths.dtype} {lengths.shape}")
    if lengths.min() < 0:
        raise ValueError(f"lengths should be at least 0, got {lengths.min()}")
    ends = _bounds(lengths, bounds)
    where = np.searchsorted(ends, lengths)
    # Shuffled by NumPy, as JAX would compile a permutation for each size.
    random = None if key is None else np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    found = []
    for number, end in enumerate(ends):
        members = np.flatnonzero(where == number).astype(np.int32)
        steps = len(members) // size if drop_last else -(-len(members) // size)
        if steps:
            order = members if random is None else random.permutation(members)
            found.append(Bucket(int(end), *_in_batches(order, steps, size)))
    return tuple(found)


def _in_batches(order: Any, steps: int, size: int) -> tuple[Any, np.ndarray]:
    """An order in batches, the last filled up from its beginning, and which entries are no fill."""
    places = np.arange(steps * size, dtype=np.int32).reshape(steps, size)
    return order[places % len(order)], places < len(order)


def _bounds(lengths: np.ndarray, bounds: int | Sequence[int]) -> np.ndarray:
    """The greatest length in each bucket."""
    if isinstance(bounds, int):
        checks.at_least("bounds", bounds, 1)
        last = -(-len(lengths) * np.arange(1, bounds + 1) // bounds) - 1
        return np.unique(np.sort(lengths)[last.clip(min=0)].clip(min=1))
    ends = np.array(bounds)
    whole = ends.ndim == 1 and np.issubdtype(ends.dtype, np.integer) and ends.size
    if not whole or ends[0] < 1 or (np.diff(ends) <= 0).any():
        raise ValueError(f"bounds should be increasing lengths of at least 1, got {list(bounds)}")
    if lengths.max() > ends[-1]:
        raise ValueError(
            f"sequence {lengths.argmax()} has {lengths.max()} steps, more than the last of the "
            f"bounds, {ends[-1]}"
        )
    return ends


def streams(series: Any, rows: int, *, drop_last: bool = False) -> Any:
    """One long series as N streams side by side, for a batch whose rows go on from call to call.

    .. code-block:: text

        result[t, n] = series[n * (S // N) + t]

    Row n is the n-th part of the series, in one piece: window after window of
    `jaxrnn.training.truncated_bptt`, the state of a row meets the step that follows the last one
    it saw. Rows other than the first begin in the middle of the series, so their first state is a
    guess.

    Args:
        series: a pytree of arrays (S, ...), time first. Inputs and the targets that are later
            inputs belong in here as two leaves: paired before the series is cut, the last target
            of a row is the first input of the next.
        rows: N, from 1 to S.
        drop_last: leave out the last S % N steps, if `rows` does not divide S.

    Returns:
        The pytree with leaves (S // N, N, ...).

    Raises:
        ValueError: for `rows` out of bounds, or that do not divide S without `drop_last`; a series
            without arrays or without steps, arrays without a first axis or with first axes that
            differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.data import streams
        >>> streams(jnp.arange(6), 2).tolist()
        [[0, 3], [1, 4], [2, 5]]
        >>> streams(jnp.arange(7), 2)
        Traceback (most recent call last):
        ValueError: 2 rows do not divide a series of 7 steps: with drop_last=True the last 1 is ...
        >>> streams(jnp.arange(7), 2, drop_last=True).shape
        (3, 2)
    """
    checks.at_least("rows", rows, 1)
    steps = checks.leading_axis("series", series, "time steps")
    each, left = divmod(steps, rows)
    if not each:
        raise ValueError(f"rows should be at most {steps}, the steps of the series, got {rows}")
    if left and not drop_last:
        raise ValueError(
            f"{rows} rows do not divide a series of {steps} steps: with drop_last=True the last "
            f"{left} {'is' if left == 1 else 'are'} left out"
        )
    return jax.tree.map(
        lambda a: a[: rows * each].reshape(rows, each, *a.shape[1:]).swapaxes(0, 1), series
    )
