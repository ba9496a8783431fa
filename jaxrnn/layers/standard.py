"""`RNN`, `LSTM`, `GRU`: PyTorch's recurrent layers, named and documented.

All they do is done by `jaxrnn.layers.recurrent.Recurrent`, which holds the parameters and checks the
arguments, and by the pure functions under it.

Axis letters: N batch, T time, D input features, H hidden size, P projection, R = P or H,
L layers, F directions (2 if bidirectional), G gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from flax import nnx

from jaxrnn import cells
from jaxrnn.cells._check import check_nonlinearity
from jaxrnn.layers import _checks as torch_checks
from jaxrnn.layers.options import Options
from jaxrnn.layers.recurrent import Recurrent


class RNN(Recurrent):
    r"""Elman layers, ``torch.nn.RNN`` for JAX.

    .. code-block:: text

        h_t = tanh(x_t @ W_ih.T + b_ih + h_{t-1} @ W_hh.T + b_hh)      or relu

    The output of a layer is the input of the next; with two directions, the outputs of both side
    by side.

    Args:
        input_size: D, the number of input features.
        hidden_size: H, the number of hidden features; or several, one for each layer, with states
            as `jaxrnn.core.state` says.
        num_layers: L, layers one on another.
        nonlinearity: "tanh" or "relu".
        bias: whether there are b_ih and b_hh.
        batch_first: input and output are (N, T, ...) and not (T, N, ...); never the states.
        dropout: the probability of zeroing each output of any layer but the last, in training.
        bidirectional: a second direction, from the last step to the first.
        rngs: the streams for the parameters (``params``) and for dropout (``dropout``).
        options: ``dtype``, ``param_dtype``, ``backend``, ``remat``, and regularisers, a learned
            initial state and skips, all off by default, see `Options`.

    Parameters, for layer k and suffix s ('' or '_reverse'), each drawn from
    U(-1/sqrt(H), 1/sqrt(H)): ``weight_ih_l{k}{s}`` (H, D or F*H), ``weight_hh_l{k}{s}`` (H, H),
    ``bias_ih_l{k}{s}`` (H,), ``bias_hh_l{k}{s}`` (H,).

    Raises:
        TypeError, ValueError: for arguments that PyTorch refuses, in its words.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import RNN
        >>> rnn = RNN(10, 20, 2, rngs=nnx.Rngs(0))
        >>> rnn
        RNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(jnp.ones((5, 3, 10)), jnp.zeros((2, 3, 20)))
        >>> output.shape, h_n.shape
        ((5, 3, 20), (2, 3, 20))

    Differs from PyTorch: `rngs`, the options and several hidden sizes are ours, and there is no
    `device`. Forward mode, double backward and `vmap` work.

    Source: J. L. Elman, Finding structure in time, Cognitive Science 14 (1990).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[Options],
    ):
        torch_checks.no_projection(options)
        check_nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            cells.Elman(nonlinearity),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            rngs=rngs,
            **options,
        )


class LSTM(Recurrent):
    r"""Long short-term memory layers, ``torch.nn.LSTM`` for JAX.

    .. code-block:: text

        i, f, g, o = split(x_t @ W_ih.T + b_ih + h_{t-1} @ W_hh.T + b_hh)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)          with a projection: (sigmoid(o) * tanh(c_t)) @ W_hr.T

    Args:
        proj_size: P, the size of h if it is projected, less than H; 0 for no projection.

    The other arguments are those of `RNN`, but `nonlinearity`. The state is a pair (h, c), h of
    size R (P or H), c of size H. Parameters are those of `RNN` with 4*H rows, gates in the order
    i, f, g, o, and ``weight_hr_l{k}{s}`` (P, H) if there is a projection.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import LSTM
        >>> lstm = LSTM(10, 20, bidirectional=True, batch_first=True, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = lstm(jnp.ones((3, 5, 10)))
        >>> output.shape, h_n.shape, c_n.shape
        ((3, 5, 40), (2, 3, 20), (2, 3, 20))

    Differs from PyTorch: as `RNN` does.

    Source: S. Hochreiter, J. Schmidhuber, Long short-term memory, Neural Computation 9 (1997);
    projection: H. Sak et al., arXiv:1402.1128.
    """

    mode = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[Options],
    ):
        super().__init__(
            cells.LSTM(),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            rngs=rngs,
            **options,
        )


class GRU(Recurrent):
    r"""Gated recurrent unit layers, ``torch.nn.GRU`` for JAX.

    .. code-block:: text

        r = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn))
        h_t = (1 - z) * n + z * h_{t-1}

    The arguments are those of `RNN`, but `nonlinearity`. Parameters are those of `RNN` with 3*H
    rows, gates in the order r, z, n.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import GRU
        >>> gru = GRU(10, 20, num_layers=2, rngs=nnx.Rngs(0))
        >>> output, h_n = gru(jnp.ones((5, 10)))
        >>> output.shape, h_n.shape
        ((5, 20), (2, 20))

    Differs from PyTorch: as `RNN` does; a positional `proj_size` in the ninth place is an error
    at once.

    Source: K. Cho et al., arXiv:1406.1078, in PyTorch's form (the reset gate acts after the
    product with W_hn).
    """

    mode = "GRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[Options],
    ):
        torch_checks.no_projection(options)
        super().__init__(
            cells.GRU(),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            rngs=rngs,
            **options,
        )
