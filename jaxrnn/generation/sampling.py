"""Steps made from layers, and the loops that feed each output back: `generate` and `rollout`.

Axis letters: N batch, V vocabulary, T time, D features, L layers, H hidden size, R size of h.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxrnn import _checks as checks
from jaxrnn._checks import ShapeError
from jaxrnn.cells.base import compute_dtype

Step = Callable[[Any, jax.Array], tuple[jax.Array, Any]]
"""A function ``step(state, inputs) -> (outputs, state)``."""


def batch_major(states: Any) -> Any:
    """Swap the first two axes of every state: (L, N, H) to (N, L, H), and back.

    Example:
        >>> import jax.numpy as jnp
        >>> h, c = batch_major((jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 5))))
        >>> h.shape, c.shape
        ((3, 2, 4), (3, 2, 5))
    """
    return jax.tree.map(lambda s: s.swapaxes(0, 1), states)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LayerStep:
    """A step made from a recurrent layer by `token_step` or `value_step`."""

    layer: Any
    head: Any  # applied to the layer's output, or None
    embed: Any  # applied to the input, or None

    def __call__(self, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        """Return the outputs of one time step, and the new state."""
        layer = self.layer
        check_no_dropout(layer)
        if self.embed is not None:
            x = self.embed(x)
        time = 1 if getattr(layer, "batch_first", False) else 0
        output, state = layer(jnp.expand_dims(x, time), batch_major(state))
        output = output.squeeze(time)
        return output if self.head is None else self.head(output), batch_major(state)

    def initial_state(self, batch_size: int) -> Any:
        """Return the layer's batch-major initial state."""
        return batch_major(self.layer.initial_state(batch_size))


@jax.tree_util.register_static
@dataclass(frozen=True)
class _OneHot:
    size: int
    dtype: Any

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jax.nn.one_hot(tokens, self.size, dtype=self.dtype)


def value_step(layer: Any, head: Any = None) -> LayerStep:
    """Make a step for `rollout` from a layer and a head, (N, D) to (N, D); see `token_step`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.generation import value_step
        >>> step = value_step(jaxrnn.GRU(4, 4, rngs=nnx.Rngs(0)))
        >>> y, state = step(step.initial_state(2), jnp.ones((2, 4)))
        >>> y.shape, state.shape
        ((2, 4), (2, 1, 4))
    """
    if getattr(layer, "bidirectional", False):
        raise ValueError(
            f"Generation needs a unidirectional layer, got {layer}: its reverse direction would "
            "read tokens that are not generated yet."
        )
    return LayerStep(layer, head, None)


def token_step(layer: Any, head: Any = None, *, embed: Any = None) -> LayerStep:
    r"""Make a step for `generate` and `beam_search` from an embedding, a layer and a head.

    .. math::

        o_t, s_t = \mathrm{layer}(\mathrm{embed}(y_{t-1}), s_{t-1}), \qquad
        \mathrm{logits}_t = \mathrm{head}(o_t)

    Args:
        layer: a unidirectional layer of this package, or any module called
            ``layer(x (1, N, D), states) -> (output (1, N, F), states)``.
        head: a module or function from the output (N, R) to logits (N, V). Defaults to None: the
            output is the logits.
        embed: a module or function from tokens (N,) to (N, D), such as an `nnx.Embed`. Defaults to
            one-hot vectors of the layer's input size.

    Returns:
        The step; ``step.initial_state(N)`` is its state without a prompt.

    Raises:
        ValueError: if the layer is bidirectional.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.generation import generate, token_step
        >>> step = token_step(jaxrnn.RNN(5, 5, rngs=nnx.Rngs(0)))  # one-hot in, logits out
        >>> generate(step, step.initial_state(1), [0], 4, temperature=0).tokens.shape
        (1, 4)
    """
    if embed is None:
        size = getattr(layer, "input_size", None)
        if size is None:
            raise ValueError(f"{type(layer).__name__} has no input_size. Pass embed=.")
        embed = _OneHot(size, layer.param_dtype if layer.dtype is None else layer.dtype)
    return replace(value_step(layer, head), embed=embed)


class Generated(NamedTuple):
    """The result of `generate`.

    Attributes:
        tokens: int32 (N, T); `eos` after the end of a sequence.
        log_probs: log-probabilities (N, T), in nats, before temperature and top-k; 0 after the end.
        lengths: number of tokens, `eos` included, int32 (N,).
        state: the state from which the last token was drawn, and which has not consumed it.
    """

    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array
    state: Any


