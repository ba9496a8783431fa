"""What a run measured, line by line, each on the disk before the next measurement begins.

A journal is a file of JSON lines, so a run that is killed leaves all that it had measured:

- ``report``: the report without its records, when the run begins and when it knows more;
- ``imported``: a library, before the first case;
- ``begin``: a contender is about to be built or measured, so that it is known who never returned;
- ``built``: a contender's entry, compile time, errors and memory included, or why there is none;
- ``failed``: why a contender left the case;
- ``round``: the seconds of each contender in one round;
- ``case``: the whole record of a case;
- ``lost``: why the process that measured was lost, and in which case and contender.
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
"""Who is begun while the contenders of a case are built beside each other."""


class Journal:
    """Appends events to a file; each is on the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: Event) -> None:
        line = json.dumps(finite(event), allow_nan=False) + "\n"
        with self.path.open("a+b", buffering=0) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line  # One was cut off here.
            file.write(line.encode())
            os.fsync(file.fileno())


def read(path: Path) -> list[Event]:
    """The events of a journal; a line that is none, as a last one that was cut off, is left out."""
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
    """Those begun in a case with whom the process was lost, and why."""
    found = [e for e in events if e["event"] == "lost" and e["case"] == case]
    return {event["peer"]: event["reason"] for event in found if event["peer"]}


def left_alone(events: list[Event], case: str) -> dict[str, str]:
    """Who is not begun again in a case, and why.

    With whom a process was lost in it, and those of ours with whom one was lost in another: a
    backend that waits for itself does so at every size, and each time takes a minute.
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
    """The record of each case that was begun, in order: whole, or as far as it had come.

    `peers` are those that were to be in them, `peaks` those of products by `machine.product`.
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
    """The record of a case from its entries and the rounds that were measured."""
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
