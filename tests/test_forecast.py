"""Forecasters: scales, windows, baselines, isolation of the test set, files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import jaxrnn
from jaxrnn import data
from jaxrnn.forecasting import (
    Errors,
    Fitted,
    Forecaster,
    LinearRegression,
    Options,
    Scales,
    fit_forecaster,
    prepare,
)
from jaxrnn.forecasting.command import draw
from jaxrnn.forecasting.forecaster import make_model

ENTRY = "jaxrnn.forecaster"

SMALL = Options(window=6, horizon=3, hidden_size=4, epochs=3, batch_size=16, seed=2)


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run in float32, as users do."""
    with jax.enable_x64(False):
        yield


def two_columns(steps: int = 160) -> np.ndarray:
    """Return a trend with a season, and a leading indicator, of different scale and far from 0."""
    t = np.arange(steps)
    season = np.sin(2 * np.pi * t / 12)
    noise = np.random.default_rng(0).normal(size=(2, steps))
    return np.stack([5e4 + 30 * t + 200 * season + 5 * noise[0], 1e-3 * noise[1]], axis=1)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    with jax.enable_x64(False):
        return fit_forecaster(two_columns(), ["sales", "weather"], SMALL, progress=False)


def test_sets_are_chronological_and_share_no_target() -> None:
    options = Options(window=5, horizon=4, validation=0.2, held_out=0.3)
    series = prepare(two_columns(100)[:, 0], options=options)
    assert series.train == range(50)
    targets = [
        {number + 5 + step for number in part for step in range(4)}
        for part in (series.train_windows, series.validation_windows, series.test_windows)
    ]
    assert targets == [set(range(5, 50)), set(range(50, 70)), set(range(70, 100))]


def test_scales_are_fitted_to_the_training_set() -> None:
    values = two_columns()
    scales = Scales.fit(values, range(100), 3)
    known = values[:100]
    np.testing.assert_allclose(scales.scaling.shift, known.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(scales.scaling.scale, known.std(0), rtol=1e-12)
    z = (known - known.mean(0)) / known.std(0)
    np.testing.assert_allclose(scales.step, np.sqrt((np.diff(z, axis=0) ** 2).mean(0)), rtol=1e-9)
    changes = [((z[h:, 0] - z[:-h, 0]) ** 2).mean() for h in (1, 2, 3)]
    np.testing.assert_allclose(scales.change, np.sqrt(np.mean(changes)), rtol=1e-9)
    values[100:] = 0
    other = Scales.fit(values, range(100), 3)
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(scales), jax.tree.leaves(other))
    )


def test_inputs_targets_and_forecasts_satisfy_the_equations() -> None:
    values = two_columns()
    scales = Scales.fit(values, range(100), 3)
    z = (values[:9] - scales.scaling.shift) / scales.scaling.scale
    seen = np.asarray(scales.inputs(jnp.asarray(scales.normalise(values[:6]))))
    assert seen.shape == (6, 4)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen[:, :2], z[:6], rtol=1e-5)
    np.testing.assert_allclose(seen[1:, 2:], np.diff(z[:6], axis=0) / scales.step, atol=2e-5)
    assert (seen[0, 2:] == 0).all()
    window, later = (
        jnp.asarray(scales.normalise(values[:6])),
        jnp.asarray(scales.normalise(values[6:9])),
    )
    forecast = scales.targets(window, later)
    np.testing.assert_allclose(forecast, (z[6:, 0] - z[5, 0]) / scales.change, atol=1e-4)
    np.testing.assert_allclose(scales.forecasts(values[5, 0], forecast), values[6:9, 0], atol=0.02)
    assert scales.forecasts(values[5, 0], np.zeros(3)).tolist() == [values[5, 0]] * 3


@pytest.mark.parametrize("chunk", [7, 4096])
def test_linear_regression_equals_numpys_least_squares(
    chunk: int,
) -> None:
    values, windows = two_columns(), data.Windows(4, 2)
    linear = LinearRegression(values, windows, range(90), range(95), chunk)
    scaled = (values - values[:95].mean(0)) / values[:95].std(0)
    x = np.stack([np.append(scaled[n : n + 4].T.ravel(), 1) for n in range(120)])
    y = np.stack([scaled[n + 4 : n + 6, 0] for n in range(90)])
    weights = np.linalg.lstsq(x[:90], y, rcond=None)[0]
    expected = (x @ weights) * values[:95, 0].std() + values[:95, 0].mean()
    np.testing.assert_allclose(linear(values, range(120)), expected, rtol=1e-10)


