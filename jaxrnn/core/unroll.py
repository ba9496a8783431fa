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

A cell without gates (`jaxrnn.cells.GeneralCell`) puts its own step in the place of these equations,
in the same loop, and has JAX's derivative of it.

The loops are a `lax.scan` (`jaxrnn.backends.scan`), or one operation with a kernel (`jaxrnn.backends.primitives`).

Shapes: x (T, N, D), states (N, H) or (N, R), weights as `Weights` says. T time, N batch, D input
features, H hidden size, G gates, R size of h (P if projected, else H).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn.backends import fused_loops
from jaxrnn.backends import scan as loops
from jaxrnn.backends import select as backends
from jaxrnn.backends.base import Block, Keep, Plan
from jaxrnn.backends.blocks import known, scan_blocks
from jaxrnn.backends.platform import choices
from jaxrnn.backends.step import StepMasks, like, turned, zero_padding
from jaxrnn.cells import BaseCell, State, check
from jaxrnn.cells._check import check_step
from jaxrnn.cells.base import compute_dtype
from jaxrnn.cells.weights import Weights, infer_sizes, with_default_biases, zero_state

__all__ = ["Plan", "StepMasks", "Weights", "unroll"]


def unroll(
    cell: BaseCell,
    weights: Weights,
    x: jax.Array,
    state: State | None = None,
    *,
    reverse: bool = False,
    masks: StepMasks = StepMasks(),
    remat: bool = False,
    block: int | None = None,
    all_states: bool = False,
    backend: str = "auto",
    platform: str | None = None,
) -> tuple[Any, State]:
    """Run a cell over a sequence: the pure function under every layer.

    Args:
        cell: what one step is.
        weights: its parameters, all of one floating dtype, which is also the output's.
        x: (T, N, D), T at least 1.
        state: the initial states, h (N, R) first, each other one (N, H); None for zeros.
        reverse: read the sequence from its last step to its first.
        masks: resets and valid steps, see `StepMasks`; x at a step that is not valid reaches nothing.
        remat: trade arithmetic for memory in the derivative, see `Plan`.
        block: steps in a block; the default is chosen from the shapes.
        all_states: give out every state at each step.
        backend: who runs the loop, see `jaxrnn.backends.select`.
        platform: what that is chosen for; None for what is computed on here.

    Returns:
        The hidden state at each step (T, N, R), and the state after the last step consumed. With
        `all_states`, the first is the tuple of all states at each step, (T, N, R), (T, N, H), ...
        At a step that is not valid, it is what the row's state is then.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> from jaxrnn.core.unroll import Weights, unroll
        >>> weights = Weights(jnp.ones((4, 2)), jnp.ones((4, 4)))
        >>> output, (h_n,) = unroll(cells.Elman(), weights, jnp.ones((3, 1, 2)))
        >>> output.shape, h_n.shape
        ((3, 1, 4), (1, 4))

    Differs from PyTorch: derivatives of every order and mode; low precision (bfloat16, float16)
    rounds the states at each step as PyTorch does, but computes each step in float32.
    """
    output, states, last = outputs_and_states(
        cell,
        weights,
        x,
        state,
        reverse=reverse,
        masks=masks,
        remat=remat,
        block=block,
        all_states=all_states,
        backend=backend,
        platform=platform,
    )
    return output if states is None else states, last


