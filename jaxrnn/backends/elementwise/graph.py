"""Functions of hidden units as graphs of operations on single numbers.

A function is traced as JAX traces it, on two units and one row, and its jaxpr is read with a symbol
for each element. What slices, joins and reshapes disappears; what is left for a unit are operations
on single numbers. If both units have the same ones, and neither asks for what belongs to the other,
the function is elementwise in the units, and may be run on a vector of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

UNITS = 2

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lax.add,
    "add_any": lax.add,
    "sub": lax.sub,
    "mul": lax.mul,
    "div": lax.div,
    "neg": lax.neg,
    "exp": lax.exp,
    "expm1": lax.expm1,
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
"""What can be computed, by the names of JAX's primitives."""


class NotElementwise(Exception):
    """The function can't be run unit by unit; the text says why."""


@dataclass(frozen=True, eq=False)
class Node:
    """A number of one unit: an operation on others, a constant, or a leaf.

    Attributes:
        operation: a name of `FUNCTIONS`, "constant" or "leaf".
        inputs: what it is computed of.
        value: of a constant; of a leaf its name and place.
        form: equal for numbers that are computed alike, whatever their unit and function.
        units: the units that it depends on.
    """

    operation: str
    inputs: tuple[Node, ...]
    value: Any
    form: Any
    units: frozenset[int]


def ordered(outputs: Iterable[Node]) -> list[Node]:
    """The nodes of a graph, one of each form, each after what it is computed of."""
    seen: dict[Any, Node] = {}

    def look(node: Node) -> None:
        if node.form not in seen:
            for inner in node.inputs:
                look(inner)
            seen[node.form] = node

    for node in outputs:
        look(node)
    return list(seen.values())


_forms: dict[Any, int] = {}
_numbers = itertools.count()  # the length of `_forms` two threads might read at once


def _node(operation: str, inputs: tuple[Node, ...] = (), value: Any = None, unit: int = -1) -> Node:
    if operation == "add" or operation == "add_any":
        for one, other in (inputs, inputs[::-1]):
            if one.operation == "constant" and one.value == 0:
                return other
    if operation not in FUNCTIONS and operation not in ("constant", "leaf"):
        raise NotElementwise(f"{operation} has no vector form")
    key = (operation, tuple(n.form for n in inputs), value)
    form = _forms.setdefault(key, next(_numbers))
    units = frozenset({unit} - {-1}).union(*(n.units for n in inputs))
    return Node(operation, inputs, value, form, units)


def _constant(value: Any) -> Node:
    return _node("constant", value=float(value))


def trace(function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Node, ...]:
    """What a function does for one unit: its outputs, array by array, place by place.

    Args:
        function: of the inputs, in their order; its outputs are (count * UNITS, 1).
        inputs: trees of arrays (count * UNITS, 1), or of their kinds, by the name of their leaves.

    Raises:
        NotElementwise: for a function that needs more than these are.
    """
    try:
        closed = jax.make_jaxpr(function)(*inputs.values())
    except Exception as error:
        raise NotElementwise(f"it can't be traced for {UNITS} units: {error}") from error
    values = []
    for name, tree in inputs.items():
        place = 0
        for leaf in jax.tree.leaves(tree):
            count = leaf.shape[0] // UNITS
            nodes = np.empty((count, UNITS), object)
            for i in range(count):
                for unit in range(UNITS):
                    nodes[i, unit] = _node("leaf", value=(name, place + i), unit=unit)
            place += count
            values.append(nodes.reshape(-1, 1))
    outputs = []
    for result in _run(closed.jaxpr, closed.consts, values):
        if result.ndim != 2 or result.shape[1] != 1 or result.shape[0] % UNITS:
            raise NotElementwise(f"an output has the shape {result.shape}")
        for nodes in result.reshape(-1, UNITS):
            if len({n.form for n in nodes}) > 1 or any(n.units - {u} for u, n in enumerate(nodes)):
                raise NotElementwise("the units are not treated alike and apart")
            outputs.append(nodes[0])
    return tuple(outputs)


def _run(jaxpr: Any, consts: Any, inputs: Any) -> list[np.ndarray]:
    """A jaxpr on arrays of nodes."""
    known: dict[Any, np.ndarray] = {}

    def read(atom: Any) -> np.ndarray:
        return _array(atom.val) if hasattr(atom, "val") else known[atom]

    known.update(zip(jaxpr.constvars, map(_array, consts)))
    known.update(zip(jaxpr.invars, inputs))
    for eqn in jaxpr.eqns:
        outputs = _apply(eqn, [read(v) for v in eqn.invars])
        known.update(zip(eqn.outvars, outputs))
    return [read(v) for v in jaxpr.outvars]


def _array(value: Any) -> np.ndarray:
    """An array of constants; those of integers stay as they are."""
    value = np.asarray(value)
    if value.dtype == object:
        return value
    if not np.issubdtype(value.dtype, np.floating):
        return value
    out = np.empty(value.shape, object)
    for index, number in np.ndenumerate(value):
        out[index] = _constant(number)
    return out


