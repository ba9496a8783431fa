"""One to one, one to many, many to one, many to many: each head learns a tiny task of its own.

All tasks are about the ten digits: their pictures of 3 x 5 points, their English and Dutch names,
and sums of numbers written with the digits 0 and 1. A name ends with a point, so that the network
says itself where it ends. Every task comes down to classes: logits (N, T, K) for N rows of T places
with K classes, ragged where names are, and the mean cross-entropy of the places there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.data import Vocabulary
from jaxrnn.layers.heads import (
    LAYERS,
    ManyToMany,
    ManyToOne,
    OneToMany,
    OneToOne,
    cross_entropy,
)
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
LETTERS = Vocabulary.of("." + "".join(ENGLISH + DUTCH))  # the end has the number 0
BITS = 5


REPORTED = "a picture of the kinds; here each is to learn its task"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run taxonomy``."""

    cell: str = field(default="gru", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    hidden: int = field(default=32, metadata={"help": "hidden features"})
    steps: int = field(default=150, metadata={"help": "training steps, all examples each"})
    lr: float = field(default=0.01, metadata={"help": "learning rate of Adam"})
    seed: int = field(default=0, metadata={"help": "seed of the initial weights"})
    out: str = field(
        default="taxonomy.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        for name in ("hidden", "steps"):
            checks.at_least(name, getattr(self, name), 1)
        checks.seed(self.seed)
        checks.positive("lr", self.lr)
        checks.choice("cell", self.cell, tuple(LAYERS))


class Task(NamedTuple):
    """A model, what it gets and what it should say.

    Attributes:
        kind: one-to-one and so on.
        what: the task in a few words.
        model: a head on a layer, or an encoder and a decoder.
        x: what goes in: vectors, or numbers of letters.
        logits: ``logits(model) -> (N, T, K)``, a pure function.
        targets: the number of the class at each place (N, T), int32.
        lengths: the places of each row (N,).
    """

    kind: str
    what: str
    model: Any
    x: jax.Array
    logits: Callable[[Any], jax.Array]
    targets: np.ndarray
    lengths: np.ndarray


class History(NamedTuple):
    """What the training of a task leaves.

    Attributes:
        task: the task, its model as it was before.
        model: the trained model.
        losses: cross-entropy at each step and after the last, in nats (steps + 1,).
        probabilities: of the truth, at each step and after the last; NaN past a row's length
            (steps + 1, N, T).
        right: the rows with no place wrong, before and after.
        compile_seconds, run_seconds: what compiling and what training took.
    """

    task: Task
    model: Any
    losses: np.ndarray
    probabilities: np.ndarray
    right: tuple[int, int]
    compile_seconds: float
    run_seconds: float


def pictures() -> jax.Array:
    """The digits as points (10, 15), 1 where there is ink."""
    rows = [line.split() for line in GLYPHS.split("\n") if line]
    digits = ["".join(parts) for parts in zip(*rows)]
    return jnp.array([[float(point == "#") for point in digit] for digit in digits], jnp.float32)


def spelt(words: list[str], end: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the letters of words (N, T), padded with 0, and how many there are (N,)."""
    coded = [LETTERS.encode(word + end) for word in words]
    lengths = np.array([len(word) for word in coded])
    return np.stack([np.pad(word, (0, lengths.max() - len(word))) for word in coded]), lengths


def one_to_one(settings: Settings, rngs: nnx.Rngs) -> Task:
    """The picture of a digit, and which digit it is: a step of a network, from a state of zeros."""
    rnn, x = layer(settings, 15, rngs), pictures()
    return Task(
        "one to one",
        "picture -> digit",
        OneToOne(rnn, 10, rngs=rngs),
        x,
        lambda model: model(x)[0][:, None],
        np.arange(10, dtype=np.int32)[:, None],
        np.ones(10, int),
    )


def one_to_many(settings: Settings, rngs: nnx.Rngs) -> Task:
    """The picture of a digit, and its name: the picture is the input at each step."""
    rnn, x = layer(settings, 15, rngs), pictures()
    targets, lengths = spelt(ENGLISH, ".")
    return Task(
        "one to many",
        "picture -> name",
        OneToMany(rnn, len(LETTERS), feedback=False, rngs=rngs),
        x,
        lambda model: model(x, targets.shape[1])[0],
        targets,
        lengths,
    )


def many_to_one(settings: Settings, rngs: nnx.Rngs) -> Task:
    """The name of a digit, and which digit it is: names end where they end."""
    numbers, lengths = spelt(ENGLISH)
    x = LETTERS.one_hot(numbers)
    return Task(
        "many to one",
        "name -> digit",
        ManyToOne(layer(settings, len(LETTERS), rngs), 10, rngs=rngs),
        x,
        lambda model: model(x, lengths=lengths)[0][:, None],
        np.arange(10, dtype=np.int32)[:, None],
        np.ones(10, int),
    )


def many_to_many(settings: Settings, rngs: nnx.Rngs) -> Task:
    """Two numbers digit by digit, the last one first, and their sum: what is carried is state."""
    a, b = np.divmod(np.arange(4 ** (BITS - 1)), 2 ** (BITS - 1))
    bits = (np.stack([a, b, a + b], -1)[:, None] >> np.arange(BITS)[None, :, None]) & 1
    x = jnp.asarray(bits[..., :2], jnp.float32)
    return Task(
        "many to many, aligned",
        "two numbers -> sum, in bits",
        ManyToMany(layer(settings, 2, rngs), 2, rngs=rngs),
        x,
        lambda model: model(x)[0],
        bits[..., 2].astype(np.int32),
        np.full(len(bits), BITS),
    )


def encoder_decoder(settings: Settings, rngs: nnx.Rngs) -> Task:
    """The English name of a digit, and the Dutch one: read to the end, then written."""
    (x, read), (targets, written) = spelt(ENGLISH), spelt(DUTCH, ".")
    encoder = Encoder(layer(settings, 8, rngs), len(LETTERS), rngs=rngs)
    decoder = Decoder(layer(settings, 8, rngs), len(LETTERS), rngs=rngs)
    return Task(
        "many to many, encoder-decoder",
        "English name -> Dutch name",
        Seq2Seq(encoder, decoder, bos=0, eos=0, rngs=rngs),
        jnp.asarray(x),
        lambda model: model(x, targets, read, written)[0],
        targets,
        written,
    )


TASKS = (one_to_one, one_to_many, many_to_one, many_to_many, encoder_decoder)


def layer(settings: Settings, features: int, rngs: nnx.Rngs) -> Any:
    """The recurrent layer of every task."""
    return LAYERS[settings.cell](features, settings.hidden, batch_first=True, rngs=rngs)


def train(settings: Settings, task: Task) -> History:
    """All steps of a task in one compiled call, with what comes out before the first and after."""
    graph, params = nnx.split(task.model)
    targets, lengths = jnp.asarray(task.targets), jnp.asarray(task.lengths)

    def loss(params: Any, step: jax.Array) -> Any:
        logits = task.logits(nnx.merge(graph, params))
        odds = jnp.take_along_axis(jax.nn.softmax(logits), targets[..., None], axis=-1)
        right = logits.argmax(-1) == targets
        return cross_entropy(logits, targets, lengths), (odds[..., 0], right)

    def run(params: Any) -> Any:
        steps = jnp.arange(settings.steps)
        optimizer = optax.adam(settings.lr)
        trained = train_steps(loss, optimizer, params, steps, progress=progress)
        value, outputs = loss(trained.params, steps[-1])
        courses = (trained.losses, trained.metrics), (value, outputs)
        return trained.params, *jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), *courses)

    with Progress(task.kind, settings.steps) as progress:
        timed = compile_and_run(run, params)
    trained, losses, (odds, right) = timed.result
    there = np.arange(task.targets.shape[1]) < task.lengths[:, None]
    rows = (right | ~there[None]).all(-1).sum(-1).tolist()
    return History(
        task=task,
        model=nnx.merge(graph, trained),
        losses=np.asarray(losses),
        probabilities=np.where(there, odds, np.nan),
        right=(rows[0], rows[-1]),
        compile_seconds=timed.compile_seconds,
        run_seconds=timed.run_seconds,
    )


def as_table(histories: list[History]) -> Table:
    """The tasks as a table for the terminal."""
    table = Table(title="A head for each kind", title_justify="left")
    for name in ("what", "task", "head", "x", "y", "loss before", "after", "rows right"):
        table.add_column(name, justify="right" if name in ("loss before", "after") else "left")
    for history in histories:
        task = history.task
        shape = (*task.targets.shape, task.logits(history.model).shape[-1])
        table.add_row(
            task.kind,
            task.what,
            type(task.model).__name__,
            str(task.x.shape),
            str(shape if shape[1] > 1 else (shape[0], shape[2])),
            f"{history.losses[0]:.3f}",
            f"{history.losses[-1]:.4f}",
            f"{history.right[0]} -> {history.right[1]} of {len(task.targets)}",
        )
    return table


def draw(histories: list[History], title: str) -> Any:
    """How the probability of the truth grows, for each row or at each place, and all losses."""
    panels = []
    for history in histories:
        steps, _, places = history.probabilities.shape
        one = places == 1
        odds = history.probabilities[..., 0] if one else np.nanmean(history.probabilities, axis=1)
        panels.append(
            plotting.HeatMap(
                f"{history.task.kind}:\n{history.task.what}",
                odds.T,
                range(steps),
                yticks=range(10) if one else range(1, places + 1),
                xlabel="step",
                ylabel="digit" if one else "place, mean of all rows",
                limit=1.0,
            )
        )
    return plotting.heat_maps(
        panels,
        title=f"The probability of the truth: {title}",
        losses=[history.losses for history in histories],
        loss_label="cross-entropy [nats]",
        runs=[history.task.kind for history in histories],
    )


def result(histories: list[History]) -> str:
    """What came out, in a line."""
    rows = [f"{history.right[1]}/{len(history.task.targets)}" for history in histories]
    return f"rows right in the five tasks: {', '.join(rows)}"


def main(settings: Settings) -> list[History]:
    """Train all, print the table, save the figure."""
    target = plotting.check_target(settings.out)
    histories = [train(settings, make(settings, nnx.Rngs(settings.seed))) for make in TASKS]
    Console(width=150).print(as_table(histories))  # no narrower where nobody watches
    running = sum(history.run_seconds for history in histories)
    print(f"compiled in {sum(history.compile_seconds for history in histories):.2f} s", end=", ")
    print(f"{len(TASKS)} times {settings.steps} steps in {running * 1e3:.1f} ms")
    title = f"{LAYERS[settings.cell].__name__}, {settings.hidden} hidden features"
    print(f"figure: {plotting.save(draw(histories, title), target)}")
    return histories
