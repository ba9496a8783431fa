"""From text to machine code: llvmlite compiles a module for this machine and keeps it.

Where JAX keeps compiled programs on disk (``jax_compilation_cache_dir``), the code of the kernels
is kept beside them, so that a later process compiles none. Where it is told to compile quickly
(``jax_disable_most_optimizations``), so are they, in a tenth of the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import llvmlite.binding as llvm

from jaxrnn.backends.cpu.tiles import Machine

_alive: list[Any] = []  # engines, which own the code that XLA calls


def multiplies_and_adds() -> bool:
    """Whether a product and a sum are one instruction here; without, a kernel would crawl."""
    features = dict(llvm.get_host_cpu_features())
    return bool(features.get("fma") and features.get("avx2")) or "neon" in features


@functools.cache
def machine() -> Machine:
    """What there is here."""
    features = dict(llvm.get_host_cpu_features())
    bits, registers = 128, 16
    if features.get("avx2") and features.get("fma"):
        bits = 256
    if features.get("avx512f") and features.get("avx512dq"):
        bits, registers = 512, 32
    if "neon" in features:  # 64-bit ARM always has them
        registers = 32
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(bits, registers, cores or 1)


def quickly() -> bool:
    """Whether JAX is to compile without optimising."""
    return jax.config.read("jax_disable_most_optimizations")


def _target(quickly: bool) -> Any:
    """A description of this machine; each engine takes one and owns it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=0 if quickly else 3,
        jit=True,
    )


def _compiled(text: str, target: Any, quickly: bool) -> bytes:
    """The object code of a module."""
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = target.triple, str(target.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=0 if quickly else 2)
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return target.emit_object(module)


def _kept(text: str, name: str, quickly: bool) -> Path | None:
    """The file for the object code of a module, named by all that it depends on; None for none."""
    config: Any = jax.config
    folder = config.jax_compilation_cache_dir
    if not folder or "://" in folder or not config.jax_enable_compilation_cache:
        return None
    here = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    made = text, quickly, here, llvm.llvm_version_info
    digest = hashlib.sha256(repr(made).encode()).hexdigest()
    return Path(folder) / f"{name}-{digest[:32]}.o"


def _object_code(text: str, name: str, target: Any, quickly: bool) -> bytes:
    """From disk, if it is kept there."""
    file = _kept(text, name, quickly)
    if file is None:
        return _compiled(text, target, quickly)
    with contextlib.suppress(OSError):
        return file.read_bytes()
    code = _compiled(text, target, quickly)
    with contextlib.suppress(OSError):  # a folder that can't be written keeps nothing
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, whole = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as new:
            new.write(code)
        os.replace(whole, file)  # no other process ever reads a part
    return code


def compile_handler(text: str, name: str, bits: int, quickly: bool) -> None:
    """Compile a module and hand its handler of this name to XLA under the same name, once."""
    wide = f'"min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}"'
    text += f"\nattributes #0 = {{ nounwind {wide} }}\n"
    target = _target(quickly)
    code = _object_code(text, name, target, quickly)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _alive.append(engine)
    address = engine.get_function_address(name)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    jax.ffi.register_ffi_target(name, new(address, None, None), platform="cpu", api_version=1)
