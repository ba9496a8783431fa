"""How the tests compile: quickly, and where it matters as users do.

Nearly all of the time of the tests is that of compilers, XLA's and LLVM's, for some thousands of
programs that run for microseconds. So they are compiled without optimisation, which takes a third
of the time, and of the kernels for CPUs a tenth, but for

- the parity with PyTorch in float32 (`test_parity`), compiled with `AS_USERS_DO`,
- the kernels where they are compared with their scans (`test_fused`), and
- what trains for long (the fixture `optimised`), which would lose more time than it gains.

With ``JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest`` all is compiled as users do.

What one worker of the tests, or a process that one began, has compiled the others read from a
folder, which is gone when the tests end; one given as JAX_COMPILATION_CACHE_DIR stays.
"""

import atexit
import functools
import os
import shutil
import tempfile

import jax
from jax._src.interpreters import mlir

_QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"

# The options that are quicker beside the level of optimisation, and XLA's defaults. A version of
# XLA refuses to start with one that it does not know: these are known to that of jax 0.10.
_OPTIONS = {
    "xla_cpu_use_fusion_emitters": (False, True),
    "xla_cpu_parallel_codegen_split_count": (1, 32),
}
_KNOWN = _OPTIONS if _QUICK and jax.__version_info__ < (0, 11) else {}

AS_USERS_DO: dict[str, bool | int] = {name: default for name, (_, default) in _KNOWN.items()}
"""Options of `jax.jit` to compile one function as if the tests had set none."""
if _QUICK:
    AS_USERS_DO["xla_backend_optimization_level"] = 3
    AS_USERS_DO["xla_llvm_disable_expensive_passes"] = False

QUICKLY: dict[str, bool | int] = (
    {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    if _QUICK
    else {}
)
"""Options of `jax.jit` to compile one function quickly although others are `optimised`."""

# Where in Python each operation of a program comes from is told to nobody.
jax.config.update("jax_traceback_in_locations_limit", 0)

# Each program would make a context of MLIR of its own, a fifth of the time that a small one takes.
if _KNOWN:
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)

# The environment, so that the processes which the tests begin compile the same way.
_flags = os.environ.get("XLA_FLAGS", "").split()
_flags += [f"--{name}={quick}".lower() for name, (quick, _) in _KNOWN.items()]
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(_flags))

# One process may read what another has not written to the end: it then compiles for itself, and
# what JAX says of that is ignored in pyproject.toml.
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


def optimise(whether: bool) -> None:
    """Let XLA optimise what is compiled from now on, or not."""
    jax.config.update("jax_disable_most_optimizations", _QUICK and not whether)
