"""Command `jaxrnn`: its options, its files, and one line for each error."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console

import jaxrnn
from jaxrnn import _files as files
from jaxrnn import plotting
from jaxrnn.cli import argument_descriptions, main
from jaxrnn.examples import EXAMPLES, shapes, sine
from jaxrnn.layers.heads import LAYERS

SMALL = ["--steps", "4", "--every", "2", "--points", "3", "--hidden", "2"]
QUICK = [  # each example with minimal sizes
    ["sine", *SMALL],
    ["shapes"],
    ["scratch", "--steps", "3", "--hidden", "2"],
    ["hello"],
    ["hihello", "--steps", "2"],
    ["charseq", "--steps", "2"],
    ["longseq", "--steps", "2", "--text", "to be or not", "--window", "3"],
    ["stocks", "--epochs", "2", "--hidden", "2"],
    ["seq2seq", "--steps", "2", "--hidden", "2"],
    ["packed", "--words", "ab a", "--hidden", "2"],
    ["keras", "--epochs", "2"],
    ["stateful", "--points", "20", "--epochs", "2", "--hidden", "2"],
    ["taxonomy", "--steps", "2", "--hidden", "2"],
    ["episodes", "--updates", "2", "--envs", "2", "--steps", "3", "--silent", "1"],
]
FIGURES = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run in float32, as users do."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if any model is built."""
    monkeypatch.setattr(nnx, "Rngs", lambda *_: pytest.fail("the work started"))


