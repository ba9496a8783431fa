"""Environment of a measurement: machine, versions, flags, and the GEMM peak."""

import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

DISTRIBUTIONS = (
    *("jaxrnn", "jax", "jaxlib", "flax", "optax", "numpy"),
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("torch", "onnx", "onnxruntime", "dm-haiku", "equinox", "keras"),
)
FLAG_PREFIXES = ("XLA_", "JAX_", "TF_XLA_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "TORCH_")
FLAG_NAMES = ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE")


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Return the one-minute load average."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


class Others:
    """Number of cores that other processes use, from construction to `cores`.

    On two cores another program's thread can stall a thread pool for milliseconds, so a case that
    had to share the machine is named in the report. Nothing is measured where there is no procfs.
    """

    def __init__(self) -> None:
        self.start = self.clocks()

    @staticmethod
    def clocks() -> tuple[float, float] | None:
        """Return wall-clock seconds, and CPU seconds of all other processes."""
        try:
            line = Path("/proc/stat").read_text().splitlines()[0]
            # user, nice, system, idle, iowait, irq, softirq, steal: all but the two idle ones.
            ticks = [int(word) for word in line.split()[1:9]]
            busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return None
        return perf_counter(), busy - sum(os.times()[:4])

    def cores(self) -> float | None:
        """Return the mean number of cores that other processes used."""
        end = self.clocks()
        if self.start is None or end is None:
            return None
        return max(0.0, (end[1] - self.start[1]) / max(end[0] - self.start[0], 1e-3))


def versions() -> dict[str, str]:
    """Return the installed versions of all libraries, by distribution name."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    jaxrnn = sys.modules.get("jaxrnn")  # Run from a checkout it need not be installed.
    if jaxrnn is not None and "jaxrnn" not in found:
        found["jaxrnn"] = str(getattr(jaxrnn, "__version__", "from the checkout"))
    return found


def flags() -> dict[str, str]:
    """Return the environment variables that configure the libraries."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(FLAG_PREFIXES) or name in FLAG_NAMES
    }


def commit() -> str:
    """Return the commit of the checkout, ``+changes`` for a modified tree; empty outside git."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+changes" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def product(dtype: str, tf32: bool | None) -> str:
    """Return the name of a precision in reports.

    >>> product("float32", True), product("bfloat16", None)
    ('float32, TF32', 'bfloat16')
    """
    return dtype if tf32 is None else f"{dtype}, {'TF32' if tf32 else 'no TF32'}"


def gemm_peak(
    reps: int = 7, dtype: str = "float32", tf32: bool | None = None, size: int | None = None
) -> dict[str, Any]:
    """Measure the fastest matrix product of JAX in a precision: size and FLOP/s.

    2048 on the CPU; 8192 on an accelerator, where 2048 would time the launch. Without `tf32`, JAX's
    default precision, as in the layers (on a GPU float32 may be TF32 then).
    """
    import jax
    import jax.numpy as jnp

    from bench.precision import precision

    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    with precision(tf32):
        run = jax.jit(jnp.matmul).lower(a, a).compile()
    jax.block_until_ready(run(a, a))
    best = float("inf")
    for _ in range(reps):
        start = perf_counter()
        jax.block_until_ready(run(a, a))
        best = min(best, perf_counter() - start)
    return {"size": size, "flops": 2.0 * size**3 / best, "precision": product(dtype, tf32)}


def gpu() -> list[str]:
    """Return name, driver, memory and clock limit of each NVIDIA GPU, from nvidia-smi."""
    fields = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def cuda() -> dict[str, str]:
    """Return the CUDA and cuDNN versions of the libraries."""
    found = {}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch CUDA"] = str(torch.version.cuda)
        found["torch cuDNN"] = str(torch.backends.cudnn.version() if torch.version.cuda else None)
    if backend() == "gpu":
        import jax

        found["jax"] = " ".join(jax.devices()[0].client.platform_version.split())
    return found


def backend() -> str:
    """Return the platform of JAX: cpu, gpu or tpu."""
    import jax

    return jax.default_backend()


def describe_machine() -> dict[str, Any]:
    """Return the header of a report."""
    import jax

    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "bench", *sys.argv[1:]]),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "system": platform.platform(),
        "backend": jax.default_backend(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "gpu": gpu(),
        "load_at_start": load_average(),
        "versions": versions(),
        "flags": flags(),
    }


def describe_end() -> dict[str, Any]:
    """Return header fields that are known after the contenders ran."""
    found: dict[str, Any] = {"load_at_end": load_average(), "versions": versions()}
    found["cuda"] = cuda()
    if "torch" in sys.modules:
        found["torch_threads"] = sys.modules["torch"].get_num_threads()
    return found
