"""The loop over time as `lax.scan`, its derivative as a linear scan, and the associative scan.

Time is cut into blocks of steps: an outer scan over blocks, an inner scan over the steps of one.
Each block multiplies its input with W_ih by one product, so that the gate pre-activations of a
block, not of the whole sequence, are held in memory, and are read while they are in the cache.

States and residuals are feature-major inside the loops: h (R, N), other states (H, N). Stacked
outputs are (T, N, R), (T, N, H). Axis letters: T time, K steps in a block, N batch, D input
features, H hidden size, G gates, R size of h (P if projected, else H).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.backends import sharding
from jaxrnn.backends.base import (
    ForwardResult,
    ResidualPolicy,
    Residuals,
    Tangents,
    UnrollOptions,
)
from jaxrnn.backends.platform import CPU
from jaxrnn.backends.step import (
    StepMasks,
    add_bias,
    advance,
    apply_masks,
    apply_resets,
    block_input_pre_activations,
    cast_like,
    cell_outputs,
    drop_hidden,
    drop_hidden_batch_major,
    has_output_function,
    input_pre_activations,
    is_static,
    matmul_batch_major,
    matmul_with_transpose,
    pointwise_rule,
    pre_activations,
    project_inputs_in_loop,
    reset_hidden,
    transpose_state,
)
from jaxrnn.cells import BaseCell, State
from jaxrnn.cells.base import cast, compute_dtype, upcast
from jaxrnn.cells.weights import Weights, append_ones_column, cell_parameters, sum_biases

SHORTEST_BLOCK = 10


class StepBlock(NamedTuple):
    """A block of steps as the backward pass reads it.

    Attributes:
        x: the input (K, N, D).
        start: the state before the first step, feature-major.
        masks: the masks of its steps.
        hs: the hidden state after each step (K, N, R).
        residuals: the residuals saved by the forward pass; None for nothing.
    """

    x: jax.Array
    start: State
    masks: StepMasks
    hs: jax.Array
    residuals: Residuals | None


# The forward loop


def forward(
    options: UnrollOptions,
    weights: Weights,
    x: jax.Array,
    state: State,
    masks: StepMasks,
    policy: ResidualPolicy,
) -> ForwardResult:
    """Run the cell over time.

    Args:
        options: static options.
        weights: the parameters.
        x: the input (T, N, D), zero at padding.
        state: the initial state, h (N, R) first, each other one (N, H).
        masks: masks on the state.
        policy: which residuals to save.
    """
    cell, tuning = options.cell, options.tuning
    state = transpose_state(state)
    inputs_in_loop = project_inputs_in_loop(cell, x, weights, tuning)
    if not cell.split:
        weights = sum_biases(weights)
    elif x.shape[2] == 1:
        weights, x = append_ones_column(weights, x)
    save_nothing = policy is ResidualPolicy.NOTHING

    def _run_block(state: State, steps: Any, nothing: None) -> Any:
        del nothing
        x, masks = steps
        start, block_input = state, x

        def _step(carry: Any, step_inputs: Any) -> Any:
            state, fetched = carry
            current, masks = step_inputs
            if inputs_in_loop:
                inputs = input_pre_activations(cell, weights, current)
            else:
                inputs, fetched = (fetched, current) if prefetch else (current, None)
            state, m, cell_residuals = advance(cell, weights, inputs, state, masks)
            residuals = None if save_nothing else Residuals(state[1:])
            if policy is ResidualPolicy.ALL:
                m = m if weights.weight_hr is not None else None
                residuals = Residuals(state[1:], m, cast(cell_residuals, x.dtype))
            stacked = transpose_state(options.stacked_states(state))
            return (state, fetched), (stacked, residuals)

        # For a cell with `split`, the pre-activations of a step are loaded during the step before
        # and carried. Sliced inside the elementwise function, as XLA would fuse it, they keep a CPU
        # from vectorising that function: a GRU took twice as long.
        prefetch = tuning.prefetch and cell.split and save_nothing and not inputs_in_loop
        first: jax.Array | None = None
        if prefetch:
            first = input_pre_activations(cell, weights, x[-1 if options.reverse else 0])
            x = jnp.roll(x, 1 if options.reverse else -1, axis=0)
        if not inputs_in_loop:
            x = block_input_pre_activations(cell, weights, x)
        if options.backend == "parallel":
            coefficients: Any = x
            states = _associative_scan(
                coefficients, upcast(state[0]), masks, reverse=options.reverse
            )
            states = states.astype(state[0].dtype)
            state = (states[0 if options.reverse else -1],)
            outputs, residuals = transpose_state((states,)), None
        else:
            (state, _), (outputs, residuals) = _scan_steps(
                options, _step, (state, first), (x, masks), block_input.shape[0]
            )
        if has_output_function(cell):
            output = cell_outputs(cell, weights, block_input, outputs)
            outputs = (output, *outputs) if options.return_all_states else (output,)
        return state, (outputs, residuals), start

    if not cell.gates and options.remat:  # the derivative is JAX's
        _run_block = jax.checkpoint(_run_block, prevent_cse=False)
    length = _block_length(options, x)
    # A loop that computes its own input products, or has nothing else, gains nothing from blocks.
    one_block = (inputs_in_loop or not cell.gates) and not options.remat
    final, (outputs, residuals), starts = scan_blocks(
        _run_block,
        state,
        (x, masks),
        None,
        length=x.shape[0] if one_block else length,
        reverse=options.reverse,
    )
    if residuals is not None and one_block:
        after = (outputs[0].swapaxes(1, 2), *residuals.states)
        starts = states_before_blocks(options, length, state, after)
    return ForwardResult(outputs, transpose_state(final), residuals, starts, policy)


def _scan_steps(options: UnrollOptions, step: Any, carry: Any, steps: Any, length: int) -> Any:
    """Scan over the steps of a block in the order of the direction."""
    # A symbolic length is read from the arrays.
    known, unroll = (length, options.tuning.unroll) if is_static(length) else (None, 1)
    return lax.scan(step, carry, steps, known, reverse=options.reverse, unroll=unroll)


# The derivative


def linear(
    options: UnrollOptions,
    weights: Weights,
    x: jax.Array,
    masks: StepMasks,
    result: ForwardResult,
    tangents: Tangents,
) -> tuple[State, State]:
    """Return the tangents of the outputs and of the final state, linear in `tangents`.

    Args:
        options, weights, x, masks: as of `forward`.
        result: the result of `forward`.
        tangents: the tangents of weights, input and initial state.
    """
    transposed = _transposed_weights(weights)
    dfinal, doutputs = linear_in_blocks(
        functools.partial(_linear_block, options),
        (weights, transposed),
        options,
        _block_length(options, x),
        x,
        masks,
        result,
        tangents,
        transpose_state(tangents.state),
    )
    return doutputs, transpose_state(cast_like(dfinal, result.final_state))


def linear_in_blocks(
    linear_block: Callable[..., tuple[State, State]],
    arrays: tuple[Any, ...],
    options: UnrollOptions,
    length: int,
    x: jax.Array,
    masks: StepMasks,
    result: ForwardResult,
    tangents: Tangents,
    dstate: State,
) -> tuple[State, State]:
    """Run the linear recurrence block by block.

    Args:
        linear_block: ``(*arrays, block, dweights, dx, dstate) -> (final dstate, doutputs)``.
        arrays: arguments shared by all blocks.
        options, x, masks, result, tangents: as of `linear`.
        length: steps in a block.
        dstate: the tangents of the initial state, in the layout of `linear_block`.
    """
    # Under `jax.checkpoint` the backward pass stores only the arguments of a block; the elementwise
    # coefficients, several times the size of the gates, are computed while they are in the cache.
    linear_block = jax.checkpoint(linear_block, prevent_cse=False)

    def _run_block(dstate: State, steps: Any, start: State) -> Any:
        x, masks, hs, residuals, dx = steps
        block = StepBlock(x, start, masks, hs, residuals)
        dstate, doutputs = linear_block(*arrays, block, tangents.weights, dx, dstate)
        return dstate, doutputs, None

    steps = x, masks, result.outputs[0], result.residuals, tangents.x
    dfinal, doutputs, _ = scan_blocks(
        _run_block, dstate, steps, result.block_states, length=length, reverse=options.reverse
    )
    return dfinal, doutputs


def _linear_block(
    options: UnrollOptions,
    weights: Weights,
    transposed: tuple[jax.Array | None, ...],
    block: StepBlock,
    dweights: Weights,
    dx: jax.Array | None,
    dstate: State,
) -> tuple[State, State]:
    """Return the final state's and the outputs' tangents of one block.

    Args:
        transposed: W_ih.T, W_hh.T and W_hr.T.
        block: the steps, with residuals.
        dweights, dx, dstate: the tangents that the result is linear in.
    """
    cell = options.cell
    x, start, masks, hs, residuals = block
    params = cell_parameters(cell, weights.cell_params)
    shift = functools.partial(shift_states, reverse=options.reverse)
    if residuals is None or residuals.cell is None:
        residuals = _recompute_residuals(options, weights, block)
    hs_feature_major = hs.swapaxes(1, 2)
    after = (hs_feature_major, *residuals.states)
    old = apply_resets(tuple(map(shift, start, after)), masks.reset_mask)
    unprojected = residuals.unprojected
    new = after if unprojected is None else (unprojected, *residuals.states)
    rule = pointwise_rule(cell, masks)
    coefficients = jax.vmap(lambda saved, old, new: rule.linearize(saved, old, new, *params))(
        upcast(residuals.cell), upcast(old), upcast(new)
    )

    # Every contribution that does not come through the previous state, for all steps at once.
    old_h = reset_hidden(shift(start[0].T, hs), masks.reset_mask)
    old_h = drop_hidden_batch_major(weights, old_h)
    from_x = [matmul_batch_major(dweights.weight_ih, x), dweights.bias_ih]
    if dx is not None:
        # The barrier keeps XLA from exchanging the operands of the transposed product for the sake
        # of its result's layout, which took a CPU three times as long.
        ih_t: Any = transposed[0]
        columns = lax.optimization_barrier(sharding.merge_steps(dx).T)
        dz_x = matmul_with_transpose(weights.weight_ih, ih_t, columns)
        from_x.append(sharding.split_steps(dz_x, dx.shape[0], axis=1).swapaxes(0, 1))
    from_h = [matmul_batch_major(dweights.weight_hh, old_h), dweights.bias_hh]
    shape = (hs.shape[0], weights.weight_ih.shape[0], hs.shape[1])
    if cell.split:
        dz = (_sum_terms(from_x, shape, hs.dtype), _sum_terms(from_h, shape, hs.dtype))
    else:
        dz = _sum_terms(from_x + from_h, shape, hs.dtype)
    if params:
        dparams = _dense_tangents(cell, weights.cell_params, dweights.cell_params)
        params = (*params, dparams)
    direct = jax.vmap(lambda *by_step: rule.tangent(*by_step, *params))(
        coefficients, dz, jax.tree.map(jnp.zeros_like, upcast(old))
    )
    from_hr = None
    if unprojected is not None:
        from_hr = matmul_batch_major(dweights.weight_hr, unprojected.swapaxes(1, 2))
    return linear_loop(options, weights, transposed, coefficients, direct, from_hr, masks, dstate)


def linear_loop(
    options: UnrollOptions,
    weights: Weights,
    transposed: tuple[jax.Array | None, ...],
    coefficients: Any,
    direct: State,
    from_hr: jax.Array | None,
    masks: StepMasks,
    dstate: State,
) -> tuple[State, State]:
    """Run the linear recurrence of the derivative.

    Args:
        options, weights, transposed: as of `_linear_block`; W_ih.T is not used here.
        coefficients: coefficients of the cell's tangent at each step.
        direct: the tangents of each state that do not come through the previous one, (K, H, N).
        from_hr: the tangent of h through that of W_hr, (K, P, N), or None.
        masks: masks of each step.
        dstate: tangents of the state before the block, feature-major.

    Returns:
        The tangents of the state after the block, feature-major, and of the outputs.
    """
    cell = options.cell
    hh_t: Any
    _, hh_t, hr_t = transposed
    w_hh = weights.weight_hh
    params = cell_parameters(cell, weights.cell_params)
    params = (*params, None) if params else ()
    dtype = weights.weight_ih.dtype
    tangent = pointwise_rule(cell, masks).tangent

    def _step(dstate: State, inputs: Any) -> tuple[State, State]:
        coefficients, direct, from_hr, masks = inputs
        before = dstate
        dstate = entered = apply_resets(dstate, masks.reset_mask)
        if w_hh is None:
            size = len(cell.gates) * dstate[0].shape[0]
            dz = jnp.zeros((size, dstate[0].shape[1]), dstate[0].dtype)
        else:
            dz = matmul_with_transpose(w_hh, hh_t, drop_hidden(weights, dstate[0]).astype(dtype))
        dz = (jnp.zeros_like(dz), dz) if cell.split else dz
        dstate = tangent(coefficients, dz, dstate, *params)
        dh, *rest = map(jnp.add, dstate, direct)
        if weights.weight_hr is not None:
            assert hr_t is not None
            dh = matmul_with_transpose(weights.weight_hr, hr_t, dh.astype(dtype))
        dh = dh if from_hr is None else dh + from_hr
        dstate = apply_masks((dh, *rest), entered, before, masks)
        return dstate, cast(options.stacked_states(dstate), dtype)

    steps = (coefficients, direct, from_hr, masks)
    dstate, doutputs = _scan_steps(options, _step, dstate, steps, direct[0].shape[0])
    # Transposed outside the loop, which a CPU then vectorises.
    return dstate, transpose_state(doutputs)


def _recompute_residuals(options: UnrollOptions, weights: Weights, block: StepBlock) -> Residuals:
    """Recompute the residuals of a block from its output and the state before it.

    The hidden states are known, so all pre-activations come out of one product. If the other
    states were not saved, an elementwise loop recomputes them.
    """
    cell = options.cell
    x, start, masks, hs, residuals = block
    shift = functools.partial(shift_states, reverse=options.reverse)
    before = shift(start[0].T, hs)
    old_h = drop_hidden_batch_major(weights, reset_hidden(before, masks.reset_mask))
    recurrent = matmul_batch_major(weights.weight_hh, old_h)
    z = pre_activations(cell, weights, input_pre_activations(cell, weights, x), recurrent)
    params = cell_parameters(cell, weights.cell_params)
    save = pointwise_rule(cell, masks).save
    rest_zoneout = lambda masks: masks.zoneout and masks.zoneout[1:]  # noqa: E731

    def _step(rest: State, inputs: Any) -> tuple[State, Residuals]:
        z, old_h, masks = inputs
        _, *entered = state = apply_resets((old_h, *rest), masks.reset_mask)
        (m, *new), saved = save(z, upcast(state), *params)
        rest_masks = masks._replace(zoneout=rest_zoneout(masks))
        rest = apply_masks(cast_like(new, rest), tuple(entered), rest, rest_masks)
        m = m.astype(hs.dtype) if weights.weight_hr is not None else None
        return rest, Residuals(rest, m, cast(saved, hs.dtype))

    steps = z, before.swapaxes(1, 2), masks
    if residuals is None and len(start) > 1:
        return _scan_steps(options, _step, start[1:], steps, hs.shape[0])[1]
    rest = tuple(map(shift, start[1:], () if residuals is None else residuals.states))
    return jax.vmap(_step)(rest, steps)[1]


def _dense_tangents(cell: BaseCell, params: Any, tangents: Any) -> Any:
    """Return tangents of all cell parameters, zeros for some; None if every one is None."""
    if all(d is None for d in tangents.values()):
        return None
    dense = {n: jnp.zeros_like(params[n]) if d is None else d for n, d in tangents.items()}
    return cell_parameters(cell, dense)[0]


def _transposed_weights(weights: Weights) -> tuple[jax.Array | None, ...]:
    """Return W_ih.T, W_hh.T and W_hr.T, computed once for all blocks."""
    w = weights
    return tuple(None if a is None else a.T for a in (w.weight_ih, w.weight_hh, w.weight_hr))


def _sum_terms(terms: list[Any], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Sum products and biases (G*H,), skipping None."""
    total = jnp.zeros(shape, compute_dtype(dtype))
    for term in terms:
        if term is not None:
            total = add_bias(total, term) if term.ndim == 1 else total + term
    return total


