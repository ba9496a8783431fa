"""The Hopper kernels against the scan: on a Hopper GPU, else interpreted, and lowered for one.

Without a GPU the kernels run in Mosaic's interpreter (`tests.hopper_interpreter`). It records a
vector clock for each thread and so finds every pair of accesses that no barrier orders, even if the
result is right: all cases here are free of races.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells
from jaxrnn.backends import hopper, primitives, select
from jaxrnn.backends.hopper import device as hopper_device
from jaxrnn.backends.hopper import loops, tiling
from jaxrnn.backends.hopper.tiling import Tiling
from jaxrnn.backends.step import StepMasks
from jaxrnn.core import stack
from tests import hopper_interpreter
from tests.test_kernels_tpu import Hostile, MinimalGatedUnit
from tests.test_primitives import backward_operands, close, draw, forward_operands, value_and_vjp

GPU = jax.default_backend() == "gpu"
SIZES = (3, 3, 4, 20)
"""T, N, D, H: two blocks per cluster, with padding among the units and in the batch."""


def small_tiling(cell: cells.Cell, dtype: Any, N: int, H: int) -> Tiling:
    """Return a single cluster of blocks with 16 units, for 16 sequences."""
    del N
    itemsize = jnp.dtype(dtype).itemsize
    return Tiling(len(cell.gates), 2 if itemsize == 4 else 1, itemsize, -(-H // 16), 16, 16)


def force_tiling(monkeypatch: pytest.MonkeyPatch, cell: cells.Cell, sizes: Any) -> None:
    """Use one tiling for all layers of a cell: terms, itemsize, C, U, B, K."""
    forced = Tiling(len(cell.gates), *sizes)
    monkeypatch.setattr(hopper, "tiling_for", lambda *_: forced)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Names of the kernels that were launched and the sizes of their clusters."""
    launches: list[tuple[str, int]] = []
    device_for = hopper.device_for if GPU else hopper_interpreter.device_for

    def recording_device(tiling: Tiling) -> Any:
        device: Any = device_for(tiling)
        launch = device.launch

        def recorded_launch(*args: Any) -> Any:
            launches.append((args[-1], tiling.C))
            return launch(*args)

        device.launch = recorded_launch
        return device

    monkeypatch.setattr(hopper, "device_for", recording_device)
    monkeypatch.setattr(hopper, "tiling_for", small_tiling)
    return launches


def races_found() -> bool:
    """Return True if the last interpreted kernel had unordered accesses to the same memory."""
    if GPU:
        return False
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    return interpret_pallas_call.get_races().races_found


def run_compiled(
    kernel: Any, reference: Any, options: Any, operands: Any, races: bool = False
) -> tuple[Any, Any]:
    """Run a kernel, which must have races or none, and its scan."""
    got = jax.block_until_ready(jax.jit(lambda *a: kernel("cuda", *a, **options))(*operands))
    assert races_found() == races
    return got, jax.jit(lambda *a: reference(*a, **options))(*operands)


def kernel_and_scan(
    cell: cells.Cell,
    sizes: Any,
    dtype: Any,
    masked: bool = False,
    reverse: bool = False,
    run: Any = run_compiled,
) -> Any:
    """Return the results of the kernels and of the scan: forward passes and all gradients.

    The operations are called separately, as the interpreter cannot run inside a primitive. Both
    backward passes use the residuals of the kernel. `run` takes a kernel, its reference, options
    and operands.
    """
    weights, x, state, masks, (dh, dfinal) = draw(cell, sizes, dtype)
    options = dict(cell=cell, reverse=reverse, tuned_for="cuda")
    masks = masks if masked else StepMasks()
    dfinal = [d.astype(jnp.float32) for d in dfinal]

    def pair(*args: Any) -> Any:
        kernel, scan = run(*args)
        assert [a.shape for a in kernel] == [a.shape for a in scan]
        return [[a.astype(jnp.float32) for a in results] for results in (kernel, scan)]

    with jax.default_matmul_precision("float32"):
        operands, tree = forward_operands(weights, x, state, masks)
        forward_options = options | dict(tree=tree)
        forward = primitives._forward_kernel, primitives._forward_reference
        training = pair(*forward, forward_options | dict(store_residuals=True), operands)
        inference: Any = ([], [])
        if len(state) > 1:  # with one state the kernels are the same
            inference = pair(*forward, forward_options | dict(store_residuals=False), operands)
        after = [a.astype(dtype) for a in training[0]]
        operands, tree = backward_operands(cell, weights, x, state, masks, after, (dh, dfinal))
        options |= dict(tree=tree)
        backward = pair(
            primitives._backward_kernel, primitives._backward_reference, options, operands
        )
    return [a + b + c for a, b, c in zip(inference, training, backward, strict=True)]


