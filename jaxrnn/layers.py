"""`RNN`, `LSTM`, `GRU`: PyTorch's recurrent layers as thin Flax (NNX) modules.

A layer holds parameters under PyTorch's names and checks its arguments; the arithmetic is
`jaxrnn.stack.run`, a pure function. A forward pass changes nothing in the module, so a closure
over one works under every transformation of JAX.

Axis letters: N batch, T time, D input features, H hidden size, P projection, R = P or H,
L layers, F directions (2 if bidirectional), G gates.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import backends, cells, checks, stack
from jaxrnn.recurrence import Weights


class Options(TypedDict, total=False):
    """The keyword-only options of every layer, beside ``rngs``.

    Attributes:
        dtype: what to compute in; input, states and weights are cast to it. None, the default:
            they must agree, and are used as they are.
        param_dtype: the dtype of the parameters, float32 by default.
        backend: who runs the loop, see `jaxrnn.backends`; "auto" by default.
        remat: less memory for the gradient at the cost of one product a step, see
            `jaxrnn.recurrence.Plan`; False by default.
    """

    dtype: Any
    param_dtype: Any
    backend: str
    remat: bool


class _Recurrent(nnx.Module):
    """What the layers share: the constructor, the parameters and the call."""

    mode: str = ""  # PyTorch's name of the kind of layer

    def __init__(
        self,
        cell: cells.Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int = 0,
        *,
        rngs: nnx.Rngs,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        backend: str = "auto",
        remat: bool = False,
        **unknown: Any,
    ):
        checks.no_such_argument(type(self).__name__, unknown)
        checks.constructor(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size
        )
        backends.check(backend)
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.backend = backend
        self.remat = remat
        self.deterministic = False  # the attribute that nnx's train() and eval() switch

        drawn = stack.init(
            rngs.params(),
            cell,
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            bidirectional=bool(bidirectional),
            proj_size=proj_size,
            dtype=param_dtype,
        )
        names = []
        for index, weights in enumerate(drawn):
            layer, direction = divmod(index, 2 if bidirectional else 1)
            suffix = f"_l{layer}{'_reverse' if direction else ''}"
            there = {f: value for f, value in weights._asdict().items() if value is not None}
            for field, value in there.items():
                setattr(self, field + suffix, nnx.Param(value))
            names.append(tuple((field, field + suffix) for field in there))
        self._names = tuple(names)
        has_stream = "dropout" in rngs or "default" in rngs
        self.rngs = nnx.data(rngs["dropout"].fork() if dropout > 0 and has_stream else None)

    @property
    def training(self) -> bool:
        """Whether dropout is on; switched by ``train()`` and ``eval()``."""
        return not self.deterministic

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of the parameters, in PyTorch's order."""
        return tuple(name for names in self._names for _, name in names)

    @property
    def all_weights(self) -> list[list[nnx.Param]]:
        """The parameters, a list for each layer and direction, in PyTorch's order."""
        return [[getattr(self, name) for _, name in names] for names in self._names]

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view`` calls: switch dropout off (True) or on (False).

        Args:
            deterministic: if True, disables dropout.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def extra_repr(self) -> str:
        """The arguments as PyTorch prints them: only those that are not the default."""
        text = f"{self.input_size}, {self.hidden_size}"
        for name, default in (
            ("proj_size", 0),
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0),
            ("bidirectional", False),
        ):
            value = getattr(self, name)
            text += f", {name}={value}" if value != default else ""
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    __str__ = __repr__

    def __call__(self, input: Any, hx: Any = None, *, rngs: Any = None) -> tuple[jax.Array, Any]:
        """Run the layer over sequences.

        Args:
            input: (T, N, D); (N, T, D) if `batch_first`; (T, D) unbatched.
            hx: the initial state (F*L, N, R), for `LSTM` the pair (h_0, c_0) with c_0
                (F*L, N, H); without N if the input has no batch; None for zeros. Never
                broadcast, never batch-first.
            rngs: where dropout takes its key from, instead of the constructor's ``rngs``: an
                ``nnx.Rngs`` (its ``dropout`` stream), a stream or a key.

        Returns:
            The output, axes as the input's with F*R features, and the state after the last step,
            shaped as `hx`.

        Raises:
            ValueError, RuntimeError: for wrong axes, sizes or dtypes, in PyTorch's words.
        """
        x = jnp.asarray(input)
        pair = len(self.cell.states) == 2
        layout, states = self._check(x, hx)
        weights = tuple(
            Weights(**{field: getattr(self, name)[...] for field, name in names})
            for names in self._names
        )
        plan = self._stack(layout)
        key = self._dropout_key(plan.dropout, rngs)
        output, last = stack.run(plan, weights, x, states, key)
        return output, last if pair else last[0]

    def initial_state(self, batch_size: int | None = None) -> Any:
        """The state of zeros that None stands for, shaped as `hx` of a call.

        Args:
            batch_size: N; None for an unbatched state.
        """
        batch = () if batch_size is None else (batch_size,)
        dtype = self.param_dtype if self.dtype is None else self.dtype
        states = tuple(jnp.zeros(shape, dtype) for shape in self._state_shapes(*batch))
        return states if len(states) == 2 else states[0]

    def _state_shapes(self, *batch: int) -> list[tuple[int, ...]]:
        """The shapes of the states, h first."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        return [(rows, *batch, size) for size, _ in zip(sizes, self.cell.states)]

    def _stack(self, layout: str) -> stack.Stack:
        active = self.training and self.num_layers > 1
        dropout = self.dropout if active else 0.0
        both = bool(self.bidirectional)
        return stack.Stack(self.cell, both, layout, dropout, self.remat, self.dtype)

    def _check(self, x: jax.Array, hx: Any) -> tuple[str, tuple[jax.Array, ...] | None]:
        """Check the call, in PyTorch's order; the axes of the input, and the states."""
        kind = self.mode.split("_")[0]
        batched = checks.layer_input(kind, x)
        layout = "TD" if not batched else "NTD" if self.batch_first else "TND"
        given, states = (), None
        if hx is not None:
            if len(self.cell.states) == 2:
                given = checks.two_states(hx)
            else:
                checks.one_state(hx)
                given = (hx,)
            states = tuple(map(jnp.asarray, given[: len(self.cell.states)]))
            checks.state_axes(states, batched)
        if self.dtype is None:
            checks.input_dtype(x, self.param_dtype)
        checks.input_size(x, self.input_size)
        if states is not None:
            batch = x.shape[layout.index("N")] if batched else 1
            checks.state_shapes(states, self._state_shapes(batch), batched)
            checks.state_count(given, len(states))
        checks.sequence_length(x.shape[layout.index("T")])
        if self.dtype is None and states is not None:
            checks.state_dtypes(states, self.param_dtype)
        return layout, states

    def _dropout_key(self, dropout: float, rngs: Any) -> Any:
        """A key where randomness is needed; otherwise no random stream is touched."""
        if not 0 < dropout < 1:
            return None
        source = self.rngs if rngs is None else rngs
        if source is None:
            raise ValueError(
                f"dropout={dropout} is active but there is no random stream: pass rngs= to the "
                "call, or give the constructor rngs with a 'dropout' or 'default' stream"
            )
        if isinstance(source, nnx.Rngs):
            source = source["dropout"]
        return source() if callable(source) else source


