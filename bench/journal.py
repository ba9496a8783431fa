"""What a run measured, line by line, each on the disk before the next measurement begins.

A journal is a file of JSON lines, so a run that is killed leaves all that it had measured:

- ``report``: the report without its records, when the run begins and when it knows more;
- ``begin``: a contender is about to be built or measured, so that it is known who never returned;
- ``built``: a contender's entry, compile time, errors and memory included, or why there is none;
- ``failed``: why a contender left the case;
- ``round``: the seconds of each contender in one round;
- ``case``: the whole record of a case;
- ``lost``: why the process that measured was lost, and in which case and contender.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.core import Case
from bench.report import finite
from bench.timing import summarise

Event = dict[str, Any]
Watch = Callable[[Event], None]


class Journal:
    """Appends events to a file; each is on the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: Event) -> None:
        line = json.dumps(finite(event), allow_nan=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> list[Event]:
    """The events of a journal; a last line that was cut off is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events


def lost(events: list[Event], case: str) -> dict[str, str]:
    """The contenders of a case with which the process was lost, and why."""
    found = [e for e in events if e["event"] == "lost" and e["case"] == case]
    return {event["peer"]: event["reason"] for event in found if event["peer"]}


def records(events: list[Event], cases: dict[str, Case]) -> list[dict[str, Any]]:
    """The record of each case that was begun, in order: whole, or as far as it had come."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(event["case"] for event in events if event.get("case")):
        own = [event for event in events if event.get("case") == name]
        whole = [event["record"] for event in own if event["event"] == "case"]
        if whole:
            found[name] = whole[-1]
        elif name in cases:
            found[name] = unfinished(cases[name], own)
    return list(found.values())


def unfinished(case: Case, events: list[Event]) -> dict[str, Any]:
    """The record of a case from its entries and the rounds that were measured."""
    from bench.runner import record

    entries = {event["peer"]: event["entry"] for event in events if event["event"] == "built"}
    reasons = {e["peer"]: e["reason"] for e in events if e["event"] == "failed"}
    for name, reason in (reasons | lost(events, case.name)).items():
        entries[name] = {"status": "failed", "reason": reason}
    rounds = [event["seconds"] for event in events if event["event"] == "round"]
    names = [name for name, entry in entries.items() if entry["status"] == "ok"]
    full = [seconds for seconds in rounds if all(name in seconds for name in names)]
    samples = {name: [seconds[name] for seconds in full] for name in names} if full else {}
    for name in names:
        if name not in samples:
            entries[name] = {"status": "failed", "reason": "the run ended before it was measured"}
    for name, numbers in summarise(samples).items():
        entries[name] |= numbers | {"calls": 1}
    return record(case, entries, rounds=len(full), others_cores=None)
