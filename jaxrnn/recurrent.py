"""`Recurrent`: any cell as a stack of layers, a thin Flax (NNX) module around the pure functions.

It holds parameters under PyTorch's names and checks its arguments; the arithmetic is
`jaxrnn.stack.run`. A forward pass changes nothing in the module, so a closure over one works
under every transformation of JAX.

Axis letters: N batch, T time, D input features, H hidden size, P projection, R = P or H,
L layers, F directions (2 if bidirectional), G gates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import (
    backends,
    cells,
    checks,
    packing,
    ragged,
    regularisers,
    skips,
    stack,
    states,
    tuning,
)
from jaxrnn.packing import PackedSequence
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
        input_dropout: the probability of zeroing each input feature of each layer, in training, for
            a whole row: the same features at every step, for both directions. For this and the
            next four see `jaxrnn.regularisers`; all are 0 or False by default.
        recurrent_dropout: that of zeroing each feature of h on its way into W_hh, in training, for
            a whole row; for cells of gates.
        zoneout: that of each unit of the state to stay as it is, at each step in training, by its
            expectation else; a number, or one for each state.
        weight_drop: that of zeroing each weight of W_hh, in training, once for a whole call.
        weight_norm: True, or names of weights out of ("weight_ih", "weight_hh") and those that the
            cell declares: hold each as ``<name>_l{k}{s}_g`` and ``_v``, by rows
            ``W = g * V / |V|``.
        learn_initial_state: hold the state that None stands for as parameters,
            ``<state>_0_l{k}{s}`` (S,) for each layer and direction, zeros at the beginning. A reset
            still begins from zeros.
        skip: None, "residual" or "highway": what leads around each layer that has as many features
            going in as coming out, see `jaxrnn.skips`. A highway adds
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
    weight_norm: bool | Sequence[str]
    learn_initial_state: bool
    skip: str | None


class Recurrent(nnx.Module):
    """A stack of recurrent layers of any cell; `RNN`, `LSTM` and `GRU` are three of them.

    Args:
        cell: what one step is, see `jaxrnn.cells`.
        input_size: D, the number of input features.
        hidden_size: H, the number of hidden features; or several, one for each layer.
        num_layers: L, layers one on another; with several sizes, their number or 1, the default.
        bias: whether there are biases: b_ih and b_hh, and parameters of the cell whose name begins
            with "bias".
        batch_first: input and output are (N, T, ...) and not (T, N, ...); never the states.
        dropout: the probability of zeroing each output of any layer but the last, in training.
        bidirectional: a second direction, from the last step to the first.
        proj_size: P, the size of h if it is projected; for cells of gates.
        rngs: the streams for the parameters (``params``) and for dropout (``dropout``).
        options: ``dtype``, ``param_dtype``, ``backend``, ``remat`` and more, see `Options`.

    The state, `hx`, is an array for a cell of one state, and for one of several a tuple of them, in
    the cell's order; where the layers' states differ in size, each is a tuple of one array a layer,
    see `jaxrnn.states`. Parameters, for layer k and suffix s ('' or '_reverse'): of a cell of gates
    ``weight_ih_l{k}{s}`` (G*H, D), ``weight_hh_l{k}{s}`` (G*H, R), ``bias_ih_l{k}{s}`` and
    ``bias_hh_l{k}{s}`` (G*H,); of any cell those that it declares, ``<name>_l{k}{s}``.

    Raises:
        TypeError, ValueError: for arguments that PyTorch refuses, in its words; for what is no
            cell, or one whose functions do not give what they should.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> @dataclasses.dataclass(frozen=True)
        ... class MinimalGatedUnit(jaxrnn.Cell):
        ...     gates = ("f", "n")
        ...     def step(self, z, state):
        ...         (h,), (f, n) = state, self.split_gates(z)
        ...         f = jax.nn.sigmoid(f)
        ...         return ((1 - f) * h + f * jnp.tanh(n),)
        >>> layer = jaxrnn.Recurrent(MinimalGatedUnit(), 3, 4, 2, rngs=nnx.Rngs(0))
        >>> layer
        Recurrent(MinimalGatedUnit(), 3, 4, num_layers=2)
        >>> output, h_n = layer(jnp.ones((5, 2, 3)), lengths=jnp.array([5, 3]))
        >>> output.shape, h_n.shape
        ((5, 2, 4), (2, 2, 4))
    """

    mode: str = ""  # PyTorch's name of the kind of layer

    def __init__(
        self,
        cell: cells.AnyCell,
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
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        backend: str = "auto",
        remat: bool = False,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        weight_drop: float = 0.0,
        weight_norm: bool | Sequence[str] = False,
        learn_initial_state: bool = False,
        skip: str | None = None,
        **unknown: Any,
    ):
        checks.no_such_argument(type(self).__name__, unknown)
        cells.check(cell)
        hidden_size, num_layers = states.hidden_sizes(hidden_size, num_layers)
        least: Any = hidden_size if not isinstance(hidden_size, tuple) else min(hidden_size)
        checks.constructor(
            *(input_size, least, num_layers, bias, batch_first, dropout, proj_size),
            above=0 if type(self) is Recurrent else 1,
        )
        backends.check(backend)
        self.regularisers = regularisers.Regularisers.of(
            cell,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            weight_drop=weight_drop,
        )
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
        self.input_dropout = float(input_dropout)
        self.recurrent_dropout = float(recurrent_dropout)
        self.zoneout = tuple(zoneout) if isinstance(zoneout, (tuple, list)) else zoneout
        self.weight_drop = float(weight_drop)
        self.weight_norm = (
            weight_norm if isinstance(weight_norm, (bool, str)) else tuple(weight_norm)
        )
        self.learn_initial_state = bool(learn_initial_state)
        self.skip = skip
        self.deterministic = False  # the attribute that nnx's train() and eval() switch

        # Of each layer; kept, for to read them from the cell takes longer than to check a call.
        self._each_state_sizes = tuple(cell.state_sizes(sizes) for sizes in self.layer_sizes)
        around = skips.places(skip, cell, self.layer_sizes, self.directions)
        key = rngs.params()
        drawn = stack.init(
            key,
            cell,
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            bidirectional=bool(bidirectional),
            proj_size=proj_size,
            dtype=param_dtype,
        )
        normed = regularisers.normed_names(weight_norm, _shapes(drawn[0].named()))
        names = []
        for suffix, weights in zip(self._suffixes, drawn):
            there = weights.named()
            if normed:
                there = regularisers.taken_apart(there, normed)
            names.append(tuple((field, _name(field, suffix, normed)) for field in there))
            for (_, name), value in zip(names[-1], there.values()):
                setattr(self, name, nnx.Param(value))
        self._names = tuple(names)
        self._learned = self._hold_initial_state() if learn_initial_state else ()
        self._gates = self._hold_gates(key, around) if skip == "highway" else ()
        random = dropout > 0 or self.regularisers is not None
        has_stream = "dropout" in rngs or "default" in rngs
        self.rngs = nnx.data(rngs["dropout"].fork() if random and has_stream else None)

    @property
    def training(self) -> bool:
        """Whether dropout is on; switched by ``train()`` and ``eval()``."""
        return not self.deterministic

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The features of each state: R for h, H for each other one, or what the cell declares.

        Raises:
            ValueError: where they differ from layer to layer.
        """
        each = self._each_state_sizes
        if states.layered(each):
            raise ValueError(f"{self!r} has states of other sizes in each layer: {list(each)}")
        return each[0]

    @property
    def directions(self) -> int:
        """F."""
        return 2 if self.bidirectional else 1

    @property
    def layer_sizes(self) -> tuple[cells.Sizes, ...]:
        """D, H and R of each layer."""
        return states.layer_sizes(
            *(self.cell, self.input_size, self.hidden_size, self.num_layers),
            directions=self.directions,
            proj_size=self.proj_size,
        )

    @property
    def _suffixes(self) -> list[str]:
        """Of the names of the parameters, for each layer and direction."""
        ways = ("", "_reverse")[: self.directions]
        return [f"_l{layer}{way}" for layer in range(self.num_layers) for way in ways]

    @property
    def output_size(self) -> int:
        """F*R, the features of the output."""
        return self.directions * self.cell.output_features(self.layer_sizes[-1])

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of the parameters, in PyTorch's order; those it does not have follow."""
        names = tuple(name for names in self._names for _, name in names)
        learned = tuple(name for names in self._learned for name in names)
        gates = tuple(name for names in self._gates for name in names)
        return names + learned + gates

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
        cell = "" if self.mode else f"{self.cell}, "
        text = f"{cell}{self.input_size}, {self.hidden_size}"
        for name, default in (
            ("proj_size", 0),
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0),
            ("bidirectional", False),
            ("input_dropout", 0),
            ("recurrent_dropout", 0),
            ("zoneout", 0),
            ("weight_drop", 0),
            ("weight_norm", False),
            ("learn_initial_state", False),
            ("skip", None),
        ):
            value = getattr(self, name)
            shown = repr(value) if name == "skip" else value
            text += f", {name}={shown}" if value != default else ""
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    __str__ = __repr__

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
        """Run the layer over sequences.

        Args:
            input: (T, N, D); (N, T, D) if `batch_first`; (T, D) unbatched; or a PackedSequence.
            hx: the initial state (F*L, N, R), for `LSTM` the pair (h_0, c_0) with c_0
                (F*L, N, H), for a cell of several states a tuple of them; without N if the input
                has no batch; None for zeros, or for the learned state. Never broadcast, never
                batch-first. With several hidden sizes see `jaxrnn.states`.
            lengths: the steps of each row, integers (N,) in any order, 0 allowed; a single number
                if the input has no batch. What is past them is padding and reaches nothing: the
                output there is 0, and the last state is the one after the row's last step (the
                initial one for length 0). The reverse direction begins at the last step. Traced
                lengths are taken as 0 below 0 and as T beyond T.
            resets: bool, axes as the input's without D. True at t cuts the row before step t, in
                every layer, so that its pieces are independent. The forward direction begins at t
                from zeros (at t = 0 it discards `hx`); the reverse direction, which comes from
                T - 1, drops its state after x_t, before x_{t-1}. Past a row's length they do
                nothing. An environment's `done`, given after step t, is a reset at t + 1:
                `jaxrnn.episodes.resets_from_dones`.
            rngs: where dropout and the regularisers take their key from, instead of the
                constructor's ``rngs``: an ``nnx.Rngs`` (its ``dropout`` stream), a stream or a key.
            return_all_states: give out the states after every step instead of those after the
                last.

        Returns:
            The output, axes as the input's with F*R features (a PackedSequence for one), and the
            state after the last step, shaped as `hx`. With `return_all_states` that state has a
            leading axis T, (T, F*L, N, R) and for c (T, F*L, N, H), zero past a row's length.

        Raises:
            ValueError, RuntimeError: for wrong axes, sizes or dtypes, in PyTorch's words; for
                lengths below 0 or beyond T.
            TypeError: for lengths that are no integers, or resets that are not bool.
        """
        packed = input if isinstance(input, PackedSequence) else None
        if packed is not None:
            ragged.nothing_beside_packed(lengths=lengths, resets=resets)
            checks.packed_input(packed.data)
            input, lengths = packing.padded(packed)
        x = jnp.asarray(input)
        layout, initial = self.check(x, hx, time_major=packed is not None)
        sizes = dict(zip(layout, x.shape))
        if lengths is not None:
            lengths = ragged.check_lengths(lengths, sizes["T"], sizes.get("N"))
        if resets is not None:
            resets = ragged.check_resets(resets, x.shape[:-1])
        plan = self.plan(layout, training=self.training, all_states=return_all_states)
        if initial is None and self._learned:
            initial = states.repeated(self.learned_state(), sizes.get("N"))
        key = self._dropout_key(plan, rngs)
        output, last = stack.run(
            *(plan, self.weights(), x, initial, key, lengths, resets), gates=self.gates()
        )
        if packed is not None:
            output = packing.repacked(packed, output)
        return output, self.hx_of(last)

    def initial_state(self, batch_size: int | None = None) -> Any:
        """The state that None stands for, of zeros or learned, shaped as `hx` of a call.

        Args:
            batch_size: N; None for an unbatched state.
        """
        dtypes = self.cell.state_dtypes(self.param_dtype if self.dtype is None else self.dtype)
        learned = self.learned_state()
        if learned is not None:
            return self.hx_of(states.cast(states.repeated(learned, batch_size), dtypes))
        batch = () if batch_size is None else (batch_size,)
        return self.hx_of(states.zeros(self._state_shapes(*batch), dtypes))

    def learned_state(self) -> tuple[Any, ...] | None:
        """The states that are parameters, without rows; None where none are."""
        if not self._learned:
            return None
        each = [tuple(getattr(self, name)[...] for name in names) for names in self._learned]
        return states.stacked(each, self.directions, 0)

    def hx_of(self, states: tuple[Any, ...]) -> Any:
        """The states as a call takes and gives them: one as an array, several as a tuple."""
        return states[0] if len(states) == 1 else states

    def _state_shapes(self, *batch: int) -> tuple[Any, ...]:
        """The shapes of the states, h first; see `jaxrnn.states.shapes`."""
        return states.shapes(self._each_state_sizes, self.directions, *batch)

    def weights(self) -> tuple[Weights, ...]:
        """The parameters as `jaxrnn.stack.run` takes them."""
        each = [{field: getattr(self, name)[...] for field, name in names} for names in self._names]
        if self.weight_norm:
            each = map(regularisers.put_together, each)
        return tuple(Weights.of(self.cell, named) for named in each)

    def gates(self) -> tuple[skips.Gate | None, ...] | None:
        """The parameters of a highway as `jaxrnn.stack.run` takes them, one for each layer."""
        if self.skip != "highway":
            return None
        values = [[getattr(self, name)[...] for name in names] for names in self._gates]
        return tuple(skips.Gate(*there) if there else None for there in values)

    def _hold_initial_state(self) -> tuple[tuple[str, ...], ...]:
        """Make the parameters of a learned initial state; their names."""
        dtypes = self.cell.state_dtypes(self.param_dtype)
        held = []
        for index, suffix in enumerate(self._suffixes):
            held.append(tuple(f"{state}_0{suffix}" for state in self.cell.states))
            sizes = self._each_state_sizes[index // self.directions]
            for name, size, dtype in zip(held[-1], sizes, dtypes):
                setattr(self, name, nnx.Param(jnp.zeros(size, dtype)))
        return tuple(held)

    def _hold_gates(self, key: jax.Array, around: Sequence[bool]) -> tuple[tuple[str, ...], ...]:
        """Make the parameters of a highway; their names for each layer, or none."""
        held: list[tuple[str, ...]] = []
        for layer, (whether, sizes) in enumerate(zip(around, self.layer_sizes)):
            held.append(())
            if whether:
                own = jax.random.fold_in(key, 2**32 - 1 - layer)
                gate = skips.init(own, sizes.D, bias=self.bias, dtype=self.param_dtype)
                made = {f"{n}_highway_l{layer}": a for n, a in gate._asdict().items()}
                made = {name: value for name, value in made.items() if value is not None}
                held[-1] = tuple(made)
                for name, value in made.items():
                    setattr(self, name, nnx.Param(value))
        return tuple(held)

    def plan(self, layout: str, *, training: bool, all_states: bool = False) -> stack.Stack:
        """The layer as `jaxrnn.stack.run` takes it; `layout` are the axes of the input."""
        return stack.Stack(
            self.cell,
            bidirectional=bool(self.bidirectional),
            layout=layout,
            dropout=self.dropout if training and self.num_layers > 1 else 0.0,
            remat=self.remat,
            dtype=self.dtype,
            all_states=all_states,
            backend=self.backend,
            platform=tuning.asked_platform(),
            regularisers=self.regularisers and self.regularisers.of_mode(training),
            skip=self.skip,
        )

    def explain(
        self,
        input: Any,
        *,
        resets: bool = False,
        return_all_states: bool = False,
        platform: str | None = None,
    ) -> backends.Explanation:
        """Who would run each layer and direction, why, and why no other would; `print` it.

        Args:
            input: what the layer would be called with, or its shape.
            resets: whether rows would be reset; lengths change nothing.
            return_all_states: as in a call.
            platform: "cpu", "cuda", "rocm" or "tpu", also where this machine has none; None for
                what is computed on here.

        Raises:
            ValueError: for a backend that the layer asks for and that can't serve: why.

        Example:
            >>> import jaxrnn
            >>> from flax import nnx
            >>> lstm = jaxrnn.LSTM(3, 4, proj_size=2, rngs=nnx.Rngs(0))
            >>> print(lstm.explain((5, 2, 3), platform="tpu"))
            on tpu:
            layer 0: scan (the first that can serve of scan)
                kernel: it does not project h
                parallel: LSTM is not linear in its state, as a LinearCell is
                cudnn: there is none for tpu
        """
        dtype = self.param_dtype if self.dtype is None else self.dtype
        shape = getattr(input, "shape", input)
        x = jax.ShapeDtypeStruct(tuple(shape), getattr(input, "dtype", dtype))
        layout, _ = self.check(x, None)  # pyright: ignore[reportArgumentType]
        sizes = dict(zip(layout, x.shape))
        plan = self.plan(layout, training=self.training, all_states=return_all_states)
        plan = dataclasses.replace(plan, platform=platform or plan.platform)
        x = jax.ShapeDtypeStruct((sizes["T"], sizes.get("N", 1), sizes["D"]), self.dtype or x.dtype)
        return backends.explain(plan, self.weights(), x, resets=resets)

    @property
    def kind(self) -> str:
        """What messages call the layer."""
        return self.mode.split("_")[0] or type(self.cell).__name__

    def check(
        self, x: jax.Array, hx: Any, *, time_major: bool = False
    ) -> tuple[str, tuple[Any, ...] | None]:
        """Check the call, in PyTorch's order; the axes of the input, and the states."""
        kind = self.kind
        batched = checks.layer_input(kind, x)
        layout = "TD" if not batched else "NTD" if self.batch_first and not time_major else "TND"
        given, initial = (), None
        apart = hx is not None and states.layered(self._each_state_sizes)
        if hx is not None and not apart:
            if self.mode == "LSTM":
                given = checks.two_states(hx)
            else:
                given = checks.states(hx, tuple(self.cell.states))
            initial = tuple(map(jnp.asarray, given[: len(self.cell.states)]))
            checks.state_axes(initial, batched)
        if self.dtype is None:
            checks.input_dtype(x, self.param_dtype)
        checks.input_size(x, self.input_size)
        batch = x.shape[layout.index("N")] if batched else 1
        if apart:
            initial = states.check_layered(
                hx, tuple(self.cell.states), self._state_shapes(batch), batched
            )
        elif initial is not None:
            checks.state_shapes(initial, self._state_shapes(batch), batched)
            checks.state_count(given, len(initial))
        checks.sequence_length(x.shape[layout.index("T")])
        if self.dtype is None and initial is not None:
            dtypes = self.cell.state_dtypes(self.param_dtype)
            for of_layer in zip(*initial) if apart else (initial,):
                checks.state_dtypes(of_layer, dtypes)
        return layout, initial

    def _dropout_key(self, plan: stack.Stack, rngs: Any) -> Any:
        """A key where randomness is needed; otherwise no random stream is touched."""
        drawn = {} if plan.regularisers is None else plan.regularisers.drawn
        if 0 < plan.dropout < 1:
            drawn = {"dropout": plan.dropout} | drawn
        if not drawn:
            return None
        source = self.rngs if rngs is None else rngs
        if source is None:
            name, p = next(iter(drawn.items()))
            raise ValueError(
                f"{name}={p} is active but there is no random stream: pass rngs= to the "
                "call, or give the constructor rngs with a 'dropout' or 'default' stream"
            )
        if isinstance(source, nnx.Rngs):
            source = source["dropout"]
        return source() if callable(source) else source


def _shapes(named: dict[str, jax.Array]) -> dict[str, tuple[int, ...]]:
    return {name: a.shape for name, a in named.items()}


def _name(field: str, suffix: str, normed: Sequence[str]) -> str:
    """The name of a parameter: "weight_hh" and "weight_hh_g" of layer 0 as PyTorch has them."""
    whole = field[:-2]
    apart = whole in normed and field[-2:] in ("_g", "_v")
    return f"{whole}{suffix}{field[-2:]}" if apart else field + suffix