def replace_main(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> None:
    """Replace the function of the sine example, with the same options."""
    monkeypatch.setattr(sine, "main", functools.wraps(sine.main)(lambda **_: function()))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the single line on standard error of a command with exit status 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def rejected_usage(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the last line on standard error, after the usage, of an invalid command."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    *usage, line = err.splitlines()
    assert all(text.startswith(("usage:", " ")) for text in usage)
    return line


def test_version_prints_the_version_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"jaxrnn {jaxrnn.__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "jaxrnn", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"jaxrnn {jaxrnn.__version__}\n"


def test_list_prints_a_line_for_each_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXAMPLES)
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_lists_commands_and_examples(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    expected = [*EXAMPLES, "NAME --help"] if "run" in arguments else ["run", "list", "--version"]
    text = capsys.readouterr().out
    assert all(word in text for word in expected)


def test_every_example_is_tested_here() -> None:
    assert [arguments[0] for arguments in QUICK] == list(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_of_an_example_documents_each_option_and_default(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", name, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "math:" not in text
    function = resolve_name(EXAMPLES[name].function)
    descriptions = argument_descriptions(function)
    for option, parameter in inspect.signature(function).parameters.items():
        shown = parameter.default != "" and not isinstance(parameter.default, bool)
        default = f" (default: {str(parameter.default).strip()})" if shown else ""
        assert f"--{option.replace('_', '-')}" in text
        assert descriptions[option] + default in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "cosine"], ["cosine", *EXAMPLES]),
        (["fun"], ["fun", "list", "run"]),
        ([], ["COMMAND"]),
        (["run"], ["NAME"]),
        (["run", "sine", "--hidden", "x"], ["--hidden", "'x'"]),
        (["run", "sine", "--steps", "1.5"], ["--steps", "'1.5'"]),
        (["run", "sine", "--cell", "foo"], ["--cell", "foo", *LAYERS]),
        (["run", "sine", "--depth", "2"], ["--depth"]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("untrained")
def test_invalid_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    line = rejected_usage(capsys, *arguments)
    assert "error:" in line
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(name, "0") for name in ("steps", "every", "points", "hidden", "layers")],
        *[("lr", value) for value in ("0.0", "-1", "nan", "inf")],
        *[("seed", value) for value in ("-1", "9" * 30)],
    ],
)
@pytest.mark.usefixtures("untrained")
def test_an_invalid_option_is_rejected_before_any_computation(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    line = refused(capsys, "run", "sine", f"--{option}", value)
    assert line.startswith("jaxrnn run sine: error: ")
    assert option in line
    assert value in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "sine", "--hidden", "1000000"],
        ["run", "longseq", "--layers", "9" * 15],
        ["forecast", "a.csv", "--column", "a", "--hidden-size", "9" * 400],
        ["chars", "a.txt", "--embedding", "1000000000"],
    ],
    ids=lambda arguments: arguments[-2],
)
@pytest.mark.usefixtures("untrained")
def test_a_model_that_exceeds_the_memory_is_rejected(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    line = refused(capsys, *arguments)
    assert f"{arguments[-2].strip('-').replace('-', '_')}={arguments[-1]}" in line
    assert "GiB" in line


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError(), 2, "jaxrnn run sine: error: MemoryError"),
        (OverflowError("too large"), 2, "jaxrnn run sine: error: too large"),
        (jax.errors.JaxRuntimeError("no\nmemory"), 2, "jaxrnn run sine: error: no memory"),
        (KeyboardInterrupt(), 130, "jaxrnn: interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_of_a_command_is_one_line_and_an_exit_status(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def fails() -> None:
        raise error

    replace_main(monkeypatch, fails)
    assert main(["run", "sine"]) == status
    assert capsys.readouterr().err.strip() == words


def test_ctrl_c_does_not_wait_for_running_computations(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    replace_main(monkeypatch, interrupted)
    monkeypatch.setattr(sys, "argv", ["jaxrnn", "run", "sine"])
    monkeypatch.setattr(os, "_exit", lambda status: sys.exit(f"at once, {status}"))
    with pytest.raises(SystemExit, match="at once, 130"):
        main()


class Full(io.TextIOWrapper):
    """ASCII standard output on a full disk."""

    def __init__(self, full: bool):
        super().__init__(io.BytesIO(), encoding="ascii", write_through=True)
        self.full = full

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().flush()


def test_standard_output_escapes_characters_and_reports_a_full_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_main(monkeypatch, lambda: print("caf\xe9"))
    out = Full(full=False)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["run", "sine"]) == 0
    assert out.buffer.getvalue().split() == [b"caf\\xe9"]  # pyright: ignore
    out.full = True
    assert main(["run", "sine"]) == 2
    out.full = False
    assert capsys.readouterr().err == "jaxrnn: error: [Errno 28] No space left on device\n"


def test_atomic_writes_follow_links_and_preserve_permissions(tmp_path: Path) -> None:
    real, link, fifo = (tmp_path / name for name in ("real.txt", "link.txt", "fifo.txt"))
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to("real.txt")
    assert files.write_atomically(link, lambda path: path.write_text("new")) == link
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    longest = tmp_path / f"{'a' * 250}.txt"
    files.write_atomically(longest, lambda path: path.write_text("new"))
    os.mkfifo(fifo)  # a special file such as /dev/stdout, which is not replaced
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomically(fifo, lambda path: path.write_text("new"))
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert fifo.is_fifo()
    assert sorted(tmp_path.iterdir()) == sorted([real, link, fifo, longest])


@pytest.mark.usefixtures("untrained")
def test_input_files_and_read_only_files_are_not_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = tmp_path / "data.png", tmp_path / "link.png"
    path.write_text("precious")
    link.symlink_to(path)
    for words in (["stocks", "--csv"], ["seq2seq", "--pairs"]):
        line = refused(capsys, "run", *words, str(path), "--out", str(link))
        assert f"figure '{link}' must not be the input file '{path}'" in line
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p).is_dir())
    line = refused(capsys, "run", "sine", "--out", str(path))
    assert f"figure '{path}' is not writable" in line
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("none/figure.svg", "none' does not exist"),
        ("figure.txt", "must end in ."),
        ("figure", "must end in ."),
        ("folder.svg", "is a folder"),
        ("file/figure.svg", "file' does not exist"),
    ],
)
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("untrained")
def test_an_invalid_figure_path_is_rejected_before_any_computation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, target: str, words: str
) -> None:
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "file").write_text("")
    line = refused(capsys, "run", name, "--out", str(tmp_path / target))
    assert words in line
    assert str(tmp_path / target) in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.svg"]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("untrained")
def test_a_read_only_folder_is_rejected_before_any_computation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    line = refused(capsys, "run", name, "--out", str(tmp_path / "figure.svg"))
    assert "the folder is not writable" in line


