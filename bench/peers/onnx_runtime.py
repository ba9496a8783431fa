# pyright: reportMissingImports=false
"""ONNX Runtime: its LSTM, GRU and RNN operators in a graph that is built here; forward only.

Bound input and output, so that a call copies nothing, and as many threads as there are cores. The
threads stop waiting actively at the end of a call: they would take the cores of the next contender.
"""

from time import perf_counter
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from bench.core import Contender, Unsupported
from bench.layers import NAMES, Spec, draw_input, draw_weights
from bench.machine import usable_cores
from bench.reference import errors

ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
"""ONNX's gates as places in PyTorch's: i o f c of i f g o, and z r h of r z n."""

OPSET, IR_VERSION = 17, 8
"""Old enough for every runtime of the last years; the three operators have not changed since."""


def reordered(cell: str, array: np.ndarray) -> np.ndarray:
    """Reorder gates (G H, ...) to ONNX's order.

    >>> reordered("gru", np.arange(6)).tolist()
    [2, 3, 0, 1, 4, 5]
    """
    gates = np.split(array, len(ORDER[cell]))
    return np.concatenate([gates[k] for k in ORDER[cell]])


def graph(spec: Spec) -> Any:
    """Build the model of a case: x (T, N, D) -> y (T, N, F*H), weights inside."""
    drawn, nodes, constants = draw_weights(spec), [], []
    F, H = spec.directions, spec.H

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def stacked(names: tuple[str, ...], layer: int) -> np.ndarray:
        """Stack the named parameters of a layer over directions (F, ...)."""
        suffixes = [suffix for k, _, suffix in spec.parts() if k == layer]
        return np.stack(
            [
                np.concatenate([reordered(spec.cell, drawn[f"{n}_{suffix}"]) for n in names])
                for suffix in suffixes
            ]
        )

    # What makes (T, N, F*H) of (T, F, N, H): F is left out, or F and N change places and F joins H.
    how = constant("how", np.array([1] if F == 1 else [0, 0, -1], np.int64))
    extra: dict[str, Any] = {"linear_before_reset": 1} if spec.cell == "gru" else {}
    value = "x"
    for k in range(spec.num_layers):
        last = "y" if k == spec.num_layers - 1 else f"y{k}"
        weights = [
            constant(f"W{k}", stacked(("weight_ih",), k)),
            constant(f"R{k}", stacked(("weight_hh",), k)),
            constant(f"B{k}", stacked(("bias_ih", "bias_hh"), k)),
        ]
        direction = "bidirectional" if F == 2 else "forward"
        inputs, parts = [value, *weights], f"parts{k}"
        nodes.append(
            helper.make_node(
                NAMES[spec.cell], inputs, [parts], hidden_size=H, direction=direction, **extra
            )
        )
        if F == 1:
            nodes.append(helper.make_node("Squeeze", [parts, how], [last]))
        else:
            nodes.append(helper.make_node("Transpose", [parts], [f"t{k}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"t{k}", how], [last]))
        value = last
    shapes = {"x": (spec.T, spec.N, spec.D), "y": (spec.T, spec.N, F * H)}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    model = helper.make_model(
        helper.make_graph(nodes, "layers", [x], [y], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model


def session(model: Any, device: str) -> Any:
    """Return a session on the CPU ("cpu") or on the first GPU ("cuda")."""
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in ort.get_available_providers():
        raise Unsupported("JAX runs on a GPU and this onnxruntime has no CUDA")
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    made = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
    if made.get_providers()[0] != provider:
        raise Unsupported("the CUDA provider of this onnxruntime does not start here")
    return made


class Peer:
    def contender(self, spec: Spec, backward: bool) -> Contender:
        if backward:
            raise Unsupported("forward only")
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        start = perf_counter()
        runtime = session(graph(spec), device)
        compile_s = perf_counter() - start
        shape = (spec.T, spec.N, spec.directions * spec.H)
        x = ort.OrtValue.ortvalue_from_numpy(draw_input(spec), device, 0)
        y = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
        binding = runtime.io_binding()
        binding.bind_ortvalue_input("x", x)
        binding.bind_ortvalue_output("y", y)

        def run() -> Any:
            runtime.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return y

        return Contender(
            run=run,
            compile_s=compile_s,
            layout="(T, N, D)",
            check=lambda: errors(spec, run().numpy(), None),
        )
