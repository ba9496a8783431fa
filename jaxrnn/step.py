"""One step of a layer: its parameters, its gate inputs, its masks, and the step itself.

All that goes on inside of a step has its features first and its rows last: gate inputs (G*H, N),
states (H, N) or (R, N). Axis letters: N batch, K steps, D input features, H hidden size, G gates,
P projection, R size of h (P if projected, else H).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxrnn.blocks import known
from jaxrnn.cells import AnyCell, Cell, GeneralCell, Sizes, State
from jaxrnn.cells.checking import WEIGHTS
from jaxrnn.checks import ShapeError
from jaxrnn.pointwise import derivative
from jaxrnn.pointwise.derivative import Rule
from jaxrnn.products import product, product_of_rows, rows_product, wide_dtype
from jaxrnn.tuning import choices


class Weights(NamedTuple):
    """The parameters of one layer in one direction, in PyTorch's order and layout.

    Attributes:
        weight_ih: (G*H, D), from the input; None for a cell without gates.
        weight_hh: (G*H, R), from the hidden state, or None.
        bias_ih: (G*H,) or None.
        bias_hh: (G*H,) or None.
        weight_hr: (P, H), the projection of h, or None.
        own: the parameters that the cell has declared, by name, or None.
        mask_hh: (R, N), what h is multiplied with on its way into W_hh, or None; no parameter, and
            without a derivative.
    """

    weight_ih: Any = None
    weight_hh: Any = None
    bias_ih: jax.Array | None = None
    bias_hh: jax.Array | None = None
    weight_hr: jax.Array | None = None
    own: dict[str, jax.Array] | None = None
    mask_hh: jax.Array | None = None

    def named(self) -> dict[str, jax.Array]:
        """All parameters that are there by name, in their order."""
        there: dict[str, Any] = {n: a for n, a in zip(WEIGHTS, self) if a is not None}
        return there | (self.own or {})

    @classmethod
    def of(cls, cell: AnyCell, named: dict[str, jax.Array]) -> Weights:
        """The other way round."""
        fields = [n for n in WEIGHTS if cell.gates and n in named]
        own = {n: named[n] for n in named if n not in fields}
        return cls(**{n: named[n] for n in fields}, own=own or None)


class Masks(NamedTuple):
    """What is done to the state around a step; None where nothing is.

    Attributes:
        resets: bool (T, N); True at t sets the row's state to zero before x_t is consumed.
        valid: bool (T, N); False at t leaves the row's state as it was before step t.
        zoneout: for each state what of it step t leaves as it came in: bool (T, S, N), or numbers
            (T, 1, 1), the part of each; None for a state that has none.
    """

    resets: jax.Array | None = None
    valid: jax.Array | None = None
    zoneout: tuple[jax.Array | None, ...] | None = None


def sizes_of(cell: AnyCell, weights: Weights, features: int) -> Sizes:
    """D, H and R of one layer, by the shapes of its parameters.

    Raises:
        ValueError: for a cell without gates whose parameters do not show H.
    """
    if weights.weight_ih is not None:
        hidden = weights.weight_ih.shape[0] // len(cell.gates)
        projected = weights.weight_hr
        return Sizes(features, hidden, hidden if projected is None else projected.shape[0])
    if cell.hidden_size is not None:
        return Sizes(features, cell.hidden_size, cell.hidden_size)
    own = weights.own or {}
    for name, parameter in cell.declared().items():
        for size, there in zip(parameter.shape, own[name].shape if name in own else ()):
            factors = [factor.strip() for factor in str(size).split("*")]
            if factors.count("H") == 1:
                factors[factors.index("H")] = "1"
                hidden = there // cell.number("*".join(factors), Sizes(features, 1, 1))
                return Sizes(features, hidden, hidden)
    raise ValueError(
        f"{cell} has no parameter from whose shape H follows: expected one of "
        f"{list(cell.parameters)} with an axis of H, got {_shapes(weights)}"
    )


def completed(cell: AnyCell, weights: Weights, sizes: Sizes) -> Weights:
    """The weights with zeros for the cell's own biases where the layer has none.

    Raises:
        ValueError: for parameters that are not those of the cell.
    """
    own = dict(weights.own or {})
    shapes = cell.own_shapes(sizes)
    for name, shape in shapes.items():
        if name not in own and name.startswith("bias"):
            own[name] = jnp.zeros(shape, next(iter(weights.named().values())).dtype)
    if {name: a.shape for name, a in own.items()} != shapes:
        raise ShapeError(
            f"parameters of {cell} should have the shapes {shapes}, got {_shapes(weights)}"
        )
    return weights._replace(own={name: own[name] for name in shapes} or None)


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: a.shape for name, a in weights.named().items()}


def zero_state(cell: AnyCell, sizes: Sizes, batch: int, dtype: Any) -> State:
    """The initial state of zeros: h (N, R), each other state (N, H), or what the cell declares."""
    dtypes = cell.state_dtypes(dtype)
    return tuple(jnp.zeros((batch, s), d) for s, d in zip(cell.state_sizes(sizes), dtypes))


def own_parameters(cell: AnyCell, own: dict[str, Any] | None) -> tuple[dict[str, Any], ...]:
    """What the functions of a cell get after their other arguments: its parameters, or nothing.

    In the wide dtype; for a cell of gates, whose rows are last, a vector (H,) is (H, 1).
    """
    if not own:
        return ({},) if not cell.gates else ()
    return (
        {name: wide(a if a.ndim != 1 or not cell.gates else a[:, None]) for name, a in own.items()},
    )


def advance(
    cell: AnyCell, weights: Weights, zx: Any, state: State, masks: Masks = Masks()
) -> tuple[State, Any, Any]:
    """One step, all arrays with rows last: the new state, m before projection, what is saved.

    Args:
        cell: what the step is.
        weights: its parameters.
        zx: the gate inputs from x (G*H, N), see `gate_inputs`.
        state: the states, h (R, N) first, each other one (H, N).
        masks: of this one step, each (N,).
    """
    old = state
    state = enter(state, masks.resets)
    own = own_parameters(cell, weights.own)
    if not isinstance(cell, Cell):
        general = cast(GeneralCell, cell)
        step = jax.vmap(lambda x, s: tuple(general.step(x, s, *own)), -1, -1)
        return leave(like(step(zx, wide(state)), old), state, old, masks), None, None
    z = joined(cell, weights, zx, product(weights.weight_hh, dropped(weights, state[0])))
    (m, *rest), saved = rule(cell, masks).save(z, wide(state), *own)
    m = m.astype(old[0].dtype)
    h = m if weights.weight_hr is None else product(weights.weight_hr, m).astype(m.dtype)
    return leave((h, *like(rest, old[1:])), state, old, masks), m, saved


def gate_inputs(cell: AnyCell, weights: Weights, x: jax.Array) -> Any:
    """What x (N, D) or (K, N, D) gives to the gates, (G*H, N) or (K, G*H, N).

    With every bias that need not wait for the hidden state. For a cell without gates, what its
    `inputs` are, each array with its rows last.
    """
    if isinstance(cell, Cell):
        return with_biases(cell, weights, product_of_rows(weights.weight_ih, x))
    (own,) = own_parameters(cell, weights.own)
    inputs = jax.vmap(lambda x: cast(GeneralCell, cell).inputs(x, own), 0, -1)
    return (inputs if x.ndim == 2 else jax.vmap(inputs))(wide(x))


def inputs_of_block(cell: AnyCell, weights: Weights, x: jax.Array) -> Any:
    """`gate_inputs` of (K, N, D), by one product of all rows at once."""
    if not isinstance(cell, Cell):
        return gate_inputs(cell, weights, x)
    z = with_biases(cell, weights, rows_product(x, weights.weight_ih), axis=-1)
    return z.swapaxes(1, 2)


def outputs(cell: AnyCell, weights: Weights, x: jax.Array, states: State) -> jax.Array:
    """What a cell without gates gives out, (..., N, F), for x (..., N, D), states (..., N, S)."""
    (own,) = own_parameters(cell, weights.own)
    each = lambda x, s: cast(GeneralCell, cell).output(x, s, own)  # noqa: E731
    for _ in range(x.ndim - 1):
        each = jax.vmap(each)
    return each(wide(x), wide(states)).astype(x.dtype)


def gives_output(cell: AnyCell) -> bool:
    """Whether what a cell gives out is another thing than its first state."""
    return isinstance(cell, GeneralCell) and type(cell).output is not GeneralCell.output


def with_biases(cell: AnyCell, weights: Weights, zx: Any, axis: int = -2) -> jax.Array:
    """The product of W_ih with x, and the biases that need not wait; `axis` holds the features."""
    zx = plus(zx, weights.bias_ih, axis)
    return zx if cell.split else plus(zx, weights.bias_hh, axis)


def joined(cell: Cell, weights: Weights, zx: jax.Array, zh: jax.Array | None) -> Any:
    """What the step of a cell takes: the sum of both contributions, or the pair."""
    if zh is None:
        return zx
    return (zx, plus(zh, weights.bias_hh)) if cell.split else zx + zh


def inputs_at_each_step(cell: AnyCell, x: jax.Array, weights: Weights) -> bool:
    """Whether the product of W_ih with x_t (N, D) is left to step t, or done for a whole block.

    In the loop it is an operand of the pointwise function that needs no slice, is still in the
    cache and was never written to memory. Against that, for few rows it is bound by reading W_ih
    each time; and a CPU has one core for a product below about 16 MFLOP, but all for a block of
    them. A cell that takes its gate inputs apart has more to gain from the first. Measured on two
    cores with N from 1 to 170 and H from 25 to 1024: a wrong choice costs 10 to 40 %.
    """
    _, batch, features = x.shape
    if weights.weight_ih is None or not choices().inputs_in_loop:
        return False
    if features == 1:
        return True  # no product at all
    if not known(batch):
        return False
    mflop = 2e-6 * batch * features * weights.weight_ih.shape[0]
    return batch >= 24 and (cell.split or mflop < 1 or mflop >= 16)


def one_bias(weights: Weights) -> Weights:
    """Both biases added before the loop, for a cell that takes the sum of all gate inputs."""
    if weights.bias_ih is None or weights.bias_hh is None:
        return weights
    dtype = wide_dtype(weights.bias_ih.dtype)
    total = weights.bias_ih.astype(dtype) + weights.bias_hh.astype(dtype)
    return weights._replace(bias_ih=total, bias_hh=None)


def two_columns(weights: Weights, x: jax.Array) -> tuple[Weights, jax.Array]:
    """The input of one feature with a second one of ones, and the bias as its weight.

    XLA turns a product over a single feature into elementwise arithmetic and repeats it in each
    part of the pointwise function, which a CPU then does not vectorise.
    """
    weight, bias = weights.weight_ih, weights.bias_ih
    second = jnp.zeros_like(weight) if bias is None else bias[:, None]
    weight = jnp.concatenate([weight, second], axis=1)
    x = jnp.concatenate([x, jnp.ones_like(x)], axis=2)
    return weights._replace(weight_ih=weight, bias_ih=None), x


def enter(state: State, resets: jax.Array | None) -> State:
    """The state (..., H, N) a step sees: zero where the row is reset."""
    if resets is None:
        return state
    return tuple(jnp.where(resets[..., None, :], jnp.zeros_like(s), s) for s in state)


def entered_rows(hs: jax.Array, resets: jax.Array | None) -> jax.Array:
    """`enter` for h with its rows first, (K, N, R)."""
    return hs if resets is None else jnp.where(resets[..., None], jnp.zeros_like(hs), hs)


def leave(new: State, entered: State, old: State, masks: Masks) -> State:
    """The state after a step: what zoneout keeps of the one that the step saw, `entered`; the one
    before that, `old`, where the step is not the row's.
    """
    if masks.zoneout is not None:
        new = tuple(map(_kept, masks.zoneout, new, entered))
    if masks.valid is None:
        return new
    return tuple(jnp.where(masks.valid[None], n, o) for n, o in zip(new, old, strict=True))


def _kept(keep: jax.Array | None, new: jax.Array, entered: jax.Array) -> jax.Array:
    if keep is None:
        return new
    if keep.dtype == bool:
        return jnp.where(keep, entered, new)
    return (keep * entered + (1 - keep) * new).astype(new.dtype)


def dropped(weights: Weights, h: Any) -> Any:
    """H (R, N) as W_hh meets it."""
    return h if weights.mask_hh is None else h * weights.mask_hh


def dropped_rows(weights: Weights, hs: jax.Array) -> jax.Array:
    """`dropped` for h with its rows first, (K, N, R)."""
    return hs if weights.mask_hh is None else hs * weights.mask_hh.T[None]


def rule(cell: Any, masks: Masks) -> Rule:
    """The pointwise derivative of a cell; under zoneout that which JAX makes of its step.

    All others may count on the states after a step being what the step has given.
    """
    if masks.zoneout is None:
        return derivative.rule(cell)
    return Rule(*(functools.partial(getattr(Cell, name), cell) for name in Rule._fields))


def turned(state: State) -> State:
    """Each (..., N, H) as (..., H, N), and back."""
    return tuple(s.swapaxes(-1, -2) for s in state)


def wide(tree: Any) -> Any:
    """All arrays in the dtype of sums and pointwise functions."""
    return jax.tree.map(lambda a: a.astype(wide_dtype(a.dtype)), tree)


def narrow(tree: Any, dtype: Any) -> Any:
    """All arrays in a dtype."""
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def like(new: Any, old: State) -> State:
    """States in the dtypes of others."""
    return tuple(n.astype(o.dtype) for n, o in zip(new, old, strict=True))


def plus(z: jax.Array, bias: jax.Array | None, axis: int = -2) -> jax.Array:
    """`z` plus a bias along an axis."""
    if bias is None:
        return z
    shape = [1] * z.ndim
    shape[axis] = bias.shape[0]
    return z + bias.astype(z.dtype).reshape(shape)
