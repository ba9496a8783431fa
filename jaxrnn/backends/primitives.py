"""The loops as single operations, each with a kernel where there is one.

Three primitives of JAX, with rows first in all of their arrays:

.. code-block:: text

    forward     x, weights, first states -> h at each step, other states, what the cell saves
    linear      dx, dweights, dstate -> dh at each step, dstate at the end     linear in all three
    backward    the transpose of `linear`

What each computes is defined by the scans of `jaxrnn.backends.scan`: that is what runs where there is no
kernel, and what is differentiated, batched or transposed where more than a kernel is asked for.
`jaxrnn.backends.fused_loops` puts them in the place of those scans, `jaxrnn.backends.operands` says in which order
they take their arrays. Axis letters as there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.backends import kernels, operations
from jaxrnn.backends import scan as loops
from jaxrnn.backends import sharding as devices
from jaxrnn.backends.base import Keep, Plan
from jaxrnn.backends.blocks import first_and_shifted, known
from jaxrnn.backends.elementwise.residuals import derivative_rule
from jaxrnn.backends.operands import (
    Requested,
    linear_counts,
    masks_of,
    own_of,
    residual_counts,
    saved_kinds,
    saved_tree,
    split,
    state_counts,
)
from jaxrnn.backends.products import paired_product, rows_product
from jaxrnn.backends.step import enter, entered_rows, turned, zero_padding
from jaxrnn.cells import Cell
from jaxrnn.cells.base import compute_dtype, upcast
from jaxrnn.cells.weights import Weights, cell_parameters

# What the operations compute


def _forward_reference(
    *operands: jax.Array, cell: Cell, reverse: bool, store_residuals: bool, **_: Any
) -> list[jax.Array]:
    (x,), weights, own, state, flags = split(operands, 1, 4, *state_counts(cell))
    plan = Plan(cell, reverse)
    how = Keep.ALL if store_residuals else Keep.NOTHING
    weights = Weights(*weights, cell_params=own_of(cell, own))
    masks = masks_of(flags)
    x = zero_padding(masks.valid_mask, x)
    (h,), last, kept = loops.forward(plan, weights, x, turned(state), masks, how)[:3]
    if not store_residuals:
        return [h, *turned(last[1:])]
    assert kept is not None
    return [h, *turned(kept.rest), *turned(tuple(jax.tree.leaves(kept.saved)))]


def _linear_reference(
    *operands: jax.Array, cell: Cell, reverse: bool, requested: Requested, **_: Any
) -> list[jax.Array]:
    pieces = split(operands, *linear_counts(cell, requested), *residual_counts(cell))
    dx, dw_ih, dw_hh, bias, down, dstate, (x, w_ih, w_hh), own, start, after, saved, flags = pieces
    masks, plan, derivative = masks_of(flags), Plan(cell, reverse), derivative_rule(cell)
    weights = Weights(w_ih, w_hh, cell_params=own_of(cell, own))
    params = cell_parameters(cell, weights.cell_params)
    # Of steps that are not a row's own, a kernel reads no input and saves nothing.
    x = zero_padding(masks.valid_mask, x)
    saved = _only_saved(cell, params, masks.valid_mask, saved, start)
    shift = functools.partial(first_and_shifted, reverse=reverse)
    old = enter(turned(tuple(map(shift, start, after))), masks.reset_mask)
    tree = jax.tree.structure(saved_tree(cell))
    coefficients = jax.vmap(lambda saved, old, new: derivative.linearize(saved, old, new, *params))(
        *upcast((jax.tree.unflatten(tree, turned(saved)), old, turned(after)))
    )
    # All that does not come through the state of the step before, for all steps at once.
    old_h = entered_rows(shift(start[0], after[0]), masks.reset_mask)
    dz = turned(_gate_inputs(cell, dx, dw_ih, dw_hh, bias, x, w_ih, old_h))
    zeros = jax.tree.map(jnp.zeros_like, upcast(old))
    if params:
        params = (*params, *(cell_parameters(cell, own_of(cell, down)) or (None,)))
    direct = jax.vmap(lambda c, dz, dold: derivative.tangent(c, dz, dold, *params))(
        coefficients, dz if cell.split else dz[0], zeros
    )
    last, (dh,) = loops.linear_loop(
        plan, weights, (None, w_hh.T, None), coefficients, direct, None, masks, turned(dstate)
    )
    return [dh, *turned(last)]


def _only_saved(cell: Cell, params: Any, valid: Any, saved: Any, start: Any) -> tuple[Any, ...]:
    """What was saved; at steps that are not a row's own, what would be where all is zero."""
    if valid is None or not saved:
        return saved
    zero = jnp.zeros((start[0].shape[1], 1), compute_dtype(start[0].dtype))
    gates = jnp.zeros((len(cell.gates) * len(zero), 1), zero.dtype)
    state = (zero,) * len(cell.states)
    _, tree = derivative_rule(cell).save((gates, gates) if cell.split else gates, state, *params)
    at_rest = [a.astype(s.dtype)[:, 0] for a, s in zip(jax.tree.leaves(tree), saved, strict=True)]
    pairs = zip(saved, at_rest, strict=True)
    return tuple(jnp.where(valid[..., None], s, rest) for s, rest in pairs)


