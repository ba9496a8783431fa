"""A stack of recurrent layers as a pure function.

Axis letters: N batch, T time, D input features, H hidden size, P projection, R = P or H,
L layers, F directions, G gates.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends import select
from jaxrnn.backends.base import UnrollOptions
from jaxrnn.backends.step import zero_padding
from jaxrnn.cells import BaseCell, check
from jaxrnn.cells.weights import Weights
from jaxrnn.core import state as states
from jaxrnn.core.dropout import Regularization, drop_between_layers
from jaxrnn.core.masks import direction_masks, select_nonempty
from jaxrnn.core.params import init, param_shapes
from jaxrnn.core.skips import HighwayGate, apply_skip
from jaxrnn.core.unroll import unroll_with

__all__ = ["StackOptions", "init", "param_shapes", "run"]


@dataclass(frozen=True)
class StackOptions:
    """Static options of a stack of recurrent layers.

    Attributes:
        cell: the cell of every layer.
        bidirectional: if True, every layer has a reverse direction; their outputs are concatenated.
        layout: the axes of the input: "TND", "NTD" or "TD" (unbatched).
        dropout: the probability of zeroing an output of any layer but the last; 0 for evaluation.
        remat: if True, save memory for the backward pass by recomputation.
        dtype: the dtype to compute in; None for that of the input.
        return_all_states: if True, return the states after every step, not the final ones.
        backend: the backend of the loops, see `jaxrnn.backends.select`.
        platform: the platform to choose the backend for, "cpu", "cuda", "rocm" or "tpu"; None for
            the current one.
        regularization: the regularisation that applies, see `jaxrnn.core.dropout`; None for none.
        skip: skip connections, see `jaxrnn.core.skips`: None, "residual" or "highway".
    """

    cell: BaseCell
    bidirectional: bool = False
    layout: str = "TND"
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = None
    return_all_states: bool = False
    backend: str = "auto"
    platform: str | None = None
    regularization: Regularization | None = None
    skip: str | None = None

    @property
    def directions(self) -> int:
        """F."""
        return 2 if self.bidirectional else 1


@functools.partial(jax.jit, static_argnums=0)
def run(
    options: StackOptions,
    weights: Sequence[Weights],
    x: jax.Array,
    state: tuple[Any, ...] | None = None,
    key: jax.Array | None = None,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    gates: Sequence[HighwayGate | None] | None = None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Run a stack of layers over a batch of sequences.

    Args:
        options: static options of the stack.
        weights: F*L weights, layer-major, direction-minor.
        x: the input, with the axes of `options.layout`.
        state: the initial state, h (F*L, N, R) first, each other one (F*L, N, H), without N if the
            input is unbatched; see `jaxrnn.core.state`; None for zeros.
        key: the PRNG key of dropout and regularisation, if any is random.
        lengths: integers (N,), or () unbatched. Steps at and past a length are padding, whose
            content reaches neither values nor gradients. The output there is zero, the final state
            is that after the last valid step, and the reverse direction starts there. Lengths below
            0 count as 0, above T as T.
        resets: bool, with the axes of `options.layout` without D. True at t separates steps t - 1
            and t in every layer and direction: the forward direction starts from zeros at t, the
            reverse direction at t - 1.
        gates: highway gates, one for each layer, None for a layer without one.

    Returns:
        The output, with the axes of the input and F*R features, and the final state, shaped as
        `state`. With `options.return_all_states`, the states after each step, with a leading axis
        T, zero at padding.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> from jaxrnn.core import stack
        >>> weights = stack.init(jax.random.key(0), cells.GRU(), 3, 4, num_layers=2)
        >>> y, (h_n,) = stack.run(stack.StackOptions(cells.GRU()), weights, jnp.ones((7, 2, 3)))
        >>> y.shape, h_n.shape
        ((7, 2, 4), (2, 2, 4))
    """
    if options.dtype is not None:
        weights, x = jax.tree.map(lambda a: a.astype(options.dtype), (weights, x))
        state = state and states.cast_states(state, options.cell.state_dtypes(options.dtype))
        gates = jax.tree.map(lambda a: a.astype(options.dtype), gates)
    if options.layout == "NTD":
        x = x.swapaxes(0, 1)
        resets = None if resets is None else resets.T
    elif options.layout == "TD":
        x, resets = x[:, None], None if resets is None else resets[:, None]
        lengths = None if lengths is None else lengths[None]
        state = jax.tree.map(lambda s: s[:, None], state)

    masks = direction_masks(x.shape[0], lengths, resets)
    valid = masks[0].valid_mask
    check(options.cell)
    choices = select.explain(options, weights, x, all_backends=False).choices
    # Sequences of length 0 return their initial state unchanged; it reaches no gradient.
    initial = state
    state = jax.tree.map(lambda s: select_nonempty(valid, s, 0), state)
    after: list[tuple[jax.Array, ...]] = []
    for first in range(0, len(weights), options.directions):
        layer_input = x
        if first and options.dropout > 0:
            x = drop_between_layers(key, first, x, options.dropout)
        if options.regularization is not None:
            x = options.regularization.drop_input(key, first, x)
        outputs = []
        for index in range(first, first + options.directions):
            before = state and states.state_of(state, index, options.directions)
            layer_weights, step_masks = weights[index], masks[index - first]
            if options.regularization is not None:
                layer_weights, step_masks = options.regularization.mask_loop(
                    options.cell, key, index, layer_weights, x, step_masks
                )
            unroll_options = UnrollOptions(
                options.cell,
                reverse=index > first,
                remat=options.remat,
                return_all_states=options.return_all_states,
                backend=choices[index].backend,
                platform=choices[index].platform,
            )
            output, all_states, final = unroll_with(
                unroll_options, layer_weights, x, before, step_masks
            )
            outputs.append(output)
            if all_states is not None:
                final = tuple(zero_padding(valid, a) for a in all_states)
            after.append(final)
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
        if options.skip is not None and layer_input.shape == x.shape:
            gate = None if gates is None else gates[first // options.directions]
            x = apply_skip(
                options.skip, gate, zero_padding(valid, layer_input), zero_padding(valid, x)
            )
    x = zero_padding(valid, x)
    layer_axis = 1 if options.return_all_states else 0  # after the axis of time
    final = states.stack_states(after, options.directions, layer_axis)
    if initial is not None and not options.return_all_states:
        final = jax.tree.map(functools.partial(select_nonempty, valid), final, initial)
    if options.layout == "NTD":
        x = x.swapaxes(0, 1)
    elif options.layout == "TD":
        x, final = x[:, 0], jax.tree.map(lambda s: jnp.squeeze(s, -2), final)
    return x, final
