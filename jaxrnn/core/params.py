"""Initial parameters of a stack: their shapes, and how they are drawn.

Axis letters: D input features, H hidden size, P projection, L layers, F directions.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn.cells import BaseCell, Cell, Sizes, check
from jaxrnn.cells._check import check_step
from jaxrnn.cells.weights import Weights
from jaxrnn.core.state import layer_sizes


def param_shapes(
    cell: BaseCell, input_size: int, hidden_size: int, *, bias: bool = True, proj_size: int = 0
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of one layer and direction, in PyTorch's order.

    The arguments, and the errors for an invalid cell or projection, are those of `init`.

    Example:
        >>> from jaxrnn import cells
        >>> from jaxrnn.core.params import param_shapes
        >>> param_shapes(cells.GRU(), 3, 4, bias=False)
        {'weight_ih': (12, 3), 'weight_hh': (12, 4)}
    """
    check(cell)
    _check_projection(cell, proj_size)
    return cell.shapes(Sizes(input_size, hidden_size, proj_size or hidden_size), bias=bias)


def init(
    key: jax.Array,
    cell: BaseCell,
    input_size: int,
    hidden_size: int | tuple[int, ...],
    *,
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    proj_size: int = 0,
    dtype: Any = jnp.float32,
) -> tuple[Weights, ...]:
    r"""Draw the weights of a stack as PyTorch does, each from :math:`U(-1/\sqrt H, 1/\sqrt H)`.

    Parameters that a cell declares with an `init` are drawn by that, and all pass through the
    cell's `initialize`.

    Args:
        key: a PRNG key.
        cell: the cell of every layer.
        input_size: D of the first layer.
        hidden_size: H, one for all layers, or a tuple of one for each.
        num_layers: L, if there is one hidden size.
        bias: if False, no biases, see `jaxrnn.cells.BaseCell`.
        bidirectional: if True, every layer has a reverse direction.
        proj_size: P, the size of h after its projection; 0 for no projection.
        dtype: the dtype of the weights.

    Returns:
        F*L weights as `jaxrnn.core.stack.run` takes them, layer-major, direction-minor.

    Raises:
        TypeError: if `cell` is not a cell.
        ValueError: if its functions return wrong shapes, or it projects without W_hh.

    Example:
        >>> import jax
        >>> from jaxrnn import cells
        >>> from jaxrnn.core.params import init
        >>> first, second = init(jax.random.key(0), cells.LSTM(), 3, 4, bidirectional=True)
        >>> first.weight_ih.shape, second.bias_hh.shape, first.weight_hr
        ((16, 3), (16,), None)
    """
    check(cell)
    _check_projection(cell, proj_size)
    directions = 2 if bidirectional else 1
    by_layer = layer_sizes(
        *(cell, input_size, hidden_size, num_layers), directions=directions, proj_size=proj_size
    )
    # As Python's integers; a size may be NumPy's, or True, as in PyTorch.
    sizes = tuple(Sizes(*map(int, size)) for size in by_layer for _ in range(directions))
    for size in dict.fromkeys(sizes):
        check_step(cell, size)
    # Weights drawn from the default distribution need no program, see `_draw_flat`.
    default = cell.draw is None and type(cell).initialize is BaseCell.initialize
    default &= all(p.init is None for p in cell.parameter_specs().values())
    drawn = (_draw if default else _compiled_draw)(key, cell, sizes, bias, dtype)
    return tuple(Weights.from_named(cell, named) for named in drawn)


def _check_projection(cell: BaseCell, proj_size: int) -> None:
    if proj_size and not (isinstance(cell, Cell) and cell.recurrent):
        raise ValueError(f"proj_size={proj_size} needs a cell with weight_hh, got {cell}")


