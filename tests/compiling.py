"""How the tests compile: quickly, and where it matters as users do.

Nearly all of the time of the tests is XLA's, compiling some thousands of programs that run for
microseconds. So they are compiled without optimisation, which takes a third of the time, but for

- the parity with PyTorch in float32 (`test_parity`), compiled with `AS_USERS_DO`, and
- what trains for long (the fixture `optimised`), which would lose more time than it gains.

With ``JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest`` all is compiled as users do.
"""

import os

import jax

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

# The environment, so that the processes which the tests begin compile the same way.
_flags = os.environ.get("XLA_FLAGS", "").split()
_flags += [f"--{name}={quick}".lower() for name, (quick, _) in _KNOWN.items()]
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(_flags))


def optimise(whether: bool) -> None:
    """Let XLA optimise what is compiled from now on, or not."""
    jax.config.update("jax_disable_most_optimizations", _QUICK and not whether)
