"""The experiments `hello` and `packed`: PyTorch's numbers, what is printed, what is refused."""

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
from jaxrnn.examples import hello, packed
from tests import packed_oracle
from tests.oracle import GOLDEN
from tests.packed_oracle import CELLS

OPTIONS = [(cell, option) for cell in CELLS for option in (False, True)]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """The experiments as users run them, in float32."""
    with jax.enable_x64(False):
        yield


def with_weights(model: Any, expected: dict[str, np.ndarray]) -> Any:
    """The model with PyTorch's weights."""
    weights = {name: a for name, a in expected.items() if name.startswith(("weight_", "bias_"))}
    jaxrnn.load_state_dict(model, weights)
    return model


def close(ours: Any, theirs: np.ndarray) -> None:
    """The same shape, and the same numbers to single precision."""
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def states(state: Any) -> dict[str, Any]:
    return dict(zip(("h_n", "c_n"), jax.tree.leaves(state)))


@pytest.mark.parametrize(("cell", "source"), OPTIONS)
def test_hello_has_pytorchs_shapes_and_values(cell: str, source: bool) -> None:
    expected = packed_oracle.expected("hello")[f"{cell}-{source}"]
    settings = hello.Settings(cell=cell, source=source)
    model = with_weights(hello.make_model(settings, nnx.Rngs(0)), expected)
    history = hello.run(settings, model)
    assert history.inputs.shape == (3, 5, 4)
    assert history.outputs.shape == (3, 5, 2)
    close(history.outputs, expected["outputs"])
    for name, state in states(history.state).items():
        assert state.shape == ((1, 5, 2) if source else (1, 3, 2))
        close(state, expected[name])


def test_the_letters_of_hello_are_the_sources() -> None:
    letters, rows = packed.one_hot(["hello", "eolll", "lleel"])
    assert letters == "helo"
    h, e, l, o = np.eye(4).tolist()  # noqa: E741
    assert np.stack(rows).tolist() == [[h, e, l, l, o], [e, o, l, l, l], [l, l, e, e, l]]


@pytest.mark.parametrize(("cell", "bidirectional"), OPTIONS)
def test_packed_equals_pytorchs_packed_run(cell: str, bidirectional: bool) -> None:
    expected = packed_oracle.expected("packed")[f"{cell}-{bidirectional}"]
    settings = packed.Settings(cell=cell, bidirectional=bidirectional)
    model = with_weights(packed.make_model(settings, nnx.Rngs(0)), expected)
    history = packed.run(settings, model)
    np.testing.assert_array_equal(history.padded, expected["padded"])
    np.testing.assert_array_equal(history.lengths, expected["lengths"])
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        for ours, theirs in ((history.packed, "packed"), (history.outputs, "outputs")):
            np.testing.assert_array_equal(getattr(ours, name), expected[f"{theirs}_{name}"])
    np.testing.assert_array_equal(history.packed.data, expected["packed_data"])
    close(history.outputs.data, expected["outputs_data"])
    close(history.unpacked, expected["unpacked"])
    for name, state in states(history.state).items():
        close(state, expected[name])
    assert history.alone < 1e-6


@pytest.mark.parametrize("name", ["hello", "packed"])
def test_recorded_numbers_are_those_of_pytorch(name: str) -> None:
    """Live torch and the recording agree; without torch, the recording holds every run."""
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
    history = hello.main(hello.Settings(out=str(path)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "letters: helo",
        "input:   (3, 5, 4)",
        "outputs: (3, 5, 2)",
        "state:   (1, 3, 2)",
    ]
    rows = [line.strip(" []").split() for line in lines if "[" in line]
    np.testing.assert_allclose(np.array(rows, float), history.outputs.reshape(15, 2), atol=5.1e-5)
    assert [line for line in lines if line.endswith(":")] == ["hello:", "eolll:", "lleel:"]
    assert lines[-1] == f"figure: {path}"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert list(tmp_path.iterdir()) == [path]


def test_packed_prints_the_packed_data_and_its_sizes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "packed.png"
    settings = packed.Settings(words="to be or not to be", cell="lstm", hidden=3, out=str(path))
    packed.main(settings)
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
    ("module", "options", "words"),
    [
        (
            hello,
            {"words": "hello hi"},
            "of equal length, and one at least, got 'hello' (5), 'hi' (2)",
        ),
        (hello, {"words": " "}, "words should be of equal length, and one at least, got ' '"),
        (packed, {"words": ""}, "words should be one word at least, got ''"),
        (packed, {"hidden": 0}, "`hidden` must be an integer >= 1, got 0"),
        (hello, {"seed": -1}, "seed"),
        (packed, {"cell": "foo"}, "`cell` must be one of 'rnn', 'lstm', 'gru', got 'foo'"),
    ],
)
def test_settings_that_can_not_be_are_refused(
    module: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        module.Settings(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", [hello, packed])
def test_a_figure_that_can_not_be_saved_is_refused_before_any_work(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("the work was begun"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        module.main(module.Settings(out=str(tmp_path / "none" / "figure.png")))


def test_heat_maps_show_each_array_with_its_labels() -> None:
    """Nothing is grey, zero in the middle of a signed scale, no more labels than can be read."""
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
