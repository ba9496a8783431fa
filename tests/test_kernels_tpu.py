"""The TPU kernels without a TPU: interpreted, against the scan, and lowered for a TPU."""

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
from jaxrnn.backends import platform, primitives, tpu
from jaxrnn.backends.elementwise import lower
from jaxrnn.backends.elementwise.residuals import derivative_rule
from jaxrnn.core.unroll import StepMasks, unroll
from jaxrnn.interop.export import export
from tests.test_primitives import (
    SIZES,
    Mixing,
    backward_operands,
    close,
    draw,
    forward_operands,
    value_and_vjp,
)
from tests.test_recurrence import CELLS

BLOCKS = (19, 3, 1, 9)
"""T, N, D, H: two blocks of steps, the second with fewer steps."""


@dataclasses.dataclass(frozen=True)
class MinimalGatedUnit(cells.Cell):
    """A user's cell, with the derivative rule of the base class."""

    gates = ("f", "n")

    def step(self, z: Any, state: Any) -> Any:
        (h,), (f, n) = state, self.split_gates(z)
        f = jax.nn.sigmoid(f)
        return ((1 - f) * h + f * jnp.tanh(n),)


@dataclasses.dataclass(frozen=True)
class Hostile(cells.Cell):
    """A cell that computes NaN for a unit without weights."""

    gates = ("a",)

    def step(self, z: Any, state: Any) -> Any:
        return (jnp.where(z == 0, jnp.nan, jnp.tanh(z)),)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Interpret the TPU kernels in programs for the CPU; return the names of those called."""
    names: list[str] = []
    pallas_call = tpu.pl.pallas_call

    def recorded(*args: Any, **options: Any) -> Any:
        names.append(options["name"])
        return pallas_call(*args, **options)

    monkeypatch.setitem(platform.KERNELS, "cpu", platform.KERNELS["tpu"])
    monkeypatch.setattr(tpu, "INTERPRET", True)
    monkeypatch.setattr(tpu.pl, "pallas_call", recorded)
    return names


def compare(cell: cells.Cell, sizes: Any, dtype: Any, tolerance: float, **options: Any) -> None:
    """Compare outputs, states and all gradients with the scan."""
    masked = options.pop("masked", False)
    weights, x, state, masks, ct = draw(cell, sizes, dtype)
    if masked:  # padding must affect nothing
        x = jnp.where(masks.valid_mask[..., None], x, jnp.nan)
    args = weights, x, state, masks if masked else StepMasks(), ct
    kernel, scan = (
        value_and_vjp(backend, cell, platform="tpu", **options)(*args)
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
def test_kernel_equals_scan(
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
    """Two blocks of steps and two batch tiles, the second of each incomplete."""
    t = tpu.Tiling(7, 11, 5, len(cell.gates), B=8, K=4)
    assert t.grid == (2, 2)
    monkeypatch.setattr(tpu, "tiling_for", lambda *_: t)
    compare(cell, (7, 11, 1, 5), jnp.float32, 1e-5, masked=True, reverse=reverse)
    assert len(called) == 2


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU()], ids=str)
def test_bfloat16(called: list[str], cell: cells.Cell) -> None:
    """To the rounding of the residuals; the scan also rounds its states at each step."""
    compare(cell, SIZES[0], jnp.bfloat16, 0.1, masked=True)
    assert len(called) == 2
    weights, x, state, *_ = draw(cell, SIZES[0], jnp.bfloat16)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (weights, x, state))
    y, _ = jax.jit(lambda *a: unroll(cell, *a, backend="kernel", platform="tpu"))(weights, x, state)
    exact, _ = jax.jit(lambda *a: unroll(cell, *a, backend="scan"))(*single)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=8e-3)  # two ulps of bfloat16


def test_rematerialised_blocks(called: list[str]) -> None:
    compare(cells.LSTM(), SIZES[0], jnp.float32, 1e-5, masked=True, block_length=2, remat=True)
    assert called.count("jaxrnn_forward") > 1


def test_padding_units_affect_nothing(called: list[str]) -> None:
    """Even if the cell computes NaN from them."""
    weights, x, *_ = draw(Hostile(), SIZES[0], jnp.float32)
    f = jax.jit(
        jax.grad(lambda w: unroll(Hostile(), w, x, backend="kernel", platform="tpu")[0].sum())
    )
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(f(weights)))
    assert len(called) == 2


def test_reads_are_initialised_and_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter fills memory with NaN, rejects reads out of bounds and detects races.

    It runs batch tiles on two cores.
    """
    params = pltpu.InterpretParams(
        out_of_bounds_reads="raise", detect_races=True, num_cores_or_threads=2
    )
    monkeypatch.setattr(tpu, "INTERPRET", params)
    cell = cells.GRU()
    t = tpu.Tiling(3, 11, 3, 3, B=8, K=2)
    monkeypatch.setattr(tpu, "tiling_for", lambda *_: t)
    weights, x, state, masks, (dh, dfinal) = draw(cell, (3, 11, 1, 3), jnp.float32)
    operands, tree = forward_operands(weights, x, state, masks)
    options: dict[str, Any] = dict(cell=cell, reverse=False, tuned_for="tpu")
    forward_options = options | dict(tree=tree, store_residuals=True)

    def run(f: Any, *args: Any) -> Any:
        out = jax.block_until_ready(jax.jit(f)(*args))
        races = interpret_pallas_call.races
        assert races is not None
        assert not races.races_found
        return out

    forward = functools.partial(primitives._forward_kernel, "tpu", **forward_options)
    h, *more = run(forward, *operands)
    reference = jax.jit(functools.partial(primitives._forward_reference, **forward_options))
    close((h, *more), reference(*operands), 1e-5)
    operands, options["tree"] = backward_operands(
        cell, weights, x, state, masks, (h, *more), (dh, dfinal)
    )
    expected = jax.jit(functools.partial(primitives._backward_reference, **options))(*operands)
    got = run(functools.partial(primitives._backward_kernel, "tpu", **options), *operands)
    close(got, expected, 1e-5)


