"""The pointwise derivative of a cell, and what is saved of a step for it.

A cell may have written its own (`jaxrnn.cells.Cell`: save, linearize, tangent). Otherwise it is
made of the graph of its step, where that is elementwise:

.. code-block:: text

    dstate = sum over k of c_k * (dz or dold)      the coefficients c_k are numbers of the step
    saved                                          those from which all c_k follow at least cost

The old and the new states are there in any case; a gate input or a result of the step is an array
to write and to read; arithmetic costs next to nothing, a tanh or an exponential about what an array
does. So an LSTM saves its activated gates, and a GRU three of them and what its reset gate is
multiplied with, instead of all gate inputs. The least cost is a minimum cut (L. R. Ford, D. R.
Fulkerson, Maximal flow through a network, 1956): between what is there and the coefficients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.backends.elementwise.arrays import evaluate
from jaxrnn.backends.elementwise.graph import (
    UNITS,
    Node,
    NotElementwise,
    ordered,
    own_derivatives,
    trace,
)
from jaxrnn.cells import Cell, Sizes, State

SAVED, CHEAP = 64, 1
DEAR = {"tanh": 48, "logistic": 48, "exp": 48, "expm1": 48, "div": 8, "sqrt": 8}
"""What an array that is saved costs, an operation, and those that cost more."""

CONDITIONS = ("gt", "ge", "lt", "le", "eq", "ne")

_NEVER = 1 << 20
_LINEAR = ("dz", "dold", "down")


class Rule(NamedTuple):
    """The functions of the pointwise derivative of a cell, see `jaxrnn.cells.Cell`."""

    save: Callable[..., Any]
    linearize: Callable[..., Any]
    tangent: Callable[..., Any]


@functools.lru_cache(maxsize=256)
def rule(cell: Cell) -> Rule:
    """The derivative that a cell has written, or one from the graph of its step."""
    names = Rule._fields
    written = Rule(*(getattr(cell, name) for name in names))
    if any(getattr(type(cell), name) is not getattr(Cell, name) for name in names):
        return written
    try:
        _choose(cell, jnp.dtype("float32"))
    except NotElementwise:
        return written
    made = _Made(cell)
    return Rule(made.save, made.linearize, made.tangent)


class _Made:
    """The derivative of a cell from the graph of its step."""

    def __init__(self, cell: Cell):
        self.cell = cell

    def save(self, z: Any, state: State, *own: Any) -> tuple[State, Any]:
        chosen, leaf, like = self._at(z, z=z, old=state, own=own)
        new = self.cell.step(z, state, *own)
        return new, tuple(evaluate(chosen.saved, leaf, like))

    def linearize(self, saved: Any, old: State, new: State, *own: Any) -> Any:
        chosen, leaf, like = self._at(new[0], 1, old=old, own=own)
        known = {n.form: new[k] for k, n in chosen.new.items()}
        known |= {n.form: a for n, a in zip(chosen.saved, saved, strict=True)}
        return tuple(evaluate(chosen.coefficients, leaf, like, known))

    def tangent(self, coefficients: Any, dz: Any, dstate: State, *params: Any) -> State:
        own, down = params or (None, None)
        chosen, leaf, like = self._at(dz, dz=dz, dold=dstate, own=own, down=down)
        known = {n.form: a for n, a in zip(chosen.coefficients, coefficients, strict=True)}
        graph = chosen.tangent if down is None else chosen.tangent_of_all
        return tuple(evaluate(graph, leaf, like, known))

    def _at(self, seen: Any, gates: int = 0, **trees: Any) -> Any:
        """What was chosen for a dtype, the leaves of its graphs, and what all of them are like.

        That is (H, N), seen from gate inputs or another array of so many gates: h may be projected.
        """
        first = jax.tree.leaves(seen)[0]
        hidden = first.shape[0] // (gates or len(self.cell.gates))
        like = jax.ShapeDtypeStruct((hidden, first.shape[1]), first.dtype)

        @functools.cache
        def pieces(name: str) -> list[jax.Array]:
            arrays = jax.tree.leaves(trees[name])
            if name in ("old", "dold"):
                return arrays
            return [piece for a in arrays for piece in jnp.split(a, a.shape[0] // hidden)]

        def leaf(name: str, place: int) -> jax.Array:
            return jnp.broadcast_to(pieces(name)[place], like.shape)

        return _choose(self.cell, like.dtype), leaf, like


class _Chosen(NamedTuple):
    """What is saved of a step, and what becomes of it.

    Attributes:
        saved: numbers of the step.
        new: those that are states after the step and may be taken for them, by state.
        coefficients: what the tangents are linear with.
        tangent: of the new states by dz and dold.
        tangent_of_all: by the cell's own parameters as well.
    """

    saved: tuple[Node, ...]
    new: dict[int, Node]
    coefficients: tuple[Node, ...]
    tangent: tuple[Node, ...]
    tangent_of_all: tuple[Node, ...]


def arguments(cell: Cell, dtype: Any) -> tuple[Any, Any, Any]:
    """Gate inputs, states and own parameters of a cell, as kinds of arrays of `UNITS` units.

    Raises:
        NotElementwise: for parameters that are not so many numbers of each unit.
    """
    array = lambda count: jax.ShapeDtypeStruct((count * UNITS, 1), dtype)  # noqa: E731
    gates = array(len(cell.gates))
    own = {name: array(count) for name, count in own_counts(cell).items()}
    state = (array(1),) * len(cell.states)
    return (gates, gates) if cell.split else gates, state, (own,) if own else ()


def own_counts(cell: Cell) -> dict[str, int]:
    """How many numbers of each unit the parameters of a cell are, sorted by name.

    Raises:
        NotElementwise: for one that is something else.

    Example:
        >>> from jaxrnn import cells
        >>> own_counts(cells.PeepholeLSTM())
        {'weight_cf': 1, 'weight_ci': 1, 'weight_co': 1}
    """
    one, two = (cell.cell_parameter_shapes(Sizes(7, units, units)) for units in (UNITS, 2 * UNITS))
    for name, shape in one.items():
        if len(shape) != 1 or not shape[0] or two[name] != (2 * shape[0],):
            declared = tuple(cell.parameter_specs()[name].shape)
            raise NotElementwise(f"parameter {name} {declared} is not so many numbers of each unit")
    return {name: one[name][0] // UNITS for name in sorted(one)}


@functools.lru_cache(maxsize=256)
def _choose(cell: Cell, dtype: Any) -> _Chosen:
    z, old, own = arguments(cell, dtype)
    inputs: dict[str, Any] = dict(z=z, old=old, own=own)
    forward = trace(lambda z, old, own: cell.step(z, old, *own), inputs)
    if own_derivatives(lambda z, old, own: cell.step(z, old, *own), z, old, own):
        # Numbers from within would be differentiated once more as if nobody had written anything.
        raise NotElementwise("it has a derivative that somebody has written")

    def tangent(z: Any, old: Any, own: Any, dz: Any, dold: Any, down: Any) -> Any:
        if not down:
            return jax.jvp(lambda z, old: cell.step(z, old, *own), (z, old), (dz, dold))[1]
        return jax.jvp(cell.step, (z, old, *own), (dz, dold, *down))[1]

    tangents = [trace(tangent, inputs | dict(dz=z, dold=old, down=down)) for down in ((), own)]
    nodes = ordered((*tangents[0], *tangents[1]))
    linear, fixed = _of(nodes, _LINEAR), _without(nodes, ("z", "old", *_LINEAR))
    coefficients = {
        inner.form: inner
        for node in nodes
        if node.form in linear
        for inner in node.inputs
        if inner.form not in linear and inner.form not in fixed
    }
    # At a step that is not the row's, the states after it are those before: what is divided by them
    # would not be finite.
    divided = {
        n.form for node in nodes if node.operation == "div" for n in ordered(node.inputs[1:])
    }
    new = {k: node for k, node in enumerate(forward) if node.form not in divided}
    there = {node.form for node in new.values()}
    primal = [n for n in ordered(coefficients.values()) if n.form not in fixed]
    of_step = {n.form for n in ordered(forward)}

    def to_save(node: Node) -> int:
        if node.form in there or (node.operation == "leaf" and node.value[0] == "old"):
            return 0
        # What is saved are numbers, which a condition is not.
        return SAVED if node.form in of_step and node.operation not in CONDITIONS else _NEVER

    saved = _least(primal, coefficients, fixed, to_save)
    return _Chosen(tuple(saved), new, tuple(coefficients.values()), *tangents)


def _of(nodes: Iterable[Node], names: Iterable[str]) -> set[Any]:
    """The forms of those that depend on leaves of these names."""
    found: set[Any] = set()
    for node in nodes:
        leaf = node.operation == "leaf" and node.value[0] in names
        if leaf or any(n.form in found for n in node.inputs):
            found.add(node.form)
    return found


def _without(nodes: Iterable[Node], names: Iterable[str]) -> set[Any]:
    """And of those that don't."""
    nodes = list(nodes)
    return {node.form for node in nodes} - _of(nodes, names)


