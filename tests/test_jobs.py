"""Training jobs of the benchmark: PyTorch and jaxrnn train from the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from bench.jobs import base, language
from bench.layers import Spec
from bench.suites import sweep
from bench.suites.training import JOBS
from tests.oracle import torch


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Run the jobs in float32, like the benchmark."""
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("name", JOBS)
def test_a_job_starts_from_its_weights(name: str) -> None:
    job: base.Job = import_module(f"bench.jobs.{name}").JOB
    weights = job.weights()
    _, params = job.jaxrnn(weights)
    ours = [np.sort(np.ravel(a)) for a in jax.tree.leaves(nnx.to_pure_dict(params))]
    theirs = [np.sort(np.ravel(a)) for a in weights.values()]
    assert sorted(a.tobytes() for a in ours) == sorted(a.tobytes() for a in theirs)


@pytest.mark.skipif(torch is None, reason="needs PyTorch beside it")
@pytest.mark.parametrize("name", ["sine", "charseq"])
def test_losses_equal_those_in_float64(name: str) -> None:
    job: base.Job = import_module(f"bench.jobs.{name}").JOB
    for peer in ("jaxrnn", "torch"):
        contender = job.build(peer)
        assert contender.check is not None
        assert contender.check()["losses"] < 1e-3


def test_the_language_model_of_flax_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "STEPS": 2,
        "N": 2,
        "T": 3,
        "SIZE": 4,
        "VOCABULARY": 5,
        "LAYERS": 1,
    }.items():
        monkeypatch.setattr(language, name, value)
    monkeypatch.setattr(language, "SPEC", Spec("lstm", 2, 3, 4, 4))
    weights = language.initial_weights()
    losses = []
    for make in (language.JOB.jaxrnn, language.JOB.others["flax.nnx"]):
        training, params = make(weights)
        with jax.numpy_rank_promotion("allow"):
            losses.append(jax.jit(training)(params).losses)
    (first, second), (theirs, after_a_step) = losses
    np.testing.assert_allclose(theirs, first, rtol=1e-6)
    np.testing.assert_allclose(after_a_step, second, rtol=1e-4)
    assert abs(second - first) > 0.01


@pytest.mark.parametrize("models", [1, 2])
def test_a_sweep_equals_single_jobs(models: int) -> None:
    contender = sweep.build(models, "jaxrnn")
    assert contender.run is not None
    trained: Any = contender.run()
    losses = trained.losses
    assert losses.shape == (models, 75)
    job = import_module("bench.jobs.sine")
    training, params = job.jaxrnn_job(job.initial_weights(models - 1))
    np.testing.assert_allclose(losses[-1], jax.jit(training)(params).losses, rtol=1e-3)
