"""One step of a layer: gate pre-activations, the cell, and the masks on the state.

Inside a step arrays are feature-major: pre-activations (G*H, N), states (H, N) or (R, N), so that a
gate is a contiguous piece of memory and each weight is read along its rows. Axis letters: N batch,
K steps in a block, D input features, H hidden size, G gates, P projection, R size of h (P if
projected, else H).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.interpreters import ad

from jaxrnn.backends.elementwise.residuals import DerivativeRule, derivative_rule
from jaxrnn.backends.operations import define_primitive
from jaxrnn.backends.platform import Tuning
from jaxrnn.cells import BaseCell, Cell, GeneralCell, State
from jaxrnn.cells.base import compute_dtype, upcast
from jaxrnn.cells.weights import Weights, cell_parameters


class StepMasks(NamedTuple):
    """Masks on the state around a step; None for no mask.

    Attributes:
        reset_mask: bool (T, N); True at t sets the state to zero before x_t is consumed.
        valid_mask: bool (T, N); False at t, at padding, leaves the state unchanged.
        zoneout: for each state the part that step t leaves unchanged: bool (T, S, N), or numbers
            (T, 1, 1); None for a state without zoneout.
    """

    reset_mask: jax.Array | None = None
    valid_mask: jax.Array | None = None
    zoneout: tuple[jax.Array | None, ...] | None = None


def advance(
    cell: BaseCell, weights: Weights, inputs: Any, state: State, masks: StepMasks = StepMasks()
) -> tuple[State, Any, Any]:
    """Advance the state by one step; all arrays are feature-major.

    Args:
        cell: the cell.
        weights: its parameters.
        inputs: the input pre-activations (G*H, N), see `input_pre_activations`.
        state: the states, h (R, N) first, each other one (H, N).
        masks: the masks of this step, each (N,).

    Returns:
        The new state, h before its projection, and the residuals of the cell.
    """
    old = state
    state = apply_resets(state, masks.reset_mask)
    params = cell_parameters(cell, weights.cell_params)
    if not isinstance(cell, Cell):
        general = cast(GeneralCell, cell)
        step = jax.vmap(lambda x, s: tuple(general.step(x, s, *params)), -1, -1)
        new = cast_like(step(inputs, upcast(state)), old)
        return apply_masks(new, state, old, masks), None, None
    recurrent = matmul(weights.weight_hh, drop_hidden(weights, state[0]))
    z = pre_activations(cell, weights, inputs, recurrent)
    (m, *rest), residuals = pointwise_rule(cell, masks).save(z, upcast(state), *params)
    m = m.astype(old[0].dtype)
    h = m if weights.weight_hr is None else matmul(weights.weight_hr, m).astype(m.dtype)
    return apply_masks((h, *cast_like(rest, old[1:])), state, old, masks), m, residuals


# Gate pre-activations


def input_pre_activations(cell: BaseCell, weights: Weights, x: jax.Array) -> Any:
    """Return W_ih x + biases, (G*H, N) or (K, G*H, N), for x (N, D) or (K, N, D).

    Includes every bias that does not wait for the hidden state. For a general cell: its `inputs`,
    each array with the batch axis last.
    """
    if isinstance(cell, Cell):
        return _add_biases(cell, weights, matmul_batch_major(weights.weight_ih, x))
    (params,) = cell_parameters(cell, weights.cell_params)
    inputs = jax.vmap(lambda x: cast(GeneralCell, cell).inputs(x, params), 0, -1)
    return (inputs if x.ndim == 2 else jax.vmap(inputs))(upcast(x))


def block_input_pre_activations(cell: BaseCell, weights: Weights, x: jax.Array) -> Any:
    """Return `input_pre_activations` of a block x (K, N, D) by a single product."""
    if not isinstance(cell, Cell):
        return input_pre_activations(cell, weights, x)
    z = _add_biases(cell, weights, project(x, weights.weight_ih), axis=-1)
    return z.swapaxes(1, 2)


def pre_activations(cell: Cell, weights: Weights, inputs: Any, recurrent: jax.Array | None) -> Any:
    """Combine the two products into the argument of a cell's step: their sum, or the pair."""
    if recurrent is None:
        return inputs
    if cell.split:
        return inputs, add_bias(recurrent, weights.bias_hh)
    return inputs + recurrent


