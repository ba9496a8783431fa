"""The likeliest sequences instead of the likeliest tokens: `beam_search`.

Axis letters: N rows, V tokens in the vocabulary, B beams, T steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import _checks as checks
from jaxrnn._checks import ShapeError
from jaxrnn.generation.steps import Step, check_rows, check_token_step, compilable, first_tokens


class Beams(NamedTuple):
    """What `beam_search` gives out: the best hypotheses of each row, the best first.

    Attributes:
        tokens: int32 (N, B, T); after the end of a hypothesis, `eos`.
        scores: the sum of the log-probabilities over the length penalty (N, B); -inf where there
            are fewer than B hypotheses.
        lengths: the tokens of each, `eos` included, int32 (N, B); 0 where there is none.
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
    """The likeliest sequences of tokens, by a search of a given width.

    .. code-block:: text

        score(y) = log p(y) / ((5 + |y|) / 6) ** length_penalty        |y| counts eos

    At each step every one of the B hypotheses of a row is continued with every token. The B best
    that do not end in `eos` go on. Those among the B best that do are set aside, and the B of them
    with the best scores are kept; what was set aside takes no place from what goes on. After
    `length` steps those that have not ended compete with those that have, by score. Nothing is
    computed any more once, in every row, what goes on can't come before what has ended.

    Args:
        step: ``step(state, tokens) -> (logits, state)``, called with N * B rows, those of a row
            side by side: what belongs to a row is in the state, or is repeated for each beam.
        state: the state before `tokens` are consumed, rows first (N, ...).
        tokens: the first inputs, integers (N,).
        length: T, the largest number of tokens, `eos` included.
        beams: B, the width; 1, without a penalty, gives what `generate` does at temperature 0;
            V ** T or more finds the best sequence there is.
        eos: the token that ends a hypothesis; None if nothing does.
        length_penalty: the exponent, may be traced; 0 for none. Larger favours longer sequences.

    Returns:
        The B best hypotheses of each row, the best first, see `Beams`.

    Raises:
        ValueError, TypeError: as `generate` does, and for `beams` below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.generation import beam_search
        >>> def step(state, token):  # 0 is likelier than 1, but after 1 it is clear what follows
        ...     after = jnp.log(jnp.array([[.4, .3, .3], [0, 0, 1], [.6, .4, 0]]))
        ...     return after[token], state
        >>> start = jnp.array([2])
        >>> greedy, wide = (beam_search(step, (), start, 2, beams=b, eos=None) for b in (1, 2))
        >>> greedy.tokens[0].tolist(), wide.tokens[0].tolist()
        ([[0, 0]], [[1, 2], [0, 0]])
        >>> [round(p, 2) for p in jnp.exp(wide.scores[0]).tolist()]
        [0.4, 0.24]

    Source: Y. Wu et al., arXiv:1609.08144, section 7. Differs from it: no coverage penalty and no
    pruning.
    """
    checks.at_least("length", length, 1)
    checks.at_least("beams", beams, 1)
    if np.shape(length_penalty) != ():
        raise ShapeError(
            f"length_penalty should be one number, got shape {np.shape(length_penalty)}"
        )
    run = _beam_search_compiled if compilable(step) else _beam_search
    tokens = first_tokens(tokens)
    return run(step, state, tokens, length_penalty, length=length, beams=beams, eos=eos)


class _Search(NamedTuple):
    """The state of a search: N rows, B beams."""

    state: Any  # (N * B, ...)
    last: jax.Array  # the last token of each hypothesis that goes on (N, B)
    alive: Beams  # those that go on, their scores without penalty
    ended: Beams  # those that have ended, scores of -inf where there are none yet


