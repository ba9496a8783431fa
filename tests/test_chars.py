"""Characters learned by heart: PyTorch's losses, as many right as PyTorch, and what is printed."""

from __future__ import annotations

from collections.abc import Iterator
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
from jaxrnn.examples import charseq, hihello
from jaxrnn.training import sweep
from tests import chars_oracle

EXPERIMENTS = {"charseq": charseq, "hihello": hihello}


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """The job as users run it, in float32."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module", params=EXPERIMENTS)
def both(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], Any]:
    """PyTorch's twenty runs, and ours from the same weights: losses, characters right."""
    expected = chars_oracle.expected(request.param)
    settings = EXPERIMENTS[request.param].Settings()
    weights = {n: a for n, a in expected.items() if n not in ("losses", "right")}
    with jax.enable_x64(False):
        model = charseq.make_model(settings, nnx.Rngs(0))
        params = []
        for seed in range(20):
            jaxrnn.load_state_dict(model, {n: a[seed] for n, a in weights.items()})
            params.append(nnx.clone(nnx.state(model, nnx.Param)))
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *params)
        trained = sweep(charseq.make_training(settings, model), params=stacked).results
        _, _, y = data.next_characters(settings.text)
        right = (trained.metrics.argmax(-1) == y[None, None]).sum(-1)
        return expected, (np.asarray(trained.losses), np.asarray(right))


def test_from_pytorchs_weights_the_losses_are_pytorchs(both: Any) -> None:
    expected, (losses, _) = both
    assert losses.shape == (20, 100)
    np.testing.assert_allclose(losses[:, :20], expected["losses"][:, :20], rtol=1e-3)
    # Adam at 0.1 magnifies the last digit of a few runs later on.
    far = np.abs(losses / expected["losses"] - 1).max(1)
    assert np.median(far) < 1e-4
    assert far.max() < 0.05


def test_from_pytorchs_weights_as_many_are_right_as_in_pytorch(both: Any) -> None:
    expected, (_, right) = both
    assert right[:, -1].sum() >= expected["right"][:, -1].sum()


def test_charseq_gets_all_fifteen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "charseq.png"
    assert main(["run", "charseq", "--out", str(path)]) == 0
    *steps, right, _, figure = capsys.readouterr().out.splitlines()
    assert len(steps) == 100
    assert steps[-1].startswith("99 loss: ")
    assert steps[-1].endswith("prediction str:  if you want you")
    assert right == "15 of 15 characters right"
    assert figure == f"figure: {path}"


def test_hihello_prints_the_word_each_time(
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


def test_twenty_seeds_of_ours_learn_as_pytorchs_do() -> None:
    seeds = jnp.arange(20)
    assert charseq.right_by(charseq.Settings(), seed=seeds).mean() > 14.5
    right = charseq.right_by(hihello.Settings(), seed=seeds)
    assert right.shape == (20,)
    assert right.mean() > 5.5


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_cell_learns(cell: str) -> None:
    history = charseq.train(charseq.Settings(cell=cell))
    assert history.right[-1] >= 14


def test_characters_are_numbered_as_they_appear() -> None:
    characters, x, y = data.next_characters("hihello")
    assert characters == "hielo"
    assert x.argmax(-1).tolist() == [0, 1, 0, 2, 3, 3]  # the source's x_data and y_data
    assert y.tolist() == [1, 0, 2, 3, 3, 4]
    np.testing.assert_array_equal(x.sum(-1), 1)


@pytest.mark.parametrize("text", ["ab", "äöü", "a\nb$c$d"])
def test_any_other_text_can_be_learned(tmp_path: Path, text: str) -> None:
    path = str(tmp_path / "any.svg")
    assert main(["run", "charseq", "--text", text, "--steps", "2", "--out", path]) == 0


@pytest.mark.parametrize("text", ["", "a", "aaa"])
def test_a_text_with_nothing_to_learn_is_one_line(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert main(["run", "charseq", "--text", text]) == 2
    error = capsys.readouterr().err
    words = f"text should have at least 2 different characters, got {text!r}"
    assert error == f"jaxrnn run charseq: error: {words}\n"
