"""Beam search.

Axis letters: N batch, V vocabulary, B beams, T time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import _checks as checks
from jaxrnn._checks import ShapeError
from jaxrnn.generation.sampling import (
    Step,
    check_first_tokens,
    check_state,
    check_token_step,
    run_loop,
)


class Beams(NamedTuple):
    """Hypotheses of each example, the best first.

    Attributes:
        tokens: int32 (N, B, T); `eos` after the end of a hypothesis.
        scores: log-probability over length penalty (N, B); -inf if fewer than B hypotheses exist.
        lengths: number of tokens, `eos` included, int32 (N, B); 0 for an absent hypothesis.
    """

    tokens: jax.Array
    scores: jax.Array
    lengths: jax.Array


def beam_search(
    step: Step,
    state: Any,
    tokens: Any,
    length: int,
    *,
    beams: int,
    eos: int | None,
    length_penalty: Any = 0.0,
) -> Beams:
    r"""Search the most likely sequences of tokens.

    .. math::

        \mathrm{score}(y) = \frac{\log p(y)}{((5 + |y|) / 6)^\alpha}
        \qquad \alpha = \mathrm{length\_penalty}, \quad |y| \text{ includes eos}

    Each step extends the B active hypotheses by every token. The B best extensions without `eos`
    stay active; those among the B best that end in `eos` are finished, and the B best finished ones
    are stored. After `length` steps active and finished hypotheses compete by score. The search
    stops early once no active hypothesis can exceed the stored ones.

    Args:
        step: ``step(state, tokens) -> (logits, state)``, called with batch size N * B; the beams of
            an example are neighbours.
        state: batch-major state (N, ...) before `tokens`.
        tokens: first inputs, integers (N,).
        length: T, the maximal number of tokens, `eos` included.
        beams: B, the beam width. 1 without a penalty is greedy decoding; V ** T is exhaustive.
        eos: token that ends a hypothesis, or None.
        length_penalty: exponent, may be traced. Larger values favour longer sequences. Defaults
            to 0.

    Returns:
        The B best hypotheses of each example, the best first.

    Raises:
        ValueError, TypeError: as in `generate`, and if `beams` is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.generation import beam_search
        >>> def step(state, token):  # 0 is likelier than 1, but 1 has a certain successor
        ...     after = jnp.log(jnp.array([[.4, .3, .3], [0, 0, 1], [.6, .4, 0]]))
        ...     return after[token], state
        >>> start = jnp.array([2])
        >>> greedy, wide = (beam_search(step, (), start, 2, beams=b, eos=None) for b in (1, 2))
        >>> greedy.tokens[0].tolist(), wide.tokens[0].tolist()
        ([[0, 0]], [[1, 2], [0, 0]])
        >>> [round(p, 2) for p in jnp.exp(wide.scores[0]).tolist()]
        [0.4, 0.24]

    Source: Y. Wu et al., arXiv:1609.08144, section 7, without coverage penalty and pruning.
    """
    checks.at_least("length", length, 1)
    checks.at_least("beams", beams, 1)
    if np.shape(length_penalty) != ():
        raise ShapeError(
            f"`length_penalty` must be a number, got shape {np.shape(length_penalty)}."
        )
    inputs = (state, check_first_tokens(tokens), length_penalty)
    return run_loop(_beam_search, step, *inputs, length=length, beams=beams, eos=eos)


class _Search(NamedTuple):
    state: Any  # (N * B, ...)
    tokens: jax.Array  # the last token of each active hypothesis (N, B)
    active: Beams  # scores without penalty
    finished: Beams  # score -inf for an empty place


def _beam_search(
    step: Step, state: Any, tokens: Any, length_penalty: Any, length: int, beams: int, eos: Any
) -> Beams:
    batch_size = len(tokens)
    state = jax.tree.map(jnp.asarray, state)
    check_state(state, batch_size)
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), state)
    tokens = jnp.broadcast_to(tokens[:, None], (batch_size, beams))
    vocab_size, dtype = check_token_step(step, state, tokens.reshape(-1), eos)

    def _penalised(scores: jax.Array, count: Any) -> jax.Array:
        penalty = ((5.0 + jnp.asarray(count, dtype)) / 6.0) ** jnp.asarray(length_penalty, dtype)
        return scores / penalty

    def _converged(search: _Search, index: jax.Array) -> jax.Array:
        """Return True if no continuation of an active hypothesis can exceed a finished one."""
        best = search.active.scores.max(1)
        bound = jnp.maximum(_penalised(best, index + 1), _penalised(best, length))
        return (search.finished.scores.min(1) >= bound).all()

    def _advance(search: _Search, index: jax.Array) -> _Search:
        logits, state = step(search.state, search.tokens.reshape(-1))
        log_probs = jax.nn.log_softmax(logits.astype(dtype)).reshape(batch_size, beams, -1)
        total = search.active.scores[..., None] + log_probs
        # Each hypothesis has one extension by eos, so that 2B extensions hold B active ones.
        count = beams * min(2, vocab_size)
        scores, position = lax.top_k(total.reshape(batch_size, -1), count)
        parent, token = position // vocab_size, (position % vocab_size).astype(jnp.int32)
        sequences = _take(search.active.tokens, parent).at[:, :, index].set(token)
        extended = Beams(sequences, scores, jnp.full((batch_size, count), index + 1, jnp.int32))

        finished = search.finished
        if eos is not None:
            ends = (token == eos) & (jnp.arange(count)[None] < beams)
            final_scores = jnp.where(ends, _penalised(scores, index + 1), -jnp.inf)
            finished = _best(beams, finished, extended._replace(scores=final_scores))
            scores = jnp.where(token == eos, -jnp.inf, scores)
        scores, selected = lax.top_k(scores, beams)
        parent, token = _take((parent, token), selected)
        state = jax.tree.map(lambda leaf: _reorder(leaf, parent), state)
        return _Search(state, token, _take(extended, selected)._replace(scores=scores), finished)

    def _body(search: _Search, index: jax.Array) -> Any:
        if eos is None:
            return _advance(search, index), None
        stop = _converged(search, index)
        return lax.cond(stop, lambda s, _: s, _advance, search, index), None

    empty = Beams(
        jnp.full((batch_size, beams, length), 0 if eos is None else eos, jnp.int32),
        jnp.full((batch_size, beams), -jnp.inf, dtype),
        jnp.zeros((batch_size, beams), jnp.int32),
    )
    # All beams start from the same prefix, of which one is enough.
    first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf).astype(dtype)[None]
    active = empty._replace(scores=jnp.broadcast_to(first, (batch_size, beams)))
    search, _ = lax.scan(_body, _Search(state, tokens, active, empty), jnp.arange(length))
    unfinished = search.active._replace(scores=_penalised(search.active.scores, length))
    result = _best(beams, search.finished, unfinished)
    exists = result.scores > -jnp.inf
    return Beams(
        jnp.where(exists[..., None], result.tokens, empty.tokens),
        result.scores,
        jnp.where(exists, result.lengths, 0),
    )


def _best(count: int, *pools: Beams) -> Beams:
    """Return the hypotheses of all pools with the best scores, sorted."""
    pool = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *pools)
    return _take(pool, lax.top_k(pool.scores, count)[1])


def _take(tree: Any, index: jax.Array) -> Any:
    """Index the second axis of leaves (N, M, ...) by (N, K)."""
    batch = jnp.arange(len(index))[:, None]
    return jax.tree.map(lambda leaf: leaf[batch, index], tree)


def _reorder(leaf: jax.Array, parent: jax.Array) -> jax.Array:
    """Replace the state (N * B, ...) of each hypothesis by its parent's, (N, B)."""
    return _take(leaf.reshape(*parent.shape, *leaf.shape[1:]), parent).reshape(leaf.shape)
