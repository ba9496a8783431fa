"""Who runs the loop of a recurrence.

| backend | cells | platforms | dtypes | derivatives |
|---|---|---|---|---|
| scan | all | all | all floating | all |
| kernel | of gates, elementwise, see below | CPU, with llvmlite | float32, float64 | all |
| parallel | linear in the state (`LinearCell`) | all | all floating | all |

A kernel serves cells without a projection, without parameters of their own and with a recurrent
matrix. "auto", the default, takes the parallel form of a cell that has one, the kernel where it can
serve and pays, and else the scan. All compute
the same to rounding. The kernel's own derivatives are those of reverse mode once; what goes beyond,
and what is under `jax.vmap` with weights of its own, is done by the scans that define it.

A kernel is code of this machine: in a program for `jax.export`, or one that XLA is to split among
devices, the scan stands in its place.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxrnn import checks, native
from jaxrnn.blocks import known
from jaxrnn.cells import Cell, LinearCell

CHOICES = ("auto", "scan", "kernel", "parallel")


def check(backend: str) -> None:
    """Refuse a backend that does not exist.

    Raises:
        ValueError: naming the choices.
    """
    checks.choice("backend", backend, CHOICES)


def choose(backend: str, cell: Any, weights: Any, x: Any, *, all_states: bool = False) -> str:
    """The backend of a run: "scan", "kernel" or "parallel".

    Args:
        backend: one of `CHOICES`.
        cell: the cell.
        weights: `jaxrnn.recurrence.Weights`.
        x: (T, N, D).
        all_states: whether all states are given out.

    Raises:
        ValueError: where "kernel" or "parallel" is asked for and can't serve: why.
    """
    if backend == "scan":
        return "scan"
    if backend == "parallel" or (backend == "auto" and isinstance(cell, LinearCell)):
        reason = _why_not_parallel(cell, x)
        if backend == "parallel" and reason is not None:
            raise ValueError(f'backend="parallel" can\'t serve here: {reason}')
        return "scan" if reason else "parallel"
    reason = _why_no_kernel(cell, weights, x, all_states)
    if backend == "kernel" and reason is not None:
        raise ValueError(f'backend="kernel" can\'t serve here: {reason}')
    if reason is None and backend == "auto" and _too_short(weights, x):
        return "scan"
    return "scan" if reason else "kernel"


def _too_short(weights: Any, x: Any) -> bool:
    """Whether a kernel would take longer to put large weights in order than to use them.

    Measured on two cores: at H 128 and 512 the scan is ahead below some 32 rows in all, up to ten
    times for a single one; at H 32 hardly ever.
    """
    large = weights.weight_ih.size + weights.weight_hh.size > 1 << 14
    return large and x.shape[0] * x.shape[1] < 32


def _why_not_parallel(cell: Any, x: Any) -> str | None:
    if not isinstance(cell, LinearCell):
        return f"{type(cell).__name__} is not linear in its state, as a LinearCell is"
    return None if known(x.shape[0]) else f"the steps should be a number, got {x.shape[0]}"


def _why_no_kernel(cell: Any, weights: Any, x: Any, all_states: bool) -> str | None:
    if jax.default_backend() != "cpu":
        return f"there is none for {jax.default_backend()}"
    if not isinstance(cell, Cell):
        return f"{type(cell).__name__} is no cell of gates"
    if not cell.recurrent:
        return f"{type(cell).__name__} has no recurrent matrix"
    if cell.parameters:
        return f"{type(cell).__name__} has parameters of its own"
    if all_states:
        return "it does not give out all states"
    if weights.weight_hr is not None:
        return "it does not project h"
    if not known(*x.shape) or 0 in x.shape:
        return f"the sizes should be numbers above 0, got {x.shape}"
    return native.why_not(cell, x.dtype)
