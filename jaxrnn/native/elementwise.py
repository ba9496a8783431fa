"""The pointwise functions of a cell as graphs of operations on vectors of hidden units.

A cell is traced as JAX traces it, on two units and one row, and its jaxpr is read with a symbol for
each element. What slices, joins and reshapes disappears; what is left for a unit are operations on
single numbers. If both units have the same ones, and neither asks for what belongs to the other,
the function is elementwise in the units, and a kernel may run it on a vector of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import Cell
from jaxrnn.native import functions
from jaxrnn.native.ir import Function

UNITS = 2


class NotElementwise(Exception):
    """The function can't be run unit by unit; the text says why."""


@dataclass(frozen=True, eq=False)
class Node:
    """A number of one unit: an operation on others, a constant, or a leaf.

    Attributes:
        operation: a name of `functions.FUNCTIONS`, "constant" or "leaf".
        inputs: what it is computed of.
        value: of a constant; of a leaf its name and place.
        form: equal for numbers that are computed alike, whatever their unit.
        units: the units that it depends on.
    """

    operation: str
    inputs: tuple[Node, ...]
    value: Any
    form: Any
    units: frozenset[int]


class Pointwise(NamedTuple):
    """The pointwise functions of a cell.

    Attributes:
        forward: the new states, then each number that is saved.
        saved: how many numbers a unit has of each array that is saved.
        backward: the derivative by the gate inputs (those of x, then those of h, where the cell
            takes them apart), then by the old states; leaves "saved", "old", "new" and "ct".
    """

    forward: tuple[Node, ...]
    saved: tuple[int, ...]
    backward: tuple[Node, ...]


@functools.lru_cache(maxsize=256)
def pointwise(cell: Cell, dtype: Any) -> Pointwise:
    """The graphs of a cell.

    Raises:
        NotElementwise: for a cell that needs more than these are.
    """
    hidden = UNITS
    array = lambda count: jax.ShapeDtypeStruct((count * hidden, 1), dtype)  # noqa: E731
    gates, states = len(cell.gates), len(cell.states)
    z = (array(gates), array(gates)) if cell.split else array(gates)
    state = (array(1),) * states
    new, saved = jax.eval_shape(cell.save, z, state)
    leaves = jax.tree.leaves(saved)
    if any(s.shape[1:] != (1,) or s.shape[0] % hidden or s.dtype != dtype for s in leaves):
        raise NotElementwise("what is saved is not so many numbers of each unit")

    def backward(saved: Any, old: Any, new: Any, ct: Any) -> Any:
        coefficients = cell.linearize(saved, old, new)
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (z, state))
        _, pull = jax.vjp(lambda dz, ds: cell.tangent(coefficients, dz, ds), *zero)
        return pull(ct)

    inputs = dict(saved=saved, old=state, new=new, ct=new)
    return Pointwise(
        _graph(cell.save, dict(z=z, old=state)),
        tuple(s.shape[0] // hidden for s in leaves),
        _graph(backward, inputs),
    )


def emit(f: Function, outputs: Iterable[Node], leaf: Callable[[str, int], str]) -> list[str]:
    """Write the operations of some numbers; `leaf` gives a vector by its name and place."""
    done: dict[Any, str] = {}

    def value(node: Node) -> str:
        if node.form not in done:
            if node.operation == "constant":
                done[node.form] = f.constant(node.value)
            elif node.operation == "leaf":
                done[node.form] = leaf(*node.value)
            else:
                inputs = [value(n) for n in node.inputs]
                done[node.form] = functions.FUNCTIONS[node.operation](f, *inputs)
        return done[node.form]

    return [value(node) for node in outputs]


_forms: dict[Any, int] = {}


def _node(operation: str, inputs: tuple[Node, ...] = (), value: Any = None, unit: int = -1) -> Node:
    if operation == "add" or operation == "add_any":
        for one, other in (inputs, inputs[::-1]):
            if one.operation == "constant" and one.value == 0:
                return other
    if operation not in functions.FUNCTIONS and operation not in ("constant", "leaf"):
        raise NotElementwise(f"{operation} has no vector form")
    key = (operation, tuple(n.form for n in inputs), value)
    form = _forms.setdefault(key, len(_forms))
    units = frozenset({unit} - {-1}).union(*(n.units for n in inputs))
    return Node(operation, inputs, value, form, units)


def _constant(value: Any) -> Node:
    return _node("constant", value=float(value))


def _graph(function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Node, ...]:
    """What a function does for one unit: its outputs, array by array, place by place."""
    closed = jax.make_jaxpr(function)(*inputs.values())
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
    inner = p.get("jaxpr", p.get("call_jaxpr", p.get("fun_jaxpr")))
    if inner is not None:
        if hasattr(inner, "jaxpr"):
            return _run(inner.jaxpr, inner.consts, inputs)
        return _run(inner, (), inputs)
    if name == "split":
        ends = np.cumsum(p["sizes"])[:-1]
        return np.split(inputs[0], ends, axis=p["axis"])
    if name in _LAYOUTS:
        return [_LAYOUTS[name](p, *inputs)]
    if any(a.dtype != object for a in inputs):
        raise NotElementwise(f"{name} of integers has no vector form")
    if name == "convert_element_type":
        if eqn.invars[0].aval.dtype == bool:
            return [_each("select", inputs[0], _array(1.0), _array(0.0))]
        to_bool = np.dtype(p["new_dtype"]).kind == "b"
        return [_each("ne", inputs[0], _array(0.0)) if to_bool else inputs[0]]
    if name == "integer_pow":
        return [_power(inputs[0], p["y"])]
    if name == "one_minus_square":  # of the derivative of tanh, since jax 0.12
        return [_each("sub", _array(1.0), _each("mul", inputs[0], inputs[0]))]
    if name == "clamp":
        return [_each("min", _each("max", inputs[1], inputs[0]), inputs[2])]
    if name == "select_n":
        return [_each("select", inputs[0], inputs[2], inputs[1])]
    return [_each(name, *inputs)]


def _each(operation: str, *inputs: np.ndarray) -> np.ndarray:
    """An operation on each element."""
    arrays = np.broadcast_arrays(*inputs)
    out = np.empty(arrays[0].shape, object)
    for index in np.ndindex(out.shape):
        inputs_here: Any = tuple(a[index] for a in arrays)
        out[index] = _node(operation, inputs_here)
    return out


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
