"""CPU kernels: the loops of an elementwise cell, written as LLVM IR and compiled by llvmlite.

They need llvmlite (``pip install "jaxrnn[cpu]"``). XLA calls them through its foreign function
interface. `jaxrnn.backends.primitives` defines what they compute; ``README.md`` describes the code.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

_DTYPES = ("float32", "float64")


def unsupported_reason(cell: Any, dtype: Any, *sizes: int) -> str | None:
    """Return the reason why the kernels cannot run a cell, or None. All sizes are supported."""
    del sizes
    if find_spec("llvmlite") is None:
        return 'llvmlite is not installed (pip install "jaxrnn[cpu]")'
    from jaxrnn.backends.cpu import compiler
    from jaxrnn.backends.elementwise import lower

    if not compiler.has_fma():
        return "this processor has no fused multiply-add"
    dtype = np.dtype(dtype)
    if dtype.name not in _DTYPES:
        return f"it computes in {' or '.join(_DTYPES)}, not in {dtype.name}"
    return lower.unsupported_reason(cell, dtype, parameters=True)


def unprofitable_reason(cell: Any, dtype: Any, T: int, N: int, D: int, H: int) -> str | None:
    """Return the reason why the scan is faster than a kernel, or None.

    Measured on two cores: for H 128 and 512 the scan is faster if T * N is below 32, up to ten
    times for T * N = 1; for H 32 it rarely is.
    """
    del dtype
    large = len(cell.gates) * H * (D + H) > 1 << 14
    if large and T * N < 32:
        return "packing such large weights costs more than so few steps and sequences gain"
    return None


def run_forward(operands: Any, **options: Any) -> list[jax.Array]:
    """Run the forward kernel.

    Args:
        operands: x (T, N, D), W_ih (G*H, D), W_hh (G*H, H), both biases (G*H,), the cell parameters
            as one vector if the cell has any, the initial states (N, H), and, if `masked`, packed
            masks (T, N) of uint8: bit 0 is a reset, bit 1 a valid step.
        options: `cell`; `masked`; `store_residuals`; `reverse`, True for a recurrence from the last
            step to the first; `local_devices`, optional, the number of XLA devices that share the
            processor.

    Returns:
        h of each step (T, N, H), then the other states: if `store_residuals` is True of each step,
        followed by the residuals (T, N, count * H), otherwise after the last step (N, H).
    """
    from jaxrnn.backends.cpu import forward

    return forward.run(operands, **options)


def run_backward(operands: Any, **options: Any) -> list[jax.Array]:
    """Run the backward kernel.

    Args:
        operands: the cotangents of h at each step (T, N, H) and of the final states (N, H), then x,
            W_ih, W_hh, the cell parameters if the cell has any, the initial states, the states of
            each step, the residuals, and the packed masks if `masked`.
        options: as for `run_forward`, with `requested` in place of `store_residuals`: booleans for
            x, W_ih, W_hh, the biases and, if the cell has any, the cell parameters.

    Returns:
        The requested cotangents, with one bias (G*H,) or two if the cell's `split` is True, and
        those of the initial states.
    """
    from jaxrnn.backends.cpu import backward

    return backward.run(operands, **options)
