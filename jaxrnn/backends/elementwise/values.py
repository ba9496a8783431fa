"""A cell's pointwise functions as the kernels in JAX's own terms run them, see `jaxrnn.backends.elementwise`.

A number of their graphs is an array there, whose axes are the kernel's own affair.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.backends.elementwise import arrays
from jaxrnn.backends.elementwise.cell import Pointwise, pointwise
from jaxrnn.backends.elementwise.graph import Node, NotElementwise, ordered
from jaxrnn.cells import Cell

# Exact enough for a gate, and known to every kernel.
_FUNCTIONS = arrays.FUNCTIONS | {"expm1": lambda a: lax.exp(a) - 1.0}


def unsupported_reason(cell: Cell) -> str | None:
    """Why a cell's functions can't be had unit by unit; None if they can."""
    if cell.parameters:
        return f"{type(cell).__name__} has parameters of its own"
    try:
        graph(cell)
    except NotElementwise as error:
        return f"{type(cell).__name__} can't run unit by unit: {error}"
    return None


def graph(cell: Cell) -> Pointwise:
    """The graphs of a cell in float32.

    Raises:
        NotElementwise: for a cell that needs more than these are.
    """
    return pointwise(cell, jnp.dtype("float32"))


def evaluate(
    outputs: Iterable[Node], leaf: Callable[[str, int], jax.Array], like: jax.Array
) -> list[jax.Array]:
    """The numbers of a graph as arrays, see `jaxrnn.backends.elementwise.arrays`."""
    return arrays.evaluate(outputs, leaf, like, functions=_FUNCTIONS)


@functools.cache
def leaves(cell: Cell, of: str = "backward") -> frozenset[tuple[str, int]]:
    """The leaves that the forward or backward graph of a cell asks for: (name, place).

    Example:
        >>> from jaxrnn import cells
        >>> sorted(leaves(cells.Elman()))
        [('ct', 0), ('new', 0)]
    """
    nodes = ordered(getattr(graph(cell), of))
    return frozenset(node.value for node in nodes if node.operation == "leaf")
