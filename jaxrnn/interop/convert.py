"""Layers in and out of other libraries: Keras 3, Flax (linen and nnx) and ONNX.

| library | in | out | biases it holds |
|---|---|---|---|
| Keras 3 | `from_keras` | `to_keras`: a Sequential | one; both of a GRU, not if it resets before |
| Flax nnx | `from_nnx` | `to_nnx`: an `nnx.Sequential` | one; of a GRU not ``b_hn`` |
| Flax linen | `from_linen` | `to_linen`: a Sequential and its params | one; of a GRU ``b_hn`` too |
| ONNX | `from_onnx` | `to_onnx`: a model that runs | both |

What comes out of one of ours is a model of the other library, from an input to an output; what goes
in is such a model, a single layer, or a list of layers that stand one upon the other, and comes out
as one `RNN`, `LSTM` or `GRU` with as many layers, batch-first if the other is; a GRU of Keras or
ONNX that resets before the product comes out as a `Recurrent` of `cells.GRUResetBefore`, an LSTM of
ONNX with peepholes as one of `cells.PeepholeLSTM`. PyTorch's
weights are the business of `jaxrnn.load_state_dict`.

Weights are copied, with their gates in order, and not computed with, so that there and back is the
same bit for bit. A library that holds one bias where PyTorch has two gets their sum, which is the
same function up to the rounding of that addition; its one bias comes in as ``bias_ih``, with zeros
as ``bias_hh``. Where the other form can't hold what is to be held, or computes something else, a
`ConversionError` lists everything that stands in the way.

Dropout is not converted: there are as many meanings of it as libraries. A warning says so.

The other libraries are imported when they are needed: ``pip install "jaxrnn[keras]"`` and
``"jaxrnn[onnx]"``; Flax is always there. Keras runs on the backend it was imported with, which
``os.environ["KERAS_BACKEND"] = "jax"`` chooses before its first import.

From PyTorch to Keras, and to a file for onnxruntime::

    lstm = jaxrnn.LSTM(10, 20, batch_first=True, rngs=nnx.Rngs(0))
    jaxrnn.load_state_dict(lstm, torch_lstm.state_dict())
    model = to_keras(lstm)
    to_onnx(lstm, "lstm.onnx")
"""

from jaxrnn.interop._parts import ConversionError
from jaxrnn.interop.flax_linen import from_linen, to_linen
from jaxrnn.interop.flax_nnx import from_nnx, to_nnx
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.interop.onnx_read import from_onnx
from jaxrnn.interop.onnx_write import to_onnx

__all__ = [
    "ConversionError",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_onnx",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_onnx",
]
