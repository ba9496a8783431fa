"""Sentences of `jaxrnn run seq2seq`: reproduced from any seed and with each attention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import plotting
from jaxrnn.cli import main
from jaxrnn.examples import seq2seq
from jaxrnn.examples.seq2seq import Sentences
from jaxrnn.training import sweep


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run the example in float32, as users do."""
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("attention", ["none", "dot", "additive"])
def test_every_pair_is_reproduced_from_every_seed(attention: str) -> None:
    sources, targets = seq2seq.load()

    def run(seed: Any) -> jax.Array:
        key = jax.random.key(seed)
        model = seq2seq.make_model(sources, targets, attention=attention, rngs=nnx.Rngs(key))
        graph, params = nnx.split(model)
        trained = seq2seq.train(graph, params, key, sources=sources, targets=targets)
        decoded = seq2seq.translate(nnx.merge(graph, trained.params), sources, 9)
        return seq2seq.exact_match(decoded, targets)

    right = sweep(run, seed=jnp.arange(3)).results
    assert right.shape == (3, len(seq2seq.PAIRS))
    assert right.all()


def test_the_command_prints_each_pair_and_its_translation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "sentences.svg"
    options = ["--beams", "3", "--teacher-forcing", "0.9", "--every", "25", "--out", str(path)]
    assert main(["run", "seq2seq", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    losses = [line.split("loss: ") for line in lines[:4]]
    assert [int(step) for step, _ in losses] == [0, 25, 50, 75]
    assert float(losses[0][1]) > 3 > 0.3 > float(losses[3][1])
    expected = [f"{mark} {text}" for s, t in seq2seq.PAIRS for mark, text in zip(">=<", (s, t, t))]
    assert lines[4 : 4 + len(expected)] == expected
    assert lines[-3] == "8 of 8 sentences right"
    assert lines[-1] == f"figure: {path}"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_pairs_and_the_attention_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, heat_maps = [], plotting.heat_maps
    monkeypatch.setattr(
        plotting, "heat_maps", lambda p, **options: (drawn.append(p), heat_maps(p, **options))[1]
    )
    pairs, out = tmp_path / "pairs.txt", tmp_path / "any.png"
    pairs.write_text("eins zwei\tone two\ndrei\tthree\n", encoding="utf-8")
    options: Any = {"attention": "additive", "steps": 1, "hidden": 2}
    seq2seq.main(pairs=str(pairs), **options, out=str(out))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["> eins zwei", "= one two"]
    assert lines[3].startswith("! ")
    assert lines[-3] == "0 of 2 sentences right"
    assert out.read_bytes().startswith(b"\x89PNG")
    first, second = (panel.values for panel in drawn[0])
    assert first.shape[1] == 2
    assert second.shape[1] == 1  # 'drei' is one word
    np.testing.assert_allclose(first.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(second.sum(-1), 1, atol=1e-5)


def test_sentences_match_word_for_word_to_the_end() -> None:
    targets = Sentences.encode(["a b", "a"], end=True)
    assert targets.tokens.tolist() == [[2, 3, 1], [2, 1, 0]]
    for decoded, right in (
        ([[2, 3, 1, 1], [2, 1, 1, 1]], [True, True]),
        ([[2, 3, 2, 1], [2, 1, 3, 3]], [False, True]),
        ([[2, 2, 1, 1], [2, 2, 1, 1]], [False, False]),
    ):
        assert seq2seq.exact_match(np.array(decoded), targets).tolist() == right
    assert targets.decode([3, 2, 1, 2]) == "b a"
    assert targets.decode([3, 2]) == "b a"
    assert Sentences.encode(["a b"], end=False).text(0) == "a b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\tb\nc d\n", "line 2: must be a source, a tab and a target, got 'c d'"),
        ("a\tb\tc\n", "line 1: must be a source, a tab and a target"),
        ("a\t \n", "line 1: must be a source, a tab and a target"),
        ("", "has no pairs"),
        (None, "No such file"),
    ],
)
def test_a_file_without_pairs_is_one_line(
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
def test_an_impossible_option_is_one_line_before_any_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    monkeypatch.setattr(seq2seq, "make_model", lambda *_, **__: pytest.fail("the work started"))
    assert main(["run", "seq2seq", f"--{option}", value]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxrnn run seq2seq: error: ")
    assert option.replace("-", "_") in error
    assert value in error