def _apply(eqn: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """One equation."""
    name, p = eqn.primitive.name, eqn.params
    inner = _inner(eqn)
    if inner is not None:
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    if name == "split":
        ends = np.cumsum(p["sizes"])[:-1]
        return np.split(inputs[0], ends, axis=p["axis"])
    if name in _LAYOUTS:
        return [_LAYOUTS[name](p, *inputs)]
    kinds = [jnp.dtype(v.aval.dtype) for v in eqn.invars]
    if name == "convert_element_type":
        weak = getattr(eqn.invars[0].aval, "weak_type", False)  # of a number, as in where(c, 1, 0)
        return [_converted(inputs[0], kinds[0], jnp.dtype(p["new_dtype"]), weak)]
    if name in _LOGICAL and all(
        kind.kind == "b" and a.dtype == object for kind, a in zip(kinds, inputs)
    ):
        return [_each("ne", _LOGICAL[name](*inputs), _array(0.0))]
    asked = kinds[name == "select_n" and kinds[0].kind == "b" :]  # which asks a condition first
    if any(a.dtype != object for a in inputs) or not all(map(_real, asked)):
        others = [kind.name for kind in asked if not _real(kind)] or [kinds[0].name]
        raise NotElementwise(f"{name} of {others[0]} has no vector form")
    if name == "integer_pow":
        return [_power(inputs[0], p["y"])]
    if name == "one_minus_square":  # of the derivative of tanh, since jax 0.12
        return [_each("sub", _array(1.0), _each("mul", inputs[0], inputs[0]))]
    if name == "clamp":
        return [_each("min", _each("max", inputs[1], inputs[0]), inputs[2])]
    if name == "select_n":
        return [_each("select", inputs[0], inputs[2], inputs[1])]
    return [_each(name, *inputs)]


def _real(kind: Any) -> bool:
    """Whether a dtype is of real numbers, which all vectors are."""
    return jnp.issubdtype(kind, np.floating)


def _converted(a: np.ndarray, old: Any, new: Any, weak: bool) -> np.ndarray:
    """Numbers in another dtype: what a vector has no other number for is refused."""
    if a.dtype != object:
        return _array(a.astype(new))  # known numbers, as in clip(z, 0, 1)
    if old.kind == "b":
        return _number(a)
    if new.kind == "b" and _real(old):
        return _each("ne", a, _array(0.0))
    rounded = _real(old) and old.itemsize > new.itemsize and not weak
    if not _real(new) or rounded:
        raise NotElementwise(f"{old.name} as {new.name} has no vector form")
    return a


def _inner(eqn: Any) -> Any:
    """The jaxpr that an equation calls once, if that is what it does."""
    p = eqn.params
    if eqn.primitive.name in ("scan", "while", "reduce", "reduce_window"):
        return None
    return p.get("jaxpr", p.get("call_jaxpr", p.get("fun_jaxpr")))


def own_derivatives(function: Callable[..., Any], *inputs: Any) -> bool:
    """Whether a function has parts whose derivative somebody has written (`jax.custom_jvp`)."""

    def look(jaxpr: Any) -> bool:
        inner = [_inner(eqn) for eqn in jaxpr.eqns]
        return any("custom" in eqn.primitive.name for eqn in jaxpr.eqns) or any(
            look(getattr(j, "jaxpr", j)) for j in inner if j is not None
        )

    return look(jax.make_jaxpr(function)(*inputs).jaxpr)


def _each(operation: str, *inputs: np.ndarray) -> np.ndarray:
    """An operation on each element."""
    arrays = np.broadcast_arrays(*inputs)
    out = np.empty(arrays[0].shape, object)
    for index in np.ndindex(out.shape):
        inputs_here: Any = tuple(a[index] for a in arrays)
        out[index] = _node(operation, inputs_here)
    return out


def _number(condition: np.ndarray, yes: float = 1.0) -> np.ndarray:
    """A condition as a number: `yes` where it holds, else the other of 0 and 1."""
    return _each("select", condition, _array(yes), _array(1.0 - yes))


_LOGICAL: dict[str, Callable[..., np.ndarray]] = {
    "not": lambda a: _number(a, 0.0),
    "and": lambda a, b: _each("select", a, _number(b), _array(0.0)),
    "or": lambda a, b: _each("select", a, _array(1.0), _number(b)),
    "xor": lambda a, b: _each("select", a, _number(b, 0.0), _number(b)),
}
"""Conditions of conditions, as numbers: what is saved for the derivative is numbers."""


def _power(a: np.ndarray, y: int) -> np.ndarray:
    if y < 0:
        return _each("div", _array(1.0), _power(a, -y))
    result = _array(1.0) if y == 0 else a
    for _ in range(y - 1):
        result = _each("mul", result, a)
    return result


def _broadcast(p: Any, a: np.ndarray) -> np.ndarray:
    shape = [1] * len(p["shape"])
    for axis, size in zip(p["broadcast_dimensions"], a.shape):
        shape[axis] = size
    return np.broadcast_to(a.reshape(shape), p["shape"])


def _pad(p: Any, a: np.ndarray, fill: np.ndarray) -> np.ndarray:
    if any(low < 0 or high < 0 or inside for low, high, inside in p["padding_config"]):
        raise NotElementwise("pad with holes has no vector form")
    shape = [low + size + high for size, (low, high, _) in zip(a.shape, p["padding_config"])]
    out = np.full(shape, fill.item(), object)
    out[tuple(slice(low, low + n) for n, (low, _, _) in zip(a.shape, p["padding_config"]))] = a
    return out


def _slice(p: Any, a: np.ndarray) -> np.ndarray:
    strides = p["strides"] or (1,) * a.ndim
    return a[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]


_LAYOUTS: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda p, a: a.reshape(p["new_sizes"]),
    "squeeze": lambda p, a: a.squeeze(tuple(p["dimensions"])),
    "transpose": lambda p, a: a.transpose(p["permutation"]),
    "slice": _slice,
    "concatenate": lambda p, *a: np.concatenate(a, axis=p["dimension"]),
    "pad": _pad,
    "copy": lambda p, a: a,
    "copy_p": lambda p, a: a,
    "stop_gradient": lambda p, a: a,
    "optimization_barrier": lambda p, a: a,
}
