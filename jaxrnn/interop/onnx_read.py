"""ONNX in: the RNN, LSTM and GRU nodes of a model as one of our layers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrnn.interop._parts import (
    GATES,
    SEEING,
    ConversionError,
    Part,
    needed,
    put_together,
    refuse,
    reordered,
)
from jaxrnn.interop.onnx_graph import Graph

ONNX_GATES = {
    "RNN": "h",
    "LSTM": "iofg",
    "GRU": "zrn",
    "GRUResetBefore": "zrn",
    "PeepholeLSTM": "iofg",
}
"""The gates of each kind in ONNX's order, under PyTorch's letters."""

OPERATORS = {"GRUResetBefore": "GRU", "PeepholeLSTM": "LSTM"}
"""The operator of a kind, where it is not called alike."""

PEEPHOLE_GATES = "".join(name[-1] for name in SEEING), "iof"
"""The gates that see c, in our order and in that of ONNX's input P. In both o sees the new c."""

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def from_onnx(model: Any, nodes: Sequence[str] | None = None, *, reverse: bool = False) -> Any:
    """One of our layers from the recurrent nodes of an ONNX model.

    Args:
        model: the path of a file, or an ``onnx.ModelProto``.
        nodes: the names of the nodes to take, from the first layer to the last; None takes all
            ``RNN``, ``LSTM`` and ``GRU`` nodes of the graph.
        reverse: take nodes whose one direction is the reverse. A layer of one direction reads
            forwards, so that you turn the sequence: ``layer(x[::-1])[0][::-1]`` for (T, N, D).

    Returns:
        An `RNN`, `LSTM` or `GRU`; of GRU nodes with ``linear_before_reset=0``, ONNX's default, a
        `Recurrent` of `cells.GRUResetBefore`; of LSTM nodes with peepholes (input P) one of
        `cells.PeepholeLSTM`. It has as many layers as there are nodes, and is ``batch_first``
        where the nodes' ``layout`` is 1 or the graph transposes what it gives to the first. What
        the graph has as ``sequence_lens`` is ``lengths`` of a call, and the initial states it takes
        as inputs or computes are its ``hx``. Weights may be initialisers, or whatever nodes make of
        them.

    Raises:
        ImportError: if onnx is not installed.
        OSError: if the file can't be read.
        TypeError: for a model that is neither.
        ConversionError: a ValueError that lists all that can't be held: other activations, a cell
            clip, coupled gates, weights that are no constants, initial states other than zeros,
            nodes that don't stand one upon the other.

    Example:
        ``gru = from_onnx("model.onnx")``; of an encoder and a decoder in one file,
        ``from_onnx("model.onnx", ["encoder"])``.
    """
    graph = Graph(_loaded(model))
    try:
        return _one_layer(graph, nodes, reverse)
    except ConversionError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        words = " ".join(str(error).split())
        raise ConversionError(
            f"from_onnx: the model is damaged: {type(error).__name__}: {words}"
        ) from error


def _one_layer(graph: Graph, nodes: Sequence[str] | None, reverse: bool) -> Any:
    """One of our layers from the nodes of a graph."""
    found = graph.recurrent
    names = ", ".join(f"{node.name!r} ({node.op_type})" for node in found) or "none"
    if nodes is not None:
        by_name = {node.name: node for node in found}
        if missing := [name for name in nodes if name not in by_name]:
            raise ConversionError(
                f"the graph has no recurrent node {', '.join(map(repr, missing))}: it has {names}"
            )
        found = [by_name[name] for name in nodes]
    if not found:
        types = ", ".join(sorted({node.op_type for node in graph.nodes}))
        raise ConversionError(f"expected RNN, LSTM or GRU nodes, the graph has only {types}")
    problems: list[str] = []
    layers = [_directions(graph, node, problems, reverse) for node in found]
    for below, node in itertools.pairwise(found):
        if not _stands_on(graph, below, node):
            problems.append(
                f"{_where(node)}: its input is not the output of {_where(below)}; the recurrent "
                f"nodes are {names}: give those of one layer as nodes="
            )
    firsts = {_batch_first(graph, node) for node in found[:1]}
    layouts = [_attributes(graph, node).get("layout", 0) for node in found]
    if len(set(layouts)) > 1:
        problems.append(f"expected one layout in all nodes, got {layouts}")
    refuse(problems, "from_onnx can't hold:")
    return put_together(layers, batch_first=firsts.pop(), function="from_onnx")


def _loaded(model: Any) -> Any:
    onnx = needed("onnx", "onnx")
    if isinstance(model, onnx.ModelProto):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"from_onnx takes a path or a ModelProto, got {type(model).__name__}")
    with open(model, "rb"):  # the operating system's own words for a file that can't be read
        pass
    decode = needed("google.protobuf.message", "onnx").DecodeError
    try:
        return onnx.load(os.fspath(model))
    except decode as error:
        raise ConversionError(f"{os.fspath(model)} is not an ONNX file: {error}") from error


def _where(node: Any) -> str:
    return f"{node.op_type} {node.name or node.output[0]!r}"


def _attributes(graph: Graph, node: Any) -> dict[str, Any]:
    get = graph.onnx.helper.get_attribute_value
    return {attribute.name: get(attribute) for attribute in node.attribute}


def _inputs(node: Any) -> dict[str, str]:
    return {name: given for name, given in zip(INPUTS, node.input) if given}


