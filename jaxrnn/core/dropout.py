r"""Regularisation of a stack: dropout that is constant over time, zoneout, weight drop and norm.

.. math::

    \begin{aligned}
    \text{input dropout}     && x_t &\to x_t \odot m_x / (1 - p) \\
    \text{recurrent dropout} && W_{hh} h_{t-1} &\to W_{hh} (h_{t-1} \odot m_h / (1 - p)) \\
    \text{zoneout}           && s_t &= k_t \odot s_{t-1} + (1 - k_t) \odot \tilde s_t \\
    \text{weight drop}       && W_{hh} &\to W_{hh} \odot M / (1 - p) \\
    \text{weight norm}       && W &= g \, V / \lVert V \rVert
    \end{aligned}

The masks m and M are 0 with probability p. m_x and m_h are drawn for each sequence and are constant
over time, M is drawn once for a call, k_t is 1 with probability p for each unit and step. For
evaluation, zoneout uses its expectation, :math:`k_t = p`, and the others do nothing but weight
normalisation, which has a g and a norm for each row of W.

Every mask is a function of the key of the call and of its purpose, see `dropout_mask`, so it can be
drawn again. Axis letters: N batch, T time, D input features, R features of h, S of a state.

Source: dropout: Y. Gal, Z. Ghahramani, NIPS 2016 (arXiv:1512.05287); zoneout: D. Krueger et al.,
ICLR 2017 (arXiv:1606.01305); weight drop: S. Merity et al., ICLR 2018 (arXiv:1708.02182), after
DropConnect, L. Wan et al., ICML 2013; weight normalisation: T. Salimans, D. Kingma, NIPS 2016
(arXiv:1602.07868).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends.step import StepMasks
from jaxrnn.cells import BaseCell, Cell
from jaxrnn.cells.base import compute_dtype
from jaxrnn.cells.weights import Weights, infer_sizes

KINDS = ("input_dropout", "recurrent_dropout", "zoneout", "weight_drop")


@dataclass(frozen=True)
class Regularization:
    """Probabilities of the regularisers, all 0 by default.

    Attributes:
        input_dropout: of each input feature of each layer.
        recurrent_dropout: of each feature of h before its product with W_hh.
        zoneout: of each unit of each state and step; one number a state.
        weight_drop: of each weight of W_hh.
        training: if False, only the expectation of zoneout is applied.
    """

    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, ...] = ()
    weight_drop: float = 0.0
    training: bool = True

    @classmethod
    def from_options(
        cls, cell: BaseCell, *, zoneout: Any = 0.0, **probabilities: Any
    ) -> Regularization | None:
        """Return the regularisation of a layer's options; None if all are off.

        Args:
            cell: the cell.
            zoneout: one probability for all states, or one for each.
            **probabilities: the other attributes of this class, by name.

        Raises:
            ValueError: if a value is not a probability, their number is wrong, or the cell does
                not have the array to mask.

        Example:
            >>> from jaxrnn import cells
            >>> Regularization.from_options(cells.LSTM(), zoneout=(0.0, 0.5)).zoneout
            (0.0, 0.5)
        """
        names = tuple(cell.states)
        if isinstance(zoneout, (tuple, list)):
            if len(zoneout) != len(names):
                raise ValueError(
                    f"`zoneout` must be a number, or {len(names)}, one for each state "
                    f"({', '.join(names)}), got {len(zoneout)}: {zoneout!r}"
                )
        else:
            zoneout = (zoneout,) * len(names)
        zoneout = tuple(check_probability("zoneout", p) for p in zoneout)
        checked: Any = {name: check_probability(name, p) for name, p in probabilities.items()}
        options = cls(zoneout=zoneout if any(zoneout) else (), **checked)
        product = isinstance(cell, Cell) and cell.recurrent  # W_hh h, computed by the layer
        missing = f"is not supported by {cell}, which has no weight_hh"
        if (p := options.recurrent_dropout) and not product:
            raise ValueError(
                f"recurrent_dropout={p} {missing} in the layer. "
                "Use zoneout, which every cell supports"
            )
        if (p := options.weight_drop) and not (product or "weight_hh" in cell.parameters):
            raise ValueError(f"weight_drop={p} {missing}")
        return None if options == cls() else options

    def for_mode(self, training: bool) -> Regularization | None:
        """Return the regularisation that applies in training, or in evaluation."""
        if training:
            return self
        return Regularization(zoneout=self.zoneout, training=False) if self.zoneout else None

    @property
    def random(self) -> dict[str, float]:
        """The probabilities of the masks that need a key."""
        if not self.training:
            return {}
        each = {kind: getattr(self, kind) for kind in KINDS if kind != "zoneout"}
        each["zoneout"] = max((p for p in self.zoneout if p < 1), default=0.0)
        return {kind: p for kind, p in each.items() if 0 < p < 1}

    def drop_input(self, key: Any, index: int, x: jax.Array) -> jax.Array:
        """Apply input dropout to x (T, N, D) of the layer whose first direction is `index`."""
        if not self.input_dropout:
            return x
        factors = _factors(key, "input_dropout", index, self.input_dropout, x.shape[1:], x.dtype)
        return x * factors[None]

    def mask_loop(
        self,
        cell: BaseCell,
        key: Any,
        index: int,
        weights: Weights,
        x: jax.Array,
        masks: StepMasks,
    ) -> tuple[Weights, StepMasks]:
        """Return the weights and masks of one direction's loop over x (T, N, D)."""
        steps, batch, features = x.shape
        sizes = infer_sizes(cell, weights, features)
        if p := self.weight_drop:
            named = weights.named()
            weight = named["weight_hh"]
            factors = _factors(key, "weight_drop", index, p, weight.shape, weight.dtype)
            weights = Weights.from_named(cell, named | {"weight_hh": weight * factors})
        if p := self.recurrent_dropout:
            factors = _factors(key, "recurrent_dropout", index, p, (batch, sizes.R), x.dtype)
            weights = weights._replace(dropout_mask=factors.T)
        if not self.zoneout:
            return weights, masks
        zoneout: list[jax.Array | None] = []
        for number, (p, size) in enumerate(zip(self.zoneout, cell.state_sizes(sizes), strict=True)):
            if not p:
                zoneout.append(None)
            elif not self.training:
                zoneout.append(jnp.full((steps, 1, 1), p, compute_dtype(x.dtype)))
            else:
                shape = (steps, size, batch)
                zoneout.append(~dropout_mask(key, "zoneout", index, p, shape, number))
        return weights, masks._replace(zoneout=tuple(zoneout))


