"""`train_steps`, `jit_steps` and `sweep`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import GRU
from jaxrnn.layers.heads import ManyToMany
from jaxrnn.training import jit_steps, sweep, train_steps, truncated_bptt

OPTIMIZERS = {
    "adam": optax.adam(0.01),
    "schedule": optax.sgd(optax.exponential_decay(0.1, 3, 0.9), momentum=0.9),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
}


def job() -> tuple[ManyToMany, Callable[..., Any], Any]:
    """Return a model, a loss that carries its state, and batches for six steps."""
    rngs = nnx.Rngs(0)
    gru = GRU(3, 8, 2, batch_first=True, rngs=rngs)
    model = ManyToMany(gru, 1, rngs=rngs)
    graph = nnx.graphdef(model)

    def loss(params: Any, hidden: Any, batch: Any) -> Any:
        x, y = batch
        predicted, hidden = nnx.merge(graph, params)(x, hidden)
        return ((predicted - y) ** 2).mean(), (hidden, predicted[:, -1])

    x = jax.random.normal(jax.random.key(1), (6, 4, 5, 3), jnp.float32)
    return model, loss, (x, x.sum(-1, keepdims=True))


def chunk(batches: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda a: a[start:stop], batches)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_chunks_with_donated_buffers_equal_one_call(name: str) -> None:
    model, loss, batches = job()
    optimizer, hidden = OPTIMIZERS[name], model.rnn.initial_state(4)
    params = nnx.state(model, nnx.Param)
    whole = train_steps(loss, optimizer, params, batches, carry=hidden)
    steps, opt_state, losses = jit_steps(loss, optimizer), optimizer.init(params), []
    for start in (0, 2, 4):
        part = chunk(batches, start, start + 2)
        params, opt_state, hidden, some, metrics = steps(
            params, part, carry=hidden, opt_state=opt_state
        )
        losses.append(some)
        assert metrics.shape == (2, 4, 1)
    np.testing.assert_allclose(jnp.concatenate(losses), whole.losses, rtol=1e-5)
    ours, theirs = (jax.tree.leaves(t) for t in ((params, opt_state, hidden), whole[:3]))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_donate_their_state_and_are_traced_once(name: str) -> None:
    model, loss, batches = job()
    traced = []

    def counted(*arguments: Any) -> Any:
        traced.append(1)
        return loss(*arguments)

    optimizer = OPTIMIZERS[name]
    steps = jit_steps(counted, optimizer)
    params = nnx.state(model, nnx.Param)
    state = (params, optimizer.init(params), model.rnn.initial_state(4))
    counts = []
    for start in (0, 2, 4):
        before = jax.tree.leaves(state)
        places = [a.unsafe_buffer_pointer() for a in before]
        params, opt_state, hidden = state
        part = chunk(batches, start, start + 2)
        state = steps(params, part, carry=hidden, opt_state=opt_state)[:3]
        after = jax.tree.leaves(state)
        assert all(a.is_deleted() for a in before)
        # The host owns the buffers of the initial weights, which the first call cannot reuse.
        if start and jax.default_backend() == "cpu":
            assert [a.unsafe_buffer_pointer() for a in after] == places
        counts.append(len(traced))
    assert counts[0] == counts[-1]
    with pytest.raises(RuntimeError, match="deleted"):
        model.fc.kernel[...].sum()
    nnx.update(model, state[0])
    assert jnp.isfinite(model.fc.kernel[...]).all()


def runs(key: Any, lr: Any = 0.1) -> Any:
    """Train a vector; one of the results depends on the key only."""
    start = jax.random.normal(key, (3,))

    def loss(w: Any, x: Any) -> Any:
        return ((w - x) ** 2).sum()

    trained = train_steps(loss, optax.adam(lr), start, jnp.ones((5, 3)))
    return {"losses": trained.losses, "params": trained.params, "start": start}


KEYS, RATES = jax.random.split(jax.random.key(0), 3), jnp.array([0.01, 0.1])


def test_a_sweep_equals_single_runs_of_every_combination() -> None:
    results, grid = sweep(runs, key=KEYS, lr=RATES)
    assert {n: a.shape for n, a in results.items()} == {
        "losses": (3, 2, 5),
        "params": (3, 2, 3),
        "start": (3, 2, 3),
    }
    for i, j in np.ndindex(3, 2):
        assert (grid["key"][i, j] == KEYS[i]).all()
        assert grid["lr"][i, j] == RATES[j]
        alone = runs(KEYS[i], RATES[j])
        for name, value in alone.items():
            np.testing.assert_allclose(results[name][i, j], value, rtol=1e-6)


def test_axes_follow_the_order_of_arguments() -> None:
    assert sweep(runs, lr=RATES, key=KEYS).results["losses"].shape == (2, 3, 5)
    assert list(sweep(runs, lr=RATES, key=KEYS).grid) == ["lr", "key"]


def test_arguments_of_one_axis_are_paired() -> None:
    pairs = {"key": KEYS, "lr": jnp.array([0.01, 0.1, 1.0])}
    results, grid = sweep(lambda run: runs(**run), run=pairs)
    assert results["losses"].shape == (3, 5)
    assert grid["run"]["lr"].tolist() == [0.01, 0.1, 1.0]
    alone = runs(KEYS[2], 1.0)["losses"]
    np.testing.assert_allclose(results["losses"][2], alone, rtol=1e-6)


def test_a_sweep_over_the_parameters_of_models() -> None:
    model, loss, batches = job()
    params = nnx.state(model, nnx.Param)
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)

    def train(params: Any) -> jax.Array:
        hidden = model.rnn.initial_state(4)
        return train_steps(loss, optax.adam(0.01), params, batches, carry=hidden).losses

    together = sweep(train, params=many).results
    alone = train(jax.tree.map(lambda a: 2 * a, params))
    np.testing.assert_allclose(together[1], alone, rtol=1e-4)


def test_a_sweep_can_be_compiled_mapped_and_differentiated() -> None:
    def last(rates: jax.Array) -> jax.Array:
        return sweep(runs, key=KEYS, lr=rates).results["losses"][..., -1].sum()

    np.testing.assert_allclose(jax.jit(last)(RATES), last(RATES), rtol=1e-6)
    assert jax.vmap(last)(jnp.stack([RATES, RATES])).shape == (2,)
    step = 1e-5
    slope = (last(RATES + step) - last(RATES - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(last)(RATES).sum(), slope, rtol=1e-4)


def test_a_sweep_of_the_same_shapes_is_not_traced_again() -> None:
    traced = []

    def train(lr: Any) -> Any:
        traced.append(1)
        return lr * 2

    for start in range(3):
        assert sweep(train, lr=start + jnp.arange(4.0)).results.shape == (4,)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("axes", "kind", "words"),
    [
        ({}, TypeError, ["at least one axis"]),
        ({"keys": KEYS}, TypeError, ["runs", "keys", "'key'"]),
        ({"key": KEYS, "rate": RATES}, TypeError, ["runs(", "lr", "rate"]),
        ({"lr": RATES}, TypeError, ["'key'"]),
        ({"key": KEYS, "lr": 0.1}, TypeError, ["lr", "array", "0.1"]),
        ({"key": KEYS, "lr": [0.1, 0.2]}, TypeError, ["lr", "array", "[0.1, 0.2]"]),
        ({"key": KEYS, "lr": "fast"}, TypeError, ["lr", "array", "'fast'"]),
        ({"key": KEYS, "lr": None}, TypeError, ["lr", "array", "None"]),
        ({"key": KEYS, "lr": jnp.array(0.1)}, TypeError, ["lr", "first axis", "0.1"]),
        ({"key": KEYS, "lr": jnp.zeros(0)}, ValueError, ["lr", "no values", "(0,)"]),
        ({"key": KEYS, "lr": (RATES, jnp.ones(3))}, ValueError, ["lr", "[2, 3]"]),
    ],
    ids=str,
)
def test_invalid_axes_raise_one_clear_error(
    axes: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        sweep(runs, **axes)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "batches", [None, jnp.float32(1), (jnp.ones(3), jnp.ones(4))], ids=["none", "one", "uneven"]
)
def test_batches_without_steps_raise_one_clear_error(batches: Any) -> None:
    with pytest.raises(
        ValueError, match=r"`batches` must be arrays .*got (none|\(\)|\(3,\), \(4,\))"
    ):
        train_steps(lambda w, x: (w, x), optax.sgd(0.1), jnp.ones(()), batches)


def test_every_signature_of_a_loss_gives_the_same_steps() -> None:
    """Compare losses with and without metrics, a carry and a key."""
    batches, w, sgd = jnp.arange(1.0, 7.0), jnp.asarray(0.5), optax.sgd(0.01)

    def value(w: Any, x: Any) -> Any:
        return (w * x - 1.0) ** 2

    def with_metrics(w: Any, x: Any) -> Any:
        return value(w, x), {"x": x}

    def with_carry(w: Any, carry: Any, x: Any) -> Any:
        return value(w, x), (carry + x, {"x": x})

    def with_key(w: Any, x: Any, *, key: Any) -> Any:
        return value(w, x), jax.random.uniform(key)

    plain = train_steps(value, sgd, w, batches)
    assert plain.carry is None
    assert plain.metrics is None
    measured = train_steps(with_metrics, sgd, w, batches)
    carried = train_steps(with_carry, sgd, w, batches, carry=jnp.zeros(()))
    keyed = train_steps(with_key, sgd, w, batches, key=jax.random.key(3))
    windows = truncated_bptt(
        lambda w, x, key: (value(w, x[0]), jax.random.uniform(key)[None]),
        *(sgd, w, batches),
        window=1,
        key=jax.random.key(3),
    )
    for trained in (measured, carried, keyed, windows):
        np.testing.assert_array_equal(trained.losses, plain.losses)
        np.testing.assert_array_equal(trained.params, plain.params)
    np.testing.assert_array_equal(measured.metrics["x"], batches)
    np.testing.assert_array_equal(carried.metrics["x"], batches)
    assert carried.carry == batches.sum()
    drawn = [jax.random.uniform(jax.random.fold_in(jax.random.key(3), k)) for k in range(6)]
    np.testing.assert_array_equal(keyed.metrics, drawn)
    np.testing.assert_array_equal(windows.metrics, drawn)
    with pytest.raises(ValueError, match=r"argument `key`: pass key="):
        train_steps(with_key, sgd, w, batches)
    with pytest.raises(TypeError, match=r"\(value, \(carry, metrics\)\) if there is a carry"):
        train_steps(lambda w, c, x: value(w, x), sgd, w, batches, carry=w)
    with pytest.raises(TypeError, match=r"value or \(value, metrics\), got"):
        train_steps(lambda w, x: (w, x, x), sgd, w, batches)
    with pytest.raises(ValueError, match=r"scalar value, got shape \(2,\)"):
        train_steps(lambda w, x: w * jnp.ones(2), sgd, w, batches)
