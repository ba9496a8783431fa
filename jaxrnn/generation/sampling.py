"""One token, or one value, after another: `generate` and `roll_out`.

Axis letters: N rows, V tokens in the vocabulary, T steps, D features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxrnn import _checks as checks
from jaxrnn._checks import ShapeError
from jaxrnn.generation.steps import Step, check_step, check_token_step, compilable, first_tokens


class Generated(NamedTuple):
    """What `generate` gives out.

    Attributes:
        tokens: int32 (N, T); after the end of a row, `eos`.
        log_probs: the logarithm of the probability that the network gave to each token, before
            temperature and top-k (N, T), in nats; 0 after the end of a row.
        lengths: the tokens of each row, `eos` included, int32 (N,).
        state: the state that gave out the last token of each row, and has not consumed it.
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
    """Draw tokens one after another, each of them the next input.

    .. code-block:: text

        logits_t, s_t = step(s_{t-1}, token_{t-1})
        token_t ~ softmax(logits_t / temperature), among the k likeliest;  argmax at temperature 0

    Args:
        step: ``step(state, tokens) -> (logits (N, V), state)``.
        state: the state before `tokens` are consumed, rows first: ``step.initial_state(N)``, or
            ``rows_first(h_n)`` after a prompt.
        tokens: the first inputs, integers (N,): a start symbol, or the last tokens of a prompt.
        length: T, the number of tokens to draw for each row.
        key: the PRNG key. The draw at step t depends on the key and on t: a longer run begins as a
            shorter one does.
        temperature: () or (N,), may be traced; 0 takes the likeliest token and, if it is known
            when the call is made, needs no key. Below 0, where it is traced, acts as 0.
        top_k: draw among so many likeliest tokens; None for all.
        eos: the token that ends a row. A row that has ended gives out nothing else and its state
            rests; when all rows have ended, the steps that are left cost nothing.

    Raises:
        ValueError: for no key where one is needed, a negative temperature, `length` or `top_k`
            below 1, `top_k` or `eos` beyond the vocabulary; for tokens, a state or a step of wrong
            shape (a RuntimeError too).
        TypeError: for tokens that are no integers.

    Example:
        A prompt goes through the layer in one call, all of it but its last token.

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.generation import generate, rows_first, token_step
        >>> rngs = nnx.Rngs(0)
        >>> embed, layer = nnx.Embed(50, 8, rngs=rngs), jaxrnn.GRU(8, 16, rngs=rngs)
        >>> step = token_step(layer, nnx.Linear(16, 50, rngs=rngs), embed=embed)
        >>> prompt = jnp.array([[3, 1, 4], [1, 5, 9]])                   # (N, T)
        >>> _, h_n = layer(embed(prompt[:, :-1]).swapaxes(0, 1))         # (T, N, D)
        >>> said = generate(step, rows_first(h_n), prompt[:, -1], 7, key=jax.random.key(0))
        >>> said.tokens.shape, said.log_probs.shape, said.lengths.tolist()
        ((2, 7), (2, 7), [7, 7])
        >>> more = generate(step, said.state, said.tokens[:, -1], 5, temperature=0)

        Prompts of unequal lengths: ``layer(x, lengths=lengths - 1)``, and each row's last token.

    Log-probabilities are differentiable with respect to what is in `step` and `state`: the sum of
    ``reward * log_probs`` at temperature 1 has the gradient of REINFORCE.
    """
    checks.at_least("length", length, 1)
    if top_k is not None:
        checks.at_least("top_k", top_k, 1)
    tokens, temperature = first_tokens(tokens), row_temperatures(temperature, len(tokens))
    if temperature is None:
        key = None
    elif key is None:
        raise ValueError(
            "drawing tokens needs a key: pass key=jax.random.key(seed), or temperature=0 to take "
            "the likeliest token each time"
        )
    run = _generate_compiled if compilable(step) else _generate
    return run(step, state, tokens, key, temperature, length=length, top_k=top_k, eos=eos)


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
    vocabulary, dtype = check_token_step(step, state, tokens, eos)
    if top_k is not None and top_k > vocabulary:
        raise ValueError(f"top_k should be from 1 to {vocabulary}, the vocabulary, got {top_k}")

    def draw(carry: Any, index: jax.Array) -> Any:
        state, token, done = carry
        logits, new = step(state, token)
        logits = logits.astype(dtype)
        here = None if key is None else jax.random.fold_in(key, index)
        chosen = _choose(logits, here, temperature, top_k)
        log_prob = _pick(jax.nn.log_softmax(logits), chosen)
        if eos is not None:
            chosen = jnp.where(done, eos, chosen)
            log_prob = jnp.where(done, 0.0, log_prob)
            new = _where_rows(done, state, new)
            done = done | (chosen == eos)
        return (new, chosen, done), (chosen, log_prob)

    def rest(carry: Any, index: jax.Array) -> Any:
        del index
        return carry, (carry[1], jnp.zeros(tokens.shape, dtype))

    def draw_or_rest(carry: Any, index: jax.Array) -> Any:
        return lax.cond(carry[2].all(), rest, draw, carry, index)

    start = (state, tokens, jnp.zeros(tokens.shape, bool))
    body = draw if eos is None else draw_or_rest
    (state, _, _), (drawn, log_probs) = lax.scan(body, start, jnp.arange(length))
    lengths = jnp.full(tokens.shape, length, jnp.int32)
    if eos is not None:
        ends = drawn == eos
        lengths = jnp.where(ends.any(0), ends.argmax(0).astype(jnp.int32) + 1, lengths)
    return Generated(drawn.T, log_probs.T, lengths, state)


