r"""Heads: a recurrent layer followed by a linear one, for each type of sequence task.

| task | model | x | y |
|---|---|---|---|
| one-to-one | `OneToOne` | (N, D) | (N, O) |
| one-to-many | `OneToMany` | (N, D) | (N, T, O) |
| many-to-one | `ManyToOne` | (N, T, D) | (N, O) |
| many-to-many, aligned | `ManyToMany` | (N, T, D) | (N, T, O) |
| many-to-many, encoder-decoder | `jaxrnn.layers.seq2seq.Seq2Seq` | (N, S) | (N, T, V) |

`Regressor` and `Classifier` are many-to-one models with a loss, `CharacterModel` is a many-to-many
one. A head takes any layer of this package: any cell, number of layers and directions, with or
without a projection, batch-first or not. Its parameters are ``rnn.*``, ``fc.weight`` (O, F*R) and
``fc.bias`` (O,), as of a PyTorch module with the attributes ``rnn`` and ``fc``.

Axis letters: N batch, T time, D input features, O output features, K classes, V vocabulary,
H hidden size, R size of h, L layers, F directions (2 if bidirectional).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from jaxrnn import _checks as checks
from jaxrnn import generation
from jaxrnn._checks import ShapeError
from jaxrnn.backends.step import zero_padding
from jaxrnn.cells.base import compute_dtype
from jaxrnn.core import masks
from jaxrnn.core.params import uniform
from jaxrnn.data import Vocabulary
from jaxrnn.generation.sampling import check_no_dropout
from jaxrnn.layers._checks import cell_input
from jaxrnn.layers._module import check_rngs
from jaxrnn.layers.standard import GRU, LSTM, RNN
from jaxrnn.packing import PackedSequence

LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
"""Layer classes by their names on the command line."""


def linear(
    in_features: int, out_features: int, *, bias: bool = True, rngs: nnx.Rngs, **options: Any
) -> nnx.Linear:
    r"""Return an `nnx.Linear` initialised as ``torch.nn.Linear``.

    Args:
        in_features: D.
        out_features: O.
        bias: If True, add a bias. Defaults to True.
        rngs: random streams; ``params`` draws weight and bias from
            :math:`U(-1/\sqrt{D}, 1/\sqrt{D})`.
        options: ``dtype`` and ``param_dtype``, as in the recurrent layers.

    Example:
        >>> from flax import nnx
        >>> linear(32, 1, rngs=nnx.Rngs(0)).kernel.shape
        (32, 1)
    """
    check_rngs(rngs)

    def _draw(key: jax.Array, shape: Any, dtype: Any, **_: Any) -> jax.Array:
        return uniform(key, shape, in_features, dtype)

    inits: dict[str, Any] = {"kernel_init": _draw, "bias_init": _draw}
    return nnx.Linear(in_features, out_features, use_bias=bias, rngs=rngs, **inits, **options)


class Head(nnx.Module):
    """Base class of the heads: a recurrent layer and a linear layer on its F*R features.

    Args:
        rnn: any layer of this package, whose ``dtype`` and ``param_dtype`` the linear layer shares.
        out_features: O.
        rngs: random streams; ``params`` draws the linear layer's parameters.
    """

    def __init__(self, rnn: Any, out_features: int, *, rngs: nnx.Rngs):
        checks.at_least("out_features", out_features, 1)
        self.rnn = rnn
        dtypes = {"dtype": rnn.dtype, "param_dtype": rnn.param_dtype}
        self.fc = linear(rnn.output_size, out_features, rngs=rngs, **dtypes)


class ManyToMany(Head):
    r"""Aligned many-to-many model: one output per time step.

    .. math::

        h_1, \ldots, h_T = \mathrm{rnn}(x_1, \ldots, x_T), \qquad y_t = W h_t + b

    Called as the layer: ``model(x, hx=None, *, lengths=None, resets=None, rngs=None) -> (y, h_n)``
    with O output features. Outputs are 0 at padding. A PackedSequence returns a PackedSequence.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.heads import ManyToMany
        >>> rngs = nnx.Rngs(0)
        >>> rnn = jaxrnn.RNN(1, 32, batch_first=True, rngs=rngs)
        >>> y, h_n = ManyToMany(rnn, 1, rngs=rngs)(jnp.ones((1, 20, 1)))
        >>> y.shape, h_n.shape
        ((1, 20, 1), (1, 1, 32))
    """

    def __call__(
        self, x: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None, rngs: Any = None
    ) -> tuple[Any, Any]:
        """Return the output of every step, and the final state."""
        output, state = self.rnn(x, hx, lengths=lengths, resets=resets, rngs=rngs)
        y = jax.tree.map(self.fc, output)  # maps the data of a PackedSequence
        if lengths is None:
            return y, state
        batch_first = y.ndim == 3 and self.rnn.batch_first
        valid_mask = masks.valid_mask(jnp.asarray(lengths), y.shape[1 if batch_first else 0])
        return zero_padding(valid_mask if batch_first else valid_mask.T, y), state


class ManyToOne(Head):
    r"""Many-to-one model: one output from the final state of the last layer.

    .. math::

        y = W [h_n^{\mathrm{forward}}; h_n^{\mathrm{reverse}}] + b

    The reverse part exists if the layer is bidirectional. Called as the layer; y is (N, O), or (O,)
    if unbatched. With resets, the forward direction ends in the last piece, the reverse direction
    in the first.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.heads import ManyToOne
        >>> rngs = nnx.Rngs(0)
        >>> rnn = jaxrnn.LSTM(5, 8, bidirectional=True, batch_first=True, rngs=rngs)
        >>> model = ManyToOne(rnn, 3, rngs=rngs)
        >>> y, (h_n, c_n) = model(jnp.ones((2, 7, 5)), lengths=jnp.array([7, 4]))
        >>> y.shape, h_n.shape
        ((2, 3), (2, 2, 8))

    Differs from the common PyTorch idiom ``fc(output[:, -1])``, which reads padding of shorter
    sequences, and of a reverse direction the state after a single step.
    """

    def __call__(
        self, x: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None, rngs: Any = None
    ) -> tuple[jax.Array, Any]:
        """Return the output and the final state."""
        _, state = self.rnn(x, hx, lengths=lengths, resets=resets, rngs=rngs)
        h_n = state[0] if isinstance(state, tuple) else state
        last_layer = h_n[-2:] if self.rnn.bidirectional else h_n[-1:]  # (F, N, R)
        return self.fc(jnp.concatenate(list(last_layer), axis=-1)), state


class OneToOne(Head):
    r"""One-to-one model: a single time step.

    .. math::

        h = \mathrm{rnn}(x, h_0), \qquad y = W h + b

    Call: ``model(x, hx=None, *, resets=None, rngs=None) -> (y, h_n)``, x (N, D) or (D,), y (N, O)
    or (O,). `resets`, bool (N,) or (), sets the state of an example to zero before x is consumed.
    Repeated calls that pass the state on equal one call of `ManyToMany`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.heads import OneToOne
        >>> rngs = nnx.Rngs(0)
        >>> model = OneToOne(jaxrnn.GRU(15, 8, rngs=rngs), 10, rngs=rngs)
        >>> y, h_n = model(jnp.ones((4, 15)))
        >>> y.shape, h_n.shape
        ((4, 10), (1, 4, 8))
    """

    def __call__(
        self, x: Any, hx: Any = None, *, resets: Any = None, rngs: Any = None
    ) -> tuple[jax.Array, Any]:
        """Return the output and the final state."""
        x, time_axis = _single_input(self, x)
        resets = None if resets is None else jnp.expand_dims(jnp.asarray(resets), time_axis)
        output, state = self.rnn(jnp.expand_dims(x, time_axis), hx, resets=resets, rngs=rngs)
        return self.fc(output.squeeze(time_axis)), state


class OneToMany(Head):
    r"""One-to-many model: a sequence from a single input.

    .. math::

        h_1 = \mathrm{rnn}(x, h_0), \quad h_t = \mathrm{rnn}(y_{t-1}, h_{t-1}), \quad
        y_t = W h_t + b

    Args:
        rnn, rngs: as in `Head`; the layer is unidirectional if `feedback` is True.
        out_features: O. Defaults to D.
        feedback: If True, each output is the next input, and O = D. If False, every step has the
            input x. Defaults to True.

    Call: ``model(x, length, hx=None, *, rngs=None) -> (y, h_n)``, x (N, D) or (D,), `length` the
    number T of outputs; y (T, N, O), (N, T, O) if ``batch_first``, (T, O) if unbatched. Feedback
    is a differentiable `jaxrnn.generation.rollout`, without dropout. For sampled tokens see
    `jaxrnn.generation.generate`.

    Raises:
        ValueError: if `feedback` is True and O differs from D, the layer is bidirectional or its
            dropout is active.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.heads import OneToMany
        >>> rngs = nnx.Rngs(0)
        >>> model = OneToMany(jaxrnn.GRU(2, 8, batch_first=True, rngs=rngs), rngs=rngs)
        >>> y, h_n = model(jnp.ones((3, 2)), 6)
        >>> y.shape, h_n.shape
        ((3, 6, 2), (1, 3, 8))
    """

    def __init__(
        self, rnn: Any, out_features: int | None = None, feedback: bool = True, *, rngs: nnx.Rngs
    ):
        size: int = rnn.input_size if out_features is None else out_features
        if feedback and size != rnn.input_size:
            raise ValueError(
                f"`out_features` must be {rnn.input_size}, the input_size of {rnn}, since each "
                f"output is the next input, got {size}. Or pass feedback=False."
            )
        if feedback:
            generation.value_step(rnn)  # refuses a bidirectional layer
        super().__init__(rnn, size, rngs=rngs)
        self.feedback = feedback

    def __call__(
        self, x: Any, length: int, hx: Any = None, *, rngs: Any = None
    ) -> tuple[jax.Array, Any]:
        """Return the outputs of `length` steps, and the final state."""
        checks.at_least("length", length, 1)
        x, time_axis = _single_input(self, x)
        rnn, batched = self.rnn, x.ndim == 2
        if not self.feedback:
            inputs = jnp.repeat(jnp.expand_dims(x, time_axis), length, axis=time_axis)
            output, state = rnn(inputs, hx, rngs=rngs)
            return self.fc(output), state
        # Checks hx as a call of the layer does, before an unbatched input gets a batch axis.
        _, checked = rnn._check_call(jnp.expand_dims(x, time_axis), hx)
        batch_size = len(x) if batched else None
        state = rnn.initial_state(batch_size) if checked is None else rnn._as_hx(checked)
        if rnn.dtype is not None:
            x, state = jax.tree.map(lambda a: a.astype(rnn.dtype), (x, state))
        if not batched:
            x, state = x[None], jax.tree.map(lambda s: s[:, None], state)
        step = generation.value_step(rnn, self.fc)
        y, state = generation.rollout(step, generation.batch_major(state), x, length)
        state = generation.batch_major(state)
        if not batched:
            return y[0], jax.tree.map(lambda s: s[:, 0], state)
        return y if rnn.batch_first else y.swapaxes(0, 1), state


def _single_input(head: Head, x: Any) -> tuple[jax.Array, int]:
    """Check the axes of one step, (N, D) or (D,); return it with the layer's time axis."""
    x = jnp.asarray(x)
    cell_input(type(head).__name__, x)
    return x, 1 if head.rnn.batch_first and x.ndim == 2 else 0


