# pyright: reportMissingImports=false
"""Keras on JAX: LSTM, GRU(reset_after=True) and SimpleRNN, whole sequences, batch-major.

Keras has no time-major layers: it transposes inside, which is part of its time.
"""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # Read once, when Keras is imported.

import jax
import jax.numpy as jnp
import keras

from bench.core import Unsupported
from bench.peers.base import JaxPeer, Layer, Weights

if keras.backend.backend() != "jax":
    raise Unsupported(f"Keras was imported before, with backend {keras.backend.backend()}")


def convert(cell: str, w: Weights) -> list[Any]:
    """Return [kernel, recurrent kernel, bias] in Keras's gate order: i f g o, or z r n."""
    if cell == "gru":

        def reorder(array: Any) -> Any:
            r, z, n = jnp.split(array, 3)
            return jnp.concatenate([z, r, n])

        biases = jnp.stack([reorder(w["bias_ih"]), reorder(w["bias_hh"])])
        return [reorder(w["weight_ih"]).T, reorder(w["weight_hh"]).T, biases]
    return [w["weight_ih"].T, w["weight_hh"].T, w["bias_ih"] + w["bias_hh"]]


class Peer(JaxPeer):
    batch_major = True

    def direction(self, cell: str, D: int, H: int, reverse: bool) -> Layer:
        layers: dict[str, Any] = {
            "lstm": keras.layers.LSTM,
            "gru": keras.layers.GRU,
            "rnn": keras.layers.SimpleRNN,
        }
        extra: dict[str, Any] = {"reset_after": True} if cell == "gru" else {}
        extra |= {"dtype": self.dtype, "recurrent_initializer": "zeros"}  # Replaced at once.
        layer = layers[cell](H, return_sequences=True, go_backwards=reverse, **extra)
        layer.build((None, None, D))
        fixed = [variable.value for variable in layer.non_trainable_variables]

        def apply(params: Any, x: jax.Array) -> jax.Array:
            output = layer.stateless_call(params, fixed, x)[0]
            return jnp.flip(output, axis=1) if reverse else output

        return Layer(apply, lambda weights: convert(cell, weights))
