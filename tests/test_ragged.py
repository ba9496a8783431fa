"""Lengths, resets and streaming in the layers.

`test_parity.py` compares lengths with packed sequences of PyTorch.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.sequences.streaming import jit_step, piece_lengths

T, N = 6, 3
LENGTHS = np.array([6, 4, 0])
RESETS = np.zeros((T, N), bool)
RESETS[[0, 2, 3, 5], 0] = True  # first step, last step, and two consecutive steps
RESETS[[1, 4], 1] = True  # one at the first step of the padding
RESETS[[0, 3], 2] = True

MAKE: dict[str, Any] = {
    "RNN": functools.partial(jaxrnn.RNN, 3, 4, 2, bidirectional=True),
    "LSTM": functools.partial(jaxrnn.LSTM, 3, 4, 2, bidirectional=True),
    "LSTM_PROJECTED": functools.partial(jaxrnn.LSTM, 3, 4, 1, bidirectional=True, proj_size=2),
    "LSTM_REMAT": functools.partial(jaxrnn.LSTM, 3, 4, 1, bidirectional=True, remat=True),
    "GRU": functools.partial(jaxrnn.GRU, 3, 4, 2, bidirectional=True),
}
UNIDIRECTIONAL: dict[str, Any] = {
    "RNN": functools.partial(jaxrnn.RNN, 3, 4),
    "LSTM": functools.partial(jaxrnn.LSTM, 3, 4, 2, proj_size=2),
    "GRU": functools.partial(jaxrnn.GRU, 3, 4, 2),
}


def make(kind: str, table: dict[str, Any] = MAKE) -> Any:
    return table[kind](rngs=nnx.Rngs(0), param_dtype=jnp.float64)


def draw(layer: Any, seed: int = 0) -> tuple[np.ndarray, Any]:
    """Draw an input and an initial state as NumPy arrays, whose slices do not compile."""
    random = np.random.RandomState(seed)
    array = lambda shape: random.uniform(-1, 1, shape)  # noqa: E731
    shapes = jax.eval_shape(lambda: layer.initial_state(N))
    return array((T, N, 3)), jax.tree.map(lambda s: array(s.shape), shapes)


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    compare = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
    jax.tree.map(compare, got, want)


def value_and_grads(layer: Any, run: Any) -> Any:
    """Return the results of ``run(layer, x, hx)``, and gradients of weights, input and state."""
    graph, params = nnx.split(layer)

    def loss(params: Any, x: Any, hx: Any) -> Any:
        results = run(nnx.merge(graph, params), x, hx)
        waves = [
            (r * jnp.cos(jnp.arange(r.size)).reshape(r.shape)) for r in jax.tree.leaves(results)
        ]
        return sum(w.sum() for w in waves), results

    (_, results), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        params, *draw(layer)
    )
    return results, grads


def pieces(layer: Any, x: Any, hx: Any) -> Any:
    """Run the pieces of each sequence separately, and concatenate the results."""
    output = jnp.zeros((T, N, layer(x)[0].shape[-1]))
    cuts = [
        [0, *[t for t in range(1, n) if RESETS[t, row]], n]
        for row, n in enumerate(LENGTHS.tolist())
    ]
    where = [(r, a, b) for r, c in enumerate(cuts) for a, b in itertools.pairwise(c) if b > a]
    longest = max(b - a for _, a, b in where)
    step = np.array([[min(a + k, T - 1) for _, a, b in where] for k in range(longest)])
    row = np.array([r for r, _, _ in where])
    reverse = np.arange(jax.tree.leaves(hx)[0].shape[0]) % 2 == 1
    begins = np.array([a == 0 and not RESETS[0, r] for r, a, _ in where])
    ends = np.array([b == LENGTHS[r] for r, _, b in where])
    enters = np.where(reverse[:, None], ends, begins)[:, :, None]  # positions of the initial state
    states = jax.tree.map(lambda s: jnp.where(enters, s[:, row], 0.0), hx)
    lengths = np.array([b - a for _, a, b in where])
    y, last = layer(x[step, row[None]], states, lengths=lengths)
    for k, (r, a, b) in enumerate(where):
        output = output.at[a:b, r].set(y[: b - a, k])
    # The final state is of the last piece, or of the first for the reverse direction.
    leaves = np.where(reverse[:, None], [a == 0 for _, a, _ in where], ends)[:, :, None]

    def back(given: Any, there: Any) -> Any:
        for k, r in enumerate(row):
            given = given.at[:, r].set(jnp.where(leaves[:, k], there[:, k], given[:, r]))
        return given

    return output, jax.tree.map(back, hx, last)


@pytest.mark.parametrize("kind", MAKE)
def test_pieces_between_resets_are_independent(kind: str) -> None:
    """Values, states and gradients, with lengths, directions and layers."""
    layer = make(kind)
    whole = value_and_grads(layer, lambda m, x, hx: m(x, hx, lengths=LENGTHS, resets=RESETS))
    close(whole, value_and_grads(layer, pieces))


def test_batch_first() -> None:
    layer = make("GRU")
    x, hx = draw(layer)
    expected = layer(x, hx, lengths=LENGTHS, resets=RESETS)
    layer.batch_first = True
    output, h_n = layer(x.swapaxes(0, 1), hx, lengths=LENGTHS, resets=RESETS.T)
    close((output.swapaxes(0, 1), h_n), expected)


def test_unbatched() -> None:
    layer = make("LSTM")
    x, hx = draw(layer)
    output, last = jax.tree.map(np.asarray, layer(x, hx, lengths=LENGTHS, resets=RESETS))
    alone = layer(x[:, 1], jax.tree.map(lambda s: s[:, 1], hx), lengths=4, resets=RESETS[:, 1])
    close(alone, (output[:, 1], jax.tree.map(lambda s: s[:, 1], last)))


@pytest.mark.parametrize("kind", MAKE)
def test_padding_has_no_effect(kind: str) -> None:
    layer = make(kind)

    def loss(x: Any, hx: Any, layer: Any = layer) -> Any:
        output, states = layer(x, hx, lengths=LENGTHS, resets=RESETS, return_all_states=True)
        return (output**2).sum() + sum((s**3).sum() for s in jax.tree.leaves(states))

    graph, params = nnx.split(layer)
    run = jax.jit(
        jax.value_and_grad(lambda p, x, hx: loss(x, hx, nnx.merge(graph, p)), argnums=(0, 1, 2))
    )
    x, hx = draw(layer)
    padding = np.arange(T)[:, None, None] >= LENGTHS[None, :, None]
    clean = run(params, np.where(padding, 0.0, x), hx)
    empty = (LENGTHS == 0)[:, None]  # whose initial state has no effect
    hx = jax.tree.map(lambda s: np.where(empty, np.nan, s), hx)
    dirty = run(params, np.where(padding, np.nan, x), hx)
    close(dirty, clean, 0)
    np.testing.assert_array_equal(np.where(padding, dirty[1][1], 0.0), np.zeros_like(x))


@pytest.mark.parametrize("kind", MAKE)
def test_every_length(kind: str) -> None:
    """The states after a step are the final states of a run of that length; one compilation."""
    layer = make(kind)
    x, hx = draw(layer)
    traces = []

    @jax.jit
    def run(lengths: Any, resets: Any) -> Any:
        traces.append(1)
        return layer(x, hx, lengths=lengths, resets=resets)

    forward = np.arange(jax.tree.leaves(hx)[0].shape[0]) % 2 == 0
    one = layer.num_layers == 1  # in a stack, upper layers read both directions
    all_states = jax.jit(lambda: layer(x, hx, resets=RESETS, return_all_states=True)[1])
    every = jax.tree.map(np.asarray, all_states())
    for length in range(1, T + 1):
        output, last = jax.tree.map(np.asarray, run(np.full(N, length), RESETS))
        assert not output[length:].any()
        if one:
            at = jax.tree.map(lambda s: s[length - 1][forward], every)  # noqa: B023
            close(jax.tree.map(lambda s: s[forward], last), at)
    close(run(np.zeros(N, int), ~RESETS), (np.zeros_like(output), hx))
    # The final state of the reverse direction is that after the first step.
    close(jax.tree.map(lambda s: s[0][~forward], every), jax.tree.map(lambda s: s[~forward], last))
    assert len(traces) == 1


@pytest.mark.parametrize("kind", UNIDIRECTIONAL)
def test_all_states_equal_those_of_single_steps(kind: str) -> None:
    layer = make(kind, UNIDIRECTIONAL)
    x, hx = draw(layer)
    every = jax.tree.map(np.asarray, layer(x, hx, resets=RESETS, return_all_states=True)[1])
    step, state = jit_step(layer), hx
    for t in range(T):
        _, state = step(x[t], state, RESETS[t])
        close(jax.tree.map(lambda s: s[t], every), state)  # noqa: B023


@pytest.mark.parametrize("kind", UNIDIRECTIONAL)
@pytest.mark.parametrize("sizes", [(1, 5), (2, 4), (3, 3)], ids=str)
def test_pieces_equal_the_whole_sequence(kind: str, sizes: tuple[int, ...]) -> None:
    layer = make(kind, UNIDIRECTIONAL)
    x, state = draw(layer)
    expected = layer(x, state, lengths=LENGTHS, resets=RESETS)
    outputs, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        lengths = piece_lengths(LENGTHS, start, size)
        output, state = layer(x[piece], state, lengths=lengths, resets=RESETS[piece])
        outputs.append(output)
        start += size
    close((np.concatenate(outputs), state), expected)


@pytest.mark.parametrize("kind", UNIDIRECTIONAL)
def test_single_steps_equal_the_layer(kind: str) -> None:
    layer = make(kind, UNIDIRECTIONAL)
    x, hx = draw(layer)
    step = jit_step(layer)
    close(step(x[0])[0], layer(x[:1])[0][0])
    alone = step(x[0, 1], jax.tree.map(lambda s: s[:, 1], hx), RESETS[0, 1])
    output, state = step(x[0], hx, RESETS[0])
    close(alone, (output[1], jax.tree.map(lambda s: s[:, 1], state)))


def test_new_step_after_an_update_does_not_recompile() -> None:
    layer = make("GRU", UNIDIRECTIONAL)
    x, hx = draw(layer)
    old: Any = jit_step(layer)
    before = old(x[0], hx)[0]
    compiled = old.func._cache_size()
    nnx.update(layer, jax.tree.map(lambda a: 2 * a, nnx.state(layer, nnx.Param)))
    new: Any = jit_step(layer)
    after = new(x[0], hx)
    assert new.func is old.func
    assert new.func._cache_size() == compiled
    close(after[0], layer(x[:1], hx)[0][0])
    close(old(x[0], hx)[0], before)
    assert not np.allclose(before, after[0])


def test_jit_step_of_another_module() -> None:
    with pytest.raises(TypeError, match=r"got Linear\. Compile a call of a model with one step"):
        jit_step(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))


def test_jit_step_has_no_dropout_and_one_direction() -> None:
    layer = jaxrnn.GRU(3, 4, 2, dropout=0.9, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    x, _ = draw(layer)
    output = jit_step(layer)(x[0])[0]
    layer.eval()
    close(output, layer(x[:1])[0][0])
    with pytest.raises(ValueError, match="must be unidirectional"):
        jit_step(make("GRU"))


def test_derivatives_with_lengths_and_resets() -> None:
    layer = make("LSTM_PROJECTED")
    x, hx = draw(layer)
    graph, params = nnx.split(layer)

    def loss(params: Any, x: Any, lengths: Any = LENGTHS) -> Any:
        output, states = nnx.merge(graph, params)(x, hx, lengths=lengths, resets=RESETS)
        return (output**2).sum() + sum((s**2).sum() for s in states)

    grad = jax.grad(loss)
    along = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def derivatives(params: Any) -> Any:
        value, forward = jax.jvp(lambda p: loss(p, x), (params,), (along,))
        reverse, product = jax.jvp(lambda p: grad(p, x), (params,), (along,))
        twice = jax.grad(lambda p: sum(map(jnp.sum, jax.tree.leaves(grad(p, x)))))(params)
        return value, forward, reverse, product, twice

    _, forward, reverse, product, twice = derivatives(params)
    close(forward, sum(jax.tree.leaves(jax.tree.map(jnp.vdot, reverse, along))))
    close(product, twice)
    ups = [jax.tree.map(lambda p, e=e: p + e, params) for e in (1e-5, -1e-5)]
    differences = jax.tree.map(lambda a, b: (a - b) / 2e-5, *(derivatives(u)[2] for u in ups))
    close(product, differences, 1e-6)


def test_vmap_over_lengths_and_resets() -> None:
    layer = make("GRU")
    x, hx = draw(layer)
    run = jax.grad(lambda x, n, r: (layer(x, hx, lengths=n, resets=r)[0] ** 2).sum())
    lengths, resets = np.array([[6, 4, 0], [1, 2, 3]]), np.stack([RESETS, ~RESETS])
    mapped = jax.jit(jax.vmap(run, (None, 0, 0)))(x, lengths, resets)
    one = jax.jit(run)
    close(mapped, jnp.stack([one(x, n, r) for n, r in zip(lengths, resets)]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype: str) -> None:
    layer = jaxrnn.LSTM(3, 4, bidirectional=True, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(dtype))
    x = jnp.asarray(draw(layer)[0], dtype)
    output, _ = layer(x, lengths=LENGTHS, resets=RESETS)
    alone, _ = layer(x[1:4, 1:2])  # the second piece of the second sequence
    assert output.dtype == dtype
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(output[1:4, 1:2], alone)
    else:  # matrix products of other sizes sum in another order
        close(output[1:4, 1:2].astype(float), alone.astype(float), 8 * float(jnp.finfo(dtype).eps))
    assert not output[4:, 1].any()


def test_dropout_keeps_padding_zero() -> None:
    layer = jaxrnn.GRU(3, 4, 2, dropout=0.5, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    output, _ = layer(draw(layer)[0], lengths=LENGTHS)
    assert output[:4, 1].all()
    assert not output[4:, 1].any()


GOOD = jnp.zeros((T, N, 3))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"lengths": [6, -1, 7]}, ValueError, "between 0 and 6.*got -1, 7"),
        ({"lengths": jnp.array([7, 1, 1])}, ValueError, "between 0 and 6.*got 7"),
        ({"lengths": [1, 2]}, RuntimeError, r"of shape \(3,\), got \(2,\)"),
        ({"lengths": 3}, ValueError, r"of shape \(3,\), got \(\)"),
        ({"lengths": [1.0, 2.0, 3.0]}, TypeError, "must be integers, got float64"),
        ({"lengths": [True, True, True]}, TypeError, "must be integers, got bool"),
        ({"resets": np.zeros((T, N))}, TypeError, r"must be bool, got float.*astype\(bool\)"),
        ({"resets": np.zeros((N, T), bool)}, ValueError, r"\(6, 3\), got \(3, 6\)"),
        ({"resets": np.zeros((T, N, 3), bool)}, RuntimeError, r"got \(6, 3, 3\)"),
    ],
    ids=str,
)
def test_errors_of_lengths_and_resets(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    layer = make("GRU")
    with pytest.raises(kind, match=words):
        layer(GOOD, **options)


def test_errors_of_unbatched_lengths() -> None:
    layer = make("GRU")
    with pytest.raises(ValueError, match="a scalar for unbatched input"):
        layer(GOOD[:, 0], lengths=[3])
    with pytest.raises(ValueError, match=r"\(6,\), got \(6, 1\)"):
        layer(GOOD[:, 0], resets=np.zeros((T, 1), bool))


def test_traced_lengths_are_clipped() -> None:
    layer = make("GRU")
    x, hx = draw(layer)
    run = jax.jit(lambda lengths: layer(x, hx, lengths=lengths))
    close(run(jnp.array([-3, 9, 6])), run(jnp.array([0, 6, 6])), 0)
