r"""Derivative rules of cell steps, with residuals chosen by min-cut partitioning.

A derivative rule splits the derivative of a step in three functions, see `jaxrnn.cells.Cell`:
`save` runs in the forward loop and returns the residuals, `linearize` turns the residuals of many
steps into coefficients, `tangent` is linear and runs in the loop of the derivative. A cell may
define its own. For other elementwise cells the rule follows from the graph of the step:

.. math::
    \dot s' = \sum_k c_k \, \dot z_{j(k)} \quad\text{or}\quad c_k \, \dot s_{j(k)}

The states before and after each step are stored in any case, so they are free residuals. Storing
any other intermediate costs a memory write and a read; recomputing it costs its arithmetic, and
tanh or exp cost nearly as much as the memory traffic. The cheapest set of residuals from which all
coefficients :math:`c_k` follow is a minimum cut (L. R. Ford, D. R. Fulkerson, 1956) between the
arguments of the step and the coefficients, as in AOTAutograd. An LSTM stores its four activated
gates; a GRU its three gates and the operand of its reset gate, instead of six pre-activations.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.backends.elementwise.trace import (
    UNITS,
    Node,
    NotElementwise,
    evaluate,
    topological_order,
    trace,
)
from jaxrnn.cells import Cell, Sizes, State

# Costs of the min-cut: storing an array, recomputing an operation, and the expensive operations.
_STORE, _RECOMPUTE = 64, 1
_EXPENSIVE = {"tanh": 48, "logistic": 48, "exp": 48, "expm1": 48, "div": 8, "sqrt": 8}
_INFINITE = 1 << 20

_CONDITIONS = ("gt", "ge", "lt", "le", "eq", "ne")
_TANGENTS = ("dz", "dold", "dparams")


class DerivativeRule(NamedTuple):
    """The three functions of a step's derivative; see `jaxrnn.cells.Cell` for their arguments."""

    save: Callable[..., Any]
    linearize: Callable[..., Any]
    tangent: Callable[..., Any]


@functools.lru_cache(maxsize=256)
def derivative_rule(cell: Cell) -> DerivativeRule:
    """Return the rule that a cell defines, or else the one from the graph of its step.

    A cell that is not elementwise has the rule of its base class, which is `jax.jvp` of the step.
    """
    rule: Any = cell
    names = DerivativeRule._fields
    if all(getattr(type(cell), name) is getattr(Cell, name) for name in names):
        with contextlib.suppress(NotElementwise):
            _partition(cell, jnp.dtype("float32"))
            rule = _GraphRule(cell)
    return DerivativeRule(rule.save, rule.linearize, rule.tangent)


def argument_shapes(cell: Cell, dtype: Any) -> tuple[Any, Any, Any]:
    """Return the shapes of z, the states and the parameters of a step with `UNITS` units.

    Raises:
        NotElementwise: for parameters that are not elementwise.
    """
    array = lambda count: jax.ShapeDtypeStruct((count * UNITS, 1), dtype)  # noqa: E731
    gates = array(len(cell.gates))
    params = {name: array(count) for name, count in param_counts(cell).items()}
    state = (array(1),) * len(cell.states)
    return (gates, gates) if cell.split else gates, state, (params,) if params else ()


