"""What the blocks of the Hopper kernels send each other, run as PTX on a machine of our own.

Mosaic's interpreter has other means for that; here the loops run with those of the GPU, whose
addresses, counts and order are then those of the real kernels (`tests.ptx`). Everything else, loads
with a layout, products, is NumPy.
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
from jaxrnn.backends.hopper import far as hopper_far
from jaxrnn.backends.hopper import group as hopper_group
from jaxrnn.backends.hopper import loops as hopper_loops
from jaxrnn.backends.hopper import peers as hopper_peers
from jaxrnn.backends.hopper.device import Arrivals, Copies, Device
from jaxrnn.backends.hopper.group import Group
from jaxrnn.backends.hopper.tiling import Tiles
from tests import compiling
from tests.ptx import Machine, Ref
from tests.test_fused import close
from tests.test_kernels_hopper import both, force
from tests.test_kernels_tpu import MinimalGatedUnit


class Own:
    """An attribute that each block has for itself."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, device: Any, owner: Any = None) -> Any:
        return getattr(device.machine.local, self.name)

    def __set__(self, device: Any, value: Any) -> None:
        setattr(device.machine.local, self.name, value)


class Simulated(Device):
    """A cluster whose blocks are those of a `Machine`."""

    machine: Machine
    seed = 0
    counters: Any = None

    def __init__(self, tiles: Tiles):
        self.tiles = tiles

    def launch(
        self, body: Any, results: Any, scratch: dict[str, Any], groups: int, name: str
    ) -> Any:
        t = self.tiles

        def run(*operands: Any) -> list[jax.Array]:
            # As many clusters at once as one group needs, in any order.
            self.machine = machine = Machine(self.seed, groups * t.K, t.C, t.K)
            given = []
            for array in operands:
                given.append(machine.memory.add(array.shape, array.dtype))
                given[-1][...] = np.asarray(array)
            out = [machine.memory.add(r.shape, r.dtype) for r in results]
            self.counters = None

            def block(one: Any) -> None:
                own = {
                    key: None
                    if isinstance(what, Copies)
                    else one.shared.add(*hopper_peers.BARRIERS)
                    if isinstance(what, Arrivals)
                    else one.shared.add(*what[:2])
                    for key, what in scratch.items()
                }
                body(*given, *out, **own)

            machine.launch(block)
            return [jnp.asarray(ref.array) for ref in out]

        return run

    def zeros(self, kind: Any) -> Ref:
        """The numbers of `pl.get_global`: the same for all blocks."""
        if self.counters is None:
            self.counters = self.machine.memory.add(kind.inner_aval.shape, np.int32, fill=0)
        return self.counters

    @property
    def block(self) -> Any:
        return self.machine.local.block

    @property
    def rank(self) -> int:
        return self.block.rank

    def places(self) -> tuple[Any, Any]:
        return self.rank, self.block.cluster

    def raw(self, ref: Any) -> jax.Array:
        return jnp.asarray(ref.array)

    def load(self, ref: Any, turn: bool = False) -> jax.Array:
        tile = self.raw(ref).astype(jnp.float32)
        return tile.T if turn else tile

    def placed(self, tile: jax.Array) -> jax.Array:
        return tile

    def products(self, rows: int, pairs: Any) -> jax.Array:
        turn = self.tiles.rows_first
        wide = lambda ref: ref.array.astype(np.float64)  # noqa: E731
        return jnp.asarray(
            sum(wide(a) @ (wide(b).T if turn else wide(b)) for a, b in pairs), jnp.float32
        )

    def store(self, sums: Any, value: jax.Array) -> None:
        sums[...] = value

    def fetch(self, pairs: Any, barrier: Any) -> None:
        for source, target in pairs:
            target[...] = source.array

    def clear(self, ref: Any) -> None:
        ref[...] = np.zeros(ref.array.shape)

    def collect(self, sources: Any, scratch: Any) -> list[jax.Array]:
        sums = [jnp.asarray(sum(ref.array for ref in refs)) for refs in sources]
        return [total.T if self.tiles.rows_first else total for total in sums]


class SimulatedGroup(Group, Simulated):
    """Several clusters."""

    at, group, counter, exchanged = Own(), Own(), Own(), Own()


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[Simulated]:
    """The devices that were made."""
    made: list[Simulated] = []

    def device(tiles: Tiles) -> Simulated:
        made.append((SimulatedGroup if tiles.K > 1 else Simulated)(tiles))
        return made[-1]

    def run(body: Any, *arguments: Any, **_: Any) -> Any:
        return body(None, *arguments)

    def write(text: str, *operands: Any, **how: Any) -> Any:
        return made[-1].block.write(text, *operands, **how)

    for module in (hopper_peers, hopper_far):
        monkeypatch.setattr(module, "run", run)
        monkeypatch.setattr(module, "write", write)
        monkeypatch.setattr(module, "number", int)
        monkeypatch.setattr(module, "address", lambda ref: ref.address)
    monkeypatch.setattr(hopper_far, "_far", lambda ref: ref.address)
    monkeypatch.setattr(hopper_far.FragmentedArray, "splat", lambda number, **_: jnp.int32(number))
    monkeypatch.setattr(hopper_group.pl, "get_global", lambda kind: made[-1].zeros(kind))
    monkeypatch.setattr(hopper_loops.pl, "when", lambda c: lambda f: f() if c else None)
    monkeypatch.setattr(hopper_loops.lax, "fori_loop", loop)
    for module in (hopper_device, hopper_group):
        monkeypatch.setattr(module.plgpu, "commit_smem", lambda: None)
    monkeypatch.setattr(hopper, "_device", device)
    return made


