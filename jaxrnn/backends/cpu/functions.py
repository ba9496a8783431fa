"""Elementwise functions on vectors, written out: exp, tanh, sigmoid and what else cells use.

.. code-block:: text

    exp(x) - 1 = 2^k (exp(r) - 1) + (2^k - 1)       k = round(x / log 2), r = x - k log 2
    tanh(x)    = e / (e + 2) with the sign of x     e = exp(2 |x|) - 1
    sigmoid(x) = 1 / (1 + exp(-x))

``exp(r) - 1`` is Taylor's polynomial, |r| at most log(2) / 2: to degree 7 its error is below one
unit in the last place of float32, to degree 13 of float64. Through ``exp(x) - 1`` nothing is lost
near zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from jaxrnn.backends.cpu.ir import Function
from jaxrnn.backends.elementwise.trace import Node


def arithmetic(f: Function, operation: str, a: str, b: str) -> str:
    """fadd, fsub, fmul or fdiv of two vectors."""
    return f.let(f"{operation} contract {f.module.vector} {a}, {b}")


def expm1(f: Function, x: str, shift: bool = True, largest: bool = True) -> str:
    """exp(x) - 1, or exp(x) without `shift`.

    With `largest` up to the largest number that there is, and infinite beyond; otherwise no more
    than half of that.
    """
    m = f.module
    single = m.scalar == "float"
    bits, bias, degree = (23, 127, 7) if single else (52, 1023, 13)
    log2 = math.log(2)
    # log 2 in two parts, the first with so few digits that its product with k is exact.
    scale = 2.0 ** (10 if single else 32)
    high = math.floor(log2 * scale) / scale
    # 2^k is a normal number up to the bias, and for less than all of them zero.
    x = f.intrinsic("minimum", x, f.constant((bias + (1.01 if largest else 0.4)) * log2))
    x = f.intrinsic("maximum", x, f.constant(-bias * log2))
    k = f.intrinsic("rint", arithmetic(f, "fmul", x, f.constant(1 / log2)))
    if largest:  # the last half of a power of two is the polynomial's
        k = f.intrinsic("minimum", k, f.constant(float(bias)))
    r = f.fma(k, f.constant(-high), x)
    r = f.fma(k, f.constant(-(log2 - high)), r)
    p = f.constant(1 / math.factorial(degree))
    for power in range(degree - 1, 0, -1):
        p = f.fma(p, r, f.constant(1 / math.factorial(power)))
    integer = f.let(f"fptosi {m.vector} {k} to {m.integers}")
    kind = m.integers.split(" x ")[1][:-1]
    many = lambda n: f"<{', '.join([f'{kind} {n}'] * m.lanes)}>"  # noqa: E731
    integer = f.let(f"add {m.integers} {integer}, {many(bias)}")
    integer = f.let(f"shl {m.integers} {integer}, {many(bits)}")
    power_of_two = f.let(f"bitcast {m.integers} {integer} to {m.vector}")
    scaled = arithmetic(f, "fmul", p, r)
    if not shift:
        return f.fma(scaled, power_of_two, power_of_two)
    return f.fma(scaled, power_of_two, arithmetic(f, "fsub", power_of_two, f.constant(1.0)))


def exp(f: Function, x: str) -> str:
    """The exponential function."""
    return expm1(f, x, shift=False)


def logistic(f: Function, x: str) -> str:
    """1 / (1 + exp(-x))."""
    e = expm1(f, negative(f, x), shift=False, largest=False)
    return arithmetic(f, "fdiv", f.constant(1.0), arithmetic(f, "fadd", e, f.constant(1.0)))


def tanh(f: Function, x: str) -> str:
    """The hyperbolic tangent."""
    size = f.intrinsic("fabs", x)
    # tanh is 1 to the last digit beyond this.
    size = f.intrinsic("minimum", size, f.constant(10.0 if f.module.scalar == "float" else 20.0))
    e = expm1(f, arithmetic(f, "fadd", size, size), largest=False)
    value = arithmetic(f, "fdiv", e, arithmetic(f, "fadd", e, f.constant(2.0)))
    return f.intrinsic("copysign", value, x)


def negative(f: Function, x: str) -> str:
    """-x."""
    return f.let(f"fneg {f.module.vector} {x}")


def compare(f: Function, how: str, a: str, b: str) -> str:
    """A comparison of vectors, lane by lane."""
    return f.let(f"fcmp {how} {f.module.vector} {a}, {b}")


def select(f: Function, condition: str, yes: str, no: str) -> str:
    """One of two, lane by lane."""
    m = f.module
    return f.let(f"select {m.mask} {condition}, {m.vector} {yes}, {m.vector} {no}")


def _binary(operation: str) -> Callable[..., str]:
    return lambda f, a, b: arithmetic(f, operation, a, b)


def _named(intrinsic: str) -> Callable[..., str]:
    return lambda f, *values: f.intrinsic(intrinsic, *values)


def _compared(how: str) -> Callable[..., str]:
    return lambda f, a, b: compare(f, how, a, b)


FUNCTIONS: dict[str, Callable[..., str]] = {
    "add": _binary("fadd"),
    "add_any": _binary("fadd"),
    "sub": _binary("fsub"),
    "mul": _binary("fmul"),
    "div": _binary("fdiv"),
    "neg": negative,
    "exp": exp,
    "expm1": expm1,
    "tanh": tanh,
    "logistic": logistic,
    "abs": _named("fabs"),
    "sqrt": _named("sqrt"),
    "max": _named("maximum"),
    "min": _named("minimum"),
    "square": lambda f, a: arithmetic(f, "fmul", a, a),
    "gt": _compared("ogt"),
    "ge": _compared("oge"),
    "lt": _compared("olt"),
    "le": _compared("ole"),
    "eq": _compared("oeq"),
    "ne": _compared("une"),
    "select": select,
}
"""What can be computed of vectors, by the names of JAX's primitives."""


def emit(f: Function, outputs: Iterable[Node], leaf: Callable[[str, int], str]) -> list[str]:
    """Write the operations of some numbers; `leaf` gives a vector by its name and place."""
    done: dict[Any, str] = {}

    def value(node: Node) -> str:
        if node.key not in done:
            if node.operation == "constant":
                done[node.key] = f.constant(node.value)
            elif node.operation == "leaf":
                done[node.key] = leaf(*node.value)
            else:
                inputs = [value(n) for n in node.inputs]
                done[node.key] = FUNCTIONS[node.operation](f, *inputs)
        return done[node.key]

    return [value(node) for node in outputs]
