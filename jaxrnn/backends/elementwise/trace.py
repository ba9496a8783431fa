"""Tracing: an elementwise function as a graph of scalar operations.

The function is traced to a jaxpr for two hidden units and a batch of one, and the jaxpr is
interpreted with one graph node per array element. Slices, concatenations and reshapes only move
nodes; arithmetic makes new ones. If both units have the same graph and neither depends on the
other, the function is elementwise, and its graph holds for a vector of any number of units.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

UNITS = 2

OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(lax, name)
    for name in (
        *("add", "sub", "mul", "div", "neg", "exp", "expm1", "tanh", "logistic", "abs", "sqrt"),
        *("max", "min", "gt", "ge", "lt", "le", "eq", "ne", "select"),
    )
} | {"add_any": lax.add, "square": lambda a: a * a}
"""The operations of a graph, under the names of JAX's primitives."""


class NotElementwise(Exception):
    """A function that has no graph of scalar operations; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Node:
    """A scalar of one hidden unit.

    Attributes:
        operation: a name of `OPERATIONS`, "constant" or "leaf".
        inputs: the operands.
        value: the number of a constant; the name and index of a leaf.
        key: equal for equal expressions, whatever their unit and function.
        units: the units that the node depends on.
    """

    operation: str
    inputs: tuple[Node, ...]
    value: Any
    key: int
    units: frozenset[int]


def topological_order(outputs: Iterable[Node]) -> list[Node]:
    """Return the nodes of a graph without duplicates, operands before results."""
    seen: dict[int, Node] = {}

    def _visit(node: Node) -> None:
        if node.key not in seen:
            for operand in node.inputs:
                _visit(operand)
            seen[node.key] = node

    for node in outputs:
        _visit(node)
    return list(seen.values())


def evaluate(
    outputs: Iterable[Node],
    leaf: Callable[[str, int], jax.Array],
    like: Any,
    known: Mapping[int, jax.Array] | None = None,
    operations: Mapping[str, Callable[..., Any]] = OPERATIONS,
) -> list[jax.Array]:
    """Compute nodes as arrays.

    Args:
        outputs: the nodes to compute.
        leaf: returns the array of a leaf from its name and index.
        like: an array, or `jax.ShapeDtypeStruct`, with the shape and dtype of every node.
        known: arrays computed before, by the key of their node.
        operations: implementations of the operations.
    """
    arrays: dict[int, Any] = dict(known or {})

    def _array_of(node: Node) -> Any:
        if node.key not in arrays:
            if node.operation == "constant":  # an array: kernels cannot capture constants
                arrays[node.key] = jnp.full(like.shape, node.value, like.dtype)
            elif node.operation == "leaf":
                arrays[node.key] = leaf(*node.value)
            else:
                arrays[node.key] = operations[node.operation](*map(_array_of, node.inputs))
        return arrays[node.key]

    return [_array_of(node) for node in outputs]


def trace(function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Node, ...]:
    """Trace an elementwise function.

    Args:
        function: takes the inputs in order and returns arrays (count * UNITS, 1).
        inputs: pytrees of arrays, or of `jax.ShapeDtypeStruct`, (count * UNITS, 1), by the name of
            their leaves.

    Returns:
        The outputs of one unit, in the order of the flattened arrays.

    Raises:
        NotElementwise: for a function that is not elementwise or uses other operations.
    """
    try:
        closed = jax.make_jaxpr(function)(*inputs.values())
    except Exception as error:
        raise NotElementwise(f"it cannot be traced for {UNITS} units: {error}") from error
    values = []
    for name, tree in inputs.items():
        index = 0
        for leaf in jax.tree.leaves(tree):
            count = leaf.shape[0] // UNITS
            nodes = np.empty((count, UNITS), object)
            for i, unit in np.ndindex(nodes.shape):
                nodes[i, unit] = _node("leaf", value=(name, index + i), unit=unit)
            index += count
            values.append(nodes.reshape(-1, 1))
    outputs = []
    for result in _interpret(closed.jaxpr, closed.consts, values):
        if result.ndim != 2 or result.shape[1] != 1 or result.shape[0] % UNITS:
            raise NotElementwise(f"an output has shape {result.shape}")
        for nodes in result.reshape(-1, UNITS):
            if len({n.key for n in nodes}) > 1 or any(n.units - {u} for u, n in enumerate(nodes)):
                raise NotElementwise("its hidden units are not independent and treated equally")
            outputs.append(nodes[0])
    return tuple(outputs)


_keys: dict[Any, int] = {}
_key_counter = itertools.count()  # unlike len(_keys), safe with threads


def _node(operation: str, inputs: tuple[Node, ...] = (), value: Any = None, unit: int = -1) -> Node:
    if operation in ("add", "add_any"):
        for one, other in (inputs, inputs[::-1]):
            if one.operation == "constant" and one.value == 0:
                return other
    if operation not in OPERATIONS and operation not in ("constant", "leaf"):
        raise NotElementwise(f"{operation} has no vector form")
    key = _keys.setdefault((operation, tuple(n.key for n in inputs), value), next(_key_counter))
    units = frozenset({unit} - {-1}).union(*(n.units for n in inputs))
    return Node(operation, inputs, value, key, units)


def _interpret(jaxpr: Any, consts: Any, inputs: Any) -> list[np.ndarray]:
    """Interpret a jaxpr on arrays of nodes."""
    known: dict[Any, np.ndarray] = dict(zip(jaxpr.constvars, map(_constants, consts)))
    known |= zip(jaxpr.invars, inputs)

    def _read(atom: Any) -> np.ndarray:
        return _constants(atom.val) if hasattr(atom, "val") else known[atom]

    for eqn in jaxpr.eqns:
        outputs = _interpret_equation(eqn, [_read(v) for v in eqn.invars])
        known |= zip(eqn.outvars, outputs)
    return [_read(v) for v in jaxpr.outvars]


def _constants(value: Any) -> np.ndarray:
    """Convert floating-point numbers to an array of nodes; leave integers and nodes unchanged."""
    value = np.asarray(value)
    if value.dtype == object or not np.issubdtype(value.dtype, np.floating):
        return value
    out = np.empty(value.shape, object)
    for index, number in np.ndenumerate(value):
        out[index] = _node("constant", value=float(number))
    return out


_LOOPS = ("scan", "while", "reduce", "reduce_window")  # they call a jaxpr more than once


def _interpret_equation(eqn: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    name, p = eqn.primitive.name, eqn.params
    called = p.get("jaxpr", p.get("call_jaxpr", p.get("fun_jaxpr")))
    if called is not None and name not in _LOOPS:
        return _interpret(getattr(called, "jaxpr", called), getattr(called, "consts", ()), inputs)
    if name == "split":
        return np.split(inputs[0], np.cumsum(p["sizes"])[:-1], axis=p["axis"])
    if name in _LAYOUT_OPERATIONS:
        return [_LAYOUT_OPERATIONS[name](p, *inputs)]
    dtypes = [jnp.dtype(v.aval.dtype) for v in eqn.invars]
    if name == "convert_element_type":
        weak = getattr(eqn.invars[0].aval, "weak_type", False)  # a literal, as in where(c, 1, 0)
        return [_convert(inputs[0], dtypes[0], jnp.dtype(p["new_dtype"]), weak)]
    if name in _LOGICAL_OPERATIONS and all(
        dtype.kind == "b" and a.dtype == object for dtype, a in zip(dtypes, inputs)
    ):
        return [_map("ne", _LOGICAL_OPERATIONS[name](*inputs), _constants(0.0))]
    if name == "select_n" and dtypes[0].kind == "b":
        dtypes = dtypes[1:]  # without the condition
    if any(a.dtype != object for a in inputs) or not all(map(_is_real, dtypes)):
        others = [dtype.name for dtype in dtypes if not _is_real(dtype)] or [dtypes[0].name]
        raise NotElementwise(f"{name} of {others[0]} has no vector form")
    if name in _COMPOSITE_OPERATIONS:
        return [_COMPOSITE_OPERATIONS[name](p, *inputs)]
    return [_map(name, *inputs)]


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.floating)


def _convert(a: np.ndarray, old: Any, new: Any, weak: bool) -> np.ndarray:
    """Convert nodes to a dtype; conversions that round or truncate are refused."""
    if a.dtype != object:
        return _constants(a.astype(new))  # literals, as in clip(z, 0, 1)
    if old.kind == "b":
        return _as_number(a)
    if new.kind == "b" and _is_real(old):
        return _map("ne", a, _constants(0.0))
    rounded = _is_real(old) and old.itemsize > new.itemsize and not weak
    if not _is_real(new) or rounded:
        raise NotElementwise(f"{old.name} as {new.name} has no vector form")
    return a


def _map(operation: str, *inputs: np.ndarray) -> np.ndarray:
    """Apply an operation to each element."""
    arrays = np.broadcast_arrays(*inputs)
    out = np.empty(arrays[0].shape, object)
    for index in np.ndindex(out.shape):
        operands: Any = tuple(a[index] for a in arrays)
        out[index] = _node(operation, operands)
    return out


def _as_number(condition: np.ndarray, true: float = 1.0) -> np.ndarray:
    """Convert conditions to numbers: `true` where they hold, else ``1 - true``."""
    return _map("select", condition, _constants(true), _constants(1.0 - true))


# Logic is arithmetic on zeros and ones, because residuals are numbers.
_LOGICAL_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "not": lambda a: _as_number(a, 0.0),
    "and": lambda a, b: _map("select", a, _as_number(b), _constants(0.0)),
    "or": lambda a, b: _map("select", a, _constants(1.0), _as_number(b)),
    "xor": lambda a, b: _map("select", a, _as_number(b, 0.0), _as_number(b)),
}


def _power(a: np.ndarray, y: int) -> np.ndarray:
    if y < 0:
        return _map("div", _constants(1.0), _power(a, -y))
    return functools.reduce(lambda b, c: _map("mul", b, c), [a] * y) if y else _constants(1.0)


_COMPOSITE_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "integer_pow": lambda p, a: _power(a, p["y"]),
    # In the derivative of tanh since JAX 0.12.
    "one_minus_square": lambda p, a: _map("sub", _constants(1.0), _map("mul", a, a)),
    "clamp": lambda p, low, a, high: _map("min", _map("max", a, low), high),
    "select_n": lambda p, condition, a, b: _map("select", condition, b, a),
}


def _broadcast(p: Any, a: np.ndarray) -> np.ndarray:
    new_axes = set(range(len(p["shape"]))) - set(p["broadcast_dimensions"])
    return np.broadcast_to(np.expand_dims(a, tuple(new_axes)), p["shape"])


def _pad(p: Any, a: np.ndarray, fill: np.ndarray) -> np.ndarray:
    config = p["padding_config"]
    if any(low < 0 or high < 0 or interior for low, high, interior in config):
        raise NotElementwise("pad with negative or interior padding has no vector form")
    return np.pad(a, [(low, high) for low, high, _ in config], constant_values=fill.item())


def _slice(p: Any, a: np.ndarray) -> np.ndarray:
    strides = p["strides"] or (1,) * a.ndim
    return a[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]


_LAYOUT_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda p, a: a.reshape(p["new_sizes"]),
    "squeeze": lambda p, a: a.squeeze(tuple(p["dimensions"])),
    "transpose": lambda p, a: a.transpose(p["permutation"]),
    "slice": _slice,
    "concatenate": lambda p, *a: np.concatenate(a, axis=p["dimension"]),
    "pad": _pad,
    **dict.fromkeys(("copy", "copy_p", "stop_gradient", "optimization_barrier"), lambda p, a: a),
}
