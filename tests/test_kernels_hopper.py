"""The kernels for Hopper GPUs against the scans: on such a GPU, and else interpreted and lowered.

``pytest tests/test_kernels_hopper.py`` runs the kernels themselves where JAX finds such a GPU. The
interpreter knows no stores into another block's memory: there the blocks of a cluster are threads
that share one, see `jaxrnn.backends.hopper.interpreted`. It keeps a vector clock for each, and so
finds what is not ordered by barriers whether or not it went wrong: every case here is free of it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells
from jaxrnn.backends import hopper
from jaxrnn.backends import primitives as fused
from jaxrnn.backends import select as backends
from jaxrnn.backends.hopper import tiling as hopper_tiling
from jaxrnn.backends.operands import flags_of
from jaxrnn.core import stack
from tests.test_fused import close, draw, value_and_pulled
from tests.test_kernels_tpu import Hostile, MinimalGatedUnit

GPU = jax.default_backend() == "gpu"
SIZES = (3, 3, 4, 20)
"""T, N, D, H: two blocks to a cluster, the second not full of units, nor the cluster of rows."""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """The names of the kernels that were called, and their clusters' blocks, 16 units to each."""
    launches: list[tuple[str, int]] = []
    device = hopper._device

    def noted(tiles: hopper_tiling.Tiles) -> Any:
        made = device(tiles)
        launch = made.launch

        def launched(*args: Any) -> Any:
            launches.append((args[-1], tiles.C))
            return launch(*args)

        made.launch = launched
        return made

    monkeypatch.setattr(hopper, "_device", noted)
    monkeypatch.setattr(hopper_tiling, "UNITS", (16,))
    hopper_tiling.choose.cache_clear()
    if not GPU:
        monkeypatch.setattr(hopper, "INTERPRET", True)
    yield launches
    monkeypatch.undo()
    hopper_tiling.choose.cache_clear()


def raced() -> bool:
    """Whether of two threads of the last kernel one wrote where the other was, in any order."""
    if GPU:
        return False
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    return interpret_pallas_call.get_races().races_found


def compiled(
    kernel: Any, reference: Any, how: Any, operands: Any, races: bool = False
) -> tuple[Any, Any]:
    """A kernel, which is to have races or none, and its scan."""
    got = jax.block_until_ready(jax.jit(lambda *a: kernel("cuda", *a, **how))(*operands))
    assert raced() == races
    return got, jax.jit(lambda *a: reference(*a, **how))(*operands)


def force(monkeypatch: pytest.MonkeyPatch, cell: cells.Cell, tiles: Any) -> None:
    """Share layers of a cell out in this way: parts, item size, and the sizes of `Tiles`."""
    forced = hopper_tiling.Tiles(len(cell.gates), *tiles)
    monkeypatch.setattr(hopper, "tiles_of", lambda *_: forced)


def both(
    cell: cells.Cell,
    sizes: Any,
    dtype: Any,
    masked: bool = False,
    reverse: bool = False,
    run: Any = compiled,
) -> Any:
    """Results of the kernels and of the scans: all of forward, and every derivative.

    Called by themselves, as what the interpreter does can't be part of a single operation. The
    residuals are those of the kernel, for both. `run` runs a kernel and its scan, each with how it
    is to be run and its operands.
    """
    weights, x, state, masks, (dh, dlast) = draw(cell, sizes, dtype)
    how = dict(cell=cell, masked=masked, reverse=reverse)
    flags = flags_of(masks) if masked else ()
    wide = [d.astype(jnp.float32) for d in dlast]

    def pair(*what: Any) -> Any:
        kernel, scan = run(*what)
        assert [a.shape for a in kernel] == [a.shape for a in scan]
        return [[a.astype(jnp.float32) for a in results] for results in (kernel, scan)]

    with jax.default_matmul_precision("float32"):
        operands = (x, *weights[:4], *state, *flags)
        forward = fused._forward_kernel, fused._forward_reference
        kept = pair(*forward, how | dict(store_residuals=True), operands)
        last: Any = ([], [])
        if len(state) > 1:  # else it gives out the same
            last = pair(*forward, how | dict(store_residuals=False), operands)
        after = [a.astype(dtype) for a in kept[0]]
        back = pair(
            fused._backward_kernel,
            fused._backward_reference,
            how | dict(requested=(True,) * 4),
            (dh, *wide, x, *weights[:2], *state, *after, *flags),
        )
    return [a + b + c for a, b, c in zip(last, kept, back, strict=True)]


ALL = {("rnn_forward", 2), ("rnn_backward", 2)}


@pytest.mark.parametrize(
    ("cell", "masked", "reverse"),
    [
        (cells.LSTM(), True, False),
        (cells.GRU(), True, True),
        (cells.Elman("relu"), False, True),
        (MinimalGatedUnit(), True, False),
    ],
    ids=str,
)
def test_a_kernel_is_its_scan(called: Any, cell: cells.Cell, masked: bool, reverse: bool) -> None:
    kernel, scan = both(cell, SIZES, jnp.float32, masked, reverse)
    close(kernel, scan, 1e-5)
    assert set(called) == ALL


