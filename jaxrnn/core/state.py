"""The states of a stack: their sizes, and the form in which a call takes and returns them.

If the states of all layers have equal sizes, each is one array (F*L, N, S). If they differ
(a hidden size for each layer), each is a tuple of L arrays (F, N, S_k). An LSTM takes and returns a
pair (h, c), with several hidden sizes a pair of tuples.

Axis letters: N batch, S features of a state, L layers, F directions.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError, StateCountError, StateTypeError
from jaxrnn.cells import BaseCell, Sizes


def hidden_sizes(hidden_size: Any, num_layers: Any) -> tuple[Any, Any]:
    """Return ``(hidden_size, num_layers)``, with several equal sizes as one.

    Raises:
        TypeError, ValueError: if sizes are not positive integers, or not one for each layer. A
            single size is not checked here.

    Example:
        >>> hidden_sizes((4, 5), 1), hidden_sizes((4, 4), 2), hidden_sizes(4, 2)
        (((4, 5), 2), (4, 2), (4, 2))
    """
    if not isinstance(hidden_size, (tuple, list)):
        return hidden_size, num_layers
    for size in hidden_size:
        if not hasattr(size, "__index__") or isinstance(size, bool):
            raise TypeError(f"`hidden_size` must be an int or several, got {hidden_size!r}")
        if size <= 0:
            raise ValueError(f"hidden_size must be greater than zero, got {hidden_size!r}")
    count = len(hidden_size)
    if not count or num_layers not in (1, count):
        raise ValueError(
            f"`hidden_size` must be one, or one for each of {num_layers} layers, got {count}: "
            f"{hidden_size!r}"
        )
    sizes = tuple(map(operator.index, hidden_size))
    return sizes[0] if len(set(sizes)) == 1 else sizes, count


def layer_sizes(
    cell: BaseCell,
    input_size: int,
    hidden_size: int | Sequence[int],
    num_layers: int = 1,
    *,
    directions: int = 1,
    proj_size: int = 0,
) -> tuple[Sizes, ...]:
    """Return the sizes of each layer; the input of a layer is the output of the previous one.

    Example:
        >>> from jaxrnn import cells
        >>> layer_sizes(cells.GRU(), 3, (4, 5), directions=2)
        (Sizes(D=3, H=4, R=4), Sizes(D=8, H=5, R=5))
    """
    sizes = []
    for hidden in (hidden_size,) * num_layers if isinstance(hidden_size, int) else hidden_size:
        sizes.append(Sizes(input_size, hidden, proj_size or hidden))
        input_size = directions * cell.output_features(sizes[-1])
    return tuple(sizes)


def differ_by_layer(sizes: Sequence[tuple[int, ...]]) -> bool:
    """Return True if the state sizes of the layers differ."""
    return len(set(sizes)) > 1


def state_shapes(sizes: Sequence[tuple[int, ...]], directions: int, *batch: int) -> tuple[Any, ...]:
    """Return the shape of each state, or of its part in each layer, from the sizes by layer."""
    if differ_by_layer(sizes):
        return tuple(tuple((directions, *batch, s) for s in parts) for parts in zip(*sizes))
    return tuple((directions * len(sizes), *batch, s) for s in sizes[0])


def zeros(shapes: Sequence[Any], dtypes: Sequence[Any]) -> tuple[Any, ...]:
    """Return states of zeros with the shapes of `state_shapes`."""
    return tuple(
        tuple(jnp.zeros(part, dtype) for part in shape)
        if isinstance(shape[0], tuple)
        else jnp.zeros(shape, dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )


def stack_states(
    parts: Sequence[tuple[jax.Array, ...]], directions: int, axis: int
) -> tuple[Any, ...]:
    """Stack the states of layers and directions along a new axis."""
    differ = differ_by_layer([tuple(s.shape[-1] for s in part) for part in parts])
    length = directions if differ else len(parts)
    groups = [parts[first : first + length] for first in range(0, len(parts), length)]
    stacked = [tuple(jnp.stack(s, axis) for s in zip(*group, strict=True)) for group in groups]
    return tuple(zip(*stacked, strict=True)) if differ else stacked[0]


def state_of(states: tuple[Any, ...], index: int, directions: int) -> tuple[jax.Array, ...]:
    """Return the states of one layer and direction."""
    layer, direction = divmod(index, directions)
    return tuple(s[layer][direction] if isinstance(s, tuple) else s[index] for s in states)


def cast_states(states: tuple[Any, ...], dtypes: Sequence[Any]) -> tuple[Any, ...]:
    """Cast each state to its dtype."""
    return tuple(jax.tree.map(lambda a, d=d: a.astype(d), s) for s, d in zip(states, dtypes))


def broadcast_to_batch(learned: Any, batch: int | None) -> tuple[Any, ...]:
    """Repeat states without a batch axis for N batch elements; None leaves them unbatched."""
    if batch is None:
        return learned
    return jax.tree.map(
        lambda a: jnp.broadcast_to(a[:, None], (a.shape[0], batch, a.shape[1])), learned
    )


def check_states_by_layer(
    hx: Any, names: Sequence[str], expected: Sequence[Any], batched: bool
) -> tuple[Any, ...]:
    """Check the states of a call in which each is a tuple of one array a layer.

    `expected` has the shapes of `state_shapes` with a batch axis, whether the input is `batched` or
    not.

    Raises:
        ShapeError, TypeError: naming the expected and the actual value.
    """
    states = (hx,) if len(names) == 1 else hx
    count = len(expected[0])
    form = f"a tuple of {count} arrays, one for each layer"
    several = f"`hx` must be {len(names)} states ({', '.join(names)}), each {form}"
    _check_tuple(states, len(names), several, StateCountError)
    checked = []
    for name, parts, shapes in zip(names, states, expected):
        _check_tuple(parts, count, f"`{name}` must be {form}", StateTypeError)
        arrays = tuple(map(jnp.asarray, parts))
        for layer, (array, shape) in enumerate(zip(arrays, shapes)):
            shape = shape if batched else (shape[0], shape[2])
            if array.shape != shape:
                raise ShapeError(
                    f"Expected {name} of layer {layer} {shape}, got {list(array.shape)}"
                )
        checked.append(arrays)
    return tuple(checked)


def _check_tuple(value: Any, length: int, message: str, error: type[Exception]) -> None:
    if not isinstance(value, (tuple, list)):
        raise error(f"{message}, got {type(value).__name__}")
    if len(value) != length:
        raise StateCountError(f"{message}, got {len(value)}")
