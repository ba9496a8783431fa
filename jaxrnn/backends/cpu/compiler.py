"""Compilation of kernels: LLVM IR to machine code, its cache on disk, and the XLA FFI handler.

A kernel is compiled when a program that calls it is lowered, and registered with XLA under a name
that contains a hash of its IR. If JAX has a persistent compilation cache
(``jax_compilation_cache_dir``), object code is stored in the same directory. Under
``jax_disable_most_optimizations`` LLVM does not optimise, which takes a tenth of the time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import llvmlite.binding as llvm
import numpy as np

from jaxrnn.backends.cpu import threads
from jaxrnn.backends.cpu.ir import INT, Function, Module
from jaxrnn.backends.cpu.layout import KernelSpec, Machine

_engines: dict[str, Any] = {}  # by handler name; they own the code that XLA calls
_lock = threading.Lock()  # XLA accepts a name once, and two threads may trace the same layer

# Byte offsets in the structs of xla/ffi/api/c_api.h, version 0.x. Within a major version structs
# only grow at their ends.
_EXTENSION, _STAGE, _ARGUMENTS, _RESULTS = 8, 32, 72, 112  # of XLA_FFI_CallFrame
_DATA = 24  # of XLA_FFI_Buffer
_KIND, _METADATA = 8, 24  # of XLA_FFI_Metadata_Extension
_MAJOR, _MINOR = 24, 28  # of XLA_FFI_Metadata
_VERSION = (0, 1)
_EXECUTE = 3
_METADATA_EXTENSION = 1


def has_fma() -> bool:
    """Return True if this processor has vector instructions for fused multiply-add."""
    features = dict(llvm.get_host_cpu_features())
    return bool(features.get("fma") and features.get("avx2")) or "neon" in features


@functools.cache
def machine() -> Machine:
    """Return the description of this processor."""
    features = dict(llvm.get_host_cpu_features())
    bits, registers = 128, 16
    if features.get("avx2") and features.get("fma"):
        bits = 256
    if features.get("avx512f") and features.get("avx512dq"):
        bits, registers = 512, 32
    if "neon" in features:  # 64-bit ARM
        registers = 32
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(bits, registers, cores or 1)


def call_kernel(
    spec: KernelSpec,
    machine: Machine,
    scalars: list[int],
    workspace: int,
    shapes: Sequence[tuple[int, ...]],
    operands: Sequence[jax.Array],
) -> list[jax.Array]:
    """Call a kernel, which is compiled first if necessary; `shapes` are those of its results."""
    name = _compile_kernel(spec, machine, jax.config.read("jax_disable_most_optimizations"))
    results = [jax.ShapeDtypeStruct(shape, spec.dtype) for shape in shapes]
    results.append(jax.ShapeDtypeStruct((workspace,), np.uint8))
    integers = np.array(scalars, np.int64).view(np.int32)  # JAX may have no int64
    return list(jax.ffi.ffi_call(name, results)(integers, *operands))[:-1]


@functools.cache
def _compile_kernel(spec: KernelSpec, machine: Machine, quickly: bool) -> str:
    """Compile a kernel, register it with XLA and return its name."""
    module = Module(spec.dtype.itemsize, machine.lanes(spec.dtype.itemsize))
    threads.write_barrier(module)
    spec.write(module)
    threads.write_run(module, machine.cores)
    digest = hashlib.sha256((module.text() + "quickly" * quickly).encode()).hexdigest()
    name = f"jaxrnn_{spec.NAME}_{digest[:16]}"
    with _lock:
        if name not in _engines:
            _write_handler(module, name, spec)
            width = (
                f'"min-legal-vector-width"="{machine.bits}" "prefer-vector-width"="{machine.bits}"'
            )
            text = f"{module.text()}\nattributes #0 = {{ nounwind {width} }}\n"
            _engines[name] = load_object(compile_object(text, name, quickly))
            address: Any = _engines[name].get_function_address(name)
            handler = jax.ffi.pycapsule(address)
            jax.ffi.register_ffi_target(name, handler, platform="cpu", api_version=1)
    return name


def compile_object(text: str, name: str, quickly: bool = False) -> bytes:
    """Compile a module to object code, or read it from the cache on disk.

    If `quickly` is True, LLVM does not optimise. `name` is the prefix of the file's name.
    """
    file = _cache_file(text, name, quickly)
    if file is None:
        return _compile(text, quickly)
    with contextlib.suppress(OSError):
        return file.read_bytes()
    code = _compile(text, quickly)
    with contextlib.suppress(OSError):  # the cache is optional
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(code)
        os.replace(temporary, file)  # other processes never read a partial file
    return code


def load_object(code: bytes) -> Any:
    """Load object code into this process and return its execution engine."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine(quickly=True))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _cache_file(text: str, name: str, quickly: bool) -> Path | None:
    """Return the cache file of a module, or None without a cache on disk."""
    config: Any = jax.config
    folder = config.jax_compilation_cache_dir
    if not folder or "://" in folder or not config.jax_enable_compilation_cache:
        return None
    host = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    key = repr((text, quickly, host, llvm.llvm_version_info))
    return Path(folder) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"


