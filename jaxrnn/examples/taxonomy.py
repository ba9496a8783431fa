"""One-to-one, one-to-many, many-to-one, many-to-many: each head learns a small task.

All tasks concern the ten digits: their pictures of 3 x 5 pixels, their English and Dutch names, and
sums of binary numbers. Names end with a period. Every task is a classification: logits (N, T, K)
for N examples, T steps and K classes, with the mean cross-entropy of all valid steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxrnn import plotting
from jaxrnn.data import Vocabulary
from jaxrnn.examples import Cell, FigurePath, Hidden, LearningRate, PositiveInt, Seed, make_table
from jaxrnn.layers.heads import LAYERS, ManyToMany, ManyToOne, OneToMany, OneToOne, cross_entropy
from jaxrnn.layers.seq2seq import Decoder, Encoder, Seq2Seq
from jaxrnn.training import Progress, compile_and_run, train_steps

GLYPHS = """
### .#. ### ### #.# ### ### ### ### ###
#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
#.# .#. ### ### ### ### ### ..# ### ###
#.# .#. #.. ..# ..# ..# #.# ..# #.# ..#
### ### ### ### ..# ### ### ..# ### ###
"""
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DUTCH = ["nul", "een", "twee", "drie", "vier", "vijf", "zes", "zeven", "acht", "negen"]
LETTERS = Vocabulary.of("." + "".join(ENGLISH + DUTCH))  # index 0 is the end mark
BITS = 5


class Task(NamedTuple):
    """A model with its data: a head on a layer, or an encoder with a decoder."""

    kind: str  # one-to-one, and so on
    title: str
    model: Any
    x: jax.Array  # vectors or letter indices
    targets: np.ndarray  # class indices (N, T), int32
    lengths: np.ndarray  # valid steps of each example (N,)
    arguments: dict[str, Any]  # of the model, besides x

    def logits(self, model: Any) -> jax.Array:
        """Return the logits (N, T, K) of a model with the structure of `self.model`."""
        logits, *_ = model(self.x, **self.arguments)
        return logits if logits.ndim == 3 else logits[:, None]


def pictures() -> jax.Array:
    """Return the pictures of the digits (10, 15), 1 for ink."""
    lines = [line.split() for line in GLYPHS.split("\n") if line]
    digits = ["".join(parts) for parts in zip(*lines)]
    return jnp.array([[float(pixel == "#") for pixel in digit] for digit in digits], jnp.float32)


def spell(words: list[str], end: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return the letter indices of words (N, T), padded with 0, and their lengths (N,)."""
    encoded = [LETTERS.encode(word + end) for word in words]
    lengths = np.array([len(word) for word in encoded])
    return np.stack([np.pad(word, (0, lengths.max() - len(word))) for word in encoded]), lengths


def make_layer(cell: str, features: int, hidden: int, rngs: nnx.Rngs) -> Any:
    """Build the recurrent layer of a task."""
    return LAYERS[cell](features, hidden, batch_first=True, rngs=rngs)


def one_to_one(cell: str, hidden: int, rngs: nnx.Rngs) -> Task:
    """Classify the picture of a digit in one step from a zero state."""
    model = OneToOne(make_layer(cell, 15, hidden, rngs), 10, rngs=rngs)
    digits, lengths = np.arange(10, dtype=np.int32)[:, None], np.ones(10, int)
    return Task("one to one", "picture -> digit", model, pictures(), digits, lengths, {})


def one_to_many(cell: str, hidden: int, rngs: nnx.Rngs) -> Task:
    """Spell the name of a digit from its picture, which is the input of each step."""
    rnn, (targets, lengths) = make_layer(cell, 15, hidden, rngs), spell(ENGLISH, ".")
    model = OneToMany(rnn, len(LETTERS), feedback=False, rngs=rngs)
    arguments = {"length": targets.shape[1]}
    return Task("one to many", "picture -> name", model, pictures(), targets, lengths, arguments)


def many_to_one(cell: str, hidden: int, rngs: nnx.Rngs) -> Task:
    """Classify the name of a digit; the names have different lengths."""
    model = ManyToOne(make_layer(cell, len(LETTERS), hidden, rngs), 10, rngs=rngs)
    letters, lengths = spell(ENGLISH)
    x, digits = LETTERS.one_hot(letters), np.arange(10, dtype=np.int32)[:, None]
    arguments = {"lengths": lengths}
    return Task("many to one", "name -> digit", model, x, digits, np.ones(10, int), arguments)


def many_to_many(cell: str, hidden: int, rngs: nnx.Rngs) -> Task:
    """Add two binary numbers, least significant bit first; the state holds the carry bit."""
    model = ManyToMany(make_layer(cell, 2, hidden, rngs), 2, rngs=rngs)
    a, b = np.divmod(np.arange(4 ** (BITS - 1)), 2 ** (BITS - 1))
    bits = (np.stack([a, b, a + b], -1)[:, None] >> np.arange(BITS)[None, :, None]) & 1
    x, targets = jnp.asarray(bits[..., :2], jnp.float32), bits[..., 2].astype(np.int32)
    title, lengths = "two numbers -> sum, in bits", np.full(len(bits), BITS)
    return Task("many to many, aligned", title, model, x, targets, lengths, {})