# Blocks of steps


def _block_length(options: UnrollOptions, x: jax.Array) -> int:
    (steps, batch, _), tuning = x.shape, options.tuning
    size, longest = tuning.block_size, tuning.longest_block
    return block_length(steps, batch, options.block_length, block_size=size, longest=longest)


def block_length(
    steps: int,
    batch: int,
    length: int | None = None,
    *,
    block_size: int = CPU.block_size,
    longest: int = CPU.longest_block,
) -> int:
    """Return the number of steps in a block of about `block_size` steps times batch elements.

    Prefers a divisor of T near that length, so that no shorter block remains. A symbolic T makes
    one block.

    Args:
        steps: T.
        batch: N.
        length: the requested length, or None.
        block_size: target for steps times batch elements.
        longest: the largest length.

    Example:
        >>> block_length(100, 64), block_length(500, 1), block_length(97, 64), block_length(7, 64)
        (10, 50, 10, 7)
        >>> block_length(100, 64, 30)
        30
    """
    if not is_static(steps):
        return steps
    if length is not None:
        return max(1, min(length, steps))
    target = SHORTEST_BLOCK
    if is_static(batch):
        target = min(max(block_size // max(batch, 1), SHORTEST_BLOCK), longest)
    if steps <= target * 3 // 2:
        return steps
    near = [k for k in range(target // 2, 2 * target + 1) if steps % k == 0]
    return min(near, key=lambda k: abs(k - target)) if near else target


def scan_blocks(
    body: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
    carry: Any,
    steps: Any,
    blocks: Any,
    *,
    length: int,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    """Scan over blocks of `length` steps; the last block in time may be shorter.

    Args:
        body: ``(carry, steps, block value) -> (carry, step outputs, block output)``.
        carry: the initial carry.
        steps: a pytree of arrays (T, ...), passed in pieces (length, ...).
        blocks: a pytree of arrays (number of blocks, ...), passed one a block.
        length: steps in a block.
        reverse: if True, scan from the last block to the first.

    Returns:
        The final carry, the step outputs (T, ...) and the block outputs (number of blocks, ...).
    """
    total = jax.tree.leaves(steps)[0].shape[0]
    count, remainder = (1, 0) if length == total else divmod(total, length)

    def _run_one(carry: Any, first: int, size: int, index: int) -> tuple[Any, Any, Any]:
        piece = steps if size == total else jax.tree.map(lambda a: a[first : first + size], steps)
        carry, out, value = body(carry, piece, jax.tree.map(lambda a: a[index], blocks))
        return carry, out, jax.tree.map(lambda a: a[None], value)

    def _run_full_blocks(carry: Any) -> tuple[Any, Any, Any]:
        if count == 1:
            return _run_one(carry, 0, length, 0)
        pieces = jax.tree.map(
            lambda a: a[: count * length].reshape(count, length, *a.shape[1:]), steps
        )

        def _scanned(carry: Any, inputs: Any) -> tuple[Any, Any]:
            carry, out, value = body(carry, *inputs)
            return carry, (out, value)

        inputs = pieces, jax.tree.map(lambda a: a[:count], blocks)
        carry, (out, values) = lax.scan(_scanned, carry, inputs, reverse=reverse)
        return carry, jax.tree.map(lambda a: a.reshape(count * length, *a.shape[2:]), out), values

    if not remainder:
        return _run_full_blocks(carry)
    if reverse:
        carry, tail, tail_value = _run_one(carry, count * length, remainder, count)
        carry, out, values = _run_full_blocks(carry)
    else:
        carry, out, values = _run_full_blocks(carry)
        carry, tail, tail_value = _run_one(carry, count * length, remainder, count)
    concatenate = lambda a, b: jnp.concatenate([a, b])  # noqa: E731
    return (
        carry,
        jax.tree.map(concatenate, out, tail),
        jax.tree.map(concatenate, values, tail_value),
    )


def states_before_blocks(
    options: UnrollOptions, length: int, initial: State, after: State
) -> State:
    """Return the states before each block, from those after each step."""

    def _before(first: jax.Array, after: jax.Array) -> jax.Array:
        if options.reverse:
            return jnp.concatenate([after[length::length], first[None]])
        return jnp.concatenate([first[None], after[length - 1 : -1 : length]])

    return tuple(map(_before, initial, after))


def shift_states(initial: jax.Array, after: jax.Array, *, reverse: bool) -> jax.Array:
    """Return the state before each step, from the initial one and those after each step."""
    if reverse:
        return jnp.concatenate([after[1:], initial[None]])
    return jnp.concatenate([initial[None], after[:-1]])


# The associative scan of linear cells


def _associative_scan(
    coefficients: tuple[jax.Array, jax.Array],
    initial: jax.Array,
    masks: StepMasks,
    *,
    reverse: bool,
) -> jax.Array:
    r"""Return the states (K, S, N) of a linear recurrence, all steps at once.

    .. math::

        s_t = a_t s_{t-1} + b_t, \qquad
        (a, b) \circ (a', b') = (a a',\; a b' + b) \text{ is associative.}

    A reset is :math:`a_t = 0`; padding and zoneout are :math:`a_t = 1, b_t = 0`.

    Source: G. Blelloch, Prefix sums and their applications (1990); for linear recurrences E.
    Martin, C. Cundy, arXiv:1709.04057.
    """
    a, b = coefficients
    if masks.zoneout is not None:
        zoneout = masks._replace(reset_mask=None, valid_mask=None)
        ones, zeros = (jnp.ones_like(a),), (jnp.zeros_like(b),)
        (a,) = apply_masks((a,), ones, (a,), zoneout)
        (b,) = apply_masks((b,), zeros, (b,), zoneout)
    if masks.reset_mask is not None:
        a = jnp.where(masks.reset_mask[:, None], jnp.zeros_like(a), a)
    if masks.valid_mask is not None:
        a = jnp.where(masks.valid_mask[:, None], a, jnp.ones_like(a))
        b = jnp.where(masks.valid_mask[:, None], b, jnp.zeros_like(b))
    first = -1 if reverse else 0
    b = b.at[first].add(a[first] * initial)

    def _compose(earlier: Any, later: Any) -> Any:
        (a1, b1), (a2, b2) = earlier, later
        return a2 * a1, a2 * b1 + b2

    return lax.associative_scan(_compose, (a, b), reverse=reverse)[1]
