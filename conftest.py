"""The examples of the documentation run in float32, as a reader runs them."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def readers_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests turn double precision on for the whole process; examples do without."""
    if isinstance(request.node, pytest.DoctestItem):
        with jax.enable_x64(False):
            yield
    else:
        yield
