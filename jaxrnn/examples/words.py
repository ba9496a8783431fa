"""Words as one-hot letters: a batch of equal lengths, and packed sequences of unequal lengths.

``hello`` runs 'hello', 'eolll' and 'lleel' through a recurrent layer without training. A batch has
shape (N, T, D): N words, T letters, D different letters; the outputs have shape (N, T, H). The
source omits ``batch_first=True``. Its layer reads three time steps of five sequences: the output
at a letter depends on the letters above it, not on those before it. The output shape is the same,
(3, 5, 2), but the state has shape (1, 5, 2) instead of (1, 3, 2). ``--source`` runs that call.

``packed`` pads words of unequal length, packs them, runs the layer and unpacks its outputs. A
layer that ran through the padding would change its final state and, in the reverse direction, every
output. The outputs of a packed batch equal those of each word alone, in the order of the input.

Source: Labs 11-1 and 11-6 of the course "Introduction to deep learning with PyTorch".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from jaxrnn import plotting
from jaxrnn.examples import Cell, FigurePath, Hidden, Seed
from jaxrnn.layers.heads import LAYERS
from jaxrnn.packing import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence


def one_hot(words: list[str]) -> tuple[str, list[np.ndarray]]:
    """Return the different letters in order of appearance, and each word as (length, D)."""
    letters = "".join(dict.fromkeys("".join(words)))
    eye = np.eye(len(letters), dtype=np.float32)
    return letters, [eye[[letters.index(letter) for letter in word]] for word in words]


def draw(panels: list[plotting.HeatMap], words: list[str], outputs: Any, title: str) -> Figure:
    """Draw panels, and the outputs (N, T, H) of words with a common scale; NaN is padding."""
    limit = np.nanmax(abs(outputs))
    options: Any = {"ylabel": "hidden feature", "signed": True, "limit": limit}
    for word, y in zip(words, outputs):
        panels.append(plotting.HeatMap(f"'{word}'", y.T, word.ljust(len(y)), **options))
    return plotting.heat_maps(panels, title=title)


def hello(
    *,
    words: str = "hello eolll lleel",
    cell: Cell = "rnn",
    hidden: Hidden = 2,
    source: bool = False,
    seed: Seed = 0,
    out: FigurePath = "hello.png",
) -> str:
    """Run three words of equal length through a recurrent layer, as a batch of one-hot letters.

    Args:
        words: the words, equal in length, separated by spaces.
        source: read words as time steps, as the source does.
    """
    split = words.split()
    if len({len(word) for word in split}) != 1:
        lengths = ", ".join(f"{word!r} ({len(word)})" for word in split) or repr(words)
        raise ValueError(f"`words` must be one or more words of equal length, got {lengths}.")
    target = plotting.check_target(out)
    letters, encoded = one_hot(split)
    inputs = np.stack(encoded)  # (N, T, D)
    rnn = LAYERS[cell](len(letters), hidden, batch_first=not source, rngs=nnx.Rngs(seed))
    outputs, state = rnn(inputs)
    outputs = np.asarray(outputs)
    print(f"letters: {letters}")
    print(f"input:   {inputs.shape}")
    print(f"outputs: {outputs.shape}")
    print(f"state:   {jax.tree.leaves(state)[0].shape}")
    with np.printoptions(precision=4, suppress=True):
        for word, output in zip(split, outputs):
            print(f"{word}:\n{output}")
    panels = [
        plotting.HeatMap(f"'{word}'", x.T, word, letters, ylabel="one-hot letter")
        for word, x in zip(split[:3], inputs)
    ]
    figure = draw(panels, split[:3], outputs[:3], f"Words, letter by letter: {rnn}")
    print(f"figure: {plotting.save(figure, target)}")
    return f"{inputs.shape} -> {outputs.shape}"


class PackedRun(NamedTuple):
    """Arrays of a run on N words, T letters in the longest, S in total, F directions."""

    padded: Any  # one-hot letters, zero at padding (T, N, D)
    packed: PackedSequence  # the same letters (S, D)
    outputs: PackedSequence  # (S, F*H)
    unpacked: np.ndarray  # outputs, padded (T, N, F*H)
    lengths: np.ndarray  # (N,)
    state: Any  # after the last letter of each word (F, N, H); of an LSTM the pair (h, c)
    difference: float  # largest difference from the outputs of each word alone


def run_packed(rnn: Any, words: list[str]) -> PackedRun:
    """Pad, pack, run and unpack words, and compare the outputs with those of each word alone."""
    _, encoded = one_hot(words)
    padded = pad_sequence(encoded)
    packed = pack_padded_sequence(padded, [len(word) for word in words], enforce_sorted=False)
    outputs, state = rnn(packed)
    unpacked, lengths = pad_packed_sequence(outputs)
    unpacked = np.asarray(unpacked)
    difference = max(abs(unpacked[: len(x), n] - rnn(x)[0]).max() for n, x in enumerate(encoded))
    return PackedRun(padded, packed, outputs, unpacked, lengths, state, float(difference))


def packed(
    *,
    words: str = "rain thunderstorm sun umbrella wind",
    cell: Cell = "rnn",
    hidden: Hidden = 8,
    bidirectional: bool = False,
    seed: Seed = 0,
    out: FigurePath = "packed.png",
) -> str:
    """Run words of unequal length through a recurrent layer: pad, pack, run, unpack.

    Args:
        words: the words, of any lengths, separated by spaces.
        bidirectional: read the words in both directions.
    """
    split = words.split()
    if not split:
        raise ValueError(f"`words` must have at least one word, got {words!r}.")
    target = plotting.check_target(out)
    letters, _ = one_hot(split)
    options: Any = {"bidirectional": bidirectional, "rngs": nnx.Rngs(seed)}
    rnn = LAYERS[cell](len(letters), hidden, **options)
    run = run_packed(rnn, split)
    padding = run.padded.shape[0] * len(split) - len(run.packed.data)
    print(f"words: {', '.join(f'{word} ({len(word)})' for word in split)}")
    print(f"padded: {run.padded.shape}, {padding} steps are padding")
    print(f"packed data: {run.packed.data.shape}")
    print("".join(letters[i] for i in np.asarray(run.packed.data).argmax(-1)))
    print(f"batch_sizes: {run.packed.batch_sizes}")
    print(f"sorted_indices: {run.packed.sorted_indices}")
    print(f"packed outputs: {run.outputs.data.shape}")
    with np.printoptions(precision=4, suppress=True, threshold=100):
        print(np.asarray(run.outputs.data))
    print(f"unpacked outputs: {run.unpacked.shape}, lengths {run.lengths}")
    print(f"state: {', '.join(str(s.shape) for s in jax.tree.leaves(run.state))}")
    print(f"largest difference from each word alone: {run.difference:.1e}")
    # Draw the position of each letter in the packed data, and the outputs of up to five words.
    numbered = run.packed._replace(data=np.arange(len(run.packed.data), dtype=np.float32))
    positions, outputs = (pad_packed_sequence(p, True, np.nan)[0] for p in (numbered, run.outputs))
    letter_numbers, label = range(1, len(run.padded) + 1), "letter of the word"
    title = "position in the packed data"
    panels = [plotting.HeatMap(title, positions, letter_numbers, split, label)]
    shown = np.array(plotting.spread(range(len(split)), 5))
    title = f"Words of unequal length: {rnn}"
    figure = draw(panels, [split[n] for n in shown], np.asarray(outputs)[shown], title)
    print(f"figure: {plotting.save(figure, target)}")
    return f"differs from each word alone by at most {run.difference:.1e}"