def test_linear_regression_is_accurate_for_nearly_collinear_inputs() -> None:
    t = np.arange(60.0)
    values = (1e6 + np.sin(0.01 * t))[:, None]  # neighbours equal in four digits
    windows = data.Windows(3, 1)
    linear = LinearRegression(values, windows, range(40), range(43))
    error = linear(values, range(40, 57)) - values[43:]
    assert np.abs(error).max() < 1e-6  # about 1e-3 with the normal equations


def test_baselines_and_errors_equal_numpys(fitted: Fitted) -> None:
    sales = two_columns()[:, 0]
    starts = np.array(fitted.series.test_windows)
    truth = np.stack([sales[n + 6 : n + 9] for n in starts])
    np.testing.assert_array_equal(fitted.truth, truth)
    same = np.stack([sales[n + 5].repeat(3) for n in starts])
    np.testing.assert_array_equal(fitted.forecasts["persistence"], same)
    assert list(fitted.errors) == ["persistence", "linear", "LSTM"]
    for name, forecast in fitted.forecasts.items():
        error = forecast - truth
        rmse, mae = fitted.errors[name]
        np.testing.assert_allclose(rmse[:3], np.sqrt((error**2).mean(0)), rtol=1e-12)
        np.testing.assert_allclose(mae[:3], np.abs(error).mean(0), rtol=1e-12)
        assert rmse[3] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-12)
        assert mae[3] == pytest.approx(np.abs(error).mean(), rel=1e-12)
    assert fitted.errors["linear"].rmse[3] < 0.2 * fitted.errors["persistence"].rmse[3]


def test_the_test_set_does_not_influence_the_training(fitted: Fitted) -> None:
    values = two_columns()
    begin = fitted.series.test_windows.start + 6
    values[begin:] = values[begin:] * -7 + 3
    other = fit_forecaster(values, ["sales", "weather"], SMALL, progress=False)
    before, after = (jaxrnn.state_dict(f.forecaster.model) for f in (fitted, other))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    np.testing.assert_array_equal(fitted.history.losses, other.history.losses)
    np.testing.assert_array_equal(
        fitted.history.validation["loss"], other.history.validation["loss"]
    )
    assert fitted.forecaster.scales.change == other.forecaster.scales.change
    for name in fitted.forecasts:  # the first window precedes the test set
        np.testing.assert_array_equal(fitted.forecasts[name][0], other.forecasts[name][0])
        assert (fitted.forecasts[name][1] != other.forecasts[name][1]).any()


def test_a_second_training_of_equal_sizes_compiles_nothing(
    fitted: Fitted, caplog: pytest.LogCaptureFixture
) -> None:
    options = dataclasses.replace(SMALL, seed=3)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        other = fit_forecaster(two_columns() * 2, ["a", "b"], options, progress=False)
    done = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert not [line for line in done if "run_steps" in line or "run_evaluation" in line]
    assert (other.history.losses != fitted.history.losses).all()


def test_the_best_parameters_are_restored(fitted: Fitted) -> None:
    forecaster, series = fitted.forecaster, fitted.series
    forecast = forecaster.backtest(series.values, series.validation_windows)
    truth = np.stack([series.values[n + 6 : n + 9, 0] for n in series.validation_windows])
    unit = forecaster.scales.change * forecaster.scales.scaling.scale[0]
    loss = (((forecast - truth) / unit) ** 2).mean()
    assert loss == pytest.approx(fitted.history.validation["loss"].min(), rel=1e-3)
    place = fitted.history.validation["loss"].argmin()
    assert fitted.best == fitted.history.evaluated[place]
    # 3 epochs of 96 windows in batches of 16
    assert len(fitted.history.losses) == 3 * len(series.train_windows) // 16


def test_a_forecast_depends_on_the_last_window_alone(fitted: Fitted) -> None:
    forecaster, values = fitted.forecaster, two_columns()
    ahead = forecaster.predict(values)
    assert ahead.shape == (3,)
    assert ahead.dtype == np.float64
    np.testing.assert_array_equal(ahead, fitted.ahead["LSTM"])
    np.testing.assert_array_equal(ahead, forecaster.predict(values[-6:]))
    np.testing.assert_array_equal(ahead[:2], forecaster.predict(values, 2))
    # A backtest differs by rounding errors.
    indices = range(100, 110)
    many = forecaster.backtest(values, indices)
    one = np.stack([forecaster.predict(values[: n + 6]) for n in indices])
    np.testing.assert_allclose(many, one, rtol=1e-6)


