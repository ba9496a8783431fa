"""A forecaster as one file: its weights, and what it takes to use them on a file of rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import jaxrnn
from jaxrnn import data
from jaxrnn.files import write_whole
from jaxrnn.forecasting.forecaster import Forecaster, check_ahead, make_model
from jaxrnn.forecasting.options import Options
from jaxrnn.forecasting.units import Units
from jaxrnn.models import LAYERS
from jaxrnn.weights import load_state_dict, state_dict

ENTRY = "jaxrnn.forecaster"
"""Where in the header of the file the description is."""

MODEL = "model.safetensors"
"""What the file is called in the folder of a forecast."""


def save(forecaster: Forecaster, path: str | os.PathLike[str]) -> Path:
    """Write a forecaster to a safetensors file; what was there before stays until it is whole.

    The tensors are the weights under PyTorch's names, ``rnn.*`` and ``fc.*``; the header holds, as
    JSON, the columns, window, horizon, layer and scales, with all their digits, and the version of
    this package.

    Args:
        forecaster: as `fit_forecaster` makes it.
        path: the file.

    Raises:
        OSError: if it can't be written.
    """
    from safetensors.numpy import save as as_bytes

    rnn, units = forecaster.model.rnn, forecaster.units
    described = {
        "version": jaxrnn.__version__,
        "columns": list(forecaster.columns),
        "window": forecaster.cut.size,
        "horizon": forecaster.cut.horizon,
        "ahead": forecaster.ahead,
        "cell": {kind: name for name, kind in LAYERS.items()}[type(rnn)],
        "layers": rnn.num_layers,
        "hidden_size": rnn.hidden_size,
        "mean": units.scaling.shift.tolist(),
        "deviation": units.scaling.scale.tolist(),
        "step": units.step.tolist(),
        "change": units.change,
    }
    metadata = {"format": "pt", ENTRY: json.dumps(described)}
    content = as_bytes(state_dict(forecaster.model), metadata=metadata)
    return write_whole(Path(path), lambda temporary: temporary.write_bytes(content))


def load(path: str | os.PathLike[str]) -> Forecaster:
    """Read a forecaster that `save` has written.

    Args:
        path: the file, or the folder of a forecast with a ``model.safetensors``.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, or not all of it.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path, MODEL) if os.path.isdir(path) else Path(path)
    with path.open("rb"):  # the operating system's own words for a file that can't be read
        pass
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:  # the latter for numbers that NumPy has not
        raise ValueError(f"{path} is not a safetensors file, or not all of one: {error}") from None
    if ENTRY not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not of a forecaster")
    try:
        forecaster = _make(json.loads(metadata[ENTRY]), arrays)
        load_state_dict(forecaster.model, arrays)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        words = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path} is not a whole forecaster: {words}") from None
    forecaster.model.eval()
    return forecaster


def _make(described: dict[str, Any], arrays: dict[str, np.ndarray]) -> Forecaster:
    """The forecaster of a description, once its sizes are those of the arrays."""
    sizes = {name: described[name] for name in ("window", "horizon", "hidden_size", "layers")}
    options = Options(cell=described["cell"], **sizes)
    columns = tuple(map(str, described["columns"]))
    expected = {
        "fc.weight": (options.horizon, options.hidden_size),
        f"rnn.weight_hh_l{options.layers - 1}": None,
    }
    for name, shape in expected.items():  # or a wrong number would make a model of any size
        if name not in arrays or shape not in (None, arrays[name].shape):
            found = arrays[name].shape if name in arrays else "nothing"
            raise ValueError(f"{name} should be there, {shape or 'of any shape'}, found {found}")
    check_ahead(described["ahead"], options.horizon, columns)
    scales = [np.array(described[name], np.float64) for name in ("mean", "deviation", "step")]
    change = float(described["change"])
    if not all(s.shape == (len(columns),) and np.isfinite(s).all() for s in scales):
        raise ValueError(f"mean, deviation and step should be {len(columns)} finite numbers each")
    if not all((s > 0).all() for s in scales[1:]) or not 0 < change < np.inf:
        raise ValueError("deviation, step and change should be above 0")
    return Forecaster(
        make_model(options, len(columns)),
        columns,
        data.Windows(options.window, options.horizon),
        Units(data.Scaling(*scales[:2]), scales[2], change),  # pyright: ignore
        described["ahead"],
    )
