"""Keras 3: SimpleRNN, LSTM, GRU and Bidirectional, alone, in a list or in a Sequential.

Keras runs on whatever backend it was imported with; weights pass through NumPy. To run it on JAX,
set ``KERAS_BACKEND=jax`` in the environment, or ``os.environ``, before its first import: nothing
here does it for you.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn.interop._parts import (
    GATES,
    KINDS,
    RESET_BEFORE,
    ConversionError,
    Part,
    needed,
    not_converted,
    one_bias,
    put_together,
    refuse,
    reordered,
    taken_apart,
)

# A letter for each gate: the new state of a GRU, which Keras calls hh, comes last as PyTorch's n.
KERAS_GATES = {"RNN": "h", "LSTM": "ifgo", "GRU": "zrn", "GRUResetBefore": "zrn"}

INITIALIZERS = ("kernel_initializer", "recurrent_initializer")


def from_keras(layers: Any) -> Any:
    """One of our layers from layers of Keras 3.

    Args:
        layers: a built ``SimpleRNN`` (tanh or relu), ``LSTM``, ``GRU`` or ``RNN`` of one of their
            cells; a ``Bidirectional`` of one, with ``merge_mode="concat"``; a list or
            ``Sequential`` of nothing but these, one upon the other, all of one kind and size.

    Returns:
        An `RNN`, `LSTM` or `GRU`, or of a GRU with ``reset_after=False`` a `Recurrent` of
        `cells.GRUResetBefore`, with as many layers, ``batch_first=True``, its ``param_dtype`` and
        ``dtype`` those of the dtype policy. It gives out every step: what a layer of Keras without
        ``return_sequences`` gives is the last of ``h_n``. One bias is ``bias_ih``, beside
        zeros; the two of a GRU with ``reset_after=True`` are both.

    Raises:
        ImportError: if Keras is not installed.
        TypeError: for anything that is no layer of Keras.
        ConversionError: a ValueError that lists all that can't be held: other activations, a
            single layer that goes backwards, another merge mode.

    Warns:
        UserWarning: of dropout, which acts in training only, and of ``stateful``.

    Example:
        ``lstm = from_keras(keras_model.layers[0])``;
        ``output, (h_n, c_n) = lstm(x)`` then has ``output == keras_model.layers[0](x)``.
    """
    keras = _keras()
    if isinstance(layers, keras.Sequential):
        layers = layers.layers
    elif isinstance(layers, keras.layers.Layer):
        layers = [layers]
    if not isinstance(layers, Iterable) or isinstance(layers, (str, bytes)):
        raise TypeError(f"from_keras takes layers of Keras, got {type(layers).__name__}")
    layers = list(layers)
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(f"from_keras takes layers of Keras, got {type(layer).__name__}")
    problems: list[str] = []
    ignored: list[str] = []
    for number, layer in enumerate(layers):
        _check(keras, layer, problems, ignored, last=number == len(layers) - 1)
    refuse(problems, "from_keras can't hold:")
    not_converted(ignored, "from_keras: what acts in training or between calls")
    stack = [[_part(keras, one) for one in _directions(keras, layer)] for layer in layers]
    return put_together(stack, batch_first=True, function="from_keras")


def to_keras(layer: Any) -> Any:
    """A ``keras.Sequential`` of Keras 3 from one of our layers.

    Args:
        layer: an `RNN`, `LSTM` (without a projection), `GRU` or `Recurrent` of
            `cells.GRUResetBefore`.

    Returns:
        A built model: for each layer a ``SimpleRNN``, ``LSTM`` or ``GRU`` with
        ``return_sequences=True``, in a ``Bidirectional`` if there are two directions. It is
        batch-first, as Keras is, whatever ``layer.batch_first`` says. Its ``layers`` are the single
        ones, whose ``get_weights()`` are what ``set_weights`` of layers of your own takes.
        All but a GRU with ``reset_after=True`` get the sum of both biases.

    Raises:
        ImportError: if Keras is not installed.
        TypeError: for anything but a layer of ours.
        ConversionError: a ValueError, for a cell, a projection or dtypes that Keras doesn't have.

    Warns:
        UserWarning: of dropout, which is not converted.
    """
    keras = _keras()
    stack = taken_apart(layer, "to_keras", KINDS | RESET_BEFORE)
    made = []
    for directions in stack:
        first = directions[0]
        options: dict[str, Any] = {
            "return_sequences": True,
            "use_bias": first.bias_ih is not None,
            "dtype": _policy(keras, layer),
        }
        if first.kind == "RNN":
            options["activation"] = first.nonlinearity
        elif first.kind == "GRUResetBefore":
            options["reset_after"] = False
        # Nothing to draw before the weights are set: orthogonal ones take long, or, in float16,
        # can't be drawn at all.
        options |= dict.fromkeys(INITIALIZERS, "zeros")
        one = _kinds(keras)[first.kind](first.hidden_size, **options)
        both = len(directions) == 2
        made.append(keras.layers.Bidirectional(one, dtype=one.dtype_policy) if both else one)
    inputs = keras.Input((None, layer.input_size), dtype=made[0].compute_dtype)
    model = keras.Sequential([inputs, *made])
    for one, directions in zip(made, stack, strict=True):
        one.set_weights([array for part in directions for array in _arrays(part)])
        usual = _kinds(keras)[directions[0].kind](1).cell
        for cell in (single.cell for single in _directions(keras, one)):
            for name in INITIALIZERS:  # of a model that is made anew from this one's config
                setattr(cell, name, getattr(usual, name))
    return model


def _keras() -> Any:
    """Keras, on the backend that the user has chosen."""
    try:
        return needed("keras", "keras")
    except ModuleNotFoundError as error:
        if error.name in ("tensorflow", "torch"):
            error.add_note(
                "Keras chooses its backend when it is imported, TensorFlow unless the environment "
                'says otherwise: os.environ["KERAS_BACKEND"] = "jax" before the first import of it'
            )
        raise


def _kinds(keras: Any) -> dict[str, Any]:
    layers = keras.layers
    kinds = {"RNN": layers.SimpleRNN, "LSTM": layers.LSTM, "GRU": layers.GRU}
    return kinds | {"GRUResetBefore": layers.GRU}


def _kind(keras: Any, cell: Any) -> str | None:
    layers = keras.layers
    kinds = {layers.SimpleRNNCell: "RNN", layers.LSTMCell: "LSTM", layers.GRUCell: "GRU"}
    kind = kinds.get(type(cell))
    return "GRUResetBefore" if kind == "GRU" and not cell.reset_after else kind


def _directions(keras: Any, layer: Any) -> list[Any]:
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    return [layer]


def _check(keras: Any, layer: Any, problems: list[str], ignored: list[str], *, last: bool) -> None:
    """Note all that a layer has and ours can't hold."""
    both = _directions(keras, layer)
    if len(both) == 2 and layer.merge_mode != "concat":
        problems.append(f'{layer.name}: expected merge_mode "concat", got {layer.merge_mode!r}')
    for backwards, one in zip((False, True), both):
        where = layer.name if len(both) == 1 else f"{layer.name}.{one.name}"
        cell: Any = getattr(one, "cell", None)
        kind = _kind(keras, cell)
        if kind is None:
            problems.append(
                f"{where}: expected a SimpleRNN, LSTM or GRU, got {type(one).__name__}"
                + (f" of {type(cell).__name__}" if cell is not None else "")
                + ("; give those of its layers" if isinstance(one, keras.Model) else "")
            )
            continue
        if not one.built:
            problems.append(f"{where}: is not built, it has no weights yet: call it, or build it")
        if one.go_backwards is not backwards:
            problems.append(f"{where}: expected go_backwards={backwards}, got {one.go_backwards}")
        if not last and not one.return_sequences:
            problems.append(f"{where}: expected return_sequences=True below another layer")
        activations = keras.activations
        functions = (activations.tanh, *((activations.relu,) if kind == "RNN" else ()))
        wanted = {"activation": functions}
        if kind != "RNN":
            wanted["recurrent_activation"] = (activations.sigmoid,)
        for name, allowed in wanted.items():
            got = getattr(cell, name)
            if got not in allowed:
                words = " or ".join(function.__name__ for function in allowed)
                called = getattr(got, "__name__", repr(got))
                problems.append(f"{where}: expected {name} {words}, got {called}")
        for name in ("dropout", "recurrent_dropout"):
            if getattr(cell, name):
                ignored.append(f"{name}={getattr(cell, name)} of {where}")
        if one.stateful:
            ignored.append(f"stateful=True of {where}")


