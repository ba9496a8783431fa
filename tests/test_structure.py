"""Imports point one way, and the pure functions know no Flax.

Imports are read from the source. An import inside a function is not counted: it loads an optional
library or the kernels of one platform when they are needed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import jaxrnn

ROOT = Path(jaxrnn.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# Each package may import those to its left and its neighbours in the same group.
ORDER = (
    ("_checks", "_files"),
    ("cells",),
    ("reference",),
    ("backends",),
    ("core",),
    ("packing", "data", "generation"),
    ("layers",),
    ("interop", "plotting", "sequences", "training"),
    ("examples", "forecasting", "text"),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}


def _import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield from _import_statements(child)


@cache
def direct_imports(module: str) -> frozenset[str]:
    """Modules of the package that one imports directly, and the names of other libraries."""
    found = set()
    for statement in _import_statements(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        parent = statement.module if isinstance(statement, ast.ImportFrom) else ""
        for alias in statement.names:
            path = f"{parent}.{alias.name}" if parent else alias.name
            while path.startswith("jaxrnn") and path not in MODULES:
                path = path.rpartition(".")[0]
            found.add(path if path in MODULES else path.partition(".")[0])
    return frozenset(found - {module})


def all_imports(module: str) -> set[str]:
    """Everything that importing a module loads, directly or not."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        for name in direct_imports(pending.pop()) - seen:
            seen.add(name)
            pending += [name] if name in MODULES else []
    return seen


def package(module: str) -> str:
    """The first component below ``jaxrnn``; empty for the package itself."""
    return f"{module}.".split(".")[1]


def test_no_module_imports_itself_through_others() -> None:
    assert [name for name in MODULES if name in all_imports(name)] == []


@pytest.mark.parametrize("module", sorted(name for name in MODULES if package(name)))
def test_imports_point_one_way(module: str) -> None:
    upward = [
        name
        for name in direct_imports(module)
        if name in MODULES and package(name) and RANK[package(name)] > RANK[package(module)]
    ]
    assert upward == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_pure_functions_know_no_flax(module: str) -> None:
    if package(module) in ("cells", "backends", "core", "reference"):
        assert "flax" not in all_imports(module)
