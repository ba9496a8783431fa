"""Reports of a suite in Markdown and JSON, rewritten after each case."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.core import BASELINE, UNITS
from bench.summary import behind, collected, contenders, disturbed, notes, summarise_suite

Record = dict[str, Any]


def number(value: float | None) -> str:
    """Format a number with three significant digits.

    >>> number(0.03124), number(12.345), number(1234.6), number(None)
    ('0.0312', '12.3', '1235', '')
    """
    if value is None or not math.isfinite(value):
        return "" if value is None else str(value)
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the first column left-aligned, the others right-aligned.

    >>> print(table(["case", "ms"], [["sine", "1.0"]]))
    | case | ms |
    |:---|---:|
    | sine | 1.0 |
    """
    lines = ["| " + " | ".join(header) + " |", "|:---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def capital(text: str) -> str:
    """Return a text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def legend(records: list[Record]) -> str:
    """Return the legend of a table."""
    entries = [entry for record in records for entry in record["peers"].values()]
    words = [
        f"Each cell: {records[0]['unit']}, the minimum over the rounds, the best of a row in bold",
        "how many times as much as jaxrnn, the median over the rounds of the ratio within a round",
    ]
    if any(entry.get("error") for entry in entries):
        words.append("the largest error relative to a float64 reference")
    if any("us_a_step" in entry for entry in entries):
        words.insert(1, "microseconds a step")
    if any("gemm_fraction" in entry for entry in entries):
        words.append("the fraction of the GEMM peak is jaxrnn's")
    return "; ".join(words) + "."


def worst_error(entry: Record) -> str:
    """Return the largest error of a contender, or the reason for a missing one."""
    if entry.get("error"):
        return f"{max(entry['error'].values()):.0e}"
    return entry.get("no_error", "")


def cell(entry: Record | None, unit: str, best: bool) -> str:
    """Return the cell of a contender in a case."""
    if entry is None:
        return ""
    if entry["status"] != "ok":
        return "—" if entry["status"] == "left out" else "failed"
    value = number(entry["min"] * UNITS[unit])
    parts = [f"**{value}**" if best else value]
    if "us_a_step" in entry:
        parts.append(f"{number(entry['us_a_step'])} us")
    if "ratio" in entry:
        parts.append(f"{entry['ratio']:.2f}x")
    error = worst_error(entry)
    return " · ".join([*parts, error] if error else parts)


def main_table(records: list[Record]) -> str:
    """Return the table of cases by contenders."""
    unit = records[0]["unit"]
    ran = [
        name
        for name in contenders(records)
        if any(record["peers"].get(name, {}).get("status") != "left out" for record in records)
    ]
    axes = list(dict.fromkeys(axis for record in records for axis in record["detail"]))
    has_fraction = any("gemm_fraction" in e for r in records for e in r["peers"].values())
    header = ["case", *([", ".join(axes)] if axes else []), *ran]
    header += ["jaxrnn fastest"] + (["of GEMM peak"] if has_fraction else [])
    rows = []
    for record in records:
        peers = record["peers"]
        row = [record["row"] + (" (disturbed)" if record["disturbed"] else "")]
        if axes:
            row.append(", ".join(str(record["detail"].get(axis, "")) for axis in axes))
        row += [cell(peers.get(name), unit, name == record["fastest"]) for name in ran]
        compared = any("ratio" in e for n, e in peers.items() if n != BASELINE)
        row.append(("yes" if record["baseline_fastest"] else "no") if compared else "")
        if has_fraction:
            fraction = peers.get(BASELINE, {}).get("gemm_fraction")
            row.append("" if fraction is None else f"{100 * fraction:.0f} %")
        rows.append(row)
    return table(header, rows)


def means_table(records: list[Record]) -> str:
    """Return the table of the geometric means of the ratios."""
    rows = summarise_suite(records)
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    lines = []
    for row in rows:
        line = [f"{row['table']}, {row['group']}", str(row["cases"])]
        for name in names:
            mean = row["peers"].get(name)
            fewer = mean and mean["cases"] < row["cases"]
            text = f"{mean['ratio']:.2f}" if mean else ""
            line.append(text + (f" ({mean['cases']})" if fewer else ""))
        line.append("" if row["best_jax"] is None else f"{row['best_jax']:.2f}")
        lines.append([*line, f"{row['fastest']} of {row['cases']}"])
    return table(["over", "cases", *names, "best JAX peer", "jaxrnn fastest"], lines)


def details_table(records: list[Record]) -> str:
    """Return the table of the details of each contender in each case."""
    rows = []
    for record in records:
        scale = UNITS[record["unit"]]
        for name, e in record["peers"].items():
            if e["status"] != "ok":
                continue
            error = e["error"] or {}
            rows.append(
                [
                    record["case"],
                    name,
                    number(e["min"] * scale),
                    number(e["median"] * scale),
                    number(e.get("ratio")),
                    number(e.get("ratio_min")),
                    f"{len(e['samples'])} x {e['calls']}",
                    number(e["compile_s"]),
                    ", ".join(f"{key} {value:.1e}" for key, value in error.items())
                    or e["no_error"],
                    f"{100 * e['gemm_fraction']:.0f} %" if "gemm_fraction" in e else "",
                    number(megabytes(e)),
                    e["layout"],
                    e.get("backend", ""),
                ]
            )
    header = ["case", "peer", "min", "median", "ratio", "ratio of minima", "rounds x calls"]
    header += ["compile s", "errors", "of GEMM peak", "temporary MB", "layout", "backend"]
    shown = [i for i, name in enumerate(header) if name != "backend" or any(row[i] for row in rows)]
    return table([header[i] for i in shown], [[row[i] for i in shown] for row in rows])


def megabytes(entry: Record) -> float | None:
    """Return the temporary memory of a contender in MB, if known."""
    found = entry.get("temporary_bytes")
    return None if found is None or not math.isfinite(float(found)) else 1e-6 * float(found)


def header_lines(report: Record) -> list[str]:
    """Return machine, versions, flags and method, one line each."""
    h, settings = report["header"], report["settings"]
    devices = ", ".join(h["devices"])
    lines = [
        f"{h['date']}" + (f", commit {h['commit']}" if h["commit"] else "") + f", `{h['command']}`",
        f"Machine: {h['cpu']}, {h['cores']} cores; JAX on {h['backend']} ({devices}); "
        f"{h['system']}; load {h['load_at_start']} at the start",
        "Versions: " + ", ".join(f"{name} {v}" for name, v in h["versions"].items()),
        "Flags: " + (", ".join(f"`{k}={v}`" for k, v in h["flags"].items()) or "none"),
        f"Method: {settings['reps']} interleaved rounds, a measurement "
        f"about {settings['target_s'] * 1e3:.0f} ms, all contenders compiled beforehand; rounds "
        "during which other processes took a core were repeated"
        + (", `--quick`" if settings["quick"] else ""),
    ]
    lines += [f"GPU: {text}" for text in h.get("gpu", [])]
    if h.get("cuda"):
        lines.append("CUDA: " + ", ".join(f"{name} {v}" for name, v in h["cuda"].items()))
    if h.get("defaults"):
        lines.append("Defaults: " + ", ".join(f"`{k}={v}`" for k, v in h["defaults"].items()))
    peaks = report["peak"] or []
    for peak in [peaks] if isinstance(peaks, dict) else peaks:
        size, what = peak["size"], peak.get("precision", "float32")
        gflops = peak["flops"] / 1e9
        lines.append(f"GEMM peak: {gflops:.0f} GFLOP/s ({size} x {size} {what} through JAX)")
    return lines


def markdown(report: Record) -> str:
    """Return the report in Markdown."""
    records = report["records"]
    parts = [f"# Bench: {report['suite']}", f"{capital(report['about'])}."]
    listing = header_lines(report)
    shared = disturbed(records)
    if shared:
        listing.append(
            "**Disturbed, not to be cited and in no mean** (cores that other processes used): "
            + ", ".join(shared)
        )
    for title, lines in (
        ("Left out", [*report["left_out"], *collected(records, "left out")]),
        ("Failed", collected(records, "failed")),
        ("Notes", [*report["notes"], *notes(records)]),
    ):
        listing += [f"{title}: {line}" for line in lines]
    parts.append("\n".join(f"- {line}" for line in listing))
    for name in dict.fromkeys(record["table"] for record in records):
        inside = [record for record in records if record["table"] == name]
        parts += [f"## {capital(name)}", legend(inside), main_table(inside)]
    means = means_table(records)
    if means:
        parts += ["## Geometric means of the ratios", "Above 1: jaxrnn is ahead.", means]
    slower = behind(records)
    if slower:
        parts += ["jaxrnn was behind in:", "\n".join(f"- {line}" for line in slower)]
    parts += ["## Details", details_table(records)]
    return "\n\n".join(parts) + "\n"


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by strings."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write(report: Record, folder: Path) -> None:
    """Write ``<suite>.json`` and ``<suite>.md`` atomically."""
    data = {"schema": 1, **report, "means": summarise_suite(report["records"])}
    for suffix, text in (
        ("json", json.dumps(finite(data), indent=1, allow_nan=False) + "\n"),
        ("md", markdown(report)),
    ):
        path = folder / f"{report['suite']}.{suffix}"
        unfinished = path.with_suffix(f".{suffix}.part")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
