"""Data types of the benchmark: a suite is a list of cases, a contender is a peer in a case.

Nothing here imports JAX, PyTorch or a peer, so listing suites is quick and works without them.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

BASELINE = "jaxrnn"
"""Denominator of every ratio, contender / baseline: above 1 if the contender is slower."""

UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0, "MB": 1e-6, "launches": 1.0}
"""Factors from stored values (seconds, bytes, counts) to printed units."""


class Unsupported(Exception):
    """A case that a library does not support; the message is the reason in the report."""


@dataclass
class Contender:
    """A peer, built and compiled for one case.

    Attributes:
        run: does the work once and waits for the result, device included.
        compile_s: seconds spent tracing and compiling, if the peer compiles.
        layout: memory layout of the input, if the peer has a choice.
        note: remarks for the report.
        check: returns named relative errors against the case's reference.
        no_check: reason for a missing error, if `check` is None.
        value: measures itself once and returns seconds (or bytes), instead of `run`.
        memory: returns the temporary bytes of a run, beyond arguments and results if it is known.
        backend: the selected backend, if the peer has several.
    """

    run: Callable[[], object] | None = None
    compile_s: float | None = None
    layout: str = ""
    note: str = ""
    check: Callable[[], dict[str, float]] | None = None
    no_check: str = ""
    value: Callable[[], float] | None = None
    memory: Callable[[], float] | None = None
    backend: str = ""


@dataclass(frozen=True)
class Case:
    """A workload: one line of a table.

    Attributes:
        name: unique in its suite; words joined by dashes, which ``--cases`` selects by.
        build: builds the contender of a peer by name, or raises `Unsupported`.
        peers: names of the peers, the baseline first.
        table: title of the table.
        row: label in the table.
        group: cases of one group have a common geometric mean.
        detail: sizes of the case (N, T, D, H, ...).
        flops: floating-point operations of its matrix products, for the fraction of the GEMM peak.
        unit: a key of `UNITS`.
        exact: True if the value does not vary, so that one measurement is enough.
        steps: time steps, for microseconds a step.
        precision: dtype of the products, and True if TF32 is allowed, for the GEMM peak.
        within: context manager around building and running.
        gpu_only: reason to skip the case on a CPU; empty to run it.
    """

    name: str
    build: Callable[[str], Contender]
    peers: tuple[str, ...]
    table: str
    row: str
    group: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    flops: float | None = None
    unit: str = "ms"
    exact: bool = False
    steps: int | None = None
    precision: tuple[str, bool | None] = ("float32", None)
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    gpu_only: str = ""


@dataclass(frozen=True)
class Suite:
    """A named list of cases, the most important first.

    Attributes:
        name: name on the command line.
        about: description of the measurement.
        cases: the cases in the order of their execution.
        quick: patterns of the cases that ``--quick`` runs.
        reps: interleaved rounds per case.
        notes: remarks for the report.
        budget_s: time limit of the suite in seconds; None for no limit. A suite with a limit writes
            a journal and runs in a supervised process (`bench.supervised`).
        case_s: time limit of a case in seconds.
        together: If True, the JAX contenders of a case compile in parallel threads.
    """

    name: str
    about: str
    cases: tuple[Case, ...]
    quick: tuple[str, ...] = ("*",)
    reps: int = 7
    notes: tuple[str, ...] = ()
    budget_s: float | None = None
    case_s: float = 60.0
    together: bool = False


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement.

    Attributes:
        reps: interleaved rounds per case.
        target_s: approximate duration of one measurement.
        patience_s: time limit for repeating disturbed rounds.
        quick: True for ``--quick``.
        deadline: end of the suite (`time.time`); None for no limit.
        case_s: time limit of a case in seconds, if the suite has a deadline.
        together: as in `Suite`.
    """

    reps: int
    target_s: float
    patience_s: float
    quick: bool = False
    deadline: float | None = None
    case_s: float = 60.0
    together: bool = False


def prepare_environment() -> None:
    """Leave GPU memory for the other libraries; call this before the import of JAX."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
