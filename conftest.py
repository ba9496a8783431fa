"""The examples of the documentation run in float32, as a reader runs them."""

from collections.abc import Iterator

import jax
import pytest

# An adapter imports the library it adapts; the benchmark imports only those that are installed.
collect_ignore_glob = ["bench/peers/*.py"]


@pytest.fixture(autouse=True)
def readers_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests turn double precision on for the whole process; examples do without."""
    if isinstance(request.node, pytest.DoctestItem):
        with jax.enable_x64(False):
            yield
    else:
        yield