def test_forward_mode_and_second_derivatives(called: list[str]) -> None:
    """They come from the scan."""
    cell = cells.GRU()
    weights, x, *_ = draw(cell, (3, 2, 1, 3), jnp.float32)

    def derivative(backend: str) -> Any:
        def loss(x: Any) -> jax.Array:
            return (unroll(cell, weights, x, backend=backend, platform="tpu")[0] ** 2).sum()

        tangent = lambda x: jax.jvp(jax.grad(loss), (x,), (jnp.cos(x),))[1]  # noqa: E731
        return jax.jit(tangent)(x)

    close(derivative("kernel"), derivative("scan"), 1e-5)


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
    f = value_and_vjp("kernel", cell, platform="tpu")
    text = jax.export.export(f, platforms=["tpu"])(weights, x, state, masks, ct).mlir_module()
    assert text.count("@tpu_custom_call") == 2
    assert 'kernel_name = "jaxrnn_forward"' in text
    assert 'kernel_name = "jaxrnn_backward"' in text


def test_a_layer_for_a_tpu_and_a_cpu() -> None:
    """A program for both has a kernel for the TPU and a scan for the CPU."""
    layer = jaxrnn.LSTM(3, 4, backend="kernel", rngs=nnx.Rngs(0))
    x = jnp.ones((5, 2, 3), jnp.float32)
    program = jax.export.deserialize(bytearray(export(layer, x, platforms=["cpu", "tpu"])))
    assert "tpu_custom_call" in program.mlir_module()
    assert "jaxrnn_forward_" not in program.mlir_module()  # a CPU kernel
    close(program.call(x), layer(x), 1e-5)
    here = jax.export.deserialize(bytearray(export(layer, x)))
    assert "custom_call" not in here.mlir_module()


def test_float64_on_a_tpu_is_a_scan() -> None:
    """A program lowered for a platform whose kernel does not support its dtype contains a scan."""
    weights, x, *_ = draw(cells.LSTM(), SIZES[0], jnp.float64)
    f = jax.jit(lambda x: unroll(cells.LSTM(), weights, x, backend="kernel")[0])
    assert "tpu_custom_call" not in jax.export.export(f, platforms=["tpu"])(x).mlir_module()


def test_which_sizes_fit() -> None:
    """The largest H that fits into the VMEM of any TPU; no tiling exceeds its budget."""

    def largest(cell: cells.Cell, dtype: Any, memory: int) -> int:
        fits = lambda H: tpu.select_tiling(cell, jnp.dtype(dtype), 100, 32, H, memory)  # noqa: E731
        return max(H for H in range(128, 2049, 128) if fits(H))

    small, large = 15 << 20, 96 << 20
    assert largest(cells.LSTM(), jnp.float32, small) == 896
    for cell in (cells.LSTM(), cells.GRU(), cells.Elman()):
        for dtype in (jnp.float32, jnp.bfloat16):
            for memory in (small, large):
                H = largest(cell, dtype, memory)
                t = tpu.select_tiling(cell, jnp.dtype(dtype), 100, 32, H, memory)
                assert t is not None
                need = tpu.vmem_bytes(cell, jnp.dtype(dtype), t.B, t.K, H)
                assert max(need) <= memory
                assert (t.vmem_limit is None) == (max(need) <= (16 << 20) * 9 // 10)
    reason = tpu.unsupported_reason(cells.LSTM(), jnp.float32, 10, 10, 10, 2048)
    assert reason is not None
    assert "W_hh of H 2048 takes 64.0 MiB and does not fit" in reason


@pytest.mark.parametrize("cell", [*CELLS[:4], MinimalGatedUnit()], ids=str)
def test_graph_equals_the_cell(cell: cells.Cell) -> None:
    """On batch-major arrays; the cell is feature-major."""
    random, graph, G = np.random.RandomState(0), lower.cell_graphs(cell), len(cell.gates)
    array = lambda: jnp.asarray(random.randn(2, 3), jnp.float32)  # noqa: E731
    given = dict(z=[array() for _ in range(2 * G)], old=[array() for _ in cell.states])
    got = lower.evaluate(graph.forward, lambda name, k: given[name][k], given["old"][0])
    joined = lambda a: jnp.concatenate([v.T for v in a])  # noqa: E731
    zx, zh = joined(given["z"][:G]), joined(given["z"][G:])
    state = tuple(s.T for s in given["old"])
    leaves = jax.tree.leaves(derivative_rule(cell).save((zx, zh) if cell.split else zx, state))
    close(got, [a.T for leaf in leaves for a in jnp.split(leaf, len(leaf) // 3)], 1e-6)


def test_cell_that_is_not_elementwise() -> None:
    assert lower.unsupported_reason(Mixing()) == tpu.unsupported_reason(
        Mixing(), jnp.float32, 5, 3, 4, 7
    )
    assert "Mixing is not elementwise" in str(lower.unsupported_reason(Mixing()))
