"""The experiments on series: Keras's numbers and the regression; stocks beside persistence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import data
from jaxrnn.examples import keras_sine, stocks
from tests import keras_oracle


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """The job as users run it, in float32."""
    with jax.enable_x64(False):
        yield


def test_from_kerass_weights_losses_and_predictions_are_kerass() -> None:
    expected, settings = keras_oracle.expected(), keras_sine.Settings()
    for number, name in enumerate(keras_sine.NETWORKS):
        network: Any = keras_sine.make_network(name, nnx.Rngs(0))
        weights = [network.rnn.weight_ih_l0, network.rnn.weight_hh_l0, network.rnn.bias_ih_l0]
        for layer in network.dense:
            weights += [layer.kernel, layer.bias]
        for place, weight in enumerate(weights):
            weight[...] = jnp.asarray(expected[f"{number}.{place}"])  # 1 x 1 before the dense ones
        trained: Any
        trained, losses = keras_sine.train(settings, network, None)
        assert losses.shape == (150,)
        np.testing.assert_allclose(losses, expected[f"{number}.losses"], rtol=1e-5)
        x = jnp.asarray(keras_sine.series(settings)[0], jnp.float32)
        predicted = trained(x)[:, 0]
        np.testing.assert_allclose(predicted, expected[f"{number}.predictions"], atol=1e-5)
        assert trained.rnn.bias_hh_l0[...] == 0
        assert network.rnn.bias_ih_l0[...] == 0  # the one given is left as it was


def test_networks_begin_as_in_keras() -> None:
    for seed in range(5):
        network: Any = keras_sine.make_network("SimpleRNN + Dense", nnx.Rngs(seed))
        assert abs(network.rnn.weight_hh_l0[...]) == 1
        assert abs(network.rnn.weight_ih_l0[...]) <= 3**0.5
        for layer, sizes in zip(network.dense, [(1, 10), (10, 1)], strict=True):
            assert layer.kernel.shape == sizes
            assert jnp.abs(layer.kernel[...]).max() <= (6 / 11) ** 0.5
            assert (layer.bias[...] == 0).all()
        assert network.rnn.bias_ih_l0[...] == network.rnn.bias_hh_l0[...] == 0


def test_the_regression_is_exact_and_the_networks_are_not() -> None:
    settings = keras_sine.Settings()
    x, y = keras_sine.series(settings)
    assert x.shape == (47, 3, 1)
    assert x.dtype == np.float64
    assert np.mean((keras_sine.regress(x, y) - y) ** 2) < 1e-20
    for name in keras_sine.NETWORKS:
        errors = keras_sine.errors_by(settings, name, jnp.arange(20))
        assert errors.shape == (20,)
        assert errors.min() > 0.01
        assert np.median(errors) < 0.2 < np.mean(y**2)  # they learned something, all the same


def test_keras_prints_three_errors_and_saves_the_four_curves(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "keras.svg"
    history = keras_sine.main(keras_sine.Settings(epochs=3, out=str(path)))
    *errors, figure = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in errors] == list(history.errors)
    assert [*history.errors] == ["SimpleRNN", "SimpleRNN + Dense", "linear regression"]
    printed = [float(line.split()[-1]) for line in errors]
    np.testing.assert_allclose(printed, list(history.errors.values()), rtol=1e-2)
    assert figure == f"figure: {path}"
    assert path.read_text(encoding="utf-8").startswith("<?xml")
    axis = keras_sine.draw(history, keras_sine.Settings()).axes[0]
    assert [len(line.get_xdata()) for line in axis.get_lines()] == [47] * 4
    assert axis.get_legend() is not None


def test_stocks_are_predicted_better_than_by_persistence() -> None:
    settings = stocks.Settings()
    errors = stocks.errors_by(settings, jnp.arange(4))
    series = stocks.load(settings)
    close = series.table.values[:, series.target]
    days = np.arange(series.test.start, series.test.stop) + 7
    baseline = stocks.root_mean_square(np.diff(close)[days - 1])
    assert errors.shape == (4,)
    assert np.median(errors) < 0.96 * baseline
    assert errors.max() < baseline
    # No rule can know the shocks, one per cent of the price.
    assert errors.min() > 0.9 * stocks.root_mean_square(0.01 * close[days - 1])


@pytest.fixture(scope="module")
def history() -> stocks.History:
    with jax.enable_x64(False):
        return stocks.train(stocks.Settings(epochs=3, change=True))


def test_stocks_are_judged_on_the_last_days_in_their_units(history: stocks.History) -> None:
    table = stocks.prices(732, 0)
    assert table.names == ("Open", "High", "Low", "Volume", "Close")
    np.testing.assert_array_equal(history.days, np.arange(512, 732))  # 70 % are 512
    np.testing.assert_array_equal(history.targets, table.values[512:, 4])
    np.testing.assert_array_equal(history.persistence, table.values[511:-1, 4])
    assert history.losses.shape == (3,)
    assert history.baseline == np.sqrt(np.mean((history.targets - history.persistence) ** 2))
    assert history.error == np.sqrt(np.mean((history.targets - history.predictions) ** 2))
    # Predicted as a change since the day before, so hardly anything can be far off.
    assert history.error < 3 * history.baseline


def test_a_prediction_goes_by_nothing_that_comes_after_it(history: stocks.History) -> None:
    settings = stocks.Settings(epochs=3, change=True)
    series = stocks.load(settings)
    values = series.table.values.copy()
    values[600:] *= 3  # test days: neither the scaling nor the training may notice
    later = stocks.Series(
        data.Table(series.table.names, values),
        series.target,
        series.scaled.at[600:].mul(3),
        *series[3:],
    )
    changed = stocks.train(settings, later)
    np.testing.assert_array_equal(changed.losses, history.losses)
    np.testing.assert_array_equal(changed.predictions[:89], history.predictions[:89])
    assert changed.predictions[89] != history.predictions[89]  # of day 601, by day 600


def test_the_scaling_is_that_of_the_training_days() -> None:
    series = stocks.load(stocks.Settings())
    train = np.asarray(series.scaled[:512])
    np.testing.assert_allclose(train.min(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.max(0), 1, atol=1e-6)
    assert (np.asarray(series.scaled[512:]).max(0) != 1).all()


def test_made_up_prices_are_prices() -> None:
    first, low, high = stocks.prices(300, 3).values[:, [0, 2, 1]].T
    close, volume = stocks.prices(300, 3).values[:, [4, 3]].T
    assert (low <= np.minimum(first, close)).all()
    assert (high >= np.maximum(first, close)).all()
    assert (low > 0).all()
    assert (volume > 0).all()
    np.testing.assert_array_equal(stocks.prices(300, 3).values, stocks.prices(300, 3).values)
    assert (stocks.prices(300, 4).values[1:] != stocks.prices(300, 3).values[1:]).all()


def written(path: Path, days: int = 40, **columns: str) -> Path:
    """A CSV file of some days with a date, two columns of numbers, and others as they are given."""
    names = ["Date", "Open", "Close", *columns]
    lines = [
        [f"day {d}", f"{50 + d % 7}", f"{50 + (d * d) % 11}", *columns.values()]
        for d in range(days)
    ]
    path.write_text("\n".join(",".join(line) for line in [names, *lines]) + "\n")
    return path


def test_any_file_with_a_header_will_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path / "prices.csv", Split="1")  # a constant column does no harm
    settings = stocks.Settings(
        csv=str(path), target="Open", epochs=2, every=1, hidden=2, out=str(tmp_path / "stocks.svg")
    )
    history = stocks.main(settings)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("Loss: ") for line in lines[:3]] == [True, True, False]
    assert lines[3].startswith("Open, 12 days after the first 28, root mean square error: LSTM ")
    assert f"ratio {history.error / history.baseline:.3f}" in lines[3]
    assert lines[-1] == f"figure: {tmp_path / 'stocks.svg'}"
    assert history.targets.tolist() == [50 + d % 7 for d in range(28, 40)]
    assert stocks.load(settings).table.names == ("Open", "Close", "Split")


@pytest.mark.parametrize(
    ("days", "columns", "target", "words"),
    [
        (12, {}, "", "prices.csv: 12 lines of numbers, at least 13 are needed"),
        (40, {}, "Volume", "prices.csv: no column of numbers is named 'Volume', there are 'Open'"),
        (40, {}, "Date", "no column of numbers is named 'Date', there are 'Open', 'Close'"),
        (40, {"Flat": "2.5"}, "Flat", "column 'Flat': it is 2.5 on all 28 days to learn from"),
        (40, {"Gap": ""}, "Gap", "no column of numbers is named 'Gap'"),
        (40, {"Two": "1,2"}, "", "prices.csv, line 2: 5 cells, the header has 4"),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, days: int, columns: dict[str, str], target: str, words: str
) -> None:
    path = written(tmp_path / "prices.csv", days, **columns)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        stocks.load(stocks.Settings(csv=str(path), target=target))
    assert "\n" not in str(caught.value)


def test_the_shortest_file_that_will_do_does(tmp_path: Path) -> None:
    for share, days in ((0.1, 81), (0.5, 17), (0.7, 13), (0.9, 10), (0.99, 52)):
        path = written(tmp_path / "prices.csv", days)
        series = stocks.load(stocks.Settings(csv=str(path), share=share))
        assert len(series.train) >= 1
        assert len(series.test) >= 1


@pytest.mark.parametrize("options", [{"share": 1.0}, {"share": 0.0}, {"window": 0}, {"every": 0}])
def test_stocks_settings_that_can_not_be(options: dict[str, float]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}`? (should|must) be .*{value}"):
        stocks.Settings(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("options", [{"window": 41}, {"batch": 0}, {"lr": 0.0}])
def test_keras_settings_that_can_not_be(options: dict[str, float]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}`? (should|must) be .*{value}"):
        keras_sine.Settings(**options)  # pyright: ignore[reportArgumentType]
