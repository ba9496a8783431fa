"""The kernels for TPUs without one: interpreted, against the scans; and lowered for a TPU."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

import jaxrnn
from jaxrnn import cells
from jaxrnn.backends import platform, tpu
from jaxrnn.backends import primitives as fused
from jaxrnn.backends.elementwise import lower
from jaxrnn.backends.elementwise.residuals import derivative_rule
from jaxrnn.backends.tpu import tiling as tpu_tiling
from jaxrnn.core.unroll import StepMasks, unroll
from jaxrnn.interop.export import export
from tests.test_fused import (
    SIZES,
    Mixing,
    backward_operands,
    close,
    draw,
    forward_operands,
    value_and_pulled,
)
from tests.test_recurrence import CELLS

BLOCKS = (19, 3, 1, 9)
"""T, N, D, H: as the kernels choose, two blocks of steps, the second not whole."""


@dataclasses.dataclass(frozen=True)
class MinimalGatedUnit(cells.Cell):
    """A user's cell, with the derivative of the base."""

    gates = ("f", "n")

    def step(self, z: Any, state: Any) -> Any:
        (h,), (f, n) = state, self.split_gates(z)
        f = jax.nn.sigmoid(f)
        return ((1 - f) * h + f * jnp.tanh(n),)


@dataclasses.dataclass(frozen=True)
class Hostile(cells.Cell):
    """A cell that makes nan of a unit without weights."""

    gates = ("a",)

    def step(self, z: Any, state: Any) -> Any:
        return (jnp.where(z == 0, jnp.nan, jnp.tanh(z)),)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A CPU's programs have the TPU's kernels in them, interpreted; the names of those called."""
    names: list[str] = []
    call = tpu._call

    def noted(*args: Any) -> Any:
        names.append(args[-1])
        return call(*args)

    monkeypatch.setitem(platform.KERNELS, "cpu", platform.KERNELS["tpu"])
    monkeypatch.setattr(tpu, "INTERPRET", True)
    monkeypatch.setattr(tpu, "_call", noted)
    return names


def compare(cell: cells.Cell, sizes: Any, dtype: Any, tolerance: float, **options: Any) -> None:
    """Values, states and every gradient of a run by the kernels, against the scan."""
    masked = options.pop("masked", False)
    weights, x, state, masks, ct = draw(cell, sizes, dtype)
    if masked:  # nothing is to reach anything from a step that is not the row's own
        x = jnp.where(masks.valid_mask[..., None], x, jnp.nan)
    args = weights, x, state, masks if masked else StepMasks(), ct
    kernel, scan = (
        value_and_pulled(backend, cell, platform="tpu", **options)(*args)
        for backend in ("kernel", "scan")
    )
    assert [a.dtype for a in jax.tree.leaves(kernel)] == [a.dtype for a in jax.tree.leaves(scan)]
    kernel, scan = jax.tree.map(lambda a: a.astype(jnp.float32), (kernel, scan))
    close(kernel, scan, tolerance)


@pytest.mark.parametrize(
    ("cell", "masked", "reverse"),
    [
        (cells.LSTM(), False, True),
        (cells.LSTM(), True, False),
        (cells.GRU(), True, True),
        (MinimalGatedUnit(), False, False),
    ],
    ids=str,
)
def test_a_kernel_is_its_scan(
    called: list[str], cell: cells.Cell, masked: bool, reverse: bool
) -> None:
    compare(cell, SIZES[0], jnp.float32, 1e-5, masked=masked, reverse=reverse)
    assert called == ["jaxrnn_forward", "jaxrnn_backward"]


@pytest.mark.parametrize("cell", [cells.Elman(), cells.Elman("relu")], ids=str)
def test_plain_cells(called: list[str], cell: cells.Cell) -> None:
    compare(cell, SIZES[2], jnp.float32, 1e-5)
    assert len(called) == 2


@pytest.mark.parametrize(("cell", "reverse"), [(cells.LSTM(), False), (MinimalGatedUnit(), True)])
def test_blocks_and_tiles(
    called: list[str], monkeypatch: pytest.MonkeyPatch, cell: cells.Cell, reverse: bool
) -> None:
    """Two blocks of steps and two tiles of rows, the second of each not whole."""
    monkeypatch.setattr(tpu_tiling, "ROWS", 8)
    monkeypatch.setattr(tpu_tiling, "STEPS", 4)
    tpu_tiling.tiles.cache_clear()
    p = tpu.tiles(cell, jnp.dtype("float32"), 7, 11, 5, tpu_tiling.budget())
    assert p is not None
    assert (p.rows, p.row_tiles, p.steps, p.blocks) == (8, 2, 4, 2)
    compare(cell, (7, 11, 1, 5), jnp.float32, 1e-5, masked=True, reverse=reverse)
    tpu_tiling.tiles.cache_clear()
    assert len(called) == 2


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU()], ids=str)
def test_bfloat16(called: list[str], cell: cells.Cell) -> None:
    """To the rounding of what is kept; the states of the scan are rounded at each step, too."""
    compare(cell, SIZES[0], jnp.bfloat16, 0.1, masked=True)
    assert len(called) == 2
    weights, x, state, *_ = draw(cell, SIZES[0], jnp.bfloat16)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (weights, x, state))
    y, _ = jax.jit(lambda *a: unroll(cell, *a, backend="kernel", platform="tpu"))(weights, x, state)
    exact, _ = jax.jit(lambda *a: unroll(cell, *a, backend="scan"))(*single)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=8e-3)  # two units of bfloat16


def test_blocks_of_the_derivative(called: list[str]) -> None:
    compare(cells.LSTM(), SIZES[0], jnp.float32, 1e-5, masked=True, block_length=2, remat=True)
    assert called.count("jaxrnn_forward") > 1


def test_units_that_are_padding_reach_nothing(called: list[str]) -> None:
    """Even where the cell makes nan of them."""
    weights, x, *_ = draw(Hostile(), SIZES[0], jnp.float32)
    f = jax.jit(
        jax.grad(lambda w: unroll(Hostile(), w, x, backend="kernel", platform="tpu")[0].sum())
    )
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(f(weights)))
    assert len(called) == 2


def test_nothing_is_read_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter that fills memory with nan, and refuses to read past its end.

    It runs tiles of rows on two cores, and finds where one writes what is the other's.
    """
    params = pltpu.InterpretParams(
        out_of_bounds_reads="raise", detect_races=True, num_cores_or_threads=2
    )
    monkeypatch.setattr(tpu, "INTERPRET", params)
    monkeypatch.setattr(tpu_tiling, "ROWS", 8)
    monkeypatch.setattr(tpu_tiling, "STEPS", 2)
    tpu_tiling.tiles.cache_clear()
    cell = cells.GRU()
    weights, x, state, masks, (dh, dlast) = draw(cell, (3, 11, 1, 3), jnp.float32)
    operands, tree = forward_operands(weights, x, state, masks)
    how: dict[str, Any] = dict(cell=cell, reverse=False, tuned_for="tpu")
    forward_how = how | dict(tree=tree, store_residuals=True)

    def run(f: Any, *args: Any) -> Any:
        out = jax.block_until_ready(jax.jit(f)(*args))
        found = interpret_pallas_call.races
        assert found is not None
        assert not found.races_found
        return out

    forward = functools.partial(fused._forward_kernel, "tpu", **forward_how)
    h, *more = run(forward, *operands)
    reference = jax.jit(functools.partial(fused._forward_reference, **forward_how))
    close((h, *more), reference(*operands), 1e-5)
    operands, how["tree"] = backward_operands(
        cell, weights, x, state, masks, (h, *more), (dh, dlast)
    )
    expected = jax.jit(functools.partial(fused._backward_reference, **how))(*operands)
    got = run(functools.partial(fused._backward_kernel, "tpu", **how), *operands)
    close(got, expected, 1e-5)
    tpu_tiling.tiles.cache_clear()


