"""Data flows one way: nothing imports what is above it, and the pure functions do without Flax.
The README's map tells the truth.

Imports are read from the source. Those inside of functions are left out: what is imported late, a
platform's kernels or an optional library, is no part of what a file is built on.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(jaxrnn.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when a file is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield from statements(child)


@cache
def imported(name: str) -> frozenset[str]:
    """The files of the package that one imports, and the libraries beside them."""
    found = set()
    for statement in statements(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        module = statement.module if isinstance(statement, ast.ImportFrom) else ""
        for alias in statement.names:
            path = f"{module}.{alias.name}" if module else alias.name
            while path.startswith("jaxrnn") and path not in FILES:
                path = path.rpartition(".")[0]
            found.add(path if path in FILES else path.partition(".")[0])
    return frozenset(found - {name})


def below(name: str) -> set[str]:
    """All that a file is built on."""
    seen, ahead = set(), [name]
    while ahead:
        for one in imported(ahead.pop()) - seen:
            seen.add(one)
            ahead += [one] if one in FILES else []
    return seen


def test_no_file_is_built_on_itself() -> None:
    assert len(FILES) > 100
    assert [name for name in FILES if name in below(name)] == []


def test_data_flow_one_way_from_the_layers_to_the_cells() -> None:
    """And so, by the test above, none of these knows those before it."""
    way = ("layers", "recurrent", "stack", "backends", "weight_arrays", "cells", "cells.protocol")
    for above, name in itertools.pairwise(way):
        assert f"jaxrnn.{name}" in below(f"jaxrnn.{above}")
    assert {"jaxrnn.recurrence", "jaxrnn.backends"} <= below("jaxrnn.stack")


@pytest.mark.parametrize("name", ["cells", "recurrence", "stack"])
def test_the_pure_functions_do_without_flax(name: str) -> None:
    assert "jax" in below(f"jaxrnn.{name}")
    assert "flax" not in below(f"jaxrnn.{name}")


def test_kernels_know_nothing_of_layers() -> None:
    kernels = [name for name in FILES if name.startswith(("jaxrnn.kernels.", "jaxrnn.native"))]
    assert len(kernels) > 20
    for name in kernels:
        assert not below(name) & {"flax", "jaxrnn.recurrence", "jaxrnn.stack"}, name


def test_the_map_in_the_readme_has_every_file_and_no_other() -> None:
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    left = " ".join(re.findall(r"^\| (`jaxrnn/[^|]*) \|", readme, re.MULTILINE))
    named = re.findall(r"`(?:jaxrnn/)?([\w/]+(?:\.py|/))`", left)
    there = {
        path.name if path.suffix else f"{path.name}/"
        for path in ROOT.iterdir()
        if not path.name.startswith(("_", ".")) and path.suffix in ("", ".py")
    }
    assert sorted(named) == sorted(there)
