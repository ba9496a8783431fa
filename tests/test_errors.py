"""Wrong arguments raise PyTorch's errors: its types, its order, before any computation.

Deliberate messages are equal too; where PyTorch fails by accident, only the type is.
Where PyTorch is installed, every case is run in it too.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError

import jaxrnn
from jaxrnn import _checks as checks
from jaxrnn.backends import select
from jaxrnn.core import stack
from jaxrnn.layers import single_step
from jaxrnn.layers.heads import linear
from tests.oracle import torch

N, T, D, H, P = 2, 5, 3, 4, 2
LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")


@dataclass(frozen=True)
class Zeros:
    """The shape and dtype of zeros, for either library."""

    shape: tuple[int, ...]
    dtype: str = "float32"


X, X_STEP = Zeros((T, N, D)), Zeros((N, D))


def f32(*shape: int) -> Zeros:
    return Zeros(shape)


def f64(*shape: int) -> Zeros:
    return Zeros(shape, "float64")


def states(kind: str, state: Any) -> Any:
    """Return the hx of a layer or cell; an LSTM has two states."""
    return (state, state) if kind.startswith("LSTM") and state is not None else state


def ours(kind: str, *args: Any, **options: Any) -> Any:
    return getattr(jaxrnn, kind)(*args, **{"rngs": nnx.Rngs(0)} | options)


def theirs(kind: str, *args: Any, **options: Any) -> Any:
    assert torch is not None
    return getattr(torch.nn, kind)(*args, **options)


cached = functools.cache(ours)  # a call changes nothing in a module


def fill(spec: Any, torch_module: bool = False) -> Any:
    """Replace `Zeros` by arrays of one library."""
    if isinstance(spec, (tuple, list)):
        return type(spec)(fill(s, torch_module) for s in spec)
    if not isinstance(spec, Zeros):
        return spec
    if torch is not None and torch_module:
        return torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
    return jnp.zeros(spec.shape, spec.dtype)


def raised(call: Callable[[], Any]) -> Exception:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as caught:
            call()
    return caught.value


def check_error(ours: Exception, theirs: Exception, *, deliberate: bool = True) -> None:
    """Check that an error is an instance of PyTorch's type, with its message if deliberate."""
    assert isinstance(ours, type(theirs)), f"{type(ours)} is not a {type(theirs)}"
    text = str(theirs).replace("torch.", "").split(". Convert input:")[0]
    text = re.sub(r"^RNNBase\.__init__\(\) ", "", text)
    if deliberate:
        assert text in str(ours)


# Constructors, in the order of the checks

DROPOUT = (
    "dropout should be a number in range [0, 1] representing the probability of an element being "
    "zeroed"
)
NO_PROJECTION = "proj_size argument is only supported for LSTM, not RNN or GRU"


class Fault(NamedTuple):
    """One wrong argument of a constructor."""

    options: dict[str, Any]
    error: type[Exception]
    words: str
    deliberate: bool = True  # False if PyTorch did not choose the message

    @property
    def name(self) -> str:
        return "-".join(f"{name}={value!r}" for name, value in self.options.items())


