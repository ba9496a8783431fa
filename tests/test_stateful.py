"""Stateful example: PyTorch's losses from its weights, predictions from zero states, the table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import data
from jaxrnn.cli import main
from jaxrnn.examples import stateful
from tests import stateful_oracle

VARIANTS = {  # cell, period, window, epochs
    "stateful": ("rnn", 16, 5, 33),
    "stateful_variant": ("lstm", 160, 32, 8),
}
SMALL = ["--points", "20", "--hidden", "2", "--epochs", "4", "--every", "2"]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run the example in float32, as users do."""
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_from_pytorchs_weights_equal_pytorchs(name: str) -> None:
    (cell, period, window, epochs), expected = VARIANTS[name], stateful_oracle.expected(name)
    losses = expected.pop("losses")
    model = stateful.make_model(cell, window, 30, rngs=nnx.Rngs(0))
    jaxrnn.load_state_dict(model, expected)
    run = stateful.run(model, (cell, period, window), 1000, epochs, 8, 0.01)
    np.testing.assert_allclose(run.losses, losses, rtol=1e-3)


def test_pytorchs_losses_are_those_of_the_notebook() -> None:
    losses = stateful_oracle.expected("stateful")["losses"]
    np.testing.assert_allclose(losses[[0, 8, 32]], [650.131, 6.066, 1.664], rtol=1e-3)


def test_predictions_follow_the_update_and_start_from_zeros() -> None:
    model = stateful.make_model("rnn", 5, 30, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    x, y = data.Windows(5).take(data.wave(30, 16), jnp.arange(25))
    run = stateful.run(model, ("rnn", 16, 5), 30, 5, 2, 0.01)
    assert run.predictions.shape == (3, 25)  # after the epochs 0, 2 and 4
    np.testing.assert_array_equal(run.targets, y[:, 0])
    for index, epochs in ((1, 3), (2, 5)):
        train = partial(stateful.train, graph, x=x, y=y, epochs=epochs, lr=0.01)
        trained = nnx.merge(graph, jax.jit(train)(params).params)
        single = [trained(window[None])[0].item() for window in x]
        np.testing.assert_allclose(run.predictions[index], single, atol=1e-5)


def test_a_wave_is_exact_at_large_times() -> None:
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
    model = stateful.make_model("rnn", 5, 2, rngs=nnx.Rngs(0))
    result = stateful.run(model, ("rnn", 16, 5), 40, 4, 2, 0.01)
    calls: list[Any] = []

    def run(model: Any, name: Any, points: int, epochs: int, every: int, lr: float) -> Any:
        calls.append((name, points, epochs))
        return result._replace(name=name)

    monkeypatch.setattr(stateful, "run", run)
    path = tmp_path / "table.png"
    arguments = ["--points", "40", *SMALL[2:], "--table", "--out", str(path)]
    assert main(["run", "stateful", *arguments]) == 0
    assert len({name for name, *_ in calls}) == 8
    assert {(points, epochs) for _, points, epochs in calls} == {(40, 4)}
    out = capsys.readouterr().out
    lines = [line.split("│")[1:4] for line in out.splitlines() if line.startswith("│")]
    cells = [[word.strip() for word in line] for line in lines]
    assert cells == [
        [cell.upper(), str(period), str(window)] for (cell, period, window), *_ in calls
    ]
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "minimum"), [(["--points", "5"], 6), (["--points", "20", "--table"], 33)]
)
def test_too_few_points_are_one_line_before_any_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    minimum: int,
) -> None:
    monkeypatch.setattr(stateful, "run", lambda *_: pytest.fail("the training started"))
    assert main(["run", "stateful", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"`points` must be an integer >= {minimum}, got {options[1]}" in error


def test_a_run_that_diverges_has_a_figure(tmp_path: Path) -> None:
    path = tmp_path / "far.svg"
    assert main(["run", "stateful", *SMALL, "--lr", "1e30", "--out", str(path)]) == 0
    assert path.exists()