class RNN(_Recurrent):
    r"""Elman layers, ``torch.nn.RNN`` for JAX.

    .. code-block:: text

        h_t = tanh(x_t @ W_ih.T + b_ih + h_{t-1} @ W_hh.T + b_hh)      or relu

    The output of a layer is the input of the next; with two directions, the outputs of both side
    by side.

    Args:
        input_size: D, the number of input features.
        hidden_size: H, the number of hidden features.
        num_layers: L, layers one on another.
        nonlinearity: "tanh" or "relu".
        bias: whether there are b_ih and b_hh.
        batch_first: input and output are (N, T, ...) and not (T, N, ...); never the states.
        dropout: the probability of zeroing each output of any layer but the last, in training.
        bidirectional: a second direction, from the last step to the first.
        rngs: the streams for the parameters (``params``) and for dropout (``dropout``).
        options: ``dtype``, ``param_dtype``, ``backend``, ``remat``, see `Options`.

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

    Differs from PyTorch: `rngs`, `dtype`, `param_dtype`, `backend` and `remat` are ours, and
    there is no `device`. Forward mode, double backward and `vmap` work.

    Source: J. L. Elman, Finding structure in time, Cognitive Science 14 (1990).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
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
        checks.no_projection(options)
        checks.nonlinearity(nonlinearity)
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


class LSTM(_Recurrent):
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
        hidden_size: int,
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


class GRU(_Recurrent):
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
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[Options],
    ):
        checks.no_projection(options)
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
