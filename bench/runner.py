"""Runs one suite: builds the contenders of a case, times them together, writes, goes on."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

from bench.core import BASELINE, UNITS, Case, Contender, Settings, Suite, Unsupported
from bench.peers import OURS
from bench.timing import busy_cores, describe, interleave, summarise

Record = dict[str, Any]


def build_all(case: Case, peers: Sequence[str]) -> tuple[dict[str, Contender], dict[str, Record]]:
    """Contenders that could be built, and an entry for every peer, with why the others could not.

    One peer's failure is its own: it is recorded and the rest go on.
    """
    contenders: dict[str, Contender] = {}
    entries: dict[str, Record] = {}
    for name in case.peers:
        if name not in peers:
            continue
        try:
            contender = case.build(name)
            error, why = None, contender.no_check
            if contender.check is not None:
                error = contender.check()
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
                "error": error,
                "no_error": why,
            }
    return contenders, entries


def run_case(case: Case, peers: Sequence[str], settings: Settings, peak: float | None) -> Record:
    """One case as a plain record, ready for JSON. Values are seconds (bytes for unit MB)."""
    contenders, entries = build_all(case, peers)
    reps = 1 if case.exact else settings.reps
    patience_s = 0.0 if case.exact else settings.patience_s
    measured = interleave(contenders, reps, settings.target_s, patience_s)
    for name, reason in measured.failed.items():
        entries[name] |= {"status": "failed", "reason": reason}
    for name, numbers in summarise(measured.samples).items():
        entries[name] |= numbers | {"calls": measured.calls[name]}
        if case.flops and peak:
            entries[name]["gemm_fraction"] = case.flops / numbers["min"] / peak
    times = {name: e["min"] for name, e in entries.items() if e["status"] == "ok"}
    others = {name: e for name, e in entries.items() if name not in (BASELINE, *OURS)}
    ratios = [e["ratio"] for e in others.values() if "ratio" in e]
    return {
        "case": case.name,
        "table": case.table,
        "row": case.row,
        "group": case.group,
        "detail": case.detail,
        "unit": case.unit,
        "flops": case.flops,
        "rounds_measured": measured.rounds,
        "others_cores": measured.others_cores,
        "disturbed": (measured.others_cores or 0.0) >= busy_cores(),
        "peers": entries,
        "fastest": min(times, key=lambda name: times[name]) if times else None,
        "baseline_fastest": bool(ratios) and all(ratio >= 1 for ratio in ratios),
    }


def line(record: Record) -> str:
    """A finished case as one line of progress."""
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
    peak: float | None,
    finished: Callable[[list[Record]], None],
    say: Callable[[str], None],
) -> list[Record]:
    """All cases in order. `finished` is called after each with the records so far."""
    records: list[Record] = []
    for number, case in enumerate(cases, 1):
        record = run_case(case, peers, settings, peak)
        records.append(record)
        say(f"{suite.name} {number}/{len(cases)} {line(record)}")
        finished(records)
        gc.collect()  # Compiled programs and buffers of this case: not a burden on the next.
    return records
