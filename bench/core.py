"""The nouns of the harness: a suite is a list of cases, and a peer enters a case as a contender.

Nothing here imports JAX, PyTorch or a peer, so listing suites is quick and works without them.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

BASELINE = "jaxrnn"
"""What every ratio is taken against: contender / baseline, above 1 if the contender is slower."""

UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0, "MB": 1e-6, "launches": 1.0}
"""What a stored value (seconds, bytes, a count) is multiplied with to be printed in the unit."""


class Unsupported(Exception):
    """Raised by an adapter whose library cannot do a case; the text says why, for the report."""


@dataclass
class Contender:
    """One peer, built and compiled for one case.

    Attributes:
        run: does the work once and returns when it is finished, device included.
        compile_s: seconds spent tracing and compiling, if the peer compiles.
        layout: how the peer's input lies in memory, where there is a choice.
        note: anything a reader must know to judge the figure.
        check: returns named relative errors against the case's reference.
        no_check: why there is no error, if `check` is None.
        value: for cases that measure themselves: runs once, returns seconds (or bytes).
        memory: returns the temporary bytes of a run, beyond arguments and results if it is known.
        backend: which of a peer's several ways ran, where it chose by itself.
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
    """One row of a table.

    Attributes:
        name: unique in its suite; words joined by dashes, which ``--cases`` selects by.
        build: makes the contender of the peer named, or raises `Unsupported`.
        peers: who takes part, the baseline first.
        table: the table that the row belongs to.
        row: the row's label in that table.
        group: rows of one group get their own geometric mean.
        detail: what the case is made of, for the JSON file and the row (N, T, D, H, ...).
        flops: floating-point operations of its matrix products, for the fraction of the GEMM peak.
        unit: a key of `UNITS`.
        exact: the value does not vary, so one measurement is enough.
        steps: time steps, for microseconds a step.
        precision: (dtype, whether TF32 is allowed) of the products, for the GEMM peak.
        within: a context in which all contenders are built and run.
        gpu_only: why the case is too much for a CPU, where it is left out; empty if it is not.
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
        name: as it is called on the command line.
        about: what it measures.
        cases: in the order in which they are run.
        quick: names the cases (patterns) that ``--quick`` keeps.
        reps: interleaved rounds a case.
        notes: what a reader must know.
        budget_s: seconds of wall clock that all of it may take; None for no limit. A suite with a
            limit writes a journal and runs in a process that is watched (`bench.supervised`).
        case_s: seconds that one case may take of them.
        together: whether JAX's contenders of a case are compiled beside each other, in threads.
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
    """How long to measure.

    Attributes:
        reps: interleaved rounds a case.
        target_s: about how long one measurement lasts.
        patience_s: how long a case may go on repeating disturbed rounds.
        quick: whether this is the short form, for the report.
        deadline: when all must be done (`time.time`); None for no limit.
        case_s: seconds that one case may take where there is a deadline.
        together: as of the suite.
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
