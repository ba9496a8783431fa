"""PyTorch's recurrent layers: `RNN`, `LSTM` and `GRU`.

Each one is `jaxrnn.layers.recurrent.Recurrent` with a cell and PyTorch's constructor.

Axis letters: N batch, T time, D input features, H hidden size, P projection size, R = P or H,
L layers, F directions (2 if bidirectional), G gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from flax import nnx

from jaxrnn import cells
from jaxrnn.cells._check import check_nonlinearity
from jaxrnn.layers import _checks
from jaxrnn.layers.recurrent import LayerOptions, Recurrent


class RNN(Recurrent):
    r"""Elman layers, as ``torch.nn.RNN``.

    .. math::

        h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    The output of a layer is the input of the next. A bidirectional layer concatenates the outputs
    of both directions.

    Args:
        input_size: D, the number of input features.
        hidden_size: H, the number of hidden features, or a sequence of one per layer (for the
            shapes of the states see `jaxrnn.core.state`).
        num_layers: L, the number of stacked layers. Defaults to 1.
        nonlinearity: "tanh" or "relu". Defaults to "tanh".
        bias: If True, add b_ih and b_hh. Defaults to True.
        batch_first: If True, input and output are (N, T, ...) instead of (T, N, ...). States are
            never batch-first. Defaults to False.
        dropout: probability of zeroing an output of any layer but the last, in training. Defaults
            to 0.
        bidirectional: If True, add a reverse direction. Defaults to False.
        rngs: random streams: ``params`` draws the parameters, ``dropout`` the dropout masks.
        options: `LayerOptions`, all optional.

    Parameters of layer k, with suffix s ('' or '_reverse'), each drawn from
    :math:`U(-1/\sqrt{H}, 1/\sqrt{H})`: ``weight_ih_l{k}{s}`` (H, D or F*H), ``weight_hh_l{k}{s}``
    (H, H), ``bias_ih_l{k}{s}`` (H,), ``bias_hh_l{k}{s}`` (H,).

    Raises:
        TypeError, ValueError: for arguments that PyTorch refuses, with its messages.

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

    Differs from PyTorch: `rngs`, `options` and one hidden size per layer are additions; `device` is
    absent. Forward-mode derivatives, second derivatives and `vmap` work.

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
        **options: Unpack[LayerOptions],
    ):
        _checks.no_projection(options)
        check_nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"
        args = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(cells.Elman(nonlinearity), *args, rngs=rngs, **options)


class LSTM(Recurrent):
    r"""Long short-term memory layers, as ``torch.nn.LSTM``.

    .. math::

        i, f, g, o &= W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh} \\
        c_t &= \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g) \\
        h_t &= \sigma(o) \odot \tanh(c_t)
        \qquad \text{with a projection: } W_{hr} (\sigma(o) \odot \tanh(c_t))

    Args:
        proj_size: P, the size of a projected h, smaller than H. Defaults to 0: no projection.

    The other arguments are those of `RNN`, without `nonlinearity`. The state is a pair (h, c), h of
    size R = P or H, c of size H. Parameters are those of `RNN` with first axis 4*H, gates in the
    order i, f, g, o, and ``weight_hr_l{k}{s}`` (P, H) with a projection.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import LSTM
        >>> lstm = LSTM(10, 20, bidirectional=True, batch_first=True, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = lstm(jnp.ones((3, 5, 10)))
        >>> output.shape, h_n.shape, c_n.shape
        ((3, 5, 40), (2, 3, 20), (2, 3, 20))

    Differs from PyTorch: as `RNN`.

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
        **options: Unpack[LayerOptions],
    ):
        args = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(cells.LSTM(), *args, proj_size, rngs=rngs, **options)


class GRU(Recurrent):
    r"""Gated recurrent unit layers, as ``torch.nn.GRU``.

    .. math::

        r &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n &= \tanh(W_{in} x_t + b_{in} + r \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z) \odot n + z \odot h_{t-1}

    The arguments are those of `RNN`, without `nonlinearity`. Parameters are those of `RNN` with
    first axis 3*H, gates in the order r, z, n.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import GRU
        >>> gru = GRU(10, 20, num_layers=2, rngs=nnx.Rngs(0))
        >>> output, h_n = gru(jnp.ones((5, 10)))
        >>> output.shape, h_n.shape
        ((5, 20), (2, 20))

    Differs from PyTorch: as `RNN`; a positional ninth argument is an error at construction.

    Source: K. Cho et al., arXiv:1406.1078, in PyTorch's form, where the reset gate follows the
    product with W_hn.
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
        **options: Unpack[LayerOptions],
    ):
        _checks.no_projection(options)
        args = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(cells.GRU(), *args, rngs=rngs, **options)
