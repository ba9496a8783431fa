"""Recurrent layers and cells as Flax (NNX) modules.

Models made from them are in `jaxrnn.layers.heads`, `jaxrnn.layers.attention` and
`jaxrnn.layers.seq2seq`, which this package does not import.
"""

from jaxrnn.layers.recurrent import LayerOptions, Recurrent
from jaxrnn.layers.single_step import GRUCell, LSTMCell, RecurrentCell, RNNCell
from jaxrnn.layers.standard import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "LayerOptions",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
]
