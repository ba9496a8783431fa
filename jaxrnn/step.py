"""One step of a layer: its parameters, its gate inputs, its masks, and the step itself.

All that goes on inside of a step has its features first and its rows last: gate inputs (G*H, N),
states (H, N) or (R, N). Axis letters: N batch, K steps, D input features, H hidden size, G gates,
P projection, R size of h (P if projected, else H).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.blocks import known
from jaxrnn.cells import Cell, State
from jaxrnn.products import product, product_of_rows, wide_dtype
from jaxrnn.tuning import choices


class Weights(NamedTuple):
    """The parameters of one layer in one direction, in PyTorch's order and layout.

    Attributes:
        weight_ih: (G*H, D), from the input.
        weight_hh: (G*H, R), from the hidden state.
        bias_ih: (G*H,) or None.
        bias_hh: (G*H,) or None.
        weight_hr: (P, H), the projection of h, or None.
    """

    weight_ih: jax.Array
    weight_hh: jax.Array
    bias_ih: jax.Array | None = None
    bias_hh: jax.Array | None = None
    weight_hr: jax.Array | None = None


class Masks(NamedTuple):
    """What is done to the state around a step; None where nothing is.

    Attributes:
        resets: bool (T, N); True at t sets the row's state to zero before x_t is consumed.
        valid: bool (T, N); False at t leaves the row's state as it was before step t.
    """

    resets: jax.Array | None = None
    valid: jax.Array | None = None


def zero_state(cell: Cell, weights: Weights, batch: int, dtype: Any) -> State:
    """The initial state of zeros: h (N, R), each other state (N, H)."""
    hidden = weights.weight_hh.shape[0] // len(cell.gates)
    sizes = [weights.weight_hh.shape[1]] + [hidden] * (len(cell.states) - 1)
    return tuple(jnp.zeros((batch, size), dtype) for size in sizes)


def advance(
    cell: Cell, weights: Weights, zx: jax.Array, state: State, masks: Masks = Masks()
) -> tuple[State, jax.Array, Any]:
    """One step, all arrays with rows last: the new state, m before projection, what is saved.

    Args:
        cell: what the step is.
        weights: its parameters.
        zx: the gate inputs from x (G*H, N), see `gate_inputs`.
        state: the states, h (R, N) first, each other one (H, N).
        masks: of this one step, each (N,).
    """
    old = state
    state = enter(state, masks.resets)
    z = joined(cell, weights, zx, product(weights.weight_hh, state[0]))
    (m, *rest), saved = cell.save(z, wide(state))
    m = m.astype(old[0].dtype)
    h = m if weights.weight_hr is None else product(weights.weight_hr, m).astype(m.dtype)
    return leave((h, *like(rest, old[1:])), old, masks.valid), m, saved


def gate_inputs(cell: Cell, weights: Weights, x: jax.Array) -> jax.Array:
    """What x (N, D) or (K, N, D) gives to the gates, (G*H, N) or (K, G*H, N).

    With every bias that need not wait for the hidden state.
    """
    return with_biases(cell, weights, product_of_rows(weights.weight_ih, x))


def with_biases(cell: Cell, weights: Weights, zx: jax.Array, axis: int = -2) -> jax.Array:
    """The product of W_ih with x, and the biases that need not wait; `axis` holds the features."""
    zx = plus(zx, weights.bias_ih, axis)
    return zx if cell.split else plus(zx, weights.bias_hh, axis)


def joined(cell: Cell, weights: Weights, zx: jax.Array, zh: jax.Array) -> Any:
    """What the step of a cell takes: the sum of both contributions, or the pair."""
    return (zx, plus(zh, weights.bias_hh)) if cell.split else zx + zh


def inputs_at_each_step(cell: Cell, x: jax.Array, weights: Weights) -> bool:
    """Whether the product of W_ih with x_t (N, D) is left to step t, or done for a whole block.

    In the loop it is an operand of the pointwise function that needs no slice, is still in the
    cache and was never written to memory. Against that, for few rows it is bound by reading W_ih
    each time; and a CPU has one core for a product below about 16 MFLOP, but all for a block of
    them. A cell that takes its gate inputs apart has more to gain from the first. Measured on two
    cores with N from 1 to 170 and H from 25 to 1024: a wrong choice costs 10 to 40 %.
    """
    _, batch, features = x.shape
    if not choices().inputs_in_loop:
        return False
    if features == 1:
        return True  # no product at all
    if not known(batch):
        return False
    mflop = 2e-6 * batch * features * weights.weight_ih.shape[0]
    return batch >= 24 and (cell.split or mflop < 1 or mflop >= 16)


def one_bias(weights: Weights) -> Weights:
    """Both biases added before the loop, for a cell that takes the sum of all gate inputs."""
    if weights.bias_ih is None or weights.bias_hh is None:
        return weights
    dtype = wide_dtype(weights.bias_ih.dtype)
    total = weights.bias_ih.astype(dtype) + weights.bias_hh.astype(dtype)
    return weights._replace(bias_ih=total, bias_hh=None)


def two_columns(weights: Weights, x: jax.Array) -> tuple[Weights, jax.Array]:
    """The input of one feature with a second one of ones, and the bias as its weight.

    XLA turns a product over a single feature into elementwise arithmetic and repeats it in each
    part of the pointwise function, which a CPU then does not vectorise.
    """
    weight, bias = weights.weight_ih, weights.bias_ih
    second = jnp.zeros_like(weight) if bias is None else bias[:, None]
    weight = jnp.concatenate([weight, second], axis=1)
    x = jnp.concatenate([x, jnp.ones_like(x)], axis=2)
    return weights._replace(weight_ih=weight, bias_ih=None), x


def enter(state: State, resets: jax.Array | None) -> State:
    """The state (..., H, N) a step sees: zero where the row is reset."""
    if resets is None:
        return state
    return tuple(jnp.where(resets[..., None, :], jnp.zeros_like(s), s) for s in state)


def entered_rows(hs: jax.Array, resets: jax.Array | None) -> jax.Array:
    """`enter` for h with its rows first, (K, N, R)."""
    return hs if resets is None else jnp.where(resets[..., None], jnp.zeros_like(hs), hs)


def leave(new: State, old: State, valid: jax.Array | None) -> State:
    """The state after a step: the old one where the step is not the row's."""
    if valid is None:
        return new
    return tuple(jnp.where(valid[None], n, o) for n, o in zip(new, old, strict=True))


def wide(tree: Any) -> Any:
    """All arrays in the dtype of sums and pointwise functions."""
    return jax.tree.map(lambda a: a.astype(wide_dtype(a.dtype)), tree)


def narrow(tree: Any, dtype: Any) -> Any:
    """All arrays in a dtype."""
    return jax.tree.map(lambda a: a.astype(dtype), tree)


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
