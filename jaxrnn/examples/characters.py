"""Memorize a string: predict each next character from the characters before it.

The characters are one-hot vectors of size D, the number of different characters. The hidden size
is D as well: the outputs of the recurrent layer are the logits of the next character, without a
linear layer. The loss is their cross-entropy, and each training step sees the whole string.

``charseq`` learns ' if you want you': nine of ten seeds predict all 15 characters after 100 steps,
as in PyTorch. ``hihello`` learns 'hihello': the state must distinguish the two occurrences of 'h',
followed by 'i' and 'e', and those of 'l', followed by 'l' and 'o'.

Source: Lab 11-2 of the course "Introduction to deep learning with PyTorch".
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import data, plotting
from jaxrnn.examples import Cell, Every, FigurePath, LearningRate, PositiveInt, Seed
from jaxrnn.layers.heads import LAYERS
from jaxrnn.training import Progress, Trained, compile_and_run, train_steps

Text = Annotated[str, "the string to memorize"]
Steps = Annotated[PositiveInt, "training steps, the whole string each"]


def make_model(text: str, cell: str, *, rngs: nnx.Rngs) -> Any:
    """Build a recurrent layer with one hidden feature per character."""
    size = len(set(text))
    return LAYERS[cell](size, size, batch_first=True, rngs=rngs)


def train(
    graph: Any, params: Any, *, text: str, steps: int, lr: Any, progress: Progress | None = None
) -> Trained:
    """Train with Adam, the whole string in each step; a pure function of the parameters.

    The metrics are the logits (steps, T, D).
    """
    _, x, y = data.next_characters(text)

    def _loss(params: Any, step: jax.Array) -> Any:
        logits, _ = nnx.merge(graph, params)(x[None])  # (1, T, D)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits[0], y)
        return entropy.mean(), logits[0]

    return train_steps(_loss, optax.adam(lr), params, jnp.arange(steps), progress=progress)


def charseq(
    *,
    text: Text = " if you want you",
    steps: Steps = 100,
    every: Every = 1,
    cell: Cell = "rnn",
    lr: LearningRate = 0.1,
    seed: Seed = 1,
    out: FigurePath = "charseq.png",
) -> str:
    """Memorize a sentence, character by character."""
    if len(set(text)) < 2:
        raise ValueError(f"`text` must have at least 2 different characters, got {text!r}.")
    target = plotting.check_target(out)
    model = make_model(text, cell, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(model)
    with Progress("characters", steps) as progress:
        run = partial(train, graph, text=text, steps=steps, lr=lr, progress=progress)
        trained, compile_seconds, run_seconds = compile_and_run(run, params)
    trained = jax.tree.map(np.asarray, trained)
    characters, _, y = data.next_characters(text)
    y = np.asarray(y)
    predicted = trained.metrics.argmax(-1)
    strings = ["".join(characters[i] for i in indices) for indices in predicted]
    for i in range(0, steps, every):
        print(i, "loss: ", trained.losses[i], "prediction: ", predicted[i][None], end=" ")
        print("true Y: ", y[None].tolist(), "prediction str: ", strings[i])
    correct = (predicted == y).sum(-1)
    right = f"{correct[-1]} of {len(y)}"
    print(f"{right} characters right")
    print(f"compiled in {compile_seconds:.2f} s, {steps} steps in {run_seconds * 1e3:.1f} ms")
    probabilities = np.asarray(jax.nn.softmax(trained.metrics[-1]))
    results = trained.losses, correct, probabilities, text[1:], characters
    figure = plotting.characters(*results, title=f"The next character: {model}")
    print(f"figure: {plotting.save(figure, target)}")
    return f"{strings[-1]!r}, {right} right"


def hihello(
    *,
    text: Text = "hihello",
    steps: Steps = 100,
    every: Every = 1,
    cell: Cell = "rnn",
    lr: LearningRate = 0.1,
    seed: Seed = 1,
    out: FigurePath = "hihello.png",
) -> str:
    """Memorize 'hihello': read 'hihell' and predict 'ihello'."""
    return charseq(text=text, steps=steps, every=every, cell=cell, lr=lr, seed=seed, out=out)
