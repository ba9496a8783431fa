"""PyTorch's recurrent layers for JAX: the same shapes, names, weights and numbers.

>>> import jax.numpy as jnp, jaxrnn
>>> from flax import nnx
>>> lstm = jaxrnn.LSTM(10, 20, num_layers=2, rngs=nnx.Rngs(0))
>>> output, (h_n, c_n) = lstm(jnp.ones((5, 3, 10)))
>>> output.shape, h_n.shape
((5, 3, 20), (2, 3, 20))
"""

from typing import TYPE_CHECKING, Any

from jaxrnn import cells
from jaxrnn.cells import Cell, GeneralCell, LinearCell, Parameter, StateSpec
from jaxrnn.core.unroll import unroll
from jaxrnn.interop.torch import load_safetensors, load_state_dict, save_safetensors, state_dict
from jaxrnn.layers.recurrent import Recurrent
from jaxrnn.layers.single_step import GRUCell, LSTMCell, RecurrentCell, RNNCell
from jaxrnn.layers.standard import GRU, LSTM, RNN
from jaxrnn.packing import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)

if TYPE_CHECKING:
    from jaxrnn.training import fit

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Cell",
    "GRUCell",
    "GeneralCell",
    "LSTMCell",
    "LinearCell",
    "PackedSequence",
    "Parameter",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "StateSpec",
    "cells",
    "fit",
    "load_safetensors",
    "load_state_dict",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "save_safetensors",
    "state_dict",
    "unpack_sequence",
    "unpad_sequence",
    "unroll",
]


def __getattr__(name: str) -> Any:
    """Import `fit` on first use, which keeps `import jaxrnn` fast."""
    if name == "fit":
        from jaxrnn.training import fit

        return fit
    raise AttributeError(f"module 'jaxrnn' has no attribute {name!r}")
