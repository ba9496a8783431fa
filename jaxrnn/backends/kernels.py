"""The kernels by platform: what stands in for the loops of `jaxrnn.backends.primitives` where they are lowered.

A module of kernels has

.. code-block:: text

    unsupported_reason(cell, dtype, T, N, D, H)    why they can't serve, or None; dtype is that of x
    unprofitable_reason(cell, dtype, T, N, D, H)     why "auto" should not take them, or None; optional
    run_forward(operands, *, cell, masked, reverse, keep)       as `fused.forward_p`
    run_backward(operands, *, cell, masked, reverse)            dz, and by the first states

The operands of the second are the cotangents of h at each step and of the last states, W_hh, the
states before the first step and after each, what the cell saved, and flags; dz are the derivatives
by the gate inputs (T, N, G*H), in the dtype of sums, from which `fused` makes those by the weights
and the input. Kernels that make these as well take and give what `fused.backward_p` does.

Which one is taken is decided when a program is lowered, for the platform it is lowered for.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Kernels(NamedTuple):
    """Where the kernels of a platform are.

    Attributes:
        module: its name; it is imported when it is first needed.
        portable: whether a kernel is part of the program, so that it can be exported. One that is
            not is code of this machine and process.
        products: whether the backward kernel makes the derivatives by weights and input, too.
    """

    module: str
    portable: bool
    products: bool = False


PLATFORMS: dict[str, Kernels] = {
    "cpu": Kernels("jaxrnn.backends.cpu", portable=False, products=True),
    "tpu": Kernels("jaxrnn.backends.tpu", portable=True),
    "cuda": Kernels("jaxrnn.backends.hopper", portable=True),
}


def of(platform: str) -> Any:
    """The module of a platform's kernels, or None."""
    found = PLATFORMS.get(platform)
    return found and importlib.import_module(found.module)


def unprofitable_reason(platform: str, *asked: Any) -> str | None:
    """Why "auto" should not take a platform's kernels though they can serve, or None."""
    advice = getattr(of(platform), "unprofitable_reason", None)
    return advice and advice(*asked)


def portable(platform: str) -> bool:
    """Whether a program for export may have this platform's kernels in it."""
    return platform in PLATFORMS and PLATFORMS[platform].portable
