"""Three words through a recurrent layer: 'hello', 'eolll', 'lleel', a batch of one-hot letters.

Each letter is a vector with a single one, so a batch of words is (N, T, D): N words, T letters in
each, D different letters. The layer puts out H numbers for each letter; nothing is trained.

The source names the axes so, but leaves `batch_first` out. Its layer then takes the three words for
three steps of five sequences, and what it puts out at a letter depends on the letters of the words
above it, not on the letters before it. The shape of the output is the same, (3, 5, 2), and only
that of the state gives it away: (1, 5, 2) and not (1, 3, 2). ``--source`` runs that call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.examples.packed import one_hot
from jaxrnn.layers.heads import LAYERS

REPORTED = "(3, 5, 4) -> (3, 5, 2)"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run hello``."""

    words: str = field(
        default="hello eolll lleel",
        metadata={"help": "the words, equal in length, with a space between them"},
    )
    cell: str = field(default="rnn", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    hidden: int = field(default=2, metadata={"help": "hidden features"})
    source: bool = field(
        default=False, metadata={"help": "take the words for steps of time, as the source does"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the weights"})
    out: str = field(
        default="hello.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        words = self.words.split()
        if len({len(word) for word in words}) != 1:
            got = ", ".join(f"{word!r} ({len(word)})" for word in words) or repr(self.words)
            raise ValueError(f"words should be of equal length, and one at least, got {got}")
        checks.choice("cell", self.cell, tuple(LAYERS))
        checks.at_least("hidden", self.hidden, 1)
        checks.seed(self.seed)


class History(NamedTuple):
    """What a run leaves. N words of T letters, D different letters, H hidden features.

    Attributes:
        words: the words.
        letters: the letters by their numbers.
        inputs: the one-hot letters (N, T, D), float32.
        outputs: what the layer puts out at each letter (N, T, H).
        state: its state after the last step, (1, N, H); of an LSTM the pair (h, c).
        model: the layer.
    """

    words: list[str]
    letters: str
    inputs: np.ndarray
    outputs: np.ndarray
    state: Any
    model: Any


def make_model(settings: Settings, rngs: nnx.Rngs) -> Any:
    """A layer with as many inputs as there are letters."""
    size = len(set("".join(settings.words.split())))
    layer = LAYERS[settings.cell]
    return layer(size, settings.hidden, batch_first=not settings.source, rngs=rngs)


def run(settings: Settings = Settings(), model: Any = None) -> History:
    """Run the words through a layer, one from the seed if none is given."""
    model = make_model(settings, nnx.Rngs(settings.seed)) if model is None else model
    words = settings.words.split()
    letters, rows = one_hot(words)
    inputs = np.stack(rows)
    outputs, state = model(inputs)
    return History(words, letters, inputs, np.asarray(outputs), state, model)


def draw(history: History) -> Any:
    """What goes in for the first three words, letter by letter, and below it what comes out."""
    words = history.words[:3]
    inputs = [
        plotting.HeatMap(f"'{word}'", x.T, word, history.letters, ylabel="one-hot letter")
        for word, x in zip(words, history.inputs)
    ]
    name, limit = "hidden feature", abs(history.outputs).max()
    outputs = [
        plotting.HeatMap(f"'{word}'", y.T, word, ylabel=name, signed=True, limit=limit)
        for word, y in zip(words, history.outputs)
    ]
    return plotting.heat_maps(inputs + outputs, title=f"Words, letter by letter: {history.model}")


def result(history: History) -> str:
    """What came out, in a line."""
    return f"{history.inputs.shape} -> {history.outputs.shape}"


def main(settings: Settings) -> History:
    """Print the shapes and the outputs, save the figure."""
    target = plotting.check_target(settings.out)
    history = run(settings)
    last = history.state[0] if settings.cell == "lstm" else history.state
    print(f"letters: {history.letters}")
    print(f"input:   {history.inputs.shape}")
    print(f"outputs: {history.outputs.shape}")
    print(f"state:   {last.shape}")
    with np.printoptions(precision=4, suppress=True):
        for word, output in zip(history.words, history.outputs):
            print(f"{word}:\n{output}")
    print(f"figure: {plotting.save(draw(history), target)}")
    return history