def _draw(
    key: jax.Array, cell: BaseCell, sizes: tuple[Sizes, ...], bias: bool, dtype: Any
) -> tuple[dict[str, Any], ...]:
    """Draw the parameters of each layer and direction, by name."""
    shapes = [cell.shapes(size, bias=bias) for size in sizes]  # checks the bias and the sizes
    if cell.draw is not None:
        return _draw_by_cell(cell, key, sizes, dtype)
    inits = {name: p.init for name, p in cell.parameter_specs().items() if p.init is not None}
    # One draw for all: a generator for each shape would take longer to compile than the layer.
    counts = [
        math.prod(shape) for layer in shapes for name, shape in layer.items() if name not in inits
    ]
    same_size = len({size.H for size in sizes}) == 1
    flat, place = _draw_flat(key, sum(counts), sizes[0].H if same_size else 1, dtype)
    parts = (flat[end - n : end] for n, end in zip(counts, itertools.accumulate(counts)))
    keys = (jax.random.fold_in(key, index) for index in itertools.count())
    layers = []
    for layer, size in zip(shapes, sizes):
        named = {}
        for name, shape in layer.items():
            if name in inits:
                init, subkey = inits[name], next(keys)
                drawn = (
                    init(subkey, shape, dtype) if callable(init) else jnp.full(shape, init, dtype)
                )
            else:
                part = next(parts).reshape(shape)
                drawn = part if same_size else part * np.asarray(size.H**-0.5, flat.dtype)
            named[name] = drawn
        layers.append(cell.initialize(named))
    return place(tuple(layers))


# The compiled function returns dicts in alphabetical order; `Weights.from_named` reorders them.
_compiled_draw = jax.jit(_draw, static_argnums=range(1, 5))


def _draw_by_cell(
    cell: Any, key: jax.Array, sizes: Sequence[Sizes], dtype: Any
) -> tuple[dict[str, Any], ...]:
    """Draw the parameters by the cell's `draw`, all layers of one size at once."""
    keys = jax.random.split(key, len(sizes))
    layers: list[Any] = [None] * len(sizes)
    for size in dict.fromkeys(sizes):
        indices = np.array([index for index, one in enumerate(sizes) if one == size])
        drawn = jax.vmap(functools.partial(cell.draw, sizes=size, dtype=dtype))(keys[indices])
        for i, index in enumerate(indices):
            layers[index] = cell.initialize({name: array[i] for name, array in drawn.items()})
    return tuple(layers)


def uniform(key: jax.Array, shape: tuple[int, ...], fan: int, dtype: Any = jnp.float32) -> Any:
    r"""Draw from :math:`U(-1/\sqrt{fan}, 1/\sqrt{fan})`, PyTorch's bound for these layers."""
    shape = tuple(map(int, shape))
    flat, place = _draw_flat(key, math.prod(shape), fan, dtype)
    return place(flat.reshape(shape))


def _draw_flat(key: jax.Array, count: int, fan: int, dtype: Any) -> tuple[Any, Any]:
    """Draw `count` numbers as `uniform` does; also return the function that places their parts.

    A generator takes longer to compile than to run, so counts are rounded up and one program serves
    many; the numbers are split in NumPy, which compiles nothing, unless they are traced. With JAX's
    default generator the first numbers of a longer draw are those of a shorter one.
    """
    grain = 1 << max(12, count.bit_length() - 4)  # at most an eighth too many
    padded = -(-count // grain) * grain
    bound = fan**-0.5 if fan > 0 else 0.0
    drawn = _uniform(key, bound, padded, jnp.dtype(dtype))
    if isinstance(drawn, Tracer):
        return drawn[:count], lambda parts: parts
    device = drawn.sharding if drawn.committed else None
    place = functools.partial(jax.device_put, device=device, may_alias=False)
    return jax.device_get(drawn)[:count], place


@functools.partial(jax.jit, static_argnums=(2, 3))
def _uniform(key: jax.Array, bound: float, count: int, dtype: Any) -> jax.Array:
    return jax.random.uniform(key, (count,), dtype, -bound, bound)
