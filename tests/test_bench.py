"""The benchmark's own arithmetic, and one real case from beginning to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench import cli, timing


def test_ratios_are_taken_pair_by_pair() -> None:
    table = timing.summarise({"jaxrnn": [1.0, 10.0, 1.0], "torch": [2.0, 20.0, 3.0]})
    assert table["torch"]["ratio"] == 2.0
    assert table["torch"]["min"] == 2.0
    assert table["jaxrnn"]["median"] == 1.0


def test_the_geometric_mean_of_inverses_is_the_inverse() -> None:
    values = [0.3, 2.0, 7.0]
    product = timing.geometric_mean(values) * timing.geometric_mean([1 / v for v in values])
    assert math.isclose(product, 1.0)


def test_a_case_runs_and_is_written_whole(tmp_path: Path) -> None:
    arguments = ["layers", "--cases", "gru-sine", "--peers", "flax.linen", "--reps", "1", "--quick"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "layers.json").read_text())
    assert {"jaxrnn", "flax.linen"} <= set(report["records"][0]["peers"])
    ours = report["records"][0]["peers"]["jaxrnn"]
    assert ours["status"] == "ok"
    assert max(ours["error"].values()) < 1e-5
    assert "jaxrnn" in (tmp_path / "layers.md").read_text()


@pytest.mark.parametrize("words", [["lyers"], ["layers", "--peers", "torhc"], ["--reps", "x"]])
def test_a_wrong_name_is_one_clear_line(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words) != 0
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error
