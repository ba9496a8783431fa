"""Threads of a kernel: started for a call, meeting at barriers, gone when it ends.

A call that is long enough starts threads of its own; a pool would have to be kept awake for calls
of some microseconds, and to survive forks. A call has groups of rows of the batch, which need
nothing of each other, and in each of them threads that share the hidden units and meet after each
step.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jaxrnn.backends.cpu.ir import INT, Function, Module

GO, THREADS, ROW_GROUPS, UNIT_GROUPS, BARRIERS = range(5)
"""The first slots of a call's context, an array of numbers and addresses that all threads read."""

FIRST_FREE = 5
LINE = 64  # bytes of a cache line: counters on one line would slow each other down
PROCESSORS = 128  # bytes of a set of processors, one bit each
ATTRIBUTES = 64  # bytes of a thread's attributes, or a few more than they have


@dataclass(frozen=True)
class Sharing:
    """How a call is shared out: groups of rows, and threads in each, which share the units."""

    row_groups: int
    unit_groups: int

    @property
    def threads(self) -> int:
        """How many there are, the caller's own among them."""
        return self.row_groups * self.unit_groups


def linked(*names: str) -> bool:
    """Whether the C library has such functions, found in the process."""
    if sys.platform == "win32":
        return False
    here = ctypes.CDLL(None)
    return all(hasattr(here, name) for name in names)


def available() -> bool:
    """Whether threads can be started here."""
    return linked("pthread_create", "pthread_join", "sched_yield")


def placed() -> bool:
    """Whether a thread can be told where to run, as on Linux."""
    names = "sched_getcpu", "sched_getaffinity", "pthread_attr_setaffinity_np"
    return sys.platform.startswith("linux") and linked(*names)


