"""A linear layer that starts as PyTorch's does."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from jaxrnn.core.params import uniform
from jaxrnn.layers._module import check_rngs


def linear(
    in_features: int, out_features: int, *, bias: bool = True, rngs: nnx.Rngs, **options: Any
) -> nnx.Linear:
    """An `nnx.Linear` that starts as ``torch.nn.Linear`` does: U(-1/sqrt(in), 1/sqrt(in)).

    Args:
        in_features: the features of the input.
        out_features: the features of the output.
        bias: whether there is one.
        rngs: the stream for the parameters (``params``).
        options: ``dtype`` and ``param_dtype``, as of the recurrent layers.

    Example:
        >>> from flax import nnx
        >>> linear(32, 1, rngs=nnx.Rngs(0)).kernel.shape
        (32, 1)
    """
    check_rngs(rngs)

    def draw(key: jax.Array, shape: Any, dtype: Any, **_: Any) -> jax.Array:
        return uniform(key, shape, in_features, dtype)

    return nnx.Linear(
        in_features,
        out_features,
        use_bias=bias,
        kernel_init=draw,
        bias_init=draw,
        rngs=rngs,
        **options,
    )
