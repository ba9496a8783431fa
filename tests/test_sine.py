"""Sine example: losses from PyTorch's weights, and the figures of twenty seeds."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.examples import sine
from jaxrnn.layers.heads import LAYERS
from jaxrnn.training import sweep
from tests import sine_oracle


@pytest.fixture(autouse=True)
def float32() -> Any:
    """Run the example in float32, as users do."""
    with jax.enable_x64(False):
        yield


def run(
    seed: Any = 0, *, cell: str = "rnn", hidden: int = 32, layers: int = 1, steps: int = 75
) -> jax.Array:
    """Return the losses of a training (steps,)."""
    rngs = nnx.Rngs(jax.random.key(seed))
    graph, params = nnx.split(sine.make_model(cell, hidden, layers, rngs=rngs))
    return sine.train(graph, params, steps=steps, points=20, lr=0.01).losses


def test_the_75_losses_from_pytorchs_weights_equal_pytorchs() -> None:
    expected = sine_oracle.expected()
    losses = expected.pop("losses")
    model = sine.make_model("rnn", 32, 1, rngs=nnx.Rngs(0))
    jaxrnn.load_state_dict(model, expected)
    graph, params = nnx.split(model)
    train = partial(sine.train, graph, steps=75, points=20, lr=0.01)
    trained = jax.jit(train)(params)
    assert trained.losses.shape == (75,)
    np.testing.assert_allclose(trained.losses, losses, rtol=1e-3)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, trained.params)
    assert any(jax.tree.leaves(changed))


def test_the_medians_of_twenty_seeds_are_no_worse_than_pytorchs() -> None:
    losses = sweep(run, seed=jnp.arange(20)).results
    assert losses.shape == (20, 75)
    assert np.median(losses[:, 60]) <= 4e-4
    assert np.median(losses[:, 74]) <= 2e-4


def test_a_sweep_of_seeds_equals_single_runs() -> None:
    swept = sweep(lambda seed: run(seed, steps=10), seed=jnp.arange(2)).results
    np.testing.assert_allclose(swept[1], jax.jit(lambda: run(1, steps=10))(), rtol=1e-4)


@pytest.mark.parametrize("cell", list(LAYERS))
def test_every_cell_learns(cell: str) -> None:
    losses = jax.jit(lambda: run(cell=cell, layers=2, hidden=8, steps=60))()
    assert losses[-5:].mean() < 0.2 * losses[0]


def test_half_waves_are_exact_at_large_times() -> None:
    x, y = (a[-1] for a in sine.half_waves(200_002, 20))  # the last wave has an odd index
    wave = np.sin(np.linspace(0, np.pi, 21))
    np.testing.assert_allclose(x[:, 0], -wave[:-1], atol=1e-6)
    np.testing.assert_allclose(y[:, 0], -wave[1:], atol=1e-6)
