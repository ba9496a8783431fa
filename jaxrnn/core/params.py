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

    Args:
        cell: the cell.
        input_size: D.
        hidden_size: H.
        bias: if False, no biases, see `jaxrnn.cells.BaseCell`.
        proj_size: P, the size of h after its projection; 0 for no projection.

    Raises:
        TypeError, ValueError: if `cell` is not a cell, or projects without W_hh.

    Example:
        >>> from jaxrnn import cells
        >>> from jaxrnn.core.params import param_shapes
        >>> param_shapes(cells.GRU(), 3, 4, bias=False)
        {'weight_ih': (12, 3), 'weight_hh': (12, 4)}
    """
    check(cell)
    if proj_size and not (isinstance(cell, Cell) and cell.recurrent):
        raise ValueError(f"proj_size={proj_size} needs a cell with weight_hh, got {cell}")
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
        F*L `Weights` as `jaxrnn.core.stack.run` takes them, layer-major, direction-minor.

    Raises:
        TypeError, ValueError: if `cell` is not a cell, its functions return wrong shapes, or it
            projects without W_hh.

    Example:
        >>> import jax
        >>> from jaxrnn import cells
        >>> from jaxrnn.core.params import init
        >>> first, second = init(jax.random.key(0), cells.LSTM(), 3, 4, bidirectional=True)
        >>> first.weight_ih.shape, second.bias_hh.shape, first.weight_hr
        ((16, 3), (16,), None)
    """
    check(cell)
    # Weights drawn from the default distribution need no program, see `_draw_flat`.
    inits = [cell.draw, *(p.init for p in cell.parameter_specs().values())]
    default = inits.count(None) == len(inits)
    default &= type(cell).initialize is BaseCell.initialize
    weights = (_init if default else _compiled_init)(
        *(key, cell, input_size, hidden_size, num_layers, bias, bool(bidirectional)),
        *(proj_size, dtype),
    )
    # `jax.jit` returns a dict in alphabetical order, not in the cell's.
    position = {name: index for index, name in enumerate(cell.parameter_specs())}

    def ordered(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        names = sorted(params, key=lambda n: position.get(n, len(position)))
        return {n: params[n] for n in names}

    return tuple(w._replace(cell_params=w.cell_params and ordered(w.cell_params)) for w in weights)


def _init(
    key: jax.Array,
    cell: BaseCell,
    input_size: int,
    hidden_size: int | tuple[int, ...],
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    proj_size: int,
    dtype: Any,
) -> tuple[Weights, ...]:
    directions = 2 if bidirectional else 1
    by_layer = layer_sizes(
        *(cell, input_size, hidden_size, num_layers), directions=directions, proj_size=proj_size
    )
    sizes = [size for size in by_layer for _ in range(directions)]
    # As Python's integers; a size may be NumPy's, or True, as in PyTorch.
    layers = [
        {
            name: tuple(map(int, shape))
            for name, shape in param_shapes(
                cell, size.D, size.H, bias=bias, proj_size=proj_size
            ).items()
        }
        for size in sizes
    ]
    for size in dict.fromkeys(sizes):
        check_step(cell, size)
    inits = {name: p.init for name, p in cell.parameter_specs().items() if p.init is not None}
    if cell.draw is not None:
        return _draw_by_cell(cell, key, sizes, dtype)
    # One draw for all: a generator for each shape would take longer to compile than the layer.
    uniforms = [{n: shape for n, shape in layer.items() if n not in inits} for layer in layers]
    counts = [math.prod(shape) for layer in uniforms for shape in layer.values()]
    same_size = isinstance(hidden_size, int)
    flat, place = _draw_flat(key, sum(counts), hidden_size if same_size else 1, dtype)
    ends = list(itertools.accumulate(counts))
    parts = (flat[end - count : end] for count, end in zip(counts, ends))
    keys = (jax.random.fold_in(key, index) for index in itertools.count())
    weights = []
    for layer, size in zip(layers, sizes):
        named = {
            name: _draw_by_init(inits[name], next(keys), shape, dtype)
            if name in inits
            else next(parts).reshape(shape)
            for name, shape in layer.items()
        }
        if not same_size:
            bound = np.asarray(size.H**-0.5, flat.dtype)
            named = {n: a if n in inits else a * bound for n, a in named.items()}
        weights.append(Weights.from_named(cell, cell.initialize(named)))
    return place(tuple(weights))


_compiled_init = jax.jit(_init, static_argnums=range(1, 9))


def _draw_by_cell(
    cell: Any, key: jax.Array, sizes: Sequence[Sizes], dtype: Any
) -> tuple[Weights, ...]:
    """Draw the weights by the cell's `draw`, all layers of one size at once."""
    keys = jax.random.split(key, len(sizes))
    weights: list[Any] = [None] * len(sizes)
    for size in dict.fromkeys(sizes):
        places = np.array([index for index, one in enumerate(sizes) if one == size])
        draw = functools.partial(cell.draw, sizes=size, dtype=dtype)
        drawn = jax.vmap(draw)(keys[places])
        for i, place in enumerate(places):
            named = {name: array[i] for name, array in drawn.items()}
            weights[place] = Weights.from_named(cell, cell.initialize(named))
    return tuple(weights)


def _draw_by_init(init: Any, key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return init(key, shape, dtype) if callable(init) else jnp.full(shape, init, dtype)


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
