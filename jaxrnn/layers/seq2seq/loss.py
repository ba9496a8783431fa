"""The loss over ragged targets.

Axis letters: N rows, T tokens of the longest target, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends.step import zero_padding
from jaxrnn.cells.base import compute_dtype
from jaxrnn.core import masks as ragged
from jaxrnn.layers.seq2seq.parts import token_rows


def cross_entropy(logits: jax.Array, target: Any, lengths: Any = None) -> jax.Array:
    """The mean of ``-log softmax(logits)[target]`` over all tokens that are some row's, in nats.

    Args:
        logits: (N, T, V).
        target: integers (N, T).
        lengths: the tokens of each row, integers (N,), 0 allowed; None for T. What is past them,
            in logits or target, reaches neither the value nor the gradient.

    Returns:
        A scalar, at least float32; 0 where no row has a token.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]]]))
        >>> target = jnp.array([[0, 0]])
        >>> round(cross_entropy(logits, target, jnp.array([1])).item(), 3)
        0.693
    """
    target, lengths = token_rows("target", target, lengths, logits.shape[-1])
    logits = logits.astype(compute_dtype(logits.dtype))
    valid = jnp.ones(target.shape, bool)
    if lengths is not None:
        valid = ragged.valid_mask(lengths, target.shape[1])
        logits = zero_padding(valid, logits)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
    total = -jnp.where(valid, log_probs[..., 0], 0.0).sum()
    return total / jnp.maximum(valid.sum(), 1)
