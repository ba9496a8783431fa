"""Conversion of layers and weights to and from other libraries.

| library, module | import | export | biases |
|---|---|---|---|
| PyTorch, `torch` | `load_state_dict`, ... | `state_dict`, `save_safetensors` | two |
| Keras 3, `keras` | `from_keras` | `to_keras`: a ``Sequential`` | one; a GRU has two |
| Flax nnx, `flax` | `from_nnx` | `to_nnx`: an ``nnx.Sequential`` | one; a GRU has no ``b_hn`` |
| Flax linen, `flax` | `from_linen` | `to_linen`: ``Sequential``, params | one; a GRU has ``b_hn`` |
| ONNX, `onnx` | `from_onnx` | `to_onnx`: a ``ModelProto`` | two |

`jaxrnn.interop.adapters` runs cells of one library in the loops of another, and
`jaxrnn.interop.export` serialises compiled programs.

The ``from_`` functions accept a model, a layer, or a list of stacked layers, and return one `RNN`,
`LSTM` or `GRU`; a GRU that resets before the product becomes a `Recurrent` of
`cells.GRUResetBefore`, and an LSTM with peepholes one of `cells.PeepholeLSTM`. Weights are copied
and gates reordered, so that a round trip is exact. A library with one bias gets the sum of both;
its bias becomes ``bias_ih``, and ``bias_hh`` is zero. Dropout is dropped with a UserWarning.

Keras and ONNX are imported on first use, and raise an ImportError if they are not installed: ``pip
install "jaxrnn[keras]"``, ``"jaxrnn[onnx]"``.
"""


class ConversionError(ValueError):
    """A layer that the other library cannot represent. The message lists every problem."""
