"""Heads on recurrent layers, named by what goes in and what comes out.

| what | head | x | y |
|---|---|---|---|
| one-to-one | `OneToOne` | (N, D) | (N, O) |
| one-to-many | `OneToMany` | (N, D) | (N, T, O) |
| many-to-one | `ManyToOne` | (N, T, D) | (N, O) |
| many-to-many, aligned | `ManyToMany` | (N, T, D) | (N, T, O) |
| many-to-many, encoder-decoder | `jaxrnn.layers.seq2seq.Seq2Seq` | tokens (N, S) | logits (N, T, V) |

Each of them stands on any layer of this package: any cell, layers and directions, with or without a
projection, batch-first or not. The parameters are those of the layer under ``rnn.`` and of
a linear one, ``fc.weight`` (O, F*R) and ``fc.bias`` (O,), as a PyTorch module with these two
attributes has them.

Thin uses of them, each with its loss: `Regressor` and `Classifier` are many-to-one,
`CharacterModel` is many-to-many.

Axis letters: N batch, T time, D input features, O output features, H hidden size, R the size of h,
L layers, F directions (2 if bidirectional).
"""

from jaxrnn import GRU, LSTM, RNN
from jaxrnn.layers.heads import ManyToMany, ManyToOne, OneToMany, OneToOne
from jaxrnn.layers.linear import linear
from jaxrnn.layers.uses import CharacterModel, Classifier, Regressor

LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
"""The layers by the names that the commands have for them."""

__all__ = [
    "LAYERS",
    "CharacterModel",
    "Classifier",
    "ManyToMany",
    "ManyToOne",
    "OneToMany",
    "OneToOne",
    "Regressor",
    "linear",
]
