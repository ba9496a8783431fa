"""The one recurrence of the package: a cell run over time, and its derivative.

.. code-block:: text

    zx_t = x_t @ W_ih.T + b_ih                     for a block in one product, or step by step
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
from jaxrnn.products import paired_product, product_of_rows, rows_product, wide_dtype
from jaxrnn.step import (
    Masks,
    Weights,
    advance,
    enter,
    entered_rows,
    gate_inputs,
    inputs_at_each_step,
    joined,
    leave,
    like,
    narrow,
    one_bias,
    plus,
    two_columns,
    wide,
    with_biases,
    zero_state,
)


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it is traced; a static argument.

    Attributes:
        cell: the cell.
        reverse: read the sequence from its last step to its first.
        remat: keep only the output and the states between blocks for the derivative, and compute
            the rest again from them: one product and one loop a block more, far less memory.
        block: steps in a block; None chooses from the shapes (`jaxrnn.blocks.block_length`).
        all_states: give out every state at each step, and not the hidden state alone.
    """

    cell: Cell
    reverse: bool = False
    remat: bool = False
    block: int | None = None
    all_states: bool = False

    def given_out(self, state: State) -> State:
        """The states that are given out at each step."""
        return state if self.all_states else state[:1]


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
    all_states: bool = False,
) -> tuple[Any, State]:
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
        all_states: give out every state at each step.

    Returns:
        The hidden state at each step (T, N, R), and the state after the last step consumed. With
        `all_states`, the first is the tuple of all states at each step, (T, N, R), (T, N, H), ...
        At a step that is not valid, it is what the row's state is then.

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
    plan = Plan(cell, reverse, remat, block, all_states)
    given, last = _unroll(plan, weights, x, tuple(state), masks)
    return given if all_states else given[0], last


class _Kept(NamedTuple):
    """What the derivative needs of the steps beside x and the output; all (K, ..., N)."""

    rest: State  # the states after each step but h
    m: jax.Array | None = None  # the output before projection, if there is one
    saved: Any = None  # what the cell saved; None with `m` where both are computed again


# What a cell saved is kept as far as it is no burden: about the gates, up to so many bytes. The
# states are always kept unless `remat` is set. From them a block gets its gates again in one
# product, which takes a tenth to a fifth longer and, for an LSTM, a third of the memory.
KEPT_BYTES = 256_000_000


def _forward(
    plan: Plan, weights: Weights, x: jax.Array, state: State, masks: Masks, keep: bool
) -> tuple[State, State, _Kept | None, State]:
    """The loop: what it gives out, final state, what was kept of each step, states before blocks.

    Rows are last in every state, given and returned, and in all that is kept; what is given out at
    each step is (T, N, R), (T, N, H), ...
    """
    cell = plan.cell
    every_step = inputs_at_each_step(cell, x, weights)
    gates = x.shape[0] * x.shape[1] * weights.weight_hh.shape[0]
    few = gates * x.dtype.itemsize <= KEPT_BYTES
    if not cell.split:
        weights = one_bias(weights)
    elif x.shape[2] == 1:
        weights, x = two_columns(weights, x)

    def block(state: State, steps: Any, nothing: None) -> Any:
        del nothing
        x, masks = steps
        start = state

        def step(carry: Any, inputs: Any) -> Any:
            state, fetched = carry
            now, masks = inputs
            if every_step:
                zx = gate_inputs(cell, weights, now)
            else:
                zx, fetched = (fetched, now) if prefetch else (now, None)
            state, m, saved = advance(cell, weights, zx, state, masks)
            kept = _Kept(state[1:]) if keep else None
            if keep and few:
                m = m if _projects(weights) else None
                kept = _Kept(state[1:], m, narrow(saved, x.dtype))
            return (state, fetched), (_rows_last(plan.given_out(state)), kept)

        # Where a cell takes its gate inputs apart, those of a step are fetched during the step
        # before, through the carry. Sliced from the block within the pointwise function, as XLA
        # would fuse it, they keep a CPU from vectorising that: a GRU took twice as long.
        prefetch = cell.split and not keep and not every_step
        first: jax.Array | None = None
        if prefetch:
            first = gate_inputs(cell, weights, x[-1 if plan.reverse else 0])
            x = jnp.roll(x, 1 if plan.reverse else -1, axis=0)
        if not every_step:
            x = with_biases(cell, weights, rows_product(x, weights.weight_ih), axis=-1)
            x = x.swapaxes(1, 2)
        (state, _), outputs = lax.scan(step, (state, first), (x, masks), reverse=plan.reverse)
        return state, outputs, start

    steps = x.shape[0]
    length = block_length(steps, x.shape[1], plan.block)
    whole = every_step and not plan.remat  # nothing is gained by blocks
    final, (given, kept), starts = scan_blocks(
        block, state, (x, masks), None, length=steps if whole else length, reverse=plan.reverse
    )
    if kept is not None and whole:
        ends = (given[0].swapaxes(1, 2), *kept.rest)
        starts = tuple(map(functools.partial(_before_blocks, plan, length), state, ends))
    return given, final, kept, starts