FAULTS = [
    Fault({"dropout": "a"}, ValueError, "could not convert string to float: 'a'"),
    Fault({"dropout": None}, TypeError, "float() argument must be a string or a real number"),
    *[Fault({"dropout": p}, ValueError, DROPOUT) for p in ("0.5", True, -0.1, 1.1, float("nan"))],
    Fault({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
    Fault({"bias": None}, TypeError, "bias should be of type bool, got: NoneType"),
    Fault({"batch_first": "x"}, TypeError, "batch_first should be of type bool, got: str"),
    Fault({"input_size": 2.0}, TypeError, "input_size should be of type int, got: float"),
    Fault({"input_size": np.int64(2)}, TypeError, "input_size should be of type int, got: int64"),
    Fault({"input_size": 0}, ValueError, "input_size must be greater than zero"),
    Fault({"hidden_size": "4"}, TypeError, "hidden_size should be of type int, got: str"),
    Fault({"hidden_size": -1}, ValueError, "hidden_size must be greater than zero"),
    Fault({"num_layers": 0}, ValueError, "num_layers must be greater than zero"),
    Fault({"num_layers": None}, TypeError, "'<=' not supported between instances of 'NoneType'"),
    Fault({"proj_size": -1}, ValueError, "proj_size should be a positive integer or zero"),
    Fault({"proj_size": 9}, ValueError, "proj_size has to be smaller than hidden_size"),
    Fault({"num_layers": 1.5}, TypeError, "num_layers should be of type int, got: float", False),
    Fault({"proj_size": 1.5}, TypeError, "proj_size should be of type int, got: float", False),
]


def check_constructor(kind: str, options: dict[str, Any], case: Fault) -> None:
    options = {"input_size": D, "hidden_size": H} | options
    error = raised(lambda: ours(kind, **options))
    assert isinstance(error, case.error)
    assert case.words in str(error)
    if torch is not None:
        check_error(error, raised(lambda: theirs(kind, **options)), deliberate=case.deliberate)


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_wrong_argument_of_a_layer_raises_pytorchs_error(kind: str, case: Fault) -> None:
    if "proj_size" in case.options and kind != "LSTM":
        case = Fault(case.options, ValueError, NO_PROJECTION)
    check_constructor(kind, case.options, case)


@pytest.mark.parametrize(
    ("first", "second"),
    [(a, b) for a, b in itertools.combinations(FAULTS, 2) if a.options.keys() != b.options.keys()],
    ids=lambda case: case.name,
)
def test_two_wrong_arguments_raise_the_error_of_the_first_check(
    first: Fault, second: Fault
) -> None:
    check_constructor("LSTM", first.options | second.options, first)


@pytest.mark.parametrize("more", [{}, {"bias": 1}, {"dropout": 2}], ids=str)
@pytest.mark.parametrize("size", [0, P])
@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_proj_size_of_rnn_and_gru_is_refused_first(kind: str, size: int, more: Any) -> None:
    case = Fault({"proj_size": size}, ValueError, NO_PROJECTION)
    check_constructor(kind, case.options | more, case)


@pytest.mark.parametrize("more", [{}, {"dropout": 2}], ids=str)
@pytest.mark.parametrize("value", ["foo", True, None])
def test_an_unknown_nonlinearity_is_refused_before_other_arguments(value: Any, more: Any) -> None:
    words = f"Unknown nonlinearity '{value}'. Select from 'tanh' or 'relu'."
    case = Fault({"nonlinearity": value}, ValueError, words)
    check_constructor("RNN", case.options | more, case)


def test_a_boolean_as_fourth_argument_of_an_rnn_is_refused_as_nonlinearity() -> None:
    error = raised(lambda: ours("RNN", D, H, 1, True))
    assert "Unknown nonlinearity 'True'" in str(error)
    if torch is not None:
        check_error(error, raised(lambda: theirs("RNN", D, H, 1, True)))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dropout", [0.5, 1])
def test_dropout_of_one_layer_warns_with_pytorchs_message(kind: str, dropout: float) -> None:
    words = (
        "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
        f"expects num_layers greater than 1, but got dropout={dropout} and num_layers=1"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(words)}$"):
        ours(kind, D, H, dropout=dropout)
    if torch is not None:
        with pytest.warns(UserWarning, match=f"^{re.escape(words)}$"):
            theirs(kind, D, H, dropout=dropout)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_warning_points_to_the_line_that_constructs_the_layer(kind: str) -> None:
    with pytest.warns(UserWarning, match="dropout") as record:
        getattr(jaxrnn, kind)(D, H, dropout=0.5, rngs=nnx.Rngs(0))
    assert record[0].filename == __file__


def test_dropout_of_one_layer_warns_before_a_wrong_bias_raises() -> None:
    with pytest.warns(UserWarning, match="dropout option"), pytest.raises(TypeError, match="bias"):
        ours("GRU", D, H, dropout=0.5, bias=None)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_missing_rngs_are_named(kind: str) -> None:
    with pytest.raises(TypeError, match="'rngs'"):
        getattr(jaxrnn, kind)(D, H)


@pytest.mark.parametrize("rngs", [0, jax.random.key(0), None], ids=["seed", "key", "None"])
@pytest.mark.parametrize("make", [jaxrnn.LSTM, jaxrnn.GRUCell, linear])
def test_rngs_of_another_type_are_refused_with_the_fix(make: Any, rngs: Any) -> None:
    with pytest.raises(TypeError, match=r"must be flax\.nnx\.Rngs, got .*rngs=nnx\.Rngs\(0\)"):
        make(D, H, rngs=rngs)


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("parameters", "nnx.state(module, nnx.Param)"),
        ("named_parameters", "jaxrnn.state_dict(module)"),
        ("state_dict", "jaxrnn.state_dict(module)"),
        ("load_state_dict", "jaxrnn.load_state_dict(module, mapping)"),
        ("forward", "call the module"),
        ("flatten_parameters", "remove the call"),
        ("zero_grad", "nnx.grad"),
        ("requires_grad_", "wrt="),
        ("reset_parameters", "rngs"),
        ("to", "jax.device_put"),
        ("cuda", "jax.device_put"),
        ("cpu", "jax.device_put"),
        ("double", "param_dtype="),
        ("float", "param_dtype="),
        ("half", "param_dtype="),
        ("bfloat16", "param_dtype="),
    ],
)
def test_a_missing_pytorch_method_names_its_replacement(kind: str, name: str, hint: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(cached(kind, D, H), name)
    assert str(caught.value).startswith(f"{kind!r} object has no attribute {name!r}: ")
    assert hint in str(caught.value)
    if torch is not None:
        assert hasattr(torch.nn.LSTM, name)


class FaultyLayer(jaxrnn.GRU):
    @property
    def faulty(self) -> Any:
        return self.absent  # pyright: ignore[reportAttributeAccessIssue]


def test_other_missing_attributes_raise_pythons_error() -> None:
    layer = FaultyLayer(D, H, rngs=nnx.Rngs(0))
    assert not hasattr(layer, "foo")
    with pytest.raises(AttributeError, match=r"'FaultyLayer' object has no attribute 'foo'$"):
        layer.foo  # pyright: ignore # noqa: B018
    with pytest.raises(AttributeError, match="'absent'"):
        layer.faulty  # noqa: B018


SIZES = ["input_size", "hidden_size"]
OPTIONS = ["bias", "batch_first", "dropout", "bidirectional"]
SIGNATURES = {
    "RNN": [
        *SIZES,
        "num_layers",
        "nonlinearity",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    ],
    "GRU": [*SIZES, "num_layers", *OPTIONS],
    "LSTM": [*SIZES, "num_layers", *OPTIONS, "proj_size"],
    "RNNCell": [*SIZES, "bias", "nonlinearity"],
    "LSTMCell": [*SIZES, "bias"],
    "GRUCell": [*SIZES, "bias"],
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_signatures_list_pytorchs_arguments_in_order(kind: str) -> None:
    parameters = list(inspect.signature(getattr(jaxrnn, kind)).parameters)
    assert parameters == [*SIGNATURES[kind], "rngs", "options"]


def test_a_layer_inside_a_model_prints_as_in_pytorch() -> None:
    model = nnx.List([cached("LSTM", D, H), ours("GRUCell", D, H, bias=False)])
    assert repr(model) == "List([\n  LSTM(3, 4),\n  GRUCell(3, 4, bias=False)\n])"


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("name", ["device", "foo"])
def test_an_unknown_option_is_named_with_the_known_ones(kind: str, name: str) -> None:
    error = raised(lambda: ours(kind, D, H, **{name: "cpu"}))
    assert isinstance(error, TypeError)
    assert f"got an unexpected keyword argument '{name}'" in str(error)
    assert str(error).startswith(kind)
    assert "dtype, param_dtype" in str(error)
    assert ("device_put" in str(error)) == (name == "device")


def test_a_ninth_argument_of_a_gru_is_refused_at_construction() -> None:
    with pytest.raises(TypeError, match="from 3 to 8 positional arguments but 9"):
        ours("GRU", D, H, 1, True, False, 0.0, False, P)


@pytest.mark.parametrize("kind", LAYERS)
def test_an_unknown_backend_is_refused_with_the_choices(kind: str) -> None:
    error = raised(lambda: ours(kind, D, H, backend="fastest"))
    assert isinstance(error, ValueError)
    assert all(repr(name) in str(error) for name in (*select.BACKENDS, "fastest"))


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ((None, H), TypeError, "`input_size` must be an int, got None"),
        ((D, 4.0), TypeError, "`hidden_size` must be an int, got 4.0"),
        (("3", H), TypeError, "`input_size` must be an int, got '3'"),
        ((-1, H), RuntimeError, "`input_size` must be 0 or greater, got -1"),
        ((D, -2), RuntimeError, "`hidden_size` must be 0 or greater, got -2"),
    ],
    ids=str,
)
def test_a_wrong_size_of_a_cell_is_refused(sizes: Any, error: type[Exception], words: str) -> None:
    caught = raised(lambda: ours("RNNCell", *sizes))
    assert isinstance(caught, error)
    assert words in str(caught)
    if torch is not None:
        check_error(caught, raised(lambda: theirs("RNNCell", *sizes)), deliberate=False)


