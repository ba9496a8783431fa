"""Examples on series: Keras's values and the regression, and stocks compared with persistence."""

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

from jaxrnn import plotting
from jaxrnn.cli import main
from jaxrnn.examples import keras_sine, stocks
from jaxrnn.training import sweep
from tests import keras_oracle

NETWORKS = {"SimpleRNN": False, "SimpleRNN + Dense": True}


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run the examples in float32, as users do."""
    with jax.enable_x64(False):
        yield


def train_network(network: keras_sine.Network, key: Any) -> tuple[Any, jax.Array]:
    """Train a network, and return the trained copy and its losses."""
    graph, params, rest = nnx.split(network, keras_sine.TRAINED, ...)
    options: Any = {"window": 3, "epochs": 150, "batch": 32, "lr": 0.01}
    params, losses = keras_sine.train(graph, params, rest, key, **options)
    return nnx.merge(graph, params, rest), losses


def test_losses_and_predictions_from_kerass_weights_equal_kerass() -> None:
    expected = keras_oracle.expected()
    x = jnp.asarray(keras_sine.windows(3)[0], jnp.float32)
    for number, dense in enumerate(NETWORKS.values()):
        network: Any = keras_sine.Network(dense, rngs=nnx.Rngs(0))
        weights = [network.rnn.weight_ih_l0, network.rnn.weight_hh_l0, network.rnn.bias_ih_l0]
        for layer in network.dense:
            weights += [layer.kernel, layer.bias]
        for index, weight in enumerate(weights):
            weight[...] = jnp.asarray(expected[f"{number}.{index}"])  # 1 x 1 before the dense ones
        trained, losses = train_network(network, None)
        assert losses.shape == (150,)
        np.testing.assert_allclose(losses, expected[f"{number}.losses"], rtol=1e-5)
        np.testing.assert_allclose(trained(x)[:, 0], expected[f"{number}.predictions"], atol=1e-5)
        assert trained.rnn.bias_hh_l0[...] == 0


def test_networks_are_initialized_as_in_keras() -> None:
    for seed in range(5):
        network: Any = keras_sine.Network(True, rngs=nnx.Rngs(seed))
        assert abs(network.rnn.weight_hh_l0[...]) == 1
        assert abs(network.rnn.weight_ih_l0[...]) <= 3**0.5
        for layer, sizes in zip(network.dense, [(1, 10), (10, 1)], strict=True):
            assert layer.kernel.shape == sizes
            assert jnp.abs(layer.kernel[...]).max() <= (6 / 11) ** 0.5
            assert (layer.bias[...] == 0).all()
        assert network.rnn.bias_ih_l0[...] == network.rnn.bias_hh_l0[...] == 0


def test_the_regression_is_exact_and_the_networks_are_not() -> None:
    x, y = keras_sine.windows(3)
    assert x.shape == (47, 3, 1)
    assert x.dtype == np.float64
    assert np.mean((keras_sine.regress(x, y) - y) ** 2) < 1e-20
    single = jnp.asarray(x, jnp.float32)

    def error(seed: jax.Array, dense: bool) -> jax.Array:
        key = jax.random.key(seed)
        trained, _ = train_network(keras_sine.Network(dense, rngs=nnx.Rngs(key)), key)
        return jnp.mean((trained(single) - jnp.asarray(y, jnp.float32)) ** 2)

    for dense in NETWORKS.values():
        errors = sweep(partial(error, dense=dense), seed=jnp.arange(20)).results
        assert errors.shape == (20,)
        assert errors.min() > 0.01
        assert np.median(errors) < 0.2 < np.mean(y**2)  # better than predicting the mean


def test_keras_prints_three_errors_and_saves_the_four_curves(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, save = [], plotting.save
    monkeypatch.setattr(plotting, "save", lambda f, path: (figures.append(f), save(f, path))[1])
    path = tmp_path / "keras.svg"
    summary = keras_sine.main(epochs=3, out=str(path))
    *errors, figure = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0] for line in errors]
    assert names == ["SimpleRNN", "SimpleRNN + Dense", "linear regression"]
    printed = [float(line.split()[-1]) for line in errors]
    summarized = [float(word) for word in summary.split(": ")[1].split(", ")]
    np.testing.assert_allclose(printed, summarized, rtol=0.06)
    assert printed[2] < 1e-20
    assert figure == f"figure: {path}"
    assert path.read_text(encoding="utf-8").startswith("<?xml")
    axis = figures[0].axes[0]
    assert [len(line.get_xdata()) for line in axis.get_lines()] == [47] * 4
    assert axis.get_legend() is not None


def load(csv: str = "", target: str = "", share: float = 0.7) -> stocks.Series:
    """Load a series with windows of 7 days."""
    return stocks.load(csv, target, ",", 7, share, 0)


def train_stocks(seed: Any, series: stocks.Series, epochs: int, change: bool = False) -> Any:
    """Train from a seed, and return the losses and the predictions of the test days."""
    key = jax.random.key(seed)
    graph, params = nnx.split(stocks.make_model("lstm", 5, 10, 1, rngs=nnx.Rngs(key)))
    options: Any = {"epochs": epochs, "batch": 64, "lr": 0.01, "change": change}
    return stocks.train(graph, params, key, series=series, **options)[1:]


def test_stock_predictions_are_better_than_persistence() -> None:
    series = load()
    days, close = series.test_days, series.values
    run = partial(train_stocks, series=series, epochs=200)
    _, predictions = sweep(run, seed=jnp.arange(4)).results
    errors = np.sqrt(((np.asarray(predictions, np.float64) - close[days]) ** 2).mean(-1))
    baseline = stocks.root_mean_square(np.diff(close)[days - 1])
    assert errors.shape == (4,)
    assert np.median(errors) < 0.96 * baseline
    assert errors.max() < baseline
    # The shocks, one per cent of the price, are unpredictable.
    assert errors.min() > 0.9 * stocks.root_mean_square(0.01 * close[days - 1])


@pytest.fixture(scope="module")
def changes() -> Any:
    """Losses and predictions of a short training on changes."""
    with jax.enable_x64(False):
        return jax.jit(lambda: train_stocks(0, load(), 3, change=True))()


def test_the_test_days_are_the_last_ones_in_units_of_the_data(changes: Any) -> None:
    losses, predictions = changes
    table, series = stocks.synthetic_prices(732, 0), load()
    assert table.names == ("Open", "High", "Low", "Volume", "Close")
    np.testing.assert_array_equal(series.test_days, np.arange(512, 732))  # 70 % are 512
    np.testing.assert_array_equal(series.values, table.values[:, 4])
    assert losses.shape == (3,)
    error = stocks.root_mean_square(predictions - table.values[512:, 4])
    # A predicted change is small.
    assert error < 3 * stocks.root_mean_square(np.diff(table.values[511:, 4]))


def test_a_prediction_does_not_depend_on_later_days(changes: Any) -> None:
    series = load()
    changed = series._replace(scaled=series.scaled.at[600:].mul(3))  # test days only
    losses, predictions = jax.jit(lambda: train_stocks(0, changed, 3, change=True))()
    np.testing.assert_array_equal(losses, changes[0])
    np.testing.assert_array_equal(predictions[:89], changes[1][:89])
    assert predictions[89] != changes[1][89]  # day 601, predicted from day 600


def test_the_scaling_is_that_of_the_training_days() -> None:
    series = load()
    train = np.asarray(series.scaled[:512])
    np.testing.assert_allclose(train.min(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.max(0), 1, atol=1e-6)
    assert (np.asarray(series.scaled[512:]).max(0) != 1).all()


def test_synthetic_prices_are_plausible() -> None:
    prices = stocks.synthetic_prices(300, 3).values
    first, high, low, volume, close = prices.T
    assert (low <= np.minimum(first, close)).all()
    assert (high >= np.maximum(first, close)).all()
    assert (low > 0).all()
    assert (volume > 0).all()
    np.testing.assert_array_equal(prices, stocks.synthetic_prices(300, 3).values)
    assert (stocks.synthetic_prices(300, 4).values[1:] != prices[1:]).all()


def write_csv(path: Path, days: int = 40, **columns: str) -> Path:
    """Write a CSV file with a date, two numeric columns, and constant `columns`."""
    names = ["Date", "Open", "Close", *columns]
    lines = [
        [f"day {d}", f"{50 + d % 7}", f"{50 + (d * d) % 11}", *columns.values()]
        for d in range(days)
    ]
    path.write_text("\n".join(",".join(line) for line in [names, *lines]) + "\n")
    return path


def test_any_file_with_a_header_is_accepted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "prices.csv", Split="1")  # a constant column is allowed
    options: Any = {"target": "Open", "epochs": 2, "every": 1, "hidden": 2}
    summary = stocks.main(csv=str(path), **options, out=str(tmp_path / "stocks.svg"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("Loss: ") for line in lines[:3]] == [True, True, False]
    assert lines[3].startswith("Open, 12 days after the first 28, root mean square error: LSTM ")
    error, baseline, _ = (word.split()[1] for word in summary.split(", "))
    assert f"LSTM {error}, persistence {baseline}, ratio " in lines[3]
    assert lines[-1] == f"figure: {tmp_path / 'stocks.svg'}"
    series = load(str(path), "Open")
    assert series.values[series.test_days].tolist() == [50 + d % 7 for d in range(28, 40)]
    assert series.table.names == ("Open", "Close", "Split")


@pytest.mark.parametrize(
    ("days", "columns", "target", "words"),
    [
        (12, {}, "", ["prices.csv", "12", "13"]),
        (40, {}, "Volume", ["prices.csv: `target` must be", "'Open', 'Close', got 'Volume'"]),
        (40, {}, "Date", ["'Open', 'Close', got 'Date'"]),
        (40, {"Flat": "2.5"}, "Flat", ["column 'Flat': all 28 training days have the value 2.5"]),
        (40, {"Gap": ""}, "Gap", ["got 'Gap'"]),
        (40, {"Two": "1,2"}, "", ["prices.csv, line 2", "5", "4"]),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, days: int, columns: dict[str, str], target: str, words: list[str]
) -> None:
    path = write_csv(tmp_path / "prices.csv", days, **columns)
    with pytest.raises(ValueError) as caught:
        load(str(path), target)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_the_shortest_file_is_accepted(tmp_path: Path) -> None:
    for share, days in ((0.1, 81), (0.5, 17), (0.7, 13), (0.9, 10), (0.99, 52)):
        path = write_csv(tmp_path / "prices.csv", days)
        series = load(str(path), share=share)
        assert len(series.train) >= 1
        assert len(series.test) >= 1


@pytest.mark.parametrize(
    "arguments",
    [
        *[["stocks", name, "0"] for name in ("--window", "--every", "--share")],
        ["stocks", "--share", "1.0"],
        *[["keras", name, "0"] for name in ("--batch", "--lr")],
        ["keras", "--window", "41"],
    ],
    ids=" ".join,
)
def test_impossible_options_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"`{arguments[1].strip('-')}` must " in error
    assert arguments[2] in error
    assert error.count("\n") == 1
