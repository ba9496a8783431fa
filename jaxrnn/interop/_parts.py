"""Layers as the weights of their directions, the intermediate form of all conversions.

Axis letters: D input features, H hidden size, G gates.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import cells
from jaxrnn.interop import ConversionError
from jaxrnn.layers.recurrent import Recurrent
from jaxrnn.layers.standard import GRU, LSTM, RNN

STANDARD = ("RNN", "LSTM", "GRU")
CELLS: dict[str, Any] = {
    "RNN": cells.Elman,
    "LSTM": cells.LSTM,
    "GRU": cells.GRU,
    "GRUResetBefore": cells.GRUResetBefore,
    "PeepholeLSTM": cells.PeepholeLSTM,
}
GATES = {
    "RNN": "h",
    "LSTM": "ifgo",
    "GRU": "rzn",
    "GRUResetBefore": "rzn",
    "PeepholeLSTM": "ifgo",
}
"""The gates of each kind in PyTorch's order, one letter each."""

PEEPHOLES = tuple(cells.PeepholeLSTM.parameters)
"""Names of the peephole weights of the gates i, f and o, in the order of `Direction.peepholes`."""


class Direction(NamedTuple):
    """Weights of one direction of one layer, with PyTorch's layout and gate order."""

    name: str  # in error messages
    kind: str  # a key of `GATES`
    weight_ih: np.ndarray  # (G*H, D)
    weight_hh: np.ndarray  # (G*H, H)
    bias_ih: np.ndarray | None = None  # (G*H,)
    bias_hh: np.ndarray | None = None  # (G*H,)
    nonlinearity: str = "tanh"  # or "relu", of an "RNN"
    dtype: Any = None  # of the computation; None for that of the weights
    peepholes: np.ndarray | None = None  # (3*H,), of a "PeepholeLSTM"

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.weight_hh.shape[-1]

    @property
    def biases(self) -> tuple[np.ndarray, np.ndarray]:
        """Both biases (G*H,), zeros without biases."""
        zeros = np.zeros(self.weight_ih.shape[0], self.weight_ih.dtype)
        bias_ih, bias_hh = (zeros if b is None else b for b in (self.bias_ih, self.bias_hh))
        return bias_ih, bias_hh

    def __str__(self) -> str:
        nonlinearity = f", {self.nonlinearity}" if self.kind == "RNN" else ""
        sizes = f"{self.weight_ih.shape[-1]}, {self.hidden_size}"
        return f"{self.name}: {self.kind}({sizes}{nonlinearity}) in {self.weight_hh.dtype.name}"


def raise_problems(head: str, problems: Sequence[str]) -> None:
    """Raise a `ConversionError` that lists the problems, if any."""
    if problems:
        raise ConversionError("\n\t".join([head, *problems]))


def warn_dropped(dropped: Iterable[str], function: str, *, stacklevel: int = 3) -> None:
    """Warn of options, such as dropout, that `function` does not convert."""
    if listed := ", ".join(dropped):
        warnings.warn(f"{function} does not convert {listed}", stacklevel=stacklevel)


def function_name(function: Any) -> str:
    """Return the name of an activation function."""
    return getattr(function, "__name__", repr(function))


def wrong_functions(
    name: str, cell: Any, kind: str, options: Sequence[str], functions: Mapping[str, Sequence[Any]]
) -> list[str]:
    """Return the problems of the activation function, and of that of the gates, of a cell."""
    supported = [("tanh", "relu")] if kind == "RNN" else [("tanh",), ("sigmoid",)]
    return [
        f"{name}: {option} must be {' or '.join(names)}, got {function_name(getattr(cell, option))}"
        for option, names in zip(options, supported)
        if not any(getattr(cell, option) in functions[key] for key in names)
    ]


