"""Platforms: their names, how the scan is tuned for each, and which kernels each has.

A CPU is bound by its caches and by what XLA vectorises; a GPU, at the sizes of a recurrence, by the
number of kernels launched, each for a few microseconds. No choice here changes a result beyond
rounding.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from jaxrnn import _checks

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that programs are lowered for."""


class Tuning(NamedTuple):
    """Tuning of the scan for a platform.

    Attributes:
        block_size: target number of steps times batch elements in a block.
        longest_block: largest number of steps in a block.
        unroll: steps in one iteration of the compiled loop.
        project_inputs_in_loop: if True, the product of W_ih with x_t may run in step t.
        prefetch: if True, a step may load the input pre-activations of the next step.
        store_cell_residuals: if True, the residuals of the cell may be stored beside the states.
    """

    block_size: int
    longest_block: int
    unroll: int
    project_inputs_in_loop: bool
    prefetch: bool
    store_cell_residuals: bool


# A block should be large enough for a fast product and small enough for its gates to stay in the
# cache. Measured for H from 128 to 512. Unrolling never helped.
CPU = Tuning(640, 50, 1, project_inputs_in_loop=True, prefetch=True, store_cell_residuals=True)

# Counted in the programs that XLA compiles for an H100 (`python -m bench launches`). An iteration
# of the loop launches one kernel for its counter and one for each array stored, however many steps
# it holds; a block launches some fifteen. Storing the gates splits the elementwise kernel in two,
# recomputing them is one product a block. The pre-activations of a block take
# block_size * G * H * 4 bytes.
GPU = Tuning(8192, 256, 8, project_inputs_in_loop=False, prefetch=False, store_cell_residuals=False)


def tuning(platform: str) -> Tuning:
    """Return the tuning of the scan for a platform."""
    return GPU if platform in ("cuda", "rocm") else CPU


def canonical_name(platform: str) -> str:
    """Return the name that JAX lowers for; "gpu" stands for "cuda".

    Raises:
        ValueError: if JAX has no such platform.
    """
    platform = "cuda" if platform == "gpu" else platform
    _checks.choice("platform", platform, PLATFORMS)
    return platform


_traced_for = jax.make_user_context(None)


def current_platform() -> str:
    """Return the platform of `traced_for`, else of ``jax.default_device``, else JAX's default."""
    if _traced_for.value is not None:
        return _traced_for.value
    device = jax.config.jax_default_device  # pyright: ignore
    name = device if isinstance(device, str) else getattr(device, "platform", None)
    name = name or jax.default_backend()
    return _gpu_platform() if name == "gpu" else name


@functools.cache
def _gpu_platform() -> str:
    version = getattr(jax.devices("gpu")[0].client, "platform_version", "")
    return "rocm" if "rocm" in version.lower() else "cuda"


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Trace for a platform that may not be present, to compile or export for it.

    The platform is part of the key of JAX's caches: a function traced before is traced again.

    Args:
        platform: "cpu", "gpu", "cuda", "rocm" or "tpu"; "gpu" stands for "cuda".

    Raises:
        ValueError: for any other platform.

    Example:
        >>> from jaxrnn.backends.platform import current_platform, traced_for
        >>> with traced_for("gpu"):
        ...     current_platform()
        'cuda'
    """
    with _traced_for(canonical_name(platform)):
        yield


class Kernels(NamedTuple):
    """The kernels of a platform.

    Attributes:
        module: name of their module, imported when first needed.
        portable: if True, a kernel is part of the program and can be exported. Otherwise it is
            machine code of this process.
        computes_gradients: if True, the backward kernel also computes the gradients with respect to
            weights and input. Otherwise it returns those with respect to the gate pre-activations.
        skips_padding: if True, the kernels read no input at padding.
    """

    module: str
    portable: bool
    computes_gradients: bool = False
    skips_padding: bool = False


KERNELS: dict[str, Kernels] = {
    "cpu": Kernels("jaxrnn.backends.cpu", False, computes_gradients=True, skips_padding=True),
    "tpu": Kernels("jaxrnn.backends.tpu", True),
    "cuda": Kernels("jaxrnn.backends.hopper", True),
}
"""The kernels by platform.

A module of kernels defines

.. code-block:: text

    unsupported_reason(cell, dtype, T, N, D, H)     why the kernels cannot run, or None
    unprofitable_reason(cell, dtype, T, N, D, H)    why "auto" should prefer the scan; optional
    run_forward(operands, *, cell, reverse, masked, store_residuals)   as `primitives.forward_p`
    run_backward(operands, *, cell, reverse, masked)

With `computes_gradients`, `run_backward` takes the operands of `primitives.backward_p`, and
`requested` too. Without, its operands are the cotangents of h at each step and of the final state,
W_hh, the states before the first and after each step, the residuals of the cell and the packed
masks; it returns the gradients with respect to the gate pre-activations, (T, N, G*H), and to the
initial state.
"""


def is_portable(platform: str) -> bool:
    """Return True if the kernels of a platform, if any, may be part of an exported program."""
    return platform in KERNELS and KERNELS[platform].portable


def kernel_module(platform: str) -> Any:
    """Return the module of a platform's kernels, or None."""
    kernels = KERNELS.get(platform)
    return kernels and importlib.import_module(kernels.module)
