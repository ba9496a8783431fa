"""The command ``jaxrnn``: the experiments, data of one's own; one line for what is wrong."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax

import jaxrnn
from jaxrnn.examples import NAMES

RUNS = {**NAMES, "all": "jaxrnn.examples.every"}
"""What ``jaxrnn run`` has, by name: the experiments, and all of them."""

COMMANDS = {
    "forecast": "jaxrnn.forecasting.command",
    "predict": "jaxrnn.forecasting.predicting",
    "chars": "jaxrnn.text.command",
}
"""The commands for data of one's own: modules with `Settings` and `main`, as experiments are."""


def summary(module: ModuleType) -> str:
    """The first line of a module's text."""
    return (module.__doc__ or "").strip().splitlines()[0]


def add_options(parser: argparse.ArgumentParser, settings: Any) -> None:
    """An option for each field of a settings dataclass: its type, default and help.

    A field that is True or False is a flag, off by default; one whose metadata has `positional`
    is an argument without a name, which may be left out.
    """
    for item in dataclasses.fields(settings):
        default, name = item.default, f"--{item.name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(name, action="store_true", help=item.metadata["help"])
            continue
        text = item.metadata["help"] + ("" if default == "" else f" (default: {default})")
        text = text.replace("%", "%%")
        if item.metadata.get("positional"):
            name = item.name.upper()
            parser.add_argument(item.name, nargs="?", default=default, metavar=name, help=text)
            continue
        parser.add_argument(
            name,
            type=type(default),
            default=default,
            choices=item.metadata.get("choices"),
            metavar=None if "choices" in item.metadata else item.name.upper(),
            help=text,
        )


def add_modules(commands: Any, modules: dict[str, str], wanted: Sequence[str]) -> None:
    """A parser for each module; only those that are `wanted` are imported."""
    for name, path in modules.items():
        if name not in wanted:
            commands.add_parser(name)
            continue
        module = importlib.import_module(path)
        one = commands.add_parser(
            name,
            help=summary(module),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(one, module.Settings)
        one.set_defaults(module=module, prog=one.prog)


def build_parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the modules that are `wanted` are imported."""
    parser = argparse.ArgumentParser(
        prog="jaxrnn",
        description="PyTorch's recurrent layers for JAX: experiments to run, data of one's own.",
    )
    parser.add_argument("--version", action="version", version=f"jaxrnn {jaxrnn.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="the experiments, a line each")
    run = commands.add_parser(
        "run",
        help="run an experiment, or all",
        description="Run an experiment: it prints its results and saves its figure.",
        epilog="'jaxrnn run NAME --help' shows the options of one.",
    )
    names = run.add_subparsers(dest="name", metavar="NAME", required=True)
    add_modules(names, RUNS, wanted)
    add_modules(commands, COMMANDS, wanted)
    return parser


def check_memory(settings: Any) -> None:
    """Whether a model of these sizes can be in this machine's memory at all.

    Where the weights can't be allocated XLA ends the process, without a word of ours.

    Raises:
        ValueError: if its recurrent weights, as few as a cell has, their gradient and Adam's two
            numbers for each are more than there is.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        return
    names = [n for n in ("hidden", "hidden_size", "layers", "embedding") if hasattr(settings, n)]
    sizes = {name: getattr(settings, name) for name in names}
    hidden = sizes.get("hidden", sizes.get("hidden_size", 1))
    least = 4 * 4 * hidden * (sizes.get("layers", 1) * hidden + sizes.get("embedding", 0))
    if least > memory:
        shown = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise ValueError(
            f"{shown}: training takes more than {least // 2**30} GiB, the machine has "
            f"{memory // 2**30}"
        )


def run(arguments: Sequence[str]) -> int:
    """Run the command; the exit status."""
    known = {**RUNS, **COMMANDS}
    named = [word for word in arguments[:2] if word in known]
    parser = build_parser(named or list(known))
    options = parser.parse_args(arguments)
    if options.command == "list":
        for name, path in NAMES.items():
            print(f"{name:<10}{summary(importlib.import_module(path))}")
        return 0
    kind = options.module.Settings
    try:
        values = {f.name: getattr(options, f.name) for f in dataclasses.fields(kind)}
        settings = kind(**values)
        check_memory(settings)
        options.module.main(settings)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ArithmeticError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return fail(options.prog, error)
    return 0


def fail(prog: str, error: Exception) -> int:
    """Say in one line what is wrong; the exit status for it."""
    line = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    print(f"{prog}: error: {line}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0; 2 with one line on standard error; 130 after Ctrl-C; 141 if nobody reads
        what is printed any more.
    """
    out: Any = sys.stdout
    try:
        if isinstance(out, io.TextIOWrapper):  # a letter that a terminal has not is no error
            out.reconfigure(errors="backslashreplace")
        try:
            return run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            if out:  # it may be closed
                out.flush()
    except KeyboardInterrupt:
        print("jaxrnn: interrupted", file=sys.stderr, flush=True)
        if arguments is None:  # or JAX would wait for what it is computing
            os._exit(130)
        return 130
    except OSError as error:  # of what is printed
        with contextlib.suppress(OSError, AttributeError):  # or Python tells of it again at its end
            number = out.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        return 141 if isinstance(error, BrokenPipeError) else fail("jaxrnn", error)
