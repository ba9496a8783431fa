"""Conversion from and to Flax, nnx and linen: 20 random layers each, and errors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxrnn
from jaxrnn.interop import ConversionError
from jaxrnn.interop.flax import from_linen, from_nnx, to_linen, to_nnx
from tests.convert_cases import Config, close, configs, layer, same_weights, with_one_bias

CONFIGS = configs(seed=2)
IDS = list(map(str, CONFIGS))
# The dtype that `to_linen` and `to_nnx` write, so that both models share a compiled function.
DTYPE: dict[str, Any] = {"param_dtype": jnp.dtype("float32")}
ZEROS = nnx.initializers.zeros_init()


@functools.partial(jax.jit, static_argnums=0)
def linen_run(module: Any, params: Any, x: Any) -> Any:
    return module.apply({"params": params}, x)


@nnx.jit
def nnx_run(model: Any, x: Any) -> Any:
    return model(x)


def linen_cell(config: Config) -> Any:
    """Return the cell of a configuration, with either LSTM of Flax."""
    if config.kind.startswith("RNN"):
        relu = config.kind == "RNN_RELU"
        function = nn.relu if relu else nn.tanh
        return nn.SimpleCell(config.hidden_size, activation_fn=function, **DTYPE)
    if config.kind == "GRU":
        return nn.GRUCell(config.hidden_size, **DTYPE)
    lstm = nn.LSTMCell if config.number % 8 == 2 else nn.OptimizedLSTMCell
    return lstm(config.hidden_size, **DTYPE)


def linen_model(config: Config) -> tuple[Any, Any]:
    """Return a Sequential and random params, created without jaxrnn."""
    major: dict[str, Any] = {"time_major": not config.batch_first}
    modules: list[Any] = []
    for _ in range(config.num_layers):
        rnns = [nn.RNN(linen_cell(config), **major) for _ in range(1 + config.bidirectional)]
        modules.append(nn.Bidirectional(rnns[0], rnns[1], **major) if len(rnns) == 2 else rnns[0])
    module = nn.Sequential(tuple(modules))
    shapes = jax.eval_shape(module.init, jax.random.key(0), config.input())["params"]
    random = np.random.RandomState(config.number)
    draw = lambda a: jnp.asarray(random.uniform(-0.7, 0.7, a.shape), a.dtype)  # noqa: E731
    return module, jax.tree.map(draw, shapes)


def nnx_model(config: Config) -> Any:
    """Return an nnx.Sequential with random weights, created without jaxrnn."""
    major: dict[str, Any] = {"time_major": not config.batch_first}

    def cell(features: int) -> Any:
        options: dict[str, Any] = {"kernel_init": ZEROS, "recurrent_kernel_init": ZEROS}
        options |= {"rngs": nnx.Rngs(0), **DTYPE}
        sizes = (features, config.hidden_size)
        if config.kind.startswith("RNN"):
            relu = config.kind == "RNN_RELU"
            return nnx.SimpleCell(*sizes, activation_fn=nnx.relu if relu else nnx.tanh, **options)
        if config.kind == "GRU":
            return nnx.GRUCell(*sizes, **options)
        lstm = nnx.LSTMCell if config.number % 8 == 2 else nnx.OptimizedLSTMCell
        return lstm(*sizes, **options)

    modules, features = [], config.input_size
    for _ in range(config.num_layers):
        rnns = [nnx.RNN(cell(features), **major) for _ in range(1 + config.bidirectional)]
        modules.append(nnx.Bidirectional(*rnns, **major) if len(rnns) == 2 else rnns[0])
        features = len(rnns) * config.hidden_size
    model = nnx.Sequential(*modules)
    random = np.random.RandomState(config.number)
    params = nnx.state(model, nnx.Param)
    draw = lambda a: jnp.asarray(random.uniform(-0.7, 0.7, a.shape), a.dtype)  # noqa: E731
    nnx.update(model, jax.tree.map(draw, params))
    return model


def round_trip(ours: Any, *, but_n: bool) -> Any:
    """Return the expected round trip: one bias, or biases of zeros."""
    held = with_one_bias(ours, but_n=but_n)
    if held.bias:
        return held
    filled = layer(ours.mode, ours.input_size, ours.hidden_size, **_options(ours))
    weights = jaxrnn.state_dict(ours)
    zeros = {n: np.zeros_like(a) for n, a in jaxrnn.state_dict(filled).items() if "bias" in n}
    jaxrnn.load_state_dict(filled, weights | zeros)
    return filled


def _options(ours: Any) -> dict[str, Any]:
    return {name: getattr(ours, name) for name in ("num_layers", "batch_first", "bidirectional")}


def without_b_hn(ours: Any) -> Any:
    """Set b_hn of a GRU to zero, since nnx.GRUCell has none."""
    if ours.bias and ours.mode == "GRU":
        for name in (n for n in ours.parameter_names if n.startswith("bias_hh")):
            bias = getattr(ours, name)
            bias[...] = bias[...].at[2 * ours.hidden_size :].set(0.0)
    return ours


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_linen_outputs_agree(config: Config) -> None:
    ours, x = config.layer(), config.input()
    module, params = to_linen(ours)
    close(linen_run(module, params, x), ours(x)[0])
    same_weights(from_linen(params, module), round_trip(ours, but_n=config.kind == "GRU"))

    module, params = linen_model(config)
    ours = from_linen({"params": params}, module)
    close(ours(x)[0], linen_run(module, params, x))
    rest, back = to_linen(ours)
    if any(isinstance(m, nn.LSTMCell) for m in _cells(module)):  # returns as OptimizedLSTMCell
        assert jax.tree.structure(back) == jax.tree.structure(params)
    else:
        assert rest == module
    jax.tree.map(np.testing.assert_array_equal, back, params)


def _cells(module: Any) -> list[Any]:
    rnns = [getattr(m, "forward_rnn", m) for m in module.layers]
    return [rnn.cell for rnn in rnns]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_nnx_outputs_agree(config: Config) -> None:
    ours, x = without_b_hn(config.layer()), config.input()
    model = to_nnx(ours)
    close(nnx_run(model, x), ours(x)[0])
    same_weights(from_nnx(model), round_trip(ours, but_n=False))

    model = nnx_model(config)
    ours = from_nnx(model)
    close(ours(x)[0], nnx_run(model, x))
    again = from_nnx(to_nnx(ours))
    same_weights(again, ours)
    if not any(isinstance(m, nnx.LSTMCell) for _, m in nnx.iter_graph(model)):
        back = nnx.state(to_nnx(ours), nnx.Param)
        jax.tree.map(np.testing.assert_array_equal, back, nnx.state(model, nnx.Param))


def test_carries_are_states() -> None:
    """A carry of an LSTM is (c, h) in Flax, and (h, c) here."""
    model: Any = nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)), return_carry=True)
    random = np.random.RandomState(0)
    x = random.uniform(-1, 1, (2, 5, 3)).astype(np.float32)
    c, h = random.uniform(-1, 1, (2, 2, 4)).astype(np.float32)
    lengths = jnp.array([5, 2])
    (c_n, h_n), y = model(x, initial_carry=(jnp.asarray(c), jnp.asarray(h)), seq_lengths=lengths)
    output, (ours_h, ours_c) = from_nnx(model)(x, (h[None], c[None]), lengths=lengths)
    close(output[0], y[0])
    close(output[1, :2], y[1, :2])
    close(ours_h[0], h_n)
    close(ours_c[0], c_n)


def test_cells_and_lists() -> None:
    cell = nnx.SimpleCell(3, 4, rngs=nnx.Rngs(0))
    assert repr(from_nnx(cell)) == "RNN(3, 4, batch_first=True)"
    two = [nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)), nnx.GRUCell(4, 4, rngs=nnx.Rngs(1))]
    assert repr(from_nnx(two)) == "GRU(3, 4, num_layers=2, batch_first=True)"
    _, params = to_linen(layer("LSTM", 3, 4, num_layers=2))
    one = from_linen(params["layers_0"]["cell"])
    assert repr(one) == "LSTM(3, 4, batch_first=True)"
    both = from_linen([params["layers_0"], params["layers_1"]["cell"]])
    assert repr(both) == "LSTM(3, 4, num_layers=2, batch_first=True)"
    same_weights(both, from_linen(params))
    relu = from_linen(to_linen(layer("RNN_RELU", 3, 4))[1]["layers_0"], nn.SimpleCell(4, nn.relu))
    assert relu.nonlinearity == "relu"


def test_order_of_twelve_layers() -> None:
    ours = layer("RNN", 2, 2, num_layers=12, batch_first=True)
    same_weights(from_linen(to_linen(ours)[1]), with_one_bias(ours))


@pytest.mark.parametrize(("dtype", "param"), [(jnp.bfloat16, jnp.float32), (None, jnp.float64)])
def test_round_trip_of_dtypes(dtype: Any, param: Any) -> None:
    ours = layer("GRU", 3, 4, dtype=dtype, param_dtype=param, bias=False)
    for back in (from_nnx(to_nnx(ours)), from_linen(*to_linen(ours)[::-1])):
        assert back.dtype == (None if dtype is None else jnp.dtype(dtype))
        assert jnp.dtype(back.param_dtype) == jnp.dtype(param)
        assert back._weights()[0].weight_hh.dtype == jnp.dtype(param)


def test_b_hn_is_not_supported_by_nnx() -> None:
    ours = layer("GRU", 3, 4, num_layers=2)
    with pytest.raises(ConversionError, match="bias inside the reset product") as caught:
        to_nnx(ours)
    assert str(caught.value).count("b_hn must be 0, got up to 0.") == 2
    module, params = to_linen(ours)  # linen has it
    same_weights(from_linen(params, module), with_one_bias(ours, but_n=True))


def test_dropout_warns() -> None:
    ours = layer("LSTM", 3, 4, num_layers=2)
    ours.dropout = 0.5
    for function in (to_linen, to_nnx):
        with pytest.warns(
            UserWarning, match=rf"{function.__name__} does not .*dropout=0\.5"
        ) as caught:
            function(ours)
        assert caught[0].filename == __file__


def nnx_cell(kind: Any, **options: Any) -> Any:
    return kind(3, 4, rngs=nnx.Rngs(0), **options)


def with_carry_init(carry_init: Any) -> Any:
    with pytest.warns(UserWarning, match="carry_init is provided in __init__"):
        return nnx_cell(nnx.GRUCell, carry_init=carry_init)


def ones(key: Any, shape: Any, dtype: Any = jnp.float32) -> Any:
    return jnp.ones(shape, dtype)


NNX_WRONG: list[tuple[Any, str]] = [
    (
        lambda: nnx_cell(nnx.LSTMCell, gate_fn=nnx.hard_sigmoid),
        "must be sigmoid, got hard_sigmoid",
    ),
    (lambda: nnx_cell(nnx.GRUCell, activation_fn=nnx.relu), "activation_fn must be tanh, got relu"),
    (lambda: nnx_cell(nnx.SimpleCell, activation_fn=nnx.gelu), "must be tanh or relu, got gelu"),
    (lambda: nnx_cell(nnx.SimpleCell, residual=True), "residual must be False, got True"),
    (lambda: with_carry_init(ones), "carry_init must be zeros, got ones"),
    (lambda: nnx.RNN(nnx_cell(nnx.GRUCell), reverse=True), "reverse must be False"),
    (
        lambda: nnx.Bidirectional(
            *(nnx.RNN(nnx_cell(nnx.GRUCell)) for _ in range(2)), merge_fn=jnp.add
        ),
        "merge_fn must be the default, got add",
    ),
    (lambda: nnx_cell(nnx.Linear), "must be one of SimpleCell, .*, got Linear"),
    (
        lambda: [nnx.RNN(nnx_cell(nnx.GRUCell), time_major=major) for major in (True, False)],
        "time_major must be equal in all layers",
    ),
    (list, "no layers"),
]


@pytest.mark.parametrize(("make", "words"), NNX_WRONG, ids=[words for _, words in NNX_WRONG])
def test_unsupported_nnx_modules(make: Any, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        from_nnx(make())


def gru_params() -> Any:
    return to_linen(layer("GRU", 3, 4))[1]["layers_0"]["cell"]


def linen_wrong(change: Any) -> Any:
    params = gru_params()
    change(params)
    return params


LINEN_WRONG: list[tuple[Any, Any, str]] = [
    (
        gru_params,
        nn.GRUCell(4, gate_fn=nn.hard_sigmoid),
        "must be sigmoid, got hard_sigmoid",
    ),
    (gru_params, nn.LSTMCell(4), "params must be those of LSTMCell, got GRU"),
    (gru_params, nn.MGUCell(4), "must be one of SimpleCell, .*, got MGUCell"),
    (gru_params, nn.RNN(nn.GRUCell(4), reverse=True), "reverse must be False"),
    (
        gru_params,
        nn.Sequential([nn.GRUCell(4)] * 2),
        r"must be \[1\], got \[1, 1\]",
    ),
    (lambda: linen_wrong(lambda p: p.pop("hr")), None, "keys must be those of a cell"),
    (lambda: linen_wrong(lambda p: p["hn"].pop("bias")), None, r"missing hn\.bias"),
    (lambda: linen_wrong(lambda p: p["hr"].update(bias=0)), None, r"unexpected hr\.bias"),
    (dict, None, r"keys must be those of a cell .*, got \[\]"),
    (lambda: {"kernel": 1}, None, "keys must be those of a cell"),
]


@pytest.mark.parametrize(
    ("make", "module", "words"), LINEN_WRONG, ids=[words for *_, words in LINEN_WRONG]
)
def test_unsupported_linen_params(make: Any, module: Any, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        from_linen(make(), module)


@pytest.mark.parametrize("function", [to_linen, to_nnx])
def test_unsupported_layers(function: Any) -> None:
    with pytest.raises(ConversionError, match="does not support proj_size=2"):
        function(layer("LSTM", 3, 4, proj_size=2))


def test_type_errors() -> None:
    for function in (from_linen, from_nnx, to_linen, to_nnx):
        for wrong in (3, "gru"):
            with pytest.raises(TypeError, match=rf"{function.__name__} expects .*, got (int|str)"):
                function(wrong)
