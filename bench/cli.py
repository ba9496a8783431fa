"""The command line: which suites, cases and peers, and where the results go."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from bench.core import BASELINE, Case, Settings, Suite
from bench.peers import PEERS
from bench.suites import DEFAULT, SUITES

EPILOG = """\
examples:
  python -m bench                                  the whole `layers` suite
  python -m bench --quick                          its small sizes, under two minutes
  python -m bench layers stacks --peers torch      two suites, jaxrnn beside PyTorch only
  python -m bench layers --cases lstm-small,gru    cases by name, by words of it or by pattern

Each suite writes NAME.json, NAME.md and NAME.png, the first two anew after every case. A peer that
is not installed is left out, and the report says so, and --quick leaves out those that compile for
seconds a case unless --peers names them. Ratios are taken pair by pair within rounds.
"""


class Wrong(Exception):
    """A request that cannot be met; its text is shown as one line."""


class Parser(argparse.ArgumentParser):
    """argparse without the usage lines before an error."""

    def error(self, message: str) -> NoReturn:
        raise Wrong(message)


def parser() -> argparse.ArgumentParser:
    """The arguments of ``python -m bench``."""
    p = Parser(
        prog="python -m bench",
        description="Times jaxrnn's recurrent layers beside other libraries', in paired rounds.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    p.add_argument("suites", nargs="*", metavar="suite", help=f"{', '.join(SUITES)}, or all")
    p.add_argument("--quick", action="store_true", help="few small cases, short measurements")
    p.add_argument("--list", action="store_true", help="show suites, cases and peers, and stop")
    p.add_argument("--peers", metavar="A,B", help="only these peers (jaxrnn is always in)")
    p.add_argument("--cases", metavar="X,Y", help="only cases that match one of these")
    p.add_argument("--reps", type=int, metavar="N", help="rounds a case (7; 3 with --quick)")
    p.add_argument("--out", type=Path, metavar="DIR", help="default bench/results/DATE-SUITES")
    p.add_argument("--markdown", action="store_true", help="print the Markdown report to stdout")
    return p


def unknown(kind: str, name: str, known: Sequence[str]) -> Wrong:
    """The error for a name that does not exist."""
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
    return Wrong(f"unknown {kind} {name!r}; {hint}")


def split(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def matches(name: str, pattern: str) -> bool:
    """Whether a case is meant by a pattern: the name, its beginning, words of it, or a wildcard.

    >>> [matches("lstm-small-forward", p) for p in ("lstm-small", "small", "*-forward", "lst")]
    [True, True, True, False]
    """
    return f"-{pattern}-" in f"-{name}-" or fnmatchcase(name, pattern)


def choose_suites(words: Sequence[str]) -> list[Suite]:
    """Suites by name; none means the default one."""
    if "all" in words:
        return list(SUITES.values())
    for word in words:
        if word not in SUITES:
            raise unknown("suite", word, [*SUITES, "all"])
    return [SUITES[word] for word in dict.fromkeys(words or [DEFAULT])]


def choose_peers(text: str | None, suites: Sequence[Suite], quick: bool) -> list[str]:
    """Names of contenders; the baseline is always one of them."""
    known = list(dict.fromkeys(n for s in suites for case in s.cases for n in case.peers))
    if text is None:
        slow = {name for name, entry in PEERS.items() if entry.slow_to_build}
        return [name for name in known if not (quick and name in slow)]
    wanted = split(text)
    for name in wanted:
        if name not in known:
            raise unknown("peer", name, known)
    return [name for name in known if name in wanted or name == BASELINE]


def choose_cases(suites: Sequence[Suite], text: str | None, quick: bool) -> dict[str, list[Case]]:
    """The cases to run of each suite, by its name."""
    patterns = None if text is None else split(text)
    chosen: dict[str, list[Case]] = {}
    for suite in suites:
        wanted = suite.quick if patterns is None and quick else patterns or ("*",)
        chosen[suite.name] = [c for c in suite.cases if any(matches(c.name, p) for p in wanted)]
    names = [case.name for suite in suites for case in suite.cases]
    for pattern in patterns or []:
        if not any(matches(name, pattern) for name in names):
            raise unknown("case", pattern, names)
    return {name: cases for name, cases in chosen.items() if cases}


def for_backend(cases: Sequence[Case], backend: str) -> tuple[list[Case], list[str]]:
    """The cases that run on this backend, and a line on those that do not for each reason."""
    if backend != "cpu":
        return list(cases), []
    reasons = Counter(case.gpu_only for case in cases if case.gpu_only)
    return [case for case in cases if not case.gpu_only], [
        f"{count} of {len(cases)} cases, which need a GPU ({reason})"
        for reason, count in reasons.items()
    ]


def show_list(suites: Sequence[Suite]) -> None:
    """What there is."""
    installed = [f"{n}{'' if p.installed else ' (not installed)'}" for n, p in PEERS.items()]
    print("peers:", ", ".join(installed))
    for suite in suites:
        print(f"\n{suite.name}: {suite.about}")
        for case in suite.cases:
            kept = any(matches(case.name, pattern) for pattern in suite.quick)
            marks = ("  [quick]" if kept else "") + ("  [GPU]" if case.gpu_only else "")
            print(f"  {case.name}{marks}")


def output_folder(wanted: Path | None, suites: Sequence[str], quick: bool) -> Path:
    """Makes the folder for the results."""
    if wanted is None:
        stamp = datetime.now().strftime("%Y-%m-%d-%H%M")
        name = "-".join([stamp, *suites] + (["quick"] if quick else []))
        wanted = Path(__file__).parent / "results" / name
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        (wanted / ".writable").touch()
        (wanted / ".writable").unlink()
    except OSError as error:
        raise Wrong(f"cannot write to {wanted}: {error.strerror or error}") from error
    return wanted


def prepare_environment() -> None:
    """Before JAX is imported: on a GPU, leave memory for the other libraries."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def run(args: argparse.Namespace) -> int:
    """Runs what was asked for."""
    suites = choose_suites(args.suites)
    if args.list:
        show_list(suites if args.suites else list(SUITES.values()))
        return 0
    if args.reps is not None and args.reps < 1:
        raise Wrong(f"--reps must be at least 1, got {args.reps}")
    peers = choose_peers(args.peers, suites, args.quick)
    chosen = choose_cases(suites, args.cases, args.quick)
    folder = output_folder(args.out, list(chosen), args.quick)
    prepare_environment()

    from bench import machine, picture, report, runner

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.markdown else sys.stdout, flush=True)

    for suite in (SUITES[name] for name in chosen):
        reps = args.reps or (min(3, suite.reps) if args.quick else suite.reps)
        target_s, patience_s = (0.02, 2.0) if args.quick else (0.075, 60.0)
        settings = Settings(reps, target_s, patience_s, args.quick)
        cases, left_out = for_backend(chosen[suite.name], machine.backend())
        everyone = dict.fromkeys(name for case in cases for name in case.peers)
        not_asked = [name for name in everyone if name not in peers]
        if not_asked:
            why = "not asked for" if args.peers else "compiles for seconds a case, not in --quick"
            left_out.append(f"{', '.join(not_asked)} ({why})")
        if not cases:
            say(f"{suite.name}: nothing to run; left out: {'; '.join(left_out)}")
            continue
        peak = machine.gemm_peak() if any(case.flops for case in cases) else None
        data: dict[str, Any] = {
            "suite": suite.name,
            "about": suite.about,
            "header": machine.describe_machine(),
            "settings": asdict(settings),
            "peak": peak,
            "notes": list(suite.notes),
            "left_out": left_out,
            "records": [],
        }

        def finished(records: list[dict[str, Any]], data: dict[str, Any] = data) -> None:
            data["records"] = records
            data["header"] |= machine.describe_end()
            report.write(data, folder)

        flops = peak["flops"] if peak else None
        try:
            runner.run_suite(suite, cases, peers, settings, flops, finished, say)
        finally:
            if data["records"]:
                picture.draw(data, folder / f"{suite.name}.png")
        if args.markdown:
            print(report.markdown(data))
        say(f"written: {folder / suite.name}.json, .md, .png")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 for a run, 2 for a request that cannot be met, 130 or 141 if cut short."""
    try:
        return run(parser().parse_args(argv))
    except Wrong as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; what was measured is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # The reader of the output (head, less) has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
