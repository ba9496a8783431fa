"""Backward kernel: the reverse-mode derivative of a sequence, from the last step to the first.

.. code-block:: text

    for a block of steps:
      for each step:
        dh_t = dy_t + carry + dz_{t+1} @ W_hh          dz of the following step, none at the last
        dz_t, carry, ... = transpose of the cell's tangent at (dh_t, dc_t, ...)
      dx = dz @ W_ih      dW_ih += dz.T @ x      dW_hh += dz.T @ h_{t-1}      db += sum of dz
    dh_0 = carry + dz_0 @ W_hh

dz of a block stays in the cache until the products behind the loop have read it, so no array of
(T, N, G*H) exists. Invalid steps are skipped. A cell with separate pre-activations of x and h
(`split`) has two dz; cotangents of cell parameters are stored behind dz and summed like the bias.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxrnn.backends.cpu import compiler, gemm, layout, threads
from jaxrnn.backends.cpu.gemm import OuterTile, Tile
from jaxrnn.backends.cpu.ir import INT, Module, emit_graph
from jaxrnn.backends.cpu.layout import CallSizes, KernelSpec, KernelWriter, Machine


class Requested(NamedTuple):
    """Arguments whose cotangents are requested, besides the initial states."""

    x: bool = True
    weight_ih: bool = True
    weight_hh: bool = True
    bias: bool = True
    cell_params: bool = False


@dataclass(frozen=True)
class BackwardSpec(KernelSpec):
    """Static description of a backward kernel."""

    requested: Requested
    x_tile: Tile  # of the product with W_ih
    x_outer: OuterTile  # of the gradient with respect to W_ih
    h_outer: OuterTile  # of the gradient with respect to W_hh

    NAME = "backward"
    SHARED = ("W_HH", "W_IH", "ZEROS", "ONE", "DZ")
    PRIVATE = (
        *("SUMS", "DZ_POINTERS", "SEQUENCES", "COUNT", "PANEL", "MY_DZ", "MY_DX"),
        *("X_POINTERS", "H_POINTERS", "DZ0_POINTERS", "DZ1_POINTERS", "DP_POINTERS", "ONES"),
    )
    SCALARS = (
        *("T", "N", "D", "H", "PANELS", "X_PANELS", "BLOCK", "T_FIRST", "T_STEP", "DZ_STRIDE"),
        *(*SHARED, "PRIVATE", "PRIVATE_SIZE", *PRIVATE),
    )

    @property
    def halves(self) -> int:
        """Number of dz: two if the pre-activations of x and h are separate."""
        return 1 + self.cell.split

    def inputs(self) -> list[str]:
        """Return the names of the operands."""
        return [
            *("dy", "x", "w_ih", "w_hh", *["cell_params"] * bool(self.graph.param_count)),
            *(*self.names("dfinal"), *self.names("initial"), *self.names("state")),
            *(*self.names("residual", len(self.graph.residual_counts)), *["masks"] * self.masked),
        ]

    def outputs(self) -> list[str]:
        """Return the names of the results: the requested cotangents, those of initial states."""
        names = [["dx"], ["dw_ih"], ["dw_hh"], self.names("db", self.halves), ["dcell_params"]]
        pairs = zip(names, self.requested, strict=True)
        requested = [name for group, request in pairs if request for name in group]
        return [*requested, *self.names("dinitial")]

    def write(self, module: Module) -> None:
        """Write ``work(context, number)``."""
        gemm.write_matmul(module, "product", self.tile)
        if self.requested.x:
            gemm.write_matmul(module, "product_x", self.x_tile)
        if self.requested.weight_ih:
            gemm.write_outer(module, "outer_x", self.x_outer)
        if any(self.requested[1:]):
            gemm.write_outer(module, "outer_h", self.h_outer)
        _BackwardWriter(module, self).work()


def run(
    operands: Sequence[jax.Array],
    *,
    cell: Any,
    masked: bool,
    reverse: bool,
    requested: Sequence[bool],
    local_devices: int = 1,
) -> list[jax.Array]:
    """Run the backward kernel; see `jaxrnn.backends.cpu.run_backward`."""
    states, params = len(cell.states), bool(cell.parameters)
    dh, dfinal, arrays = operands[0], operands[1 : 1 + states], operands[1 + states :]
    x, w_ih, w_hh = arrays[:3]
    sizes = CallSizes.of(x, w_hh)
    machine = compiler.machine().divided(local_devices)
    lanes, registers = machine.lanes(x.dtype.itemsize), machine.registers
    spec = BackwardSpec(
        cell,
        x.dtype,
        masked,
        gemm.choose_tile(registers, lanes, 1, sizes.H),
        Requested(*requested),
        gemm.choose_tile(registers, lanes, 1, sizes.D),
        gemm.choose_outer_tile(registers, lanes, sizes.D),
        gemm.choose_outer_tile(registers, lanes, sizes.H),
    )
    shapes = [a.shape for a, request in zip((x, w_ih, w_hh), requested, strict=False) if request]
    if requested[3]:
        shapes += [(len(w_hh),)] * spec.halves
    if spec.requested.cell_params:
        shapes.append((spec.graph.param_count * sizes.H,))
    shapes += [(sizes.N, sizes.H)] * states
    scalars, workspace = _layout(spec, machine, sizes, reverse)
    ordered = (dh, *arrays[: 3 + params], *dfinal, *arrays[3 + params :])
    return compiler.call_kernel(spec, machine, scalars, workspace, shapes, ordered)


def _layout(
    spec: BackwardSpec, machine: Machine, sizes: CallSizes, reverse: bool
) -> tuple[list[int], int]:
    (_, N, D, H), itemsize = sizes, spec.dtype.itemsize
    tile, x_tile, requested = spec.tile, spec.x_tile, spec.requested
    lanes = machine.lanes(itemsize)
    panels, x_panels = -(-H // (tile.width * lanes)), -(-D // (x_tile.width * lanes))
    sums, x_sums = (t.vectors * lanes * itemsize for t in (tile, x_tile))
    features = spec.gates * H
    # dz is padded by a cache line, so that a column of it does not map to a single cache set.
    # Cotangents of the cell parameters are stored behind it.
    length = (features + requested.cell_params * spec.graph.param_count * H) * itemsize
    stride = -(-length // 64) * 64 // itemsize + 64 // itemsize
    weight_bytes = panels * features * sums
    split = layout.partition(machine, tile, spec.gates, sizes, panels, weight_bytes)
    block = layout.backward_block(sizes, features * (D + H) * itemsize)
    batch = -(-N // split.batch_groups)
    shared = layout.Workspace(
        W_HH=weight_bytes,
        W_IH=x_panels * features * x_sums if requested.x else 0,
        ZEROS=max(stride, D, H) * itemsize,
        ONE=itemsize,
        DZ=spec.halves * 2 * block * N * stride * itemsize,
    )
    mine = (block * batch + 1) * 8 if requested.x else 0
    width = max(spec.x_outer.width, spec.h_outer.width)
    names = ("X_POINTERS", "H_POINTERS", "DZ0_POINTERS", "DZ1_POINTERS", "DP_POINTERS", "ONES")
    # Arrays of valid steps have one element more: the next sequence is written behind the valid
    # ones before its masks are read.
    private = layout.Workspace(
        SUMS=max(tile.height * sums, x_tile.height * x_sums),
        DZ_POINTERS=(batch + 1) * 8,
        SEQUENCES=(batch + 1) * 8,
        COUNT=8,
        PANEL=min(block * N, gemm.MAX_TERMS) * width * lanes * itemsize,
        MY_DZ=mine,
        MY_DX=mine,
        **dict.fromkeys(names, (block * N + gemm.PREFETCH) * 8),
    )
    more = dict(PANELS=panels, X_PANELS=x_panels, BLOCK=block, DZ_STRIDE=stride)
    return layout.call_layout(spec.SCALARS, split, sizes, reverse, shared, private, **more)


class _Step(NamedTuple):
    """Values that the transpose of the cell needs at a step of a sequence."""

    place: str  # n * H + the first hidden unit
    position: str  # t * N + n
    before: str  # (t - 1) * N
    initial: str  # condition "the step before is the initial state"
    reset: str  # mask "the states are reset before the step"; "" without masks


class _BackwardWriter(KernelWriter):
    spec: BackwardSpec

    def __init__(self, module: Module, spec: BackwardSpec):
        super().__init__(module, spec)
        f, c = self.f, self.c
        self.features = f.mul(c["H"], spec.gates)
        self.panel = f.mul(self.features, self.sums)
        self.part = threads.Part(f, c)

    def work(self) -> None:
        """Write the whole function."""
        f, c, part = self.f, self.c, self.part
        self._prepare()
        for k in range(self.spec.states):
            self.copy_states(part, f"dfinal{k}", f"dinitial{k}")
        with f.loop(0, c["T"], c["BLOCK"]) as k0:
            steps = f.minimum(f.sub(c["T"], k0), c["BLOCK"])
            with f.loop(0, steps) as s:
                k = f.add(k0, s)
                self._step(k)
                part.wait(f, f.add(k, 1))
            # The products behind the loop read dz of all threads.
            block = f.udiv(k0, c["BLOCK"])
            threads.wait_for_all(f, c, f.add(block, 2))
            if self.spec.requested.x:
                self._input_cotangents(k0, steps)
            if any(self.spec.requested[1:]):
                self._weight_gradients(k0, steps)
        count = self._following(c["T"], f.icmp("ne", c["T"], c["T"]))
        with self._products(count, self.features) as (p, n, sums):
            self._add_to_dh(p, n, sums)
        f.ret()

    def _prepare(self) -> None:
        """Pack the weights and fill the constants of the workspace."""
        f, c, m, requested = self.f, self.c, self.m, self.spec.requested
        first, end = threads.interval(f, c["PANELS"], "%number", c["THREADS"])
        with f.loop(first, end) as p:
            target = f.gep(self.shared["W_HH"], f.mul(self.panel, p))
            gemm.pack(f, self.tile, c["w_hh"], target, p, self.features, c["H"])
        if requested.x:
            tile = self.spec.x_tile
            size = f.mul(self.features, tile.vectors * m.lanes)
            first, end = threads.interval(f, c["X_PANELS"], "%number", c["THREADS"])
            with f.loop(first, end) as p:
                target = f.gep(self.shared["W_IH"], f.mul(size, p))
                gemm.pack(f, tile, c["w_ih"], target, p, self.features, c["D"])
        with f.if_then(f.icmp("eq", "%number", 0)):
            m.declare("llvm.smax.i64", INT, INT, INT)
            size = f.call("llvm.smax.i64", c["DZ_STRIDE"], c["D"])
            with f.loop(0, size) as i:
                f.store("0.0", f.gep(self.shared["ZEROS"], i), m.scalar)
            f.store("1.0", self.shared["ONE"], m.scalar)
            if requested.x:
                threads.request_large_pages(f, c["dx"], f.mul(f.mul(c["T"], c["N"]), c["D"]))
            if requested.weight_ih:
                threads.request_large_pages(f, c["dw_ih"], f.mul(self.features, c["D"]))
            if requested.weight_hh:
                threads.request_large_pages(f, c["dw_hh"], f.mul(self.features, c["H"]))
        with f.loop(0, f.mul(c["BLOCK"], c["N"])) as i:
            self.put(self.shared["ONE"], "ONES", i)
        threads.wait_for_all(f, c, "1")

    def _time(self, k: str) -> str:
        """Return the time step of an iteration."""
        f, c = self.f, self.c
        return f.add(c["T_FIRST"], f.mul(f.sub(f.sub(c["T"], 1), k), c["T_STEP"]))

    def _dz(self, half: int, k: str, n: str) -> str:
        """Return the address of dz, in a ring buffer of the current and the previous block."""
        f, c = self.f, self.c
        slot = f.assign(f"urem i64 {k}, {f.mul(c['BLOCK'], 2)}")
        slot = f.add(slot, f.mul(f.mul(c["BLOCK"], 2), half)) if half else slot
        place = f.mul(f.add(f.mul(slot, c["N"]), n), c["DZ_STRIDE"])
        return f.gep(self.shared["DZ"], place)

    def _following(self, k: str, at_last: str) -> str:
        """List the sequences to compute and their dz of the following step; return their number.

        With masks these are the sequences for which this step or the following is valid. The
        address is that of zeros if the following step is invalid or was reset.
        """
        f, c, masked = self.f, self.c, self.spec.masked
        following = f.select(at_last, k, f.sub(k, 1))
        f.store(0, self.private["COUNT"], INT)
        with f.loop(self.part.n0, self.part.n1) as n:
            dz, valid = self._dz(self.spec.halves - 1, following, n), "1"
            if masked:
                reset, followed = self.mask_bits(self._time(following), n)
                connected = f.assign(f"and i1 {followed}, {f.assign(f'xor i1 {reset}, true')}")
                dz = f.select(connected, dz, self.shared["ZEROS"], "ptr")
                current = f.select(f.icmp("slt", k, c["T"]), k, following)
                either = f.assign(f"or i1 {followed}, {self.mask_bits(self._time(current), n)[1]}")
                valid = f.assign(f"zext i1 {either} to i64")
            index = f.load(self.private["COUNT"], INT)
            self.put(dz, "DZ_POINTERS", index)
            self.put(n, "SEQUENCES", index, INT)
            f.store(f.add(index, valid), self.private["COUNT"], INT)
        return f.load(self.private["COUNT"], INT)

    @contextmanager
    def _products(self, count: str, features: str) -> Iterator[tuple[str, str, str]]:
        """Write a loop over panels and sequences: the panel, the sequence, sums of dz @ W_hh."""
        f, part, sums = self.f, self.part, self.private["SUMS"]
        with (
            f.loop(part.panel0, part.panel1) as p,
            gemm.split_tiles(f, count, self.tile.height) as (i, height),
        ):
            w = f.gep(self.shared["W_HH"], f.mul(self.panel, p))
            dz = f.gep(self.private["DZ_POINTERS"], i, 8)
            zeros = self.shared["ZEROS"]
            f.call("product", height, w, features, dz, zeros, "0", sums)
            with f.loop(0, height) as j:
                n = self.get("SEQUENCES", f.add(i, j), INT)
                yield p, n, f.gep(sums, f.mul(j, self.sums))

    def _step(self, k: str) -> None:
        f = self.f
        at_last = f.icmp("eq", k, 0)
        features = f.select(at_last, "0", self.features)
        count = self._following(k, at_last)
        with self._products(count, features) as (p, n, sums):
            if self.spec.masked:
                valid = self.mask_bits(self._time(k), n)[1]
                with f.if_then(valid):
                    self._cell(p, k, n, sums)
                with f.unless(valid):
                    self._add_to_dh(p, n, sums)
            else:
                self._cell(p, k, n, sums)
        if self.spec.masked:
            self._add_invalid_outputs(k)

    def _add_invalid_outputs(self, k: str) -> None:
        """Add the cotangent of the output at an invalid step, which is the state, to dh."""
        f, c, part = self.f, self.c, self.part
        t = self._time(k)
        with f.loop(part.n0, part.n1) as n, f.unless(self.mask_bits(t, n)[1]):
            dy = f.gep(c["dy"], f.mul(f.add(f.mul(t, c["N"]), n), c["H"]))
            dh = f.gep(c["dinitial0"], f.mul(n, c["H"]))
            with f.loop(part.panel0, part.panel1) as p:
                for _, first, active in self.vectors(p):
                    target = f.gep(dh, first)
                    value = f.masked_load(f.gep(dy, first), active)
                    f.masked_store(f.fadd(f.masked_load(target, active), value), target, active)

    def _add_to_dh(self, p: str, n: str, sums: str) -> None:
        """Add the cotangent that comes from the following step to dh."""
        f, c, m = self.f, self.c, self.m
        for vector, first, active in self.vectors(p):
            target = f.gep(c["dinitial0"], f.add(f.mul(n, c["H"]), first))
            value = f.load(f.gep(sums, vector * m.lanes), m.vector)
            f.masked_store(f.fadd(f.masked_load(target, active), value), target, active)

    def _cell(self, p: str, k: str, n: str, sums: str) -> None:
        """Compute the transpose of the cell's tangent for a sequence and a panel."""
        f, c = self.f, self.c
        t = self._time(k)
        initial = f.icmp("eq", k, f.sub(c["T"], 1))
        before = f.mul(f.sub(t, c["T_STEP"]), c["N"])
        position = f.add(f.mul(t, c["N"]), n)
        reset = f.broadcast(self.mask_bits(t, n)[0], "i1") if self.spec.masked else ""
        targets = [self._dz(half, k, n) for half in range(self.spec.halves)]
        for vector, first, active in self.vectors(p):
            step = _Step(f.add(f.mul(n, c["H"]), first), position, before, initial, reset)
            self._cell_vector(step, vector, first, active, sums, targets)

    def _cell_vector(
        self, step: _Step, vector: int, first: str, active: str, sums: str, targets: list[str]
    ) -> None:
        f, c, m, spec = self.f, self.c, self.m, self.spec
        current = f.add(f.mul(step.position, c["H"]), first)
        before = f.add(f.mul(step.before, c["H"]), step.place)
        carries = [f.gep(c[f"dinitial{k}"], step.place) for k in range(spec.states)]
        cts = [f.masked_load(carry, active) for carry in carries]
        direct = f.masked_load(f.gep(c["dy"], current), active)
        recurrent = f.load(f.gep(sums, vector * m.lanes), m.vector)
        cts[0] = f.fadd(f.fadd(cts[0], direct), recurrent)

        def _leaf(name: str, index: int) -> str:
            if name == "ct":
                return cts[index]
            if name == "params":
                return self.cell_param(index, first, active)
            if name == "new":
                return f.masked_load(f.gep(c[f"state{index}"], current), active)
            if name == "old":
                old = f.gep(c[f"initial{index}"], step.place), f.gep(c[f"state{index}"], before)
                value = f.masked_load(f.select(step.initial, *old, "ptr"), active)
                return self._unless_reset(step, value)
            return f.masked_load(self.residual(index, step.position, first), active)

        values = emit_graph(f, spec.graph.backward, _leaf)
        gates = spec.gates * spec.halves
        for index, value in enumerate(values[:gates]):
            half, gate = divmod(index, spec.gates)
            place = f.add(f.mul(c["H"], gate), first) if gate else first
            f.masked_store(value, f.gep(targets[half], place), active)
        if spec.requested.cell_params:
            for index, value in enumerate(values[gates + spec.states :], spec.gates):
                place = f.add(f.mul(c["H"], index), first)
                f.masked_store(value, f.gep(targets[0], place), active)
        for value, carry in zip(values[gates:], carries):
            f.masked_store(self._unless_reset(step, value), carry, active)

    def _unless_reset(self, step: _Step, value: str) -> str:
        f = self.f
        return f.select_lanes(step.reset, f.constant(0.0), value) if step.reset else value

    # Products behind the loop, for a block of steps

    def _weight_gradients(self, k0: str, steps: str) -> None:
        """Add to the gradients of the weights, the biases and the cell parameters."""
        f, c, requested, halves = self.f, self.c, self.spec.requested, self.spec.halves
        count = self._block_pointers(k0, steps)
        overwrite = f.icmp("eq", k0, 0)
        height = self.spec.h_outer.height
        tiles = f.ceildiv(self.features, height)
        begin, end = threads.interval(f, tiles, "%number", c["THREADS"])
        begin, end = f.mul(begin, height), f.minimum(f.mul(end, height), self.features)

        add = functools.partial(self._add_outer, count, overwrite, (begin, end))
        if requested.weight_hh:
            add("outer_h", f"DZ{halves - 1}_POINTERS", "H_POINTERS", c["H"], "dw_hh")
        if requested.weight_ih:
            with f.if_then(f.icmp("ugt", c["D"], 1)):
                add("outer_x", "DZ0_POINTERS", "X_POINTERS", c["D"], "dw_ih")
            # With a single feature the vectors run over the gates.
            with f.if_then(f.icmp("eq", c["D"], 1)):
                add("outer_h", "X_POINTERS", "DZ0_POINTERS", self.features, "dw_ih")
        if requested.bias:
            for half in range(halves):
                add("outer_h", "ONES", f"DZ{half}_POINTERS", self.features, f"db{half}")
        if requested.cell_params:
            size = f.mul(c["H"], self.spec.graph.param_count)
            add("outer_h", "ONES", "DP_POINTERS", size, "dcell_params")

    def _add_outer(
        self,
        count: str,
        overwrite: str,
        lines: tuple[str, str],
        name: str,
        a: str,
        b: str,
        columns: str,
        target: str,
    ) -> None:
        """Add ``A.T @ B`` to C; threads partition the lines of C, or the columns of one line."""
        f, c, m, panel = self.f, self.c, self.m, self.private["PANEL"]
        tile = {"outer_x": self.spec.x_outer, "outer_h": self.spec.h_outer}[name]
        width = tile.width * m.lanes
        panels = None
        if a in ("ONES", "X_POINTERS"):
            total = f.ceildiv(columns, width)
            lines, panels = ("0", "1"), threads.interval(f, total, "%number", c["THREADS"])
        first, end = lines
        last_tile = f.add(first, f.mul(f.udiv(f.sub(end, first), tile.height), tile.height))
        # For K = 0 one pass writes zeros to an uninitialised C.
        passes = f.select(f.icmp("eq", count, 0), "1", count)
        with f.loop(0, passes, gemm.MAX_TERMS) as k0:
            terms = f.minimum(f.sub(count, k0), gemm.MAX_TERMS)
            a0, b0 = f.gep(self.private[a], k0, 8), f.gep(self.private[b], k0, 8)
            overwrite0 = f.assign(f"and i1 {overwrite}, {f.icmp('eq', k0, 0)}")
            with f.loop(*(panels or ("0", f.ceildiv(columns, width)))) as p:
                j = f.mul(p, width)
                places = [f.add(j, v * m.lanes) for v in range(tile.width)]
                active = [f.active_lanes(place, columns) for place in places]
                with f.loop(0, terms) as k:
                    source, to = f.load(f.gep(b0, k, 8), "ptr"), f.mul(k, width)
                    for v in range(tile.width):
                        value = f.masked_load(f.gep(source, places[v]), active[v])
                        f.store(value, f.gep(f.gep(panel, to), v * m.lanes), m.vector)
                for suffix, *bounds in (
                    ("", first, last_tile, tile.height),
                    ("_single", last_tile, end),
                ):
                    with f.loop(*bounds) as i:
                        to = f.gep(c[target], f.mul(i, columns))
                        f.call(name + suffix, terms, a0, i, panel, j, columns, overwrite0, to)

    def _block_pointers(self, k0: str, steps: str) -> str:
        """List x, h before the step and dz of all valid steps of a block; return their number."""
        f, c = self.f, self.c
        f.store(0, self.private["COUNT"], INT)
        with f.loop(0, steps) as s:
            k = f.add(k0, s)
            t = self._time(k)
            initial = f.icmp("eq", k, f.sub(c["T"], 1))
            before = f.mul(f.sub(t, c["T_STEP"]), c["N"])
            with f.loop(0, c["N"]) as n:
                x = f.gep(c["x"], f.mul(f.add(f.mul(t, c["N"]), n), c["D"]))
                h = f.gep(c["state0"], f.mul(f.add(before, n), c["H"]))
                h = f.select(initial, f.gep(c["initial0"], f.mul(n, c["H"])), h, "ptr")
                valid = "1"
                if self.spec.masked:
                    reset, condition = self.mask_bits(t, n)
                    h = f.select(reset, self.shared["ZEROS"], h, "ptr")
                    valid = f.assign(f"zext i1 {condition} to i64")
                index = f.load(self.private["COUNT"], INT)
                pointers = {"X_POINTERS": x, "H_POINTERS": h}
                for half in range(self.spec.halves):
                    pointers[f"DZ{half}_POINTERS"] = self._dz(half, k, n)
                if self.spec.requested.cell_params:
                    pointers["DP_POINTERS"] = f.gep(pointers["DZ0_POINTERS"], self.features)
                for region, address in pointers.items():
                    self.put(address, region, index)
                f.store(f.add(index, valid), self.private["COUNT"], INT)
        return f.load(self.private["COUNT"], INT)

    def _input_cotangents(self, k0: str, steps: str) -> None:
        """Compute ``dx = dz @ W_ih`` for the batch elements of the thread; 0 at invalid steps."""
        f, c, m, tile, part = self.f, self.c, self.m, self.spec.x_tile, self.part
        sums = tile.vectors * m.lanes
        f.store(0, self.private["COUNT"], INT)
        with f.loop(0, steps) as s:
            k = f.add(k0, s)
            t = self._time(k)
            with f.loop(part.n0, part.n1) as n:
                index, valid = f.load(self.private["COUNT"], INT), "1"
                self.put(self._dz(0, k, n), "MY_DZ", index)
                dx = f.gep(c["dx"], f.mul(f.add(f.mul(t, c["N"]), n), c["D"]))
                self.put(dx, "MY_DX", index)
                if self.spec.masked:
                    condition = self.mask_bits(t, n)[1]
                    valid = f.assign(f"zext i1 {condition} to i64")
                    with f.unless(condition):
                        first, end = part.interval_of_units(f, c["D"])
                        with f.loop(first, end) as i:
                            f.store("0.0", f.gep(dx, i), m.scalar)
                f.store(f.add(index, valid), self.private["COUNT"], INT)
        count = f.load(self.private["COUNT"], INT)
        first, end = part.interval_of_units(f, c["X_PANELS"])
        size = f.mul(self.features, sums)
        with f.loop(first, end) as p, gemm.split_tiles(f, count, tile.height) as (i, height):
            w, dz = f.gep(self.shared["W_IH"], f.mul(size, p)), f.gep(self.private["MY_DZ"], i, 8)
            zeros, target = self.shared["ZEROS"], self.private["SUMS"]
            f.call("product_x", height, w, self.features, dz, zeros, "0", target)
            with f.loop(0, height) as j:
                dx = self.get("MY_DX", f.add(i, j))
                source = f.gep(target, f.mul(j, sums))
                for vector in range(tile.width):
                    unit = f.add(f.mul(p, tile.width * m.lanes), vector * m.lanes)
                    value = f.load(f.gep(source, vector * m.lanes), m.vector)
                    f.masked_store(value, f.gep(dx, unit), f.active_lanes(unit, c["D"]))
