"""Regularised stacks equal a plain loop over the same masks, values and gradients.

The loop is written out step by step from the equations, in Python, and draws each mask by
`jaxrnn.core.dropout.dropout_mask` from the key of the call.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxrnn
from jaxrnn import GRU, LSTM, RNN, Recurrent, cells
from jaxrnn.cells import Cell
from jaxrnn.core import stack
from jaxrnn.core.dropout import Regularization, dropout_mask
from jaxrnn.sequences.streaming import jit_step
from tests.test_cells import (
    LENGTHS,
    RESETS,
    H,
    N,
    T,
    ThreeStates,
    close,
)

D = 3
KEY = jax.random.key(5, impl="unsafe_rbg")  # which compiles more quickly
X = jnp.asarray(np.random.RandomState(1).uniform(-1, 1, (T, N, D)))


# The plain loop


def scaled(key: Any, kind: str, index: int, p: float, shape: tuple[int, ...]) -> Any:
    """0 with probability p, else 1 / (1 - p)."""
    return (
        dropout_mask(key, kind, index, p, shape) / (1 - p if p < 1 else 1) if p else jnp.ones(shape)
    )


def one_step(cell: Any, w: Any, x: Any, state: Any, mask: Any) -> tuple[Any, Any]:
    """Return the output and states of one step; `mask` (N, R) multiplies h before W_hh."""
    own = w.cell_params or {}
    if not isinstance(cell, Cell):
        step = lambda x, s: cell.step(cell.inputs(x, own), s, own)  # noqa: E731
        new = jax.vmap(step)(x, state)
        return given_out(cell, w, x, new), new
    zx, zh = (
        x @ w.weight_ih.T + w.bias_ih[None],
        (state[0] * mask) @ w.weight_hh.T + w.bias_hh[None],
    )
    z = (zx.T, zh.T) if cell.split else (zx + zh).T
    columns = ({n: a[:, None] for n, a in own.items()},) if own else ()
    m, *rest = (s.T for s in cell.step(z, tuple(s.T for s in state), *columns))
    h = m if w.weight_hr is None else m @ w.weight_hr.T
    return h, (h, *rest)


def given_out(cell: Any, w: Any, x: Any, state: Any) -> Any:
    """Return the output of a step."""
    if isinstance(cell, Cell):
        return state[0]
    return jax.vmap(lambda x, s: cell.output(x, s, w.cell_params or {}))(x, state)


def direction(
    plan: Any, w: Any, x: Any, state: Any, index: int, key: Any, lengths: Any, resets: Any
) -> tuple[Any, Any]:
    """Return the outputs and final state of one layer and direction."""
    r, reverse = plan.regularization, bool(index % plan.directions)
    if r.weight_drop:
        named = w.named()
        hh = named["weight_hh"]
        hh = hh * scaled(key, "weight_drop", index, r.weight_drop, hh.shape)
        w = type(w).from_named(plan.cell, named | {"weight_hh": hh})
    mask = scaled(key, "recurrent_dropout", index, r.recurrent_dropout, state[0].shape)
    parts = []
    for number, p in enumerate(r.zoneout):
        shape = (T, state[number].shape[1], N)
        drawn = ~dropout_mask(key, "zoneout", index, p, shape, number) if r.training and p else p
        parts.append(jnp.broadcast_to(jnp.asarray(drawn, float), shape).swapaxes(1, 2))
    at = np.arange(T)[:, None] + reverse  # the reset before this step is read
    cut, own = (at < lengths) & resets[at[:, 0]], np.arange(T)[:, None] < lengths

    def step(state: Any, steps: Any) -> Any:
        x, cut, own, parts = steps
        entered = tuple(jnp.where(cut[:, None], 0, s) for s in state)
        output, new = one_step(plan.cell, w, x, entered, mask)
        if parts:
            new = tuple(k * old + (1 - k) * s for k, old, s in zip(parts, entered, new))
            output = given_out(plan.cell, w, x, new)
        state = tuple(jnp.where(own[:, None], s, old) for s, old in zip(new, state))
        return state, jnp.where(own[:, None], output, 0)

    state, y = lax.scan(step, state, (x, cut, own, parts), reverse=reverse)
    return y, state


def plain(plan: Any, weights: Any, x: Any, hx: Any, key: Any, lengths: Any, resets: Any) -> Any:
    """Return the results of `stack.run`."""
    r, last = plan.regularization, []
    for first in range(0, len(weights), plan.directions):
        mask = scaled(key, "input_dropout", first, r.input_dropout, x.shape[1:])
        x = jnp.stack([x[t] * mask for t in range(T)])
        ran = [
            direction(plan, weights[i], x, tuple(s[i] for s in hx), i, key, lengths, resets)
            for i in range(first, first + plan.directions)
        ]
        x = jnp.concatenate([y for y, _ in ran], -1)
        last += [state for _, state in ran]
    return x, tuple(map(jnp.stack, zip(*last)))


# Each regulariser with each thing a stack does: a cell, its options, those of the stack

ALL: dict[str, Any] = {
    "input_dropout": 0.3,
    "recurrent_dropout": 0.4,
    "zoneout": (0.2, 0.5),
    "weight_drop": 0.3,
}
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "all": (cells.LSTM(), ALL, {"bidirectional": True}),
    "all, remat": (cells.LSTM(), ALL, {"layers": 2, "remat": True}),
    "projected": (cells.LSTM(), ALL, {"proj_size": 2}),
    "projected, remat": (cells.LSTM(), ALL, {"proj_size": 2, "remat": True}),
    "gru": (cells.GRU(), {"recurrent_dropout": 0.5}, {"bidirectional": True}),
    "gru zoneout": (cells.GRU(), {"zoneout": 0.4}, {"ragged": False}),
    "elman": (cells.Elman(), {"recurrent_dropout": 0.5, "zoneout": 0.3}, {}),
    "weights": (cells.GRU(), {"weight_drop": 0.5}, {"backend": "kernel"}),
    "input": (
        cells.Elman("relu"),
        {"input_dropout": 0.5, "weight_drop": 0.2},
        {"layers": 2, "bidirectional": True, "backend": "kernel"},
    ),
    "own parameters": (cells.PeepholeLSTM(), {"zoneout": (0.5, 0.3), "recurrent_dropout": 0.5}, {}),
    "general": (
        cells.GRUResetBefore(),
        {"zoneout": 0.4, "input_dropout": 0.3, "weight_drop": 0.4},
        {},
    ),
    "three states": (ThreeStates(), {"zoneout": (0.4, 0.0, 0.6)}, {"layers": 2}),
    "parallel": (cells.MinGRU(), {"zoneout": 0.4}, {"bidirectional": True, "backend": "parallel"}),
    "linear scan": (cells.MinGRU(), {"zoneout": 0.4}, {"backend": "scan"}),
    "expected": (cells.LSTM(), {"zoneout": (0.2, 0.5)}, {"training": False}),
    "expected, remat": (
        cells.PeepholeLSTM(),
        {"zoneout": (0.6, 0)},
        {"training": False, "remat": True},
    ),
    "expected, parallel": (cells.MinGRU(), {"zoneout": 0.4}, {"training": False}),
    "everything goes": (cells.LSTM(), dict.fromkeys(ALL, 1.0) | {"zoneout": (1, 0)}, {}),
}


def case(name: str) -> tuple[Any, Any, Any, Any]:
    """Return options, weights, initial state and masks of a case."""
    cell, options, more = CASES[name]
    more = dict(more)
    layers, ragged, training, proj_size, bidirectional = (
        more.pop(key, default)
        for key, default in (
            *(("layers", 1), ("ragged", True), ("training", True)),
            *(("proj_size", 0), ("bidirectional", False)),
        )
    )
    made = Regularization.from_options(cell, **options)
    assert made is not None
    plan = stack.StackOptions(
        cell, bidirectional=bidirectional, regularization=made.for_mode(training), **more
    )
    weights = stack.init(
        *(jax.random.key(1), cell, D, H), num_layers=layers, bidirectional=bidirectional,
        proj_size=proj_size, dtype=jnp.float64,
    )  # fmt: skip
    sizes = cell.state_sizes(cells.Sizes(D, H, proj_size or H))
    draw = np.random.RandomState(2).uniform
    hx = tuple(
        jnp.asarray(draw(-1, 1, (len(weights), N, size)), dtype)
        for size, dtype in zip(sizes, cell.state_dtypes(jnp.float64))
    )
    return plan, weights, hx, ragged


def scalar(y: Any, last: Any) -> Any:
    return (y * jnp.cos(y)).sum() + sum((s * s.conj()).real.sum() for s in last)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_plain_loop(name: str) -> None:
    plan, weights, hx, ragged = case(name)
    lengths = LENGTHS if ragged else np.full(N, T)
    resets = RESETS if ragged else np.zeros((T, N), bool)

    def ours(weights: Any, x: Any, hx: Any) -> Any:
        more = (jnp.asarray(lengths), jnp.asarray(resets)) if ragged else ()
        y, last = stack.run(plan, weights, x, hx, KEY, *more)
        return scalar(y, last), (y, last)

    def written_out(weights: Any, x: Any, hx: Any) -> Any:
        y, last = plain(plan, weights, x, hx, KEY, lengths, np.concatenate([resets, resets[:1]]))
        return scalar(y, last), (y, last)

    @jax.jit
    def both(*at: Any) -> Any:
        return [jax.value_and_grad(f, (0, 1, 2), has_aux=True)(*at) for f in (ours, written_out)]

    got, want = both(weights, X, hx)
    close(got, want)


def test_forward_over_reverse_equals_the_plain_loop() -> None:
    plan, weights, hx, _ = case("all")
    plan = dataclasses.replace(plan, bidirectional=False)

    def product(f: Any) -> Any:
        """Return a Hessian-vector product."""
        loss = lambda x: scalar(*f(x))  # noqa: E731
        return jax.jvp(jax.grad(loss), (X,), (jnp.cos(3 * X),))[1]

    weights, hx = weights[:1], tuple(s[:1] for s in hx)
    lengths, resets = jnp.asarray(LENGTHS), jnp.asarray(RESETS)
    longer = np.concatenate([RESETS, RESETS[:1]])
    ours = lambda x: stack.run(plan, weights, x, hx, KEY, lengths, resets)  # noqa: E731
    written_out = lambda x: plain(plan, weights, x, hx, KEY, LENGTHS, longer)  # noqa: E731
    close(jax.jit(lambda: product(ours))(), jax.jit(lambda: product(written_out))())


# The layers

make = functools.partial(LSTM, D, H, param_dtype=jnp.float64)


def test_a_layer_draws_its_key_from_the_dropout_stream() -> None:
    layer = make(rngs=nnx.Rngs(0, dropout=3), **ALL)
    plan = layer._stack_options("TND", training=True)
    key = nnx.Rngs(dropout=7)["dropout"]()
    want = stack.run(plan, layer._weights(), X, None, key)
    close(layer(X, rngs=nnx.Rngs(dropout=7)), want)
    close(layer(X, rngs=key), want)
    first, second = layer(X)[0], layer(X)[0]  # from its own stream, which goes on
    assert np.abs(first - second).max() > 1e-3


def test_evaluation_draws_nothing_and_equals_the_plain_layer() -> None:
    options: dict[str, Any] = {name: p for name, p in ALL.items() if name != "zoneout"}
    layer, other = make(rngs=nnx.Rngs(0), **options), make(rngs=nnx.Rngs(0))
    layer.eval()
    rngs: Any = layer.rngs
    before = int(rngs.count[...])
    close(jax.jit(lambda x: layer(x))(X), other(X))
    close(jax.grad(lambda x: layer(x)[0].sum())(X), jax.grad(lambda x: other(x)[0].sum())(X))
    assert int(rngs.count[...]) == before
    assert layer._stack_options("TND", training=False).regularization is None


def test_zoneout_in_evaluation_needs_no_stream() -> None:
    layer = make(rngs=nnx.Rngs(params=0), zoneout=0.3)
    step = jit_step(layer)
    layer.eval()
    h, c = (s[0] for s in make(rngs=nnx.Rngs(0))(X[:1])[1])  # the state before was zero
    close(step(X[0]), (0.7 * h, (0.7 * h[None], 0.7 * c[None])))
    close(layer(X[:1])[0][0], 0.7 * h)


def test_no_stream_without_regularization() -> None:
    layer = make(rngs=nnx.Rngs(0), input_dropout=0.0, zoneout=(0, 0.0), weight_drop=0)
    assert layer.rngs is None
    assert layer._regularization is None
    assert repr(layer) == "LSTM(3, 4, zoneout=(0, 0.0))"


def test_a_missing_stream_raises() -> None:
    layer = make(rngs=nnx.Rngs(params=0), recurrent_dropout=0.5)
    with pytest.raises(ValueError, match=r"recurrent_dropout=0.5 is active but there is no random"):
        layer(X)


def test_weight_norm_equals_pytorch() -> None:
    torch: Any = pytest.importorskip("torch", reason="compares with torch's own weight_norm")
    theirs = torch.nn.LSTM(D, H, 2, bidirectional=True).double()
    names = [f"weight_hh_l{k}{s}" for k in range(2) for s in ("", "_reverse")]
    for name in names:
        with pytest.warns(FutureWarning, match="weight_norm"):
            torch.nn.utils.weight_norm(theirs, name)
    for name in names:
        getattr(theirs, name + "_g").data.mul_(1.5)
    ours = make(2, bidirectional=True, weight_norm=("weight_hh",), rngs=nnx.Rngs(0))
    state = theirs.state_dict()
    assert set(jaxrnn.state_dict(ours)) == set(state)
    jaxrnn.load_state_dict(ours, state)
    y, (h_n, c_n) = theirs(torch.from_numpy(np.array(X)))
    close(ours(X), (y.detach().numpy(), (h_n.detach().numpy(), c_n.detach().numpy())))
    (y * torch.cos(y)).sum().backward()
    graph, params = nnx.split(ours)

    @jax.jit
    @jax.grad
    def grads(params: Any) -> Any:
        y = nnx.merge(graph, params)(X)[0]
        return (y * jnp.cos(y)).sum()

    got = grads(params)
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        close(got[name][...], parameter.grad.numpy())


def test_weight_norm_starts_at_the_weights() -> None:
    layer, other = make(weight_norm=True, rngs=nnx.Rngs(0)), make(rngs=nnx.Rngs(0))
    close(layer._weights(), other._weights())
    assert list(jaxrnn.state_dict(layer))[:4] == [
        *("weight_ih_l0_g", "weight_ih_l0_v", "weight_hh_l0_g", "weight_hh_l0_v")
    ]
    own = Recurrent(cells.GRUResetBefore(), D, H, weight_norm="weight_hh", rngs=nnx.Rngs(0))
    named = jaxrnn.state_dict(own)
    assert named["weight_hh_l0_g"].shape == (3 * H, 1)
    assert "weight_ih_l0" in named


def test_a_learned_initial_state() -> None:
    layer = make(2, bidirectional=True, learn_initial_state=True, rngs=nnx.Rngs(0))
    names = [n for n in jaxrnn.state_dict(layer) if "_0_l" in n]
    assert names == [
        f"{s}_0_l{k}{way}" for k in range(2) for way in ("", "_reverse") for s in ("h", "c")
    ]
    close(layer(X), make(2, bidirectional=True, rngs=nnx.Rngs(0))(X))  # zeros at the beginning
    for index, name in enumerate(names):
        getattr(layer, name)[...] = jnp.cos(index + jnp.arange(4.0))
    hx = layer.initial_state(N)
    close(hx[1][3, 2], jnp.cos(7 + jnp.arange(4.0)))
    close(layer(X, lengths=LENGTHS), layer(X, hx, lengths=LENGTHS))
    close(layer(X[:, 0]), layer(X[:, 0], layer.initial_state()))
    graph, params = nnx.split(layer)
    grads = jax.grad(lambda p: nnx.merge(graph, p)(X)[0].sum())(params)
    by_hx = jax.grad(lambda hx: layer(X, hx)[0].sum())(hx)
    close(grads["c_0_l1"][...], by_hx[1][2].sum(0))


def test_a_hidden_size_for_each_layer() -> None:
    """A stack equals its layers in sequence; states are tuples with one array a layer."""
    layer = LSTM(D, (4, 5, 2), bidirectional=True, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    assert (layer.num_layers, layer.output_size) == (3, 4)
    draw = np.random.RandomState(3).uniform
    hx = tuple(tuple(jnp.asarray(draw(-1, 1, (2, N, s))) for s in (4, 5, 2)) for _ in "hc")
    y, last = layer(X, hx, lengths=LENGTHS, resets=RESETS)
    every = layer(X, hx, lengths=LENGTHS, resets=RESETS, return_all_states=True)[1]
    want, named = X, jaxrnn.state_dict(layer)
    for k, size in enumerate((4, 5, 2)):
        one = LSTM(
            want.shape[-1], size, bidirectional=True, rngs=nnx.Rngs(9), param_dtype=jnp.float64
        )
        here = {n.replace(f"_l{k}", "_l0"): a for n, a in named.items() if f"_l{k}" in n}
        assert all(np.abs(a).max() <= size**-0.5 for a in here.values())
        jaxrnn.load_state_dict(one, here)
        start = tuple(s[k] for s in hx)
        want, final = one(want, start, lengths=LENGTHS, resets=RESETS)
        close(tuple(s[k] for s in last), final)
        assert [s[k].shape for s in every] == [(T, 2, N, size)] * 2
    close(y, want)
    zeros = layer.initial_state(N)
    close(layer(X), layer(X, zeros))
    close(layer(X[:, 1], layer.initial_state())[1][0][1], layer(X)[1][0][1][:, 1])
    with pytest.raises(ValueError, match="different state sizes in each layer"):
        _ = layer.state_sizes


def test_equal_hidden_sizes_act_as_one() -> None:
    assert repr(GRU(D, [4, 4], rngs=nnx.Rngs(0))) == "GRU(3, 4, num_layers=2)"
    layer = GRU(D, (4, 5), learn_initial_state=True, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    assert repr(layer) == "GRU(3, (4, 5), num_layers=2, learn_initial_state=True)"
    jaxrnn.load_state_dict(layer, jaxrnn.state_dict(layer) | {"h_0_l1": np.ones(5)})
    h_n = layer(X, lengths=np.array([0, 1, 2]))[1]
    close(h_n[1][0, 0], jnp.ones(5))
    step = jit_step(layer)  # begins with the learned state
    _, state = step(X[0])
    close(step(X[1], state)[0], layer(X[:2])[0][1])


@pytest.mark.parametrize("skip", ["residual", "highway"])
def test_skip_connections(skip: str) -> None:
    """Compare with the layers in sequence; the first has different input and output sizes."""
    layer = make(3, bidirectional=True, skip=skip, rngs=nnx.Rngs(0))
    named = jaxrnn.state_dict(layer)
    plain_names = jaxrnn.state_dict(make(3, bidirectional=True, rngs=nnx.Rngs(0)))
    close({n: a for n, a in named.items() if "highway" not in n}, plain_names)
    extra = [n for n in named if n not in plain_names]
    gates = [f"{n}_highway_l{k}" for k in (1, 2) for n in ("weight", "bias")]
    assert extra == (gates if skip == "highway" else [])
    x, states = X, []
    for k in range(3):
        one = LSTM(x.shape[-1], H, bidirectional=True, rngs=nnx.Rngs(9), param_dtype=jnp.float64)
        jaxrnn.load_state_dict(
            one, {n.replace(f"_l{k}", "_l0"): plain_names[n] for n in plain_names if f"_l{k}" in n}
        )
        y, last = one(x, lengths=LENGTHS, resets=RESETS)
        states.append(last)
        if k and skip == "residual":
            y = x + y
        elif k:
            weight, bias = (named[f"{n}_highway_l{k}"] for n in ("weight", "bias"))
            t = 1 / (1 + np.exp(-(x @ weight.T + bias[None, None])))
            y = t * y + (1 - t) * x
        x = jnp.where((np.arange(T)[:, None] < LENGTHS[None])[..., None], y, 0)
    got, last = layer(X, lengths=LENGTHS, resets=RESETS)
    close(got, x)
    close(last, tuple(jnp.concatenate(s) for s in zip(*states)))
    close(jit_step(make(2, skip=skip, rngs=nnx.Rngs(0)))(X[0])[0],
          make(2, skip=skip, rngs=nnx.Rngs(0))(X[:1])[0][0])  # fmt: skip


@pytest.mark.parametrize("skip", ["residual", "highway"])
def test_padding_does_not_pass_skip_connections(skip: str) -> None:
    layer = LSTM(H, H, skip=skip, zoneout=0.2, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    graph, params, others = nnx.split(layer, nnx.Param, ...)
    x = jnp.concatenate([X, X[..., :1]], -1)
    padding = (np.arange(T)[:, None] >= LENGTHS[None])[..., None]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(params: Any, x: Any) -> Any:
        y, _ = nnx.merge(graph, params, others)(x, lengths=LENGTHS, rngs=KEY)
        return (y * jnp.cos(y)).sum()

    clean = run(params, jnp.where(padding, 0, x))
    close(run(params, jnp.where(padding, jnp.nan, x)), clean)


def test_dropout_does_not_act_on_skip_connections() -> None:
    layer = LSTM(H, H, 2, dropout=1.0, input_dropout=1.0, skip="residual", rngs=nnx.Rngs(0))
    x = jnp.ones((T, N, H), jnp.float32)
    blank = jnp.zeros_like(x)
    each = [stack.run(stack.StackOptions(layer.cell), (w,), blank)[0] for w in layer._weights()]
    close(layer(x)[0], x + each[0] + each[1], 1e-6)


def test_conversion_lists_unsupported_options() -> None:
    from jaxrnn.interop import ConversionError
    from jaxrnn.interop.flax import to_linen

    each: list[dict[str, Any]] = [
        {"skip": "residual"},
        {"zoneout": 0.1},
        {"learn_initial_state": True},
    ]
    for options in each:
        with pytest.raises(ConversionError, match=f"does not support {next(iter(options))}"):
            to_linen(make(2, rngs=nnx.Rngs(0), **options))
    with pytest.warns(UserWarning, match="input_dropout=0.3"):
        to_linen(make(input_dropout=0.3, rngs=nnx.Rngs(0)))


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "above": (None, {"input_dropout": 1.5}, ValueError, "`input_dropout` must be a proba.*got 1.5"),
    "below": (None, {"weight_drop": -0.1}, ValueError, "`weight_drop` must be a prob.*got -0.1"),
    "no number": (None, {"recurrent_dropout": "a"}, ValueError, "recurrent_dropout.*got 'a'"),
    "zoneout": (None, {"zoneout": (0.1, 2)}, ValueError, "`zoneout` must be a prob.*got 2"),
    "count": (None, {"zoneout": (0.1,)}, ValueError, r"or 2, one for each state \(h, c\), got 1"),
    "sizes": (
        None,
        {"num_layers": 3, "hidden_size": (4, 5)},
        ValueError,
        "each of 3 layers, got 2",
    ),
    "size": (None, {"hidden_size": (4, 0)}, ValueError, "must be greater than zero, got .4, 0"),
    "type": (None, {"hidden_size": (4, 2.5)}, TypeError, "must be an int or several"),
    "none": (None, {"hidden_size": ()}, ValueError, "got 0"),
    "proj": (None, {"hidden_size": (4, 2), "proj_size": 3}, ValueError, "smaller than hidden_size"),
    "skip": (None, {"skip": "dense"}, ValueError, "skip.*'residual'.*'highway'.*'dense'"),
    "no skip": (None, {"skip": "residual"}, ValueError, "as many input as output.*got 3 and 4"),
    "norm": (None, {"weight_norm": ("bias_hh",)}, ValueError, "`weight_norm` must be.*bias_hh"),
    "general": (cells.MinGRU(), {"recurrent_dropout": 0.5}, ValueError, "MinGRU.*has no weight_hh"),
    "no matrix": (cells.IndRNN(), {"weight_drop": 0.5}, ValueError, "IndRNN.* has no weight_hh"),
}


@pytest.mark.parametrize(("cell", "options", "error", "message"), WRONG.values(), ids=WRONG)
def test_invalid_options_raise(cell: Any, options: Any, error: Any, message: str) -> None:
    options = {"hidden_size": H} | options
    with pytest.raises(error, match=message):
        Recurrent(cell or cells.LSTM(), D, rngs=nnx.Rngs(0), **options)


def test_invalid_states_raise() -> None:
    layer = RNN(D, (4, 5), rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    good = layer.initial_state(N)
    for hx, error, message in (
        (good[0], TypeError, "`h` must be a tuple of 2 arrays, one for each layer, got ArrayImpl"),
        (good[:1], ValueError, "`h` must be a tuple of 2 arrays, one for each layer, got 1"),
        (good[::-1], ValueError, r"Expected h of layer 0 \(1, 3, 4\), got \[1, 3, 5\]"),
    ):
        with pytest.raises(error, match=message):
            layer(X, hx)
    pair = LSTM(D, (4, 5), rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    with pytest.raises(ValueError, match=r"`hx` must be 2 states \(h, c\), each a tuple.*got 3"):
        pair(X, (good,) * 3)


def test_kernels_do_not_support_masks_inside_the_loop() -> None:
    each: list[dict[str, Any]] = [{"recurrent_dropout": 0.5}, {"zoneout": 0.5}]
    for options in each:
        with pytest.raises(ValueError, match="recurrent dropout and zoneout are not supported"):
            make(backend="kernel", rngs=nnx.Rngs(0), **options)(X)
