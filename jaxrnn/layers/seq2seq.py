r"""Encoder-decoder models with attention.

.. math::

    m_1, \ldots, m_S, s_0 &= \mathrm{encoder}(\mathrm{source}) \\
    h_1, \ldots, h_T &= \mathrm{decoder}(\mathrm{bos}, y_1, \ldots, y_{T-1}; s_0) \\
    c_t &= \mathrm{attention}(h_t, m) \\
    \mathrm{logits}_t &= W_o \tanh(W_c [c_t; h_t])
    \qquad \text{without attention: } W_o h_t

Attention follows the decoder's recurrence, so that under teacher forcing the whole target is one
call of the layers. Sources (N, S) and targets (N, T) are padded token arrays with lengths. A
target ends with `eos`, which its length includes, and does not start with `bos`.

Axis letters: N batch, S and T source and target length, V vocabulary, B beams, D features of an
embedding, H hidden size, R size of h, L layers, F directions, M memory features.

Source: I. Sutskever et al., arXiv:1409.3215; K. Cho et al., arXiv:1406.1078; attention:
M.-T. Luong et al., arXiv:1508.04025, without input feeding; scheduled sampling: S. Bengio et al.,
arXiv:1506.03099.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer

from jaxrnn import _checks as checks
from jaxrnn import generation
from jaxrnn._checks import ShapeError
from jaxrnn.backends.step import zero_padding
from jaxrnn.core import masks
from jaxrnn.generation.sampling import active_dropout, check_no_dropout, check_temperature
from jaxrnn.layers._module import as_key
from jaxrnn.layers.attention import Attention, Memory
from jaxrnn.layers.heads import check_tokens, cross_entropy, linear


class Encoder(nnx.Module):
    """An embedding and recurrent layers that encode a source.

    Args:
        rnn: any layer of this package.
        vocab_size: V.
        rngs: random streams; ``params`` draws the embedding from N(0, 1), as PyTorch does.

    Parameters: ``embedding.weight`` (V, D) and those of ``rnn``. Example: see `Seq2Seq`.
    """

    def __init__(self, rnn: Any, vocab_size: int, *, rngs: nnx.Rngs):
        self.embedding = _embedding(rnn, vocab_size, rngs)
        self.rnn = rnn
        self.vocab_size = vocab_size

    @property
    def memory_size(self) -> int:
        """Number of memory features, M = F*R."""
        return self.rnn.output_size

    def __call__(self, source: Any, lengths: Any = None, *, rngs: Any = None) -> Any:
        """Return the outputs (N, S, F*R), zero at padding, and the final state of the layers.

        Args:
            source: tokens, integers (N, S).
            lengths: number of tokens, integers (N,), 0 allowed. Defaults to S.
            rngs: source of the dropout key, as in the layers.
        """
        source, lengths = check_tokens("source", source, lengths, self.vocab_size)
        return _run_batch_first(self.rnn, self.embedding(source), None, lengths, rngs)


class Decoder(nnx.Module):
    """An embedding, recurrent layers, optional attention, and logits of the next token.

    Args:
        rnn: a unidirectional layer of this package.
        vocab_size: V.
        attention: None, "dot", "general" or "additive", see `jaxrnn.layers.attention`.
        memory_size: M. Defaults to the size of h.
        rngs: random streams; ``params`` draws the parameters.

    Parameters: ``embedding.weight`` (V, D), those of ``rnn``, ``fc.weight`` (V, R), ``fc.bias``;
    with attention also ``attention.*``, ``combine.weight`` (R, M + R) and ``combine.bias``.
    Example: see `Seq2Seq`.
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
            raise ValueError(f"`rnn` of a decoder must be unidirectional, got {rnn}.")
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

    def prepare(self, values: jax.Array, lengths: Any = None) -> Memory | None:
        """Return the memory of an encoder's outputs (N, S, M); None without attention."""
        return None if self.attention is None else self.attention.prepare(values, lengths)

    def __call__(
        self,
        tokens: Any,
        state: Any,
        memory: Memory | None = None,
        lengths: Any = None,
        *,
        rngs: Any = None,
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """Return the logits (N, T, V) of the token after each one, and the final state.

        Args:
            tokens: integers (N, T), or (N * B, T) where the B beams of an example are neighbours.
            state: initial state of the layers, or None for zeros.
            memory: the result of `prepare`.
            lengths: number of tokens, integers (N,), 0 allowed. Defaults to T.
            rngs: source of the dropout key, as in the layers.

        Returns:
            The logits, the state, and the attention weights (N, T, S), or None without attention.
        """
        tokens, lengths = check_tokens("tokens", tokens, lengths, self.vocab_size)
        output, state = _run_batch_first(self.rnn, self.embedding(tokens), state, lengths, rngs)
        logits, weights = self.head(output, memory)
        return logits, state, weights

    def head(self, output: jax.Array, memory: Memory | None) -> Any:
        """Return logits (N, T, V) and attention weights (N, T, S) of layer outputs (N, T, R)."""
        if self.attention is None:
            return self.fc(output), None
        if memory is None:
            raise ValueError(
                "A decoder with attention needs a memory, got None. Pass decoder.prepare(values)."
            )
        context, weights = self.attention(output, memory)
        combined = self.combine(jnp.concatenate([context, output], axis=-1))
        return self.fc(jnp.tanh(combined)), weights


class Bridge(nnx.Module):
    r"""Map an encoder's final state (F*L, N, R) to a decoder's initial state (L, N, R').

    .. math::

        h' = \tanh(W_h [h_\mathrm{forward}; h_\mathrm{reverse}] + b_h), \qquad
        c' = W_c [c_\mathrm{forward}; c_\mathrm{reverse}] + b_c

    Args:
        encoder: recurrent layers of the encoder.
        decoder: recurrent layers of the decoder, as many and with the same states.
        rngs: random streams; ``params`` draws the parameters, shared by all layers: ``h.weight``
            (R', F*R), ``h.bias``, and for LSTM ``c.weight``, ``c.bias``.

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
        self.names = tuple(encoder.cell.states)
        for name, old, new in zip(self.names, encoder.state_sizes, decoder.state_sizes):
            setattr(self, name, linear(self.directions * old, new, rngs=rngs, **_dtypes(decoder)))

    def __call__(self, states: Any) -> Any:
        """Return the decoder's initial state."""
        states = states if isinstance(states, tuple) else (states,)
        mapped = []
        for name, state in zip(self.names, states):
            layers = state.reshape(-1, self.directions, *state.shape[1:])  # (L, F, N, R)
            features = jnp.concatenate(list(layers.swapaxes(0, 1)), axis=-1)  # (L, N, F*R)
            mapped.append(getattr(self, name)(features))
        mapped[0] = jnp.tanh(mapped[0])
        return tuple(mapped) if len(mapped) > 1 else mapped[0]


class Seq2Seq(nnx.Module):
    """An encoder and a decoder: training, greedy decoding, sampling and beam search.

    Args:
        encoder: the encoder.
        decoder: the decoder, with as many layers and the same kind of cell. If the encoder is
            bidirectional or has another size, a `Bridge` maps its final state.
        bos: token before the first, 0 to V - 1 of the decoder; an input, never a target.
        eos: token after the last, which the decoder learns to predict. May equal `bos`.
        rngs: random streams; ``params`` draws the bridge.

    Parameters: ``encoder.*``, ``decoder.*``, and ``bridge.*`` with a bridge.

    Raises:
        ValueError: if encoder and decoder do not match, or `bos` or `eos` is outside the
            vocabulary.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.seq2seq import Decoder, Encoder, Seq2Seq
        >>> rngs = nnx.Rngs(0)
        >>> encoder = Encoder(jaxrnn.GRU(8, 16, rngs=rngs), 50, rngs=rngs)
        >>> decoder = Decoder(jaxrnn.GRU(8, 16, rngs=rngs), 40, "additive", rngs=rngs)
        >>> model = Seq2Seq(encoder, decoder, bos=0, eos=1, rngs=rngs)
        >>> source, source_lengths = jnp.array([[3, 1, 4], [5, 9, 0]]), jnp.array([3, 2])
        >>> target, target_lengths = jnp.array([[2, 1, 0], [7, 8, 1]]), jnp.array([2, 3])
        >>> graph, params = nnx.split(model)
        >>> def loss(params):
        ...     model = nnx.merge(graph, params)
        ...     return model.loss(source, target, source_lengths, target_lengths)
        >>> value, grads = jax.value_and_grad(loss)(params)
        >>> value.shape
        ()
        >>> model.greedy(source, 10, source_lengths).tokens.shape
        (2, 10)
        >>> model.beam(source, 10, source_lengths, beams=4, length_penalty=0.6).tokens.shape
        (2, 4, 10)
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, *, bos: int, eos: int, rngs: Any = None):
        first, second = encoder.rnn, decoder.rnn
        for name, value in (("bos", bos), ("eos", eos)):
            if not 0 <= value < decoder.vocab_size:
                largest = decoder.vocab_size - 1
                raise ValueError(f"`{name}` must be a token from 0 to {largest}, got {value}.")
        if first.num_layers != second.num_layers:
            raise ValueError(
                "Encoder and decoder must have the same number of layers, got "
                f"{first.num_layers} and {second.num_layers}."
            )
        if first.cell.states != second.cell.states:
            raise ValueError(
                "Encoder and decoder must have cells with the same states, got "
                f"{first} with {first.cell.states} and {second} with {second.cell.states}."
            )
        if decoder.attention is not None and decoder.memory_size != encoder.memory_size:
            raise ValueError(
                f"`memory_size` of the decoder must be {encoder.memory_size}, the encoder's output "
                f"size, got {decoder.memory_size}. Pass memory_size={encoder.memory_size}."
            )
        self.encoder = encoder
        self.decoder = decoder
        self.bos, self.eos = bos, eos
        if not first.bidirectional and first.state_sizes == second.state_sizes:
            self.bridge = None
        elif rngs is None:
            raise ValueError(f"The bridge from {first} to {second} has parameters: pass rngs=.")
        else:
            self.bridge = Bridge(first, second, rngs=rngs)

    def encode(self, source: Any, lengths: Any = None, *, rngs: Any = None) -> Any:
        """Return the decoder's memory, or None, and its initial state."""
        outputs, state = self.encoder(source, lengths, rngs=rngs)
        state = state if self.bridge is None else self.bridge(state)
        return self.decoder.prepare(outputs, lengths), state

    def __call__(
        self,
        source: Any,
        target: Any,
        source_lengths: Any = None,
        target_lengths: Any = None,
        *,
        teacher_forcing: Any = 1.0,
        key: jax.Array | None = None,
        rngs: Any = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return logits (N, T, V) and attention weights (N, T, S), or None, zero at padding.

        Args:
            source: integers (N, S).
            target: integers (N, T), ended by `eos`, without `bos`.
            source_lengths: number of source tokens (N,), 0 allowed. Defaults to S.
            target_lengths: number of target tokens (N,), `eos` included. Defaults to T.
            teacher_forcing: probability of a ground-truth input, drawn per step and example; else
                the input is the decoder's most likely token (scheduled sampling). 1 is one call of
                the layers, any other value a loop over steps. May be traced. Defaults to 1.
            key: PRNG key of these draws, optional if `teacher_forcing` is known to be 0 or 1; in
                the loop also the dropout key if `rngs` is None.
            rngs: source of the dropout key, as in the layers.

        Raises:
            ValueError: for wrong shapes (also a RuntimeError), lengths or a probability outside
                their range, or a missing key.
            TypeError: if the tokens are not integers.
        """
        vocab_size = self.decoder.vocab_size
        target, target_lengths = check_tokens("target", target, target_lengths, vocab_size)
        if np.shape(source)[:1] != target.shape[:1]:
            raise ShapeError(
                "`source` and `target` must have the same batch size, got shapes "
                f"{np.shape(source)} and {target.shape}."
            )
        if np.shape(teacher_forcing) != ():
            got = np.shape(teacher_forcing)
            raise ShapeError(f"`teacher_forcing` must be one number, got shape {got}.")
        known = None if isinstance(teacher_forcing, Tracer) else float(teacher_forcing)
        if known is not None and not 0 <= known <= 1:
            raise ValueError(f"`teacher_forcing` must be a probability from 0 to 1, got {known}.")
        if known == 1:
            encoder_rngs, decoder_rngs = _split_rngs(rngs)
            memory, state = self.encode(source, source_lengths, rngs=encoder_rngs)
            inputs = (_shift_right(target, self.bos), state, memory, target_lengths)
            logits, _, weights = self.decoder(*inputs, rngs=decoder_rngs)
        else:
            if key is None and known != 0:
                raise ValueError(f"teacher_forcing={teacher_forcing} needs a PRNG key: pass key=.")
            sources = check_tokens("source", source, source_lengths, self.encoder.vocab_size)
            ratio = None if known == 0 else teacher_forcing
            dropout_key = _loop_dropout_key(self, key, rngs)
            logits, weights = _scheduled_sampling(self, *sources, target, ratio, key, dropout_key)
        if target_lengths is not None:
            valid_mask = masks.valid_mask(target_lengths, target.shape[1])
            zero = functools.partial(zero_padding, valid_mask)
            logits, weights = jax.tree.map(zero, (logits, weights))
        return logits, weights

    def loss(
        self,
        source: Any,
        target: Any,
        source_lengths: Any = None,
        target_lengths: Any = None,
        **options,
    ) -> jax.Array:
        """Return the mean cross-entropy of the target tokens, in nats; arguments as in a call."""
        logits, _ = self(source, target, source_lengths, target_lengths, **options)
        return cross_entropy(logits, target, target_lengths)

    def step(self, source: Any, lengths: Any = None) -> tuple[generation.Step, Any]:
        """Return the decoder's step and its initial state for `jaxrnn.generation`.

        The first tokens are ``jnp.full(N, model.bos)``.
        """
        check_no_dropout(self.encoder.rnn)
        check_no_dropout(self.decoder.rnn)
        memory, state = self.encode(source, lengths)

        def _head(output: jax.Array) -> jax.Array:
            logits, _ = self.decoder.head(output[:, None], memory)
            return logits[:, 0]

        step = generation.token_step(self.decoder.rnn, _head, embed=self.decoder.embedding)
        return step, generation.batch_major(state)

    def greedy(self, source: Any, length: int, lengths: Any = None) -> generation.Generated:
        """Decode the most likely token at each step: `sample` at temperature 0."""
        return self.sample(source, length, lengths, temperature=0.0)

    def sample(
        self,
        source: Any,
        length: int,
        lengths: Any = None,
        *,
        key: jax.Array | None = None,
        temperature: Any = 1.0,
        top_k: int | None = None,
    ) -> generation.Generated:
        """Sample targets; for the other arguments and errors see `jaxrnn.generation.generate`.

        Args:
            source: integers (N, S).
            length: maximal number of tokens, `eos` included.
            lengths: number of source tokens (N,), 0 allowed. Defaults to S.
        """
        source, lengths = check_tokens("source", source, lengths, self.encoder.vocab_size)
        temperature = check_temperature(temperature, len(source))
        return _sample(self, source, lengths, key, temperature, length=length, top_k=top_k)

    def beam(
        self,
        source: Any,
        length: int,
        lengths: Any = None,
        *,
        beams: int,
        length_penalty: Any = 0.0,
    ) -> generation.Beams:
        """Search the most likely targets; see `sample` and `jaxrnn.generation.beam_search`."""
        source, lengths = check_tokens("source", source, lengths, self.encoder.vocab_size)
        return _beam(self, source, lengths, length_penalty, length=length, beams=beams)


# A module is a pytree. As an argument of a compiled function it is compiled once, and the function
# uses its current parameters.


@functools.partial(jax.jit, static_argnames=("length", "top_k"))
def _sample(
    model: Seq2Seq,
    source: Any,
    lengths: Any,
    key: Any,
    temperature: Any,
    *,
    length: int,
    top_k: Any,
) -> generation.Generated:
    step, state = model.step(source, lengths)
    tokens = jnp.full(len(source), model.bos, jnp.int32)
    temperature = 0.0 if temperature is None else temperature
    options: dict[str, Any] = {"key": key, "temperature": temperature, "top_k": top_k}
    return generation.generate(step, state, tokens, length, eos=model.eos, **options)


@functools.partial(jax.jit, static_argnames=("length", "beams"))
def _beam(
    model: Seq2Seq, source: Any, lengths: Any, length_penalty: Any, *, length: int, beams: int
) -> generation.Beams:
    step, state = model.step(source, lengths)
    tokens = jnp.full(len(source), model.bos, jnp.int32)
    options: dict[str, Any] = {"beams": beams, "length_penalty": length_penalty}
    return generation.beam_search(step, state, tokens, length, eos=model.eos, **options)


@jax.jit
def _scheduled_sampling(
    model: Seq2Seq, source: Any, lengths: Any, target: Any, ratio: Any, key: Any, dropout_key: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Loop over target steps; each input is the ground truth with probability `ratio`, or None."""
    encoder_rngs, decoder_rngs = _split_rngs(dropout_key)
    memory, state = model.encode(source, lengths, rngs=encoder_rngs)
    ground_truth = _shift_right(target, model.bos).T  # (T, N)
    forced = jnp.zeros(ground_truth.shape, bool)
    if ratio is not None:
        forced = jax.random.bernoulli(key, ratio, ground_truth.shape)

    def _step(carry: Any, inputs: Any) -> Any:
        state, predicted = carry
        index, ground_truth, forced = inputs
        token = jnp.where(forced, ground_truth, predicted)[:, None]
        rngs = None if decoder_rngs is None else jax.random.fold_in(decoder_rngs, index)
        logits, state, weights = model.decoder(token, state, memory, rngs=rngs)
        logits, weights = jax.tree.map(lambda a: a[:, 0], (logits, weights))
        return (state, logits.argmax(-1).astype(jnp.int32)), (logits, weights)

    steps = (jnp.arange(len(ground_truth)), ground_truth, forced)
    _, outputs = lax.scan(_step, (state, ground_truth[0]), steps)  # the first input is bos
    return jax.tree.map(lambda a: a.swapaxes(0, 1), outputs)


def _shift_right(target: jax.Array, bos: int) -> jax.Array:
    """Return the decoder inputs under teacher forcing: bos, then all but the last target token."""
    return jnp.concatenate([jnp.full_like(target[:, :1], bos), target[:, :-1]], axis=1)


def _split_rngs(rngs: Any) -> tuple[Any, Any]:
    """Split a key in two; a stream, which advances by itself, serves both calls."""
    return tuple(jax.random.split(rngs)) if isinstance(rngs, jax.Array) else (rngs, rngs)


def _loop_dropout_key(model: Seq2Seq, key: Any, rngs: Any) -> Any:
    """Return one dropout key for a loop over steps, in which no stream can advance."""
    active = active_dropout(model.decoder.rnn)
    fixed = [f"{name}={p}" for name, p in active.items() if name not in ("dropout", "zoneout")]
    if fixed:
        raise ValueError(
            f"{', '.join(fixed)} of the decoder needs one mask for all steps, but with "
            "teacher_forcing below 1 each step is a separate call. Use dropout or zoneout."
        )
    if not (active or active_dropout(model.encoder.rnn)):
        return None
    if rngs is None and key is None:
        raise ValueError("dropout is active in a loop over steps. Pass rngs= or key=.")
    return jax.random.fold_in(key, 1) if rngs is None else as_key(rngs)


def _run_batch_first(rnn: Any, x: Any, state: Any, lengths: Any, rngs: Any) -> tuple[Any, Any]:
    """Call a layer with (N, T, D), whatever its `batch_first`."""
    x = x if rnn.batch_first else x.swapaxes(0, 1)
    output, state = rnn(x, state, lengths=lengths, rngs=rngs)
    return output if rnn.batch_first else output.swapaxes(0, 1), state


def _embedding(rnn: Any, vocab_size: int, rngs: nnx.Rngs) -> nnx.Embed:
    """Return an `nnx.Embed` initialised as ``torch.nn.Embedding``: N(0, 1)."""
    checks.at_least("vocab_size", vocab_size, 1)
    normal = nnx.initializers.normal(1.0)
    return nnx.Embed(vocab_size, rnn.input_size, embedding_init=normal, rngs=rngs, **_dtypes(rnn))


def _dtypes(rnn: Any) -> dict[str, Any]:
    return {"dtype": rnn.dtype, "param_dtype": rnn.param_dtype}