def project_inputs_in_loop(cell: BaseCell, x: jax.Array, weights: Weights, tuning: Tuning) -> bool:
    """Return True if the product of W_ih with x_t should run inside the loop.

    Inside the loop it is an operand of the elementwise function that needs no slice, stays in the
    cache and is never written to memory. For a small batch it is bound by reading W_ih at each
    step; and a CPU uses one core for a product below about 16 MFLOP, but all for a block of them.
    A cell with `split` gains more from the loop. Measured on two cores with N from 1 to 170 and H
    from 25 to 1024: a wrong choice costs 10 to 40 %.
    """
    _, batch, features = x.shape
    if weights.weight_ih is None or not tuning.project_inputs_in_loop:
        return False
    if features == 1:
        return True  # an outer product
    if not is_static(batch):
        return False
    mflop = 2e-6 * batch * features * weights.weight_ih.shape[0]
    return batch >= 24 and (cell.split or mflop < 1 or mflop >= 16)


def _add_biases(cell: BaseCell, weights: Weights, inputs: Any, axis: int = -2) -> jax.Array:
    inputs = add_bias(inputs, weights.bias_ih, axis)
    return inputs if cell.split else add_bias(inputs, weights.bias_hh, axis)


def add_bias(z: jax.Array, bias: jax.Array | None, axis: int = -2) -> jax.Array:
    """Add a bias along an axis."""
    if bias is None:
        return z
    shape = [1] * z.ndim
    shape[axis] = bias.shape[0]
    return z + bias.astype(z.dtype).reshape(shape)


# The state around a step


def zero_padding(valid_mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """Set x to zero at padding; the mask's axes are the leading axes of x.

    Padding, NaN included, then reaches neither values nor gradients.
    """
    if valid_mask is None:
        return x
    mask = valid_mask.reshape(valid_mask.shape + (1,) * (x.ndim - valid_mask.ndim))
    return jnp.where(mask, x, jnp.zeros_like(x))


def apply_resets(state: State, reset_mask: jax.Array | None) -> State:
    """Set states (..., H, N) to zero where the mask (..., N) is True."""
    if reset_mask is None:
        return state
    return tuple(jnp.where(reset_mask[..., None, :], jnp.zeros_like(s), s) for s in state)


def reset_hidden(hs: jax.Array, reset_mask: jax.Array | None) -> jax.Array:
    """Apply resets to batch-major hidden states (K, N, R)."""
    return hs if reset_mask is None else jnp.where(reset_mask[..., None], jnp.zeros_like(hs), hs)


def apply_masks(new: State, entered: State, old: State, masks: StepMasks) -> State:
    """Apply zoneout and padding to the state after a step.

    Args:
        new: the state that the step computed.
        entered: the state that the step read, after resets; zoneout returns to it.
        old: the state before resets; padding returns to it.
        masks: the masks of the step.
    """
    if masks.zoneout is not None:
        new = tuple(map(_apply_zoneout, masks.zoneout, new, entered))
    if masks.valid_mask is None:
        return new
    return tuple(jnp.where(masks.valid_mask[None], n, o) for n, o in zip(new, old, strict=True))


def _apply_zoneout(part: jax.Array | None, new: jax.Array, entered: jax.Array) -> jax.Array:
    if part is None:
        return new
    if part.dtype == bool:
        return jnp.where(part, entered, new)
    return (part * entered + (1 - part) * new).astype(new.dtype)


def drop_hidden(weights: Weights, h: Any) -> Any:
    """Apply recurrent dropout to h (R, N) before W_hh."""
    return h if weights.dropout_mask is None else h * weights.dropout_mask


def drop_hidden_batch_major(weights: Weights, hs: jax.Array) -> jax.Array:
    """Apply recurrent dropout to h (K, N, R) before W_hh."""
    return hs if weights.dropout_mask is None else hs * weights.dropout_mask.T[None]


def transpose_state(state: State) -> State:
    """Swap the last two axes of each state: batch-major to feature-major and back."""
    return tuple(s.swapaxes(-1, -2) for s in state)


def cast_like(new: Any, old: State) -> State:
    """Cast states to the dtypes of others."""
    return tuple(n.astype(o.dtype) for n, o in zip(new, old, strict=True))


# The cell


def pointwise_rule(cell: Any, masks: StepMasks) -> DerivativeRule:
    """Return the elementwise derivative rule of a cell; under zoneout, the one by `jax.jvp`.

    The other rules assume that the state after a step is the one that the step computed.
    """
    if masks.zoneout is None:
        return derivative_rule(cell)
    fields = DerivativeRule._fields
    return DerivativeRule(*(functools.partial(getattr(Cell, name), cell) for name in fields))


def has_output_function(cell: BaseCell) -> bool:
    """Return True if the output of a cell is not its first state."""
    return isinstance(cell, GeneralCell) and type(cell).output is not GeneralCell.output


def cell_outputs(cell: BaseCell, weights: Weights, x: jax.Array, states: State) -> jax.Array:
    """Return the outputs (..., N, F) of a general cell for x (..., N, D), states (..., N, S)."""
    (params,) = cell_parameters(cell, weights.cell_params)
    output = lambda x, s: cast(GeneralCell, cell).output(x, s, params)  # noqa: E731
    for _ in range(x.ndim - 1):
        output = jax.vmap(output)
    return output(upcast(x), upcast(states)).astype(x.dtype)


# Matrix products with weights (S, D): S outputs, D inputs


def is_static(*sizes: Any) -> bool:
    """Return True if sizes are numbers, not symbols of a program to export (`jax.export`)."""
    return all(isinstance(size, int) for size in sizes)


def matmul(w: Any, a: Any) -> Any:
    """Return ``w @ a`` (S, N) for a (D, N) in the compute dtype; None if either is None."""
    return None if w is None or a is None else _dot(w, a, 0)


def matmul_batch_major(w: Any, x: Any) -> Any:
    """Return ``w @ x.T`` (..., S, N) for x (N, D) or (K, N, D); None if either is None."""
    if w is None or x is None:
        return None
    z = _dot(w, x, x.ndim - 1)
    return z if x.ndim == 2 else z.swapaxes(0, 1)


def project(x: jax.Array, w: jax.Array) -> jax.Array:
    """Return ``x @ w.T`` (..., S) for x (..., D) in the compute dtype."""
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, w, contract, preferred_element_type=compute_dtype(x.dtype))


