"""The loop of the recurrence, and the linear loop of its derivative, as `lax.scan`.

Rows (the batch) are last in every state and in all that is kept: h (R, N), other states (H, N).
What is given out at each step is (T, N, R), (T, N, H). Axis letters: T time, K steps in a block, N
batch, D input features, H hidden size, G gates, R size of h (P if projected, else H).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.backends import parallel
from jaxrnn.backends import sharding as devices
from jaxrnn.backends.base import Block, Keep, Kept, Plan
from jaxrnn.backends.blocks import block_length, first_and_shifted, known, scan_blocks
from jaxrnn.backends.platform import choices
from jaxrnn.backends.products import paired_product, product_of_rows
from jaxrnn.backends.step import (
    StepMasks,
    advance,
    dropped,
    dropped_rows,
    enter,
    entered_rows,
    gate_inputs,
    gives_output,
    inputs_at_each_step,
    inputs_of_block,
    joined,
    leave,
    like,
    outputs,
    plus,
    rule,
    turned,
)
from jaxrnn.cells import BaseCell, State
from jaxrnn.cells.base import cast, compute_dtype, upcast
from jaxrnn.cells.weights import Weights, append_ones_column, cell_parameters, sum_biases


def forward(
    plan: Plan, weights: Weights, x: jax.Array, state: State, masks: StepMasks, keep: Keep
) -> tuple[State, State, Kept | None, State]:
    """The loop: what it gives out, final state, what was kept of each step, states before blocks.

    Rows are last in every state, given and returned, and in all that is kept; what is given out at
    each step is (T, N, R), (T, N, H), ..., before it the output (T, N, F) where that is no state.
    """
    cell = plan.cell
    every_step = inputs_at_each_step(cell, x, weights)
    apart = gives_output(cell)
    if not cell.split:
        weights = sum_biases(weights)
    elif x.shape[2] == 1:
        weights, x = append_ones_column(weights, x)

    def block(state: State, steps: Any, nothing: None) -> Any:
        del nothing
        x, masks = steps
        start, entered = state, x

        def step(carry: Any, inputs: Any) -> Any:
            state, fetched = carry
            now, masks = inputs
            if every_step:
                zx = gate_inputs(cell, weights, now)
            else:
                zx, fetched = (fetched, now) if prefetch else (now, None)
            state, m, saved = advance(cell, weights, zx, state, masks)
            kept = None if keep is Keep.NOTHING else Kept(state[1:])
            if keep is Keep.ALL:
                m = m if _projects(weights) else None
                kept = Kept(state[1:], m, cast(saved, x.dtype))
            return (state, fetched), (turned(plan.given_out(state)), kept)

        # Where a cell takes its gate inputs apart, those of a step are fetched during the step
        # before, through the carry. Sliced from the block within the pointwise function, as XLA
        # would fuse it, they keep a CPU from vectorising that: a GRU took twice as long.
        prefetch = choices().prefetch and cell.split and keep is Keep.NOTHING and not every_step
        first: jax.Array | None = None
        if prefetch:
            first = gate_inputs(cell, weights, x[-1 if plan.reverse else 0])
            x = jnp.roll(x, 1 if plan.reverse else -1, axis=0)
        if not every_step:
            x = inputs_of_block(cell, weights, x)
        if plan.backend == "parallel":
            coefficients: Any = x
            after = parallel.states(coefficients, upcast(state[0]), masks, reverse=plan.reverse)
            after = after.astype(state[0].dtype)
            state, given, kept = (after[0 if plan.reverse else -1],), turned((after,)), None
        else:
            (state, _), (given, kept) = scan_steps(
                plan, step, (state, first), (x, masks), entered.shape[0]
            )
        if apart:
            output = outputs(cell, weights, entered, given)
            given = (output, *given) if plan.all_states else (output,)
        return state, (given, kept), start

    if not cell.gates and plan.remat:  # the derivative is JAX's own
        block = jax.checkpoint(block, prevent_cse=False)
    steps, length = x.shape[0], length_of_blocks(plan, x, keep)
    # Nothing is gained by blocks in a loop that does its own products, or has nothing but them.
    whole = (every_step or not cell.gates) and not plan.remat
    final, (given, kept), starts = scan_blocks(
        block, state, (x, masks), None, length=steps if whole else length, reverse=plan.reverse
    )
    if kept is not None and whole:
        ends = (given[0].swapaxes(1, 2), *kept.rest)
        starts = tuple(map(functools.partial(before_blocks, plan, length), state, ends))
    return given, final, kept, starts


def length_of_blocks(plan: Plan, x: jax.Array, keep: Keep) -> int:
    """The steps in a block, for x (T, N, D)."""
    del keep  # the products of a block are best in a cache, whatever is kept
    here = choices()
    return block_length(x.shape[0], x.shape[1], plan.block, rows=here.rows, longest=here.longest)


def scan_steps(plan: Plan, step: Any, carry: Any, steps: Any, length: int) -> tuple[Any, Any]:
    """`lax.scan` over the steps of a block, in the order of the run, unrolled as it pays."""
    # A length that is a symbol is that of the arrays.
    told, unroll = (length, choices().unroll) if known(length) else (None, 1)
    return lax.scan(step, carry, steps, told, reverse=plan.reverse, unroll=unroll)


def before_blocks(plan: Plan, length: int, first: jax.Array, after: jax.Array) -> jax.Array:
    """The state before each block, of a state before all steps and after each of them."""
    if plan.reverse:
        return jnp.concatenate([after[length::length], first[None]])
    return jnp.concatenate([first[None], after[length - 1 : -1 : length]])


def linear_block(
    plan: Plan,
    weights: Weights,
    transposed: tuple[jax.Array | None, ...],
    block: Block,
    dweights: Weights,
    dx: jax.Array | None,
    dstate: State,
) -> tuple[State, State]:
    """The derivative of one block of steps: linear in `dweights`, `dx` and `dstate`.

    `transposed` are W_ih.T, W_hh.T and W_hr.T. The h given out, (K, N, R), serves the products with
    the derivatives of the weights; with rows last it serves the pointwise functions.
    """
    cell = plan.cell
    x, start, masks, hs, kept = block
    ih_t: Any = transposed[0]
    own = cell_parameters(cell, weights.cell_params)
    shift = functools.partial(first_and_shifted, reverse=plan.reverse)
    if kept is None or kept.saved is None:
        kept = _replay(plan, weights, block)
    hs_last = hs.swapaxes(1, 2)
    old = enter(tuple(map(shift, start, (hs_last, *kept.rest))), masks.reset_mask)
    new = (hs_last if kept.m is None else kept.m, *kept.rest)
    derivative = rule(cell, masks)
    coefficients = jax.vmap(lambda saved, old, new: derivative.linearize(saved, old, new, *own))(
        upcast(kept.saved), upcast(old), upcast(new)
    )

    # All that does not come through the state of the step before, for all steps at once.
    old_h = dropped_rows(weights, entered_rows(shift(start[0].T, hs), masks.reset_mask))
    from_x = [product_of_rows(dweights.weight_ih, x), dweights.bias_ih]
    if dx is not None:
        # The barrier keeps XLA from exchanging the operands of the transposed product for the sake
        # of the layout of its result, which took a CPU three times as long.
        columns = lax.optimization_barrier(devices.merged(dx).T)
        through = paired_product(weights.weight_ih, ih_t, columns)
        from_x.append(devices.unmerged(through, dx.shape[0], axis=1).swapaxes(0, 1))
    from_h = [product_of_rows(dweights.weight_hh, old_h), dweights.bias_hh]
    shape = (hs.shape[0], weights.weight_ih.shape[0], hs.shape[1])
    if cell.split:
        dz = (_total(from_x, shape, hs.dtype), _total(from_h, shape, hs.dtype))
    else:
        dz = _total(from_x + from_h, shape, hs.dtype)
    if own:
        own = (*own, _instantiated(cell, weights.cell_params, dweights.cell_params))
    direct = jax.vmap(lambda *by_step: derivative.tangent(*by_step, *own))(
        coefficients, dz, jax.tree.map(jnp.zeros_like, upcast(old))
    )
    from_hr = None
    if kept.m is not None:
        from_hr = product_of_rows(dweights.weight_hr, kept.m.swapaxes(1, 2))

    return linear_loop(plan, weights, transposed, coefficients, direct, from_hr, masks, dstate)


def linear_loop(
    plan: Plan,
    weights: Weights,
    transposed: tuple[jax.Array | None, ...],
    coefficients: Any,
    direct: State,
    from_hr: jax.Array | None,
    masks: StepMasks,
    dstate: State,
) -> tuple[State, State]:
    """The part of the derivative that goes from step to step.

    Args:
        plan, weights, transposed: as in `linear_block`.
        coefficients: of the cell's tangent at each step.
        direct: what each state's derivative gets at each step past the states, (K, H, N).
        from_hr: what h gets by the derivative of W_hr, (K, P, N), if there is any.
        masks: of each step.
        dstate: by the states before.
    """
    cell = plan.cell
    hh_t: Any
    _, hh_t, hr_t = transposed
    w_hh = weights.weight_hh
    own = cell_parameters(cell, weights.cell_params)
    own = (*own, None) if own else ()
    dtype = weights.weight_ih.dtype
    tangent = rule(cell, masks).tangent

    def step(dstate: State, inputs: Any) -> tuple[State, State]:
        coefficients, direct, from_hr, masks = inputs
        before = dstate
        dstate = entered = enter(dstate, masks.reset_mask)
        if w_hh is None:
            rows = len(cell.gates) * dstate[0].shape[0]
            dz = jnp.zeros((rows, dstate[0].shape[1]), dstate[0].dtype)
        else:
            dz = paired_product(w_hh, hh_t, dropped(weights, dstate[0]).astype(dtype))
        dz = (jnp.zeros_like(dz), dz) if cell.split else dz
        dstate = tangent(coefficients, dz, dstate, *own)
        dh, *rest = map(jnp.add, dstate, direct)
        if weights.weight_hr is not None:
            assert hr_t is not None
            dh = paired_product(weights.weight_hr, hr_t, dh.astype(dtype))
        dh = dh if from_hr is None else dh + from_hr
        dstate = leave((dh, *rest), entered, before, masks)
        return dstate, cast(plan.given_out(dstate), dtype)

    steps = (coefficients, direct, from_hr, masks)
    dstate, given = scan_steps(plan, step, dstate, steps, direct[0].shape[0])
    # Turned apart from the loop, which a CPU then vectorises.
    return dstate, turned(given)


def _replay(plan: Plan, weights: Weights, block: Block) -> Kept:
    """What `forward` would have kept of a block, from its output and the state before it.

    The hidden states are known, so that all gate inputs come out of one product. Where the other
    states were not kept, they run through a loop again, and that loop is elementwise.
    """
    cell = plan.cell
    x, start, masks, hs, kept = block
    shift = functools.partial(first_and_shifted, reverse=plan.reverse)
    before = shift(start[0].T, hs)
    old_h = dropped_rows(weights, entered_rows(before, masks.reset_mask))
    zh = product_of_rows(weights.weight_hh, old_h)
    z = joined(cell, weights, gate_inputs(cell, weights, x), zh)
    own = cell_parameters(cell, weights.cell_params)
    save = rule(cell, masks).save
    of_rest = lambda masks: masks.zoneout and masks.zoneout[1:]  # noqa: E731

    def step(rest: State, inputs: Any) -> tuple[State, Kept]:
        z, old_h, masks = inputs
        _, *entered = state = enter((old_h, *rest), masks.reset_mask)
        (m, *new), saved = save(z, upcast(state), *own)
        rest = leave(like(new, rest), tuple(entered), rest, masks._replace(zoneout=of_rest(masks)))
        m = m.astype(hs.dtype) if _projects(weights) else None
        return rest, Kept(rest, m, cast(saved, hs.dtype))

    steps = z, before.swapaxes(1, 2), masks
    if kept is None and len(start) > 1:
        return scan_steps(plan, step, start[1:], steps, hs.shape[0])[1]
    rest = tuple(map(shift, start[1:], () if kept is None else kept.rest))
    return jax.vmap(step)(rest, steps)[1]


def _projects(weights: Weights) -> bool:
    return weights.weight_hr is not None


def _instantiated(cell: BaseCell, own: Any, down: Any) -> Any:
    """The derivatives by a cell's own parameters, zeros for some, None for none at all."""
    if all(d is None for d in down.values()):
        return None
    there = {n: jnp.zeros_like(own[n]) if d is None else d for n, d in down.items()}
    return cell_parameters(cell, there)[0]


def transposes(weights: Weights) -> tuple[jax.Array | None, ...]:
    """W_ih.T, W_hh.T and W_hr.T, made once for all blocks."""
    w = weights
    return tuple(None if a is None else a.T for a in (w.weight_ih, w.weight_hh, w.weight_hr))


def _total(terms: list[Any], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The sum of the terms that are there, biases (G*H,) or products, as one array."""
    total = jnp.zeros(shape, compute_dtype(dtype))
    for term in terms:
        if term is not None:
            total = plus(total, term) if term.ndim == 1 else total + term
    return total
