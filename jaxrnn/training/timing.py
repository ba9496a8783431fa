"""How long compiling took, and how long running."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Timed(NamedTuple):
    """A result that is there, and the seconds that compiling and running took."""

    result: Any
    compile_seconds: float
    run_seconds: float


def compile_and_run(function: Callable[..., Any], *arguments: Any) -> Timed:
    """Compile a pure function for some arguments, call it once, and time both.

    Example:
        >>> import jax.numpy as jnp
        >>> compile_and_run(jnp.sin, jnp.zeros(3)).result.shape
        (3,)
    """
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    ready = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return Timed(result, ready - start, time.perf_counter() - ready)
