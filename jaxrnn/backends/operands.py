"""The operands of the operations of `jaxrnn.backends.primitives`: what is where in their flat lists of arrays.

.. code-block:: text

    forward     x, W_ih, W_hh, b_ih, b_hh, [own], first states, [flags]
    linear      [dx], [dW_ih], [dW_hh], [biases], [own], dstate      and then, not linear in them:
                x, W_ih, W_hh, [own], first states, states after each step, saved, [flags]
    backward    cotangents of the results of `linear`, and the same again

What is in brackets is there or not: `own` is one vector of the parameters that a cell has declared,
and the masks are one array of flags.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends.elementwise.residuals import derivative_rule, param_counts
from jaxrnn.backends.step import StepMasks
from jaxrnn.cells import Cell


def own_vector(cell: Cell, own: dict[str, jax.Array] | None) -> tuple[jax.Array, ...]:
    """A cell's own parameters as one vector, sorted by name; () for a cell without."""
    return (jnp.concatenate([own[n] for n in param_counts(cell)]),) if own else ()


def own_of(cell: Cell, vector: tuple[jax.Array, ...]) -> dict[str, jax.Array] | None:
    """The other way round."""
    if not vector:
        return None
    counts = param_counts(cell)
    hidden, place, own = len(vector[0]) // sum(counts.values()), 0, {}
    for name, count in counts.items():
        own[name] = vector[0][place : place + count * hidden]
        place += count * hidden
    return own


def flags_of(masks: StepMasks) -> tuple[jax.Array, ...]:
    """The masks as one array uint8 (T, N), 1 for a reset, and 2 for a step of the row's own.

    Nothing where there are none; zoneout is no operation's business.
    """
    resets, valid = masks.reset_mask, masks.valid_mask
    if resets is not None and valid is not None:
        resets = resets & valid  # a reset at a step that is not the row's own changes nothing
    two = jnp.uint8(2)
    if resets is None:
        return () if valid is None else (valid.astype(jnp.uint8) * two,)
    return (resets.astype(jnp.uint8) + (two if valid is None else valid.astype(jnp.uint8) * two),)


def masks_of(flags: tuple[jax.Array, ...]) -> StepMasks:
    """The other way round."""
    if not flags:
        return StepMasks()
    return StepMasks((flags[0] & 1) != 0, (flags[0] & 2) != 0)


def split(operands: Any, *counts: int) -> Any:
    """The operands in pieces of so many; the rest is the last piece."""
    pieces = []
    for count in counts:
        pieces.append(tuple(operands[:count]))
        operands = operands[count:]
    return [*pieces, tuple(operands)]


Requested = tuple[bool, ...]
"""By what the derivatives are: x, W_ih, W_hh, the biases, the cell's own parameters, of a cell that
has some; those by the states always are."""


def linear_counts(cell: Cell, requested: Requested) -> list[int]:
    """How many arrays the linear operation is linear in: dx, dW_ih, dW_hh, biases, own, states."""
    *some, bias = requested[:4]
    return [*map(int, some), bias * (1 + cell.split), int(any(requested[4:])), len(cell.states)]


def state_counts(cell: Cell) -> list[int]:
    """How many arrays the cell's own parameters and the states are."""
    return [int(bool(cell.parameters)), len(cell.states)]


def residual_counts(cell: Cell) -> list[int]:
    """And how many it has beside them: x, W_ih and W_hh, own, states before and after, saved."""
    return [3, *state_counts(cell), len(cell.states), len(saved_kinds(cell))]


@functools.lru_cache(maxsize=256)
def saved_tree(cell: Cell) -> Any:
    """What a cell saves, as arrays of one unit and one row."""
    array = lambda count: jax.ShapeDtypeStruct((count, 1), jnp.float32)  # noqa: E731
    gates = array(len(cell.gates))
    state = (array(1),) * len(cell.states)
    own = ({name: array(count) for name, count in param_counts(cell).items()},)
    own = own if cell.parameters else ()
    return jax.eval_shape(
        derivative_rule(cell).save, (gates, gates) if cell.split else gates, state, *own
    )[1]


def saved_kinds(cell: Cell) -> list[Any]:
    """The same, array by array."""
    return jax.tree.leaves(saved_tree(cell))
