"""Writing LLVM's intermediate representation: a module as text, loops and vectors by name.

As little of it as the kernels need. Values are strings (``%12``, ``0``), types are LLVM's.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any

INT, PTR, BOOL = "i64", "ptr", "i1"


class Module:
    """A module: its functions, and the external ones that they call.

    Args:
        scalar: "float" or "double".
        lanes: elements in a vector.
    """

    def __init__(self, scalar: str, lanes: int):
        self.scalar, self.lanes = scalar, lanes
        self.vector = f"<{lanes} x {scalar}>"
        self.mask = f"<{lanes} x i1>"
        self.integers = f"<{lanes} x {'i32' if scalar == 'float' else 'i64'}>"
        self.itemsize = 4 if scalar == "float" else 8
        self.parts: list[str] = []
        self.declared: dict[str, str] = {}

    def declare(self, name: str, result: str, arguments: Sequence[str]) -> None:
        """An external function or intrinsic."""
        self.declared[name] = f"declare {result} @{name}({', '.join(arguments)})"

    def text(self) -> str:
        """The module."""
        return "\n".join([*self.declared.values(), *self.parts])


class Function:
    """A function that is being written, instruction by instruction, at the end of its last block.

    Args:
        module: where it goes once `done`.
        name: its name.
        arguments: names and types.
        result: the type of what it returns.
        attributes: LLVM's.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        arguments: Sequence[tuple[str, str]],
        result: str = "void",
        attributes: str = "internal",
    ):
        self.module, self.result = module, result
        given = ", ".join(f"{kind} %{n}" for n, kind in arguments)
        self.lines = [f"define {attributes} {result} @{name}({given}) #0 {{", "entry:"]
        self.block = "entry"
        self.count = 0

    def done(self, value: str | None = None) -> None:
        """Return and close."""
        self.say("ret void" if value is None else f"ret {self.result} {value}")
        self.lines.append("}")
        self.module.parts.append("\n".join(self.lines))

    def say(self, line: str) -> None:
        """An instruction without a value."""
        self.lines.append("  " + line)

    def let(self, line: str) -> str:
        """An instruction with a value; its name."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {line}")
        return f"%v{self.count}"

    def label(self, name: str) -> None:
        """Begin a block."""
        self.lines.append(f"{name}:")
        self.block = name

    def fresh(self, name: str) -> str:
        """A name for a block that nothing else has."""
        self.count += 1
        return f"{name}{self.count}"

    # Integers and addresses

    def add(self, a: str, b: Any) -> str:
        """A + b."""
        return a if str(b) == "0" else self.let(f"add nsw i64 {a}, {b}")

    def sub(self, a: str, b: Any) -> str:
        """A - b."""
        return self.let(f"sub nsw i64 {a}, {b}")

    def mul(self, a: str, b: Any) -> str:
        """A * b."""
        return a if str(b) == "1" else self.let(f"mul nsw i64 {a}, {b}")

    def div(self, a: str, b: Any) -> str:
        """A // b, of what is not negative."""
        return self.let(f"udiv i64 {a}, {b}")

    def least(self, a: str, b: Any) -> str:
        """min(a, b)."""
        return self.choose(self.compare("slt", a, b), a, str(b))

    def compare(self, how: str, a: str, b: Any, kind: str = INT) -> str:
        """A comparison of integers."""
        return self.let(f"icmp {how} {kind} {a}, {b}")

    def choose(self, condition: str, yes: str, no: str, kind: str = INT) -> str:
        """One of two."""
        return self.let(f"select i1 {condition}, {kind} {yes}, {kind} {no}")

    def at(self, base: str, index: Any, size: int | None = None) -> str:
        """The address of an element, of the module's scalars or of `size` bytes."""
        if str(index) == "0":
            return base
        kind = self.module.scalar if size is None else f"[{size} x i8]"
        return self.let(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def load(self, address: str, kind: str) -> str:
        """What is at an address."""
        align = self.module.itemsize if kind == self.module.vector else None
        return self.let(f"load {kind}, ptr {address}" + (f", align {align}" if align else ""))

    def store(self, value: str, address: str, kind: str) -> None:
        """Put a value at an address."""
        align = self.module.itemsize if kind == self.module.vector else None
        self.say(f"store {kind} {value}, ptr {address}" + (f", align {align}" if align else ""))

    def prefetch(self, address: str) -> None:
        """Have a line of memory brought near, if there is one at an address."""
        self.module.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
        self.call("llvm.prefetch.p0", f"ptr {address}", "i32 0", "i32 3", "i32 1")

    def array(self, kind: str, size: int) -> str:
        """Memory on the stack, as long as the function runs."""
        self.count += 1
        name = f"%a{self.count}"
        self.lines.insert(2, f"  {name} = alloca [{size} x {kind}], align 64")
        return name

    def call(self, name: str, *arguments: str, result: str = "void") -> str:
        """Call a function; arguments with their types."""
        line = f"call {result} @{name}({', '.join(arguments)})"
        if result == "void":
            self.say(line)
            return ""
        return self.let(line)

    # Control

    @contextlib.contextmanager
    def loop(self, first: Any, end: Any, step: Any = 1) -> Iterator[str]:
        """For i from `first` while i < `end`."""
        self.count += 1
        n = self.count
        start = self.block
        self.say(f"br label %head{n}")
        self.label(f"head{n}")
        place = len(self.lines)
        self.lines.append("")
        self.say(f"%more{n} = icmp slt i64 %i{n}, {end}")
        self.say(f"br i1 %more{n}, label %body{n}, label %exit{n}")
        self.label(f"body{n}")
        yield f"%i{n}"
        self.say(f"%next{n} = add nsw i64 %i{n}, {step}")
        self.lines[place] = f"  %i{n} = phi i64 [ {first}, %{start} ], [ %next{n}, %{self.block} ]"
        self.say(f"br label %head{n}")
        self.label(f"exit{n}")

    @contextlib.contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """If a condition holds."""
        yes, after = self.fresh("then"), self.fresh("after")
        self.say(f"br i1 {condition}, label %{yes}, label %{after}")
        self.label(yes)
        yield
        self.say(f"br label %{after}")
        self.label(after)

    @contextlib.contextmanager
    def unless(self, condition: str) -> Iterator[None]:
        """If it does not."""
        with self.when(self.let(f"xor i1 {condition}, true")):
            yield

    # Vectors

    def constant(self, value: float) -> str:
        """A vector of one number."""
        number = f"{self.module.scalar} {literal(value, self.module.scalar)}"
        return f"<{', '.join([number] * self.module.lanes)}>"

    def spread(self, scalar: str, kind: str | None = None) -> str:
        """A vector of one value."""
        lanes = self.module.lanes
        kind = self.module.scalar if kind is None else kind
        vector = f"<{lanes} x {kind}>"
        one = self.let(f"insertelement {vector} poison, {kind} {scalar}, i64 0")
        zeros = f"<{lanes} x i32> zeroinitializer"
        return self.let(f"shufflevector {vector} {one}, {vector} poison, {zeros}")

    def intrinsic(self, name: str, *values: str, kind: str | None = None) -> str:
        """An intrinsic that maps vectors of a kind to one."""
        kind = self.module.vector if kind is None else kind
        lanes, element = kind[1:-1].split(" x ")
        short = {"float": "f32", "double": "f64"}.get(element, element)
        full = f"llvm.{name}.v{lanes}{short}"
        self.module.declare(full, kind, [kind] * len(values))
        return self.call(full, *(f"{kind} {v}" for v in values), result=kind)

    def fma(self, a: str, b: str, c: str) -> str:
        """A * b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def load_some(self, address: str, mask: str) -> str:
        """A vector from an address, zero where the mask is off: nothing is read there."""
        m = self.module
        name = f"llvm.masked.load.v{m.lanes}f{m.itemsize * 8}.p0"
        m.declare(name, m.vector, ["ptr", "i32", m.mask, m.vector])
        zero = f"{m.vector} zeroinitializer"
        aligned = f"i32 {m.itemsize}"
        return self.call(name, f"ptr {address}", aligned, f"{m.mask} {mask}", zero, result=m.vector)

    def store_some(self, value: str, address: str, mask: str) -> None:
        """Put a vector at an address, where the mask is on."""
        m = self.module
        name = f"llvm.masked.store.v{m.lanes}f{m.itemsize * 8}.p0"
        m.declare(name, "void", [m.vector, "ptr", "i32", m.mask])
        aligned = f"i32 {m.itemsize}"
        self.call(name, f"{m.vector} {value}", f"ptr {address}", aligned, f"{m.mask} {mask}")


def literal(value: float, scalar: str) -> str:
    """A number as LLVM writes it: the bits of its double."""
    if scalar == "float":
        (value,) = struct.unpack("<f", struct.pack("<f", value))
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
