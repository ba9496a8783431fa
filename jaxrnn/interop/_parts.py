"""What all formats share: a layer taken apart into its directions, and put together again.

Axis letters: D input features, H hidden size, F directions, G gates, L layers.
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
from jaxrnn.layers.recurrent import Recurrent
from jaxrnn.layers.standard import GRU, LSTM, RNN

GATES = {
    "RNN": "h",
    "LSTM": "ifgo",
    "GRU": "rzn",
    "GRUResetBefore": "rzn",
    "PeepholeLSTM": "ifgo",
}
"""The gates of each kind in PyTorch's order, a letter each."""

KINDS = {cells.Elman: "RNN", cells.LSTM: "LSTM", cells.GRU: "GRU"}

RESET_BEFORE = {cells.GRUResetBefore: "GRUResetBefore"}
PEEPHOLES = {cells.PeepholeLSTM: "PeepholeLSTM"}
"""Further kinds, of the libraries that have them."""

SEEING = tuple(cells.PeepholeLSTM.parameters)
"""The weights by which the gates i, f and o see c, in the order of `Part.peepholes`."""


class ConversionError(ValueError):
    """Layers that one of both sides can't hold; nothing was converted."""


class Part(NamedTuple):
    """One direction of one layer, in PyTorch's layout and order of gates.

    Attributes:
        where: its name in the library it comes from, for errors.
        kind: one of `GATES`.
        weight_ih: (G*H, D).
        weight_hh: (G*H, H).
        bias_ih: (G*H,) or None.
        bias_hh: (G*H,) or None, as `bias_ih` is.
        nonlinearity: of an "RNN", "tanh" or "relu".
        dtype: what is computed in; None for the dtype of the weights.
        peepholes: of a "PeepholeLSTM", (3*H,), those of i, f and o.
    """

    where: str
    kind: str
    weight_ih: np.ndarray
    weight_hh: np.ndarray
    bias_ih: np.ndarray | None = None
    bias_hh: np.ndarray | None = None
    nonlinearity: str = "tanh"
    dtype: Any = None
    peepholes: np.ndarray | None = None

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.weight_hh.shape[-1]

    def __str__(self) -> str:
        more = f", {self.nonlinearity}" if self.kind == "RNN" else ""
        size = f"{self.weight_ih.shape[-1]}, {self.hidden_size}"
        return f"{self.where}: {self.kind}({size}{more}) in {self.weight_hh.dtype.name}"


def refuse(problems: Sequence[str], head: str) -> None:
    """Raise a `ConversionError` that lists the problems, if there are any."""
    if problems:
        raise ConversionError("\n\t".join([head, *problems]))


def needed(name: str, extra: str) -> Any:
    """Import a library that only a conversion needs.

    Raises:
        ImportError: naming what to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0]:  # it is there, and lacks something itself
            hint = "; with KERAS_BACKEND=jax in the environment it runs on JAX" * (name == "keras")
            words = f"{name} can't be imported: {error}{hint}"
            raise ImportError(words, name=error.name) from error
        raise ImportError(
            f'{error.name} is not installed. Install it: pip install "jaxrnn[{extra}]"',
            name=error.name,
        ) from error


def reordered(array: np.ndarray, given: str, wanted: str) -> np.ndarray:
    """An array (G*H, ...) whose gates are in one order, a letter each, in another.

    Example:
        >>> import numpy as np
        >>> reordered(np.arange(6), "zrn", "rzn").tolist()
        [2, 3, 0, 1, 4, 5]
    """
    gates = dict(zip(given, np.split(array, len(given)), strict=True))
    return np.concatenate([gates[letter] for letter in wanted])


def one_bias(part: Part) -> np.ndarray:
    """Both biases as their sum (G*H,), zeros where there are none."""
    if part.bias_ih is None or part.bias_hh is None:
        return np.zeros(part.weight_ih.shape[0], part.weight_ih.dtype)
    return part.bias_ih + part.bias_hh


def not_converted(what: Iterable[str], head: str, *, stacklevel: int = 3) -> None:
    """Warn of what acts in training, or between calls, and has no equal on the other side."""
    listed = ", ".join(what)
    if listed:
        warnings.warn(f"{head} is not converted: {listed}", stacklevel=stacklevel)


def taken_apart(layer: Any, function: str, kinds: Mapping[Any, str] = KINDS) -> list[list[Part]]:
    """The directions of each layer of one of ours.

    Args:
        layer: an `RNN`, `LSTM` or `GRU`, or a `Recurrent` of a cell of `kinds`.
        function: the name of the function that was called.
        kinds: the cells that the other library has.

    Raises:
        TypeError: for anything else.
        ConversionError: for a cell of another kind, and for a projection.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"{function} takes an RNN, LSTM or GRU of jaxrnn, got {type(layer).__name__}"
        )
    kind = kinds.get(type(layer.cell))
    if kind is None:
        *names, last = (cell.__name__ for cell in kinds)
        raise ConversionError(
            f"{function} knows the cells {', '.join(names)} and {last}, got "
            f"{type(layer.cell).__name__}"
        )
    if layer.proj_size:
        raise ConversionError(
            f"{function} has no form of an LSTM with a projection, got proj_size={layer.proj_size}"
        )
    acts = {
        "skip": layer.skip,
        "zoneout": layer._regularisers and layer._regularisers.zoneout,
        "learn_initial_state": layer.learn_initial_state,
        "several hidden sizes": isinstance(layer.hidden_size, tuple),
    }
    if any(acts.values()):
        has = ", ".join(name for name, value in acts.items() if value)
        raise ConversionError(f"{function} has no form of a layer with {has}, got {layer}")
    noise = ("dropout", "input_dropout", "recurrent_dropout", "weight_drop")
    listed = [f"{n}={getattr(layer, n)}" for n in noise if getattr(layer, n)]
    if listed:
        what = [f"{', '.join(listed)} of {layer}"]
        not_converted(what, f"{function}: what acts in training", stacklevel=4)
    parts = []
    for index, weights in enumerate(layer._weights()):
        number, direction = divmod(index, 2 if layer.bidirectional else 1)
        arrays: dict[str, Any] = {name: np.array(value) for name, value in weights.named().items()}
        if kind in PEEPHOLES.values():
            arrays["peepholes"] = np.concatenate([arrays.pop(name) for name in SEEING])
        if isinstance(layer.cell, cells.Elman):
            arrays["nonlinearity"] = layer.cell.nonlinearity
        where = f"layer {number}{', reverse' if direction else ''}"
        parts.append(Part(where, kind, dtype=layer.dtype, **arrays))
    size = 2 if layer.bidirectional else 1
    return [parts[first : first + size] for first in range(0, len(parts), size)]


