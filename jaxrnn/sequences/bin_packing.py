"""Sequence packing: many short sequences laid end to end in a few bins.

A padded batch costs the length of its longest sequence times the batch size. Packed into bins, the
same sequences cost the sum of their lengths. Resets separate the sequences of a bin:

.. code-block:: text

    padded, 4 x 6 steps         bins, 2 x 6 steps       resets
    a a a a a a                 a a a a a a             1 0 0 0 0 0
    b b b b . .                 b b b b c c             1 0 0 0 1 0
    c c . . . .
    . . . . . .                 (the fourth sequence is empty)

`assign_bins` runs on the host. Everything else is a gather with traced indices: if `bin_length` and
`num_bins` are fixed, one compiled training step serves every batch. `run_bins` does all of it.

Axis letters: M sequences, T steps of a padded batch, N bins, S steps of a bin, F directions,
L layers.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn._checks import ShapeError
from jaxrnn.packing import concatenate, gather, ragged_indices

__all__ = ["BinAssignment", "assign_bins", "final_states", "pack_bins", "run_bins", "unpack_bins"]


class BinAssignment(NamedTuple):
    """Positions of sequences in bins, as arrays to pass to compiled functions.

    Attributes:
        sequence: index of the sequence at each position, int32 (S, N); -1 for padding.
        step: step of that sequence at each position, int32 (S, N).
        resets: bool (S, N), True at the first step of each sequence and of the padding. Pass them
            to the layer.
        bin_lengths: number of valid steps of each bin, int32 (N,). Optional `lengths` of the layer,
            which make the outputs of padding zero.
        lengths: length of each sequence, int32 (M,).
        bin: index of the bin of each sequence, int32 (M,).
        first_step: position of the first step of each sequence in its bin, int32 (M,).
    """

    sequence: Any
    step: Any
    resets: Any
    bin_lengths: Any
    lengths: Any
    bin: Any
    first_step: Any

    @property
    def last_step(self) -> Any:
        """Position of the last step of each sequence, int32 (M,); ``first_step - 1`` if empty."""
        return self.first_step + self.lengths - 1

    @property
    def valid_mask(self) -> Any:
        """Mask of the valid steps, bool (S, N), to weight a loss with."""
        return self.sequence >= 0


def assign_bins(
    lengths: Any, *, bin_length: int | None = None, num_bins: int | None = None
) -> BinAssignment:
    """Assign sequences to bins by best-fit decreasing.

    Each sequence, longest first, goes into the fullest bin that has room for it. This needs at most
    ``11/9 OPT + 1`` bins, where OPT is the minimum. 100,000 sequences take about 0.2 s.

    Args:
        lengths: integers (M,) in any order, 0 allowed. Must not be traced.
        bin_length: S, at least the longest sequence, optional. Defaults to about the smallest that
            fits `num_bins`, or without `num_bins` to the longest sequence, or up to an eighth more
            if this reduces the number of bins to a multiple of 8, in which CPUs compute batches, at
            no more positions. Defaults above 64 are multiples of 4, the block size of the scan.
        num_bins: N, optional. Defaults to the number of bins required. Unused bins are padding.

    Returns:
        The assignment. With `bin_length` and `num_bins` given, its shapes depend on M alone: append
        empty sequences to a smaller batch to avoid recompilation.

    Raises:
        TypeError: if `lengths` are traced or not integers.
        ValueError: if `lengths` are empty, negative or not one-dimensional; if `bin_length` or
            `num_bins` is too small.

    Example:
        >>> bins = assign_bins([2, 6, 0, 4])
        >>> bins.sequence.T.tolist()
        [[1, 1, 1, 1, 1, 1], [3, 3, 3, 3, 0, 0]]
        >>> bins.resets.T.astype(int).tolist()
        [[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]]
        >>> assign_bins([2, 6, 0, 4], bin_length=8, num_bins=1)
        Traceback (most recent call last):
        ValueError: `num_bins` must be at least 2 for 4 sequences of 12 steps in bins of 8, got 1

    References:
        D. S. Johnson, Near-optimal bin packing algorithms, thesis, MIT (1973). Sequence packing for
        training: M. Kosec et al., arXiv:2107.02027.
    """
    lengths = _check_lengths(lengths)
    longest, total = max(1, int(lengths.max())), int(lengths.sum())
    bin_length = _check_at_least("bin_length", bin_length, longest, ", the longest sequence")
    num_bins = _check_at_least("num_bins", num_bins, 1)
    if bin_length is not None:
        bin_index, first_step, required = _best_fit(lengths, bin_length)
        if num_bins is not None and required > num_bins:
            raise ValueError(
                f"`num_bins` must be at least {required} for {len(lengths)} sequences of {total} "
                f"steps in bins of {bin_length}, got {num_bins}"
            )
    elif num_bins is not None:
        bin_length = _round_to_block(max(longest, -(-total // num_bins)))
        bin_index, first_step, required = _best_fit(lengths, bin_length)
        while required > num_bins:
            bin_length = _round_to_block(bin_length + 1 + bin_length // 128)
            bin_index, first_step, required = _best_fit(lengths, bin_length)
    else:
        bin_length, (bin_index, first_step, required) = _best_bin_length(lengths, longest)
    num_bins = num_bins or required

    sequence_ids, steps = ragged_indices(lengths)
    positions = first_step[sequence_ids] + steps, bin_index[sequence_ids]
    sequence = np.full((bin_length, num_bins), -1, np.int32)
    step = np.zeros((bin_length, num_bins), np.int32)
    sequence[positions], step[positions] = sequence_ids, steps
    bin_lengths = np.bincount(bin_index, lengths, num_bins).astype(np.int32)
    resets = (step == 0) & (sequence >= 0)
    padded = np.flatnonzero(bin_lengths < bin_length)
    resets[bin_lengths[padded], padded] = True
    per_sequence = (a.astype(np.int32) for a in (lengths, bin_index, first_step))
    return BinAssignment(sequence, step, resets, bin_lengths, *per_sequence)


def pack_bins(x: Any, bins: BinAssignment, *, batch_first: bool = False) -> jax.Array:
    """Pack the sequences of a batch into bins.

    Args:
        x: padded sequences (T, M, ...), (M, T, ...) if `batch_first`, or a list of M arrays
            (length, ...), of any dtype: inputs, labels or weights.
        bins: assignment by `assign_bins`, traced or not.
        batch_first: If True, the batch axis comes first. Defaults to False.

    Returns:
        The bins (S, N, ...), (N, S, ...) if `batch_first`, with zeros for padding. Padding of `x`
        is not read and its gradient is zero.

    Raises:
        ValueError, RuntimeError: if `x` does not have the number and lengths of the sequences.

    Example:
        >>> bins = assign_bins([2, 3, 1])
        >>> pack_bins([np.array([1, 2]), np.array([3, 4, 5]), np.array([6])], bins).T.tolist()
        [[3, 4, 5], [1, 2, 6]]
    """
    if isinstance(x, (list, tuple)):
        _check_count(len(x), bins)
        x, lengths = concatenate(tuple(x))
        expected = _concrete_lengths(bins)
        if expected is not None and (lengths != expected).any():
            raise ShapeError(f"`x` must have lengths {expected.tolist()}, got {lengths.tolist()}")
        offsets = jnp.cumsum(jnp.asarray(bins.lengths)) - bins.lengths
        source = jnp.where(bins.sequence >= 0, offsets[bins.sequence] + bins.step, -1)
        data = _take_or_zero(jnp.asarray(x), source)
        return data.swapaxes(0, 1) if batch_first else data
    x = jnp.asarray(x)
    if x.ndim < 2:
        raise ShapeError(f"`x` must be (T, M, ...) or a list of arrays, got shape {x.shape}")
    steps, count = x.shape[:2][::-1] if batch_first else x.shape[:2]
    _check_count(count, bins)
    _check_steps("`x`", steps, bins)
    return _rearrange(x, *_gather_indices(bins, steps, batch_first))


def unpack_bins(
    y: jax.Array, bins: BinAssignment, *, steps: int | None = None, batch_first: bool = False
) -> jax.Array:
    """Unpack bins into padded sequences in their original order.

    Args:
        y: values at each position of the bins (S, N, ...), (N, S, ...) if `batch_first`.
        bins: the assignment that packed them.
        steps: T, the number of steps of the result, optional. Defaults to S.
        batch_first: If True, the batch axis comes first. Defaults to False.

    Returns:
        Padded sequences (T, M, ...), (M, T, ...) if `batch_first`, with zeros for padding.

    Raises:
        ValueError, RuntimeError: if the shape of `y` is not that of `bins`, or `steps` is less than
            the longest sequence.

    Example:
        >>> bins = assign_bins([2, 3, 1])
        >>> unpack_bins(bins.step + 1, bins).T.tolist()
        [[1, 2, 0], [1, 2, 3], [1, 0, 0]]
    """
    y = jnp.asarray(y)
    shape = y.shape[:2][::-1] if batch_first else y.shape[:2]
    if shape != bins.sequence.shape:
        S, N = bins.sequence.shape
        expected = f"({N}, {S}, ...)" if batch_first else f"({S}, {N}, ...)"
        raise ShapeError(f"`y` must be {expected}, got shape {y.shape}")
    steps = shape[0] if steps is None else steps
    _check_steps("the result", steps, bins)
    to_bins, to_sequences = _gather_indices(bins, steps, batch_first)
    return _rearrange(y, to_sequences, to_bins)


def final_states(states: Any, bins: BinAssignment, *, bidirectional: bool = False) -> Any:
    """Return the final state of each sequence from the states after every step of the bins.

    It is the state at the last step of a sequence, or at the first for the reverse direction.

    Args:
        states: states of a layer with ``return_all_states=True``, h (S, F*L, N, R), or the pair
            (h, c) of an `LSTM`. Never batch-first.
        bins: the assignment that packed the input.
        bidirectional: If True, every second state is of a reverse direction. Defaults to False.

    Returns:
        h_n (F*L, M, R), or (h_n, c_n) of an `LSTM`; zero for empty sequences.

    Raises:
        ValueError, RuntimeError: if the shape of `states` does not fit `bins`.

    Example:
        >>> import jax.numpy as jnp
        >>> bins = assign_bins([2, 3, 0])
        >>> states = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 2, 2, 1))
        >>> final_states(states, bins, bidirectional=True)[..., 0].tolist()
        [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def _select(state: jax.Array) -> jax.Array:
        if state.ndim != 4 or (state.shape[0], state.shape[2]) != bins.sequence.shape:
            S, N = bins.sequence.shape
            raise ShapeError(
                f"`states` must be ({S}, F*L, {N}, size), got shape {state.shape}. "
                "Call the layer with return_all_states=True."
            )
        layer = np.arange(state.shape[1])[:, None]
        reverse = (layer % 2 == 1) & bidirectional
        step = jnp.where(reverse, bins.first_step[None], bins.last_step[None])
        step = jnp.where(bins.lengths[None] > 0, step, -1)
        return _take_or_zero(state, *jnp.broadcast_arrays(step, layer, bins.bin[None]))

    return jax.tree.map(_select, states)


def run_bins(
    layer: Any, x: Any, bins: Any, *, rngs: Any = None, return_states: bool = True
) -> tuple[jax.Array, Any]:
    """Pack sequences, run a layer on the bins, and unpack the output.

    The result equals ``layer(x, lengths=lengths)`` at the cost of the sum of the lengths.

    Args:
        layer: an `RNN`, `LSTM`, `GRU` or `Recurrent`.
        x: padded sequences (T, M, D), (M, T, D) if the layer is batch-first, or a list of M arrays
            (length, D).
        bins: assignment by `assign_bins`, or the lengths (M,), not traced, to assign.
        rngs: source of the dropout key, as in the call of the layer.
        return_states: If True, return final states as well, which needs the states of all steps.
            Defaults to True.

    Returns:
        The output (T, M, F*R), (M, T, F*R) if batch-first, with zeros for padding, where T is the
        longest sequence of a list; and the final states (F*L, M, R), a pair for `LSTM`, or None.

    Raises:
        TypeError, ValueError, RuntimeError: see `assign_bins`, `pack_bins` and the layer.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> x, lengths = jnp.ones((6, 4, 3)), jnp.array([2, 6, 0, 4])
        >>> bool(jnp.allclose(run_bins(gru, x, lengths)[0], gru(x, lengths=lengths)[0], atol=1e-6))
        True
    """
    if not isinstance(bins, BinAssignment):
        bins = assign_bins(bins)
    batch_first = layer.batch_first
    data = pack_bins(x, bins, batch_first=batch_first)
    is_list = isinstance(x, (list, tuple))
    steps = max([1, *map(len, x)]) if is_list else np.shape(x)[int(batch_first)]
    resets = bins.resets.T if batch_first else bins.resets
    y, states = layer(
        data, resets=resets, lengths=bins.bin_lengths, rngs=rngs, return_all_states=return_states
    )
    y = unpack_bins(y, bins, steps=steps, batch_first=batch_first)
    if return_states:
        return y, final_states(states, bins, bidirectional=bool(layer.bidirectional))
    return y, None


def _round_to_block(steps: int) -> int:
    return steps if steps <= 64 else -(-steps // 4) * 4


def _best_fit(lengths: np.ndarray, bin_length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the bin and the first step of each sequence, and the number of bins."""
    bin_index, first_step = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    num_bins = 0
    capacities: list[int] = []  # distinct remaining capacities, sorted
    bins_by_capacity: dict[int, list[int]] = {}
    order = np.argsort(-lengths, kind="stable")
    for sequence, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if length == 0:
            break
        i = bisect_left(capacities, length)
        if i == len(capacities):
            capacity, target = bin_length, num_bins
            num_bins += 1
        else:
            capacity = capacities[i]
            target = bins_by_capacity[capacity].pop()
            if not bins_by_capacity[capacity]:
                del bins_by_capacity[capacity], capacities[i]
        bin_index[sequence], first_step[sequence] = target, bin_length - capacity
        capacity -= length
        if capacity in bins_by_capacity:
            bins_by_capacity[capacity].append(target)
        elif capacity:
            bins_by_capacity[capacity] = [target]
            capacities.insert(bisect_left(capacities, capacity), capacity)
    return bin_index, first_step, max(1, num_bins)


def _best_bin_length(
    lengths: np.ndarray, longest: int
) -> tuple[int, tuple[np.ndarray, np.ndarray, int]]:
    """Return a bin length close to the longest sequence and its best fit; see `assign_bins`."""
    shortest = _round_to_block(longest)
    fit = _best_fit(lengths, shortest)
    target = fit[2] // 8 * 8
    if target in (0, fit[2]):
        return shortest, fit
    bin_length = _round_to_block(max(shortest + 1, -(-int(lengths.sum()) // target)))
    while bin_length <= min(longest + longest // 8, shortest * fit[2] // target):
        candidate = _best_fit(lengths, bin_length)
        if candidate[2] <= target:
            return bin_length, candidate
        bin_length = _round_to_block(bin_length + 1)
    return shortest, fit


def _gather_indices(
    bins: BinAssignment, steps: int, batch_first: bool
) -> tuple[jax.Array, jax.Array]:
    """Return the source of each bin position (S, N), and of each sequence step (T, M).

    Padding has an index past the end. Both are transposed if `batch_first`.
    """
    (S, N), M = bins.sequence.shape, len(bins.lengths)

    def _flat_index(step: Any, element: Any, steps: int, count: int) -> Any:
        return element * steps + step if batch_first else step * count + element

    step = np.arange(steps, dtype=np.int32)[:, None]
    from_sequences = _flat_index(bins.step, bins.sequence, steps, M)
    to_bins = jnp.where(bins.sequence >= 0, from_sequences, steps * M)
    from_bins = _flat_index(bins.first_step[None] + step, bins.bin[None], S, N)
    to_sequences = jnp.where(step < bins.lengths[None], from_bins, S * N)
    return (to_bins.T, to_sequences.T) if batch_first else (to_bins, to_sequences)


def _rearrange(x: jax.Array, source: jax.Array, inverse: jax.Array) -> jax.Array:
    """Gather along the two first axes, with indices into the merged axes."""
    merged = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    y = gather(merged, source.reshape(-1), inverse.reshape(-1))
    return y.reshape(*source.shape, *x.shape[2:])


def _take_or_zero(x: jax.Array, *index: Any) -> jax.Array:
    """Index `x`, with zeros for an index of -1, so that NaNs in padding are never read."""
    index = tuple(map(jnp.asarray, index))
    return x.at[index].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _concrete_lengths(bins: BinAssignment) -> np.ndarray | None:
    return None if isinstance(bins.lengths, Tracer) else np.asarray(bins.lengths)


def _check_lengths(lengths: Any) -> np.ndarray:
    if isinstance(lengths, Tracer):
        raise TypeError(
            "`lengths` must be concrete, got a traced array. Call assign_bins outside jit and pass "
            "its result as an argument."
        )
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or lengths.size == 0:
        raise ShapeError(f"`lengths` must be (M,) with M at least 1, got shape {lengths.shape}")
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"`lengths` must be integers, got {lengths.dtype.name}")
    if (lengths < 0).any():
        raise ValueError(f"`lengths` must be at least 0, got {lengths.min()}")
    return lengths.astype(np.int64)


def _check_at_least(name: str, value: Any, minimum: int, reason: str = "") -> int | None:
    if value is not None and operator.index(value) < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}{reason}, got {value}")
    return None if value is None else operator.index(value)


def _check_count(count: int, bins: BinAssignment) -> None:
    if count != len(bins.lengths):
        raise ShapeError(f"`x` must have {len(bins.lengths)} sequences, got {count}")


def _check_steps(name: str, steps: int, bins: BinAssignment) -> None:
    lengths = _concrete_lengths(bins)
    if lengths is not None and steps < lengths.max():
        raise ShapeError(
            f"{name} must have at least {lengths.max()} steps, the longest sequence, got {steps}"
        )