# Losses


def check_tokens(name: str, tokens: Any, lengths: Any, vocab_size: int) -> tuple[Any, Any]:
    """Return tokens as int32 (N, T), 0 at padding, and lengths as int32 (N,) or None.

    Valid tokens must lie in [0, vocab_size), which is not checked for traced ones.
    """
    concrete = not isinstance(tokens, Tracer)
    tokens = check_integers(name, np.asarray(tokens) if concrete else tokens)
    if tokens.ndim != 2:
        raise ShapeError(f"`{name}` must have shape (N, T), got shape {tokens.shape}.")
    valid_mask = None
    if lengths is not None:
        batch_size, steps = tokens.shape
        lengths = masks.check_lengths(lengths, steps, batch_size)
        valid_mask = masks.valid_mask(lengths, steps)
    if concrete and not isinstance(valid_mask, Tracer):
        wrong = (tokens < 0) | (tokens >= vocab_size)
        wrong = wrong if valid_mask is None else wrong & np.asarray(valid_mask)
        if wrong.any():
            raise ValueError(
                f"`{name}` must be tokens from 0 to {vocab_size - 1}, got {tokens[wrong][0]}."
            )
    tokens = jnp.asarray(tokens).astype(jnp.int32)
    return tokens if valid_mask is None else jnp.where(valid_mask, tokens, 0), lengths