REPRS = [
    ("RNN", (2, 4), {}, "RNN(2, 4)"),
    ("RNN", (2, 4), {"nonlinearity": "relu"}, "RNN(2, 4)"),
    ("RNN", (2, 4, 2, "relu"), {}, "RNN(2, 4, num_layers=2)"),
    ("GRU", (2, 4), {"bidirectional": 1}, "GRU(2, 4, bidirectional=1)"),
    ("GRU", (2, 4), {"bidirectional": 0}, "GRU(2, 4, bidirectional=0)"),
    ("GRU", (True, 4), {"bias": False}, "GRU(True, 4, bias=False)"),
    ("GRU", (2, 4, 3), {"dropout": 1}, "GRU(2, 4, num_layers=3, dropout=1.0)"),
    ("GRU", (2, 4, 2), {"dropout": np.float32(0.5)}, "GRU(2, 4, num_layers=2, dropout=0.5)"),
    ("LSTM", (2, 4, np.int64(2)), {}, "LSTM(2, 4, num_layers=2)"),
    ("LSTM", (2, 4), {"proj_size": np.int64(2)}, "LSTM(2, 4, proj_size=2)"),
    (
        "LSTM",
        (2, 4, 2, False, True, 0.5, True, 3),
        {},
        "LSTM(2, 4, proj_size=3, num_layers=2, bias=False, batch_first=True, dropout=0.5, "
        "bidirectional=True)",
    ),
    ("RNNCell", (2, 4), {}, "RNNCell(2, 4)"),
    ("RNNCell", (2, 4, False, "relu"), {}, "RNNCell(2, 4, bias=False, nonlinearity=relu)"),
    ("RNNCell", (2, 4), {"nonlinearity": "foo"}, "RNNCell(2, 4, nonlinearity=foo)"),
    ("GRUCell", (2, 4), {"bias": None}, "GRUCell(2, 4, bias=None)"),
    ("LSTMCell", (2, 4), {"bias": 1}, "LSTMCell(2, 4, bias=1)"),
    ("LSTMCell", (2, 0), {}, "LSTMCell(2, 0)"),
    ("GRUCell", (np.int64(2), np.int32(4)), {}, "GRUCell(2, 4)"),
]


