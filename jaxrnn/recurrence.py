"""The one recurrence of the package: a cell run over time, and its derivative.

.. code-block:: text

    zx_t = x_t @ W_ih.T + b_ih                     all steps of a block in one product
    zh_t = h_{t-1} @ W_hh.T + b_hh                 inside the loop, the only sequential product
    m_t, c_t, ... = cell.step(zx_t, zh_t, state)   elementwise
    h_t = m_t @ W_hr.T                             or m_t, where nothing is projected

It has one derivative rule, forward mode: the products with the derivatives of the weights and the
input stand outside the loop, one for each block of steps, and what remains is a linear loop. JAX
transposes that into reverse mode by itself, so the gradient of the weights is one product a block
too, and `jvp`, double backward, `vmap` and rematerialisation work because nothing was closed off.

Shapes: x (T, N, D), states (N, H) or (N, R), weights as `Weights` says. T time, N batch, D input
features, H hidden size, G gates, R size of h (P if projected, else H).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxrnn.blocks import block_length, first_and_shifted, scan_blocks
from jaxrnn.cells import Cell, State


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


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it is traced; a static argument.

    Attributes:
        cell: the cell.
        reverse: read the sequence from its last step to its first.
        remat: keep only the output and the states between blocks for the derivative, and compute
            the rest again from them: one product a block more, far less memory.
        block: steps in a block; None chooses from the shapes (`jaxrnn.blocks.block_length`).
    """

    cell: Cell
    reverse: bool = False
    remat: bool = False
    block: int | None = None


def unroll(
    cell: Cell,
    weights: Weights,
    x: jax.Array,
    state: State | None = None,
    *,
    reverse: bool = False,
    masks: Masks = Masks(),
    remat: bool = False,
    block: int | None = None,
) -> tuple[jax.Array, State]:
    """Run a cell over a sequence: the pure function under every layer.

    Args:
        cell: what one step is.
        weights: its parameters, all of one floating dtype, which is also the output's.
        x: (T, N, D), T at least 1.
        state: the initial states, h (N, R) first, each other one (N, H); None for zeros.
        reverse: read the sequence from its last step to its first.
        masks: resets and valid steps, see `Masks`.
        remat: trade arithmetic for memory in the derivative, see `Plan`.
        block: steps in a block; the default is chosen from the shapes.

    Returns:
        The hidden state at each step (T, N, R), and the state after the last step consumed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> from jaxrnn.recurrence import Weights, unroll
        >>> weights = Weights(jnp.ones((4, 2)), jnp.ones((4, 4)))
        >>> output, (h_n,) = unroll(cells.Elman(), weights, jnp.ones((3, 1, 2)))
        >>> output.shape, h_n.shape
        ((3, 1, 4), (1, 4))

    Differs from PyTorch: derivatives of every order and mode; low precision (bfloat16, float16)
    rounds the states at each step as PyTorch does, but computes each step in float32.
    """
    if state is None:
        state = zero_state(cell, weights, x.shape[1], x.dtype)
    return _unroll(Plan(cell, reverse, remat, block), weights, x, tuple(state), masks)


def zero_state(cell: Cell, weights: Weights, batch: int, dtype: Any) -> State:
    """The initial state of zeros: h (N, R), each other state (N, H)."""
    hidden = weights.weight_hh.shape[0] // len(cell.gates)
    sizes = [weights.weight_hh.shape[1]] + [hidden] * (len(cell.states) - 1)
    return tuple(jnp.zeros((batch, size), dtype) for size in sizes)


def advance(
    cell: Cell, weights: Weights, zx: jax.Array, state: State, masks: Masks = Masks()
) -> tuple[State, jax.Array, Any]:
    """One step, given the gate inputs from x: the new state, m before projection, what is saved."""
    old = state
    state = _enter(state, masks.resets)
    (m, *rest), saved = cell.save(_gates(cell, weights, zx, state[0]), _wide(state))
    m = m.astype(old[0].dtype)
    h = m if weights.weight_hr is None else _product(m, weights.weight_hr).astype(m.dtype)
    return _leave((h, *_like(rest, old[1:])), old, masks.valid), m, saved


def gate_inputs(cell: Cell, weights: Weights, x: jax.Array) -> jax.Array:
    """What the input gives to the gates (..., G*H), with every bias that need not wait."""
    zx = _plus(_product(x, weights.weight_ih), weights.bias_ih)
    return zx if cell.split else _plus(zx, weights.bias_hh)


