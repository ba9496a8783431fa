"""The kernels as calls; each is written and compiled once, when it is first needed."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrnn.backends.cpu import (
    backward,
    backward_call,
    compiler,
    forward,
    handler,
    outer,
    threads,
    tiles,
)
from jaxrnn.backends.cpu.backward_call import Backward, Requested
from jaxrnn.backends.cpu.ir import Module
from jaxrnn.backends.cpu.layout import Sizes
from jaxrnn.backends.cpu.variant import Variant

DTYPES = {"float32": "float", "float64": "double"}


_compiled: set[str] = set()
_compiling = threading.Lock()


@functools.cache
def variant(cell: Any, dtype: str, masked: bool, store_residuals: bool) -> Variant:
    """What a kernel is written for; see `Variant`."""
    return Variant(cell, np.dtype(dtype), masked, store_residuals)


def _handler(kind: Variant | Backward, dtype: str, tile: tiles.Tile, machine: tiles.Machine) -> str:
    """The name of a compiled kernel.

    It is made of what the kernel does, so that programs that XLA keeps on disk find the same.
    """
    return _of(kind, dtype, tile, machine, compiler.quickly())


@functools.cache
def _of(
    kind: Variant | Backward, dtype: str, tile: tiles.Tile, machine: tiles.Machine, quickly: bool
) -> str:
    module = Module(DTYPES[dtype], machine.bits // 8 // np.dtype(dtype).itemsize)
    threads.write_barrier(module)
    if isinstance(kind, Backward):
        backward.write(module, kind)
        told, name = backward_call.NUMBERS, "backward"
    else:
        forward.write(module, kind, tile)
        told, name = forward.NUMBERS, "forward"
    threads.write_start(module)
    threads.write_run(module, machine.cores)
    digest = hashlib.sha256((module.text() + "quickly" * quickly).encode()).hexdigest()
    name = f"jaxrnn_{name}_{digest[:16]}"
    with _compiling:  # XLA takes a name once, and two threads may trace the same layer
        if name not in _compiled:
            handler.write_handler(module, name, len(told), len(kind.inputs), len(kind.outputs))
            compiler.compile_handler(module.text(), name, machine.bits, quickly)
            _compiled.add(name)
    return name


def run_forward(
    cell: Any,
    operands: Sequence[jax.Array],
    *,
    masked: bool,
    store_residuals: bool,
    reverse: bool,
    at_once: int = 1,
) -> list[jax.Array]:
    """The forward kernel: h at each step, the other states, and what the cell saves.

    Args:
        cell: which cell.
        operands: x (T, N, D), W_ih, W_hh, both biases (G*H,), the cell's own parameters as one
            vector, if it has some, the first states (N, H), and, if `masked`, flags uint8 (T, N): 1
            for a reset, and 2 for a step that is the row's own.
        masked: whether there are flags.
        store_residuals: give out the other states at each step (T, N, H), and what is saved (T, N, s*H),
            instead of the last other states (N, H).
        reverse: from the last step to the first.
        at_once: how many such calls share the processor: one for each device there is.
    """
    x, _, w_hh = operands[:3]
    sizes, dtype = Sizes(x.shape[0], x.shape[1], x.shape[2], w_hh.shape[1]), x.dtype.name
    kind = variant(cell, dtype, masked, store_residuals)
    machine = compiler.machine().shared(at_once)
    lanes = machine.bits // 8 // x.dtype.itemsize
    tile = tiles.choose(machine, lanes, kind.gates, sizes.H)
    planned = forward.plan(kind, machine, tile, lanes, x.dtype.itemsize, sizes, 1 - 2 * reverse)
    steps = (sizes.T, sizes.N, sizes.H)
    results = [steps, *[steps if store_residuals else steps[1:]] * (kind.states - 1)]
    if store_residuals:
        results += [(*steps[:2], count * sizes.H) for count in kind.graph.residual_counts]
    name = _handler(kind, dtype, tile, machine)
    return _call(name, planned, results, x.dtype, operands)


def run_backward(
    cell: Any,
    operands: Sequence[jax.Array],
    *,
    masked: bool,
    reverse: bool,
    requested: Sequence[bool],
    at_once: int = 1,
) -> list[jax.Array]:
    """The backward kernel: the derivatives that are requested, and those by the first states.

    Args:
        cell: which cell.
        operands: the derivative by h at each step (T, N, H), x (T, N, D), W_ih, W_hh, the
            cell's own parameters, if it has some, the derivatives by the last states, the first
            states, the states at each step, what was saved, and flags.
        masked: whether there are flags.
        reverse: as in the forward kernel.
        requested: by x (T, N, D), by W_ih, by W_hh, by the bias (G*H,), or by both biases where the
            cell takes its gate inputs apart; of a cell with parameters of its own, by those.
        at_once: as in the forward kernel.
    """
    _, x, w_ih, w_hh = operands[:4]
    sizes, dtype = Sizes(x.shape[0], x.shape[1], x.shape[2], w_hh.shape[1]), x.dtype.name
    machine = compiler.machine().shared(at_once)
    lanes = machine.bits // 8 // x.dtype.itemsize
    kind = Backward(
        variant(cell, dtype, masked, True),
        Requested(*requested),
        tiles.choose(machine, lanes, 1, sizes.H),
        tiles.choose(machine, lanes, 1, sizes.D),
        outer.choose(machine, lanes, sizes.D),
        outer.choose(machine, lanes, sizes.H),
    )
    planned = backward_call.plan(kind, machine, lanes, x.dtype.itemsize, sizes, 1 - 2 * reverse)
    some = zip(requested, (x, w_ih, w_hh), strict=False)
    results = [array.shape for yes, array in some if yes]
    if requested[3]:
        results += [(len(w_hh),)] * kind.halves
    if kind.requested.own:
        results.append((kind.forward.graph.param_count * sizes.H,))
    results += [(sizes.N, sizes.H)] * kind.forward.states
    name = _handler(kind, dtype, kind.tile, machine)
    return _call(name, planned, results, x.dtype, operands)


def _call(
    name: str,
    planned: tuple[threads.Sharing, list[int], int],
    results: Sequence[tuple[int, ...]],
    dtype: Any,
    operands: Sequence[jax.Array],
) -> list[jax.Array]:
    sharing, numbers, scratch = planned
    told = np.array([sharing.row_groups, sharing.unit_groups, *numbers], np.int64)
    kinds = [jax.ShapeDtypeStruct(shape, dtype) for shape in results]
    kinds.append(jax.ShapeDtypeStruct((scratch,), np.uint8))
    return list(jax.ffi.ffi_call(name, kinds)(told.view(np.int32), *operands))[:-1]
