"""The parts of a sequence-to-sequence model: `Encoder`, `Decoder`, and a `Bridge` between them.

Axis letters: N rows, S and T tokens of the longest source and target, V vocabulary, D features of
an embedding, H hidden size, R size of h, L layers, F directions, M features of the memory.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from jaxrnn import _checks as checks
from jaxrnn._checks import ShapeError
from jaxrnn.core import masks as ragged
from jaxrnn.layers.attention import KINDS, Attention, Memory
from jaxrnn.layers.linear import linear


class Encoder(nnx.Module):
    """An embedding and recurrent layers that read a sequence of tokens.

    Args:
        rnn: a layer of this package, of any number of layers and directions.
        vocab_size: V.
        rngs: the stream for the embedding (``params``), drawn from N(0, 1) as PyTorch's is.

    Parameters: ``embedding.weight`` (V, D) and those of ``rnn``.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.seq2seq import Encoder
        >>> rngs = nnx.Rngs(0)
        >>> encoder = Encoder(jaxrnn.GRU(8, 16, bidirectional=True, rngs=rngs), 50, rngs=rngs)
        >>> memory, state = encoder(jnp.array([[3, 1, 4], [1, 5, -1]]), lengths=jnp.array([3, 2]))
        >>> memory.shape, state.shape, memory[1, 2].any().item()
        ((2, 3, 32), (2, 2, 16), False)
    """

    def __init__(self, rnn: Any, vocab_size: int, *, rngs: nnx.Rngs):
        self.embedding = _embedding(rnn, vocab_size, rngs)
        self.rnn = rnn
        self.vocab_size = vocab_size

    @property
    def memory_size(self) -> int:
        """M, the features of the memory: F*R."""
        return self.rnn.output_size

    def __call__(self, source: Any, lengths: Any = None, *, rngs: Any = None) -> Any:
        """Read.

        Args:
            source: tokens, integers (N, S).
            lengths: the tokens of each row, integers (N,), 0 allowed; None for all.
            rngs: the source of dropout's key, as for the layers.

        Returns:
            The memory (N, S, F*R), zero past a row's length, and the layers' last state.
        """
        source, lengths = token_rows("source", source, lengths, self.vocab_size)
        return _run(self.rnn, self.embedding(source), None, lengths, rngs)


class Decoder(nnx.Module):
    """An embedding, recurrent layers, attention if wanted, and logits of the next token.

    Args:
        rnn: a layer of this package, of one direction.
        vocab_size: V.
        attention: None, "dot", "general" or "additive", see `jaxrnn.layers.attention`.
        memory_size: M, the features of what is attended to; None for the size of h.
        rngs: the stream for the parameters (``params``).

    Parameters: ``embedding.weight`` (V, D), those of ``rnn``; with attention, those of
    ``attention`` and ``combine.weight`` (R, M + R), ``combine.bias``; ``fc.weight`` (V, R),
    ``fc.bias``.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.seq2seq import Decoder
        >>> rngs = nnx.Rngs(0)
        >>> decoder = Decoder(jaxrnn.GRU(8, 16, rngs=rngs), 50, attention="dot", rngs=rngs)
        >>> memory = decoder.remember(jnp.ones((2, 3, 16)))
        >>> tokens, state = jnp.zeros((2, 5), int), jnp.zeros((1, 2, 16))
        >>> logits, state, weights = decoder(tokens, state, memory)
        >>> logits.shape, state.shape, weights.shape
        ((2, 5, 50), (1, 2, 16), (2, 5, 3))
    """

    def __init__(
        self,
        rnn: Any,
        vocab_size: int,
        attention: str | None = None,
        memory_size: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        if rnn.bidirectional:
            raise ValueError(f"a decoder writes in one direction, got {rnn}")
        if attention is not None:
            checks.choice("attention", attention, KINDS)
        size, options = rnn.output_size, _dtypes(rnn)
        self.embedding = _embedding(rnn, vocab_size, rngs)
        self.rnn = rnn
        self.vocab_size = vocab_size
        self.memory_size = size if memory_size is None else memory_size
        if attention is None:
            self.attention = None
        else:
            self.attention = Attention(attention, size, self.memory_size, rngs=rngs, **options)
            self.combine = linear(self.memory_size + size, size, rngs=rngs, **options)
        self.fc = linear(size, vocab_size, rngs=rngs, **options)

    def remember(self, memory: jax.Array, lengths: Any = None) -> Memory | None:
        """Prepare what the encoder read, (N, S, M), for the calls; None without attention."""
        return None if self.attention is None else self.attention.remember(memory, lengths)

    def __call__(
        self,
        tokens: Any,
        state: Any,
        memory: Memory | None = None,
        lengths: Any = None,
        *,
        rngs: Any = None,
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """The logits of what follows each token.

        Args:
            tokens: integers (N, T), or (N * B, T) for B neighbours that share a row of memory.
            state: the layers' state before the first token; None for zeros.
            memory: what `remember` returned.
            lengths: the tokens of each row, integers (N,), 0 allowed; None for all.
            rngs: the source of dropout's key, as for the layers.

        Returns:
            The logits (N, T, V), the layers' state after the last token of each row, and the
            weights of the attention (N, T, S), or None without it.
        """
        tokens, lengths = token_rows("tokens", tokens, lengths, self.vocab_size)
        output, state = _run(self.rnn, self.embedding(tokens), state, lengths, rngs)
        logits, weights = self.head(output, memory)
        return logits, state, weights

    def head(self, output: jax.Array, memory: Memory | None) -> Any:
        """The logits (N, T, V) and weights (N, T, S) for outputs of the layers (N, T, R)."""
        if self.attention is None:
            return self.fc(output), None
        if memory is None:
            raise ValueError("a decoder with attention needs a memory: decoder.remember(...)")
        context, weights = self.attention(output, memory)
        joined = jnp.concatenate([context, output], axis=-1)
        return self.fc(jnp.tanh(self.combine(joined))), weights


class Bridge(nnx.Module):
    """From an encoder's last states (F*L, N, R) to a decoder's first (L, N, R'), layer by layer.

    .. code-block:: text

        h' = tanh(W [h_forward; h_backward] + b);      c' = W [c_forward; c_backward] + b

    Args:
        encoder: the recurrent layers whose last states come in.
        decoder: those that begin with what comes out; as many, and of cells of the same states.
        rngs: the stream for the parameters (``params``).

    Parameters: ``h.weight`` (R', F*R), ``h.bias``, and for LSTM ``c.weight``, ``c.bias``. All
    layers share them.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.seq2seq import Bridge
        >>> rngs = nnx.Rngs(0)
        >>> encoder = jaxrnn.GRU(8, 16, bidirectional=True, rngs=rngs)
        >>> Bridge(encoder, jaxrnn.GRU(8, 20, rngs=rngs), rngs=rngs)(jnp.ones((2, 3, 16))).shape
        (1, 3, 20)
    """

    def __init__(self, encoder: Any, decoder: Any, *, rngs: nnx.Rngs):
        self.directions = 2 if encoder.bidirectional else 1
        pairs = zip(encoder.state_sizes, decoder.state_sizes)
        for name, (before, after) in zip(encoder.cell.states, pairs):
            size = self.directions * before
            setattr(self, name, linear(size, after, rngs=rngs, **_dtypes(decoder)))
        self.names = encoder.cell.states

    def __call__(self, states: Any) -> Any:
        """The decoder's first states."""
        states = states if isinstance(states, tuple) else (states,)
        bridged = []
        for name, state in zip(self.names, states):
            layers = state.reshape(-1, self.directions, *state.shape[1:])  # (L, F, N, R)
            joined = jnp.concatenate(list(layers.swapaxes(0, 1)), axis=-1)  # (L, N, F*R)
            bridged.append(getattr(self, name)(joined))
        bridged[0] = jnp.tanh(bridged[0])
        return tuple(bridged) if len(bridged) > 1 else bridged[0]


def token_rows(name: str, tokens: Any, lengths: Any, vocab_size: int) -> tuple[Any, Any]:
    """Tokens as int32 (N, T), 0 past the lengths, and the lengths as int32 (N,) or None.

    Args:
        name: what an error calls them.
        tokens: integers (N, T); past the lengths, any.
        lengths: the tokens of each row, integers (N,); None for T.
        vocab_size: V; tokens that are known when this is asked should be from 0 to V - 1.
    """
    known = not isinstance(tokens, Tracer)
    tokens = np.asarray(tokens) if known else tokens
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"{name} should be integers, got {tokens.dtype.name}")
    if tokens.ndim != 2:
        raise ShapeError(f"{name} should have a row for each sequence, got shape {tokens.shape}")
    valid = None
    if lengths is not None:
        rows, steps = tokens.shape
        lengths = ragged.check_lengths(lengths, steps, rows)
        valid = ragged.valid_mask(lengths, steps)
    if known and not isinstance(valid, Tracer):
        wrong = (tokens < 0) | (tokens >= vocab_size)
        wrong = wrong if valid is None else wrong & np.asarray(valid)
        if wrong.any():
            raise ValueError(
                f"{name} should be tokens from 0 to {vocab_size - 1}, got {tokens[wrong][0]}"
            )
    tokens = jnp.asarray(tokens).astype(jnp.int32)
    return tokens if valid is None else jnp.where(valid, tokens, 0), lengths


def _run(rnn: Any, x: jax.Array, state: Any, lengths: Any, rngs: Any) -> tuple[jax.Array, Any]:
    """A call of a layer with (N, T, D), whether it is batch-first or not."""
    x = x if rnn.batch_first else x.swapaxes(0, 1)
    output, state = rnn(x, state, lengths=lengths, rngs=rngs)
    return output if rnn.batch_first else output.swapaxes(0, 1), state


def _embedding(rnn: Any, vocab_size: int, rngs: nnx.Rngs) -> nnx.Embed:
    """An `nnx.Embed` that starts as ``torch.nn.Embedding`` does: N(0, 1)."""
    checks.at_least("vocab_size", vocab_size, 1)
    normal = nnx.initializers.normal(1.0)
    size = rnn.input_size
    return nnx.Embed(vocab_size, size, embedding_init=normal, rngs=rngs, **_dtypes(rnn))


def _dtypes(rnn: Any) -> dict[str, Any]:
    """A layer's dtypes, for what stands beside it."""
    return {"dtype": rnn.dtype, "param_dtype": rnn.param_dtype}
