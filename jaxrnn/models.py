"""Heads on recurrent layers, named by what goes in and what comes out."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from jaxrnn import GRU, LSTM, RNN, stack

LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
"""The layers by the names that the commands have for them."""


def linear(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """An `nnx.Linear` that starts as ``torch.nn.Linear`` does: U(-1/sqrt(in), 1/sqrt(in)).

    Example:
        >>> from flax import nnx
        >>> linear(32, 1, rngs=nnx.Rngs(0)).kernel.shape
        (32, 1)
    """

    def draw(key: jax.Array, shape: Any, dtype: Any, **_: Any) -> jax.Array:
        return stack.uniform(key, shape, in_features, dtype)

    return nnx.Linear(in_features, out_features, kernel_init=draw, bias_init=draw, rngs=rngs)


class ManyToMany(nnx.Module):
    """A recurrent layer and a linear one at every step: as many outputs as inputs.

    Args:
        rnn: any layer of this package.
        out_features: the size of each output.
        rngs: the stream for the linear layer's parameters (``params``).

    Call: ``model(x, hx=None) -> (y, h_n)``, x as the layer takes it, y with `out_features` in
    place of the layer's features.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> rnn = jaxrnn.RNN(1, 32, batch_first=True, rngs=rngs)
        >>> y, h_n = ManyToMany(rnn, 1, rngs=rngs)(jnp.ones((1, 20, 1)))
        >>> y.shape, h_n.shape
        ((1, 20, 1), (1, 1, 32))
    """

    def __init__(self, rnn: Any, out_features: int, *, rngs: nnx.Rngs):
        self.rnn = rnn
        features = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.fc = linear(features, out_features, rngs=rngs)

    def __call__(self, x: Any, hx: Any = None) -> tuple[jax.Array, Any]:
        """The outputs at every step and the state after the last."""
        output, last = self.rnn(x, hx)
        return self.fc(output), last
