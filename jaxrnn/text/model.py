"""Character models: the sets of a text, training by truncated backpropagation, and files.

Axis letters: S characters of the text, K windows, T steps in a window, N batch size, V size of the
vocabulary.
"""

from __future__ import annotations

import codecs
import functools
import inspect
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from jaxrnn import _checks as checks
from jaxrnn._files import check_shapes, decode_utf8, read_model, write_safetensors
from jaxrnn.data import Vocabulary, streams
from jaxrnn.interop.torch import load_state_dict, state_dict
from jaxrnn.layers.heads import LAYERS, CharacterModel
from jaxrnn.training import EarlyStopping, History, fit

NGRAMS = ("uniform", "unigram", "bigram", "trigram")
"""Names of the baselines, by order."""

_ENTRY = "jaxrnn.characters"  # key of the description in the header of a model file
_MIN_CHARACTERS = 100
_MIN_STREAM = 2000  # characters of a validation stream, so that its start has little weight


def read_text(path: str | os.PathLike[str]) -> str:
    r"""Read a UTF-8 file, with or without a byte order mark; each end of line becomes a newline.

    Raises:
        ValueError: for bytes that are not UTF-8.
        OSError: if the file can't be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.txt")
        ...     _ = path.write_bytes(b"one\r\ntwo")
        ...     read_text(path)
        'one\ntwo'
    """
    text = decode_utf8(path, Path(path).read_bytes().removeprefix(codecs.BOM_UTF8))
    return text.replace("\r\n", "\n").replace("\r", "\n")


