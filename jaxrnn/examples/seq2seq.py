"""Translate a handful of sentences: an encoder reads one, a decoder writes the other.

Both are recurrent layers over words. In training the decoder is told the word before (teacher
forcing); on its own it hears what it wrote, the likeliest word each time, or searches for the
likeliest sentence with several beams. With attention it looks back at the words it has read, and
the figure shows where it looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.layers.heads import LAYERS
from jaxrnn.layers.seq2seq import Decoder, Encoder, Seq2Seq
from jaxrnn.training import Progress, Trained, compile_and_run, sweep, train_steps

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
ATTENTION = ("none", "dot", "additive")


REPORTED = "the topic; here every pair is to be reproduced"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run seq2seq``."""

    pairs: str = field(
        default="",
        metadata={
            "help": "a text file with a source, a tab and a target a line, not our sentences"
        },
    )
    attention: str = field(
        default="dot", metadata={"help": "the score of the attention", "choices": ATTENTION}
    )
    beams: int = field(default=1, metadata={"help": "width of the search; 1 is greedy"})
    teacher_forcing: float = field(
        default=1.0, metadata={"help": "how often the decoder is told the word before, 0 to 1"}
    )
    steps: int = field(default=100, metadata={"help": "training steps, all pairs each"})
    every: int = field(default=10, metadata={"help": "print the loss every so many steps"})
    cell: str = field(default="gru", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    hidden: int = field(default=32, metadata={"help": "hidden features, and those of a word"})
    layers: int = field(default=1, metadata={"help": "recurrent layers of each side"})
    lr: float = field(default=0.01, metadata={"help": "learning rate of Adam"})
    seed: int = field(default=0, metadata={"help": "seed of the initial weights"})
    out: str = field(
        default="seq2seq.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        for name in ("beams", "steps", "every", "hidden", "layers"):
            checks.at_least(name, getattr(self, name), 1)
        checks.seed(self.seed)
        checks.positive("lr", self.lr)
        checks.choice("cell", self.cell, tuple(LAYERS))
        checks.choice("attention", self.attention, ATTENTION)
        if not 0 <= self.teacher_forcing <= 1:
            raise ValueError(f"teacher_forcing should be from 0 to 1, got {self.teacher_forcing}")


class Sentences(NamedTuple):
    """Sentences as numbers of words, those of both sides numbered apart.

    Attributes:
        words: the words by their numbers; 0 and 1 are the marks before and after a sentence.
        tokens: int32 (N, T), padded with 0; each target followed by the mark.
        lengths: the tokens of each, int32 (N,).
    """

    words: tuple[str, ...]
    tokens: jax.Array
    lengths: jax.Array

    def text(self, row: int) -> str:
        """One of them as words."""
        return self.spell(self.tokens[row, : self.lengths[row]])

    def spell(self, tokens: Any) -> str:
        """Numbers as words, up to the mark of the end."""
        tokens = np.asarray(tokens).tolist()
        tokens = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        return " ".join(self.words[t] for t in tokens)


class History(NamedTuple):
    """What a run leaves.

    Attributes:
        losses: mean cross-entropy of a word at each step, in nats, before its update (steps,).
        sources, targets: the sentences.
        written: the words that the trained model writes for each source (N, T).
        weights: where it looked as it wrote each of them (N, T, S), or None.
        model: the trained model.
        compile_seconds, run_seconds: what compiling and what training took.
    """

    losses: np.ndarray
    sources: Sentences
    targets: Sentences
    written: np.ndarray
    weights: np.ndarray | None
    model: Seq2Seq
    compile_seconds: float
    run_seconds: float

    @property
    def right(self) -> np.ndarray:
        """Which of the targets are written word for word (N,)."""
        return reproduced(self.written, self.targets)


def sentences(texts: Sequence[str], *, marked: bool) -> Sentences:
    """Words numbered as they appear, and the sentences as rows of numbers.

    Args:
        texts: words with spaces between them.
        marked: whether a sentence is followed by the mark of its end.

    Example:
        >>> read = sentences(["good night", "good"], marked=True)
        >>> read.words, read.tokens.tolist(), read.lengths.tolist()
        (('<s>', '</s>', 'good', 'night'), [[2, 3, 1], [2, 1, 0]], [3, 2])
    """
    rows = [text.split() for text in texts]
    words = ("<s>", "</s>", *dict.fromkeys(word for row in rows for word in row))
    numbers = {word: number for number, word in enumerate(words[2:], start=2)}
    numbered = [[*(numbers[word] for word in row), *[EOS] * marked] for row in rows]
    lengths = np.array([len(row) for row in numbered], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for row, values in zip(tokens, numbered):
        row[: len(values)] = values
    return Sentences(words, jnp.asarray(tokens), jnp.asarray(lengths))


def load(settings: Settings) -> tuple[Sentences, Sentences]:
    """The sources and the targets.

    Raises:
        ValueError: for a line that is no pair, or a file without any.
        OSError: for a file that can't be read.
    """
    pairs = list(PAIRS)
    if settings.pairs:
        pairs = []
        text = Path(settings.pairs).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            sides = [side.strip() for side in line.split("\t")]
            if len(sides) != 2 or not all(sides):
                raise ValueError(
                    f"{settings.pairs}, line {number}: expected a source, a tab and a target, "
                    f"got {line!r}"
                )
            pairs.append((sides[0], sides[1]))
        if not pairs:
            raise ValueError(f"{settings.pairs} has no pairs")
    sources, targets = zip(*pairs)
    return sentences(sources, marked=False), sentences(targets, marked=True)


def make_model(settings: Settings, rngs: nnx.Rngs) -> Seq2Seq:
    """An encoder and a decoder of the same size, for the vocabularies of the pairs."""
    sources, targets = load(settings)
    size, kind = settings.hidden, LAYERS[settings.cell]
    first, second = (kind(size, size, settings.layers, rngs=rngs) for _ in range(2))
    attention = None if settings.attention == "none" else settings.attention
    return Seq2Seq(
        Encoder(first, len(sources.words), rngs=rngs),
        Decoder(second, len(targets.words), attention, rngs=rngs),
        bos=BOS,
        eos=EOS,
    )


def make_training(settings: Settings, model: Seq2Seq, progress: Progress | None = None) -> Any:
    """The whole training as one pure function of the parameters, and of the key of its draws."""
    graph = nnx.graphdef(model)
    sources, targets = load(settings)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        return nnx.merge(graph, params).loss(
            sources.tokens,
            targets.tokens,
            sources.lengths,
            targets.lengths,
            teacher_forcing=settings.teacher_forcing,
            key=key,
        )

    def training(params: Any, key: jax.Array, lr: Any = settings.lr) -> Trained:
        keys = jax.random.split(key, settings.steps)
        return train_steps(loss, optax.adam(lr), params, keys, progress=progress)

    return training


def write(settings: Settings, model: Seq2Seq) -> jax.Array:
    """What a model writes for the sources (N, T), two words more than the targets at most."""
    sources, targets = load(settings)
    most = targets.tokens.shape[1] + 2
    if settings.beams == 1:
        return model.greedy(sources.tokens, most, sources.lengths).tokens
    found = model.beam(
        sources.tokens, most, sources.lengths, beams=settings.beams, length_penalty=0.6
    )
    return found.tokens[:, 0]


def reproduced(written: Any, targets: Sentences) -> Any:
    """Which of the targets are written word for word (N,)."""
    steps = targets.tokens.shape[1]
    valid = np.arange(steps)[None] < np.asarray(targets.lengths)[:, None]
    return ((written[:, :steps] == targets.tokens) | ~valid).all(1)


def train(settings: Settings = Settings(), model: Seq2Seq | None = None) -> History:
    """Train, from the seed or from a model's weights; the model given is left as it was."""
    model = make_model(settings, nnx.Rngs(settings.seed)) if model is None else nnx.clone(model)
    sources, targets = load(settings)
    with Progress("seq2seq", settings.steps) as progress:
        params, key = nnx.state(model, nnx.Param), jax.random.key(settings.seed)
        timed = compile_and_run(make_training(settings, model, progress), params, key)
    trained = timed.result
    nnx.update(model, trained.params)
    written = write(settings, model)
    # Told what it wrote, it looks where it looked.
    _, weights = jax.jit(model)(sources.tokens, written, sources.lengths)
    return History(
        losses=np.asarray(trained.losses),
        sources=sources,
        targets=targets,
        written=np.asarray(written),
        weights=None if weights is None else np.asarray(weights),
        model=model,
        compile_seconds=timed.compile_seconds,
        run_seconds=timed.run_seconds,
    )


def right_by(settings: Settings, **axes: jax.Array) -> np.ndarray:
    """Which pairs are reproduced, for every combination of seeds and rates.

    ``right_by(settings, seed=jnp.arange(20), lr=jnp.array([0.003, 0.01]))`` is (20, 2, N).
    """
    _, targets = load(settings)

    def run(seed: Any = settings.seed, lr: Any = settings.lr) -> jax.Array:
        key = jax.random.key(seed)
        model = make_model(settings, nnx.Rngs(key))
        graph, params = nnx.split(model)
        trained = make_training(settings, model)(params, key, lr)
        return reproduced(write(settings, nnx.merge(graph, trained.params)), targets)

    return np.asarray(sweep(run, **axes).results)


def draw(history: History, settings: Settings) -> Any:
    """The loss and, with attention, where the decoder looked in some of the sentences."""
    panels = []
    if history.weights is not None:
        for row in plotting.spread(range(len(history.written)), count=5):
            read = history.sources.text(row).split()
            words = [*history.targets.spell(history.written[row]).split(), "·"]
            weights = history.weights[row, : len(words), : len(read)]
            words = words[: len(weights)]  # a sentence that did not end has no mark
            names = {"xlabel": "read", "ylabel": "written", "limit": 1.0}
            panels.append(plotting.HeatMap(f"sentence {row + 1}", weights, read, words, **names))
    return plotting.heat_maps(
        panels,
        title=f"Sentences by {history.model.decoder.rnn}, attention: {settings.attention}",
        losses=history.losses,
        loss_label="cross-entropy of a word [nats]",
    )


def result(history: History) -> str:
    """What came out, in a line."""
    return f"{history.right.sum()} of {len(history.right)} pairs reproduced"


def main(settings: Settings) -> History:
    """Train, print the loss now and then and each pair with what is written, save the figure."""
    target = plotting.check_target(settings.out, inputs=[settings.pairs])
    history = train(settings)
    for i in range(0, settings.steps, settings.every):
        print(i, "loss: ", history.losses[i])
    for row, (written, right) in enumerate(zip(history.written, history.right)):
        print(f"> {history.sources.text(row)}")
        print(f"= {history.targets.text(row)}")
        print(f"{'<' if right else '!'} {history.targets.spell(written)}")
    print(f"{history.right.sum()} of {len(history.right)} sentences right")
    print(f"compiled in {history.compile_seconds:.2f} s", end=", ")
    print(f"{settings.steps} steps in {history.run_seconds * 1e3:.1f} ms")
    print(f"figure: {plotting.save(draw(history, settings), target)}")
    return history