def _beam_search(
    step: Step,
    state: Any,
    tokens: jax.Array,
    length_penalty: Any,
    *,
    length: int,
    beams: int,
    eos: int | None,
) -> Beams:
    rows = len(tokens)
    state = jax.tree.map(jnp.asarray, state)
    check_rows(state, rows)
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), state)
    last = jnp.broadcast_to(tokens[:, None], (rows, beams))
    vocabulary, dtype = check_token_step(step, state, last.reshape(-1), eos)

    def penalised(scores: jax.Array, count: Any) -> jax.Array:
        penalty = ((5.0 + jnp.asarray(count, dtype)) / 6.0) ** jnp.asarray(length_penalty, dtype)
        return scores / penalty

    def done(search: _Search, index: jax.Array) -> jax.Array:
        """Whether the best that goes on, were it sure of the rest, is behind all that are kept."""
        best = search.alive.scores.max(1)
        reach = jnp.maximum(penalised(best, index + 1), penalised(best, length))
        return (search.ended.scores.min(1) >= reach).all()

    def advance(search: _Search, index: jax.Array) -> _Search:
        logits, state = step(search.state, search.last.reshape(-1))
        log_probs = jax.nn.log_softmax(logits.astype(dtype)).reshape(rows, beams, vocabulary)
        total = search.alive.scores[..., None] + log_probs
        # Each hypothesis ends in one way: among twice as many as there are, enough go on.
        count = beams * min(2, vocabulary)
        scores, place = lax.top_k(total.reshape(rows, -1), count)
        parent, token = place // vocabulary, (place % vocabulary).astype(jnp.int32)
        written = _take(search.alive.tokens, parent).at[:, :, index].set(token)
        found = Beams(written, scores, jnp.full((rows, count), index + 1, jnp.int32))

        ended = search.ended
        if eos is not None:
            among_best = jnp.arange(count)[None] < beams
            closed = jnp.where((token == eos) & among_best, penalised(scores, index + 1), -jnp.inf)
            ended = _best(beams, ended, found._replace(scores=closed))
            scores = jnp.where(token == eos, -jnp.inf, scores)
        scores, chosen = lax.top_k(scores, beams)
        parent, last = _take((parent, token), chosen)
        state = jax.tree.map(lambda leaf: _of_parents(leaf, parent), state)
        return _Search(state, last, _take(found, chosen)._replace(scores=scores), ended)

    def body(search: _Search, index: jax.Array) -> Any:
        if eos is None:
            return advance(search, index), None
        return lax.cond(done(search, index), lambda s, _: s, advance, search, index), None

    first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf).astype(dtype)[None]
    none = Beams(
        jnp.full((rows, beams, length), 0 if eos is None else eos, jnp.int32),
        jnp.full((rows, beams), -jnp.inf, dtype),
        jnp.zeros((rows, beams), jnp.int32),
    )
    alive = none._replace(scores=jnp.broadcast_to(first, (rows, beams)))
    search, _ = lax.scan(body, _Search(state, last, alive, none), jnp.arange(length))
    cut = search.alive._replace(scores=penalised(search.alive.scores, length))
    found = _best(beams, search.ended, cut)
    there = found.scores > -jnp.inf
    return Beams(
        jnp.where(there[..., None], found.tokens, none.tokens),
        found.scores,
        jnp.where(there, found.lengths, 0),
    )


_beam_search_compiled = jax.jit(_beam_search, static_argnames=("length", "beams", "eos"))


def _best(count: int, *pools: Beams) -> Beams:
    """The best of several pools of hypotheses, the best first."""
    pool = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *pools)
    return _take(pool, lax.top_k(pool.scores, count)[1])


def _take(tree: Any, index: jax.Array) -> Any:
    """Of leaves (N, M, ...), those of index (N, K): (N, K, ...)."""
    rows = jnp.arange(len(index))[:, None]
    return jax.tree.map(lambda leaf: leaf[rows, index], tree)


def _of_parents(leaf: jax.Array, parent: jax.Array) -> jax.Array:
    """The part (N * B, ...) of a state that each hypothesis has from its parent (N, B)."""
    return _take(leaf.reshape(*parent.shape, *leaf.shape[1:]), parent).reshape(leaf.shape)