@pytest.mark.parametrize(("kind", "args", "options", "text"), REPRS, ids=[r[3] for r in REPRS])
def test_a_module_prints_as_in_pytorch(kind: str, args: Any, options: Any, text: str) -> None:
    module = ours(kind, *args, **options)
    assert repr(module) == str(module) == text
    if torch is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of empty parameters
            assert repr(theirs(kind, *args, **options)) == text


# Calls


class Call(NamedTuple):
    """One wrong call of a module of D features and H hidden features."""

    kind: str
    x: Any
    hx: Any
    error: type[Exception]
    words: str
    options: dict[str, Any] = {}
    deliberate: bool = True  # False if PyTorch did not choose the message


def check_call(call: Call) -> None:
    module, x, hx = cached(call.kind, D, H, **call.options), fill(call.x), fill(call.hx)
    error = raised(lambda: module(x, hx))
    assert isinstance(error, call.error)
    assert call.words in str(error)
    if torch is not None:
        other = theirs(call.kind, D, H, **call.options)
        tensor, state = fill(call.x, True), fill(call.hx, True)
        check_error(error, raised(lambda: other(tensor, state)), deliberate=call.deliberate)


def params(calls: list[Call]) -> Any:
    ids = [f"{c.kind}-{re.sub(r'[^a-zA-Z0-9]+', '_', c.words)[:50]}" for c in calls]
    return pytest.mark.parametrize("call", calls, ids=ids)


def axes(kind: str, batched: bool, got: int) -> str:
    word, n = ("batched", 3) if batched else ("unbatched", 2)
    if kind == "LSTM":
        which, what = "hx and cx", f"({got}-D, {got}-D) tensors"
    else:
        which, what = "hx", f"{got}-D tensor"
    return f"For {word} {n}-D input, {which} should also be {n}-D but got {what}"


