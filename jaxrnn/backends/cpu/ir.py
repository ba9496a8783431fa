r"""Builder of LLVM IR as text, with loops, vectors and elementwise functions.

Values are strings (``%v12``, ``0``) and types are LLVM's. The methods of `Function` have the names
that `llvmlite.ir.IRBuilder` uses.

Elementwise functions of vectors, with :math:`k = \mathrm{round}(x / \log 2)` and
:math:`r = x - k \log 2`:

.. math::
    e^x - 1 &= 2^k (e^r - 1) + (2^k - 1) \\
    \tanh x &= \mathrm{sign}(x) \, e / (e + 2), \quad e = e^{2|x|} - 1 \\
    \sigma(x) &= 1 / (1 + e^{-x})

:math:`e^r - 1` is a Taylor polynomial, :math:`|r| \le \log(2) / 2`. Degree 7 has an error below one
unit in the last place of float32, degree 13 of float64. Because tanh uses :math:`e^x - 1`, it keeps
full relative accuracy near zero.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxrnn.backends.elementwise.trace import Node

INT = "i64"


class Module:
    """LLVM module: functions and the external functions that they call.

    Args:
        itemsize: bytes of a scalar, 4 (float) or 8 (double).
        lanes: elements of a vector register.
    """

    def __init__(self, itemsize: int, lanes: int):
        self.itemsize, self.lanes = itemsize, lanes
        self.scalar = "float" if itemsize == 4 else "double"
        self.vector = f"<{lanes} x {self.scalar}>"
        self.mask = f"<{lanes} x i1>"
        self.functions: list[str] = []
        self.signatures: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._declared: dict[str, str] = {}

    def declare(self, name: str, result: str, *arguments: str) -> None:
        """Declare an external function or an intrinsic."""
        self._declared[name] = f"declare {result} @{name}({', '.join(arguments)})"
        self.signatures[name] = result, arguments

    def text(self) -> str:
        """Return the module as text."""
        return "\n".join([*self._declared.values(), *self.functions])


class Function:
    """Function under construction; instructions are appended to its last basic block.

    `arguments` are types by name. The default of `linkage`, "internal", hides the function.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        arguments: dict[str, str],
        result: str = "void",
        linkage: str = "internal",
    ):
        self.module, self.result = module, result
        module.signatures[name] = result, tuple(arguments.values())
        parameters = ", ".join(f"{kind} %{n}" for n, kind in arguments.items())
        self.lines = [f"define {linkage} {result} @{name}({parameters}) #0 {{", "entry:"]
        self.block = "entry"
        self._count = 0

    def ret(self, value: str | None = None) -> None:
        """Return and close the function."""
        self.emit("ret void" if value is None else f"ret {self.result} {value}")
        self.lines.append("}")
        self.module.functions.append("\n".join(self.lines))

    def emit(self, instruction: str) -> None:
        """Append an instruction without a result."""
        self.lines.append("  " + instruction)

    def assign(self, instruction: str) -> str:
        """Append an instruction and return the name of its result."""
        name = self.unique("%v")
        self.emit(f"{name} = {instruction}")
        return name

    def label(self, name: str) -> None:
        """Begin a basic block."""
        self.lines.append(f"{name}:")
        self.block = name

    def unique(self, prefix: str) -> str:
        """Return a name that is unique within the function."""
        self._count += 1
        return f"{prefix}{self._count}"

    # Integers, pointers and memory

    def add(self, a: str, b: Any) -> str:
        """Return a + b."""
        return a if str(b) == "0" else self.assign(f"add nsw i64 {a}, {b}")

    def sub(self, a: str, b: Any) -> str:
        """Return a - b."""
        return self.assign(f"sub nsw i64 {a}, {b}")

    def mul(self, a: str, b: Any) -> str:
        """Return a * b."""
        return a if str(b) == "1" else self.assign(f"mul nsw i64 {a}, {b}")

    def udiv(self, a: str, b: Any) -> str:
        """Return a // b for a and b >= 0."""
        return self.assign(f"udiv i64 {a}, {b}")

    def ceildiv(self, a: str, b: int) -> str:
        """Return ceil(a / b) for a >= 0."""
        return self.udiv(self.add(a, b - 1), b)

    def minimum(self, a: str, b: Any) -> str:
        """Return min(a, b)."""
        return self.select(self.icmp("slt", a, b), a, str(b))

    def icmp(self, predicate: str, a: str, b: Any, kind: str = INT) -> str:
        """Compare integers or pointers."""
        return self.assign(f"icmp {predicate} {kind} {a}, {b}")

    def select(self, condition: str, true: str, false: str, kind: str = INT) -> str:
        """Return one of two values."""
        return self.assign(f"select i1 {condition}, {kind} {true}, {kind} {false}")

    def gep(self, base: str, index: Any, size: int | None = None) -> str:
        """Return the address of an element of `size` bytes, by default a scalar of the module."""
        if str(index) == "0":
            return base
        kind = self.module.scalar if size is None else f"[{size} x i8]"
        return self.assign(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def load(self, address: str, kind: str) -> str:
        """Load a value."""
        return self.assign(f"load {kind}, ptr {address}{self._alignment(kind)}")

    def store(self, value: Any, address: str, kind: str) -> None:
        """Store a value."""
        self.emit(f"store {kind} {value}, ptr {address}{self._alignment(kind)}")

    def _alignment(self, kind: str) -> str:
        return f", align {self.module.itemsize}" if kind == self.module.vector else ""

    def alloca(self, kind: str, count: int = 1) -> str:
        """Allocate memory on the stack for the duration of the function."""
        name = self.unique("%a")
        self.lines.insert(2, f"  {name} = alloca [{count} x {kind}], align 64")
        return name

    def prefetch(self, address: str) -> None:
        """Prefetch a cache line for reading."""
        self.module.declare("llvm.prefetch.p0", "void", "ptr", "i32", "i32", "i32")
        self.call("llvm.prefetch.p0", address, 0, 3, 1)

    def call(self, name: str, *arguments: Any) -> str:
        """Call a function of the module or a declared one."""
        result, types = self.module.signatures[name]
        typed = ", ".join(f"{kind} {a}" for kind, a in zip(types, arguments, strict=True))
        line = f"call {result} @{name}({typed})"
        if result == "void":
            self.emit(line)
            return ""
        return self.assign(line)

    # Control flow

    @contextlib.contextmanager
    def loop(self, first: Any, end: Any, step: Any = 1) -> Iterator[str]:
        """Write the body of ``for i in range(first, end, step)``."""
        n = self.unique("")
        start = self.block
        self.emit(f"br label %head{n}")
        self.label(f"head{n}")
        phi = len(self.lines)
        self.lines.append("")
        self.emit(f"%more{n} = icmp slt i64 %i{n}, {end}")
        self.emit(f"br i1 %more{n}, label %body{n}, label %exit{n}")
        self.label(f"body{n}")
        yield f"%i{n}"
        self.emit(f"%next{n} = add nsw i64 %i{n}, {step}")
        self.lines[phi] = f"  %i{n} = phi i64 [ {first}, %{start} ], [ %next{n}, %{self.block} ]"
        self.emit(f"br label %head{n}")
        self.label(f"exit{n}")

    def accumulate(
        self, end: str, initial: Sequence[str], body: Callable[[str, list[str]], list[str]]
    ) -> list[str]:
        """Write a loop over ``range(end)`` that keeps vectors in registers, and return them.

        `body` takes the index and the vectors and returns the new ones. It adds no basic blocks.
        """
        names = [self.unique("%sum") for _ in initial]
        start = self.block
        self.emit("br label %head")
        self.label("head")
        place = len(self.lines)
        self.emit(f"%more = icmp slt i64 %k, {end}")
        self.emit("br i1 %more, label %body, label %exit")
        self.label("body")
        new = body("%k", names)
        self.emit("%k.next = add nsw i64 %k, 1")
        self.emit("br label %head")
        phis = [f"  %k = phi i64 [ 0, %{start} ], [ %k.next, %body ]"]
        for name, before, after in zip(names, initial, new):
            kind = self.module.vector
            phis.append(f"  {name} = phi {kind} [ {before}, %{start} ], [ {after}, %body ]")
        self.lines[place:place] = phis
        self.label("exit")
        return names

    @contextlib.contextmanager
    def if_then(self, condition: str) -> Iterator[None]:
        """Write a block that runs if a condition holds."""
        then, after = self.unique("then"), self.unique("after")
        self.emit(f"br i1 {condition}, label %{then}, label %{after}")
        self.label(then)
        yield
        self.emit(f"br label %{after}")
        self.label(after)

    @contextlib.contextmanager
    def unless(self, condition: str) -> Iterator[None]:
        """Write a block that runs unless a condition holds."""
        with self.if_then(self.assign(f"xor i1 {condition}, true")):
            yield

    # Vectors

    def constant(self, value: float) -> str:
        """Return a vector whose lanes hold the same number."""
        number = f"{self.module.scalar} {_literal(value, self.module.scalar)}"
        return f"<{', '.join([number] * self.module.lanes)}>"

    def broadcast(self, scalar: str, kind: str | None = None) -> str:
        """Return a vector whose lanes hold the same value."""
        lanes, kind = self.module.lanes, kind or self.module.scalar
        vector = f"<{lanes} x {kind}>"
        one = self.assign(f"insertelement {vector} poison, {kind} {scalar}, i64 0")
        zeros = f"<{lanes} x i32> zeroinitializer"
        return self.assign(f"shufflevector {vector} {one}, {vector} poison, {zeros}")

    def arithmetic(self, operation: str, a: str, b: str) -> str:
        """Return fadd, fsub, fmul or fdiv of two vectors; LLVM may contract them to fma."""
        return self.assign(f"{operation} contract {self.module.vector} {a}, {b}")

    def fadd(self, a: str, b: str) -> str:
        """Return a + b of two vectors."""
        return self.assign(f"fadd {self.module.vector} {a}, {b}")

    def fma(self, a: str, b: str, c: str) -> str:
        """Return a * b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def select_lanes(self, condition: str, true: str, false: str) -> str:
        """Return one of two values in each lane."""
        m = self.module
        return self.assign(f"select {m.mask} {condition}, {m.vector} {true}, {m.vector} {false}")

    def intrinsic(self, name: str, *values: str) -> str:
        """Call an elementwise intrinsic."""
        m, full = self.module, self._overloaded(name)
        m.declare(full, m.vector, *[m.vector] * len(values))
        return self.call(full, *values)

    def _overloaded(self, name: str) -> str:
        return f"llvm.{name}.v{self.module.lanes}f{self.module.itemsize * 8}"

    def masked_load(self, address: str, mask: str) -> str:
        """Load a vector; inactive lanes are zero and their memory is not read."""
        m, name = self.module, self._overloaded("masked.load") + ".p0"
        m.declare(name, m.vector, "ptr", "i32", m.mask, m.vector)
        return self.call(name, address, m.itemsize, mask, "zeroinitializer")

    def masked_store(self, value: str, address: str, mask: str) -> None:
        """Store the active lanes of a vector."""
        m, name = self.module, self._overloaded("masked.store") + ".p0"
        m.declare(name, "void", m.vector, "ptr", "i32", m.mask)
        self.call(name, value, address, m.itemsize, mask)

    def active_lanes(self, first: str, size: str) -> str:
        """Return the mask of the lanes with ``first + lane < size``."""
        lanes = self.module.lanes
        remaining = self.assign(f"trunc i64 {self.sub(size, first)} to i32")
        numbers = f"<{', '.join(f'i32 {i}' for i in range(lanes))}>"
        remaining = self.broadcast(remaining, "i32")
        return self.assign(f"icmp slt <{lanes} x i32> {numbers}, {remaining}")


def _literal(value: float, scalar: str) -> str:
    """Return a number in LLVM's notation, the bits of a double."""
    if scalar == "float":
        (value,) = struct.unpack("<f", struct.pack("<f", value))
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


# Elementwise functions


def _exp(f: Function, x: str, minus_one: bool = False, full_range: bool = True) -> str:
    """Return exp(x), or exp(x) - 1.

    If `full_range` is True, results are correct up to the largest finite number and infinite above
    it. Otherwise they are clipped to half of it.
    """
    m = f.module
    single = m.itemsize == 4
    bits, bias, degree = (23, 127, 7) if single else (52, 1023, 13)
    log2 = math.log(2)
    # log 2 in two parts, the first with so few digits that its product with k is exact.
    scale = 2.0 ** (10 if single else 32)
    high = math.floor(log2 * scale) / scale
    # 2^k is a normal number for |k| up to the bias; smaller results are flushed to zero.
    x = f.intrinsic("minimum", x, f.constant((bias + (1.01 if full_range else 0.4)) * log2))
    x = f.intrinsic("maximum", x, f.constant(-bias * log2))
    k = f.intrinsic("rint", f.arithmetic("fmul", x, f.constant(1 / log2)))
    if full_range:  # the polynomial covers the upper half of the last power of two
        k = f.intrinsic("minimum", k, f.constant(float(bias)))
    r = f.fma(k, f.constant(-high), x)
    r = f.fma(k, f.constant(-(log2 - high)), r)
    p = f.constant(1 / math.factorial(degree))
    for power in range(degree - 1, 0, -1):
        p = f.fma(p, r, f.constant(1 / math.factorial(power)))
    element = "i32" if single else "i64"
    integers = f"<{m.lanes} x {element}>"
    splat = lambda n: f"<{', '.join([f'{element} {n}'] * m.lanes)}>"  # noqa: E731
    exponent = f.assign(f"fptosi {m.vector} {k} to {integers}")
    exponent = f.assign(f"add {integers} {exponent}, {splat(bias)}")
    exponent = f.assign(f"shl {integers} {exponent}, {splat(bits)}")
    power_of_two = f.assign(f"bitcast {integers} {exponent} to {m.vector}")
    scaled = f.arithmetic("fmul", p, r)
    if not minus_one:
        return f.fma(scaled, power_of_two, power_of_two)
    return f.fma(scaled, power_of_two, f.arithmetic("fsub", power_of_two, f.constant(1.0)))


def _negative(f: Function, x: str) -> str:
    return f.assign(f"fneg {f.module.vector} {x}")


def _logistic(f: Function, x: str) -> str:
    e = _exp(f, _negative(f, x), full_range=False)
    return f.arithmetic("fdiv", f.constant(1.0), f.arithmetic("fadd", e, f.constant(1.0)))


def _tanh(f: Function, x: str) -> str:
    size = f.intrinsic("fabs", x)
    # Beyond this bound tanh rounds to 1.
    size = f.intrinsic("minimum", size, f.constant(10.0 if f.module.itemsize == 4 else 20.0))
    e = _exp(f, f.arithmetic("fadd", size, size), minus_one=True, full_range=False)
    value = f.arithmetic("fdiv", e, f.arithmetic("fadd", e, f.constant(2.0)))
    return f.intrinsic("copysign", value, x)


_ARITHMETIC = dict(add="fadd", add_any="fadd", sub="fsub", mul="fmul", div="fdiv")
_INTRINSICS = dict(abs="fabs", sqrt="sqrt", max="maximum", min="minimum")
_PREDICATES = dict(gt="ogt", ge="oge", lt="olt", le="ole", eq="oeq", ne="une")
_FUNCTIONS: dict[str, Callable[..., str]] = {
    "neg": _negative,
    "exp": _exp,
    "expm1": lambda f, x: _exp(f, x, minus_one=True),
    "tanh": _tanh,
    "logistic": _logistic,
    "square": lambda f, a: f.arithmetic("fmul", a, a),
    "select": Function.select_lanes,
}


def _emit_operation(f: Function, name: str, *operands: str) -> str:
    """Write an operation under the name of JAX's primitive."""
    if name in _ARITHMETIC:
        return f.arithmetic(_ARITHMETIC[name], *operands)
    if name in _INTRINSICS:
        return f.intrinsic(_INTRINSICS[name], *operands)
    if name in _PREDICATES:
        return f.assign(f"fcmp {_PREDICATES[name]} {f.module.vector} {', '.join(operands)}")
    return _FUNCTIONS[name](f, *operands)


def emit_graph(f: Function, outputs: Iterable[Node], leaf: Callable[[str, int], str]) -> list[str]:
    """Write an elementwise graph and return the vectors of its outputs.

    `leaf` returns the vector of a leaf from its name and index.
    """
    vectors: dict[int, str] = {}

    def _vector(node: Node) -> str:
        if node.key not in vectors:
            if node.operation == "constant":
                vectors[node.key] = f.constant(node.value)
            elif node.operation == "leaf":
                vectors[node.key] = leaf(*node.value)
            else:
                operands = map(_vector, node.inputs)
                vectors[node.key] = _emit_operation(f, node.operation, *operands)
        return vectors[node.key]

    return [_vector(node) for node in outputs]
