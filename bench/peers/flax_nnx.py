"""flax.nnx: nnx.RNN over OptimizedLSTMCell, GRUCell or SimpleCell, time-major, split state."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bench.peers.base import JaxPeer, Layer, Weights

CELLS = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}


class Peer(JaxPeer):
    def other_formula(self, cell: str) -> str:
        return "no bias inside the reset product" if cell == "gru" else ""

    def direction(self, cell: str, D: int, H: int, reverse: bool) -> Layer:
        zeros = {"recurrent_kernel_init": nnx.initializers.zeros_init()}  # Replaced at once.
        rnn = nnx.RNN(
            CELLS[cell](D, H, rngs=nnx.Rngs(0), **zeros),
            time_major=True,
            reverse=reverse,
            keep_order=True,
        )
        graphdef, state, rest = nnx.split(rnn, nnx.Param, ...)

        def convert(w: Weights) -> Any:
            i = {"kernel": w["weight_ih"].T}
            h = {"kernel": w["weight_hh"].T}
            # The LSTM has its one bias on the recurrent side, the others on the input's.
            (h if cell == "lstm" else i)["bias"] = w["bias_ih"] + w["bias_hh"]
            filled = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(filled, {"cell": {"dense_i": i, "dense_h": h}})
            return filled

        def apply(params: Any, x: jax.Array) -> Any:
            zero = jnp.zeros((x.shape[1], H), x.dtype)
            carry = (zero, zero) if cell == "lstm" else zero
            return nnx.merge(graphdef, params, rest)(x, initial_carry=carry)

        return Layer(apply, convert)
