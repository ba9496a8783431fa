"""Streaming: a compiled single step, and the lengths of a chunk of a batch.

A layer returns its final state in the format of its initial state. Running a sequence in chunks and
passing the state on equals one run of the whole sequence:

.. code-block:: text

    y_1, state = layer(x[:4], state, lengths=piece_lengths(lengths, 0, 4), resets=resets[:4])
    y_2, state = layer(x[4:], state, lengths=piece_lengths(lengths, 4, 3), resets=resets[4:])

This requires a unidirectional layer: a reverse direction starts at the end of the sequence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn.core import stack
from jaxrnn.core.masks import check_resets
from jaxrnn.core.state import broadcast_to_batch
from jaxrnn.layers import _checks
from jaxrnn.layers.recurrent import Recurrent


def jit_step(layer: Any) -> Callable[..., tuple[jax.Array, Any]]:
    """Compile a single step of a layer for inference.

    Args:
        layer: a unidirectional `RNN`, `LSTM`, `GRU` or `Recurrent` of any number of layers. The
            step uses its current parameters. Call `jit_step` again after an update; this does not
            recompile.

    Returns:
        A function ``step(x, state=None, reset=None) -> (y, state)``, compiled once for each shape,
        without dropout. `x` is (N, D) or (D,), `y` is (N, R) or (R,), and the state has the shape
        of the layer's `hx`, (L, N, R) or (L, R), a pair for `LSTM`. None means zeros, or the
        learned initial state. `reset`, bool (N,) or (), resets the state to zero before x is read.

    Raises:
        TypeError: if `layer` is not a recurrent layer.
        ValueError: if the layer is bidirectional. The step raises the layer's errors for wrong
            shapes and dtypes.

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

    Differs from PyTorch: ``torch.nn.LSTMCell`` is a single layer; this runs a stack.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"`layer` must be an RNN, LSTM, GRU or Recurrent, got {type(layer).__name__}. Compile "
            "a call of a model with one step: nnx.jit(lambda m, x, s: m(x[None], s))"
        )
    if layer.bidirectional:
        raise ValueError(
            f"`layer` must be unidirectional, got {layer!r}. Its reverse direction starts at the "
            "end of the sequence."
        )
    graph, arrays = nnx.split(layer)
    empty = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    step = _compiled(_Structure(graph, nnx.merge(graph, empty)))
    arrays = (layer._weights(), layer._highway_gates(), layer._learned_state())
    return functools.partial(step, arrays)


@dataclasses.dataclass(frozen=True)
class _Structure:
    """Static structure of a layer, hashed by its graph definition."""

    graph: Any
    layer: Recurrent = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=64)
def _compiled(structure: _Structure) -> Any:
    """Return the compiled step, shared by layers of equal structure."""
    layer = structure.layer

    @jax.jit
    def _step(params: Any, x: Any, state: Any = None, reset: Any = None) -> tuple[jax.Array, Any]:
        weights, highway_gates, learned_state = params
        x = jnp.asarray(x)
        _checks.cell_input(layer._kind, x)
        layout, initial = layer._check_call(x[None], state, time_major=True)
        if initial is None and learned_state is not None:
            initial = broadcast_to_batch(learned_state, len(x) if x.ndim > 1 else None)
        resets = None if reset is None else check_resets(reset, x.shape[:-1])[None]
        options = layer._stack_options(layout, training=False)
        y, final = stack.run(options, weights, x[None], initial, resets=resets, gates=highway_gates)
        return y[0], layer._as_hx(final)

    return _step


def piece_lengths(lengths: Any, start: Any, steps: int) -> jax.Array:
    """Return the lengths of a chunk, ``clip(lengths - start, 0, steps)``.

    Args:
        lengths: lengths of the whole sequences, integers (N,).
        start: first step of the chunk.
        steps: number of steps of the chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> piece_lengths(jnp.array([7, 5, 2]), 4, 3).tolist()
        [3, 1, 0]
    """
    return jnp.clip(jnp.asarray(lengths) - start, 0, steps)
