"""Conversion from and to Keras 3: 20 random layers each, and errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import cells
from jaxrnn.interop import ConversionError
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.layers.recurrent import Recurrent
from tests.convert_cases import Config, close, configs, layer, quietly, same_weights, with_one_bias

with pytest.MonkeyPatch.context() as environment:
    environment.setenv("KERAS_BACKEND", "jax")  # read once, when Keras is imported
    keras: Any = quietly("keras", pytest.importorskip)

# Keras reads its variables this way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONFIGS = configs(seed=1)
KERAS = {"RNN_TANH": "SimpleRNN", "RNN_RELU": "SimpleRNN", "LSTM": "LSTM", "GRU": "GRU"}


@pytest.fixture(autouse=True)
def as_keras_needs_it() -> Iterator[None]:
    """Allow rank promotion, which Keras needs, and disable float64, where its GRU fails."""
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


def theirs(config: Config) -> Any:
    """Return a Sequential with random weights, created without jaxrnn."""
    options: dict[str, Any] = {"return_sequences": True, "use_bias": config.bias}
    options |= {"kernel_initializer": "zeros", "recurrent_initializer": "zeros"}
    if config.kind == "RNN_RELU":
        options["activation"] = "relu"
    model = keras.Sequential([keras.Input((None, config.input_size))])
    for _ in range(config.num_layers):
        one = getattr(keras.layers, KERAS[config.kind])(config.hidden_size, **options)
        model.add(keras.layers.Bidirectional(one) if config.bidirectional else one)
    random = np.random.RandomState(config.number)
    model.set_weights([random.uniform(-0.7, 0.7, w.shape) for w in model.get_weights()])
    return model


def run(model: Any, x: Any) -> np.ndarray:
    return np.asarray(jax.jit(lambda x: model(x))(x))


def built(one: Any, features: int = 3) -> Any:
    one.build((None, None, features))
    return one


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_to_keras_outputs_agree(config: Config) -> None:
    ours, x = config.layer(), config.input()
    batch_major = x if config.batch_first else x.swapaxes(0, 1)
    output = np.asarray(ours(x)[0])
    model = to_keras(ours)
    close(run(model, batch_major), output if config.batch_first else output.swapaxes(0, 1))

    back = from_keras(model)
    held = ours if config.kind == "GRU" else with_one_bias(ours)
    held.batch_first = True
    same_weights(back, held)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_from_keras_outputs_agree(config: Config) -> None:
    model, x = theirs(config), config.input()
    x = x if config.batch_first else x.swapaxes(0, 1)
    ours = from_keras(model)
    output, last = ours(x)
    close(output, run(model, x))
    h_n = last[0] if config.kind == "LSTM" else last
    close(h_n[-2 if config.bidirectional else -1], output[:, -1, : config.hidden_size])
    for expected, actual in zip(model.get_weights(), to_keras(ours).get_weights(), strict=True):
        assert expected.dtype == actual.dtype
        np.testing.assert_array_equal(expected, actual)


def test_layer_list_and_rnn_of_a_cell() -> None:
    one, two = built(keras.layers.LSTM(4, return_sequences=True)), built(keras.layers.LSTM(4), 4)
    assert repr(from_keras(one)) == "LSTM(3, 4, batch_first=True)"
    stacked = from_keras([one, two])
    assert repr(stacked) == "LSTM(3, 4, num_layers=2, batch_first=True)"
    around = built(keras.layers.RNN(keras.layers.LSTMCell(4), return_sequences=True))
    around.set_weights(one.get_weights())
    same_weights(from_keras(around), from_keras(one))


def test_initializers_of_a_model_rebuilt_from_its_config() -> None:
    model = to_keras(layer("LSTM", 3, 4, bidirectional=True))
    anew = keras.models.clone_model(model)
    for one in (model, anew):
        cell = one.layers[0].backward_layer.cell
        assert type(cell.kernel_initializer).__name__ == "GlorotUniform"
        assert type(cell.recurrent_initializer).__name__.startswith("Orthogonal")
    assert all(w.any() for w in anew.get_weights())


@pytest.mark.parametrize("bias", [True, False])
def test_round_trip_of_reset_before(bias: bool) -> None:
    layers = [
        keras.layers.Bidirectional(
            keras.layers.GRU(4, reset_after=False, return_sequences=True, use_bias=bias)
        )
        for _ in range(2)
    ]
    model = keras.Sequential([keras.Input((None, 3)), *layers])
    random = np.random.RandomState(0)
    model.set_weights([random.uniform(-0.7, 0.7, w.shape) for w in model.get_weights()])
    x = random.uniform(-1, 1, (2, 5, 3)).astype(np.float32)
    ours = from_keras(model)
    assert repr(ours).startswith("Recurrent(GRUResetBefore(), 3, 4, num_layers=2")
    close(ours(x)[0], run(model, x))
    back = to_keras(ours)
    for expected, actual in zip(model.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, actual)
    close(run(back, x), run(model, x))


def test_states_agree() -> None:
    theirs = built(keras.layers.LSTM(4, return_state=True))
    x = np.random.RandomState(0).uniform(-1, 1, (2, 5, 3)).astype(np.float32)
    start = np.random.RandomState(1).uniform(-1, 1, (2, 2, 4)).astype(np.float32)
    last, h, c = theirs(x, initial_state=list(start))
    output, (h_n, c_n) = from_keras(theirs)(x, (start[:1], start[1:]))
    close(output[:, -1], last)
    close(h_n[0], h)
    close(c_n[0], c)


def test_mask_equals_lengths() -> None:
    theirs = built(keras.layers.GRU(4))
    x = np.random.RandomState(0).uniform(-1, 1, (2, 5, 3)).astype(np.float32)
    lengths = np.array([5, 2])
    last = theirs(x, mask=np.arange(5) < lengths[:, None])
    close(from_keras(theirs)(x, lengths=lengths)[1][0], last)


@pytest.mark.parametrize(
    ("policy", "param", "dtype"),
    [
        ("float64", "float64", None),
        ("mixed_bfloat16", "float32", "bfloat16"),
        ("float16", "float16", None),
    ],
)
def test_round_trip_of_dtype_policies(policy: str, param: str, dtype: str | None) -> None:
    with jax.enable_x64(True):
        zeros = {"recurrent_initializer": "zeros"}  # Keras draws no orthogonal ones in float16
        theirs = built(keras.layers.LSTM(4, return_sequences=True, dtype=policy, **zeros))
        ours = from_keras(theirs)
        assert jnp.dtype(ours.param_dtype) == param
        assert ours.dtype == (None if dtype is None else jnp.dtype(dtype))
        back = to_keras(ours).layers[0]
    assert back.dtype_policy.name == policy
    for one, other in zip(theirs.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_dropout_and_stateful_warn() -> None:
    with pytest.warns(UserWarning, match=r"does not convert dropout=0\.5 of lstm.*, stateful=True"):
        from_keras(built_stateful(keras.layers.LSTM(4, dropout=0.5, stateful=True)))
    ours = layer("GRU", 3, 4, num_layers=2)
    ours.dropout = 0.25
    with pytest.warns(UserWarning, match=r"to_keras does not convert dropout=0\.25") as caught:
        to_keras(ours)
    assert caught[0].filename == __file__


def built_stateful(one: Any) -> Any:
    one.build((2, None, 3))
    return one


def functional(one: Any) -> Any:
    x = keras.Input((None, 3))
    return keras.Model(x, one(x))


WRONG: list[tuple[Any, str]] = [
    (
        lambda k: k.GRU(4, recurrent_activation="relu"),
        r"recurrent_activation must be sigmoid",
    ),
    (lambda k: k.LSTM(4, activation="relu"), r"activation must be tanh, got relu"),
    (lambda k: k.SimpleRNN(4, activation="elu"), r"activation must be tanh or relu, got elu"),
    (lambda k: k.LSTM(4, activation=lambda x: x), r"activation must be tanh, got <lambda>"),
    (lambda k: k.LSTM(4, go_backwards=True), r"go_backwards must be False, got True"),
    (
        lambda k: k.Bidirectional(k.LSTM(4), merge_mode="sum"),
        r'must be "concat", got .sum',
    ),
    (
        lambda k: k.Bidirectional(k.LSTM(4), merge_mode=None),
        r'must be "concat", got None',
    ),
    (lambda k: k.Dense(4), r"must be a SimpleRNN, LSTM or GRU, got Dense$"),
    (lambda k: k.RNN([k.LSTMCell(4), k.LSTMCell(4)]), r"got RNN of StackedRNNCells"),
    (lambda k: functional(k.LSTM(4)), r"got Functional. Pass its layers"),
]


@pytest.mark.parametrize(("make", "words"), WRONG, ids=[words for _, words in WRONG])
def test_unsupported_keras_layers(make: Any, words: str) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        from_keras(built(make(keras.layers)))
    assert isinstance(caught.value, ValueError)


def test_all_problems_are_listed_at_once() -> None:
    layers = [
        built(keras.layers.LSTM(4, activation="relu")),
        keras.layers.GRU(4, recurrent_activation="relu"),
    ]
    with pytest.raises(ConversionError) as caught:
        from_keras(layers)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for words in (
        "return_sequences must be True",
        "activation must be tanh",
        "must be built",
        "activation must be sigmoid",
    ):
        assert sum(words in line for line in lines) == 1


def test_layers_that_form_no_stack() -> None:
    one = built(keras.layers.LSTM(4, return_sequences=True))
    for other, words in (
        (built(keras.layers.GRU(4), 4), "different kinds"),
        (built(keras.layers.LSTM(5), 4), "different hidden sizes"),
        (built(keras.layers.LSTM(4, dtype="mixed_float16"), 4), "different dtypes of the compu"),
        (built(keras.layers.Bidirectional(keras.layers.LSTM(4)), 4), "different directions"),
        (built(keras.layers.LSTM(4), 7), r"weight_ih_l1 must be \(16, 4\), got \(16, 7\)"),
    ):
        with pytest.raises(ConversionError, match=words):
            from_keras([one, other])
    with pytest.raises(ConversionError, match="no layers"):
        from_keras([])


def test_unsupported_layers() -> None:
    for ours, words in (
        (layer("LSTM", 3, 4, proj_size=2), "does not support proj_size=2"),
        (layer("GRU", 3, 4, param_dtype=jnp.bfloat16, dtype=jnp.float32), "no dtype policy for bf"),
        (
            OwnLayer(rngs=nnx.Rngs(0)),
            "supports the cells Elman, LSTM, GRU, GRUResetBefore, got Own",
        ),
    ):
        with pytest.raises(ConversionError, match=words.replace("for bf", "for bfloat16")):
            to_keras(ours)


class Own(cells.Cell):
    gates = ("h",)

    def step(self, z: Any, state: Any) -> Any:
        return (jnp.tanh(z),)


class OwnLayer(Recurrent):
    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(Own(), 3, 4, 1, True, False, 0.0, False, rngs=rngs)


def test_type_errors() -> None:
    for wrong in (3, "lstm", jaxrnn.RNN, [3]):
        with pytest.raises(TypeError, match=r"from_keras expects layers of Keras, got (int|str|M)"):
            from_keras(wrong)
        with pytest.raises(TypeError, match=r"to_keras expects an RNN, LSTM or GRU, got"):
            to_keras(wrong)


def test_float64_without_x64() -> None:
    with jax.enable_x64(True):
        theirs = built(keras.layers.LSTM(4, dtype="float64"))
    with pytest.raises(ConversionError, match="jax_enable_x64"):
        from_keras(theirs)


def test_without_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    for function in (from_keras, to_keras):
        with pytest.raises(ImportError, match=r'pip install "jaxrnn\[keras\]"'):
            function(layer("RNN", 3, 4))