def layer_calls(kind: str) -> list[Call]:
    name = "hidden[0]" if kind == "LSTM" else "hidden"
    no_axes = f"{kind}: Expected input to be 2D or 3D, got "
    tail = "D tensor instead" if kind == "RNN" else "D instead"
    no_size = "input.size(-1) must be equal to input_size. Expected 3, got 7"
    no_steps = "Expected sequence length to be larger than 0 in RNN"
    no_dtype = "RNN input dtype ({}) does not match weight dtype (float32). Convert input:"
    stacked = {"num_layers": 2, "bidirectional": True}

    def call(x: Any, state: Any, error: type[Exception], words: str, **options: Any) -> Call:
        return Call(kind, x, states(kind, state), error, words, options)

    def size(expected: tuple[int, ...], got: list[int]) -> str:
        return f"Expected {name} size {expected}, got {got}"

    return [
        *[call(f32(*[D] * n), None, ValueError, f"{no_axes}{n}{tail}") for n in (0, 1, 4)],
        call(f64(T, N, D), None, ValueError, no_dtype.format("float64")),
        call(Zeros((T, N, D), "int32"), None, ValueError, no_dtype.format("int32")),
        call(f32(T, N, 7), None, RuntimeError, no_size),
        call(f32(T, 7), None, RuntimeError, no_size),
        call(f32(N, T, 7), None, RuntimeError, no_size, batch_first=True),
        call(X, f32(1, H), RuntimeError, axes(kind, True, 2)),
        call(X, f32(1, 1, N, H), RuntimeError, axes(kind, True, 4)),
        call(f32(T, D), f32(1, 1, H), RuntimeError, axes(kind, False, 3)),
        call(f32(T, D), f32(H), RuntimeError, axes(kind, False, 1), batch_first=True),
        call(X, f32(2, N, H), RuntimeError, size((1, N, H), [2, N, H])),
        call(X, f32(1, 1, H), RuntimeError, size((1, N, H), [1, 1, H])),
        call(X, f32(1, N, 1), RuntimeError, size((1, N, H), [1, N, 1])),
        call(f32(T, D), f32(2, H), RuntimeError, size((1, 1, H), [2, 1, H])),
        call(X, f32(1, N, H), RuntimeError, size((1, T, H), [1, N, H]), batch_first=True),
        call(X, f32(2, N, H), RuntimeError, size((4, N, H), [2, N, H]), **stacked),
        call(f32(0, N, D), None, RuntimeError, no_steps),
        call(f32(0, D), None, RuntimeError, no_steps),
        call(f32(N, 0, D), None, RuntimeError, no_steps, batch_first=True),
        call(f32(0, 0, D), None, RuntimeError, no_steps),
    ]


H0, NO_ARRAY = f32(1, N, H), "of `hx` must be an array, got "
NO_DTYPE = "must have dtype float32, as the weights require, got float64"
LAYER_STATES = [
    *[
        Call(kind, X, hx, AttributeError, NO_ARRAY + f"a {type(hx).__name__}", deliberate=False)
        for kind in ("RNN", "GRU")
        for hx in ((H0,), (H0, H0), [H0, H0], ())
    ],
    Call("LSTM", X, (H0,), IndexError, "expects two hidden states (h, c), got 1", deliberate=False),
    Call("LSTM", X, [H0], IndexError, "expects two hidden states (h, c), got 1", deliberate=False),
    Call("LSTM", X, (), IndexError, "expects two hidden states (h, c), got 0", deliberate=False),
    Call("LSTM", X, (H0, H0, H0), RuntimeError, "lstm expects two hidden states"),
    Call("LSTM", X, H0, IndexError, "got one array of shape (1, 2, 4)", deliberate=False),
    Call("LSTM", X, f32(2, N, H), RuntimeError, "lstm expects two hidden states", deliberate=False),
    Call("LSTM", X, (H0, None), AttributeError, NO_ARRAY + "NoneType", deliberate=False),
    Call("LSTM", X, (None, H0), AttributeError, NO_ARRAY + "NoneType", deliberate=False),
    Call("LSTM", X, (H0, f32(N, H)), RuntimeError, "but got (3-D, 2-D) tensors"),
    Call("LSTM", X, (H0, f32(1, N, 5)), RuntimeError, "hidden[1] size (1, 2, 4), got [1, 2, 5]"),
    Call("LSTM", f32(T, D), (f32(1, H), f32(2, H)), RuntimeError, "hidden[1] size (1, 1, 4), got"),
    *[
        Call("LSTM", X, (f32(1, N, h), f32(1, N, c)), RuntimeError, words, {"proj_size": P})
        for h, c, words in [
            (H, H, "Expected hidden[0] size (1, 2, 2), got [1, 2, 4]"),
            (P, P, "Expected hidden[1] size (1, 2, 4), got [1, 2, 2]"),
        ]
    ],
    *[
        Call(kind, X, states(kind, f64(1, N, H)), RuntimeError, NO_DTYPE, deliberate=False)
        for kind in LAYERS
    ],
]


