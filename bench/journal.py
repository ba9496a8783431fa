"""Journal of a run: JSON lines, written to disk before the next measurement starts.

A run that is killed leaves all its measurements:

- ``report``: the report without its records, at the start and after each update;
- ``imported``: import of a library, before the first case;
- ``begin``: start of building or measuring a contender;
- ``built``: entry of a contender with compile time, errors and memory, or its reason;
- ``failed``: reason of a failure of a contender;
- ``round``: seconds of each contender in one round;
- ``case``: complete record of a case;
- ``lost``: end of the measuring process, with reason, case and contender.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.core import Case
from bench.machine import product
from bench.peers import OURS
from bench.report import finite
from bench.summary import record
from bench.timing import summarise

Event = dict[str, Any]
Watch = Callable[[Event], None]

TOGETHER = "all at once"
"""Name of the contenders of a case that build in parallel."""


class Journal:
    """A file of events; each is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: Event) -> None:
        line = json.dumps(finite(event), allow_nan=False) + "\n"
        with self.path.open("a+b", buffering=0) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = (
                    line if file.read(1) == b"\n" else "\n" + line
                )  # The last line is incomplete.
            file.write(line.encode())
            os.fsync(file.fileno())


def read(path: Path) -> list[Event]:
    """Return the events of a journal, without incomplete lines."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def lost(events: list[Event], case: str) -> dict[str, str]:
    """Return the contenders of a case that lost a process, with the reasons."""
    found = [e for e in events if e["event"] == "lost" and e["case"] == case]
    return {event["peer"]: event["reason"] for event in found if event["peer"]}


def left_alone(events: list[Event], case: str) -> dict[str, str]:
    """Return the contenders that a case skips, with the reasons.

    They lost a process in this case, or are backends of jaxrnn that lost one in another case: a
    deadlock occurs at every size and costs a minute each time.
    """
    found = [e for e in events if e["event"] == "lost" and e["peer"] in OURS]
    before = {e["peer"]: f"lost in {e['case']} before: {e['reason']}" for e in found}
    return before | lost(events, case)


def records(
    events: list[Event],
    cases: dict[str, Case],
    peers: Iterable[str] = (),
    peaks: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return the records of all started cases in order, complete or partial.

    `peers` are the selected peers, `peaks` the GEMM peaks by `machine.product`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(event["case"] for event in events if event.get("case")):
        own = [event for event in events if event.get("case") == name]
        whole = [event["record"] for event in own if event["event"] == "case"]
        if whole:
            found[name] = whole[-1]
        elif name in cases:
            peak = (peaks or {}).get(product(*cases[name].precision))
            found[name] = unfinished(cases[name], own, peers, peak)
    return list(found.values())


def unfinished(
    case: Case, events: list[Event], peers: Iterable[str] = (), peak: float | None = None
) -> dict[str, Any]:
    """Return the record of an interrupted case from its entries and rounds."""
    entries = {event["peer"]: event["entry"] for event in events if event["event"] == "built"}
    reasons = {e["peer"]: e["reason"] for e in events if e["event"] == "failed"}
    for name, reason in (reasons | lost(events, case.name)).items():
        if name != TOGETHER:
            entries[name] = {"status": "failed", "reason": reason}
    for name in case.peers:
        if name in peers and name not in entries:
            entries[name] = {"status": "left out", "reason": "the run ended before it was built"}
    measured = [event for event in events if event["event"] == "round"]
    rounds, calls = [event["seconds"] for event in measured], {}
    for event in measured:
        calls |= event.get("calls", {})
    names = [name for name, entry in entries.items() if entry["status"] == "ok"]
    full = [seconds for seconds in rounds if all(name in seconds for name in names)]
    samples = {name: [seconds[name] for seconds in full] for name in names} if full else {}
    for name in names:
        if name not in samples:
            entries[name] = {"status": "failed", "reason": "the run ended before it was measured"}
    for name, numbers in summarise(samples).items():
        entries[name] |= numbers | {"calls": calls.get(name, 1)}
    return record(case, entries, len(full), None, peak)
