"""ONNX files of PyTorch layers by PyTorch's exporter, with their outputs."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from tests.oracle import state_of, torch


def torch_exports() -> dict[str, np.ndarray]:
    """Return the file, output and weights of each kind of layer, ``KIND.file`` and so on.

    Time and batch are dynamic; x (N, T, D) is the common input.
    """
    assert torch is not None
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    write: Any = torch.onnx.export
    results = {"x": x.numpy()}
    for kind in ("RNN", "LSTM", "GRU"):
        layer = getattr(torch.nn, kind)(3, 4, 2, batch_first=True, bidirectional=True).eval()
        file = io.BytesIO()
        with warnings.catch_warnings():  # deprecation of the exporter
            warnings.simplefilter("ignore")
            axes = {"x": {0: "batch", 1: "time"}}
            write(layer, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
        results[f"{kind}.file"] = np.frombuffer(file.getvalue(), np.uint8)
        results[f"{kind}.output"] = layer(x)[0].detach().numpy()
        results |= state_of(layer, f"{kind}.")
    return results
