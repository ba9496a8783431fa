"""Learn to write like a text of one's own, character by character, and write more of it.

``jaxrnn chars FILE`` trains a recurrent network on a text file (UTF-8), holds its loss on the end
of the text, which it has not seen, against what counting characters comes to, and lets it write.
With ``--save MODEL.safetensors`` the model is kept; ``jaxrnn chars --load MODEL.safetensors``
writes with it again, and needs no text. The same seed, text and settings give the same model and
the same words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.data import Vocabulary
from jaxrnn.layers.heads import LAYERS, CharacterModel
from jaxrnn.text import Learned, Text, learn, load, make_model, prepare, read_text, save
from jaxrnn.text.learning import check_sizes
from jaxrnn.text.texts import check_share


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn chars``."""

    file: str = field(
        default="", metadata={"help": "the text to learn, a UTF-8 file", "positional": True}
    )
    cell: str = field(default="lstm", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    layers: int = field(default=1, metadata={"help": "recurrent layers"})
    hidden: int = field(default=128, metadata={"help": "hidden features"})
    embedding: int = field(
        default=32, metadata={"help": "features learned for each character; 0 for one-hot vectors"}
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout between layers"})
    window: int = field(default=64, metadata={"help": "characters that the gradient goes back"})
    rows: int = field(default=16, metadata={"help": "places of the text that are read at once"})
    steps: int = field(default=1000, metadata={"help": "training steps, a window of all rows each"})
    every: int = field(
        default=50, metadata={"help": "look at the watched part every so many steps"}
    )
    patience: int = field(
        default=5, metadata={"help": "stop when it got no better so many times in a row"}
    )
    share: float = field(
        default=0.1, metadata={"help": "part of the text that is watched, and part held out"}
    )
    lr: float = field(default=0.01, metadata={"help": "learning rate of Adam at first"})
    seed: int = field(default=0, metadata={"help": "seed of the weights and of what is written"})
    prompt: str = field(
        default="", metadata={"help": "what to go on from; without it, the beginning of a line"}
    )
    length: int = field(default=500, metadata={"help": "characters to write"})
    temperature: float = field(
        default=0.7, metadata={"help": "how bold it is: 0 takes the likeliest character, 1 draws"}
    )
    top_k: int = field(
        default=0, metadata={"help": "draw among so many likeliest characters; 0 for all"}
    )
    save: str = field(default="", metadata={"help": "keep the model, a .safetensors file"})
    load: str = field(default="", metadata={"help": "a model that was kept; nothing is learned"})
    out: str = field(
        default="", metadata={"help": "the course of the losses: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        if bool(self.file) == bool(self.load):
            what = "both" if self.file else "neither"
            raise ValueError(f"a text FILE to learn, or a model to --load: {what} was given")
        for name in ("save", "out"):
            if self.load and getattr(self, name):
                raise ValueError(f"--{name} is for learning: with --load nothing is learned")
        check_sizes(self.cell, self.layers, self.hidden, self.embedding, self.dropout)
        for name in ("window", "rows", "steps", "every", "patience", "length"):
            checks.at_least(name, getattr(self, name), 1)
        check_share(self.share)
        checks.positive("lr", self.lr)
        checks.seed(self.seed)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature should be a number from 0 on, got {self.temperature}")
        checks.at_least("top_k", self.top_k, 0)


def begin(settings: Settings, vocabulary: Vocabulary) -> str:
    """The prompt: the one that is set, or a new line, or the first character there is.

    Raises:
        ValueError: for characters that the vocabulary does not have, or a `top_k` beyond it.
    """
    if settings.top_k > len(vocabulary):
        raise ValueError(
            f"top_k should be at most {len(vocabulary)}, the characters there are, got "
            f"{settings.top_k}"
        )
    try:
        vocabulary.encode(settings.prompt)
    except ValueError as error:
        raise ValueError(f"prompt: {error}") from None
    new_line = "\n" if "\n" in vocabulary.characters else vocabulary.characters[0]
    return settings.prompt or new_line


def write(settings: Settings, model: CharacterModel) -> str:
    """The prompt and what the model makes of it, a pure function of the settings and the model."""
    prompt = begin(settings, model.vocabulary)
    key = jax.random.key(settings.seed)
    said = model.generate(
        prompt,
        settings.length,
        key=key,
        temperature=settings.temperature,
        top_k=settings.top_k or None,
    )
    return (prompt + said).removeprefix("\n")


def as_table(learned: Learned, text: Text) -> Table:
    """The losses on the held-out part as a table for the terminal."""
    table = Table(title="Loss of a held-out character", title_justify="left")
    table.add_column(f"of the last {text.held_out.size}, by")
    for name in ("nats", "bits"):
        table.add_column(name, justify="right")
    for name, loss in learned.losses.items():
        table.add_row(name, f"{loss:.3f}", f"{loss / math.log(2):.3f}")
    return table


def report(learned: Learned, text: Text) -> None:
    """Print what was learned, and how well."""
    print(f"{len(text.numbers)} characters, {len(text.vocabulary)} different")
    print(
        f"{learned.model.rnn} + linear: {len(learned.history.losses)} steps, {learned.epochs:.1f} "
        f"times {text.learned.size} characters, in {learned.seconds:.1f} s; best after "
        f"{learned.best}"
    )
    Console().print(as_table(learned, text))


def draw(learned: Learned, title: str) -> Figure:
    """The loss of each step and on the watched part, and on the held-out part in the end."""
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    figure.suptitle(plotting.plain(title))
    axis: Any = figure.subplots()
    history, name = learned.history, list(learned.losses)[-1]
    axis.plot(
        range(1, len(history.losses) + 1),
        history.losses,
        color=plotting.PALETTE[5],
        linewidth=1,
        label=f"{name}, each window learned",
    )
    watched = history.validation["loss"]
    axis.plot(history.evaluated, watched, "o-", color=plotting.BLUE, label=f"{name}, watched part")
    held_out = (learned.best, learned.losses[name])
    axis.plot(*held_out, "D", color=plotting.VERMILLION, label=f"{name}, held-out part")
    for (group, loss), style in zip(list(learned.losses.items())[:-1], ("-", ":", "-.", "--")):
        axis.axhline(loss, color=plotting.GREY, linestyle=style, label=f"{group}, held-out part")
    axis.set(xlabel="step", ylabel="loss of a character [nats]", ylim=(0, None))
    axis.grid(color=plotting.GREY, alpha=0.25)
    figure.legend(loc="outside lower center", fontsize="small", ncols=3)
    return figure


def main(settings: Settings) -> Learned | CharacterModel:
    """Learn, compare, keep and write; or load and write."""
    if settings.load:
        model = load(settings.load)
        print(write(settings, model))
        return model
    read = [settings.file]
    kept = settings.save and plotting.check_target(
        settings.save, ("safetensors",), "model", read=read
    )
    target = settings.out and plotting.check_target(settings.out, read=read)
    text = prepare(
        read_text(settings.file),
        window=settings.window,
        rows=settings.rows,
        share=settings.share,
        name=settings.file,
    )
    begin(settings, text.vocabulary)
    model = make_model(
        text.vocabulary,
        cell=settings.cell,
        layers=settings.layers,
        hidden=settings.hidden,
        embedding=settings.embedding,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    learned = learn(
        text,
        model,
        steps=settings.steps,
        every=settings.every,
        patience=settings.patience,
        lr=settings.lr,
        seed=settings.seed,
    )
    made: list[str] = []
    try:  # kept before anything is printed, of which the reader may have gone
        if kept:
            made.append(f"model: {save(model, kept)}")
        if target:
            title = f"Learning {Path(settings.file).name}: {model.rnn} + linear"
            made.append(f"figure: {plotting.save(draw(learned, title), target)}")
    finally:
        report(learned, text)
    print(*made, "", sep="\n")
    print(write(settings, model))
    return learned
