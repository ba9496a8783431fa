"""Command line of the benchmark: suites, cases, peers, time budget and output folder."""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from bench.core import BASELINE, Case, Suite
from bench.peers import PEERS
from bench.running import Wrong, measure, recovered, supervise
from bench.suites import DEFAULT, SUITES

EPILOG = """\
examples:
  python -m bench                                  the whole `layers` suite
  python -m bench --quick                          its small sizes, under two minutes
  python -m bench layers stacks --peers torch      two suites, jaxrnn beside PyTorch only
  python -m bench layers --cases lstm-small,gru    cases by name, by words of it or by pattern
  python -m bench gpu --out DIR                    the GPU's suite, at most eight minutes
  python -m bench --journal DIR/gpu.jsonl          the report of a run that was killed

Each suite writes NAME.json, NAME.md and NAME.png, the first two anew after every case. A peer that
is not installed is left out, and the report says so, and --quick leaves out those that compile for
seconds a case unless --peers names them. Ratios are taken pair by pair within rounds.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors have no usage lines."""

    def error(self, message: str) -> NoReturn:
        raise Wrong(message)


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m bench``."""
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
    p.add_argument(
        "--budget", type=float, metavar="S", help="seconds that a suite may take (480 for gpu)"
    )
    p.add_argument(
        *("--ahead",),
        type=float,
        metavar="S",
        help="at most this part of the budget for parallel compilation",
    )
    p.add_argument("--resume", action="store_true", help="continue the run in the folder")
    p.add_argument(
        "--journal", type=Path, metavar="FILE", help="write the report of an interrupted run"
    )
    p.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    p.add_argument("--markdown", action="store_true", help="print the Markdown report to stdout")
    return p


def unknown(kind: str, name: str, known: Sequence[str]) -> Wrong:
    """Return the error of an unknown name, with the closest known one."""
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
    return Wrong(f"unknown {kind} {name!r}; {hint}")


def split(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def matches(name: str, pattern: str) -> bool:
    """Return True if a pattern matches a case: words of its name, or a wildcard.

    >>> [matches("lstm-small-forward", p) for p in ("lstm-small", "small", "*-forward", "lst")]
    [True, True, True, False]
    """
    return f"-{pattern}-" in f"-{name}-" or fnmatchcase(name, pattern)


def choose_suites(words: Sequence[str]) -> list[Suite]:
    """Return the suites with the given names, or the default suite."""
    if "all" in words:
        return list(SUITES.values())
    for word in words:
        if word not in SUITES:
            raise unknown("suite", word, [*SUITES, "all"])
    return [SUITES[word] for word in dict.fromkeys(words or [DEFAULT])]


def choose_peers(text: str | None, suites: Sequence[Suite], quick: bool) -> list[str]:
    """Return the names of the selected peers; the baseline is always selected."""
    known = list(dict.fromkeys(n for s in suites for case in s.cases for n in case.peers))
    if text is None:
        slow = {name for name, entry in PEERS.items() if entry.slow_to_build}
        return [name for name in known if not (quick and name in slow)]
    selected = split(text)
    for name in selected:
        if name not in known:
            raise unknown("peer", name, known)
    return [name for name in known if name in selected or name == BASELINE]


def choose_cases(suites: Sequence[Suite], text: str | None, quick: bool) -> dict[str, list[Case]]:
    """Return the selected cases of each suite, by the name of the suite."""
    patterns = None if text is None else split(text)
    chosen: dict[str, list[Case]] = {}
    for suite in suites:
        selected = suite.quick if patterns is None and quick else patterns or ("*",)
        chosen[suite.name] = [c for c in suite.cases if any(matches(c.name, p) for p in selected)]
    names = [case.name for suite in suites for case in suite.cases]
    for pattern in patterns or []:
        if not any(matches(name, pattern) for name in names):
            raise unknown("case", pattern, names)
    return {name: cases for name, cases in chosen.items() if cases}


def show_list(suites: Sequence[Suite]) -> None:
    """Print suites, cases and peers."""
    installed = [f"{n}{'' if p.installed else ' (not installed)'}" for n, p in PEERS.items()]
    print("peers:", ", ".join(installed))
    for suite in suites:
        print(f"\n{suite.name}: {suite.about}")
        for case in suite.cases:
            quick = any(matches(case.name, pattern) for pattern in suite.quick)
            marks = ("  [quick]" if quick else "") + ("  [GPU]" if case.gpu_only else "")
            print(f"  {case.name}{marks}")


def output_folder(folder: Path | None, suites: Sequence[str], quick: bool) -> Path:
    """Create the folder of the results."""
    if folder is None:
        stamp = datetime.now().strftime("%Y-%m-%d-%H%M")
        name = "-".join([stamp, *suites] + (["quick"] if quick else []))
        folder = Path(__file__).parent / "results" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise Wrong(f"cannot write to {folder}: {error.strerror or error}") from error
    return folder


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.markdown else sys.stdout, flush=True)

    if args.journal is not None:
        if not args.journal.is_file():
            raise Wrong(f"there is no journal {args.journal}")
        folder = output_folder(args.out or args.journal.parent, [], False)
        data = recovered(args.journal, folder)
        if data is None:
            raise Wrong(f"{args.journal} holds nothing that was measured")
        say(f"written: {folder / data['suite']}.json, .md, .png")
        return 0
    suites = choose_suites(args.suites)
    if args.list:
        show_list(suites if args.suites else list(SUITES.values()))
        return 0
    for name in ("reps", "budget", "ahead"):
        value = getattr(args, name)
        if value is not None and not value >= 1:  # Nor NaN.
            raise Wrong(f"--{name} must be at least 1, got {value:g}")
    peers = choose_peers(args.peers, suites, args.quick)
    chosen = choose_cases(suites, args.cases, args.quick)
    if not chosen:
        names = ", ".join(suite.name for suite in suites)
        raise Wrong(f"--quick keeps no case of {names}; leave it out, or name --cases")
    folder = output_folder(args.out, list(chosen), args.quick)

    from bench import report

    for suite in (SUITES[name] for name in chosen):
        if args.worker is None and (args.budget or suite.budget_s):
            data = supervise(suite, chosen[suite.name], peers, args, folder, say)
        else:
            data = measure(suite, chosen[suite.name], peers, args, folder, say)
        if data is None or args.worker is not None:
            continue
        if args.markdown:
            print(report.markdown(data))
        say(f"written: {folder / suite.name}.json, .md, .png")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0 for success, 2 for an error, 130 or 141 if interrupted."""
    try:
        return run(parser().parse_args(argv))
    except Wrong as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; the measurements so far are saved", file=sys.stderr)
        return 130
    except BrokenPipeError:  # The reader of the output (head, less) has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # A disk that is full, say.
        print(f"bench: {error}", file=sys.stderr)
        return 2