def _gates(cell: Cell, weights: Weights, zx: jax.Array, h: jax.Array) -> Any:
    """What the step of a cell takes, from `gate_inputs` and the hidden state it starts from."""
    zh = _product(h, weights.weight_hh)
    return (zx, _plus(zh, weights.bias_hh)) if cell.split else zx + zh


class _Kept(NamedTuple):
    """What the derivative needs of the steps (T, ...) beside x and the output."""

    rest: State  # the states after each step but h
    m: jax.Array | None  # the output before projection, if there is one
    saved: Any  # what the cell saved


def _forward(
    plan: Plan, weights: Weights, x: jax.Array, state: State, masks: Masks, keep: bool
) -> tuple[jax.Array, State, _Kept | None, State]:
    """The loop: output, final state, what was kept of each step, the state before each block."""
    cell = plan.cell

    def block(state: State, steps: Any, nothing: None) -> Any:
        del nothing
        x, masks = steps
        start = state

        def step(carry: Any, inputs: Any) -> Any:
            state, fetched = carry
            zx, masks = inputs
            now, following = (fetched, zx) if prefetch else (zx, None)
            state, m, saved = advance(cell, weights, now, state, masks)
            if not keep:
                return (state, following), (state[0], None)
            m = m if _projects(weights) else None
            return (state, following), (state[0], _Kept(state[1:], m, _narrow(saved, x.dtype)))

        # Where a cell takes its gate inputs apart, those of a step are fetched during the step
        # before, through the carry. Sliced from the block within the pointwise function, as XLA
        # would fuse it, they keep a CPU from vectorising that: a GRU took twice as long.
        prefetch = cell.split and not keep
        first: jax.Array | None = None
        if prefetch:
            first = gate_inputs(cell, weights, x[-1 if plan.reverse else 0])
            x = jnp.roll(x, 1 if plan.reverse else -1, axis=0)
        zx = gate_inputs(cell, weights, x)
        (state, _), outputs = lax.scan(step, (state, first), (zx, masks), reverse=plan.reverse)
        return state, outputs, start

    length = block_length(x.shape[0], x.shape[1], plan.block)
    state, (hs, kept), starts = scan_blocks(
        block, state, (x, masks), None, length=length, reverse=plan.reverse
    )
    return hs, state, kept, starts


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _unroll(
    plan: Plan, weights: Weights, x: jax.Array, state: State, masks: Masks
) -> tuple[jax.Array, State]:
    hs, state, _, _ = _forward(plan, weights, x, state, masks, keep=False)
    return hs, state


def _unroll_jvp(plan: Plan, primals: Any, tangents: Any) -> Any:
    weights, x, state, masks = primals
    dweights, dx, dstate, _ = tangents
    dweights = Weights(*(_nonzero(d) for d in dweights))  # frozen weights cost nothing
    dx = _nonzero(dx)
    wide = _wide_dtype(x.dtype)
    dstate = tuple(
        jnp.zeros(s.shape, wide) if _nonzero(d) is None else d.astype(wide)
        for s, d in zip(state, dstate, strict=True)
    )
    hs, final, kept, starts = _forward(plan, weights, x, state, masks, keep=not plan.remat)

    # Under `jax.checkpoint` reverse mode stores only the arguments of a block, and computes the
    # pointwise coefficients, several times the size of the gates, while they are in the cache.
    linear = jax.checkpoint(functools.partial(_linear_block, plan), prevent_cse=False)

    def block(dstate: State, steps: Any, start: State) -> Any:
        x, masks, hs, kept, dx = steps
        dstate, dhs = linear(weights, dweights, x, dx, start, masks, hs, kept, dstate)
        return dstate, dhs, None

    length = block_length(x.shape[0], x.shape[1], plan.block)
    dfinal, dhs, _ = scan_blocks(
        block, dstate, (x, masks, hs, kept, dx), starts, length=length, reverse=plan.reverse
    )
    return (hs, final), (dhs, _like(dfinal, final))


_unroll.defjvp(_unroll_jvp, symbolic_zeros=True)


