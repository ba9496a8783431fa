r"""`Recurrent`: a stack of recurrent layers of any cell, as a Flax (NNX) module.

The module holds the parameters and checks its arguments. A call continues in the pure function
`jaxrnn.core.stack.run`, which loops over layers and directions and unrolls the cell of each one by
`jaxrnn.core.unroll`; a backend such as `jaxrnn.backends.scan` executes the loop over time. A call
changes nothing in the module, so that a closure over it works under every JAX transformation.

Axis letters: N batch, T time, D input features, H hidden size, P projection size, R = P or H,
L layers, F directions (2 if bidirectional), G gates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import cells, packing
from jaxrnn.backends import select
from jaxrnn.cells.weights import Weights
from jaxrnn.core import dropout as regularization
from jaxrnn.core import masks, params, skips, stack
from jaxrnn.core import state as states
from jaxrnn.layers import _checks
from jaxrnn.layers._module import PyTorchModule, as_key, check_rngs
from jaxrnn.packing import PackedSequence


class LayerOptions(TypedDict, total=False):
    r"""Keyword-only options of every layer, all optional.

    Attributes:
        dtype: dtype of computation, to which input, states and weights are cast. Defaults to None:
            no cast; their dtypes must agree.
        param_dtype: dtype of the parameters. Defaults to float32.
        backend: "auto" or the name of a backend, see `jaxrnn.backends.select`.
        remat: If True, recompute residuals in the backward pass (rematerialisation), which takes
            less memory and one more product per step.
        input_dropout: probability of zeroing an input feature of a layer in training, with one mask
            per sequence. For this and the next four options see `jaxrnn.core.dropout`.
        recurrent_dropout: probability of zeroing a feature of h before the product with W_hh in
            training, with one mask per sequence; for cells with gates.
        zoneout: probability that a unit of the state retains its value at a step in training; its
            expectation acts in evaluation. A number, or one per state.
        weight_drop: probability of zeroing a weight of W_hh in training, with one mask per call.
        weight_norm: store weights as ``<name>_l{k}{s}_g`` and ``<name>_l{k}{s}_v``,
            :math:`W = g V / \|V\|` with one norm per output feature. A sequence of names, or True
            for ``weight_ih`` and ``weight_hh``.
        learn_initial_state: If True, the default initial state is a parameter ``<state>_0_l{k}{s}``
            (S,), initially zero. Resets still start from zeros.
        skip: "residual", "highway" or None: the connection around each layer with as many output
            as input features, see `jaxrnn.core.skips`. A highway has the parameters
            ``weight_highway_l{k}`` (F*R, F*R) and ``bias_highway_l{k}`` (F*R,).
    """

    dtype: Any
    param_dtype: Any
    backend: str
    remat: bool
    input_dropout: float
    recurrent_dropout: float
    zoneout: float | Sequence[float]
    weight_drop: float
    weight_norm: bool | str | Sequence[str]
    learn_initial_state: bool
    skip: str | None


_DEFAULT_OPTIONS: LayerOptions = {
    "dtype": None,
    "param_dtype": jnp.float32,
    "backend": "auto",
    "remat": False,
    "input_dropout": 0.0,
    "recurrent_dropout": 0.0,
    "zoneout": 0.0,
    "weight_drop": 0.0,
    "weight_norm": False,
    "learn_initial_state": False,
    "skip": None,
}

_NOT_PRINTED = ("dtype", "param_dtype", "backend", "remat")
_REPR_DEFAULTS: dict[str, Any] = {
    **{"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False},
    **{"dropout": 0.0, "bidirectional": False},
    **{name: value for name, value in _DEFAULT_OPTIONS.items() if name not in _NOT_PRINTED},
}
"""Arguments after the sizes in the repr, with the default that is not printed."""


class Recurrent(PyTorchModule):
    r"""A stack of recurrent layers of any cell; the base class of `RNN`, `LSTM` and `GRU`.

    Args:
        cell: definition of one time step, see `jaxrnn.cells`.
        proj_size: P, the size of a projected h, for cells with gates. Defaults to 0: no projection.

    The other arguments are those of `RNN`; `bias` also concerns cell parameters whose name starts
    with "bias". The state `hx` is an array for a cell with one state, else a tuple in the cell's
    order; with different hidden sizes each state is a tuple of one array per layer, see
    `jaxrnn.core.state`.

    Parameters of layer k, with suffix s ('' or '_reverse'): for cells with gates
    ``weight_ih_l{k}{s}`` (G*H, D), ``weight_hh_l{k}{s}`` (G*H, R), ``bias_ih_l{k}{s}`` and
    ``bias_hh_l{k}{s}`` (G*H,); for every cell its declared parameters, ``<name>_l{k}{s}``.

    Raises:
        TypeError, ValueError: for arguments that PyTorch refuses, with its messages, and for an
            invalid cell.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> @dataclasses.dataclass(frozen=True)
        ... class OneGate(jaxrnn.Cell):
        ...     gates = ("f", "n")
        ...     def step(self, z, state):
        ...         (h,), (f, n) = state, self.split_gates(z)
        ...         f = jax.nn.sigmoid(f)
        ...         return ((1 - f) * h + f * jnp.tanh(n),)
        >>> layer = jaxrnn.Recurrent(OneGate(), 3, 4, 2, rngs=nnx.Rngs(0))
        >>> layer
        Recurrent(OneGate(), 3, 4, num_layers=2)
        >>> output, h_n = layer(jnp.ones((5, 2, 3)), lengths=jnp.array([5, 3]))
        >>> output.shape, h_n.shape
        ((5, 2, 4), (2, 2, 4))
    """

    mode: str = ""  # PyTorch's name of the kind of layer

    def __init__(
        self,
        cell: cells.BaseCell,
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
        _checks.known_options(type(self).__name__, options, _DEFAULT_OPTIONS)
        check_rngs(rngs)
        cells.check(cell)
        sizes, num_layers = states.hidden_sizes(hidden_size, num_layers)
        smallest = min(sizes) if isinstance(sizes, tuple) else sizes
        # A warning is reported where the layer is constructed: above this constructor, that of a
        # subclass, and those of Flax's metaclass.
        stacklevel = 6 if type(self) is Recurrent else 7
        arguments = (input_size, smallest, num_layers, bias, batch_first, dropout, proj_size)
        _checks.constructor(*arguments, stacklevel=stacklevel)
        settings: Any = _DEFAULT_OPTIONS | options
        select.check_backend(settings["backend"])
        kinds = {kind: settings[kind] for kind in regularization.KINDS}
        self._regularization = regularization.Regularization.from_options(cell, **kinds)
        self.cell = cell
        self.input_size = input_size
        self.hidden_size: Any = sizes  # H, or a tuple of one per layer
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.dtype, self.param_dtype = settings["dtype"], settings["param_dtype"]
        self.backend, self.remat = settings["backend"], settings["remat"]
        self.input_dropout = float(settings["input_dropout"])
        self.recurrent_dropout = float(settings["recurrent_dropout"])
        self.zoneout = _hashable(settings["zoneout"])
        self.weight_drop = float(settings["weight_drop"])
        self.weight_norm = _hashable(settings["weight_norm"])
        self.learn_initial_state = bool(settings["learn_initial_state"])
        self.skip = settings["skip"]
        self.deterministic = False  # set by nnx's train() and eval()
        self._init_parameters(rngs.params())
        random = dropout > 0 or self._regularization is not None
        has_stream = "dropout" in rngs or "default" in rngs
        self.rngs = nnx.data(rngs["dropout"].fork() if random and has_stream else None)

    # Calls

    def __call__(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        rngs: Any = None,
        return_all_states: bool = False,
    ) -> tuple[Any, Any]:
        """Run the layers over sequences.

        Args:
            input: (T, N, D); (N, T, D) if `batch_first`; (T, D) unbatched; or a PackedSequence.
            hx: initial state (F*L, N, R), for `LSTM` the pair (h_0, c_0) with c_0 (F*L, N, H), for
                other cells with several states a tuple; without N if unbatched. Defaults to zeros,
                or the learned initial state. Never broadcast, never batch-first.
            lengths: number of steps of each sequence, integers (N,) in any order, 0 allowed; () if
                unbatched. Padding after it has no effect: outputs are 0 there, the final state is
                that after the last valid step (the initial state for length 0), and the reverse
                direction starts at the last valid step. Traced lengths are clipped to [0, T].
            resets: bool, axes of the input without D. True at t separates step t from step t - 1 in
                every layer, so that the pieces are independent. The forward direction starts from
                zeros at t, and discards `hx` at t = 0; the reverse direction drops its state after
                x_t. Resets in padding have no effect. An environment's `done` after step t is a
                reset at t + 1, see `jaxrnn.sequences.episodes.resets_from_dones`.
            rngs: source of the dropout key in place of the constructor's ``rngs``: an ``nnx.Rngs``
                (its ``dropout`` stream), a stream or a key.
            return_all_states: If True, return the state after every step instead of the final one.

        Returns:
            The output, with the axes of the input and F*R features (a PackedSequence for a
            PackedSequence), and the final state, with the shape of `hx`. If `return_all_states`,
            the states have a leading axis T, (T, F*L, N, R) and for c (T, F*L, N, H), and are 0 at
            padding.

        Raises:
            ValueError, RuntimeError: for wrong axes, sizes or dtypes, with PyTorch's messages; for
                lengths outside [0, T].
            TypeError: if `lengths` are not integers or `resets` not bool.
        """
        packed = input if isinstance(input, PackedSequence) else None
        if packed is not None:
            masks.check_packed_call(lengths=lengths, resets=resets)
            _checks.packed_input(packed.data)
            input, lengths = packing.to_padded(packed)
        x = jnp.asarray(input)
        layout, state = self._check_call(x, hx, time_major=packed is not None)
        sizes = dict(zip(layout, x.shape))
        if lengths is not None:
            lengths = masks.check_lengths(lengths, sizes["T"], sizes.get("N"))
        if resets is not None:
            resets = masks.check_resets(resets, x.shape[:-1])
        options = self._stack_options(layout, self.training, return_all_states=return_all_states)
        if state is None and self.learn_initial_state:
            state = states.broadcast_to_batch(self._learned_state(), sizes.get("N"))
        key = self._dropout_key(options, rngs)
        output, state = stack.run(
            options, self._weights(), x, state, key, lengths, resets, gates=self._highway_gates()
        )
        if packed is not None:
            output = packing.repack(packed, output)
        return output, self._as_hx(state)

    def explain(
        self,
        input: Any,
        *,
        return_all_states: bool = False,
        platform: str | None = None,
    ) -> select.Explanation:
        """Explain the choice of backend for each layer and direction; `print` the result.

        Args:
            input: input of a call, an array or a PackedSequence, or its shape.
            return_all_states: as in a call.
            platform: "cpu", "cuda" (or "gpu"), "rocm" or "tpu", present or not. Defaults to the
                platform of the default device.

        Raises:
            ValueError: if the layer requests a backend that does not support the call, with the
                reason; for an unknown platform.

        Example:
            >>> import jaxrnn
            >>> from flax import nnx
            >>> lstm = jaxrnn.LSTM(3, 4, proj_size=2, rngs=nnx.Rngs(0))
            >>> print(lstm.explain((5, 2, 3), platform="tpu"))
            on tpu:
            layer 0: scan ("auto" tries no other on tpu)
                kernel: projections are not supported
                parallel: LSTM is not a LinearCell
        """
        dtype = self.param_dtype if self.dtype is None else self.dtype
        packed = isinstance(input, PackedSequence)
        if packed:
            input = jax.eval_shape(lambda: packing.to_padded(input)[0])
        shape = getattr(input, "shape", input)
        dtype = jax.dtypes.canonicalize_dtype(getattr(input, "dtype", dtype))
        x: Any = jax.ShapeDtypeStruct(tuple(shape), dtype)
        layout, _ = self._check_call(x, None, time_major=packed)
        sizes = dict(zip(layout, x.shape))
        options = self._stack_options(layout, self.training, return_all_states=return_all_states)
        options = dataclasses.replace(options, platform=platform or options.platform)
        x = jax.ShapeDtypeStruct((sizes["T"], sizes.get("N", 1), sizes["D"]), self.dtype or x.dtype)
        return select.explain(options, self._weights(), x)

    def _check_call(
        self, x: jax.Array, hx: Any, *, time_major: bool = False
    ) -> tuple[str, tuple[Any, ...] | None]:
        """Check input and initial state in PyTorch's order; return the layout and the state.

        If `time_major`, the input is (T, N, D) whatever `batch_first` says.
        """
        kind, names = self._kind, tuple(self.cell.states)
        batched = _checks.layer_input(kind, x)
        layout = "TD" if not batched else "NTD" if self.batch_first and not time_major else "TND"
        hidden, state = (), None
        layered = hx is not None and states.differ_by_layer(self._layer_state_sizes)
        if hx is not None and not layered:
            hidden = _checks.hidden_states(kind, hx, names)
            state = tuple(map(jnp.asarray, hidden[: len(names)]))
            _checks.state_axes(state, batched)
        if self.dtype is None:
            _checks.input_dtype(x, self.param_dtype)
        _checks.input_size(x, self.input_size)
        batch_size = x.shape[layout.index("N")] if batched else 1
        if layered:
            state = states.check_states_by_layer(hx, names, self._state_shapes(batch_size), batched)
        elif state is not None:
            _checks.state_shapes(state, self._state_shapes(batch_size), batched)
            _checks.state_count(kind, hidden, names)
        _checks.sequence_length(x.shape[layout.index("T")])
        if self.dtype is None and state is not None:
            dtypes = self.cell.state_dtypes(self.param_dtype)
            for arrays in zip(*state) if layered else (state,):
                _checks.dtypes("hx", arrays, dtypes)
        return layout, state

    def _stack_options(
        self, layout: str, training: bool, *, return_all_states: bool = False
    ) -> stack.StackOptions:
        """Return the static options of `jaxrnn.core.stack.run`."""
        return stack.StackOptions(
            self.cell,
            bidirectional=bool(self.bidirectional),
            layout=layout,
            dropout=self.dropout if training and self.num_layers > 1 else 0.0,
            remat=self.remat,
            dtype=self.dtype,
            return_all_states=return_all_states,
            backend=self.backend,
            regularization=self._regularization and self._regularization.for_mode(training),
            skip=self.skip,
        )

    def _dropout_key(self, options: stack.StackOptions, rngs: Any) -> Any:
        """Return a key if a mask is drawn; else touch no random stream."""
        drawn = {} if options.regularization is None else options.regularization.random
        if 0 < options.dropout < 1:
            drawn = {"dropout": options.dropout} | drawn
        if not drawn:
            return None
        source = self.rngs if rngs is None else rngs
        if source is None:
            name, p = next(iter(drawn.items()))
            raise ValueError(
                f"{name}={p} is active but there is no random stream: pass rngs= to the call, or "
                "construct the layer with a 'dropout' or 'default' stream in rngs."
            )
        return as_key(source)

    @property
    def training(self) -> bool:
        """True if dropout is active; set by ``train()`` and ``eval()``."""
        return not self.deterministic

    def set_view(self, deterministic: bool | None = None) -> None:
        """Disable dropout if `deterministic` is True, enable it if False; used by ``nnx.view``."""
        if deterministic is not None:
            self.deterministic = deterministic

    # Sizes

    @property
    def output_size(self) -> int:
        """Number of output features, F*R."""
        return self._directions * self.cell.output_features(self._layer_sizes[-1])

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Number of features of each state; a ValueError if they differ between layers."""
        sizes = self._layer_state_sizes
        if states.differ_by_layer(sizes):
            raise ValueError(f"{self!r} has different state sizes in each layer: {list(sizes)}")
        return sizes[0]

    def initial_state(self, batch_size: int | None = None) -> Any:
        """Return the default initial state, zeros or learned; unbatched if N is None."""
        dtypes = self.cell.state_dtypes(self.param_dtype if self.dtype is None else self.dtype)
        if self.learn_initial_state:
            learned = states.broadcast_to_batch(self._learned_state(), batch_size)
            return self._as_hx(states.cast_states(learned, dtypes))
        batch = () if batch_size is None else (batch_size,)
        return self._as_hx(states.zeros(self._state_shapes(*batch), dtypes))

    @property
    def _kind(self) -> str:
        """The name of the layer in error messages."""
        return self.mode.split("_")[0] or type(self.cell).__name__

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _layer_sizes(self) -> tuple[cells.Sizes, ...]:
        """D, H and R of each layer."""
        return states.layer_sizes(
            *(self.cell, self.input_size, self.hidden_size, self.num_layers),
            directions=self._directions,
            proj_size=self.proj_size,
        )

    def _state_shapes(self, *batch: int) -> tuple[Any, ...]:
        return states.state_shapes(self._layer_state_sizes, self._directions, *batch)

    def _as_hx(self, state: tuple[Any, ...]) -> Any:
        """Return a single state as an array, several as a tuple."""
        return state[0] if len(state) == 1 else state

    # Parameters

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of all parameters: PyTorch's in its order, then initial states and highways."""
        return self._parameter_names

    @property
    def all_weights(self) -> list[list[nnx.Param]]:
        """The weights, a list per layer and direction, in PyTorch's order."""
        return [[getattr(self, name) for _, name in pairs] for pairs in self._weight_names]

    def extra_repr(self) -> str:
        """Return the arguments as PyTorch prints them, without those that have their default."""
        cell = "" if self.mode else f"{self.cell}, "
        text = f"{cell}{self.input_size}, {self.hidden_size}"
        for name, default in _REPR_DEFAULTS.items():
            value = getattr(self, name)
            shown = repr(value) if name == "skip" else value
            # Like PyTorch, print 1 and 0 for a boolean argument as they are.
            is_default = value is default if isinstance(default, bool) else value == default
            text += "" if is_default else f", {name}={shown}"
        return text

    def _weights(self) -> tuple[Weights, ...]:
        """Return the weights of each layer and direction for `jaxrnn.core.stack.run`."""
        layers = [
            {field: getattr(self, name)[...] for field, name in pairs}
            for pairs in self._weight_names
        ]
        if self.weight_norm:
            layers = map(regularization.merge_weight_norm, layers)
        return tuple(Weights.from_named(self.cell, named) for named in layers)

    def _highway_gates(self) -> tuple[skips.HighwayGate | None, ...] | None:
        """Return the highway parameters of each layer that has a highway, or None."""
        if self.skip != "highway":
            return None
        gates: list[skips.HighwayGate | None] = []
        for k in range(self.num_layers):
            named = {n: getattr(self, f"{n}_highway_l{k}", None) for n in skips.HighwayGate._fields}
            arrays = {n: param[...] for n, param in named.items() if param is not None}
            gates.append(skips.HighwayGate(**arrays) if arrays else None)
        return tuple(gates)

    def _learned_state(self) -> tuple[Any, ...] | None:
        """Return the learned initial state without a batch axis, or None."""
        if not self.learn_initial_state:
            return None
        layers = [
            tuple(getattr(self, f"{state}_0{suffix}")[...] for state in self.cell.states)
            for suffix in self._suffixes
        ]
        return states.stack_states(layers, self._directions, 0)

    @property
    def _suffixes(self) -> list[str]:
        """Suffixes of parameter names, one per layer and direction."""
        directions = ("", "_reverse")[: self._directions]
        return [f"_l{k}{direction}" for k in range(self.num_layers) for direction in directions]

    def _init_parameters(self, key: jax.Array) -> None:
        # Stored, since computing them takes longer than checking a call.
        self._layer_state_sizes = tuple(map(self.cell.state_sizes, self._layer_sizes))
        has_skip = skips.layers_with_skip(self.skip, self.cell, self._layer_sizes, self._directions)
        drawn = params.init(
            *(key, self.cell, self.input_size, self.hidden_size),
            num_layers=self.num_layers,
            bias=self.bias,
            bidirectional=bool(self.bidirectional),
            proj_size=self.proj_size,
            dtype=self.param_dtype,
        )
        normed = regularization.normalized_names(self.weight_norm, drawn[0].shapes())
        arrays: dict[str, Any] = {}
        weight_names = []
        for suffix, weights in zip(self._suffixes, drawn):
            named = weights.named()
            if normed:
                named = regularization.split_weight_norm(named, normed)
            pairs = tuple((field, _parameter_name(field, suffix, normed)) for field in named)
            arrays |= {name: named[field] for field, name in pairs}
            weight_names.append(pairs)
        self._weight_names = tuple(weight_names)
        if self.learn_initial_state:
            dtypes = self.cell.state_dtypes(self.param_dtype)
            for index, suffix in enumerate(self._suffixes):
                sizes = self._layer_state_sizes[index // self._directions]
                for state, size, dtype in zip(self.cell.states, sizes, dtypes):
                    arrays[f"{state}_0{suffix}"] = jnp.zeros(size, dtype)
        for k, sizes in enumerate(self._layer_sizes):
            if self.skip == "highway" and has_skip[k]:
                gate_key = jax.random.fold_in(key, 2**32 - 1 - k)
                gate = skips.init_gate(gate_key, sizes.D, bias=self.bias, dtype=self.param_dtype)
                named = gate._asdict().items()
                arrays |= {f"{n}_highway_l{k}": a for n, a in named if a is not None}
        for name, array in arrays.items():
            setattr(self, name, nnx.Param(array))
        self._parameter_names = tuple(arrays)


def _hashable(option: Any) -> Any:
    """Return a sequence other than a string as a tuple."""
    return tuple(option) if isinstance(option, (tuple, list)) else option


def _parameter_name(field: str, suffix: str, normed: Sequence[str]) -> str:
    """Return the parameter name of a weight: "weight_hh_l0", or "weight_hh_l0_g" if normalised."""
    weight, part = field[:-2], field[-2:]
    normalised = weight in normed and part in ("_g", "_v")
    return f"{weight}{suffix}{part}" if normalised else field + suffix
