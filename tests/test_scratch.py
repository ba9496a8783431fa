"""The cell written out by hand: the same numbers as `RNN`, values and gradients, in the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn import RNN, RNNCell, state_dict
from jaxrnn.examples import scratch


def test_values_and_gradients_are_the_layers_to_1e_6() -> None:
    with jax.enable_x64(False):
        history = scratch.compare(scratch.Settings())
    names = [row.name for row in history.rows]
    assert names[:2] == ["h_1 ... h_T", "h_T"]
    assert sum(name.startswith("dL/d") for name in names) == 6
    assert all(row.largest > 0.5 for row in history.rows)
    assert max(row.relative for row in history.rows) < 1e-6
    assert history.scratch.shape == (50, 20)
    np.testing.assert_allclose(history.scratch, history.layer, rtol=0, atol=1e-6)


def test_in_double_precision_they_are_the_same() -> None:
    rnn = RNN(3, 4, batch_first=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    random = np.random.RandomState(0)
    xs, h_0 = (jnp.asarray(random.normal(size=size)) for size in ((2, 6, 3), (2, 4)))
    outputs, last = scratch.time_loop(scratch.Weights.of(rnn), xs, h_0)
    expected, h_n = rnn(xs, h_0[None])
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(last, h_n[0], rtol=0, atol=1e-10)
    assert (jnp.abs(outputs[:, 1:] - outputs[:, :-1]) > 1e-6).all()  # the state goes on


def test_a_step_is_the_cells() -> None:
    cell = RNNCell(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    w = {name: jnp.asarray(array) for name, array in state_dict(cell).items()}
    weights = scratch.Weights(w["weight_ih"], w["weight_hh"], w["bias_ih"] + w["bias_hh"])
    x, h = jnp.ones((2, 3)), jnp.full((2, 4), 0.5)
    np.testing.assert_allclose(scratch.cell(weights, x, h), cell(x, h), rtol=0, atol=1e-10)


def test_weights_input_and_state_are_drawn_apart() -> None:
    rnn, xs, h_0, weigh = scratch.draw_inputs(scratch.Settings(batch=1, steps=20, features=20))
    drawn = [rnn._weights()[0].weight_ih, xs[0], weigh[0]]
    ranks = [np.argsort(np.ravel(array)) for array in drawn]  # one key would give them one order
    assert len({tuple(r[:5]) for r in ranks}) == 3
    assert h_0.shape == (1, 20)


@pytest.mark.parametrize("x64", [False, True])
def test_it_prints_the_differences_and_saves_its_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, x64: bool
) -> None:
    path = tmp_path / "scratch.svg"
    with jax.enable_x64(x64):
        settings = scratch.Settings(batch=2, steps=4, features=3, hidden=4, out=str(path))
        history = scratch.main(settings)
    out = capsys.readouterr().out
    assert all(row.name in out for row in history.rows)
    *_, worst, figure = out.splitlines()
    assert worst.startswith("largest difference: ")
    assert figure == f"figure: {path}"
    assert path.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize("name", ["batch", "steps", "features", "hidden"])
def test_sizes_are_at_least_one(name: str) -> None:
    sizes: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1, got 0"):
        scratch.Settings(**sizes)
