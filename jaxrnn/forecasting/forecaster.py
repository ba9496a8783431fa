"""`Forecaster`: a recurrent model with the scales of its series, in one file."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from jaxrnn import _checks as checks
from jaxrnn import data
from jaxrnn._files import check_shapes, read_model, write_safetensors
from jaxrnn.interop.torch import load_state_dict, state_dict
from jaxrnn.layers.heads import LAYERS, Regressor

MODEL_FILE = "model.safetensors"
"""Name of the model file in the output folder of ``jaxrnn forecast``."""

_ENTRY = "jaxrnn.forecaster"  # key of the description in the header of a model file
_MIN_DEVIATION, _MAX_VALUE, _MAX_Z = 1e-100, 1e100, 1e30  # what float32 and squares can hold


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyperparameters of a forecaster and its training.

    Args:
        window: number W of input steps, at least 2.
        horizon: number H of steps that one call of the model forecasts.
        cell: recurrent cell, "rnn", "lstm" or "gru".
        layers: number of recurrent layers.
        hidden_size: size of the hidden state.
        epochs: maximal number of epochs.
        batch_size: number of windows in a batch.
        learning_rate: initial learning rate of Adam, which decays to 0 along a cosine.
        patience: epochs without improvement on the validation set before training stops.
        validation: fraction of the validation set, which precedes the test set.
        held_out: fraction of the test set, at the end of the series.
        seed: random seed of the weights and of the order of the windows.

    Raises:
        ValueError: for an invalid value.
    """

    window: int = 24
    horizon: int = 12
    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    layers: int = 1
    hidden_size: int = 64
    epochs: int = 200
    batch_size: int = 32
    learning_rate: float = 0.003
    patience: int = 15
    validation: float = 0.15
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        checks.at_least("window", self.window, 2)
        for name in ("horizon", "layers", "hidden_size", "epochs", "batch_size", "patience"):
            checks.at_least(name, getattr(self, name), 1)
        checks.choice("cell", self.cell, tuple(LAYERS))
        checks.positive("learning_rate", self.learning_rate)
        checks.seed(self.seed)
        for name in ("validation", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in (0, 1), got {getattr(self, name)!r}")
        if self.validation + self.held_out > 0.9:
            raise ValueError(
                "`validation` + `held_out` must be <= 0.9, got "
                f"{self.validation!r} + {self.held_out!r}"
            )

    @property
    def fractions(self) -> tuple[float, float, float]:
        """Fractions of the training, the validation and the test set."""
        return 1 - self.validation - self.held_out, self.validation, self.held_out


class Scales(NamedTuple):
    r"""Normalisation of a series, fitted to its training set; the target column comes first.

    .. math::

        z_t &= (s_t - \text{mean}) / \text{deviation}                            && (C,) \\
        x_t &= [z_t, (z_t - z_{t-1}) / \text{step}]                              && (2C,) \\
        y_h &= (z_{t+h} - z_t) / \text{change}, \quad h = 1, \dots, H            && (H,) \\
        s_{t+h} &= s_t + y_h \cdot \text{change} \cdot \text{deviation}

    y is of the target column, and the first difference in x is 0. The target is a change since the
    last step of the window, so a model with output 0 is the persistence forecast, and a series with
    a trend is forecast beyond the range of its training set. With z as the target and without the
    differences, the test error on ``co2.csv`` was 30 times as large.

    Attributes:
        scaling: mean and standard deviation of each column, float64.
        step: root mean square of the differences of z (C,), float64.
        change: root mean square of z_{t+h} - z_t of the target column over h = 1 ... H.
    """

    scaling: data.Scaling
    step: np.ndarray
    change: float

    @classmethod
    def fit(cls, values: np.ndarray, train: range, horizon: int, name: str = "values") -> Scales:
        """Return the scales of the training steps of values (T, C), float64, not constant."""
        with np.errstate(all="ignore"), jax.enable_x64(True):
            scaling = jax.tree.map(np.asarray, data.standard(values, train))
            z = scaling(values[: train.stop])
            step = np.sqrt(np.mean(np.diff(z, axis=0) ** 2, axis=0))
            ahead = range(1, min(horizon, len(z) - 1) + 1)
            change = np.sqrt(np.mean([np.mean((z[h:, 0] - z[:-h, 0]) ** 2) for h in ahead]))
            rest = scaling(values[train.stop :])
        scales = np.concatenate([scaling.scale, step, [change]])
        valid = np.isfinite(scales).all() and (scales > 0).all()
        valid &= (scaling.scale > _MIN_DEVIATION).all() and (np.abs(values) < _MAX_VALUE).all()
        if not (valid and all((np.abs(part) < _MAX_Z).all() for part in (z, rest))):
            raise ValueError(
                f"{name} can't be scaled: values must be < {_MAX_VALUE:g} and within {_MAX_Z:g} "
                f"standard deviations of the mean, standard deviations > {_MIN_DEVIATION:g}"
            )
        return cls(scaling, step, float(change))

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """Return z of values (..., C), computed in float64, as float32."""
        with np.errstate(all="ignore"):
            z = np.asarray(self.scaling(values))
        if not (np.abs(z) < _MAX_Z).all():
            raise ValueError(
                f"values must be within {_MAX_Z:g} standard deviations of the training set's mean"
            )
        return z.astype(np.float32)

    def inputs(self, z: jax.Array) -> jax.Array:
        """Return the model's inputs for windows z (..., W, C): (..., W, 2C)."""
        pad = [(0, 0)] * (z.ndim - 2) + [(1, 0), (0, 0)]
        step = jnp.asarray(self.step, z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))
        differences = jnp.pad(jnp.diff(z, axis=-2) / step, pad)
        return jnp.concatenate([z, differences], axis=-1)

    def targets(self, z: jax.Array, future: jax.Array) -> jax.Array:
        """Return the targets (..., H) of windows z (..., W, C) before future (..., H, C)."""
        return (future[..., 0] - z[..., -1, :1]) / jnp.asarray(self.change, z.dtype)

    def forecasts(self, last: Any, outputs: Any) -> np.ndarray:
        """Return the model's outputs (..., H) after last values (...) in the units of the data."""
        unit = self.change * self.scaling.scale[0]
        return np.asarray(last, np.float64)[..., None] + unit * np.asarray(outputs, np.float64)


