"""Machine code of the kernels for CPUs is kept on disk where JAX keeps its programs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

pytest.importorskip("llvmlite", reason="the kernels need llvmlite")

import llvmlite.binding as llvm

from jaxrnn.backends.cpu import compiler

SEVEN = "define i32 @number() {\n  ret i32 7\n}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    config: Any = jax.config
    before = config.jax_compilation_cache_dir
    config.update("jax_compilation_cache_dir", str(tmp_path / "kept"))
    yield tmp_path / "kept"
    config.update("jax_compilation_cache_dir", before)


def code(text: str = SEVEN) -> bytes:
    return compiler._object_code(text, "number", compiler._target(True), True)


def number(code: bytes) -> int:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), compiler._target(True))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return ctypes.CFUNCTYPE(ctypes.c_int)(engine.get_function_address("number"))()


def test_what_is_kept_is_not_compiled_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = code()
    assert [file.read_bytes() for file in folder.iterdir()] == [first]
    assert number(code(SEVEN.replace("7", "8"))) == 8  # another text is another file
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setattr(compiler, "_compiled", lambda *_: pytest.fail("compiled again"))
    assert code() == first
    assert number(first) == 7


def test_another_machine_has_another_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code()
    assert list(folder.iterdir()) == [compiler._kept(SEVEN, "number", True)]
    assert compiler._kept(SEVEN, "number", False) not in list(folder.iterdir())
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "another")
    assert compiler._kept(SEVEN, "number", True) not in list(folder.iterdir())


def test_where_nothing_can_be_kept_it_is_compiled(folder: Path) -> None:
    folder.write_text("a file in its place")
    assert number(code()) == 7
    config: Any = jax.config
    for elsewhere in (None, "gs://bucket/kept"):
        config.update("jax_compilation_cache_dir", elsewhere)
        assert compiler._kept(SEVEN, "number", True) is None
        assert number(code()) == 7
