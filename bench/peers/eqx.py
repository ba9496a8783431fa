# pyright: reportMissingImports=false
"""Equinox: eqx.nn.LSTMCell or GRUCell, vmapped over the batch, in lax.scan as its docs do."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bench.core import Unsupported
from bench.peers.base import JaxPeer, Layer, Weights


class Peer(JaxPeer):
    def direction(self, cell: str, D: int, H: int, reverse: bool) -> Layer:
        if cell == "rnn":
            raise Unsupported("equinox has no tanh RNN cell")
        make = eqx.nn.LSTMCell if cell == "lstm" else eqx.nn.GRUCell
        template = make(D, H, key=jax.random.key(0))

        def convert(w: Weights) -> Any:
            bias, values = w["bias_ih"] + w["bias_hh"], [w["weight_ih"], w["weight_hh"]]
            if cell == "lstm":
                fields = lambda c: (c.weight_ih, c.weight_hh, c.bias)  # noqa: E731
                return eqx.tree_at(fields, template, (*values, bias))
            # b_hn stays inside the reset product; the other gates have one bias.
            bias = jnp.concatenate([bias[: 2 * H], w["bias_ih"][2 * H :]])
            fields = lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n)  # noqa: E731
            return eqx.tree_at(fields, template, (*values, bias, w["bias_hh"][2 * H :]))

        def apply(params: Any, x: jax.Array) -> jax.Array:
            def step(state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
                state = jax.vmap(params)(x_t, state)
                return state, state[0] if cell == "lstm" else state

            zero = jnp.zeros((x.shape[1], H), x.dtype)
            return jax.lax.scan(step, (zero, zero) if cell == "lstm" else zero, x, reverse=reverse)[
                1
            ]

        return Layer(apply, convert)
