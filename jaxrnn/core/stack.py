"""Layers and directions around the one recurrence: the pure function of a whole stack.

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

from jaxrnn.backends import select as backends
from jaxrnn.backends.step import zero_padding
from jaxrnn.cells import BaseCell, check
from jaxrnn.cells.weights import Weights
from jaxrnn.core import masks as ragged
from jaxrnn.core import skips
from jaxrnn.core import state as states_of
from jaxrnn.core.dropout import Regularisers
from jaxrnn.core.params import init, shapes
from jaxrnn.core.unroll import outputs_and_states

__all__ = ["StackOptions", "init", "run", "shapes"]


@dataclass(frozen=True)
class StackOptions:
    """The static description of a stack of recurrent layers.

    Attributes:
        cell: the cell of every layer.
        bidirectional: a second direction in every layer, its output beside the first's.
        layout: the axes of the input: "TND", "NTD" or "TD" (no batch).
        dropout: the probability of an output of any layer but the last being zeroed; 0 outside
            of training.
        remat: less memory for the derivative, see `jaxrnn.core.unroll.Plan`.
        dtype: what to compute in; None takes the input's.
        all_states: give out the states after every step instead of those after the last.
        backend: who runs the loops, see `jaxrnn.backends.select`.
        platform: what the backend is chosen for, "cpu", "cuda", "rocm" or "tpu"; None for what is
            computed on here.
        regularisers: those that act, see `jaxrnn.core.dropout`; None for none.
        skip: what leads around each layer, see `jaxrnn.core.skips`: None, "residual" or "highway".
    """

    cell: BaseCell
    bidirectional: bool = False
    layout: str = "TND"
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = None
    all_states: bool = False
    backend: str = "auto"
    platform: str | None = None
    regularisers: Regularisers | None = None
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
    states: tuple[Any, ...] | None = None,
    key: jax.Array | None = None,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    gates: Sequence[skips.Gate | None] | None = None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Run a stack of layers over a batch of sequences.

    Args:
        options: static options of the stack.
        weights: F*L of them, layer by layer, the forward direction of a layer first.
        x: the input, its axes as `options.layout` says.
        states: the initial states, h (F*L, N, R) first, each other (F*L, N, H), without N if the
            input has no batch; where they differ from layer to layer, as `jaxrnn.core.state` says;
            None for zeros.
        key: the PRNG key of dropout and of the regularisers, if there are any.
        lengths: integers (N,), or () without a batch: the steps of each row, those past it being
            padding, whose content reaches nothing. The output there is zero, and the last state is
            that after the row's last step; the reverse direction begins there. Below 0 is taken as
            0, beyond T as T.
        resets: bool, axes as `options.layout` without D: True at t cuts the row before step t, in
            every layer and both directions, so that its pieces are independent. The forward
            direction begins each piece but the first from zeros, the reverse direction each but
            the last.
        gates: of a highway, one for each layer, None for one that has no skip.

    Returns:
        The output, axes as the input's with F*R features, and the last states, shaped as `states`.
        With `options.all_states` these are the states after each step, with a leading axis T, zero
        past a row's length.

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
        dtypes = options.cell.state_dtypes(options.dtype)
        states = states and states_of.cast(states, dtypes)
        gates = jax.tree.map(lambda a: a.astype(options.dtype), gates)
    if options.layout == "NTD":
        x = x.swapaxes(0, 1)
        resets = None if resets is None else resets.T
    elif options.layout == "TD":
        x, resets = x[:, None], None if resets is None else resets[:, None]
        lengths = None if lengths is None else lengths[None]
        states = jax.tree.map(lambda s: s[:, None], states)
    masks = ragged.direction_masks(x.shape[0], lengths, resets)
    valid = masks[0].valid_mask
    check(options.cell)
    chosen = backends.explain(options, weights, x, resets=resets is not None, full=False).choices

    # What a row without steps begins with, it ends with; it reaches nothing else.
    begun = states
    states = jax.tree.map(lambda s: ragged.select_nonempty(valid, s, 0), states)
    last, regularisers = [], options.regularisers
    for first in range(0, len(weights), options.directions):
        below = x
        if first and options.dropout > 0:
            x = _dropout(key, first, x, options.dropout)
        if regularisers is not None:
            x = regularisers.on_input(key, first, x)
        outputs = []
        for index in range(first, first + options.directions):
            start = None if states is None else states_of.at(states, index, options.directions)
            own, around = weights[index], masks[index - first]
            if regularisers is not None:
                own, around = regularisers.on_loop(options.cell, key, index, own, x, around)
            output, every, final = outputs_and_states(
                options.cell,
                own,
                x,
                start,
                reverse=index > first,
                masks=around,
                remat=options.remat,
                all_states=options.all_states,
                backend=chosen[index].backend,
                platform=options.platform,
            )
            outputs.append(output)
            last.append(final if every is None else tuple(zero_padding(valid, s) for s in every))
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
        if options.skip is not None and below.shape == x.shape:
            gate = None if gates is None else gates[first // options.directions]
            # Nothing of what is no step of a row may meet the gate, nor its derivative.
            below, x = zero_padding(valid, below), zero_padding(valid, x)
            x = skips.around(options.skip, gate, below, x)
    x = zero_padding(valid, x)

    axis = 1 if options.all_states else 0  # of the layers and directions, after that of time
    ends = states_of.stacked(last, options.directions, axis)
    if begun is not None and not options.all_states:
        ends = jax.tree.map(functools.partial(ragged.select_nonempty, valid), ends, begun)
    return _laid_out(options, x, ends)


def _laid_out(
    options: StackOptions, x: jax.Array, states: tuple[Any, ...]
) -> tuple[jax.Array, tuple[Any, ...]]:
    """The output (T, N, F*R) and the states (..., N, R) with the axes of the input."""
    if options.layout == "NTD":
        x = x.swapaxes(0, 1)
    elif options.layout == "TD":
        x, states = x[:, 0], jax.tree.map(lambda s: jnp.squeeze(s, -2), states)
    return x, states


def _dropout(key: jax.Array | None, index: int, x: jax.Array, p: float) -> jax.Array:
    """Zero each value with probability p, scale the others by 1 / (1 - p)."""
    if p >= 1.0:
        return jnp.zeros_like(x)
    if key is None:
        raise ValueError(f"dropout={p} needs a key")
    keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1.0 - p, x.shape)
    return jnp.where(keep, x / (1.0 - p), jnp.zeros_like(x))