def _before_blocks(plan: Plan, length: int, first: jax.Array, after: jax.Array) -> jax.Array:
    """The state before each block, of a state before all steps and after each of them."""
    if plan.reverse:
        return jnp.concatenate([after[length::length], first[None]])
    return jnp.concatenate([first[None], after[length - 1 : -1 : length]])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _unroll(
    plan: Plan, weights: Weights, x: jax.Array, state: State, masks: Masks
) -> tuple[State, State]:
    given, state, _, _ = _forward(plan, weights, x, _rows_last(state), masks, keep=False)
    return given, _rows_last(state)


def _unroll_jvp(plan: Plan, primals: Any, tangents: Any) -> Any:
    weights, x, state, masks = primals
    dweights, dx, dstate, _ = tangents
    dweights = Weights(*(_nonzero(d) for d in dweights))  # frozen weights cost nothing
    dx = _nonzero(dx)
    dtype = wide_dtype(x.dtype)
    dstate = tuple(
        jnp.zeros(s.shape[::-1], dtype) if _nonzero(d) is None else d.T.astype(dtype)
        for s, d in zip(state, dstate, strict=True)
    )
    given, final, kept, starts = _forward(
        plan, weights, x, _rows_last(state), masks, keep=not plan.remat
    )
    transposed = tuple(
        None if w is None else w.T
        for w in (weights.weight_ih, weights.weight_hh, weights.weight_hr)
    )

    # Under `jax.checkpoint` reverse mode stores only the arguments of a block, and computes the
    # pointwise coefficients, several times the size of the gates, while they are in the cache.
    linear = jax.checkpoint(functools.partial(_linear_block, plan), prevent_cse=False)

    def block(dstate: State, steps: Any, start: State) -> Any:
        x, masks, hs, kept, dx = steps
        dstate, out = linear(weights, transposed, dweights, x, dx, start, masks, hs, kept, dstate)
        return dstate, out, None

    length = block_length(x.shape[0], x.shape[1], plan.block)
    steps = (x, masks, given[0], kept, dx)
    dfinal, dgiven, _ = scan_blocks(
        block, dstate, steps, starts, length=length, reverse=plan.reverse
    )
    return (given, _rows_last(final)), (dgiven, _rows_last(like(dfinal, final)))


_unroll.defjvp(_unroll_jvp, symbolic_zeros=True)


