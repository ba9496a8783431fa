"""`truncated_bptt`: parity with PyTorch's loop, carried states, and errors."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

import jaxrnn
from jaxrnn.layers.heads import ManyToMany
from jaxrnn.training import Progress, streams, train_steps, truncated_bptt
from tests import tbptt_oracle as oracle
from tests.tbptt_oracle import RATE, WINDOW, D, H, N, T

SGD = optax.sgd(RATE, momentum=0.9)
STREAM = tuple(map(jnp.asarray, oracle.draw()))


def close(got: Any, want: Any) -> None:
    compare = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
    jax.tree.map(compare, got, want)


@functools.cache
def job() -> tuple[ManyToMany, Callable[..., Any], Any]:
    """Return PyTorch's model with its weights, the loss of a window, and the initial state."""
    rngs = nnx.Rngs(0)
    model = ManyToMany(jaxrnn.LSTM(D, H, rngs=rngs, param_dtype=jnp.float64), 1, rngs=rngs)
    model.fc = nnx.Linear(H, 1, param_dtype=jnp.float64, rngs=rngs)
    before = {n: a for n, a in oracle.expected().items() if n.startswith("before.")}
    jaxrnn.load_state_dict(model, {n.removeprefix("before."): a for n, a in before.items()})
    graph = nnx.graphdef(model)

    def loss(params: Any, hx: Any, piece: Any) -> Any:
        x, y = piece
        predicted, hx = nnx.merge(graph, params)(x, hx)
        return jnp.mean((predicted - y) ** 2), (hx, {"each": predicted, "mean": x.mean()[None]})

    return model, loss, model.rnn.initial_state(N)


@functools.cache
def compiled() -> Callable[..., Any]:
    _, loss, _ = job()
    run = functools.partial(truncated_bptt, loss, SGD)
    return jax.jit(run, static_argnames="window")


def trained(stream: Any = STREAM, window: int = WINDOW, **options: Any) -> Any:
    model, _, hx = job()
    return compiled()(nnx.state(model, nnx.Param), stream, window=window, carry=hx, **options)


def test_training_equals_pytorchs_loop_with_detach() -> None:
    expected, result = oracle.expected(), trained()
    model = nnx.clone(job()[0])
    nnx.update(model, result.params)
    ours = {f"after.{name}": value for name, value in jaxrnn.state_dict(model).items()}
    ours |= dict(zip(("h_n", "c_n"), result.carry))
    ours |= {"losses": result.losses, "predictions": result.metrics["each"]}
    assert {name for name in expected if not name.startswith("before.")} == set(ours)
    close(ours, {name: expected[name] for name in ours})


def by_hand(window: int) -> tuple[Any, Any, Any, list[jax.Array], list[jax.Array]]:
    """Run the same gradient steps in a Python loop."""
    model, loss, hx = job()
    params = nnx.state(model, nnx.Param)
    opt_state, losses, predictions = SGD.init(params), [], []
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for start in range(0, T, window):
        piece = tuple(a[start : start + window] for a in STREAM)
        (value, (hx, output)), grads = step(params, hx, piece)
        updates, opt_state = SGD.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(value)
        predictions.append(output["each"])
    return params, opt_state, hx, losses, predictions


@pytest.mark.parametrize("window", [1, 4, 10])
def test_training_equals_a_python_loop(window: int) -> None:
    result = trained(window=window)
    params, opt_state, hx, losses, predictions = by_hand(window)
    count = -(-T // window)
    assert result.losses.shape == (count,)
    assert result.metrics["each"].shape == (T, N, 1)
    assert result.metrics["mean"].shape == (count,)
    close(result.losses, jnp.stack(losses))
    close(result.metrics["each"], jnp.concatenate(predictions))
    means = [STREAM[0][start : start + window].mean() for start in range(0, T, window)]
    close(result.metrics["mean"], jnp.stack(means))
    close((result.params, result.opt_state, result.carry), (params, opt_state, hx))


def test_a_window_of_all_steps_or_more_is_full_backpropagation() -> None:
    model, loss, hx = job()
    params = nnx.state(model, nnx.Param)
    once = jax.tree.map(lambda a: a[None], STREAM)
    full = jax.jit(functools.partial(train_steps, loss, SGD))(params, once, carry=hx)
    for window in (T, T + 5):
        result = trained(window=window)
        assert result.losses.shape == (1,)
        close(result[:4], full[:4])
        close(result.metrics["each"], full.metrics["each"][0])


def test_earlier_windows_act_through_the_state_alone() -> None:
    """Without the carried state, the loss of window 1 does not depend on window 0."""
    _, loss, hx = job()
    frozen = optax.set_to_zero()  # so that windows do not act through the parameters
    changed = STREAM[0].at[0].add(1.0), STREAM[1]
    params = nnx.state(job()[0], nnx.Param)

    def forgetful(params: Any, carry: Any, piece: Any) -> Any:
        value, (_, output) = loss(params, hx, piece)
        return value, (carry, output)

    for kind, same in ((loss, False), (forgetful, True)):
        run = jax.jit(functools.partial(truncated_bptt, kind, frozen, window=WINDOW))
        first, second = (run(params, stream, carry=hx).losses for stream in (STREAM, changed))
        assert first[0] != second[0]
        assert bool((first[1:] == second[1:]).all()) == same


def test_no_gradient_flows_into_the_previous_window() -> None:
    """The update of a window is the gradient for a fixed initial state.

    The state is a sum of p * x, the loss of a window its square: d/dp with the state s before it
    fixed is 2 (s + p a) a, where a is the sum of x in the window; it would be 2 (s + p a) (s/p + a)
    if the gradient went on into the state.
    """

    def loss(p: jax.Array, s: jax.Array, x: jax.Array) -> Any:
        s = s + (p * x).sum()
        return s**2, (s, None)

    x, rate = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]), 1e-3
    p, s = jnp.asarray(2.0), jnp.asarray(0.5)
    result = truncated_bptt(loss, optax.sgd(rate), p, x, window=2, carry=s)
    p, s, losses = 2.0, 0.5, []
    for a in (3.0, 7.0, 5.0):
        s = s + p * a
        losses.append(s**2)
        p -= rate * 2 * s * a
    close((result.params, result.carry), (jnp.asarray(p), jnp.asarray(s)))
    close(result.losses, jnp.array(losses))
    assert result.metrics is None


