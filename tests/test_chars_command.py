"""`jaxrnn chars`: training, n-gram baselines, model files, generation."""

from __future__ import annotations

import io
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

import jaxrnn
from jaxrnn import text as writing
from jaxrnn.cli import main
from jaxrnn.data import Vocabulary, sample
from jaxrnn.layers.heads import CharacterModel
from jaxrnn.text import Trained, command, model

ENTRY = "jaxrnn.characters"
SMALL = [*("--hidden", "8", "--embedding", "4", "--steps", "12", "--every", "6"), "--window", "8"]
TEXT = "it is what it is, said the sea; it was what it was, said the land.\n" * 20


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run in float32, as users do."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chars")


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    path = folder / "sea.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(folder: Path, text: Path) -> Any:
    """Run the command on the small text; it writes a model and a figure."""
    with jax.enable_x64(False):
        result = command.chars(
            str(text),
            hidden=8,
            embedding=4,
            steps=12,
            every=6,
            window=8,
            length=40,
            seed=3,
            save=str(folder / "sea.safetensors"),
            out=str(folder / "sea.svg"),
        )
        assert isinstance(result, Trained)
        return result


@pytest.fixture(scope="module")
def model_file(folder: Path, trained: Any) -> Path:
    return folder / "sea.safetensors"


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the standard output of the command."""
    assert main(["chars", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the single line on standard error of a command with exit status 2."""
    assert main(["chars", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("jaxrnn chars: error: ")
    return err


def test_a_novel_is_predicted_better_than_by_unigrams(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = [
        "--hidden",
        "48",
        "--window",
        "32",
        "--batch-size",
        "32",
        "--steps",
        "100",
        "--every",
        "50",
    ]
    out = output(capsys, str(sample("alice.txt")), *sizes, "--length", "80")
    lines = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
    losses = {" ".join(row[:-2]): (float(row[-2]), float(row[-1])) for row in lines}
    assert list(losses) == [*model.NGRAMS, "LSTM"]
    nats = {name: loss for name, (loss, _) in losses.items()}
    assert nats["uniform"] == pytest.approx(math.log(65), abs=1e-3)
    assert nats["trigram"] < nats["bigram"] < nats["unigram"] < nats["uniform"]
    assert nats["LSTM"] < nats["unigram"] - 0.3
    assert all(
        bits == pytest.approx(loss / math.log(2), abs=2e-3) for loss, bits in losses.values()
    )


def test_equal_seeds_generate_equal_text(
    capsys: pytest.CaptureFixture[str], text: Path, trained: Any, model_file: Path
) -> None:
    again = output(capsys, str(text), *SMALL, "--length", "40", "--seed", "3")
    loaded = output(capsys, "--load", str(model_file), "--length", "40", "--seed", "3")
    assert again.endswith(f"\n\n{loaded}")  # after the table and an empty line
    assert len(loaded) == 41
    assert output(capsys, "--load", str(model_file), "--length", "40", "--seed", "4") != loaded


def test_a_loaded_model_is_bitwise_equal(trained: Any, model_file: Path) -> None:
    model = writing.load_model(model_file)
    before, after = jaxrnn.state_dict(trained.model), jaxrnn.state_dict(model)
    assert list(before) == list(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert model.vocabulary == trained.model.vocabulary
    assert not model.rnn.training


@pytest.mark.parametrize(
    "sizes",
    [
        {"cell": "gru", "layers": 2, "dropout": 0.5, "embedding": 0},
        {"cell": "rnn", "embedding": 3},
    ],
    ids=lambda sizes: sizes["cell"],
)
def test_each_cell_is_loaded(tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = writing.make_model(Vocabulary("ab\néλ😀"), hidden=5, **sizes)
    again = writing.load_model(writing.save_model(model, tmp_path / "model.safetensors"))
    assert repr(again.rnn) == repr(model.rnn)
    assert again.vocabulary == model.vocabulary
    before, after = jaxrnn.state_dict(model), jaxrnn.state_dict(again)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert list(before) == list(after)


def test_nonlinearity_and_projection_are_loaded(tmp_path: Path) -> None:
    rngs = nnx.Rngs(0)
    for rnn in (
        jaxrnn.RNN(3, 5, nonlinearity="relu", bias=False, rngs=rngs),
        jaxrnn.LSTM(3, 5, proj_size=2, batch_first=True, rngs=rngs),
    ):
        model = CharacterModel(rnn, "abc", rngs=rngs)
        again = writing.load_model(writing.save_model(model, tmp_path / "model.safetensors"))
        before, after = jaxrnn.state_dict(model), jaxrnn.state_dict(again)
        assert all(np.array_equal(before[name], after[name]) for name in before)
        assert repr(again.rnn) == repr(rnn)
        assert getattr(again.rnn, "nonlinearity", None) == getattr(rnn, "nonlinearity", None)


def test_the_file_has_pytorchs_names(model_file: Path, trained: Any) -> None:
    jaxrnn.load_safetensors(nnx.clone(trained.model), model_file)
    with safe_open(model_file, framework="np") as file:
        assert {"rnn.weight_ih_l0", "fc.weight", "embedding.weight"} <= set(file.keys())


def test_options_control_the_generated_text(
    capsys: pytest.CaptureFixture[str], model_file: Path
) -> None:
    def write(*options: str) -> str:
        return output(capsys, "--load", str(model_file), *options)

    greedy = write("--prompt", "it was", "--length", "9", "--temperature", "0")
    assert greedy.startswith("it was")
    assert len(greedy) == len("it was") + 9 + 1
    likeliest = write("--prompt", "it was", "--length", "9", "--top-k", "1", "--temperature", "2")
    assert likeliest == greedy
    assert len(write()) >= 500


def test_the_figure_shows_the_losses(folder: Path, trained: Any) -> None:
    assert (folder / "sea.svg").read_bytes().startswith(b"<?xml")
    figure = command.draw(trained, "The sea")
    (axis,) = figure.axes
    validation = next(line for line in axis.lines if "validation" in str(line.get_label()))
    assert np.asarray(validation.get_xdata()).tolist() == [6, 12]
    assert np.allclose(np.asarray(validation.get_ydata()), trained.history.validation["loss"])
    assert len(axis.lines) == 3 + len(model.NGRAMS)


def test_a_failure_preserves_the_existing_model(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: Path,
    trained: Any,
) -> None:
    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:50])
        raise OSError("no space left")

    path = tmp_path / "sea.safetensors"
    path.write_bytes(b"precious")
    monkeypatch.setattr(command, "train", lambda *_, **__: trained)
    monkeypatch.setattr(command, "make_model", lambda *_, **__: trained.model)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["chars", str(text), "--save", str(path)]) == 2
    assert capsys.readouterr().err == "jaxrnn chars: error: no space left\n"
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


class Closed(io.StringIO):
    """Standard output without a reader."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_the_model_is_written_even_if_standard_output_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: Path, trained: Any
) -> None:
    path = tmp_path / "sea.safetensors"
    monkeypatch.setattr(command, "train", lambda *_, **__: trained)
    monkeypatch.setattr(command, "make_model", lambda *_, **__: trained.model)
    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["chars", str(text), "--save", str(path)]) == 141
    assert path.stat().st_size


def test_the_model_does_not_overwrite_the_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text(TEXT)
    assert "must not be the input file" in refused(capsys, str(path), "--save", str(path))
    assert path.read_text() == TEXT


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["at least 100 characters, got none"]),
        (b"\xef\xbb\xbf", ["at least 100 characters, got none"]),
        (b"to be or not to be", ["at least 100 characters, got 18"]),
        (b"a" * 500, ["two distinct characters, got only 'a'"]),
        (b"good\nb\xe4d" + b" text" * 100, ["line 2", "0xe4", "UTF-8"]),
        (None, ["No such file"]),
        ("folder", ["Is a directory"]),
    ],
    ids=["empty", "only a mark", "short", "one character", "latin-1", "missing", "folder"],
)
def test_an_invalid_text_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: Any, words: list[str]
) -> None:
    path = tmp_path / "text.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    line = refused(capsys, str(path))
    assert all(word in line for word in [*words, str(path)])


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a training starts."""
    monkeypatch.setattr(model, "fit", lambda *_, **__: pytest.fail("the training started"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *[
            ([f"--{name}", "0"], [f"`{name.replace('-', '_')}` must be an integer >= 1, got 0"])
            for name in ("layers", "hidden", "window", "batch-size", "steps", "every", "length")
        ],
        (["--embedding", "-1"], ["embedding", "-1"]),
        (["--dropout", "1"], ["dropout", "1.0"]),
        (["--dropout", "0.5"], ["`dropout` must be 0 with a single layer, got 0.5"]),
        (["--share", "0"], ["share", "0.25"]),
        (["--share", "0.3"], ["share", "0.3"]),
        (["--lr", "nan"], ["lr", "nan"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--temperature", "-1"], ["temperature", "-1"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--top-k", "-1"], ["top_k", "-1"]),
        (["--top-k", "99"], ["top_k", "99"]),
        (["--prompt", "it IS"], ["prompt", "'I'", "position 3"]),
        (["--save", "model.pt"], ["model 'model.pt'", ".safetensors"]),
        (["--save", "none/model.safetensors"], ["folder 'none' does not exist"]),
        (["--out", "figure.txt"], ["figure 'figure.txt'", ".png"]),
        (["--load", "model.safetensors"], ["both"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("untrained")
def test_invalid_options_are_one_line(
    capsys: pytest.CaptureFixture[str], text: Path, options: list[str], words: list[str]
) -> None:
    line = refused(capsys, str(text), *options)
    assert all(word in line for word in words)


def test_a_text_or_a_model_is_required(
    capsys: pytest.CaptureFixture[str], model_file: Path
) -> None:
    assert "neither" in refused(capsys)
    assert "--save requires training" in refused(capsys, "--load", str(model_file), "--save", "a")
    assert "--out requires training" in refused(capsys, "--load", str(model_file), "--out", "a")


def test_prompt_and_top_k_must_fit_a_loaded_model(
    capsys: pytest.CaptureFixture[str], model_file: Path
) -> None:
    assert "'Q' at position 0" in refused(capsys, "--load", str(model_file), "--prompt", "Quiet")
    assert "`top_k` must be <=" in refused(capsys, "--load", str(model_file), "--top-k", "99")


def test_a_non_finite_loss_is_one_line(
    capsys: pytest.CaptureFixture[str], text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    line = refused(capsys, str(text), *SMALL, "--lr", "1e38", "--save", str(path))
    assert "The loss must be finite" in line
    assert not path.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.999])
def test_a_truncated_model_is_rejected(
    capsys: pytest.CaptureFixture[str], model_file: Path, tmp_path: Path, share: float
) -> None:
    content, path = model_file.read_bytes(), tmp_path / "half.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    assert f"{path} is not a safetensors file" in refused(capsys, "--load", str(path))


def test_a_foreign_file_is_rejected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: Path
) -> None:
    path = tmp_path / "gru.safetensors"
    assert "No such file" in refused(capsys, "--load", str(path))
    assert "not a safetensors file" in refused(capsys, "--load", str(text))
    jaxrnn.save_safetensors(jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0)), path)
    assert "not of a character model" in refused(capsys, "--load", str(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(vocabulary="xyz"), "fc.weight"),
        (lambda d: d.update(vocabulary=""), "at least one character"),
        (lambda d: d.update(cell="gru"), "proj_size"),
        (lambda d: d["layer"].update(bias=False), "Unexpected key"),
        (lambda d: d.update(cell="transformer"), "transformer"),
        (lambda d: d.update(embedding=None), "One-hot"),
        (lambda d: d.update(embedding=5), "embedding.weight"),
        (lambda d: d.pop("layer"), "layer"),
        (lambda d: d.update(layer=[8]), "list"),
        (lambda d: d["layer"].update(hidden_size=10**9), "fc.weight"),
        (lambda d: d["layer"].update(num_layers=10**9), "weight_hh_l999999999"),
        (lambda d: d["layer"].update(input_size=10**12), "rnn.weight_ih_l0"),
        (lambda d: d["layer"].update(proj_size=8, hidden_size=10**9), "rnn.weight_ih_l0"),
        (lambda d: d["layer"].update(hidden_size=0, proj_size=8), "hidden_size"),
        (lambda d: d["layer"].update(colour="blue"), "colour"),
    ],
)
def test_an_inconsistent_description_is_rejected(
    capsys: pytest.CaptureFixture[str], model_file: Path, tmp_path: Path, change: Any, words: str
) -> None:
    with safe_open(model_file, framework="np") as file:
        described = json.loads(file.metadata()[ENTRY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(described)
    path = tmp_path / "other.safetensors"
    save_file(arrays, path, {ENTRY: json.dumps(described)})
    line = refused(capsys, "--load", str(path))
    assert "is a corrupt character model" in line
    assert words in line


def test_save_rejects_models_that_load_cannot_build(tmp_path: Path) -> None:
    rngs, path = nnx.Rngs(0), tmp_path / "model.safetensors"
    model = CharacterModel(
        jaxrnn.GRU(2, 4, rngs=rngs), "abc", lambda n: n[..., None] * np.ones(2), rngs=rngs
    )
    with pytest.raises(ValueError, match=r"must be an nnx\.Embed or None"):
        writing.save_model(model, path)
    assert not path.exists()


def test_windows_are_contiguous_and_sets_are_disjoint() -> None:
    text = writing.prepare(TEXT, window=8, batch_size=4, share=0.1)
    assert text.vocabulary.decode(text.ids) == TEXT
    for places in (text.train, text.validation, text.test):
        x, y = text.pairs(places)
        stream, follows = (a.reshape(-1, a.shape[-1]).T for a in (x, y))  # contiguous streams
        assert np.array_equal(stream[:, 1:], follows[:, :-1])
        assert np.array_equal(text.ids[places], y)
    parts = [set(p.ravel().tolist()) for p in (text.train, text.validation, text.test)]
    assert [len(part) for part in parts] == [
        text.train.size,
        text.validation.size,
        text.test.size,
    ]
    assert max(parts[0]) < text.train_size <= min(parts[1])
    assert max(parts[1]) < min(parts[2]) == len(TEXT) - round(0.1 * len(TEXT))


def test_read_text_normalises_ends_of_lines_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthr\xc3\xa9e\n")
    assert writing.read_text(path) == "one\ntwo\nthrée\n"


def reference(ids: list[int], train_size: int, place: int, order: int, size: int, b: int) -> float:
    """Return the probability of b at a position, by the recursion of `ngram_loss`."""
    if order == 0:
        return 1 / size
    group = ids[place - order + 1 : place]
    follows = Counter(
        ids[i] for i in range(order - 1, train_size) if ids[i - order + 1 : i] == group
    )
    lower = reference(ids, train_size, place, order - 1, size, b)
    kinds, count = len(follows), sum(follows.values())
    return (follows[b] + kinds * lower) / (count + kinds) if count else lower


@pytest.mark.parametrize("order", range(5))
def test_ngram_loss_equals_its_recursion(order: int) -> None:
    ids = np.random.default_rng(order).choice(4, 60, p=[0.6, 0.2, 0.15, 0.05])
    ids[55] = 4  # not in the training set
    places, listed = np.arange(40, 60), ids.tolist()
    odds = [reference(listed, 40, place, order, 5, listed[place]) for place in range(40, 60)]
    loss = writing.ngram_loss(ids, 40, places.reshape(4, 5), order, 5)
    assert loss == pytest.approx(-np.log(odds).mean(), rel=1e-12)
    total = sum(reference(listed, 40, 50, order, 5, b) for b in range(5))
    assert total == pytest.approx(1, rel=1e-12)


def test_the_state_continues_across_windows_and_starts_each_epoch_at_zero() -> None:
    text = writing.prepare(TEXT, window=8, batch_size=4)
    model = writing.make_model(text.vocabulary, cell="gru", hidden=8, embedding=4)
    x, y = text.pairs(text.train)
    whole_streams = [a.reshape(-1, a.shape[-1]) for a in (x, y)]
    whole = float(model.loss(*whole_streams))
    assert float(writing.mean_loss(model, x, y)) == pytest.approx(whole, rel=1e-5)

    epoch = len(x)  # with a learning rate that changes nothing
    trained = writing.train(text, model, steps=2 * epoch, every=epoch, lr=1e-30)
    first, second = trained.history.losses.reshape(2, epoch)
    assert first.mean() == pytest.approx(whole, rel=1e-5)
    assert np.array_equal(first, second)
    assert trained.epochs == 2
    alone = [float(model.loss(x[k], y[k])) for k in range(2)]
    assert first[0] == pytest.approx(alone[0], rel=1e-5)
    assert abs(first[1] - alone[1]) > 1e-4  # from a zero state the loss differs


def test_the_best_parameters_are_restored() -> None:
    text = writing.prepare("abcdefgh" * 60 + "hgfedcba" * 60, window=8, batch_size=4)
    model = writing.make_model(text.vocabulary, hidden=8)  # the test set reverses the training set
    trained = writing.train(text, model, steps=60, every=5, patience=2, lr=0.05)
    validation = trained.history.validation["loss"]
    assert len(trained.history.losses) < 60
    best = float(writing.mean_loss(model, *text.pairs(text.validation)))
    assert best == pytest.approx(validation.min(), rel=1e-5)
    assert trained.best == 5 * (1 + validation.argmin())


@pytest.mark.parametrize(
    ("rnn", "characters", "words"),
    [
        (lambda: jaxrnn.GRU(8, 4, rngs=nnx.Rngs(0)), "abcdefgh", "vocabulary"),
        (
            lambda: jaxrnn.GRU(2, 4, batch_first=True, rngs=nnx.Rngs(0)),
            "ab",
            "time first and unidirectional",
        ),
        (
            lambda: jaxrnn.GRU(2, 4, bidirectional=True, rngs=nnx.Rngs(0)),
            "ab",
            "time first and unidirectional",
        ),
    ],
)
def test_train_rejects_models_that_do_not_fit_the_text(
    rnn: Any, characters: str, words: str
) -> None:
    model = CharacterModel(rnn(), characters, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=words):
        writing.train(writing.prepare("ab" * 100), model)


def test_sample_files_document_their_source() -> None:
    with pytest.raises(ValueError, match=r"must be one of .*alice\.txt.*, got 'bob.txt'"):
        sample("bob.txt")
    path = sample("alice.txt")
    assert "public domain" in path.with_suffix(".md").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert (len(text), len(set(text))) == (57560, 65)
