"""Many short sequences laid end to end in few rows, so that compute follows the sum of the lengths.

A padded batch costs as much as its longest sequence times their number. Here each row holds several
sequences, one behind the other, cut apart by resets:

.. code-block:: text

    padded, 4 x 6 steps         rows, 2 x 6 steps       resets
    a a a a a a                 a a a a a a             1 0 0 0 0 0
    b b b b . .                 b b b b c c             1 0 0 0 1 0
    c c . . . .
    . . . . . .                 (the fourth sequence is empty)

Where each sequence lies is found on the host, by `plan_rows` (`jaxrnn.sequences.row_plan`). All that follows
is a gather, whose indices are data: with `row_length` and `rows` given, a compiled training step
takes batch after batch without being compiled again.

.. code-block:: text

    plan = plan_rows(lengths, row_length=128, rows=40)          outside of jit
    data = pack_rows(x, plan)                                   from here on inside of it
    y, states = layer(data, resets=plan.resets, return_all_states=True)
    y, (h_n, c_n) = unpack_rows(y, plan, steps=len(x)), final_states(states, plan)

which is ``y, (h_n, c_n) = run_rows(layer, x, plan)``. Each sequence starts from a state of zeros in
every layer and direction: a reset leaves no place for another.

Axis letters: M sequences, T the steps of a padded batch, S the steps of a row, N rows,
F directions, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn._checks import ShapeError
from jaxrnn.packing.gather import gather
from jaxrnn.sequences.row_plan import RowPlan, plan_rows

__all__ = ["RowPlan", "final_states", "pack_rows", "plan_rows", "run_rows", "unpack_rows"]


def pack_rows(x: Any, plan: RowPlan, *, batch_first: bool = False) -> jax.Array:
    """Lay the sequences of a batch end to end, as a plan says.

    Args:
        x: padded sequences (T, M, ...), (M, T, ...) if `batch_first`; or a list of M arrays
            (length, ...). Any dtype and features: inputs, labels, weights. Traced or not.
        plan: from `plan_rows`, traced or not.
        batch_first: sequences or rows before steps, in `x` and in what is returned.

    Returns:
        The rows (S, N, ...), (N, S, ...) if `batch_first`, zero (or False) where no sequence is.
        What `x` holds past a length reaches nothing, and its gradient there is zero.

    Raises:
        ValueError, RuntimeError: for another number of sequences than the plan's or, where the plan
            is known, too few steps.

    Example:
        >>> import numpy as np
        >>> plan = plan_rows([2, 3, 1])
        >>> pack_rows([np.array([1, 2]), np.array([3, 4, 5]), np.array([6])], plan).T.tolist()
        [[3, 4, 5], [1, 2, 6]]
    """
    if isinstance(x, (list, tuple)):
        data = _fetch(_joined(x, plan), _position(plan))
    else:
        x = jnp.asarray(x)
        if x.ndim < 2:
            raise ShapeError(f"x should be (T, M, ...) or a list of arrays, got shape {x.shape}")
        steps, sequences = x.shape[:2][::-1] if batch_first else x.shape[:2]
        _same_number(sequences, plan, f"{steps} steps")
        _enough_steps("x has", steps, plan)
        to_rows, to_sequences = _moves(plan, steps, batch_first)
        data = gather(_flat(x), to_rows.reshape(-1), to_sequences.reshape(-1))
        return data.reshape(*to_rows.shape, *x.shape[2:])
    return data.swapaxes(0, 1) if batch_first else data


def unpack_rows(
    y: jax.Array, plan: RowPlan, *, steps: int | None = None, batch_first: bool = False
) -> jax.Array:
    """The sequences out of the rows, each from step 0 and in the order in which they came.

    Args:
        y: what was computed for each cell (S, N, ...), (N, S, ...) if `batch_first`.
        plan: what it was packed with.
        steps: T, the steps of the result; None for S.
        batch_first: rows or sequences before steps, in `y` and in what is returned.

    Returns:
        Padded sequences (T, M, ...), (M, T, ...) if `batch_first`, zero past each length.

    Raises:
        ValueError, RuntimeError: for another shape than the plan's; for fewer steps than a sequence
            has, where the plan is known.

    Example:
        >>> plan = plan_rows([2, 3, 1])
        >>> unpack_rows(plan.step + 1, plan).T.tolist()
        [[1, 2, 0], [1, 2, 3], [1, 0, 0]]
    """
    y = jnp.asarray(y)
    if y.ndim < 2:
        raise ShapeError(f"y should have steps and rows as its axes, got shape {y.shape}")
    shape = y.shape[:2][::-1] if batch_first else y.shape[:2]
    if shape != plan.sequence.shape:
        raise ShapeError(
            f"y should have the steps and rows of the plan. Expected {plan.sequence.shape}, got "
            f"{shape}"
        )
    steps = shape[0] if steps is None else steps
    _enough_steps("the result has", steps, plan)
    to_rows, to_sequences = _moves(plan, steps, batch_first)
    sequences = gather(_flat(y), to_sequences.reshape(-1), to_rows.reshape(-1))
    return sequences.reshape(*to_sequences.shape, *y.shape[2:])


def final_states(states: Any, plan: RowPlan, *, bidirectional: bool = False) -> Any:
    """The last state of each sequence, out of the states after every step of the rows.

    The forward direction's is that at the sequence's last step, the reverse direction's that at its
    first.

    Args:
        states: what a layer gives with ``return_all_states=True``: h (S, F*L, N, R), for `LSTM` the
            pair (h, c). Never batch-first.
        plan: what its input was packed with.
        bidirectional: whether the layer is, F being 2.

    Returns:
        h_n (F*L, M, R), for `LSTM` the pair (h_n, c_n); zero for an empty sequence.

    Raises:
        ValueError, RuntimeError: for states that are not those after every step of the plan's rows.

    Example:
        >>> import jax.numpy as jnp
        >>> plan = plan_rows([2, 3, 0])
        >>> states = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 2, 2, 1))
        >>> final_states(states, plan, bidirectional=True)[..., 0].tolist()
        [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def of_each_sequence(state: jax.Array) -> jax.Array:
        if state.ndim != 4 or (state.shape[0], state.shape[2]) != plan.sequence.shape:
            S, N = plan.sequence.shape
            raise ShapeError(
                "states should be those after every step (return_all_states=True). Expected "
                f"({S}, F*L, {N}, size), got {state.shape}"
            )
        index = np.arange(state.shape[1])[:, None]
        reverse = (index % 2 == 1) & bidirectional
        at = jnp.where(reverse, plan.first[None], plan.last[None])
        at = jnp.where(plan.lengths[None] > 0, at, -1)
        shape = at.shape
        return _fetch(
            state, at, jnp.broadcast_to(index, shape), jnp.broadcast_to(plan.row[None], shape)
        )

    return jax.tree.map(of_each_sequence, states)


def run_rows(
    layer: Any, x: Any, plan: Any, *, rngs: Any = None, return_states: bool = True
) -> tuple[jax.Array, Any]:
    """Pack, run a layer, unpack: ``layer(x, lengths=lengths)`` at the cost of the sum of lengths.

    Args:
        layer: an `RNN`, `LSTM` or `GRU`.
        x: padded sequences, (T, M, D), or (M, T, D) if the layer is batch-first; or a list of M
            arrays (length, D). Not packed before.
        plan: from `plan_rows`, or the lengths (M,), known and not traced, to make one of.
        rngs: where dropout takes its key from, as in a layer's call.
        return_states: the final states too. They take a copy of the states of all steps, which the
            output alone does without.

    Returns:
        The output (T, M, F*R), (M, T, F*R) if batch-first, zero past each length, with T the
        longest of a list; and the last states (F*L, M, R), for `LSTM` a pair, or None. They are
        those of each sequence run alone, from a state of zeros.

    Raises:
        TypeError, ValueError, RuntimeError: as by `plan_rows`, `pack_rows` and the layer.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> x, lengths = jnp.ones((6, 4, 3)), jnp.array([2, 6, 0, 4])
        >>> output, h_n = run_rows(gru, x, lengths)
        >>> expected, h_expected = gru(x, lengths=lengths)
        >>> bool(jnp.allclose(output, expected, atol=1e-6))
        True
        >>> bool(jnp.allclose(h_n, h_expected, atol=1e-6))
        True
    """
    if not isinstance(plan, RowPlan):
        plan = plan_rows(plan)
    first = layer.batch_first
    data = pack_rows(x, plan, batch_first=first)
    listed = isinstance(x, (list, tuple))
    steps = max([1, *map(len, x)]) if listed else np.shape(x)[1 if first else 0]
    resets = plan.resets.T if first else plan.resets
    y, states = layer(
        data, resets=resets, lengths=plan.row_lengths, rngs=rngs, return_all_states=return_states
    )
    y = unpack_rows(y, plan, steps=steps, batch_first=first)
    if not return_states:
        return y, None
    return y, final_states(states, plan, bidirectional=bool(layer.bidirectional))


def _moves(plan: RowPlan, steps: int, batch_first: bool) -> tuple[jax.Array, jax.Array]:
    """Where each cell of the rows comes from, (S, N), and each step of the sequences, (T, M).

    Each is the way back of the other; what comes from nowhere points behind the end. If
    `batch_first`, both are the other way round.
    """
    (S, N), M = plan.sequence.shape, len(plan.lengths)

    def place(step: Any, one: Any, steps: int, count: int) -> Any:
        return one * steps + step if batch_first else step * count + one

    step = np.arange(steps, dtype=np.int32)[:, None]
    filled, inside = plan.sequence >= 0, step < plan.lengths[None]
    to_rows = jnp.where(filled, place(plan.step, plan.sequence, steps, M), steps * M)
    from_rows = place(plan.first[None] + step, plan.row[None], S, N)
    to_sequences = jnp.where(inside, from_rows, S * N)
    return (to_rows.T, to_sequences.T) if batch_first else (to_rows, to_sequences)


def _flat(x: jax.Array) -> jax.Array:
    """Steps and rows as one axis."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _fetch(x: jax.Array, *index: Any) -> jax.Array:
    """The elements of `x` at an index, zero where it is outside: -1 means nowhere.

    What is not fetched is not read, so that no NaN of a padding can come along.
    """
    at = tuple(map(jnp.asarray, index))
    return x.at[at].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _position(plan: RowPlan) -> jax.Array:
    """Where the step in each cell is among the steps of all sequences one after another."""
    before = jnp.cumsum(jnp.asarray(plan.lengths)) - plan.lengths
    position = jnp.asarray(before)[plan.sequence] + plan.step
    return jnp.where(plan.sequence >= 0, position, -1)


def _joined(arrays: Sequence[Any], plan: RowPlan) -> jax.Array:
    """The steps of all sequences one after another, (sum of the lengths, ...)."""
    _same_number(len(arrays), plan, "a list")
    traced = any(isinstance(a, jax.Array) for a in arrays)
    arrays = [a if isinstance(a, jax.Array) else np.asarray(a) for a in arrays]
    known = _known_lengths(plan)
    features = arrays[0].shape[1:]
    for number, a in enumerate(arrays):
        if a.ndim == 0 or a.shape[1:] != features:
            raise ShapeError(
                f"all sequences should be (length, ...) with the same features, got {a.shape} as "
                f"number {number} beside {arrays[0].shape}"
            )
        if known is not None and len(a) != known[number]:
            raise ShapeError(
                f"sequence {number} has {len(a)} steps, and {known[number]} in the plan"
            )
    # One by one, each array of NumPy's would be sent to the device.
    return jnp.concatenate(arrays) if traced else jnp.asarray(np.concatenate(arrays))


def _same_number(got: int, plan: RowPlan, what: str) -> None:
    expected = len(plan.lengths)
    if got != expected:
        raise ShapeError(
            f"x should have the plan's number of sequences. Expected {expected}, got {got} ({what})"
        )


def _enough_steps(who: str, steps: int, plan: RowPlan) -> None:
    known = _known_lengths(plan)
    if known is not None and steps < known.max():
        raise ShapeError(f"{who} {steps} steps, fewer than a sequence of the plan: {known.max()}")


def _known_lengths(plan: RowPlan) -> np.ndarray | None:
    """The lengths, where they are known; under `jit`, JAX's own functions would trace them."""
    return None if isinstance(plan.lengths, Tracer) else np.asarray(plan.lengths)