def dropout_mask(
    key: Any, kind: str, index: int, p: float, shape: tuple[int, ...], number: int = 0
) -> jax.Array:
    """Draw a mask that is False with probability p.

    Args:
        key: the key of the call, taken by a layer from its ``dropout`` stream.
        kind: one of `KINDS`.
        index: the index of the direction, from 0 to F*L - 1; for the input, of a layer's first.
        p: the probability.
        shape: (N, D) for the input, (N, R) for h, (T, S, N) for zoneout, that of W_hh for its
            weights. For zoneout, True selects the value that the step computed.
        number: the index of the state, for zoneout.

    Example:
        >>> import jax
        >>> dropout_mask(jax.random.key(0), "recurrent_dropout", 0, 1.0, (2, 3)).any().item()
        False
    """
    if p >= 1.0:
        return jnp.zeros(shape, bool)
    if key is None:
        raise ValueError(f"{kind}={p} needs a key")
    # Far from the indices of the layers, which the dropout between them folds in.
    key = jax.random.fold_in(key, 2**32 - 1 - KINDS.index(kind))
    key = jax.random.fold_in(jax.random.fold_in(key, index), number)
    return jax.random.bernoulli(key, 1.0 - p, shape)


def drop_between_layers(key: jax.Array | None, index: int, x: jax.Array, p: float) -> jax.Array:
    """Set each value to zero with probability p and scale the others by 1 / (1 - p)."""
    if p >= 1.0:
        return jnp.zeros_like(x)
    if key is None:
        raise ValueError(f"dropout={p} needs a key")
    mask = jax.random.bernoulli(jax.random.fold_in(key, index), 1.0 - p, x.shape)
    return jnp.where(mask, x / (1.0 - p), jnp.zeros_like(x))


def _factors(
    key: Any, kind: str, index: int, p: float, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Draw factors that are 0 with probability p, else 1 / (1 - p)."""
    mask = dropout_mask(key, kind, index, p, shape)
    return jnp.where(mask, 1.0 / (1.0 - p) if p < 1 else 0.0, 0.0).astype(dtype)


def check_probability(name: str, value: Any) -> float:
    """Return a number in [0, 1] as a float.

    Raises:
        ValueError: for anything else.
    """
    number: Any = value if isinstance(value, Number) else None
    if number is None or isinstance(value, (bool, complex)) or not 0 <= number <= 1:
        raise ValueError(f"`{name}` must be a probability, a number in range [0, 1], got {value!r}")
    return float(number)


# Weight normalisation


def normalized_names(weight_norm: Any, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Return the names of the parameters that the option ``weight_norm`` normalises.

    Raises:
        ValueError: if a name is not that of a matrix, or no matrix exists.
    """
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    if weight_norm is False:
        return ()
    if weight_norm is True:
        names = tuple(name for name in ("weight_ih", "weight_hh") if name in matrices)
    else:
        names = (weight_norm,) if isinstance(weight_norm, str) else tuple(weight_norm)
    if not names or not set(names) <= set(matrices):
        raise ValueError(
            f"`weight_norm` must be True, False or names of weights out of {matrices}, "
            f"got {weight_norm!r}"
        )
    return names


def split_weight_norm(named: Mapping[str, jax.Array], names: Sequence[str]) -> dict[str, jax.Array]:
    """Replace each named parameter W by ``<name>_g``, its norms, and ``<name>_v``, W."""
    split: dict[str, jax.Array] = {}
    for name, value in named.items():
        parts = {f"{name}_g": _norms(value), f"{name}_v": value}
        split |= parts if name in names else {name: value}
    return split


@jax.jit
def merge_weight_norm(split: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Compute ``g * V / |V|`` for each pair of `split_weight_norm`; keep the other parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> pair = {"weight_hh_g": jnp.array([[10.0]]), "weight_hh_v": jnp.array([[3.0, 4.0]])}
        >>> merge_weight_norm(pair)["weight_hh"].tolist()
        [[6.0, 8.0]]
    """
    named = {}
    for name, value in split.items():
        whole = name.removesuffix("_v")
        if name.endswith("_v") and f"{whole}_g" in split:
            named[whole] = value * (split[f"{whole}_g"] / _norms(value))
        elif not (name.endswith("_g") and f"{name.removesuffix('_g')}_v" in split):
            named[name] = value
    return named


def _norms(w: jax.Array) -> jax.Array:
    """Return the Euclidean norm of each row of a weight, its other axes of length 1."""
    wide = w.astype(compute_dtype(w.dtype))
    axes = tuple(range(1, w.ndim))
    return jnp.sqrt((wide * wide).sum(axes, keepdims=True)).astype(w.dtype)
