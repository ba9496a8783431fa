"""The numbers of a graph as arrays of any layout: what a kernel in JAX's own terms runs.

Each number is an array, whose axes are the caller's own affair; constants become arrays as well,
which a kernel may make, where those that a cell makes of its own it may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends.elementwise.graph import FUNCTIONS, Node


def evaluate(
    outputs: Iterable[Node],
    leaf: Callable[[str, int], jax.Array],
    like: Any,
    known: Mapping[Any, jax.Array] | None = None,
    functions: Mapping[str, Callable[..., Any]] = FUNCTIONS,
) -> list[jax.Array]:
    """The numbers of a graph as arrays.

    Args:
        outputs: which.
        leaf: the array of a leaf, by its name and place.
        like: an array of the shape and dtype of all, or its kind.
        known: those that are there already, by their form.
        functions: what computes them.
    """
    done: dict[Any, Any] = dict(known or {})

    def value(node: Node) -> Any:
        if node.form not in done:
            if node.operation == "constant":
                done[node.form] = jnp.full(like.shape, node.value, like.dtype)
            elif node.operation == "leaf":
                done[node.form] = leaf(*node.value)
            else:
                done[node.form] = functions[node.operation](*map(value, node.inputs))
        return done[node.form]

    return [value(node) for node in outputs]
