"""The weights that a stack begins with: their shapes, and how they are drawn.

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
from jaxrnn.core import state as states


def shapes(
    cell: BaseCell, input_size: int, hidden_size: int, *, bias: bool = True, proj_size: int = 0
) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of one layer and direction, in PyTorch's order.

    Args:
        cell: what one step is.
        input_size: D.
        hidden_size: H.
        bias: whether there are biases, see `jaxrnn.cells.BaseCell`.
        proj_size: P, the size of h if it is projected; 0 for no projection.

    Raises:
        TypeError, ValueError: for what is no cell, and a projection of one without W_hh.

    Example:
        >>> from jaxrnn import cells
        >>> from jaxrnn.core import stack
        >>> stack.shapes(cells.GRU(), 3, 4, bias=False)
        {'weight_ih': (12, 3), 'weight_hh': (12, 4)}
    """
    check(cell)
    if proj_size and not (isinstance(cell, Cell) and cell.recurrent):
        raise ValueError(f"proj_size={proj_size}: {cell} has no W_hh that a projected h could meet")
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
    """The weights of a stack as PyTorch draws them: each from U(-1/sqrt(H), 1/sqrt(H)).

    Parameters that a cell declares with an `init` of their own are drawn by that, and all go
    through its `initialize`.

    Args:
        key: the PRNG key.
        cell: the cell of every layer.
        input_size: D of the first layer.
        hidden_size: H, one for all layers, or a tuple of one for each.
        num_layers: L, where there is one size for all.
        bias: whether there are biases, see `jaxrnn.cells.BaseCell`.
        bidirectional: a second direction in every layer.
        proj_size: P, the size of h if it is projected; 0 for no projection.
        dtype: of the weights.

    Returns:
        F*L `Weights` as `run` takes them, layer by layer, the forward direction of a layer first.

    Raises:
        TypeError, ValueError: for what is no cell, or one whose functions do not give what they
            should; for a projection of one without W_hh.

    Example:
        >>> import jax
        >>> from jaxrnn import cells
        >>> from jaxrnn.core import stack
        >>> first, second = stack.init(jax.random.key(0), cells.LSTM(), 3, 4, bidirectional=True)
        >>> first.weight_ih.shape, second.bias_hh.shape, first.weight_hr
        ((16, 3), (16,), None)
    """
    check(cell)
    # Weights that are drawn and nothing else need no program of their own, see `_drawn_flat`.
    inits = [cell.draw, *(p.init for p in cell.parameter_specs().values())]
    only_drawn = inits.count(None) == len(inits)
    only_drawn &= type(cell).initialize is BaseCell.initialize
    made = (_init if only_drawn else _compiled_init)(
        *(key, cell, input_size, hidden_size, num_layers, bias, bool(bidirectional)),
        *(proj_size, dtype),
    )
    # A dict comes out of `jax.jit` in alphabetical order, and not in that of the cell.
    place = {name: index for index, name in enumerate(cell.parameter_specs())}

    def ordered(own: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {n: own[n] for n in sorted(own, key=lambda n: place.get(n, len(place)))}

    return tuple(w._replace(cell_params=w.cell_params and ordered(w.cell_params)) for w in made)


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
    """See `init`."""
    directions = 2 if bidirectional else 1
    sizes = states.layer_sizes(
        *(cell, input_size, hidden_size, num_layers), directions=directions, proj_size=proj_size
    )
    sizes = [size for size in sizes for _ in range(directions)]
    each = [shapes(cell, size.D, size.H, bias=bias, proj_size=proj_size) for size in sizes]
    # Of Python's own numbers; a size may be NumPy's, or True, as PyTorch allows.
    layers = [{name: tuple(map(int, shape)) for name, shape in layer.items()} for layer in each]
    for size in dict.fromkeys(sizes):
        check_step(cell, size)
    apart = {name: p.init for name, p in cell.parameter_specs().items() if p.init is not None}
    if cell.draw is not None:
        return _drawn_by(cell, key, sizes, dtype)
    # One draw for all: a generator for each shape would take longer to compile than the layer.
    alike = [{n: shape for n, shape in layer.items() if n not in apart} for layer in layers]
    counts = [math.prod(shape) for layer in alike for shape in layer.values()]
    one = isinstance(hidden_size, int)
    drawn, where = _drawn_flat(key, sum(counts), hidden_size if one else 1, dtype)
    ends = list(itertools.accumulate(counts))
    parts = (drawn[end - count : end] for count, end in zip(counts, ends))
    keys = (jax.random.fold_in(key, index) for index in itertools.count())
    made = []
    for layer, size in zip(layers, sizes):
        named = {
            name: _drawn(apart[name], next(keys), shape, dtype)
            if name in apart
            else next(parts).reshape(shape)
            for name, shape in layer.items()
        }
        if not one:
            bound = np.asarray(size.H**-0.5, drawn.dtype)
            named = {n: a if n in apart else a * bound for n, a in named.items()}
        made.append(Weights.from_named(cell, cell.initialize(named)))
    return where(tuple(made))


_compiled_init = jax.jit(_init, static_argnums=range(1, 9))


def _drawn_by(cell: Any, key: jax.Array, sizes: Sequence[Sizes], dtype: Any) -> tuple[Weights, ...]:
    """Weights that a cell draws by itself: those of layers of one size all at once."""
    keys = jax.random.split(key, len(sizes))
    made: list[Any] = [None] * len(sizes)
    for size in dict.fromkeys(sizes):
        places = np.array([index for index, one in enumerate(sizes) if one == size])
        draw = functools.partial(cell.draw, sizes=size, dtype=dtype)
        drawn = jax.vmap(draw)(keys[places])
        for row, place in enumerate(places):
            named = {name: array[row] for name, array in drawn.items()}
            made[place] = Weights.from_named(cell, cell.initialize(named))
    return tuple(made)


def _drawn(init: Any, key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A parameter by a function or a number."""
    return init(key, shape, dtype) if callable(init) else jnp.full(shape, init, dtype)


def uniform(key: jax.Array, shape: tuple[int, ...], fan: int, dtype: Any = jnp.float32) -> Any:
    """A draw from U(-1/sqrt(fan), 1/sqrt(fan)), PyTorch's bound for recurrent and linear layers."""
    shape = tuple(map(int, shape))
    drawn, where = _drawn_flat(key, math.prod(shape), fan, dtype)
    return where(drawn.reshape(shape))


def _drawn_flat(key: jax.Array, count: int, fan: int, dtype: Any) -> tuple[Any, Any]:
    """A draw as `uniform` makes it, in one axis, and what puts its parts where it belongs.

    A generator takes longer to compile than to run, so one program serves all counts up to the
    next round one; what is drawn is taken apart in NumPy, which compiles nothing, unless it is
    traced. With JAX's own generator the first numbers of a longer draw are those of a shorter.
    """
    grain = 1 << max(12, count.bit_length() - 4)  # at most an eighth too many
    padded = -(-count // grain) * grain
    bound = fan**-0.5 if fan > 0 else 0.0
    drawn = _uniform(key, bound, padded, jnp.dtype(dtype))
    if isinstance(drawn, Tracer):
        return drawn[:count], lambda parts: parts
    there = drawn.sharding if drawn.committed else None
    put = functools.partial(jax.device_put, device=there, may_alias=False)
    return jax.device_get(drawn)[:count], put


@functools.partial(jax.jit, static_argnums=(2, 3))
def _uniform(key: jax.Array, bound: float, count: int, dtype: Any) -> jax.Array:
    return jax.random.uniform(key, (count,), dtype, -bound, bound)
