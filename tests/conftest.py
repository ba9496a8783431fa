"""A strict environment: double precision on, no silent rank promotion, no display."""

import gc
import os
from collections.abc import Iterator

os.environ.setdefault("MPLBACKEND", "agg")
# Mosaic's interpreter runs the blocks of a cluster as threads of XLA that wait for each other: with
# as few threads as cores some would never start.
os.environ.setdefault("NPROC", "16")

import jax
import pytest

from tests import compiling

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.default_backend() != "cpu":  # where products of float32 are of fewer bits else
    jax.config.update("jax_default_matmul_precision", "highest")
compiling.optimise(False)
gc.set_threshold(20_000, 20, 50)  # tracing makes much that stays, and little garbage


@pytest.fixture
def optimised() -> Iterator[None]:
    """For what computes more than it compiles."""
    compiling.optimise(True)
    yield
    compiling.optimise(False)


def pytest_collection_finish() -> None:
    """What was imported stays: tracing sets off the collector often, which need not look there."""
    gc.freeze()
