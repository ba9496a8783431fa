"""Recurrent cells: one step of a recurrence, as static data and one pure function.

| base class | a subclass defines | backends |
|---|---|---|
| `Cell` | ``step(z, state)`` on gate pre-activations; the layer multiplies | scan, kernels |
| `GeneralCell` | ``step(x, state, params)`` with any products | scan |
| `LinearCell` | ``coefficients(x, params)`` of ``s = a * s + b`` | scan, associative scan |

Arguments come in the order input, state, parameters. Every cell runs in `jaxrnn.Recurrent` with all
options of a layer:

>>> import jax.numpy as jnp, jaxrnn
>>> from flax import nnx
>>> layer = jaxrnn.Recurrent(jaxrnn.cells.PeepholeLSTM(), 3, 4, rngs=nnx.Rngs(0))
>>> layer(jnp.ones((5, 2, 3)))[0].shape
(5, 2, 4)

`Elman`, `LSTM` and `GRU` are the cells of PyTorch's layers. The others:

| cell | difference | base class |
|---|---|---|
| `PeepholeLSTM` | gates read the cell state | `Cell` |
| `CoupledLSTM`, `CoupledPeepholeLSTM` | forget gate 1 - i | `Cell` |
| `LayerNormLSTM`, `LayerNormGRU` | layer normalisation | `Cell` |
| `IndRNN` | elementwise recurrence without W_hh | `Cell` |
| `GRUResetBefore` | reset gate before the product, as in Keras 1 and ONNX | `GeneralCell` |
| `MinimalGatedUnit` | one gate | `GeneralCell` |
| `MinGRU`, `MinLSTM` | gates without the state, parallel in time | `LinearCell` |
| `LRU` | complex diagonal recurrence, parallel in time | `LinearCell` |
"""

from jaxrnn.cells._check import check
from jaxrnn.cells.base import (
    BaseCell,
    Cell,
    GeneralCell,
    LinearCell,
    Parameter,
    Sizes,
    State,
    StateSpec,
)
from jaxrnn.cells.linear import LRU, MinGRU, MinLSTM
from jaxrnn.cells.standard import GRU, LSTM, Elman
from jaxrnn.cells.variants import (
    CoupledLSTM,
    CoupledPeepholeLSTM,
    GRUResetBefore,
    IndRNN,
    LayerNormGRU,
    LayerNormLSTM,
    MinimalGatedUnit,
    PeepholeLSTM,
)

__all__ = [
    "GRU", "LRU", "LSTM", "BaseCell", "Cell", "CoupledLSTM", "CoupledPeepholeLSTM", "Elman",
    "GRUResetBefore", "GeneralCell", "IndRNN", "LayerNormGRU", "LayerNormLSTM", "LinearCell",
    "MinGRU", "MinLSTM", "MinimalGatedUnit", "Parameter", "PeepholeLSTM", "Sizes", "State",
    "StateSpec", "check",
]  # fmt: skip