def test_what_the_kernels_have_no_code_for(called: list[str]) -> None:
    """Forward mode and the second derivative come from the scan."""
    cell = cells.GRU()
    weights, x, *_ = draw(cell, (3, 2, 1, 3), jnp.float32)

    def numbers(backend: str) -> Any:
        def loss(x: Any) -> jax.Array:
            return (unroll(cell, weights, x, backend=backend, platform="tpu")[0] ** 2).sum()

        along = lambda x: jax.jvp(jax.grad(loss), (x,), (jnp.cos(x),))[1]  # noqa: E731
        return jax.jit(along)(x)

    close(numbers("kernel"), numbers("scan"), 1e-5)


LOWERED = [
    (cells.LSTM(), jnp.float32, True),
    (cells.LSTM(), jnp.bfloat16, False),
    (cells.GRU(), jnp.float32, True),
    (cells.Elman(), jnp.bfloat16, True),
    (MinimalGatedUnit(), jnp.float32, False),
]


@pytest.mark.parametrize(("cell", "dtype", "masked"), LOWERED, ids=str)
def test_lowered_for_a_tpu(cell: cells.Cell, dtype: Any, masked: bool) -> None:
    weights, x, state, masks, ct = draw(cell, BLOCKS, dtype)
    masks = masks if masked else StepMasks()
    f = value_and_pulled("kernel", cell, platform="tpu")
    text = jax.export.export(f, platforms=["tpu"])(weights, x, state, masks, ct).mlir_module()
    assert text.count("@tpu_custom_call") == 2
    assert 'kernel_name = "jaxrnn_forward"' in text
    assert 'kernel_name = "jaxrnn_backward"' in text


