"""The pointwise functions of a cell as graphs: what its kernels are written from."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.backends.elementwise.derivative import arguments, rule
from jaxrnn.backends.elementwise.graph import UNITS, Node, NotElementwise, trace
from jaxrnn.cells import Cell


class Pointwise(NamedTuple):
    """The pointwise functions of a cell.

    Attributes:
        forward: the new states, then each number that is saved; leaves "z", "old" and "own".
        saved: how many numbers a unit has of each array that is saved.
        own: how many it has of the cell's own parameters, sorted by name.
        backward: the derivative by the gate inputs (those of x, then those of h, where the cell
            takes them apart), by the old states, and by the cell's own parameters; leaves "saved",
            "old", "new", "own" and "ct".
    """

    forward: tuple[Node, ...]
    saved: tuple[int, ...]
    own: int
    backward: tuple[Node, ...]


@functools.lru_cache(maxsize=256)
def pointwise(cell: Cell, dtype: Any) -> Pointwise:
    """The graphs of a cell.

    Raises:
        NotElementwise: for a cell that needs more than these are.
    """
    derivative = rule(cell)
    z, state, own = arguments(cell, dtype)
    forward = trace(
        lambda z, old, own: derivative.save(z, old, *own), dict(z=z, old=state, own=own)
    )
    new, saved = jax.eval_shape(derivative.save, z, state, *own)
    leaves = jax.tree.leaves(saved)
    if any(s.shape[1:] != (1,) or s.shape[0] % UNITS or s.dtype != dtype for s in leaves):
        raise NotElementwise("what is saved is not so many numbers of each unit")

    def backward(saved: Any, old: Any, new: Any, own: Any, ct: Any) -> Any:
        coefficients = derivative.linearize(saved, old, new, *own)
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (z, state, own))

        def tangent(dz: Any, dold: Any, down: Any) -> Any:
            return derivative.tangent(coefficients, dz, dold, *own, *down)

        return jax.vjp(tangent, *zero)[1](ct)

    inputs = dict(saved=saved, old=state, new=new, own=own, ct=new)
    count = sum(a.shape[0] // UNITS for a in jax.tree.leaves(own))
    counts = tuple(s.shape[0] // UNITS for s in leaves)
    return Pointwise(forward, counts, count, trace(backward, inputs))