def test_beyond_the_horizon_forecasts_become_inputs(fitted: Fitted) -> None:
    values = two_columns()[:, 0]
    alone = fit_forecaster(values, options=SMALL, ahead=7, progress=False)
    forecaster = alone.forecaster
    first = forecaster.predict(values, 3)
    second = forecaster.predict(np.append(values, first), 3)
    third = forecaster.predict(np.concatenate([values, first, second]), 1)
    expected = np.concatenate([first, second, third])
    np.testing.assert_array_equal(forecaster.predict(values), expected)
    assert {name: len(ahead) for name, ahead in alone.ahead.items()} == dict.fromkeys(
        ("persistence", "linear", "LSTM"), 7
    )
    assert len(np.unique(alone.ahead["linear"])) == 7
    with pytest.raises(ValueError, match=r"`ahead` must be <= 3, the horizon, got 4: .*'weat"):
        fitted.forecaster.predict(two_columns(), 4)


def test_a_loaded_forecaster_is_bitwise_equal(fitted: Fitted, tmp_path: Path) -> None:
    path = fitted.forecaster.save(tmp_path / "sales.safetensors")
    again = Forecaster.load(path)
    values = two_columns()
    np.testing.assert_array_equal(again.predict(values), fitted.ahead["LSTM"])
    assert again.columns == ("sales", "weather")
    assert again.windows == fitted.forecaster.windows
    assert again.ahead == 3
    assert repr(again.model.rnn) == repr(fitted.forecaster.model.rnn)
    with safe_open(path, framework="np") as file:
        assert {"rnn.weight_ih_l0", "fc.weight"} <= set(file.keys())
        described = json.loads(file.metadata()[ENTRY])
    assert described["version"] == jaxrnn.__version__
    assert described["mean"] == fitted.forecaster.scales.scaling.shift.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["sales.safetensors"]