def _compile(text: str, quickly: bool) -> bytes:
    target = _target_machine(quickly)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = target.triple, str(target.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=0 if quickly else 2)
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return target.emit_object(module)


def _target_machine(quickly: bool) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=0 if quickly else 3,
        jit=True,
    )


def _write_handler(m: Module, name: str, spec: KernelSpec) -> None:
    """Write a handler of XLA's foreign function interface.

    XLA calls it with a frame of pointers. It answers queries for its version; to execute, it
    collects the integers and addresses of the call in a context and calls ``run``. The first
    operand holds the integers: the partition, then ``spec.SCALARS``.
    """
    count, inputs, outputs = len(spec.SCALARS), len(spec.inputs()), len(spec.outputs()) + 1
    f = Function(m, name, dict(frame="ptr"), "ptr", linkage="")
    context = f.alloca(INT, threads.HEADER + count + inputs + outputs)
    read = lambda base, offset, kind: f.load(f.gep(base, offset, 1), kind)  # noqa: E731
    slot = lambda index: f.gep(context, index, 8)  # noqa: E731
    data = lambda buffers, i: read(f.load(f.gep(buffers, i, 8), "ptr"), _DATA, "ptr")  # noqa: E731
    extension = read("%frame", _EXTENSION, "ptr")
    f.emit(f"%query = icmp ne ptr {extension}, null")
    f.emit("br i1 %query, label %extended, label %plain")
    f.label("extended")
    with f.if_then(f.icmp("eq", read(extension, _KIND, "i32"), _METADATA_EXTENSION, "i32")):
        metadata = read(extension, _METADATA, "ptr")
        f.store(_VERSION[0], f.gep(metadata, _MAJOR, 1), "i32")
        f.store(_VERSION[1], f.gep(metadata, _MINOR, 1), "i32")
        f.emit("ret ptr null")
        f.label("unreachable")
    f.emit("br label %plain")
    f.label("plain")
    with f.if_then(f.icmp("eq", read("%frame", _STAGE, "i32"), _EXECUTE, "i32")):
        arguments, results = read("%frame", _ARGUMENTS, "ptr"), read("%frame", _RESULTS, "ptr")
        integers = data(arguments, 0)
        batch_groups, unit_groups, *scalars = [
            f.load(f.gep(integers, i, 8), INT) for i in range(count + 2)
        ]
        f.store(f.mul(batch_groups, unit_groups), slot(threads.THREADS), INT)
        f.store(batch_groups, slot(threads.BATCH_GROUPS), INT)
        f.store(unit_groups, slot(threads.UNIT_GROUPS), INT)
        for i, scalar in enumerate(scalars, threads.HEADER):
            f.store(scalar, slot(i), INT)
        buffers = [(arguments, 1 + i) for i in range(inputs)]
        buffers += [(results, i) for i in range(outputs)]
        for i, (array, index) in enumerate(buffers, threads.HEADER + count):
            f.store(data(array, index), slot(i), "ptr")
        f.call("run", context)
    f.ret("null")
