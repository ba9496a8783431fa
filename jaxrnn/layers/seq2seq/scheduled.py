"""Scheduled sampling: a decoder that is not always told the token before.

Axis letters: N rows, S and T tokens of the longest source and target, V vocabulary.

Source: S. Bengio et al., arXiv:1506.03099.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxrnn._checks import ShapeError
from jaxrnn.generation.steps import masks_drawn
from jaxrnn.layers.calls import key_of


@jax.jit
def run(
    model: Any,
    source: jax.Array,
    source_lengths: Any,
    target: jax.Array,
    ratio: Any,
    key: Any,
    dropout_key: Any,
) -> tuple[jax.Array, jax.Array | None]:
    """The call of a `Seq2Seq` whose teacher is not always heard: a loop over the target's steps.

    Args:
        model: a module is a pytree, and is compiled once.
        source, source_lengths, target: as of the call, checked.
        ratio: the probability with which the teacher is heard; None for never.
        key: of the draws.
        dropout_key: of all masks, see `mask_key`.

    Returns:
        The logits (N, T, V), and the weights of the attention (N, T, S), or None.
    """
    for_encoder, for_decoder = two(dropout_key)
    memory, state = model.encode(source, source_lengths, rngs=for_encoder)
    given = told(target, model.bos).T  # (T, N)
    heard = jnp.zeros(given.shape, bool)
    if ratio is not None:
        heard = jax.random.bernoulli(key, ratio, given.shape)

    def step(carry: Any, inputs: Any) -> Any:
        state, own = carry
        index, given, heard = inputs
        token = jnp.where(heard, given, own)[:, None]
        rngs = None if for_decoder is None else jax.random.fold_in(for_decoder, index)
        logits, state, weights = model.decoder(token, state, memory, rngs=rngs)
        logits, weights = jax.tree.map(lambda a: a[:, 0], (logits, weights))
        return (state, logits.argmax(-1).astype(jnp.int32)), (logits, weights)

    steps = (jnp.arange(len(given)), given, heard)
    _, outputs = lax.scan(step, (state, given[0]), steps)  # its own first token is `bos` too
    return jax.tree.map(lambda a: a.swapaxes(0, 1), outputs)


def told(target: jax.Array, bos: int) -> jax.Array:
    """What a decoder is told of targets (N, T): `bos`, and all of them but their last token."""
    return jnp.concatenate([jnp.full_like(target[:, :1], bos), target[:, :-1]], axis=1)


def two(rngs: Any) -> tuple[Any, Any]:
    """A source of keys for each of two calls: a stream goes on by itself, a key is split."""
    is_key = isinstance(rngs, jax.Array)
    return tuple(jax.random.split(rngs)) if is_key else (rngs, rngs)


def mask_key(model: Any, key: Any, rngs: Any) -> Any:
    """One key for all masks of a loop over steps, in which no stream can be advanced.

    Raises:
        ValueError: where there is none, and for masks that are to be the same at all steps.
    """
    drawn = masks_drawn(model.decoder.rnn)
    whole = [f"{name}={p}" for name, p in drawn.items() if name not in ("dropout", "zoneout")]
    if whole:
        raise ValueError(
            f"{', '.join(whole)} of the decoder is one mask for all steps, but with "
            "teacher_forcing below 1 each step is a call of its own"
        )
    if not (drawn or masks_drawn(model.encoder.rnn)):
        return None
    if rngs is None and key is None:
        raise ValueError("dropout is active in a loop over steps: pass rngs= or key=")
    return jax.random.fold_in(key, 1) if rngs is None else key_of(rngs)


def check_probability(value: Any) -> None:
    """Whether a number is one that the teacher can be heard with; a traced one may be any."""
    if np.shape(value) != ():
        raise ShapeError(f"teacher_forcing should be one number, got shape {np.shape(value)}")
    if not isinstance(value, Tracer) and not 0 <= float(value) <= 1:
        raise ValueError(f"teacher_forcing should be a probability, from 0 to 1, got {value}")
