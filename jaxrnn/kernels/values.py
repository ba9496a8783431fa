"""A cell's pointwise functions on arrays of any layout: what a kernel in JAX's own terms runs.

The graphs of `jaxrnn.native.elementwise` say what is computed for one hidden unit. Here each of
their numbers is an array, whose axes are the kernel's own affair; constants stay scalars, which a
kernel may hold, where those that a cell makes of its own are arrays, which it may not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.cells import Cell
from jaxrnn.native.elementwise import Node, NotElementwise, Pointwise, pointwise

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lax.add,
    "add_any": lax.add,
    "sub": lax.sub,
    "mul": lax.mul,
    "div": lax.div,
    "neg": lax.neg,
    "exp": lax.exp,
    "expm1": lambda a: lax.exp(a) - 1.0,  # exact enough for a gate, and known to every kernel
    "tanh": lax.tanh,
    "logistic": lax.logistic,
    "abs": lax.abs,
    "sqrt": lax.sqrt,
    "max": lax.max,
    "min": lax.min,
    "square": lambda a: a * a,
    "gt": lax.gt,
    "ge": lax.ge,
    "lt": lax.lt,
    "le": lax.le,
    "eq": lax.eq,
    "ne": lax.ne,
    "select": lax.select,
}


def why_not(cell: Cell) -> str | None:
    """Why a cell's functions can't be had unit by unit; None if they can."""
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
    """The numbers of a graph as arrays.

    Args:
        outputs: which.
        leaf: the array of a leaf, by its name and place.
        like: an array of the shape and dtype of all.
    """
    done: dict[Any, Any] = {}

    def value(node: Node) -> Any:
        if node.form not in done:
            if node.operation == "constant":
                done[node.form] = jnp.full(like.shape, node.value, like.dtype)
            elif node.operation == "leaf":
                done[node.form] = leaf(*node.value)
            else:
                done[node.form] = _FUNCTIONS[node.operation](*map(value, node.inputs))
        return done[node.form]

    return [value(node) for node in outputs]


@functools.cache
def leaves(cell: Cell, of: str = "backward") -> frozenset[tuple[str, int]]:
    """The leaves that the forward or backward graph of a cell asks for: (name, place).

    Example:
        >>> from jaxrnn import cells
        >>> sorted(leaves(cells.Elman()))
        [('ct', 0), ('new', 0)]
    """
    found: set[tuple[str, int]] = set()
    seen: set[Any] = set()

    def look(node: Node) -> None:
        if node.form in seen:
            return
        seen.add(node.form)
        if node.operation == "leaf":
            found.add(node.value)
        for inner in node.inputs:
            look(inner)

    for node in getattr(graph(cell), of):
        look(node)
    return frozenset(found)