def generate(
    step: Step,
    state: Any,
    tokens: Any,
    length: int,
    *,
    key: jax.Array | None = None,
    temperature: Any = 1.0,
    top_k: int | None = None,
    eos: int | None = None,
) -> Generated:
    r"""Sample tokens autoregressively.

    .. math::

        \mathrm{logits}_t, s_t = \mathrm{step}(s_{t-1}, y_{t-1}), \qquad
        y_t \sim \mathrm{softmax}(\mathrm{logits}_t / \mathrm{temperature})

    Args:
        step: ``step(state, tokens) -> (logits (N, V), state)``.
        state: batch-major state before `tokens`: ``step.initial_state(N)``, or ``batch_major(h_n)``
            after a prompt.
        tokens: first inputs, integers (N,): a start symbol, or the last tokens of a prompt.
        length: T, the number of tokens to sample.
        key: PRNG key, into which step t folds t. Optional if `temperature` is 0.
        temperature: () or (N,), may be traced. 0 selects the most likely token, as does a traced
            negative value. Defaults to 1.
        top_k: sample from the `top_k` most likely tokens. Defaults to the whole vocabulary.
        eos: token that ends a sequence. Later tokens are `eos` and the state is unchanged; once
            every sequence has ended, the remaining steps are skipped. Defaults to None.

    Returns:
        Tokens, log-probabilities, lengths and the final state. At temperature 1 the sum of
        ``reward * log_probs`` has the gradient of REINFORCE.

    Raises:
        ValueError: for a missing key, an argument outside its range, or wrong shapes (also a
            RuntimeError).
        TypeError: if `tokens` are not integers.

    Example:
        One call of the layer consumes all but the last token of a prompt; prompts of different
        lengths need ``layer(x, lengths=lengths - 1)``.

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.generation import batch_major, generate, token_step
        >>> rngs = nnx.Rngs(0)
        >>> embed, layer = nnx.Embed(50, 8, rngs=rngs), jaxrnn.GRU(8, 16, rngs=rngs)
        >>> step = token_step(layer, nnx.Linear(16, 50, rngs=rngs), embed=embed)
        >>> prompt = jnp.array([[3, 1, 4], [1, 5, 9]])                   # (N, T)
        >>> _, h_n = layer(embed(prompt[:, :-1]).swapaxes(0, 1))         # (T, N, D)
        >>> sample = generate(step, batch_major(h_n), prompt[:, -1], 7, key=jax.random.key(0))
        >>> sample.tokens.shape, sample.log_probs.shape, sample.lengths.tolist()
        ((2, 7), (2, 7), [7, 7])
        >>> more = generate(step, sample.state, sample.tokens[:, -1], 5, temperature=0)
    """
    checks.at_least("length", length, 1)
    if top_k is not None:
        checks.at_least("top_k", top_k, 1)
    tokens = check_first_tokens(tokens)
    temperature = check_temperature(temperature, len(tokens))
    if temperature is not None and key is None:
        raise ValueError(
            "Sampling needs a PRNG key. Pass key=jax.random.key(seed), or temperature=0 for the "
            "most likely tokens."
        )
    inputs = (state, tokens, None if temperature is None else key, temperature)
    return run_loop(_generate, step, *inputs, length=length, top_k=top_k, eos=eos)


