"""`jaxrnn run all`: one experiment after another, and what came out beside what was reported."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxrnn.cli import main
from jaxrnn.examples import NAMES, every, hello, hihello


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """The command as users run it, in float32."""
    with jax.enable_x64(False):
        yield


def cells(printed: str) -> list[list[str]]:
    """The rows of the table, those that go on over lines put together."""
    rows: list[list[str]] = []
    for line in printed.splitlines():
        if line.startswith("│"):
            parts = [part.strip() for part in line.strip("│").split("│")]
            if parts[0]:
                rows.append(parts)
            else:
                rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], parts)]
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_a_line_of_what_is_reported(name: str) -> None:
    module: Any = importlib.import_module(NAMES[name])
    assert isinstance(module.REPORTED, str)
    assert 5 < len(module.REPORTED) <= 100
    assert "\n" not in module.REPORTED
    assert callable(module.result)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[every.Row]]:
    """Two experiments, run as all are."""
    folder = tmp_path_factory.mktemp("all") / "new"
    with jax.enable_x64(False):
        return folder, every.main(every.Settings(out=str(folder), only="hello, hihello"))


def test_figures_and_texts_are_in_the_folder(ran: tuple[Path, list[every.Row]]) -> None:
    folder, _ = ran
    names = [path.name for path in folder.iterdir()]
    assert sorted(names) == ["hello.png", "hello.txt", "hihello.png", "hihello.txt"]
    assert (folder / "hello.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "hihello.txt").read_text(encoding="utf-8")
    assert "characters right" in text
    assert f"figure: {folder / 'hihello.png'}" in text


def test_what_came_out_is_beside_what_was_reported(ran: tuple[Path, list[every.Row]]) -> None:
    first, second = ran[1]
    assert (first.name, first.reported) == ("hello", hello.REPORTED)
    assert first.result == "(3, 5, 4) -> (3, 5, 2)"
    assert (second.name, second.reported) == ("hihello", hihello.REPORTED)
    assert second.result == "'ihello', 6 of 6 right"
    assert not first.failed
    assert not second.failed
    assert min(first.seconds, second.seconds) > 0


def test_one_that_fails_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: Any) -> None:
        print("so far, so good")
        raise ZeroDivisionError("[red]by zero\nin the middle")

    monkeypatch.setattr(hihello, "main", broken)
    folder = tmp_path / "figures"
    assert main(["run", "all", "--only", "hihello,hello", "--out", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert err == "jaxrnn run all: error: 1 of 2 experiments failed: hihello\n"
    first, second = cells(out)
    assert first[:3] == ["hihello", hihello.REPORTED, "failed: ZeroDivisionError: [red]by zero"]
    assert second[:3] == ["hello", hello.REPORTED, "(3, 5, 4) -> (3, 5, 2)"]
    text = (folder / "hihello.txt").read_text(encoding="utf-8")
    assert text.startswith("so far, so good\nTraceback")
    assert "in the middle" in text


@pytest.mark.parametrize("only", ["cosine", "sine,", "sine shapes"])
def test_only_experiments_that_there_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, only: str
) -> None:
    folder = tmp_path / "figures"
    assert main(["run", "all", "--only", only, "--out", str(folder)]) == 2
    assert "`only` must be one of 'sine'" in capsys.readouterr().err
    assert not folder.exists()


def test_a_folder_that_can_not_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(every, "run", lambda *_: pytest.fail("the work was begun"))
    (tmp_path / "file").write_text("")
    for path, words in ((tmp_path / "none/figures", "No such file"), (tmp_path / "file", "exists")):
        assert main(["run", "all", "--out", str(path)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert words in err
        assert str(path) in err
    monkeypatch.setattr(every.os, "access", lambda *_: False)  # the superuser may write anywhere
    assert main(["run", "all", "--out", str(tmp_path)]) == 2
    assert "can't be written to" in capsys.readouterr().err


def test_help_says_where_the_figures_go(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "all", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--only" in text
    assert "made if there is none (default: experiments)" in text
