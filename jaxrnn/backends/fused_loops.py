"""The loops of `jaxrnn.backends.scan` by the operations of `jaxrnn.backends.primitives`: what a run with kernels calls.

The same functions under the same names, with rows first in all states and in all that is kept.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends import operands
from jaxrnn.backends import primitives as fused
from jaxrnn.backends import scan as loops
from jaxrnn.backends import sharding as devices
from jaxrnn.backends.base import Block, Keep, Kept, Plan
from jaxrnn.backends.blocks import block_length, scan_blocks
from jaxrnn.backends.step import StepMasks
from jaxrnn.cells import Cell, State
from jaxrnn.cells.weights import Weights

# A block of the derivative, where it is computed again: so many rows that a call of a kernel costs
# little beside them, few enough that what the blocks share of memory stays in the cache.
ROWS = 2048


def forward(
    plan: Plan,
    weights: Weights,
    x: jax.Array,
    state: State,
    masks: StepMasks,
    keep: Keep,
) -> tuple[State, State, Kept | None, State]:
    """As `loops.forward`, rows first."""
    flags = operands.flags_of(masks)
    parameters = _parameters(weights, operands.own_vector(plan.cell, weights.cell_params))
    how = _how(plan, flags)
    last = 0 if plan.reverse else -1
    length = length_of_blocks(plan, x, keep)
    if keep is Keep.ALL:
        h, *more = fused.forward_p.bind(x, *parameters, *state, *flags, **how, store_residuals=True)
        kept = _kept(state, more)
        ends = (h, *kept.rest)
        starts = tuple(map(functools.partial(loops.before_blocks, plan, length), state, ends))
        return (h,), tuple(s[last] for s in ends), kept, starts

    def block(state: State, steps: Any, nothing: None) -> Any:
        del nothing
        x, masks = steps
        h, *rest = fused.forward_p.bind(
            x, *parameters, *state, *operands.flags_of(masks), **how, store_residuals=False
        )
        return (h[last], *rest), (h,), state

    # Only who is to compute a block again needs the states before each.
    once = keep is Keep.NOTHING and not plan.remat
    final, given, starts = scan_blocks(
        block, state, (x, masks), None, length=len(x) if once else length, reverse=plan.reverse
    )
    return given, final, None, starts


def length_of_blocks(plan: Plan, x: jax.Array, keep: Keep) -> int:
    """The steps in a block of the derivative, for x (T, N, D)."""
    if keep is Keep.ALL and plan.block is None:
        return len(x)  # nothing is to be computed again
    return block_length(x.shape[0], x.shape[1], plan.block, rows=ROWS, longest=ROWS)


def linear_block(
    plan: Plan,
    weights: Weights,
    transposed: tuple[jax.Array | None, ...],
    block: Block,
    dweights: Weights,
    dx: jax.Array | None,
    dstate: State,
) -> tuple[State, State]:
    """As `loops.linear_block`, rows first."""
    del transposed
    cell = plan.cell
    x, start, masks, hs, kept = block
    own, down = (
        operands.own_vector(cell, weights.cell_params),
        _own_derivative(cell, weights, dweights),
    )
    flags = operands.flags_of(masks)
    how = _how(plan, flags)
    if kept is None:
        parameters = _parameters(weights, own)
        _, *more = fused.forward_p.bind(x, *parameters, *start, *flags, **how, store_residuals=True)
        kept = _kept(start, more)
    *products, by_x, by_h = dweights.weight_ih, dweights.weight_hh, *_biases(cell, dweights)
    bias = [b for b in (by_x, by_h) if b is not None]
    linear = [d for d in (dx, *products) if d is not None]
    requested = (*(d is not None for d in (dx, *products)), bool(bias), *(bool(down) for _ in own))
    residuals = (
        *(x, weights.weight_ih, weights.weight_hh, *own),
        *(*start, hs, *kept.rest, *kept.saved, *flags),
    )
    dh, *last = fused.linear_p.bind(
        *linear, *bias, *down, *dstate, *residuals, **how, requested=requested
    )
    return tuple(last), (dh,)


def _how(plan: Plan, flags: tuple[jax.Array, ...]) -> Any:
    """What the operations are told beside their operands."""
    return dict(cell=plan.cell, reverse=plan.reverse, masked=bool(flags), mesh=devices.mesh())


def _biases(cell: Cell, weights: Weights) -> tuple[jax.Array | None, jax.Array | None]:
    """What is added to the gate inputs from x, and to those from h where they are apart."""
    of_x, of_h = weights.bias_ih, weights.bias_hh
    if cell.split and (of_x is None) != (of_h is None):
        there = of_h if of_x is None else of_x
        assert there is not None
        zeros = jnp.zeros_like(there)
        return (zeros, of_h) if of_x is None else (of_x, zeros)
    if cell.split:
        return of_x, of_h
    if of_x is None or of_h is None:
        return (of_h if of_x is None else of_x), None
    return of_x + of_h, None


def _parameters(weights: Weights, own: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """W_ih, W_hh and both biases, zeros for none, and the vector of the cell's own, if any."""
    zeros = jnp.zeros(len(weights.weight_ih), weights.weight_ih.dtype)
    biases = (zeros if b is None else b for b in (weights.bias_ih, weights.bias_hh))
    return weights.weight_ih, weights.weight_hh, *biases, *own


def _kept(state: State, more: list[jax.Array]) -> Kept:
    """What the forward operation gives out beside h, for so many states."""
    count = len(state) - 1
    return Kept(tuple(more[:count]), None, tuple(more[count:]))


def _own_derivative(cell: Cell, weights: Weights, dweights: Weights) -> tuple[jax.Array, ...]:
    """The derivatives by a cell's own parameters, as `own_vector`; () if there are none."""
    there = {n: d for n, d in (dweights.cell_params or {}).items() if d is not None}
    if not there or weights.cell_params is None:
        return ()
    zeros = {n: jnp.zeros_like(a) for n, a in weights.cell_params.items() if n not in there}
    return operands.own_vector(cell, zeros | there)
