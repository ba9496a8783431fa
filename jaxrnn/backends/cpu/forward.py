"""Forward kernel: input product, recurrent product and cell, step by step.

.. code-block:: text

    for a block of steps:  zx = x @ W_ih.T + b        for the batch elements of a thread
      for each step, panel of hidden units, tile of batch elements:
        z = zx + h @ W_hh.T                            the sums of a tile stay in registers
        h, c, ... = cell(z, ...)                       and so do the operands of the cell

The output (T, N, H) is also the memory of h: each step reads what the step before has written.
Invalid steps of a sequence are skipped: its states are copied, and no residuals are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxrnn.backends.cpu import compiler, gemm, layout, threads
from jaxrnn.backends.cpu.ir import INT, Module, emit_graph
from jaxrnn.backends.cpu.layout import CallSizes, KernelSpec, KernelWriter, Machine


@dataclass(frozen=True)
class ForwardSpec(KernelSpec):
    """Static description of a forward kernel."""

    store_residuals: bool  # and the states of each step

    NAME = "forward"
    SHARED = ("W_IH", "W_HH", "B_X", "B_H", "ZEROS")
    PRIVATE = ("ZX", "SUMS", "X_POINTERS", "H_POINTERS", "SEQUENCES", "OFFSETS", "PANEL")
    SCALARS = (
        *("T", "N", "D", "H", "PANELS", "BLOCK", "T_FIRST", "T_STEP"),
        *(*SHARED, "PRIVATE", "PRIVATE_SIZE", *PRIVATE, "ONE_BLOCK"),
    )

    def inputs(self) -> list[str]:
        """Return the names of the operands."""
        cell_params = ["cell_params"] * bool(self.graph.param_count)
        weights = ["w_ih", "w_hh", "b_ih", "b_hh", *cell_params]
        return ["x", *weights, *self.names("initial"), *["masks"] * self.masked]

    def outputs(self) -> list[str]:
        """Return the names of the results: h at each step, the other states, residuals."""
        count = len(self.graph.residual_counts) if self.store_residuals else 0
        return [*self.names("state"), *self.names("residual", count)]

    def shapes(self, sizes: CallSizes) -> list[tuple[int, ...]]:
        """Return the shapes of the results."""
        T, N, _, H = sizes
        state = (T, N, H) if self.store_residuals else (N, H)
        counts = self.graph.residual_counts if self.store_residuals else ()
        residuals = [(T, N, count * H) for count in counts]
        return [(T, N, H), *[state] * (self.states - 1), *residuals]

    def write(self, module: Module) -> None:
        """Write ``work(context, number)``."""
        gemm.write_matmul(module, "product", self.tile)
        _ForwardWriter(module, self).work()


def run(
    operands: Sequence[jax.Array],
    *,
    cell: Any,
    masked: bool,
    store_residuals: bool,
    reverse: bool,
    local_devices: int = 1,
) -> list[jax.Array]:
    """Run the forward kernel; see `jaxrnn.backends.cpu.run_forward`."""
    x, w_hh = operands[0], operands[2]
    sizes = CallSizes.of(x, w_hh)
    machine = compiler.machine().divided(local_devices)
    lanes = machine.lanes(x.dtype.itemsize)
    tile = gemm.choose_tile(machine.registers, lanes, len(cell.gates), sizes.H)
    spec = ForwardSpec(cell, x.dtype, masked, tile, store_residuals)
    scalars, workspace = _layout(spec, machine, sizes, reverse)
    return compiler.call_kernel(spec, machine, scalars, workspace, spec.shapes(sizes), operands)


def _layout(
    spec: ForwardSpec, machine: Machine, sizes: CallSizes, reverse: bool
) -> tuple[list[int], int]:
    (T, N, D, H), tile, itemsize = sizes, spec.tile, spec.dtype.itemsize
    lanes = machine.lanes(itemsize)
    panels = -(-H // (tile.width * lanes))
    sums = tile.vectors * lanes * itemsize  # of a batch element in a panel
    split = layout.partition(machine, tile, spec.gates, sizes, panels, panels * H * sums)
    batch = -(-N // split.batch_groups)
    # If the inputs have fewer vectors than W_ih has columns, zx takes less memory than a packed
    # W_ih: all steps form one block, and the panels of W_ih are packed one after another.
    one_block = split.batch_groups == 1 and T * N < D
    block = T if one_block else max(1, min(T, layout.FORWARD_BLOCK // batch))
    shared = layout.Workspace(
        W_IH=0 if one_block else panels * D * sums,
        W_HH=panels * H * sums,
        B_X=panels * sums,
        B_H=panels * sums if spec.cell.split else 0,
        ZEROS=H * itemsize,
    )
    # Arrays of valid steps have one element more: the next sequence is written behind the valid
    # ones before its masks are read.
    private = layout.Workspace(
        ZX=-(-panels // split.unit_groups) * block * batch * sums,
        SUMS=tile.height * sums,
        X_POINTERS=(block * batch + 1) * 8,
        H_POINTERS=batch * 8,
        SEQUENCES=(block * batch + 1) * 8,
        OFFSETS=(block + 1) * 8,
        PANEL=D * sums if one_block else 0,
    )
    more = dict(PANELS=panels, BLOCK=block, ONE_BLOCK=int(one_block))
    return layout.call_layout(spec.SCALARS, split, sizes, reverse, shared, private, **more)


class _ForwardWriter(KernelWriter):
    spec: ForwardSpec

    def work(self) -> None:
        """Write the whole function."""
        f, c, m, tile, spec = self.f, self.c, self.m, self.tile, self.spec
        panel_ih, panel_hh = f.mul(c["D"], self.sums), f.mul(c["H"], self.sums)
        one_block = f.icmp("ne", c["ONE_BLOCK"], 0)
        first, end = threads.interval(f, c["PANELS"], "%number", c["THREADS"])
        with f.loop(first, end) as p:
            w_ih = f.gep(self.shared["W_IH"], f.mul(panel_ih, p))
            w_hh = f.gep(self.shared["W_HH"], f.mul(panel_hh, p))
            with f.unless(one_block):
                gemm.pack_transposed(f, tile, c["w_ih"], w_ih, p, c["D"], c["H"])
            gemm.pack_transposed(f, tile, c["w_hh"], w_hh, p, c["H"], c["H"])
            self._pack_biases(p)
        with f.if_then(f.icmp("eq", "%number", 0)):
            with f.loop(0, c["H"]) as i:
                f.store("0.0", f.gep(self.shared["ZEROS"], i), m.scalar)
            self._request_large_pages()
        threads.wait_for_all(f, c, "1")

        self.part = part = threads.Part(f, c)
        self.batch = f.sub(part.n1, part.n0)
        if not spec.store_residuals:  # the other states are updated in place, (N, H)
            for k in range(1, spec.states):
                self.copy_states(part, f"initial{k}", f"state{k}")
        with f.loop(0, c["T"], c["BLOCK"]) as s0:
            steps = f.minimum(f.sub(c["T"], s0), c["BLOCK"])
            total = self._valid_steps(s0, steps)
            with f.loop(part.panel0, part.panel1) as p:
                zx = self._zx(p)
                with f.if_then(one_block):
                    panel = self.private["PANEL"]
                    gemm.pack_transposed(f, tile, c["w_ih"], panel, p, c["D"], c["H"])
                w = f.gep(self.shared["W_IH"], f.mul(panel_ih, p))
                w = f.select(one_block, self.private["PANEL"], w, "ptr")
                with gemm.split_tiles(f, total, tile.height) as (i, count):
                    xs = f.gep(self.private["X_POINTERS"], i, 8)
                    target = f.gep(zx, f.mul(i, self.sums))
                    bias = f.gep(self.shared["B_X"], f.mul(p, self.sums))
                    f.call("product", count, w, c["D"], xs, bias, "0", target)
            with f.loop(0, steps) as s:
                self._step(s0, s, panel_hh)
        f.ret()

    def _zx(self, p: str, offset: str = "0") -> str:
        """Return the address of the input products of a panel."""
        f = self.f
        place = f.mul(f.sub(p, self.part.panel0), f.mul(self.c["BLOCK"], self.batch))
        place = f.add(place, offset)
        return f.gep(self.private["ZX"], f.mul(place, self.sums))

    def _step(self, s0: str, s: str, panel_hh: str) -> None:
        f, c, spec, part = self.f, self.c, self.spec, self.part
        step = f.add(s0, s)
        self.t = t = f.add(c["T_FIRST"], f.mul(step, c["T_STEP"]))
        self.initial = f.icmp("eq", step, 0)
        self.before = f.mul(f.sub(t, c["T_STEP"]), c["N"])
        first = self.get("OFFSETS", s, INT)
        total = f.sub(self.get("OFFSETS", f.add(s, 1), INT), first)
        sequences = f.gep(self.private["SEQUENCES"], first, 8)
        with f.loop(0, total) as i:
            n = f.load(f.gep(sequences, i, 8), INT)
            old = f.gep(c["state0"], f.mul(self.before, c["H"]))
            old = f.gep(f.select(self.initial, c["initial0"], old, "ptr"), f.mul(n, c["H"]))
            if spec.masked:
                reset, _ = self.mask_bits(t, n)
                old = f.select(reset, self.shared["ZEROS"], old, "ptr")
            self.put(old, "H_POINTERS", i)
        with f.loop(part.panel0, part.panel1) as p:
            zx = self._zx(p, first)
            with gemm.split_tiles(f, total, self.tile.height) as (i, count):
                source = f.gep(zx, f.mul(i, self.sums))
                bias = f.gep(self.shared["B_H"], f.mul(p, self.sums))
                start = (bias, "0") if spec.cell.split else (source, str(self.sums))
                hs = f.gep(self.private["H_POINTERS"], i, 8)
                w = f.gep(self.shared["W_HH"], f.mul(panel_hh, p))
                f.call("product", count, w, c["H"], hs, *start, self.private["SUMS"])
                with f.loop(0, count) as j:
                    index = f.add(i, j)
                    n = f.load(f.gep(sequences, index, 8), INT)
                    h = self.get("H_POINTERS", index)
                    zx = f.gep(source, f.mul(j, self.sums))
                    self._cell(p, n, h, zx, f.gep(self.private["SUMS"], f.mul(j, self.sums)))
        if spec.masked:
            self._copy_invalid()
        part.wait(f, f.add(step, 1))

    def _request_large_pages(self) -> None:
        """Request large pages for the results of all steps."""
        f, c, spec = self.f, self.c, self.spec
        size = f.mul(f.mul(c["T"], c["N"]), c["H"])
        for k in range(spec.states if spec.store_residuals else 1):
            threads.request_large_pages(f, c[f"state{k}"], size)
        if spec.store_residuals:
            for array, count in enumerate(spec.graph.residual_counts):
                threads.request_large_pages(f, c[f"residual{array}"], f.mul(size, count))

    def _valid_steps(self, s0: str, steps: str) -> str:
        """List the sequences whose steps are valid, for each step of a block; return their number.

        Only these are computed: sequences that have ended cost no time.
        """
        f, c = self.f, self.c
        f.store(0, self.private["OFFSETS"], INT)
        with f.loop(0, steps) as s:
            t = f.add(c["T_FIRST"], f.mul(f.add(s0, s), c["T_STEP"]))
            first = f.gep(self.private["OFFSETS"], s, 8)
            end = f.gep(self.private["OFFSETS"], f.add(s, 1), 8)
            f.store(f.load(first, INT), end, INT)
            with f.loop(self.part.n0, self.part.n1) as n:
                index = f.load(end, INT)
                x = f.gep(c["x"], f.mul(f.add(f.mul(t, c["N"]), n), c["D"]))
                self.put(x, "X_POINTERS", index)
                self.put(n, "SEQUENCES", index, INT)
                valid = 1
                if self.spec.masked:
                    valid = f.assign(f"zext i1 {self.mask_bits(t, n)[1]} to i64")
                f.store(f.add(index, valid), end, INT)
        return self.get("OFFSETS", steps, INT)

    def _copy_invalid(self) -> None:
        """Copy the states of sequences whose step is invalid."""
        f, c, spec, part = self.f, self.c, self.spec, self.part
        with f.loop(part.n0, part.n1) as n, f.unless(self.mask_bits(self.t, n)[1]):
            place = f.mul(n, c["H"])
            source = f.add(f.mul(self.before, c["H"]), place)
            target = f.mul(f.add(f.mul(self.t, c["N"]), n), c["H"])
            for k in range(spec.states if spec.store_residuals else 1):
                old = self._old(k, place, source)
                new = f.gep(c[f"state{k}"], target)
                with f.loop(part.panel0, part.panel1) as p:
                    for _, first, active in self.vectors(p):
                        value = f.masked_load(f.gep(old, first), active)
                        f.masked_store(value, f.gep(new, first), active)

    def _old(self, k: int, initial: str, before: str) -> str:
        """Return the address of a state before the step."""
        f, c = self.f, self.c
        old = f.gep(c[f"initial{k}"], initial), f.gep(c[f"state{k}"], before)
        return f.select(self.initial, *old, "ptr")

    def _pack_biases(self, p: str) -> None:
        """Pack the biases of a panel in the order of its sums; they are added unless split."""
        f, c, m, tile = self.f, self.c, self.m, self.tile
        b_x = f.gep(self.shared["B_X"], f.mul(p, self.sums))
        b_h = f.gep(self.shared["B_H"], f.mul(p, self.sums))
        for gate in range(tile.gates):
            for vector, first, active in self.vectors(p):
                place = f.add(f.mul(c["H"], gate), first)
                bias = f.masked_load(f.gep(c["b_ih"], place), active)
                bias_hh = f.masked_load(f.gep(c["b_hh"], place), active)
                offset = (gate * tile.width + vector) * m.lanes
                if self.spec.cell.split:
                    f.store(bias_hh, f.gep(b_h, offset), m.vector)
                else:
                    bias = f.fadd(bias, bias_hh)
                f.store(bias, f.gep(b_x, offset), m.vector)

    def _cell(self, p: str, n: str, h: str, zx: str, sums: str) -> None:
        """Compute the cell for a sequence and a panel."""
        f = self.f
        position = f.add(f.mul(self.t, self.c["N"]), n)
        reset = f.broadcast(self.mask_bits(self.t, n)[0], "i1") if self.spec.masked else ""
        for vector in self.vectors(p):
            self._cell_vector(vector, n, position, reset, h, zx, sums)

    def _cell_vector(
        self,
        units: tuple[int, str, str],
        n: str,
        position: str,
        reset: str,
        h: str,
        zx: str,
        sums: str,
    ) -> None:
        """Compute the cell for a vector of hidden units, and store its states and residuals."""
        f, c, m, tile, spec = self.f, self.c, self.m, self.tile, self.spec
        vector, first, active = units
        olds = [f.masked_load(f.gep(h, first), active)]
        targets = [f.gep(c["state0"], f.add(f.mul(position, c["H"]), first))]
        for k in range(1, spec.states):
            place = f.add(f.mul(n, c["H"]), first)
            if spec.store_residuals:
                old = self._old(k, place, f.add(f.mul(self.before, c["H"]), place))
                target = f.gep(c[f"state{k}"], f.add(f.mul(position, c["H"]), first))
            else:
                old = target = f.gep(c[f"state{k}"], place)
            targets.append(target)
            olds.append(f.masked_load(old, active))
        if reset:
            zero = f.constant(0.0)
            olds[1:] = [f.select_lanes(reset, zero, old) for old in olds[1:]]

        def _leaf(name: str, index: int) -> str:
            if name == "old":
                return olds[index]
            if name == "params":
                return self.cell_param(index, first, active)
            half, gate = divmod(index, spec.gates)
            source = zx if spec.cell.split and half == 0 else sums
            return f.load(f.gep(source, (gate * tile.width + vector) * m.lanes), m.vector)

        values = emit_graph(f, spec.graph.forward, _leaf)
        for value, target in zip(values, targets):
            f.masked_store(value, target, active)
        if spec.store_residuals:
            for index, value in enumerate(values[spec.states :]):
                f.masked_store(value, self.residual(index, position, first), active)