def test_two_calls_with_donated_buffers_equal_one() -> None:
    whole, split = trained(), 2 * WINDOW
    model, loss, _ = job()
    run = functools.partial(truncated_bptt, loss, SGD, window=WINDOW)
    in_place = jax.jit(run, donate_argnames=("params", "carry", "opt_state"))
    params = nnx.state(nnx.clone(model), nnx.Param)
    params, carry = jax.tree.map(jnp.copy, (params, model.rnn.initial_state(N)))
    opt_state = SGD.init(params)
    losses = []
    for piece in (slice(0, split), slice(split, T)):
        before = jax.tree.leaves((params, opt_state, carry))
        stream = tuple(a[piece] for a in STREAM)
        params, opt_state, carry, some, _ = in_place(
            params, stream, carry=carry, opt_state=opt_state
        )
        assert all(a.is_deleted() for a in before)
        losses.append(some)
    close((params, opt_state, carry), whole[:3])
    close(jnp.concatenate(losses), whole.losses)


def test_the_progress_bar_counts_all_windows() -> None:
    seen = []

    class Recorded(Progress):
        def update(self, done: int, loss: float) -> None:
            seen.append((done, loss))

    console = Console(file=io.StringIO(), force_terminal=True)
    with Recorded("windows", 3, console=console) as progress:
        model, loss, hx = job()
        run = functools.partial(truncated_bptt, loss, SGD, window=WINDOW, progress=progress)
        losses = jax.jit(run)(nnx.state(model, nnx.Param), STREAM, carry=hx).losses
        jax.effects_barrier()
    assert [done for done, _ in seen] == [1, 2, 3]
    close([loss for _, loss in seen], list(losses))


def nothing(params: Any, piece: Any) -> Any:
    return params.sum()


@pytest.mark.parametrize(
    ("stream", "window", "words"),
    [
        (jnp.ones((5, 2)), 0, ["window", ">= 1", "0"]),
        (jnp.ones((5, 2)), 2.0, ["window", "must be an integer", "2.0"]),
        ({}, 2, ["stream", "none"]),
        (None, 2, ["stream", "none"]),
        (jnp.ones(()), 2, ["stream", "axis of time steps", "()"]),
        ([1.0, 2.0], 2, ["stream", "axis of time steps", "(), ()"]),
        ((jnp.ones((5, 2)), jnp.ones(4)), 2, ["stream", "equal length", "(5, 2), (4,)"]),
        (jnp.ones((0, 2)), 2, ["stream", "nonempty axis", "(0, 2)"]),
    ],
    ids=str,
)
def test_invalid_streams_and_windows_raise(stream: Any, window: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        truncated_bptt(nothing, SGD, jnp.ones(1), stream, window=window)
    assert all(word in str(caught.value) for word in words)


def test_a_scalar_metric_raises() -> None:
    def loss(params: Any, piece: Any) -> Any:
        return params.sum(), params.sum()

    with pytest.raises(
        ValueError, match=r"first axis, concatenated over the windows.*got a scalar"
    ):
        truncated_bptt(loss, SGD, jnp.ones(1), jnp.ones(4), window=2)


def test_streams_are_consecutive_parts_of_a_series() -> None:
    series = {"x": np.arange(24.0).reshape(12, 2), "y": np.arange(12)}
    result = streams(series, 3)
    assert result["x"].shape == (4, 3, 2)
    for row in range(3):
        np.testing.assert_array_equal(result["x"][:, row], series["x"][4 * row : 4 * row + 4])
        np.testing.assert_array_equal(result["y"][:, row], series["y"][4 * row : 4 * row + 4])
    with pytest.raises(ValueError, match=r"divide the 12 steps of the series, got 5.*last 2"):
        streams(series, 5)
    shorter = streams(series, 5, drop_last=True)
    np.testing.assert_array_equal(shorter["y"].T.ravel(), series["y"][:10])
    np.testing.assert_array_equal(streams(series["y"], 1)[:, 0], series["y"])
    assert jax.jit(lambda a: streams(a, 12))(series["x"]).shape == (1, 12, 2)


@pytest.mark.parametrize(
    ("series", "batch_size", "words"),
    [
        (np.ones(4), 0, ["batch_size", ">= 1", "0"]),
        (np.ones(4), 5, ["batch_size", "<= 4", "5"]),
        (np.ones(4), "2", ["batch_size", "must be an integer", "'2'"]),
        (np.ones(()), 1, ["series", "axis of time steps", "()"]),
        ((np.ones(4), np.ones(3)), 2, ["series", "equal length", "(4,), (3,)"]),
        ((), 2, ["series", "none"]),
        (np.ones((0, 3)), 1, ["series", "nonempty axis", "(0, 3)"]),
    ],
    ids=str,
)
def test_an_invalid_series_raises(series: Any, batch_size: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        streams(series, batch_size)
    assert all(word in str(caught.value) for word in words)