def check_integers(name: str, values: Any) -> Any:
    """Check that an array has an integer dtype, and return it."""
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integers, got {values.dtype.name}.")
    return values


def cross_entropy(logits: jax.Array, target: Any, lengths: Any = None) -> jax.Array:
    r"""Return the mean cross-entropy of all valid tokens, in nats.

    .. math::

        -\frac{1}{\sum_n \mathrm{len}_n} \sum_n \sum_{t < \mathrm{len}_n}
        \log \mathrm{softmax}(\mathrm{logits}_{nt})_{\mathrm{target}_{nt}}

    Args:
        logits: (N, T, V).
        target: integers (N, T).
        lengths: number of tokens of each sequence, integers (N,), 0 allowed. Defaults to T.
            Padding, of any content, contributes neither value nor gradient.

    Returns:
        A scalar, at least float32; 0 if no token is valid.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.9, 0.1]]]))
        >>> target = jnp.array([[0, 0]])
        >>> round(cross_entropy(logits, target, jnp.array([1])).item(), 3)
        0.693
    """
    target, lengths = check_tokens("target", target, lengths, logits.shape[-1])
    logits = logits.astype(compute_dtype(logits.dtype))
    valid_mask = jnp.ones(target.shape, bool)
    if lengths is not None:
        valid_mask = masks.valid_mask(lengths, target.shape[1])
        logits = zero_padding(valid_mask, logits)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
    total = -jnp.where(valid_mask, log_probs[..., 0], 0.0).sum()
    return total / jnp.maximum(valid_mask.sum(), 1)


