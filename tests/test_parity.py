"""Outputs, states and every gradient of the layers equal PyTorch's, over all options."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from tests import compiling, oracle
from tests.oracle import Case

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@functools.lru_cache(maxsize=4)
def compiled(case: Case, dtype: str, **options: Any) -> Any:
    """Return a compiled function of lengths, inputs and cotangents to all results."""
    layer = getattr(jaxrnn, case.layer)(
        oracle.D, oracle.H, rngs=nnx.Rngs(0), param_dtype=dtype, **case.options, **options
    )
    graph, _ = nnx.split(layer)

    def call(lengths: Any, state: Any, x: Any, hx: Any) -> Any:
        layer = nnx.merge(graph, state)
        pair = (tuple(hx) if case.layer == "LSTM" else hx[0]) if case.hx else None
        output, last = layer(x, pair, lengths=lengths)
        return [output, *(last if case.layer == "LSTM" else [last])]

    def run(cotangents: Any, lengths: Any, *primals: Any) -> Any:
        outputs, pullback = jax.vjp(functools.partial(call, lengths), *primals)
        return outputs, pullback(cotangents)

    # Users compute in float32, with XLA's default optimisation.
    as_users_do = compiling.AS_USERS_DO if dtype == "float32" else {}
    return layer, jax.jit(run, compiler_options=as_users_do)


def our_results(case: Case, dtype: str, **options: Any) -> dict[str, np.ndarray]:
    """Return the results of `oracle.torch_results`, by jaxrnn."""
    arrays = case.draw()
    weights, x, hx, cotangents = jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)
    lengths = None if case.lengths is None else jnp.array(case.lengths)
    key = case if lengths is None else dataclasses.replace(case, lengths=())
    layer, run = compiled(key, dtype, **options)
    jaxrnn.load_state_dict(layer, weights)
    outputs, (dstate, dx, dhx) = run(cotangents, lengths, nnx.split(layer)[1], x, hx)
    nnx.update(layer, dstate)  # gradients under PyTorch's names
    results = {f"output_{i}": o for i, o in enumerate(outputs)}
    results |= {f"grad_{name}": g for name, g in jaxrnn.state_dict(layer).items()}
    results["grad_x"] = dx
    if case.hx:
        results |= {f"grad_hx_{i}": g for i, g in enumerate(dhx)}
    assert all(value.dtype == dtype for value in results.values())
    return {name: np.asarray(value) for name, value in results.items()}


def check(case: Case, dtype: str, **options: Any) -> None:
    want = oracle.expected(case)
    got = oracle.flatten(our_results(case, dtype, **options))
    # The tolerance is relative to the largest value, since sums run over many steps.
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("case", oracle.CASES, ids=lambda case: case.name)
def test_outputs_states_and_gradients_equal_pytorch(case: Case) -> None:
    check(case, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", oracle.PRODUCT, ids=lambda case: case.name)
@pytest.mark.skipif(oracle.torch is None, reason="only the quick cases are recorded")
def test_every_combination_of_options_equals_pytorch(case: Case, dtype: str) -> None:
    check(case, dtype)


# In float32 with XLA's default optimisation, which compiles slowly, each kind of layer has two
# cases: one layer over many steps with biases, both directions and an initial state, and two layers
# with the options below. Across kinds, every pair of options occurs in all its combinations.
OTHERS = {  # bias, bidirectional, batch_first, hx
    "RNN_TANH": (False, False, True, True),
    "RNN_RELU": (False, True, True, False),
    "LSTM": (False, True, False, True),
    "LSTM_PROJECTED": (True, False, True, False),
    "GRU": (False, False, False, False),
}
SINGLE = [c for c in oracle.CASES if c.steps > oracle.T]
SINGLE += [Case(mode, 2, *options) for mode, options in OTHERS.items()]


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
@pytest.mark.usefixtures("optimised")
def test_outputs_states_and_gradients_equal_pytorch_in_single_precision(case: Case) -> None:
    check(case, "float32")


@pytest.mark.parametrize("case", oracle.RAGGED, ids=lambda case: case.name)
def test_sequences_of_different_lengths_equal_pytorchs_packed_run(case: Case) -> None:
    """Lengths are traced, so that cases which differ in them share one compiled function."""
    check(case, "float64")


@pytest.mark.parametrize("mode", oracle.MODES)
def test_rematerialisation_changes_no_value(mode: str) -> None:
    check(Case(mode, 1, True, True, False, True, steps=107), "float64", remat=True)


@pytest.mark.parametrize("case", (oracle.CASES + oracle.RAGGED)[::11], ids=lambda case: case.name)
def test_recorded_values_equal_pytorch(case: Case) -> None:
    """The recording serves where PyTorch is not installed."""
    recorded = oracle.recorded()[case.name]
    np.testing.assert_allclose(recorded, oracle.expected(case), rtol=0, atol=1e-11)


def test_every_case_is_recorded() -> None:
    cases = oracle.CASES + oracle.RAGGED
    assert sorted(oracle.recorded()) == sorted(case.name for case in cases)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_unbatched_equals_a_batch_of_one(kind: str) -> None:
    layer = getattr(jaxrnn, kind)(3, 4, 2, bidirectional=True, batch_first=True, rngs=nnx.Rngs(0))
    x = jnp.linspace(-1, 1, 15, dtype=jnp.float32).reshape(5, 3)
    one, batch = layer(x), layer(x[None])
    expected = (batch[0][0], jax.tree.map(lambda s: s[:, 0], batch[1]))
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, expected)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_accurate_and_retains_its_dtype(kind: str, dtype: str) -> None:
    """Outputs agree to eight units of rounding; gradients have the dtype of the parameters."""
    make = lambda d: getattr(jaxrnn, kind)(3, 4, 2, rngs=nnx.Rngs(0), param_dtype=d)  # noqa: E731
    low, high = make(jnp.dtype(dtype)), make(jnp.float32)
    jaxrnn.load_state_dict(high, jaxrnn.state_dict(low))
    x = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (20, 2, 3)), dtype)
    output, _ = low(x)
    expected, _ = high(x.astype(jnp.float32))
    assert output.dtype == dtype
    np.testing.assert_allclose(
        output.astype(jnp.float32), expected, atol=8 * float(jnp.finfo(dtype).eps)
    )
    graph, state = nnx.split(low)
    grads = jax.grad(lambda s: nnx.merge(graph, s)(x)[0].sum())(state)
    assert all(g.dtype == dtype for g in jax.tree.leaves(grads))


def test_dtype_casts_input_states_and_weights() -> None:
    layer = jaxrnn.LSTM(3, 4, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    output, (h_n, c_n) = layer(np.ones((5, 2, 3)), (np.zeros((1, 2, 4)), np.zeros((1, 2, 4))))
    assert {output.dtype, h_n.dtype, c_n.dtype} == {jnp.dtype(jnp.bfloat16)}
    assert layer.all_weights[0][0][...].dtype == jnp.float32
    assert layer.initial_state(2)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells_equal_one_step_of_the_layer(kind: str, bias: bool) -> None:
    """The layers equal PyTorch, see above."""
    layer = getattr(jaxrnn, kind.removesuffix("Cell"))(3, 4, bias=bias, rngs=nnx.Rngs(0))
    cell = getattr(jaxrnn, kind)(3, 4, bias, rngs=nnx.Rngs(1))
    weights = jaxrnn.state_dict(layer)
    jaxrnn.load_state_dict(cell, {n.removesuffix("_l0"): w for n, w in weights.items()})
    random = np.random.RandomState(0)
    x = random.uniform(-1, 1, (2, 3)).astype("float32")
    state = layer.initial_state(2)
    state = jax.tree.map(lambda s: jnp.asarray(random.uniform(-1, 1, s.shape), s.dtype), state)
    _, expected = layer(x[None], state)
    expected = jax.tree.map(lambda s: s[0], expected)
    got = cell(x, jax.tree.map(lambda s: s[0], state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
    one = cell(x[0], jax.tree.map(lambda s: s[0, 0], state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], atol=1e-6), one, expected)
    zeros = jax.tree.map(lambda s: jnp.zeros_like(s[0]), state)
    same = lambda a, b: np.testing.assert_array_equal(a, b)  # noqa: E731
    jax.tree.map(same, cell(x), cell(x, zeros))