def encoder_decoder(cell: str, hidden: int, rngs: nnx.Rngs) -> Task:
    """Translate the English name of a digit into the Dutch one."""
    (x, x_lengths), (targets, lengths) = spell(ENGLISH), spell(DUTCH, ".")
    encoder = Encoder(make_layer(cell, 8, hidden, rngs), len(LETTERS), rngs=rngs)
    decoder = Decoder(make_layer(cell, 8, hidden, rngs), len(LETTERS), rngs=rngs)
    model = Seq2Seq(encoder, decoder, bos=0, eos=0, rngs=rngs)
    kind, title = "many to many, encoder-decoder", "English name -> Dutch name"
    arguments = {"target": targets, "source_lengths": x_lengths, "target_lengths": lengths}
    return Task(kind, title, model, jnp.asarray(x), targets, lengths, arguments)


TASKS = (one_to_one, one_to_many, many_to_one, many_to_many, encoder_decoder)


class Result(NamedTuple):
    """Result of the training of a task, before each update and after the last."""

    task: Task
    model: Any
    losses: np.ndarray  # cross-entropy in nats (steps + 1,)
    probabilities: np.ndarray  # of each target, NaN at padding (steps + 1, N, T)
    right: tuple[int, int]  # examples without an error, before and after
    compile_seconds: float
    run_seconds: float


def train(task: Task, steps: int, lr: float) -> Result:
    """Train a task with Adam in one compiled call, and evaluate it after the last update."""
    graph, params = nnx.split(task.model)
    targets, lengths = jnp.asarray(task.targets), jnp.asarray(task.lengths)

    def _loss(params: Any, step: Any) -> Any:
        logits = task.logits(nnx.merge(graph, params))
        probabilities = jnp.take_along_axis(jax.nn.softmax(logits), targets[..., None], axis=-1)
        right = logits.argmax(-1) == targets
        return cross_entropy(logits, targets, lengths), (probabilities[..., 0], right)

    def _run(params: Any) -> Any:
        adam, batches = optax.adam(lr), jnp.arange(steps)
        trained = train_steps(_loss, adam, params, batches, progress=progress)
        before, after = (trained.losses, trained.metrics), _loss(trained.params, None)
        append = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), before, after)
        return trained.params, *append

    with Progress(task.kind, steps) as progress:
        results, *seconds = compile_and_run(_run, params)
    params, losses, (probabilities, right) = results
    valid_mask = np.arange(task.targets.shape[1]) < task.lengths[:, None]
    counts = (right | ~valid_mask[None]).all(-1).sum(-1).tolist()
    masked = np.where(valid_mask, probabilities, np.nan)
    counted = counts[0], counts[-1]
    return Result(task, nnx.merge(graph, params), np.asarray(losses), masked, counted, *seconds)


def as_table(results: list[Result]) -> Table:
    """Return the results as a table for the terminal."""
    rows = []
    for task, model, losses, _, (before, after), *_ in results:
        size, steps, classes = task.logits(model).shape
        y = (size, steps, classes) if steps > 1 else (size, classes)
        right = f"{before} -> {after} of {size}"
        head, loss = type(model).__name__, (f"{losses[0]:.3f}", f"{losses[-1]:.4f}")
        rows.append([task.kind, task.title, head, task.x.shape, y, *loss, right])
    columns = ("kind", "task", "head", "x", "y", "loss before", "after", "right")
    return make_table("A head for each kind", columns, rows, right=("loss before", "after"))


def draw(results: list[Result], title: str) -> Figure:
    """Draw the probability of the target during training, per example or per step, and losses."""
    panels = []
    for result in results:
        steps, _, length = result.probabilities.shape
        single = length == 1
        values = result.probabilities[..., 0] if single else np.nanmean(result.probabilities, 1)
        panels.append(
            plotting.HeatMap(
                f"{result.task.kind}:\n{result.task.title}",
                values.T,
                range(steps),
                range(10) if single else range(1, length + 1),
                xlabel="training step",
                ylabel="digit" if single else "time step, mean of all examples",
                limit=1.0,
            )
        )
    return plotting.heat_maps(
        panels,
        title=f"The probability of the target: {title}",
        losses=[result.losses for result in results],
        loss_label="cross-entropy [nats]",
        runs=[result.task.kind for result in results],
    )


def main(
    *,
    cell: Cell = "gru",
    hidden: Hidden = 32,
    steps: PositiveInt = 150,
    lr: LearningRate = 0.01,
    seed: Seed = 0,
    out: FigurePath = "taxonomy.png",
) -> str:
    """Train one head of each kind: one-to-one, one-to-many, many-to-one, many-to-many.

    Args:
        steps: training steps, all examples each.
    """
    target = plotting.check_target(out)
    results = [train(make_task(cell, hidden, nnx.Rngs(seed)), steps, lr) for make_task in TASKS]
    Console(width=150).print(as_table(results))  # also if the output is not a terminal
    compile_seconds = sum(result.compile_seconds for result in results)
    run_seconds = sum(result.run_seconds for result in results)
    print(f"compiled in {compile_seconds:.2f} s", end=", ")
    print(f"{len(TASKS)} times {steps} steps in {run_seconds * 1e3:.1f} ms")
    figure = draw(results, f"{LAYERS[cell].__name__}, {hidden} hidden features")
    print(f"figure: {plotting.save(figure, target)}")
    counts = [f"{result.right[1]}/{len(result.task.targets)}" for result in results]
    return f"examples right in the five tasks: {', '.join(counts)}"
