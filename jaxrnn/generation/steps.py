"""A step: what one pass of the loop of generation calls, and how to make one of a layer.

Axis letters: N rows, V tokens in the vocabulary, D features, L layers, H hidden, R size of h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError
from jaxrnn.cells.base import compute_dtype

Step = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


def rows_first(states: Any) -> Any:
    """A layer's states (L, N, H) as the state of a step (N, L, H), and back.

    Example:
        >>> import jax.numpy as jnp
        >>> h, c = rows_first((jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 5))))
        >>> h.shape, c.shape
        ((3, 2, 4), (3, 2, 5))
    """
    return jax.tree.map(lambda s: s.swapaxes(0, 1), states)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LayerStep:
    """A step made of a recurrent layer, see `token_step` and `value_step`.

    Attributes:
        layer: the layer.
        head: what comes after it, or None.
        embed: what comes before it, or None.
    """

    layer: Any
    head: Any
    embed: Any

    def __call__(self, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        """The outputs of one step, and the state after it."""
        layer = self.layer
        check_no_dropout(layer)
        if self.embed is not None:
            x = self.embed(x)
        time = 1 if getattr(layer, "batch_first", False) else 0
        output, last = layer(jnp.expand_dims(x, time), rows_first(state))
        output = output.squeeze(time)
        return output if self.head is None else self.head(output), rows_first(last)

    def initial_state(self, batch_size: int) -> Any:
        """The layer's state of zeros for so many rows, rows first."""
        return rows_first(self.layer.initial_state(batch_size))


@jax.tree_util.register_static
@dataclass(frozen=True)
class _OneHot:
    """Tokens as one-hot vectors."""

    size: int
    dtype: Any

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jax.nn.one_hot(tokens, self.size, dtype=self.dtype)


def token_step(layer: Any, head: Any = None, *, embed: Any = None) -> LayerStep:
    """A step for `generate` and `beam_search` of an embedding, a layer and a head.

    .. code-block:: text

        output, s_t = layer(embed(token_{t-1}), s_{t-1});      logits_t = head(output)

    Args:
        layer: a layer of this package, of one direction; or a module with the same call,
            ``layer(x (1, N, D), states) -> (output (1, N, F), states)``.
        head: a module or function from the output (N, R) to logits (N, V); None if the output
            is the logits.
        embed: a module or function from tokens (N,) to (N, D), an `nnx.Embed` say; None for
            one-hot vectors of the layer's input size.

    Returns:
        The step, with ``step.initial_state(N)`` for a start without a prompt.

    Raises:
        ValueError: for a layer with two directions: the reverse one would have to know what is
            still to be generated.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.generation import generate, token_step
        >>> step = token_step(jaxrnn.RNN(5, 5, rngs=nnx.Rngs(0)))  # one-hot in, logits out
        >>> generate(step, step.initial_state(1), [0], 4, temperature=0).tokens.shape
        (1, 4)
    """
    _one_direction(layer)
    if embed is None:
        size = getattr(layer, "input_size", None)
        if size is None:
            raise ValueError(
                f"{type(layer).__name__} has no input_size for one-hot vectors: pass embed=, "
                "from tokens (N,) to inputs (N, D)"
            )
        embed = _OneHot(size, layer.param_dtype if layer.dtype is None else layer.dtype)
    return LayerStep(layer, head, embed)


def value_step(layer: Any, head: Any = None) -> LayerStep:
    """A step for `roll_out` of a layer and a head, from (N, D) to (N, D); see `token_step`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.generation import value_step
        >>> step = value_step(jaxrnn.GRU(4, 4, rngs=nnx.Rngs(0)))
        >>> y, state = step(step.initial_state(2), jnp.ones((2, 4)))
        >>> y.shape, state.shape
        ((2, 4), (2, 1, 4))
    """
    _one_direction(layer)
    return LayerStep(layer, head, None)


def _one_direction(layer: Any) -> None:
    if getattr(layer, "bidirectional", False):
        raise ValueError(
            f"{layer} has two directions: the reverse one reads what is not generated yet. "
            "Generate with a layer of one direction"
        )


def masks_drawn(layer: Any) -> dict[str, float]:
    """The probabilities of the masks that a call of the layer draws, by the layer's arguments."""
    if not getattr(layer, "training", False):
        return {}
    between = getattr(layer, "dropout", 0.0) if getattr(layer, "num_layers", 1) > 1 else 0.0
    noise = getattr(layer, "regularisers", None)
    return ({"dropout": between} if between else {}) | ({} if noise is None else noise.drawn)


def check_no_dropout(layer: Any) -> None:
    """A layer in training would draw other masks at each step."""
    active = ", ".join(f"{name}={p}" for name, p in masks_drawn(layer).items())
    if active:
        raise ValueError(
            f"{active} is active: generate with layers in evaluation, after "
            "model.eval() or with nnx.view(model, deterministic=True)"
        )


def compilable(step: Any) -> bool:
    """Whether a step can be an argument of a compiled function: one made of nothing but modules.

    A function would be part of what is compiled, and with it the parameters of modules that it
    refers to, as they are today.
    """
    leaves = jax.tree.leaves(step)
    return isinstance(step, LayerStep) and all(isinstance(leaf, jax.Array) for leaf in leaves)


def first_tokens(tokens: Any) -> jax.Array:
    """The first tokens of all rows, int32 (N,)."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens should be integers, got {tokens.dtype.name}")
    if tokens.ndim != 1:
        raise ShapeError(
            f"tokens should be the first input of each row, (N,), got shape {tokens.shape}"
        )
    return tokens.astype(jnp.int32)


def check_rows(state: Any, rows: int) -> None:
    """Whether each array of a state has so many rows along its first axis."""
    for leaf in jax.tree.leaves(state):
        if leaf.shape[:1] != (rows,):
            raise ShapeError(
                f"each array of the state should have the {rows} rows along its first axis, got "
                f"shape {leaf.shape}. A layer's states (L, N, H) go through rows_first"
            )


def check_step(step: Step, state: Any, x: jax.Array) -> Any:
    """Whether a step takes and gives what it should; the shape and dtype of its output."""
    check_rows(state, len(x))
    given = jax.eval_shape(step, state, x)
    if not isinstance(given, tuple) or len(given) != 2:
        raise ShapeError(f"step should return a pair (output, state), got {_shapes(given)}")
    if _shapes(given[1]) != _shapes(state):
        raise ShapeError(
            "step should return a state of the shapes and dtypes it was given. "
            f"Expected {_shapes(state)}, got {_shapes(given[1])}"
        )
    return given[0]


def check_token_step(step: Step, state: Any, tokens: jax.Array, eos: Any) -> tuple[int, Any]:
    """The same for a step that gives out logits: V, and the dtype of log-probabilities."""
    logits = check_step(step, state, tokens)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != len(tokens):
        raise ShapeError(
            f"step should return logits ({len(tokens)}, V) for {len(tokens)} tokens, "
            f"got {_shapes(logits)}"
        )
    if eos is not None and not 0 <= eos < shape[1]:
        raise ValueError(f"eos should be a token, from 0 to {shape[1] - 1}, got {eos}")
    return shape[1], compute_dtype(logits.dtype)


def _shapes(tree: Any) -> str:
    """A pytree with the dtype and shape of each array in its place."""
    names = jax.tree.map(lambda leaf: f"{jnp.result_type(leaf).name}{list(leaf.shape)}", tree)
    return str(names).replace("'", "")
