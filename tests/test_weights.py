"""State dicts and safetensors files: exact round trips, and errors that change nothing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

import jaxrnn
from jaxrnn import cells
from jaxrnn.core import params as initial_weights
from jaxrnn.core import stack
from jaxrnn.interop.torch import StateDictError
from jaxrnn.layers.heads import ManyToMany
from tests.oracle import torch

Arrays = dict[str, np.ndarray]


class Scale(nnx.Module):
    """A custom module with a parameter after a submodule."""

    def __init__(self, rngs: nnx.Rngs):
        self.cell = jaxrnn.RNNCell(2, 2, bias=False, rngs=rngs)
        self.gain = nnx.Param(jnp.ones((2,), jnp.float32))


class Net(nnx.Module):
    """A model of every supported module."""

    def __init__(self, rngs: nnx.Rngs):
        self.words = nnx.Embed(5, 3, rngs=rngs)
        self.rnn = jaxrnn.LSTM(3, 4, bias=False, bidirectional=True, proj_size=2, rngs=rngs)
        self.head = nnx.Sequential(
            nnx.Linear(4, 3, rngs=rngs), nnx.relu, nnx.Linear(3, 2, use_bias=False, rngs=rngs)
        )
        self.scales = nnx.List([Scale(rngs), Scale(rngs)])
        self.bank = nnx.Dict(
            slow=jaxrnn.GRUCell(1, 1, rngs=rngs), fast=nnx.Param(jnp.ones((1,), jnp.float32))
        )
        self._hidden = nnx.Linear(1, 1, rngs=rngs)
        self.conv = nnx.Conv(2, 6, (2, 3), feature_group_count=2, padding="VALID", rngs=rngs)
        norms = nnx.LayerNorm(3, rngs=rngs), nnx.GroupNorm(4, 2, rngs=rngs)
        self.norms = nnx.List([*norms, nnx.RMSNorm(2, rngs=rngs)])


def torch_net() -> Any:
    assert torch is not None
    nn = torch.nn

    def scale() -> Any:
        module: Any = nn.Module()
        module.cell = nn.RNNCell(2, 2, bias=False)
        module.gain = nn.Parameter(torch.ones(2))
        return module

    net: Any = nn.Module()
    net.words = nn.Embedding(5, 3)
    net.rnn = nn.LSTM(3, 4, bias=False, bidirectional=True, proj_size=2)
    net.head = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    net.scales = nn.ModuleList([scale(), scale()])
    net.bank = nn.Module()
    net.bank.slow, net.bank.fast = nn.GRUCell(1, 1), nn.Parameter(torch.ones(1))
    net._hidden = nn.Linear(1, 1)
    net.conv = nn.Conv2d(2, 6, (2, 3), groups=2)
    net.norms = nn.ModuleList([nn.LayerNorm(3), nn.GroupNorm(2, 4), nn.RMSNorm(2)])
    return net


NET = {
    "words.weight": (5, 3),
    "rnn.weight_ih_l0": (16, 3),
    "rnn.weight_hh_l0": (16, 2),
    "rnn.weight_hr_l0": (2, 4),
    "rnn.weight_ih_l0_reverse": (16, 3),
    "rnn.weight_hh_l0_reverse": (16, 2),
    "rnn.weight_hr_l0_reverse": (2, 4),
    "head.0.weight": (3, 4),
    "head.0.bias": (3,),
    "head.2.weight": (2, 3),
    "scales.0.gain": (2,),
    "scales.0.cell.weight_ih": (2, 2),
    "scales.0.cell.weight_hh": (2, 2),
    "scales.1.gain": (2,),
    "scales.1.cell.weight_ih": (2, 2),
    "scales.1.cell.weight_hh": (2, 2),
    "bank.fast": (1,),
    "bank.slow.weight_ih": (3, 1),
    "bank.slow.weight_hh": (3, 1),
    "bank.slow.bias_ih": (3,),
    "bank.slow.bias_hh": (3,),
    "_hidden.weight": (1, 1),
    "_hidden.bias": (1,),
    "conv.weight": (6, 1, 2, 3),
    "conv.bias": (6,),
    "norms.0.weight": (3,),
    "norms.0.bias": (3,),
    "norms.1.weight": (4,),
    "norms.1.bias": (4,),
    "norms.2.weight": (2,),
}

# Recurrent modules: class, options, names and shapes with 3 input features and hidden size 4
RECURRENT: list[tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = [
    ("RNN", {"bias": False}, {"weight_ih_l0": (4, 3), "weight_hh_l0": (4, 4)}),
    (
        "RNN",
        {"num_layers": 2, "bias": False, "bidirectional": True},
        {
            "weight_ih_l0": (4, 3),
            "weight_hh_l0": (4, 4),
            "weight_ih_l0_reverse": (4, 3),
            "weight_hh_l0_reverse": (4, 4),
            "weight_ih_l1": (4, 8),
            "weight_hh_l1": (4, 4),
            "weight_ih_l1_reverse": (4, 8),
            "weight_hh_l1_reverse": (4, 4),
        },
    ),
    (
        "GRU",
        {"num_layers": 3},
        {
            f"{name}_l{layer}": shape
            for layer in range(3)
            for name, shape in {
                "weight_ih": (12, 4 if layer else 3),
                "weight_hh": (12, 4),
                "bias_ih": (12,),
                "bias_hh": (12,),
            }.items()
        },
    ),
    (
        "LSTM",
        {"bidirectional": True, "proj_size": 2},
        {
            "weight_ih_l0": (16, 3),
            "weight_hh_l0": (16, 2),
            "bias_ih_l0": (16,),
            "bias_hh_l0": (16,),
            "weight_hr_l0": (2, 4),
            "weight_ih_l0_reverse": (16, 3),
            "weight_hh_l0_reverse": (16, 2),
            "bias_ih_l0_reverse": (16,),
            "bias_hh_l0_reverse": (16,),
            "weight_hr_l0_reverse": (2, 4),
        },
    ),
    ("RNNCell", {}, {"weight_ih": (4, 3), "weight_hh": (4, 4), "bias_ih": (4,), "bias_hh": (4,)}),
    ("LSTMCell", {"bias": False}, {"weight_ih": (16, 3), "weight_hh": (16, 4)}),
    (
        "GRUCell",
        {},
        {"weight_ih": (12, 3), "weight_hh": (12, 4), "bias_ih": (12,), "bias_hh": (12,)},
    ),
]
NAMED = [f"{kind}-{options}" for kind, options, _ in RECURRENT]
OPTIONS = [
    (kind, {"num_layers": 3, "bias": bias, "bidirectional": both} | more)
    for kind, bias, both in itertools.product(("RNN", "GRU", "LSTM"), *[(False, True)] * 2)
    for more in ([{}, {"proj_size": 2}] if kind == "LSTM" else [{}])
] + [(kind, options) for kind, options, _ in RECURRENT]


def make(kind: str, **options: Any) -> Any:
    return getattr(jaxrnn, kind)(3, 4, rngs=nnx.Rngs(0), **options)


def drawn(module: Any, dtype: Any = np.float32) -> Arrays:
    """Draw values for all parameters of a module."""
    random = np.random.RandomState(0)
    arrays = jaxrnn.state_dict(module).items()
    return {name: random.normal(size=array.shape).astype(dtype) for name, array in arrays}


def same(one: Any, other: Any) -> bool:
    """Return True for equal names, order, dtypes, shapes and bits."""
    return list(one) == list(other) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in zip(one.values(), other.values())
    )


def shapes(arrays: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(array.shape)) for name, array in arrays.items()]


def check_both_ways(module: Any, other: Callable[[], Any]) -> None:
    """Check the round trip, and the exchange with a PyTorch module."""
    arrays = drawn(module)
    jaxrnn.load_state_dict(module, arrays)
    assert same(jaxrnn.state_dict(module), arrays)
    if torch is not None:
        theirs = other()
        assert shapes(theirs.state_dict()) == shapes(arrays)
        jaxrnn.load_state_dict(module, theirs.state_dict())
        expected = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
        assert same(jaxrnn.state_dict(module), expected)
        theirs.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        assert same({k: v.numpy() for k, v in theirs.state_dict().items()}, arrays)


@pytest.mark.parametrize(("kind", "options", "expected"), RECURRENT, ids=NAMED)
def test_names_shapes_and_order_equal_pytorch(kind: str, options: Any, expected: Any) -> None:
    assert shapes(jaxrnn.state_dict(make(kind, **options))) == list(expected.items())


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_round_trip_of_layers_and_cells(kind: str, options: Any) -> None:
    def other() -> Any:
        assert torch is not None
        return getattr(torch.nn, kind)(3, 4, **options)

    check_both_ways(make(kind, **options), other)


def test_round_trip_of_a_model() -> None:
    model = Net(nnx.Rngs(0))
    assert shapes(jaxrnn.state_dict(model)) == list(NET.items())
    check_both_ways(model, torch_net)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_kernel_is_transposed(bias: bool) -> None:
    linear = nnx.Linear(3, 2, use_bias=bias, rngs=nnx.Rngs(0))
    arrays = drawn(linear)
    assert list(arrays) == ["weight", "bias"][: 1 + bias]
    jaxrnn.load_state_dict(linear, arrays)
    np.testing.assert_array_equal(linear.kernel[...], arrays["weight"].T)
    assert jaxrnn.state_dict(linear)["weight"].flags.c_contiguous


@pytest.mark.skipif(torch is None, reason="needs PyTorch beside it")
def test_convolution_equals_pytorch() -> None:
    assert torch is not None
    model, other = Net(nnx.Rngs(0)), torch_net()
    jaxrnn.load_state_dict(model, other.state_dict())
    x = np.linspace(-1, 1, 2 * 4 * 5, dtype=np.float32).reshape(1, 4, 5, 2)
    with torch.no_grad():
        expected = other.conv(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(
        model.conv(jnp.asarray(x)), expected.transpose(0, 2, 3, 1), rtol=0, atol=1e-5
    )


def test_shared_module_has_two_names() -> None:
    model = nnx.List([make("GRUCell")])
    model.append(model[0])
    arrays = jaxrnn.state_dict(model)
    assert list(arrays) == [f"{i}.{name}" for i in (0, 1) for name in RECURRENT[-1][2]]
    jaxrnn.load_state_dict(model, {name: np.ones_like(array) for name, array in arrays.items()})
    assert model[0] is model[1]
    assert all((array == 1).all() for array in jaxrnn.state_dict(model).values())
    if torch is not None:
        cell = torch.nn.GRUCell(3, 4)
        assert list(torch.nn.ModuleList([cell, cell]).state_dict()) == list(arrays)


def test_module_that_references_its_parent() -> None:
    model = ManyToMany(make("RNN"), 2, rngs=nnx.Rngs(0))
    model.rnn.parent = model
    assert len(jaxrnn.state_dict(model)) == 6


COPIES = {
    "split and merge": lambda module: nnx.merge(*nnx.split(module)),
    "clone": nnx.clone,
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(("kind", "options"), [r[:2] for r in RECURRENT], ids=NAMED)
def test_flax_copy_keeps_the_order_of_parameters(kind: str, options: Any, copy: Any) -> None:
    module = make(kind, **options)
    assert same(jaxrnn.state_dict(copy(module)), jaxrnn.state_dict(module))


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_flax_copy_keeps_the_order_of_a_list(copy: Any) -> None:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(*[nnx.Linear(1, 1, use_bias=False, rngs=rngs) for _ in range(11)])
    assert list(jaxrnn.state_dict(copy(model))) == [f"{i}.weight" for i in range(11)]


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_flax_copy_of_a_model_has_equal_weights(copy: Any) -> None:
    model = Net(nnx.Rngs(0))
    arrays = jaxrnn.state_dict(copy(model))
    assert set(arrays) == set(NET)
    jaxrnn.load_state_dict(model, arrays)
    assert same({name: arrays[name] for name in NET}, jaxrnn.state_dict(model))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nnx.ConvTranspose(2, 2, 3, rngs=nnx.Rngs(0)), "the module must be .*, got ConvTranspose"),
        (nnx.Sequential(nnx.BatchNorm(2, rngs=nnx.Rngs(0))), "0 must be .*, got BatchNorm"),
        (nnx.LoRALinear(2, 2, lora_rank=1, rngs=nnx.Rngs(0)), "LoRA"),
    ],
    ids=["ConvTranspose", "BatchNorm", "LoRALinear"],
)
def test_unsupported_flax_modules(module: Any, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        jaxrnn.state_dict(module)
    with pytest.raises(TypeError, match=name):
        jaxrnn.load_state_dict(module, {})


# Values


@pytest.mark.parametrize("kind", ["GRU", "LSTMCell"])
def test_state_dict_returns_copies(kind: str) -> None:
    module = make(kind)
    before = jaxrnn.state_dict(module)
    for array in jaxrnn.state_dict(module).values():
        array[...] = 7
    assert same(jaxrnn.state_dict(module), before)


def test_loaded_arrays_are_copied() -> None:
    module = make("GRU")
    arrays = drawn(module)
    jaxrnn.load_state_dict(module, arrays)
    before = jaxrnn.state_dict(module)
    for array in arrays.values():
        array[...] = 7
    assert same(jaxrnn.state_dict(module), before)


@pytest.mark.parametrize("param_dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("given", ["float32", "float64", "bfloat16", "int32", "bool"])
def test_conversion_to_the_parameter_dtype(param_dtype: str, given: str) -> None:
    module = make("RNN", param_dtype=jnp.dtype(param_dtype))
    arrays = drawn(module, jnp.dtype(given))
    jaxrnn.load_state_dict(module, arrays)
    assert module.weight_ih_l0[...].dtype == param_dtype
    expected = {name: array.astype(jnp.dtype(param_dtype)) for name, array in arrays.items()}
    assert same(jaxrnn.state_dict(module), expected)


@pytest.mark.parametrize("convert", [jnp.asarray, np.ndarray.tolist], ids=["jax", "lists"])
def test_other_kinds_of_arrays(convert: Any) -> None:
    module = make("GRU")
    arrays = drawn(module)
    jaxrnn.load_state_dict(module, {name: convert(array) for name, array in arrays.items()})
    assert same(jaxrnn.state_dict(module), arrays)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_tensors(param_dtype: str) -> None:
    module = make("GRU", param_dtype=jnp.dtype(param_dtype))
    arrays = drawn(module, jnp.bfloat16)
    tensors: Any = arrays
    if torch is not None:
        layer = torch.nn.GRU(3, 4).bfloat16()
        given = {name: torch.tensor(array.astype(np.float32)) for name, array in arrays.items()}
        layer.load_state_dict(given)
        tensors = dict(layer.named_parameters())  # that require gradients
    jaxrnn.load_state_dict(module, tensors)
    expected = {name: array.astype(jnp.dtype(param_dtype)) for name, array in arrays.items()}
    assert same(jaxrnn.state_dict(module), expected)


# Errors

FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "missing": (
        {"weight_hh_l0": None, "bias_hh_l0": None},
        ['Missing key(s) in state_dict: "weight_hh_l0", "bias_hh_l0".'],
    ),
    "unexpected": (
        {"weight_hr_l0": np.ones(1), "foo": np.ones(1)},
        ['Unexpected key(s) in state_dict: "weight_hr_l0", "foo".'],
    ),
    "misshapen": (
        {"weight_ih_l0": np.ones((3, 12)), "bias_hh_l0": np.ones((1, 12))},
        [
            "size mismatch for weight_ih_l0: copying a param with shape (3, 12) from checkpoint, "
            "the shape in current model is (12, 3).",
            "size mismatch for bias_hh_l0: copying a param with shape (1, 12) from checkpoint, "
            "the shape in current model is (12,).",
        ],
    ),
    "all": (
        {"weight_ih_l0": None, "foo": np.ones(1), "bias_hh_l0": np.ones(11)},
        [
            'Missing key(s) in state_dict: "weight_ih_l0".',
            'Unexpected key(s) in state_dict: "foo".',
            "size mismatch for bias_hh_l0: copying a param with shape (11,) from checkpoint",
        ],
    ),
}
STRANGE: dict[str, Any] = {
    "text": "abc",
    "None": None,
    "ragged": [[1], [2, 3]],
    "dates": np.zeros(12, "datetime64[s]"),
    "complex": np.ones(12, complex),
}


def refused(mapping: Any) -> str:
    """Return the error message for a mapping, and check that the GRU is unchanged."""
    module = make("GRU")
    before = jaxrnn.state_dict(module)
    with pytest.raises(StateDictError) as caught:
        jaxrnn.load_state_dict(module, mapping)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RuntimeError)
    assert same(jaxrnn.state_dict(module), before)
    return str(caught.value)


@pytest.mark.parametrize(("changes", "expected"), FAULTS.values(), ids=FAULTS)
def test_all_mismatches_are_listed(changes: Any, expected: Any) -> None:
    mapping = drawn(make("GRU")) | changes
    mapping = {name: array for name, array in mapping.items() if array is not None}
    lines = refused(mapping).split("\n\t")
    assert lines[0] == "Error(s) in loading state_dict for GRU:"
    assert len(lines) == 1 + len(expected)
    assert all(line.startswith(words) for line, words in zip(lines[1:], expected))
    if torch is not None:
        with pytest.raises(RuntimeError) as caught:
            torch.nn.GRU(3, 4).load_state_dict({k: torch.tensor(v) for k, v in mapping.items()})
        text = str(caught.value)
        for array in mapping.values():
            text = text.replace(str(torch.Size(array.shape)), str(array.shape))
        for shape in RECURRENT[2][2].values():
            text = text.replace(str(torch.Size(shape)), str(shape))
        assert [line.strip() for line in text.split("\n\t")] == lines


@pytest.mark.parametrize("value", STRANGE.values(), ids=STRANGE)
def test_values_that_are_no_arrays_are_listed(value: Any) -> None:
    message = refused(drawn(make("GRU")) | {"bias_hh_l0": value, "foo": np.ones(1)})
    assert "bias_hh_l0 must be an array of numbers" in message
    assert '"foo"' in message


def test_common_prefix_is_named() -> None:
    arrays = drawn(make("GRU"))
    message = refused({f"module.rnn.{name}": array for name, array in arrays.items()})
    assert 'name.removeprefix("module.rnn.")' in message
    model = nnx.Dict(rnn=make("GRU"))
    with pytest.raises(StateDictError, match=r'{"rnn\." \+ name: a for name, a in mapping'):
        jaxrnn.load_state_dict(model, arrays)
    assert "prefix" not in refused({f"module.{name}": a for name, a in [*arrays.items()][1:]})


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ("gru.pt", "got str. Read files with"),
        ([1], "got list"),
        (None, "NoneType"),
    ],
)
def test_mapping_of_a_wrong_type(mapping: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"a dict of names to arrays, .*{words}"):
        jaxrnn.load_state_dict(make("GRU"), mapping)


def test_module_instead_of_its_state_dict() -> None:
    class Other:
        def state_dict(self) -> Arrays:
            return {}

    with pytest.raises(TypeError, match=r"got Other\. Pass its state_dict\(\)"):
        jaxrnn.load_state_dict(make("GRU"), Other())  # pyright: ignore[reportArgumentType]


def test_parameter_replaced_by_an_array() -> None:
    model = nnx.Dict(rnn=make("GRU"))
    model.rnn.bias_hh_l0 = jnp.ones(12, jnp.float32)
    with pytest.raises(TypeError, match=r"rnn\.bias_hh_l0 must be an nnx.Param"):
        jaxrnn.state_dict(model)


# Files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gru.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_file_round_trip(path: Path, dtype: str) -> None:
    module = make("GRU", param_dtype=jnp.dtype(dtype))
    arrays = drawn(module, jnp.dtype(dtype))
    jaxrnn.load_state_dict(module, arrays)
    jaxrnn.save_safetensors(module, path)
    other = make("GRU", param_dtype=jnp.dtype(dtype))
    jaxrnn.load_safetensors(other, str(path))
    assert same(jaxrnn.state_dict(other), arrays)


def test_other_programs_read_a_file(path: Path) -> None:
    model = Net(nnx.Rngs(0))
    jaxrnn.save_safetensors(model, path)
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        arrays = {name: file.get_tensor(name) for name in NET}
        assert sorted(file.keys()) == sorted(NET)
    assert same(arrays, jaxrnn.state_dict(model))
    if torch is not None:
        from safetensors.torch import load_file

        torch_net().load_state_dict(load_file(path))


def test_file_of_another_program(path: Path) -> None:
    module = make("GRU")
    arrays = drawn(module, np.float16)
    safetensors.numpy.save_file(dict(reversed(arrays.items())), path)
    jaxrnn.load_safetensors(module, path)
    expected = {name: array.astype(np.float32) for name, array in arrays.items()}
    assert same(jaxrnn.state_dict(module), expected)


def test_file_of_another_model(path: Path) -> None:
    jaxrnn.save_safetensors(make("RNNCell"), path)
    module = make("GRU")
    before = jaxrnn.state_dict(module)
    with pytest.raises(StateDictError, match=r'Unexpected key.*"weight_ih"'):
        jaxrnn.load_safetensors(module, path)
    assert same(jaxrnn.state_dict(module), before)


@pytest.mark.parametrize("size", [0, 4, 30, -1], ids=["empty", "size", "header", "data"])
def test_truncated_file(path: Path, size: int) -> None:
    module = make("GRU")
    jaxrnn.save_safetensors(module, path)
    path.write_bytes(path.read_bytes()[:size])
    before = jaxrnn.state_dict(module)
    with pytest.raises(StateDictError, match=r"gru\.safetensors is not a safetensors file"):
        jaxrnn.load_safetensors(module, path)
    assert same(jaxrnn.state_dict(module), before)


def test_file_of_an_unsupported_dtype(path: Path) -> None:
    header = b'{"weight_ih_l0":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    with pytest.raises(StateDictError, match=r"gru\.safetensors has a dtype that NumPy"):
        jaxrnn.load_safetensors(make("GRU"), path)


def test_file_of_torch_save(tmp_path: Path) -> None:
    path = tmp_path / "gru.pt"
    path.write_bytes(b"PK" + bytes(100))
    with pytest.raises(StateDictError, match=r"Read it with torch\.load"):
        jaxrnn.load_safetensors(make("GRU"), path)


def test_missing_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gru\.safetensors"):
        jaxrnn.load_safetensors(make("GRU"), path)
    with pytest.raises(OSError, match=path.parent.name):
        jaxrnn.load_safetensors(make("GRU"), path.parent)


@pytest.mark.parametrize("place", ["none/gru.safetensors", "file/gru.safetensors", "folder"])
def test_unwritable_path(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=f"{place}'$"):
        jaxrnn.save_safetensors(make("GRU"), tmp_path / place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_file_is_unchanged_when_writing_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("disk full")

    path.write_bytes(b"precious")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        jaxrnn.save_safetensors(make("GRU"), path)
    assert path.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [path]


def test_file_is_replaced_with_default_permissions(path: Path) -> None:
    path.with_suffix(".txt").write_text("")
    usual = path.with_suffix(".txt").stat().st_mode
    for module in (make("LSTM"), make("GRU")):
        jaxrnn.save_safetensors(module, path)
    assert path.stat().st_mode == usual
    assert len(list(path.parent.iterdir())) == 2
    jaxrnn.load_safetensors(make("GRU"), path)


def test_initial_weights_are_within_the_bound() -> None:
    """Traced, mapped and eager draws agree, and another size does not recompile."""
    keys = jax.random.split(jax.random.key(3), 2)
    begin = lambda key: stack.init(key, cells.GRU(), 3, 5, num_layers=2)  # noqa: E731
    mapped = jax.jit(jax.vmap(begin))(keys)
    for index, key in enumerate(keys):
        drawn = begin(key)
        jax.tree.map(lambda a, b, i=index: np.testing.assert_array_equal(a, b[i]), drawn, mapped)
    numbers = np.concatenate([np.ravel(a) for a in jax.tree.leaves(drawn)])
    assert len(set(numbers.tolist())) > 0.99 * len(numbers)
    assert 0.97 * 5**-0.5 < np.abs(numbers).max() <= 5**-0.5
    assert abs(numbers.mean()) < 0.1
    compiled: Any = initial_weights._uniform
    size = compiled._cache_size()
    wide = stack.init(keys[0], cells.LSTM(), 3, (5, 7), num_layers=2, bidirectional=True)
    assert np.abs(wide[3].weight_hh).max() <= 7**-0.5 < np.abs(wide[0].weight_hh).max()
    assert compiled._cache_size() == size