def _least(
    nodes: list[Node], wanted: Iterable[Any], fixed: set[Any], to_save: Callable[[Node], int]
) -> list[Node]:
    """Which nodes to save, so that those wanted follow from them at least cost.

    Each node is two vertices: that it is to be had, and that it is computed. Who wants it and does
    not compute it pays for saving it; who computes it pays for that, and wants its inputs.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    place = {node.form: 2 * k + 2 for k, node in enumerate(nodes)}
    source, sink = 0, 1
    capacity = np.zeros((2 * len(nodes) + 2,) * 2, np.int32)
    for form in wanted:
        capacity[source, place[form]] = _NEVER
    for node in nodes:
        had, computed = place[node.form], place[node.form] + 1
        capacity[had, computed] = to_save(node)
        operation = node.operation
        capacity[computed, sink] = _NEVER if operation == "leaf" else DEAR.get(operation, CHEAP)
        for inner in node.inputs:
            if inner.form not in fixed:
                capacity[computed, place[inner.form]] = _NEVER
    flow = maximum_flow(csr_array(capacity), source, sink).flow.toarray()
    reached = set(breadth_first_order(csr_array(capacity - flow), source)[0].tolist())
    return [
        node
        for node in nodes
        if to_save(node) and place[node.form] in reached and place[node.form] + 1 not in reached
    ]
