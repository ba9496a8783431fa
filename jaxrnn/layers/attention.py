"""Attention over a memory: which of its places matter to a query, and what is there.

.. code-block:: text

    weights = softmax_s(score(q_t, m_s))       0 past the length of a row
    context = sum_s weights_s * m_s

    dot:       score = q . m
    general:   score = q . (W m)
    additive:  score = v . tanh(U q + W m)

Sources: general and dot, M.-T. Luong et al., arXiv:1508.04025; additive, D. Bahdanau et al.,
arXiv:1409.0473. Axis letters: N rows, T queries of a row, S places in the memory, Q and M the
features of a query and of a place, A of the sum in the additive score.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn.backends.step import zero_padding
from jaxrnn.cells.base import compute_dtype
from jaxrnn.core import masks as ragged
from jaxrnn.layers.linear import linear

KINDS = ("dot", "general", "additive")


class Memory(NamedTuple):
    """What is attended to, see `Attention.remember`.

    Attributes:
        values: (N, S, M), zero past the length of a row.
        keys: what the scores are made of, computed once: the values or their product with W.
        valid: bool (N, S), or None where every place is valid.
    """

    values: jax.Array
    keys: jax.Array
    valid: jax.Array | None


class Attention(nnx.Module):
    """Weights over a memory, and the weighted sum of it.

    Args:
        kind: "dot", "general" or "additive".
        query_size: Q.
        memory_size: M, the same as Q for "dot".
        hidden_size: A, of the additive score; None for Q.
        rngs: the stream for the parameters (``params``).
        options: ``dtype`` and ``param_dtype``, as of the layers.

    Parameters: ``memory.weight`` (Q or A, M) of the general and the additive score;
    ``query.weight`` (A, Q), ``query.bias`` (A,) and ``score.weight`` (1, A) of the additive one.

    Raises:
        ValueError: for another kind, or sizes that differ where the score is a dot product.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn.layers.attention import Attention
        >>> attention = Attention("additive", 4, 6, rngs=nnx.Rngs(0))
        >>> memory = attention.remember(jnp.ones((2, 3, 6)), lengths=jnp.array([3, 1]))
        >>> context, weights = attention(jnp.ones((2, 5, 4)), memory)
        >>> context.shape, weights.shape, weights[1, 0].tolist()
        ((2, 5, 6), (2, 5, 3), [1.0, 0.0, 0.0])
    """

    def __init__(
        self,
        kind: str,
        query_size: int,
        memory_size: int,
        hidden_size: int | None = None,
        *,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        checks.choice("attention", kind, KINDS)
        if kind == "dot" and query_size != memory_size:
            raise ValueError(
                "dot attention needs queries and memory of one size, got "
                f"{query_size} and {memory_size}. attention='general' has a product between them"
            )
        self.kind = kind
        size = query_size if hidden_size is None or kind == "general" else hidden_size
        if kind != "dot":
            self.memory = linear(memory_size, size, bias=False, rngs=rngs, **options)
        if kind == "additive":
            self.query = linear(query_size, size, rngs=rngs, **options)
            self.score = linear(size, 1, bias=False, rngs=rngs, **options)

    def remember(self, memory: jax.Array, lengths: Any = None) -> Memory:
        """Prepare a memory (N, S, M) once for any number of queries.

        Args:
            memory: what is to be attended to.
            lengths: the places that each row has, integers (N,), 0 allowed; None for all S. What
                is past them reaches nothing, whatever it is.
        """
        valid = None
        if lengths is not None:
            rows, places, _ = memory.shape
            lengths = ragged.check_lengths(lengths, places, rows)
            valid = ragged.valid_mask(lengths, places)
            memory = zero_padding(valid, memory)
        return Memory(memory, memory if self.kind == "dot" else self.memory(memory), valid)

    def __call__(self, queries: jax.Array, memory: Memory) -> tuple[jax.Array, jax.Array]:
        """Attend.

        Args:
            queries: (N, T, Q); or (N * B, T, Q), where B neighbours share a row of the memory, as
                the beams of a search do.
            memory: from `remember`.

        Returns:
            The contexts (N, T, M) and the weights (N, T, S), of a row with no place at all zero.
        """
        values, keys, valid = memory
        shape = queries.shape[:2]
        queries = queries.reshape(len(values), -1, queries.shape[2])
        if self.kind == "additive":
            queries = self.query(queries)
            scores = self.score(jnp.tanh(queries[:, :, None] + keys[:, None]))[..., 0]
        else:
            scores = jnp.einsum("ntq,nsq->nts", queries, keys)
        weights = masked_softmax(scores, None if valid is None else valid[:, None])
        context = jnp.einsum("nts,nsm->ntm", weights.astype(values.dtype), values)
        return context.reshape(*shape, -1), weights.reshape(*shape, -1)


def masked_softmax(scores: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Softmax along the last axis over the valid places; zero elsewhere, and where none is valid.

    Args:
        scores: of any shape; what is at places that are not valid reaches no value or gradient.
        valid: bool, with as many axes as the scores; None for all.

    Example:
        >>> import jax.numpy as jnp
        >>> valid = jnp.array([[True, True, False], [False, False, False]])
        >>> masked_softmax(jnp.array([[1.0, 1.0, jnp.nan], [1.0, 1.0, 1.0]]), valid).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    scores = scores.astype(compute_dtype(scores.dtype))
    if valid is None:
        return jax.nn.softmax(scores)
    scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    odds = jnp.where(valid, jnp.exp(scores - top), 0.0)
    total = odds.sum(-1, keepdims=True)
    return odds / jnp.where(total > 0, total, 1.0)
