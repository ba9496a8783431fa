"""What a pair of kernels is written for, and how both read what is no row of numbers."""

from __future__ import annotations

from typing import Any

from jaxrnn.backends.cpu.ir import Function
from jaxrnn.backends.elementwise.lower import cell_graphs


class Variant:
    """What a kernel is written for.

    Args:
        cell: of the package.
        dtype: float32 or float64.
        masked: whether steps have flags.
        store_residuals: whether the derivative needs what the cell saves.
    """

    def __init__(self, cell: Any, dtype: Any, masked: bool, store_residuals: bool):
        self.cell, self.masked, self.store_residuals = cell, masked, store_residuals
        self.graph = cell_graphs(cell, dtype)
        self.gates, self.states = len(cell.gates), len(cell.states)
        self.split = cell.split

    def saved_place(self, place: int) -> tuple[int, int]:
        """The array, and which of its numbers, of the number that is saved at a place."""
        for index, count in enumerate(self.graph.residual_counts):
            if place < count:
                return index, place
            place -= count
        raise IndexError(place)

    @property
    def inputs(self) -> list[str]:
        """The operands, in their order."""
        first = [f"first{i}" for i in range(self.states)]
        own, flags = ["own"] * bool(self.graph.param_count), ["flags"] * self.masked
        return ["x", "w_ih", "w_hh", "b_ih", "b_hh", *own, *first, *flags]

    @property
    def outputs(self) -> list[str]:
        """The results: h at each step, the other states, what is saved, scratch memory."""
        rest = [f"state{i}" for i in range(1, self.states)]
        saved = (
            [f"saved{i}" for i in range(len(self.graph.residual_counts))]
            if self.store_residuals
            else []
        )
        return ["state0", *rest, *saved, "scratch"]


def flags_of(f: Function, c: dict[str, str], t: str, n: str) -> tuple[str, str]:
    """Whether a row is reset before a step, and whether the step is the row's own."""
    byte = f.load(f.at(c["flags"], f.add(f.mul(t, c["N"]), n), 1), "i8")
    reset = f.compare("ne", f.let(f"and i8 {byte}, 1"), 0, "i8")
    return reset, f.compare("ne", f.let(f"and i8 {byte}, 2"), 0, "i8")


def own_of(f: Function, c: dict[str, str], place: int, first: str, there: str) -> str:
    """One of the cell's own parameters, of a vector of units."""
    return f.load_some(f.at(c["own"], f.add(f.mul(c["H"], place), first)), there)
