"""Conversion from and to ONNX: 20 random layers each, run by onnxruntime, and errors."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.interop import ConversionError
from jaxrnn.interop.onnx import from_onnx, to_onnx
from tests.convert_cases import Config, close, configs, layer, quietly, same_weights
from tests.convert_oracle import torch_exports
from tests.oracle import live_or_recorded

onnx: Any = quietly("onnx", pytest.importorskip)
ort: Any = quietly("onnxruntime", pytest.importorskip)

CONFIGS = configs(seed=3)
IDS = list(map(str, CONFIGS))
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def run(model: Any, *names: str, **inputs: Any) -> list[np.ndarray]:
    """Return the named outputs of a model, or all, by onnxruntime."""
    data = model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(list(names) or None, inputs)


def tensor(name: str, kind: Any, shape: Any) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def theirs(
    kind: str = "LSTM",
    features: int = 3,
    hidden: int = 4,
    *,
    num_layers: int = 1,
    direction: str = "forward",
    bias: bool = True,
    seed: int = 0,
    batch_first: bool = False,
    between: str = "Reshape",
    inputs: dict[str, np.ndarray] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    sizes: tuple[Any, Any] = ("time", "batch"),
    **attributes: Any,
) -> Any:
    """Return a model of stacked recurrent nodes with random weights, created without jaxrnn.

    `inputs` and `constants` are further inputs of each node by position: "5" is initial_h.
    `attributes` are those of each node.
    """
    helper, random = onnx.helper, np.random.RandomState(seed)
    relu = kind == "RNN_RELU"
    kind = kind.split("_")[0]
    size = 2 if direction == "bidirectional" else 1
    nodes, weights = [], {"shape": np.array([0, 0, -1], np.int64)}
    given = [tensor("x", 1, [*(sizes[::-1] if batch_first else sizes), features])]
    for place, array in (inputs or {}).items():
        elements = helper.np_dtype_to_tensor_dtype(array.dtype)
        given.append(tensor(f"in{place}", elements, array.shape))
    weights |= {f"in{k}": a for k, a in (constants or {}).items()}
    x = "x"
    if batch_first:
        nodes.append(helper.make_node("Transpose", ["x"], ["transposed"], perm=[1, 0, 2]))
        x = "transposed"
    if relu:
        attributes["activations"] = ["Relu"] * size
    if kind == "GRU":
        attributes.setdefault("linear_before_reset", 1)
    for number in range(num_layers):
        gates = GATES[kind] * hidden
        shapes: dict[str, Any] = {"W": (size, gates, features), "R": (size, gates, hidden)}
        shapes["B"] = (size, 2 * gates)
        for name, shape in list(shapes.items())[: 3 if bias else 2]:
            weights[f"{name}{number}"] = random.uniform(-0.7, 0.7, shape).astype(np.float32)
        names = [x, f"W{number}", f"R{number}", f"B{number}" if bias else "", "", "", "", ""]
        for place in {**(inputs or {}), **(constants or {})}:
            names[int(place)] = f"in{place}"
        while not names[-1]:
            names.pop()
        options = {"hidden_size": hidden, "direction": direction} | attributes
        options = {key: value for key, value in options.items() if value is not None}
        y = f"y{number}"
        nodes.append(helper.make_node(kind, names, [y], name=f"node{number}", **options))
        x, features = f"out{number}", size * hidden
        if number == num_layers - 1 and between != "Reshape":
            break
        if between == "Reshape":
            nodes.append(helper.make_node("Transpose", [y], [y + "t"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [y + "t", "shape"], [x]))
        else:  # an operator that changes the values
            weights["axis"] = np.array([1], np.int64)
            nodes.append(helper.make_node("Squeeze", [y, "axis"], [y + "s"]))
            nodes.append(helper.make_node(between, [y + "s"], [x]))
    lead = sizes[::-1] if batch_first and not attributes.get("layout") else sizes
    if batch_first:
        nodes.append(helper.make_node("Transpose", [x], ["out"], perm=[1, 0, 2]))
        x = "out"
    outputs = [tensor(x, 1, [*lead, None])]
    if between != "Reshape" or attributes.get("layout"):
        outputs = [tensor(nodes[-1].output[0], 1, None)]
    initialisers = [onnx.numpy_helper.from_array(a, name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, "theirs", given, outputs, initialisers)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def of(config: Config) -> Any:
    return theirs(
        config.kind,
        config.input_size,
        config.hidden_size,
        num_layers=config.num_layers,
        direction="bidirectional" if config.bidirectional else "forward",
        bias=config.bias,
        seed=config.number,
        batch_first=config.batch_first,
    )


def initialisers(model: Any) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_outputs_agree(config: Config) -> None:
    ours, x = config.layer(), config.input()
    output, last = ours(x)
    model = to_onnx(ours)
    for got, expected in zip(run(model, input=x), jax.tree.leaves((output, last)), strict=True):
        close(got, expected)
    same_weights(from_onnx(model), ours)  # exact: ONNX has both biases

    model = of(config)
    ours = from_onnx(model)
    assert ours.batch_first is config.batch_first
    close(ours(x)[0], run(model, x=x)[0])
    back, reference = initialisers(to_onnx(ours)), initialisers(model)
    for name in (n for n in reference if n[0] in "WRB"):
        np.testing.assert_array_equal(back[f"{name[0]}_l{name[1]}"], reference[name])


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_states_lengths_and_dynamic_axes(kind: str) -> None:
    """One file for any batch size, number of steps and lengths."""
    ours = layer(kind, 3, 4, num_layers=2, bidirectional=True)
    model = to_onnx(ours, states=True, lengths=True)
    for steps, lengths in ((5, [2, 5, 1]), (3, [3])):
        random = np.random.RandomState(steps)
        batch = len(lengths)
        x = random.uniform(-1, 1, (steps, batch, 3)).astype(np.float32)
        states = random.uniform(-1, 1, (2, 4, batch, 4)).astype(np.float32)
        given = {"h0": states[0]} | ({"c0": states[1]} if kind == "LSTM" else {})
        hx = tuple(states) if kind == "LSTM" else states[0]
        expected = jax.tree.leaves(ours(x, hx, lengths=np.array(lengths)))
        got = run(model, input=x, lengths=np.array(lengths, np.int32), **given)
        for one, other in zip(got, expected, strict=True):
            close(one, other)
    same_weights(from_onnx(model), ours)


def test_a_file(tmp_path: Path) -> None:
    ours, path = layer("LSTM", 3, 4, batch_first=True), tmp_path / "lstm.onnx"
    assert to_onnx(ours, path) == onnx.load(path)
    x = np.linspace(-1, 1, 30, dtype=np.float32).reshape(2, 5, 3)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    close(session.run(["output"], {"input": x})[0], ours(x)[0])
    for given in (path, str(path)):
        same_weights(from_onnx(given), ours)
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(ConversionError, match=r"text\.onnx is not an ONNX file"):
        from_onnx(tmp_path / "text.onnx")
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "missing.onnx")
    with pytest.raises(FileNotFoundError):
        to_onnx(ours, tmp_path / "missing" / "lstm.onnx")
    damaged = onnx.load(str(path))
    weights = max(damaged.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = weights.raw_data[:-4]
    with pytest.raises(ConversionError, match="invalid model: ValueError"):
        from_onnx(damaged)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(dtype: str) -> None:
    ours = layer("GRU", 3, 4, param_dtype=jnp.dtype(dtype))
    model = to_onnx(ours)
    assert initialisers(model)["W_l0"].dtype == dtype
    same_weights(from_onnx(model), ours)
    assert jnp.dtype(from_onnx(model).param_dtype) == dtype
    rounded = to_onnx(layer("GRU", 3, 4, dtype=jnp.float16))
    assert initialisers(rounded)["W_l0"].dtype == np.float16


def test_layout_of_nodes() -> None:
    """Batch-first nodes, which onnxruntime does not support."""
    ours = from_onnx(theirs("LSTM", layout=1))
    assert repr(ours) == "LSTM(3, 4, batch_first=True)"
    same_weights(ours, _batch_first(from_onnx(theirs("LSTM"))))
    two = theirs("GRU", num_layers=2, direction="bidirectional", layout=1)
    for node in [n for n in two.graph.node if n.op_type == "Transpose"]:  # (N, T, F, H) is in order
        node.attribute[0].ints[:] = [0, 1, 2, 3]
    assert repr(from_onnx(two)) == "GRU(3, 4, num_layers=2, batch_first=True, bidirectional=True)"
    two.graph.node[0].attribute.remove(_attribute(two.graph.node[0], "layout"))
    with pytest.raises(ConversionError, match=r"layout must be equal in all nodes, got \[0, 1\]"):
        from_onnx(two)


def _attribute(node: Any, name: str) -> Any:
    return next(a for a in node.attribute if a.name == name)


def _batch_first(ours: Any) -> Any:
    ours.batch_first = True
    return ours


def test_reverse_direction() -> None:
    model = theirs("GRU", num_layers=2, direction="reverse")
    with pytest.raises(ConversionError, match=r"got reverse\. .*from_onnx\(\.\.\., reverse=True\)"):
        from_onnx(model)
    ours = from_onnx(model, reverse=True)
    x = np.random.RandomState(0).uniform(-1, 1, (5, 2, 3)).astype(np.float32)
    close(ours(x[::-1])[0][::-1], run(model, x=x)[0])
    with pytest.raises(ConversionError, match=r"direction must be reverse .*, got forward"):
        from_onnx(theirs("GRU"), reverse=True)


def test_states_and_lengths_are_arguments_of_the_call() -> None:
    x = np.random.RandomState(0).uniform(-1, 1, (5, 2, 3)).astype(np.float32)
    h = np.random.RandomState(1).uniform(-1, 1, (1, 2, 4)).astype(np.float32)
    lengths = np.array([2, 5], np.int32)
    model = theirs("GRU", inputs={"4": lengths, "5": h})
    expected = run(model, x=x, in4=lengths, in5=h)[0]
    close(from_onnx(model)(x, h, lengths=lengths)[0], expected)
    zeros = theirs("GRU", constants={"5": np.zeros_like(h)})
    close(from_onnx(zeros)(x)[0], run(zeros, x=x)[0])


def test_weights_computed_by_nodes() -> None:
    """Weights concatenated by nodes from constants, as exporters write them."""
    model = theirs("LSTM")
    graph, helper = model.graph, onnx.helper
    weights = initialisers(model)
    for tensor in [t for t in graph.initializer if t.name == "W0"]:
        graph.initializer.remove(tensor)
    top, bottom = (
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(part))
        for name, part in zip(("top", "bottom"), np.split(weights["W0"], [6], axis=1))
    )
    joined = helper.make_node("Concat", ["top", "bottom"], ["W0"], axis=1)
    for place, node in enumerate((top, bottom, joined)):
        graph.node.insert(place, node)
    same_weights(from_onnx(model), from_onnx(theirs("LSTM")))


@pytest.mark.parametrize("attribute", [0, None], ids=["written", "the default"])
def test_round_trip_of_reset_before(attribute: int | None) -> None:
    model = theirs(
        "GRU", num_layers=2, direction="bidirectional", linear_before_reset=attribute, seed=5
    )
    x = np.random.RandomState(0).uniform(-1, 1, (5, 2, 3)).astype(np.float32)
    ours = from_onnx(model)
    assert repr(ours) == "Recurrent(GRUResetBefore(), 3, 4, num_layers=2, bidirectional=True)"
    close(ours(x)[0], run(model, x=x)[0])
    back = to_onnx(ours, states=True)
    same_weights(from_onnx(back), ours)
    start = np.random.RandomState(1).uniform(-1, 1, (4, 2, 4)).astype(np.float32)
    output, h_n = ours(x, start)
    for got, want in zip(run(back, "output", "h_n", input=x, h0=start), (output, h_n)):
        close(got, want)


def test_round_trip_of_peepholes() -> None:
    """Peepholes of zeros are dropped."""
    peepholes = np.random.RandomState(2).uniform(-2, 2, (2, 12)).astype(np.float32)
    both: dict[str, Any] = {"num_layers": 2, "direction": "bidirectional"}
    model = theirs("LSTM", constants={"7": peepholes}, **both)
    x = np.random.RandomState(0).uniform(-1, 1, (5, 2, 3)).astype(np.float32)
    ours = from_onnx(model)
    assert repr(ours) == "Recurrent(PeepholeLSTM(), 3, 4, num_layers=2, bidirectional=True)"
    close(ours(x)[0], run(model, x=x)[0])
    back = to_onnx(ours, states=True, lengths=True)
    np.testing.assert_array_equal(initialisers(back)["P_l0"], peepholes)
    same_weights(from_onnx(back), ours)
    start = np.random.RandomState(1).uniform(-1, 1, (2, 4, 2, 4)).astype(np.float32)
    lengths = np.array([3, 5], np.int32)
    expected = jax.tree.leaves(ours(x, tuple(start), lengths=lengths))
    got = run(back, input=x, h0=start[0], c0=start[1], lengths=lengths)
    for one, other in zip(got, expected, strict=True):
        close(one, other)
    none = theirs("LSTM", constants={"7": np.zeros_like(peepholes)}, **both)
    same_weights(from_onnx(none), from_onnx(theirs("LSTM", **both)))


def test_nodes_by_name() -> None:
    model = theirs("GRU", num_layers=3)
    assert repr(from_onnx(model, ["node1", "node2"])) == "GRU(4, 4, num_layers=2)"
    with pytest.raises(ConversionError, match=r"among 'node0' \(GRU\), .*, got 'x1'"):
        from_onnx(model, ["node0", "x1"])
    with pytest.raises(
        ConversionError, match=r"GRU 'node2': its input must be the output of GRU 'n"
    ):
        from_onnx(model, ["node0", "node2"])


def test_static_shapes() -> None:
    """A graph for seven steps and batch size 1."""
    model = theirs("RNN", num_layers=2, direction="bidirectional", sizes=(7, 1))
    shape = next(t for t in model.graph.initializer if t.name == "shape")
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([7, 1, 8], np.int64), "shape"))
    x = np.random.RandomState(0).uniform(-1, 1, (7, 1, 3)).astype(np.float32)
    close(from_onnx(model)(x)[0], run(model, x=x)[0])


def test_attribute_hidden_size_is_optional() -> None:
    model = theirs("LSTM", hidden_size=None)
    same_weights(from_onnx(model), from_onnx(theirs("LSTM")))


P = np.ones((1, 12), np.float32)
H0 = np.full((1, 2, 4), 0.5, np.float32)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"clip": 3.0}, "clip is not supported, got 3"),
    ({"input_forget": 1}, "input_forget must be 0, got 1"),
    ({"activations": ["Sigmoid", "Relu", "Tanh"]}, r"got \['sigmoid', 'relu', 'tanh'\]"),
    ({"kind": "RNN", "activations": ["Affine"]}, r"\['tanh'\] or \['relu'\], got \['affine'\]"),
    (
        {"kind": "RNN", "direction": "bidirectional", "activations": ["Tanh", "Relu"]},
        r"got \['tanh', 'relu'\]",
    ),
    ({"inputs": {"7": P}}, "weights must be constant, P depend"),
    ({"constants": {"7": P[:, :8]}}, r"P must be \(1, 12\), got \(1, 8"),
    ({"constants": {"5": H0}}, "initial_h must be zero or an input.*constants up to 0.5"),
    ({"constants": {"4": np.array([3, 5], np.int32)}}, "sequence_lens must be an input"),
    ({"inputs": {"1": np.ones((1, 16, 3), np.float32)}}, "weights must be constant, W depend"),
    ({"constants": {"1": np.ones((1, 8, 3), np.float32)}}, r"W must be \(1, 16, D\), got \(1, 8"),
    ({"constants": {"2": np.ones((16, 4), np.float32)}}, r"R must be \(1, 16, 4\), got \(16, 4"),
    ({"constants": {"3": np.ones((1, 16), np.float32)}}, r"B must be \(1, 32\), got \(1, 16"),
    (
        {"num_layers": 2, "between": "Relu"},
        "LSTM 'node1': its input must be the output of LSTM 'node0",
    ),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_unsupported_nodes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        from_onnx(theirs(**options))
    assert isinstance(caught.value, ValueError)


def test_all_problems_are_listed_at_once() -> None:
    model = theirs("LSTM", num_layers=2, clip=1.0, input_forget=1)
    with pytest.raises(ConversionError) as caught:
        from_onnx(model)
    assert len(str(caught.value).splitlines()) == 5
    for number, words in itertools.product(
        (0, 1), ("clip is not supported", "input_forget must be 0")
    ):
        assert any(
            f"LSTM 'node{number}'" in s and words in s for s in str(caught.value).splitlines()
        )


def test_a_graph_without_recurrent_nodes_or_with_two_kinds() -> None:
    helper = onnx.helper
    shape = [2, 3]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [tensor("x", 1, shape)], [tensor("y", 1, shape)])
    with pytest.raises(ConversionError, match="GRU nodes, got Relu"):
        from_onnx(helper.make_model(graph))
    model = theirs("RNN", num_layers=2)
    model.graph.node[3].op_type = "GRU"
    weights = {"W1": (1, 12, 4), "R1": (1, 12, 4), "B1": (1, 24)}
    for t in model.graph.initializer:
        if t.name in weights:
            t.CopyFrom(onnx.numpy_helper.from_array(np.ones(weights[t.name], np.float32), t.name))
    model.graph.node[3].attribute.append(helper.make_attribute("linear_before_reset", 1))
    with pytest.raises(ConversionError, match="different kinds"):
        from_onnx(model)


def test_unsupported_layers() -> None:
    with pytest.raises(ConversionError, match="does not support proj_size=2"):
        to_onnx(layer("LSTM", 3, 4, proj_size=2))
    with pytest.raises(ConversionError, match=r"got bfloat16\. Set layer\.dtype"):
        to_onnx(layer("LSTM", 3, 4, dtype=jnp.bfloat16))


def test_dropout_warns() -> None:
    ours = layer("GRU", 3, 4, num_layers=2)
    ours.dropout = 0.5
    with pytest.warns(UserWarning, match=r"to_onnx does not convert dropout=0\.5") as caught:
        to_onnx(ours)
    assert caught[0].filename == __file__


def test_type_errors() -> None:
    with pytest.raises(TypeError, match="from_onnx expects a path or a ModelProto, got int"):
        from_onnx(3)
    with pytest.raises(TypeError, match="to_onnx expects an RNN, LSTM or GRU, got M"):
        to_onnx(theirs())


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for function in (from_onnx, to_onnx):
        with pytest.raises(ImportError, match=r'pip install "jaxrnn\[onnx\]"'):
            function(layer("RNN", 3, 4))


def test_float64_without_x64() -> None:
    model = to_onnx(layer("RNN", 3, 4, param_dtype=jnp.float64))
    with jax.enable_x64(False), pytest.raises(ConversionError, match="jax_enable_x64"):
        from_onnx(model)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_file_of_the_torch_exporter(kind: str) -> None:
    """Two bidirectional batch-first layers, with the nodes that the exporter adds."""
    results = live_or_recorded("onnx", torch_exports)
    ours = from_onnx(onnx.load_model_from_string(results[f"{kind}.file"].tobytes()))
    assert ours.extra_repr() == "3, 4, num_layers=2, batch_first=True, bidirectional=True"
    close(ours(results["x"])[0], results[f"{kind}.output"])
    for name, array in jaxrnn.state_dict(ours).items():
        np.testing.assert_array_equal(array, results[f"{kind}.{name}"])