def _linear_block(
    plan: Plan,
    weights: Weights,
    dweights: Weights,
    x: jax.Array,
    dx: jax.Array | None,
    start: State,
    masks: Masks,
    hs: jax.Array,
    kept: _Kept | None,
    dstate: State,
) -> tuple[State, jax.Array]:
    """The derivative of one block of steps: linear in `dweights`, `dx` and `dstate`."""
    cell = plan.cell
    shift = functools.partial(first_and_shifted, reverse=plan.reverse)
    if kept is None:
        kept = _replay(plan, weights, x, start, masks, hs)
    old = _enter(tuple(map(shift, start, (hs, *kept.rest))), masks.resets)
    new = (hs if kept.m is None else kept.m, *kept.rest)
    coefficients = cell.linearize(_wide(kept.saved), _wide(old), _wide(new))

    from_x = [_product(x, dweights.weight_ih), dweights.bias_ih, _product(dx, weights.weight_ih)]
    from_h = [_product(old[0], dweights.weight_hh), dweights.bias_hh]
    shape = (*hs.shape[:2], weights.weight_hh.shape[0])
    if cell.split:
        uz = (_total(from_x, shape, hs.dtype), _total(from_h, shape, hs.dtype))
    else:
        uz = _total(from_x + from_h, shape, hs.dtype)
    uh = None if weights.weight_hr is None else _product(new[0], dweights.weight_hr)

    def step(dstate: State, inputs: Any) -> tuple[State, jax.Array]:
        coefficients, uz, uh, masks = inputs
        before = dstate
        dstate = _enter(dstate, masks.resets)
        zh = _product(dstate[0].astype(hs.dtype), weights.weight_hh)
        dz = (uz[0], uz[1] + zh) if cell.split else uz + zh
        dm, *rest = cell.tangent(coefficients, dz, dstate)
        dh = dm if weights.weight_hr is None else _product(dm.astype(hs.dtype), weights.weight_hr)
        dstate = _leave((dh if uh is None else dh + uh, *rest), before, masks.valid)
        return dstate, dstate[0].astype(hs.dtype)

    return lax.scan(step, dstate, (coefficients, uz, uh, masks), reverse=plan.reverse)


def _replay(
    plan: Plan, weights: Weights, x: jax.Array, start: State, masks: Masks, hs: jax.Array
) -> _Kept:
    """What `_forward` would have kept of a block, from its output and the state before it.

    The hidden states are known, so that all gate inputs come out of one product; only the other
    states, if there are any, run through a loop again, and that loop is elementwise.
    """
    cell = plan.cell
    old_h = first_and_shifted(start[0], hs, reverse=plan.reverse)
    (entered_h,) = _enter((old_h,), masks.resets)
    z = _gates(cell, weights, gate_inputs(cell, weights, x), entered_h)

    def step(rest: State, inputs: Any) -> tuple[State, _Kept]:
        z, old_h, masks = inputs
        (m, *new), saved = cell.save(z, _wide(_enter((old_h, *rest), masks.resets)))
        rest = _leave(_like(new, rest), rest, masks.valid)
        m = m.astype(hs.dtype) if _projects(weights) else None
        return rest, _Kept(rest, m, _narrow(saved, hs.dtype))

    if len(start) == 1:  # nothing is carried: all steps at once
        return step((), (z, old_h, masks))[1]
    return lax.scan(step, start[1:], (z, old_h, masks), reverse=plan.reverse)[1]


def _projects(weights: Weights) -> bool:
    return weights.weight_hr is not None


def _enter(state: State, resets: jax.Array | None) -> State:
    """The state a step sees: zero where the row is reset."""
    if resets is None:
        return state
    return tuple(jnp.where(resets[..., None], jnp.zeros_like(s), s) for s in state)


def _leave(new: State, old: State, valid: jax.Array | None) -> State:
    """The state after a step: the old one where the step is not the row's."""
    if valid is None:
        return new
    return tuple(jnp.where(valid[..., None], n, o) for n, o in zip(new, old, strict=True))


def _wide_dtype(dtype: Any) -> Any:
    """The dtype of sums and pointwise functions: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(_wide_dtype(a.dtype)), tree)


def _narrow(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def _like(new: Any, old: State) -> State:
    return tuple(n.astype(o.dtype) for n, o in zip(new, old, strict=True))


def _product(a: Any, w: Any) -> Any:
    """``a @ w.T`` summed in the wide dtype, for a (..., D) and w (S, D); None if either is None."""
    if a is None or w is None:
        return None
    contract = (((a.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(a, w, contract, preferred_element_type=_wide_dtype(a.dtype))


def _plus(z: jax.Array, bias: jax.Array | None) -> jax.Array:
    if bias is None:
        return z
    return z + bias.astype(z.dtype).reshape((1,) * (z.ndim - 1) + bias.shape)


def _total(terms: list[Any], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The sum of the terms that are there, biases (G*H,) or products, as one array."""
    total = jnp.zeros(shape, _wide_dtype(dtype))
    for term in terms:
        if term is not None:
            total = _plus(total, term) if term.ndim == 1 else total + term
    return total


def _nonzero(tangent: Any) -> Any:
    return None if isinstance(tangent, SymbolicZero) else tangent
