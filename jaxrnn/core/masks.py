"""Rows of unequal length and episodes that end inside of a row: lengths and resets.

To the loop both are masks on the state (`jaxrnn.backends.step.StepMasks`): a step past a row's length leaves
the state as it is, a reset sets it to zero before the step. Axis letters: N batch, T time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn._checks import ShapeError
from jaxrnn.backends.step import StepMasks


def direction_masks(steps: int, lengths: Any, resets: Any) -> tuple[StepMasks, StepMasks]:
    """What lengths (N,) and resets (T, N), or None, are to the forward and the reverse direction.

    A cut before step t is, to the direction that reads t before t - 1, a reset before step t - 1.

    Example:
        >>> import jax.numpy as jnp
        >>> cuts = jnp.array([[False], [True], [False]])
        >>> forward, reverse = direction_masks(3, jnp.array([2]), cuts)
        >>> forward.valid_mask[:, 0].tolist(), forward.reset_mask[:, 0].tolist()
        ([True, True, False], [False, True, False])
        >>> reverse.reset_mask[:, 0].tolist()
        [True, False, False]
    """
    valid = None if lengths is None else valid_mask(lengths, steps).T
    if resets is None:
        return StepMasks(None, valid), StepMasks(None, valid)
    # A cut past the length, moved by one step, would fall on the row's last.
    cuts = resets if valid is None else resets & valid
    after = jnp.concatenate([cuts[1:], jnp.zeros_like(cuts[:1])])
    return StepMasks(cuts, valid), StepMasks(after, valid)


def valid_mask(lengths: jax.Array, steps: int) -> jax.Array:
    """Which of T steps are a row's own, bool (N, T) for lengths (N,), (T,) for a single one.

    Example:
        >>> import jax.numpy as jnp
        >>> valid_mask(jnp.array([2, 0]), 3).astype(int).tolist()
        [[1, 1, 0], [0, 0, 0]]
    """
    return jnp.arange(steps).reshape((1,) * lengths.ndim + (-1,)) < lengths[..., None]


def select_nonempty(valid: jax.Array | None, x: jax.Array, other: Any) -> jax.Array:
    """Of a state x (..., N, H) the rows that have a step of their own in `valid`, else of another.

    Example:
        >>> import jax.numpy as jnp
        >>> select_nonempty(jnp.array([[True, False]]), jnp.ones((2, 1)), jnp.zeros((2, 1))).tolist()
        [[1.0], [0.0]]
    """
    if valid is None:
        return x
    return jnp.where(jnp.broadcast_to(valid.any(0)[:, None], x.shape), x, other)


def check_lengths(lengths: Any, steps: int, batch: int | None) -> jax.Array:
    """The lengths of a call as int32 (N,), or () where there is no batch.

    Args:
        lengths: integers, in any order, 0 allowed.
        steps: T, the largest length there can be.
        batch: N, None for no batch.

    Raises:
        TypeError: for anything but integers.
        ShapeError: a ValueError and a RuntimeError, for a wrong shape.
        ValueError: for a length below 0 or beyond T. Traced lengths are not known when this is
            asked; what is below 0 acts as 0 then, what is beyond T as T.
    """
    known = not isinstance(lengths, Tracer)
    if known:
        lengths = np.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths should be integers, got {lengths.dtype.name}")
    shape = () if batch is None else (batch,)
    if lengths.shape != shape:
        word = "a single number without a batch" if batch is None else "one for each row of input"
        raise ShapeError(
            f"lengths should be {word}. Expected shape {shape}, got {tuple(lengths.shape)}"
        )
    if known and ((lengths < 0) | (lengths > steps)).any():
        wrong = lengths[(lengths < 0) | (lengths > steps)].ravel()
        raise ValueError(
            f"lengths should be from 0 to {steps}, the number of steps of input, "
            f"got {', '.join(map(str, wrong[:5]))}{', ...' if len(wrong) > 5 else ''}"
        )
    return jnp.asarray(lengths, jnp.int32)


def check_resets(resets: Any, shape: tuple[int, ...]) -> jax.Array:
    """The resets of a call, bool, shaped as its input without the features.

    Raises:
        TypeError: for anything but bool.
        ShapeError: a ValueError and a RuntimeError, for a wrong shape.
    """
    resets = jnp.asarray(resets)
    if resets.dtype != bool:
        raise TypeError(
            f"resets should be bool, got {resets.dtype.name}. Convert them: resets.astype(bool)"
        )
    if resets.shape != shape:
        raise ShapeError(
            "resets should have the axes of input without its features. "
            f"Expected shape {shape}, got {resets.shape}"
        )
    return resets


def nothing_beside_packed(**given: Any) -> None:
    """Lengths or resets in a call that has them, or can't have them, through its PackedSequence.

    Raises:
        ValueError: naming what was given.
    """
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} can't be given with a PackedSequence, whose rows have lengths of their "
                f"own. Unpack it: x, lengths = pad_packed_sequence(...), and call with x, "
                f"lengths=lengths{'' if name == 'lengths' else f' and {name}={name}'}"
            )
