"""The sentences of `jaxrnn run seq2seq`: all learned by heart, from any seed, in any way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import examples as experiments
from jaxrnn.cli import main
from jaxrnn.examples import seq2seq


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(experiments.NAMES, "seq2seq", "jaxrnn.examples.seq2seq")
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("attention", seq2seq.ATTENTION)
def test_every_pair_is_reproduced_from_every_seed(attention: str) -> None:
    right = seq2seq.right_by(seq2seq.Settings(attention=attention), seed=jnp.arange(3))
    assert right.shape == (3, len(seq2seq.PAIRS))
    assert right.all()


def test_the_command_prints_each_pair_with_what_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "sentences.svg"
    options = ["--beams", "3", "--teacher-forcing", "0.9", "--every", "25", "--out", str(path)]
    assert main(["run", "seq2seq", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    losses = [line.split("loss: ") for line in lines[:4]]
    assert [int(step) for step, _ in losses] == [0, 25, 50, 75]
    assert float(losses[0][1]) > 3 > 0.3 > float(losses[3][1])
    said = [f"{mark} {text}" for s, t in seq2seq.PAIRS for mark, text in zip(">=<", (s, t, t))]
    assert lines[4 : 4 + len(said)] == said
    assert lines[-3] == "8 of 8 sentences right"
    assert lines[-1] == f"figure: {path}"
    assert list(tmp_path.iterdir()) == [path]


def test_pairs_of_ones_own_and_where_the_decoder_looked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs.txt", tmp_path / "any.png"
    pairs.write_text("eins zwei\tone two\ndrei\tthree\n", encoding="utf-8")
    history = seq2seq.main(
        seq2seq.Settings(pairs=str(pairs), attention="additive", steps=1, hidden=2, out=str(out))
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["> eins zwei", "= one two"]
    assert lines[3].startswith("! ")
    assert lines[-3] == "0 of 2 sentences right"
    assert out.read_bytes().startswith(b"\x89PNG")
    assert history.losses.shape == (1,)
    assert history.written.shape == (2, 3 + 2)
    assert history.weights is not None
    assert history.weights.shape == (2, 5, 2)
    np.testing.assert_allclose(history.weights.sum(-1), 1, atol=1e-5)
    assert (history.weights[1, :, 1] == 0).all()  # 'drei' is one word


def test_right_is_word_for_word_to_the_end() -> None:
    targets = seq2seq.sentences(["a b", "a"], marked=True)
    assert targets.tokens.tolist() == [[2, 3, 1], [2, 1, 0]]
    for written, right in (
        ([[2, 3, 1, 1], [2, 1, 1, 1]], [True, True]),
        ([[2, 3, 2, 1], [2, 1, 3, 3]], [False, True]),
        ([[2, 2, 1, 1], [2, 2, 1, 1]], [False, False]),
    ):
        assert seq2seq.reproduced(np.array(written), targets).tolist() == right
    assert targets.spell([3, 2, 1, 2]) == "b a"
    assert targets.spell([3, 2]) == "b a"
    assert seq2seq.sentences(["a b"], marked=False).text(0) == "a b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\tb\nc d\n", "line 2: expected a source, a tab and a target, got 'c d'"),
        ("a\tb\tc\n", "line 1: expected a source, a tab and a target"),
        ("a\t \n", "line 1: expected a source, a tab and a target"),
        ("", "has no pairs"),
        (None, "No such file"),
    ],
)
def test_a_file_that_has_no_pairs_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "pairs.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    out = str(tmp_path / "any.png")
    assert main(["run", "seq2seq", "--pairs", str(path), "--out", out]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert str(path) in error


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(name, "0") for name in ("beams", "steps", "every", "hidden", "layers")],
        *[("teacher-forcing", value) for value in ("-0.1", "1.1", "nan")],
        ("lr", "0"),
        ("seed", "-1"),
    ],
)
def test_a_setting_that_can_not_be_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    def begun(*_: Any) -> None:
        pytest.fail("the work was begun")

    monkeypatch.setattr(seq2seq, "train", begun)
    assert main(["run", "seq2seq", f"--{option}", value]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxrnn run seq2seq: error: ")
    assert option.replace("-", "_") in error
    assert value in error
