"""One step of a layer: its gate inputs, its masks, and the step itself.

All that goes on inside of a step has its features first and its rows last: gate inputs (G*H, N),
states (H, N) or (R, N). Axis letters: N batch, K steps, D input features, H hidden size, G gates,
P projection, R size of h (P if projected, else H).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxrnn.backends.blocks import known
from jaxrnn.backends.elementwise.residuals import DerivativeRule, derivative_rule
from jaxrnn.backends.platform import choices
from jaxrnn.backends.products import product, product_of_rows, rows_product
from jaxrnn.cells import BaseCell, Cell, GeneralCell, State
from jaxrnn.cells.base import upcast
from jaxrnn.cells.weights import Weights, cell_parameters


class StepMasks(NamedTuple):
    """What is done to the state around a step; None where nothing is.

    Attributes:
        reset_mask: bool (T, N); True at t sets the row's state to zero before x_t is consumed.
        valid_mask: bool (T, N); False at t leaves the row's state as it was before step t.
        zoneout: for each state what of it step t leaves as it came in: bool (T, S, N), or numbers
            (T, 1, 1), the part of each; None for a state that has none.
    """

    reset_mask: jax.Array | None = None
    valid_mask: jax.Array | None = None
    zoneout: tuple[jax.Array | None, ...] | None = None


def zero_padding(valid_mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """Set x to zero at padding; the mask's axes are the leading axes of x.

    Padding, NaN included, then reaches neither values nor gradients.
    """
    if valid_mask is None:
        return x
    mask = valid_mask.reshape(valid_mask.shape + (1,) * (x.ndim - valid_mask.ndim))
    return jnp.where(mask, x, jnp.zeros_like(x))


def advance(
    cell: BaseCell, weights: Weights, zx: Any, state: State, masks: StepMasks = StepMasks()
) -> tuple[State, Any, Any]:
    """One step, all arrays with rows last: the new state, m before projection, what is saved.

    Args:
        cell: what the step is.
        weights: its parameters.
        zx: the gate inputs from x (G*H, N), see `gate_inputs`.
        state: the states, h (R, N) first, each other one (H, N).
        masks: of this one step, each (N,).
    """
    old = state
    state = enter(state, masks.reset_mask)
    own = cell_parameters(cell, weights.cell_params)
    if not isinstance(cell, Cell):
        general = cast(GeneralCell, cell)
        step = jax.vmap(lambda x, s: tuple(general.step(x, s, *own)), -1, -1)
        return leave(like(step(zx, upcast(state)), old), state, old, masks), None, None
    z = joined(cell, weights, zx, product(weights.weight_hh, dropped(weights, state[0])))
    (m, *rest), saved = rule(cell, masks).save(z, upcast(state), *own)
    m = m.astype(old[0].dtype)
    h = m if weights.weight_hr is None else product(weights.weight_hr, m).astype(m.dtype)
    return leave((h, *like(rest, old[1:])), state, old, masks), m, saved


def gate_inputs(cell: BaseCell, weights: Weights, x: jax.Array) -> Any:
    """What x (N, D) or (K, N, D) gives to the gates, (G*H, N) or (K, G*H, N).

    With every bias that need not wait for the hidden state. For a cell without gates, what its
    `inputs` are, each array with its rows last.
    """
    if isinstance(cell, Cell):
        return with_biases(cell, weights, product_of_rows(weights.weight_ih, x))
    (own,) = cell_parameters(cell, weights.cell_params)
    inputs = jax.vmap(lambda x: cast(GeneralCell, cell).inputs(x, own), 0, -1)
    return (inputs if x.ndim == 2 else jax.vmap(inputs))(upcast(x))


def inputs_of_block(cell: BaseCell, weights: Weights, x: jax.Array) -> Any:
    """`gate_inputs` of (K, N, D), by one product of all rows at once."""
    if not isinstance(cell, Cell):
        return gate_inputs(cell, weights, x)
    z = with_biases(cell, weights, rows_product(x, weights.weight_ih), axis=-1)
    return z.swapaxes(1, 2)


def outputs(cell: BaseCell, weights: Weights, x: jax.Array, states: State) -> jax.Array:
    """What a cell without gates gives out, (..., N, F), for x (..., N, D), states (..., N, S)."""
    (own,) = cell_parameters(cell, weights.cell_params)
    each = lambda x, s: cast(GeneralCell, cell).output(x, s, own)  # noqa: E731
    for _ in range(x.ndim - 1):
        each = jax.vmap(each)
    return each(upcast(x), upcast(states)).astype(x.dtype)


def gives_output(cell: BaseCell) -> bool:
    """Whether what a cell gives out is another thing than its first state."""
    return isinstance(cell, GeneralCell) and type(cell).output is not GeneralCell.output


def with_biases(cell: BaseCell, weights: Weights, zx: Any, axis: int = -2) -> jax.Array:
    """The product of W_ih with x, and the biases that need not wait; `axis` holds the features."""
    zx = plus(zx, weights.bias_ih, axis)
    return zx if cell.split else plus(zx, weights.bias_hh, axis)


def joined(cell: Cell, weights: Weights, zx: jax.Array, zh: jax.Array | None) -> Any:
    """What the step of a cell takes: the sum of both contributions, or the pair."""
    if zh is None:
        return zx
    return (zx, plus(zh, weights.bias_hh)) if cell.split else zx + zh


def inputs_at_each_step(cell: BaseCell, x: jax.Array, weights: Weights) -> bool:
    """Whether the product of W_ih with x_t (N, D) is left to step t, or done for a whole block.

    In the loop it is an operand of the pointwise function that needs no slice, is still in the
    cache and was never written to memory. Against that, for few rows it is bound by reading W_ih
    each time; and a CPU has one core for a product below about 16 MFLOP, but all for a block of
    them. A cell that takes its gate inputs apart has more to gain from the first. Measured on two
    cores with N from 1 to 170 and H from 25 to 1024: a wrong choice costs 10 to 40 %.
    """
    _, batch, features = x.shape
    if weights.weight_ih is None or not choices().inputs_in_loop:
        return False
    if features == 1:
        return True  # no product at all
    if not known(batch):
        return False
    mflop = 2e-6 * batch * features * weights.weight_ih.shape[0]
    return batch >= 24 and (cell.split or mflop < 1 or mflop >= 16)


def enter(state: State, resets: jax.Array | None) -> State:
    """The state (..., H, N) a step sees: zero where the row is reset."""
    if resets is None:
        return state
    return tuple(jnp.where(resets[..., None, :], jnp.zeros_like(s), s) for s in state)


def entered_rows(hs: jax.Array, resets: jax.Array | None) -> jax.Array:
    """`enter` for h with its rows first, (K, N, R)."""
    return hs if resets is None else jnp.where(resets[..., None], jnp.zeros_like(hs), hs)


def leave(new: State, entered: State, old: State, masks: StepMasks) -> State:
    """The state after a step: what zoneout keeps of the one that the step saw, `entered`; the one
    before that, `old`, where the step is not the row's.
    """
    if masks.zoneout is not None:
        new = tuple(map(_kept, masks.zoneout, new, entered))
    if masks.valid_mask is None:
        return new
    return tuple(jnp.where(masks.valid_mask[None], n, o) for n, o in zip(new, old, strict=True))


def _kept(keep: jax.Array | None, new: jax.Array, entered: jax.Array) -> jax.Array:
    if keep is None:
        return new
    if keep.dtype == bool:
        return jnp.where(keep, entered, new)
    return (keep * entered + (1 - keep) * new).astype(new.dtype)


def dropped(weights: Weights, h: Any) -> Any:
    """H (R, N) as W_hh meets it."""
    return h if weights.dropout_mask is None else h * weights.dropout_mask


def dropped_rows(weights: Weights, hs: jax.Array) -> jax.Array:
    """`dropped` for h with its rows first, (K, N, R)."""
    return hs if weights.dropout_mask is None else hs * weights.dropout_mask.T[None]


def rule(cell: Any, masks: StepMasks) -> DerivativeRule:
    """The pointwise derivative of a cell; under zoneout that which JAX makes of its step.

    All others may count on the states after a step being what the step has given.
    """
    if masks.zoneout is None:
        return derivative_rule(cell)
    fields = DerivativeRule._fields
    return DerivativeRule(*(functools.partial(getattr(Cell, name), cell) for name in fields))


def turned(state: State) -> State:
    """Each (..., N, H) as (..., H, N), and back."""
    return tuple(s.swapaxes(-1, -2) for s in state)


def like(new: Any, old: State) -> State:
    """States in the dtypes of others."""
    return tuple(n.astype(o.dtype) for n, o in zip(new, old, strict=True))


def plus(z: jax.Array, bias: jax.Array | None, axis: int = -2) -> jax.Array:
    """`z` plus a bias along an axis."""
    if bias is None:
        return z
    shape = [1] * z.ndim
    shape[axis] = bias.shape[0]
    return z + bias.astype(z.dtype).reshape(shape)