def _generate(
    step: Step,
    state: Any,
    tokens: jax.Array,
    key: Any,
    temperature: Any,
    *,
    length: int,
    top_k: int | None,
    eos: int | None,
) -> Generated:
    state = jax.tree.map(jnp.asarray, state)
    vocab_size, dtype = check_token_step(step, state, tokens, eos)
    if top_k is not None and top_k > vocab_size:
        raise ValueError(f"`top_k` must be from 1 to {vocab_size}, the vocabulary, got {top_k}.")

    def _draw(carry: Any, index: jax.Array) -> Any:
        state, token, ended = carry
        logits, new_state = step(state, token)
        logits = logits.astype(dtype)
        step_key = None if key is None else jax.random.fold_in(key, index)
        token = _sample_token(logits, step_key, temperature, top_k)
        log_prob = _take_last(jax.nn.log_softmax(logits), token)
        if eos is not None:
            token = jnp.where(ended, eos, token)
            log_prob = jnp.where(ended, 0.0, log_prob)
            new_state = jax.tree.map(lambda old, new: _select(ended, old, new), state, new_state)
            ended = ended | (token == eos)
        return (new_state, token, ended), (token, log_prob)

    def _draw_unless_ended(carry: Any, index: jax.Array) -> Any:
        skipped = (carry, (carry[1], jnp.zeros(tokens.shape, dtype)))
        return lax.cond(carry[2].all(), lambda *_: skipped, _draw, carry, index)

    start = (state, tokens, jnp.zeros(tokens.shape, bool))
    body = _draw if eos is None else _draw_unless_ended
    (state, _, _), (drawn, log_probs) = lax.scan(body, start, jnp.arange(length))
    lengths = jnp.full(tokens.shape, length, jnp.int32)
    if eos is not None:
        is_eos = drawn == eos
        lengths = jnp.where(is_eos.any(0), is_eos.argmax(0).astype(jnp.int32) + 1, lengths)
    return Generated(drawn.T, log_probs.T, lengths, state)


def _sample_token(logits: jax.Array, key: Any, temperature: Any, top_k: int | None) -> jax.Array:
    """Sample a token per example from logits (N, V)."""
    if temperature is None:
        return logits.argmax(1).astype(jnp.int32)
    values, candidates = (logits, None) if top_k is None else lax.top_k(logits, top_k)
    positive = temperature > 0
    # Relative to the largest logit, a temperature near zero overflows to -inf rather than to inf.
    values = values - values.max(1, keepdims=True)
    scaled = values / jnp.where(positive, temperature, 1.0).astype(values.dtype)[:, None]
    index = jnp.where(positive, jax.random.categorical(key, scaled), values.argmax(1))
    return (index if candidates is None else _take_last(candidates, index)).astype(jnp.int32)


def _take_last(values: jax.Array, index: jax.Array) -> jax.Array:
    """Return ``values[n, index[n]]`` for values (N, M) and index (N,)."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def _select(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Select x where the mask (N,) is True, else y, both (N, ...)."""
    return jnp.where(mask.reshape(-1, *(1,) * (y.ndim - 1)), x, y)


def rollout(step: Step, state: Any, x: Any, length: int) -> tuple[jax.Array, Any]:
    r"""Predict autoregressively: each output is the next input.

    .. math::

        y_t, s_t = \mathrm{step}(s_{t-1}, y_{t-1}), \qquad y_0 = x

    Args:
        step: ``step(state, x (N, D)) -> (y (N, D), state)``.
        state: batch-major state (N, ...) before x.
        x: first input (N, D).
        length: T, the number of outputs.

    Returns:
        The outputs (N, T, D) and the final state.

    Raises:
        ValueError: if `length` is below 1, or for wrong shapes (also a RuntimeError).

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.generation import batch_major, rollout, value_step
        >>> from jaxrnn.layers.heads import ManyToMany
        >>> rngs = nnx.Rngs(0)
        >>> model = ManyToMany(jaxrnn.RNN(1, 32, batch_first=True, rngs=rngs), 1, rngs=rngs)
        >>> y, h_n = model(jnp.ones((3, 20, 1)))
        >>> step = value_step(model.rnn, model.fc)
        >>> forecast, state = rollout(step, batch_major(h_n), y[:, -1], 50)
        >>> forecast.shape
        (3, 50, 1)
    """
    checks.at_least("length", length, 1)
    return run_loop(_rollout, step, state, jnp.asarray(x), length=length)


def _rollout(step: Step, state: Any, x: jax.Array, *, length: int) -> tuple[jax.Array, Any]:
    state = jax.tree.map(jnp.asarray, state)
    y = _check_step(step, state, x)
    if (y.shape, y.dtype) != (x.shape, x.dtype):
        raise ShapeError(
            "In a rollout the output of `step` is its next input and must have its shape and "
            f"dtype. Expected {x.dtype.name} {x.shape}, got {y.dtype.name} {y.shape}."
        )

    def _body(carry: Any, _: None) -> Any:
        y, state = step(*carry)
        return (state, y), y

    (state, _), outputs = lax.scan(_body, (state, x), length=length)
    return outputs.swapaxes(0, 1), state


# Shared with `jaxrnn.generation.beam_search` and the models of `jaxrnn.layers`


