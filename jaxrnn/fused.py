"""The loops as single operations, each with a kernel where there is one.

Three primitives of JAX, with rows first in all of their arrays:

.. code-block:: text

    forward     x, weights, first states -> h at each step, other states, what the cell saves
    linear      dx, dweights, dstate -> dh at each step, dstate at the end     linear in all three
    backward    the transpose of `linear`

What each computes is defined by the scans of `jaxrnn.loops`: that is what runs where there is no
kernel, and what is differentiated, batched or transposed where more than a kernel is asked for.
Axis letters as there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import devices, kernels, loops, operations
from jaxrnn.blocks import block_length, first_and_shifted, known, scan_blocks
from jaxrnn.cells import Cell, State
from jaxrnn.loops import Keep, Kept, Plan, turned
from jaxrnn.products import paired_product, rows_product, wide_dtype
from jaxrnn.ragged import only
from jaxrnn.step import Masks, Weights, enter, entered_rows, wide

# A block of the derivative, where it is computed again: so many rows that a call of a kernel costs
# little beside them, few enough that what the blocks share of memory stays in the cache.
ROWS = 2048


def forward(
    plan: Plan, weights: Weights, x: jax.Array, state: State, masks: Masks, keep: Keep
) -> tuple[State, State, Kept | None, State]:
    """As `loops.forward`, rows first."""
    operands = _biased(weights)
    how = _how(plan, _flags(masks))
    last = 0 if plan.reverse else -1
    length = length_of_blocks(plan, x, keep)
    if keep is Keep.ALL:
        h, *more = forward_p.bind(x, *operands, *state, *_flags(masks), **how, keep=True)
        rest, saved = more[: len(state) - 1], more[len(state) - 1 :]
        ends = (h, *rest)
        starts = tuple(map(functools.partial(loops.before_blocks, plan, length), state, ends))
        return (h,), tuple(s[last] for s in ends), Kept(tuple(rest), None, tuple(saved)), starts

    def block(state: State, steps: Any, nothing: None) -> Any:
        del nothing
        x, masks = steps
        h, *rest = forward_p.bind(x, *operands, *state, *_flags(masks), **how, keep=False)
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
    dweights: Weights,
    x: jax.Array,
    dx: jax.Array | None,
    start: State,
    masks: Masks,
    hs: jax.Array,
    kept: Kept | None,
    dstate: State,
) -> tuple[State, State]:
    """As `loops.linear_block`, rows first."""
    del transposed
    cell = plan.cell
    flags = _flags(masks)
    how = _how(plan, flags)
    if kept is None:
        operands = _biased(weights)
        _, *more = forward_p.bind(x, *operands, *start, *flags, **how, keep=True)
        kept = Kept(tuple(more[: len(start) - 1]), None, tuple(more[len(start) - 1 :]))
    *products, by_x, by_h = dweights.weight_ih, dweights.weight_hh, *_biases(cell, dweights)
    bias = [b for b in (by_x, by_h) if b is not None]
    linear = [d for d in (dx, *products) if d is not None]
    wanted = (*(d is not None for d in (dx, *products)), bool(bias))
    residuals = (
        *(x, weights.weight_ih, weights.weight_hh),
        *(*start, hs, *kept.rest, *kept.saved, *flags),
    )
    dh, *last = linear_p.bind(*linear, *bias, *dstate, *residuals, **how, wanted=wanted)
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


def _biased(weights: Weights) -> tuple[jax.Array, ...]:
    """W_ih, W_hh and both biases, zeros for none."""
    zeros = jnp.zeros(len(weights.weight_ih), weights.weight_ih.dtype)
    biases = (zeros if b is None else b for b in (weights.bias_ih, weights.bias_hh))
    return weights.weight_ih, weights.weight_hh, *biases


def _flags(masks: Masks) -> tuple[jax.Array, ...]:
    """The masks as one array uint8 (T, N), 1 for a reset, and 2 for a step of the row's own."""
    resets, valid = masks.resets, masks.valid
    if resets is not None and valid is not None:
        resets = resets & valid  # a reset at a step that is not the row's own changes nothing
    two = jnp.uint8(2)
    if resets is None:
        return () if valid is None else (valid.astype(jnp.uint8) * two,)
    return (resets.astype(jnp.uint8) + (two if valid is None else valid.astype(jnp.uint8) * two),)


def _masks(flags: tuple[jax.Array, ...]) -> Masks:
    """The other way round."""
    if not flags:
        return Masks()
    return Masks((flags[0] & 1) != 0, (flags[0] & 2) != 0)


# What the operations compute


