"""Messages between the blocks of the Hopper kernels, with their PTX on a simulated machine.

Mosaic's interpreter replaces the messages. Here the loops send those of the GPU, so that addresses,
byte counts and order are those of the real kernels (`tests.ptx`). Products and loads are JAX's.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells
from jaxrnn.backends import hopper
from jaxrnn.backends.hopper import device as hopper_device
from jaxrnn.backends.hopper import exchange
from jaxrnn.backends.hopper.device import ClusterGroup, CopyBarrier, MessageBarriers
from jaxrnn.backends.hopper.tiling import Tiling
from tests import compiling
from tests.hopper_interpreter import HostTiles
from tests.ptx import Machine, Ref
from tests.test_kernels_hopper import force_tiling, kernel_and_scan
from tests.test_kernels_tpu import MinimalGatedUnit
from tests.test_primitives import close


class PerBlock:
    """Attribute with a value for each block."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, device: Any, owner: Any = None) -> Any:
        return getattr(device.machine.local, self.name)

    def __set__(self, device: Any, value: Any) -> None:
        setattr(device.machine.local, self.name, value)


class Simulated(HostTiles):
    """Cluster whose blocks are those of a `Machine`."""

    machine: Machine
    counters: Any
    memory: Any = PerBlock()

    def __init__(self, tiling: Tiling):
        self.tiling = tiling

    def launch(
        self, body: Any, results: Any, scratch: dict[str, Any], grid_size: int, name: str
    ) -> Any:
        t = self.tiling

        def run(*operands: Any) -> list[jax.Array]:
            # As many clusters are resident as one group needs, in any order.
            self.machine = machine = Machine(0, grid_size * t.K, t.C, t.K)
            self.counters = None
            refs = [machine.memory.add(a.shape, a.dtype) for a in (*operands, *results)]
            for ref, array in zip(refs, operands, strict=False):
                ref[...] = np.asarray(array)

            def run_block(block: Any) -> None:
                self.memory = {
                    key: block.shared.add(*exchange.BARRIERS)
                    if isinstance(kind, MessageBarriers)
                    else block.shared.add(kind.shape, kind.dtype)
                    for key, kind in scratch.items()
                    if not isinstance(kind, CopyBarrier)
                }
                body(*refs)

            machine.launch(run_block)
            return [jnp.asarray(ref.array) for ref in refs[len(operands) :]]

        return run

    def get_global(self, kind: Any) -> Ref:
        """Return the zeros of `pl.get_global`, the same for all blocks."""
        if self.counters is None:
            self.counters = self.machine.memory.add(kind.inner_aval.shape, np.int32, fill=0)
        return self.counters

    @property
    def rank(self) -> int:
        return self.machine.local.block.rank

    def position(self) -> tuple[Any, Any]:
        return self.rank, self.machine.local.block.cluster

    def start(self, pairs: Any) -> None:
        for source, target in pairs:
            target[...] = source.array
        exchange.init_barriers(self.memory["messages"])


class SimulatedGroup(ClusterGroup, Simulated):
    """Several clusters."""

    index, group, counter, mailboxes = PerBlock(), PerBlock(), PerBlock(), PerBlock()


def eager_loop(first: Any, end: Any, step: Any, carry: Any) -> Any:
    """Run a loop without tracing it."""
    for i in range(int(first), int(end)):
        carry = step(jnp.int32(i), carry)
    return carry


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[Simulated]:
    """Devices of the kernels that were launched."""
    devices: list[Simulated] = []

    def device_for(tiling: Tiling) -> Simulated:
        devices.append((SimulatedGroup if tiling.K > 1 else Simulated)(tiling))
        return devices[-1]

    def emit(text: str, *operands: Any, returns: bool = False, **_: Any) -> Any:
        numbers = [getattr(operand, "address", operand) for operand in operands]
        result = devices[-1].machine.local.block.execute(text, *map(int, numbers), returns=returns)
        return jnp.int32(result) if returns else None

    monkeypatch.setattr(hopper, "device_for", device_for)
    monkeypatch.setattr(exchange, "emit", emit)
    monkeypatch.setattr(hopper_device.pl, "get_global", lambda kind: devices[-1].get_global(kind))
    monkeypatch.setattr(hopper_device.pl, "when", lambda c: lambda f: f() if c else None)
    monkeypatch.setattr(hopper_device.plgpu, "commit_smem", lambda: None)
    monkeypatch.setattr(jax.lax, "fori_loop", eager_loop)
    return devices


