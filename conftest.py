"""The examples of the documentation run in float32, as a reader runs them."""

import os
from collections.abc import Iterator

import jax
import pytest

# An adapter imports the library it adapts; the benchmark imports only those that are installed.
# Sphinx reads its configuration.
collect_ignore_glob = ["bench/peers/*.py", "docs/conf.py"]


@pytest.fixture(autouse=True)
def readers_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests turn double precision on for the whole process; examples do without."""
    if isinstance(request.node, pytest.DoctestItem):
        with jax.enable_x64(False):
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def readers_folder(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a page writes, it writes into a folder of its own."""
    if isinstance(request.node, pytest.DoctestItem) and request.node.path.suffix == ".md":
        before = os.getcwd()
        os.chdir(request.getfixturevalue("tmp_path"))
        yield
        os.chdir(before)
    else:
        yield