def _dot(w: jax.Array, a: jax.Array, axis: int) -> jax.Array:
    contract = (((1,), (axis,)), ((), ()))
    return lax.dot_general(w, a, contract, preferred_element_type=compute_dtype(a.dtype))


def matmul_with_transpose(w: jax.Array, wt: jax.Array, a: jax.Array) -> jax.Array:
    """Return ``w @ a``, whose transpose computes ``wt @ ct``, for wt = w.T and a (D, N).

    Values and derivatives equal those of ``matmul(w, a)``; `wt` has no derivative. Written as
    ``w.T @ ct``, the transpose would read `w` across its rows at every step of a loop, which takes
    XLA on a CPU two to thirteen times as long; here the weights are transposed once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.backends.step import matmul_with_transpose
        >>> w = jnp.array([[1.0, 2.0]])
        >>> f = lambda a: matmul_with_transpose(w, w.T, a).sum()
        >>> jax.grad(f)(jnp.ones((2, 3)))[:, 0].tolist()
        [1.0, 2.0]
    """
    return _matmul_p.bind(w, wt, a)


def _matmul_value(w: jax.Array, wt: jax.Array, a: jax.Array) -> jax.Array:
    if a.shape[1] == 1 and w.shape[0] < w.shape[1]:
        # For one batch element a few long dot products are slower than many sums.
        contract = (((0,), (0,)), ((), ()))
        return lax.dot_general(wt, a, contract, preferred_element_type=compute_dtype(a.dtype))
    return _dot(w, a, 0)


def _matmul_aval(w: Any, wt: Any, a: Any) -> Any:
    del wt
    return ShapedArray((w.shape[0], a.shape[1]), compute_dtype(a.dtype))


def _matmul_jvp(primals: Any, tangents: Any) -> Any:
    w, wt, a = primals
    dw, _, da = tangents
    out = matmul_with_transpose(w, wt, a)
    terms = [] if isinstance(dw, ad.Zero) else [_dot(dw, a, 0)]
    if not isinstance(da, ad.Zero):
        terms.append(matmul_with_transpose(w, wt, da))
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


def _matmul_transpose(ct: Any, w: Any, wt: Any, a: Any) -> Any:
    if isinstance(ct, ad.Zero):
        return None, None, ad.Zero(a.aval)
    da = matmul_with_transpose(wt, w, ct.astype(w.dtype))
    return None, None, da.astype(a.aval.dtype)


def _matmul_batch(args: Any, axes: Any) -> Any:
    w, wt, a = args
    if axes[0] is None and axes[1] is None:  # shared weights: a larger batch
        size = a.shape[axes[2]]
        a = jnp.moveaxis(a, axes[2], -1)
        out = matmul_with_transpose(w, wt, a.reshape(a.shape[0], -1))
        return out.reshape(out.shape[0], -1, size), 2
    return jax.vmap(_matmul_value, in_axes=tuple(axes))(w, wt, a), 0


_matmul_p = define_primitive(
    "matmul_with_transpose",
    _matmul_value,
    _matmul_aval,
    jvp=_matmul_jvp,
    transpose=_matmul_transpose,
    batch=_matmul_batch,
)
