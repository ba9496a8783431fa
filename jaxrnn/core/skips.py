r"""Skip connections around a layer: residual and highway.

.. math::

    \begin{aligned}
    \text{residual} && y &= f(x) + x \\
    \text{highway}  && y &= t \odot f(x) + (1 - t) \odot x, \qquad t = \sigma(W_t x + b_t)
    \end{aligned}

f is the layer with all its directions, x its input before dropout, which acts on f alone. A layer
has a skip connection if x has as many features as f(x), F*R. The state is unaffected.

Source: K. He et al., arXiv:1512.03385, in recurrent stacks Y. Wu et al., arXiv:1609.08144; highway:
R. Srivastava et al., arXiv:1505.00387, in recurrent stacks Y. Zhang et al., arXiv:1510.08983, which
gate the cells instead of the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import _checks
from jaxrnn.backends.step import project
from jaxrnn.cells import BaseCell, Sizes
from jaxrnn.core.params import uniform

KINDS = ("residual", "highway")
INITIAL_BIAS = -1.0
"""The initial value of b_t: most of x passes."""


class HighwayGate(NamedTuple):
    """Parameters of a highway with E = F*R features: weight (E, E), bias (E,) or None."""

    weight: jax.Array
    bias: jax.Array | None = None


def layers_with_skip(
    skip: str | None, cell: BaseCell, sizes: Sequence[Sizes], directions: int
) -> tuple[bool, ...]:
    """Return for each layer whether it has a skip connection.

    Raises:
        ValueError: if `skip` is neither None nor one of `KINDS`, or no layer can have one.

    Example:
        >>> from jaxrnn.cells import GRU, Sizes
        >>> layers_with_skip("residual", GRU(), [Sizes(3, 4, 4), Sizes(4, 4, 4)], directions=1)
        (False, True)
    """
    if skip is None:
        return (False,) * len(sizes)
    _checks.choice("skip", skip, KINDS)
    features = [(size.D, directions * cell.output_features(size)) for size in sizes]
    fits = tuple(before == after for before, after in features)
    if not any(fits):
        raise ValueError(
            f"skip={skip!r} needs a layer with as many input as output features, got "
            + ", ".join(f"{before} and {after}" for before, after in features)
        )
    return fits


def init_gate(
    key: jax.Array, features: int, *, bias: bool = True, dtype: Any = jnp.float32
) -> HighwayGate:
    """Draw a gate for E features: weight from U(-1/sqrt(E), 1/sqrt(E)), bias `INITIAL_BIAS`."""
    weight = uniform(key, (features, features), features, dtype)
    return HighwayGate(weight, jnp.full((features,), INITIAL_BIAS, dtype) if bias else None)


def apply_skip(skip: str, gate: HighwayGate | None, x: jax.Array, y: jax.Array) -> jax.Array:
    """Combine the input x and the output y of a layer, both (T, N, E).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.core.skips import apply_skip
        >>> apply_skip("residual", None, jnp.ones((1, 1, 2)), jnp.ones((1, 1, 2))).tolist()
        [[[2.0, 2.0]]]
    """
    if skip == "residual":
        return x + y
    assert gate is not None
    z = project(x, gate.weight)
    if gate.bias is not None:
        z = z + gate.bias.astype(z.dtype)[None, None]
    t = jax.nn.sigmoid(z).astype(x.dtype)
    return t * y + (1 - t) * x
