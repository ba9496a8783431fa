r"""The definition of every layer: a plain scan over a cell's step, without blocks or kernels.

For a cell with gates, batch element by batch element,

.. math::

    \begin{aligned}
    z^x_t &= W_{ih} x_t + b_{ih}, \qquad z^h_t = W_{hh} h_{t-1} + b_{hh} \\
    m_t, c_t, \dots &= \mathrm{step}(z^x_t + z^h_t, s_{t-1}) \quad
        \text{or } \mathrm{step}((z^x_t, z^h_t), s_{t-1}) \text{ with } \texttt{split} \\
    h_t &= W_{hr} m_t \quad \text{or } m_t \text{ without a projection}
    \end{aligned}

and for a general cell :math:`s_t = \mathrm{step}(\mathrm{inputs}(x_t), s_{t-1})`, with the output
:math:`\mathrm{output}(x_t, s_t)`. Everything else in the package computes this, faster; the tests
compare it with these functions, values and gradients.

Axis letters: T time, N batch, D input features, H hidden size, R size of h, L layers, F directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.cells import BaseCell, Cell, GeneralCell, State
from jaxrnn.cells.weights import Weights, cell_parameters, infer_sizes, zero_state


def advance(cell: BaseCell, weights: Weights, x: jax.Array, state: State) -> State:
    """Return the state after one step, for x (N, D) and states (N, S)."""
    params = cell_parameters(cell, weights.cell_params)
    if not isinstance(cell, Cell):
        general: Any = cell
        step = lambda x, s: tuple(general.step(general.inputs(x, *params), s, *params))  # noqa: E731
        return jax.vmap(step)(x, state)

    def _affine(weight: Any, x: jax.Array, bias: Any) -> jax.Array:
        return weight @ x.T if bias is None else weight @ x.T + bias[:, None]

    z: Any = _affine(weights.weight_ih, x, weights.bias_ih)
    if weights.weight_hh is not None:
        recurrent = _affine(weights.weight_hh, state[0], weights.bias_hh)
        z = (z, recurrent) if cell.split else z + recurrent
    m, *rest = cell.step(z, tuple(s.T for s in state), *params)
    h = m if weights.weight_hr is None else weights.weight_hr @ m
    return tuple(s.T for s in (h, *rest))


def output(cell: BaseCell, weights: Weights, x: jax.Array, state: State) -> jax.Array:
    """Return the output of one step (N, F), for x (N, D) and the states after it (N, S)."""
    if isinstance(cell, Cell):
        return state[0]
    general, params = cast(GeneralCell, cell), cell_parameters(cell, weights.cell_params)
    return jax.vmap(lambda x, s: general.output(x, s, *params))(x, state)


def unroll(
    cell: BaseCell,
    weights: Weights,
    x: jax.Array,
    state: State | None = None,
    reset_mask: jax.Array | None = None,
    valid_mask: jax.Array | None = None,
    *,
    reverse: bool = False,
) -> tuple[jax.Array, State, State]:
    """Run one layer in one direction.

    Args:
        cell: the cell.
        weights: its parameters.
        x: the input (T, N, D).
        state: the initial state, each (N, S); None for zeros.
        reset_mask: bool (T, N); True sets the state to zero before x_t is read.
        valid_mask: bool (T, N); False, at padding, leaves the state unchanged.
        reverse: if True, read from the last step to the first.

    Returns:
        The output (T, N, F), the states after each step (T, N, S) and the final state (N, S).
    """
    if state is None:
        sizes = infer_sizes(cell, weights, x.shape[2])
        state = zero_state(cell, sizes, x.shape[1], x.dtype)
    valid = jnp.ones(x.shape[:2], bool) if valid_mask is None else valid_mask
    resets = jnp.zeros(x.shape[:2], bool) if reset_mask is None else reset_mask

    def _step(state: State, inputs: Any) -> tuple[State, Any]:
        x, valid, reset = inputs
        entered = tuple(_select(~reset, s, jnp.zeros_like(s)) for s in state)
        new = advance(cell, weights, x, entered)
        state = tuple(_select(valid, n, s) for n, s in zip(new, state, strict=True))
        return state, (output(cell, weights, x, state), state)

    x = _select(
        valid, x, jnp.zeros_like(x)
    )  # padding may hold NaN, which must not reach a gradient
    final, (outputs, states) = lax.scan(_step, tuple(state), (x, valid, resets), reverse=reverse)
    return outputs, states, final


def _select(mask: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(mask[..., None], a, b)


def stack(
    cell: BaseCell,
    weights: Sequence[Weights],
    x: jax.Array,
    state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    bidirectional: bool = False,
) -> tuple[jax.Array, State]:
    """Run a stack of layers: each reads the concatenated outputs of the one before it.

    Args:
        weights: F*L weights, layer-major, direction-minor.
        cell, x: as of `unroll`.
        state: the initial state, each (F*L, N, S); None for zeros.
        lengths: integers (N,); later steps are padding, with output zero. The reverse direction
            starts at the last valid step. A sequence of length 0 returns its initial state.
        resets: bool (T, N); True at t separates steps t - 1 and t: the one of them that is read
            later starts from zeros.
        bidirectional: if True, every layer has a reverse direction.

    Returns:
        The output (T, N, F*R) and the final state, each (F*L, N, S).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, reference
        >>> from jaxrnn.core.params import init
        >>> weights = init(jax.random.key(0), cells.GRU(), 3, 4, bidirectional=True)
        >>> x = jnp.ones((7, 2, 3))
        >>> y, (h_n,) = reference.stack(cells.GRU(), weights, x, bidirectional=True)
        >>> y.shape, h_n.shape
        ((7, 2, 8), (2, 2, 4))
    """
    valid = jnp.ones(x.shape[:2], bool)
    if lengths is not None:
        valid = jnp.arange(x.shape[0])[:, None] < lengths[None]
    resets = jnp.zeros(x.shape[:2], bool) if resets is None else resets & valid
    # The reverse direction reads step t before step t - 1.
    shifted = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    nonempty, directions, finals = valid.any(0), 2 if bidirectional else 1, []
    for first in range(0, len(weights), directions):
        outputs = []
        for index in range(first, first + directions):
            reverse = index > first
            start = None if state is None else tuple(s[index] for s in state)
            if start is not None:  # that of an empty sequence reaches nothing
                start = tuple(_select(nonempty, s, jnp.zeros_like(s)) for s in start)
            masks = shifted if reverse else resets, valid
            y, _, final = unroll(cell, weights[index], x, start, *masks, reverse=reverse)
            if state is not None:
                pairs = zip(final, state, strict=True)
                final = tuple(_select(nonempty, s, initial[index]) for s, initial in pairs)
            outputs.append(y)
            finals.append(final)
        x = jnp.concatenate(outputs, axis=-1)
    x = _select(valid, x, jnp.zeros_like(x))
    return x, tuple(jnp.stack(s) for s in zip(*finals, strict=True))
