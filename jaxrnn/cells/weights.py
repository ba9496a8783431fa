"""Parameters of one layer and direction, and their shapes.

Axis letters: N batch, D input features, H hidden size, G gates, P projection, R size of h (P if
projected, else H).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError
from jaxrnn.cells._check import WEIGHT_NAMES
from jaxrnn.cells.base import BaseCell, Sizes, State, compute_dtype, upcast


class Weights(NamedTuple):
    """Parameters of one layer and direction, in PyTorch's order and layout.

    Attributes:
        weight_ih: (G*H, D); None for a cell without gates.
        weight_hh: (G*H, R) or None.
        bias_ih: (G*H,) or None.
        bias_hh: (G*H,) or None.
        weight_hr: (P, H), the projection of h, or None.
        cell_params: the cell parameters by name, or None.
        dropout_mask: (R, N), a constant factor of h in the product with W_hh, or None.
    """

    weight_ih: Any = None
    weight_hh: Any = None
    bias_ih: jax.Array | None = None
    bias_hh: jax.Array | None = None
    weight_hr: jax.Array | None = None
    cell_params: dict[str, jax.Array] | None = None
    dropout_mask: jax.Array | None = None

    def named(self) -> dict[str, jax.Array]:
        """Return the parameters by name, in order."""
        fields: dict[str, Any] = {n: a for n, a in zip(WEIGHT_NAMES, self) if a is not None}
        return fields | (self.cell_params or {})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter by name."""
        return {name: a.shape for name, a in self.named().items()}

    @classmethod
    def from_named(cls, cell: BaseCell, named: dict[str, jax.Array]) -> Weights:
        """Return the weights of a cell from its parameters by name, in any order."""
        fields = [n for n in WEIGHT_NAMES if cell.gates and n in named]
        names = dict.fromkeys((*cell.parameters, *named))  # declared ones first
        cell_params = {n: named[n] for n in names if n in named and n not in fields}
        return cls(**{n: named[n] for n in fields}, cell_params=cell_params or None)


def infer_sizes(cell: BaseCell, weights: Weights, features: int) -> Sizes:
    """Return D, H and R of a layer from the shapes of its parameters.

    Raises:
        ValueError: for a cell without gates whose parameters do not determine H.
    """
    hidden = cell.hidden_size
    if weights.weight_ih is not None:
        hidden = weights.weight_ih.shape[0] // len(cell.gates)
    if hidden is not None:
        projection = weights.weight_hr
        return Sizes(features, hidden, hidden if projection is None else projection.shape[0])
    shapes = weights.shapes()
    one, two = (cell.cell_parameter_shapes(Sizes(features, n, n)) for n in (1, 2))
    for name in one:
        for size, doubled, actual in zip(one[name], two[name], shapes.get(name, ())):
            if size > 0 and doubled == 2 * size:  # a multiple of H
                return Sizes(features, actual // size, actual // size)
    raise ValueError(
        f"Parameters of {cell} must determine H: one of {list(cell.parameters)} must have an axis "
        f"of a multiple of H, got {shapes}. Or set `hidden_size`."
    )


def with_default_biases(cell: BaseCell, weights: Weights, sizes: Sizes) -> Weights:
    """Return the weights with zeros for the cell's biases that a layer does not have.

    Raises:
        ShapeError: for parameters that are not those of the cell.
    """
    params = dict(weights.cell_params or {})
    declared = cell.cell_parameter_shapes(sizes)
    for name, shape in declared.items():
        if name not in params and name.startswith("bias"):
            params[name] = jnp.zeros(shape, next(iter(weights.named().values())).dtype)
    actual = weights._replace(cell_params=params).shapes()
    expected = cell.shapes(sizes, bias=True)
    expected = {n: s for n, s in expected.items() if n in actual or not n.startswith("bias")}
    if actual != expected:  # a kernel would read beyond the end of an array
        raise ShapeError(f"Parameters of {cell} must have the shapes {expected}, got {actual}.")
    return weights._replace(cell_params={name: params[name] for name in declared} or None)


def zero_state(cell: BaseCell, sizes: Sizes, batch: int, dtype: Any) -> State:
    """Return the initial state of zeros: h (N, R) and each other state (N, H) or as declared."""
    dtypes = cell.state_dtypes(dtype)
    return tuple(jnp.zeros((batch, s), d) for s, d in zip(cell.state_sizes(sizes), dtypes))


def cell_parameters(cell: BaseCell, params: dict[str, Any] | None) -> tuple[dict[str, Any], ...]:
    """Return the trailing arguments of a cell's functions: its parameters, or nothing.

    Parameters have the compute dtype. For a cell of gates, whose arrays are feature-major, a vector
    (H,) becomes (H, 1).
    """
    if not params:
        return () if cell.gates else ({},)
    columns = {n: a[:, None] if cell.gates and a.ndim == 1 else a for n, a in params.items()}
    return (upcast(columns),)


def sum_biases(weights: Weights) -> Weights:
    """Add both biases before the loop, for a cell that takes the sum of all pre-activations."""
    if weights.bias_ih is None or weights.bias_hh is None:
        return weights
    dtype = compute_dtype(weights.bias_ih.dtype)
    total = weights.bias_ih.astype(dtype) + weights.bias_hh.astype(dtype)
    return weights._replace(bias_ih=total, bias_hh=None)


def append_ones_column(weights: Weights, x: jax.Array) -> tuple[Weights, jax.Array]:
    """Append a feature of ones to an input of one feature, with the bias as its weight.

    XLA turns a product over a single feature into elementwise arithmetic and repeats it in each
    part of the step, which a CPU then does not vectorise.
    """
    weight, bias = weights.weight_ih, weights.bias_ih
    column = jnp.zeros_like(weight) if bias is None else bias[:, None]
    weight = jnp.concatenate([weight, column], axis=1)
    x = jnp.concatenate([x, jnp.ones_like(x)], axis=2)
    return weights._replace(weight_ih=weight, bias_ih=None), x
