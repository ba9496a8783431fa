"""Lengths and resets of a call: their checks, and the masks that they become.

Both act on the state as masks (`jaxrnn.backends.step.StepMasks`): padding leaves the state
unchanged, a reset sets it to zero before the step. Axis letters: N batch, T time.
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
    """Return the masks of the forward and of the reverse direction.

    A reset at t separates steps t - 1 and t. The reverse direction reads t first, so there it is a
    reset before step t - 1.

    Args:
        steps: T.
        lengths: integers (N,), or None.
        resets: bool (T, N), or None.

    Example:
        >>> import jax.numpy as jnp
        >>> resets = jnp.array([[False], [True], [False]])
        >>> forward, reverse = direction_masks(3, jnp.array([2]), resets)
        >>> forward.valid_mask[:, 0].tolist(), forward.reset_mask[:, 0].tolist()
        ([True, True, False], [False, True, False])
        >>> reverse.reset_mask[:, 0].tolist()
        [True, False, False]
    """
    valid = None if lengths is None else valid_mask(lengths, steps).T
    if resets is None:
        return StepMasks(None, valid), StepMasks(None, valid)
    # A reset in the padding, shifted by one step, would fall on the last valid step.
    resets = resets if valid is None else resets & valid
    shifted = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    return StepMasks(resets, valid), StepMasks(shifted, valid)


def valid_mask(lengths: jax.Array, steps: int) -> jax.Array:
    """Return the mask of valid steps, bool (N, T) for lengths (N,), (T,) for a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> valid_mask(jnp.array([2, 0]), 3).astype(int).tolist()
        [[1, 1, 0], [0, 0, 0]]
    """
    return jnp.arange(steps).reshape((1,) * lengths.ndim + (-1,)) < lengths[..., None]


def select_nonempty(valid: jax.Array | None, x: jax.Array, other: Any) -> jax.Array:
    """Return a state x (..., N, H), replaced by `other` for sequences without a valid step.

    Example:
        >>> import jax.numpy as jnp
        >>> select_nonempty(jnp.array([[True, False]]), jnp.ones((2, 1)), 0).tolist()
        [[1.0], [0.0]]
    """
    if valid is None:
        return x
    return jnp.where(jnp.broadcast_to(valid.any(0)[:, None], x.shape), x, other)


def check_lengths(lengths: Any, steps: int, batch: int | None) -> jax.Array:
    """Return the lengths of a call as int32 (N,), or () without a batch.

    Args:
        lengths: integers in any order, 0 allowed.
        steps: T, the largest possible length.
        batch: N, or None without a batch.

    Raises:
        TypeError: if the lengths are not integers.
        ShapeError: if they have the wrong shape.
        ValueError: if one is below 0 or above T; a traced one then counts as 0 or T instead.
    """
    known = not isinstance(lengths, Tracer)
    if known:
        lengths = np.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"`lengths` must be integers, got {lengths.dtype.name}")
    shape = () if batch is None else (batch,)
    if lengths.shape != shape:
        expected = "a scalar for unbatched input" if batch is None else "one for each sequence"
        raise ShapeError(
            f"`lengths` must be {expected}, of shape {shape}, got {tuple(lengths.shape)}"
        )
    wrong = lengths[(lengths < 0) | (lengths > steps)] if known else ()
    if len(wrong):
        raise ValueError(
            f"`lengths` must be between 0 and {steps}, the number of steps of the input, "
            f"got {', '.join(map(str, wrong[:5]))}{', ...' if len(wrong) > 5 else ''}"
        )
    return jnp.asarray(lengths, jnp.int32)


def check_resets(resets: Any, shape: tuple[int, ...]) -> jax.Array:
    """Return the resets of a call as a boolean array, shaped as its input without features.

    Raises:
        TypeError: if the resets are not boolean.
        ShapeError: if they have the wrong shape.
    """
    resets = jnp.asarray(resets)
    if resets.dtype != bool:
        raise TypeError(
            f"`resets` must be bool, got {resets.dtype.name}. Convert them: resets.astype(bool)"
        )
    if resets.shape != shape:
        raise ShapeError(
            "`resets` must have the shape of the input without its features, "
            f"{shape}, got {resets.shape}"
        )
    return resets


def check_packed_call(**arguments: Any) -> None:
    """Check that a call with a PackedSequence has neither lengths nor resets.

    Raises:
        ValueError: naming the argument.
    """
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"`{name}` must be None with a PackedSequence, which has lengths. Unpack it: "
                "x, lengths = pad_packed_sequence(...), and call with x, lengths=lengths"
                f"{'' if name == 'lengths' else f' and {name}={name}'}"
            )
