"""ONNX out: one of our layers as a model that any runtime of ONNX runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn._files import write_whole
from jaxrnn.interop._parts import (
    GATES,
    KINDS,
    PEEPHOLES,
    RESET_BEFORE,
    ConversionError,
    Part,
    needed,
    reordered,
    taken_apart,
)
from jaxrnn.interop.onnx_read import ONNX_GATES, OPERATORS, PEEPHOLE_GATES

OPSET, IR_VERSION = 17, 8
"""Old enough for every runtime of the last years; the operators have not changed since."""


def to_onnx(
    layer: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    states: bool = False,
    lengths: bool = False,
) -> Any:
    """An ONNX model that computes what one of our layers does, batch and time left open.

    Args:
        layer: an `RNN`, `LSTM` (without a projection), `GRU` or `Recurrent` of
            `cells.GRUResetBefore` or `cells.PeepholeLSTM`.
        path: where to write it too; a file that is there stays if that fails.
        states: let the model take the initial states, inputs ``h0`` and, of an LSTM, ``c0``,
            (F*L, N, H); without, they are zeros.
        lengths: let the model take the steps of each row, an input ``lengths``, int32 (N,), each at
            least 1.

    Returns:
        The ``onnx.ModelProto``. Its input is ``input``, (T, N, D), or (N, T, D) of a layer that is
        ``batch_first``; its outputs are ``output``, (T, N, F*H) or (N, T, F*H), ``h_n`` and, of an
        LSTM, ``c_n``, (F*L, N, H), as PyTorch has them. It computes in the layer's ``dtype``, or
        else in that of its weights. onnxruntime on a CPU knows float32 only.

    Raises:
        ImportError: if onnx is not installed.
        TypeError: for anything but a layer of ours.
        ConversionError: a ValueError, for a cell, a projection or a dtype that ONNX doesn't have.
        OSError: if the file can't be written.

    Warns:
        UserWarning: of dropout, which is not converted.

    Example:
        ``to_onnx(lstm, "lstm.onnx")``, and then
        ``onnxruntime.InferenceSession("lstm.onnx").run(None, {"input": x})``.
    """
    onnx = needed("onnx", "onnx")
    stack = taken_apart(layer, "to_onnx", KINDS | RESET_BEFORE | PEEPHOLES)
    dtype = np.dtype(layer.param_dtype if layer.dtype is None else layer.dtype)
    if dtype.name not in ("float16", "float32", "float64"):
        raise ConversionError(
            f"to_onnx writes float16, float32 and float64, got a layer in {dtype.name}: set its "
            "dtype"
        )
    model = _Writer(onnx, layer, dtype).model(stack, states, lengths)
    onnx.checker.check_model(model)
    if path is not None:
        data = model.SerializeToString()
        write_whole(Path(path), lambda temporary: temporary.write_bytes(data))
    return model


class _Writer:
    """The nodes and constants of a model while it is written."""

    def __init__(self, onnx: Any, layer: Any, dtype: np.dtype[Any]):
        self.onnx, self.layer, self.dtype = onnx, layer, dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: list[str], outputs: list[str], **options: Any) -> None:
        name = outputs[0] if options.get("name") is None else options.pop("name")
        made = self.onnx.helper.make_node(kind, inputs, outputs, name=name, **options)
        self.nodes.append(made)

    def model(self, stack: list[list[Part]], states: bool, lengths: bool) -> Any:
        layer, directions = self.layer, len(stack[0])
        letters = tuple(layer.cell.states)
        given = {letter: [""] * len(stack) for letter in letters}
        if states:
            given = {letter: self._split(letter, len(stack), directions) for letter in letters}
        x = "input"
        if layer.batch_first:
            self.node("Transpose", [x], ["time_major"], perm=[1, 0, 2])
            x = "time_major"
        # (T, F, N, H) to (T, N, F*H): F is left out, or F and N change places and F joins H.
        shape = np.array([1] if directions == 1 else [0, 0, -1], np.int64)
        joining = self.constant("joining", shape)
        ends: dict[str, list[str]] = {letter: [] for letter in letters}
        for number, parts in enumerate(stack):
            names = [f"{letter}_n_l{number}" for letter in letters]
            start = [given[letter][number] for letter in letters]
            y = self._layer(number, parts, x, "lengths" if lengths else "", start, names)
            last = number == len(stack) - 1 and not layer.batch_first
            x = "output" if last else f"output_l{number}"
            if directions == 1:
                self.node("Squeeze", [y, joining], [x])
            else:
                self.node("Transpose", [y], [y + "_rows"], perm=[0, 2, 1, 3])
                self.node("Reshape", [y + "_rows", joining], [x])
            for letter, name in zip(letters, names):
                ends[letter].append(name)
        if layer.batch_first:
            self.node("Transpose", [x], ["output"], perm=[1, 0, 2])
        for letter, names in ends.items():
            self.node("Concat", names, [f"{letter}_n"], axis=0)
        return self._closed(letters, states, lengths)

    def _split(self, letter: str, count: int, directions: int) -> list[str]:
        """The initial states of each layer, of those of all."""
        names = [f"{letter}0_l{number}" for number in range(count)]
        sizes = self.constant(f"{letter}0_sizes", np.full(count, directions, np.int64))
        self.node("Split", [f"{letter}0", sizes], names, axis=0)
        return names

    def _layer(
        self,
        number: int,
        parts: list[Part],
        x: str,
        lengths: str,
        start: list[str],
        ends: list[str],
    ) -> str:
        """The node of one layer; the name of what it gives out."""
        kind = parts[0].kind
        orders = GATES[kind], ONNX_GATES[kind]

        def joined(name: str, fields: tuple[str, ...], orders: tuple[str, str] = orders) -> str:
            """(F, ...): the named weights of each direction one after another."""
            rows = [
                np.concatenate([reordered(getattr(part, field), *orders) for field in fields])
                for part in parts
            ]
            return self.constant(f"{name}_l{number}", np.stack(rows).astype(self.dtype))

        inputs = [x, joined("W", ("weight_ih",)), joined("R", ("weight_hh",))]
        inputs += [joined("B", ("bias_ih", "bias_hh")) if parts[0].bias_ih is not None else ""]
        inputs += [lengths, *start]
        if kind in PEEPHOLES.values():
            inputs += [joined("P", ("peepholes",), PEEPHOLE_GATES)]
        while not inputs[-1]:
            inputs.pop()
        operator = OPERATORS.get(kind, kind)
        options: dict[str, Any] = {}
        if operator == "GRU":
            options["linear_before_reset"] = int(kind == "GRU")
        if parts[0].nonlinearity == "relu":
            options["activations"] = ["Relu"] * len(parts)
        y = f"y_l{number}"
        self.node(
            operator,
            inputs,
            [y, *ends],
            name=f"{operator.lower()}_l{number}",
            hidden_size=parts[0].hidden_size,
            direction="bidirectional" if len(parts) == 2 else "forward",
            **options,
        )
        return y

    def _closed(self, letters: tuple[str, ...], states: bool, lengths: bool) -> Any:
        """The model of all that was written."""
        helper, layer = self.onnx.helper, self.layer
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        lead = ["batch", "time"] if layer.batch_first else ["time", "batch"]
        directions = 2 if layer.bidirectional else 1
        state = [layer.num_layers * directions, "batch", layer.hidden_size]
        inputs = {"input": (kind, [*lead, layer.input_size])}
        if lengths:
            inputs["lengths"] = (helper.np_dtype_to_tensor_dtype(np.dtype("int32")), ["batch"])
        if states:
            inputs |= {f"{letter}0": (kind, state) for letter in letters}
        outputs = {"output": (kind, [*lead, directions * layer.hidden_size])}
        outputs |= {f"{letter}_n": (kind, state) for letter in letters}
        described = [
            [helper.make_tensor_value_info(name, *value) for name, value in values.items()]
            for values in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "jaxrnn", *described, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, producer_name="jaxrnn", opset_imports=opsets, ir_version=IR_VERSION
        )