def layer_order(kind: str) -> list[Call]:
    """Return calls each of which has the faults of all later ones too."""
    lstm = kind == "LSTM"
    name = "hidden[0]" if lstm else "hidden"
    count = (f64(1, N, H),)
    error, words = (IndexError, "got 1") if lstm else (AttributeError, NO_ARRAY)
    bad_count = Call(kind, f64(0, N, 7), count, error, words, deliberate=False)

    def state(*shape: int) -> Any:
        return (f64(*shape),) * 3 if lstm else f64(*shape)

    size = "input.size(-1) must be equal to input_size"
    calls = [
        Call(kind, f64(7), count, ValueError, f"{kind}: Expected input to be 2D or 3D, got 1D"),
        bad_count,
        Call(kind, f64(0, N, 7), state(N, 5), RuntimeError, axes(kind, True, 2)),
        Call(kind, f64(0, N, 7), state(1, N, 5), ValueError, "RNN input dtype (float64) does not"),
        Call(kind, f32(0, N, 7), state(1, N, 5), RuntimeError, size),
        Call(kind, f32(0, N, D), state(1, N, 5), RuntimeError, f"Expected {name} size (1, 2, 4)"),
        Call(kind, f32(0, N, D), state(1, N, H), RuntimeError, "lstm expects two hidden states"),
        Call(kind, f32(0, N, D), states(kind, f64(1, N, H)), RuntimeError, "Expected sequence len"),
    ]
    return calls if lstm else calls[:-2] + calls[-1:]


def cell_calls(kind: str) -> list[Call]:
    hidden = "hx[0]" if kind == "LSTMCell" else "hidden"
    size = "input has inconsistent input_size: got 5 expected 3"

    def call(x: Any, state: Any, error: type[Exception], words: str, **more: Any) -> Call:
        return Call(kind, x, states(kind, state), error, words, **more)

    def hidden_size(got: int) -> str:
        return f"hidden0 has inconsistent hidden_size: got {got}, expected 4"

    def batch(x: int, state: int) -> str:
        return f"Input batch size {x} doesn't match hidden0 batch size {state}"

    def dims(what: str, got: int) -> str:
        return f"{kind}: Expected {what} to be 1D or 2D, got {got}D instead"

    return [
        call(f32(T, N, D), None, ValueError, dims("input", 3)),
        call(f32(), None, ValueError, dims("input", 0)),
        call(X_STEP, f32(1, N, H), ValueError, dims(hidden, 3)),
        call(X_STEP, f32(), ValueError, dims(hidden, 0)),
        call(f32(N, 5), None, RuntimeError, size),
        call(f32(5), None, RuntimeError, size),
        call(X_STEP, f32(N, 5), RuntimeError, hidden_size(5)),
        call(f32(D), f32(5), RuntimeError, hidden_size(5)),
        call(f32(D), f32(1, H), RuntimeError, hidden_size(1)),
        call(X_STEP, f32(3, H), RuntimeError, batch(N, 3)),
        call(X_STEP, f32(1, H), RuntimeError, batch(N, 1)),
        call(X_STEP, f32(H), RuntimeError, batch(N, H)),
        call(f64(N, D), None, RuntimeError, NO_DTYPE, deliberate=False),
        call(X_STEP, f64(N, H), RuntimeError, NO_DTYPE, deliberate=False),
    ]


