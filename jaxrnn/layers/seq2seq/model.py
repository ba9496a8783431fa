"""An encoder and a decoder as one model: training, greedy and sampled decoding, beam search.

Axis letters: N rows, S and T tokens of the longest source and target, V vocabulary, B beams.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from jaxrnn import generation
from jaxrnn._checks import ShapeError
from jaxrnn.backends.step import zero_padding
from jaxrnn.core import masks as ragged
from jaxrnn.generation.sampling import row_temperatures
from jaxrnn.generation.steps import check_no_dropout
from jaxrnn.layers.seq2seq import scheduled
from jaxrnn.layers.seq2seq.loss import cross_entropy
from jaxrnn.layers.seq2seq.parts import Bridge, Decoder, Encoder, token_rows


class Seq2Seq(nnx.Module):
    """An encoder, a decoder, and all that is done with both: training, decoding.

    Args:
        encoder: reads.
        decoder: writes; of as many layers and of the same kind of cell. Where the encoder has two
            directions or another size, a `Bridge` makes the decoder's first states of its last.
        bos: the token before the first, 0 to V - 1 of the decoder; it is only ever read.
        eos: the token after the last, which the decoder learns to write. May be `bos`.
        rngs: the stream for the bridge (``params``).

    Parameters: ``encoder.*``, ``decoder.*``, and ``bridge.*`` if there is one.

    Raises:
        ValueError: for parts that don't fit, or `bos` or `eos` out of the vocabulary.

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

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        bos: int,
        eos: int,
        rngs: nnx.Rngs | None = None,
    ):
        first, second = encoder.rnn, decoder.rnn
        for name, value in (("bos", bos), ("eos", eos)):
            if not 0 <= value < decoder.vocab_size:
                last = decoder.vocab_size - 1
                raise ValueError(f"{name} should be a token, from 0 to {last}, got {value}")
        if first.num_layers != second.num_layers:
            raise ValueError(
                "encoder and decoder should have as many layers as each other, got "
                f"{first.num_layers} and {second.num_layers}"
            )
        if first.cell.states != second.cell.states:
            raise ValueError(
                "encoder and decoder should have cells of the same states, got "
                f"{first} with {first.cell.states} and {second} with {second.cell.states}"
            )
        if decoder.attention is not None and decoder.memory_size != encoder.memory_size:
            raise ValueError(
                f"the decoder attends to {decoder.memory_size} features and the encoder gives "
                f"{encoder.memory_size}: Decoder(..., memory_size={encoder.memory_size})"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.bos, self.eos = bos, eos
        if not first.bidirectional and first.state_sizes == second.state_sizes:
            self.bridge = None
        elif rngs is None:
            raise ValueError(f"the bridge from {first} to {second} has parameters: pass rngs=")
        else:
            self.bridge = Bridge(first, second, rngs=rngs)

    def encode(self, source: Any, lengths: Any = None, *, rngs: Any = None) -> Any:
        """Read the sources: the memory for the decoder, or None, and its first states."""
        memory, state = self.encoder(source, lengths, rngs=rngs)
        state = state if self.bridge is None else self.bridge(state)
        return self.decoder.remember(memory, lengths), state

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
        """The logits of each token of the targets.

        Args:
            source: integers (N, S).
            target: integers (N, T), each row ended by `eos`, without `bos`.
            source_lengths: the tokens of each source (N,), 0 allowed; None for S.
            target_lengths: the tokens of each target (N,), `eos` included; None for T.
            teacher_forcing: the probability with which the decoder is told the token before, for
                each step and row on its own; else it hears what it held likeliest itself
                (scheduled sampling). 1 takes one call of the layers for all steps, anything else
                a loop over steps. May be traced.
            key: the PRNG key of those draws, needed unless `teacher_forcing` is known to be 0 or
                1; in the loop, also of dropout's masks if there are no `rngs`.
            rngs: the source of dropout's keys, as for the layers.

        Returns:
            The logits (N, T, V), zero past a target's length, and the weights of the attention
            (N, T, S), or None.

        Raises:
            ValueError: for wrong shapes (a RuntimeError too), lengths or a probability out of
                range, a missing key.
            TypeError: for tokens that are no integers.

        Source of scheduled sampling: S. Bengio et al., arXiv:1506.03099.
        """
        vocab_size = self.decoder.vocab_size
        target, target_lengths = token_rows("target", target, target_lengths, vocab_size)
        if np.shape(source)[:1] != target.shape[:1]:
            raise ShapeError(
                "source and target should have as many rows as each other, got shapes "
                f"{np.shape(source)} and {target.shape}"
            )
        scheduled.check_probability(teacher_forcing)
        known = None if isinstance(teacher_forcing, Tracer) else float(teacher_forcing)
        if known == 1:
            for_encoder, for_decoder = scheduled.two(rngs)
            memory, state = self.encode(source, source_lengths, rngs=for_encoder)
            told = scheduled.told(target, self.bos)
            logits, _, weights = self.decoder(told, state, memory, target_lengths, rngs=for_decoder)
        else:
            if key is None and known != 0:
                raise ValueError(f"teacher_forcing={teacher_forcing} draws at random: pass key=")
            source, source_lengths = token_rows(
                "source", source, source_lengths, self.encoder.vocab_size
            )
            ratio = None if known == 0 else teacher_forcing
            rngs = scheduled.mask_key(self, key, rngs)
            logits, weights = scheduled.run(self, source, source_lengths, target, ratio, key, rngs)
        if target_lengths is not None:
            valid = ragged.valid_mask(target_lengths, target.shape[1])
            own = functools.partial(zero_padding, valid)
            logits, weights = jax.tree.map(own, (logits, weights))
        return logits, weights

    def loss(
        self,
        source: Any,
        target: Any,
        source_lengths: Any = None,
        target_lengths: Any = None,
        **options: Any,
    ) -> jax.Array:
        """The mean cross-entropy of the target tokens, in nats; the arguments are the call's."""
        logits, _ = self(source, target, source_lengths, target_lengths, **options)
        return cross_entropy(logits, target, target_lengths)

    def step(self, source: Any, lengths: Any = None) -> tuple[generation.Step, Any]:
        """The step and the first state for the functions of `jaxrnn.generation`.

        Those begin with ``jnp.full(N, model.bos)``. `greedy`, `sample` and `beam` call them.
        """
        check_no_dropout(self.encoder.rnn)
        check_no_dropout(self.decoder.rnn)
        memory, state = self.encode(source, lengths)

        def head(output: jax.Array) -> jax.Array:
            logits, _ = self.decoder.head(output[:, None], memory)
            return logits[:, 0]

        step = generation.token_step(self.decoder.rnn, head, embed=self.decoder.embedding)
        return step, generation.rows_first(state)

    def greedy(self, source: Any, length: int, lengths: Any = None) -> generation.Generated:
        """Write the likeliest token each time, see `jaxrnn.generation.generate`.

        Args:
            source: integers (N, S).
            length: the most tokens to write, `eos` included.
            lengths: the tokens of each source (N,), 0 allowed; None for S.
        """
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
        """Draw token after token; `jaxrnn.generation.generate` has the arguments and errors."""
        source, lengths = token_rows("source", source, lengths, self.encoder.vocab_size)
        temperature = row_temperatures(temperature, len(source))
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
        """Search the likeliest targets; `jaxrnn.generation.beam_search` has the arguments."""
        source, lengths = token_rows("source", source, lengths, self.encoder.vocab_size)
        return _beam(self, source, lengths, length_penalty, length=length, beams=beams)


# Modules are pytrees: as arguments of a compiled function they are compiled once, and are seen
# with the parameters that they have when it is called.


@functools.partial(jax.jit, static_argnames=("length", "top_k"))
def _sample(
    model: Seq2Seq,
    source: jax.Array,
    lengths: Any,
    key: Any,
    temperature: Any,
    *,
    length: int,
    top_k: int | None,
) -> generation.Generated:
    step, state = model.step(source, lengths)
    return generation.generate(
        step,
        state,
        jnp.full(len(source), model.bos, jnp.int32),
        length,
        key=key,
        temperature=0.0 if temperature is None else temperature,
        top_k=top_k,
        eos=model.eos,
    )


@functools.partial(jax.jit, static_argnames=("length", "beams"))
def _beam(
    model: Seq2Seq, source: jax.Array, lengths: Any, penalty: Any, *, length: int, beams: int
) -> generation.Beams:
    step, state = model.step(source, lengths)
    return generation.beam_search(
        step,
        state,
        jnp.full(len(source), model.bos, jnp.int32),
        length,
        beams=beams,
        eos=model.eos,
        length_penalty=penalty,
    )
