"""The derivative of a sequence as a kernel, from the last step to the first.

.. code-block:: text

    dh_t = dy_t + carry + dz_{t+1} @ W_hh              dz_{t+1} of the step after, none at first
    dz_t, carry, ... = the transpose of cell.tangent at (dh_t, dc_t, ...)

    after a few steps, of all their rows: what dz is needed for, see `jaxrnn.backends.cpu.behind`

and once more without a cell: the derivative by the states before the first step. Rows that have no
step of their own are left out. Since what dz is needed for is done while it is in the cache, no
more than a few steps of it are ever held.
"""

from __future__ import annotations

from jaxrnn.backends.cpu import behind, functions, memory, outer, threads, tiles
from jaxrnn.backends.cpu.backward_call import Backward, Call
from jaxrnn.backends.cpu.ir import INT, Module
from jaxrnn.backends.cpu.variant import flags_of, own_of


def write(m: Module, kind: Backward) -> None:
    """``work(context, number)``: what one thread of a call does."""
    tiles.write_product(m, "product", kind.tile)
    if kind.requested.x:
        tiles.write_product(m, "product_x", kind.x_tile)
    if kind.requested.weight_ih:
        outer.write(m, "outer_x", kind.x_patch)
    if any(kind.requested[1:]):
        outer.write(m, "outer_h", kind.h_patch)
    _Loop(m, kind).work()


class _Loop(Call):
    """The loop that is being written."""

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
            threads.meet(f, c, f.add(block, 2))
            behind.write(self, turn0, steps)
        self.first_states()
        f.done()

    def prepare(self) -> None:
        """The weights in the order in which they are read."""
        f, c, m = self.f, self.c, self.f.module
        first, end = threads.share(f, c["PANELS"], "%number", c["THREADS"])
        with f.loop(first, end) as p:
            to = f.at(self.w_hh, f.mul(self.panel, p))
            tiles.pack_columns(f, self.tile, c["w_hh"], to, p, self.features, c["H"])
        if self.kind.requested.x:
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
            requested = self.kind.requested
            if requested.x:
                memory.ask(f, c["dx"], f.mul(f.mul(c["T"], c["N"]), c["D"]))
            if requested.weight_ih:
                memory.ask(f, c["dw_ih"], f.mul(self.features, c["D"]))
            if requested.weight_hh:
                memory.ask(f, c["dw_hh"], f.mul(self.features, c["H"]))
        with f.loop(0, f.mul(c["BLOCK"], c["N"])) as i:
            f.store(self.one, f.at(self.own["ONES"], i, 8), "ptr")
        threads.meet(f, c, "1")

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
        tiles.product(f, count, w, many, rows, self.nothing, "0", self.own["SUMS"])

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

            def leaf(
                name: str,
                place: int,
                first: str = first,
                there: str = there,
                own: str = own,
                here: str = here,
                kept: str = kept,
                cts: list[str] = cts,
            ) -> str:
                if name == "ct":
                    return cts[place]
                if name == "params":
                    return own_of(f, c, place, first, there)
                if name == "new":
                    return f.load_some(f.at(c[f"state{place}"], here), there)
                if name == "old":
                    one, other = f.at(c[f"first{place}"], own), f.at(c[f"state{place}"], kept)
                    value = f.load_some(f.choose(begin, one, other, "ptr"), there)
                    return functions.select(f, reset, zero, value) if variant.masked else value
                index, i = variant.saved_place(place)
                count = variant.graph.residual_counts[index]
                at = f.add(f.mul(f.add(f.mul(row, count), i), c["H"]), first)
                return f.load_some(f.at(c[f"saved{index}"], at), there)

            values = functions.emit(f, variant.graph.backward, leaf)
            gates = variant.gates * self.kind.halves
            for index, value in enumerate(values[:gates]):
                half, gate = divmod(index, variant.gates)
                at = f.add(f.mul(c["H"], gate), first) if gate else first
                f.store_some(value, f.at(targets[half], at), there)
            if self.kind.requested.own:
                for index, value in enumerate(values[gates + variant.states :], variant.gates):
                    at = f.add(f.mul(c["H"], index), first)
                    f.store_some(value, f.at(targets[0], at), there)
            for value, carry in zip(values[gates:], carries):
                if variant.masked:
                    value = functions.select(f, reset, zero, value)
                f.store_some(value, carry, there)
