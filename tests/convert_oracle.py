"""PyTorch's layers as its own exporter writes them to ONNX, with what they give out."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from tests.oracle import state_of, torch


def torch_exports() -> dict[str, np.ndarray]:
    """Of each kind of layer: ``KIND.file``, the bytes of the file; its output; its weights.

    Time and batch are open axes; x (N, T, D) is the input of all.
    """
    assert torch is not None
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    write: Any = torch.onnx.export
    results = {"x": x.numpy()}
    for kind in ("RNN", "LSTM", "GRU"):
        layer = getattr(torch.nn, kind)(3, 4, 2, batch_first=True, bidirectional=True).eval()
        file = io.BytesIO()
        with warnings.catch_warnings():  # of the exporter, that it has a successor
            warnings.simplefilter("ignore")
            axes = {"x": {0: "batch", 1: "time"}}
            write(layer, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
        results[f"{kind}.file"] = np.frombuffer(file.getvalue(), np.uint8)
        results[f"{kind}.output"] = layer(x)[0].detach().numpy()
        results |= state_of(layer, f"{kind}.")
    return results