class Regressor(ManyToOne):
    """Many-to-one regression.

    Args:
        rnn, rngs: as in `Head`.
        out_features: O. Defaults to 1.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.heads import Regressor
        >>> rngs = nnx.Rngs(0)
        >>> model = Regressor(jaxrnn.LSTM(5, 8, batch_first=True, rngs=rngs), rngs=rngs)
        >>> model.loss(jnp.ones((4, 7, 5)), jnp.zeros((4, 1))).shape
        ()
    """

    def __init__(self, rnn: Any, out_features: int = 1, *, rngs: nnx.Rngs):
        super().__init__(rnn, out_features, rngs=rngs)

    def loss(self, x: Any, y: Any, hx: Any = None, **options: Any) -> jax.Array:
        """Return the mean squared error, in the squared unit of y.

        Args:
            x: input; it, `hx` and `options` are the arguments of a call.
            y: target with the shape of the prediction, (N, O) or (O,); never broadcast.
        """
        predicted, _ = self(x, hx, **options)
        y = jnp.asarray(y)
        if y.shape != predicted.shape:
            raise ShapeError(
                f"`y` must have the shape of the prediction. Expected {predicted.shape}, "
                f"got {y.shape}"
            )
        error = predicted.astype(compute_dtype(predicted.dtype)) - y
        return jnp.mean(error**2)