def loop(first: Any, end: Any, step: Any, carry: Any) -> Any:
    """A loop whose steps are done at once, and not traced."""
    for i in range(int(first), int(end)):
        carry = step(jnp.int32(i), carry)
    return carry


def quick(f: Any, **how: Any) -> Any:
    return jax.jit(functools.partial(f, **how), compiler_options=compiling.QUICKLY)


def on_cpu() -> Any:
    """NumPy's arrays are the host's."""
    cpu = jax.devices("cpu")
    return jax.default_device(cpu[0]) if cpu else contextlib.nullcontext()


def simulated_pair(kernel: Any, reference: Any, how: Any, operands: Any) -> tuple[Any, Any]:
    """A kernel on the simulated machine, which can't be compiled, and its scan."""
    return kernel("cuda", *operands, **how), quick(reference, **how)(*operands)


def compare(cell: cells.Cell, dtype: Any, sizes: Any, masked: bool, reverse: bool) -> None:
    with on_cpu():
        kernel, scan = both(cell, sizes, dtype, masked, reverse, run=simulated_pair)
    close(kernel, scan, 1e-5 if dtype == jnp.float32 else 0.1)


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes", "tiles", "masked", "reverse"),
    [
        (cells.GRU(), jnp.bfloat16, (3, 20, 4, 40), (1, 2, 3, 16, 16), True, True),
        (cells.LSTM(), jnp.float32, (4, 18, 4, 44), (2, 4, 2, 16, 16, 2), True, False),
        (MinimalGatedUnit(), jnp.float16, (4, 3, 4, 90), (1, 2, 2, 16, 32, 3), False, True),
        (cells.Elman(), jnp.float32, (5, 3, 4, 30), (2, 4, 1, 8, 16, 4), True, False),
    ],
    ids=["cluster", "group", "group with padding", "group of single blocks"],
)
def test_a_simulated_kernel_is_its_scan(
    simulated: Any,
    monkeypatch: pytest.MonkeyPatch,
    cell: cells.Cell,
    dtype: Any,
    sizes: Any,
    tiles: Any,
    masked: bool,
    reverse: bool,
) -> None:
    force(monkeypatch, cell, tiles)
    compare(cell, dtype, sizes, masked, reverse)
    assert len(simulated) == (3 if len(cell.states) > 1 else 2)  # two states: also without keep


@pytest.mark.parametrize(
    ("right", "wrong", "seen"),
    [
        ("red.release.gpu", "red.relaxed.gpu", "nan"),
        ("cp.async.wait_all;", "", "nan"),
        ("setp.lt.u32 p, v,", "setp.lt.u32 p, 1,", "wait for each other"),
        ("barrier.cluster.wait.acquire.aligned;", "", "no piece of memory"),
        ("bytes.v4.b32 [to+0]", "bytes.v4.b32 [to+1024]", "no piece of memory"),
        ("_, [bar], 1024", "_, [bar], 1040", "wait for each other"),
    ],
    ids=["release", "copies", "counter", "the cluster", "address", "expectation"],
)
def test_the_machine_sees_what_is_wrong(
    simulated: Any, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str, seen: str
) -> None:
    changes = 0
    write = hopper_peers.write

    def changed(text: str, *operands: Any, **how: Any) -> Any:
        nonlocal changes
        changes += right in text
        return write(text.replace(right, wrong), *operands, **how)

    for module in (hopper_peers, hopper_far):
        monkeypatch.setattr(module, "write", changed)
    fails(monkeypatch, (2, 4, 2, 8, 16, 2), seen)
    assert changes


@pytest.mark.parametrize(
    ("tiles", "seen"),
    [((2, 4, 4, 8, 16), "arrived twice"), ((2, 4, 1, 8, 16, 4), "Not equal")],
    ids=["cluster", "group"],
)
def test_the_machine_sees_a_message_too_early(
    simulated: Any, monkeypatch: pytest.MonkeyPatch, tiles: Any, seen: str
) -> None:
    """With one place for messages instead of two, the next comes while one is read."""
    monkeypatch.setattr(hopper_device, "SLOTS", 1)
    fails(monkeypatch, tiles, seen)


def fails(monkeypatch: pytest.MonkeyPatch, tiles: Any, seen: str) -> None:
    cell = cells.Elman()
    force(monkeypatch, cell, tiles)
    with pytest.raises(AssertionError, match=seen):
        compare(cell, jnp.float32, (3, 3, 4, 30), False, False)
