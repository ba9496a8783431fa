# pyright: reportMissingImports=false
"""flax.linen: nn.RNN over OptimizedLSTMCell, GRUCell or SimpleCell, time-major."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from bench.peers.base import JaxPeer, Layer, Weights

CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}


def convert(cell: str, w: Weights) -> Any:
    """Convert to one dense layer per gate, with the sum of PyTorch's biases."""
    if cell == "rnn":
        i = {"kernel": w["weight_ih"].T, "bias": w["bias_ih"] + w["bias_hh"]}
        return {"params": {"cell": {"i": i, "h": {"kernel": w["weight_hh"].T}}}}
    gates = "ifgo" if cell == "lstm" else "rzn"
    b_ih, b_hh = (jnp.split(w[name], len(gates)) for name in ("bias_ih", "bias_hh"))
    params: dict[str, Any] = {}
    for k, gate in enumerate(gates):
        i = {"kernel": jnp.split(w["weight_ih"], len(gates))[k].T}
        h = {"kernel": jnp.split(w["weight_hh"], len(gates))[k].T}
        if cell == "lstm":
            h["bias"] = b_ih[k] + b_hh[k]
        elif gate == "n":
            i["bias"], h["bias"] = b_ih[k], b_hh[k]
        else:
            i["bias"] = b_ih[k] + b_hh[k]
        params |= {f"i{gate}": i, f"h{gate}": h}
    return {"params": {"cell": params}}


class Peer(JaxPeer):
    def direction(self, cell: str, D: int, H: int, reverse: bool) -> Layer:
        rnn = nn.RNN(CELLS[cell](H), time_major=True, reverse=reverse, keep_order=True)
        return Layer(rnn.apply, lambda weights: convert(cell, weights))