def param_counts(cell: Cell) -> dict[str, int]:
    """Return the values per hidden unit of each cell parameter, sorted by name.

    Raises:
        NotElementwise: for a parameter whose size is not a multiple of H.

    Example:
        >>> from jaxrnn import cells
        >>> param_counts(cells.PeepholeLSTM())
        {'weight_cf': 1, 'weight_ci': 1, 'weight_co': 1}
    """
    one, two = (cell.cell_parameter_shapes(Sizes(7, n, n)) for n in (UNITS, 2 * UNITS))
    for name, shape in one.items():
        if len(shape) != 1 or not shape[0] or two[name] != (2 * shape[0],):
            declared = tuple(cell.parameter_specs()[name].shape)
            raise NotElementwise(f"parameter {name} {declared} is not a vector of a multiple of H")
    return {name: one[name][0] // UNITS for name in sorted(one)}


class _GraphRule:
    """The derivative rule from the graph of an elementwise step."""

    def __init__(self, cell: Cell):
        self.cell = cell

    def save(self, z: Any, state: State, *params: Any) -> tuple[State, Any]:
        """Return the new states and the residuals."""
        partition, leaf, like = self._bind(z, len(self.cell.gates), z=z, old=state, params=params)
        new = self.cell.step(z, state, *params)
        return new, tuple(evaluate(partition.residuals, leaf, like))

    def linearize(self, residuals: Any, old: State, new: State, *params: Any) -> Any:
        """Return the coefficients of the tangent."""
        partition, leaf, like = self._bind(new[0], 1, old=old, params=params)
        known = {n.key: new[k] for k, n in partition.new.items()}
        known |= {n.key: a for n, a in zip(partition.residuals, residuals, strict=True)}
        return tuple(evaluate(partition.coefficients, leaf, like, known))

    def tangent(self, coefficients: Any, dz: Any, dstate: State, *params: Any) -> State:
        """Return the tangents of the new states."""
        primals, dparams = params or (None, None)
        trees = dict(dz=dz, dold=dstate, params=primals, dparams=dparams)
        partition, leaf, like = self._bind(dz, len(self.cell.gates), **trees)
        known = {n.key: a for n, a in zip(partition.coefficients, coefficients, strict=True)}
        graph = partition.tangent if dparams is None else partition.tangent_with_params
        return tuple(evaluate(graph, leaf, like, known))

    def _bind(self, example: Any, blocks: int, **trees: Any) -> Any:
        """Return the partition, and the leaves and the shape (H, N) of its nodes.

        H is inferred from an array of `blocks` blocks of H features, because h may be projected.
        """
        first = jax.tree.leaves(example)[0]
        hidden = first.shape[0] // blocks
        like = jax.ShapeDtypeStruct((hidden, first.shape[1]), first.dtype)

        @functools.cache
        def _blocks(name: str) -> list[jax.Array]:
            arrays = jax.tree.leaves(trees[name])
            if name in ("old", "dold"):
                return arrays
            return [block for a in arrays for block in jnp.split(a, a.shape[0] // hidden)]

        def _leaf(name: str, index: int) -> jax.Array:
            return jnp.broadcast_to(_blocks(name)[index], like.shape)

        return _partition(self.cell, like.dtype), _leaf, like


class _Partition(NamedTuple):
    """The graph of a step's derivative, cut at the residuals."""

    residuals: tuple[Node, ...]
    new: dict[int, Node]  # the states after the step that are free residuals, by their index
    coefficients: tuple[Node, ...]
    tangent: tuple[Node, ...]  # tangents of the new states from dz and dold
    tangent_with_params: tuple[Node, ...]  # the same with the tangents of the cell parameters


@functools.lru_cache(maxsize=256)
def _partition(cell: Cell, dtype: Any) -> _Partition:
    z, old, params = argument_shapes(cell, dtype)
    inputs: dict[str, Any] = dict(z=z, old=old, params=params)
    step = lambda z, old, params: cell.step(z, old, *params)  # noqa: E731
    forward = trace(step, inputs)
    jaxpr = str(jax.make_jaxpr(step)(*inputs.values()))
    if "custom_jvp_call" in jaxpr or "custom_vjp_call" in jaxpr:
        # Second derivatives would differentiate the graph and miss the custom rule.
        raise NotElementwise("its step has a custom derivative")

    def _tangent(z: Any, old: Any, params: Any, dz: Any, dold: Any, dparams: Any) -> Any:
        if not dparams:
            return jax.jvp(lambda z, old: cell.step(z, old, *params), (z, old), (dz, dold))[1]
        return jax.jvp(cell.step, (z, old, *params), (dz, dold, *dparams))[1]

    tangents = [trace(_tangent, inputs | dict(dz=z, dold=old, dparams=d)) for d in ((), params)]
    nodes = topological_order((*tangents[0], *tangents[1]))
    linear = _dependents(nodes, _TANGENTS)
    static = {node.key for node in nodes} - _dependents(nodes, ("z", "old", *_TANGENTS))
    coefficients = {
        operand.key: operand
        for node in nodes
        if node.key in linear
        for operand in node.inputs
        if operand.key not in linear and operand.key not in static
    }
    # At padding the new states are the old ones; dividing by them instead could give NaN.
    divisors = [node.inputs[1] for node in nodes if node.operation == "div"]
    divisors = {node.key for node in topological_order(divisors)}
    new = {k: node for k, node in enumerate(forward) if node.key not in divisors}
    new_keys = {node.key for node in new.values()}
    forward_keys = {n.key for n in topological_order(forward)}

    def _storage_cost(node: Node) -> int:
        if node.key in new_keys or (node.operation == "leaf" and node.value[0] == "old"):
            return 0
        stored = node.key in forward_keys and node.operation not in _CONDITIONS
        return _STORE if stored else _INFINITE

    primal = [n for n in topological_order(coefficients.values()) if n.key not in static]
    residuals = _minimum_cut(primal, coefficients, static, _storage_cost)
    return _Partition(tuple(residuals), new, tuple(coefficients.values()), *tangents)


def _dependents(nodes: Iterable[Node], names: Iterable[str]) -> set[int]:
    """Return the keys of the nodes that depend on leaves of the given names."""
    keys: set[int] = set()
    for node in nodes:
        is_leaf = node.operation == "leaf" and node.value[0] in names
        if is_leaf or any(n.key in keys for n in node.inputs):
            keys.add(node.key)
    return keys


def _minimum_cut(
    nodes: list[Node],
    targets: Iterable[int],
    static: set[int],
    storage_cost: Callable[[Node], int],
) -> list[Node]:
    """Return the nodes to store so that all targets can be computed at least cost.

    Each node has two vertices, "available" and "computed". The edge between them costs storage;
    the edge from "computed" to the sink costs recomputation, and its operands must be available.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    available = {node.key: 2 * k + 2 for k, node in enumerate(nodes)}  # computed: one more
    source, sink = 0, 1
    capacity = np.zeros((2 * len(nodes) + 2,) * 2, np.int32)
    for key in targets:
        capacity[source, available[key]] = _INFINITE
    for node in nodes:
        vertex, computed = available[node.key], available[node.key] + 1
        capacity[vertex, computed] = storage_cost(node)
        cost = _EXPENSIVE.get(node.operation, _RECOMPUTE)
        capacity[computed, sink] = _INFINITE if node.operation == "leaf" else cost
        for operand in node.inputs:
            if operand.key not in static:
                capacity[computed, available[operand.key]] = _INFINITE
    flow = maximum_flow(csr_array(capacity), source, sink).flow.toarray()
    reached = set(breadth_first_order(csr_array(capacity - flow), source)[0].tolist())
    return [
        node
        for node in nodes
        if storage_cost(node)
        and available[node.key] in reached
        and available[node.key] + 1 not in reached
    ]
