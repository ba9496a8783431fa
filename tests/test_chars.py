"""Examples charseq and hihello: PyTorch's losses and accuracy, and the printed output."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import data
from jaxrnn.cli import main
from jaxrnn.examples import characters
from jaxrnn.training import Trained, sweep
from tests import chars_oracle

TEXTS = {"charseq": " if you want you", "hihello": "hihello"}


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run the examples in float32, as users do."""
    with jax.enable_x64(False):
        yield


def count_right(trained: Trained, text: str) -> jax.Array:
    """Return the number of right characters at each step (..., steps)."""
    _, _, y = data.next_characters(text)
    return (trained.metrics.argmax(-1) == y[(None,) * (trained.metrics.ndim - 2)]).sum(-1)


def run(text: str, seed: Any, cell: str = "rnn") -> jax.Array:
    """Train from a seed and return the final number of right characters."""
    rngs = nnx.Rngs(jax.random.key(seed))
    graph, params = nnx.split(characters.make_model(text, cell, rngs=rngs))
    trained = characters.train(graph, params, text=text, steps=100, lr=0.1)
    return count_right(trained, text)[-1]


@pytest.fixture(scope="module", params=TEXTS)
def runs(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], Any]:
    """PyTorch's twenty runs, and losses and right characters of ours from the same weights."""
    expected, text = chars_oracle.expected(request.param), TEXTS[request.param]
    weights = {n: a for n, a in expected.items() if n not in ("losses", "right")}
    with jax.enable_x64(False):
        model = characters.make_model(text, "rnn", rngs=nnx.Rngs(0))
        params = []
        for seed in range(20):
            jaxrnn.load_state_dict(model, {n: a[seed] for n, a in weights.items()})
            params.append(nnx.clone(nnx.state(model, nnx.Param)))
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *params)
        train = partial(characters.train, nnx.graphdef(model), text=text, steps=100, lr=0.1)
        trained = sweep(lambda params: train(params), params=stacked).results
        return expected, (np.asarray(trained.losses), np.asarray(count_right(trained, text)))


def test_losses_from_pytorchs_weights_equal_pytorchs(runs: Any) -> None:
    expected, (losses, _) = runs
    assert losses.shape == (20, 100)
    np.testing.assert_allclose(losses[:, :20], expected["losses"][:, :20], rtol=1e-3)
    # Adam at 0.1 amplifies rounding in a few runs.
    difference = np.abs(losses / expected["losses"] - 1).max(1)
    assert np.median(difference) < 1e-4
    assert difference.max() < 0.05


def test_as_many_characters_are_right_as_in_pytorch(runs: Any) -> None:
    expected, (_, right) = runs
    assert right[:, -1].sum() >= expected["right"][:, -1].sum()


def test_charseq_predicts_all_fifteen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "charseq.png"
    assert main(["run", "charseq", "--out", str(path)]) == 0
    *steps, right, _, figure = capsys.readouterr().out.splitlines()
    assert len(steps) == 100
    assert steps[-1].startswith("99 loss: ")
    assert steps[-1].endswith("prediction str:  if you want you")
    assert right == "15 of 15 characters right"
    assert figure == f"figure: {path}"


def test_hihello_prints_the_string_each_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "hihello.svg"
    assert main(["run", "hihello", "--steps", "60", "--every", "20", "--out", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["0", "20", "40"]
    assert all("true Y:  [[1, 0, 2, 3, 3, 4]]" in line for line in lines[:3])
    words = [line.rsplit("prediction str:  ")[1] for line in lines[:3]]
    assert all(len(word) == 6 and set(word) <= set("hielo") for word in words)
    assert list(tmp_path.iterdir()) == [path]


def test_twenty_seeds_learn_as_well_as_pytorchs() -> None:
    for text, minimum in ((" if you want you", 14.5), ("hihello", 5.5)):
        right = sweep(lambda seed, text=text: run(text, seed), seed=jnp.arange(20)).results
        assert right.shape == (20,)
        assert right.mean() > minimum


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_cell_learns(cell: str) -> None:
    assert jax.jit(lambda: run(" if you want you", 1, cell))() >= 14


def test_characters_are_numbered_in_order_of_appearance() -> None:
    letters, x, y = data.next_characters("hihello")
    assert letters == "hielo"
    assert x.argmax(-1).tolist() == [0, 1, 0, 2, 3, 3]  # the source's x_data and y_data
    assert y.tolist() == [1, 0, 2, 3, 3, 4]
    np.testing.assert_array_equal(x.sum(-1), 1)


@pytest.mark.parametrize("text", ["ab", "äöü", "a\nb$c$d"])
def test_any_text_can_be_learned(tmp_path: Path, text: str) -> None:
    path = str(tmp_path / "any.svg")
    assert main(["run", "charseq", "--text", text, "--steps", "2", "--out", path]) == 0


@pytest.mark.parametrize("text", ["", "a", "aaa"])
def test_a_text_without_two_characters_is_one_line(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert main(["run", "charseq", "--text", text]) == 2
    error = capsys.readouterr().err
    words = f"`text` must have at least 2 different characters, got {text!r}."
    assert error == f"jaxrnn run charseq: error: {words}\n"
