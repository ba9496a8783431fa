"""Cache of CPU kernels: object code is stored in JAX's persistent compilation cache."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

pytest.importorskip("llvmlite", reason="the kernels need llvmlite")

import llvmlite.binding as llvm

from jaxrnn.backends.cpu.compiler import compile_object, load_object

SEVEN = "define i32 @number() {\n  ret i32 7\n}\n"
EIGHT = SEVEN.replace("7", "8")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    config: Any = jax.config
    before = config.jax_compilation_cache_dir
    config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    config.update("jax_compilation_cache_dir", before)


def compiled(text: str = SEVEN, quickly: bool = True) -> bytes:
    return compile_object(text, "number", quickly)


def number(code: bytes) -> int:
    engine = load_object(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(engine.get_function_address("number"))()


def test_cached_code_is_not_compiled_again(folder: Path) -> None:
    first = compiled()
    (file,) = folder.iterdir()
    assert file.read_bytes() == first
    assert number(first) == 7
    eight = compiled(EIGHT)  # another module has another file
    assert number(eight) == 8
    assert len(list(folder.iterdir())) == 2
    file.write_bytes(eight)
    assert compiled() == eight  # read, not compiled


def test_another_machine_and_other_options_have_other_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled()
    compiled(quickly=False)
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "generic")
    compiled()
    assert len(list(folder.iterdir())) == 3


def test_without_a_folder_nothing_is_cached(folder: Path) -> None:
    folder.write_text("a file in its place")
    assert number(compiled()) == 7
    config: Any = jax.config
    for setting in (None, "gs://bucket/cache"):
        config.update("jax_compilation_cache_dir", setting)
        assert number(compiled()) == 7
    assert folder.read_text() == "a file in its place"
    assert list(folder.parent.iterdir()) == [folder]