BOTH = {("rnn_forward", 2), ("rnn_backward", 2)}


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
def test_kernel_equals_scan(called: Any, cell: cells.Cell, masked: bool, reverse: bool) -> None:
    kernel, scan = kernel_and_scan(cell, SIZES, jnp.float32, masked, reverse)
    close(kernel, scan, 1e-5)
    assert set(called) == BOTH


def test_prefetched_inputs(called: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "PREFETCH_INPUTS", True)
    kernel, scan = kernel_and_scan(cells.LSTM(), SIZES, jnp.float32, True, True)
    close(kernel, scan, 1e-5)
    assert set(called) == BOTH


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU()], ids=str)
def test_bfloat16(called: Any, cell: cells.Cell) -> None:
    """To the rounding of the residuals; the scan also rounds its states at each step."""
    kernel, scan = kernel_and_scan(cell, SIZES, jnp.bfloat16, True)
    close(kernel, scan, 0.1)
    assert set(called) == BOTH


def test_several_clusters(called: Any) -> None:
    """Two clusters of three blocks run 18 sequences."""
    kernel, scan = kernel_and_scan(cells.Elman(), (2, 18, 2, 33), jnp.float32)
    close(kernel, scan, 1e-5)
    assert {blocks for _, blocks in called} == {3}


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes", "tiling_sizes", "masked", "reverse"),
    [
        (cells.LSTM(), jnp.float32, (3, 3, 4, 44), (2, 4, 2, 16, 16, 2), True, False),
        (cells.Elman(), jnp.float32, (3, 18, 2, 30), (2, 4, 2, 8, 16, 2), False, True),
        (cells.GRU(), jnp.bfloat16, (4, 3, 4, 40), (1, 2, 1, 16, 16, 3), True, True),
        (cells.GRU(), jnp.float16, (3, 3, 4, 64), (1, 2, 2, 16, 16, 2), False, False),
    ],
    ids=["LSTM", "two groups", "bfloat16, clusters of one block", "float16"],
)
def test_group_of_clusters(
    called: Any,
    monkeypatch: pytest.MonkeyPatch,
    cell: cells.Cell,
    dtype: Any,
    sizes: Any,
    tiling_sizes: Any,
    masked: bool,
    reverse: bool,
) -> None:
    """Clusters exchange h through global memory; a second batch tile needs a second group."""
    force_tiling(monkeypatch, cell, tiling_sizes)
    kernel, scan = kernel_and_scan(cell, sizes, dtype, masked, reverse)
    close(kernel, scan, {jnp.float32: 1e-5, jnp.float16: 1e-2, jnp.bfloat16: 0.1}[dtype])
    assert {name for name, _ in called} == {"rnn_forward", "rnn_backward"}


@pytest.mark.skipif(GPU, reason="the GPU does not report races")
@pytest.mark.parametrize(
    "tiling_sizes", [(1, 2, 2, 16, 16), (1, 2, 2, 16, 16, 2)], ids=["cluster", "group"]
)
def test_a_single_buffer_is_a_race(
    called: Any, monkeypatch: pytest.MonkeyPatch, tiling_sizes: Any
) -> None:
    """The race detector reports kernels with one message buffer instead of two."""
    monkeypatch.setattr(hopper_device, "NUM_BUFFERS", 1)
    force_tiling(monkeypatch, cells.Elman(), tiling_sizes)
    run = functools.partial(run_compiled, races=True)
    kernel_and_scan(cells.Elman(), SIZES, jnp.bfloat16, run=run)
    assert {name for name, _ in called} == {"rnn_forward", "rnn_backward"}


def test_padding_units_affect_nothing(called: Any) -> None:
    """Even if the cell computes NaN from them."""
    kernel, scan = kernel_and_scan(Hostile(), SIZES, jnp.float32)
    assert all(np.isfinite(a).all() for a in scan)
    close(kernel, scan, 1e-5)
    assert set(called) == BOTH


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes", "precision"),
    [
        (cells.LSTM(), jnp.bfloat16, (256, 32, 512, 456), None),  # shared memory is nearly full
        (cells.LSTM(), jnp.bfloat16, (5, 128, 3, 256), None),  # tiles of 16 units, 32 sequences
        (cells.GRU(), jnp.float32, (5, 7, 3, 100), None),
        (cells.Elman(), jnp.float32, (5, 40, 3, 256), "tensorfloat32"),
        (cells.LSTM(), jnp.bfloat16, (5, 64, 3, 1024), None),  # 16 clusters of 4 blocks
    ],
    ids=["LSTM", "wide", "GRU", "TF32", "group"],
)
def test_lowered_for_a_gpu(cell: Any, dtype: Any, sizes: Any, precision: Any) -> None:
    """A program for a Hopper GPU contains a forward and a backward kernel."""
    with jax.default_matmul_precision(precision):
        f = value_and_vjp("kernel", cell, platform="cuda")
        exported = jax.export.export(f, platforms=["cuda"])(*draw(cell, sizes, dtype))
        text = exported.mlir_module()
        t = hopper.tiling_for(cell, dtype, sizes[1], sizes[3])
    assert text.count("custom_call @mosaic_gpu") == 2
    assert t is not None
    # The counters of a group: zeros at each call, which the kernel updates in place.
    counters = text.count("#stablehlo.output_operand_alias")
    assert counters == (2 if t.K > 1 else 0)