def _split_operands(operands: Any, *counts: int) -> Any:
    """The operands in pieces of so many; the rest is the last piece."""
    pieces = []
    for count in counts:
        pieces.append(tuple(operands[:count]))
        operands = operands[count:]
    return [*pieces, tuple(operands)]


def _forward_reference(
    *operands: jax.Array, cell: Cell, reverse: bool, masked: bool, keep: bool, **more: Any
) -> list[jax.Array]:
    del more
    (x,), weights, state, flags = _split_operands(operands, 1, 4, len(cell.states))
    plan = Plan(cell, reverse)
    how = Keep.ALL if keep else Keep.NOTHING
    masks = _masks(flags)
    (h,), last, kept, _ = loops.forward(
        plan, Weights(*weights), only(masks.valid, x), turned(state), masks, how
    )
    if not keep:
        return [h, *turned(last[1:])]
    assert kept is not None
    return [h, *turned(kept.rest), *turned(tuple(jax.tree.leaves(kept.saved)))]


def _linear_reference(
    *operands: jax.Array, cell: Cell, reverse: bool, masked: bool, wanted: Wanted, **_: Any
) -> list[jax.Array]:
    pieces = _split_operands(operands, *_linear_counts(cell, wanted), *_residual_counts(cell))
    dx, dw_ih, dw_hh, bias, dstate, (x, w_ih, w_hh), start, after, saved, flags = pieces
    masks, plan = _masks(flags), Plan(cell, reverse)
    # Of steps that are not a row's own, a kernel reads no input and saves nothing.
    x, *saved = (only(masks.valid, a) for a in (x, *saved))
    saved = tuple(saved)
    shift = functools.partial(first_and_shifted, reverse=reverse)
    old = enter(turned(tuple(map(shift, start, after))), masks.resets)
    tree = jax.tree.structure(_saved_tree(cell))
    coefficients = jax.vmap(cell.linearize)(
        *wide((jax.tree.unflatten(tree, turned(saved)), old, turned(after)))
    )
    # All that does not come through the state of the step before, for all steps at once.
    old_h = entered_rows(shift(start[0], after[0]), masks.resets)
    dz = turned(_gate_inputs(cell, dx, dw_ih, dw_hh, bias, x, w_ih, old_h))
    zeros = jax.tree.map(jnp.zeros_like, wide(old))
    direct = jax.vmap(cell.tangent)(coefficients, dz if cell.split else dz[0], zeros)
    weights = Weights(w_ih, w_hh)
    last, (dh,) = loops.linear_loop(
        plan, weights, (None, w_hh.T, None), coefficients, direct, None, masks, turned(dstate)
    )
    return [dh, *turned(last)]


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
    dtype = wide_dtype(dtype)
    terms = [*products, *(jnp.broadcast_to(b.astype(dtype), shape) for b in bias)]
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros(shape, dtype)


def _backward_reference(
    *operands: jax.Array, cell: Cell, reverse: bool, masked: bool, wanted: Wanted, **_: Any
) -> list[jax.Array]:
    cts, residuals = _split_operands(operands, 1 + len(cell.states))
    linear = functools.partial(
        _linear_reference, cell=cell, reverse=reverse, masked=masked, wanted=wanted
    )
    kinds = _backward_kinds(operands, cell=cell, wanted=wanted)
    zeros = [jnp.zeros(kind.shape, kind.dtype) for kind in kinds]
    transpose = jax.linear_transpose(lambda *a: linear(*a, *residuals), *zeros)
    return list(transpose(list(cts)))


Wanted = tuple[bool, bool, bool, bool]
"""By what the derivatives are: x, W_ih, W_hh, the biases; those by the states always are."""


def _linear_counts(cell: Cell, wanted: Wanted) -> list[int]:
    """How many arrays the linear operation is linear in: dx, dW_ih, dW_hh, biases, states."""
    *some, bias = wanted
    return [*map(int, some), bias * (1 + cell.split), len(cell.states)]


def _residual_counts(cell: Cell) -> list[int]:
    """And how many it has beside them: x, W_ih and W_hh, states before and after, what is saved."""
    return [3, len(cell.states), len(cell.states), len(_saved(cell))]


@functools.lru_cache(maxsize=256)
def _saved_tree(cell: Cell) -> Any:
    """What a cell saves, as arrays of one unit and one row."""
    array = lambda count: jax.ShapeDtypeStruct((count, 1), jnp.float32)  # noqa: E731
    gates = array(len(cell.gates))
    state = (array(1),) * len(cell.states)
    return jax.eval_shape(cell.save, (gates, gates) if cell.split else gates, state)[1]


def _saved(cell: Cell) -> list[Any]:
    return jax.tree.leaves(_saved_tree(cell))


# The operations


