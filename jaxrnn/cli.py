"""The command line interface ``jaxrnn``: examples, and models of CSV and text files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax

import jaxrnn
from jaxrnn.examples import EXAMPLES

_EXAMPLES = {name: example.function for name, example in EXAMPLES.items()}
_EXAMPLES["all"] = "jaxrnn.examples.run_all:main"
"""Functions of ``jaxrnn run``; their keyword arguments are the options."""

_COMMANDS = {
    "forecast": "jaxrnn.forecasting.command:forecast",
    "predict": "jaxrnn.forecasting.command:predict",
    "chars": "jaxrnn.text.command:chars",
}
"""Functions of the other commands."""


def argument_descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Return the descriptions of arguments in a docstring, and of those with ``Annotated`` types.

    Example:
        >>> from jaxrnn.examples import sine
        >>> argument_descriptions(sine.main)["lr"]
        'learning rate of Adam'
    """
    _, _, section = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    section = re.split(r"\n\S", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    hints = get_type_hints(function, include_extras=True)
    annotated = {
        name: item
        for name, hint in hints.items()
        for item in getattr(hint, "__metadata__", ())
        if isinstance(item, str)
    }
    return annotated | {name: " ".join(text.split()).removesuffix(".") for name, text in entries}


def _add_options(parser: argparse.ArgumentParser, command: Callable[..., Any]) -> None:
    """Add an option for each argument of a command, and for each field of a dataclass argument.

    Arguments that need no keyword are positional, but optional. Boolean arguments are flags.
    """
    hints, descriptions = get_type_hints(command), argument_descriptions(command)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, default = hints[name], parameter.default
        if dataclasses.is_dataclass(kind):
            _add_options(parser, kind)  # pyright: ignore[reportArgumentType]
            continue
        option, text = f"--{name.replace('_', '-')}", descriptions[name].replace("%", "%%")
        if isinstance(default, bool):
            parser.add_argument(option, action="store_true", help=text)
            continue
        shared: Any = {"default": default, "help": text}
        if default != "":
            shared["help"] += f" (default: {default})"
        if parameter.kind == parameter.POSITIONAL_OR_KEYWORD:
            parser.add_argument(name, nargs="?", metavar=name.upper(), **shared)
        elif get_origin(kind) is Literal:
            parser.add_argument(option, choices=get_args(kind), **shared)
        else:
            parser.add_argument(option, type=kind, metavar=name.upper(), **shared)


def _execute(command: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check the values of the options, and run the command.

    Checks are annotations of the arguments, ``Annotated[type, check]``, called as
    ``check(name, value)``, or in the constructor of a dataclass.
    """
    arguments = {}
    for name, kind in get_type_hints(command, include_extras=True).items():
        if dataclasses.is_dataclass(kind):
            fields = dataclasses.fields(kind)
            arguments[name] = kind(**{field.name: values[field.name] for field in fields})  # pyright: ignore
        elif name != "return":
            for check in filter(callable, getattr(kind, "__metadata__", ())):
                check(name, values[name])
            arguments[name] = values[name]
    _check_memory(values)
    command(**arguments)


def _without_markup(text: str) -> str:
    """Return a docstring without the markup of its equations, which remain in LaTeX."""
    return re.sub(r":math:`([^`]*)`", r"\1", text.replace(".. math::\n\n", ""))


def _add_commands(parsers: Any, commands: dict[str, str], used: Sequence[str]) -> None:
    """Add a parser for each command; only the modules of `used` commands are imported."""
    for name, path in commands.items():
        if name not in used:
            parsers.add_parser(name)
            continue
        command: Any = resolve_name(path)
        text = (inspect.getdoc(command) or "").partition("\nArgs:\n")[0].strip()
        if "\n" not in text:  # the module has the long description
            description = inspect.getdoc(inspect.getmodule(command)) or text
        else:
            description = text
        parser = parsers.add_parser(
            name,
            help=text.splitlines()[0],
            description=_without_markup(description).replace("%", "%%"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_options(parser, command)
        parser.set_defaults(path=path, prog=parser.prog)


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


def _check_memory(values: Mapping[str, Any]) -> None:
    """Check that this machine's memory holds the recurrent weights, gradients and Adam's state.

    XLA aborts the process where it cannot allocate the weights.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the platform does not report it
        return
    names = ("hidden", "hidden_size", "layers", "embedding")
    sizes = {name: values[name] for name in names if name in values}
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
        for name, example in EXAMPLES.items():
            text = inspect.getdoc(resolve_name(example.function)) or ""
            print(f"{name:<10}{text.splitlines()[0]}")
        return 0
    try:
        _execute(resolve_name(options.path), vars(options))
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
