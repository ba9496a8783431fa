"""Heads with a purpose and a loss: `Regressor`, `Classifier`, `CharacterModel`.

Axis letters: N batch, T time, D input features, O outputs, K classes, V characters.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import generation
from jaxrnn._checks import ShapeError
from jaxrnn.cells.base import compute_dtype
from jaxrnn.data import Vocabulary
from jaxrnn.generation.steps import check_no_dropout
from jaxrnn.layers.heads import ManyToMany, ManyToOne
from jaxrnn.layers.seq2seq import cross_entropy
from jaxrnn.packing import PackedSequence


class Regressor(ManyToOne):
    r"""`ManyToOne` for numbers: the next value of a series, say.

    Args:
        rnn: any layer of this package.
        out_features: O, how many numbers.
        rngs: the stream for the linear layer's parameters (``params``).

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.models import Regressor
        >>> rngs = nnx.Rngs(0)
        >>> model = Regressor(jaxrnn.LSTM(5, 8, batch_first=True, rngs=rngs), rngs=rngs)
        >>> model.loss(jnp.ones((4, 7, 5)), jnp.zeros((4, 1))).shape
        ()
    """

    def __init__(self, rnn: Any, out_features: int = 1, *, rngs: nnx.Rngs):
        super().__init__(rnn, out_features, rngs=rngs)

    def loss(self, x: Any, y: Any, hx: Any = None, **options: Any) -> jax.Array:
        """The mean squared error, in the square of the unit of y.

        Args:
            x: what goes in, as of the call.
            y: what should come out, shaped as what does: (N, O), or (O,) without a batch. Never
                broadcast: (N,) against (N, 1) would be N * N errors.
            hx: the initial state, as of the call.
            options: ``lengths``, ``resets``, ``rngs``, as of the call.
        """
        predicted, _ = self(x, hx, **options)
        y = jnp.asarray(y)
        if y.shape != predicted.shape:
            raise ShapeError(
                f"y should be shaped as what comes out. Expected {predicted.shape}, got {y.shape}"
            )
        error = predicted.astype(compute_dtype(predicted.dtype)) - y
        return jnp.mean(error**2)


class Classifier(ManyToOne):
    r"""`ManyToOne` for classes: y are their logits.

    Args:
        rnn: any layer of this package.
        classes: K, how many.
        rngs: the stream for the linear layer's parameters (``params``).

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.models import Classifier
        >>> rngs = nnx.Rngs(0)
        >>> model = Classifier(jaxrnn.GRU(5, 8, batch_first=True, rngs=rngs), 3, rngs=rngs)
        >>> x, lengths = jnp.ones((2, 7, 5)), jnp.array([7, 4])
        >>> model.loss(x, jnp.array([0, 2]), lengths=lengths).shape
        ()
        >>> model.probabilities(x, lengths=lengths).sum(-1).round(3).tolist()
        [1.0, 1.0]
    """

    def __init__(self, rnn: Any, classes: int, *, rngs: nnx.Rngs):
        checks.at_least("classes", classes, 2)
        super().__init__(rnn, classes, rngs=rngs)

    def probabilities(self, x: Any, hx: Any = None, **options: Any) -> jax.Array:
        """The probability of each class, (N, K); the arguments are those of the call."""
        logits, _ = self(x, hx, **options)
        return jax.nn.softmax(logits.astype(compute_dtype(logits.dtype)))

    def loss(self, x: Any, y: Any, hx: Any = None, **options: Any) -> jax.Array:
        """The mean cross-entropy, in nats.

        Args:
            x: what goes in, as of the call.
            y: the number of the class of each row, integers (N,), or () without a batch.
            hx: the initial state, as of the call.
            options: ``lengths``, ``resets``, ``rngs``, as of the call.
        """
        logits, _ = self(x, hx, **options)
        y = _integers("y", y)
        if y.shape != logits.shape[:-1]:
            raise ShapeError(
                f"y should be one class for each row. Expected shape {logits.shape[:-1]}, "
                f"got {y.shape}"
            )
        shape = (-1, 1, self.out_features)  # to the loss, a sequence of one step for each row
        return cross_entropy(logits.reshape(shape), y.reshape(-1, 1))


class CharacterModel(ManyToMany):
    r"""`ManyToMany` for text: from each character the next.

    .. code-block:: text

        logits_t = W h_t + b;      p(character_{t+1} | all before) = softmax(logits_t)

    Args:
        rnn: any layer of this package; of one direction, to generate.
        vocabulary: the characters there are, V of them: a `jaxrnn.data.Vocabulary`, or a string
            with each of them once.
        embedding: None for one-hot vectors, the layer's input size being V; or an `nnx.Embed` or
            another function from integers to vectors.
        rngs: the stream for the linear layer's parameters (``params``).

    Call: as of `ManyToMany`, with the numbers of characters in place of x, integers (T, N), (N, T)
    if ``batch_first``, (T,) without a batch, or a PackedSequence of them; the logits have V
    features. Parameters: ``rnn.*``, ``fc.*``, and ``embedding.weight`` (V, D) if there is one.

    Raises:
        ValueError: for characters that repeat, a single one, or an input size that is not V where
            there is no embedding.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.models import CharacterModel
        >>> rngs = nnx.Rngs(0)
        >>> model = CharacterModel(jaxrnn.GRU(4, 8, batch_first=True, rngs=rngs), "helo", rngs=rngs)
        >>> hello = model.vocabulary.encode("hello")
        >>> model.loss(hello[None, :-1], hello[None, 1:]).shape
        ()
        >>> len(model.generate("he", 10, key=jax.random.key(0)))
        10
    """

    def __init__(
        self, rnn: Any, vocabulary: Vocabulary | str, embedding: Any = None, *, rngs: nnx.Rngs
    ):
        if isinstance(vocabulary, str):
            vocabulary = Vocabulary(vocabulary)
        size = len(vocabulary)
        checks.at_least("the number of characters in the vocabulary", size, 2)
        if embedding is None and rnn.input_size != size:
            raise ValueError(
                f"one-hot vectors of {size} characters need an input_size of {size}, got {rnn}; "
                "or pass an embedding"
            )
        super().__init__(rnn, size, rngs=rngs)
        self.vocabulary = vocabulary
        self.embedding = embedding

    def __call__(
        self, x: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None, rngs: Any = None
    ) -> tuple[Any, Any]:
        """The logits of what follows each character, and the state after the last."""
        x = x if isinstance(x, PackedSequence) else _integers("the numbers of characters", x)
        vectors = jax.tree.map(self._vectors, x)
        return super().__call__(vectors, hx, lengths=lengths, resets=resets, rngs=rngs)

    def _vectors(self, numbers: jax.Array) -> jax.Array:
        if self.embedding is not None:
            return self.embedding(numbers)
        dtype = self.rnn.param_dtype if self.rnn.dtype is None else self.rnn.dtype
        return self.vocabulary.one_hot(numbers, dtype)

    def loss(
        self, x: Any, y: Any, hx: Any = None, *, lengths: Any = None, **options: Any
    ) -> jax.Array:
        """The mean cross-entropy of all characters that are some row's, in nats.

        Args:
            x: the numbers of characters, as of the call; no PackedSequence.
            y: the number of the character that follows each, shaped as x.
            hx: the initial state, as of the call.
            lengths: the characters of each row; what is past them does not count.
            options: ``resets``, ``rngs``, as of the call.
        """
        logits, _ = self(x, hx, lengths=lengths, **options)
        y = _integers("y", y)
        if y.shape != logits.shape[:-1]:
            raise ShapeError(
                f"y should be shaped as x. Expected {logits.shape[:-1]}, got {y.shape}"
            )
        if y.ndim == 1:
            logits, y = logits[None], y[None]
            lengths = None if lengths is None else jnp.asarray(lengths)[None]
        elif not self.rnn.batch_first:
            logits, y = logits.swapaxes(0, 1), y.T
        return cross_entropy(logits, y, lengths)

    def generate(
        self,
        prompt: str,
        length: int,
        *,
        key: jax.Array | None = None,
        temperature: Any = 1.0,
        top_k: int | None = None,
    ) -> str:
        """What the model says after a prompt: so many characters, each the next input.

        Args:
            prompt: at least one character.
            length: how many characters to say.
            key: the PRNG key; not needed at temperature 0.
            temperature: 0 for the likeliest character each time.
            top_k: draw among so many likeliest characters; None for all.

        Raises:
            ValueError: for an empty prompt, characters that the model doesn't have, a layer of two
                directions or with active dropout; and as `jaxrnn.generation.generate` does.
        """
        if not prompt:
            raise ValueError("prompt should have at least one character")
        check_no_dropout(self.rnn)  # before the layer hears the prompt
        step = generation.token_step(self.rnn, self.fc, embed=self.embedding)
        numbers = jnp.asarray(self.vocabulary.encode(prompt))
        state = step.initial_state(1)
        if len(prompt) > 1:  # the layer hears all but the last character in one call
            hx = generation.rows_first(state)
            heard = numbers[None, :-1] if self.rnn.batch_first else numbers[:-1, None]
            state = generation.rows_first(self(heard, hx)[1])
        said = generation.generate(
            step, state, numbers[-1:], length, key=key, temperature=temperature, top_k=top_k
        )
        return self.vocabulary.decode(said.tokens[0])


def _integers(name: str, values: Any) -> jax.Array:
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} should be integers, got {values.dtype.name}")
    return values
