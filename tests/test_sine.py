"""The sine job: PyTorch's losses from its weights, the figures of twenty seeds, the pictures."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import data
from jaxrnn.examples import sine
from tests import sine_oracle


@pytest.fixture
def float32() -> Any:
    """The job as users run it, in float32."""
    with jax.enable_x64(False):
        yield


@pytest.mark.usefixtures("float32")
def test_from_pytorchs_weights_the_75_losses_are_pytorchs() -> None:
    expected = sine_oracle.expected()
    losses = expected.pop("losses")
    model = sine.make_model(sine.Settings(), nnx.Rngs(0))
    jaxrnn.load_state_dict(model, expected)
    before = jaxrnn.state_dict(model)
    history = sine.train(sine.Settings(), model)
    assert history.losses.shape == (75,)
    np.testing.assert_allclose(history.losses, losses, rtol=1e-3)
    after = jaxrnn.state_dict(model)
    assert all((before[name] == after[name]).all() for name in before)
    trained = jaxrnn.state_dict(history.model)
    assert any((before[name] != trained[name]).any() for name in before)


@pytest.mark.usefixtures("float32")
def test_the_medians_of_twenty_seeds_are_no_worse_than_pytorchs() -> None:
    losses = sine.losses_by(sine.Settings(), seed=jnp.arange(20))
    assert losses.shape == (20, 75)
    assert np.median(losses[:, 60]) <= 4e-4
    assert np.median(losses[:, 74]) <= 2e-4


@pytest.mark.usefixtures("float32")
def test_many_seeds_at_once_are_the_runs_one_by_one() -> None:
    settings = sine.Settings(steps=10)
    together = sine.losses_by(settings, seed=jnp.arange(2))
    alone = sine.train(sine.Settings(steps=10, seed=1)).losses
    np.testing.assert_allclose(together[1], alone, rtol=1e-4)


@pytest.mark.parametrize("cell", list(sine.LAYERS))
@pytest.mark.usefixtures("float32")
def test_every_cell_learns(cell: str) -> None:
    losses = sine.train(sine.Settings(cell=cell, layers=2, hidden=8, steps=60)).losses
    assert losses[-5:].mean() < 0.2 * losses[0]


@pytest.mark.usefixtures("float32")
def test_half_waves_stay_exact_far_out() -> None:
    x, y = data.half_waves(jnp.asarray(10_000_001), 20)
    wave = np.sin(np.linspace(0, np.pi, 21))
    np.testing.assert_allclose(x[:, 0], -wave[:-1], atol=1e-6)
    np.testing.assert_allclose(y[:, 0], -wave[1:], atol=1e-6)
