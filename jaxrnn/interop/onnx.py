"""Conversion from and to ONNX: models with RNN, LSTM and GRU nodes."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn._files import write_atomically
from jaxrnn.interop import ConversionError
from jaxrnn.interop._parts import (
    GATES,
    PEEPHOLES,
    STANDARD,
    Direction,
    build_layer,
    import_extra,
    raise_problems,
    reorder_gates,
    split_layer,
)

__all__ = ["from_onnx", "to_onnx"]

_OPERATORS = {kind: kind for kind in STANDARD} | {"GRUResetBefore": "GRU", "PeepholeLSTM": "LSTM"}
_ONNX_GATES = {"RNN": "h", "LSTM": "iofg", "GRU": "zrn"}  # of an operator, in PyTorch's letters
_PEEPHOLE_GATES = "".join(name[-1] for name in PEEPHOLES), "iof"  # ours, and of the input P
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_OPSET, _IR_VERSION = 17, 8  # supported by runtimes since 2022; the operators have not changed


def from_onnx(model: Any, nodes: Sequence[str] | None = None, *, reverse: bool = False) -> Any:
    """Convert the recurrent nodes of an ONNX model to a jaxrnn layer.

    Weights may be initialisers or computed by other nodes. Pass the model's ``sequence_lens`` to
    the layer as `lengths`, and its initial states as `hx`.

    Args:
        model: path of a file, or an ``onnx.ModelProto``.
        nodes: names of the nodes of the stacked layers, optional. Defaults to all ``RNN``, ``LSTM``
            and ``GRU`` nodes.
        reverse: If True, convert nodes with ``direction="reverse"`` to a forward layer. Flip its
            input and output: ``layer(x[::-1])[0][::-1]`` for (T, N, D). Defaults to False.

    Returns:
        An `RNN`, `LSTM` or `GRU` with a layer for each node; for ``linear_before_reset=0``, the
        default of ONNX, a `Recurrent` of `cells.GRUResetBefore`; for LSTM nodes with peepholes a
        `Recurrent` of `cells.PeepholeLSTM`. It is batch-first if the nodes have ``layout=1`` or the
        input of the first is transposed.

    Raises:
        OSError: if the file cannot be read.
        TypeError: if `model` is neither a path nor a model.
        ConversionError: if a node is not representable: other activations, a clip, coupled gates,
            weights that are not constant, constant states or lengths, or more than one stack.

    Example:
        .. code-block:: python

            gru = from_onnx("model.onnx")
            encoder = from_onnx("seq2seq.onnx", ["encoder"])
    """
    graph = _Graph(_load(model))
    try:
        return _convert(graph, nodes, reverse)
    except ConversionError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        message = " ".join(str(error).split())
        raise ConversionError(
            f"from_onnx: invalid model: {type(error).__name__}: {message}"
        ) from error


def to_onnx(
    layer: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    states: bool = False,
    lengths: bool = False,
) -> Any:
    """Convert a jaxrnn layer to an ONNX model with dynamic batch and time axes.

    Args:
        layer: an `RNN`, `LSTM` without projections, `GRU`, or `Recurrent` of
            `cells.GRUResetBefore` or `cells.PeepholeLSTM`.
        path: file to write, optional. Replaced atomically.
        states: If True, add inputs ``h0`` and, for an LSTM, ``c0``, (F*L, N, H). Defaults to
            False, initial states of zeros.
        lengths: If True, add an input ``lengths``, int32 (N,), at least 1. Defaults to False.

    Returns:
        The ``onnx.ModelProto``. Its input is ``input``, (T, N, D), or (N, T, D) if the layer is
        batch-first. Its outputs are ``output``, (T, N, F*H) or (N, T, F*H), ``h_n`` and, for an
        LSTM, ``c_n``, (F*L, N, H). It computes in the layer's dtype; onnxruntime on CPUs supports
        float32 alone.

    Raises:
        TypeError: if `layer` is not a jaxrnn layer.
        ConversionError: if ONNX has no such cell, projection or dtype.
        OSError: if the file cannot be written.

    Example:
        .. code-block:: python

            to_onnx(lstm, "lstm.onnx")
            onnxruntime.InferenceSession("lstm.onnx").run(None, {"input": x})
    """
    onnx = import_extra("onnx", "onnx")
    stack = split_layer(layer, "to_onnx", tuple(_OPERATORS))
    dtype = np.dtype(layer.param_dtype if layer.dtype is None else layer.dtype)
    if dtype.name not in ("float16", "float32", "float64"):
        raise ConversionError(
            f"to_onnx supports float16, float32 and float64, got {dtype.name}. Set layer.dtype."
        )
    model = _Writer(onnx, layer, dtype).model(stack, states, lengths)
    onnx.checker.check_model(model)
    if path is not None:
        data = model.SerializeToString()
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(data))
    return model


class _Graph:
    """Constant folding and node lookup in an ``onnx.ModelProto``."""

    def __init__(self, model: Any):
        self.onnx = import_extra("onnx", "onnx")
        import_extra("onnx.reference", "onnx")
        self.model = model
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        outputs = ((name, i) for i, node in enumerate(self.nodes) for name in node.output)
        self.producers = {name: number for name, number in outputs if name}

    def attributes(self, node: Any) -> dict[str, Any]:
        """Return the attributes of a node by name."""
        get = self.onnx.helper.get_attribute_value
        return {attribute.name: get(attribute) for attribute in node.attribute}

    def value(self, name: str, known: dict[str, np.ndarray] | None = None) -> np.ndarray | None:
        """Evaluate a value from constants and `known` values, or return None if it has others."""
        known = known or {}
        if name in known:
            return known[name]
        if name in self.constants:
            return self.onnx.numpy_helper.to_array(self.constants[name])
        numbers, leaves = self._ancestors(name, set(known))
        recurrent = any(_is_recurrent(self.nodes[number]) for number in numbers)
        if recurrent or leaves - set(known) - set(self.constants):
            return None
        helper = self.onnx.helper
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in known.items()
        ]
        nodes = [self.nodes[number] for number in sorted(numbers)]
        constants = [self.constants[leaf] for leaf in sorted(leaves & set(self.constants))]
        output = self.onnx.ValueInfoProto(name=name)
        graph = helper.make_graph(nodes, "part", inputs, [output], constants)
        versions = {"opset_imports": self.model.opset_import, "ir_version": self.model.ir_version}
        model = helper.make_model(graph, **versions)
        try:
            return self.onnx.reference.ReferenceEvaluator(model).run(None, known)[0]
        except Exception as error:  # of any operator
            raise ConversionError(f"{name} cannot be evaluated: {error}") from error

    def value_at_zero(self, name: str) -> np.ndarray | None:
        """Evaluate a value with zeros for the inputs of the graph, of size 2 if dynamic."""
        _, leaves = self._ancestors(name, set())
        zeros = {}
        for value in self.model.graph.input:
            if value.name in leaves and value.name not in self.constants:
                kind = value.type.tensor_type
                dtype = self.onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
                zeros[value.name] = np.zeros([d.dim_value or 2 for d in kind.shape.dim], dtype)
        return self.value(name, zeros)

    @functools.cached_property
    def shapes(self) -> dict[str, list[int]]:
        """Shapes of the values by name, 0 for dynamic axes."""
        graph = self.onnx.shape_inference.infer_shapes(self.model).graph
        values = (*graph.input, *graph.value_info, *graph.output)
        return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    def _ancestors(self, name: str, stop: set[str]) -> tuple[set[int], set[str]]:
        """Return the nodes that a value depends on, and the names that no node produces."""
        numbers: set[int] = set()
        leaves: set[str] = set()
        pending = [name]
        while pending:
            key = pending.pop()
            if key in stop or key not in self.producers:
                leaves.add(key)
            elif self.producers[key] not in numbers:
                numbers.add(self.producers[key])
                pending += [key for key in self.nodes[self.producers[key]].input if key]
        return numbers, leaves


def _is_recurrent(node: Any) -> bool:
    return node.op_type in STANDARD and node.domain in ("", "ai.onnx")


def _load(model: Any) -> Any:
    onnx = import_extra("onnx", "onnx")
    if isinstance(model, onnx.ModelProto):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"from_onnx expects a path or a ModelProto, got {type(model).__name__}")
    decode_error = import_extra("google.protobuf.message", "onnx").DecodeError
    with open(model, "rb"):  # raises the OSError
        pass
    try:
        return onnx.load(os.fspath(model))
    except decode_error as error:
        raise ConversionError(f"{os.fspath(model)} is not an ONNX file: {error}") from error


def _convert(graph: _Graph, names: Sequence[str] | None, reverse: bool) -> Any:
    nodes = [node for node in graph.nodes if _is_recurrent(node)]
    listed = ", ".join(f"{node.name!r} ({node.op_type})" for node in nodes) or "none"
    if names is not None:
        by_name = {node.name: node for node in nodes}
        if missing := ", ".join(repr(name) for name in names if name not in by_name):
            raise ConversionError(f"`nodes` must be among {listed}, got {missing}")
        nodes = [by_name[name] for name in names]
    if not nodes:
        types = ", ".join(sorted({node.op_type for node in graph.nodes}))
        raise ConversionError(f"the graph must have RNN, LSTM or GRU nodes, got {types}")
    problems: list[str] = []
    layers = [_directions(graph, node, problems, reverse) for node in nodes]
    problems += [
        f"{_name(node)}: its input must be the output of {_name(previous)}. Select the nodes of "
        f"one stack by nodes=; the recurrent nodes are {listed}"
        for previous, node in itertools.pairwise(nodes)
        if not _is_stacked(graph, previous, node)
    ]
    layouts = [graph.attributes(node).get("layout", 0) for node in nodes]
    if len(set(layouts)) > 1:
        problems.append(f"layout must be equal in all nodes, got {layouts}")
    raise_problems("from_onnx does not support:", problems)
    batch_first = bool(layouts[0]) or _is_transposed(graph, nodes[0].input[0])
    return build_layer(layers, batch_first=batch_first, function="from_onnx")


def _name(node: Any) -> str:
    return f"{node.op_type} {node.name or node.output[0]!r}"


def _directions(graph: _Graph, node: Any, problems: list[str], reverse: bool) -> list[Direction]:
    """Read the directions of a node, and append what is unsupported to `problems`."""
    name, operator = _name(node), node.op_type
    attributes = graph.attributes(node)
    inputs = {key: value for key, value in zip(_INPUTS, node.input) if value}
    kind = _check_node(graph, name, operator, attributes, inputs, reverse, problems)
    size = 2 if attributes.get("direction") == b"bidirectional" else 1

    values = {key: graph.value(inputs[key]) for key in ("W", "R", "B", "P") if key in inputs}
    arrays = {key: array for key, array in values.items() if array is not None}
    if "P" in arrays and not arrays["P"].any():
        del values["P"], arrays["P"]
    if "P" in values:
        kind = "PeepholeLSTM"
    if missing := ", ".join(k for k in dict.fromkeys(("W", "R", *values)) if k not in arrays):
        problems.append(f"{name}: weights must be constant, {missing} depend on the inputs")
    hidden = attributes.get("hidden_size", 0) or (arrays["R"].shape[-1] if "R" in arrays else 0)
    gates = len(GATES[kind]) * hidden
    shapes = {
        "W": (size, gates, "D"),
        "R": (size, gates, hidden),
        "B": (size, 2 * gates),
        "P": (size, len(PEEPHOLES) * hidden),
    }
    wrong = [
        f"{name}: {key} must be ({', '.join(map(str, shapes[key]))}), got {array.shape}"
        for key, array in arrays.items()
        if array.ndim != len(shapes[key])
        or any(n not in ("D", m) for n, m in zip(shapes[key], array.shape))
    ]
    problems += wrong
    if missing or wrong:
        return []

    orders = _ONNX_GATES[operator], GATES[kind]
    relu = operator == "RNN" and (attributes.get("activations") or [b""])[0].lower() == b"relu"
    directions = []
    for index, suffix in zip(range(size), ("", " (reverse)")):
        weights = [reorder_gates(arrays[key][index], *orders) for key in ("W", "R")]
        if "B" in arrays:
            weights += [reorder_gates(b, *orders) for b in np.split(arrays["B"][index], 2)]
        peepholes = None
        if "P" in arrays:
            peepholes = reorder_gates(arrays["P"][index], *_PEEPHOLE_GATES[::-1])
        nonlinearity = "relu" if relu else "tanh"
        direction = Direction(name + suffix, kind, *weights, nonlinearity=nonlinearity)
        directions.append(direction._replace(peepholes=peepholes))
    return directions


def _check_node(
    graph: _Graph,
    name: str,
    operator: str,
    attributes: dict[str, Any],
    inputs: dict[str, str],
    reverse: bool,
    problems: list[str],
) -> str:
    """Append the unsupported attributes and inputs of a node to `problems`; return its kind."""
    direction = attributes.get("direction", b"forward").decode()
    size = 2 if direction == "bidirectional" else 1
    if reverse and direction != "reverse":
        problems.append(f"{name}: direction must be reverse with reverse=True, got {direction}")
    elif direction == "reverse" and not reverse:
        problems.append(
            f"{name}: direction must be forward or bidirectional, got reverse. To convert it to a "
            "forward layer: from_onnx(..., reverse=True)"
        )
    gate_functions = {"RNN": [], "LSTM": ["sigmoid", "tanh"], "GRU": ["sigmoid"]}[operator]
    actual = [function.decode().lower() for function in attributes.get("activations", [])]
    supported = [[*gate_functions, "tanh"] * size] + [["relu"] * size] * (operator == "RNN")
    if actual and actual not in supported:
        expected = " or ".join(map(str, supported))
        problems.append(f"{name}: activations must be {expected}, got {actual}")
    if "clip" in attributes:
        problems.append(f"{name}: clip is not supported, got {attributes['clip']:g}")
    if attributes.get("input_forget", 0):
        problems.append(f"{name}: input_forget must be 0, got 1")
    for key in ("initial_h", "initial_c"):
        state = graph.value_at_zero(inputs[key]) if key in inputs else None
        if state is not None and state.any():
            problems.append(
                f"{name}: {key} must be zero or an input, got constants up to "
                f"{np.abs(state).max():.3g}. Pass them to the layer as hx"
            )
    if "sequence_lens" in inputs and graph.value(inputs["sequence_lens"]) is not None:
        problems.append(
            f"{name}: sequence_lens must be an input, got constants. Pass them to the layer as "
            "lengths"
        )
    if operator == "GRU" and not attributes.get("linear_before_reset", 0):
        return "GRUResetBefore"
    return operator


def _is_stacked(graph: _Graph, previous: Any, node: Any) -> bool:
    """Return True if a node reads the output of `previous` with the directions concatenated."""
    attributes = graph.attributes(previous)
    size = 2 if attributes.get("direction") == b"bidirectional" else 1
    output = previous.output[0]
    if not output:
        return False
    batch_first = bool(attributes.get("layout", 0))
    default = (2, 3, size, 4) if batch_first else (3, size, 2, 4)
    shape = [a or b for a, b in zip(graph.shapes.get(output) or default, default)]
    # Distinct numbers of both signs show what the nodes in between compute.
    y = np.linspace(-100, 101, np.prod(shape), dtype=np.float32).reshape(shape)
    expected = y if batch_first else y.swapaxes(1, 2)
    expected = expected.reshape(*expected.shape[:2], -1)
    actual = graph.value(node.input[0], {output: y})
    return actual is not None and np.array_equal(actual, expected)


def _is_transposed(graph: _Graph, name: str) -> bool:
    """Return True if a value is the result of a transposition of batch and time."""
    node = graph.nodes[graph.producers[name]] if name in graph.producers else None
    transpose = node is not None and node.op_type == "Transpose"
    return transpose and list(graph.attributes(node).get("perm", ())) == [1, 0, 2]


class _Writer:
    """Builder of the nodes and constants of a model."""

    def __init__(self, onnx: Any, layer: Any, dtype: np.dtype[Any]):
        self.onnx, self.layer, self.dtype = onnx, layer, dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def model(self, stack: list[list[Direction]], states: bool, lengths: bool) -> Any:
        """Return the model of a stack of layers."""
        layer, size, count = self.layer, len(stack[0]), len(stack)
        letters = tuple(layer.cell.states)
        for letter in letters if states else ():
            parts = [f"{letter}0_l{number}" for number in range(count)]
            sizes = self._constant(f"{letter}0_sizes", np.full(count, size, np.int64))
            self._node("Split", [f"{letter}0", sizes], parts, axis=0)
        x = "input"
        if layer.batch_first:
            self._node("Transpose", [x], ["time_major"], perm=[1, 0, 2])
            x = "time_major"
        # (T, F, N, H) to (T, N, F*H): squeeze F, or transpose F and N and merge F and H.
        shape = np.array([1] if size == 1 else [0, 0, -1], np.int64)
        merged = self._constant("merged", shape)
        for number, directions in enumerate(stack):
            finals = [f"{letter}_n_l{number}" for letter in letters]
            initial = [f"{letter}0_l{number}" if states else "" for letter in letters]
            inputs = ["lengths" if lengths else "", *initial]
            y = self._layer(number, directions, x, inputs, finals)
            final = number == count - 1 and not layer.batch_first
            x = "output" if final else f"output_l{number}"
            if size == 1:
                self._node("Squeeze", [y, merged], [x])
            else:
                self._node("Transpose", [y], [y + "_transposed"], perm=[0, 2, 1, 3])
                self._node("Reshape", [y + "_transposed", merged], [x])
        if layer.batch_first:
            self._node("Transpose", [x], ["output"], perm=[1, 0, 2])
        for letter in letters:
            finals = [f"{letter}_n_l{number}" for number in range(count)]
            self._node("Concat", finals, [f"{letter}_n"], axis=0)
        return self._finish(letters, size, states, lengths)

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def _node(self, operator: str, inputs: list[str], outputs: list[str], **options: Any) -> None:
        options.setdefault("name", outputs[0])
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, outputs, **options))

    def _layer(
        self, number: int, directions: list[Direction], x: str, inputs: list[str], finals: list[str]
    ) -> str:
        """Add the node of one layer, and return the name of its output."""
        first = directions[0]
        operator = _OPERATORS[first.kind]
        orders = GATES[first.kind], _ONNX_GATES[operator]

        def _weights(name: str, fields: Sequence[str], orders: tuple[str, str] = orders) -> str:
            """Add the weights (F, ...) of all directions, the given fields concatenated."""
            stacked = [
                np.concatenate([reorder_gates(getattr(d, field), *orders) for field in fields])
                for d in directions
            ]
            return self._constant(f"{name}_l{number}", np.stack(stacked).astype(self.dtype))

        bias = "" if first.bias_ih is None else _weights("B", ("bias_ih", "bias_hh"))
        inputs = [x, _weights("W", ["weight_ih"]), _weights("R", ["weight_hh"]), bias, *inputs]
        if first.peepholes is not None:
            inputs.append(_weights("P", ["peepholes"], _PEEPHOLE_GATES))
        while not inputs[-1]:
            inputs.pop()
        options: dict[str, Any] = {}
        if operator == "GRU":
            options["linear_before_reset"] = int(first.kind == "GRU")
        if first.nonlinearity == "relu":
            options["activations"] = ["Relu"] * len(directions)
        y = f"y_l{number}"
        options["name"] = f"{operator.lower()}_l{number}"
        options["direction"] = "bidirectional" if len(directions) == 2 else "forward"
        self._node(operator, inputs, [y, *finals], hidden_size=first.hidden_size, **options)
        return y

    def _finish(self, letters: tuple[str, ...], size: int, states: bool, lengths: bool) -> Any:
        helper, layer = self.onnx.helper, self.layer
        dtype = helper.np_dtype_to_tensor_dtype(self.dtype)
        axes = ["batch", "time"] if layer.batch_first else ["time", "batch"]
        state = [layer.num_layers * size, "batch", layer.hidden_size]
        inputs = {"input": (dtype, [*axes, layer.input_size])}
        if lengths:
            inputs["lengths"] = (helper.np_dtype_to_tensor_dtype(np.dtype("int32")), ["batch"])
        if states:
            inputs |= {f"{letter}0": (dtype, state) for letter in letters}
        outputs = {"output": (dtype, [*axes, size * layer.hidden_size])}
        outputs |= {f"{letter}_n": (dtype, state) for letter in letters}
        infos = [
            [helper.make_tensor_value_info(name, *value) for name, value in values.items()]
            for values in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "jaxrnn", *infos, self.constants)
        versions = {"opset_imports": [helper.make_opsetid("", _OPSET)], "ir_version": _IR_VERSION}
        return helper.make_model(graph, producer_name="jaxrnn", **versions)