_generate_compiled = jax.jit(_generate, static_argnames=("length", "top_k", "eos"))


def _choose(logits: jax.Array, key: Any, temperature: Any, top_k: int | None) -> jax.Array:
    """A token for each row of logits (N, V)."""
    if temperature is None:
        return logits.argmax(1).astype(jnp.int32)
    values, index = (logits, None) if top_k is None else lax.top_k(logits, top_k)
    warm = temperature > 0
    # Without the largest logit, a temperature near zero overflows to -inf and not to inf.
    values = values - values.max(1, keepdims=True)
    cooled = values / jnp.where(warm, temperature, 1.0).astype(values.dtype)[:, None]
    place = jnp.where(warm, jax.random.categorical(key, cooled), values.argmax(1))
    return (place if index is None else _pick(index, place)).astype(jnp.int32)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """Of each row of values (N, M), the one at index (N,)."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def roll_out(step: Step, state: Any, x: Any, length: int) -> tuple[jax.Array, Any]:
    """Predict on and on, each output the next input.

    .. code-block:: text

        y_t, s_t = step(s_{t-1}, y_{t-1})          y_0 = x

    Args:
        step: ``step(state, x (N, D)) -> (y (N, D), state)``.
        state: the state before x is consumed, rows first (N, ...).
        x: the first input (N, D).
        length: T, the number of outputs.

    Returns:
        The outputs (N, T, D), and the state that gave out the last of them.

    Raises:
        ValueError: for `length` below 1; for a state or a step of wrong shape (a RuntimeError
            too), as where y is not shaped as x.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.generation import roll_out, rows_first, value_step
        >>> from jaxrnn.layers.models import ManyToMany
        >>> rngs = nnx.Rngs(0)
        >>> model = ManyToMany(jaxrnn.RNN(1, 32, batch_first=True, rngs=rngs), 1, rngs=rngs)
        >>> y, h_n = model(jnp.ones((3, 20, 1)))
        >>> step = value_step(model.rnn, model.fc)
        >>> forecast, state = roll_out(step, rows_first(h_n), y[:, -1], 50)
        >>> forecast.shape
        (3, 50, 1)
    """
    checks.at_least("length", length, 1)
    x = jnp.asarray(x)
    run = _roll_out_compiled if compilable(step) else _roll_out
    return run(step, state, x, length=length)


def _roll_out(step: Step, state: Any, x: jax.Array, *, length: int) -> tuple[jax.Array, Any]:
    state = jax.tree.map(jnp.asarray, state)
    y = check_step(step, state, x)
    if (y.shape, y.dtype) != (x.shape, x.dtype):
        raise ShapeError(
            "roll_out: what the step gives out is its next input, and should be as its input is. "
            f"Expected {x.dtype.name} {x.shape}, got {y.dtype.name} {y.shape}"
        )

    def body(carry: Any, nothing: None) -> Any:
        del nothing
        y, state = step(*carry)
        return (state, y), y

    (state, _), outputs = lax.scan(body, (state, x), length=length)
    return outputs.swapaxes(0, 1), state


_roll_out_compiled = jax.jit(_roll_out, static_argnames="length")


def row_temperatures(value: Any, rows: int) -> jax.Array | None:
    """The temperature of each row (N,); None where it is known to be 0."""
    known = not isinstance(value, Tracer)
    value = np.asarray(value) if known else value
    if value.shape not in ((), (rows,)):
        raise ShapeError(f"temperature should be () or ({rows},), got shape {value.shape}")
    if known and not (value >= 0).all():
        raise ValueError(f"temperature should be 0 or greater, got {value}")
    if known and not value.any():
        return None
    return jnp.broadcast_to(jnp.asarray(value, jnp.result_type(float)), (rows,))


def _where_rows(rows: jax.Array, old: Any, new: Any) -> Any:
    """The old leaves where `rows` (N,) says so, else the new ones."""

    def select(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(rows.reshape((-1,) + (1,) * (new.ndim - 1)), old, new)

    return jax.tree.map(select, old, new)