def _part(keras: Any, layer: Any) -> Part:
    """The weights of one direction, in PyTorch's order."""
    cell = layer.cell
    kind = _kind(keras, cell)
    assert kind is not None  # as `_check` has seen

    def ours(variable: Any) -> np.ndarray:
        array = np.array(keras.ops.convert_to_numpy(variable.value))
        return reordered(np.ascontiguousarray(array.T), KERAS_GATES[kind], GATES[kind])

    biases: dict[str, np.ndarray] = {}
    if cell.use_bias:
        bias = ours(cell.bias)  # (G*H,), or of two (G*H, 2)
        two = bias.T if bias.ndim == 2 else (bias, np.zeros_like(bias))
        biases = dict(zip(("bias_ih", "bias_hh"), map(np.ascontiguousarray, two)))
    weights = ours(cell.kernel), ours(cell.recurrent_kernel)
    nonlinearity = cell.activation.__name__ if kind == "RNN" else "tanh"
    compute = jnp.dtype(layer.compute_dtype)
    dtype = None if compute == weights[0].dtype else compute
    return Part(layer.name, kind, *weights, **biases, nonlinearity=nonlinearity, dtype=dtype)


def _arrays(part: Part) -> list[np.ndarray]:
    """The weights of one direction as Keras has them."""

    def theirs(array: np.ndarray) -> np.ndarray:
        return reordered(array, GATES[part.kind], KERAS_GATES[part.kind])

    arrays = [theirs(part.weight_ih).T, theirs(part.weight_hh).T]
    if part.bias_ih is None or part.bias_hh is None:
        return arrays
    if part.kind == "GRU":
        return [*arrays, np.stack([theirs(part.bias_ih), theirs(part.bias_hh)])]
    return [*arrays, theirs(one_bias(part))]


def _policy(keras: Any, layer: Any) -> Any:
    """The dtype policy of a layer of ours."""
    own = jnp.dtype(layer.param_dtype).name
    compute = own if layer.dtype is None else jnp.dtype(layer.dtype).name
    if own == compute:
        return keras.DTypePolicy(own)
    if own == "float32" and compute in ("float16", "bfloat16"):
        return keras.DTypePolicy(f"mixed_{compute}")
    raise ConversionError(
        f"Keras has no dtype policy for {own} weights and computation in {compute}: it has one "
        "dtype for both, or float32 weights with float16 or bfloat16"
    )
