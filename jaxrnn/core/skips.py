"""What leads around a layer: its input to its output, added or gated.

.. code-block:: text

    residual    y = f(x) + x
    highway     y = t * f(x) + (1 - t) * x      t = sigmoid(x @ W_t.T + b_t)

f is the layer with all its directions, x its input before any dropout, which acts on f alone. A
layer has a skip where x has as many features as f(x), F*R; the others, mostly the first, have none.
The state of a layer stays its cell's own.

Source: K. He et al., CVPR 2016 (arXiv:1512.03385), in recurrent stacks Y. Wu et al.,
arXiv:1609.08144; R. Srivastava, K. Greff, J. Schmidhuber, Highway networks, arXiv:1505.00387, in
recurrent stacks Y. Zhang et al., ICASSP 2016 (arXiv:1510.08983), which gate the cells, not the
outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import _checks as checks
from jaxrnn.backends.products import rows_product
from jaxrnn.cells import BaseCell, Sizes
from jaxrnn.core.params import uniform

CHOICES = ("residual", "highway")
START = -1.0
"""What b_t begins with: most of x goes by."""


class Gate(NamedTuple):
    """The parameters of a highway, E = F*R features: weight (E, E), bias (E,) or None."""

    weight: jax.Array
    bias: jax.Array | None = None


def places(
    skip: str | None, cell: BaseCell, sizes: Sequence[Sizes], directions: int
) -> tuple[bool, ...]:
    """Which of the layers have a skip.

    Args:
        skip: one of `CHOICES`, or None.
        cell: of all layers.
        sizes: of each layer.
        directions: F.

    Raises:
        ValueError: for an unknown kind, and where no layer can have one.

    Example:
        >>> from jaxrnn.cells import GRU, Sizes
        >>> places("residual", GRU(), [Sizes(3, 4, 4), Sizes(4, 4, 4)], directions=1)
        (False, True)
    """
    if skip is None:
        return (False,) * len(sizes)
    checks.choice("skip", skip, CHOICES)
    features = [(size.D, directions * cell.output_features(size)) for size in sizes]
    fit = tuple(first == last for first, last in features)
    if not any(fit):
        raise ValueError(
            f"skip={skip!r}: no layer has as many features going in as coming out: "
            + ", ".join(f"{first} and {last}" for first, last in features)
        )
    return fit


def init(key: jax.Array, features: int, *, bias: bool = True, dtype: Any = jnp.float32) -> Gate:
    """A gate for E features: the weight from U(-1/sqrt(E), 1/sqrt(E)), the bias `START`."""
    weight = uniform(key, (features, features), features, dtype)
    return Gate(weight, jnp.full((features,), START, dtype) if bias else None)


def around(skip: str, gate: Gate | None, x: jax.Array, y: jax.Array) -> jax.Array:
    """The output of a layer with its skip, for its input x and its own output y, both (T, N, E).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.core.skips import around
        >>> around("residual", None, jnp.ones((1, 1, 2)), jnp.ones((1, 1, 2))).tolist()
        [[[2.0, 2.0]]]
    """
    if skip == "residual":
        return x + y
    assert gate is not None
    z = rows_product(x, gate.weight)
    if gate.bias is not None:
        z = z + gate.bias.astype(z.dtype)[None, None]
    t = jax.nn.sigmoid(z).astype(x.dtype)
    return t * y + (1 - t) * x
