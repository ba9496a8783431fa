"""A forecaster as one file: its weights, and what it takes to use them on a file of rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import jaxrnn
from jaxrnn import _model_files as described
from jaxrnn import data
from jaxrnn.forecasting.forecaster import Forecaster, check_ahead, make_model
from jaxrnn.forecasting.options import Options
from jaxrnn.forecasting.units import Units
from jaxrnn.interop.torch import load_state_dict
from jaxrnn.layers.heads import LAYERS

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
    rnn, units = forecaster.model.rnn, forecaster.units
    description = {
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
    return described.write(path, forecaster.model, ENTRY, description)


def load(path: str | os.PathLike[str]) -> Forecaster:
    """Read a forecaster that `save` has written.

    Args:
        path: the file, or the folder of a forecast with a ``model.safetensors``.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, or not all of it.
    """
    path = Path(path, MODEL) if os.path.isdir(path) else Path(path)
    return described.read(path, ENTRY, "forecaster", _make)


def _make(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> Forecaster:
    """The forecaster of a description, once its sizes are those of the arrays."""
    sizes = {name: description[name] for name in ("window", "horizon", "hidden_size", "layers")}
    options = Options(cell=description["cell"], **sizes)
    columns = tuple(map(str, description["columns"]))
    expected = {
        "fc.weight": (options.horizon, options.hidden_size),
        f"rnn.weight_hh_l{options.layers - 1}": None,
    }
    described.check_shapes(arrays, expected)
    check_ahead(description["ahead"], options.horizon, columns)
    scales = [np.array(description[name], np.float64) for name in ("mean", "deviation", "step")]
    change = float(description["change"])
    if not all(s.shape == (len(columns),) and np.isfinite(s).all() for s in scales):
        raise ValueError(f"mean, deviation and step should be {len(columns)} finite numbers each")
    if not all((s > 0).all() for s in scales[1:]) or not 0 < change < np.inf:
        raise ValueError("deviation, step and change should be above 0")
    model = make_model(options, len(columns))
    load_state_dict(model, arrays)
    model.eval()
    return Forecaster(
        model,
        columns,
        data.Windows(options.window, options.horizon),
        Units(data.Scaling(*scales[:2]), scales[2], change),  # pyright: ignore
        description["ahead"],
    )