def test_a_layer_for_a_tpu_and_a_cpu() -> None:
    """A program for both has a kernel for the one, and a scan for the other that runs here."""
    layer = jaxrnn.LSTM(3, 4, backend="kernel", rngs=nnx.Rngs(0))
    x = jnp.ones((5, 2, 3), jnp.float32)
    program = jax.export.deserialize(bytearray(export(layer, x, platforms=["cpu", "tpu"])))
    assert "tpu_custom_call" in program.mlir_module()
    assert "jaxrnn_forward_" not in program.mlir_module()  # of the CPU's kernels
    close(program.call(x), layer(x), 1e-5)
    here = jax.export.deserialize(bytearray(export(layer, x)))
    assert "custom_call" not in here.mlir_module()


def test_float64_on_a_tpu_is_a_scan() -> None:
    """Where the kernel of the platform it is lowered for can't serve."""
    weights, x, *_ = draw(cells.LSTM(), SIZES[0], jnp.float64)
    f = jax.jit(lambda x: unroll(cells.LSTM(), weights, x, backend="kernel")[0])
    assert "tpu_custom_call" not in jax.export.export(f, platforms=["tpu"])(x).mlir_module()


def test_what_fits() -> None:
    """The largest H in what every TPU has, and nothing beyond what there is."""

    def largest(cell: cells.Cell, dtype: Any, memory: int) -> int:
        fits = lambda H: tpu_tiling.tiles(cell, jnp.dtype(dtype), 100, 32, H, memory)  # noqa: E731
        return max(H for H in range(128, 2049, 128) if fits(H))

    small, large = 15 << 20, 96 << 20
    assert largest(cells.LSTM(), jnp.float32, small) == 896
    for cell in (cells.LSTM(), cells.GRU(), cells.Elman()):
        for dtype in (jnp.float32, jnp.bfloat16):
            for memory in (small, large):
                H = largest(cell, dtype, memory)
                p = tpu_tiling.tiles(cell, jnp.dtype(dtype), 100, 32, H, memory)
                assert p is not None
                need = tpu_tiling.bytes_needed(cell, jnp.dtype(dtype), p.rows, p.steps, H)
                assert max(need) <= memory
                assert (p.limit is None) == (max(need) <= tpu_tiling.LEAST * 9 // 10)
    reason = tpu.unsupported_reason(cells.LSTM(), jnp.float32, 10, 10, 10, 2048)
    assert reason is not None
    assert "W_hh of H 2048 takes 64.0 MiB and does not fit" in reason


@pytest.mark.parametrize("cell", [*CELLS[:4], MinimalGatedUnit()], ids=str)
def test_a_cell_s_numbers_are_its_graph_s(cell: cells.Cell) -> None:
    """On arrays of another layout than the cell's own, rows first."""
    random, graph, G = np.random.RandomState(0), lower.cell_graphs(cell), len(cell.gates)
    array = lambda: jnp.asarray(random.randn(2, 3), jnp.float32)  # noqa: E731
    given = dict(z=[array() for _ in range(2 * G)], old=[array() for _ in cell.states])
    got = lower.evaluate(graph.forward, lambda name, k: given[name][k], given["old"][0])
    joined = lambda a: jnp.concatenate([v.T for v in a])  # noqa: E731
    zx, zh = joined(given["z"][:G]), joined(given["z"][G:])
    state = tuple(s.T for s in given["old"])
    leaves = jax.tree.leaves(derivative_rule(cell).save((zx, zh) if cell.split else zx, state))
    close(got, [a.T for leaf in leaves for a in jnp.split(leaf, len(leaf) // 3)], 1e-6)


def test_a_cell_that_has_no_such_graph() -> None:
    assert lower.unsupported_reason(Mixing()) == tpu.unsupported_reason(
        Mixing(), jnp.float32, 5, 3, 4, 7
    )
    assert "Mixing is not elementwise" in str(lower.unsupported_reason(Mixing()))
