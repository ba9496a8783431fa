# pyright: reportMissingImports=false
"""Haiku: hk.dynamic_unroll over hk.LSTM, hk.GRU or a tanh version of hk.VanillaRNN."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from bench.peers.base import JaxPeer, Layer, Weights


class TanhRNN(hk.VanillaRNN):
    """hk.VanillaRNN has ReLU and no choice; this is its code with tanh, and one bias."""

    def __call__(self, inputs: jax.Array, prev_state: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden_to_hidden = hk.Linear(self.hidden_size, with_bias=False, name="h")
        h = jnp.tanh(hk.Linear(self.hidden_size, name="i")(inputs) + hidden_to_hidden(prev_state))
        return h, h


CELLS = {"lstm": hk.LSTM, "gru": hk.GRU, "rnn": TanhRNN}


def convert(cell: str, w: Weights) -> Any:
    bias = w["bias_ih"] + w["bias_hh"]
    if cell == "rnn":
        i = {"w": w["weight_ih"].T, "b": bias}
        return {"cell/i": i, "cell/h": {"w": w["weight_hh"].T}}
    if cell == "gru":  # Gates z, r, a; another formula, so these are only comparable weights.
        r_z_n = (jnp.split(w[name], 3) for name in ("weight_ih", "weight_hh"))
        w_i, w_h = (jnp.concatenate([z, r, n]).T for r, z, n in r_z_n)
        return {"cell": {"w_i": w_i, "w_h": w_h, "b": bias}}
    joined = jnp.concatenate([w["weight_ih"], w["weight_hh"], bias[:, None]], axis=1)
    i, f, g, o = jnp.split(joined, 4)
    # Haiku adds 1 to the forget gate, after its bias.
    f = f.at[:, -1].add(-1.0)
    joined = jnp.concatenate([i, g, f, o])
    return {"cell/linear": {"w": joined[:, :-1].T, "b": joined[:, -1]}}


class Peer(JaxPeer):
    def other_formula(self, cell: str) -> str:
        return "reset applied before the matrix product" if cell == "gru" else ""

    def note(self, cell: str) -> str:
        return "tanh in ReLU's place (haiku has only ReLU)" if cell == "rnn" else ""

    def direction(self, cell: str, D: int, H: int, reverse: bool) -> Layer:
        def unroll(x: jax.Array) -> Any:
            core = CELLS[cell](H, name="cell")
            state = core.initial_state(x.shape[1])
            return hk.dynamic_unroll(core, x, state, reverse=reverse)[0]

        run = hk.without_apply_rng(hk.transform(unroll))
        return Layer(run.apply, lambda weights: convert(cell, weights))