def write_elsewhere(m: Module) -> None:
    """``elsewhere(attributes)``: those of a thread that runs where the caller does not, or null.

    JAX runs a program in a thread of its own, which the one that calls it wakes before it goes to
    sleep. While both are awake a new thread finds no idle core, and the system puts it behind the
    one that makes it: the first kernel of a program had one core less for some two milliseconds.
    """
    f = Function(m, "elsewhere", [("attributes", "ptr")], "ptr")
    m.declare("sched_getaffinity", "i32", ["i32", INT, "ptr"])
    m.declare("sched_getcpu", "i32", [])
    m.declare("pthread_attr_init", "i32", ["ptr"])
    m.declare("pthread_attr_setaffinity_np", "i32", ["ptr", INT, "ptr"])
    allowed = f.array(INT, PROCESSORS // 8)
    which = f"i64 {PROCESSORS}", f"ptr {allowed}"
    failed = f.call("sched_getaffinity", "i32 0", *which, result="i32")
    number = f.let(f"sext i32 {f.call('sched_getcpu', result='i32')} to i64")
    known = f.compare("ult", number, 8 * PROCESSORS)
    known = f.let(f"and i1 {known}, {f.compare('eq', failed, 0, 'i32')}")
    number = f.choose(known, number, "0")
    word = f.at(allowed, f.div(number, 64), 8)
    here = f.let(f"shl i64 1, {f.let(f'urem i64 {number}, 64')}")
    f.store(f.let(f"and i64 {f.load(word, INT)}, {f.let(f'xor i64 {here}, -1')}"), word, INT)
    left = "0"
    for i in range(PROCESSORS // 8):
        left = f.let(f"or i64 {left}, {f.load(f.at(allowed, i, 8), INT)}")
    known = f.let(f"and i1 {known}, {f.compare('ne', left, 0)}")
    f.call("pthread_attr_init", "ptr %attributes", result="i32")
    failed = f.call("pthread_attr_setaffinity_np", "ptr %attributes", *which, result="i32")
    known = f.let(f"and i1 {known}, {f.compare('eq', failed, 0, 'i32')}")
    f.done(f.choose(known, "%attributes", "null", "ptr"))


def meet(f: Function, c: dict[str, str], times: str) -> None:
    """Wait until all threads of a call have met so often."""
    f.call("barrier", f"ptr {c['barriers']}", f"i64 {c['THREADS']}", f"i64 {times}")


def write_barrier(m: Module) -> None:
    """``barrier(counter, threads, round)``: wait until all threads came `round` times."""
    f = Function(m, "barrier", [("counter", "ptr"), ("threads", INT), ("round", INT)])
    want = f.mul("%threads", "%round")
    f.let("atomicrmw add ptr %counter, i64 1 acq_rel, align 8")
    f.say("br label %head")
    f.label("head")
    f.say("%tries = phi i64 [ 1, %entry ], [ %next, %again ]")
    now = f.let("load atomic i64, ptr %counter acquire, align 8")
    done = f.compare("sge", now, want)
    f.say(f"br i1 {done}, label %exit, label %wait")
    f.label("wait")
    f.say("%next = add i64 %tries, 1")
    # Whoever is waited for may have no core: after a while give way.
    f.say("%rest = and i64 %next, 1023")
    f.say("%long = icmp eq i64 %rest, 0")
    f.say("br i1 %long, label %yield, label %again")
    f.label("yield")
    _give_way(f)
    f.say("br label %again")
    f.label("again")
    f.say("br label %head")
    f.label("exit")
    f.done()


def _give_way(f: Function) -> None:
    if available():
        f.module.declare("sched_yield", "i32", [])
        f.call("sched_yield", result="i32")


def write_start(m: Module) -> None:
    """``start``: the first function of a thread; its argument is its number and the context."""
    f = Function(m, "start", [("argument", "ptr")], "ptr")
    number = f.load("%argument", INT)
    context = f.load(f.at("%argument", 1, 8), "ptr")
    f.say("br label %head")
    f.label("head")
    go = f.let(f"load atomic i64, ptr {context} acquire, align 8")
    f.say(f"%ready = icmp ne i64 {go}, 0")
    f.say("br i1 %ready, label %run, label %wait")
    f.label("wait")
    _give_way(f)
    f.say("br label %head")
    f.label("run")
    threads = f.load(f.at(context, THREADS, 8), INT)
    with f.when(f.compare("slt", number, threads)):
        f.call("work", f"ptr {context}", f"i64 {number}")
    f.done("null")


def write_run(m: Module, cores: int) -> None:
    """``run(context)``: ``work(context, number)`` of each thread; of one if no more can be had."""
    f = Function(m, "run", [("context", "ptr")])
    slot = lambda index: f.at("%context", index, 8)  # noqa: E731
    counters = f.array(f"[{LINE} x i8]", cores + 1)
    with f.loop(0, cores + 1) as i:
        f.store("0", f.at(counters, i, LINE), INT)
    f.store(counters, slot(BARRIERS), "ptr")
    f.say("store atomic i64 0, ptr %context release, align 8")
    if cores > 1 and available():
        requested = f.load(slot(THREADS), INT)
        handles, given = f.array(INT, cores), f.array(INT, 2 * cores)
        count, where = f.array(INT, 1), f.array("ptr", 1)
        attributes = f.array(INT, ATTRIBUTES // 8)
        several = f.compare("sgt", requested, 1)
        f.store("null", where, "ptr")
        if placed():
            write_elsewhere(m)
            with f.when(several):
                f.store(f.call("elsewhere", f"ptr {attributes}", result="ptr"), where, "ptr")
        f.store("1", count, INT)
        with f.loop(1, requested):
            number = f.load(count, INT)
            one = f.at(given, f.mul(number, 2), 8)
            f.store(number, one, INT)
            f.store("%context", f.at(one, 1, 8), "ptr")
            m.declare("pthread_create", "i32", ["ptr"] * 4)
            how = f"ptr {f.load(where, 'ptr')}", "ptr @start", f"ptr {one}"
            failed = f.call("pthread_create", f"ptr {f.at(handles, number, 8)}", *how, result="i32")
            fine = f.compare("eq", failed, 0, "i32")
            f.store(f.choose(fine, f.add(number, 1), number), count, INT)
        if placed():
            m.declare("pthread_attr_destroy", "i32", ["ptr"])
            with f.when(several):
                f.call("pthread_attr_destroy", f"ptr {attributes}", result="i32")
        threads = f.load(count, INT)
        with f.when(f.compare("ne", threads, requested)):
            for index in (THREADS, ROW_GROUPS, UNIT_GROUPS):
                f.store("1", slot(index), INT)
        f.say("store atomic i64 1, ptr %context release, align 8")
        f.call("work", "ptr %context", "i64 0")
        m.declare("pthread_join", "i32", [INT, "ptr"])
        with f.loop(1, threads) as i:
            handle = f.load(f.at(handles, i, 8), INT)
            f.call("pthread_join", f"i64 {handle}", "ptr null", result="i32")
    else:
        for index in (THREADS, ROW_GROUPS, UNIT_GROUPS):
            f.store("1", slot(index), INT)
        f.call("work", "ptr %context", "i64 0")
    f.done()


def share(f: Function, total: str, number: str, parts: str) -> tuple[str, str]:
    """The piece of `total` things that is a thread's own: first, end."""
    first = f.div(f.mul(total, number), parts)
    return first, f.div(f.mul(total, f.add(number, 1)), parts)


class Share:
    """What is a thread's own: rows of the batch, and panels of hidden units."""

    def __init__(self, f: Function, c: dict[str, str]):
        row_group = f.div("%number", c["UNIT_GROUPS"])
        unit_group = f.sub("%number", f.mul(row_group, c["UNIT_GROUPS"]))
        self.row0, self.row1 = share(f, c["N"], row_group, c["ROW_GROUPS"])
        self.panel0, self.panel1 = share(f, c["PANELS"], unit_group, c["UNIT_GROUPS"])
        self._unit_group, self._unit_groups = unit_group, c["UNIT_GROUPS"]
        self._counter = f.at(c["barriers"], f.mul(f.add(row_group, 1), LINE), 1)
        self._any = f.compare("ugt", c["UNIT_GROUPS"], 1)

    def share_of_units(self, f: Function, total: str) -> tuple[str, str]:
        """The piece of `total` things that are shared like the units: first, end."""
        return share(f, total, self._unit_group, self._unit_groups)

    def meet(self, f: Function, times: str) -> None:
        """Wait for those with the same rows, for the so many-th time."""
        with f.when(self._any):
            f.call("barrier", f"ptr {self._counter}", f"i64 {self._unit_groups}", f"i64 {times}")


def slots(f: Function, names: Sequence[str]) -> dict[str, str]:
    """What is in the context of a call, by name: capital letters for numbers, else addresses."""
    first = ("GO", "THREADS", "ROW_GROUPS", "UNIT_GROUPS", "barriers")
    return {
        name: f.load(f.at("%context", index, 8), INT if name.isupper() else "ptr")
        for index, name in enumerate((*first, *names))
        if name != "GO"
    }
