"""The derivative of a sequence as a kernel, from the last step to the first.

.. code-block:: text

    dh_t = dy_t + carry + dz_{t+1} @ W_hh              dz_{t+1} of the step after, none at first
    dz_t, carry, ... = the transpose of cell.tangent at (dh_t, dc_t, ...)

    after a few steps, of all their rows:
    dx = dz @ W_ih      dW_ih += dz.T @ x      dW_hh += dz.T @ h_before      db += dz summed up
    and as db what the parameters get that the cell has of its own

and once more without a cell: the derivative by the states before the first step. Rows that have no
step of their own are left out. What dz is needed
for is done while it is in the cache, so that no more than a few steps of it are ever held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxrnn.native import functions, layout, outer, threads, tiles
from jaxrnn.native.forward import Variant, flags_of, own_of, product, select
from jaxrnn.native.ir import INT, Function, Module
from jaxrnn.native.layout import Areas, Sizes
from jaxrnn.native.outer import Patch
from jaxrnn.native.tiles import Tile

NUMBERS = (
    *("T", "N", "D", "H", "PANELS", "XPANELS", "BLOCK", "FIRST", "TURN", "LINE"),
    *("W_HH", "W_IH", "NOTHING", "ONE", "RING", "PRIVATE", "STRIDE", "SUMS", "ROWS"),
    *("WHO", "MANY"),
    *("PANEL", "OWN", "OWN_DX", "X_ROWS", "H_ROWS", "Z0_ROWS", "Z1_ROWS", "P_ROWS", "ONES"),
)
"""What a call is told, see `plan`."""


class Wanted(NamedTuple):
    """Which derivatives beside those by the first states are wanted."""

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
        wanted: by what the derivatives are wanted.
        tile: of the product with W_hh.
        x_tile: of the product with W_ih.
        x_patch: of the derivative by W_ih.
        h_patch: of the derivative by W_hh.
    """

    forward: Variant
    wanted: Wanted
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
            *("dy", "x", "w_ih", "w_hh", *["own"] * bool(self.forward.graph.own)),
            *(f"dlast{k}" for k in states),
            *(f"first{k}" for k in states),
            *(f"state{k}" for k in states),
            *(f"saved{i}" for i in range(len(self.forward.graph.saved))),
            *(["flags"] if self.forward.masked else []),
        ]

    @property
    def outputs(self) -> list[str]:
        """The results: those wanted, by the first states, scratch memory."""
        bias = [f"db{half}" for half in range(self.halves)]
        some = zip(self.wanted, (["dx"], ["dw_ih"], ["dw_hh"], bias, ["down"]), strict=True)
        wanted = [name for yes, names in some if yes for name in names]
        return [*wanted, *(f"dfirst{k}" for k in range(self.forward.states)), "scratch"]


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
    more = kind.forward.graph.own * sizes.H if kind.wanted.own else 0
    line = -(-(features + more) * itemsize // 64) * 64 // itemsize + 64 // itemsize
    sharing = layout.sharing(
        machine, tile, kind.forward.gates, sizes, panels, panels * features * sums
    )
    block = layout.steps_behind(sizes, features * (sizes.D + sizes.H) * itemsize)
    rows = -(-sizes.N // sharing.row_groups)
    areas, private = Areas(), Areas()
    areas.add("W_HH", panels * features * sums)
    areas.add("W_IH", x_panels * features * x_sums if kind.wanted.x else 0)
    areas.add("NOTHING", max(line, sizes.D, sizes.H) * itemsize)
    areas.add("ONE", itemsize)
    areas.add("RING", kind.halves * 2 * block * sizes.N * line * itemsize)
    private.add("SUMS", max(tile.rows * sums, x_tile.rows * x_sums))
    # One more row: where it would be written, and then is found to have no step of its own.
    private.add("ROWS", (rows + 1) * 8)
    private.add("WHO", (rows + 1) * 8)
    private.add("MANY", 8)
    wide = max(kind.x_patch.wide, kind.h_patch.wide)
    private.add("PANEL", block * sizes.N * wide * lanes * itemsize)
    for name in ("OWN", "OWN_DX"):
        private.add(name, (block * rows + 1) * 8 if kind.wanted.x else 0)
    for name in ("X_ROWS", "H_ROWS", "Z0_ROWS", "Z1_ROWS", "P_ROWS", "ONES"):
        private.add(name, (block * sizes.N + outer.AHEAD) * 8)
    numbers = layout.numbers(
        NUMBERS,
        areas,
        private,
        vars(sizes),
        PANELS=panels,
        XPANELS=x_panels,
        BLOCK=block,
        FIRST=0 if turn > 0 else sizes.T - 1,
        TURN=turn,
        LINE=line,
        PRIVATE=areas.size,
        STRIDE=private.size,
    )
    return sharing, numbers, areas.size + sharing.threads * private.size


def write(m: Module, kind: Backward) -> None:
    """``work(context, number)``: what one thread of a call does."""
    tiles.write_product(m, "product", kind.tile)
    if kind.wanted.x:
        tiles.write_product(m, "product_x", kind.x_tile)
    if kind.wanted.weight_ih:
        outer.write(m, "outer_x", kind.x_patch)
    if any(kind.wanted[1:]):
        outer.write(m, "outer_h", kind.h_patch)
    _Writer(m, kind).work()


class _Writer:
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

    def work(self) -> None:
        """All of it."""
        f, c = self.f, self.c
        self.prepare()
        for k in range(self.variant.states):
            tiles.copy_states(f, self.tile, c, self.mine, f"dlast{k}", f"dfirst{k}")
        with f.loop(0, c["T"], c["BLOCK"]) as turn0:
            steps = f.least(f.sub(c["T"], turn0), c["BLOCK"])
            with f.loop(0, steps) as s:
                turn = f.add(turn0, s)
                self.step(turn)
                self.mine.meet(f, f.add(turn, 1))
            # All rows of the block are needed, whoever made them.
            block = f.div(turn0, c["BLOCK"])
            f.call(
                "barrier", f"ptr {c['barriers']}", f"i64 {c['THREADS']}", f"i64 {f.add(block, 2)}"
            )
            self.behind(turn0, steps)
        self.first_states()
        f.done()

    def prepare(self) -> None:
        """The weights in the order in which they are read."""
        f, c, m = self.f, self.c, self.f.module
        first, end = threads.share(f, c["PANELS"], "%number", c["THREADS"])
        with f.loop(first, end) as p:
            to = f.at(self.w_hh, f.mul(self.panel, p))
            tiles.pack_columns(f, self.tile, c["w_hh"], to, p, self.features, c["H"])
        if self.kind.wanted.x:
            tile = self.kind.x_tile
            size = f.mul(self.features, tile.vectors * m.lanes)
            first, end = threads.share(f, c["XPANELS"], "%number", c["THREADS"])
            with f.loop(first, end) as p:
                to = f.at(self.w_ih, f.mul(size, p))
                tiles.pack_columns(f, tile, c["w_ih"], to, p, self.features, c["D"])
        with f.when(f.compare("eq", "%number", 0)):
            zeros = f.let(f"call i64 @llvm.smax.i64(i64 {c['LINE']}, i64 {c['D']})")
            m.declare("llvm.smax.i64", INT, [INT, INT])
            with f.loop(0, zeros) as i:
                f.store("0.0", f.at(self.nothing, i), m.scalar)
            f.store("1.0", self.one, m.scalar)
        with f.loop(0, f.mul(c["BLOCK"], c["N"])) as i:
            f.store(self.one, f.at(self.own["ONES"], i, 8), "ptr")
        f.call("barrier", f"ptr {c['barriers']}", f"i64 {c['THREADS']}", "i64 1")

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

    def pointers(self, turn: str, nothing_yet: str) -> str:
        """The rows that are worked on, and where their dz of the step after is; how many.

        With flags these are the rows that have this step or the one after for their own; zeros
        stand for dz where the step after is not, or was reset.
        """
        f, c = self.f, self.c
        last = self.kind.halves - 1
        before = f.choose(nothing_yet, turn, f.sub(turn, 1))
        f.store("0", self.own["MANY"], INT)
        with f.loop(self.mine.row0, self.mine.row1) as n:
            row, one = self.dz(last, before, n), "1"
            if self.variant.masked:
                reset, valid = flags_of(f, c, self.time(before), n)
                through = f.let(f"and i1 {valid}, {f.let(f'xor i1 {reset}, true')}")
                row = f.choose(through, row, self.nothing, "ptr")
                at = f.choose(f.compare("slt", turn, c["T"]), turn, before)
                either = f.let(f"or i1 {valid}, {flags_of(f, c, self.time(at), n)[1]}")
                one = f.let(f"zext i1 {either} to i64")
            place = f.load(self.own["MANY"], INT)
            f.store(row, f.at(self.own["ROWS"], place, 8), "ptr")
            f.store(n, f.at(self.own["WHO"], place, 8), INT)
            f.store(f.add(place, one), self.own["MANY"], INT)
        return f.load(self.own["MANY"], INT)

    def step(self, turn: str) -> None:
        """A step of the rows and units that are a thread's own."""
        f, c, tile = self.f, self.c, self.tile
        nothing_yet = f.compare("eq", turn, 0)
        features = f.choose(nothing_yet, "0", self.features)
        many = self.pointers(turn, nothing_yet)
        with (
            f.loop(self.mine.panel0, self.mine.panel1) as p,
            tiles.tiles(f, many, tile.rows) as (i, count),
        ):
            self.product(p, i, count, features)
            with f.loop(0, count) as j:
                n = f.load(f.at(self.own["WHO"], f.add(i, j), 8), INT)
                sums = f.at(self.own["SUMS"], f.mul(j, self.sums))
                if self.variant.masked:
                    valid = flags_of(f, c, self.time(turn), n)[1]
                    with f.when(valid):
                        self.cell(p, turn, n, sums)
                    with f.unless(valid):
                        self.add_to_h(p, n, sums)
                else:
                    self.cell(p, turn, n, sums)
        if self.variant.masked:
            self.idle(turn)

    def idle(self, turn: str) -> None:
        """The derivative by an output of a row that has no step of its own: by its state."""
        f, c, tile, m = self.f, self.c, self.tile, self.f.module
        t = self.time(turn)
        with (
            f.loop(self.mine.row0, self.mine.row1) as n,
            f.unless(flags_of(f, c, t, n)[1]),
        ):
            dy = f.at(c["dy"], f.mul(f.add(f.mul(t, c["N"]), n), c["H"]))
            to = f.at(c["dfirst0"], f.mul(n, c["H"]))
            with f.loop(self.mine.panel0, self.mine.panel1) as p:
                for wide in range(tile.wide):
                    first, there = tiles.units(f, tile, c, p, wide)
                    here = f.at(to, first)
                    direct = f.load_some(f.at(dy, first), there)
                    total = f.let(f"fadd {m.vector} {f.load_some(here, there)}, {direct}")
                    f.store_some(total, here, there)

    def product(self, p: str, i: str, count: str, many: str) -> None:
        """``dz @ W_hh`` of a tile."""
        f = self.f
        w, rows = f.at(self.w_hh, f.mul(self.panel, p)), f.at(self.own["ROWS"], i, 8)
        product(f, count, w, many, rows, self.nothing, 0, self.own["SUMS"])

    def first_states(self) -> None:
        """The derivative by h before the first step."""
        f, c, tile = self.f, self.c, self.tile
        many = self.pointers(c["T"], f.compare("ne", c["T"], c["T"]))
        with (
            f.loop(self.mine.panel0, self.mine.panel1) as p,
            tiles.tiles(f, many, tile.rows) as (i, count),
        ):
            self.product(p, i, count, self.features)
            with f.loop(0, count) as j:
                n = f.load(f.at(self.own["WHO"], f.add(i, j), 8), INT)
                self.add_to_h(p, n, f.at(self.own["SUMS"], f.mul(j, self.sums)))

    def add_to_h(self, p: str, n: str, sums: str) -> None:
        """Add what comes through the step after to the derivative by h."""
        f, c, tile, m = self.f, self.c, self.tile, self.f.module
        for wide in range(tile.wide):
            first, there = tiles.units(f, tile, c, p, wide)
            place = f.at(c["dfirst0"], f.add(f.mul(n, c["H"]), first))
            here = f.load(f.at(sums, wide * m.lanes), m.vector)
            total = f.let(f"fadd {m.vector} {f.load_some(place, there)}, {here}")
            f.store_some(total, place, there)

    def cell(self, p: str, turn: str, n: str, sums: str) -> None:
        """The transpose of the cell's tangent on one row of a panel."""
        f, c, tile, m, variant = self.f, self.c, self.tile, self.f.module, self.variant
        t = self.time(turn)
        begin = f.compare("eq", turn, f.sub(c["T"], 1))
        before = f.mul(f.sub(t, c["TURN"]), c["N"])
        row = f.add(f.mul(t, c["N"]), n)
        zero = f.constant(0.0)
        if variant.masked:
            reset = f.spread(flags_of(f, c, t, n)[0], "i1")
        targets = [self.dz(half, turn, n) for half in range(self.kind.halves)]
        for wide in range(tile.wide):
            first, there = tiles.units(f, tile, c, p, wide)
            own = f.add(f.mul(n, c["H"]), first)
            here = f.add(f.mul(row, c["H"]), first)
            kept = f.add(f.mul(before, c["H"]), own)
            carries = [f.at(c[f"dfirst{k}"], own) for k in range(variant.states)]
            cts = [f.load_some(carry, there) for carry in carries]
            direct = f.load_some(f.at(c["dy"], here), there)
            through = f.load(f.at(sums, wide * m.lanes), m.vector)
            cts[0] = f.let(f"fadd {m.vector} {cts[0]}, {direct}")
            cts[0] = f.let(f"fadd {m.vector} {cts[0]}, {through}")
            loaded: dict[tuple[str, int], str] = {}

            def leaf(
                name: str,
                place: int,
                *,
                first: str = first,
                there: str = there,
                own: str = own,
                here: str = here,
                kept: str = kept,
                cts: list[str] = cts,
                loaded: dict[tuple[str, int], str] = loaded,
            ) -> str:
                if name == "ct":
                    return cts[place]
                if (name, place) not in loaded:
                    if name == "own":
                        value = own_of(f, c, place, first, there)
                    elif name == "new":
                        value = f.load_some(f.at(c[f"state{place}"], here), there)
                    elif name == "old":
                        one, other = f.at(c[f"first{place}"], own), f.at(c[f"state{place}"], kept)
                        value = f.load_some(f.choose(begin, one, other, "ptr"), there)
                        if variant.masked:
                            value = select(f, reset, zero, value)
                    else:
                        index, i = variant.saved_place(place)
                        count = variant.graph.saved[index]
                        at = f.add(f.mul(f.add(f.mul(row, count), i), c["H"]), first)
                        value = f.load_some(f.at(c[f"saved{index}"], at), there)
                    loaded[name, place] = value
                return loaded[name, place]

            values = functions.emit(f, variant.graph.backward, leaf)
            gates = variant.gates * self.kind.halves
            for index, value in enumerate(values[:gates]):
                half, gate = divmod(index, variant.gates)
                at = f.add(f.mul(c["H"], gate), first) if gate else first
                f.store_some(value, f.at(targets[half], at), there)
            if self.kind.wanted.own:
                for index, value in enumerate(values[gates + variant.states :], variant.gates):
                    at = f.add(f.mul(c["H"], index), first)
                    f.store_some(value, f.at(targets[0], at), there)
            for value, carry in zip(values[gates:], carries):
                if variant.masked:
                    value = select(f, reset, zero, value)
                f.store_some(value, carry, there)

    def behind(self, turn0: str, steps: str) -> None:
        """What dz of a block of steps is needed for past the loop."""
        f, c, wanted = self.f, self.c, self.kind.wanted
        if wanted.x:
            self.by_x(turn0, steps)
        if not any(wanted[1:]):
            return
        count = self.rows_of_block(turn0, steps)
        first = f.compare("eq", turn0, 0)
        high = self.kind.h_patch.rows
        begin, end = threads.share(
            f, f.div(f.add(self.features, high - 1), high), "%number", c["THREADS"]
        )
        begin, end = f.mul(begin, high), f.least(f.mul(end, high), self.features)

        def add(patch: str, a: str, b: str, columns: str, to: str) -> None:
            """Rows of C are shared out; of a single one, its columns."""
            size = {"outer_x": self.kind.x_patch, "outer_h": self.kind.h_patch}[patch]
            rows, panels = (begin, end), None
            if a in ("ONES", "X_ROWS"):
                total = outer.panels_of(f, size, columns)
                rows, panels = ("0", "1"), threads.share(f, total, "%number", c["THREADS"])
            where = dict(a=self.own[a], b=self.own[b], panel=self.own["PANEL"], target=c[to])
            outer.add(f, patch, size, count=count, rows=rows, columns=columns, panels=panels,
                      first=first, **where)  # fmt: skip

        last = f"Z{self.kind.halves - 1}_ROWS"
        if wanted.weight_hh:
            add("outer_h", last, "H_ROWS", c["H"], "dw_hh")
        if wanted.weight_ih:
            with f.when(f.compare("ugt", c["D"], 1)):
                add("outer_x", "Z0_ROWS", "X_ROWS", c["D"], "dw_ih")
            # With a single feature the gates are what makes a vector.
            with f.when(f.compare("eq", c["D"], 1)):
                add("outer_h", "X_ROWS", "Z0_ROWS", self.features, "dw_ih")
        if wanted.bias:
            for half in range(self.kind.halves):
                add("outer_h", "ONES", f"Z{half}_ROWS", self.features, f"db{half}")
        if wanted.own:
            add("outer_h", "ONES", "P_ROWS", f.mul(c["H"], self.variant.graph.own), "down")

    def rows_of_block(self, turn0: str, steps: str) -> str:
        """Where x, h before the step, and dz of the rows of a block are; how many rows."""
        f, c = self.f, self.c
        f.store("0", self.own["MANY"], INT)
        with f.loop(0, steps) as s:
            turn = f.add(turn0, s)
            t = self.time(turn)
            begin = f.compare("eq", turn, f.sub(c["T"], 1))
            before = f.mul(f.sub(t, c["TURN"]), c["N"])
            with f.loop(0, c["N"]) as n:
                x = f.at(c["x"], f.mul(f.add(f.mul(t, c["N"]), n), c["D"]))
                h = f.at(c["state0"], f.mul(f.add(before, n), c["H"]))
                h, one = f.choose(begin, f.at(c["first0"], f.mul(n, c["H"])), h, "ptr"), "1"
                if self.variant.masked:
                    reset, valid = flags_of(f, c, t, n)
                    h = f.choose(reset, self.nothing, h, "ptr")
                    one = f.let(f"zext i1 {valid} to i64")
                at = f.load(self.own["MANY"], INT)
                rows = {"X_ROWS": x, "H_ROWS": h}
                for half in range(self.kind.halves):
                    rows[f"Z{half}_ROWS"] = self.dz(half, turn, n)
                rows["P_ROWS"] = f.at(rows["Z0_ROWS"], self.features)
                for name, row in rows.items():
                    f.store(row, f.at(self.own[name], at, 8), "ptr")
                f.store(f.add(at, one), self.own["MANY"], INT)
        return f.load(self.own["MANY"], INT)

    def by_x(self, turn0: str, steps: str) -> None:
        """``dx = dz @ W_ih`` of the rows that are a thread's own."""
        f, c, m, tile, mine = self.f, self.c, self.f.module, self.kind.x_tile, self.mine
        sums = tile.vectors * m.lanes
        f.store("0", self.own["MANY"], INT)
        with f.loop(0, steps) as s:
            turn = f.add(turn0, s)
            t = self.time(turn)
            with f.loop(mine.row0, mine.row1) as n:
                at, one = f.load(self.own["MANY"], INT), "1"
                f.store(self.dz(0, turn, n), f.at(self.own["OWN"], at, 8), "ptr")
                row = f.at(c["dx"], f.mul(f.add(f.mul(t, c["N"]), n), c["D"]))
                f.store(row, f.at(self.own["OWN_DX"], at, 8), "ptr")
                if self.variant.masked:
                    valid = flags_of(f, c, t, n)[1]
                    one = f.let(f"zext i1 {valid} to i64")
                    with f.unless(valid):
                        first, end = mine.share_of_units(f, c["D"])
                        with f.loop(first, end) as i:
                            f.store("0.0", f.at(row, i), m.scalar)
                f.store(f.add(at, one), self.own["MANY"], INT)
        many = f.load(self.own["MANY"], INT)
        first, end = mine.share_of_units(f, c["XPANELS"])
        size = f.mul(self.features, sums)
        with (
            f.loop(first, end) as p,
            tiles.tiles(f, many, tile.rows) as (i, count),
        ):
            f.call(
                *("product_x", f"i64 {count}", f"ptr {f.at(self.w_ih, f.mul(size, p))}"),
                *(f"i64 {self.features}", f"ptr {f.at(self.own['OWN'], i, 8)}"),
                *(f"ptr {self.nothing}", "i64 0", f"ptr {self.own['SUMS']}"),
            )
            with f.loop(0, count) as j:
                row = f.load(f.at(self.own["OWN_DX"], f.add(i, j), 8), "ptr")
                here = f.at(self.own["SUMS"], f.mul(j, sums))
                for wide in range(tile.wide):
                    unit = f.add(f.mul(p, tile.wide * m.lanes), wide * m.lanes)
                    value = f.load(f.at(here, wide * m.lanes), m.vector)
                    f.store_some(value, f.at(row, unit), tiles.lanes_there(f, unit, c["D"]))
