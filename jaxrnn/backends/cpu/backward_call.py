"""What a call of the backward kernel is told, and what its writer has at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxrnn.backends.cpu import layout, outer, threads
from jaxrnn.backends.cpu.ir import INT, Function, Module
from jaxrnn.backends.cpu.layout import Areas, Sizes
from jaxrnn.backends.cpu.outer import Patch
from jaxrnn.backends.cpu.tiles import Tile
from jaxrnn.backends.cpu.variant import Variant

NUMBERS = (
    *("T", "N", "D", "H", "PANELS", "XPANELS", "BLOCK", "FIRST", "TURN", "LINE"),
    *("W_HH", "W_IH", "NOTHING", "ONE", "RING", "PRIVATE", "STRIDE", "SUMS", "ROWS"),
    *("WHO", "MANY"),
    *("PANEL", "OWN", "OWN_DX", "X_ROWS", "H_ROWS", "Z0_ROWS", "Z1_ROWS", "P_ROWS", "ONES"),
)
"""What a call is told, see `plan`."""


class Requested(NamedTuple):
    """Which derivatives beside those by the first states are requested."""

    x: bool = True
    weight_ih: bool = True
    weight_hh: bool = True
    bias: bool = True
    own: bool = False


@dataclass(frozen=True)
class Backward:
    """What a kernel is written for.

    Attributes:
        forward: what the forward kernel was.
        requested: by what the derivatives are requested.
        tile: of the product with W_hh.
        x_tile: of the product with W_ih.
        x_patch: of the derivative by W_ih.
        h_patch: of the derivative by W_hh.
    """

    forward: Variant
    requested: Requested
    tile: Tile
    x_tile: Tile
    x_patch: Patch
    h_patch: Patch

    @property
    def halves(self) -> int:
        """How many dz there are: one, or those of the input and of h."""
        return 1 + self.forward.split

    @property
    def inputs(self) -> list[str]:
        """The operands, in their order."""
        states = range(self.forward.states)
        return [
            *("dy", "x", "w_ih", "w_hh", *["own"] * bool(self.forward.graph.param_count)),
            *(f"dlast{k}" for k in states),
            *(f"first{k}" for k in states),
            *(f"state{k}" for k in states),
            *(f"saved{i}" for i in range(len(self.forward.graph.residual_counts))),
            *(["flags"] if self.forward.masked else []),
        ]

    @property
    def outputs(self) -> list[str]:
        """The results: those requested, by the first states, scratch memory."""
        bias = [f"db{half}" for half in range(self.halves)]
        some = zip(self.requested, (["dx"], ["dw_ih"], ["dw_hh"], bias, ["down"]), strict=True)
        requested = [name for yes, names in some if yes for name in names]
        return [*requested, *(f"dfirst{k}" for k in range(self.forward.states)), "scratch"]


def plan(
    kind: Backward, machine: Any, lanes: int, itemsize: int, sizes: Sizes, turn: int
) -> tuple[threads.Sharing, list[int], int]:
    """How a call is shared out, its numbers, and the bytes of its scratch memory."""
    tile, x_tile = kind.tile, kind.x_tile
    panels = -(-sizes.H // (tile.wide * lanes))
    x_panels = -(-sizes.D // (x_tile.wide * lanes))
    sums, x_sums = (t.vectors * lanes * itemsize for t in (tile, x_tile))
    features = kind.forward.gates * sizes.H
    # Rows of dz are a line of the cache apart from what a power of two would make them, so that a
    # column of them is not all in one place of it. Behind it is what the cell's own parameters get.
    more = kind.forward.graph.param_count * sizes.H if kind.requested.own else 0
    line = -(-(features + more) * itemsize // 64) * 64 // itemsize + 64 // itemsize
    sharing = layout.sharing(
        machine, tile, kind.forward.gates, sizes, panels, panels * features * sums
    )
    block = layout.steps_behind(sizes, features * (sizes.D + sizes.H) * itemsize)
    rows = -(-sizes.N // sharing.row_groups)
    areas, private = Areas(), Areas()
    areas.add("W_HH", panels * features * sums)
    areas.add("W_IH", x_panels * features * x_sums if kind.requested.x else 0)
    areas.add("NOTHING", max(line, sizes.D, sizes.H) * itemsize)
    areas.add("ONE", itemsize)
    areas.add("RING", kind.halves * 2 * block * sizes.N * line * itemsize)
    private.add("SUMS", max(tile.rows * sums, x_tile.rows * x_sums))
    # One more row: where it would be written, and then is found to have no step of its own.
    private.add("ROWS", (rows + 1) * 8)
    private.add("WHO", (rows + 1) * 8)
    private.add("MANY", 8)
    wide = max(kind.x_patch.wide, kind.h_patch.wide)
    private.add("PANEL", min(block * sizes.N, outer.ROWS) * wide * lanes * itemsize)
    for name in ("OWN", "OWN_DX"):
        private.add(name, (block * rows + 1) * 8 if kind.requested.x else 0)
    for name in ("X_ROWS", "H_ROWS", "Z0_ROWS", "Z1_ROWS", "P_ROWS", "ONES"):
        private.add(name, (block * sizes.N + outer.AHEAD) * 8)
    numbers = layout.numbers(
        NUMBERS,
        areas,
        private,
        sizes,
        turn,
        PANELS=panels,
        XPANELS=x_panels,
        BLOCK=block,
        LINE=line,
    )
    return sharing, numbers, areas.size + sharing.threads * private.size


class Call:
    """The function that is being written, and what it has at hand."""

    def __init__(self, m: Module, kind: Backward):
        self.kind, self.tile, self.variant = kind, kind.tile, kind.forward
        self.f = f = Function(m, "work", [("context", "ptr"), ("number", INT)])
        self.c = c = threads.slots(f, (*NUMBERS, *kind.inputs, *kind.outputs))
        self.sums = self.tile.vectors * m.lanes
        names = ("W_HH", "W_IH", "NOTHING", "ONE", "RING")
        self.w_hh, self.w_ih, self.nothing, self.one, self.ring = (
            f.at(c["scratch"], c[name], 1) for name in names
        )
        private = f.at(f.at(c["scratch"], c["PRIVATE"], 1), f.mul(c["STRIDE"], "%number"), 1)
        names = NUMBERS[NUMBERS.index("SUMS") :]
        self.own = {name: f.at(private, c[name], 1) for name in names}
        self.features = f.mul(c["H"], self.variant.gates)
        self.panel = f.mul(self.features, self.sums)
        self.mine = threads.Share(f, c)
        self.rows = f.sub(self.mine.row1, self.mine.row0)

    def time(self, turn: str) -> str:
        """The step at a turn."""
        f, c = self.f, self.c
        return f.add(c["FIRST"], f.mul(f.sub(f.sub(c["T"], 1), turn), c["TURN"]))

    def dz(self, half: int, turn: str, n: str) -> str:
        """Where dz of a row is; a block keeps those of the one before for who is not done yet."""
        f, c = self.f, self.c
        slot = f.let(f"urem i64 {turn}, {f.mul(c['BLOCK'], 2)}")
        slot = f.add(slot, f.mul(f.mul(c["BLOCK"], 2), half)) if half else slot
        return f.at(self.ring, f.mul(f.add(f.mul(slot, c["N"]), n), c["LINE"]))