H1 = f32(N, H)
CELL_STATES = [
    *[
        Call(
            kind, X_STEP, hx, AttributeError, NO_ARRAY + f"a {type(hx).__name__}", deliberate=False
        )
        for kind in ("RNNCell", "GRUCell")
        for hx in ((H1,), [H1, H1], ())
    ],
    Call("LSTMCell", X_STEP, (H1,), RuntimeError, "lstm_cell expects two hidden states"),
    Call("LSTMCell", X_STEP, (H1, H1, H1), RuntimeError, "lstm_cell expects two hidden states"),
    Call("LSTMCell", X_STEP, (f32(1, N, H),) * 3, ValueError, "Expected hx[0] to be 1D or 2D"),
    Call(
        "RNNCell", X_STEP, f32(N), IndexError, "must have shape (2, 4), got (2,)", deliberate=False
    ),
    Call("LSTMCell", f32(D), (f32(H),), IndexError, "two hidden states", deliberate=False),
    Call(
        "GRUCell",
        f32(D),
        f32(H, 2),
        RuntimeError,
        "(4, 2) for unbatched input",
        deliberate=False,
    ),
    Call(
        "LSTMCell",
        X_STEP,
        H1,
        TypeError,
        "two hidden states (h, c), got one array of shape (2, 4). Pass a tuple (h, c)",
        deliberate=False,
    ),
    Call("LSTMCell", X_STEP, (H1, None), AttributeError, NO_ARRAY + "NoneType", deliberate=False),
    Call("LSTMCell", X_STEP, (H1, f32(1, N, H)), ValueError, "Expected hx[1] to be 1D or 2D"),
    Call("LSTMCell", X_STEP, (H1, f32(N, 5)), RuntimeError, "hidden1 has inconsistent hidden_size"),
    Call("LSTMCell", X_STEP, (H1, f32(3, H)), RuntimeError, "doesn't match hidden1 batch size 3"),
    Call(
        "RNNCell", X_STEP, None, RuntimeError, "Unknown nonlinearity: foo", {"nonlinearity": "foo"}
    ),
]


def cell_order(kind: str) -> list[Call]:
    """Return calls each of which has the faults of all later ones too."""
    lstm = kind == "LSTMCell"
    hidden = "hx[0]" if lstm else "hidden"
    foo = {"nonlinearity": "foo"} if kind == "RNNCell" else {}
    count, words = (f64(N, 5),), "lstm_cell expects two hidden states"
    bad_count = Call(kind, f64(N, 5), count, RuntimeError, words)
    if not lstm:
        bad_count = Call(kind, f64(N, 5), count, AttributeError, NO_ARRAY, foo, deliberate=False)
    calls = [
        Call(kind, f64(1, N, 5), count, ValueError, f"{kind}: Expected input to be 1D or 2D", foo),
        bad_count,
        Call(
            kind,
            f64(N, 5),
            states(kind, f64(1, N, 5)),
            ValueError,
            f"{kind}: Expected {hidden} to be 1D or 2D, got 3D",
            foo,
        ),
        Call(kind, f64(N, 5), states(kind, f64(3, 5)), RuntimeError, "Unknown nonlinearity", foo),
        Call(kind, f64(N, 5), states(kind, f64(3, 5)), RuntimeError, "inconsistent input_size"),
        Call(kind, f64(N, D), states(kind, f64(3, 5)), RuntimeError, "Input batch size 2 doesn't"),
        Call(kind, f64(N, D), states(kind, f64(N, 5)), RuntimeError, "inconsistent hidden_size"),
    ]
    return calls if foo else calls[:3] + calls[4:]


@params(
    [call for kind in LAYERS for call in layer_calls(kind)]
    + [call for kind in CELLS for call in cell_calls(kind)]
)
def test_a_wrong_array_in_a_call_raises_pytorchs_error(call: Call) -> None:
    check_call(call)


@params(LAYER_STATES + CELL_STATES)
def test_a_wrong_structure_of_states_raises_pytorchs_error(call: Call) -> None:
    check_call(call)


@params(
    [call for kind in LAYERS for call in layer_order(kind)]
    + [call for kind in CELLS for call in cell_order(kind)]
)
def test_several_faults_in_a_call_raise_the_error_of_the_first_check(call: Call) -> None:
    check_call(call)


