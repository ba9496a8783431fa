"""Compilation of the tests: fast by default, and as users compile where it matters.

The tests spend most of their time in XLA and LLVM, on thousands of programs that run for
microseconds. These are compiled without optimisation, which takes a third of the time, for CPU
kernels a tenth, except for

- the parity with PyTorch in float32 (`test_parity`), compiled with `AS_USERS_DO`,
- some of the kernels that are compared with the scan (`test_primitives`),
- long training runs (the fixture `optimised`), and
- the slow tests (``pytest -m slow``).

With ``JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest`` everything is compiled as users compile.

The workers and the processes that they start share a cache of compiled programs, deleted when the
tests end; a folder given as JAX_COMPILATION_CACHE_DIR stays.
"""

import atexit
import functools
import os
import shutil
import tempfile

import jax
from jax._src.interpreters import mlir

_QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"

# Options that compile faster, besides the optimisation level, and XLA's defaults. XLA does not
# start with an option that it does not know; the version of jax 0.10 knows these.
_OPTIONS = {
    "xla_cpu_use_fusion_emitters": (False, True),
    "xla_cpu_parallel_codegen_split_count": (1, 32),
}
_KNOWN = _OPTIONS if _QUICK and jax.__version_info__ < (0, 11) else {}

AS_USERS_DO: dict[str, bool | int] = {name: default for name, (_, default) in _KNOWN.items()}
"""Options of `jax.jit` that compile one function with XLA's defaults."""
if _QUICK:
    AS_USERS_DO["xla_backend_optimization_level"] = 3
    AS_USERS_DO["xla_llvm_disable_expensive_passes"] = False

QUICKLY: dict[str, bool | int] = (
    {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    if _QUICK
    else {}
)
"""Options of `jax.jit` that compile one function fast in a test that is `optimised`."""

# No source locations in programs: nobody reads them.
jax.config.update("jax_traceback_in_locations_limit", 0)

# One MLIR context for all programs: making one takes a fifth of the time of a small program.
if _KNOWN:
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)

# Set in the environment, so that processes started by tests compile the same way.
_flags = os.environ.get("XLA_FLAGS", "").split()
_flags += [f"--{name}={quick}".lower() for name, (quick, _) in _KNOWN.items()]
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(_flags))

# A process may read an entry that another has not finished writing: it then compiles the program
# itself, and pyproject.toml ignores the warning.
_given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
_folder = _given or tempfile.mkdtemp(prefix="jaxrnn-compiled-")
for _name, _value in {
    "jax_compilation_cache_dir": _folder,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    os.environ[_name.upper()] = str(_value)
    jax.config.update(_name, _value)
if not _given:
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)


def optimise(enabled: bool) -> None:
    """Compile with or without optimisation from now on."""
    jax.config.update("jax_disable_most_optimizations", _QUICK and not enabled)
