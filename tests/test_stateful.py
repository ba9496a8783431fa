"""The stateful job: PyTorch's losses from its weights, lone predictions, the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import data
from jaxrnn.cli import main
from jaxrnn.examples import stateful
from jaxrnn.examples.stateful import Settings
from tests import stateful_oracle

SETTINGS = {
    "stateful": Settings(),
    "stateful_variant": Settings(cell="lstm", period=160, window=32, epochs=8),
}
SMALL = ["--points", "20", "--hidden", "2", "--epochs", "4", "--every", "2"]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """The job as users run it, in float32."""
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("name", SETTINGS)
def test_from_pytorchs_weights_the_losses_are_pytorchs(name: str) -> None:
    settings, expected = SETTINGS[name], stateful_oracle.expected(name)
    losses = expected.pop("losses")
    model = stateful.make_model(settings, nnx.Rngs(0))
    jaxrnn.load_state_dict(model, expected)
    history = stateful.train(settings, model)
    np.testing.assert_allclose(history.losses, losses, rtol=1e-3)
    kept = jaxrnn.state_dict(model)
    assert all((kept[name] == value).all() for name, value in expected.items())


def test_pytorchs_losses_are_those_of_the_notebook() -> None:
    losses = stateful_oracle.expected("stateful")["losses"]
    np.testing.assert_allclose(losses[[0, 8, 32]], [650.131, 6.066, 1.664], rtol=1e-3)


def test_predictions_are_made_after_the_update_from_zeros() -> None:
    settings = Settings(points=30, epochs=5, every=2)
    history = stateful.train(settings)
    x, y = stateful.series(settings)
    assert history.predictions.shape == (3, 25)  # after the epochs 0, 2 and 4
    np.testing.assert_array_equal(history.targets, y[:, 0])
    alone = [history.model(window[None])[0].item() for window in x]
    np.testing.assert_allclose(history.predictions[2], alone, atol=1e-5)
    shorter = stateful.train(Settings(points=30, epochs=3, every=2))
    np.testing.assert_allclose(history.predictions[1], shorter.predictions[1], atol=1e-5)


def test_a_wave_is_exact_far_out() -> None:
    values = data.wave(1_000_000, 16)[-160:]
    t = np.arange(1_000_000 - 160, 1_000_000)
    np.testing.assert_allclose(values, np.sin(np.pi * 0.125 * (t % 16)), atol=1e-6)


def test_windows_are_the_notebooks() -> None:
    values = np.sin(np.arange(20.0)).astype(np.float32)
    x, y = data.Windows(5).take(jnp.asarray(values), jnp.arange(155))
    for i in range(15):
        np.testing.assert_array_equal(x[i], values[i : i + 5])
        assert y[i, 0] == values[i + 5]


def test_it_prints_the_losses_and_saves_its_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "stateful.svg"
    assert main(["run", "stateful", *SMALL, "--out", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("Loss:  ") for line in lines] == [True, True, False, False]
    assert lines[-1] == f"figure: {path}"
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_has_all_eight_variants(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = stateful.train(Settings(points=40, hidden=2, epochs=4, every=2))
    seen = []
    monkeypatch.setattr(stateful, "train", lambda settings: seen.append(settings) or history)
    path = tmp_path / "table.png"
    arguments = ["--points", "40", *SMALL[2:], "--table", "--out", str(path)]
    assert main(["run", "stateful", *arguments]) == 0
    assert len({(s.cell, s.period, s.window) for s in seen}) == 8
    assert {s.epochs for s in seen} == {4}
    out = capsys.readouterr().out
    rows = [line.split("│")[1:4] for line in out.splitlines() if line.startswith("│")]
    cells = [[word.strip() for word in row] for row in rows]
    assert cells == [[s.cell.upper(), str(s.period), str(s.window)] for s in seen]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_more_values_a_step_than_points_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "stateful", "--points", "5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`points` must be an integer >= 6, got 5" in error


def test_a_run_that_diverges_still_has_its_figure(tmp_path: Path) -> None:
    path = tmp_path / "far.svg"
    assert main(["run", "stateful", *SMALL, "--lr", "1e30", "--out", str(path)]) == 0
    assert path.exists()


def test_a_table_of_too_few_points_is_one_line_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stateful, "train", lambda *_: pytest.fail("the work was begun"))
    assert main(["run", "stateful", "--points", "20", "--table"]) == 2
    assert "`points` must be an integer >= 33" in capsys.readouterr().err
