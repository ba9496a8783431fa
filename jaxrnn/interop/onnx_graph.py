"""A graph of ONNX, asked for the values in it that don't depend on its inputs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from jaxrnn.interop._parts import ConversionError, needed

RECURRENT = ("RNN", "LSTM", "GRU")


class Graph:
    """The nodes, initialisers and inputs of a model by their names.

    Args:
        model: an ``onnx.ModelProto``.
    """

    def __init__(self, model: Any):
        self.onnx = needed("onnx", "onnx")
        needed("onnx.reference", "onnx")
        self.model = model
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {
            output: number
            for number, node in enumerate(self.nodes)
            for output in node.output
            if output
        }

    @property
    def recurrent(self) -> list[Any]:
        """The recurrent nodes, in the order in which they run."""
        return [node for node in self.nodes if is_recurrent(node)]

    def value(self, name: str, given: dict[str, np.ndarray] | None = None) -> np.ndarray | None:
        """The value under a name; None where it takes more than what is given, or a recurrent node.

        Args:
            name: of an initialiser, or of an output of any node.
            given: values under other names, which may stand inside of the graph.

        Raises:
            ConversionError: if the nodes on the way can't be run.
        """
        given = given or {}
        if name in given:
            return given[name]
        if name in self.constants:
            return self.onnx.numpy_helper.to_array(self.constants[name])
        numbers, leaves = self._above(name, set(given))
        recurrent = any(is_recurrent(self.nodes[number]) for number in numbers)
        if recurrent or leaves - set(given) - set(self.constants):
            return None
        helper = self.onnx.helper
        nodes = [self.nodes[number] for number in sorted(numbers)]
        inputs = [
            helper.make_tensor_value_info(
                key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for key, array in given.items()
        ]
        output = self.onnx.ValueInfoProto(name=name)
        constants = [self.constants[leaf] for leaf in sorted(leaves & set(self.constants))]
        graph = helper.make_graph(nodes, "part", inputs, [output], constants)
        model = helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
        try:
            return self.onnx.reference.ReferenceEvaluator(model).run(None, given)[0]
        except Exception as error:  # of whatever operators stand in a file
            raise ConversionError(f"{name} can't be computed: {error}") from error

    def axes(self, name: str) -> list[int]:
        """The lengths of the axes of a value, 0 for one left open; none where nothing is known."""
        return self._axes.get(name, [])

    @functools.cached_property
    def _axes(self) -> dict[str, list[int]]:
        graph = self.onnx.shape_inference.infer_shapes(self.model).graph
        values = (*graph.input, *graph.value_info, *graph.output)
        return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    def at_rest(self, name: str) -> np.ndarray | None:
        """The value under a name where each input of the graph is zeros, free axes of length 2.

        None where a recurrent node takes part in it.
        """
        _, leaves = self._above(name, set())
        zeros = {}
        for value in self.model.graph.input:
            if value.name in leaves and value.name not in self.constants:
                kind = value.type.tensor_type
                dtype = self.onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
                zeros[value.name] = np.zeros([d.dim_value or 2 for d in kind.shape.dim], dtype)
        return self.value(name, zeros)

    def _above(self, name: str, stop: set[str]) -> tuple[set[int], set[str]]:
        """The nodes that a value comes from, and the names that no node makes."""
        numbers: set[int] = set()
        leaves: set[str] = set()
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one in stop or one not in self.makers:
                leaves.add(one)
            elif self.makers[one] not in numbers:
                numbers.add(self.makers[one])
                waiting += [key for key in self.nodes[self.makers[one]].input if key]
        return numbers, leaves


def is_recurrent(node: Any) -> bool:
    """Whether a node is one of ONNX's three recurrent operators."""
    return node.op_type in RECURRENT and node.domain in ("", "ai.onnx")
