"""Examples hello and packed: PyTorch's values, the printed output, the refused options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import plotting
from jaxrnn.cli import main
from jaxrnn.examples import words
from jaxrnn.layers.heads import LAYERS
from tests import packed_oracle
from tests.oracle import GOLDEN
from tests.packed_oracle import CELLS

OPTIONS = [(cell, option) for cell in CELLS for option in (False, True)]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run the examples in float32, as users do."""
    with jax.enable_x64(False):
        yield


def with_weights(model: Any, expected: dict[str, np.ndarray]) -> Any:
    """Load PyTorch's weights into a model, and return it."""
    weights = {name: a for name, a in expected.items() if name.startswith(("weight_", "bias_"))}
    jaxrnn.load_state_dict(model, weights)
    return model


def assert_close(actual: Any, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def named_states(state: Any) -> dict[str, Any]:
    return dict(zip(("h_n", "c_n"), jax.tree.leaves(state)))


@pytest.mark.parametrize(("cell", "source"), OPTIONS)
def test_hello_has_pytorchs_shapes_and_values(cell: str, source: bool) -> None:
    expected = packed_oracle.expected("hello")[f"{cell}-{source}"]
    rnn = with_weights(LAYERS[cell](4, 2, batch_first=not source, rngs=nnx.Rngs(0)), expected)
    inputs = np.stack(words.one_hot(["hello", "eolll", "lleel"])[1])
    outputs, state = rnn(inputs)
    assert inputs.shape == (3, 5, 4)
    assert outputs.shape == (3, 5, 2)
    assert_close(outputs, expected["outputs"])
    for name, value in named_states(state).items():
        assert value.shape == ((1, 5, 2) if source else (1, 3, 2))
        assert_close(value, expected[name])


def test_the_letters_of_hello_are_the_sources() -> None:
    letters, encoded = words.one_hot(["hello", "eolll", "lleel"])
    assert letters == "helo"
    h, e, l, o = np.eye(4).tolist()  # noqa: E741
    assert np.stack(encoded).tolist() == [[h, e, l, l, o], [e, o, l, l, l], [l, l, e, e, l]]


@pytest.mark.parametrize(("cell", "bidirectional"), OPTIONS)
def test_packed_equals_pytorchs_packed_run(cell: str, bidirectional: bool) -> None:
    expected = packed_oracle.expected("packed")[f"{cell}-{bidirectional}"]
    split = ["rain", "thunderstorm", "sun", "umbrella", "wind"]
    size, options = len(set("".join(split))), {"bidirectional": bidirectional}
    rnn = with_weights(LAYERS[cell](size, 8, **options, rngs=nnx.Rngs(0)), expected)
    run = words.run_packed(rnn, split)
    np.testing.assert_array_equal(run.padded, expected["padded"])
    np.testing.assert_array_equal(run.lengths, expected["lengths"])
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        for actual, kind in ((run.packed, "packed"), (run.outputs, "outputs")):
            np.testing.assert_array_equal(getattr(actual, name), expected[f"{kind}_{name}"])
    np.testing.assert_array_equal(run.packed.data, expected["packed_data"])
    assert_close(run.outputs.data, expected["outputs_data"])
    assert_close(run.unpacked, expected["unpacked"])
    for name, value in named_states(run.state).items():
        assert_close(value, expected[name])
    assert run.difference < 1e-6


@pytest.mark.parametrize("name", ["hello", "packed"])
def test_recorded_values_equal_pytorchs(name: str) -> None:
    """Live torch and the recording agree; without torch, the recording has every run."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        recorded = dict(file)
    runs = packed_oracle.expected(name)
    assert sorted(runs) == sorted(f"{cell}-{option}" for cell, option in OPTIONS)
    assert sorted(recorded) == sorted(f"{run}/{key}" for run in runs for key in runs[run])
    for key, value in recorded.items():
        run, _, result = key.partition("/")
        np.testing.assert_allclose(value, runs[run][result], rtol=0, atol=1e-6)


def test_hello_prints_shapes_and_outputs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "hello.svg"
    assert words.hello(out=str(path)) == "(3, 5, 4) -> (3, 5, 2)"
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "letters: helo",
        "input:   (3, 5, 4)",
        "outputs: (3, 5, 2)",
        "state:   (1, 3, 2)",
    ]
    printed = [line.strip(" []").split() for line in lines if "[" in line]
    rnn = LAYERS["rnn"](4, 2, batch_first=True, rngs=nnx.Rngs(0))
    outputs, _ = rnn(np.stack(words.one_hot(["hello", "eolll", "lleel"])[1]))
    np.testing.assert_allclose(np.array(printed, float), outputs.reshape(15, 2), atol=5.1e-5)
    assert [line for line in lines if line.endswith(":")] == ["hello:", "eolll:", "lleel:"]
    assert lines[-1] == f"figure: {path}"
    assert path.read_text(encoding="utf-8").startswith("<?xml")
    assert list(tmp_path.iterdir()) == [path]


def test_packed_prints_the_packed_data_and_its_sizes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "packed.png"
    words.packed(words="to be or not to be", cell="lstm", hidden=3, out=str(path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "words: to (2), be (2), or (2), not (3), to (2), be (2)",
        "padded: (3, 6, 6), 5 steps are padding",
        "packed data: (13, 6)",
        "ntbotb" + "ooeroe" + "t",
        "batch_sizes: [6 6 1]",
        "sorted_indices: [3 0 1 2 4 5]",
    ]
    assert lines[6] == "packed outputs: (13, 3)"
    assert "unpacked outputs: (3, 6, 3), lengths [2 2 2 3 2 2]" in lines
    assert "state: (1, 6, 3), (1, 6, 3)" in lines
    assert lines[-1] == f"figure: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello", "--words", "hello hi"], "of equal length, got 'hello' (5), 'hi' (2)."),
        (["hello", "--words", " "], "`words` must be one or more words of equal length, got ' '."),
        (["packed", "--words", ""], "`words` must have at least one word, got ''."),
        (["packed", "--hidden", "0"], "`hidden` must be an integer >= 1, got 0"),
        (["hello", "--seed", "-1"], "`seed`"),
    ],
)
def test_impossible_options_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_heat_maps_show_each_array_with_its_labels() -> None:
    """NaN is grey, zero is the middle of a signed scale, and long labels are thinned out."""
    plain = plotting.HeatMap("plain", np.array([[0.0, 1.0], [np.nan, 2.0]]), "ab", "xy", "c", "r")
    signed = plotting.HeatMap("signed", -np.ones((40, 100)), range(100), signed=True)
    limited = plotting.HeatMap("limited", np.ones((1, 1)), "a", signed=True, limit=4.0)
    figure = plotting.heat_maps([plain, signed, limited], title="maps")
    axes = [axis for axis in figure.axes if axis.get_title()]
    images = [axis.images[0] for axis in axes]
    assert [axis.get_title() for axis in axes] == ["plain", "signed", "limited"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["x", "y"]
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("c", "r")
    assert [image.get_clim() for image in images] == [(0, 2), (-1, 1), (-4, 4)]
    shown = images[0].get_array()
    assert shown is not None
    assert np.ma.getmaskarray(shown).tolist() == [[False, False], [True, False]]
    assert len(axes[1].get_xticklabels()) <= 20
    assert len(axes[1].get_yticklabels()) <= 16
    assert figure.get_suptitle() == "maps"
