"""Threads, barriers and large pages of a kernel call.

A call that is long enough starts threads and joins them at its end. A thread pool would have to
stay awake between calls of some microseconds, and to survive forks. The batch is partitioned into
groups that are independent of each other; the threads of a group partition the hidden units and
wait for each other at a barrier after each step.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

from jaxrnn.backends.cpu.ir import INT, Function, Module

# First slots of the context, an array of integers and addresses that all threads of a call read.
READY, THREADS, BATCH_GROUPS, UNIT_GROUPS, BARRIERS = range(5)
HEADER = 5

_CACHE_LINE = 64  # bytes; the counter of each barrier has a line, so that groups do not contend
_CPU_SET = 128  # bytes of a cpu_set_t
_ATTRIBUTES = 64  # bytes of a pthread_attr_t, or a few more

_LARGE_RESULT = 4 << 20  # bytes of a result for which large pages are requested
_PAGE = 2 << 20
_MADV_HUGEPAGE = 14


def _in_libc(*names: str) -> bool:
    """Return True if the C library of this process has functions of these names."""
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None)
    return all(hasattr(library, name) for name in names)


def _has_threads() -> bool:
    return _in_libc("pthread_create", "pthread_join", "sched_yield")


def _has_affinity() -> bool:
    names = "sched_getcpu", "sched_getaffinity", "pthread_attr_setaffinity_np"
    return sys.platform.startswith("linux") and _in_libc(*names)


def request_large_pages(f: Function, address: str, count: str) -> None:
    """Request large pages for a large result of `count` scalars.

    XLA allocates the results of a call above 32 MB from the system, which maps pages of 4 KB when
    they are first touched. For the residuals of a sequence this took up to a fifth of a training
    step; with large pages it takes a third of that. Only whole pages within the result are
    requested, so memory use does not grow. NumPy does the same for arrays from 4 MB.
    """
    if not (sys.platform.startswith("linux") and _in_libc("madvise")):
        return
    m = f.module
    m.declare("madvise", "i32", "ptr", INT, "i32")
    size = f.mul(count, m.itemsize)
    with f.if_then(f.icmp("sge", size, _LARGE_RESULT)):
        begin = f.assign(f"ptrtoint ptr {address} to i64")
        end = f.assign(f"and i64 {f.add(begin, size)}, -{_PAGE}")
        first = f.assign(f"and i64 {f.add(begin, _PAGE - 1)}, -{_PAGE}")
        page = f.assign(f"inttoptr i64 {first} to ptr")
        f.call("madvise", page, f.sub(end, first), _MADV_HUGEPAGE)


def write_barrier(m: Module) -> None:
    """Write ``barrier(counter, threads, round)``: wait until all threads arrived `round` times."""
    f = Function(m, "barrier", dict(counter="ptr", threads=INT, round=INT))
    arrivals = f.mul("%threads", "%round")
    f.assign("atomicrmw add ptr %counter, i64 1 acq_rel, align 8")
    f.emit("br label %head")
    f.label("head")
    f.emit("%tries = phi i64 [ 1, %entry ], [ %next, %again ]")
    now = f.assign("load atomic i64, ptr %counter acquire, align 8")
    done = f.icmp("sge", now, arrivals)
    f.emit(f"br i1 {done}, label %exit, label %wait")
    f.label("wait")
    f.emit("%next = add i64 %tries, 1")
    # The awaited thread may have no core: yield after a while.
    f.emit("%rest = and i64 %next, 1023")
    f.emit("%long = icmp eq i64 %rest, 0")
    f.emit("br i1 %long, label %yield, label %again")
    f.label("yield")
    _yield(f)
    f.emit("br label %again")
    f.label("again")
    f.emit("br label %head")
    f.label("exit")
    f.ret()


def _yield(f: Function) -> None:
    if _has_threads():
        f.module.declare("sched_yield", "i32")
        f.call("sched_yield")


def write_run(m: Module, cores: int) -> None:
    """Write ``run(context)``: call ``work(context, number)`` in each thread of a call.

    If a thread cannot be started, the caller does the whole work.
    """
    _write_start(m)
    f = Function(m, "run", dict(context="ptr"))
    slot = lambda index: f.gep("%context", index, 8)  # noqa: E731
    counters = f.alloca(f"[{_CACHE_LINE} x i8]", cores + 1)
    with f.loop(0, cores + 1) as i:
        f.store(0, f.gep(counters, i, _CACHE_LINE), INT)
    f.store(counters, slot(BARRIERS), "ptr")
    f.emit("store atomic i64 0, ptr %context release, align 8")
    if cores == 1 or not _has_threads():
        for index in (THREADS, BATCH_GROUPS, UNIT_GROUPS):
            f.store(1, slot(index), INT)
        f.call("work", "%context", 0)
        f.ret()
        return
    requested = f.load(slot(THREADS), INT)
    handles, arguments = f.alloca(INT, cores), f.alloca(INT, 2 * cores)
    count, placement = f.alloca(INT), f.alloca("ptr")
    attributes = f.alloca(INT, _ATTRIBUTES // 8)
    several = f.icmp("sgt", requested, 1)
    f.store("null", placement, "ptr")
    if _has_affinity():
        _write_other_core(m)
        with f.if_then(several):
            f.store(f.call("other_core", attributes), placement, "ptr")
    f.store(1, count, INT)
    with f.loop(1, requested):
        number = f.load(count, INT)
        argument = f.gep(arguments, f.mul(number, 2), 8)
        f.store(number, argument, INT)
        f.store("%context", f.gep(argument, 1, 8), "ptr")
        m.declare("pthread_create", "i32", *["ptr"] * 4)
        where = f.load(placement, "ptr")
        handle = f.gep(handles, number, 8)
        failed = f.call("pthread_create", handle, where, "@start", argument)
        success = f.icmp("eq", failed, 0, "i32")
        f.store(f.select(success, f.add(number, 1), number), count, INT)
    if _has_affinity():
        m.declare("pthread_attr_destroy", "i32", "ptr")
        with f.if_then(several):
            f.call("pthread_attr_destroy", attributes)
    threads = f.load(count, INT)
    with f.if_then(f.icmp("ne", threads, requested)):
        for index in (THREADS, BATCH_GROUPS, UNIT_GROUPS):
            f.store(1, slot(index), INT)
    f.emit("store atomic i64 1, ptr %context release, align 8")
    f.call("work", "%context", 0)
    m.declare("pthread_join", "i32", INT, "ptr")
    with f.loop(1, threads) as i:
        handle = f.load(f.gep(handles, i, 8), INT)
        f.call("pthread_join", handle, "null")
    f.ret()


def _write_start(m: Module) -> None:
    """Write ``start(argument)``, the main function of a thread; `argument` is number, context."""
    f = Function(m, "start", dict(argument="ptr"), "ptr")
    number = f.load("%argument", INT)
    context = f.load(f.gep("%argument", 1, 8), "ptr")
    f.emit("br label %head")
    f.label("head")
    ready = f.assign(f"load atomic i64, ptr {context} acquire, align 8")
    f.emit(f"%ready = icmp ne i64 {ready}, 0")
    f.emit("br i1 %ready, label %run, label %wait")
    f.label("wait")
    _yield(f)
    f.emit("br label %head")
    f.label("run")
    threads = f.load(f.gep(context, THREADS, 8), INT)
    with f.if_then(f.icmp("slt", number, threads)):
        f.call("work", context, number)
    f.ret("null")


def _write_other_core(m: Module) -> None:
    """Write ``other_core(attributes)``: set attributes of threads that avoid the caller's core.

    It returns the attributes, or null.

    JAX runs a program in a thread that the calling thread wakes before it goes to sleep. While
    both are awake, Linux finds no idle core and queues a new thread behind the one that creates
    it: the first kernel of a program had one core less for some two milliseconds.
    """
    f = Function(m, "other_core", dict(attributes="ptr"), "ptr")
    m.declare("sched_getaffinity", "i32", "i32", INT, "ptr")
    m.declare("sched_getcpu", "i32")
    m.declare("pthread_attr_init", "i32", "ptr")
    m.declare("pthread_attr_setaffinity_np", "i32", "ptr", INT, "ptr")
    cores = f.alloca(INT, _CPU_SET // 8)
    failed = f.call("sched_getaffinity", 0, _CPU_SET, cores)
    current = f.assign(f"sext i32 {f.call('sched_getcpu')} to i64")
    known = f.icmp("ult", current, 8 * _CPU_SET)
    known = f.assign(f"and i1 {known}, {f.icmp('eq', failed, 0, 'i32')}")
    current = f.select(known, current, "0")
    word = f.gep(cores, f.udiv(current, 64), 8)
    bit = f.assign(f"shl i64 1, {f.assign(f'urem i64 {current}, 64')}")
    f.store(f.assign(f"and i64 {f.load(word, INT)}, {f.assign(f'xor i64 {bit}, -1')}"), word, INT)
    others = "0"
    for i in range(_CPU_SET // 8):
        others = f.assign(f"or i64 {others}, {f.load(f.gep(cores, i, 8), INT)}")
    known = f.assign(f"and i1 {known}, {f.icmp('ne', others, 0)}")
    f.call("pthread_attr_init", "%attributes")
    failed = f.call("pthread_attr_setaffinity_np", "%attributes", _CPU_SET, cores)
    known = f.assign(f"and i1 {known}, {f.icmp('eq', failed, 0, 'i32')}")
    f.ret(f.select(known, "%attributes", "null", "ptr"))


def load_context(f: Function, names: Sequence[str]) -> dict[str, str]:
    """Load the context of a call by name: integers in capital letters, addresses in small ones."""
    header = ("THREADS", "BATCH_GROUPS", "UNIT_GROUPS", "barriers")
    return {
        name: f.load(f.gep("%context", index, 8), INT if name.isupper() else "ptr")
        for index, name in enumerate((*header, *names), THREADS)
    }


def wait_for_all(f: Function, context: dict[str, str], arrivals: str) -> None:
    """Wait at the barrier of all threads."""
    f.call("barrier", context["barriers"], context["THREADS"], arrivals)


def interval(f: Function, total: str, index: str, parts: str) -> tuple[str, str]:
    """Return the first and the end of part `index` of `total` items."""
    first = f.udiv(f.mul(total, index), parts)
    return first, f.udiv(f.mul(total, f.add(index, 1)), parts)


class Part:
    """Batch elements `n0` to `n1` and panels `panel0` to `panel1`, which a thread computes."""

    def __init__(self, f: Function, context: dict[str, str]):
        self._unit_groups = context["UNIT_GROUPS"]
        batch_group = f.udiv("%number", self._unit_groups)
        self._unit_group = f.sub("%number", f.mul(batch_group, self._unit_groups))
        self.n0, self.n1 = interval(f, context["N"], batch_group, context["BATCH_GROUPS"])
        self.panel0, self.panel1 = self.interval_of_units(f, context["PANELS"])
        offset = f.mul(f.add(batch_group, 1), _CACHE_LINE)
        self._counter = f.gep(context["barriers"], offset, 1)
        self._several = f.icmp("ugt", self._unit_groups, 1)

    def interval_of_units(self, f: Function, total: str) -> tuple[str, str]:
        """Return the interval of `total` items that are partitioned as the hidden units are."""
        return interval(f, total, self._unit_group, self._unit_groups)

    def wait(self, f: Function, arrivals: str) -> None:
        """Wait at the barrier of the threads with the same batch elements."""
        with f.if_then(self._several):
            f.call("barrier", self._counter, self._unit_groups, arrivals)
