"""`Recurrent`: any cell as a stack of layers, a thin Flax (NNX) module around the pure functions.

Its parameters are held by `jaxrnn.layers.parameters` and its calls checked by `jaxrnn.layers.calls`; the
arithmetic is `jaxrnn.core.stack.run`. A forward pass changes nothing in the module, so a closure over
one works under every transformation of JAX.

Axis letters: N batch, T time, D input features, H hidden size, P projection, R = P or H,
L layers, F directions (2 if bidirectional), G gates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import cells, packing
from jaxrnn.backends import platform as tuning
from jaxrnn.backends import select as backends
from jaxrnn.core import dropout as regularisers
from jaxrnn.core import masks as ragged
from jaxrnn.core import stack
from jaxrnn.core import state as states
from jaxrnn.layers import _checks as torch_checks
from jaxrnn.layers import calls
from jaxrnn.layers._module import check_rngs
from jaxrnn.layers.parameters import Parameters
from jaxrnn.packing import PackedSequence


class Recurrent(Parameters):
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
    see `jaxrnn.core.state`. Parameters, for layer k and suffix s ('' or '_reverse'): of a cell of gates
    ``weight_ih_l{k}{s}`` (G*H, D), ``weight_hh_l{k}{s}`` (G*H, R), ``bias_ih_l{k}{s}`` and
    ``bias_hh_l{k}{s}`` (G*H,); of any cell those that it declares, ``<name>_l{k}{s}``.

    Raises:
        TypeError, ValueError: for arguments that PyTorch refuses, in its words; for what is no
            cell, or one whose functions do not give what they should.

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
        torch_checks.no_such_argument(type(self).__name__, unknown)
        check_rngs(rngs)
        cells.check(cell)
        hidden_size, num_layers = states.hidden_sizes(hidden_size, num_layers)
        least: Any = hidden_size if not isinstance(hidden_size, tuple) else min(hidden_size)
        torch_checks.constructor(
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

        self._hold(rngs.params())
        random = dropout > 0 or self.regularisers is not None
        has_stream = "dropout" in rngs or "default" in rngs
        self.rngs = nnx.data(rngs["dropout"].fork() if random and has_stream else None)

    @property
    def training(self) -> bool:
        """Whether dropout is on; switched by ``train()`` and ``eval()``."""
        return not self.deterministic

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view`` calls: switch dropout off (True) or on (False).

        Args:
            deterministic: if True, disables dropout.
        """
        if deterministic is not None:
            self.deterministic = deterministic

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
                batch-first. With several hidden sizes see `jaxrnn.core.state`.
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
                `jaxrnn.sequences.episodes.resets_from_dones`.
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
            torch_checks.packed_input(packed.data)
            input, lengths = packing.to_padded(packed)
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
        key = calls.dropout_key(self, plan, rngs)
        output, last = stack.run(
            *(plan, self.weights(), x, initial, key, lengths, resets), gates=self.gates()
        )
        if packed is not None:
            output = packing.repack(packed, output)
        return output, self.hx_of(last)

    def plan(self, layout: str, *, training: bool, all_states: bool = False) -> stack.StackOptions:
        """The layer as `jaxrnn.core.stack.run` takes it; `layout` are the axes of the input."""
        return stack.StackOptions(
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
            input: what the layer would be called with, an array or a PackedSequence, or its shape.
            resets: whether rows would be reset; lengths change nothing.
            return_all_states: as in a call.
            platform: "cpu", "cuda" (or "gpu"), "rocm" or "tpu", also where this machine has none;
                None for what is computed on here.

        Raises:
            ValueError: for a backend that the layer asks for and that can't serve: why; for
                another platform.

        Example:
            >>> import jaxrnn
            >>> from flax import nnx
            >>> lstm = jaxrnn.LSTM(3, 4, proj_size=2, rngs=nnx.Rngs(0))
            >>> print(lstm.explain((5, 2, 3), platform="tpu"))
            on tpu:
            layer 0: scan ("auto" takes no other on tpu)
                kernel: it does not project h
                parallel: LSTM is not linear in its state, as a LinearCell is
        """
        dtype = self.param_dtype if self.dtype is None else self.dtype
        packed = isinstance(input, PackedSequence)
        if packed:
            input = jax.eval_shape(lambda: packing.to_padded(input)[0])
        shape = getattr(input, "shape", input)
        dtype = jax.dtypes.canonicalize_dtype(getattr(input, "dtype", dtype))
        x = jax.ShapeDtypeStruct(tuple(shape), dtype)
        layout, _ = self.check(x, None, time_major=packed)  # pyright: ignore[reportArgumentType]
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
        """Check a call, in PyTorch's order; the axes of the input, and the states."""
        return calls.check(self, x, hx, time_major=time_major)
