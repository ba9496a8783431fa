"""Forward and backward graphs of a cell, as the kernels lower them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.backends.elementwise import trace
from jaxrnn.backends.elementwise.residuals import argument_shapes, derivative_rule
from jaxrnn.backends.elementwise.trace import UNITS, Node, NotElementwise, topological_order
from jaxrnn.cells import Cell

# Pallas lowers no expm1; the difference is accurate enough for a gate.
_OPERATIONS = trace.OPERATIONS | {"expm1": lambda a: lax.exp(a) - 1.0}


class CellGraphs(NamedTuple):
    """The graphs of a cell.

    Attributes:
        forward: the new states, then the residuals; leaves "z", "old" and "params".
        residual_counts: values per hidden unit of each residual array.
        param_count: values per hidden unit of the cell parameters, which are sorted by name.
        backward: the cotangents of z (zx, then zh, for a cell with `split`), of the old states and
            of the parameters; leaves "residuals", "old", "new", "params" and "ct".
    """

    forward: tuple[Node, ...]
    residual_counts: tuple[int, ...]
    param_count: int
    backward: tuple[Node, ...]


@functools.lru_cache(maxsize=256)
def cell_graphs(cell: Cell, dtype: Any = jnp.dtype("float32")) -> CellGraphs:
    """Trace the forward and backward graphs of a cell.

    Raises:
        NotElementwise: for a cell that is not elementwise.
    """
    rule = derivative_rule(cell)
    z, state, params = argument_shapes(cell, dtype)
    forward = trace.trace(
        lambda z, old, params: rule.save(z, old, *params), dict(z=z, old=state, params=params)
    )
    new, residuals = jax.eval_shape(rule.save, z, state, *params)
    leaves = jax.tree.leaves(residuals)
    if any(s.shape[1:] != (1,) or s.shape[0] % UNITS or s.dtype != dtype for s in leaves):
        raise NotElementwise("its residuals are not arrays of a multiple of H features")

    def _backward(residuals: Any, old: Any, new: Any, params: Any, ct: Any) -> Any:
        coefficients = rule.linearize(residuals, old, new, *params)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (z, state, params))

        def _tangent(dz: Any, dold: Any, dparams: Any) -> Any:
            return rule.tangent(coefficients, dz, dold, *params, *dparams)

        return jax.vjp(_tangent, *zeros)[1](ct)

    inputs = dict(residuals=residuals, old=state, new=new, params=params, ct=new)
    param_count = sum(a.shape[0] // UNITS for a in jax.tree.leaves(params))
    counts = tuple(s.shape[0] // UNITS for s in leaves)
    return CellGraphs(forward, counts, param_count, trace.trace(_backward, inputs))


def unsupported_reason(
    cell: Cell, dtype: Any = jnp.dtype("float32"), *, parameters: bool = False
) -> str | None:
    """Return the reason why a kernel cannot run a cell, or None.

    If `parameters` is True, the kernel supports cell parameters.
    """
    if cell.parameters and not parameters:
        return f"{type(cell).__name__} has cell parameters"
    try:
        cell_graphs(cell, dtype)
    except NotElementwise as error:
        return f"{type(cell).__name__} is not elementwise: {error}"
    return None


def evaluate(
    outputs: Iterable[Node], leaf: Callable[[str, int], jax.Array], like: jax.Array
) -> list[jax.Array]:
    """Compute nodes within a Pallas kernel; see `trace.evaluate`."""
    return trace.evaluate(outputs, leaf, like, operations=_OPERATIONS)


@functools.cache
def graph_leaves(cell: Cell, graph: str = "backward") -> frozenset[tuple[str, int]]:
    """Return the leaves that the "forward" or "backward" graph of a cell reads.

    Example:
        >>> from jaxrnn import cells
        >>> sorted(graph_leaves(cells.Elman()))
        [('ct', 0), ('new', 0)]
    """
    nodes = topological_order(getattr(cell_graphs(cell), graph))
    return frozenset(node.value for node in nodes if node.operation == "leaf")
