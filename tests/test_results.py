"""Results of a sweep: groups, tables and figures."""

from __future__ import annotations

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxrnn import plotting
from jaxrnn.training import Swept, grouped, results_table, sweep, sweep_figure

KEYS, RATES, SIZES = jax.random.split(jax.random.key(0), 3), np.array([0.1, 0.001]), np.arange(4)


@pytest.fixture(scope="module")
def swept() -> Swept:
    """Sweep a synthetic loss of six steps over keys, rates and sizes."""

    def run(key: Any, lr: Any, size: Any) -> Any:
        return (1 + size) * lr * (jnp.arange(6.0, 0.0, -1.0) + jax.random.uniform(key))

    return sweep(run, key=KEYS, lr=jnp.asarray(RATES), size=jnp.asarray(SIZES))


def test_groups_collect_the_runs_over_an_axis(swept: Swept) -> None:
    groups = grouped(swept, over="key")
    assert groups.values.shape == (8, 3, 6)
    assert groups.settings["lr"].tolist() == np.repeat(RATES, 4).tolist()
    assert groups.settings["size"].tolist() == [0, 1, 2, 3] * 2
    for group, (i, j) in enumerate(np.ndindex(2, 4)):
        np.testing.assert_array_equal(groups.values[group], swept.results[:, i, j])
    apart = grouped(swept, swept.results[..., -1], over=("size", "key"))
    assert apart.values.shape == (2, 12)
    assert list(apart.settings) == ["lr"]
    np.testing.assert_allclose(apart.medians, np.median(np.asarray(swept.results)[..., -1], (0, 2)))


def test_settings_that_are_not_scalars_are_positions(swept: Swept) -> None:
    assert grouped(swept, over=("lr", "size")).settings["key"].tolist() == [0, 1, 2]
    pairs = {"key": KEYS, "lr": jnp.array([1.0, 2.0, 3.0])}
    settings = grouped(sweep(lambda run: run["lr"], run=pairs)).settings
    assert {name: values.tolist() for name, values in settings.items()} == {
        "run.key": [0, 1, 2],
        "run.lr": [1.0, 2.0, 3.0],
    }


def test_a_failed_run_is_the_worst(swept: Swept) -> None:
    values = np.array(swept.results[..., -1])
    values[0, 0, 0] = np.nan
    values[:2, 0, 1] = np.inf, np.nan
    for mode, worst in (("min", np.inf), ("max", -np.inf)):
        medians = grouped(swept, values, over="key", mode=mode).medians
        expected = np.median([worst, *values[1:, 0, 0]])
        np.testing.assert_allclose(medians[0], expected)
        assert np.isnan(medians[1])
        assert np.isfinite(medians[2:]).all()


def test_the_table_starts_with_the_best_group(swept: Swept) -> None:
    values = np.array(swept.results[..., -1])
    values[0, 1, 0] = np.nan
    for mode, size, rate in (("min", "0", "0.001"), ("max", "3", "0.1")):
        groups = grouped(swept, values, over="key", mode=mode)
        table = results_table(groups, title="Synthetic", name="loss [m]")
        file = io.StringIO()
        Console(file=file, width=80).print(table)
        text = file.getvalue()
        assert "Synthetic: loss [m]" in text
        assert "…" not in text
        cells = [list(column.cells) for column in table.columns]
        assert (cells[0][0], cells[1][0]) == (rate, size)
        assert cells[2].count("3, 1 failed") == 1
        medians = [float(c) for c in cells[3]]  # pyright: ignore[reportArgumentType]
        assert medians == sorted(medians, reverse=mode == "max")


def test_the_figure_has_a_line_per_group(swept: Swept, tmp_path: Any) -> None:
    groups = grouped(swept, over="key")
    by_rate = sweep_figure(groups, "lr", title="by rate").axes[0]
    assert [line.get_xdata().tolist() for line in by_rate.lines] == [[0.001, 0.1]] * 4  # pyright: ignore
    ends = np.median(np.asarray(swept.results)[:, ::-1, 2, -1], 0)
    np.testing.assert_allclose(by_rate.lines[2].get_ydata(), ends)  # pyright: ignore
    assert by_rate.get_xscale() == "log"
    assert by_rate.get_xlabel() == "lr"
    figure = sweep_figure(groups, title="the course", label="loss [m]", most=3)
    course = figure.axes[0]
    legend: Any = course.get_legend()
    assert legend.get_title().get_text() == "the best 3 of 8"
    assert [t.get_text() for t in legend.get_texts()] == [f"lr 0.001, size {n}" for n in range(3)]
    assert course.get_ylabel() == "loss [m], median and quartiles"
    assert plotting.save(figure, tmp_path / "sweep.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"over": "seed"}, ["over", "'key', 'lr', 'size'", "'seed'"]),
        ({"mode": "least"}, ["mode", "'least'"]),
        ({"values": np.ones((3, 2))}, ["(3, 2, 4)", "key, lr, size", "(3, 2)"]),
        ({"values": np.ones((3, 2, 4, 5, 6))}, ["(3, 2, 4, 5, 6)"]),
    ],
    ids=str,
)
def test_invalid_groups_raise(swept: Swept, arguments: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        grouped(swept, **arguments)
    assert all(word in str(caught.value) for word in words)


def test_an_invalid_axis_of_a_figure_raises(swept: Swept) -> None:
    groups = grouped(swept, swept.results[..., -1], over="key")
    for along in ("", "key"):
        with pytest.raises(ValueError, match=f"`along` must be one of 'lr', 'size', got '{along}'"):
            sweep_figure(groups, along, title="none")
