"""Layers and directions around the one recurrence: the pure function of a whole stack.

Axis letters: N batch, T time, D input features, H hidden size, P projection, R = P or H,
L layers, F directions, G gates.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrnn import backends, ragged, skips
from jaxrnn import states as states_of
from jaxrnn.cells import AnyCell, Cell, Sizes, check
from jaxrnn.cells.checking import check_step
from jaxrnn.recurrence import Weights, outputs_and_states
from jaxrnn.regularisers import Regularisers
from jaxrnn.weight_arrays import sizes_of, zero_state


@dataclass(frozen=True)
class Stack:
    """The static description of a stack of recurrent layers.

    Attributes:
        cell: the cell of every layer.
        bidirectional: a second direction in every layer, its output beside the first's.
        layout: the axes of the input: "TND", "NTD" or "TD" (no batch).
        dropout: the probability of an output of any layer but the last being zeroed; 0 outside
            of training.
        remat: less memory for the derivative, see `jaxrnn.recurrence.Plan`.
        dtype: what to compute in; None takes the input's.
        all_states: give out the states after every step instead of those after the last.
        backend: who runs the loops, see `jaxrnn.backends`.
        platform: what the backend is chosen for, "cpu", "cuda", "rocm" or "tpu"; None for what is
            computed on here.
        regularisers: those that act, see `jaxrnn.regularisers`; None for none.
        skip: what leads around each layer, see `jaxrnn.skips`: None, "residual" or "highway".
    """

    cell: AnyCell
    bidirectional: bool = False
    layout: str = "TND"
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = None
    all_states: bool = False
    backend: str = "auto"
    platform: str | None = None
    regularisers: Regularisers | None = None
    skip: str | None = None

    @property
    def directions(self) -> int:
        """F."""
        return 2 if self.bidirectional else 1


@functools.partial(jax.jit, static_argnums=0)
def run(
    stack: Stack,
    weights: Sequence[Weights],
    x: jax.Array,
    states: tuple[Any, ...] | None = None,
    key: jax.Array | None = None,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    gates: Sequence[skips.Gate | None] | None = None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Run a stack of layers over a batch of sequences.

    Args:
        stack: what the stack is.
        weights: F*L of them, layer by layer, the forward direction of a layer first.
        x: the input, its axes as `stack.layout` says.
        states: the initial states, h (F*L, N, R) first, each other (F*L, N, H), without N if the
            input has no batch; where they differ from layer to layer, as `jaxrnn.states` says;
            None for zeros.
        key: the PRNG key of dropout and of the regularisers, if there are any.
        lengths: integers (N,), or () without a batch: the steps of each row, those past it being
            padding, whose content reaches nothing. The output there is zero, and the last state is
            that after the row's last step; the reverse direction begins there. Below 0 is taken as
            0, beyond T as T.
        resets: bool, axes as `stack.layout` without D: True at t cuts the row before step t, in
            every layer and both directions, so that its pieces are independent. The forward
            direction begins each piece but the first from zeros, the reverse direction each but
            the last.
        gates: of a highway, one for each layer, None for one that has no skip.

    Returns:
        The output, axes as the input's with F*R features, and the last states, shaped as `states`.
        With `stack.all_states` these are the states after each step, with a leading axis T, zero
        past a row's length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, stack
        >>> weights = stack.init(jax.random.key(0), cells.GRU(), 3, 4, num_layers=2)
        >>> y, (h_n,) = stack.run(stack.Stack(cells.GRU()), weights, jnp.ones((7, 2, 3)))
        >>> y.shape, h_n.shape
        ((7, 2, 4), (2, 2, 4))
    """
    if stack.dtype is not None:
        weights, x = jax.tree.map(lambda a: a.astype(stack.dtype), (weights, x))
        dtypes = stack.cell.state_dtypes(stack.dtype)
        states = states and states_of.cast(states, dtypes)
        gates = jax.tree.map(lambda a: a.astype(stack.dtype), gates)
    if stack.layout == "NTD":
        x = x.swapaxes(0, 1)
        resets = None if resets is None else resets.T
    elif stack.layout == "TD":
        x, resets = x[:, None], None if resets is None else resets[:, None]
        lengths = None if lengths is None else lengths[None]
        states = jax.tree.map(lambda s: s[:, None], states)
    masks = ragged.masks(x.shape[0], lengths, resets)
    valid = masks[0].valid
    check(stack.cell)
    chosen = backends.explain(stack, weights, x, resets=resets is not None, full=False).choices

    if chosen[0].backend == "cudnn":
        x, states = _by_cudnn(stack, weights, ragged.only(valid, x), states, lengths)
        return _laid_out(stack, ragged.only(valid, x), states)
    last, regularisers = [], stack.regularisers
    for first in range(0, len(weights), stack.directions):
        below = x
        if first and stack.dropout > 0:
            x = _dropout(key, first, x, stack.dropout)
        if regularisers is not None:
            x = regularisers.on_input(key, first, x)
        outputs = []
        for index in range(first, first + stack.directions):
            start = None if states is None else states_of.at(states, index, stack.directions)
            own, around = weights[index], masks[index - first]
            if regularisers is not None:
                own, around = regularisers.on_loop(stack.cell, key, index, own, x, around)
            output, every, final = outputs_and_states(
                stack.cell,
                own,
                x,
                start,
                reverse=index > first,
                masks=around,
                remat=stack.remat,
                all_states=stack.all_states,
                backend=chosen[index].backend,
                platform=stack.platform,
            )
            outputs.append(output)
            last.append(final if every is None else tuple(ragged.only(valid, s) for s in every))
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
        if stack.skip is not None and below.shape == x.shape:
            gate = None if gates is None else gates[first // stack.directions]
            # Nothing of what is no step of a row may meet the gate, nor its derivative.
            below, x = ragged.only(valid, below), ragged.only(valid, x)
            x = skips.around(stack.skip, gate, below, x)
    x = ragged.only(valid, x)

    axis = 1 if stack.all_states else 0  # of the layers and directions, after that of time
    return _laid_out(stack, x, states_of.stacked(last, stack.directions, axis))


def _laid_out(
    stack: Stack, x: jax.Array, states: tuple[Any, ...]
) -> tuple[jax.Array, tuple[Any, ...]]:
    """The output (T, N, F*R) and the states (..., N, R) with the axes of the input."""
    if stack.layout == "NTD":
        x = x.swapaxes(0, 1)
    elif stack.layout == "TD":
        x, states = x[:, 0], jax.tree.map(lambda s: jnp.squeeze(s, -2), states)
    return x, states


def _by_cudnn(
    stack: Stack,
    weights: Sequence[Weights],
    x: jax.Array,
    states: tuple[Any, ...] | None,
    lengths: jax.Array | None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """All layers at once, see `jaxrnn.kernels.cudnn`."""
    from jaxrnn.kernels import cudnn

    if states is None:
        sizes = sizes_of(stack.cell, weights[0], x.shape[2])
        zeros = zero_state(stack.cell, sizes, x.shape[1], x.dtype)
        states = tuple(jnp.broadcast_to(z, (len(weights), *z.shape)) for z in zeros)
    return cudnn.run(weights, x, states, lengths, bidirectional=stack.bidirectional)


def _dropout(key: jax.Array | None, index: int, x: jax.Array, p: float) -> jax.Array:
    """Zero each value with probability p, scale the others by 1 / (1 - p)."""
    if p >= 1.0:
        return jnp.zeros_like(x)
    if key is None:
        raise ValueError(f"dropout={p} needs a key")
    keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1.0 - p, x.shape)
    return jnp.where(keep, x / (1.0 - p), jnp.zeros_like(x))


def shapes(
    cell: AnyCell, input_size: int, hidden_size: int, *, bias: bool = True, proj_size: int = 0
) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of one layer and direction, in PyTorch's order.

    Example:
        >>> from jaxrnn import cells, stack
        >>> stack.shapes(cells.GRU(), 3, 4, bias=False)
        {'weight_ih': (12, 3), 'weight_hh': (12, 4)}
    """
    check(cell)
    if proj_size and not (isinstance(cell, Cell) and cell.recurrent):
        raise ValueError(f"proj_size={proj_size}: {cell} has no W_hh that a projected h could meet")
    return cell.shapes(Sizes(input_size, hidden_size, proj_size or hidden_size), bias=bias)


def init(
    key: jax.Array,
    cell: AnyCell,
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

    `hidden_size` is one for all layers, or a tuple of one for each.

    Parameters that a cell declares with an `init` of their own are drawn by that, and all go
    through its `initialize`.

    Example:
        >>> import jax
        >>> from jaxrnn import cells, stack
        >>> first, second = stack.init(jax.random.key(0), cells.LSTM(), 3, 4, bidirectional=True)
        >>> first.weight_ih.shape, second.bias_hh.shape, first.weight_hr
        ((16, 3), (16,), None)
    """
    check(cell)
    # Weights that are drawn and nothing else need no program of their own, see `_drawn_flat`.
    inits = [cell.draw, *(p.init for p in cell.declared().values())]
    only_drawn = inits.count(None) == len(inits)
    only_drawn &= type(cell).initialize is AnyCell.initialize
    made = (_init if only_drawn else _compiled_init)(
        *(key, cell, input_size, hidden_size, num_layers, bias, bool(bidirectional)),
        *(proj_size, dtype),
    )
    # A dict comes out of `jax.jit` in alphabetical order, and not in that of the cell.
    place = {name: index for index, name in enumerate(cell.declared())}

    def ordered(own: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {n: own[n] for n in sorted(own, key=lambda n: place.get(n, len(place)))}

    return tuple(w._replace(own=w.own and ordered(w.own)) for w in made)


def _init(
    key: jax.Array,
    cell: AnyCell,
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
    sizes = states_of.layer_sizes(
        *(cell, input_size, hidden_size, num_layers), directions=directions, proj_size=proj_size
    )
    sizes = [size for size in sizes for _ in range(directions)]
    each = [shapes(cell, size.D, size.H, bias=bias, proj_size=proj_size) for size in sizes]
    # Of Python's own numbers; a size may be NumPy's, or True, as PyTorch allows.
    layers = [{name: tuple(map(int, shape)) for name, shape in layer.items()} for layer in each]
    for size in dict.fromkeys(sizes):
        check_step(cell, size)
    apart = {name: p.init for name, p in cell.declared().items() if p.init is not None}
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
        made.append(Weights.of(cell, cell.initialize(named)))
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
            made[place] = Weights.of(cell, cell.initialize(named))
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