class Text(NamedTuple):
    """A text with its training, validation and test set.

    Attributes:
        vocabulary: the characters of the whole text, V of them.
        ids: id of each character (S,), int32.
        train_size: number of characters in the training set.
        train, validation, test: positions of the target characters of each set, as windows
            (K, T, N) in which batch element n continues from window to window. Positions that do
            not fill a window are left out.
    """

    vocabulary: Vocabulary
    ids: np.ndarray
    train_size: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def pairs(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the input and the target characters at target positions."""
        return self.ids[positions - 1], self.ids[positions]


def prepare(
    text: str, *, window: int = 64, batch_size: int = 16, share: float = 0.1, name: str = "the text"
) -> Text:
    """Encode a text and split it chronologically into sets of windows.

    .. code-block:: text

        | train ..................................... | validation | test |
        train[k, t, n] = 1 + n * length + k * T + t,     length = (train_size - 1) // N

    Args:
        text: at least 100 characters, two of them distinct.
        window: T, steps in a window; fewer if a set has less.
        batch_size: N, streams side by side; fewer if they were shorter than a window, and in the
            validation and the test set if they were shorter than 2000 characters.
        share: fraction of the validation set and of the test set, in (0, 0.25].
        name: name of the text in messages.

    Raises:
        ValueError: for a text that is too short or one repeated character, or invalid arguments.

    Example:
        >>> text = prepare("to be or not " * 20, window=8, batch_size=4)
        >>> text.train_size, text.train.shape, text.validation.shape, text.test.shape
        (208, (6, 8, 4), (3, 8, 1), (3, 8, 1))
        >>> x, y = text.pairs(text.train)
        >>> text.vocabulary.decode(x[0, :, 0]), text.vocabulary.decode(y[0, :, 0])
        ('to be or', 'o be or ')
    """
    checks.at_least("window", window, 1)
    checks.at_least("batch_size", batch_size, 1)
    if not 0 < share <= 0.25:
        raise ValueError(f"`share` must be in (0, 0.25], got {share!r}")
    if len(text) < _MIN_CHARACTERS:
        raise ValueError(
            f"{name} must have at least {_MIN_CHARACTERS} characters, got {len(text) or 'none'}"
        )
    vocabulary = Vocabulary.of(text)
    if len(vocabulary) < 2:
        raise ValueError(f"{name} must have two distinct characters, got only {text[0]!r}")
    held_out = max(1, round(share * len(text)))
    train_size, test_start = len(text) - 2 * held_out, len(text) - held_out
    few = min(batch_size, held_out // _MIN_STREAM)
    return Text(
        vocabulary,
        vocabulary.encode(text),
        train_size,
        _windows(1, train_size, window, min(batch_size, train_size // window)),
        _windows(train_size, test_start, window, few),
        _windows(test_start, len(text), window, few),
    )


def _windows(start: int, end: int, window: int, batch_size: int) -> np.ndarray:
    """Return positions from start to end as windows of contiguous streams (K, T, N)."""
    stream = streams(np.arange(start, end, dtype=np.int32), max(batch_size, 1), drop_last=True)
    window = min(window, len(stream))
    count = len(stream) // window
    return stream[: count * window].reshape(count, window, -1)


def ngram_loss(
    ids: np.ndarray, train_size: int, positions: np.ndarray, order: int, size: int
) -> float:
    r"""Return the cross-entropy of an interpolated n-gram model, in nats a character.

    .. math::

        p_0(b) = \frac1V, \qquad
        p_k(b|a) = \frac{n(ab) + d(a) \, p_{k-1}(b|a')}{n(a) + d(a)}

    a is the context of k - 1 characters and a' the context without its first. In the training set,
    n(ab) counts b after a, n(a) any character after a, and d(a) the distinct characters after a.
    For an unseen context, :math:`p_k = p_{k-1}`. Order 1 is a unigram model, 2 a bigram model.

    Args:
        ids: ids of the characters of the text (S,), integers.
        train_size: number of characters in the training set.
        positions: positions of the target characters, at least `order` - 1.
        order: k; 0 for the uniform distribution.
        size: V.

    Returns:
        The mean of :math:`-\log p_k`.

    Example:
        >>> ids, test = np.array([0, 1] * 50), np.arange(80, 100)
        >>> [round(ngram_loss(ids, 80, test, order, 2), 3) for order in (0, 1, 2)]
        [0.693, 0.693, 0.012]

    Source: I. Witten, T. Bell, The zero-frequency problem, IEEE Transactions on Information Theory
    37 (1991), method C.
    """
    checks.at_least("order", order, 0)
    positions = positions.ravel()
    p = np.full(positions.shape, 1 / size)
    for length in range(order):
        known = np.arange(length, train_size)
        # Contexts are renumbered after each character, which prevents overflow.
        contexts = np.zeros(len(ids), np.int64)
        for back in range(length, 0, -1):
            contexts[length:] = contexts[length:] * size + ids[length - back : len(ids) - back]
            contexts = np.unique(contexts, return_inverse=True)[1]
        pairs = contexts * size + ids
        seen, counts = np.unique(pairs[known], return_counts=True)
        total = np.bincount(contexts[known], minlength=contexts.max() + 1)[contexts[positions]]
        distinct = np.bincount(seen // size, minlength=contexts.max() + 1)[contexts[positions]]
        indices = np.searchsorted(seen, pairs[positions]).clip(max=len(seen) - 1)
        count = np.where(seen[indices] == pairs[positions], counts[indices], 0)
        p = np.where(total > 0, (count + distinct * p) / np.maximum(total + distinct, 1), p)
    return float(-np.log(p).mean())


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
    """Return a character model with weights drawn from a seed.

    Args:
        vocabulary: the V characters.
        cell: "rnn", "lstm" or "gru".
        layers: number of recurrent layers.
        hidden: size of the hidden state.
        embedding: size of the character embedding; 0 for one-hot vectors.
        dropout: dropout probability between layers, in [0, 1).
        seed: seed of the weights.

    Raises:
        ValueError: for an invalid argument, or dropout with a single layer.

    Example:
        >>> make_model(Vocabulary.of("hello"), cell="gru", hidden=8, embedding=3).rnn
        GRU(3, 8)
    """
    checks.choice("cell", cell, tuple(LAYERS))
    checks.at_least("layers", layers, 1)
    checks.at_least("hidden", hidden, 1)
    checks.at_least("embedding", embedding, 0)
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {dropout!r}")
    if dropout and layers == 1:
        raise ValueError(f"`dropout` must be 0 with a single layer, got {dropout}")
    checks.seed(seed)
    rngs = nnx.Rngs(seed)
    table = nnx.Embed(len(vocabulary), embedding, rngs=rngs) if embedding else None
    size = embedding or len(vocabulary)
    rnn = LAYERS[cell](size, hidden, layers, dropout=dropout, rngs=rngs)
    return CharacterModel(rnn, vocabulary, table, rngs=rngs)


class Trained(NamedTuple):
    """Result of `train`.

    Attributes:
        model: the trained model, in evaluation mode.
        history: losses and validation losses, in nats a character.
        losses: test losses by name, in nats a character: `NGRAMS`, and last the recurrent layer.
        epochs: number of passes over the training set.
        best: step with the smallest validation loss, whose parameters the model has.
        seconds: duration of the training and the evaluation.
    """

    model: CharacterModel
    history: History
    losses: dict[str, float]
    epochs: float
    best: int
    seconds: float


def train(
    text: Text,
    model: CharacterModel,
    *,
    steps: int = 1000,
    every: int = 50,
    patience: int = 5,
    lr: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> Trained:
    """Train a model by truncated backpropagation through time, and evaluate it against n-grams.

    .. code-block:: text

        loss_k = mean over t, n of -log p(character[k, t, n] | all before it in stream n)

    The state continues from window to window, the gradient does not. At the start of each epoch the
    state is zero. The optimiser is Adam with cosine decay and gradients clipped to norm 1. The
    parameters with the smallest validation loss are restored, and evaluated on the test set.

    Args:
        text: the text.
        model: a unidirectional, time-first model of its vocabulary, which is updated.
        steps: number of training steps, one window each.
        every: number of steps between validations.
        patience: number of validations without improvement before training stops.
        lr: initial learning rate.
        seed: seed of the dropout masks.
        progress: If True, show a progress bar on a terminal.

    Raises:
        ValueError: for an invalid argument or model.
        NonFiniteLoss: if the loss is not finite.

    Example:
        >>> text = prepare("to be or not to be, that is the question. " * 60, window=16)
        >>> model = make_model(text.vocabulary, cell="gru", hidden=32, embedding=0)
        >>> trained = train(text, model, steps=150)
        >>> list(trained.losses)
        ['uniform', 'unigram', 'bigram', 'trigram', 'GRU']
        >>> trained.losses["GRU"] < trained.losses["unigram"] < trained.losses["uniform"]
        True
        >>> model.generate("to be or", 12, temperature=0)
        ' not to be, '
    """
    for name, value in (("steps", steps), ("every", every), ("patience", patience)):
        checks.at_least(name, value, 1)
    checks.positive("lr", lr)
    checks.seed(seed)
    if model.vocabulary != text.vocabulary:
        raise ValueError("`model` must have the vocabulary of the text")
    if model.rnn.batch_first or model.rnn.bidirectional:
        raise ValueError(f"`model` must be time first and unidirectional, got {model.rnn}")
    start = time.perf_counter()
    count, _, batch_size = text.train.shape
    history = fit(
        _carried_loss,
        _optimizer(lr, steps),
        model,
        (jnp.arange(count) == 0, *map(jnp.asarray, text.pairs(text.train))),
        steps=steps,
        batch_size=1,
        shuffle=False,
        carry=model.rnn.initial_state(batch_size),
        key=seed,
        evaluate=_evaluate,
        validation=text.pairs(text.validation),
        evaluate_every=every,
        early_stopping=EarlyStopping("loss", patience),
        progress=progress,
    ).history
    model.eval()
    losses = {
        name: ngram_loss(text.ids, text.train_size, text.test, order, len(text.vocabulary))
        for order, name in enumerate(NGRAMS)
    }
    losses[type(model.rnn).__name__] = float(mean_loss(model, *text.pairs(text.test)))
    return Trained(
        model,
        history,
        losses,
        epochs=len(history.losses) / count,
        best=int(history.evaluated[history.validation["loss"].argmin()]),
        seconds=time.perf_counter() - start,
    )


def mean_loss(model: CharacterModel, x: Any, y: Any) -> jax.Array:
    """Return the mean cross-entropy over windows, in nats a character.

    Args:
        model: the model, in evaluation mode.
        x: ids of the input characters, integers (K, T, N); batch element n continues from window to
            window.
        y: ids of the target characters (K, T, N).
    """

    def _window(hx: Any, pair: Any) -> tuple[Any, jax.Array]:
        loss, hx = _loss(model, hx, *pair)
        return hx, loss

    x, y = jnp.asarray(x), jnp.asarray(y)
    return lax.scan(_window, model.rnn.initial_state(x.shape[-1]), (x, y))[1].mean()


@functools.lru_cache(maxsize=8)  # `fit` does not compile again for an equal optimizer
def _optimizer(lr: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(lr, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def _loss(model: CharacterModel, hx: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
    """Return the mean loss of a window (T, N), and the final state."""
    logits, hx = model(x, hx)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), hx


def _carried_loss(model: CharacterModel, hx: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Return the loss of a batch of one window, from a zero state at the start of an epoch."""
    first, x, y = jax.tree.map(lambda a: a[0], batch)
    hx = jax.tree.map(lambda h: jnp.where(first, 0, h), hx)
    loss, hx = _loss(model, hx, x, y)
    return loss, (hx, None)


def _evaluate(model: CharacterModel, windows: Any) -> dict[str, jax.Array]:
    return {"loss": mean_loss(model, *windows)}


def save_model(model: CharacterModel, path: str | os.PathLike[str]) -> Path:
    """Write a model to a safetensors file, atomically.

    The tensors have PyTorch's names. The header describes vocabulary, layer and embedding as JSON.

    Args:
        model: a model of an `RNN`, `LSTM` or `GRU`, whose embedding is an `nnx.Embed` or None. Its
            computation dtype is not saved.
        path: the file.

    Raises:
        ValueError: for another layer or embedding.
        OSError: if the file can't be written.

    Example:
        >>> import os, tempfile
        >>> model = make_model(Vocabulary.of("hello"), hidden=8, layers=2, embedding=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     loaded = load_model(save_model(model, os.path.join(folder, "hello.safetensors")))
        >>> loaded.rnn, loaded.vocabulary
        (LSTM(4, 8, num_layers=2), Vocabulary(characters='helo'))
        >>> loaded.generate("he", 8, temperature=0) == model.generate("he", 8, temperature=0)
        True
    """
    kinds = {kind: name for name, kind in LAYERS.items()}
    kind = type(model.rnn)
    if kind not in kinds:
        raise ValueError(f"`model.rnn` must be one of {', '.join(LAYERS)}, got {model.rnn}")
    if not isinstance(model.embedding, nnx.Embed | None):
        name = type(model.embedding).__name__
        raise ValueError(f"`model.embedding` must be an nnx.Embed or None, got {name}")
    parameters = inspect.signature(kind.__init__).parameters.values()
    names = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    description = {
        "vocabulary": model.vocabulary.characters,
        "cell": kinds[kind],
        "layer": {name: getattr(model.rnn, name) for name in names},
        "embedding": None if model.embedding is None else model.embedding.features,
    }
    return write_safetensors(path, state_dict(model), **{_ENTRY: json.dumps(description)})


def load_model(path: str | os.PathLike[str]) -> CharacterModel:
    """Read a model that `save_model` has written, in evaluation mode.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not the file of a character model, or is corrupt.
    """
    return read_model(path, _ENTRY, "character model", _build)


def _build(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> CharacterModel:
    """Return the model of a description, whose sizes must be those of the arrays."""
    vocabulary, layer = Vocabulary(str(description["vocabulary"])), description["layer"]
    size, features = len(vocabulary), description["embedding"]
    width = (layer.get("proj_size") or layer["hidden_size"]) * (2 if layer["bidirectional"] else 1)
    gates, hidden = len(arrays.get("rnn.weight_hh_l0", ())), max(1, layer["hidden_size"])
    expected = {
        "fc.weight": (size, width),
        "rnn.weight_ih_l0": (gates // hidden * hidden, layer["input_size"]),
        f"rnn.weight_hh_l{layer['num_layers'] - 1}": None,
        **({} if features is None else {"embedding.weight": (size, features)}),
    }
    check_shapes(arrays, expected)
    rngs = nnx.Rngs(0)
    embedding = None if features is None else nnx.Embed(size, features, rngs=rngs)
    rnn = LAYERS[description["cell"]](**layer, rngs=rngs)
    model = CharacterModel(rnn, vocabulary, embedding, rngs=rngs)
    load_state_dict(model, arrays)
    model.eval()
    return model
