r"""Attention over an encoder's outputs.

.. math::

    \alpha_{ts} = \mathrm{softmax}_s(\mathrm{score}(q_t, m_s)), \qquad
    c_t = \sum_s \alpha_{ts} m_s

| kind | score | source |
|---|---|---|
| dot | :math:`q \cdot m` | M.-T. Luong et al., arXiv:1508.04025 |
| general | :math:`q \cdot (W m)` | M.-T. Luong et al., arXiv:1508.04025 |
| additive | :math:`v \cdot \tanh(U q + W m)` | D. Bahdanau et al., arXiv:1409.0473 |

Axis letters: N batch, T queries, S memory length, Q query features, M memory features, A features
of the additive score.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn.backends.step import zero_padding
from jaxrnn.cells.base import compute_dtype
from jaxrnn.core import masks
from jaxrnn.layers.heads import linear

KINDS = ("dot", "general", "additive")


class Memory(NamedTuple):
    """The memory that queries attend to, see `Attention.prepare`.

    Attributes:
        values: (N, S, M), zero at padding.
        keys: the values, or their product with W, computed once.
        valid_mask: bool (N, S), or None if every position is valid.
    """

    values: jax.Array
    keys: jax.Array
    valid_mask: jax.Array | None


class Attention(nnx.Module):
    """Attention of queries over a memory.

    Args:
        kind: "dot", "general" or "additive".
        query_size: Q.
        memory_size: M; equal to Q for "dot".
        hidden_size: A, for "additive". Defaults to Q.
        rngs: random streams; ``params`` draws the parameters.
        options: ``dtype`` and ``param_dtype``, as in the layers.

    Parameters: ``memory.weight`` (Q or A, M) for "general" and "additive"; ``query.weight`` (A, Q),
    ``query.bias`` (A,) and ``score.weight`` (1, A) for "additive".

    Raises:
        ValueError: for an unknown kind, or if Q and M differ for "dot".

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn.layers.attention import Attention
        >>> attention = Attention("additive", 4, 6, rngs=nnx.Rngs(0))
        >>> memory = attention.prepare(jnp.ones((2, 3, 6)), lengths=jnp.array([3, 1]))
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
                "Dot attention needs queries and memory of equal size, got "
                f"{query_size} and {memory_size}. attention='general' projects the memory."
            )
        self.kind = kind
        size = query_size if hidden_size is None or kind == "general" else hidden_size
        if kind != "dot":
            self.memory = linear(memory_size, size, bias=False, rngs=rngs, **options)
        if kind == "additive":
            self.query = linear(query_size, size, rngs=rngs, **options)
            self.score = linear(size, 1, bias=False, rngs=rngs, **options)

    def prepare(self, values: jax.Array, lengths: Any = None) -> Memory:
        """Return the memory of values (N, S, M), computed once for any number of queries.

        Args:
            values: outputs of an encoder.
            lengths: number of valid positions, integers (N,), 0 allowed. Defaults to S. Padding has
                weight 0 and contributes no gradient.
        """
        valid_mask = None
        if lengths is not None:
            batch_size, steps, _ = values.shape
            lengths = masks.check_lengths(lengths, steps, batch_size)
            valid_mask = masks.valid_mask(lengths, steps)
            values = zero_padding(valid_mask, values)
        return Memory(values, values if self.kind == "dot" else self.memory(values), valid_mask)

    def __call__(self, queries: jax.Array, memory: Memory) -> tuple[jax.Array, jax.Array]:
        """Attend to the memory.

        Args:
            queries: (N, T, Q), or (N * B, T, Q) where the B beams of an example are neighbours.
            memory: the result of `prepare`.

        Returns:
            Contexts (N, T, M) and weights (N, T, S); zero for an example without valid positions.
        """
        values, keys, valid_mask = memory
        shape = queries.shape[:2]
        queries = queries.reshape(len(values), -1, queries.shape[2])
        if self.kind == "additive":
            queries = self.query(queries)
            scores = self.score(jnp.tanh(queries[:, :, None] + keys[:, None]))[..., 0]
        else:
            scores = jnp.einsum("ntq,nsq->nts", queries, keys)
        weights = masked_softmax(scores, None if valid_mask is None else valid_mask[:, None])
        context = jnp.einsum("nts,nsm->ntm", weights.astype(values.dtype), values)
        return context.reshape(*shape, -1), weights.reshape(*shape, -1)


def masked_softmax(scores: jax.Array, valid_mask: jax.Array | None = None) -> jax.Array:
    """Return the softmax of the valid scores along the last axis, and 0 for the others.

    Args:
        scores: any shape. Invalid scores contribute neither value nor gradient.
        valid_mask: bool, broadcastable to the scores. Defaults to all scores.

    Returns:
        At least float32, with the shape of `scores`; 0 throughout where no score is valid.

    Example:
        >>> import jax.numpy as jnp
        >>> valid_mask = jnp.array([[True, True, False], [False, False, False]])
        >>> masked_softmax(jnp.array([[1.0, 1.0, jnp.nan], [1.0, 1.0, 1.0]]), valid_mask).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    scores = scores.astype(compute_dtype(scores.dtype))
    if valid_mask is None:
        return jax.nn.softmax(scores)
    scores = jnp.where(valid_mask, scores, jnp.finfo(scores.dtype).min)
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    exponentials = jnp.where(valid_mask, jnp.exp(scores - largest), 0.0)
    total = exponentials.sum(-1, keepdims=True)
    return exponentials / jnp.where(total > 0, total, 1.0)
