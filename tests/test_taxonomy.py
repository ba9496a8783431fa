"""Taxonomy example: each kind of head learns its task, and the table shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxrnn.examples import taxonomy
from jaxrnn.examples.taxonomy import DUTCH, ENGLISH, LETTERS, TASKS
from jaxrnn.layers.heads import ManyToMany, ManyToOne, OneToMany, OneToOne
from jaxrnn.layers.seq2seq import Seq2Seq


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run the example in float32, as users do."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def results() -> Any:
    with jax.enable_x64(False):
        tasks = [make_task("gru", 32, nnx.Rngs(0)) for make_task in TASKS]
        return [taxonomy.train(task, 200, 0.01) for task in tasks]


def test_each_kind_has_a_head(results: Any) -> None:
    heads = [OneToOne, OneToMany, ManyToOne, ManyToMany, Seq2Seq]
    assert [type(result.task.model) for result in results] == heads
    kinds = ["one to one", "one to many", "many to one"]
    kinds += ["many to many, aligned", "many to many, encoder-decoder"]
    assert [result.task.kind for result in results] == kinds


def test_each_head_learns_its_task_without_an_error(results: Any) -> None:
    for result in results:
        before, after = result.right
        count = len(result.task.targets)
        assert after == count, result.task.kind
        assert before < count / 2, result.task.kind
        assert result.losses.shape == (201,)
        assert result.losses[-1] < 0.2 * result.losses[0], result.task.kind


def test_losses_and_probabilities_are_those_of_the_models(results: Any) -> None:
    for result in results:
        task = result.task
        for model, step in ((task.model, 0), (result.model, -1)):
            probabilities = np.asarray(jax.nn.softmax(task.logits(model)))
            target = np.take_along_axis(probabilities, task.targets[..., None], -1)[..., 0]
            recorded = result.probabilities[step]
            valid_mask = np.arange(target.shape[1]) < task.lengths[:, None]
            np.testing.assert_array_equal(np.isnan(recorded), ~valid_mask)
            np.testing.assert_allclose(recorded[valid_mask], target[valid_mask], atol=1e-5)
            assert abs(-np.log(recorded[valid_mask]).mean() - result.losses[step]) < 1e-4


def test_names_are_spelled_with_their_end(results: Any) -> None:
    _, names, digits, _, dutch = results
    spelled = names.task.logits(names.model).argmax(-1)
    assert [LETTERS.decode(name).split(".")[0] for name in spelled] == ENGLISH
    assert digits.task.logits(digits.model)[:, 0].argmax(-1).tolist() == list(range(10))
    x, lengths = taxonomy.spell(ENGLISH)
    decoded = dutch.model.greedy(x, 6, lengths)
    assert [LETTERS.decode(name).split(".")[0] for name in np.asarray(decoded.tokens)] == DUTCH


def test_the_sums_are_sums(results: Any) -> None:
    task = results[3].task
    a, b, total = (
        (np.asarray(bits) * 2 ** np.arange(5)).sum(1)
        for bits in (task.x[..., 0], task.x[..., 1], task.targets)
    )
    np.testing.assert_array_equal(a + b, total)
    assert len({(i, j) for i, j in zip(a.tolist(), b.tolist())}) == 256


def test_the_ten_pictures_differ() -> None:
    pictures = np.asarray(taxonomy.pictures())
    assert pictures.shape == (10, 15)
    assert len({tuple(picture) for picture in pictures.tolist()}) == 10
    assert pictures[8].sum() == 13  # all but the two holes
    assert pictures[1].reshape(5, 3).tolist()[1] == [1, 1, 0]


def test_it_prints_its_table_and_saves_its_figure(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    results: Any,
) -> None:
    runs = iter(results)
    monkeypatch.setattr(taxonomy, "train", lambda *_: next(runs))
    path = tmp_path / "taxonomy.png"
    taxonomy.main(cell="rnn", hidden=4, out=str(path))
    out = capsys.readouterr().out
    for kind, head in (("one to many", "OneToMany"), ("encoder-decoder", "Seq2Seq")):
        assert any(kind in line and head in line for line in out.splitlines())
    assert "(10, 6, 21)" in out
    assert "-> 256 of 256" in out
    assert out.splitlines()[-1] == f"figure: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")
