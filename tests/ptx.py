"""A simulated machine for the PTX of the Hopper kernels: the messages between blocks.

Each block is a Python thread, its 128 threads are the lanes of NumPy arrays with a program counter
each, and one block runs at a time, until it waits. Everything that the hardware leaves open is
random: which block runs next, when a message of ``st.async`` arrives, when a cluster starts. Other
blocks see global writes after their release, and ``cp.async`` completes when it is waited for: a
missing release or wait gives a wrong number. Addresses outside of an allocation, or misaligned, are
errors.

The instructions are those of `jaxrnn.backends.hopper.exchange`, after NVIDIA's PTX ISA, version 8.
"""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

LANES = 128
WINDOW = 1 << 24
"""Distance of the shared memories of two blocks in the address space of their cluster."""


class Ref:
    """An array in an allocation."""

    def __init__(self, array: np.ndarray, root: np.ndarray, begin: int):
        self.array, self.root, self.begin = array, root, begin

    @property
    def address(self) -> int:
        """Address of the first byte."""
        at = lambda a: a.__array_interface__["data"][0]  # noqa: E731
        return self.begin + at(self.array) - at(self.root)

    @property
    def at(self) -> Any:
        """Slices of the array."""
        return _At(self)

    def __getitem__(self, index: Any) -> Any:
        return self.array[_index(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        where = _index(index)
        assert np.shape(self.array[where]) == np.shape(value)
        self.array[where] = value


class _At:
    def __init__(self, ref: Ref):
        self.ref = ref

    def __getitem__(self, index: Any) -> Ref:
        part = self.ref.array[_index(index)]
        assert isinstance(part, np.ndarray)
        assert part.flags.c_contiguous
        return Ref(part, self.ref.root, self.ref.begin)


def _index(index: Any) -> Any:
    if index is Ellipsis:
        return index
    each = index if isinstance(index, tuple) else (index,)
    begin = [int(getattr(i, "start", i)) for i in each]
    assert all(0 <= b < 1 << 31 for b in begin)
    return tuple(
        slice(b, b + i.size) if hasattr(i, "size") and hasattr(i, "start") else b
        for b, i in zip(begin, each, strict=True)
    )


class Memory:
    """Allocations, with gaps between them."""

    def __init__(self, begin: int):
        self.next, self.allocations = begin, []

    def add(self, shape: tuple[int, ...], dtype: Any, fill: int = 0xFF) -> Ref:
        """Allocate an array; floats are NaN."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        root = np.full(max(size, 1), fill, np.uint8)
        self.allocations.append((self.next, root))
        ref = Ref(root[:size].view(dtype).reshape(shape), root, self.next)
        self.next += -(-size // 1024) * 1024 + 1024
        return ref

    def find(self, addresses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the allocation with `size` bytes at each address, and their offsets in it."""
        least, most = int(addresses.min()), int(addresses.max())
        assert not (addresses % size).any(), f"{least:#x} is not aligned to {size} bytes"
        for begin, root in self.allocations:
            if begin <= least and most + size <= begin + len(root):
                return root, (addresses.astype(np.int64) - begin)[:, None] + np.arange(size)
        raise AssertionError(f"no allocation from {least:#x} to {most + size:#x}")


class Stopped(BaseException):
    """Raised in all blocks after one has failed."""


class Block:
    """A block of 128 threads."""

    def __init__(self, machine: Machine, cluster: int, rank: int):
        self.machine, self.cluster, self.rank = machine, cluster, rank
        self.shared = Memory(1024)
        self.barriers: dict[int, list[int]] = {}
        self.unseen: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.arrived = 0
        self.go, self.back = threading.Event(), threading.Event()
        self.done = self.waiting = False

    def pause(self, waiting: bool = False) -> None:
        """Let other blocks run."""
        self.waiting = waiting
        self.back.set()
        self.go.wait()
        self.go.clear()
        if self.machine.failed is not None:
            raise Stopped

    def load(self, space: str, addresses: np.ndarray, size: int) -> np.ndarray:
        """Load `size` bytes from each address: (addresses, size).

        Global memory contains what has been released and what this block has written.
        """
        if space == "global":
            root, at = self.machine.memory.find(addresses, size)
            written, new = self._unseen(root)
            return np.where(new[at], written[at], root[at])
        owner = self if space == "cta" else self.of(addresses)
        root, at = owner.shared.find(addresses % WINDOW, size)
        return root[at]

    def store(self, space: str, addresses: np.ndarray, data: np.ndarray) -> None:
        """Store into shared memory, or into global memory, which others see after a release."""
        memory = self.machine.memory if space == "global" else self.shared
        root, at = memory.find(addresses, data.shape[1])
        if space == "global":
            root, new = self._unseen(root)
            new[at] = True
        root[at] = data

    def _unseen(self, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what this block has written to an allocation, and a mask of it."""
        if id(root) not in self.unseen:
            self.unseen[id(root)] = root, np.zeros_like(root), np.zeros(len(root), bool)
        return self.unseen[id(root)][1:]

    def release(self) -> None:
        """Let other blocks see what this block has written."""
        for root, written, new in self.unseen.values():
            root[new] = written[new]
            new[:] = False

    def of(self, addresses: np.ndarray) -> Block:
        """Return the block of this cluster that owns the addresses."""
        (rank,) = set((addresses // WINDOW - 1).tolist())
        return self.machine.clusters[self.cluster][rank]

    def count(self, barrier: int, bytes_: int, arrivals: int = 0) -> None:
        """Add expected bytes, negative for arrived ones; a phase completes at zero."""
        state = self.barriers[barrier]
        state[1] -= arrivals
        state[2] += bytes_
        assert state[1] >= 0, "a block has arrived twice in one phase"
        if state[1:] == [0, 0]:
            state[:] = [state[0] + 1, 1, 0]

    def execute(self, text: str, *operands: int, returns: bool = False) -> int | None:
        """Execute instructions, with a register for the result before those of the operands."""
        given = [0] * returns + list(operands)
        run = _Run(self, parsed(text), given)
        if returns:
            run.registers["$0"] = np.zeros(LANES, np.uint32)
        run.run()
        self.pause()
        if not returns:
            return None
        number = run.registers["$0"]
        assert (number == number[0]).all(), "a scalar differs between threads"
        return int(number[0])


class Machine:
    """Clusters of blocks, of which `at_once` are resident."""

    def __init__(self, seed: int, clusters: int, blocks: int, at_once: int):
        self.random = np.random.default_rng(seed)
        self.memory = Memory(1 << 33)
        self.clusters = [[Block(self, k, r) for r in range(blocks)] for k in range(clusters)]
        self.at_once = at_once
        self.messages: list[tuple[Block, np.ndarray, np.ndarray, int]] = []
        self.failed: BaseException | None = None
        self.local = threading.local()

    def launch(self, body: Callable[[Block], None]) -> None:
        """Run a function in all blocks, in random order."""
        left = list(self.random.permutation(len(self.clusters)))
        resident: list[int] = []
        threads: list[threading.Thread] = []

        def run(block: Block) -> None:
            self.local.block = block
            try:
                block.pause()
                body(block)
            except Stopped:
                pass
            except BaseException as error:
                self.failed = self.failed or error
            block.done = True
            block.back.set()

        idle = 0
        while left or resident:
            while left and len(resident) < self.at_once:
                resident.append(left.pop())
                for block in self.clusters[resident[-1]]:
                    threads.append(threading.Thread(target=run, args=(block,), daemon=True))
                    threads[-1].start()
                    block.back.wait()
                    block.back.clear()
            blocks = [b for k in resident for b in self.clusters[k] if not b.done]
            if blocks:
                block = blocks[self.random.integers(len(blocks))]
                block.go.set()
                block.back.wait()
                block.back.clear()
                idle = idle + 1 if block.waiting else 0
            if idle > 100 * len(blocks) + 100 and not self.messages:
                self.failed = self.failed or AssertionError("all blocks wait for each other")
            resident = [k for k in resident if not all(b.done for b in self.clusters[k])]
            if self.failed is None:
                self._deliver()
            else:
                left = []
        for thread in threads:
            thread.join()
        if self.failed is not None:
            raise self.failed
        assert not self.messages, "a message is in flight after all blocks have exited"

    def _deliver(self) -> None:
        """Deliver some of the messages in flight, in any order."""
        late = []
        for block, addresses, data, barrier in self.messages:
            arrived = self.random.random(len(data)) < 0.3
            if not arrived.all():
                late.append((block, addresses[~arrived], data[~arrived], barrier))
            if arrived.any():
                assert not block.done, "a message has arrived at a block that has exited"
                block.store("cta", addresses[arrived], data[arrived])
                block.count(barrier, -data[arrived].size)
        self.messages = late


@functools.cache
def parsed(text: str) -> tuple[list[tuple[str, str, list[str]]], dict[str, int], dict[str, str]]:
    """Parse instructions as (predicate, name, operands), labels and types of registers."""
    program: list[tuple[str, str, list[str]]] = []
    labels: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for piece in re.split(r"[;\n]", re.sub(r"(\w+):(?!:)", r"\1:;", text)):
        piece = piece.strip()
        if not piece:
            continue
        if piece.endswith(":"):
            labels[piece[:-1]] = len(program)
            continue
        predicate, _, rest = piece.partition(" ") if piece.startswith("@") else ("", "", piece)
        name, _, rest = rest.strip().partition(" ")
        operands = [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*", rest)]
        if name == ".reg":
            kind, *first = operands[0].split()
            kinds |= dict.fromkeys([*first, *operands[1:]], kind)
            continue
        program.append((predicate[1:], name, operands))
    return program, labels, kinds


def _names(operand: str) -> list[str]:
    return operand.strip("{}").replace(" ", "").split(",")


class _Run:
    """Execution of instructions in one block."""

    def __init__(self, block: Block, text: Any, given: list[int]):
        self.block = block
        self.program, self.labels, kinds = text
        types = {".pred": np.bool_, ".b32": np.uint32, ".b64": np.uint64, ".f32": np.float32}
        self.registers: dict[str, Any] = {
            name: np.zeros(LANES, types[kind]) for name, kind in kinds.items()
        }
        self.given = given
        self.place = np.zeros(LANES, np.int64)
        self.on = np.zeros(LANES, bool)
        self.copies: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self) -> None:
        """Run all lanes to the end, the ones furthest behind first, so that they reconverge."""
        end = len(self.program)
        while True:
            at = int(self.place.min())
            if at == end:
                return
            self.on = self.place == at
            predicate, name, operands = self.program[at]
            if predicate:
                self.on &= self.registers[predicate]
            self.place[self.place == at] += 1
            if self.on.any():
                head, *more = name.split(".")
                getattr(self, "do_" + head)(more, operands)

    def value(self, operand: str, dtype: Any = np.uint64) -> np.ndarray:
        """Return an operand in each lane."""
        if operand.startswith("$"):
            return np.full(LANES, self.given[int(operand[1:])], dtype)
        if operand in self.registers:
            return self.registers[operand].astype(dtype)
        if operand == "%tid.x":
            return np.arange(LANES, dtype=dtype)
        if operand == "%cluster_ctarank":
            return np.full(LANES, self.block.rank, dtype)
        return np.full(LANES, int(operand, 0), dtype)

    def put(self, name: str, value: Any) -> None:
        """Write a register in the active lanes."""
        register = self.registers[name]
        register[self.on] = np.asarray(value).astype(register.dtype)[self.on]

    def addresses(self, operand: str) -> np.ndarray:
        """Return the addresses of an operand in brackets."""
        base, _, plus = operand[1:-1].replace(" ", "").partition("+")
        return self.value(base) + np.uint64(int(plus or 0))

    def lane(self, operand: str) -> np.ndarray:
        """Return the address of an instruction that a single thread executes."""
        assert self.on.sum() == 1
        return self.addresses(operand)[self.on]

    def do_mov(self, kind: list[str], o: list[str]) -> None:
        self.put(o[0], self.value(o[1], np.float32 if kind == ["f32"] else np.uint64))

    def do_add(self, kind: list[str], o: list[str]) -> None:
        dtype = np.float32 if kind == ["f32"] else np.uint64
        self.put(o[0], self.value(o[1], dtype) + self.value(o[2], dtype))

    def do_sub(self, kind: list[str], o: list[str]) -> None:
        self.put(o[0], self.value(o[1]) - self.value(o[2]))

    def do_mul(self, kind: list[str], o: list[str]) -> None:
        self.put(o[0], self.value(o[1]) * self.value(o[2]))

    def do_mad(self, kind: list[str], o: list[str]) -> None:
        self.put(o[0], self.value(o[1]) * self.value(o[2]) + self.value(o[3]))

    def do_div(self, kind: list[str], o: list[str]) -> None:
        self.put(o[0], self.value(o[1]) // self.value(o[2]))

    def do_and(self, kind: list[str], o: list[str]) -> None:
        self.put(o[0], self.value(o[1]) & self.value(o[2]))

    def do_setp(self, kind: list[str], o: list[str]) -> None:
        compare = dict(eq=np.equal, ne=np.not_equal, lt=np.less)[kind[0]]
        result = compare(self.value(o[1]), self.value(o[2]))
        if kind[1] == "and":
            result &= self.registers[o[3]]
        self.put(o[0], result)

    def do_bra(self, kind: list[str], o: list[str]) -> None:
        to = self.labels[o[0]]
        back = to < self.place[self.on][0]
        self.place[self.on] = to
        if back:  # it polls: another block has to act first
            self.block.pause(waiting=True)

    def do_ld(self, kind: list[str], o: list[str]) -> None:
        size = 16 if "v4" in kind else 8 if "v2" in kind else 4
        space = "global" if "global" in kind else kind[0].split("::")[-1]
        data = self.block.load(space, self.addresses(o[1])[self.on], size)
        for name, numbers in zip(_names(o[0]), data.view(np.uint32).T, strict=True):
            self.registers[name].view(np.uint32)[self.on] = numbers

    def do_st(self, kind: list[str], o: list[str]) -> None:
        addresses = self.addresses(o[0])[self.on]
        pieces = [self.registers[n].view(np.uint32)[self.on] for n in _names(o[1])]
        data = np.stack(pieces, axis=1).view(np.uint8)
        if kind[0] != "async":
            self.block.store("global" if "global" in kind else "cta", addresses, data)
            return
        barriers = self.addresses(o[2])[self.on]
        for barrier in np.unique(barriers):
            its = barriers == barrier
            block = self.block.of(barriers[its])
            assert block is self.block.of(addresses[its]), (
                "data and barrier belong to different blocks"
            )
            where = addresses[its] % WINDOW
            block.shared.find(where, data.shape[1])
            self.block.machine.messages.append((block, where, data[its], int(barrier) % WINDOW))

    def do_mapa(self, kind: list[str], o: list[str]) -> None:
        self.put(o[0], self.value(o[1]) + (self.value(o[2]) + 1) * WINDOW)

    def do_cp(self, kind: list[str], o: list[str]) -> None:
        if kind[1] == "wait_all":
            assert self.on.all()
            for to, data in self.copies:
                self.block.store("cta", to, data)
            return
        data = self.block.load("global", self.addresses(o[1])[self.on], int(o[2]))
        self.copies.append((self.addresses(o[0])[self.on], data))

    def _count(self, operand: str, more: str) -> int:
        """Add to a counter in global memory and return its previous value."""
        root, at = self.block.machine.memory.find(self.lane(operand), 4)
        counter = root[at[0, 0] :][:4].view(np.uint32)
        counter += np.uint32(int(more))
        return int(counter[0]) - int(more)

    def do_atom(self, kind: list[str], o: list[str]) -> None:
        self.put(o[0], np.full(LANES, self._count(o[1], o[2])))

    def do_red(self, kind: list[str], o: list[str]) -> None:
        if "release" in kind:
            self.block.release()
        self._count(o[0], o[1])

    def do_fence(self, kind: list[str], o: list[str]) -> None:
        pass

    def do_bar(self, kind: list[str], o: list[str]) -> None:
        warps = self.on.reshape(-1, 32)
        assert all(w.all() or not w.any() for w in warps), "a warp has diverged"

    def do_barrier(self, kind: list[str], o: list[str]) -> None:
        assert self.on.all(), "not all threads of a block are at a barrier"
        if kind[0] == "sync":
            return
        block = self.block
        cluster = block.machine.clusters[block.cluster]
        if kind[1] == "arrive":
            block.arrived += 1
            return
        while min(b.arrived for b in cluster) < block.arrived:
            block.pause(waiting=True)

    def do_mbarrier(self, kind: list[str], o: list[str]) -> None:
        block = self.block
        if kind[0] == "init":
            block.barriers[int(self.lane(o[0])[0])] = [0, int(o[1]), 0]
        elif kind[0] == "arrive":
            block.count(int(self.lane(o[1])[0]), int(o[2]), arrivals=1)
        else:
            assert kind[:2] == ["try_wait", "parity"]
            (address,) = set(self.addresses(o[1]))
            (bit,) = set(self.value(o[2]))
            now = block.barriers[int(address)][0]
            self.put(o[0], np.full(LANES, now % 2 != int(bit)))
