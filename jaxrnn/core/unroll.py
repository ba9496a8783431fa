r"""The recurrence: a cell unrolled over time, and its derivative rule.

For a cell with gates, step t computes

.. math::

    \begin{aligned}
    z^x_t &= W_{ih} x_t + b_{ih}     && \text{one product for a block of steps, or step by step} \\
    z^h_t &= W_{hh} h_{t-1} + b_{hh} && \text{the only sequential product} \\
    m_t, c_t, \dots &= \mathrm{step}(z^x_t, z^h_t, s_{t-1}) && \text{elementwise} \\
    h_t &= W_{hr} m_t                && \text{or } m_t \text{ without a projection}
    \end{aligned}

`jaxrnn.reference` is the definition; this module computes the same faster. It has one derivative
rule, in forward mode: the products with the tangents of weights and input are computed outside the
loop, one for each block of steps, and a linear recurrence remains. JAX transposes it into reverse
mode, so the gradient of the weights is one product a block too, and `jax.jvp`, higher derivatives,
`jax.vmap` and rematerialisation work.

A general cell (`jaxrnn.cells.GeneralCell`) replaces these equations by its step, in the same loop,
and is differentiated by JAX.

Shapes: x (T, N, D), states (N, H) or (N, R). Axis letters: T time, N batch, D input features, H
hidden size, R size of h (P if projected, else H).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn.backends import primitives, scan, select
from jaxrnn.backends.base import ResidualPolicy, Tangents, UnrollOptions
from jaxrnn.backends.step import StepMasks, is_static, zero_padding
from jaxrnn.cells import BaseCell, State, check
from jaxrnn.cells._check import check_step
from jaxrnn.cells.base import compute_dtype
from jaxrnn.cells.weights import Weights, infer_sizes, with_default_biases, zero_state

__all__ = ["StepMasks", "UnrollOptions", "Weights", "unroll"]


def unroll(
    cell: BaseCell,
    weights: Weights,
    x: jax.Array,
    state: State | None = None,
    *,
    reverse: bool = False,
    masks: StepMasks = StepMasks(),
    remat: bool = False,
    block_length: int | None = None,
    return_all_states: bool = False,
    backend: str = "auto",
    platform: str | None = None,
    residual_bytes: int = UnrollOptions.residual_bytes,
) -> tuple[Any, State]:
    """Unroll a cell over time: the pure function under every layer.

    Args:
        cell: the cell.
        weights: its parameters, all of one floating dtype, which is also the output's.
        x: the input (T, N, D), T at least 1.
        state: the initial state, h (N, R) first, each other one (N, H); None for zeros.
        masks: masks for resets, padding and zoneout, see `StepMasks`. Padding of x, NaN included,
            reaches neither values nor gradients.
        reverse, remat, block_length, return_all_states, residual_bytes: see `UnrollOptions`.
        backend, platform: see `jaxrnn.backends.select`; the platform defaults to the current one.

    Returns:
        The hidden state at each step (T, N, R) and the final state. With `return_all_states`, the
        first is the tuple of all states at each step, (T, N, R), (T, N, H), ... At padding the
        state is the one before it.

    Raises:
        TypeError: if `cell` is not a cell.
        ValueError: if the weights have other shapes, or the cell does not support the backend.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> from jaxrnn.core.unroll import Weights, unroll
        >>> weights = Weights(jnp.ones((4, 2)), jnp.ones((4, 4)))
        >>> output, (h_n,) = unroll(cells.Elman(), weights, jnp.ones((3, 1, 2)))
        >>> output.shape, h_n.shape
        ((3, 1, 4), (1, 4))

    Differs from PyTorch: derivatives of every order and mode. In low precision (bfloat16, float16)
    states are rounded at each step as in PyTorch, but each step computes in float32.
    """
    check(cell)
    masked_loop = weights.dropout_mask is not None or masks.zoneout is not None
    choice = select.choose(
        *(backend, cell, weights, x),
        return_all_states=return_all_states,
        masked_loop=masked_loop,
        platform=platform,
    )
    options = UnrollOptions(
        *(cell, reverse, remat, block_length, return_all_states),
        *(choice.backend, choice.platform, residual_bytes),
    )
    output, states, final = unroll_with(options, weights, x, state, masks)
    return output if states is None else states, final


def unroll_with(
    options: UnrollOptions, weights: Weights, x: jax.Array, state: State | None, masks: StepMasks
) -> tuple[jax.Array, State | None, State]:
    """Unroll a cell with a backend that is already selected.

    Returns:
        The output (T, N, F), all states at each step or None, and the final state.
    """
    cell = options.cell
    sizes = infer_sizes(cell, weights, x.shape[2])
    check_step(cell, sizes)
    weights = with_default_biases(cell, weights, sizes)
    if state is None:
        state = zero_state(cell, sizes, x.shape[1], x.dtype)
    if options.backend != "kernel":  # the primitives zero padding themselves, if at all
        x = zero_padding(masks.valid_mask, x)
    run = _unroll if cell.gates else _run_forward
    outputs, final = run(options, weights, x, tuple(state), masks)
    return *options.split_outputs(outputs), final


def _run_forward(
    options: UnrollOptions, weights: Weights, x: jax.Array, state: State, masks: StepMasks
) -> tuple[State, State]:
    result = _loop(options).forward(options, weights, x, state, masks, ResidualPolicy.NOTHING)
    return result.outputs, result.final_state


_unroll = jax.custom_jvp(_run_forward, nondiff_argnums=(0,))


@functools.partial(_unroll.defjvp, symbolic_zeros=True)
def _unroll_jvp(options: UnrollOptions, primals: Any, tangents: Any) -> Any:
    weights, x, state, masks = primals
    dweights, dx, dstate, _ = tangents
    dweights = jax.tree.map(_none_if_zero, dweights)  # frozen weights cost nothing
    dx = _none_if_zero(dx)
    dtype = compute_dtype(x.dtype)
    dstate = tuple(
        jnp.zeros(s.shape, dtype) if _none_if_zero(d) is None else d.astype(dtype)
        for s, d in zip(state, dstate, strict=True)
    )
    loop = _loop(options)
    policy = _residual_policy(options, weights, x)
    result = loop.forward(options, weights, x, state, masks, policy)
    doutputs, dfinal = loop.linear(
        options, weights, x, masks, result, Tangents(dweights, dx, dstate)
    )
    return (result.outputs, result.final_state), (doutputs, dfinal)


def _loop(options: UnrollOptions) -> Any:
    """Return the module with the loops of the backend, see `jaxrnn.backends.base`."""
    return primitives if options.backend == "kernel" else scan


def _residual_policy(options: UnrollOptions, weights: Weights, x: jax.Array) -> ResidualPolicy:
    """Choose the residuals to save. The states are saved unless `remat` is set."""
    if options.remat:
        return ResidualPolicy.NOTHING
    size = x.shape[0] * x.shape[1] * weights.weight_ih.shape[0]
    fits = is_static(size) and size * x.dtype.itemsize <= options.residual_bytes
    if fits and (options.backend == "kernel" or options.tuning.store_cell_residuals):
        return ResidualPolicy.ALL
    return ResidualPolicy.STATES


def _none_if_zero(tangent: Any) -> Any:
    return None if isinstance(tangent, SymbolicZero) else tangent