def test_dollars_in_labels_are_escaped(tmp_path: Path) -> None:
    panel = plotting.HeatMap("$^$", np.zeros((1, 1)), ["$_$"], ["$\\frac$"])
    path = plotting.save(plotting.heat_maps([panel], title="$^$ of $_$"), tmp_path / "a.png")
    assert path.stat().st_size


def test_sine_prints_losses_and_saves_a_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "sine.png"
    assert main(["run", "sine", *SMALL, "--out", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.removeprefix("Loss:")) for line in lines if line.startswith("Loss: ")]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)
    assert lines[-1] == f"figure: {path}"
    assert path.read_bytes().startswith(FIGURES[".png"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FIGURES)
def test_the_suffix_determines_the_format_of_a_figure(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sine{suffix}"
    path.write_text("the figure of an earlier run")
    assert main(["run", "sine", *SMALL, "--out", str(path)]) == 0
    assert path.read_bytes().startswith(FIGURES[suffix])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("arguments", [["shapes"], ["sine", *SMALL]], ids=lambda a: a[0])
def test_a_failed_save_preserves_the_existing_figure(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    def full(self: Any, path: Any, **_: Any) -> None:
        Path(path).write_text("half a figure")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", full)
    monkeypatch.setattr(Console, "save_svg", full)
    path = tmp_path / "figure.svg"
    path.write_bytes(b"precious")
    assert main(["run", *arguments, "--out", str(path)]) == 2
    assert capsys.readouterr().err == f"jaxrnn run {arguments[0]}: error: disk full\n"
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes") / "shapes.svg"


@pytest.fixture(scope="module")
def tables(figure: Path) -> str:
    """Return the output of ``jaxrnn run shapes``."""
    with jax.enable_x64(False), contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(["run", "shapes", "--out", str(figure)]) == 0
    return text.getvalue()


@pytest.mark.parametrize(
    "row",
    [
        "(1, 20, 1) None (20, 1) (2, 1, 10)",
        "(5, 3, 10) (2, 3, 20) (5, 3, 20) (2, 3, 20)",
        "(3, 5, 10) (2, 3, 20) (3, 5, 20) (2, 3, 20)",
        "(5, 10) (2, 20) (5, 20) (2, 20)",
        "(5, 3, 10) (4, 3, 20) (5, 3, 40) (4, 3, 20)",
        "(5, 3, 7) None (5, 3, 20) (1, 3, 20)",
        "(5, 3, 10) None (5, 3, 8) (1, 3, 8)",
        "(3, 5, 10) None (3, 5, 20) (1, 3, 20)",
        "(5, 3, 10) None (5, 3, 40) (2, 3, 20)",
    ],
)
def test_shapes_prints_the_shapes_of_each_call(tables: str, row: str) -> None:
    lines = [" ".join(line.replace("│", " ").split()) for line in tables.splitlines()]
    assert any(line.endswith(row) for line in lines)


@pytest.mark.parametrize(
    "argument",
    [
        *("input_size=7", "hidden_size=8", "num_layers=2", "nonlinearity='relu'", "bias=False"),
        *("batch_first=True", "dropout=0.5", "bidirectional=True"),
    ],
)
def test_shapes_shows_each_argument_of_the_constructor(tables: str, argument: str) -> None:
    assert argument in tables


def test_shapes_ends_with_pytorchs_error(tables: str) -> None:
    last = tables.splitlines()[-2]
    assert last.endswith("Expected hidden size (1, 3, 20), got [2, 3, 20]")


def test_shapes_saves_its_tables(tables: str, figure: Path) -> None:
    assert tables.splitlines()[-1] == f"figure: {figure}"
    assert figure.read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize("arguments", QUICK, ids=lambda a: a[0])
def test_an_example_runs_with_x64_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    calls = [shapes.measure_sine, lambda: shapes.measure("", (5, 10), (2, 20), 10, 20, 2)]
    monkeypatch.setattr(shapes, "layouts", lambda: [call() for call in calls])
    monkeypatch.setattr(shapes, "arguments", list)
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(True):
        assert main(["run", *arguments]) == 0
