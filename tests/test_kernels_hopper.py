"""The kernels for Hopper GPUs against the scans: on such a GPU, and else interpreted and lowered.

``pytest tests/test_kernels_hopper.py`` runs the kernels themselves where JAX finds such a GPU. The
interpreter knows no stores into another block's memory: there the blocks of a cluster are threads
that share one, see `jaxrnn.kernels.hopper_device`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells, fused
from jaxrnn.kernels import hopper, hopper_tiles
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

    def noted(tiles: hopper_tiles.Tiles) -> Any:
        made = device(tiles)
        launch = made.launch

        def launched(*args: Any) -> Any:
            launches.append((args[-1], tiles.C))
            return launch(*args)

        made.launch = launched
        return made

    monkeypatch.setattr(hopper, "_device", noted)
    monkeypatch.setattr(hopper_tiles, "UNITS", (16,))
    hopper_tiles.choose.cache_clear()
    if not GPU:
        monkeypatch.setattr(hopper, "INTERPRET", True)
    yield launches
    monkeypatch.undo()
    hopper_tiles.choose.cache_clear()


def both(
    cell: cells.Cell, sizes: Any, dtype: Any, masked: bool = False, reverse: bool = False
) -> Any:
    """Results of the kernels and of the scans: all of forward, and every derivative.

    Called by themselves, as what the interpreter does can't be part of a single operation. The
    residuals are those of the kernel, for both.
    """
    weights, x, state, masks, (dh, dlast) = draw(cell, sizes, dtype)
    how = dict(cell=cell, masked=masked, reverse=reverse)
    flags = fused._flags(masks) if masked else ()
    wide = [d.astype(jnp.float32) for d in dlast]

    def pair(kernel: Any, reference: Any, how: Any, operands: Any) -> Any:
        run = jax.jit(lambda *a: kernel("cuda", *a, **how))(*operands)
        scan = jax.jit(lambda *a: reference(*a, **how))(*operands)
        assert [a.shape for a in run] == [a.shape for a in scan]
        return [jax.tree.map(lambda a: a.astype(jnp.float32), list(r)) for r in (run, scan)]

    with jax.default_matmul_precision("float32"):
        operands = (x, *weights[:4], *state, *flags)
        forward = fused._forward_kernel, fused._forward_reference
        kept = pair(*forward, how | dict(keep=True), operands)
        last: Any = ([], [])
        if len(state) > 1:  # else it gives out the same
            last = pair(*forward, how | dict(keep=False), operands)
        after = [a.astype(dtype) for a in kept[0]]
        back = pair(
            fused._backward_kernel,
            fused._backward_reference,
            how | dict(wanted=(True,) * 4),
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
    from jaxrnn.kernels import hopper_loops

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


def test_units_that_are_padding_reach_nothing(called: Any) -> None:
    """Even where the cell makes nan of them."""
    kernel, scan = both(Hostile(), SIZES, jnp.float32)
    assert all(np.isfinite(a).all() for a in scan)
    close(kernel, scan, 1e-5)
    assert set(called) == ALL


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes", "precision"),
    [
        (cells.LSTM(), jnp.bfloat16, (256, 32, 512, 512), None),
        (cells.LSTM(), jnp.bfloat16, (5, 128, 3, 256), None),  # tiles of 16 units and 32 rows
        (cells.GRU(), jnp.float32, (5, 7, 3, 100), None),
        (cells.Elman(), jnp.float32, (5, 40, 3, 256), "tensorfloat32"),
    ],
    ids=["LSTM", "wide", "GRU", "TF32"],
)
def test_lowered_for_a_gpu(cell: Any, dtype: Any, sizes: Any, precision: Any) -> None:
    """Forward and backward kernel, with peer memory and all, in a program for such a machine."""
    with jax.default_matmul_precision(precision):
        f = value_and_pulled("kernel", cell, platform="cuda")
        exported = jax.export.export(f, platforms=["cuda"])(*draw(cell, sizes, dtype))
    text = exported.mlir_module()
    assert text.count("custom_call @mosaic_gpu") == 2
    assert hopper.tiles_of(cell, dtype, sizes[1], sizes[3]) is not None


def test_a_split_number_keeps_22_bits() -> None:
    tiles = hopper.choose(cells.LSTM(), 4, 2, 16, 128)
    assert tiles is not None
    assert tiles.parts == 2
    from jaxrnn.kernels.hopper_loops import factors

    x = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, 1000), jnp.float32)
    upper, lower = factors(x, tiles, jnp.float32)
    tf32 = lambda a: jax.lax.reduce_precision(a, 8, 10)  # noqa: E731
    assert (tf32(upper) == upper).all()
    assert (upper + lower == x).all()
    assert (abs(upper + tf32(lower) - x) <= abs(x) * 2.0**-21).all()


@pytest.mark.parametrize(
    ("cell", "dtype", "H", "fits"),
    [
        (cells.LSTM(), jnp.bfloat16, 512, True),
        (cells.LSTM(), jnp.bfloat16, 768, False),
        (cells.GRU(), jnp.bfloat16, 512, True),
        (cells.LSTM(), jnp.float32, 256, True),
        (cells.LSTM(), jnp.float32, 512, False),
    ],
)
def test_which_sizes_fit(cell: Any, dtype: Any, H: int, fits: bool) -> None:
    reason = hopper.why_not(cell, dtype, 10, 32, 8, H)
    assert (reason is None) == fits
    assert fits or f"W_hh of H {H}" in str(reason)


def test_what_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not in float64" in str(hopper.why_not(cells.LSTM(), jnp.float64, 2, 2, 2, 16))
    monkeypatch.setattr(jax, "__version_info__", (0, 13, 0))
    assert "0.10.1 to 0.12" in str(hopper.why_not(cells.LSTM(), jnp.float32, 2, 2, 2, 16))
