"""`jaxrnn forecast` and `jaxrnn predict`: a real series, user files, one line per error."""

from __future__ import annotations

import csv
import errno
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import jaxrnn
from jaxrnn import _files as files
from jaxrnn import data
from jaxrnn.cli import argument_descriptions, main
from jaxrnn.forecasting import Forecaster, Options, command, train
from jaxrnn.forecasting.command import forecast, predict

CO2 = str(data.sample("co2.csv"))
NAMES = ["forecasts.csv", "forecast.png", "model.safetensors"]
SMALL = [
    *("--window", "6", "--horizon", "2", "--hidden-size", "4", "--epochs", "2"),
    *("--batch-size", "8", "--ahead", "2"),
]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run in float32, as users do."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forecast")


@pytest.fixture(scope="module")
def air(folder: Path) -> Any:
    """Run the command on the sample series; its files are in the folder `air`."""
    with jax.enable_x64(False):
        options = Options(horizon=12, hidden_size=32, epochs=40, learning_rate=0.01)
        return forecast(CO2, column="co2", ahead=15, out=str(folder / "air"), options=options)


def written(path: Path, rows: int = 60, **columns: list[str] | str) -> Path:
    """Write a CSV file with a date, two numeric columns, and the given columns."""
    random = np.random.default_rng(0).normal(size=(2, rows)).round(3)
    cells = {
        "date": [f"2024-{1 + row // 28:02d}-{1 + row % 28:02d}" for row in range(rows)],
        "load": [str(round(50 + row + value, 3)) for row, value in enumerate(random[0])],
        "wind": [str(value) for value in random[1]],
        **{name: [c] * rows if isinstance(c, str) else c for name, c in columns.items()},
    }
    lines = [",".join(cells), *map(",".join, zip(*cells.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the single line on standard error of a command with exit status 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"jaxrnn {arguments[0]}: error: ")
    return err


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_sample_series_agrees_with_its_note() -> None:
    months = [row["month"] for row in rows_of(Path(CO2))]
    expected = [f"{year}-{month:02d}" for year in range(1974, 2025) for month in range(1, 13)]
    assert months == expected[4:]
    values = data.read_csv(CO2, ["co2"]).values[:, 0]
    assert 325 < values.min() < 330  # ppm, in 1974
    assert 425 < values.max() < 430  # in 2024
    highest = values[8:].reshape(-1, 12).argmax(1)  # in May, before the leaves are out
    assert (highest == 4).mean() > 0.8
    assert set(highest) <= {3, 4, 5}
    assert "NOAA" in Path(CO2).with_suffix(".md").read_text(encoding="utf-8")


def test_the_sample_series_is_forecast_far_better_than_by_persistence(air: Any) -> None:
    errors = {name: e.rmse for name, e in air.errors.items()}
    assert (errors["LSTM"] < errors["persistence"]).all()  # at each step, and over all
    assert errors["LSTM"][-1] < 0.3 * errors["persistence"][-1]
    assert errors["linear"][-1] < 0.2 * errors["persistence"][-1]
    ahead = air.ahead["LSTM"]
    assert ahead.shape == (15,)
    assert ahead[:12].argmax() in (3, 4, 5)  # about May, since the series ends in December
    assert 420 < ahead.min() < ahead.max() < 440


def test_the_csv_file_has_all_digits_of_the_forecasts(air: Any, folder: Path) -> None:
    rows = rows_of(folder / "air" / "forecasts.csv")
    assert list(rows[0]) == ["part", "row", "rows_ahead", "truth", "LSTM", "persistence", "linear"]
    held_out = [row for row in rows if row["part"] == "held out"]
    assert len(held_out) == air.truth.size
    for name, expected in {**air.forecasts, "truth": air.truth}.items():
        read = np.array([float(row[name]) for row in held_out]).reshape(air.truth.shape)
        np.testing.assert_array_equal(read, expected)
    values = data.read_csv(CO2, ["co2"]).values[:, 0]
    assert all(float(row["truth"]) == values[int(row["row"]) - 1] for row in held_out)
    ahead = rows[len(held_out) :]
    assert {row["part"] for row in ahead} == {"ahead"}
    assert [int(row["row"]) for row in ahead] == list(range(609, 624))
    assert [row["truth"] for row in ahead] == [""] * 15
    for name, expected in air.ahead.items():
        np.testing.assert_array_equal([float(row[name]) for row in ahead], expected)
    assert sorted(path.name for path in (folder / "air").iterdir()) == sorted(NAMES)
    assert (folder / "air" / "forecast.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_predict_repeats_the_forecasts_bitwise(
    capsys: pytest.CaptureFixture[str], air: Any, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ahead.csv"
    for model in (folder / "air", folder / "air" / "model.safetensors"):
        assert main(["predict", str(model), CO2, "--out", str(path)]) == 0
        rows = rows_of(path)
        np.testing.assert_array_equal([float(row["forecast"]) for row in rows], air.ahead["LSTM"])
        assert [int(row["row"]) for row in rows] == list(range(609, 624))
    out = capsys.readouterr().out
    assert all(f"{value:.6g}" in out for value in air.ahead["LSTM"])
    assert f"forecasts: {path}" in out


def test_predict_reads_another_file_with_the_column(
    capsys: pytest.CaptureFixture[str], air: Any, tmp_path: Path
) -> None:
    air.forecaster.save(tmp_path / "model.safetensors")
    lines = Path(CO2).read_text(encoding="utf-8").splitlines()
    later = ["station;co2", *(f"mlo;{line.split(',')[1]}" for line in lines[401:431])]
    path = tmp_path / "later.csv"
    path.write_text("\n".join(later), encoding="utf-8")
    out = tmp_path / "out.csv"
    forecasts = predict(str(tmp_path), str(path), delimiter=";", ahead=3, out=str(out))
    values = data.read_csv(CO2, ["co2"]).values
    np.testing.assert_array_equal(forecasts, air.forecaster.predict(values[:430], 3))
    assert np.abs(forecasts - values[430:433, 0]).max() < 3
    rows = rows_of(tmp_path / "out.csv")
    assert [(row["row"], row["rows_ahead"]) for row in rows] == [
        ("31", "1"),
        ("32", "2"),
        ("33", "3"),
    ]
    assert "co2 beyond step 30, the last" in capsys.readouterr().out


@pytest.fixture(scope="module")
def load(folder: Path) -> Path:
    """Train a small forecaster with two input columns; its files are in the folder `load`."""
    path = written(folder / "load.csv")
    options = ["--column", "load", "--features", "wind", "--figure", "svg", "--cell", "rnn"]
    with jax.enable_x64(False):
        assert main(["forecast", str(path), *options, *SMALL, "--out", str(folder / "load")]) == 0
    return path


def test_the_report_agrees_with_the_csv_file(
    capsys: pytest.CaptureFixture[str], load: Path, folder: Path, tmp_path: Path
) -> None:
    options = ["--column", "load", "--features", "wind", "--cell", "rnn", *SMALL]
    out = folder / "again"
    out.mkdir()
    (out / "forecasts.csv").write_text("of before")
    assert main(["forecast", str(load), *options, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    sizes = "39 in the training set, 9 in the validation set, 12 in the test set"
    assert lines[0] == f"60 steps of load, wind: {sizes}"
    assert lines[1].startswith("RNN(4, 4, batch_first=True) + linear: 8 training steps in ")
    assert lines[2] == "errors of 11 forecasts of the test set, in units of load"
    table = [line.replace("│", " ").split() for line in lines if line.startswith("│")]
    rows = rows_of(out / "forecasts.csv")
    held_out = [row for row in rows if row["part"] == "held out"]
    for place, name in enumerate(["persistence", "linear", "RNN"]):
        error = np.array([float(row[name]) - float(row["truth"]) for row in held_out])
        cells = [f"{np.sqrt(np.mean(error**2)):.4g}", f"{np.abs(error).mean():.4g}"]
        assert table[2][0] == "all"
        assert table[2][1 + 2 * place : 3 + 2 * place] == cells
    ahead = [
        [row["row"], *(float(row[n]) for n in ("persistence", "linear", "RNN"))]
        for row in rows[-2:]
    ]
    assert table[3:] == [[row, *(f"{value:.6g}" for value in rest)] for row, *rest in ahead]
    assert [line.split(": ")[0] for line in lines[-3:]] == ["forecasts", "figure", "model"]
    # Equal seeds give bitwise equal results.
    one, two = (path / "forecasts.csv" for path in (out, folder / "load"))
    assert one.read_bytes() == two.read_bytes()
    one, two = (jaxrnn.state_dict(Forecaster.load(path).model) for path in (out, folder / "load"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert (folder / "load" / "forecast.svg").read_bytes().startswith(b"<?xml")


def test_predict_reads_columns_by_name_and_rejects_invalid_files(
    capsys: pytest.CaptureFixture[str], load: Path, folder: Path, tmp_path: Path
) -> None:
    lines = load.read_text(encoding="utf-8").splitlines()
    other = tmp_path / "other.csv"
    other.write_text("\n".join(",".join(line.split(",")[::-1]) for line in lines))
    model = str(folder / "load")
    first, second = (predict(model, str(path)) for path in (load, other))
    np.testing.assert_array_equal(first, second)
    capsys.readouterr()
    line = refused(capsys, "predict", model, str(load), "--ahead", "3")
    assert "`ahead` must be <= 2, the horizon, got 3" in line
    assert "'wind', which it does not forecast" in line
    line = refused(capsys, "predict", model, CO2)
    assert f"{CO2}, line 1: column 'load' must be one of the columns 'month', 'co2'" in line
    short = written(tmp_path / "short.csv", 5)
    line = refused(capsys, "predict", model, str(short))
    assert f"{short}: the series must have at least 6 steps, the window of the model, got 5" in line
    line = refused(capsys, "predict", model, str(load), "--out", str(tmp_path / "no" / "a.csv"))
    assert "' does not exist" in line
    line = refused(capsys, "predict", model, str(load), "--out", str(tmp_path / "a.txt"))
    assert "must end in .csv" in line
    line = refused(capsys, "predict", model, str(other), "--out", str(other))
    assert f"forecasts '{other}' must not be the input file" in line
    gap = written(tmp_path / "gap.csv", 8, load=[*"1234567", ""])
    line = refused(capsys, "predict", model, str(gap))
    assert f"{gap}, line 9, column 'load': the cell is empty" in line
    far = written(tmp_path / "far.csv", 8, load=["1", *["1e300"] * 7])
    line = refused(capsys, "predict", model, str(far))
    assert (
        f"{far}: values must be within 1e+30 standard deviations of the training set's mean" in line
    )
    same = written(tmp_path / "same.csv", 8, load="3")  # invalid for training, valid for a forecast
    assert main(["predict", model, str(same)]) == 0


@pytest.mark.parametrize("content", ["empty", "text", "half", "other", "nan", "folder", "nothing"])
def test_an_invalid_model_file_is_one_line(
    capsys: pytest.CaptureFixture[str], load: Path, folder: Path, tmp_path: Path, content: str
) -> None:
    path, whole = tmp_path / "model.safetensors", (folder / "load" / "model.safetensors")
    if content in ("empty", "text", "half"):
        half = whole.read_bytes()[: whole.stat().st_size // 2]
        path.write_bytes({"empty": b"", "text": b"a,b\n1,2\n", "half": half}[content])
        words = f"{path} is not a safetensors file, or is truncated: "
    elif content == "other":
        save_file({"fc.weight": np.zeros((2, 2), np.float32)}, path)
        words = f"{path} is a safetensors file, but not of a forecaster"
    elif content == "nan":
        with safe_open(whole, framework="np") as file:
            arrays = {name: file.get_tensor(name) * np.nan for name in file.keys()}  # noqa: SIM118
            save_file(arrays, path, file.metadata())
        words = f"{path} is a corrupt forecaster: 'fc.bias' contains non-finite values"
    else:
        path = tmp_path if content == "folder" else path
        words = f"No such file or directory: '{tmp_path / 'model.safetensors'}'"
    assert words in refused(capsys, "predict", str(path), str(load))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a training starts."""
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("the training started"))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("columns", "rows", "options", "words"),
    [
        (
            {"a": [*"1" * 30, "", *"1" * 29]},
            60,
            ["--column", "a"],
            ", line 32, column 'a': the cell",
        ),
        (
            {"a": [*"12" * 29, "1", "NaN"]},
            60,
            ["--column", "a"],
            "column 'a': 'NaN' is not a finite",
        ),
        (
            {"a": [*"12" * 29, "1", "n/a"]},
            60,
            ["--column", "a"],
            "line 61, column 'a': 'n/a' is not",
        ),
        (
            {},
            60,
            ["--column", "date"],
            "line 2, column 'date': '2024-01-01' is not a finite number",
        ),
        ({"a": "7"}, 60, ["--column", "a"], "column 'a' is constant: 7 in every line"),
        (
            {"a": "7"},
            60,
            ["--column", "load", "--features", "a"],
            "column 'a' is constant: 7 in every line",
        ),
        (
            {"a": [*"5" * 50, *"1234567890"]},
            60,
            ["--column", "a"],
            "is constant: 5 in the 39 steps of the training set",
        ),
        (
            {},
            12,
            ["--column", "load"],
            "steps for a window of 6 and a horizon of 2, got 12",
        ),
        ({}, 0, ["--column", "load"], "must have at least 1 data lines, got 0"),
        (
            {},
            60,
            ["--column", "lord"],
            "line 1: column 'lord' must be one of the columns 'date', 'load'",
        ),
        (
            {},
            60,
            ["--column", "load", "--delimiter", ";"],
            "The delimiter seems to be ',', not ';'",
        ),
        ({}, 60, [], "data.csv has the columns 'date', 'load', 'wind'"),
        ({}, 60, ["--delimiter", ";"], "The delimiter seems to be ',', not ';'"),
        ({}, 60, ["--column", "load", "--features", "load"], "must be distinct names"),
        ({}, 60, ["--column", "load", "--features", "wind,"], "must be distinct names"),
        (
            {},
            60,
            ["--column", "load", "--features", "wind", "--ahead", "3"],
            "<= 2, the horizon",
        ),
        ({}, 60, ["--column", "load", "--held-out", "1.5"], "`held_out` must be in (0, 1)"),
        (
            {},
            60,
            ["--column", "load", "--window", "0"],
            "`window` must be an integer >=",
        ),
        (
            {"a": "1,2"},
            60,
            ["--column", "load"],
            "line 2: the line must have 4 cells, like the header, got 5",
        ),
        ({"a": '"1,5"'}, 60, ["--column", "a"], "Use a decimal point instead of the comma"),
        ({str(n): "1" for n in range(40)}, 60, ["--column", "a"], "'16' and 23 more"),
        ({"a": [*("1e300", "2e300") * 30]}, 60, ["--column", "a"], "values must be < 1e+100"),
        (
            {"a": [*("1e-300", "2e-300") * 30]},
            60,
            ["--column", "a"],
            "standard deviations > 1e-100",
        ),
        ({}, 60, ["--column", "load", "--horizon", "9" * 400], "got 60"),
        ({}, 60, ["--column", "load", "--held-out", "1e-320"], "got 60"),
    ],
)
def test_an_invalid_file_is_one_line_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    columns: dict[str, Any],
    rows: int,
    options: list[str],
    words: str,
) -> None:
    path = written(tmp_path / "data.csv", rows, **columns)
    arguments = ["forecast", str(path), *SMALL, *options, "--out", str(tmp_path / "out")]
    assert words in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("untrained")
def test_an_invalid_output_folder_is_rejected_before_the_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["forecast", CO2, "--column", "co2", "--out"]
    (tmp_path / "file").write_text("")
    assert "' is a file" in refused(capsys, *run, str(tmp_path / "file"))
    line = refused(capsys, *run, str(tmp_path / "no" / "out"))
    assert f"folder '{tmp_path / 'no'}' does not exist" in line
    assert "`out` must be a folder" in refused(capsys, *run, "")
    (tmp_path / "forecast.png").mkdir()
    assert "forecast.png' is a folder" in refused(capsys, *run, str(tmp_path))
    made = written(tmp_path / "forecasts.csv")
    before = made.read_bytes()
    line = refused(capsys, "forecast", str(made), "--column", "load", "--out", str(tmp_path))
    assert "forecasts.csv' must not be the input file" in line
    assert made.read_bytes() == before
    with monkeypatch.context() as locked:
        locked.setattr(command.os, "access", lambda *_: False)
        assert "out' is not writable" in refused(capsys, *run, str(tmp_path / "out"))
    assert "No such file" in refused(capsys, "forecast", str(tmp_path / "a.csv"), "--column", "a")
    assert "a CSV FILE and the --column to forecast are required" in refused(capsys, "forecast")
    assert "a MODEL of 'jaxrnn forecast'" in refused(capsys, "predict", CO2)


@pytest.mark.parametrize("there", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("failing", NAMES)
def test_a_full_disk_preserves_existing_files(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    air: Any,
    there: bool,
    failing: str,
) -> None:
    monkeypatch.setattr(command, "fit_forecaster", lambda *_, **__: air)
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
        for name in NAMES:
            (folder / name).write_text("of before")
    move = files.os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    assert main(["forecast", CO2, "--column", "co2", "--out", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err == "jaxrnn forecast: error: [Errno 28] No space left on device\n"
    assert [*tmp_path.iterdir()] == [folder] * there
    if there:
        assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
        assert {path.read_text() for path in folder.iterdir()} == {"of before"}


@pytest.mark.parametrize("command", [forecast, predict], ids=["forecast", "predict"])
def test_help_documents_each_option(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command.__name__, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    arguments = argument_descriptions(command)
    if arguments.pop("options", None):
        arguments |= argument_descriptions(Options)
    for name, description in arguments.items():
        positional = name == "file" or name == "model"
        shown = name.upper() if positional else f"--{name.replace('_', '-')}"
        assert re.search(rf"{shown}\b", text)
        assert description in text


class Closed(io.StringIO):
    """Standard output without a reader."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_files_are_written_even_if_standard_output_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, air: Any
) -> None:
    monkeypatch.setattr(command, "fit_forecaster", lambda *_, **__: air)
    monkeypatch.setattr(sys, "stdout", Closed())
    out = tmp_path / "out"
    assert main(["forecast", CO2, "--column", "co2", "--out", str(out)]) == 141
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)


def test_a_non_finite_loss_is_one_line(
    capsys: pytest.CaptureFixture[str], load: Path, tmp_path: Path
) -> None:
    run = ["forecast", str(load), "--column", "load", *SMALL, "--learning-rate", "1e30"]
    assert main([*run, "--cell", "gru", "--epochs", "5", "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "loss" in err
    assert not (tmp_path / "out").exists()


def test_the_saved_forecaster_is_that_of_the_run(air: Any, folder: Path) -> None:
    again = Forecaster.load(folder / "air")
    assert again.ahead == 15
    assert again.columns == ("co2",)
    values = data.read_csv(CO2, ["co2"]).values
    np.testing.assert_array_equal(again.predict(values[:300]), air.forecaster.predict(values[:300]))
