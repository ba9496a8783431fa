"""Cells across libraries: ours in the loops of Flax, those of Flax in ours.

| adapter | from | to |
|---|---|---|
| `ToNnx` | `RecurrentCell`, `LSTMCell`, ... | a cell for `nnx.RNN` and `nnx.Bidirectional` |
| `ToLinen` | a cell of `jaxrnn.cells` | a cell for ``linen.RNN`` |
| `FromNnx` | an `nnx.RNNCellBase`, or a function that makes one | a cell for `Recurrent` |
| `FromLinen` | a ``linen.RNNCellBase`` | a cell for `Recurrent` |

These run a cell as it is. Where an LSTM or a GRU is to become one of the other library, with its
weights, `jaxrnn.interop.flax` does that.
"""

from jaxrnn.interop.adapters_inward import FromLinen, FromNnx
from jaxrnn.interop.adapters_outward import ToLinen, ToNnx

__all__ = ["FromLinen", "FromNnx", "ToLinen", "ToNnx"]