def _forward_kinds(operands: Any, *, cell: Cell, keep: bool, **_: Any) -> operations.Kinds:
    x, H = operands[0], operands[2].shape[1]
    steps = (*x.shape[:2], H)
    rest = [steps if keep else steps[1:]] * (len(cell.states) - 1)
    saved = [(*x.shape[:2], H * count.shape[0]) for count in _saved(cell)] if keep else []
    return [operations.kind(shape, x) for shape in (steps, *rest, *saved)]


def _linear_kinds(operands: Any, *, cell: Cell, wanted: Wanted, **_: Any) -> operations.Kinds:
    pieces = _split_operands(operands, *_linear_counts(cell, wanted), 3)
    dstate, x = pieces[-3], pieces[-2][0]
    steps = (*x.shape[:2], dstate[0].shape[1])
    return [operations.kind(steps, x), *(operations.kind(d.shape, d) for d in dstate)]


def _backward_kinds(operands: Any, *, cell: Cell, wanted: Wanted, **_: Any) -> operations.Kinds:
    cts, arrays, _ = _split_operands(operands, 1 + len(cell.states), 3)
    some = [operations.kind(a.shape, a) for a, yes in zip(arrays, wanted, strict=False) if yes]
    bias = [operations.kind(arrays[2].shape[:1], arrays[2])] * _linear_counts(cell, wanted)[3]
    return [*some, *bias, *(operations.kind(d.shape, d) for d in cts[1:])]


def _serving(platform: str, cell: Cell, x: jax.Array, w_hh: jax.Array) -> Any:
    """The kernels of a platform, or None where they can't serve."""
    module = kernels.of(platform)
    if not known(*x.shape):
        return None
    return None if module.why_not(cell, x.dtype, *x.shape, w_hh.shape[1]) else module


def _forward_kernel(platform: str, *operands: jax.Array, cell: Cell, **how: Any) -> Any:
    x, *more = operands
    module = _serving(platform, cell, x, operands[2])
    if module is not None and not kernels.PLATFORMS[platform].products:
        x = only(_masks(tuple(more[4 + len(cell.states) :])).valid, x)
    return module and module.run_forward((x, *more), cell=cell, **how)


def _backward_kernel(
    platform: str, *operands: jax.Array, cell: Cell, wanted: Wanted, **how: Any
) -> Any:
    counts = _residual_counts(cell)
    cts, (x, w_ih, w_hh), start, after, more = _split_operands(operands, 1 + counts[1], *counts[:3])
    module = _serving(platform, cell, x, w_hh)
    if module is None:
        return None
    if kernels.PLATFORMS[platform].products:
        return module.run_backward(operands, cell=cell, wanted=wanted, **how)
    out = module.run_backward((*cts, w_hh, *start, *after, *more), cell=cell, **how)
    dz, dstart = _split_operands([a.astype(wide_dtype(x.dtype)) for a in out], 1 + cell.split)
    masks = _masks(more[counts[3] :])
    before = first_and_shifted(start[0], after[0], reverse=how["reverse"])
    old_h = entered_rows(before, masks.resets)
    x = only(masks.valid, x)

    def gate_inputs(*linear: jax.Array) -> Any:
        dx, dw_ih, dw_hh, bias, _ = _split_operands(linear, *_linear_counts(cell, wanted)[:4])
        return _gate_inputs(cell, dx, dw_ih, dw_hh, bias, x, w_ih, old_h)

    kinds = _backward_kinds(operands, cell=cell, wanted=wanted)[: -len(dstart)]
    return [*(jax.linear_transpose(gate_inputs, *kinds)(dz) if kinds else ()), *dstart]


def _by_platform(kernel: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {name: functools.partial(kernel, name) for name in kernels.PLATFORMS}


def _linear_shared(cell: Cell, wanted: Wanted, **_: Any) -> set[int]:
    dx, *weights, states = _linear_counts(cell, wanted)
    x = dx + sum(weights) + states
    return {*range(dx, dx + sum(weights)), x + 1, x + 2}


def _backward_shared(cell: Cell, **_: Any) -> set[int]:
    x = 1 + len(cell.states)
    return {x + 1, x + 2}


def _backward_sums(cell: Cell, wanted: Wanted, **_: Any) -> set[int]:
    counts = _linear_counts(cell, wanted)  # by x, by the weights, by the states
    return set(range(counts[0], sum(counts[:-1])))


forward_p = operations.operation(
    "rnn_forward",
    _forward_reference,
    _forward_kinds,
    lambda **_: {1, 2, 3, 4},
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
    linear_p, backward_p, lambda cell, wanted, **_: sum(_linear_counts(cell, wanted))
)
