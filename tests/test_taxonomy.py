"""Each kind of head learns its task; what the tasks are; what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxrnn.examples import taxonomy
from jaxrnn.examples.taxonomy import DUTCH, ENGLISH, LETTERS, TASKS, Settings
from jaxrnn.layers.heads import ManyToMany, ManyToOne, OneToMany, OneToOne
from jaxrnn.layers.seq2seq import Seq2Seq


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """The job as users run it, in float32."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def histories() -> Any:
    with jax.enable_x64(False):
        settings = Settings(steps=200, out="")
        return [taxonomy.train(settings, make(settings, nnx.Rngs(0))) for make in TASKS]


def test_there_is_a_head_for_each_kind(histories: Any) -> None:
    heads = [OneToOne, OneToMany, ManyToOne, ManyToMany, Seq2Seq]
    assert [type(history.task.model) for history in histories] == heads
    kinds = ["one to one", "one to many", "many to one"]
    kinds += ["many to many, aligned", "many to many, encoder-decoder"]
    assert [history.task.kind for history in histories] == kinds


def test_each_learns_its_task_to_the_last_row(histories: Any) -> None:
    for history in histories:
        before, after = history.right
        rows = len(history.task.targets)
        assert after == rows, history.task.kind
        assert before < rows / 2, history.task.kind
        assert history.losses.shape == (201,)
        assert history.losses[-1] < 0.2 * history.losses[0], history.task.kind


def test_what_is_kept_is_what_the_models_say(histories: Any) -> None:
    for history in histories:
        task = history.task
        for model, step in ((task.model, 0), (history.model, -1)):
            odds = np.asarray(jax.nn.softmax(task.logits(model)))
            truth = np.take_along_axis(odds, task.targets[..., None], -1)[..., 0]
            kept = history.probabilities[step]
            there = np.arange(truth.shape[1]) < task.lengths[:, None]
            np.testing.assert_array_equal(np.isnan(kept), ~there)
            np.testing.assert_allclose(kept[there], truth[there], atol=1e-5)
            assert abs(-np.log(kept[there]).mean() - history.losses[step]) < 1e-4


def test_names_are_said_with_their_end(histories: Any) -> None:
    _, names, digits, _, dutch = histories
    said = names.task.logits(names.model).argmax(-1)
    assert [LETTERS.decode(row).split(".")[0] for row in said] == ENGLISH
    assert digits.task.logits(digits.model)[:, 0].argmax(-1).tolist() == list(range(10))
    x, lengths = taxonomy.spelt(ENGLISH)
    written = dutch.model.greedy(x, 6, lengths)
    assert [LETTERS.decode(row).split(".")[0] for row in np.asarray(written.tokens)] == DUTCH


def test_the_sums_are_sums(histories: Any) -> None:
    task = histories[3].task
    a, b, total = (
        (np.asarray(bits) * 2 ** np.arange(5)).sum(1)
        for bits in (task.x[..., 0], task.x[..., 1], task.targets)
    )
    np.testing.assert_array_equal(a + b, total)
    assert len({(i, j) for i, j in zip(a.tolist(), b.tolist())}) == 256


def test_the_pictures_are_ten_different_ones() -> None:
    pictures = np.asarray(taxonomy.pictures())
    assert pictures.shape == (10, 15)
    assert len({tuple(picture) for picture in pictures.tolist()}) == 10
    assert pictures[8].sum() == 13  # all but the two holes
    assert pictures[1].reshape(5, 3).tolist()[1] == [1, 1, 0]


def test_it_prints_its_table_and_saves_its_figure(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    histories: Any,
) -> None:
    runs = iter(histories)
    monkeypatch.setattr(taxonomy, "train", lambda *_: next(runs))
    path = tmp_path / "taxonomy.png"
    taxonomy.main(Settings(cell="rnn", hidden=4, out=str(path)))
    out = capsys.readouterr().out
    for kind, head in (("one to many", "OneToMany"), ("encoder-decoder", "Seq2Seq")):
        assert any(kind in line and head in line for line in out.splitlines())
    assert "(10, 6, 21)" in out
    assert "-> 256 of 256" in out
    assert out.splitlines()[-1] == f"figure: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_cell_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="`cell` must be one of 'rnn', 'lstm', 'gru', got 'foo'"):
        Settings(cell="foo")
