"""The states of a stack: their sizes, and the form in which a call takes and gives them.

Where the states of all layers have the same sizes, each is one array (F*L, N, S); where they differ
(hidden sizes of one's own in each layer), each is a tuple of L arrays (F, N, S_k). So an LSTM takes
and gives a pair (h, c), and with several sizes a pair of tuples.

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
    """The arguments of a layer as ``(hidden_size, num_layers)``; several equal sizes are one.

    Raises:
        TypeError, ValueError: for sizes that are no whole numbers above 0, and for another number
            of them than of layers. For one size nothing is checked here.

    Example:
        >>> hidden_sizes((4, 5), 1), hidden_sizes((4, 4), 2), hidden_sizes(4, 2)
        (((4, 5), 2), (4, 2), (4, 2))
    """
    if not isinstance(hidden_size, (tuple, list)):
        return hidden_size, num_layers
    for size in hidden_size:
        if not hasattr(size, "__index__") or isinstance(size, bool):
            raise TypeError(f"hidden_size should be an int or several, got {hidden_size!r}")
        if size <= 0:
            raise ValueError(f"hidden_size must be greater than zero, got {hidden_size!r}")
    count = len(hidden_size)
    if not count or num_layers not in (1, count):
        raise ValueError(
            f"hidden_size should be one, or one for each of {num_layers} layers, got {count}: "
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
    """The sizes of each layer; the input of one is the output of that below.

    Example:
        >>> from jaxrnn import cells
        >>> layer_sizes(cells.GRU(), 3, (4, 5), directions=2)
        (Sizes(D=3, H=4, R=4), Sizes(D=8, H=5, R=5))
    """
    one = isinstance(hidden_size, int)
    sizes = []
    for hidden in (hidden_size,) * num_layers if one else hidden_size:
        sizes.append(Sizes(input_size, hidden, proj_size or hidden))
        input_size = directions * cell.output_features(sizes[-1])
    return tuple(sizes)


def layered(each: Sequence[tuple[int, ...]]) -> bool:
    """Whether the states of the layers, whose sizes these are, stand apart."""
    return len(set(each)) > 1


def shapes(each: Sequence[tuple[int, ...]], directions: int, *batch: int) -> tuple[Any, ...]:
    """The shape of each state, or of its part in each layer."""
    if layered(each):
        return tuple(tuple((directions, *batch, s) for s in parts) for parts in zip(*each))
    return tuple((directions * len(each), *batch, s) for s in each[0])


def zeros(shapes: Sequence[Any], dtypes: Sequence[Any]) -> tuple[Any, ...]:
    """States of zeros, of shapes as `shapes` gives them."""
    return tuple(
        tuple(jnp.zeros(part, dtype) for part in shape)
        if isinstance(shape[0], tuple)
        else jnp.zeros(shape, dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )


def stacked(parts: Sequence[tuple[jax.Array, ...]], directions: int, axis: int) -> tuple[Any, ...]:
    """The states of all, from those of each layer and direction; `axis` is to hold these."""
    apart = layered([tuple(s.shape[-1] for s in part) for part in parts])
    length = directions if apart else len(parts)
    groups = [parts[first : first + length] for first in range(0, len(parts), length)]
    joined = [tuple(jnp.stack(s, axis) for s in zip(*group, strict=True)) for group in groups]
    return tuple(zip(*joined, strict=True)) if apart else joined[0]


def at(states: tuple[Any, ...], index: int, directions: int) -> tuple[jax.Array, ...]:
    """The states of one layer and direction: the other way round."""
    layer, direction = divmod(index, directions)
    return tuple(s[layer][direction] if isinstance(s, tuple) else s[index] for s in states)


def cast(states: tuple[Any, ...], dtypes: Sequence[Any]) -> tuple[Any, ...]:
    """The states in these dtypes."""
    return tuple(jax.tree.map(lambda a, d=d: a.astype(d), s) for s, d in zip(states, dtypes))


def repeated(learned: Any, batch: int | None) -> tuple[Any, ...]:
    """States without rows as states of N rows; None leaves them."""
    if batch is None:
        return learned
    return jax.tree.map(
        lambda a: jnp.broadcast_to(a[:, None], (a.shape[0], batch, a.shape[1])), learned
    )


def check_layered(
    hx: Any, names: Sequence[str], expected: Sequence[Any], batched: bool
) -> tuple[Any, ...]:
    """The states of a call where each is one array a layer.

    Args:
        hx: what was given.
        names: of the states.
        expected: the shapes of a state's parts, for each state, with N.
        batched: whether the input has a batch.

    Raises:
        ShapeError, TypeError: naming what came and what was expected.
    """
    given = (hx,) if len(names) == 1 else hx
    count = len(expected[0])
    form = f"a tuple of {count} arrays, one a layer"
    if not isinstance(given, (tuple, list)) or len(given) != len(names):
        got = len(given) if isinstance(given, (tuple, list)) else type(given).__name__
        raise StateCountError(
            f"expected {len(names)} states ({', '.join(names)}), each {form}, got {got}"
        )
    checked = []
    for name, parts, shapes in zip(names, given, expected):
        if not isinstance(parts, (tuple, list)):
            raise StateTypeError(f"expected {name} as {form}, got {type(parts).__name__}")
        if len(parts) != count:
            raise StateCountError(f"expected {name} as {form}, got {len(parts)}")
        arrays = tuple(map(jnp.asarray, parts))
        for layer, (array, shape) in enumerate(zip(arrays, shapes)):
            wanted = shape if batched else (shape[0], shape[2])
            if array.shape != wanted:
                raise ShapeError(
                    f"Expected {name} of layer {layer} {wanted}, got {list(array.shape)}"
                )
        checked.append(arrays)
    return tuple(checked)
