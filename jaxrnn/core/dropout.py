"""What keeps a stack from learning by heart: dropout that holds through time, zoneout, weight drop;
and weight normalisation.

.. code-block:: text

    input_dropout       x_t * m_x / (1 - p)             m_x of each row, the same at all t
    recurrent_dropout   (h_{t-1} * m_h / (1 - p)) @ W_hh.T
    zoneout             s_t = k_t * s_{t-1} + (1 - k_t) * s~_t      for each state s; k_t of 0 and 1
                        s_t = p * s_{t-1} + (1 - p) * s~_t          outside of training
    weight_drop         W_hh * M / (1 - p)              M one for the whole call, rows and steps
    weight_norm         W = g * V / |V|                 a g and a norm for each row of W

m, M are 0 with probability p, k_t is 1 with probability p; s~_t is what the step gives. All but
zoneout are nothing outside of training; weight normalisation is no noise and always there.

Each mask is made from the one key of the call and what the mask is for, see `keep`, so that it can
be drawn again. Axis letters: N batch, T time, D input features of a layer, H hidden size, G gates,
R features of h, S features of a state, L layers, F directions.

Source: Y. Gal, Z. Ghahramani, A theoretically grounded application of dropout in recurrent neural
networks, NIPS 2016 (arXiv:1512.05287); zoneout: D. Krueger et al., ICLR 2017 (arXiv:1606.01305);
weight drop: S. Merity et al., ICLR 2018 (arXiv:1708.02182), after DropConnect, L. Wan et al., ICML
2013; weight normalisation: T. Salimans, D. Kingma, NIPS 2016 (arXiv:1602.07868).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.backends.step import StepMasks
from jaxrnn.cells import BaseCell, Cell, Sizes
from jaxrnn.cells.base import compute_dtype
from jaxrnn.cells.weights import Weights, infer_sizes

KINDS = ("input_dropout", "recurrent_dropout", "zoneout", "weight_drop")


@dataclass(frozen=True)
class Regularisers:
    """The probabilities, all 0 by default.

    Attributes:
        input_dropout: of each input feature of each layer, for a whole row.
        recurrent_dropout: of each feature of h within the product with W_hh, for a whole row.
        zoneout: of each unit of each state and step; one number a state.
        weight_drop: of each weight of W_hh, for a whole call.
        training: whether masks are drawn; otherwise zoneout alone acts, by its expectation.
    """

    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, ...] = ()
    weight_drop: float = 0.0
    training: bool = True

    @classmethod
    def of(
        cls,
        cell: BaseCell,
        *,
        input_dropout: Any = 0.0,
        recurrent_dropout: Any = 0.0,
        zoneout: Any = 0.0,
        weight_drop: Any = 0.0,
    ) -> Regularisers | None:
        """Of the options of a layer; None where nothing is asked for.

        Raises:
            ValueError: for what is no probability, for a wrong number of them, and for a cell that
                has not what is to be masked.

        Example:
            >>> from jaxrnn import cells
            >>> from jaxrnn.core.dropout import Regularisers
            >>> Regularisers.of(cells.LSTM(), zoneout=(0.0, 0.5)).zoneout
            (0.0, 0.5)
        """
        names = tuple(cell.states)
        if isinstance(zoneout, (tuple, list)):
            if len(zoneout) != len(names):
                raise ValueError(
                    f"zoneout should be a number, or {len(names)}, one for each state "
                    f"({', '.join(names)}); got {len(zoneout)}: {zoneout!r}"
                )
        else:
            zoneout = (zoneout,) * len(names)
        zoneout = tuple(probability("zoneout", p) for p in zoneout)
        made = cls(
            probability("input_dropout", input_dropout),
            probability("recurrent_dropout", recurrent_dropout),
            zoneout if any(zoneout) else (),
            probability("weight_drop", weight_drop),
        )
        if made == cls():
            return None
        gated = isinstance(cell, Cell)
        if made.recurrent_dropout and not (gated and cell.recurrent):
            raise ValueError(
                f"recurrent_dropout={recurrent_dropout}: {cell} has no W_hh of the layer's that a "
                "masked h could meet; zoneout serves every cell"
            )
        has_hh = cell.recurrent if gated else "weight_hh" in cell.parameters
        if made.weight_drop and not has_hh:
            raise ValueError(f"weight_drop={weight_drop}: {cell} has no weight_hh")
        return made

    def of_mode(self, training: bool) -> Regularisers | None:
        """Those that act in training, or outside of it."""
        if training:
            return self
        return Regularisers(zoneout=self.zoneout, training=False) if self.zoneout else None

    @property
    def drawn(self) -> dict[str, float]:
        """The probabilities of the masks for which a key is needed."""
        if not self.training:
            return {}
        each = {kind: getattr(self, kind) for kind in KINDS if kind != "zoneout"}
        each["zoneout"] = max((p for p in self.zoneout if p < 1), default=0.0)
        return {kind: p for kind, p in each.items() if 0 < p < 1}

    def on_input(self, key: Any, index: int, x: jax.Array) -> jax.Array:
        """What a layer, the first of whose directions is `index`, reads for x (T, N, D)."""
        if not self.input_dropout:
            return x
        p, shape = self.input_dropout, x.shape[1:]
        return x * _scaled(keep(key, "input_dropout", index, p, shape), p, x.dtype)[None]

    def on_loop(
        self, cell: BaseCell, key: Any, index: int, weights: Weights, x: jax.Array, masks: StepMasks
    ) -> tuple[Weights, StepMasks]:
        """The weights and masks of one direction's loop over x (T, N, D)."""
        steps, rows, features = x.shape
        sizes = infer_sizes(cell, weights, features)
        p = self.weight_drop
        if p:
            weight = weights.named()["weight_hh"]
            mask = _scaled(keep(key, "weight_drop", index, p, weight.shape), p, weight.dtype)
            weights = Weights.from_named(cell, weights.named() | {"weight_hh": weight * mask})
        p = self.recurrent_dropout
        if p:
            mask = keep(key, "recurrent_dropout", index, p, (rows, sizes.R))
            weights = weights._replace(dropout_mask=_scaled(mask, p, x.dtype).T)
        if self.zoneout:
            zoneout = self._zoneout(cell, key, index, sizes, (steps, rows), compute_dtype(x.dtype))
            masks = masks._replace(zoneout=zoneout)
        return weights, masks

    def _zoneout(
        self,
        cell: BaseCell,
        key: Any,
        index: int,
        sizes: Sizes,
        steps_and_rows: tuple[int, int],
        dtype: Any,
    ) -> tuple[jax.Array | None, ...]:
        steps, rows = steps_and_rows
        kept: list[jax.Array | None] = []
        for number, (p, size) in enumerate(zip(self.zoneout, cell.state_sizes(sizes), strict=True)):
            if not p:
                kept.append(None)
            elif not self.training:
                kept.append(jnp.full((steps, 1, 1), p, dtype))
            else:
                shape = (steps, size, rows)
                kept.append(~keep(key, "zoneout", index, p, shape, number))
        return tuple(kept)