def test_inputs_a_step_ahead(called: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxrnn.backends.hopper import loops as hopper_loops

    monkeypatch.setattr(hopper_loops, "AHEAD", True)
    kernel, scan = both(cells.LSTM(), SIZES, jnp.float32, True, True)
    close(kernel, scan, 1e-5)
    assert set(called) == ALL


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU()], ids=str)
def test_bfloat16(called: Any, cell: cells.Cell) -> None:
    """To the rounding of what is kept; the states of the scan are rounded at each step, too."""
    kernel, scan = both(cell, SIZES, jnp.bfloat16, True)
    close(kernel, scan, 0.1)
    assert set(called) == ALL


def test_clusters_of_rows(called: Any) -> None:
    kernel, scan = both(cells.Elman(), (2, 18, 2, 33), jnp.float32)
    close(kernel, scan, 1e-5)
    assert {blocks for _, blocks in called} == {3}


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes", "tiles", "masked", "reverse"),
    [
        (cells.LSTM(), jnp.float32, (3, 3, 4, 44), (2, 4, 2, 16, 16, 2), True, False),
        (cells.Elman(), jnp.float32, (3, 18, 2, 30), (2, 4, 2, 8, 16, 2), False, True),
        (cells.GRU(), jnp.bfloat16, (4, 3, 4, 40), (1, 2, 1, 16, 16, 3), True, True),
        (cells.GRU(), jnp.float16, (3, 3, 4, 64), (1, 2, 2, 16, 16, 2), False, False),
    ],
    ids=["LSTM", "rows", "bfloat16, alone", "float16"],
)
def test_a_group_of_clusters(
    called: Any,
    monkeypatch: pytest.MonkeyPatch,
    cell: cells.Cell,
    dtype: Any,
    sizes: Any,
    tiles: Any,
    masked: bool,
    reverse: bool,
) -> None:
    """H goes through global memory, and twice the rows of a group take two of them."""
    force(monkeypatch, cell, tiles)
    kernel, scan = both(cell, sizes, dtype, masked, reverse)
    close(kernel, scan, {jnp.float32: 1e-5, jnp.float16: 1e-2, jnp.bfloat16: 0.1}[dtype])
    assert {name for name, _ in called} == {"rnn_forward", "rnn_backward"}


@pytest.mark.skipif(GPU, reason="what overtakes there can't be seen")
@pytest.mark.parametrize("tiles", [(1, 2, 2, 16, 16), (1, 2, 2, 16, 16, 2)], ids=["one", "group"])
def test_one_place_for_messages_is_a_race(
    called: Any, monkeypatch: pytest.MonkeyPatch, tiles: Any
) -> None:
    """What the interpreter says of kernels that have it: with two, as they are, it says nothing."""
    monkeypatch.setattr("jaxrnn.backends.hopper.device.SLOTS", 1)
    force(monkeypatch, cells.Elman(), tiles)
    run = functools.partial(compiled, races=True)
    both(cells.Elman(), SIZES, jnp.bfloat16, run=run)
    assert {name for name, _ in called} == {"rnn_forward", "rnn_backward"}


def test_units_that_are_padding_reach_nothing(called: Any) -> None:
    """Even where the cell makes nan of them."""
    kernel, scan = both(Hostile(), SIZES, jnp.float32)
    assert all(np.isfinite(a).all() for a in scan)
    close(kernel, scan, 1e-5)
    assert set(called) == ALL


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes", "precision"),
    [
        (cells.LSTM(), jnp.bfloat16, (256, 32, 512, 456), None),  # shared memory is nearly full
        (cells.LSTM(), jnp.bfloat16, (5, 128, 3, 256), None),  # tiles of 16 units and 32 rows
        (cells.GRU(), jnp.float32, (5, 7, 3, 100), None),
        (cells.Elman(), jnp.float32, (5, 40, 3, 256), "tensorfloat32"),
        (cells.LSTM(), jnp.bfloat16, (5, 64, 3, 1024), None),  # 16 clusters of 4 blocks
    ],
    ids=["LSTM", "wide", "GRU", "TF32", "group"],
)
def test_lowered_for_a_gpu(cell: Any, dtype: Any, sizes: Any, precision: Any) -> None:
    """Forward and backward kernel, with peer memory and all, in a program for such a machine."""
    with jax.default_matmul_precision(precision):
        f = value_and_pulled("kernel", cell, platform="cuda")
        exported = jax.export.export(f, platforms=["cuda"])(*draw(cell, sizes, dtype))
        text = exported.mlir_module()
        tiles = hopper.tiles_of(cell, dtype, sizes[1], sizes[3])
    assert text.count("custom_call @mosaic_gpu") == 2
    assert tiles is not None
    counters = text.count(
        "#stablehlo.output_operand_alias"
    )  # zeros at each call, which a kernel may change
    assert counters == (2 if tiles.K > 1 else 0)