def _gate_inputs(
    cell: Cell, dx: Any, dw_ih: Any, dw_hh: Any, bias: Any, x: Any, w_ih: Any, old_h: Any
) -> tuple[jax.Array, ...]:
    """What the derivatives past the states give to the gate inputs, (T, N, G*H), linear in them."""
    from_x = [*(_by_weights(x, d) for d in dw_ih), *(rows_product(d, w_ih) for d in dx)]
    from_h = [_by_weights(old_h, d) for d in dw_hh]
    parts = (from_x, from_h) if cell.split else (from_x + from_h,)
    shape = (*x.shape[:2], len(w_ih))
    return tuple(_total(p, bias[i : i + 1], shape, x.dtype) for i, p in enumerate(parts))


def _by_weights(x: jax.Array, dw: jax.Array) -> jax.Array:
    """``x @ dw.T`` (K, N, S) for x (K, N, D) and dw (S, D), whose transpose is ``(x.T @ ct).T``.

    The barriers keep XLA from exchanging operands of that product for the sake of a layout; a CPU
    then takes from 1.1 to twice as long.
    """
    rows = devices.merged(x)
    columns = lax.optimization_barrier(rows.T)
    z = paired_product(rows, columns, lax.optimization_barrier(dw.T))
    return devices.unmerged(z, x.shape[0])


