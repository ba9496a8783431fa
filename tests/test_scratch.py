"""Hand-written cell: its values and gradients equal those of `RNN`, and the command prints them."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import RNN, RNNCell, state_dict
from jaxrnn.cli import main
from jaxrnn.examples import scratch


def test_values_and_gradients_equal_the_layers_to_1e_6() -> None:
    with jax.enable_x64(False):
        comparisons, reference, layer = scratch.compare(*scratch.make_inputs(3, 50, 10, 20, 0))
    names = [one.name for one in comparisons]
    assert names[:2] == ["h_1 ... h_T", "h_T"]
    assert sum(name.startswith("dL/d") for name in names) == 6
    assert all(one.largest > 0.5 for one in comparisons)
    assert max(one.relative for one in comparisons) < 1e-6
    assert reference.shape == (3, 50, 20)
    np.testing.assert_allclose(reference, layer, rtol=0, atol=1e-6)


def test_values_are_equal_in_float64() -> None:
    rnn = RNN(3, 4, batch_first=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    random = np.random.RandomState(0)
    xs, h_0 = (jnp.asarray(random.normal(size=size)) for size in ((2, 6, 3), (2, 4)))
    outputs, final = scratch.unroll(scratch.Weights.from_layer(rnn), xs, h_0)
    expected, h_n = rnn(xs, h_0[None])
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(final, h_n[0], rtol=0, atol=1e-10)
    assert (jnp.abs(outputs[:, 1:] - outputs[:, :-1]) > 1e-6).all()  # the state changes


def test_a_step_equals_the_cells() -> None:
    cell = RNNCell(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    w = {name: jnp.asarray(array) for name, array in state_dict(cell).items()}
    weights = scratch.Weights(w["weight_ih"], w["weight_hh"], w["bias_ih"] + w["bias_hh"])
    x, h = jnp.ones((2, 3)), jnp.full((2, 4), 0.5)
    np.testing.assert_allclose(scratch.step(weights, x, h), cell(x, h), rtol=0, atol=1e-10)


def test_weights_and_inputs_have_different_keys() -> None:
    rnn, xs, h_0, loss_weights = scratch.make_inputs(1, 20, 20, 20, 0)
    arrays = [rnn.all_weights[0][0][...], xs[0], loss_weights[0]]
    ranks = [np.argsort(np.ravel(array)) for array in arrays]  # equal keys give equal ranks
    assert len({tuple(r[:5]) for r in ranks}) == 3
    assert h_0.shape == (1, 20)


@pytest.mark.parametrize("x64", [False, True])
def test_it_prints_the_differences_and_saves_its_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, x64: bool
) -> None:
    path = tmp_path / "scratch.svg"
    with jax.enable_x64(x64):
        summary = scratch.main(batch=2, steps=4, features=3, hidden=4, out=str(path))
    out = capsys.readouterr().out
    assert all(name in out for name in ("h_1 ... h_T", "dL/dW_x", "dL/db, b_hh", "dL/dh_0"))
    *_, worst, figure = out.splitlines()
    assert worst.startswith("largest difference: ")
    assert summary.removeprefix("the layer differs by ") in worst
    assert figure == f"figure: {path}"
    assert path.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize("name", ["batch", "steps", "features", "hidden"])
def test_sizes_are_at_least_one(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["run", "scratch", f"--{name}", "0"]) == 2
    assert f"`{name}` must be an integer >= 1, got 0" in capsys.readouterr().err
