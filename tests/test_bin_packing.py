"""Sequence packing: bins give the results and gradients of separate sequences."""

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
from jaxrnn.sequences.bin_packing import (
    BinAssignment,
    assign_bins,
    final_states,
    pack_bins,
    run_bins,
    unpack_bins,
)

MAKE: dict[str, Any] = {
    "RNN": functools.partial(jaxrnn.RNN, 3, 4, 2),
    "LSTM": functools.partial(jaxrnn.LSTM, 3, 4, 2, bidirectional=True, proj_size=2),
    "GRU": functools.partial(jaxrnn.GRU, 3, 4, 2, bidirectional=True, batch_first=True),
}
SHAPE = {"bin_length": 8, "num_bins": 4}
BATCHES = (
    [3, 5, 0, 3, 5, 3],
    [5, 3, 3, 0, 3, 0],
)  # few lengths: each is compiled separately
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
    """Results and gradients of one unbatched sequence."""
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
def in_bins(kind: str) -> tuple[Any, list[int]]:
    """A compiled run of a batch in bins, with the assignment traced, and a list of its traces."""
    graph, _ = parts(kind)
    first = kind == "GRU"
    traces: list[int] = []

    @jax.jit
    def run(params: Any, x: Any, bins: BinAssignment, cotangents: Any) -> Any:
        traces.append(1)
        results, pullback = jax.vjp(
            lambda p, x: run_bins(nnx.merge(graph, p), x, bins),
            params,
            x.swapaxes(0, 1) if first else x,
        )
        dparams, dx = pullback(cotangents)
        if first:
            results, dx = (results[0].swapaxes(0, 1), results[1]), dx.swapaxes(0, 1)
        return results, (dparams, dx)

    return run, traces


@pytest.mark.parametrize("kind", list(MAKE))
def test_results_and_gradients_equal_those_of_separate_sequences(kind: str) -> None:
    """NaN in the padding has no effect, and new lengths do not recompile."""
    run, traces = in_bins(kind)
    _, params = parts(kind)
    for lengths in BATCHES:
        x, cotangents = draw(kind, lengths)
        got = run(params, x, assign_bins(lengths, **SHAPE), cotangents)
        close(got, expected(kind, lengths))
    assert len(traces) == 1
    assert run._cache_size() == 1