@pytest.mark.parametrize("change", [{"cell": "gru", "layers": 2}, {"cell": "rnn", "horizon": 1}])
def test_each_cell_is_loaded(tmp_path: Path, change: dict[str, Any]) -> None:
    options = dataclasses.replace(SMALL, **change)
    values = two_columns()[:50, :1]
    model, windows = make_model(options, 1), data.Windows(options.window, options.horizon)
    model.eval()
    forecaster = Forecaster(
        model, ("a",), windows, Scales.fit(values, range(50), windows.horizon), 5
    )
    again = Forecaster.load(forecaster.save(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(again.predict(values), forecaster.predict(values))
    assert repr(again.model.rnn) == repr(model.rnn)


def rewritten(fitted: Fitted, path: Path, **change: Any) -> Path:
    """Write a forecaster with a changed description; None removes an entry."""
    fitted.forecaster.save(path)
    with safe_open(path, framework="np") as file:
        described = json.loads(file.metadata()[ENTRY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = {n: v for n, v in {**described, **change}.items() if v is not None}
    save_file(arrays, path, metadata={ENTRY: json.dumps(described)})
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": None}, "'columns' is missing"),
        ({"columns": ["sales"]}, "mean, deviation and step must be 1 finite numbers each"),
        ({"horizon": 4}, "fc.weight must have shape (4, 4), got (3, 4)"),
        ({"hidden_size": 10**7}, "fc.weight must have shape"),
        ({"layers": 10**6}, "rnn.weight_hh_l999999 must have a value, got nothing"),
        ({"cell": "gru"}, "size mismatch"),
        ({"cell": "lsd"}, "`cell` must be one of"),
        ({"window": 1}, "`window` must be an integer >= 2, got 1"),
        ({"deviation": [1.0, 0.0]}, "must be > 0"),
        ({"change": math.nan}, "must be > 0"),
        ({"ahead": 4}, "`ahead` must be <= 3"),
        ({"ahead": "many"}, "`ahead` must be an integer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_inconsistent_description_raises_one_line(
    fitted: Fitted, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = rewritten(fitted, tmp_path / "model.safetensors", **change)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        Forecaster.load(path)
    assert str(caught.value).startswith(f"{path} is a corrupt forecaster: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((3, 40)), "must have shape (T, 1) for columns 'value', got (3, 40)"),
        (np.array(["1", "2"]), "must be numbers, got <U1"),
        (np.arange(10.0), "steps for a window of 6 and a horizon of 3, got 10"),
        (np.where(np.arange(40) == 7, np.nan, 1), "step 8, column 'value' must be finite"),
        (
            np.maximum(np.arange(60.0), 50),
            "column 'value' is constant: 50 in the 39 steps of the training set",
        ),
        (np.geomspace(1e-300, 1e300, 60), "can't be scaled: values must be < 1e+100"),
        (1e308 * (-1.0) ** np.arange(60), "can't be scaled: values must be < 1e+100"),
    ],
)
def test_an_invalid_series_raises_one_line(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        fit_forecaster(values, options=SMALL, progress=False)


def test_the_minimal_number_of_steps_is_exact() -> None:
    for window, horizon, validation, held_out in [
        (6, 3, 0.15, 0.2),
        (2, 1, 0.4, 0.5),
        (5, 9, 0.1, 0.1),
    ]:
        options = Options(window=window, horizon=horizon, validation=validation, held_out=held_out)
        values = np.random.default_rng(0).normal(size=2000)
        with pytest.raises(ValueError, match="at least") as caught:
            prepare(values[:2], options=options)
        least = int(str(caught.value).split("at least ")[1].split()[0])
        series = prepare(values[:least], options=options)
        assert (
            min(map(len, (series.train_windows, series.validation_windows, series.test_windows)))
            >= 1
        )
        with pytest.raises(ValueError, match="at least"):
            prepare(values[: least - 1], options=options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 1}, "`window` must be an integer >= 2, got 1"),
        ({"horizon": 0}, "`horizon` must be an integer >= 1, got 0"),
        ({"cell": "transformer"}, "`cell` must be one of 'rnn', 'lstm', 'gru'"),
        ({"learning_rate": 0.0}, "`learning_rate` must be a finite number > 0"),
        ({"held_out": 1.0}, "`held_out` must be in (0, 1), got 1.0"),
        ({"held_out": 0.8, "validation": 0.15}, "`validation` + `held_out` must be <= 0.9"),
        ({"seed": -1}, "`seed` must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_options_raise_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Options(**options)


def test_the_figure_shows_the_forecasts(fitted: Fitted) -> None:
    figure = draw(fitted, "Sales in $ and in $")
    series, last, errors, training = figure.axes
    lines = {str(line.get_label()): line for line in errors.lines}
    assert [name.split(",")[0] for name in lines] == ["persistence", "linear", "LSTM"]
    for line, (rmse, _) in zip(errors.lines, fitted.errors.values()):
        np.testing.assert_array_equal(line.get_ydata(), rmse[:3])
    ahead = next(line for line in series.lines if "ahead" in str(line.get_label()))
    np.testing.assert_array_equal(np.asarray(ahead.get_xdata()), [160, 161, 162, 163])
    np.testing.assert_array_equal(np.asarray(ahead.get_ydata())[1:], fitted.ahead["LSTM"])
    shown = series.lines[1]  # the last test forecast
    np.testing.assert_array_equal(np.asarray(shown.get_xdata()), [158, 159, 160])
    np.testing.assert_array_equal(shown.get_ydata(), fitted.forecasts["LSTM"][-1])
    assert len(last.lines) >= 3
    np.testing.assert_array_equal(training.lines[0].get_ydata(), fitted.history.losses)


def test_the_figure_of_a_horizon_of_one_step_has_a_line_and_bars(fitted: Fitted) -> None:
    first = {name: forecast[:, :1] for name, forecast in fitted.forecasts.items()}
    series = fitted.series._replace(windows=data.Windows(6, 1))
    truth = fitted.truth[:, :1]
    errors = {name: Errors.between(forecast, truth) for name, forecast in first.items()}
    one = fitted._replace(series=series, truth=truth, forecasts=first, errors=errors)
    series_axis, _, bars, _ = draw(one, "One step ahead").axes
    np.testing.assert_array_equal(series_axis.lines[1].get_ydata(), first["LSTM"][:, 0])
    heights = [patch.get_height() for patch in bars.patches]  # pyright: ignore
    np.testing.assert_allclose(heights, [e.rmse[0] for e in errors.values()])
    assert [label.get_text() for label in bars.get_xticklabels()] == list(errors)