def keep(
    key: Any, kind: str, index: int, p: float, shape: tuple[int, ...], number: int = 0
) -> jax.Array:
    """False with probability p: the one draw of every mask.

    Args:
        key: the key of the call, the one that a layer takes from its ``dropout`` stream.
        kind: one of `KINDS`.
        index: of the direction, from 0 to F*L - 1; for the input, of the layer's first.
        p: the probability.
        shape: (N, D) for the input, (N, R) for h, (T, S, N) for zoneout, that of W_hh for its
            weights. For zoneout, True is what the step gives.
        number: of the state, for zoneout.

    Example:
        >>> import jax
        >>> from jaxrnn.core.dropout import keep
        >>> keep(jax.random.key(0), "recurrent_dropout", 0, 1.0, (2, 3)).any().item()
        False
    """
    if p >= 1.0:
        return jnp.zeros(shape, bool)
    if key is None:
        raise ValueError(f"{kind}={p} needs a key")
    # Far from the numbers of the layers, with which the dropout between them is drawn.
    key = jax.random.fold_in(key, 2**32 - 1 - KINDS.index(kind))
    key = jax.random.fold_in(jax.random.fold_in(key, index), number)
    return jax.random.bernoulli(key, 1.0 - p, shape)


def _scaled(kept: jax.Array, p: float, dtype: Any) -> jax.Array:
    """0, or 1 / (1 - p) where it is kept."""
    return jnp.where(kept, 1.0 / (1.0 - p) if p < 1 else 0.0, 0.0).astype(dtype)


def probability(name: str, value: Any) -> float:
    """A number in [0, 1].

    Raises:
        ValueError: for anything else.
    """
    number: Any = value if isinstance(value, Number) else None
    if number is None or isinstance(value, (bool, complex)) or not 0 <= number <= 1:
        raise ValueError(f"{name} should be a probability, a number in range [0, 1], got {value!r}")
    return float(number)


# Weight normalisation


def normed_names(weight_norm: Any, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """The parameters that the option ``weight_norm`` stands for, of those with these shapes.

    Raises:
        ValueError: for a name that is none of a matrix, and where there is none.
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
            f"weight_norm should be True, False or names of weights out of {matrices}, "
            f"got {weight_norm!r}"
        )
    return names


def taken_apart(named: Mapping[str, jax.Array], names: Sequence[str]) -> dict[str, jax.Array]:
    """Parameters with ``<name>_g``, the norms (rows, 1), and ``<name>_v``, W, for some of them."""
    apart: dict[str, jax.Array] = {}
    for name, value in named.items():
        parts = {f"{name}_g": _norms(value), f"{name}_v": value}
        apart |= parts if name in names else {name: value}
    return apart


@jax.jit
def put_together(apart: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """``g * V / |V|`` for each pair of `taken_apart`, and the others as they are.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.core.dropout import put_together
        >>> pair = {"weight_hh_g": jnp.array([[10.0]]), "weight_hh_v": jnp.array([[3.0, 4.0]])}
        >>> put_together(pair)["weight_hh"].tolist()
        [[6.0, 8.0]]
    """
    named = {}
    for name, value in apart.items():
        whole = name.removesuffix("_v")
        if name.endswith("_v") and f"{whole}_g" in apart:
            named[whole] = value * (apart[f"{whole}_g"] / _norms(value))
        elif not (name.endswith("_g") and f"{name.removesuffix('_g')}_v" in apart):
            named[name] = value
    return named


def _norms(w: jax.Array) -> jax.Array:
    """The Euclidean norm of each row of a weight, with its other axes as 1."""
    wide = w.astype(compute_dtype(w.dtype))
    axes = tuple(range(1, w.ndim))
    return jnp.sqrt((wide * wide).sum(axes, keepdims=True)).astype(w.dtype)
