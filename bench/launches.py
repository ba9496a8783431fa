"""Kernel launches of a compiled GPU program, counted in XLA's optimized HLO.

An instruction that is neither free (a tuple, a bitcast) nor a loop is one launch. A loop runs its
body as often as its known trip count says, a call what it calls. Products that cuBLAS splits in two
count as one, as do loops that are captured as CUDA graphs.
"""

import re
from typing import Any

from bench.core import Unsupported

FREE = {
    *("parameter", "tuple", "get-tuple-element", "constant", "bitcast", "after-all"),
    *("opt-barrier", "partition-id", "replica-id"),
}

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  device_memory_size: 84942979072
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""NVIDIA's figures of an H100 SXM, for a compiler that has none to ask."""


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the instructions of each computation of an HLO module, and the name of its entry."""
    found: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head.group(2)
            found[name] = []
            entry = name if head.group(1) else entry
        elif line.startswith("}"):
            name = ""
        elif name and " = " in line:
            found[name].append(line.strip())
    return found, entry


def opcode(instruction: str) -> str:
    """Return the opcode of an instruction.

    >>> opcode("%a.1 = (f32[2]{0}, s32[]) fusion(%x), kind=kLoop"), opcode("%b = f32[] copy(%a)")
    ('fusion', 'copy')
    """
    right = instruction.split(" = ", 1)[1]
    if right.startswith("("):  # A tuple of results, in parentheses.
        depth = 0
        for place, letter in enumerate(right):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                right = "_" + right[place + 1 :]
                break
    return right.split(" ", 1)[1].split("(", 1)[0]


def launches(text: str) -> float:
    """Return the number of kernels of one run of a module.

    Raises:
        ValueError: for a loop whose trip count is not known.
    """
    found, entry = computations(text)

    def inside(name: str) -> float:
        total = 0.0
        for instruction in found[name]:
            kind = opcode(instruction)
            if kind == "while":
                body = re.search(r"body=%?([\w.\-]+)", instruction)
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction)
                if body is None or trips is None:
                    raise ValueError(f"a loop of unknown length: {instruction[:200]}")
                total += int(trips.group(1)) * inside(body.group(1))
            elif kind == "call":
                called = re.search(r"to_apply=%?([\w.\-]+)", instruction)
                if called is None:
                    raise ValueError(f"a call of nothing: {instruction[:200]}")
                total += inside(called.group(1))
            elif kind not in FREE:
                total += 1
        return total

    return inside(entry)


def target() -> Any:
    """Return the compilation target: the local GPU, or an H100 without a device.

    Raises:
        Unsupported: where JAX has no compiler for CUDA.
    """
    import jax
    from jax.experimental import topologies

    if jax.default_backend() == "gpu":
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=H100, topology="1x1x1"
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise Unsupported(
            "JAX has no compiler for CUDA here (pip install 'jax[cuda12]'; no GPU is needed)"
        ) from error
    return jax.sharding.SingleDeviceSharding(topology.devices[0])