def _total(products: Any, bias: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The sum of products (K, N, S) and a bias (S,), of those that are there."""
    dtype = compute_dtype(dtype)
    terms = [*products, *(jnp.broadcast_to(b.astype(dtype), shape) for b in bias)]
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros(shape, dtype)


def _backward_reference(
    *operands: jax.Array, cell: Cell, requested: Requested, **how: Any
) -> list[jax.Array]:
    cts, residuals = split(operands, 1 + len(cell.states))
    linear = functools.partial(_linear_reference, cell=cell, requested=requested, **how)
    kinds = _backward_kinds(operands, cell=cell, requested=requested)
    zeros = [jnp.zeros(kind.shape, kind.dtype) for kind in kinds]
    transpose = jax.linear_transpose(lambda *a: linear(*a, *residuals), *zeros)
    return list(transpose(list(cts)))


# The operations


def _forward_kinds(
    operands: Any, *, cell: Cell, store_residuals: bool, **_: Any
) -> operations.Kinds:
    x, H = operands[0], operands[2].shape[1]
    steps = (*x.shape[:2], H)
    rest = [steps if store_residuals else steps[1:]] * (len(cell.states) - 1)
    saved = (
        [(*x.shape[:2], H * count.shape[0]) for count in saved_kinds(cell)]
        if store_residuals
        else []
    )
    return [operations.kind(shape, x) for shape in (steps, *rest, *saved)]


def _linear_kinds(operands: Any, *, cell: Cell, requested: Requested, **_: Any) -> operations.Kinds:
    pieces = split(operands, *linear_counts(cell, requested), 3)
    dstate, x = pieces[-3], pieces[-2][0]
    steps = (*x.shape[:2], dstate[0].shape[1])
    return [operations.kind(steps, x), *(operations.kind(d.shape, d) for d in dstate)]


def _backward_kinds(
    operands: Any, *, cell: Cell, requested: Requested, **_: Any
) -> operations.Kinds:
    cts, arrays, own, _ = split(operands, 1 + len(cell.states), 3, *state_counts(cell)[:1])
    some = [operations.kind(a.shape, a) for a, yes in zip(arrays, requested, strict=False) if yes]
    bias = [operations.kind(arrays[2].shape[:1], arrays[2])] * linear_counts(cell, requested)[3]
    down = [operations.kind(a.shape, a) for a, yes in zip(own, requested[4:], strict=True) if yes]
    return [*some, *bias, *down, *(operations.kind(d.shape, d) for d in cts[1:])]


def _serving(platform: str, cell: Cell, x: jax.Array, w_hh: jax.Array) -> Any:
    """The kernels of a platform, or None where they can't serve."""
    module = kernels.of(platform)
    if not known(*x.shape):
        return None
    return None if module.unsupported_reason(cell, x.dtype, *x.shape, w_hh.shape[1]) else module


def _forward_kernel(platform: str, *operands: jax.Array, cell: Cell, **how: Any) -> Any:
    x, *more = operands
    module = _serving(platform, cell, x, operands[2])
    if module is not None and not kernels.PLATFORMS[platform].products:
        x = zero_padding(masks_of(tuple(more[4 + sum(state_counts(cell)) :])).valid_mask, x)
    return module and module.run_forward((x, *more), cell=cell, **how)


def _backward_kernel(
    platform: str, *operands: jax.Array, cell: Cell, requested: Requested, **how: Any
) -> Any:
    counts = residual_counts(cell)
    pieces = split(operands, 1 + len(cell.states), *counts[:4])
    cts, (x, w_ih, w_hh), own, start, after, more = pieces
    module = _serving(platform, cell, x, w_hh)
    if module is None:
        return None
    if kernels.PLATFORMS[platform].products:
        return module.run_backward(operands, cell=cell, requested=requested, **how)
    assert not own  # the kernels without products serve no cell that has some
    out = module.run_backward((*cts, w_hh, *start, *after, *more), cell=cell, **how)
    dz, dstart = split([a.astype(compute_dtype(x.dtype)) for a in out], 1 + cell.split)
    masks = masks_of(more[counts[4] :])
    before = first_and_shifted(start[0], after[0], reverse=how["reverse"])
    old_h = entered_rows(before, masks.reset_mask)
    x = zero_padding(masks.valid_mask, x)

    def gate_inputs(*linear: jax.Array) -> Any:
        dx, dw_ih, dw_hh, bias, _ = split(linear, *linear_counts(cell, requested)[:4])
        return _gate_inputs(cell, dx, dw_ih, dw_hh, bias, x, w_ih, old_h)

    kinds = _backward_kinds(operands, cell=cell, requested=requested)[: -len(dstart)]
    return [*(jax.linear_transpose(gate_inputs, *kinds)(dz) if kinds else ()), *dstart]


def _by_platform(kernel: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {name: functools.partial(kernel, name) for name in kernels.PLATFORMS}


def _forward_shared(cell: Cell, **_: Any) -> set[int]:
    return set(range(1, 5 + bool(cell.parameters)))


def _linear_shared(cell: Cell, requested: Requested, **_: Any) -> set[int]:
    dx, *weights, states = linear_counts(cell, requested)
    x = dx + sum(weights) + states
    return {*range(dx, dx + sum(weights)), *range(x + 1, x + 3 + bool(cell.parameters))}


def _backward_shared(cell: Cell, **_: Any) -> set[int]:
    x = 1 + len(cell.states)
    return set(range(x + 1, x + 3 + bool(cell.parameters)))


def _backward_sums(cell: Cell, requested: Requested, **_: Any) -> set[int]:
    counts = linear_counts(cell, requested)  # by x, by parameters, by the states
    return set(range(counts[0], sum(counts[:-1])))


forward_p = operations.operation(
    "rnn_forward",
    _forward_reference,
    _forward_kinds,
    _forward_shared,
    _by_platform(_forward_kernel),
    portable=kernels.portable,
)
linear_p = operations.operation("rnn_linear", _linear_reference, _linear_kinds, _linear_shared, {})
backward_p = operations.operation(
    "rnn_backward",
    _backward_reference,
    _backward_kinds,
    _backward_shared,
    _by_platform(_backward_kernel),
    _backward_sums,
    kernels.portable,
)
operations.transposed_by(
    linear_p, backward_p, lambda cell, requested, **_: sum(linear_counts(cell, requested))
)