def run_loop(loop: Callable[..., Any], step: Step, *arrays: Any, **options: Any) -> Any:
    """Run ``loop(step, *arrays, **options)``, compiled if the step consists of modules alone.

    Any other function would be compiled together with the current parameters it refers to.
    """
    leaves = jax.tree.leaves(step)
    if isinstance(step, LayerStep) and all(isinstance(leaf, jax.Array) for leaf in leaves):
        return _compiled(loop, tuple(options.items()), step, arrays)
    return loop(step, *arrays, **options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(loop: Any, options: tuple[tuple[str, Any], ...], step: Step, arrays: Any) -> Any:
    return loop(step, *arrays, **dict(options))


def active_dropout(layer: Any) -> dict[str, float]:
    """Return the probability of every dropout mask that a call of the layer draws, by option."""
    if not getattr(layer, "training", False):
        return {}
    dropout = getattr(layer, "dropout", 0.0) if getattr(layer, "num_layers", 1) > 1 else 0.0
    regularization = getattr(layer, "_regularization", None)
    drawn = {} if regularization is None else regularization.random
    return ({"dropout": dropout} if dropout else {}) | drawn


def check_no_dropout(layer: Any) -> None:
    """Check that a layer draws no dropout mask, which would differ from step to step."""
    active = ", ".join(f"{name}={p}" for name, p in active_dropout(layer).items())
    if active:
        raise ValueError(
            f"{active} is active. Generate in evaluation mode: call model.eval(), or use "
            "nnx.view(model, deterministic=True)."
        )


def check_temperature(value: Any, batch_size: int) -> jax.Array | None:
    """Return the temperature of each example (N,), or None if it is known to be 0."""
    concrete = not isinstance(value, Tracer)
    value = np.asarray(value) if concrete else value
    if value.shape not in ((), (batch_size,)):
        raise ShapeError(f"`temperature` must have shape () or ({batch_size},), got {value.shape}.")
    if concrete and not (value >= 0).all():
        raise ValueError(f"`temperature` must be 0 or greater, got {value}.")
    if concrete and not value.any():
        return None
    return jnp.broadcast_to(jnp.asarray(value, jnp.result_type(float)), (batch_size,))


def check_first_tokens(tokens: Any) -> jax.Array:
    """Return the first tokens as int32 (N,)."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"`tokens` must be integers, got {tokens.dtype.name}.")
    if tokens.ndim != 1:
        raise ShapeError(f"`tokens` must have shape (N,), got shape {tokens.shape}.")
    return tokens.astype(jnp.int32)


def check_state(state: Any, batch_size: int) -> None:
    """Check that every array of a state is batch-major."""
    for leaf in jax.tree.leaves(state):
        if leaf.shape[:1] != (batch_size,):
            raise ShapeError(
                f"`state` must consist of arrays with first axis {batch_size}, the batch size, got "
                f"shape {leaf.shape}. Convert a layer's states (L, N, H): batch_major(states)."
            )


def _check_step(step: Step, state: Any, x: jax.Array) -> Any:
    """Check the signature of a step; return the shape and dtype of its output."""
    check_state(state, len(x))
    result = jax.eval_shape(step, state, x)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ShapeError(f"`step` must return a pair (output, state), got {_describe(result)}.")
    if _describe(result[1]) != _describe(state):
        raise ShapeError(
            "`step` must return a state with the shapes and dtypes of its argument. "
            f"Expected {_describe(state)}, got {_describe(result[1])}."
        )
    return result[0]


def check_token_step(step: Step, state: Any, tokens: jax.Array, eos: Any) -> tuple[int, Any]:
    """Check a step that returns logits; return V and the dtype of log-probabilities."""
    logits = _check_step(step, state, tokens)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != len(tokens):
        raise ShapeError(
            f"`step` must return logits ({len(tokens)}, V) for {len(tokens)} tokens, "
            f"got {_describe(logits)}."
        )
    if eos is not None and not 0 <= eos < shape[1]:
        raise ValueError(f"`eos` must be a token from 0 to {shape[1] - 1}, got {eos}.")
    return shape[1], compute_dtype(logits.dtype)


def _describe(tree: Any) -> str:
    """Format a pytree with the dtype and shape of each array."""
    names = jax.tree.map(lambda leaf: f"{jnp.result_type(leaf).name}{list(leaf.shape)}", tree)
    return str(names).replace("'", "")
