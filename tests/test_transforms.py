"""Every transformation of JAX and of Flax works on every layer."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.test_util import check_grads

import jaxrnn
from jaxrnn.core import stack

MAKE: dict[str, Any] = {
    "RNN": functools.partial(jaxrnn.RNN, 3, 4, 2, bidirectional=True),
    "RNN_RELU": functools.partial(jaxrnn.RNN, 3, 4, nonlinearity="relu"),
    "LSTM": functools.partial(jaxrnn.LSTM, 3, 4, bidirectional=True),
    "LSTM_PROJECTED": functools.partial(jaxrnn.LSTM, 3, 4, proj_size=2),
    "LSTM_REMAT": functools.partial(jaxrnn.LSTM, 3, 4, remat=True),
    "GRU": functools.partial(jaxrnn.GRU, 3, 4, 2),
    "GRU_REMAT": functools.partial(jaxrnn.GRU, 3, 4, remat=True),
}
KINDS = list(MAKE)
X = np.random.RandomState(0).uniform(-1, 1, (5, 2, 3))


def make(kind: str, seed: int = 0) -> Any:
    return MAKE[kind](rngs=nnx.Rngs(seed), param_dtype=jnp.float64)


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    compare = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
    jax.tree.map(compare, got, want)


@functools.cache
def pure(kind: str) -> tuple[Any, Any]:
    """Return a scalar loss of parameters and input, and the parameters."""
    graph, params = nnx.split(make(kind))

    def loss(params: Any, x: Any) -> Any:
        output, last = nnx.merge(graph, params)(x)
        return (output**2).mean() + sum(jnp.sin(s).mean() for s in jax.tree.leaves(last))

    return jax.jit(loss), params


@pytest.mark.parametrize("kind", KINDS)
def test_jit_equals_eager_and_does_not_retrace(kind: str) -> None:
    layer = make(kind)
    traces = []

    @jax.jit
    def call(x: Any) -> Any:
        traces.append(1)
        return layer(x)

    close(call(X), layer(X))
    call(X + 1.0)
    assert len(traces) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_eager_call_compiles_nothing(kind: str) -> None:
    layer = make(kind)
    run: Any = stack.run
    layer(X)
    before = run._cache_size()
    layer(X + 1.0)
    assert run._cache_size() == before


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_agree_with_differences(kind: str) -> None:
    """Check forward and reverse mode of the loss and of its gradient."""
    loss, params = pure(kind)
    check_grads(loss, (params, X), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)
    grad = jax.jit(jax.grad(loss))
    along = jax.tree.map(jnp.ones_like, params)
    product = jax.jit(lambda *at: jax.jvp(lambda p: grad(p, X), *at)[1])((params,), (along,))
    step = 1e-5
    up = jax.tree.map(lambda p: np.asarray(p) + step, params)
    down = jax.tree.map(lambda p: np.asarray(p) - step, params)
    above, below = (jax.tree.map(np.asarray, grad(p, X)) for p in (up, down))
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), above, below)
    close(product, differences, 1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_jvp_is_the_gradient_along_a_direction(kind: str) -> None:
    loss, params = pure(kind)
    random = np.random.RandomState(1)
    along = jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape)), (params, X))

    @jax.jit
    def both_ways(at: Any, along: Any) -> Any:
        value, grads = jax.value_and_grad(loss, (0, 1))(*at)
        reverse = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, along)))
        return jax.jvp(loss, at, along), (value, reverse)

    close(*both_ways((params, X), along))


@pytest.mark.parametrize("kind", KINDS)
def test_hessian_vector_products_agree_both_ways_and_with_double_backward(kind: str) -> None:
    loss, params = pure(kind)
    along = jax.tree.map(jnp.ones_like, params)
    grad = jax.grad(loss)
    inner = lambda p: sum(map(jnp.sum, jax.tree.leaves(grad(p, X))))  # noqa: E731

    @jax.jit
    def three_ways(params: Any, along: Any) -> Any:
        slope = lambda p: jax.jvp(lambda q: loss(q, X), (p,), (along,))[1]  # noqa: E731
        product = jax.jvp(lambda p: grad(p, X), (params,), (along,))[1]
        return product, jax.grad(slope)(params), jax.grad(inner)(params)

    forward_reverse, reverse_forward, double_backward = three_ways(params, along)
    close(forward_reverse, reverse_forward)
    close(forward_reverse, double_backward)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_data_and_over_models(kind: str) -> None:
    loss, params = pure(kind)
    _, other = nnx.split(make(kind, 1))
    stacked = jax.tree.map(lambda a, b: np.stack([a, b]), params, other)
    data = np.stack([X, 2 * X])
    slopes = jax.value_and_grad(loss)
    both = jax.tree.map(np.asarray, jax.jit(jax.vmap(slopes))(stacked, data))
    alone = jax.jit(slopes)
    close(jax.tree.map(lambda a: a[0], both), alone(params, data[0]))
    close(jax.tree.map(lambda a: a[1], both), alone(other, data[1]))
    close(np.asarray(jax.vmap(loss, (None, 0))(params, data))[1], loss(params, data[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_changes_no_gradient(kind: str) -> None:
    loss, params = pure(kind)
    both = jax.jit(lambda p: (jax.grad(jax.checkpoint(loss))(p, X), jax.grad(loss)(p, X)))
    close(*both(params))


@pytest.mark.parametrize("kind", KINDS)
def test_scan_over_calls_carries_the_state(kind: str) -> None:
    """Two halves of a sequence with the state carried between them equal the whole."""
    layer = MAKE[kind](rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    if layer.bidirectional:
        layer = type(layer)(3, 4, 2, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    x = jnp.concatenate([X, X])

    def call(state: Any, piece: Any) -> Any:
        output, state = layer(piece, state)
        return state, output

    last, outputs = lax.scan(call, layer.initial_state(2), x.reshape(2, 5, 2, 3))
    close((outputs.reshape(10, 2, -1), last), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_closure_over_a_module_works_and_mutates_nothing(kind: str) -> None:
    layer = make(kind)
    before = jax.tree.map(np.asarray, nnx.state(layer))
    f = lambda x: (layer(x)[0] ** 2).sum()  # noqa: E731
    expected = jax.grad(f)(X)

    @jax.jit
    def ways(x: Any) -> Any:
        mapped, again = jax.vmap(jax.grad(f))(x[None])[0], jax.grad(jax.checkpoint(f))(x)
        return jax.grad(f)(x), mapped, again, jax.jvp(f, (x,), (x,))[1]

    *gradients, slope = ways(X)
    close(gradients, [expected] * 3)
    close(slope, np.vdot(expected, X))
    close(nnx.state(layer), before, 0)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_flax_transformations(kind: str) -> None:
    layer = make(kind)
    loss = lambda layer, x: (layer(x)[0] ** 2).sum()  # noqa: E731
    graph, params = nnx.split(layer)
    expected = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p), X))(params)
    close(nnx.jit(nnx.value_and_grad(loss))(layer, X), expected)
    close(nnx.grad(nnx.remat(loss))(layer, X), expected[1])
    over = nnx.vmap(lambda layer, x: layer(x)[0], in_axes=(None, 0))(layer, jnp.stack([X, X]))
    close(over[1], layer(X)[0])


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_frozen_weights_and_constant_inputs_cost_no_product(kind: str) -> None:
    """The gradient with respect to the biases alone needs no product for the others."""
    layer = getattr(jaxrnn, kind)(3, 4, backend="scan", rngs=nnx.Rngs(0))
    graph, biases, rest = nnx.split(layer, lambda path, _: "bias" in str(path[-1]), ...)
    x = jnp.asarray(X, jnp.float32)

    def products(f: Any, *args: Any) -> int:
        text = str(jax.make_jaxpr(f)(*args))
        return text.count("dot_general") + text.count("= matmul_with_transpose")

    loss = lambda b, r, x: nnx.merge(graph, b, r)(x)[0].sum()  # noqa: E731
    frozen = products(jax.grad(loss), biases, rest, x)
    assert frozen < products(jax.grad(loss, (0, 1)), biases, rest, x)
    weights = products(jax.grad(loss, (0, 1)), biases, rest, x)
    assert weights < products(jax.grad(loss, (0, 1, 2)), biases, rest, x)


def test_dropout_zeroes_scales_and_is_drawn_afresh() -> None:
    """A new mask for each step, batch element and feature, on every layer but the last."""
    # Weights that hand the input through: relu, W_ih = 1, W_hh = 0, no bias.
    layer = jaxrnn.RNN(
        1, 1, 2, "relu", False, dropout=0.5, rngs=nnx.Rngs(0), param_dtype=jnp.float64
    )
    one = {"weight_ih": np.ones((1, 1)), "weight_hh": np.zeros((1, 1))}
    jaxrnn.load_state_dict(layer, {f"{n}_l{k}": w for k in (0, 1) for n, w in one.items()})
    x = np.ones((50, 40, 1))
    first, second = layer(x)[0], layer(x)[0]
    assert set(np.unique(first)) == {0.0, 2.0}
    assert abs(np.mean(first) - 1.0) < 0.1
    assert (first != second).any()
    assert len(np.unique(first[:, :, 0], axis=0)) == 50
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0], x)
    layer.train()
    key = jax.random.key(7)
    np.testing.assert_array_equal(layer(x, rngs=key)[0], layer(x, rngs=key)[0])
    layer.dropout = 1.0
    np.testing.assert_array_equal(layer(x)[0], np.zeros_like(x))


def test_no_random_stream_is_touched_without_active_dropout() -> None:
    layer: Any = jaxrnn.LSTM(3, 4, 2, dropout=0.5, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    layer.eval()
    before = layer.rngs.count[...].item()
    layer(X)
    jax.jit(lambda x: layer(x)[0])(X)
    assert layer.rngs.count[...].item() == before
    layer.train()
    layer(X)
    assert layer.rngs.count[...].item() == before + 1


def test_dropout_trains_under_flax_transformations() -> None:
    layer = jaxrnn.GRU(3, 4, 2, dropout=0.5, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    step = nnx.jit(nnx.grad(lambda layer, x: (layer(x)[0] ** 2).sum()))
    first, second = step(layer, X), step(layer, X)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), first, second)
    assert any(jax.tree.leaves(different))
