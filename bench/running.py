"""Execution of suites, in this process or in a supervised one with a time limit."""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.core import Case, Settings, Suite, prepare_environment
from bench.peers import PEERS
from bench.suites import SUITES


class Wrong(Exception):
    """An invalid request; the message is printed in one line."""


def for_backend(cases: Sequence[Case], backend: str) -> tuple[list[Case], list[str]]:
    """Return the cases that run on a platform, and the reasons for skipping others."""
    if backend != "cpu":
        return list(cases), []
    reasons = Counter(case.gpu_only for case in cases if case.gpu_only)
    return [case for case in cases if not case.gpu_only], [
        f"{count} of {len(cases)} cases, which need a GPU ({reason})"
        for reason, count in reasons.items()
    ]


def settings_of(suite: Suite, args: argparse.Namespace, deadline: float | None) -> Settings:
    """Return the settings of the measurement."""
    reps = args.reps or (min(3, suite.reps) if args.quick else suite.reps)
    target_s, patience_s = (0.02, 2.0) if args.quick else (0.075, 60.0)
    if deadline is not None:
        patience_s = 0.0
    return Settings(
        *(reps, target_s, patience_s, args.quick, deadline, suite.case_s, suite.together)
    )


def import_peers(names: Sequence[str], imported: Callable[[str], None]) -> None:
    """Import the libraries, so that their imports are in no measurement."""
    for name in names:
        if name in PEERS:
            with suppress(Exception):  # reported when the peer is built
                PEERS[name].load()
            imported(name)


def measure(
    suite: Suite,
    cases: Sequence[Case],
    peers: Sequence[str],
    args: argparse.Namespace,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Run the cases of a suite in this process, and return the report; None without cases."""
    prepare_environment()

    from bench import ahead, machine, picture, report, runner
    from bench.journal import Journal
    from bench.precision import stated
    from bench.supervised import end_with_parent
    from bench.timing import describe

    journal = None if args.worker is None else Journal(folder / f"{suite.name}.jsonl")
    settings = settings_of(suite, args, args.worker)
    selected, left_out = for_backend(cases, machine.backend())
    everyone = dict.fromkeys(name for case in selected for name in case.peers)
    not_selected = [name for name in everyone if name not in peers]
    if not_selected:
        why = "not selected" if args.peers else "compiles for seconds a case, not in --quick"
        left_out.append(f"{', '.join(not_selected)} ({why})")
    if not selected:
        say(f"{suite.name}: nothing to run; left out: {'; '.join(left_out)}")
        return None
    peaks: dict[Any, dict[str, Any]] = {}
    data: dict[str, Any] = {
        "suite": suite.name,
        "about": suite.about,
        "header": machine.describe_machine() | {"defaults": stated()},
        "settings": asdict(settings),
        "cases": [case.name for case in selected],
        "peers": list(peers),
        "peak": [],
        "notes": [*suite.notes, *([ahead.NOTE] if args.ahead else [])],
        "left_out": left_out,
        "records": [],
    }

    def note() -> None:
        if journal:
            journal.write({"event": "report", "report": data | {"records": []}})

    def peak(case: Case) -> float | None:
        if not case.flops:
            return None
        if case.precision not in peaks:
            dtype, tf32 = case.precision
            size = 1024 if args.quick and dtype != "float32" else None
            try:
                peaks[case.precision] = machine.gemm_peak(dtype=dtype, tf32=tf32, size=size)
            except Exception as error:  # the product may not fit into memory
                peaks[case.precision] = {}
                data["notes"].append(f"No GEMM peak in {dtype}: {describe(error)}")
            data["peak"] = [found for found in peaks.values() if found]
            note()
        return peaks[case.precision].get("flops")

    def finished(records: list[dict[str, Any]]) -> None:
        data["records"] = records
        data["header"] |= machine.describe_end() | {"defaults": stated()}
        note()
        report.write(data, folder)

    note()
    if journal:
        end_with_parent()
        libraries = [name for name in everyone if name in peers]
        import_peers(libraries, lambda name: journal.write({"event": "imported", "library": name}))
    try:
        runner.run_suite(suite, selected, peers, settings, peak, finished, say, journal)
    finally:
        if data["records"]:
            picture.draw(data, folder / f"{suite.name}.png")
    return data


def supervise(
    suite: Suite,
    cases: Sequence[Case],
    peers: Sequence[str],
    args: argparse.Namespace,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Run a suite with a time limit in a supervised process, and return the report."""
    from bench import ahead
    from bench.supervised import supervise as watched

    budget = args.budget or suite.budget_s or 0.0
    path = folder / f"{suite.name}.jsonl"
    if path.exists() and not args.resume:
        raise Wrong(f"{path} is of another run; name another folder, or go on with it by --resume")
    deadline = time.time() + budget
    command = [sys.executable, "-m", "bench", suite.name, "--out", str(folder)]
    command += ["--worker", repr(deadline)] + ["--quick"] * args.quick
    command += ["--cases", ",".join(case.name for case in cases)]
    for name in ("peers", "reps", "ahead"):
        if getattr(args, name):
            command += [f"--{name}", str(getattr(args, name))]
    # The last call may end after the deadline; then the process is stopped.
    silence_s = max(60.0, 1.5 * suite.case_s)
    with tempfile.TemporaryDirectory() as cache:
        env = None
        if args.ahead:
            env = os.environ | ahead.environment(cache)
            ahead.build_ahead(suite, cases, peers, cache, time.time() + args.ahead, say)
        stop = deadline + min(15.0, 0.1 * budget)
        try:
            done = watched(command, path, stop, silence_s, say, env=env)
        except KeyboardInterrupt:
            if path.exists():
                recovered(path, folder, "interrupted")
            raise
    why = None if done else f"not reached within {budget:g} s"
    data = recovered(path, folder, why) if path.exists() else None
    if data is None or not data["records"]:
        raise Wrong(f"{suite.name}: nothing was measured")
    return data


def recovered(path: Path, folder: Path, why: str | None = None) -> dict[str, Any] | None:
    """Write and return the report of a journal; None if it is empty."""
    from bench import picture, report
    from bench.journal import read, records

    try:
        events = read(path)
        reports = [event["report"] for event in events if event["event"] == "report"]
        if not reports:
            return None
        data = reports[-1]
        known = {case.name: case for case in SUITES[data["suite"]].cases}
        peaks = {found["precision"]: found["flops"] for found in data["peak"]}
        data["records"] = records(events, known, data.get("peers", ()), peaks)
        found = {record["case"] for record in data["records"]}
        missing = [name for name in data["cases"] if name not in found]
        if missing:
            why = why or "not reached"
            data["left_out"].append(f"{len(missing)} cases, {why}: {', '.join(missing)}")
    except OSError:
        raise
    except Exception as error:  # a damaged or foreign file
        words = f"{type(error).__name__}: {error}"
        raise Wrong(f"{path} is no journal of a run, or damaged: {words}") from error
    report.write(data, folder)
    if data["records"]:
        picture.draw(data, folder / f"{data['suite']}.png")
    return data
