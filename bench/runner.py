"""Execution of a suite: build the contenders of each case, measure them in rounds, report."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from time import perf_counter
from typing import Any

from bench.core import BASELINE, UNITS, Case, Contender, Settings, Suite, Unsupported
from bench.journal import TOGETHER, Journal, Watch, left_alone, read
from bench.machine import usable_cores
from bench.peers import PEERS
from bench.summary import record
from bench.supervised import POISONED, poisoned
from bench.timing import describe, interleave, summarise

Record = dict[str, Any]

LATE = "the time for the case was over"

ROUNDS = 0.15
"""Minimum fraction of the time of a case for its rounds."""


def build_together(
    case: Case, names: Sequence[str], watch: Watch, limit_s: float | None
) -> dict[str, Future[Contender]]:
    """Build contenders in parallel threads.

    XLA's compiler releases the GIL, and times its candidates one program at a time within a
    process. After `limit_s` only the first contender starts.
    """
    start = perf_counter()

    def build(name: str) -> Contender:
        if name != names[0] and limit_s is not None and perf_counter() - start > limit_s:
            raise Unsupported(LATE)
        with case.within():  # its JAX settings are local to the thread
            return case.build(name)

    begun = {"event": "begin", "peer": TOGETHER, "what": "build"}
    watch(begun)
    with ThreadPoolExecutor(usable_cores()) as pool:
        futures = {name: pool.submit(build, name) for name in names}
        for _ in as_completed(futures.values()):
            watch(begun)  # a sign of life
    return futures


def build_all(
    case: Case,
    peers: Sequence[str],
    watch: Watch = lambda event: None,
    lost: Mapping[str, str] | None = None,
    limit_s: float | None = None,
    together: bool = False,
) -> tuple[dict[str, Contender], dict[str, Record]]:
    """Build the contenders of a case, and return them with an entry for every peer.

    A failure is recorded in the entry and affects no other peer. `lost` are peers that lost a
    process before. After `limit_s` only the first contender is built. With `together`, those of JAX
    compile in parallel after the others, unless a process was lost while they did.
    """
    contenders: dict[str, Contender] = {}
    entries: dict[str, Record] = {}
    start, lost = perf_counter(), lost or {}
    built: dict[str, Future[Contender]] = {}
    asked = [name for name in case.peers if name in peers]
    entries |= {n: {"status": "failed", "reason": lost[n]} for n in asked if n in lost}
    order = [name for name in asked if name not in lost]
    if together and TOGETHER not in lost:
        order.sort(key=compiles_by_jax)
    else:
        together = False
    for name in order:
        if together and compiles_by_jax(name) and not built:
            built = build_together(case, order[order.index(name) :], watch, limit_s)
        late = limit_s is not None and perf_counter() - start > limit_s
        if late and name != order[0] and name not in built:
            entries[name] = {"status": "left out", "reason": LATE}
            continue
        watch({"event": "begin", "peer": name, "what": "build"})
        try:
            contender = built[name].result() if name in built else case.build(name)
            error, why = None, contender.no_check
            if contender.check is not None:
                error = contender.check()
            memory = None if contender.memory is None else contender.memory()
        except Unsupported as reason:
            entries[name] = {"status": "left out", "reason": str(reason)}
        except Exception as failure:
            entries[name] = {"status": "failed", "reason": describe(failure)}
        else:
            contenders[name] = contender
            entries[name] = {
                "status": "ok",
                "compile_s": contender.compile_s,
                "layout": contender.layout,
                "note": contender.note,
                "backend": contender.backend,
                "error": error,
                "no_error": why,
                "temporary_bytes": memory,
            }
        watch({"event": "built", "peer": name, "entry": entries[name]})
        if entries[name]["status"] == "failed":
            watch({"event": "failed", "peer": name, "reason": entries[name]["reason"]})
    return {n: contenders[n] for n in asked if n in contenders}, {n: entries[n] for n in asked}


def compiles_by_jax(name: str) -> bool:
    """Return True for a contender of a JAX library.

    >>> [compiles_by_jax(name) for name in ("jaxrnn+bins", "keras", "torch", "16 units")]
    [True, True, False, False]
    """
    entry = PEERS.get(name.split("+")[0])
    return entry is not None and entry.uses_jax


def run_case(
    case: Case,
    peers: Sequence[str],
    settings: Settings,
    peak: float | None,
    watch: Watch = lambda event: None,
    lost: Mapping[str, str] | None = None,
) -> Record:
    """Run a case, and return its record. Values are seconds (bytes for unit MB)."""
    start, limit_s = perf_counter(), None
    if settings.deadline is not None:
        limit_s = max(0.0, min(settings.case_s, settings.deadline - time.time()))

    def left(part: float) -> float | None:
        """Return the remaining seconds of a fraction of the time limit."""
        return None if limit_s is None else part * limit_s - (perf_counter() - start)

    with case.within():
        contenders, entries = build_all(case, peers, watch, lost, left(0.75), settings.together)
        reps = 1 if case.exact else settings.reps
        patience_s = 0.0 if case.exact else settings.patience_s
        rounds_s = left(1.0)
        if rounds_s is not None and settings.deadline is not None:
            # A contender that compiled for long is measured nevertheless, if time remains.
            least_s = min(ROUNDS * settings.case_s, settings.deadline - time.time())
            rounds_s = max(rounds_s, least_s)
        measured = interleave(
            contenders, reps, settings.target_s, patience_s, limit_s=rounds_s, watch=watch
        )
    for name, reason in measured.failed.items():
        entries[name] |= {"status": "failed", "reason": reason}
    for name, numbers in summarise(measured.samples).items():
        entries[name] |= numbers | {"calls": measured.calls[name]}
    return record(case, entries, measured.rounds, measured.others_cores, peak)


def line(record: Record) -> str:
    """Return a finished case as one line of progress."""
    scale, parts = UNITS[record["unit"]], []
    for name, entry in record["peers"].items():
        if entry["status"] == "ok":
            text = f"{name} {entry['min'] * scale:.3g}"
            if name != BASELINE and "ratio" in entry:
                text += f" ({entry['ratio']:.2f}x)"
            parts.append(text)
        elif entry["status"] == "failed":
            parts.append(f"{name} FAILED")
    disturbed = " (disturbed by other processes)" if record["disturbed"] else ""
    return f"{record['case']} [{record['unit']}]: " + ", ".join(parts) + disturbed


def run_suite(
    suite: Suite,
    cases: Sequence[Case],
    peers: Sequence[str],
    settings: Settings,
    peak: Callable[[Case], float | None],
    finished: Callable[[list[Record]], None],
    say: Callable[[str], None],
    journal: Journal | None = None,
) -> list[Record]:
    """Run all cases in order, and call `finished` after each with the records so far.

    Cases in the journal are not measured again; new measurements are added to it. No case starts
    after the deadline.
    """
    events = read(journal.path) if journal and journal.path.exists() else []
    records: list[Record] = [event["record"] for event in events if event["event"] == "case"]
    done = {record["case"] for record in records}
    for number, case in enumerate(cases, 1):
        if case.name in done:
            continue
        if settings.deadline is not None and time.time() >= settings.deadline:
            break

        def watch(event: Record, case: Case = case) -> None:
            if journal is None:
                return
            journal.write(event | {"case": case.name})
            if event["event"] == "failed" and poisoned(event["reason"]):
                raise SystemExit(POISONED)  # a new process continues without it

        record = run_case(case, peers, settings, peak(case), watch, left_alone(events, case.name))
        records.append(record)
        watch({"event": "case", "record": record})
        say(f"{suite.name} {number}/{len(cases)} {line(record)}")
        finished(records)
        gc.collect()  # free compiled programs and buffers
    return records
