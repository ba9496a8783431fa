"""Learn to write like a text: a character model trained on windows whose state goes on.

Axis letters: K windows, T steps in a window, N rows, V characters there are.
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from jaxrnn import _checks as checks
from jaxrnn.data import Vocabulary
from jaxrnn.layers.heads import LAYERS, CharacterModel
from jaxrnn.text.baselines import counted_loss
from jaxrnn.text.texts import Text
from jaxrnn.training import EarlyStopping, History, fit

GROUPS = ("no knowledge", "unigram", "bigram", "trigram")
"""What counting knows: nothing, each character, pairs, groups of three."""


class Learned(NamedTuple):
    """What `learn` leaves.

    Attributes:
        model: the trained model, in evaluation mode.
        history: the course of the training: the loss of each step, and under ``validation`` the
            loss on the watched part, in nats a character.
        losses: on the held-out part, in nats a character, by name: those of counting, and last the
            model's.
        epochs: how often the learned part was seen.
        best: the step whose parameters the model has.
        seconds: what all of it took.
    """

    model: CharacterModel
    history: History
    losses: dict[str, float]
    epochs: float
    best: int
    seconds: float


def make_model(
    vocabulary: Vocabulary,
    *,
    cell: str = "lstm",
    layers: int = 1,
    hidden: int = 128,
    embedding: int = 32,
    dropout: float = 0.0,
    seed: int = 0,
) -> CharacterModel:
    """A character model with weights from a seed.

    Args:
        vocabulary: the characters, V of them.
        cell: "rnn", "lstm" or "gru".
        layers: recurrent layers one on another.
        hidden: hidden features of each.
        embedding: features of the vector that is learned for each character; 0 for one-hot
            vectors, which is the same as V of them, with the product by the weights left out.
        dropout: of the outputs of all layers but the last, from 0 up to less than 1.
        seed: of the weights.

    Raises:
        ValueError: for sizes that can't be, or dropout with a single layer.

    Example:
        >>> from jaxrnn.data import Vocabulary
        >>> from jaxrnn.text import make_model
        >>> make_model(Vocabulary.of("hello"), cell="gru", hidden=8, embedding=3).rnn
        GRU(3, 8)
    """
    check_sizes(cell, layers, hidden, embedding, dropout)
    checks.seed(seed)
    rngs = nnx.Rngs(seed)
    table = nnx.Embed(len(vocabulary), embedding, rngs=rngs) if embedding else None
    size = embedding or len(vocabulary)
    rnn = LAYERS[cell](size, hidden, layers, dropout=dropout, rngs=rngs)
    return CharacterModel(rnn, vocabulary, table, rngs=rngs)


def check_sizes(cell: str, layers: int, hidden: int, embedding: int, dropout: float) -> None:
    """Whether there can be such a model."""
    checks.choice("cell", cell, tuple(LAYERS))
    checks.at_least("layers", layers, 1)
    checks.at_least("hidden", hidden, 1)
    checks.at_least("embedding", embedding, 0)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout should be from 0 up to less than 1, got {dropout!r}")
    if dropout and layers == 1:
        raise ValueError(f"dropout={dropout} is between layers, and layers is 1")


def learn(
    text: Text,
    model: CharacterModel,
    *,
    steps: int = 1000,
    every: int = 50,
    patience: int = 5,
    lr: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> Learned:
    """Train a model on a text, window after window of its rows, and compare it with counting.

    .. code-block:: text

        loss_k = mean over t, n of -log p(character[k, t, n] | all before it in row n)

    A row's state goes on from window to window as a value, the gradient does not: truncated
    backpropagation through time. When the rows are through they begin again, from a state of zeros.
    Adam with a rate that falls along a cosine to zero, the norm of the gradient clipped at 1. The
    parameters with the least loss on the watched part are kept, and judged on the held-out one,
    which has had no part in it.

    Args:
        text: what to learn, see `jaxrnn.text.prepare`.
        model: a model for its characters, trained in place; time first, of one direction.
        steps: gradient steps, a window each.
        every: look at the watched part every so many steps.
        patience: stop when it was no better so many times.
        lr: the rate at first.
        seed: of the dropout masks.
        progress: whether to show a bar on a terminal.

    Raises:
        ValueError: for settings that can't be, or a model of other characters, or whose layer is
            batch first or has two directions.
        NonFiniteLoss: for a loss that is infinite or not a number: the rate is too high.

    Example:
        >>> from jaxrnn.text import learn, make_model, prepare
        >>> text = prepare("to be or not to be, that is the question. " * 60, window=16, rows=8)
        >>> model = make_model(text.vocabulary, cell="gru", hidden=32, embedding=0)
        >>> learned = learn(text, model, steps=150)
        >>> list(learned.losses)
        ['no knowledge', 'unigram', 'bigram', 'trigram', 'GRU']
        >>> learned.losses["GRU"] < learned.losses["unigram"] < learned.losses["no knowledge"]
        True
        >>> model.generate("to be or", 12, temperature=0)
        ' not to be, '
    """
    for name, value in (("steps", steps), ("every", every), ("patience", patience)):
        checks.at_least(name, value, 1)
    checks.positive("lr", lr)
    checks.seed(seed)
    if model.vocabulary != text.vocabulary:
        raise ValueError("the model's vocabulary should be the text's")
    if model.rnn.batch_first or model.rnn.bidirectional:
        raise ValueError(f"the layer should be time first and of one direction, got {model.rnn}")
    start = time.perf_counter()
    count, _, rows = text.learned.shape
    fitted = fit(
        _carried_loss,
        _optimizer(lr, steps),
        model,
        (jnp.arange(count) == 0, *map(jnp.asarray, text.pairs(text.learned))),
        steps=steps,
        batch_size=1,
        shuffle=False,
        carry=model.rnn.initial_state(rows),
        key=seed,
        evaluate=_evaluate,
        validation=text.pairs(text.watched),
        evaluate_every=every,
        early_stopping=EarlyStopping("loss", patience),
        progress=progress,
    )
    model.eval()
    numbers, cut, size = text.numbers, text.cut, len(text.vocabulary)
    losses = {
        name: counted_loss(numbers, cut, text.held_out, order, size)
        for order, name in enumerate(GROUPS)
    }
    losses[type(model.rnn).__name__] = float(mean_loss(model, *text.pairs(text.held_out)))
    history = fitted.history
    return Learned(
        model,
        history,
        losses,
        epochs=len(history.losses) / count,
        best=int(history.evaluated[history.validation["loss"].argmin()]),
        seconds=time.perf_counter() - start,
    )


def mean_loss(model: CharacterModel, x: Any, y: Any) -> jax.Array:
    """The mean cross-entropy over windows in a row, in nats a character.

    Args:
        model: the model, without dropout.
        x: the numbers of characters, integers (K, T, N); row n goes on from window to window.
        y: those of the characters that follow each.
    """

    def window(hx: Any, pair: Any) -> tuple[Any, jax.Array]:
        loss, hx = _loss(model, hx, *pair)
        return hx, loss

    x, y = jnp.asarray(x), jnp.asarray(y)
    return lax.scan(window, model.rnn.initial_state(x.shape[-1]), (x, y))[1].mean()


@functools.lru_cache(maxsize=8)
def _optimizer(lr: float, steps: int) -> optax.GradientTransformation:
    """Clipping, and Adam along a cosine; the same for the same numbers: then `fit` is compiled."""
    schedule = optax.cosine_decay_schedule(lr, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def _loss(model: CharacterModel, hx: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
    """The mean loss of a window (T, N), and the state after it."""
    logits, hx = model(x, hx)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), hx


def _carried_loss(model: CharacterModel, hx: Any, batch: Any) -> tuple[jax.Array, Any]:
    """The loss of a batch of one window, from zeros if it is the first of the rows."""
    first, x, y = jax.tree.map(lambda a: a[0], batch)
    hx = jax.tree.map(lambda h: jnp.where(first, 0, h), hx)
    loss, hx = _loss(model, hx, x, y)
    return loss, (hx, None)


def _evaluate(model: CharacterModel, windows: Any) -> dict[str, jax.Array]:
    """What `fit` measures on the watched part."""
    return {"loss": mean_loss(model, *windows)}
