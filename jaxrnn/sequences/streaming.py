"""Sequences that come piece by piece: a single compiled step, and lengths of a piece.

The state a layer returns is the state it takes, so a sequence fed in pieces of any size, with the
state handed on, is the sequence fed at once:

.. code-block:: text

    y_1, state = layer(x[:4], state, lengths=piece_lengths(lengths, 0, 4), resets=resets[:4])
    y_2, state = layer(x[4:], state, lengths=piece_lengths(lengths, 4, 3), resets=resets[4:])

This holds for layers of one direction; a reverse direction begins at the end of the sequence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn.core import masks as ragged
from jaxrnn.core import stack
from jaxrnn.core import state as states
from jaxrnn.layers import _checks as torch_checks
from jaxrnn.layers.recurrent import Recurrent


def jit_step(layer: Any) -> Callable[..., tuple[jax.Array, Any]]:
    """One step of a layer as a compiled function, for inference, as after ``eval()``.

    Args:
        layer: an `RNN`, `LSTM`, `GRU` or `Recurrent` of one direction, any number of layers. Its
            parameters are those of this moment: after an update, make the step anew, which
            compiles nothing.

    Returns:
        ``step(x, state=None, reset=None) -> (y, state)``, with x (N, D) or (D,), y (N, R) or (R,),
        the state shaped as the layer's `hx`, (L, N, R) or (L, R), for `LSTM` a pair; None stands
        for zeros, or for what the layer has learned. `reset`, bool (N,) or (), sets a row's state
        to zero before x is consumed.
        It is compiled once for each shape.

    Raises:
        TypeError: for what is no layer.
        ValueError: for a layer of two directions; and, by the step, for wrong axes, sizes or
            dtypes, as by the layer.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.sequences.streaming import jit_step
        >>> lstm = jaxrnn.LSTM(3, 4, num_layers=2, rngs=nnx.Rngs(0))
        >>> step, state = jit_step(lstm), lstm.initial_state(2)
        >>> for x in jnp.ones((5, 2, 3)):
        ...     y, state = step(x, state)
        >>> bool(jnp.allclose(y, lstm(jnp.ones((5, 2, 3)))[0][-1], atol=1e-6))
        True

    Differs from PyTorch: a step of a whole stack, where ``torch.nn.LSTMCell`` is one layer's.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"layer should be an RNN, LSTM, GRU or Recurrent, got {type(layer).__name__}: of a "
            "model, compile a call with one step, nnx.jit(lambda m, x, s: m(x[None], s))"
        )
    if layer.bidirectional:
        raise ValueError(
            f"{layer!r} has two directions: the reverse one begins at the end of a sequence, and "
            "can't be run step by step"
        )
    graph, arrays = nnx.split(layer)
    empty = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    step = _compiled(_Form(graph, nnx.merge(graph, empty)))
    return functools.partial(step, (layer.weights(), layer.gates(), layer.learned_state()))


@dataclasses.dataclass(frozen=True)
class _Form:
    """A layer without its numbers; those of one graph are one."""

    graph: Any
    layer: Recurrent = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=64)
def _compiled(form: _Form) -> Any:
    """The step of all layers of a form, so that new weights compile nothing."""
    layer = form.layer

    @jax.jit
    def step(held: Any, x: Any, state: Any = None, reset: Any = None) -> tuple[jax.Array, Any]:
        weights, gates, learned = held
        x = jnp.asarray(x)
        torch_checks.cell_input(layer.kind, x)
        layout, initial = layer.check(x[None], state, time_major=True)
        if initial is None and learned is not None:
            initial = states.repeated(learned, len(x) if x.ndim > 1 else None)
        resets = None if reset is None else ragged.check_resets(reset, x.shape[:-1])[None]
        plan = layer.plan(layout, training=False)
        y, last = stack.run(plan, weights, x[None], initial, resets=resets, gates=gates)
        return y[0], layer.hx_of(last)

    return step


def piece_lengths(lengths: Any, start: Any, steps: int) -> jax.Array:
    """How many steps of a piece are each row's own: ``clip(lengths - start, 0, steps)``.

    Args:
        lengths: of the whole sequences, integers (N,).
        start: the step of the whole at which the piece begins.
        steps: how many steps the piece has.

    Example:
        >>> import jax.numpy as jnp
        >>> piece_lengths(jnp.array([7, 5, 2]), 4, 3).tolist()
        [3, 1, 0]
    """
    return jnp.clip(jnp.asarray(lengths) - start, 0, steps)
