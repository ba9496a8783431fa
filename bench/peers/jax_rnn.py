"""jax.experimental.rnn: cuDNN's LSTM, batch-major, float32, whole stacks, on an NVIDIA GPU only."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from bench.core import Unsupported
from bench.layers import Spec
from bench.peers.base import JaxPeer, Layer, Weights


def pack(spec: Spec, w: Weights) -> jax.Array:
    """Pack PyTorch's weights into cuDNN's array: matrices layer by layer, then biases."""
    suffixes = [suffix for _, _, suffix in spec.parts()]
    matrices = [w[f"weight_{kind}_{s}"] for s in suffixes for kind in ("ih", "hh")]
    biases = [w[f"bias_{kind}_{s}"] for s in suffixes for kind in ("ih", "hh")]
    return jnp.concatenate([array.ravel() for array in matrices + biases])


class Peer(JaxPeer):
    batch_major = True

    def layer(self, spec: Spec) -> Layer:
        if spec.cell != "lstm":
            raise Unsupported("it has an LSTM only")
        if spec.dtype != "float32":
            raise Unsupported("it takes float32 only")
        if jax.default_backend() != "gpu":
            raise Unsupported("it needs cuDNN on an NVIDIA GPU")

        def apply(params: Any, x: jax.Array) -> jax.Array:
            N, T, D = x.shape
            zeros = jnp.zeros((spec.num_layers * spec.directions, N, spec.H), x.dtype)
            lengths = jnp.full((N,), T, jnp.int32)
            sizes = (D, spec.H, spec.num_layers, 0.0, spec.bidirectional)
            given: Any = rnn.lstm(x, zeros, zeros, params, lengths, *sizes)
            return given[0]

        return Layer(apply, lambda weights: pack(spec, weights))