@dataclass(frozen=True)
class Forecaster:
    """A trained model in the units of the data, as `fit_forecaster` returns it.

    Attributes:
        model: a `Regressor` from windows (N, W, 2C) to H outputs, in evaluation mode.
        columns: names of the C columns, the target column first.
        windows: windows of W steps with a horizon of H.
        scales: normalisation of the series.
        ahead: default number of steps that `predict` forecasts.
    """

    model: Regressor
    columns: tuple[str, ...]
    windows: data.Windows
    scales: Scales
    ahead: int

    @property
    def name(self) -> str:
        """Name of the recurrent layer."""
        return type(self.model.rnn).__name__

    def predict(self, values: Any, ahead: int | None = None) -> np.ndarray:
        """Forecast the steps after the end of a series.

        Args:
            values: (T, C), in the order of `columns`, or (T,) for one column. The last W steps are
                the input.
            ahead: number of steps. Defaults to the attribute `ahead`. Beyond the horizon, the
                forecasts become inputs, H at a time, which requires a single column.

        Returns:
            The forecasts (ahead,), float64, in the units of the data, bitwise equal before saving
            and after loading.

        Raises:
            ValueError: for invalid values, fewer than W steps, or too many steps ahead.
        """
        values = as_series(values, self.columns, "values")
        ahead = self.ahead if ahead is None else ahead
        check_ahead(ahead, self.windows.horizon, self.columns)
        if len(values) < self.windows.size:
            raise ValueError(
                f"the series must have at least {self.windows.size} steps, the window of the "
                f"model, got {len(values)}"
            )
        graph, weights = nnx.split(self.model)

        def _forecast(window: np.ndarray) -> np.ndarray:
            z = self.scales.normalise(window)[None]
            outputs = _outputs(graph, weights, self.scales, z)
            return self.scales.forecasts(window[-1:, 0], outputs)[0]

        return forecast_recursively(_forecast, values[-self.windows.size :], ahead)

    def backtest(self, values: np.ndarray, indices: range) -> np.ndarray:
        """Return the forecasts (K, H) from K consecutive windows of values (T, C), float64."""
        z = jnp.asarray(self.scales.normalise(values))
        index = jnp.arange(indices.start, indices.stop, dtype=jnp.int32)
        graph, weights = nnx.split(self.model)
        outputs = _window_outputs(graph, weights, self.scales, self.windows, z, index)
        return self.scales.forecasts(last_values(values, self.windows, indices), outputs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file, atomically.

        The tensors have PyTorch's names, ``rnn.*`` and ``fc.*``. The header describes columns,
        window, horizon, layer and scales as JSON.
        """
        rnn, scales = self.model.rnn, self.scales
        description = {
            "version": jaxrnn.__version__,
            "columns": list(self.columns),
            "window": self.windows.size,
            "horizon": self.windows.horizon,
            "ahead": self.ahead,
            "cell": {kind: name for name, kind in LAYERS.items()}[type(rnn)],
            "layers": rnn.num_layers,
            "hidden_size": rnn.hidden_size,
            "mean": scales.scaling.shift.tolist(),
            "deviation": scales.scaling.scale.tolist(),
            "step": scales.step.tolist(),
            "change": scales.change,
        }
        return write_safetensors(path, state_dict(self.model), **{_ENTRY: json.dumps(description)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Forecaster:
        """Read a forecaster from a file, or from the output folder of ``jaxrnn forecast``.

        Raises:
            OSError: if the file can't be read.
            ValueError: if it is not the file of a forecaster, or is corrupt.
        """
        path = Path(path, MODEL_FILE) if os.path.isdir(path) else Path(path)
        return read_model(path, _ENTRY, "forecaster", _build)


def as_series(values: Any, columns: Sequence[str], name: str) -> np.ndarray:
    """Return values as (T, C), float64; errors name the step and the column."""
    series = np.asarray(values)
    if not (np.issubdtype(series.dtype, np.floating) or np.issubdtype(series.dtype, np.integer)):
        raise ValueError(f"{name} must be numbers, got {series.dtype}")
    series = series[:, None] if series.ndim == 1 else series
    if series.ndim != 2 or series.shape[1] != len(columns):
        raise ValueError(
            f"{name} must have shape (T, {len(columns)}) for columns "
            f"{', '.join(map(repr, columns))}, got {np.shape(values)}"
        )
    series = series.astype(np.float64)
    if not np.isfinite(series).all():
        step, index = np.argwhere(~np.isfinite(series))[0]
        raise ValueError(f"{name}, step {step + 1}, column {columns[index]!r} must be finite")
    return series


def check_ahead(ahead: int, horizon: int, columns: Sequence[str]) -> None:
    """Check the number of steps to forecast."""
    checks.at_least("ahead", ahead, 1)
    if ahead > horizon and len(columns) > 1:
        raise ValueError(
            f"`ahead` must be <= {horizon}, the horizon, got {ahead}: beyond it the model requires "
            f"{', '.join(map(repr, columns[1:]))}, which it does not forecast"
        )


def forecast_recursively(
    forecast: Callable[[np.ndarray], np.ndarray], window: np.ndarray, ahead: int
) -> np.ndarray:
    """Return `ahead` forecasts after a window (W, C); beyond the horizon, forecasts are inputs."""
    forecasts = forecast(window)
    while len(forecasts) < ahead:
        inputs = np.concatenate([window, forecasts[:, None]])[-len(window) :]
        forecasts = np.concatenate([forecasts, forecast(inputs)])
    return forecasts[:ahead]


def last_values(values: np.ndarray, windows: data.Windows, indices: range) -> np.ndarray:
    """Return the last target value (K,) of K consecutive windows of values (T, C)."""
    return values[indices.start + windows.size - 1 : indices.stop + windows.size - 1, 0]


def make_model(options: Options, columns: int) -> Regressor:
    """Return a model for a number of columns, with weights drawn from the seed."""
    rngs = nnx.Rngs(options.seed)
    layer = LAYERS[options.cell]
    rnn = layer(2 * columns, options.hidden_size, options.layers, batch_first=True, rngs=rngs)
    return Regressor(rnn, options.horizon, rngs=rngs)


def model_outputs(model: Regressor, scales: Scales, z: jax.Array) -> jax.Array:
    """Return the outputs of a model (N, H) for windows z (N, W, C)."""
    y, _ = model(scales.inputs(z))
    return y


def map_windows(function: Callable[[jax.Array], jax.Array], index: jax.Array) -> jax.Array:
    """Map a function over window indices (K,), in chunks that bound the memory: (K, ...)."""
    return jax.lax.map(function, index, batch_size=min(1024, len(index)))


@functools.partial(jax.jit, static_argnums=0)
def _outputs(graph: Any, weights: Any, scales: Scales, z: jax.Array) -> jax.Array:
    return model_outputs(nnx.merge(graph, weights), scales, z)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _window_outputs(
    graph: Any, weights: Any, scales: Scales, windows: data.Windows, z: jax.Array, index: jax.Array
) -> jax.Array:
    model = nnx.merge(graph, weights)
    return map_windows(
        lambda i: model_outputs(model, scales, windows.take(z, i)[0][None])[0], index
    )


def _build(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> Forecaster:
    """Return the forecaster of a description, whose sizes must be those of the arrays."""
    sizes = {name: description[name] for name in ("window", "horizon", "hidden_size", "layers")}
    options = Options(cell=description["cell"], **sizes)
    columns = tuple(map(str, description["columns"]))
    expected = {
        "fc.weight": (options.horizon, options.hidden_size),
        f"rnn.weight_hh_l{options.layers - 1}": None,
    }
    check_shapes(arrays, expected)
    check_ahead(description["ahead"], options.horizon, columns)
    mean, *positive = (
        np.array(description[name], np.float64) for name in ("mean", "deviation", "step")
    )
    if not all(a.shape == (len(columns),) and np.isfinite(a).all() for a in (mean, *positive)):
        raise ValueError(f"mean, deviation and step must be {len(columns)} finite numbers each")
    change = float(description["change"])
    if not all((a > 0).all() for a in positive) or not 0 < change < np.inf:
        raise ValueError("deviation, step and change must be > 0")
    model = make_model(options, len(columns))
    load_state_dict(model, arrays)
    model.eval()
    scales = Scales(data.Scaling(mean, positive[0]), positive[1], change)  # pyright: ignore
    windows = data.Windows(options.window, options.horizon)
    return Forecaster(model, columns, windows, scales, description["ahead"])