class Classifier(ManyToOne):
    """Many-to-one classification; a call returns logits (N, K).

    Args:
        rnn, rngs: as in `Head`.
        classes: K.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.heads import Classifier
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
        """Return the probability of each class, (N, K). Arguments are those of a call."""
        logits, _ = self(x, hx, **options)
        return jax.nn.softmax(logits.astype(compute_dtype(logits.dtype)))

    def loss(self, x: Any, y: Any, hx: Any = None, **options: Any) -> jax.Array:
        """Return the mean cross-entropy, in nats.

        Args:
            x: input; it, `hx` and `options` are the arguments of a call.
            y: class of each sequence, integers (N,), or () if unbatched.
        """
        logits, _ = self(x, hx, **options)
        y = check_integers("y", jnp.asarray(y))
        if y.shape != logits.shape[:-1]:
            raise ShapeError(
                f"`y` must be one class per sequence. Expected shape {logits.shape[:-1]}, "
                f"got {y.shape}"
            )
        return cross_entropy(logits.reshape(-1, 1, logits.shape[-1]), y.reshape(-1, 1))  # T = 1


class CharacterModel(ManyToMany):
    r"""Character-level language model.

    .. math::

        p(y_{t+1} \mid y_1, \ldots, y_t) = \mathrm{softmax}(W h_t + b)

    Args:
        rnn, rngs: as in `Head`; the layer is unidirectional for `generate`.
        vocabulary: V characters, a `jaxrnn.data.Vocabulary` or a string of distinct characters.
        embedding: an `nnx.Embed` or another function from integers to vectors. Defaults to one-hot
            vectors; the layer's input size is V then.

    Called as `ManyToMany`, with character indices for x: integers (T, N), (N, T) if
    ``batch_first``, (T,), or a PackedSequence. Returns logits with V features. An embedding adds
    the parameter ``embedding.weight`` (V, D).

    Raises:
        ValueError: for fewer than two or repeated characters, or an input size other than V without
            an embedding.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.heads import CharacterModel
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
        checks.at_least("len(vocabulary)", size, 2)
        if embedding is None and rnn.input_size != size:
            raise ValueError(
                f"One-hot vectors of {size} characters need an input_size of {size}, got {rnn}. Or "
                "pass an embedding."
            )
        super().__init__(rnn, size, rngs=rngs)
        self.vocabulary = vocabulary
        self.embedding = embedding

    def __call__(
        self, x: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None, rngs: Any = None
    ) -> tuple[Any, Any]:
        """Return the logits of the character after each one, and the final state."""
        if not isinstance(x, PackedSequence):
            x = check_integers("x", jnp.asarray(x))
        vectors = jax.tree.map(self._embed, x)
        return super().__call__(vectors, hx, lengths=lengths, resets=resets, rngs=rngs)

    def _embed(self, indices: jax.Array) -> jax.Array:
        if self.embedding is not None:
            return self.embedding(indices)
        dtype = self.rnn.param_dtype if self.rnn.dtype is None else self.rnn.dtype
        return self.vocabulary.one_hot(indices, dtype)

    def loss(
        self, x: Any, y: Any, hx: Any = None, *, lengths: Any = None, **options: Any
    ) -> jax.Array:
        """Return the mean cross-entropy of all valid characters, in nats.

        Args:
            x: character indices, no PackedSequence; it and the others are the arguments of a call.
            y: index of the character after each one, with the shape of x.
        """
        logits, _ = self(x, hx, lengths=lengths, **options)
        y = check_integers("y", jnp.asarray(y))
        if y.shape != logits.shape[:-1]:
            raise ShapeError(
                f"`y` must have the shape of x. Expected {logits.shape[:-1]}, got {y.shape}"
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
        """Return `length` characters sampled after a prompt of at least one character.

        The other arguments are those of `jaxrnn.generation.generate`.

        Raises:
            ValueError: for an empty prompt, characters outside the vocabulary, a bidirectional
                layer or active dropout; and as `jaxrnn.generation.generate`.
        """
        if not prompt:
            raise ValueError("`prompt` must have at least one character, got ''.")
        check_no_dropout(self.rnn)
        step = generation.token_step(self.rnn, self.fc, embed=self.embedding)
        indices = jnp.asarray(self.vocabulary.encode(prompt))
        state = step.initial_state(1)
        if len(prompt) > 1:  # one call consumes all but the last character
            consumed = indices[None, :-1] if self.rnn.batch_first else indices[:-1, None]
            state = generation.batch_major(self(consumed, generation.batch_major(state))[1])
        options: Any = {"key": key, "temperature": temperature, "top_k": top_k}
        sample = generation.generate(step, state, indices[-1:], length, **options)
        return self.vocabulary.decode(sample.tokens[0])
