"""Conversion of layers and weights to and from other libraries.

| library | module | import | export | biases |
|---|---|---|---|---|
| PyTorch | `jaxrnn.interop.torch` | `load_state_dict`, `load_safetensors` | `state_dict`, `save_safetensors` | both |
| Keras 3 | `jaxrnn.interop.keras` | `from_keras` | `to_keras`: a ``Sequential`` | one; both of a GRU with ``reset_after`` |
| Flax nnx | `jaxrnn.interop.flax` | `from_nnx` | `to_nnx`: an ``nnx.Sequential`` | one; a GRU has no ``b_hn`` |
| Flax linen | `jaxrnn.interop.flax` | `from_linen` | `to_linen`: a ``Sequential`` and its params | one; a GRU has ``b_hn`` too |
| ONNX | `jaxrnn.interop.onnx` | `from_onnx` | `to_onnx`: a ``ModelProto`` | both |

`jaxrnn.interop.adapters` runs cells of one library in the loops of another, and
`jaxrnn.interop.export` serialises compiled programs.

The ``from_`` functions accept a model, a layer, or a list of stacked layers, and return one `RNN`,
`LSTM` or `GRU`; a GRU that resets before the product becomes a `Recurrent` of
`cells.GRUResetBefore`, and an LSTM with peepholes one of `cells.PeepholeLSTM`. Weights are copied
and gates reordered, so that a round trip is exact. A library with one bias gets the sum of both; its
bias becomes ``bias_ih``, and ``bias_hh`` is zero. Dropout is not converted; a warning lists it.

Keras and ONNX are imported on first use: ``pip install "jaxrnn[keras]"``, ``"jaxrnn[onnx]"``.
"""  # noqa: E501


class ConversionError(ValueError):
    """A layer that the other library cannot represent. The message lists every problem."""
