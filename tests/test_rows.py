"""Sequences laid end to end in rows: the numbers of each alone, at the cost of their sum."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.sequences.rows import (
    RowPlan,
    final_states,
    pack_rows,
    plan_rows,
    run_rows,
    unpack_rows,
)

MAKE: dict[str, Any] = {
    "RNN": functools.partial(jaxrnn.RNN, 3, 4, 2),
    "LSTM": functools.partial(jaxrnn.LSTM, 3, 4, 2, bidirectional=True, proj_size=2),
    "GRU": functools.partial(jaxrnn.GRU, 3, 4, 2, bidirectional=True, batch_first=True),
}
SHAPE = {"row_length": 8, "rows": 4}
BATCHES = ([3, 5, 0, 3, 5, 3], [5, 3, 3, 0, 3, 0])  # few lengths: each is compiled for alone
T = 6


@functools.lru_cache
def parts(kind: str) -> tuple[Any, Any]:
    return nnx.split(MAKE[kind](rngs=nnx.Rngs(0), param_dtype=jnp.float64))


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    compare = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
    jax.tree.map(compare, got, want)


def draw(kind: str, lengths: list[int]) -> tuple[np.ndarray, Any]:
    """An input (T, M, D) with NaN in its padding, and cotangents of its output and states."""
    random = np.random.RandomState(sum(lengths))
    graph, params = parts(kind)
    x = random.uniform(-1, 1, (T, len(lengths), 3))
    time_major = lambda p, x: nnx.merge(graph, p)(x.swapaxes(0, 1) if kind == "GRU" else x)  # noqa: E731
    shapes = jax.eval_shape(time_major, params, x)
    cotangents = jax.tree.map(lambda a: random.uniform(-1, 1, a.shape), shapes)
    x[np.arange(T)[:, None] >= np.array(lengths)[None]] = np.nan
    return x, cotangents


@functools.lru_cache
def alone(kind: str) -> Any:
    """One sequence by itself, without a batch: results and gradients."""
    graph, _ = parts(kind)

    @jax.jit
    def run(params: Any, x: Any, cotangents: Any) -> Any:
        results, pullback = jax.vjp(lambda p, x: nnx.merge(graph, p)(x), params, x)
        return results, pullback(cotangents)

    return run


def expected(kind: str, lengths: list[int]) -> Any:
    """Results (T, M, ...) and gradients of all sequences of a batch, each run alone."""
    x, cotangents = draw(kind, lengths)
    (dy, dstates), (_, params) = cotangents, parts(kind)
    dy = dy.swapaxes(0, 1) if kind == "GRU" else dy
    results = jax.tree.map(np.zeros_like, (dy, dstates))
    dparams, dx = jax.tree.map(np.zeros_like, params), np.zeros_like(x)
    for m, steps in enumerate(lengths):
        if steps == 0:
            continue
        ct = dy[:steps, m], jax.tree.map(lambda d, m=m: d[:, m], dstates)
        (y, states), (dp, dx[:steps, m]) = alone(kind)(params, x[:steps, m], ct)
        results[0][:steps, m] = y
        for result, state in zip(jax.tree.leaves(results[1]), jax.tree.leaves(states), strict=True):
            result[:, m] = state
        dparams = jax.tree.map(np.add, dparams, dp)
    return results, (dparams, dx)


@functools.lru_cache
def in_rows(kind: str) -> tuple[Any, list[int]]:
    """A whole batch in rows, compiled, with the plan as data; and a list of its traces."""
    graph, _ = parts(kind)
    first = kind == "GRU"
    traces: list[int] = []

    @jax.jit
    def run(params: Any, x: Any, plan: RowPlan, cotangents: Any) -> Any:
        traces.append(1)
        results, pullback = jax.vjp(
            lambda p, x: run_rows(nnx.merge(graph, p), x, plan),
            params,
            x.swapaxes(0, 1) if first else x,
        )
        dparams, dx = pullback(cotangents)
        if first:
            results, dx = (results[0].swapaxes(0, 1), results[1]), dx.swapaxes(0, 1)
        return results, (dparams, dx)

    return run, traces


@pytest.mark.parametrize("kind", list(MAKE))
def test_results_and_gradients_are_those_of_each_sequence_alone(kind: str) -> None:
    """With NaN in the padding, and without being compiled again for other lengths."""
    run, traces = in_rows(kind)
    _, params = parts(kind)
    for lengths in BATCHES:
        x, cotangents = draw(kind, lengths)
        got = run(params, x, plan_rows(lengths, **SHAPE), cotangents)
        close(got, expected(kind, lengths))
    assert len(traces) == 1
    assert run._cache_size() == 1


def test_as_by_the_masks_of_lengths() -> None:
    """`row_lengths` given beside the resets, and the layer's own `lengths`, change no number."""
    layer = MAKE["LSTM"](rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    lengths = BATCHES[0]
    x, _ = draw("LSTM", lengths)
    plan = plan_rows(lengths, **SHAPE)
    output, last = run_rows(layer, x, plan)
    close((output, last), layer(x, lengths=np.array(lengths)))
    data = pack_rows(x, plan)
    y, states = layer(data, lengths=plan.row_lengths, resets=plan.resets, return_all_states=True)
    close(
        (unpack_rows(y, plan, steps=T), final_states(states, plan, bidirectional=True)),
        (output, last),
    )
    assert not np.asarray(y)[~plan.filled].any()
    only, none = run_rows(layer, x, plan, return_states=False)
    close(only, output)
    assert none is None


def test_a_list_of_sequences_and_lengths_instead_of_a_plan() -> None:
    layer = jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    lengths = BATCHES[0]
    x, _ = draw("RNN", lengths)
    pieces = [x[:steps, m] for m, steps in enumerate(lengths)]
    output, last = run_rows(layer, pieces, plan_rows(lengths))
    assert output.shape == (5, 6, 4)
    again, last_again = run_rows(layer, x, jnp.array(lengths))
    close((output, last), (again[:5], last_again))
    gradient = jax.grad(lambda pieces: run_rows(layer, pieces, lengths)[0].sum())(pieces)
    dx = jax.grad(lambda x: run_rows(layer, x, lengths)[0].sum())(x)
    close(gradient, [dx[:steps, m] for m, steps in enumerate(lengths)])
    assert not np.asarray(dx)[np.isnan(x)].any()


def test_any_dtype_and_any_features_come_back() -> None:
    lengths = np.array([2, 0, 4, 1])
    plan, valid = plan_rows(lengths), np.arange(4)[:, None] < lengths
    for values in (
        np.arange(1, 17).reshape(4, 4),
        np.arange(1, 97, dtype=np.float32).reshape(4, 4, 2, 3),
        np.ones((4, 4, 1), bool),
        jnp.arange(1, 17).reshape(4, 4).astype(jnp.bfloat16),
    ):
        values = jnp.asarray(values)
        mask = valid.reshape(valid.shape + (1,) * (values.ndim - 2))
        data = pack_rows(values, plan)
        assert data.dtype == values.dtype
        assert data.shape == plan.sequence.shape + values.shape[2:]
        assert not np.asarray(data, float)[~plan.filled].any()
        whole = unpack_rows(data, plan)
        np.testing.assert_array_equal(whole, jnp.where(mask, values, jnp.zeros_like(values)))
        swapped = pack_rows(values.swapaxes(0, 1), plan, batch_first=True)
        np.testing.assert_array_equal(swapped.swapaxes(0, 1), data)
        back = unpack_rows(swapped, plan, steps=5, batch_first=True)
        np.testing.assert_array_equal(back.swapaxes(0, 1)[:4], whole)
        assert back.shape[1] == 5


def test_plans_are_data_to_every_transformation() -> None:
    """`vmap` over batches with plans of their own, under `jit`, and forward mode."""
    graph, params = parts("RNN")
    plans = [plan_rows(lengths, **SHAPE) for lengths in BATCHES]
    xs = [np.nan_to_num(draw("RNN", lengths)[0]) for lengths in BATCHES]
    call = lambda x, plan: run_rows(nnx.merge(graph, params), x, plan)  # noqa: E731
    both = jax.jit(jax.vmap(call))(
        np.stack(xs), jax.tree.map(lambda *arrays: np.stack(arrays), *plans)
    )
    for k, (x, plan) in enumerate(zip(xs, plans, strict=True)):
        close(jax.tree.map(lambda a, k=k: a[k], both), call(x, plan))
    constant = jax.tree.map(jnp.asarray, plans[0])  # closed over, as arrays of JAX
    close(jax.jit(lambda x: unpack_rows(pack_rows(x, constant), constant))(xs[0])[:T], xs[0])
    along = jax.jvp(lambda x: pack_rows(x, plans[0]), (xs[0],), (2 * xs[0],))[1]
    close(along, 2 * pack_rows(xs[0], plans[0]))


def check_plan(plan: RowPlan, lengths: np.ndarray) -> None:
    """Every step has one cell, those of a sequence follow each other, and resets stand between."""
    seen = np.zeros((len(lengths), max(1, lengths.max())), int)
    for m, steps in enumerate(lengths):
        cells = slice(plan.first[m], plan.first[m] + steps), plan.row[m]
        assert (plan.sequence[cells] == m).all()
        assert plan.step[cells].tolist() == list(range(steps))
        seen[m, :steps] += 1
    assert plan.filled.sum() == lengths.sum() == seen.sum()
    begins = np.ones_like(plan.resets)
    begins[1:] = plan.sequence[1:] != plan.sequence[:-1]
    begins[0] = True
    np.testing.assert_array_equal(plan.resets, begins)
    np.testing.assert_array_equal(plan.filled.sum(0), plan.row_lengths)


def fewest_rows(lengths: np.ndarray, S: int) -> int:
    """A bound from below (Martello, Toth): what is longer than half a row needs one of its own."""
    best = 0
    for least in range(S // 2 + 1):
        alone = lengths > S - least
        large = (lengths > S / 2) & ~alone
        small = lengths[(lengths <= S / 2) & (lengths >= least)].sum()
        room = large.sum() * S - lengths[large].sum()
        best = max(best, alone.sum() + large.sum() + max(0, math.ceil((small - room) / S)))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_plans_are_right_and_near_the_best(seed: int) -> None:
    random = np.random.RandomState(seed)
    for count in (1, 5, 64, 500):
        uniform = random.randint(0, 101, count)
        skewed = np.clip(random.lognormal(3.0, 0.8, count).astype(int), 1, 100)
        for lengths in (uniform, skewed):
            plan = plan_rows(lengths, row_length=100)
            check_plan(plan, lengths)
            assert plan.sequence.shape[1] <= 11 / 9 * max(1, fewest_rows(lengths, 100)) + 1
            free = plan_rows(lengths)
            check_plan(free, lengths)
            longest = max(1, lengths.max())
            least = longest if longest <= 64 else math.ceil(longest / 4) * 4
            assert least <= free.sequence.shape[0] <= max(longest * 9 / 8, least)
            assert free.sequence.size <= plan_rows(lengths, row_length=least).sequence.size
            few = plan_rows(lengths, rows=3)
            check_plan(few, lengths)
            assert few.sequence.shape[1] == 3
        # Many short sequences leave next to nothing unfilled.
        short = uniform % 31
        needed = plan_rows(short, row_length=100).sequence.shape[1]
        assert needed <= max(1, math.ceil(short.sum() / 100)) + 1


def test_a_row_count_just_above_eight_becomes_eight() -> None:
    lengths = [100] * 7 + [40, 40, 21]  # 9 rows of 100 steps, or 8 of 101
    assert plan_rows(lengths, row_length=100).sequence.shape == (100, 9)
    assert plan_rows(lengths, row_length=101).sequence.shape == (101, 8)
    assert plan_rows(lengths).sequence.shape == (104, 8)


def test_a_hundred_thousand_sequences_are_planned_in_seconds() -> None:
    lengths = np.random.RandomState(0).randint(1, 101, 100_000)
    start = time.perf_counter()
    plan = plan_rows(lengths, row_length=100)
    assert time.perf_counter() - start < 20  # 0.2; comparing each with all rows takes an hour
    assert plan.sequence.shape[1] <= 1.01 * lengths.sum() / 100


def test_only_empty_sequences() -> None:
    plan = plan_rows([0, 0])
    assert plan.sequence.tolist() == [[-1]]
    output, last = run_rows(jaxrnn.RNN(3, 4, rngs=nnx.Rngs(0)), jnp.ones((2, 2, 3), "f"), plan)
    assert not output.any()
    assert not last.any()
    assert output.shape == (2, 2, 4)


@pytest.mark.parametrize(
    ("lengths", "options", "error", "words"),
    [
        ([3, 4], {"row_length": 4, "rows": 1}, ValueError, "7 steps in all, need 2 rows of 4"),
        ([3, 9], {"row_length": 8}, ValueError, "at least 9, the longest sequence, got 8"),
        ([3], {"rows": 0}, ValueError, "rows should be at least 1, got 0"),
        ([3, -1], {}, ValueError, "at least 0, got -1"),
        ([], {}, ValueError, "M at least 1, got shape"),
        ([[3]], {}, ValueError, r"got shape \(1, 1\)"),
        ([3.0], {}, TypeError, "integers, got float64"),
        ([3], {"rows": 2.5}, TypeError, "'float' object"),
    ],
)
def test_lengths_that_can_not_be_planned(
    lengths: Any, options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan_rows(lengths, **options)


def test_traced_lengths_are_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda lengths: plan_rows(lengths).resets)(jnp.array([1, 2]))


def test_arrays_that_do_not_fit_the_plan() -> None:
    plan = plan_rows([2, 3])
    for words, call in {
        "Expected 2, got 3": lambda: pack_rows(np.ones((3, 3)), plan),
        r"shape \(4,\)": lambda: pack_rows(np.ones(4), plan),
        "x has 2 steps, fewer than a sequence of the plan: 3": lambda: pack_rows(
            np.ones((2, 2)), plan
        ),
        "Expected 2, got 1": lambda: pack_rows([np.ones(2)], plan),
        "sequence 1 has 2 steps, and 3 in the plan": lambda: pack_rows([np.ones(2)] * 2, plan),
        "same features": lambda: pack_rows([np.ones(2), np.ones((3, 1))], plan),
        r"Expected \(3, 2\), got \(2, 2\)": lambda: unpack_rows(jnp.ones((2, 2)), plan),
        "should have steps and rows": lambda: unpack_rows(jnp.ones(2), plan),
        "the result has 1 steps": lambda: unpack_rows(jnp.ones((3, 2)), plan, steps=1),
        r"return_all_states=True\)": lambda: final_states(jnp.ones((1, 2, 4)), plan),
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert isinstance(caught.value, RuntimeError)
