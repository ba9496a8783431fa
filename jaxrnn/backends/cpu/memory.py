"""Large results in large pages: to touch memory for the first time is then a third of the work.

XLA takes the memory of a call fresh from the system where it is more than 32 MB. The system hands
it out as it is touched, 4 KB at a time, which for what is kept of a sequence took up to a fifth of
a training step. Only whole pages inside of a result are asked for: no more memory is used.

NumPy does the same with its arrays, from the same size on.
"""

from __future__ import annotations

import sys

from jaxrnn.backends.cpu.ir import INT, Function
from jaxrnn.backends.cpu.threads import linked

LARGE = 4 << 20
"""Bytes of a result from which on large pages are asked for."""

PAGE = 2 << 20
MADV_HUGEPAGE = 14


def available() -> bool:
    """Whether there is something to ask: Linux has it, and may be told not to listen."""
    return sys.platform.startswith("linux") and linked("madvise")


def ask(f: Function, address: str, size: str) -> None:
    """Have what is at an address, so many elements, in large pages if it is large."""
    if not available():
        return
    m = f.module
    m.declare("madvise", "i32", ["ptr", INT, "i32"])
    size = f.mul(size, m.itemsize)
    with f.when(f.compare("sge", size, LARGE)):
        begin = f.let(f"ptrtoint ptr {address} to i64")
        end = f.let(f"and i64 {f.add(begin, size)}, -{PAGE}")
        first = f.let(f"and i64 {f.add(begin, PAGE - 1)}, -{PAGE}")
        there = f.let(f"inttoptr i64 {first} to ptr")
        given = f"ptr {there}", f"i64 {f.sub(end, first)}", f"i32 {MADV_HUGEPAGE}"
        f.call("madvise", *given, result="i32")
