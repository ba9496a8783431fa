"""Long sentence: PyTorch's first losses and its accuracy, and the generated text."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.cli import main
from jaxrnn.examples import longseq
from jaxrnn.examples.longseq import SENTENCE
from jaxrnn.layers.heads import CharacterModel
from jaxrnn.training import sweep
from tests import longseq_oracle


@pytest.fixture
def float32() -> Iterator[None]:
    """Run the example in float32, as users do."""
    with jax.enable_x64(False):
        yield


def losses_from_pytorchs_weights(model: CharacterModel) -> np.ndarray:
    """Return the losses (seeds, steps) in the dtype of a model, from each of PyTorch's weights."""
    expected = longseq_oracle.expected()
    weights = {n: a for n, a in expected.items() if n not in ("losses", "double")}
    params = []
    for seed in range(longseq_oracle.SEEDS):
        jaxrnn.load_state_dict(model, {n: a[seed] for n, a in weights.items()})
        params.append(nnx.clone(nnx.state(model, nnx.Param)))
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *params)
    graph, (x, y) = nnx.graphdef(model), longseq.make_windows(SENTENCE, 10)
    options: Any = {"steps": longseq_oracle.STEPS, "optimizer": longseq.make_optimizer(0.1, False)}

    def run(params: Any) -> jax.Array:
        return longseq.train(graph, params, x, y, **options).losses

    return np.asarray(sweep(run, params=stacked).results)


# Adam at 0.1 amplifies rounding about tenfold per step: the losses of two programs agree to 1e-3
# for 6 to 20 steps in float32, and for 16 or more in float64.


@pytest.mark.usefixtures("float32")
def test_the_first_losses_from_pytorchs_weights_equal_pytorchs() -> None:
    losses = losses_from_pytorchs_weights(longseq.make_model(SENTENCE, "rnn", 2, rngs=nnx.Rngs(0)))
    expected = longseq_oracle.expected()["losses"]
    np.testing.assert_allclose(losses[:, :5], expected[:, :5], rtol=1e-3)


def test_more_losses_are_equal_in_float64() -> None:
    rngs = nnx.Rngs(0)
    vocabulary = longseq.make_model(SENTENCE, "rnn", 2, rngs=rngs).vocabulary
    size = len(vocabulary)
    layer = jaxrnn.RNN(size, size, 2, batch_first=True, param_dtype=jnp.float64, rngs=rngs)
    losses = losses_from_pytorchs_weights(CharacterModel(layer, vocabulary, rngs=rngs))
    assert losses.dtype == np.float64
    expected = longseq_oracle.expected()["double"]
    np.testing.assert_allclose(losses[:, :7], expected[:, :7], rtol=1e-10)
    np.testing.assert_allclose(losses[:, :12], expected[:, :12], rtol=1e-5)


@functools.cache
def accuracies(stable: bool) -> np.ndarray:
    """Return the final accuracies of 20 seeds, or of 5 seeds with stable settings."""

    def run(seed: Any) -> jax.Array:
        rngs = nnx.Rngs(jax.random.key(seed))
        graph, params = nnx.split(longseq.make_model(SENTENCE, "rnn", 2, rngs=rngs))
        x, y = longseq.make_windows(SENTENCE, 10)
        options: Any = {"steps": 100, "optimizer": longseq.make_optimizer(0.1, stable)}
        trained = longseq.train(graph, params, x, y, **options)
        return (trained.metrics[-1] == y).mean(dtype=jnp.float32)

    with jax.enable_x64(False):
        return np.asarray(sweep(run, seed=jnp.arange(5 if stable else 20)).results)


@pytest.mark.usefixtures("optimised")
def test_the_median_accuracy_is_no_worse_than_pytorchs() -> None:
    expected = longseq_oracle.accuracies()
    assert expected.shape == (20,)
    assert round(float(np.median(expected)), 2) == 0.89
    # Two digits: the median of 20 seeds varies by a quarter of the second one.
    assert round(float(np.median(accuracies(False))), 2) >= 0.89


@pytest.mark.usefixtures("optimised")
def test_every_seed_reaches_it_with_stable_settings() -> None:
    assert accuracies(True).min() >= 0.89


@pytest.mark.usefixtures("float32", "optimised")
def test_the_accuracy_is_bounded() -> None:
    x, y = map(np.asarray, longseq.make_windows(SENTENCE, 10))
    assert x.shape == y.shape == (170, 10)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    bounds = longseq.accuracy_bounds(x, y)
    assert round(1700 * bounds.mean()) == 1524
    assert (np.diff(bounds) >= 0).all()
    assert bounds[-1] == 1
    assert accuracies(True).max() <= bounds.mean() + 1e-6
    small = longseq.accuracy_bounds(
        np.array([[0, 1], [0, 2], [0, 1]]), np.array([[1, 3], [2, 3], [1, 4]])
    )
    np.testing.assert_allclose(small, [2 / 3, 2 / 3])


@pytest.mark.usefixtures("float32", "optimised")
def test_it_prints_the_sentence_and_generates_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "longseq.png"
    # More steps than necessary, so that rounding does not change the generated text.
    summary = longseq.main(stable=True, steps=300, every=100, out=str(path))
    *steps, accuracy, generated, right, _, figure = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in steps] == ["0", "100", "200"]
    texts = [line.split(" ", 1)[1].rsplit(" ", 1)[0] for line in steps]
    assert texts[2][1:] == SENTENCE[2:]  # the first character is ambiguous
    assert len(texts[0]) == 179
    assert accuracy == "accuracy 0.8965, at most 0.8965"
    assert summary == "accuracy 0.896, at most 0.896"
    assert generated == f"generated: {SENTENCE}"
    assert right == "170 of 170 characters as in the text"
    assert figure == f"figure: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("float32")
def test_a_short_text_is_continued_to_its_length(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options: Any = {"steps": 3, "text": "hello world", "window": 3, "layers": 1, "cell": "gru"}
    longseq.main(**options, out=str(tmp_path / "short.svg"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["0", "1", "2"]
    generated = lines[4].removeprefix("generated: ")
    assert generated.startswith("hel")
    assert len(generated) == len("hello world")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--text", "aaaa"], "`text` must have at least 2 different characters, got 'aaaa'"),
        (["--window", "180"], "`window` must be less than the 180 characters of the text, got 180"),
        (["--window", "0"], "`window` must be an integer >= 1, got 0"),
        (["--lr", "0.0"], "`lr` must be a finite number > 0, got 0.0"),
    ],
)
def test_impossible_options_are_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["run", "longseq", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