def _directions(graph: Graph, node: Any, problems: list[str], reverse: bool) -> list[Part]:
    """The directions of a node; notes all that it has and ours can't hold."""
    where, kind = _where(node), node.op_type
    attributes, inputs = _attributes(graph, node), _inputs(node)
    direction = attributes.get("direction", b"forward").decode()
    size = 2 if direction == "bidirectional" else 1
    if reverse and direction != "reverse":
        problems.append(f"{where}: expected direction reverse, as is asked for, got {direction}")
    elif direction == "reverse" and not reverse:
        problems.append(
            f"{where}: expected direction forward or bidirectional, got reverse; to turn the "
            "sequence yourself: from_onnx(..., reverse=True)"
        )
    functions = ["tanh"] if kind == "RNN" else ["sigmoid", "tanh", "tanh"][: 2 + (kind == "LSTM")]
    got = [name.decode().lower() for name in attributes.get("activations", [])]
    allowed = [functions * size] + ([["relu"] * size] if kind == "RNN" else [])
    if got and got not in allowed:
        words = " or ".join(map(str, allowed))
        problems.append(f"{where}: expected activations {words}, got {got}")
    if "clip" in attributes:
        problems.append(f"{where}: expected no clip, got {attributes['clip']:g}")
    if attributes.get("input_forget", 0):
        problems.append(f"{where}: expected input_forget=0, got 1")
    if kind == "GRU" and not attributes.get("linear_before_reset", 0):
        kind = "GRUResetBefore"
    _check_call(graph, where, inputs, problems)

    values = {name: graph.value(inputs[name]) for name in ("W", "R", "B", "P") if name in inputs}
    if "P" in values and (values["P"] is None or values["P"].any()):
        kind = "PeepholeLSTM"
    else:
        values.pop("P", None)  # zeros are none
    arrays = {name: array for name, array in values.items() if array is not None}
    lacking = [name for name in ("W", "R", *values) if name not in arrays]
    if lacking:
        names = ", ".join(dict.fromkeys(lacking))
        problems.append(f"{where}: expected constant weights, {names} come from the inputs")
    hidden = attributes.get("hidden_size", 0)
    if not hidden and "R" in arrays:  # the attribute may be left out
        hidden = arrays["R"].shape[-1]
    rows = len(GATES[kind]) * hidden
    axes = {"W": (size, rows, None), "R": (size, rows, hidden), "B": (size, 2 * rows)}
    axes["P"] = (size, len(SEEING) * hidden)
    wrong = []
    for name, array in arrays.items():
        wanted = axes[name]
        fits = array.ndim == len(wanted) and all(
            w in (None, a) for w, a in zip(wanted, array.shape)
        )
        if not fits:
            shown = ", ".join("D" if w is None else str(w) for w in wanted)
            wrong.append(f"{where}: expected {name} of shape ({shown}), got {array.shape}")
    problems.extend(wrong)
    if lacking or wrong:
        empty = np.zeros((0, 0), np.float32)
        return [Part(where, kind, empty, empty)] * size

    def ours(array: Any) -> np.ndarray:
        return reordered(array, ONNX_GATES[kind], GATES[kind])

    parts = []
    nonlinearity = got[0] if kind == "RNN" and got else "tanh"
    for index, suffix in zip(range(size), ("", " (reverse)")):
        weights = [ours(arrays[name][index]) for name in ("W", "R")]
        if "B" in arrays:
            weights += map(ours, np.split(arrays["B"][index], 2))
        part = Part(where + suffix, kind, *weights, nonlinearity=nonlinearity)
        if "P" in arrays:
            peepholes = reordered(arrays["P"][index], *PEEPHOLE_GATES[::-1])
            part = part._replace(peepholes=peepholes)
        parts.append(part)
    return parts


def _check_call(graph: Graph, where: str, inputs: dict[str, str], problems: list[str]) -> None:
    """Note what a node is given beside X and its weights, and a layer does not keep."""
    for name in ("initial_h", "initial_c"):
        state = graph.at_rest(inputs[name]) if name in inputs else None
        if state is not None and state.any():
            problems.append(
                f"{where}: expected an {name} of zeros, or one that the graph takes or computes; "
                f"got constants up to {np.abs(state).max():.3g}, which a layer takes as hx"
            )
    if "sequence_lens" in inputs and graph.value(inputs["sequence_lens"]) is not None:
        problems.append(
            f"{where}: expected sequence_lens among the inputs of the graph, got constants, which "
            "a layer takes as lengths"
        )


def _stands_on(graph: Graph, below: Any, node: Any) -> bool:
    """Whether a node's input is another's output, with the directions side by side.

    What lies between is run on numbers that all differ, of both signs.
    """
    attributes = _attributes(graph, below)
    size = 2 if attributes.get("direction") == b"bidirectional" else 1
    output = below.output[0]
    if not output:
        return False
    rows_first = bool(attributes.get("layout", 0))
    free = (2, 3, size, 4) if rows_first else (3, size, 2, 4)
    shape = [a or b for a, b in zip(graph.axes(output) or free, free)]
    given = np.linspace(-100, 101, np.prod(shape), dtype=np.float32).reshape(shape)
    wanted = given if rows_first else given.swapaxes(1, 2)
    wanted = wanted.reshape(*wanted.shape[:2], -1)
    got = graph.value(node.input[0], {output: given})
    return got is not None and np.array_equal(got, wanted)


def _batch_first(graph: Graph, node: Any) -> bool:
    """Whether the input of the graph's first recurrent node has its batch first."""
    if _attributes(graph, node).get("layout", 0):
        return True
    maker = graph.makers.get(node.input[0])
    if maker is None or graph.nodes[maker].op_type != "Transpose":
        return False
    return list(_attributes(graph, graph.nodes[maker]).get("perm", ())) == [1, 0, 2]
