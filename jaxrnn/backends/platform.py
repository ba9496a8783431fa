"""What the loops choose by the platform: how long a block is, and what is done in a step.

A CPU is bound by its caches and by what XLA vectorises; a GPU, at the sizes of a recurrence, by how
many kernels are launched, each for a few microseconds. Asked while tracing, so a program that is
exported for another platform keeps the choices of the machine it was traced on, unless it is traced
under `traced_for`. No choice changes a result beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax

from jaxrnn import _checks as checks


class Choices(NamedTuple):
    """How the loops are written.

    Attributes:
        rows: about how many rows (steps x batch) a block holds.
        longest: the most steps in a block.
        unroll: steps in one turn of the loop.
        inputs_in_loop: whether the product of W_ih with x may be left to each step.
        prefetch: whether a step may fetch the gate inputs of the next one (see `jaxrnn.backends.scan`).
        keep_saved: whether what the cell saved may be kept for the derivative, beside the states.
    """

    rows: int
    longest: int
    unroll: int
    inputs_in_loop: bool
    prefetch: bool
    keep_saved: bool


# A block should hold enough rows for a fast product, few enough that its gates stay in the cache.
# Measured with sizes from H = 128 to 512. Unrolling never helped.
CPU = Choices(rows=640, longest=50, unroll=1, inputs_in_loop=True, prefetch=True, keep_saved=True)

# Counted in what XLA compiles for an H100 (the `launches` benchmark). A turn of the loop has one
# kernel for its counter and one for each array that is stored, however many steps it holds; a
# block has some fifteen of its own. Storing the gates splits the pointwise kernel in two, and
# computing them again is one product a block. A block's gate inputs take rows * G * H * 4 bytes.
GPU = Choices(
    rows=8192, longest=256, unroll=8, inputs_in_loop=False, prefetch=False, keep_saved=False
)

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""What programs are lowered for."""

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def choices() -> Choices:
    """Those of the platform that is traced for."""
    return GPU if (asked_platform() or jax.default_backend()) in ("gpu", "cuda", "rocm") else CPU


def named(platform: str) -> str:
    """A platform as programs are lowered for it; "gpu" stands for "cuda".

    Raises:
        ValueError: for one that JAX does not have: naming those that it has.
    """
    platform = "cuda" if platform == "gpu" else platform
    checks.choice("platform", platform, PLATFORMS)
    return platform


def asked_platform() -> str | None:
    """The platform of `traced_for`, or None."""
    return _platform.get()


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Trace for a platform that is not this process's, to compile or export for it.

    What was traced before stays out of it: JAX's caches are emptied at both ends.

    Args:
        platform: "cpu", "gpu", "cuda", "rocm" or "tpu"; "gpu" stands for "cuda".

    Raises:
        ValueError: for another platform.

    Example:
        >>> from jaxrnn.backends import platform as tuning
        >>> with tuning.traced_for("gpu"):
        ...     tuning.choices().unroll
        8
    """
    platform = named(platform)
    jax.clear_caches()
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)
        jax.clear_caches()
