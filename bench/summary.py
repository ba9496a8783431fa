"""Summary of a suite: geometric means, fastest contenders, skipped contenders."""

from collections.abc import Iterable
from typing import Any

from bench.core import BASELINE, Case
from bench.peers import OURS, PEERS
from bench.timing import busy_cores, geometric_mean

Record = dict[str, Any]


def record(
    case: Case,
    entries: dict[str, Record],
    rounds: int,
    others_cores: float | None,
    peak: float | None = None,
) -> Record:
    """Return the record of a case from the entries of its contenders."""
    for entry in entries.values():
        if "min" not in entry:
            continue
        if case.flops and peak:
            entry["gemm_fraction"] = case.flops / entry["min"] / peak
        if case.steps:
            entry["us_a_step"] = 1e6 * entry["min"] / case.steps
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
        "steps": case.steps,
        "precision": case.precision,
        "rounds_measured": rounds,
        "others_cores": others_cores,
        "disturbed": (others_cores or 0.0) >= busy_cores(),
        "peers": entries,
        "fastest": min(times, key=lambda name: times[name]) if times else None,
        "baseline_fastest": bool(ratios) and all(ratio >= 1 for ratio in ratios),
    }


def ratios(record: Record) -> dict[str, float]:
    """Return the ratios of a case by contender, without the baseline."""
    return {
        name: entry["ratio"]
        for name, entry in record["peers"].items()
        if name != BASELINE and "ratio" in entry
    }


def best_jax(record: Record) -> float | None:
    """Return the smallest ratio among the JAX peers."""
    jax_peers = [name for name, entry in PEERS.items() if entry.uses_jax and not entry.ours]
    found = [ratio for name, ratio in ratios(record).items() if name in jax_peers]
    return min(found) if found else None


def contenders(records: Iterable[Record]) -> list[str]:
    """Return all contenders, in order of first appearance."""
    return list(dict.fromkeys(name for record in records for name in record["peers"]))


def means(records: list[Record]) -> Record:
    """Return geometric means of the ratios, and the number of cases with the baseline fastest.

    Disturbed cases do not count.
    """
    judged = [record for record in records if ratios(record) and not record["disturbed"]]
    by_peer = {}
    for name in contenders(judged):
        found = [ratios(record)[name] for record in judged if name in ratios(record)]
        if found:
            by_peer[name] = {"ratio": geometric_mean(found), "cases": len(found)}
    best = [ratio for record in judged if (ratio := best_jax(record)) is not None]
    return {
        "cases": len(judged),
        "peers": by_peer,
        "best_jax": geometric_mean(best) if best else None,
        "fastest": sum(record["baseline_fastest"] for record in judged),
    }


def summarise_suite(records: list[Record]) -> list[Record]:
    """Return the means of each table, over all its cases and over each group."""
    rows = []
    for table in dict.fromkeys(record["table"] for record in records):
        inside = [record for record in records if record["table"] == table]
        groups = list(dict.fromkeys(record["group"] for record in inside))
        rows.append({"table": table, "group": "all", **means(inside)})
        if len(groups) > 1:
            for group in groups:
                part = [record for record in inside if record["group"] == group]
                rows.append({"table": table, "group": group, **means(part)})
    return [row for row in rows if row["cases"]]


def behind(records: list[Record]) -> list[str]:
    """Return the cases in which a contender was faster than the baseline, with the ratios."""
    lines = []
    for record in records:
        if record["disturbed"]:
            continue
        ahead = sorted((r, name) for name, r in ratios(record).items() if r < 1)
        if ahead:
            who = ", ".join(f"{name} {ratio:.3f}x" for ratio, name in ahead)
            lines.append(f"{record['case']}: {who}")
    return lines


def place(cases: list[str], records: list[Record]) -> str:
    """Return the shortest description of some cases among all; empty for all of them.

    >>> records = [{"case": f"{g}-{t}", "table": t, "group": g} for g in "ab" for t in "xy"]
    >>> place(["a-x", "b-x"], records), place(["a-x", "b-y"], records)
    (' in x', ' in a-x, b-y')
    """
    if len(cases) == len(records):
        return ""
    for key in ("table", "group"):
        names = dict.fromkeys(record[key] for record in records if record["case"] in cases)
        if all(names) and sum(record[key] in names for record in records) == len(cases):
            return f" in {', '.join(names)}"
    return f" in {', '.join(cases)}"


def collected(records: list[Record], status: str) -> list[str]:
    """Return skipped or failed contenders, with reasons and cases."""
    where: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, entry in record["peers"].items():
            if entry["status"] == status:
                where.setdefault((name, entry["reason"]), []).append(record["case"])
    who: dict[tuple[str, str], list[str]] = {}
    for (name, reason), cases in where.items():
        suffix = place(cases, records)
        who.setdefault((reason, suffix), []).append(name)
    return [f"{', '.join(names)} ({reason}){suffix}" for (reason, suffix), names in who.items()]


def disturbed(records: list[Record]) -> list[str]:
    """Return the cases disturbed by other processes."""
    return [
        f"{record['case']} ({record['others_cores']:.1f})"
        for record in records
        if record["disturbed"]
    ]


def notes(records: list[Record]) -> list[str]:
    """Return the notes on peers, each once, with their groups unless they concern all."""
    about: dict[tuple[str, str], dict[str, None]] = {}
    groups: dict[str, set[str]] = {}
    for record in records:
        for name, entry in record["peers"].items():
            groups.setdefault(name, set()).add(record["group"])
            if entry.get("note"):
                about.setdefault((name, entry["note"]), {})[record["group"]] = None
    lines = []
    for (name, note), where in about.items():
        label = name if groups[name] == set(where) else f"{name} {', '.join(where)}"
        lines.append(f"{label}: {note}")
    return lines