def outputs_and_states(
    cell: BaseCell,
    weights: Weights,
    x: jax.Array,
    state: State | None,
    *,
    reverse: bool,
    masks: StepMasks,
    remat: bool,
    block: int | None = None,
    all_states: bool,
    backend: str,
    platform: str | None = None,
) -> tuple[jax.Array, State | None, State]:
    """`unroll`, with the output (T, N, F) and all states, or None, apart.

    They differ for a cell with an output of its own, see `jaxrnn.cells.GeneralCell`.
    """
    check(cell)
    sizes = infer_sizes(cell, weights, x.shape[2])
    check_step(cell, sizes)
    weights = with_default_biases(cell, weights, sizes)
    if state is None:
        state = zero_state(cell, sizes, x.shape[1], x.dtype)
    masked = weights.dropout_mask is not None or masks.zoneout is not None
    how: dict[str, Any] = dict(all_states=all_states, masks=masked, platform=platform)
    who = backends.choose(backend, cell, weights, x, **how).backend
    plan = Plan(cell, reverse, remat, block, all_states, who)
    if who != "kernel":  # which reads nothing there
        x = zero_padding(masks.valid_mask, x)
    if cell.gates:
        given, last = _unroll(plan, weights, x, tuple(state), masks)
    else:
        given, last = _scan(plan, weights, x, tuple(state), masks)
    return *plan.apart(given), last


# What a cell saved is kept as far as it is no burden: about the gates, up to so many bytes. A scan
# keeps the states in any case unless `remat` is set. From them a block gets its gates again in one
# product, which takes a tenth to a fifth longer and, for an LSTM, a third of the memory.
KEPT_BYTES = 256_000_000


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _unroll(
    plan: Plan, weights: Weights, x: jax.Array, state: State, masks: StepMasks
) -> tuple[State, State]:
    if plan.backend == "kernel":
        return fused_loops.forward(plan, weights, x, state, masks, Keep.NOTHING)[:2]
    return _scan(plan, weights, x, state, masks)


def _scan(
    plan: Plan, weights: Weights, x: jax.Array, state: State, masks: StepMasks
) -> tuple[State, State]:
    given, last, _, _ = loops.forward(plan, weights, x, turned(state), masks, Keep.NOTHING)
    return given, turned(last)


def _unroll_jvp(plan: Plan, primals: Any, tangents: Any) -> Any:
    weights, x, state, masks = primals
    dweights, dx, dstate, _ = tangents
    dweights = jax.tree.map(_nonzero, dweights)  # frozen weights cost nothing
    dx = _nonzero(dx)
    dtype = compute_dtype(x.dtype)
    dstate = tuple(
        jnp.zeros(s.shape, dtype) if _nonzero(d) is None else d.astype(dtype)
        for s, d in zip(state, dstate, strict=True)
    )
    fused = plan.backend == "kernel"
    gates = x.shape[0] * x.shape[1] * weights.weight_ih.shape[0]
    few = known(gates) and gates * x.dtype.itemsize <= KEPT_BYTES
    few = few and (fused or choices().keep_saved)
    keep = Keep.NOTHING if plan.remat else Keep.ALL if few else Keep.STATES
    # The loops have their states the one way or the other.
    loop, entering = (fused_loops, tuple) if fused else (loops, turned)
    given, final, kept, starts = loop.forward(plan, weights, x, entering(state), masks, keep)
    transposed = loops.transposes(weights)

    # Under `jax.checkpoint` reverse mode stores only the arguments of a block, and computes the
    # pointwise coefficients, several times the size of the gates, while they are in the cache.
    linear = jax.checkpoint(functools.partial(loop.linear_block, plan), prevent_cse=False)

    def block(dstate: State, steps: Any, start: State) -> Any:
        x, masks, hs, kept, dx = steps
        found = Block(x, start, masks, hs, kept)
        dstate, out = linear(weights, transposed, found, dweights, dx, dstate)
        return dstate, out, None

    length = loop.length_of_blocks(plan, x, keep)
    steps = (x, masks, given[0], kept, dx)
    dfinal, dgiven, _ = scan_blocks(
        block, entering(dstate), steps, starts, length=length, reverse=plan.reverse
    )
    return (given, entering(final)), (dgiven, entering(like(dfinal, final)))


_unroll.defjvp(_unroll_jvp, symbolic_zeros=True)


def _nonzero(tangent: Any) -> Any:
    return None if isinstance(tangent, SymbolicZero) else tangent
