"""The command ``jaxrnn chars``, its tables and figure."""

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
from jaxrnn.text.model import (
    Text,
    Trained,
    check_share,
    check_sizes,
    load,
    make_model,
    prepare,
    read_text,
    save,
    train,
)


def _option(default: Any, text: str, **metadata: Any) -> Any:
    """Return a dataclass field that is a command line option with a help text."""
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class Chars:
    """Train a character model on a text file and generate text.

    ``jaxrnn chars FILE`` trains a recurrent network on a UTF-8 text file, compares its loss on the
    test set, the last part of the text, with n-gram models, and generates text. With
    ``--save MODEL.safetensors`` the model is saved, and ``jaxrnn chars --load MODEL.safetensors``
    generates text without training. Results are reproducible from text and options.
    """

    file: str = _option("", "UTF-8 text file", positional=True)
    cell: str = _option("lstm", "recurrent cell", choices=tuple(LAYERS))
    layers: int = _option(1, "number of recurrent layers")
    hidden: int = _option(128, "size of the hidden state")
    embedding: int = _option(32, "size of the character embedding; 0 for one-hot vectors")
    dropout: float = _option(0.0, "dropout probability between layers")
    window: int = _option(64, "steps of truncated backpropagation through time")
    batch_size: int = _option(16, "number of streams that the text is cut into")
    steps: int = _option(1000, "number of training steps")
    every: int = _option(50, "steps between validations")
    patience: int = _option(5, "validations without improvement before training stops")
    share: float = _option(0.1, "fraction of the validation set, and of the test set")
    lr: float = _option(0.01, "initial learning rate of Adam")
    seed: int = _option(0, "random seed of the weights and of the generated text")
    prompt: str = _option("", "start of the generated text; a new line if empty")
    length: int = _option(500, "number of characters to generate")
    temperature: float = _option(0.7, "sampling temperature; 0 for greedy decoding")
    top_k: int = _option(0, "sample from the k most likely characters; 0 for all")
    save: str = _option("", "model file to write, .safetensors")
    load: str = _option("", "model file to generate with, without training")
    out: str = _option("", "figure of the losses, a .png, .svg or .pdf file")

    def __post_init__(self) -> None:
        if bool(self.file) == bool(self.load):
            given = "both" if self.file else "neither"
            raise ValueError(f"either a text FILE or --load is required, got {given}")
        for name in ("save", "out"):
            if self.load and getattr(self, name):
                raise ValueError(f"--{name} requires training, which --load skips")
        check_sizes(self.cell, self.layers, self.hidden, self.embedding, self.dropout)
        for name in ("window", "batch_size", "steps", "every", "patience", "length"):
            checks.at_least(name, getattr(self, name), 1)
        check_share(self.share)
        checks.positive("lr", self.lr)
        checks.seed(self.seed)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"`temperature` must be in [0, inf), got {self.temperature}")
        checks.at_least("top_k", self.top_k, 0)

    def run(self) -> Trained | CharacterModel:
        """Train, evaluate, save and generate; or load and generate."""
        if self.load:
            model = load(self.load)
            print(self.generate(model))
            return model
        inputs = [self.file]
        model_file = self.save and plotting.check_target(
            self.save, ("safetensors",), "model", inputs=inputs
        )
        target = self.out and plotting.check_target(self.out, inputs=inputs)
        sizes = {"window": self.window, "batch_size": self.batch_size, "share": self.share}
        text = prepare(read_text(self.file), name=self.file, **sizes)
        self._start(text.vocabulary)
        names = ("cell", "layers", "hidden", "embedding", "dropout", "seed")
        model = make_model(text.vocabulary, **{name: getattr(self, name) for name in names})
        names = ("steps", "every", "patience", "lr", "seed")
        trained = train(text, model, **{name: getattr(self, name) for name in names})
        files: list[str] = []
        try:  # write before printing, since the reader of the output may be gone
            if model_file:
                files.append(f"model: {save(model, model_file)}")
            if target:
                title = f"Training on {Path(self.file).name}: {model.rnn} + linear"
                files.append(f"figure: {plotting.save(draw(trained, title), target)}")
        finally:
            _report(trained, text)
        print(*files, "", sep="\n")
        print(self.generate(model))
        return trained

    def generate(self, model: CharacterModel) -> str:
        """Return the prompt and the text that the model generates after it."""
        prompt = self._start(model.vocabulary)
        key, top_k = jax.random.key(self.seed), self.top_k or None
        text = model.generate(
            prompt, self.length, key=key, temperature=self.temperature, top_k=top_k
        )
        return (prompt + text).removeprefix("\n")

    def _start(self, vocabulary: Vocabulary) -> str:
        """Return the prompt, or a new line, or the first character of the vocabulary.

        Raises:
            ValueError: for characters outside the vocabulary, or a `top_k` that exceeds its size.
        """
        if self.top_k > len(vocabulary):
            raise ValueError(
                f"`top_k` must be <= {len(vocabulary)}, the size of the vocabulary, got "
                f"{self.top_k}"
            )
        try:
            vocabulary.encode(self.prompt)
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from None
        return self.prompt or ("\n" if "\n" in vocabulary.characters else vocabulary.characters[0])


def _report(trained: Trained, text: Text) -> None:
    """Print the size of the text, the training, and the test losses."""
    print(f"{len(text.ids)} characters, {len(text.vocabulary)} distinct")
    print(
        f"{trained.model.rnn} + linear: {len(trained.history.losses)} training steps, "
        f"{trained.epochs:.1f} epochs of {text.train.size} characters, in {trained.seconds:.1f} s; "
        f"best at step {trained.best}"
    )
    table = Table(title="Test loss of a character", title_justify="left")
    table.add_column(f"{text.test.size} characters")
    for name in ("nats", "bits"):
        table.add_column(name, justify="right")
    for name, loss in trained.losses.items():
        table.add_row(name, f"{loss:.3f}", f"{loss / math.log(2):.3f}")
    Console().print(table)


def draw(trained: Trained, title: str) -> Figure:
    """Draw the training and the validation losses, and the test losses of all models."""
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    figure.suptitle(plotting.plain(title))
    axis: Any = figure.subplots()
    history, name = trained.history, list(trained.losses)[-1]
    axis.plot(
        range(1, len(history.losses) + 1),
        history.losses,
        color=plotting.PALETTE[5],
        linewidth=1,
        label=f"{name}, training batches",
    )
    validation = history.validation["loss"]
    axis.plot(
        history.evaluated, validation, "o-", color=plotting.BLUE, label=f"{name}, validation set"
    )
    test = (trained.best, trained.losses[name])
    axis.plot(*test, "D", color=plotting.VERMILLION, label=f"{name}, test set")
    for (ngram, loss), style in zip(list(trained.losses.items())[:-1], ("-", ":", "-.", "--")):
        axis.axhline(loss, color=plotting.GREY, linestyle=style, label=f"{ngram}, test set")
    axis.set(xlabel="step", ylabel="loss of a character [nats]", ylim=(0, None))
    axis.grid(color=plotting.GREY, alpha=0.25)
    figure.legend(loc="outside lower center", fontsize="small", ncols=3)
    return figure
