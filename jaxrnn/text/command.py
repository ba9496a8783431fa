"""The command ``jaxrnn chars``, its table and figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import jax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.data import Vocabulary
from jaxrnn.layers.heads import CharacterModel
from jaxrnn.text.model import (
    Text,
    Trained,
    load_model,
    make_model,
    prepare,
    read_text,
    save_model,
    train,
)


def chars(
    file: str = "",
    *,
    cell: Literal["rnn", "lstm", "gru"] = "lstm",
    layers: int = 1,
    hidden: int = 128,
    embedding: int = 32,
    dropout: float = 0.0,
    window: int = 64,
    batch_size: int = 16,
    steps: int = 1000,
    every: int = 50,
    patience: int = 5,
    share: float = 0.1,
    lr: float = 0.01,
    seed: int = 0,
    prompt: str = "",
    length: int = 500,
    temperature: float = 0.7,
    top_k: int = 0,
    save: str = "",
    load: str = "",
    out: str = "",
) -> Trained | CharacterModel:
    """Train a character model on a text file and generate text.

    ``jaxrnn chars FILE`` trains a recurrent network on a UTF-8 text file, compares its loss on the
    test set, the last part of the text, with n-gram models, and generates text. With
    ``--save MODEL.safetensors`` the model is saved, and ``jaxrnn chars --load MODEL.safetensors``
    generates text without training. Results are reproducible from text and options.

    Args:
        file: UTF-8 text file.
        cell: recurrent cell.
        layers: number of recurrent layers.
        hidden: size of the hidden state.
        embedding: size of the character embedding; 0 for one-hot vectors.
        dropout: dropout probability between layers.
        window: steps of truncated backpropagation through time.
        batch_size: number of streams that the text is cut into.
        steps: number of training steps.
        every: steps between validations.
        patience: validations without improvement before training stops.
        share: fraction of the validation set, and of the test set.
        lr: initial learning rate of Adam.
        seed: random seed of the weights and of the generated text.
        prompt: start of the generated text; a new line if empty.
        length: number of characters to generate.
        temperature: sampling temperature; 0 for greedy decoding.
        top_k: sample from the k most likely characters; 0 for all.
        save: model file to write, .safetensors.
        load: model file to generate with, without training.
        out: figure of the losses, a .png, .svg or .pdf file.
    """
    if bool(file) == bool(load):
        given = "both" if file else "neither"
        raise ValueError(f"either a text FILE or --load is required, got {given}")
    for name, path in (("save", save), ("out", out)):
        if load and path:
            raise ValueError(f"--{name} requires training, which --load skips")
    checks.at_least("length", length, 1)
    checks.seed(seed)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` must be in [0, inf), got {temperature}")
    checks.at_least("top_k", top_k, 0)

    def _generate(model: CharacterModel) -> str:
        start = _start(prompt, top_k, model.vocabulary)
        sampling = {"temperature": temperature, "top_k": top_k or None}
        text = model.generate(start, length, key=jax.random.key(seed), **sampling)
        return (start + text).removeprefix("\n")

    if load:
        model = load_model(load)
        print(_generate(model))
        return model
    model_file = save and plotting.check_target(save, ("safetensors",), "model", inputs=[file])
    figure_file = out and plotting.check_target(out, inputs=[file])
    text = prepare(read_text(file), window=window, batch_size=batch_size, share=share, name=file)
    _start(prompt, top_k, text.vocabulary)
    sizes = {"layers": layers, "hidden": hidden, "embedding": embedding, "dropout": dropout}
    model = make_model(text.vocabulary, cell=cell, seed=seed, **sizes)
    trained = train(text, model, steps=steps, every=every, patience=patience, lr=lr, seed=seed)
    files: list[str] = []
    try:  # write before printing, since the reader of the output may be gone
        if model_file:
            files.append(f"model: {save_model(model, model_file)}")
        if figure_file:
            title = f"Training on {Path(file).name}: {model.rnn} + linear"
            files.append(f"figure: {plotting.save(draw(trained, title), figure_file)}")
    finally:
        _report(trained, text)
    print(*files, "", sep="\n")
    print(_generate(model))
    return trained


def _start(prompt: str, top_k: int, vocabulary: Vocabulary) -> str:
    """Check the prompt, and replace an empty one by a new line or the first character."""
    if top_k > len(vocabulary):
        raise ValueError(
            f"`top_k` must be <= {len(vocabulary)}, the size of the vocabulary, got {top_k}"
        )
    try:
        vocabulary.encode(prompt)
    except ValueError as error:
        raise ValueError(f"prompt: {error}") from None
    return prompt or ("\n" if "\n" in vocabulary.characters else vocabulary.characters[0])


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
    steps, light, blue = range(1, len(history.losses) + 1), plotting.PALETTE[5], plotting.BLUE
    axis.plot(steps, history.losses, color=light, linewidth=1, label=f"{name}, training batches")
    validation, label = history.validation["loss"], f"{name}, validation set"
    axis.plot(history.evaluated, validation, "o-", color=blue, label=label)
    test = (trained.best, trained.losses[name])
    axis.plot(*test, "D", color=plotting.VERMILLION, label=f"{name}, test set")
    for (ngram, loss), style in zip(list(trained.losses.items())[:-1], ("-", ":", "-.", "--")):
        axis.axhline(loss, color=plotting.GREY, linestyle=style, label=f"{ngram}, test set")
    axis.set(xlabel="step", ylabel="loss of a character [nats]", ylim=(0, None))
    axis.grid(color=plotting.GREY, alpha=0.25)
    figure.legend(loc="outside lower center", fontsize="small", ncols=3)
    return figure
