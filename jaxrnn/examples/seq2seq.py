"""Translate sentences with an encoder and a decoder.

Both are recurrent layers over words. In training the decoder reads the previous ground-truth word
(teacher forcing). After training it decodes autoregressively: greedily, or by beam search. With
attention it also reads a weighted sum of the encoder's outputs, and the figure shows the weights.

Source: Lab 11-5 of the course "Introduction to deep learning with PyTorch".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from jaxrnn import plotting
from jaxrnn.examples import Cell, Every, FigurePath, Hidden, Layers, LearningRate, PositiveInt, Seed
from jaxrnn.layers.heads import LAYERS
from jaxrnn.layers.seq2seq import Decoder, Encoder, Seq2Seq
from jaxrnn.packing import pad_sequence
from jaxrnn.training import Progress, Trained, compile_and_run, train_steps

PAIRS = (
    ("the tea is hot", "der Tee ist heiß"),
    ("it rains", "es regnet"),
    ("she sings an old song", "sie singt ein altes Lied"),
    ("tomorrow we travel north", "morgen fahren wir nach Norden"),
    ("the cat sleeps on the chair", "die Katze schläft auf dem Stuhl"),
    ("he slowly opens the door", "er öffnet langsam die Tür"),
    ("the children have found a key", "die Kinder haben einen Schlüssel gefunden"),
    ("good night", "gute Nacht"),
)
BOS, EOS = 0, 1


class Sentences(NamedTuple):
    """Sentences as word indices."""

    words: tuple[str, ...]  # words 0 and 1 mark the beginning and the end of a sentence
    tokens: jax.Array  # indices of words (N, T), int32, padded with 0
    lengths: jax.Array  # (N,), int32

    @classmethod
    def encode(cls, texts: Sequence[str], *, end: bool) -> Sentences:
        """Encode texts with a vocabulary of their words; if `end`, append the end mark.

        Example:
            >>> sentences = Sentences.encode(["good night", "good"], end=True)
            >>> sentences.words
            ('<s>', '</s>', 'good', 'night')
            >>> sentences.tokens.tolist(), sentences.lengths.tolist()
            ([[2, 3, 1], [2, 1, 0]], [3, 2])
        """
        split = [text.split() for text in texts]
        words = ("<s>", "</s>", *dict.fromkeys(word for sentence in split for word in sentence))
        index = {word: i for i, word in enumerate(words[2:], start=2)}
        encoded = [[*(index[word] for word in sentence), *[EOS] * end] for sentence in split]
        tokens = pad_sequence([jnp.array(s, jnp.int32) for s in encoded], batch_first=True)
        return cls(words, tokens, jnp.array([len(s) for s in encoded], jnp.int32))

    def decode(self, tokens: Any) -> str:
        """Join the words of tokens, up to the end mark."""
        tokens = np.asarray(tokens).tolist()
        tokens = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        return " ".join(self.words[token] for token in tokens)

    def text(self, n: int) -> str:
        """Return sentence n."""
        return self.decode(self.tokens[n, : self.lengths[n]])


def load(path: str = "") -> tuple[Sentences, Sentences]:
    """Return the sources and targets of a text file of tab-separated pairs, or of `PAIRS`."""
    pairs = list(PAIRS)
    if path:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        pairs = [tuple(side.strip() for side in line.split("\t")) for line in lines]
        for number, (line, pair) in enumerate(zip(lines, pairs), start=1):
            if len(pair) != 2 or not all(pair):
                expected = "must be a source, a tab and a target"
                raise ValueError(f"{path}, line {number}: {expected}, got {line!r}.")
        if not pairs:
            raise ValueError(f"{path} has no pairs.")
    sources, targets = zip(*pairs)
    return Sentences.encode(sources, end=False), Sentences.encode(targets, end=True)


def make_model(
    sources: Sentences,
    targets: Sentences,
    *,
    attention: str = "dot",
    cell: str = "gru",
    hidden: int = 32,
    layers: int = 1,
    rngs: nnx.Rngs,
) -> Seq2Seq:
    """Build an encoder and a decoder of one size for two vocabularies."""
    encoder, decoder = (LAYERS[cell](hidden, hidden, layers, rngs=rngs) for _ in range(2))
    score = None if attention == "none" else attention
    return Seq2Seq(
        Encoder(encoder, len(sources.words), rngs=rngs),
        Decoder(decoder, len(targets.words), score, rngs=rngs),
        bos=BOS,
        eos=EOS,
    )


def train(
    graph: Any,
    params: Any,
    key: jax.Array,
    *,
    sources: Sentences,
    targets: Sentences,
    steps: int = 100,
    lr: Any = 0.01,
    teacher_forcing: float = 1.0,
    progress: Progress | None = None,
) -> Trained:
    """Train with Adam, all pairs in each step; a pure function of parameters and key."""

    def _loss(params: Any, key: jax.Array) -> jax.Array:
        tokens, lengths = (sources.tokens, targets.tokens), (sources.lengths, targets.lengths)
        options: Any = {"teacher_forcing": teacher_forcing, "key": key}
        return nnx.merge(graph, params).loss(*tokens, *lengths, **options)

    keys = jax.random.split(key, steps)
    return train_steps(_loss, optax.adam(lr), params, keys, progress=progress)


def translate(model: Seq2Seq, sources: Sentences, max_length: int, beams: int = 1) -> jax.Array:
    """Decode the translations (N, max_length) of sources, greedily or by beam search."""
    if beams == 1:
        return model.greedy(sources.tokens, max_length, sources.lengths).tokens
    options: Any = {"beams": beams, "length_penalty": 0.6}
    return model.beam(sources.tokens, max_length, sources.lengths, **options).tokens[:, 0]


def exact_match(decoded: Any, targets: Sentences) -> Any:
    """Return True for each sentence that equals its target up to the end mark (N,)."""
    steps = targets.tokens.shape[1]
    valid_mask = np.arange(steps) < np.asarray(targets.lengths)[:, None]
    return ((decoded[:, :steps] == targets.tokens) | ~valid_mask).all(1)


def draw(
    losses: Any, weights: Any, decoded: Any, sources: Sentences, targets: Sentences, title: str
) -> Figure:
    """Draw the loss and, with attention, the weights of up to five sentences."""
    panels = []
    if weights is not None:
        for n in plotting.spread(range(len(decoded)), count=5):
            read = sources.text(n).split()
            words = [*targets.decode(decoded[n]).split(), "·"][: weights.shape[1]]
            values = weights[n, : len(words), : len(read)]
            labels: Any = {"xlabel": "source", "ylabel": "decoded", "limit": 1.0}
            panels.append(plotting.HeatMap(f"sentence {n + 1}", values, read, words, **labels))
    label = "cross-entropy of a word [nats]"
    return plotting.heat_maps(panels, title=title, losses=losses, loss_label=label)


def main(
    *,
    pairs: str = "",
    attention: Literal["none", "dot", "additive"] = "dot",
    beams: PositiveInt = 1,
    teacher_forcing: float = 1.0,
    steps: PositiveInt = 100,
    every: Every = 10,
    cell: Cell = "gru",
    hidden: Hidden = 32,
    layers: Layers = 1,
    lr: LearningRate = 0.01,
    seed: Seed = 0,
    out: FigurePath = "seq2seq.png",
) -> str:
    """Translate sentences with an encoder and a decoder, with attention and beam search.

    Args:
        pairs: a text file with a source, a tab and a target per line; eight pairs if empty.
        attention: the score of the attention.
        beams: beam width; 1 decodes greedily.
        teacher_forcing: probability of the ground-truth word as decoder input, 0 to 1.
        steps: training steps, all pairs each.
        hidden: hidden features, and features of a word.
        layers: recurrent layers of the encoder and of the decoder.
    """
    if not 0 <= teacher_forcing <= 1:
        raise ValueError(f"`teacher_forcing` must lie in [0, 1], got {teacher_forcing}.")
    target = plotting.check_target(out, inputs=[pairs])
    sources, targets = load(pairs)
    options: Any = {"attention": attention, "cell": cell, "hidden": hidden, "layers": layers}
    model = make_model(sources, targets, **options, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(model)
    with Progress("seq2seq", steps) as progress:
        options = {"sources": sources, "targets": targets, "steps": steps, "lr": lr}
        options |= {"teacher_forcing": teacher_forcing, "progress": progress}
        run, key = partial(train, graph, **options), jax.random.key(seed)
        trained, compile_seconds, run_seconds = compile_and_run(run, params, key)
    nnx.update(model, trained.params)
    decoded = translate(model, sources, targets.tokens.shape[1] + 2, beams)
    right = np.asarray(exact_match(decoded, targets))
    _, weights = jax.jit(model)(sources.tokens, decoded, sources.lengths)
    for i in range(0, steps, every):
        print(i, "loss: ", trained.losses[i])
    for n in range(len(right)):
        print(f"> {sources.text(n)}")
        print(f"= {targets.text(n)}")
        print(f"{'<' if right[n] else '!'} {targets.decode(decoded[n])}")
    print(f"{right.sum()} of {len(right)} sentences right")
    print(f"compiled in {compile_seconds:.2f} s, {steps} steps in {run_seconds * 1e3:.1f} ms")
    title = f"Sentences by {model.decoder.rnn}, attention: {attention}"
    figure = draw(trained.losses, weights, decoded, sources, targets, title)
    print(f"figure: {plotting.save(figure, target)}")
    return f"{right.sum()} of {len(right)} pairs reproduced"
