"""Layout of a kernel call: partition among threads, workspace, and access to operands.

Sizes are known when a call is traced, so the partition and the offsets of the workspace are
computed in Python, and the kernel receives them as integers. One kernel serves calls of all sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax

from jaxrnn.backends.cpu import threads
from jaxrnn.backends.cpu.gemm import Tile
from jaxrnn.backends.cpu.ir import INT, Function, Module
from jaxrnn.backends.elementwise.lower import CellGraphs, cell_graphs

# Sequences times steps of a block whose input products are computed at once: enough for a fast
# product, few enough that the results stay in the cache until their step.
FORWARD_BLOCK = 96

# The same for the products behind the backward loop. Weight gradients of more bytes than the cache
# holds are read and written once per block, so their blocks are larger.
BACKWARD_BLOCK, LARGE_BACKWARD_BLOCK, LARGE_GRADIENT = 128, 512, 1 << 24


@dataclass(frozen=True)
class Machine:
    """Processor that a kernel is compiled for.

    Attributes:
        bits: size of a vector register.
        registers: number of vector registers.
        cores: maximum number of threads.
        flop_per_thread: minimum work of a thread, because starting one takes 20 microseconds.
        private_weights: maximum bytes of weights that each thread reads as a whole, from its own
            cache. Larger weights are partitioned, at the price of a barrier after each step.
    """

    bits: int
    registers: int
    cores: int
    flop_per_thread: int = 4_000_000
    private_weights: int = 1 << 20

    def lanes(self, itemsize: int) -> int:
        """Return the number of elements in a vector register."""
        return self.bits // 8 // itemsize

    def divided(self, devices: int) -> Machine:
        """Return the share of one of several XLA devices."""
        return replace(self, cores=max(1, self.cores // devices))


class CallSizes(NamedTuple):
    """Sizes of a call: steps, batch size, input features, hidden units."""

    T: int
    N: int
    D: int
    H: int

    @classmethod
    def of(cls, x: jax.Array, w_hh: jax.Array) -> CallSizes:
        """Return the sizes of a call with inputs (T, N, D) and recurrent weights (G*H, H)."""
        return cls(x.shape[0], x.shape[1], x.shape[2], w_hh.shape[1])


class Partition(NamedTuple):
    """Partition of a call: groups of batch elements, and of hidden units within each."""

    batch_groups: int
    unit_groups: int


def partition(
    machine: Machine, tile: Tile, gates: int, sizes: CallSizes, panels: int, weight_bytes: int
) -> Partition:
    """Partition a call among threads; each step reads `weight_bytes` of weights in `panels`."""
    flop = 2 * sizes.T * sizes.N * sizes.H * (sizes.D + sizes.H) * gates
    count = max(1, min(machine.cores, flop // machine.flop_per_thread))
    batch_tiles = max(1, sizes.N // tile.height)
    if batch_tiles >= count and (weight_bytes <= machine.private_weights or panels < count):
        return Partition(count, 1)
    if panels >= count:
        return Partition(1, count)
    groups = min(count, batch_tiles)
    return Partition(groups, max(1, min(count // groups, panels)))


def backward_block(sizes: CallSizes, gradient_bytes: int) -> int:
    """Return the number of steps in a block of the backward kernel."""
    size = BACKWARD_BLOCK if gradient_bytes <= LARGE_GRADIENT else LARGE_BACKWARD_BLOCK
    return max(1, min(sizes.T, size // sizes.N))


class Workspace:
    """Offsets of the regions of a workspace, given by their bytes and aligned to cache lines."""

    def __init__(self, **regions: int):
        self.size, self.offsets = 0, {}
        for name, size in regions.items():
            self.offsets[name] = self.size
            self.size += -(-size // 64) * 64


def call_layout(
    names: tuple[str, ...],
    split: Partition,
    sizes: CallSizes,
    reverse: bool,
    shared: Workspace,
    private: Workspace,
    **more: int,
) -> tuple[list[int], int]:
    """Return the integers of a call, in the order of `names`, and the bytes of its workspace.

    The workspaces of the threads follow the shared one.
    """
    direction = dict(T_FIRST=sizes.T - 1 if reverse else 0, T_STEP=-1 if reverse else 1)
    values = {**more, **shared.offsets, **private.offsets, **sizes._asdict(), **direction}
    values |= dict(PRIVATE=shared.size, PRIVATE_SIZE=private.size)
    size = shared.size + split.batch_groups * split.unit_groups * private.size
    return [*split, *(values[name] for name in names)], size


@dataclass(frozen=True)
class KernelSpec:
    """Static description of a kernel."""

    cell: Any
    dtype: Any  # float32 or float64
    masked: bool  # True if there is an operand of packed masks
    tile: Tile  # of the recurrent product

    NAME: ClassVar[str]
    SCALARS: ClassVar[tuple[str, ...]]  # integers of the context, in order
    SHARED: ClassVar[tuple[str, ...]]  # those that are offsets of the shared workspace
    PRIVATE: ClassVar[tuple[str, ...]]  # and of the workspace of a thread

    @property
    def graph(self) -> CellGraphs:
        """Graphs of the cell."""
        return cell_graphs(self.cell, self.dtype)

    @property
    def states(self) -> int:
        """Number of states."""
        return len(self.cell.states)

    @property
    def gates(self) -> int:
        """Number of gates."""
        return len(self.cell.gates)

    def inputs(self) -> list[str]:
        """Return the names of the operands."""
        raise NotImplementedError

    def outputs(self) -> list[str]:
        """Return the names of the results, without the workspace."""
        raise NotImplementedError

    def write(self, module: Module) -> None:
        """Write ``work(context, number)``, the function that each thread of a call executes."""
        raise NotImplementedError

    def names(self, prefix: str, count: int | None = None) -> list[str]:
        """Return numbered names, by default one per state."""
        return [f"{prefix}{i}" for i in range(self.states if count is None else count)]


class KernelWriter:
    """Writer of ``work(context, number)``: access to operands, results and workspace.

    `c` is the context by name, `shared` and `private` are the addresses of the workspace's regions.
    """

    def __init__(self, module: Module, spec: KernelSpec):
        self.m, self.spec, self.tile = module, spec, spec.tile
        self.f = f = Function(module, "work", dict(context="ptr", number=INT))
        names = (*spec.SCALARS, *spec.inputs(), *spec.outputs(), "workspace")
        self.c = c = threads.load_context(f, names)
        self.sums = spec.tile.vectors * module.lanes  # elements of a panel of sums
        self.shared = {name: f.gep(c["workspace"], c[name], 1) for name in spec.SHARED}
        start = f.gep(c["workspace"], c["PRIVATE"], 1)
        start = f.gep(start, f.mul(c["PRIVATE_SIZE"], "%number"), 1)
        self.private = {name: f.gep(start, c[name], 1) for name in spec.PRIVATE}

    def mask_bits(self, t: str, n: str) -> tuple[str, str]:
        """Return the conditions "reset before step t" and "step t is valid" of sequence n."""
        f, c = self.f, self.c
        byte = f.load(f.gep(c["masks"], f.add(f.mul(t, c["N"]), n), 1), "i8")
        reset = f.icmp("ne", f.assign(f"and i8 {byte}, 1"), 0, "i8")
        return reset, f.icmp("ne", f.assign(f"and i8 {byte}, 2"), 0, "i8")

    def vectors(self, panel: str) -> Iterator[tuple[int, str, str]]:
        """Iterate over the vectors of a panel: index, first hidden unit, mask of units below H."""
        f, lanes = self.f, self.m.lanes
        for vector in range(self.tile.width):
            first = f.add(f.mul(panel, self.tile.width * lanes), vector * lanes)
            yield vector, first, f.active_lanes(first, self.c["H"])

    def cell_param(self, index: int, first: str, active: str) -> str:
        """Load a vector of a cell parameter."""
        f, c = self.f, self.c
        return f.masked_load(f.gep(c["cell_params"], f.add(f.mul(c["H"], index), first)), active)

    def residual(self, index: int, position: str, first: str) -> str:
        """Return the address of a value that the cell saves at a position (t, n)."""
        f, c = self.f, self.c
        for array, count in enumerate(self.spec.graph.residual_counts):
            if index < count:
                offset = f.mul(f.add(f.mul(position, count), index), c["H"])
                return f.gep(c[f"residual{array}"], f.add(offset, first))
            index -= count
        raise IndexError(index)

    def copy_states(self, part: threads.Part, source: str, target: str) -> None:
        """Copy the thread's part of a state (N, H)."""
        f, c = self.f, self.c
        with f.loop(part.n0, part.n1) as n, f.loop(part.panel0, part.panel1) as p:
            for _, first, active in self.vectors(p):
                place = f.add(f.mul(n, c["H"]), first)
                value = f.masked_load(f.gep(c[source], place), active)
                f.masked_store(value, f.gep(c[target], place), active)

    def put(self, value: str, region: str, index: str, kind: str = "ptr") -> None:
        """Store an address or integer in an array of the thread's workspace."""
        self.f.store(value, self.f.gep(self.private[region], index, 8), kind)

    def get(self, region: str, index: str, kind: str = "ptr") -> str:
        """Load an address or integer from an array of the thread's workspace."""
        return self.f.load(self.f.gep(self.private[region], index, 8), kind)