def test_bins_equal_lengths() -> None:
    """The layer with `lengths` and the layer on bins with `bin_lengths` agree."""
    layer = MAKE["LSTM"](rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    lengths = BATCHES[0]
    x, _ = draw("LSTM", lengths)
    bins = assign_bins(lengths, **SHAPE)
    output, last = run_bins(layer, x, bins)
    close((output, last), layer(x, lengths=np.array(lengths)))
    data = pack_bins(x, bins)
    y, states = layer(data, lengths=bins.bin_lengths, resets=bins.resets, return_all_states=True)
    close(
        (unpack_bins(y, bins, steps=T), final_states(states, bins, bidirectional=True)),
        (output, last),
    )
    assert not np.asarray(y)[~bins.valid_mask].any()
    only, none = run_bins(layer, x, bins, return_states=False)
    close(only, output)
    assert none is None


def test_list_of_sequences_and_lengths() -> None:
    layer = jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    lengths = BATCHES[0]
    x, _ = draw("RNN", lengths)
    pieces = [x[:steps, m] for m, steps in enumerate(lengths)]
    output, last = run_bins(layer, pieces, assign_bins(lengths))
    assert output.shape == (5, 6, 4)
    again, last_again = run_bins(layer, x, jnp.array(lengths))
    close((output, last), (again[:5], last_again))
    gradient = jax.grad(lambda pieces: run_bins(layer, pieces, lengths)[0].sum())(pieces)
    dx = jax.grad(lambda x: run_bins(layer, x, lengths)[0].sum())(x)
    close(gradient, [dx[:steps, m] for m, steps in enumerate(lengths)])
    assert not np.asarray(dx)[np.isnan(x)].any()


def test_pack_and_unpack_any_dtype_and_features() -> None:
    lengths = np.array([2, 0, 4, 1])
    bins, valid = assign_bins(lengths), np.arange(4)[:, None] < lengths
    for values in (
        np.arange(1, 17).reshape(4, 4),
        np.arange(1, 97, dtype=np.float32).reshape(4, 4, 2, 3),
        np.ones((4, 4, 1), bool),
        jnp.arange(1, 17).reshape(4, 4).astype(jnp.bfloat16),
    ):
        values = jnp.asarray(values)
        mask = valid.reshape(valid.shape + (1,) * (values.ndim - 2))
        data = pack_bins(values, bins)
        assert data.dtype == values.dtype
        assert data.shape == bins.sequence.shape + values.shape[2:]
        assert not np.asarray(data, float)[~bins.valid_mask].any()
        whole = unpack_bins(data, bins)
        np.testing.assert_array_equal(whole, jnp.where(mask, values, jnp.zeros_like(values)))
        swapped = pack_bins(values.swapaxes(0, 1), bins, batch_first=True)
        np.testing.assert_array_equal(swapped.swapaxes(0, 1), data)
        back = unpack_bins(swapped, bins, steps=5, batch_first=True)
        np.testing.assert_array_equal(back.swapaxes(0, 1)[:4], whole)
        assert back.shape[1] == 5


def test_assignments_are_traced_data() -> None:
    """`vmap` over batches with different assignments, `jit` and forward mode."""
    graph, params = parts("RNN")
    assignments = [assign_bins(lengths, **SHAPE) for lengths in BATCHES]
    xs = [np.nan_to_num(draw("RNN", lengths)[0]) for lengths in BATCHES]
    call = lambda x, bins: run_bins(nnx.merge(graph, params), x, bins)  # noqa: E731
    both = jax.jit(jax.vmap(call))(
        np.stack(xs), jax.tree.map(lambda *arrays: np.stack(arrays), *assignments)
    )
    for k, (x, bins) in enumerate(zip(xs, assignments, strict=True)):
        close(jax.tree.map(lambda a, k=k: a[k], both), call(x, bins))
    constant = jax.tree.map(jnp.asarray, assignments[0])  # closed over, as arrays of JAX
    close(jax.jit(lambda x: unpack_bins(pack_bins(x, constant), constant))(xs[0])[:T], xs[0])
    along = jax.jvp(lambda x: pack_bins(x, assignments[0]), (xs[0],), (2 * xs[0],))[1]
    close(along, 2 * pack_bins(xs[0], assignments[0]))


def check_assignment(bins: BinAssignment, lengths: np.ndarray) -> None:
    """Every step has one position, sequences are contiguous, and resets separate them."""
    seen = np.zeros((len(lengths), max(1, lengths.max())), int)
    for m, steps in enumerate(lengths):
        cells = slice(bins.first_step[m], bins.first_step[m] + steps), bins.bin[m]
        assert (bins.sequence[cells] == m).all()
        assert bins.step[cells].tolist() == list(range(steps))
        seen[m, :steps] += 1
    assert bins.valid_mask.sum() == lengths.sum() == seen.sum()
    begins = np.ones_like(bins.resets)
    begins[1:] = bins.sequence[1:] != bins.sequence[:-1]
    begins[0] = True
    np.testing.assert_array_equal(bins.resets, begins)
    np.testing.assert_array_equal(bins.valid_mask.sum(0), bins.bin_lengths)


def fewest_bins(lengths: np.ndarray, S: int) -> int:
    """Lower bound of Martello and Toth: a sequence longer than half a bin needs a bin to itself."""
    best = 0
    for least in range(S // 2 + 1):
        alone = lengths > S - least
        large = (lengths > S / 2) & ~alone
        small = lengths[(lengths <= S / 2) & (lengths >= least)].sum()
        room = large.sum() * S - lengths[large].sum()
        best = max(best, alone.sum() + large.sum() + max(0, math.ceil((small - room) / S)))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_assignments_are_valid_and_near_optimal(seed: int) -> None:
    random = np.random.RandomState(seed)
    for count in (1, 5, 64, 500):
        uniform = random.randint(0, 101, count)
        skewed = np.clip(random.lognormal(3.0, 0.8, count).astype(int), 1, 100)
        for lengths in (uniform, skewed):
            bins = assign_bins(lengths, bin_length=100)
            check_assignment(bins, lengths)
            assert bins.sequence.shape[1] <= 11 / 9 * max(1, fewest_bins(lengths, 100)) + 1
            free = assign_bins(lengths)
            check_assignment(free, lengths)
            longest = max(1, lengths.max())
            least = longest if longest <= 64 else math.ceil(longest / 4) * 4
            assert least <= free.sequence.shape[0] <= max(longest * 9 / 8, least)
            assert free.sequence.size <= assign_bins(lengths, bin_length=least).sequence.size
            few = assign_bins(lengths, num_bins=3)
            check_assignment(few, lengths)
            assert few.sequence.shape[1] == 3
        # Many short sequences leave almost no padding.
        short = uniform % 31
        needed = assign_bins(short, bin_length=100).sequence.shape[1]
        assert needed <= max(1, math.ceil(short.sum() / 100)) + 1


def test_number_of_bins_is_reduced_to_a_multiple_of_eight() -> None:
    lengths = [100] * 7 + [40, 40, 21]  # 9 bins of 100 steps, or 8 of 101
    assert assign_bins(lengths, bin_length=100).sequence.shape == (100, 9)
    assert assign_bins(lengths, bin_length=101).sequence.shape == (101, 8)
    assert assign_bins(lengths).sequence.shape == (104, 8)


def test_a_hundred_thousand_sequences_take_seconds() -> None:
    lengths = np.random.RandomState(0).randint(1, 101, 100_000)
    start = time.perf_counter()
    bins = assign_bins(lengths, bin_length=100)
    assert time.perf_counter() - start < 20  # 0.2; quadratic search takes an hour
    assert bins.sequence.shape[1] <= 1.01 * lengths.sum() / 100


def test_only_empty_sequences() -> None:
    bins = assign_bins([0, 0])
    assert bins.sequence.tolist() == [[-1]]
    output, last = run_bins(jaxrnn.RNN(3, 4, rngs=nnx.Rngs(0)), jnp.ones((2, 2, 3), "f"), bins)
    assert not output.any()
    assert not last.any()
    assert output.shape == (2, 2, 4)


@pytest.mark.parametrize(
    ("lengths", "options", "error", "words"),
    [
        (
            [3, 4],
            {"bin_length": 4, "num_bins": 1},
            ValueError,
            "at least 2 for 2 sequences of 7 steps",
        ),
        ([3, 9], {"bin_length": 8}, ValueError, "at least 9, the longest sequence, got 8"),
        ([3], {"num_bins": 0}, ValueError, "`num_bins` must be at least 1, got 0"),
        ([3, -1], {}, ValueError, "at least 0, got -1"),
        ([], {}, ValueError, "M at least 1, got shape"),
        ([[3]], {}, ValueError, r"got shape \(1, 1\)"),
        ([3.0], {}, TypeError, "integers, got float64"),
        ([3], {"num_bins": 2.5}, TypeError, "'float' object"),
    ],
)
def test_invalid_arguments(lengths: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        assign_bins(lengths, **options)


def test_traced_lengths_are_refused() -> None:
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda lengths: assign_bins(lengths).resets)(jnp.array([1, 2]))


def test_arrays_that_do_not_fit_the_assignment() -> None:
    bins = assign_bins([2, 3])
    for words, call in {
        "must have 2 sequences, got 3": lambda: pack_bins(np.ones((3, 3)), bins),
        r"shape \(4,\)": lambda: pack_bins(np.ones(4), bins),
        "`x` must have at least 3 steps, the longest sequence, got 2": lambda: pack_bins(
            np.ones((2, 2)), bins
        ),
        "must have 2 sequences, got 1": lambda: pack_bins([np.ones(2)], bins),
        r"lengths \[2, 3\], got \[2, 2\]": lambda: pack_bins([np.ones(2)] * 2, bins),
        "equal trailing axes": lambda: pack_bins([np.ones(2), np.ones((3, 1))], bins),
        r"must be \(3, 2, ...\), got shape \(2, 2\)": lambda: unpack_bins(jnp.ones((2, 2)), bins),
        r"got shape \(2,\)": lambda: unpack_bins(jnp.ones(2), bins),
        "result must have at least 3 steps": lambda: unpack_bins(jnp.ones((3, 2)), bins, steps=1),
        "return_all_states=True": lambda: final_states(jnp.ones((1, 2, 4)), bins),
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert isinstance(caught.value, RuntimeError)