def import_extra(name: str, extra: str) -> Any:
    """Import an optional dependency, or raise an ImportError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.split(".")[0]:
            message = f'{error.name} is not installed. Install it: pip install "jaxrnn[{extra}]"'
        else:
            message = f"{name} cannot be imported: {error}"
            if name == "keras":
                message += '. Before its import set os.environ["KERAS_BACKEND"] = "jax"'
        raise ImportError(message, name=error.name) from error


def reorder_gates(array: np.ndarray, source: str, target: str) -> np.ndarray:
    """Reorder the gates of an array (G*H, ...), one letter each."""
    gates = dict(zip(source, np.split(array, len(source)), strict=True))
    return np.concatenate([gates[letter] for letter in target])


def split_layer(
    layer: Any, function: str, kinds: Sequence[str] = STANDARD
) -> list[list[Direction]]:
    """Return the directions of each stacked layer, or raise an error in the name of `function`."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"{function} expects an RNN, LSTM or GRU, got {type(layer).__name__}")
    cell: Any = layer.cell
    kind = next((kind for kind in kinds if type(cell) is CELLS[kind]), None)
    if kind is None:
        supported = ", ".join(CELLS[kind].__name__ for kind in kinds)
        raise ConversionError(
            f"{function} supports the cells {supported}, got {type(cell).__name__}"
        )
    options = {
        f"proj_size={layer.proj_size}": layer.proj_size,
        "skip": layer.skip,
        "zoneout": layer._regularization and layer._regularization.zoneout,
        "learn_initial_state": layer.learn_initial_state,
        "several hidden sizes": isinstance(layer.hidden_size, tuple),
    }
    if unsupported := ", ".join(name for name, value in options.items() if value):
        raise ConversionError(f"{function} does not support {unsupported}, got {layer}")
    noise = ("dropout", "input_dropout", "recurrent_dropout", "weight_drop")
    dropped = [f"{name}={getattr(layer, name)}" for name in noise if getattr(layer, name)]
    warn_dropped(dropped, function, stacklevel=4)
    directions = []
    size = 2 if layer.bidirectional else 1
    for index, weights in enumerate(layer._weights()):
        number, reverse = divmod(index, size)
        arrays: dict[str, Any] = {name: np.array(value) for name, value in weights.named().items()}
        if kind == "PeepholeLSTM":
            arrays["peepholes"] = np.concatenate([arrays.pop(name) for name in PEEPHOLES])
        if kind == "RNN":
            arrays["nonlinearity"] = cell.nonlinearity
        name = f"layer {number}{', reverse' if reverse else ''}"
        directions.append(Direction(name, kind, dtype=layer.dtype, **arrays))
    return [directions[start : start + size] for start in range(0, len(directions), size)]


def build_layer(layers: Sequence[Sequence[Direction]], *, batch_first: bool, function: str) -> Any:
    """Build a layer from the directions of its stacked layers, the inverse of `split_layer`."""
    directions = [direction for layer in layers for direction in layer]
    head = f"{function} cannot build one layer from:"
    if not directions:
        raise ConversionError(f"{head} no layers")
    properties = {
        "kinds": [(d.kind, d.nonlinearity) for d in directions],
        "hidden sizes": [d.hidden_size for d in directions],
        "dtypes of the weights": [d.weight_ih.dtype for d in directions],
        "dtypes of the computation": [str(d.dtype) for d in directions],
        "directions": list(map(len, layers)),
    }
    if different := ", ".join(name for name, values in properties.items() if len(set(values)) > 1):
        problem = f"different {different}. Convert the layers one by one"
        raise_problems(head, [problem, *map(str, directions)])
    first = directions[0]
    dtype = first.weight_ih.dtype
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ConversionError(
            f"{function}: JAX would round {dtype.name} weights. Enable them: "
            'jax.config.update("jax_enable_x64", True)'
        )
    bias = any(direction.bias_ih is not None for direction in directions)
    options: dict[str, Any] = {"dtype": first.dtype, "param_dtype": dtype, "bias": bias}
    options |= {"num_layers": len(layers), "bidirectional": len(layers[0]) == 2}
    options["batch_first"] = batch_first
    if first.kind == "RNN":
        options["nonlinearity"] = first.nonlinearity
    types: dict[str, Any] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
    create = types.get(first.kind) or functools.partial(Recurrent, CELLS[first.kind]())
    sizes = first.weight_ih.shape[-1], first.hidden_size
    # Initial weights are not computed, which would compile.
    abstract = nnx.eval_shape(lambda: create(*sizes, rngs=nnx.Rngs(0), **options))
    graph, state = nnx.split(abstract)
    shapes = {name: value.shape for name, value in nnx.to_pure_dict(state).items()}
    arrays: dict[str, np.ndarray] = {}
    problems = []
    for number, layer in enumerate(layers):
        for direction, suffix in zip(layer, ("", "_reverse")):
            named = {"weight_ih": direction.weight_ih, "weight_hh": direction.weight_hh}
            if bias:  # a stack may mix layers with and without biases
                named["bias_ih"], named["bias_hh"] = direction.biases
            if direction.peepholes is not None:
                named |= zip(PEEPHOLES, np.split(direction.peepholes, len(PEEPHOLES)))
            for name, array in named.items():
                name = f"{name}_l{number}{suffix}"
                arrays[name] = array
                if array.shape != shapes[name]:
                    problems.append(
                        f"{direction.name}: {name} must be {shapes[name]}, got {array.shape}"
                    )
    raise_problems(f"{function}: weights have wrong shapes:", problems)
    nnx.replace_by_pure_dict(state, {name: jnp.array(array) for name, array in arrays.items()})
    return nnx.merge(graph, state)