def test_a_split_number_keeps_22_bits() -> None:
    tiles = hopper.choose(cells.LSTM(), 4, 2, 16, 128)
    assert tiles is not None
    assert tiles.parts == 2
    from jaxrnn.backends.hopper.loops import factors

    x = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, 1000), jnp.float32)
    upper, lower = factors(x, tiles, jnp.float32)
    tf32 = lambda a: jax.lax.reduce_precision(a, 8, 10)  # noqa: E731
    assert (tf32(upper) == upper).all()
    assert (upper + lower == x).all()
    assert (abs(upper + tf32(lower) - x) <= abs(x) * 2.0**-21).all()


@pytest.mark.parametrize(
    ("cell", "dtype", "H", "cluster", "group"),
    [
        (cells.LSTM(), jnp.bfloat16, 512, True, True),
        (cells.LSTM(), jnp.bfloat16, 1024, False, True),
        (cells.LSTM(), jnp.bfloat16, 2048, False, False),
        (cells.GRU(), jnp.bfloat16, 512, True, True),
        (cells.Elman(), jnp.bfloat16, 1792, False, True),
        (cells.LSTM(), jnp.float32, 256, True, True),
        (cells.LSTM(), jnp.float32, 512, False, True),
        (cells.LSTM(), jnp.float32, 1024, False, False),
    ],
)
def test_which_sizes_fit(cell: Any, dtype: Any, H: int, cluster: bool, group: bool) -> None:
    """Into a cluster, which "auto" takes; into a group of clusters, which is to be asked for."""
    reason, tiles = (
        hopper.unsupported_reason(cell, dtype, 10, 32, 8, H),
        hopper.tiles_of(cell, dtype, 32, H),
    )
    assert (reason is None) == (tiles is not None) == group
    assert group or f"W_hh of H {H}" in str(reason)
    how = stack.StackOptions(cell, platform="cuda")
    x = jax.ShapeDtypeStruct((10, 32, 8), dtype)
    weights = jax.eval_shape(lambda k: stack.init(k, cell, 8, H, dtype=dtype), jax.random.key(0))
    (auto,) = backends.explain(how, weights, x).choices
    assert auto.backend == ("kernel" if cluster else "scan")
    if tiles is not None:
        asked = backends.explain(dataclasses.replace(how, backend="kernel"), weights, x)
        assert asked.choices[0].backend == "kernel"
        assert cluster == (tiles.K == 1) == ("never run on a GPU" not in auto.why)


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.Elman()], ids=str)
@pytest.mark.parametrize(("itemsize", "parts"), [(2, 1), (4, 2)])
def test_shared_memory_is_what_was_counted(cell: Any, itemsize: int, parts: int) -> None:
    """As Pallas counts: whole kibibytes for each array, 8 bytes for a barrier."""
    from jaxrnn.backends.hopper import backward as hopper_backward
    from jaxrnn.backends.hopper import forward as hopper_forward
    from jaxrnn.backends.hopper.device import Arrivals, Copies, Device
    from jaxrnn.backends.hopper.group import Group

    def counted(what: Any) -> int:
        if isinstance(what, Copies):
            return 8
        size = (
            16 if isinstance(what, Arrivals) else math.prod(what[0]) * jnp.dtype(what[1]).itemsize
        )
        return -(-size // 1024) * 1024

    dtype, kinds = {2: jnp.bfloat16, 4: jnp.float32}[itemsize], set()
    for H, processors in itertools.product((100, 456, 1024), (1, 114)):
        for t in hopper_tiling.sharings(len(cell.gates), itemsize, parts, H, processors):
            if not t.fits():
                continue
            device: Any = Group(t) if t.K > 1 else Device(t)
            of = device, cell, 4, True, True, False
            _, forward = hopper_forward.forward(*of, True, dtype)
            _, backward = hopper_backward.backward(*of, dtype)
            for scratch, expected in ((forward, t.forward_bytes()), (backward, t.backward_bytes())):
                scratch.pop("exchanged", None)
                more = device.more() if t.K > 1 else {}
                assert sum(map(counted, (scratch | more).values())) == expected <= 227 * 1024
            kinds.add((t.K > 1, t.Q > 1))
    assert kinds == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("C", hopper_tiling.GROUPED)
def test_a_group_is_on_the_machine_at_once(C: int) -> None:
    """However its multiprocessors lie in eight parts, each of an even number, at most 18."""
    rng = np.random.RandomState(0)
    for processors in (114, 132):
        for _ in range(200):
            parts = np.full(8, 18)
            while parts.sum() > processors:
                parts[rng.randint(8)] -= 2
                parts = np.maximum(parts, 0)
            assert sum(parts // C) >= hopper_tiling.at_least(C, processors)
    for H in range(16, 1800, 80):
        tiles = hopper_tiling.choose(cells.GRU(), 2, 1, 64, H, 114)
        assert tiles is None or tiles.K == 1 or tiles.K * tiles.C <= 114


def test_what_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not in float64" in str(
        hopper.unsupported_reason(cells.LSTM(), jnp.float64, 2, 2, 2, 16)
    )
    monkeypatch.setattr(jax, "__version_info__", (0, 13, 0))
    assert "0.10.2 to 0.12" in str(
        hopper.unsupported_reason(cells.LSTM(), jnp.float32, 2, 2, 2, 16)
    )
