"""A strict environment: double precision, no silent rank promotion, no display.

``pytest -m slow`` runs the full product of options with XLA as users have it, ``--sample N`` a
random sample of N of the selected tests.
"""

import gc
import os
import random
import sys
from collections.abc import Iterator

os.environ.setdefault("MPLBACKEND", "agg")
# Mosaic's interpreter runs the blocks of a cluster as threads of XLA that wait for each other: with
# as few threads as cores some would never start.
os.environ.setdefault("NPROC", "16")
if "slow" in sys.argv:  # the workers of the tests inherit the environment
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")

import jax
import pytest

from tests import compiling

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.default_backend() != "cpu":  # whose products of float32 have fewer bits by default
    jax.config.update("jax_default_matmul_precision", "highest")
compiling.optimise(False)
gc.set_threshold(20_000, 20, 50)  # tracing allocates many objects that live on, and little garbage


@pytest.fixture
def optimised() -> Iterator[None]:
    """Compile with optimisation, for tests that compute more than they compile."""
    compiling.optimise(True)
    yield
    compiling.optimise(False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--sample``."""
    parser.addoption("--sample", type=int, default=None, help="run a random sample of N tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the sample; the same one in every worker."""
    sample = config.getoption("sample")
    if sample is not None and sample < len(items):
        chosen = set(random.Random(0).sample(range(len(items)), sample))
        config.hook.pytest_deselected(items=[t for i, t in enumerate(items) if i not in chosen])
        items[:] = [item for i, item in enumerate(items) if i in chosen]


def pytest_collection_finish() -> None:
    """Freeze imported objects: tracing triggers the collector often, which need not visit them."""
    gc.freeze()
