"""What one step of a recurrent cell is: data, and one small pure function.

| kind | what it writes | who runs it |
|---|---|---|
| `Cell` | ``step(z, state)`` on gate inputs that the recurrence computes | kernels, scan |
| `GeneralCell` | ``step(x, state, params)``, any products inside | scan |
| `LinearCell` | ``coefficients(x, params)``, for ``s = a * s + b`` | associative scan, scan |

In every function of a cell what comes in is first, then the state, then the parameters. Each kind
runs in `jaxrnn.Recurrent` with all that the layers can do. `Elman`, `LSTM` and `GRU` are the cells
of PyTorch's layers.
"""

from jaxrnn.cells.builtin import GRU, LSTM, Elman
from jaxrnn.cells.checking import check
from jaxrnn.cells.gated import Cell
from jaxrnn.cells.general import GeneralCell, LinearCell
from jaxrnn.cells.protocol import AnyCell, Parameter, Sizes, State, StateSpec

__all__ = [
    "GRU",
    "LSTM",
    "AnyCell",
    "Cell",
    "Elman",
    "GeneralCell",
    "LinearCell",
    "Parameter",
    "Sizes",
    "State",
    "StateSpec",
    "check",
]