@pytest.mark.parametrize("args", [(0, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_accepts_sizes_of_zero_at_construction(kind: str, args: tuple[int, int]) -> None:
    assert ours(kind, *args, bias=None).bias is None


# Time of the checks

WRONG = [
    ("RNN", f32(T, N, 7), None, "input.size"),
    ("GRU", f64(T, N, D), None, "input dtype"),
    ("LSTM", X, (f32(1, 1, H),) * 2, "Expected hidden"),
    ("LSTM", f32(0, N, D), None, "sequence length"),
    ("RNNCell", f32(N, 5), None, "input_size"),
    ("LSTMCell", X_STEP, (f32(3, H),) * 2, "batch size"),
]


@pytest.mark.parametrize(
    "trace", [jax.eval_shape, lambda f, *a: jax.jit(f)(*a)], ids=["eval", "jit"]
)
@pytest.mark.parametrize(("kind", "x", "hx", "words"), WRONG, ids=[c[3] for c in WRONG])
def test_checks_happen_while_a_call_is_traced(
    trace: Any, kind: str, x: Any, hx: Any, words: str
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=words):
        trace(cached(kind, D, H), fill(x), fill(hx))


@pytest.mark.parametrize(("kind", "x", "hx", "words"), WRONG, ids=[c[3] for c in WRONG])
def test_nothing_is_computed_before_an_error(
    monkeypatch: pytest.MonkeyPatch, kind: str, x: Any, hx: Any, words: str
) -> None:
    module, x, hx = cached(kind, D, H), fill(x), fill(hx)
    for place, name in ((stack, "run"), (single_step, "run_step")):
        monkeypatch.setattr(place, name, lambda *a, **k: pytest.fail("computed"))
    with pytest.raises((ValueError, RuntimeError), match=words):
        module(x, hx)


def test_a_failed_call_draws_nothing_from_the_dropout_stream() -> None:
    layer = ours("GRU", D, H, 2, dropout=0.5)
    before = layer.rngs.count[...].item()
    with pytest.raises(ValueError, match=r"input\.size"):
        layer(fill(f32(T, N, 7)))
    assert layer.rngs.count[...].item() == before


@pytest.mark.parametrize("kind", LAYERS)
def test_active_dropout_without_a_stream_names_the_fix(kind: str) -> None:
    layer = ours(kind, D, H, 2, dropout=0.5, rngs=nnx.Rngs(params=0))
    with pytest.raises(ValueError, match="no random stream: pass rngs="):
        layer(fill(X))
    layer.eval()
    jax.eval_shape(layer, fill(X))


def test_dropout_in_a_closure_under_jit_names_the_fix() -> None:
    layer = ours("LSTM", D, H, 2, dropout=0.5)
    with pytest.raises(TraceContextError, match=r"Give the call a key, rngs=key, or use nnx\.jit"):
        jax.eval_shape(lambda x: layer(x), fill(X))
    jax.eval_shape(lambda x, key: layer(x, rngs=key), fill(X), jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *itertools.product(["weight_ih", "weight_hh", "bias_ih", "bias_hh"], ["scan", "kernel"]),
        ("weight_hr", "scan"),
    ],
)
def test_weights_of_inconsistent_shapes_are_refused(name: str, backend: str) -> None:
    cell = jaxrnn.cells.LSTM()
    size = P if name == "weight_hr" else 0
    (weights,) = stack.init(jax.random.key(0), cell, D, H, proj_size=size)
    wrong = weights._replace(**{name: getattr(weights, name)[:-1]})
    options = stack.StackOptions(cell, backend=backend)
    with pytest.raises(checks.ShapeError, match=r"must have the shapes .*, got .*"):
        stack.run(options, (wrong,), fill(X))


# Valid edge cases


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("RNN", {}),
        ("GRU", {"bidirectional": True}),
        ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": P}),
    ],
    ids=str,
)
def test_an_empty_batch_returns_an_empty_output(kind: str, options: Any, batch_first: bool) -> None:
    options = {"batch_first": batch_first} | options
    directions = 2 if "bidirectional" in options else 1
    x = f32(0, T, D) if batch_first else f32(T, 0, D)
    output, last = ours(kind, D, H, **options)(fill(x))
    assert output.shape == (*x.shape[:2], directions * options.get("proj_size", H))
    layers = directions * options.get("num_layers", 1)
    assert {state.shape[:2] for state in jax.tree.leaves(last)} == {(layers, 0)}
    if torch is not None:
        other = theirs(kind, D, H, **options)(fill(x, True))
        lasts = other[1] if kind == "LSTM" else [other[1]]
        assert output.shape == tuple(other[0].shape)
        assert [s.shape for s in jax.tree.leaves(last)] == [tuple(s.shape) for s in lasts]


@pytest.mark.parametrize("kind", CELLS)
def test_an_empty_batch_of_a_cell_returns_an_empty_state(kind: str) -> None:
    last = jax.tree.leaves(cached(kind, D, H)(fill(f32(0, D))))
    assert {state.shape for state in last} == {(0, H)}


@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_two_states_may_be_a_list(kind: str) -> None:
    module = cached(kind, D, H)
    x, state = (X, f32(1, N, H)) if kind == "LSTM" else (X_STEP, f32(N, H))
    hx = [jnp.full(state.shape, v, jnp.float32) for v in (0.1, 0.2)]
    for a, b in zip(*map(jax.tree.leaves, (module(fill(x), hx), module(fill(x), tuple(hx))))):
        assert (a == b).all()