def put_together(layers: Sequence[Sequence[Part]], *, batch_first: bool, function: str) -> Any:
    """One of our layers from the directions of each.

    Args:
        layers: from the first to the last, each of one or two directions.
        batch_first: the layout of input and output.
        function: the name of the function that was called.

    Raises:
        ConversionError: where they don't make one stack, listing what they are, and for weights in
            double precision where JAX has none.
    """
    parts = [part for directions in layers for part in directions]
    head = f"{function}: no layers" if not parts else _misfit(layers, parts)
    if head:
        refuse([head, *map(str, parts)], f"{function} can't make one layer of these:")
    first, hidden = parts[0], parts[0].hidden_size
    refuse(_wrong_shapes(layers), f"{function}: weights of a wrong shape:")
    dtype = first.weight_ih.dtype
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ConversionError(
            f"{function}: JAX would round weights in {dtype.name}; let it hold them first: "
            'jax.config.update("jax_enable_x64", True)'
        )
    bias = any(part.bias_ih is not None for part in parts)
    options: dict[str, Any] = {
        "num_layers": len(layers),
        "bias": bias,
        "batch_first": batch_first,
        "bidirectional": len(layers[0]) == 2,
        "dtype": first.dtype,
        "param_dtype": dtype,
    }
    if first.kind == "RNN":
        options["nonlinearity"] = first.nonlinearity
    made: Any = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
    for cell, kind in (RESET_BEFORE | PEEPHOLES).items():
        made[kind] = functools.partial(Recurrent, cell())
    # Only the shapes of the initial weights are asked for: to draw them takes a compilation.
    abstract = nnx.eval_shape(
        lambda: made[first.kind](first.weight_ih.shape[1], hidden, rngs=nnx.Rngs(0), **options)
    )
    arrays: dict[str, Any] = {}
    for number, directions in enumerate(layers):
        for part, suffix in zip(directions, ("", "_reverse")):
            end = f"_l{number}{suffix}"
            arrays |= {"weight_ih" + end: part.weight_ih, "weight_hh" + end: part.weight_hh}
            if bias:  # a layer without is one with zeros, where others have some
                zeros = np.zeros(part.weight_ih.shape[0], part.weight_ih.dtype)
                both = (part.bias_ih, part.bias_hh)
                both = [zeros if b is None else b for b in both]
                arrays |= {"bias_ih" + end: both[0], "bias_hh" + end: both[1]}
            if part.peepholes is not None:
                seeing = np.split(part.peepholes, len(SEEING))
                arrays |= {n + end: array for n, array in zip(SEEING, seeing, strict=True)}
    graph, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, {name: jnp.array(array) for name, array in arrays.items()})
    return nnx.merge(graph, state)


def _misfit(layers: Sequence[Sequence[Part]], parts: Sequence[Part]) -> str:
    """What keeps layers from being one stack, in words, or nothing."""
    first = parts[0]
    kinds = {"kinds": lambda part: (part.kind, part.nonlinearity)}
    same = kinds | {
        "hidden sizes": lambda part: part.hidden_size,
        "dtypes of the weights": lambda part: part.weight_ih.dtype,
        "dtypes of the computation": lambda part: str(part.dtype),
    }
    wrong = [name for name, of in same.items() if any(of(part) != of(first) for part in parts)]
    wrong += ["directions"] if len({len(directions) for directions in layers}) > 1 else []
    return f"different {', '.join(wrong)}; convert them one by one" if wrong else ""


def _wrong_shapes(layers: Sequence[Sequence[Part]]) -> list[str]:
    """Every array whose shape is not the one that the sizes ask for."""
    problems = []
    for number, directions in enumerate(layers):
        first = directions[0]
        hidden = first.hidden_size
        features = first.weight_ih.shape[-1] if number == 0 else len(directions) * hidden
        rows = len(GATES[first.kind]) * hidden
        wanted = {
            "weight_ih": (rows, features),
            "weight_hh": (rows, hidden),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
            "peepholes": (len(SEEING) * hidden,),
        }
        for part in directions:
            for name, shape in wanted.items():
                array = getattr(part, name)
                if array is not None and array.shape != shape:
                    problems.append(
                        f"{part.where}: as PyTorch's {name} expected {shape}, got {array.shape}"
                    )
    return problems
