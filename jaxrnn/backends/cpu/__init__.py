"""Kernels for the CPU: the loops of any elementwise cell, written out and compiled by LLVM.

They need llvmlite (``pip install "jaxrnn[cpu]"``), are compiled when a program that uses them is,
and are called by XLA through its foreign function interface. `jaxrnn.backends.primitives` says what they compute.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

DTYPES = ("float32", "float64")


@functools.cache
def installed() -> bool:
    """Whether llvmlite is there."""
    return find_spec("llvmlite") is not None


def unsupported_reason(cell: Any, dtype: Any, *sizes: int) -> str | None:
    """Why a cell can't run in a kernel here; None if it can, whatever the sizes."""
    del sizes
    if not installed():
        return 'llvmlite is not installed (pip install "jaxrnn[cpu]")'
    from jaxrnn.backends.cpu.compiler import multiplies_and_adds
    from jaxrnn.backends.elementwise import lower

    if not multiplies_and_adds():
        return "this processor has no fused multiply-add"
    if np.dtype(dtype).name not in DTYPES:
        return f"it computes in {' or '.join(DTYPES)}, not in {np.dtype(dtype).name}"
    return lower.unsupported_reason(cell, np.dtype(dtype), parameters=True)


def unprofitable_reason(cell: Any, dtype: Any, T: int, N: int, D: int, H: int) -> str | None:
    """Why a scan is quicker although a kernel can serve, or None.

    Measured on two cores: at H 128 and 512 the scan is ahead below some 32 rows in all, up to ten
    times for a single one; at H 32 hardly ever.
    """
    del dtype
    large = len(cell.gates) * H * (D + H) > 1 << 14
    if large and T * N < 32:
        return "so few steps and rows are done before a kernel has such large weights in order"
    return None


def run_forward(operands: Any, **parameters: Any) -> list[jax.Array]:
    """The forward kernel, see `jaxrnn.backends.cpu.kernels`."""
    from jaxrnn.backends.cpu import kernels

    return kernels.run_forward(operands=operands, **parameters)


def run_backward(operands: Any, **parameters: Any) -> list[jax.Array]:
    """The backward kernel, see `jaxrnn.backends.cpu.kernels`."""
    from jaxrnn.backends.cpu import kernels

    dh, *rest = operands
    states, count = len(parameters["cell"].states), 3 + bool(parameters["cell"].parameters)
    dlast, arrays, more = rest[:states], rest[states : states + count], rest[states + count :]
    return kernels.run_backward(operands=(dh, *arrays, *dlast, *more), **parameters)
