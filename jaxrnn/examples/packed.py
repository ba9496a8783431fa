"""Words of unequal length through a recurrent layer: padded, packed, run, unpacked.

A batch has to be a rectangle, and words are not of one length. Padding makes them so, at a price:
the layer steps through the padding too, and what it does there reaches the last state and, in a
second direction, every output. Packing takes the padding out again: what a layer puts out for a
packed batch is what it would put out for each word alone, in the order in which they were given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.layers.heads import LAYERS
from jaxrnn.packing import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence

REPORTED = "the topic; packed is to be as each word alone"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run packed``."""

    words: str = field(
        default="rain thunderstorm sun umbrella wind",
        metadata={"help": "the words, of any lengths, with a space between them"},
    )
    cell: str = field(default="rnn", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    hidden: int = field(default=8, metadata={"help": "hidden features"})
    bidirectional: bool = field(default=False, metadata={"help": "read the words backwards too"})
    seed: int = field(default=0, metadata={"help": "seed of the weights"})
    out: str = field(
        default="packed.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        if not self.words.split():
            raise ValueError(f"words should be one word at least, got {self.words!r}")
        checks.choice("cell", self.cell, tuple(LAYERS))
        checks.at_least("hidden", self.hidden, 1)
        checks.seed(self.seed)


class History(NamedTuple):
    """What a run leaves. N words, T letters in the longest, S in all, D different ones.

    Attributes:
        words: the words.
        letters: the letters by their numbers.
        padded: the words as one-hot letters, zero beyond their ends (T, N, D), float32.
        lengths: of each word (N,).
        packed: the same, packed (S, D).
        outputs: what the layer puts out for it, packed (S, F*H).
        unpacked: the outputs, padded again (T, N, F*H).
        state: the state after the last letter of each word (F, N, H); of an LSTM the pair (h, c).
        alone: the largest difference between the outputs and those for each word alone.
        model: the layer.
    """

    words: list[str]
    letters: str
    padded: np.ndarray
    lengths: np.ndarray
    packed: PackedSequence
    outputs: PackedSequence
    unpacked: np.ndarray
    state: Any
    alone: float
    model: Any


def one_hot(words: list[str]) -> tuple[str, list[np.ndarray]]:
    """The letters in the order in which they appear, and each word as one-hot vectors (L, D)."""
    letters = "".join(dict.fromkeys("".join(words)))
    eye = np.eye(len(letters), dtype=np.float32)
    return letters, [eye[[letters.index(letter) for letter in word]] for word in words]


def make_model(settings: Settings, rngs: nnx.Rngs) -> Any:
    """A layer with as many inputs as there are letters."""
    size = len(set("".join(settings.words.split())))
    layer = LAYERS[settings.cell]
    return layer(size, settings.hidden, bidirectional=settings.bidirectional, rngs=rngs)


def run(settings: Settings = Settings(), model: Any = None) -> History:
    """Pad, pack, run and unpack, with a layer from the seed if none is given."""
    model = make_model(settings, nnx.Rngs(settings.seed)) if model is None else model
    words = settings.words.split()
    letters, rows = one_hot(words)
    padded = pad_sequence(rows)
    packed = pack_padded_sequence(padded, [len(word) for word in words], enforce_sorted=False)
    outputs, state = model(packed)
    unpacked, lengths = pad_packed_sequence(outputs)
    alone = [abs(unpacked[: len(x), n] - model(x)[0]).max() for n, x in enumerate(rows)]
    return History(
        words=words,
        letters=letters,
        padded=np.asarray(padded),
        lengths=lengths,
        packed=packed,
        outputs=outputs,
        unpacked=np.asarray(unpacked),
        state=state,
        alone=float(max(alone)),
        model=model,
    )


def draw(history: History) -> Any:
    """Where each letter went, and the hidden features of five words at most: grey is padding."""
    numbers = np.arange(len(history.packed.data), dtype=np.float32)
    places, lengths = pad_packed_sequence(history.packed._replace(data=numbers), True, np.nan)
    steps, label = range(1, places.shape[1] + 1), "letter of the word"
    panels = [plotting.HeatMap("place in the packed data", places, steps, history.words, label)]
    limit = abs(history.unpacked).max()
    for n in plotting.spread(range(len(history.words)), 5):
        word, values = history.words[n], history.unpacked[:, n].copy()
        values[lengths[n] :] = np.nan
        columns, name = word.ljust(len(values)), "hidden feature"
        panels.append(
            plotting.HeatMap(f"'{word}'", values.T, columns, ylabel=name, signed=True, limit=limit)
        )
    return plotting.heat_maps(panels, title=f"Words of unequal length: {history.model}")


def result(history: History) -> str:
    """What came out, in a line."""
    return f"differs from each word alone by {history.alone:.1e} at most"


def main(settings: Settings) -> History:
    """Print the shapes, the packed data and the outputs, save the figure."""
    target = plotting.check_target(settings.out)
    history = run(settings)
    packed, outputs = history.packed, history.outputs
    print(f"words: {', '.join(f'{w} ({n})' for w, n in zip(history.words, history.lengths))}")
    print(f"padded: {history.padded.shape}, {(~history.padded.any(-1)).sum()} steps are padding")
    print(f"packed data: {packed.data.shape}")
    print("".join(history.letters[n] for n in np.asarray(packed.data).argmax(-1)))
    print(f"batch_sizes: {packed.batch_sizes}")
    print(f"sorted_indices: {packed.sorted_indices}")
    print(f"packed outputs: {outputs.data.shape}")
    with np.printoptions(precision=4, suppress=True, threshold=100):
        print(np.asarray(outputs.data))
    print(f"unpacked outputs: {history.unpacked.shape}, lengths {history.lengths}")
    print(f"state: {', '.join(str(s.shape) for s in jax.tree.leaves(history.state))}")
    print(f"largest difference from each word alone: {history.alone:.1e}")
    print(f"figure: {plotting.save(draw(history), target)}")
    return history
