"""The loop over time as JAX primitives that may have kernels.

Three primitives, batch-major in all of their arrays:

.. code-block:: text

    rnn_forward     x, weights, initial state -> h at each step, other states, cell residuals
    rnn_linear      dx, dweights, dstate -> dh at each step, final dstate    linear in all three
    rnn_backward    the transpose of rnn_linear

Each is defined by `jaxrnn.backends.scan`, which runs without a kernel and is what JAX
differentiates, batches or transposes when a program asks for more than a kernel computes. Operands
are flattened pytrees; the parameter `tree` is their structure.

`forward` and `linear` are the protocol of `jaxrnn.backends.base`. Axis letters as in
`jaxrnn.backends.scan`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.backends import operations, platform, scan, sharding
from jaxrnn.backends.base import (
    ForwardResult,
    ResidualPolicy,
    Residuals,
    Tangents,
    UnrollOptions,
)
from jaxrnn.backends.elementwise.residuals import derivative_rule, param_counts
from jaxrnn.backends.operations import shape_like
from jaxrnn.backends.step import (
    StepMasks,
    apply_resets,
    cast_like,
    is_static,
    matmul_with_transpose,
    project,
    reset_hidden,
    transpose_state,
    zero_padding,
)
from jaxrnn.cells import Cell, State
from jaxrnn.cells.base import compute_dtype, upcast
from jaxrnn.cells.weights import Weights, cell_parameters

# Steps times batch elements in a block that is recomputed: many enough to amortise the call of a
# kernel, few enough for the workspace of a block to stay in the cache.
BLOCK_SIZE = 2048


class ForwardOperands(NamedTuple):
    """Operands of rnn_forward; `cell_params` is one vector or None, `masks` packed or None."""

    x: Any
    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any
    cell_params: Any
    state: State
    masks: Any


class LinearTangents(NamedTuple):
    """Operands that rnn_linear is linear in; None for a tangent that is zero.

    Attributes:
        bias: (), or one tangent of the sum of both biases, or two for a cell with `split`.
    """

    x: Any
    weight_ih: Any
    weight_hh: Any
    bias: tuple[Any, ...]
    cell_params: Any
    state: State


class LinearResiduals(NamedTuple):
    """Operands that rnn_linear is not linear in.

    Attributes:
        state: the state before the first step.
        states: the states after each step, h first.
        cell: the residuals of the cell.
        masks: packed masks, or None.
    """

    x: Any
    weight_ih: Any
    weight_hh: Any
    cell_params: Any
    state: State
    states: State
    cell: tuple[Any, ...]
    masks: Any


LinearOperands = tuple[LinearTangents, LinearResiduals]


# The protocol of a loop


def forward(
    options: UnrollOptions,
    weights: Weights,
    x: jax.Array,
    state: State,
    masks: StepMasks,
    policy: ResidualPolicy,
) -> ForwardResult:
    """Run the cell over time, as `jaxrnn.backends.scan.forward`; residuals are batch-major."""
    parameters = _weight_operands(options.cell, weights)
    last = 0 if options.reverse else -1
    length = _block_length(options, x, policy)
    if policy is ResidualPolicy.ALL:
        h, residuals = _bind_forward(options, parameters, x, state, masks, store_residuals=True)
        after = (h, *residuals.states)
        starts = scan.states_before_blocks(options, length, state, after)
        final = tuple(s[last] for s in after)
        return ForwardResult((h,), final, residuals, starts, policy)

    def _run_block(state: State, steps: Any, nothing: None) -> Any:
        del nothing
        x, masks = steps
        h, rest = _bind_forward(options, parameters, x, state, masks, store_residuals=False)
        return (h[last], *rest.states), (h,), state

    # The states before blocks are needed only where a block is recomputed.
    one_block = policy is ResidualPolicy.NOTHING and not options.remat
    final, outputs, starts = scan.scan_blocks(
        _run_block,
        state,
        (x, masks),
        None,
        length=x.shape[0] if one_block else length,
        reverse=options.reverse,
    )
    return ForwardResult(outputs, final, None, starts, policy)


def linear(
    options: UnrollOptions,
    weights: Weights,
    x: jax.Array,
    masks: StepMasks,
    result: ForwardResult,
    tangents: Tangents,
) -> tuple[State, State]:
    """Return the tangents of outputs and final state, as `jaxrnn.backends.scan.linear`."""
    block = functools.partial(_linear_block, options)
    length = _block_length(options, x, result.policy)
    dfinal, doutputs = scan.linear_in_blocks(
        block, (weights,), options, length, x, masks, result, tangents, tangents.state
    )
    return doutputs, cast_like(dfinal, result.final_state)


def _linear_block(
    options: UnrollOptions,
    weights: Weights,
    block: scan.StepBlock,
    dweights: Weights,
    dx: jax.Array | None,
    dstate: State,
) -> tuple[State, State]:
    """Return the final state's and the outputs' tangents of one block."""
    cell = options.cell
    x, start, masks, hs, residuals = block
    if residuals is None:
        parameters = _weight_operands(cell, weights)
        _, residuals = _bind_forward(options, parameters, x, start, masks, store_residuals=True)
    linear_in = LinearTangents(
        dx,
        dweights.weight_ih,
        dweights.weight_hh,
        _bias_tangents(cell, dweights),
        _cell_param_tangents(cell, weights, dweights),
        dstate,
    )
    params = pack_cell_params(cell, weights.cell_params)
    after, packed = (hs, *residuals.states), pack_masks(masks)
    saved = LinearResiduals(
        x, weights.weight_ih, weights.weight_hh, params, start, after, residuals.cell, packed
    )
    operands, tree = jax.tree.flatten((linear_in, saved))
    dh, *final = linear_p.bind(*operands, tree=tree, **_parameters(options))
    return tuple(final), (dh,)


def _block_length(options: UnrollOptions, x: jax.Array, policy: ResidualPolicy) -> int:
    """Return the steps in a block of the derivative: all, if nothing is recomputed."""
    (steps, batch, _), length = x.shape, options.block_length
    if policy is ResidualPolicy.ALL and length is None:
        return steps
    return scan.block_length(steps, batch, length, block_size=BLOCK_SIZE, longest=BLOCK_SIZE)


def _parameters(options: UnrollOptions) -> dict[str, Any]:
    """Return the parameters that all three primitives share."""
    mesh = sharding.current_mesh()
    return dict(cell=options.cell, reverse=options.reverse, tuned_for=options.platform, mesh=mesh)


def _bind_forward(
    options: UnrollOptions,
    parameters: tuple[Any, Any, Any, Any, Any],
    x: jax.Array,
    state: State,
    masks: StepMasks,
    *,
    store_residuals: bool,
) -> tuple[jax.Array, Residuals]:
    """Return h at each step and, as residuals, the other results."""
    operands = ForwardOperands(x, *parameters, state, pack_masks(masks))
    flat, tree = jax.tree.flatten(operands)
    h, *rest = forward_p.bind(
        *flat, tree=tree, store_residuals=store_residuals, **_parameters(options)
    )
    count = len(state) - 1
    return h, Residuals(tuple(rest[:count]), None, tuple(rest[count:]))


# Operands


def _weight_operands(cell: Cell, weights: Weights) -> tuple[Any, Any, Any, Any, Any]:
    """Return W_ih, W_hh, both biases, zeros if absent, and the packed cell parameters."""
    params = pack_cell_params(cell, weights.cell_params)
    zeros = jnp.zeros(len(weights.weight_ih), weights.weight_ih.dtype)
    bias_ih, bias_hh = (zeros if b is None else b for b in (weights.bias_ih, weights.bias_hh))
    return weights.weight_ih, weights.weight_hh, bias_ih, bias_hh, params


def _bias_tangents(cell: Cell, dweights: Weights) -> tuple[jax.Array, ...]:
    """Return the tangents of b_ih and b_hh, or of their sum; () if both are zero."""
    of_x, of_h = dweights.bias_ih, dweights.bias_hh
    if of_x is None and of_h is None:
        return ()
    if not cell.split:
        terms = [d for d in (of_x, of_h) if d is not None]
        return (terms[0] if len(terms) == 1 else terms[0] + terms[1],)
    if of_x is None:
        assert of_h is not None
        return jnp.zeros_like(of_h), of_h
    return of_x, jnp.zeros_like(of_x) if of_h is None else of_h


def pack_cell_params(cell: Cell, params: dict[str, jax.Array] | None) -> jax.Array | None:
    """Concatenate the parameters of a cell into one vector; None without parameters."""
    return jnp.concatenate([params[n] for n in param_counts(cell)]) if params else None


def unpack_cell_params(cell: Cell, vector: jax.Array | None) -> dict[str, jax.Array] | None:
    """Split the vector of `pack_cell_params` into the parameters of a cell."""
    if vector is None:
        return None
    counts = param_counts(cell)
    hidden, start, params = len(vector) // sum(counts.values()), 0, {}
    for name, count in counts.items():
        params[name] = vector[start : start + count * hidden]
        start += count * hidden
    return params


def _cell_param_tangents(cell: Cell, weights: Weights, dweights: Weights) -> jax.Array | None:
    """Return the packed tangents of the cell parameters; None if all are zero."""
    tangents = {n: d for n, d in (dweights.cell_params or {}).items() if d is not None}
    if not tangents or weights.cell_params is None:
        return None
    params = weights.cell_params.items()
    zeros = {n: jnp.zeros_like(a) for n, a in params if n not in tangents}
    return pack_cell_params(cell, zeros | tangents)


def pack_masks(masks: StepMasks) -> jax.Array | None:
    """Pack the masks into uint8 (T, N): 1 for a reset plus 2 for a valid step; None without masks.

    Zoneout is not supported by the primitives.
    """
    resets, valid = masks.reset_mask, masks.valid_mask
    if resets is not None and valid is not None:
        resets = resets & valid  # a reset at padding has no effect
    two = jnp.uint8(2)
    if resets is None:
        return None if valid is None else valid.astype(jnp.uint8) * two
    return resets.astype(jnp.uint8) + (two if valid is None else valid.astype(jnp.uint8) * two)


def unpack_masks(packed: jax.Array | None) -> StepMasks:
    """Return the masks that `pack_masks` packed."""
    if packed is None:
        return StepMasks()
    return StepMasks((packed & 1) != 0, (packed & 2) != 0)


@functools.lru_cache(maxsize=256)
def cell_residual_shapes(cell: Cell) -> Any:
    """Return the residuals of a cell as shapes for one hidden unit and one batch element."""
    array = lambda count: jax.ShapeDtypeStruct((count, 1), jnp.float32)  # noqa: E731
    gates = array(len(cell.gates))
    state = (array(1),) * len(cell.states)
    params = ({name: array(count) for name, count in param_counts(cell).items()},)
    params = params if cell.parameters else ()
    z = (gates, gates) if cell.split else gates
    return jax.eval_shape(derivative_rule(cell).save, z, state, *params)[1]


# References


def _forward_reference(
    *flat: jax.Array,
    tree: Any,
    cell: Cell,
    reverse: bool,
    tuned_for: str,
    store_residuals: bool,
    **_: Any,
) -> list[jax.Array]:
    operands: ForwardOperands = jax.tree.unflatten(tree, flat)
    x, *weights, params, state, packed = operands
    options = UnrollOptions(cell, reverse, platform=tuned_for)
    policy = ResidualPolicy.ALL if store_residuals else ResidualPolicy.NOTHING
    masks = unpack_masks(packed)
    x = zero_padding(masks.valid_mask, x)
    all_weights = Weights(*weights, cell_params=unpack_cell_params(cell, params))
    result = scan.forward(options, all_weights, x, state, masks, policy)
    (h,), residuals = result.outputs, result.residuals
    if residuals is None:
        return [h, *result.final_state[1:]]
    cell_residuals = tuple(jax.tree.leaves(residuals.cell))
    return [h, *transpose_state(residuals.states), *transpose_state(cell_residuals)]


def _linear_reference(
    *flat: jax.Array, tree: Any, cell: Cell, reverse: bool, tuned_for: str, **_: Any
) -> list[jax.Array]:
    operands: LinearOperands = jax.tree.unflatten(tree, flat)
    tangents, (x, w_ih, w_hh, packed_params, start, after, saved, packed) = operands
    masks, pointwise = unpack_masks(packed), derivative_rule(cell)
    options = UnrollOptions(cell, reverse, platform=tuned_for)
    weights = Weights(w_ih, w_hh, cell_params=unpack_cell_params(cell, packed_params))
    params = cell_parameters(cell, weights.cell_params)
    # At padding a kernel reads no input and saves no residuals.
    x = zero_padding(masks.valid_mask, x)
    saved = _residuals_at_valid_steps(cell, params, masks.valid_mask, saved, start)
    shift = functools.partial(scan.shift_states, reverse=reverse)
    old = apply_resets(transpose_state(tuple(map(shift, start, after))), masks.reset_mask)
    saved = jax.tree.unflatten(
        jax.tree.structure(cell_residual_shapes(cell)), transpose_state(saved)
    )
    coefficients = jax.vmap(lambda saved, old, new: pointwise.linearize(saved, old, new, *params))(
        *upcast((saved, old, transpose_state(after)))
    )
    # Every contribution that does not come through the previous state, for all steps at once.
    old_h = reset_hidden(shift(start[0], after[0]), masks.reset_mask)
    dz = transpose_state(_pre_activation_tangents(cell, tangents, x, w_ih, old_h))
    zeros = jax.tree.map(jnp.zeros_like, upcast(old))
    if params:
        dparams = cell_parameters(cell, unpack_cell_params(cell, tangents.cell_params))
        params = (*params, *(dparams or (None,)))
    direct = jax.vmap(lambda c, dz, dold: pointwise.tangent(c, dz, dold, *params))(
        coefficients, dz if cell.split else dz[0], zeros
    )
    dstate = transpose_state(tangents.state)
    final, (dh,) = scan.linear_loop(
        options, weights, (None, w_hh.T, None), coefficients, direct, None, masks, dstate
    )
    return [dh, *transpose_state(final)]


def _backward_reference(*flat: jax.Array, tree: Any, **parameters: Any) -> list[jax.Array]:
    count = 1 + len(parameters["cell"].states)
    cotangents, residuals = flat[:count], flat[count:]
    reference = functools.partial(_linear_reference, tree=tree, **parameters)
    shapes = _backward_shapes(flat, tree=tree, **parameters)
    zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    transpose = jax.linear_transpose(lambda *a: reference(*a, *residuals), *zeros)
    return list(transpose(list(cotangents)))


def _residuals_at_valid_steps(
    cell: Cell, params: Any, valid_mask: Any, saved: Any, start: Any
) -> tuple[Any, ...]:
    """Replace the cell residuals at padding by those of a step where everything is zero."""
    if valid_mask is None or not saved:
        return saved
    zero = jnp.zeros((start[0].shape[1], 1), compute_dtype(start[0].dtype))
    gates = jnp.zeros((len(cell.gates) * len(zero), 1), zero.dtype)
    state = (zero,) * len(cell.states)
    _, tree = derivative_rule(cell).save((gates, gates) if cell.split else gates, state, *params)
    at_rest = [a.astype(s.dtype)[:, 0] for a, s in zip(jax.tree.leaves(tree), saved, strict=True)]
    pairs = zip(saved, at_rest, strict=True)
    return tuple(jnp.where(valid_mask[..., None], s, rest) for s, rest in pairs)


def _pre_activation_tangents(
    cell: Cell, tangents: LinearTangents, x: Any, w_ih: Any, old_h: Any
) -> tuple[jax.Array, ...]:
    """Return the tangents of the pre-activations (T, N, G*H) that bypass the previous state."""
    from_x = [_project_with_transpose(x, d) for d in (tangents.weight_ih,) if d is not None]
    from_x += [project(d, w_ih) for d in (tangents.x,) if d is not None]
    from_h = [_project_with_transpose(old_h, d) for d in (tangents.weight_hh,) if d is not None]
    parts = (from_x, from_h) if cell.split else (from_x + from_h,)
    shape, bias, dtype = (*x.shape[:2], len(w_ih)), tangents.bias, compute_dtype(x.dtype)

    def _total(index: int, terms: list[Any]) -> jax.Array:
        biases = bias[index : index + 1]
        terms = [*terms, *(jnp.broadcast_to(b.astype(dtype), shape) for b in biases)]
        return functools.reduce(jnp.add, terms) if terms else jnp.zeros(shape, dtype)

    return tuple(_total(i, terms) for i, terms in enumerate(parts))


def _project_with_transpose(x: jax.Array, dw: jax.Array) -> jax.Array:
    """Return ``x @ dw.T`` (K, N, S) for x (K, N, D); its transpose computes ``(x.T @ ct).T``.

    The barriers keep XLA from exchanging operands of that product for the sake of a layout, which
    takes a CPU 1.1 to 2 times as long.
    """
    merged = sharding.merge_steps(x)
    columns = lax.optimization_barrier(merged.T)
    z = matmul_with_transpose(merged, columns, lax.optimization_barrier(dw.T))
    return sharding.split_steps(z, x.shape[0])


# Shapes of the results


def _forward_shapes(
    flat: Any, *, tree: Any, cell: Cell, store_residuals: bool, **_: Any
) -> operations.Shapes:
    operands: ForwardOperands = jax.tree.unflatten(tree, flat)
    x, H = operands.x, operands.weight_hh.shape[1]
    steps = (*x.shape[:2], H)
    rest = [steps if store_residuals else steps[1:]] * (len(cell.states) - 1)
    residuals = jax.tree.leaves(cell_residual_shapes(cell)) if store_residuals else []
    saved = [(*x.shape[:2], H * count.shape[0]) for count in residuals]
    return [shape_like(shape, x) for shape in (steps, *rest, *saved)]


def _linear_shapes(flat: Any, *, tree: Any, **_: Any) -> operations.Shapes:
    tangents, residuals = jax.tree.unflatten(tree, flat)
    steps = (*residuals.x.shape[:2], tangents.state[0].shape[1])
    return [shape_like(steps, residuals.x), *(shape_like(d.shape, d) for d in tangents.state)]


def _backward_shapes(flat: Any, *, tree: Any, cell: Cell, **_: Any) -> operations.Shapes:
    cotangents, saved = _backward_operands(flat, tree, cell)
    tangents = _requested(tree)
    named = [n for n in ("x", "weight_ih", "weight_hh") if getattr(tangents, n) is not None]
    shapes = [shape_like(a.shape, a) for a in (getattr(saved, n) for n in named)]
    shapes += [shape_like(saved.weight_hh.shape[:1], saved.weight_hh)] * len(tangents.bias)
    rest = [] if tangents.cell_params is None else [saved.cell_params]
    return [*shapes, *(shape_like(a.shape, a) for a in (*rest, *cotangents[1:]))]


def _backward_operands(flat: Any, tree: Any, cell: Cell) -> tuple[tuple[Any, ...], LinearResiduals]:
    """Split the operands of rnn_backward into cotangents and residuals."""
    count = 1 + len(cell.states)
    return tuple(flat[:count]), jax.tree.unflatten(tree.children()[1], flat[count:])


def _requested(tree: Any) -> LinearTangents:
    """Return the index of each tangent of rnn_linear; None for one that is zero."""
    tangents = tree.children()[0]
    return jax.tree.unflatten(tangents, range(tangents.num_leaves))


# Kernels


def _kernel_module(name: str, cell: Cell, x: jax.Array, w_hh: jax.Array) -> Any:
    """Return the kernels of a platform; None if they are unsupported."""
    module = platform.kernel_module(name)
    if not is_static(*x.shape):
        return None
    reason = module.unsupported_reason(cell, x.dtype, *x.shape, w_hh.shape[1])
    return None if reason else module


def _forward_kernel(
    name: str, *flat: jax.Array, tree: Any, cell: Cell, tuned_for: str, **parameters: Any
) -> Any:
    del tuned_for
    operands: ForwardOperands = jax.tree.unflatten(tree, flat)
    module = _kernel_module(name, cell, operands.x, operands.weight_hh)
    if module is None:
        return None
    masked = operands.masks is not None
    if not platform.KERNELS[name].skips_padding:
        valid_mask = unpack_masks(operands.masks).valid_mask
        flat = (zero_padding(valid_mask, operands.x), *flat[1:])
    return module.run_forward(flat, cell=cell, masked=masked, **parameters)


def _backward_kernel(
    name: str, *flat: jax.Array, tree: Any, cell: Cell, tuned_for: str, **parameters: Any
) -> Any:
    del tuned_for
    cotangents, saved = _backward_operands(flat, tree, cell)
    module = _kernel_module(name, cell, saved.x, saved.weight_hh)
    if module is None:
        return None
    parameters |= dict(cell=cell, masked=saved.masks is not None)
    tangents = _requested(tree)
    if platform.KERNELS[name].computes_gradients:
        requested = [getattr(tangents, n) is not None for n in ("x", "weight_ih", "weight_hh")]
        requested.append(bool(tangents.bias))
        if saved.cell_params is not None:
            requested.append(tangents.cell_params is not None)
        return module.run_backward(flat, requested=tuple(requested), **parameters)
    assert saved.cell_params is None  # these kernels do not support cell parameters
    operands = jax.tree.leaves(
        (saved.weight_hh, saved.state, saved.states, saved.cell, saved.masks)
    )
    gradients = module.run_backward((*cotangents, *operands), **parameters)
    gradients = [a.astype(compute_dtype(saved.x.dtype)) for a in gradients]
    dz, dstart = gradients[: 1 + cell.split], gradients[1 + cell.split :]
    masks = unpack_masks(saved.masks)
    before = scan.shift_states(saved.state[0], saved.states[0], reverse=parameters["reverse"])
    old_h = reset_hidden(before, masks.reset_mask)
    x = zero_padding(masks.valid_mask, saved.x)

    def _linear_part(*linear: jax.Array) -> Any:
        dstate = [jnp.zeros(())] * len(cell.states)
        linear_in = jax.tree.unflatten(tree.children()[0], (*linear, *dstate))
        return _pre_activation_tangents(cell, linear_in, x, saved.weight_ih, old_h)

    shapes = _backward_shapes(flat, tree=tree, cell=cell)[: -len(dstart)]
    linear = jax.linear_transpose(_linear_part, *shapes)(tuple(dz)) if shapes else ()
    return [*linear, *dstart]


# Indices of the operands that have no batch axis


def _forward_unbatched(tree: Any, **_: Any) -> set[int]:
    operands: ForwardOperands = jax.tree.unflatten(tree, range(tree.num_leaves))
    return set(jax.tree.leaves(operands[1:6]))


def _linear_unbatched(tree: Any, **_: Any) -> set[int]:
    tangents, residuals = jax.tree.unflatten(tree, range(tree.num_leaves))
    return set(jax.tree.leaves((tangents[1:5], residuals[1:4])))


def _backward_unbatched(tree: Any, cell: Cell, **_: Any) -> set[int]:
    residuals = tree.children()[1]
    indices = range(residuals.num_leaves + 1 + len(cell.states))
    return set(jax.tree.leaves(_backward_operands(indices, tree, cell)[1][1:4]))


def _backward_summed(tree: Any, **_: Any) -> set[int]:
    return set(jax.tree.leaves(_requested(tree)[1:5]))


def _by_platform(kernel: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {name: functools.partial(kernel, name) for name in platform.KERNELS}


forward_p = operations.define_kernel_primitive(
    "rnn_forward",
    _forward_reference,
    _forward_shapes,
    _forward_unbatched,
    _by_platform(_forward_kernel),
    portable=platform.is_portable,
)
linear_p = operations.define_kernel_primitive(
    "rnn_linear", _linear_reference, _linear_shapes, _linear_unbatched, {}
)
backward_p = operations.define_kernel_primitive(
    "rnn_backward",
    _backward_reference,
    _backward_shapes,
    _backward_unbatched,
    _by_platform(_backward_kernel),
    _backward_summed,
    platform.is_portable,
)
operations.set_transpose(linear_p, backward_p, lambda tree, **_: tree.children()[0].num_leaves)