def compare(cell: cells.Cell, dtype: Any, sizes: Any, masked: bool, reverse: bool) -> None:
    """Compare simulated kernels, which cannot be compiled, with the scan."""

    def run(kernel: Any, reference: Any, options: Any, operands: Any) -> tuple[Any, Any]:
        scan = jax.jit(
            functools.partial(reference, **options), compiler_options=compiling.QUICKLY
        ).lower(*operands)
        return kernel("cuda", *operands, **options), scan.compile()(*operands)

    cpu = jax.devices("cpu")  # NumPy's arrays are in host memory
    with jax.default_device(cpu[0]) if cpu else contextlib.nullcontext():
        kernel, scan = kernel_and_scan(cell, sizes, dtype, masked, reverse, run=run)
    close(kernel, scan, 1e-5 if dtype == jnp.float32 else 0.1)


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes", "tiling_sizes", "masked", "reverse"),
    [
        (cells.GRU(), jnp.bfloat16, (3, 20, 4, 40), (1, 2, 3, 16, 16), True, True),
        (cells.LSTM(), jnp.float32, (4, 18, 4, 44), (2, 4, 2, 16, 16, 2), True, False),
        (MinimalGatedUnit(), jnp.float16, (4, 3, 4, 90), (1, 2, 2, 16, 32, 3), False, True),
        (cells.Elman(), jnp.float32, (5, 3, 4, 30), (2, 4, 1, 8, 16, 4), True, False),
    ],
    ids=["cluster", "group", "group with padding", "group of single blocks"],
)
def test_simulated_kernel_equals_scan(
    simulated: Any,
    monkeypatch: pytest.MonkeyPatch,
    cell: cells.Cell,
    dtype: Any,
    sizes: Any,
    tiling_sizes: Any,
    masked: bool,
    reverse: bool,
) -> None:
    force_tiling(monkeypatch, cell, tiling_sizes)
    compare(cell, dtype, sizes, masked, reverse)
    assert len(simulated) == (3 if len(cell.states) > 1 else 2)  # two states: inference, too


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("red.release.gpu", "red.relaxed.gpu", "nan"),
        ("cp.async.wait_all;", "", "nan"),
        ("setp.lt.u32 p, v,", "setp.lt.u32 p, 1,", "wait for each other"),
        ("barrier.cluster.wait.acquire.aligned;", "", "no allocation"),
        ("bytes.v4.b32 [to+0]", "bytes.v4.b32 [to+1024]", "no allocation"),
        ("_, [bar], 1024", "_, [bar], 1040", "wait for each other"),
    ],
    ids=["release", "copies", "counter", "cluster barrier", "address", "byte count"],
)
def test_the_machine_detects_wrong_instructions(
    simulated: Any, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str, message: str
) -> None:
    changes = 0
    emit = exchange.emit

    def changed(text: str, *operands: Any, **options: Any) -> Any:
        nonlocal changes
        changes += right in text
        return emit(text.replace(right, wrong), *operands, **options)

    monkeypatch.setattr(exchange, "emit", changed)
    assert_fails(monkeypatch, (2, 4, 2, 8, 16, 2), message)
    assert changes


@pytest.mark.parametrize(
    ("tiling_sizes", "message"),
    [((2, 4, 4, 8, 16), "arrived twice"), ((2, 4, 1, 8, 16, 4), "Not equal")],
    ids=["cluster", "group"],
)
def test_the_machine_detects_an_early_message(
    simulated: Any, monkeypatch: pytest.MonkeyPatch, tiling_sizes: Any, message: str
) -> None:
    """With one buffer instead of two, a message arrives while the previous one is read."""
    monkeypatch.setattr(hopper_device, "NUM_BUFFERS", 1)
    assert_fails(monkeypatch, tiling_sizes, message)


def assert_fails(monkeypatch: pytest.MonkeyPatch, tiling_sizes: Any, message: str) -> None:
    """Check that the machine or the comparison with the scan reports an error."""
    cell = cells.Elman()
    force_tiling(monkeypatch, cell, tiling_sizes)
    with pytest.raises(AssertionError, match=message):
        compare(cell, jnp.float32, (3, 3, 4, 30), False, False)
