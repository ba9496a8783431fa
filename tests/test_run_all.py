"""Command `jaxrnn run all`: all examples, and their results beside those of the sources."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import jax
import pytest

from jaxrnn.cli import main
from jaxrnn.examples import EXAMPLES, characters, run_all


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run the command in float32, as users do."""
    with jax.enable_x64(False):
        yield


def table_cells(printed: str) -> list[list[str]]:
    """Return the cells of the printed table, with wrapped lines joined."""
    entries: list[list[str]] = []
    for line in printed.splitlines():
        if line.startswith("│"):
            parts = [part.strip() for part in line.strip("│").split("│")]
            if parts[0]:
                entries.append(parts)
            else:
                entries[-1] = [f"{a} {b}".strip() for a, b in zip(entries[-1], parts)]
    return entries


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_a_function_and_a_reported_figure(name: str) -> None:
    function, reported = EXAMPLES[name]
    assert callable(resolve_name(function))
    assert 5 < len(reported) <= 100
    assert "\n" not in reported


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[run_all.Outcome]]:
    """Two examples, run as all of them are."""
    folder = tmp_path_factory.mktemp("all")
    with jax.enable_x64(False):
        return folder, [run_all.run(name, folder) for name in ("hello", "hihello")]


def test_figures_and_texts_are_in_the_folder(ran: tuple[Path, Any]) -> None:
    folder, _ = ran
    names = [path.name for path in folder.iterdir()]
    assert sorted(names) == ["hello.png", "hello.txt", "hihello.png", "hihello.txt"]
    assert (folder / "hello.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "hihello.txt").read_text(encoding="utf-8")
    assert "characters right" in text
    assert f"figure: {folder / 'hihello.png'}" in text


def test_outcomes_have_the_summaries(ran: tuple[Path, list[run_all.Outcome]]) -> None:
    first, second = ran[1]
    assert first[:3] == ("hello", "(3, 5, 4) -> (3, 5, 2)", False)
    assert second[:3] == ("hihello", "'ihello', 6 of 6 right", False)
    assert min(first.seconds, second.seconds) > 0


def test_a_failure_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(characters.hihello)
    def broken(**_: Any) -> str:
        print("printed before the error")
        raise ZeroDivisionError("[red]by zero\nsecond line")

    monkeypatch.setattr(characters, "hihello", broken)
    folder = tmp_path / "new"
    assert main(["run", "all", "--only", "hihello, hello", "--out", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert err == "jaxrnn run all: error: 1 of 2 examples failed: hihello\n"
    first, second = table_cells(out)
    error = "failed: ZeroDivisionError: [red]by zero"
    assert first[:3] == ["hihello", EXAMPLES["hihello"].reported, error]
    assert second[:3] == ["hello", EXAMPLES["hello"].reported, "(3, 5, 4) -> (3, 5, 2)"]
    text = (folder / "hihello.txt").read_text(encoding="utf-8")
    assert text.startswith("printed before the error\nTraceback")
    assert "second line" in text


@pytest.mark.parametrize("only", ["cosine", "sine,", "sine shapes"])
def test_an_unknown_example_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, only: str
) -> None:
    folder = tmp_path / "figures"
    assert main(["run", "all", "--only", only, "--out", str(folder)]) == 2
    assert "`only` must be one of 'sine'" in capsys.readouterr().err
    assert not folder.exists()


def test_an_impossible_folder_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_all, "run", lambda *_: pytest.fail("an example started"))
    (tmp_path / "file").write_text("")
    for path, words in ((tmp_path / "none/figures", "No such file"), (tmp_path / "file", "exists")):
        assert main(["run", "all", "--out", str(path)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert words in err
        assert str(path) in err
    monkeypatch.setattr(run_all.os, "access", lambda *_: False)  # root can write anywhere
    assert main(["run", "all", "--out", str(tmp_path)]) == 2
    assert "can't be written to" in capsys.readouterr().err


def test_help_shows_the_folder_of_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "all", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--only" in text
    assert "created if missing (default: experiments)" in text
