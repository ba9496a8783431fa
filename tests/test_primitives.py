"""CPU kernels and their primitives against the scans that define them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import jaxprs_in_params
from jax.nn import sigmoid

import jaxrnn
from jaxrnn import cells
from jaxrnn.backends import primitives, select
from jaxrnn.core.unroll import StepMasks, Weights, unroll
from tests import compiling
from tests.pairwise import pairwise
from tests.test_recurrence import CELLS

pytest.importorskip("llvmlite", reason="the kernels need llvmlite")

from jaxrnn.backends.cpu import compiler

SIZES = [(5, 3, 4, 7), (4, 13, 1, 33), (6, 1, 5, 20)]
"""T, N, D, H: H below a vector register and above it; a batch of one."""

optimised = pytest.mark.usefixtures(
    "optimised"
)  # an optimised kernel, beside a quickly compiled scan


def draw(cell: cells.Cell, sizes: tuple[int, ...], dtype: Any, seed: int = 0) -> Any:
    (T, N, D, H), G = sizes, len(cell.gates)
    random = np.random.RandomState(seed)
    array = lambda *s: jnp.asarray(random.uniform(-1, 1, s), dtype)  # noqa: E731
    weights = Weights(array(G * H, D), array(G * H, H) / H**0.5, array(G * H), array(G * H))
    params = {n: array(*s) for n, s in cell.cell_parameter_shapes(cells.Sizes(D, H, H)).items()}
    weights = weights._replace(cell_params=params or None)
    state = tuple(array(N, H) for _ in cell.states)
    masks = StepMasks(jnp.asarray(random.rand(T, N) < 0.3), jnp.asarray(random.rand(T, N) < 0.7))
    ct = (array(T, N, H), tuple(array(N, H) for _ in cell.states))
    return weights, array(T, N, D), state, masks, ct


def value_and_vjp(backend: str, cell: cells.Cell, **options: Any) -> Any:
    def f(weights: Any, x: Any, state: Any, masks: Any, ct: Any) -> Any:
        run = functools.partial(unroll, cell, masks=masks, backend=backend, **options)
        value, pull = jax.vjp(run, weights, x, state)
        return value, pull(ct)

    return jax.jit(f, compiler_options=compiling.QUICKLY)


def close(got: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("cell", "masked", "reverse", "sizes"),
    pairwise(cell=CELLS, masked=(False, True), reverse=(False, True), sizes=SIZES),
    ids=str,
)
@optimised
def test_kernel_equals_scan(
    cell: cells.Cell, masked: bool, reverse: bool, sizes: tuple[int, ...]
) -> None:
    """The largest size is compiled with optimisation."""
    compiling.optimise(sizes == SIZES[1])
    check_kernel(cell, masked, reverse, sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "masked", "reverse", "sizes"),
    list(itertools.product(CELLS, (False, True), (False, True), SIZES)),
    ids=str,
)
def test_kernel_equals_scan_in_every_combination(
    cell: cells.Cell, masked: bool, reverse: bool, sizes: tuple[int, ...]
) -> None:
    check_kernel(cell, masked, reverse, sizes)


def check_kernel(cell: cells.Cell, masked: bool, reverse: bool, sizes: tuple[int, ...]) -> None:
    weights, x, state, masks, ct = draw(cell, sizes, jnp.float64)
    args = weights, x, state, masks if masked else StepMasks(), ct
    kernel, scan = (
        value_and_vjp(backend, cell, reverse=reverse)(*args) for backend in ("kernel", "scan")
    )
    close(kernel, scan, 1e-12)


@pytest.mark.parametrize("cell", CELLS[:4], ids=str)
@optimised
def test_float32(cell: cells.Cell) -> None:
    """The LSTM is optimised here, the others in `tests/test_parity.py`."""
    compiling.optimise(cell == cells.LSTM())
    *args, masks, ct = draw(cell, (7, 5, 3, 12), jnp.float32)
    kernel, scan = (value_and_vjp(b, cell)(*args, masks, ct) for b in ("kernel", "scan"))
    close(kernel, scan, 1e-5)
    assert jax.tree.leaves(kernel)[0].dtype == jnp.float32


@dataclasses.dataclass(frozen=True)
class GainGRU(cells.Cell):
    """A GRU with gains and biases as cell parameters, and separate pre-activations of x and h."""

    gates, split, parameters = ("r", "z", "n"), True, {"gain": ("H",), "bias_g": ("3*H",)}

    def step(self, z: Any, state: Any, params: Any) -> Any:
        (xr, xz, xn), (hr, hz, hn), (r, u, n) = map(self.split_gates, (*z, params["bias_g"]))
        n = jnp.tanh(xn + n + sigmoid(xr + hr + r) * hn * params["gain"])
        return (n + sigmoid(xz + hz + u) * (state[0] - n),)


@pytest.mark.parametrize("masked", [False, True], ids=["float32", "masked-reverse-float64"])
@pytest.mark.parametrize("cell", [cells.PeepholeLSTM(), GainGRU()], ids=str)
def test_cell_parameters(cell: cells.Cell, masked: bool) -> None:
    weights, x, state, masks, ct = draw(cell, SIZES[masked], jnp.float64 if masked else jnp.float32)
    args = weights, x, state, masks if masked else StepMasks(), ct
    kernel, scan = (value_and_vjp(b, cell, reverse=masked)(*args) for b in ("kernel", "scan"))
    close(kernel, scan, 1e-12 if masked else 1e-5)


def test_gradient_of_one_cell_parameter() -> None:
    cell = cells.PeepholeLSTM()
    weights, x, *_ = draw(cell, SIZES[0], jnp.float64)

    def loss(w: jax.Array, backend: str) -> jax.Array:
        changed = weights._replace(cell_params={**weights.cell_params, "weight_cf": w})
        return (unroll(cell, changed, x, backend=backend)[0] ** 2).sum()

    slope, w = jax.grad(loss), weights.cell_params["weight_cf"]
    close(slope(w, "kernel"), slope(w, "scan"), 1e-12)
    # One gradient with respect to parameters, two with respect to the initial states.
    assert backward_outputs(jax.make_jaxpr(slope, static_argnums=1)(w, "kernel").jaxpr) == [3]


def backward_outputs(jaxpr: Any) -> list[int]:
    """Return the number of results of each rnn_backward in a program."""
    found = []
    for eqn in jaxpr.eqns:
        found += [len(eqn.outvars)] if eqn.primitive.name == "rnn_backward" else []
        for inner in jaxprs_in_params(eqn.params):
            found += backward_outputs(inner)
    return found


@pytest.mark.parametrize("only", ["reset_mask", "valid_mask"])
def test_one_mask(only: str) -> None:
    *args, masks, ct = draw(cells.LSTM(), SIZES[0], jnp.float64)
    masks = StepMasks(**{only: getattr(masks, only)})
    kernel, scan = (value_and_vjp(b, cells.LSTM())(*args, masks, ct) for b in ("kernel", "scan"))
    close(kernel, scan, 1e-12)


@pytest.mark.parametrize(("remat", "reverse"), [(False, True), (True, False), (True, True)])
def test_blocks(remat: bool, reverse: bool) -> None:
    """The derivative in blocks of two steps, and one of one step."""
    cell = cells.LSTM()
    *args, masks, ct = draw(cell, SIZES[0], jnp.float64)
    options = dict(block_length=2, remat=remat, reverse=reverse)
    kernel = value_and_vjp("kernel", cell, **options)(*args, masks, ct)
    close(kernel, value_and_vjp("scan", cell, reverse=reverse)(*args, masks, ct), 1e-12)


def test_no_bias_and_frozen_weights() -> None:
    cell = cells.GRU()
    weights, x, *_ = draw(cell, SIZES[0], jnp.float64)
    weights = weights._replace(bias_ih=None, bias_hh=None)

    def loss(w_hh: jax.Array, backend: str) -> jax.Array:
        return (unroll(cell, weights._replace(weight_hh=w_hh), x, backend=backend)[0] ** 2).sum()

    kernel, scan = (jax.jit(jax.grad(loss), static_argnums=1)(weights.weight_hh, b)
                    for b in ("kernel", "scan"))  # fmt: skip
    close(kernel, scan, 1e-12)
    program = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(weights.weight_hh, "kernel")
    assert backward_outputs(program.jaxpr) == [2]  # of W_hh and the state; others cost nothing


@pytest.mark.parametrize("cell", [cells.GRU(), cells.PeepholeLSTM()], ids=str)
def test_transformations_without_a_kernel(cell: cells.Cell) -> None:
    """Forward mode, second derivatives in both orders of modes, and `vmap` over weights."""
    weights, x, state, masks, _ = draw(cell, SIZES[0], jnp.float64)
    along = jax.tree.map(jnp.cos, weights)

    def numbers(backend: str) -> Any:
        def loss(w: Any) -> jax.Array:
            y, last = unroll(cell, w, x, state, masks=masks, backend=backend)
            return (y**2).sum() + sum((s**3).sum() for s in last)

        slope = lambda w: jax.jvp(loss, (w,), (along,))[1]  # noqa: E731
        two = jax.tree.map(lambda a, b: jnp.stack([a, b]), weights, along)
        return jax.jit(
            lambda w: (
                jax.jvp(loss, (w,), (along,)),
                jax.jvp(jax.grad(loss), (w,), (along,))[1],
                jax.grad(slope)(w),
                jax.vmap(jax.value_and_grad(loss))(two),
            )
        )(weights)

    kernel, scan = numbers("kernel"), numbers("scan")
    close(kernel, scan, 1e-10)
    close(kernel[1], kernel[2], 1e-10)


def partitioned(monkeypatch: pytest.MonkeyPatch, threads: int, units: bool) -> None:
    """Use many threads for little work, which partition the batch, or batch and hidden units."""
    private_weights = 0 if units else 1 << 40
    describe(monkeypatch, cores=threads, flop_per_thread=1, private_weights=private_weights)


def describe(monkeypatch: pytest.MonkeyPatch, **fields: int) -> None:
    """Compile kernels for another description of this machine."""
    machine = dataclasses.replace(compiler.machine(), **fields)
    monkeypatch.setattr(compiler, "machine", lambda: machine)


@pytest.mark.parametrize(("threads", "units"), [(3, False), (3, True), (2, True)])
@optimised
def test_threads_do_not_change_the_bits(
    monkeypatch: pytest.MonkeyPatch, threads: int, units: bool
) -> None:
    """Each sum has one order for any partition. The largest partition is optimised."""
    compiling.optimise(units and threads == 3)
    cell = cells.LSTM()
    *args, masks, ct = draw(cell, (6, 40, 3, 70), jnp.float64)
    alone = value_and_vjp("kernel", cell)(*args, masks, ct)
    partitioned(monkeypatch, threads, units)
    together = value_and_vjp("kernel", cell)(*args, masks, ct)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_threads_with_a_single_processor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads avoid the caller's core unless it is the only one."""
    cell = cells.LSTM()
    args = draw(cell, (6, 40, 3, 70), jnp.float64)[:3]
    partitioned(monkeypatch, 2, units=True)
    # A program that is a single kernel runs in the calling thread.
    run = jax.jit(functools.partial(unroll, cell, backend="kernel"))
    before, allowed = run(*args), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        after = run(*args)
        assert os.sched_getaffinity(0) == {min(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_more_features_than_input_vectors(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    """Panels of W_ih are packed one after another, and all steps are one block."""
    cell = cells.GRU()
    *args, masks, ct = draw(cell, (3, 3, 70, 33), jnp.float64)
    args = (*args, masks if masked else StepMasks(), ct)
    partitioned(monkeypatch, 2, units=True)
    kernel, scan = (value_and_vjp(backend, cell)(*args) for backend in ("kernel", "scan"))
    close(kernel, scan, 1e-12)


@pytest.mark.parametrize(("bits", "registers"), [(128, 32), (256, 16)])
def test_smaller_registers(monkeypatch: pytest.MonkeyPatch, bits: int, registers: int) -> None:
    if compiler.machine().bits < bits:
        pytest.skip(f"this machine's registers have {compiler.machine().bits} bits")
    describe(monkeypatch, bits=bits, registers=registers)
    cell = cells.GRU()
    *args, masks, ct = draw(cell, SIZES[1], jnp.float64)
    kernel, scan = (value_and_vjp(b, cell)(*args, masks, ct) for b in ("kernel", "scan"))
    close(kernel, scan, 1e-12)


@optimised
def test_a_sequence_does_not_depend_on_its_batch() -> None:
    """A sequence has the same bits alone and in a batch, whole and in pieces."""
    cell = cells.LSTM()
    weights, x, state, _, _ = draw(cell, (6, 9, 3, 20), jnp.float32)
    run = lambda x, state: unroll(cell, weights, x, state, backend="kernel")  # noqa: E731
    run = jax.jit(run, compiler_options=compiling.QUICKLY)
    whole, last = run(x, state)
    alone, _ = run(x[:, 4:5], tuple(s[4:5] for s in state))
    np.testing.assert_array_equal(alone, whole[:, 4:5])
    first, middle = run(x[:4], state)
    second, end = run(x[4:], middle)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(end[1], last[1])


@optimised
def test_non_finite_inputs() -> None:
    cell = cells.LSTM()
    weights, x, *_ = draw(cell, SIZES[0], jnp.float32)
    x = x.at[2, 1].set(jnp.nan).at[:, 2].set(1e30)
    y, _ = unroll(cell, weights, x, backend="kernel")
    expected, _ = unroll(cell, weights, x, backend="scan")
    assert np.isnan(y[2:, 1]).all()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_gradient_over_a_large_batch_loses_no_digits() -> None:
    """The weight gradient of equal sequences is a multiple of that of one."""
    weights, x, *_ = draw(cells.Elman(), (1, 1, 3, 2), jnp.float32)
    many = 100_003

    def slope(backend: str, weights: Any, x: jax.Array) -> Any:
        return jax.grad(lambda w: unroll(cells.Elman(), w, x, backend=backend)[0].sum())(weights)

    got = slope("kernel", weights, jnp.repeat(x, many, axis=1))
    one = slope("scan", *jax.tree.map(lambda a: a.astype(jnp.float64), (weights, x)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, many * b, rtol=3e-5)  # a single sum has an error of 1e-3


def test_large_workspace() -> None:
    """More than 2^31 bytes, for a million short sequences; lowered, not run."""
    array: Any = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    weights = Weights(array(192, 1), array(192, 64), array(192), array(192))
    x = array(5, 1_000_000, 1)
    loss = lambda w, x: unroll(cells.GRU(), w, x, backend="kernel")[0].sum()  # noqa: E731
    text = jax.jit(jax.grad(loss)).lower(weights, x).as_text()
    assert max(int(n) for n in re.findall(r"tensor<(\d+)xui8>", text)) > 2**31


@dataclasses.dataclass(frozen=True)
class UncompiledCell(cells.Cell):
    """A cell that no other test has compiled."""

    gates = ("a",)

    def step(self, z: Any, state: Any) -> Any:
        return (jnp.tanh(z + 0.1234567 * state[0]),)


def test_concurrent_compilation_of_a_kernel() -> None:
    weights, x, *_ = draw(UncompiledCell(), SIZES[0], jnp.float64)
    together = threading.Barrier(4)

    def run(_: int) -> Any:
        together.wait()
        options = compiling.QUICKLY
        f = jax.jit(
            lambda: unroll(UncompiledCell(), weights, x, backend="kernel")[0],
            compiler_options=options,
        )
        return np.asarray(f())

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(run, range(4))
    for other in others:
        np.testing.assert_array_equal(other, first)


@dataclasses.dataclass(frozen=True)
class Conditional(cells.Cell):
    """A cell with conditions and an exponential."""

    gates, states = ("a", "b"), ("h", "s")

    def step(self, z: Any, state: Any) -> Any:
        (h, s), (a, b) = state, self.split_gates(z)
        return jnp.exp(a), jnp.where(b > h, jnp.clip(s + b, -1, 1), 0.1 * b) * s


@dataclasses.dataclass(frozen=True)
class Logical(cells.Cell):
    """A cell with logical operations, as the derivatives of relu6 and hard_sigmoid have."""

    gates, states = ("a", "b"), ("h", "s")

    def step(self, z: Any, state: Any) -> Any:
        (h, s), (a, b) = state, self.split_gates(z)
        some = ((a > 0) ^ (b > 0)) | ~((s > 0) & (h > 0.2))
        return jax.nn.hard_sigmoid(3 * a) * s, jnp.where(some, jax.nn.relu6(8 * b), h * b)


@pytest.mark.parametrize("cell", [Conditional(), Logical()], ids=str)
def test_conditions(cell: cells.Cell) -> None:
    *args, masks, ct = draw(cell, SIZES[0], jnp.float64)
    kernel, scan = (value_and_vjp(b, cell)(*args, masks, ct) for b in ("kernel", "scan"))
    close(kernel, scan, 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@optimised
def test_exponentials_over_the_full_range(dtype: str) -> None:
    compiling.optimise(True)
    end = np.log(np.finfo(dtype).max)
    x = np.array([-np.inf, -2 * end, 3 - end, -1, 0, end - 0.3, end - 0.01, end + 0.01, np.inf])
    x = x.astype(dtype)
    weights = Weights(jnp.ones((2, 1), dtype), jnp.zeros((2, 1), dtype))
    y, _ = unroll(Conditional(), weights, jnp.asarray(x)[None, :, None], backend="kernel")
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(y[0, :, 0], np.exp(x), rtol=1e-12 if x.itemsize > 4 else 1e-6)


@dataclasses.dataclass(frozen=True)
class Mixing(cells.Cell):
    """A cell that is not elementwise."""

    gates = ("h",)

    def step(self, z: Any, state: Any) -> Any:
        return (jax.nn.softmax(z, axis=0),)


def test_selection() -> None:
    weights, x, *_ = draw(cells.LSTM(), SIZES[0], jnp.float32)

    def choose(backend: str, cell: Any, weights: Any = weights, x: Any = x, **options: Any) -> str:
        return select.choose(backend, cell, weights, x, **options).backend

    assert choose("auto", cells.LSTM()) == "kernel"
    assert choose("scan", cells.LSTM()) == "scan"
    assert choose("auto", cells.LSTM(), return_all_states=True) == "scan"
    assert choose("auto", Mixing()) == "scan"
    large, one, *_ = draw(cells.LSTM(), (1, 1, 40, 80), jnp.float32)
    assert choose("auto", cells.LSTM(), large, one) == "scan"
    assert choose("kernel", cells.LSTM(), large, one) == "kernel"
    assert choose("auto", cells.LSTM(), x=x.astype(jnp.bfloat16)) == "scan"
    with pytest.raises(ValueError, match="not supported here: Mixing is not elementwise"):
        choose("kernel", Mixing())
    with pytest.raises(ValueError, match="float32 or float64, got bfloat16"):
        choose("kernel", cells.LSTM(), x=x.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="projections are not supported"):
        choose("kernel", cells.LSTM(), weights=weights._replace(weight_hr=weights.weight_hh))


def test_a_cell_without_a_kernel_runs_in_the_scan() -> None:
    weights, x, *_ = draw(Mixing(), SIZES[0], jnp.float64)
    y, _ = unroll(Mixing(), weights, x)
    np.testing.assert_allclose(y.sum(-1), 1.0, rtol=1e-12)


def test_without_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    weights, x, *_ = draw(cells.LSTM(), SIZES[0], jnp.float32)
    assert select.choose("auto", cells.LSTM(), weights, x).backend == "scan"
    with pytest.raises(ValueError, match=r"pip install \"jaxrnn\[cpu\]\""):
        select.choose("kernel", cells.LSTM(), weights, x)


def test_an_exported_program_contains_no_kernel() -> None:
    weights, x, *_ = draw(cells.LSTM(), SIZES[0], jnp.float32)
    f = jax.jit(lambda x: unroll(cells.LSTM(), weights, x, backend="kernel")[0])
    assert "jaxrnn_forward" in f.lower(x).as_text()
    program = export.export(f)(x)
    assert "jaxrnn_forward" not in program.mlir_module()
    np.testing.assert_allclose(program.call(x), f(x), rtol=1e-5, atol=1e-6)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jaxrnn
mesh = Mesh(np.array(jax.devices()), ("batch",))
layer = jaxrnn.LSTM(3, 5, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (4, 8, 3))
split = jax.device_put(x, NamedSharding(mesh, P(None, "batch")))
graph, state = nnx.split(layer)
run = jax.jit(lambda state, x: nnx.merge(graph, state)(x)[0])
assert "jaxrnn_forward" in run.lower(state, x).as_text()
assert "jaxrnn_forward" not in run.lower(state, split).as_text()
out = run(state, split)
assert not out.sharding.is_fully_replicated, out.sharding
np.testing.assert_allclose(out, run(state, x), rtol=1e-5, atol=1e-6)

lengths = jnp.array([4, 3, 2, 0, 4, 1, 1, 2])
for backend in ("kernel", "scan"):
    layer = jaxrnn.GRU(3, 5, 2, bidirectional=True, backend=backend, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    loss = lambda state, x: (nnx.merge(graph, state)(x, lengths=lengths)[0] ** 2).sum()
    grad = jax.jit(jax.value_and_grad(loss))
    with jax.set_mesh(Mesh(np.array(jax.devices()), ("batch",))):
        lowered = grad.lower(state, split)
        assert ("jaxrnn_backward" in lowered.as_text()) == (backend == "kernel")
        compiled = lowered.compile()
        text = compiled.as_text()
        assert not any(word in text for word in ("all-gather(", "all-to-all(", "permute(")), text
        assert "all-reduce(" in text
        got = compiled(state, split)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(grad(state, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
"""


def test_devices_partition_scans_and_kernels_and_communicate_only_gradients() -> None:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_shapes_of_the_primitives() -> None:
    """The abstract evaluation of a primitive agrees with its reference and its kernel."""
    for cell in CELLS[:4]:
        weights, x, state, masks, (dh, dlast) = draw(cell, SIZES[0], jnp.float32)
        how = dict(cell=cell, reverse=False, tuned_for="cpu")
        operands, tree = forward_operands(weights, x, state, masks)
        for store_residuals in (False, True):
            options = how | dict(tree=tree, store_residuals=store_residuals)
            functions = primitives.forward_p.bind, primitives._forward_reference, cpu("forward")
            results, *others = (shapes(f, operands, options) for f in functions)
            assert [results, results] == others
        for requested in ((True, True, True, True), (False, True, False, False)):
            arguments = cell, weights, x, state, masks, results, (dh, dlast)
            operands, tree = linear_operands(*arguments, requested=requested)
            options = how | dict(tree=tree)
            functions = primitives.linear_p.bind, primitives._linear_reference
            bound, reference = (shapes(f, operands, options) for f in functions)
            assert bound == reference
            operands, _ = backward_operands(*arguments, requested=requested)
            functions = primitives.backward_p.bind, primitives._backward_reference, cpu("backward")
            bound, *others = (shapes(f, operands, options) for f in functions)
            assert [bound, bound] == others


def cpu(name: str) -> Any:
    return functools.partial(getattr(primitives, f"_{name}_kernel"), "cpu")


def shapes(function: Any, operands: Any, options: Any) -> list[Any]:
    return list(jax.eval_shape(functools.partial(function, **options), *operands))


def forward_operands(weights: Any, x: Any, state: Any, masks: StepMasks) -> tuple[Any, Any]:
    """Flat operands of the forward primitive, and their structure."""
    w_ih, w_hh, b_ih, b_hh = weights[:4]
    operands = primitives.ForwardOperands(
        x, w_ih, w_hh, b_ih, b_hh, None, tuple(state), primitives.pack_masks(masks)
    )
    return jax.tree.flatten(operands)


def linear_operands(
    cell: Any,
    weights: Any,
    x: Any,
    state: Any,
    masks: StepMasks,
    results: Any,
    cotangents: Any,
    requested: Any = (True,) * 4,
) -> tuple[Any, Any]:
    """Flat operands of the linear primitive after a forward one with `results`."""
    w_ih, w_hh, *biases = weights[:4]
    dx, dw_ih, dw_hh = (a if yes else None for a, yes in zip((x, w_ih, w_hh), requested))
    dbias = tuple(biases[: 1 + cell.split]) if requested[3] else ()
    states, residuals = tuple(results[: len(cell.states)]), tuple(results[len(cell.states) :])
    packed = primitives.pack_masks(masks)
    tangents = primitives.LinearTangents(dx, dw_ih, dw_hh, dbias, None, tuple(cotangents[1]))
    residuals = primitives.LinearResiduals(
        x, w_ih, w_hh, None, tuple(state), states, residuals, packed
    )
    return jax.tree.flatten((tangents, residuals))


def backward_operands(*arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Flat operands of the backward primitive; the structure is that of the linear one."""
    flat, tree = linear_operands(*arguments, **options)
    dh, dlast = arguments[-1]
    return (dh, *dlast, *flat[tree.children()[0].num_leaves :]), tree


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_vmap_over_data_is_a_larger_batch(masked: bool) -> None:
    """The gradient of each of three batches, and of their sum, with shared weights."""
    cell = cells.LSTM()
    weights, x, state, masks, _ = draw(cell, SIZES[0], jnp.float64)
    xs = jnp.stack([x, 2 * x, -x], axis=2)
    masks = StepMasks(masks.reset_mask if masked else None, masks.valid_mask if masked else None)

    def loss(w: Any, x: jax.Array, state: Any, backend: str) -> jax.Array:
        y, last = unroll(cell, w, x, state, masks=masks, backend=backend)
        return (y**2).sum() + (last[1] ** 3).sum()

    def each(backend: str) -> Any:
        slopes = jax.value_and_grad(functools.partial(loss, backend=backend), argnums=(0, 1, 2))
        return jax.jit(jax.vmap(slopes, in_axes=(None, 2, None)))

    close(each("kernel")(weights, xs, state), each("scan")(weights, xs, state), 1e-12)
    text = each("kernel").lower(weights, xs, state).as_text()
    assert "jaxrnn_forward" in text
    assert "jaxrnn_backward" not in text  # the weight gradients are not summed

    def together(backend: str) -> Any:
        def total(w: Any, xs: jax.Array, state: Any) -> jax.Array:
            one = functools.partial(loss, backend=backend)
            return jax.vmap(one, in_axes=(None, 2, None))(w, xs, state).sum()

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))

    close(together("kernel")(weights, xs, state), together("scan")(weights, xs, state), 1e-12)
    assert "jaxrnn_backward" in together("kernel").lower(weights, xs, state).as_text()


def test_a_layer_names_the_unsupported_option() -> None:
    from flax import nnx

    layer = jaxrnn.LSTM(3, 4, backend="kernel", proj_size=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="projections are not supported"):
        layer(jnp.ones((2, 1, 3), jnp.float32))
