"""What one step of a recurrent cell is: data, and one small pure function.

| kind | what it writes | who runs it |
|---|---|---|
| `Cell` | ``step(z, state)`` on gate inputs that the recurrence computes | kernels, scan |
| `GeneralCell` | ``step(x, state, params)``, any products inside | scan |
| `LinearCell` | ``coefficients(x, params)``, for ``s = a * s + b`` | scan, associative scan |

In every function of a cell what comes in is first, then the state, then the parameters. Each kind
runs in `jaxrnn.Recurrent` with all that the layers can do. `Elman`, `LSTM` and `GRU` are the cells
of PyTorch's layers; beside them there are

| cell | what it is | kind |
|---|---|---|
| `PeepholeLSTM` | gates that see the cell state | `Cell` |
| `CoupledLSTM`, `CoupledPeepholeLSTM` | ``f = 1 - i`` | `Cell` |
| `LayerNormLSTM`, `LayerNormGRU` | layer normalisation | `Cell` |
| `IndRNN` | no recurrent matrix | `Cell` |
| `GRUResetBefore` | the reset before the product: Keras 1, ONNX's default | `GeneralCell` |
| `MinimalGatedUnit` | one gate | `GeneralCell` |
| `MinGRU`, `MinLSTM` | gates without the state, parallel in time | `LinearCell` |
| `LRU` | complex and diagonal, parallel in time | `LinearCell` |
"""

from jaxrnn.cells._check import check
from jaxrnn.cells.base import BaseCell, Parameter, Sizes, State, StateSpec
from jaxrnn.cells.gated import Cell
from jaxrnn.cells.general import GeneralCell, LinearCell
from jaxrnn.cells.linear import LRU, MinGRU, MinLSTM
from jaxrnn.cells.normalised import LayerNormGRU, LayerNormLSTM
from jaxrnn.cells.standard import GRU, LSTM, Elman
from jaxrnn.cells.variants import (
    CoupledLSTM,
    CoupledPeepholeLSTM,
    GRUResetBefore,
    IndRNN,
    MinimalGatedUnit,
    PeepholeLSTM,
)

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "BaseCell",
    "Cell",
    "CoupledLSTM",
    "CoupledPeepholeLSTM",
    "Elman",
    "GRUResetBefore",
    "GeneralCell",
    "IndRNN",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LinearCell",
    "MinGRU",
    "MinLSTM",
    "MinimalGatedUnit",
    "Parameter",
    "PeepholeLSTM",
    "Sizes",
    "State",
    "StateSpec",
    "check",
]