def _linear_block(
    plan: Plan,
    weights: Weights,
    transposed: tuple[jax.Array | None, ...],
    dweights: Weights,
    x: jax.Array,
    dx: jax.Array | None,
    start: State,
    masks: Masks,
    hs: jax.Array,
    kept: _Kept | None,
    dstate: State,
) -> tuple[State, State]:
    """The derivative of one block of steps: linear in `dweights`, `dx` and `dstate`.

    `transposed` are W_ih.T, W_hh.T and W_hr.T. The h given out, (K, N, R), serves the products with
    the derivatives of the weights; with rows last it serves the pointwise functions.
    """
    cell = plan.cell
    ih_t, hh_t, hr_t = transposed
    assert ih_t is not None
    assert hh_t is not None
    shift = functools.partial(first_and_shifted, reverse=plan.reverse)
    if kept is None or kept.saved is None:
        kept = _replay(plan, weights, x, start, masks, hs, None if kept is None else kept.rest)
    hs_last = hs.swapaxes(1, 2)
    old = enter(tuple(map(shift, start, (hs_last, *kept.rest))), masks.resets)
    new = (hs_last if kept.m is None else kept.m, *kept.rest)
    coefficients = jax.vmap(cell.linearize)(wide(kept.saved), wide(old), wide(new))

    # All that does not come through the state of the step before, for all steps at once.
    old_h = entered_rows(shift(start[0].T, hs), masks.resets)
    from_x = [product_of_rows(dweights.weight_ih, x), dweights.bias_ih]
    if dx is not None:
        # The barrier keeps XLA from exchanging the operands of the transposed product for the sake
        # of the layout of its result, which took a CPU three times as long.
        columns = lax.optimization_barrier(dx.reshape(-1, dx.shape[2]).T)
        through = paired_product(weights.weight_ih, ih_t, columns)
        from_x.append(through.reshape(-1, *dx.shape[:2]).swapaxes(0, 1))
    from_h = [product_of_rows(dweights.weight_hh, old_h), dweights.bias_hh]
    shape = (hs.shape[0], weights.weight_hh.shape[0], hs.shape[1])
    if cell.split:
        dz = (_total(from_x, shape, hs.dtype), _total(from_h, shape, hs.dtype))
    else:
        dz = _total(from_x + from_h, shape, hs.dtype)
    direct = jax.vmap(cell.tangent)(coefficients, dz, jax.tree.map(jnp.zeros_like, wide(old)))
    from_hr = None
    if kept.m is not None:
        from_hr = product_of_rows(dweights.weight_hr, kept.m.swapaxes(1, 2))

    def step(dstate: State, inputs: Any) -> tuple[State, State]:
        coefficients, direct, from_hr, masks = inputs
        before = dstate
        dstate = enter(dstate, masks.resets)
        dz = paired_product(weights.weight_hh, hh_t, dstate[0].astype(hs.dtype))
        dz = (jnp.zeros_like(dz), dz) if cell.split else dz
        dstate = cell.tangent(coefficients, dz, dstate)
        dh, *rest = map(jnp.add, dstate, direct)
        if weights.weight_hr is not None:
            assert hr_t is not None
            dh = paired_product(weights.weight_hr, hr_t, dh.astype(hs.dtype))
        dstate = leave((dh if from_hr is None else dh + from_hr, *rest), before, masks.valid)
        return dstate, narrow(plan.given_out(dstate), hs.dtype)

    steps = (coefficients, direct, from_hr, masks)
    dstate, given = lax.scan(step, dstate, steps, reverse=plan.reverse)
    # Turned apart from the loop, which a CPU then vectorises.
    return dstate, tuple(d.swapaxes(1, 2) for d in given)


def _replay(
    plan: Plan,
    weights: Weights,
    x: jax.Array,
    start: State,
    masks: Masks,
    hs: jax.Array,
    known: State | None,
) -> _Kept:
    """What `_forward` would have kept of a block, from its output and the state before it.

    The hidden states are known, so that all gate inputs come out of one product. Where the other
    states are not `known`, they run through a loop again, and that loop is elementwise.
    """
    cell = plan.cell
    shift = functools.partial(first_and_shifted, reverse=plan.reverse)
    before = shift(start[0].T, hs)
    zh = product_of_rows(weights.weight_hh, entered_rows(before, masks.resets))
    z = joined(cell, weights, gate_inputs(cell, weights, x), zh)

    def step(rest: State, inputs: Any) -> tuple[State, _Kept]:
        z, old_h, masks = inputs
        (m, *new), saved = cell.save(z, wide(enter((old_h, *rest), masks.resets)))
        rest = leave(like(new, rest), rest, masks.valid)
        m = m.astype(hs.dtype) if _projects(weights) else None
        return rest, _Kept(rest, m, narrow(saved, hs.dtype))

    steps = z, before.swapaxes(1, 2), masks
    if known is None and len(start) > 1:
        return lax.scan(step, start[1:], steps, reverse=plan.reverse)[1]
    rest = tuple(map(shift, start[1:], known or ()))
    return jax.vmap(step)(rest, steps)[1]


def _projects(weights: Weights) -> bool:
    return weights.weight_hr is not None


def _rows_last(state: State) -> State:
    """Each (N, H) as (H, N), and back."""
    return tuple(s.T for s in state)


def _total(terms: list[Any], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The sum of the terms that are there, biases (G*H,) or products, as one array."""
    total = jnp.zeros(shape, wide_dtype(dtype))
    for term in terms:
        if term is not None:
            total = plus(total, term) if term.ndim == 1 else total + term
    return total


def _nonzero(tangent: Any) -> Any:
    return None if isinstance(tangent, SymbolicZero) else tangent
