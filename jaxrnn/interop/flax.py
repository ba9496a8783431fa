"""Conversion from and to Flax, nnx and linen: cells, ``RNN``, ``Bidirectional``, ``Sequential``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxrnn.interop._parts import (
    Direction,
    build_layer,
    function_name,
    raise_problems,
    split_layer,
    wrong_functions,
)

__all__ = ["from_linen", "from_nnx", "to_linen", "to_nnx"]

_CELLS = {"SimpleCell": "RNN", "LSTMCell": "LSTM", "OptimizedLSTMCell": "LSTM", "GRUCell": "GRU"}
_FUNCTIONS = {
    "sigmoid": (jax.nn.sigmoid,),
    "tanh": (jnp.tanh, jax.nn.tanh, jax.lax.tanh),
    "relu": (jax.nn.relu,),
}


# Names of the dense layers of a cell, one for each gate in PyTorch's order or one for all gates.
_SEPARATE = {
    "RNN": (["i"], ["h"]),
    "LSTM": (["ii", "if", "ig", "io"], ["hi", "hf", "hg", "ho"]),
    "GRU": (["ir", "iz", "in"], ["hr", "hz", "hn"]),
}
_FUSED = ["dense_i"], ["dense_h"]


def from_nnx(modules: Any) -> Any:
    """Convert Flax nnx modules to a jaxrnn layer.

    Args:
        modules: an ``nnx.RNN``, ``nnx.Bidirectional`` or cell: ``SimpleCell`` (tanh or relu),
            ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell``; or a list or ``nnx.Sequential`` of
            these, of one kind and size.

    Returns:
        An `RNN`, `LSTM` or `GRU`, batch-first unless the modules are time-major. The carry (c, h)
        of an LSTM of Flax is (h, c) here.

    Raises:
        TypeError: if `modules` are not modules.
        ConversionError: if a module is not representable.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn.interop.flax import from_nnx
        >>> rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
        >>> gru = from_nnx(rnn)
        >>> gru
        GRU(3, 4, batch_first=True)
        >>> x = jnp.linspace(-1, 1, 30).reshape(2, 5, 3)
        >>> bool(jnp.allclose(gru(x)[0], rnn(x), atol=1e-6))
        True
    """
    if isinstance(modules, nnx.Sequential):
        modules = modules.layers
    elif isinstance(modules, nnx.Module) and not isinstance(modules, nnx.List):
        modules = [modules]
    if not isinstance(modules, Iterable) or isinstance(modules, (str, bytes)):
        raise TypeError(f"from_nnx expects nnx modules, got {type(modules).__name__}")
    problems: list[str] = []
    stack, time_major = _cells_of(modules, nnx, problems)
    raise_problems("from_nnx does not support:", problems)
    layers = [[_read_nnx(name, cell) for name, cell in cells] for cells in stack]
    return build_layer(layers, batch_first=not time_major, function="from_nnx")


def to_nnx(layer: Any) -> nnx.Sequential:
    """Convert a jaxrnn layer to an ``nnx.Sequential``.

    Args:
        layer: an `RNN`, `LSTM` without projections, or `GRU`.

    Returns:
        An ``nnx.RNN`` of a ``SimpleCell``, ``OptimizedLSTMCell`` or ``GRUCell`` for each layer, or
        an ``nnx.Bidirectional``, time-major unless ``layer.batch_first``. Cells get the sum of both
        biases.

    Raises:
        TypeError: if `layer` is not a jaxrnn layer.
        ConversionError: if Flax has no such cell or projection, or ``b_hn`` of a GRU is not zero:
            ``nnx.GRUCell`` has no such bias; see `to_linen`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.flax import to_nnx
        >>> rnn = jaxrnn.RNN(3, 4, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> model, x = to_nnx(rnn), jnp.linspace(-1, 1, 30).reshape(5, 2, 3)
        >>> bool(jnp.allclose(rnn(x)[0], model(x), atol=1e-6))
        True
    """
    stack = split_layer(layer, "to_nnx")
    problems = []
    for direction in (direction for directions in stack for direction in directions):
        b_hn = direction.biases[1][2 * direction.hidden_size :]
        if direction.kind == "GRU" and b_hn.any():
            problems.append(f"{direction.name}: b_hn must be 0, got up to {abs(b_hn).max():.3g}")
    head = "to_nnx does not support a bias inside the reset product. Use to_linen:"
    raise_problems(head, problems)
    zeros = nnx.initializers.zeros_init()
    options = {"rngs": nnx.Rngs(0), "kernel_init": zeros, "recurrent_kernel_init": zeros}
    stacked = []
    for directions in stack:
        cells = []
        for direction in directions:
            cell = _create_cell(direction, layer, nnx, direction.weight_ih.shape[1], **options)
            for name, dense in _write(direction, *_FUSED).items():
                for parameter, value in dense.items():
                    getattr(getattr(cell, name), parameter)[...] = value
            cells.append(cell)
        stacked.append(_wrap(cells, layer, nnx))
    return nnx.Sequential(*stacked)


def from_linen(params: Any, module: Any = None) -> Any:
    """Convert the params of Flax linen modules to a jaxrnn layer.

    Args:
        params: params of an ``nn.RNN``, ``nn.Bidirectional`` or cell: ``SimpleCell``, ``LSTMCell``,
            ``OptimizedLSTMCell``, ``GRUCell``; of an ``nn.Sequential`` of these; or a list of such
            params, of one kind and size. ``{"params": params}`` is accepted too.
        module: the module, or a list of modules, of the params, optional. It determines activation
            functions, layout and computation dtype. Defaults to those of Flax.

    Returns:
        An `RNN`, `LSTM` or `GRU`, batch-first unless the module is time-major. ``b_hn`` of a GRU
        becomes the last third of ``bias_hh``. The carry (c, h) of an LSTM of Flax is (h, c) here.

    Raises:
        TypeError: if `params` is not a dict or list.
        ConversionError: if the params or a module are not representable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from jaxrnn.interop.flax import from_linen
        >>> module, x = nn.RNN(nn.GRUCell(4)), jnp.linspace(-1, 1, 30).reshape(2, 5, 3)
        >>> variables = module.init(jax.random.key(0), x)
        >>> gru = from_linen(variables, module)
        >>> gru
        GRU(3, 4, batch_first=True)
        >>> bool(jnp.allclose(gru(x)[0], module.apply(variables, x), atol=1e-6))
        True
    """
    problems: list[str] = []
    head = "from_linen does not support:"
    trees = _cell_params(linen.meta.unbox(params), problems)
    raise_problems(head, problems)
    cells, time_major = [[(None, None)] * len(directions) for directions in trees], False
    if module is not None:
        if isinstance(module, linen.Sequential):
            module = module.layers
        modules = module if isinstance(module, Sequence) else [module]
        cells, time_major = _cells_of(modules, linen, problems)
        sizes, expected = list(map(len, cells)), list(map(len, trees))
        if sizes != expected:
            problems.append(f"directions of the module must be {expected}, got {sizes}")
    raise_problems(head, problems)
    layers = [
        [_read_linen(*tree, cell, problems) for tree, (_, cell) in zip(*both, strict=True)]
        for both in zip(trees, cells, strict=True)
    ]
    raise_problems(head, problems)
    return build_layer(layers, batch_first=not time_major, function="from_linen")


def to_linen(layer: Any) -> tuple[linen.Sequential, dict[str, Any]]:
    """Convert a jaxrnn layer to a linen ``nn.Sequential`` and its params.

    Args:
        layer: an `RNN`, `LSTM` without projections, or `GRU`.

    Returns:
        The module, of the linen classes of `to_nnx`, and its params. Each gate gets the sum of both
        biases, except n of a GRU, which has both.

    Raises:
        TypeError: if `layer` is not a jaxrnn layer.
        ConversionError: if Flax has no such cell or projection.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.flax import to_linen
        >>> gru = jaxrnn.GRU(3, 4, num_layers=2, rngs=nnx.Rngs(0))
        >>> module, params = to_linen(gru)
        >>> x = jnp.linspace(-1, 1, 30).reshape(5, 2, 3)
        >>> bool(jnp.allclose(gru(x)[0], module.apply({"params": params}, x), atol=1e-6))
        True
    """
    modules, params = [], {}
    for number, directions in enumerate(split_layer(layer, "to_linen")):
        cells = [_create_cell(direction, layer, linen) for direction in directions]
        modules.append(_wrap(cells, layer, linen))
        trees = [{"cell": _write(d, *_SEPARATE[d.kind])} for d in directions]
        both = dict(zip(("forward_rnn", "backward_rnn"), trees))
        params[f"layers_{number}"] = both if len(trees) == 2 else trees[0]
    return linen.Sequential(tuple(modules)), params


# `flax` is ``flax.linen`` or ``flax.nnx``, whose modules have the same names.


def _kind(cell: Any, flax: Any) -> str | None:
    return next((kind for name, kind in _CELLS.items() if type(cell) is getattr(flax, name)), None)


def _check_cell(name: str, cell: Any, flax: Any, problems: list[str]) -> None:
    """Append the unsupported functions and options of a cell to `problems`."""
    kind = _kind(cell, flax)
    if kind is None:
        supported = ", ".join(_CELLS)
        problems.append(f"{name}: must be one of {supported}, got {type(cell).__name__}")
        return
    options = ("activation_fn", "gate_fn")
    problems += wrong_functions(name, cell, kind, options, _FUNCTIONS)
    if cell.carry_init not in (None, jax.nn.initializers.zeros):
        problems.append(
            f"{name}: carry_init must be zeros, got {function_name(cell.carry_init)}. Pass the "
            "initial state as hx"
        )
    if getattr(cell, "residual", False):
        problems.append(f"{name}: residual must be False, got True")


def _cells_of(
    modules: Iterable[Any], flax: Any, problems: list[str]
) -> tuple[list[list[tuple[Any, Any]]], bool]:
    """Return the named cells of each layer, one for each direction, and True if time-major."""
    layers: list[list[tuple[str, Any]]] = []
    time_major: list[bool] = []
    for number, module in enumerate(modules):
        name = f"{number} ({type(module).__name__})"
        cells = [(name, module)]
        if isinstance(module, flax.Bidirectional):
            if module.merge_fn is not flax.Bidirectional.merge_fn:
                function = function_name(module.merge_fn)
                problems.append(f"{name}: merge_fn must be the default, got {function}")
            both = {"forward_rnn": module.forward_rnn, "backward_rnn": module.backward_rnn}
            cells = [(f"{name}.{key}", getattr(rnn, "cell", rnn)) for key, rnn in both.items()]
            time_major.append(module.time_major)
        elif isinstance(module, flax.RNN):
            if module.reverse:
                problem = "reverse must be False except in a Bidirectional, got True"
                problems.append(f"{name}: {problem}")
            cells = [(name, module.cell)]
            time_major.append(module.time_major)
        for cell_name, cell in cells:
            _check_cell(cell_name, cell, flax, problems)
        layers.append(cells)
    if len(set(time_major)) > 1:
        problems.append(f"time_major must be equal in all layers, got {time_major}")
    return layers, bool(time_major) and time_major[0]


def _create_cell(direction: Direction, layer: Any, flax: Any, *sizes: int, **options: Any) -> Any:
    """Create a cell for one direction, without its weights."""
    classes = {"RNN": flax.SimpleCell, "LSTM": flax.OptimizedLSTMCell, "GRU": flax.GRUCell}
    if direction.kind == "RNN":
        options["activation_fn"] = jax.nn.relu if direction.nonlinearity == "relu" else jnp.tanh
    dtypes = {"dtype": layer.dtype, "param_dtype": direction.weight_ih.dtype}
    return classes[direction.kind](*sizes, direction.hidden_size, **dtypes, **options)


def _wrap(cells: list[Any], layer: Any, flax: Any) -> Any:
    """Wrap the cells of one layer in an ``RNN`` or a ``Bidirectional``."""
    time_major = not layer.batch_first
    rnns = [flax.RNN(cell, time_major=time_major) for cell in cells]
    return flax.Bidirectional(*rnns, time_major=time_major) if len(rnns) == 2 else rnns[0]


def _cell_params(params: Any, problems: list[str]) -> list[list[tuple[str, Any]]]:
    """Return the named params of the cells of each layer, one for each direction."""
    if isinstance(params, Mapping) and set(params) == {"params"}:
        params = params["params"]
    if isinstance(params, Mapping):
        named = [("cell", params)]
        if params and all(re.fullmatch(r"layers_\d+", name) for name in params):
            named = sorted(params.items(), key=lambda item: int(item[0].split("_")[1]))
    elif isinstance(params, Sequence) and not isinstance(params, (str, bytes)):
        named = [(str(number), tree) for number, tree in enumerate(params)]
    else:
        raise TypeError(f"from_linen expects params, a dict or list, got {type(params).__name__}")
    return [_direction_params(name, tree, problems) for name, tree in named]


def _direction_params(name: str, tree: Any, problems: list[str]) -> list[tuple[str, Any]]:
    keys = set(tree) if isinstance(tree, Mapping) else {type(tree).__name__}
    if keys == {"forward_rnn", "backward_rnn"}:
        both = ("forward_rnn", "backward_rnn")
        named = [_direction_params(f"{name}.{key}", tree[key], problems) for key in both]
        return [direction for directions in named for direction in directions]
    for key in ("params", "cell"):
        if keys == {key}:
            return _direction_params(name, tree[key], problems)
    if _linen_kind(keys) is None:
        known = "; ".join(" ".join(inputs + states) for inputs, states in _SEPARATE.values())
        problems.append(f"{name}: keys must be those of a cell ({known}), got {sorted(keys)}")
    return [(name, tree)]


def _linen_kind(keys: Iterable[str]) -> str | None:
    names = {kind: {*inputs, *states} for kind, (inputs, states) in _SEPARATE.items()}
    return next((kind for kind in names if names[kind] == set(keys)), None)


def _read_linen(name: str, tree: Any, cell: Any, problems: list[str]) -> Direction:
    """Read the weights of a linen cell."""
    kind = _linen_kind(tree)
    assert kind is not None  # by `_direction_params`
    if cell is not None and _kind(cell, linen) != kind:
        problems.append(f"{name}: params must be those of {type(cell).__name__}, got {kind}")
    inputs, states = _SEPARATE[kind]
    biased = {"RNN": inputs, "LSTM": states, "GRU": [*inputs, "hn"]}[kind]
    actual = {f"{key}.{leaf}" for key, dense in tree.items() for leaf in dense}
    expected = {f"{key}.kernel" for key in tree} | {f"{key}.bias" for key in biased}
    if actual != expected:
        problems += [f"{name}: missing {key}" for key in sorted(expected - actual)]
        problems += [f"{name}: unexpected {key}" for key in sorted(actual - expected)]
        empty = np.zeros((0, 0), np.float32)
        return Direction(name, kind, empty, empty)
    return _read(name, kind, tree, cell)


def _read_nnx(name: str, cell: Any) -> Direction:
    """Read the weights of an nnx cell."""
    params = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
    tree = {str(key).rstrip("_"): dense for key, dense in params.items()}  # "if_" is a keyword
    return _read(name, _kind(cell, nnx), tree, cell)


def _read(name: str, kind: Any, tree: Any, cell: Any) -> Direction:
    """Read the weights of a cell from the params of its dense layers."""
    inputs, states = _FUSED if "dense_i" in tree else _SEPARATE[kind]

    def _concatenate(keys: list[str], parameter: str) -> np.ndarray:
        arrays = [np.array(tree[key][parameter]) for key in keys]  # (D, H) or (H,) of each gate
        return np.ascontiguousarray(np.concatenate(arrays, axis=-1).T)

    weights = _concatenate(inputs, "kernel"), _concatenate(states, "kernel")
    bias = _concatenate(states if kind == "LSTM" else inputs, "bias")
    bias_hh = np.zeros_like(bias)
    if "hn" in tree:
        b_hn = np.asarray(tree["hn"]["bias"])
        bias_hh[len(bias_hh) - len(b_hn) :] = b_hn
    direction = Direction(name, kind, *weights, bias, bias_hh)
    if cell is None:
        return direction
    relu = kind == "RNN" and cell.activation_fn in _FUNCTIONS["relu"]
    dtype = None if cell.dtype is None else jnp.dtype(cell.dtype)
    return direction._replace(nonlinearity="relu" if relu else "tanh", dtype=dtype)


def _write(direction: Direction, inputs: list[str], states: list[str]) -> dict[str, Any]:
    """Return the params of the dense layers of a cell, the inverse of `_read`."""
    bias_ih, bias_hh = direction.biases
    bias = bias_ih + bias_hh
    tree: dict[str, Any] = {name: {} for name in (*inputs, *states)}
    if "hn" in tree:
        start = 2 * direction.hidden_size
        bias[start:] = bias_ih[start:]
        tree["hn"]["bias"] = jnp.array(bias_hh[start:])
    for names, parameter, array in (
        (inputs, "kernel", direction.weight_ih),
        (states, "kernel", direction.weight_hh),
        (states if direction.kind == "LSTM" else inputs, "bias", bias),
    ):
        for name, gate in zip(names, np.split(array, len(names)), strict=True):
            tree[name][parameter] = jnp.array(gate.T)
    return tree