def test_split_floats_keep_22_bits() -> None:
    t = tiling.select_tiling(cells.LSTM(), 4, 2, 16, 128)
    assert t is not None
    assert t.terms == 2
    x = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, 1000), jnp.float32)
    upper, lower = loops.factors(x, t, jnp.float32)
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
    """ "auto" uses single clusters; groups of clusters run on request alone."""
    reason = hopper.unsupported_reason(cell, dtype, 10, 32, 8, H)
    t = hopper.tiling_for(cell, dtype, 32, H)
    assert (reason is None) == (t is not None) == group
    assert group or f"W_hh of H {H}" in str(reason)
    options = stack.StackOptions(cell, platform="cuda")
    x = jax.ShapeDtypeStruct((10, 32, 8), dtype)
    weights = jax.eval_shape(lambda k: stack.init(k, cell, 8, H, dtype=dtype), jax.random.key(0))
    (auto,) = select.explain(options, weights, x).choices
    assert auto.backend == ("kernel" if cluster else "scan")
    if t is not None:
        asked = select.explain(dataclasses.replace(options, backend="kernel"), weights, x)
        assert asked.choices[0].backend == "kernel"
        assert cluster == (t.K == 1) == ("never run on a GPU" not in auto.reason)


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.Elman()], ids=str)
@pytest.mark.parametrize(("itemsize", "terms"), [(2, 1), (4, 2)])
def test_shared_memory_as_pallas_counts_it(cell: Any, itemsize: int, terms: int) -> None:
    """Whole kibibytes for each array, 8 bytes for a barrier."""

    def num_bytes(kind: Any) -> int:
        if isinstance(kind, hopper_device.CopyBarrier):
            return 8
        if isinstance(kind, hopper_device.MessageBarriers):
            size = 16
        else:
            size = math.prod(kind.shape) * jnp.dtype(kind.dtype).itemsize
        return -(-size // 1024) * 1024

    dtype, kinds = {2: jnp.bfloat16, 4: jnp.float32}[itemsize], set()
    options = loops.LoopOptions(cell, 4, True, True, False, dtype)
    for H, num_sms in itertools.product((100, 456, 1024), (1, 114)):
        for t in tiling.candidate_tilings(len(cell.gates), itemsize, terms, H, num_sms):
            if not t.fits:
                continue
            device: Any = hopper.device_for(t)
            _, forward = loops.forward(device, options, True)
            _, backward = loops.backward(device, options)
            for scratch, expected in ((forward, t.forward_bytes()), (backward, t.backward_bytes())):
                scratch.pop("mailboxes", None)
                extra = device.extra_scratch if t.K > 1 else {}
                assert sum(map(num_bytes, (scratch | extra).values())) == expected <= 227 * 1024
            kinds.add((t.K > 1, t.gate_blocks > 1))
    assert kinds == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("C", tiling.GROUP_CLUSTER_SIZES)
def test_a_group_is_resident_at_once(C: int) -> None:
    """For any division of the SMs into eight GPCs with an even number each, at most 18."""
    rng = np.random.RandomState(0)
    for num_sms in (114, 132):
        for _ in range(200):
            sizes = np.full(8, 18)
            while sizes.sum() > num_sms:
                sizes[rng.randint(8)] -= 2
                sizes = np.maximum(sizes, 0)
            assert sum(sizes // C) >= tiling.guaranteed_clusters(C, num_sms)
    for H in range(16, 1800, 80):
        t = tiling.select_tiling(cells.GRU(), 2, 1, 64, H, 114)
        assert t is None or t.K == 1 or t.K * t.C <= 114


def test_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(dtype: Any) -> str:
        return str(hopper.unsupported_reason(cells.LSTM(), dtype, 2, 2, 2, 16))

    assert "not in float64" in reason(jnp.float64)
    monkeypatch.setattr(jax, "__version_info__", (0, 13, 0))
    assert "0.10.2 to 0.12" in reason(jnp.float32)
