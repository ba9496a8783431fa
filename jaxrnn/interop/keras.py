"""Conversion from and to Keras 3: SimpleRNN, LSTM, GRU, Bidirectional and Sequential.

Keras runs on the backend it was imported with. To select JAX, set ``os.environ["KERAS_BACKEND"] =
"jax"`` before the first import of Keras.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.interop import ConversionError
from jaxrnn.interop._parts import (
    GATES,
    STANDARD,
    Direction,
    build_layer,
    import_extra,
    raise_problems,
    reorder_gates,
    split_layer,
    warn_dropped,
    wrong_functions,
)

__all__ = ["from_keras", "to_keras"]

_KERAS_GATES = {"RNN": "h", "LSTM": "ifgo", "GRU": "zrn", "GRUResetBefore": "zrn"}
_INITIALIZERS = ("kernel_initializer", "recurrent_initializer")


def from_keras(layers: Any) -> Any:
    """Convert Keras layers to a jaxrnn layer.

    Args:
        layers: a built ``SimpleRNN`` (tanh or relu), ``LSTM``, ``GRU``, or ``RNN`` of one of their
            cells; a ``Bidirectional`` with ``merge_mode="concat"``; or a list or ``Sequential`` of
            these, of one kind and size.

    Returns:
        An `RNN`, `LSTM`, `GRU`, or `Recurrent` of `cells.GRUResetBefore` for
        ``reset_after=False``, batch-first, with the dtypes of the dtype policy. It returns the
        output of every step; ``h_n[-1]`` is the output without ``return_sequences``.

    Raises:
        TypeError: if an argument is not a Keras layer.
        ConversionError: if a layer is not representable: other activations, a single layer that
            goes backwards, another merge mode.

    Example:
        .. code-block:: python

            lstm = from_keras(keras_model.layers[0])
            output, (h_n, c_n) = lstm(x)  # output == keras_model.layers[0](x)
    """
    keras = import_extra("keras", "keras")
    if isinstance(layers, keras.Sequential):
        layers = layers.layers
    elif isinstance(layers, keras.layers.Layer):
        layers = [layers]
    elements = list(layers) if isinstance(layers, Iterable) else [layers]
    if wrong := [one for one in elements if not isinstance(one, keras.layers.Layer)]:
        raise TypeError(f"from_keras expects layers of Keras, got {type(wrong[0]).__name__}")
    problems: list[str] = []
    dropped: list[str] = []
    for number, layer in enumerate(elements):
        _check(keras, layer, problems, dropped, last=number == len(elements) - 1)
    raise_problems("from_keras does not support:", problems)
    warn_dropped(dropped, "from_keras")
    stack = [[_read(keras, one) for one in _directions(keras, layer)] for layer in elements]
    return build_layer(stack, batch_first=True, function="from_keras")


def to_keras(layer: Any) -> Any:
    """Convert a jaxrnn layer to a ``keras.Sequential``.

    Args:
        layer: an `RNN`, `LSTM` without projections, `GRU`, or `Recurrent` of
            `cells.GRUResetBefore`.

    Returns:
        A built model with a ``SimpleRNN``, ``LSTM`` or ``GRU`` for each layer, wrapped in a
        ``Bidirectional`` if bidirectional, with ``return_sequences=True``. It is batch-first, as is
        Keras. All but a GRU with ``reset_after=True`` get the sum of both biases.

    Raises:
        TypeError: if `layer` is not a jaxrnn layer.
        ConversionError: if Keras has no such cell, projection or dtype policy.
    """
    keras = import_extra("keras", "keras")
    stack = split_layer(layer, "to_keras", (*STANDARD, "GRUResetBefore"))
    classes = {"RNN": keras.layers.SimpleRNN, "LSTM": keras.layers.LSTM}
    keras_class = classes.get(stack[0][0].kind, keras.layers.GRU)
    elements = []
    for directions in stack:
        first = directions[0]
        options: dict[str, Any] = {"return_sequences": True, "dtype": _dtype_policy(keras, layer)}
        options["use_bias"] = first.bias_ih is not None
        if first.kind == "RNN":
            options["activation"] = first.nonlinearity
        elif first.kind == "GRUResetBefore":
            options["reset_after"] = False
        # Orthogonal initialisation is slow, and fails in float16.
        options |= dict.fromkeys(_INITIALIZERS, "zeros")
        one = keras_class(first.hidden_size, **options)
        if len(directions) == 2:
            one = keras.layers.Bidirectional(one, dtype=one.dtype_policy)
        elements.append(one)
    inputs = keras.Input((None, layer.input_size), dtype=elements[0].compute_dtype)
    model = keras.Sequential([inputs, *elements])
    default = keras_class(1).cell
    for one, directions in zip(elements, stack, strict=True):
        one.set_weights([array for direction in directions for array in _arrays(direction)])
        for single in _directions(keras, one):
            for name in _INITIALIZERS:  # for a model that is rebuilt from this config
                setattr(single.cell, name, getattr(default, name))
    return model


def _kind(keras: Any, cell: Any) -> str | None:
    layers = keras.layers
    kinds = {layers.SimpleRNNCell: "RNN", layers.LSTMCell: "LSTM", layers.GRUCell: "GRU"}
    kind = kinds.get(type(cell))
    return "GRUResetBefore" if kind == "GRU" and not cell.reset_after else kind


def _directions(keras: Any, layer: Any) -> list[Any]:
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    return [layer]


def _check(keras: Any, layer: Any, problems: list[str], dropped: list[str], *, last: bool) -> None:
    """Append what is unsupported to `problems` and what is lost to `dropped`."""
    directions = _directions(keras, layer)
    if len(directions) == 2 and layer.merge_mode != "concat":
        problems.append(f'{layer.name}: merge_mode must be "concat", got {layer.merge_mode!r}')
    for backwards, one in zip((False, True), directions):
        name = layer.name if len(directions) == 1 else f"{layer.name}.{one.name}"
        cell: Any = getattr(one, "cell", None)
        kind = _kind(keras, cell)
        if kind is None:
            of_cell = f" of {type(cell).__name__}" if cell is not None else ""
            hint = ". Pass its layers" if isinstance(one, keras.Model) else ""
            problems.append(
                f"{name}: must be a SimpleRNN, LSTM or GRU, got {type(one).__name__}{of_cell}{hint}"
            )
            continue
        if not one.built:
            problems.append(f"{name}: must be built. Call it, or {name}.build(shape)")
        if one.go_backwards is not backwards:
            problems.append(f"{name}: go_backwards must be {backwards}, got {one.go_backwards}")
        if not last and not one.return_sequences:
            problems.append(f"{name}: return_sequences must be True except in the last layer")
        options = ("activation", "recurrent_activation")
        functions = {n: [getattr(keras.activations, n)] for n in ("tanh", "relu", "sigmoid")}
        problems += wrong_functions(name, cell, kind, options, functions)
        for option in ("dropout", "recurrent_dropout"):
            if value := getattr(cell, option):
                dropped.append(f"{option}={value} of {name}")
        if one.stateful:
            dropped.append(f"stateful=True of {name}")


def _read(keras: Any, layer: Any) -> Direction:
    """Read the weights of one direction."""
    cell = layer.cell
    kind = _kind(keras, cell)
    assert kind is not None  # by `_check`

    def _to_torch(variable: Any) -> np.ndarray:
        array = np.array(keras.ops.convert_to_numpy(variable.value))
        return reorder_gates(np.ascontiguousarray(array.T), _KERAS_GATES[kind], GATES[kind])

    biases: dict[str, np.ndarray] = {}
    if cell.use_bias:
        bias = _to_torch(cell.bias)  # (G*H,), or (G*H, 2) for two biases
        both = bias.T if bias.ndim == 2 else (bias, np.zeros_like(bias))
        biases = dict(zip(("bias_ih", "bias_hh"), map(np.ascontiguousarray, both)))
    weights = _to_torch(cell.kernel), _to_torch(cell.recurrent_kernel)
    nonlinearity = cell.activation.__name__ if kind == "RNN" else "tanh"
    compute = jnp.dtype(layer.compute_dtype)
    dtype = None if compute == weights[0].dtype else compute
    return Direction(layer.name, kind, *weights, **biases, nonlinearity=nonlinearity, dtype=dtype)


def _arrays(direction: Direction) -> list[np.ndarray]:
    """Return the weights of one direction in the layout of Keras."""

    def _to_keras(array: np.ndarray) -> np.ndarray:
        return reorder_gates(array, GATES[direction.kind], _KERAS_GATES[direction.kind])

    arrays = [_to_keras(direction.weight_ih).T, _to_keras(direction.weight_hh).T]
    if direction.bias_ih is None:
        return arrays
    biases = np.stack(direction.biases, axis=1)
    if direction.kind != "GRU":
        biases = biases.sum(axis=1)
    return [*arrays, _to_keras(biases).T]


def _dtype_policy(keras: Any, layer: Any) -> Any:
    param = jnp.dtype(layer.param_dtype).name
    compute = param if layer.dtype is None else jnp.dtype(layer.dtype).name
    if param == compute or (param == "float32" and compute in ("float16", "bfloat16")):
        return keras.DTypePolicy(param if param == compute else f"mixed_{compute}")
    raise ConversionError(
        f"Keras has no dtype policy for {param} weights and computation in {compute}. Use one "
        "dtype for both, or float32 weights with float16 or bfloat16."
    )
