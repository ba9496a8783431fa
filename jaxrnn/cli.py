"""The command line interface ``jaxrnn``: examples, and models of CSV and text files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

import jaxrnn
from jaxrnn.examples import NAMES

_EXAMPLES = {**NAMES, "all": "jaxrnn.examples.every"}
"""Modules of ``jaxrnn run``, each with a dataclass `Settings` and a function `main`."""

_COMMANDS = {
    "forecast": "jaxrnn.forecasting.command:Forecast",
    "predict": "jaxrnn.forecasting.command:Predict",
    "chars": "jaxrnn.text.command:Chars",
}
"""The other commands: dataclasses with a method `run`."""


def _resolve(path: str) -> tuple[Any, Any, str]:
    """Return the options of a command as a dataclass, the function that runs it, and its help."""
    name, _, command = path.partition(":")
    module = importlib.import_module(name)
    if command:
        kind = getattr(module, command)
        return kind, kind.run, inspect.getdoc(kind) or ""
    return module.Settings, module.main, module.__doc__ or ""


def _add_options(parser: argparse.ArgumentParser, settings: Any) -> None:
    """Add an option for each field of a dataclass, with its type, default and help.

    Boolean fields are flags. Fields with `positional` in their metadata are optional positional
    arguments.
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


def _add_commands(parsers: Any, commands: dict[str, str], used: Sequence[str]) -> None:
    """Add a parser for each command; only the modules of `used` commands are imported."""
    for name, path in commands.items():
        if name not in used:
            parsers.add_parser(name)
            continue
        settings, main, text = _resolve(path)
        parser = parsers.add_parser(
            name,
            help=text.strip().splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_options(parser, settings)
        parser.set_defaults(settings=settings, main=main, prog=parser.prog)


def _parser(used: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; only the modules of `used` commands are imported."""
    parser = argparse.ArgumentParser(
        prog="jaxrnn", description="PyTorch's recurrent layers for JAX, on the command line."
    )
    parser.add_argument("--version", action="version", version=f"jaxrnn {jaxrnn.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="list the examples")
    run = commands.add_parser(
        "run",
        help="run an example, or all of them",
        description="Run an example: print its results and save its figure.",
        epilog="'jaxrnn run NAME --help' lists the options of an example.",
    )
    names = run.add_subparsers(dest="name", metavar="NAME", required=True)
    _add_commands(names, _EXAMPLES, used)
    _add_commands(commands, _COMMANDS, used)
    return parser


def _check_memory(settings: Any) -> None:
    """Check that this machine's memory holds the recurrent weights, gradients and Adam's state.

    XLA aborts the process where it cannot allocate the weights.

    Raises:
        ValueError: if a lower bound of their size exceeds the memory.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the platform does not report it
        return
    names = [n for n in ("hidden", "hidden_size", "layers", "embedding") if hasattr(settings, n)]
    sizes = {name: getattr(settings, name) for name in names}
    hidden = sizes.get("hidden", sizes.get("hidden_size", 1))
    required = 4 * 4 * hidden * (sizes.get("layers", 1) * hidden + sizes.get("embedding", 0))
    if required > memory:
        shown = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise ValueError(
            f"{shown}: training requires more than {required // 2**30} GiB of memory, the machine "
            f"has {memory // 2**30} GiB"
        )


def _run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status."""
    known = {**_EXAMPLES, **_COMMANDS}
    named = [word for word in arguments[:2] if word in known]
    options = _parser(named or list(known)).parse_args(arguments)
    if options.command == "list":
        for name, path in NAMES.items():
            print(f"{name:<10}{_resolve(path)[2].strip().splitlines()[0]}")
        return 0
    try:
        fields = dataclasses.fields(options.settings)
        settings = options.settings(**{f.name: getattr(options, f.name) for f in fields})
        _check_memory(settings)
        options.main(settings)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ArithmeticError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return _fail(options.prog, error)
    return 0


def _fail(prog: str, error: Exception) -> int:
    """Print an error in one line and return the exit status."""
    line = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    print(f"{prog}: error: {line}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line interface.

    Args:
        arguments: command line arguments. Defaults to those of the process.

    Returns:
        The exit status: 0; 2 after an error, with one line on standard error; 130 after Ctrl-C;
        141 if the reader of standard output is gone.
    """
    out: Any = sys.stdout
    try:
        if isinstance(out, io.TextIOWrapper):  # escape characters that the terminal can't encode
            out.reconfigure(errors="backslashreplace")
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            if out:  # None if closed
                out.flush()
    except KeyboardInterrupt:
        print("jaxrnn: interrupted", file=sys.stderr, flush=True)
        if arguments is None:  # JAX would wait for running computations at exit
            os._exit(130)
        return 130
    except OSError as error:  # of standard output
        with contextlib.suppress(OSError, AttributeError):  # no second error when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return 141 if isinstance(error, BrokenPipeError) else _fail("jaxrnn", error)
