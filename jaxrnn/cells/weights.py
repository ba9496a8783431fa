"""The parameters of a layer in one direction, and what follows from their shapes.

Axis letters: N batch, D input features, H hidden size, G gates, P projection, R size of h (P if
projected, else H).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError
from jaxrnn.cells import BaseCell, Sizes, State
from jaxrnn.cells._check import WEIGHT_NAMES
from jaxrnn.cells.base import compute_dtype, upcast


class Weights(NamedTuple):
    """The parameters of one layer in one direction, in PyTorch's order and layout.

    Attributes:
        weight_ih: (G*H, D), from the input; None for a cell without gates.
        weight_hh: (G*H, R), from the hidden state, or None.
        bias_ih: (G*H,) or None.
        bias_hh: (G*H,) or None.
        weight_hr: (P, H), the projection of h, or None.
        cell_params: the parameters that the cell has declared, by name, or None.
        dropout_mask: (R, N), what h is multiplied with on its way into W_hh, or None; no parameter, and
            without a derivative.
    """

    weight_ih: Any = None
    weight_hh: Any = None
    bias_ih: jax.Array | None = None
    bias_hh: jax.Array | None = None
    weight_hr: jax.Array | None = None
    cell_params: dict[str, jax.Array] | None = None
    dropout_mask: jax.Array | None = None

    def named(self) -> dict[str, jax.Array]:
        """All parameters that are there by name, in their order."""
        there: dict[str, Any] = {n: a for n, a in zip(WEIGHT_NAMES, self) if a is not None}
        return there | (self.cell_params or {})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each of them."""
        return {name: a.shape for name, a in self.named().items()}

    @classmethod
    def from_named(cls, cell: BaseCell, named: dict[str, jax.Array]) -> Weights:
        """Those of a cell from what `named` gives."""
        fields = [n for n in WEIGHT_NAMES if cell.gates and n in named]
        own = {n: named[n] for n in named if n not in fields}
        return cls(**{n: named[n] for n in fields}, cell_params=own or None)


def infer_sizes(cell: BaseCell, weights: Weights, features: int) -> Sizes:
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
    own = weights.cell_params or {}
    for name, parameter in cell.parameter_specs().items():
        for size, there in zip(parameter.shape, own[name].shape if name in own else ()):
            factors = [factor.strip() for factor in str(size).split("*")]
            if factors.count("H") == 1:
                factors[factors.index("H")] = "1"
                hidden = there // cell.evaluate_size("*".join(factors), Sizes(features, 1, 1))
                return Sizes(features, hidden, hidden)
    raise ValueError(
        f"{cell} has no parameter from whose shape H follows: expected one of "
        f"{list(cell.parameters)} with an axis of H, got {weights.shapes()}"
    )


def with_default_biases(cell: BaseCell, weights: Weights, sizes: Sizes) -> Weights:
    """The weights with zeros for the cell's own biases where the layer has none.

    Raises:
        ValueError: for parameters that are not those of the cell.
    """
    own = dict(weights.cell_params or {})
    declared = cell.cell_parameter_shapes(sizes)
    for name, shape in declared.items():
        if name not in own and name.startswith("bias"):
            own[name] = jnp.zeros(shape, next(iter(weights.named().values())).dtype)
    weights = weights._replace(cell_params=own)
    # A kernel reads as much memory as these say, whatever there is.
    there, shapes = weights.shapes(), cell.shapes(sizes, bias=True)
    shapes = {n: s for n, s in shapes.items() if n in there or not n.startswith("bias")}
    if there != shapes:
        raise ShapeError(f"parameters of {cell} should have the shapes {shapes}, got {there}")
    return weights._replace(cell_params={name: own[name] for name in declared} or None)


def zero_state(cell: BaseCell, sizes: Sizes, batch: int, dtype: Any) -> State:
    """The initial state of zeros: h (N, R), each other state (N, H), or what the cell declares."""
    dtypes = cell.state_dtypes(dtype)
    return tuple(jnp.zeros((batch, s), d) for s, d in zip(cell.state_sizes(sizes), dtypes))


def cell_parameters(cell: BaseCell, own: dict[str, Any] | None) -> tuple[dict[str, Any], ...]:
    """What the functions of a cell get after their other arguments: its parameters, or nothing.

    In the wide dtype; for a cell of gates, whose rows are last, a vector (H,) is (H, 1).
    """
    if not own:
        return ({},) if not cell.gates else ()
    return (
        {
            name: upcast(a if a.ndim != 1 or not cell.gates else a[:, None])
            for name, a in own.items()
        },
    )


def sum_biases(weights: Weights) -> Weights:
    """Both biases added before the loop, for a cell that takes the sum of all gate inputs."""
    if weights.bias_ih is None or weights.bias_hh is None:
        return weights
    dtype = compute_dtype(weights.bias_ih.dtype)
    total = weights.bias_ih.astype(dtype) + weights.bias_hh.astype(dtype)
    return weights._replace(bias_ih=total, bias_hh=None)


def append_ones_column(weights: Weights, x: jax.Array) -> tuple[Weights, jax.Array]:
    """The input of one feature with a second one of ones, and the bias as its weight.

    XLA turns a product over a single feature into elementwise arithmetic and repeats it in each
    part of the pointwise function, which a CPU then does not vectorise.
    """
    weight, bias = weights.weight_ih, weights.bias_ih
    second = jnp.zeros_like(weight) if bias is None else bias[:, None]
    weight = jnp.concatenate([weight, second], axis=1)
    x = jnp.concatenate([x, jnp.ones_like(x)], axis=2)
    return weights._replace(weight_ih=weight, bias_ih=None), x
