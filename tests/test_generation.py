"""Sampling, beam search and rollouts equal explicit loops, are reproducible and compile once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import generation
from jaxrnn.generation import batch_major, beam_search, generate, rollout, token_step

V, H, N = 5, 4, 2
KEY = jax.random.key(7)
LAYERS: dict[str, Any] = {
    "gru": lambda rngs: jaxrnn.GRU(3, H, rngs=rngs, param_dtype=jnp.float64),
    "lstm": lambda rngs: jaxrnn.LSTM(3, H, 2, batch_first=True, rngs=rngs, param_dtype=jnp.float64),
}


@functools.cache
def parts(name: str) -> tuple[Any, Any, Any]:
    """Return a layer, a head and an embedding."""
    rngs = nnx.Rngs(3)
    layer = LAYERS[name](rngs)
    normal = nnx.initializers.normal(2.0)
    head = nnx.Linear(H, V, kernel_init=normal, rngs=rngs, param_dtype=jnp.float64)
    return layer, head, nnx.Embed(V, 3, rngs=rngs, param_dtype=jnp.float64)


def make(name: str) -> Any:
    layer, head, embed = parts(name)
    return token_step(layer, head, embed=embed)


def log_probs_of(name: str, tokens: Any, first: Any) -> np.ndarray:
    """Return the log-probabilities (N, T) of tokens (N, T) by one call of the layer, from zeros."""
    layer, head, embed = parts(name)
    inputs = jnp.concatenate([jnp.asarray(first)[:, None], tokens[:, :-1]], axis=1)
    x = embed(inputs)
    output, _ = layer(x if layer.batch_first else x.swapaxes(0, 1))
    output = output if layer.batch_first else output.swapaxes(0, 1)
    logs = jax.nn.log_softmax(head(output))
    return np.asarray(jnp.take_along_axis(logs, tokens[..., None], -1)[..., 0])


def table_step(state: Any, token: Any) -> Any:
    """Return logits that depend on the whole prefix, which the state encodes."""
    state = (state * 7 + token + 1) % 1009
    angles = state[:, None] * jnp.array([[1.3, 2.9, 5.1]]) + jnp.array([[0.0, 1.0, 2.0]])
    return 2.0 * jnp.sin(angles), state


START = jnp.array([3, 8])
FIRST = jnp.array([0, 2])


def every_sequence(index: int, length: int, eos: int | None, penalty: float) -> list[Any]:
    """Return all sequences that end in `eos` or have the full length, the best first."""
    sequences = []

    def extend(state: int, token: int, sample: list[int], total: float) -> None:
        state = (state * 7 + token + 1) % 1009  # as `table_step`
        logits = 2.0 * np.sin(state * np.array([1.3, 2.9, 5.1]) + np.array([0.0, 1.0, 2.0]))
        for choice, log in enumerate(logits - np.log(np.exp(logits).sum())):
            sequence, score = [*sample, choice], total + log
            if choice == eos or len(sequence) == length:
                sequences.append((score / ((5 + len(sequence)) / 6) ** penalty, sequence))
            else:
                extend(state, choice, sequence, score)

    extend(int(START[index]), int(FIRST[index]), [], 0.0)
    return sorted(sequences, reverse=True)


@functools.cache
def searched(length: int, beams: int, eos: int | None) -> Any:
    """Return the compiled search over the table, a function of the penalty."""

    def search(penalty: Any) -> generation.Beams:
        return beam_search(
            table_step, START, FIRST, length, beams=beams, eos=eos, length_penalty=penalty
        )

    return jax.jit(search)


def hypotheses(beams: generation.Beams, index: int) -> list[tuple[float, list[int]]]:
    """Return scores and tokens of the hypotheses of an example, without padding."""
    tokens, scores, lengths = (np.asarray(a[index]) for a in beams)
    valid = scores > -np.inf
    assert (lengths[~valid] == 0).all()
    return [(s, t[:n].tolist()) for s, t, n in zip(scores[valid], tokens[valid], lengths[valid])]


@pytest.mark.parametrize("name", LAYERS)
def test_greedy_decoding_selects_the_most_likely_token(name: str) -> None:
    step = make(name)
    first = jnp.array([1, 4])
    sample = generate(step, step.initial_state(N), first, 6, temperature=0)
    state, token = step.initial_state(N), first
    for t in range(6):
        logits, state = step(state, token)
        token = logits.argmax(-1)
        np.testing.assert_array_equal(sample.tokens[:, t], token)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-10), sample.state, state)
    np.testing.assert_allclose(
        sample.log_probs, log_probs_of(name, sample.tokens, first), atol=1e-10
    )
    assert sample.tokens.dtype == sample.lengths.dtype == jnp.int32
    assert sample.lengths.tolist() == [6, 6]


def test_a_prompt_may_be_one_call_of_the_layer() -> None:
    step = make("gru")
    layer, _, embed = parts("gru")
    whole = generate(step, step.initial_state(N), jnp.array([1, 4]), 6, temperature=0)
    prompt = jnp.concatenate([jnp.array([[1], [4]]), whole.tokens[:, :2]], axis=1)
    _, h_n = layer(embed(prompt[:, :-1]).swapaxes(0, 1))
    rest = generate(step, batch_major(h_n), prompt[:, -1], 4, temperature=0)
    np.testing.assert_array_equal(rest.tokens, whole.tokens[:, 2:])
    more = generate(step, rest.state, rest.tokens[:, -1], 4, temperature=0)
    again = generate(step, batch_major(h_n), prompt[:, -1], 8, temperature=0)
    np.testing.assert_array_equal(more.tokens, again.tokens[:, 4:])


def test_a_sample_is_reproducible_and_a_longer_one_extends_a_shorter_one() -> None:
    step = make("gru")
    state, first = step.initial_state(N), jnp.array([1, 1])
    one = generate(step, state, first, 6, key=KEY)
    two = generate(step, state, first, 6, key=KEY)
    other = generate(step, state, first, 6, key=jax.random.key(8))
    longer = generate(step, state, first, 8, key=KEY)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.tokens, longer.tokens[:, :6])
    assert (one.tokens != other.tokens).any()
    assert (one.tokens[0] != one.tokens[1]).any()  # examples draw independently


@pytest.mark.parametrize("top_k", [None, 2])
def test_tokens_have_the_frequencies_of_their_probabilities(top_k: int | None) -> None:
    batch_size, logits = 20_000, np.array([0.3, -1.0, 1.0, 0.0])

    def step(state: Any, token: Any) -> Any:
        return jnp.broadcast_to(jnp.asarray(logits)[None], (len(token), 4)), state

    @jax.jit
    def run(temperature: Any) -> Any:
        return generate(
            step, (), jnp.zeros(batch_size, int), 1, key=KEY, temperature=temperature, top_k=top_k
        )

    for temperature in (0.5, 2.0):
        sample = run(temperature)
        frequencies = np.bincount(sample.tokens[:, 0], minlength=4) / batch_size
        odds = np.exp(logits / temperature)
        if top_k is not None:
            odds[np.argsort(logits)[:-top_k]] = 0
        np.testing.assert_allclose(frequencies, odds / odds.sum(), atol=0.015)
        assert (frequencies[odds == 0] == 0).all()
        # Log-probabilities are those of the network: at temperature 1, of all tokens.
        plain = logits - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(sample.log_probs, plain[sample.tokens], atol=1e-10)


def test_a_traced_temperature_of_zero_and_top_k_of_one_are_greedy() -> None:
    step = make("gru")
    state, first = step.initial_state(N), jnp.array([1, 4])
    greedy = generate(step, state, first, 5, temperature=0.0).tokens
    np.testing.assert_array_equal(generate(step, state, first, 5, key=KEY, top_k=1).tokens, greedy)

    @jax.jit
    def run(temperature: Any) -> Any:
        return generate(step, state, first, 5, key=KEY, temperature=temperature).tokens

    for temperature in ([0.0, 0.0], [-1.0, 0.0], [1e-300, 1e-300]):
        np.testing.assert_array_equal(run(jnp.array(temperature)), greedy)
    mixed = run(jnp.array([0.0, 50.0]))
    np.testing.assert_array_equal(mixed[0], greedy[0])
    assert (mixed[1] != greedy[1]).any()
    np.testing.assert_array_equal(mixed, run(jnp.array([0.0, 50.0])))


def test_after_eos_tokens_are_eos_and_the_state_is_unchanged() -> None:
    script = jnp.array([[1, 3, 0, 2, 4, 1], [2, 2, 1, 1, 0, 3]])  # the tokens of each example
    calls = []

    def step(state: Any, token: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        index = state["index"]
        scripted = jnp.take_along_axis(script, index[:, None] % 6, 1)[:, 0]
        return 9.0 * jax.nn.one_hot(scripted, 5), {"index": index + 1, "consumed": token}

    state = {"index": jnp.zeros(2, int), "consumed": jnp.zeros(2, jnp.int32)}
    run = jax.jit(lambda: generate(step, state, jnp.array([3, 3]), 9, temperature=0, eos=0))
    sample = jax.block_until_ready(run())
    jax.effects_barrier()
    assert sample.tokens.tolist() == [[1, 3, 0, 0, 0, 0, 0, 0, 0], [2, 2, 1, 1, 0, 0, 0, 0, 0]]
    assert sample.lengths.tolist() == [3, 5]
    log = 9 - np.log(np.exp(9) + 4)
    ended = np.arange(9)[None] >= np.array([[3], [5]])
    np.testing.assert_allclose(sample.log_probs, np.where(ended, 0, log), atol=1e-10)
    assert sample.state["index"].tolist() == [3, 5]
    assert sample.state["consumed"].tolist() == [3, 1]  # the token before eos
    assert len(calls) == 5  # the remaining steps are skipped
    none = generate(step, state, jnp.array([0, 0]), 2, temperature=0, eos=0)
    assert none.lengths.tolist() == [2, 2]  # a start symbol does not end a sequence


def test_log_probabilities_have_the_gradient_of_the_layer() -> None:
    """The gradient of REINFORCE, that of the log-probability of the drawn tokens."""
    layer, head, embed = parts("gru")
    graph, params = nnx.split((layer, head, embed))
    first, reward = jnp.array([1, 4]), jnp.array([[0.5], [-2.0]])

    def sampled(params: Any) -> Any:
        layer, head, embed = nnx.merge(graph, params)
        step = token_step(layer, head, embed=embed)
        sample = generate(step, step.initial_state(N), first, 4, key=KEY, eos=0)
        return (reward * sample.log_probs).sum(), sample

    def teacher_forced(params: Any, tokens: Any, valid: Any) -> Any:
        layer, head, embed = nnx.merge(graph, params)
        x = embed(jnp.concatenate([first[:, None], tokens[:, :-1]], axis=1))
        logs = jax.nn.log_softmax(head(layer(x.swapaxes(0, 1))[0].swapaxes(0, 1)))
        logs = jnp.take_along_axis(logs, tokens[..., None], -1)[..., 0]
        return (reward * jnp.where(valid, logs, 0)).sum()

    got, sample = jax.jit(jax.grad(sampled, has_aux=True))(params)
    valid = jnp.arange(4)[None] < sample.lengths[:, None]
    want = jax.jit(jax.grad(teacher_forced))(params, sample.tokens, valid)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10), got, want)


class CountedTraces(nnx.Module):
    """A module that counts how often it is traced."""

    count = 0

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, *arguments: Any) -> Any:
        CountedTraces.count += 1
        return self.module(*arguments)


def test_a_second_call_compiles_nothing_and_uses_current_parameters() -> None:
    layer, head, embed = nnx.clone(parts("gru"))
    counted = CountedTraces(head)
    step = token_step(layer, counted, embed=embed)
    state, first = step.initial_state(N), jnp.array([1, 4])
    before = generate(step, state, first, 5, temperature=0)
    traces = CountedTraces.count
    head.bias[...] = jnp.array([0.0, 99.0, 0, 0, 0])
    again = generate(token_step(layer, counted, embed=embed), state, first, 5, temperature=0)
    assert CountedTraces.count == traces
    assert (again.tokens == 1).all()
    assert (before.tokens != 1).any()
    # A step with a function is traced at each call, with the current parameters.
    loose = token_step(layer, lambda h: head(h), embed=embed)
    np.testing.assert_array_equal(
        generate(loose, state, first, 5, temperature=0).tokens, again.tokens
    )
    head.bias[...] = jnp.array([0.0, 0, 0, 99.0, 0])
    assert (generate(loose, state, first, 5, temperature=0).tokens == 3).all()


def test_one_hot_tokens_and_no_head() -> None:
    layer = jaxrnn.RNN(V, V, rngs=nnx.Rngs(1), param_dtype=jnp.float64)
    step = token_step(layer)
    sample = generate(step, step.initial_state(1), [2], 4, temperature=0).tokens[0].tolist()
    output, _ = layer(jax.nn.one_hot(jnp.array([2, *sample[:-1]]), V, dtype=jnp.float64))
    assert output.argmax(-1).tolist() == sample


@pytest.mark.parametrize(("eos", "length"), [(1, 4), (None, 3)])
def test_an_exhaustive_search_is_exact(eos: int | None, length: int) -> None:
    search = searched(length, 3**length, eos)
    for penalty in (0.0, 0.7, 3.0):
        result = search(penalty)
        for index in range(N):
            want = every_sequence(index, length, eos, penalty)
            got = hypotheses(result, index)
            assert len(got) == len(want)
            np.testing.assert_allclose([s for s, _ in got], [s for s, _ in want], atol=1e-10)
            assert [t for _, t in got] == [t for _, t in want]


@pytest.mark.parametrize("eos", [1, None])
def test_a_beam_of_width_one_is_greedy(eos: int | None) -> None:
    step = make("lstm")
    first = jnp.array([1, 4])
    state = step.initial_state(N)
    greedy = generate(step, state, first, 8, temperature=0, eos=eos)
    result = beam_search(step, state, first, 8, beams=1, eos=eos)
    np.testing.assert_array_equal(result.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(result.lengths[:, 0], greedy.lengths)
    np.testing.assert_allclose(result.scores[:, 0], greedy.log_probs.sum(1), atol=1e-10)


def test_a_narrow_search_returns_existing_sequences_with_their_scores() -> None:
    result = searched(6, 3, 1)(0.6)
    for index in range(N):
        every = {tuple(t): s for s, t in every_sequence(index, 6, 1, 0.6)}
        got = hypotheses(result, index)
        assert len({tuple(t) for _, t in got}) == 3
        np.testing.assert_allclose([s for s, _ in got], [every[tuple(t)] for _, t in got])
        assert [s for s, _ in got] == sorted((s for s, _ in got), reverse=True)
    after = np.arange(6)[None, None] >= np.asarray(result.lengths)[..., None]
    assert (np.asarray(result.tokens)[after] == 1).all()


def test_the_states_of_a_layer_follow_their_hypotheses() -> None:
    step = make("lstm")
    first = jnp.array([1, 4])
    result = beam_search(step, step.initial_state(N), first, 6, beams=3, eos=None)
    for beam in range(3):
        logs = log_probs_of("lstm", result.tokens[:, beam], first)
        np.testing.assert_allclose(result.scores[:, beam], logs.sum(1), atol=1e-10)


def test_a_finished_hypothesis_is_stored_while_others_lead() -> None:
    """Immediate eos has probability 0.3; two tokens lead with 0.35 and fall to 0.12 at best."""
    begin = jnp.log(jnp.array([0.3, 0.35, 0.35]))
    later = jnp.log(jnp.array([1 / 3, 1 / 3, 1 / 3]))

    def step(state: Any, token: Any) -> Any:
        return jnp.where((token == 2)[:, None] & (state == 0)[:, None], begin, later), state + 1

    run = functools.partial(beam_search, step, jnp.array([0]), jnp.array([2]), 4, eos=0)
    result = jax.jit(lambda: run(beams=3))()
    assert result.tokens[0, 0].tolist() == [0, 0, 0, 0]
    assert result.lengths[0, 0] == 1
    np.testing.assert_allclose(jnp.exp(result.scores[0, 0]), 0.3, atol=1e-10)


def test_finished_hypotheses_do_not_replace_active_ones() -> None:
    """The best continuation has 0.9 at each step; each alternative ends at the next step."""
    table = jnp.log(jnp.array([0.06, 0.9, 0.04]))
    away = jnp.log(jnp.array([0.98, 0.01, 0.01]))

    def step(state: Any, token: Any) -> Any:
        main = (token == 1)[:, None]
        logits = jnp.where(main, table[None], away[None])
        last = jnp.where(main & (state >= 6)[:, None], away[None], logits)
        return last, state + 1

    run = functools.partial(beam_search, step, jnp.array([0]), jnp.array([1]), 9, eos=0)
    for beams in (2, 3):
        result = jax.jit(lambda p, b=beams: run(beams=b, length_penalty=p))(0.6)
        assert result.tokens[0, 0].tolist() == [1] * 6 + [0] * 3
        assert result.lengths[0, 0] == 7
        want = (6 * np.log(0.9) + np.log(0.98)) / 2**0.6
        np.testing.assert_allclose(result.scores[0, 0], want, atol=1e-10)


def test_a_search_stops_once_no_active_hypothesis_can_win() -> None:
    calls = []

    def step(state: Any, token: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return jnp.where(state[:, None] == 2, ending[None], going[None]), state + 1

    going, ending = jnp.array([-9.0, 5.0, 0.0]), jnp.array([50.0, 0.0, 0.0])
    state = jnp.zeros(2, int)
    run = functools.partial(beam_search, step, state, FIRST, 30, beams=2, eos=0)
    result = jax.block_until_ready(jax.jit(lambda: run())())
    jax.effects_barrier()
    assert result.lengths.tolist() == [[3, 3], [3, 3]]
    assert len(calls) == 3


def test_a_larger_length_penalty_favours_longer_sequences() -> None:
    search = searched(4, 3**4, 1)
    mean = [np.asarray(search(p).lengths[:, 0]).mean() for p in (0.0, 5.0)]
    assert mean[0] < mean[1]


def test_absent_hypotheses_have_length_zero() -> None:
    def step(state: Any, token: Any) -> Any:
        return jnp.zeros((len(token), 1)), state

    result = beam_search(step, (), jnp.array([0]), 2, beams=3, eos=0)
    assert result.lengths.tolist() == [[1, 0, 0]]
    assert result.scores.tolist() == [[0.0, -np.inf, -np.inf]]


def test_a_rollout_feeds_outputs_back() -> None:
    rngs = nnx.Rngs(0)
    rnn = jaxrnn.LSTM(2, H, batch_first=True, rngs=rngs, param_dtype=jnp.float64)
    head = nnx.Linear(H, 2, rngs=rngs, param_dtype=jnp.float64)
    step = generation.value_step(rnn, head)
    x = jnp.array([[0.3, 0.1], [-0.5, 0.2], [0.9, 0.4]])
    outputs, state = rollout(step, step.initial_state(3), x, 5)
    inputs = jnp.concatenate([x[:, None], outputs[:, :-1]], axis=1)
    output, last = rnn(inputs)
    np.testing.assert_allclose(outputs, head(output), atol=1e-10)
    compare = functools.partial(np.testing.assert_allclose, atol=1e-10)
    jax.tree.map(compare, batch_major(state), last)


def test_a_rollout_of_a_rotation_is_a_sine() -> None:
    """A layer that rotates two features by a fixed angle continues a sine."""
    angle = 2 * np.pi / 16
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rnn = jaxrnn.RNN(2, 2, bias=False, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    small = 1e-6  # tanh is the identity to 1e-12 here
    jaxrnn.load_state_dict(
        rnn, {"weight_ih_l0": rotation * small, "weight_hh_l0": np.zeros((2, 2))}
    )
    step = generation.value_step(rnn, lambda h: h / small)
    run = jax.jit(lambda x: rollout(step, step.initial_state(1), x, 20)[0])
    outputs = run(jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(
        outputs[0, :, 0], np.cos(angle * np.arange(1, 21)), rtol=0, atol=1e-9
    )


STEP = table_step
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no key": (lambda: generate(STEP, START, FIRST, 3), ValueError, "key=jax.random.key"),
    "length": (lambda: generate(STEP, START, FIRST, 0, key=KEY), ValueError, "`length` .* >= 1"),
    "top_k 0": (lambda: generate(STEP, START, FIRST, 3, key=KEY, top_k=0), ValueError, "top_k"),
    "top_k > V": (
        lambda: generate(STEP, START, FIRST, 3, key=KEY, top_k=4),
        ValueError,
        "from 1 to 3, the vocabulary, got 4",
    ),
    "temperature": (
        lambda: generate(STEP, START, FIRST, 3, key=KEY, temperature=-0.5),
        ValueError,
        "0 or greater, got -0.5",
    ),
    "not a number": (
        lambda: generate(STEP, START, FIRST, 3, key=KEY, temperature=float("nan")),
        ValueError,
        "0 or greater, got nan",
    ),
    "temperatures": (
        lambda: generate(STEP, START, FIRST, 3, key=KEY, temperature=[1.0, 1.0, 1.0]),
        RuntimeError,
        r"\(\) or \(2,\), got \(3,\)",
    ),
    "eos": (
        lambda: generate(STEP, START, FIRST, 3, key=KEY, eos=3),
        ValueError,
        "from 0 to 2, got 3",
    ),
    "eos < 0": (
        lambda: beam_search(STEP, START, FIRST, 3, beams=2, eos=-1),
        ValueError,
        "from 0 to 2, got -1",
    ),
    "beams": (lambda: beam_search(STEP, START, FIRST, 3, beams=0, eos=1), ValueError, "beams"),
    "search length": (
        lambda: beam_search(STEP, START, FIRST, 0, beams=1, eos=1),
        ValueError,
        "length",
    ),
    "penalties": (
        lambda: beam_search(STEP, START, FIRST, 3, beams=1, eos=1, length_penalty=[0.0, 1.0]),
        RuntimeError,
        r"must be a number, got shape \(2,\)",
    ),
    "real tokens": (
        lambda: generate(STEP, START, FIRST * 1.0, 3, key=KEY),
        TypeError,
        "integers, got float64",
    ),
    "token shape": (
        lambda: beam_search(STEP, START, FIRST[None], 3, beams=1, eos=1),
        RuntimeError,
        r"\(N,\), got shape \(1, 2\)",
    ),
    "batch of the state": (
        lambda: generate(STEP, jnp.zeros((1, 2, 4)), FIRST, 3, key=KEY),
        RuntimeError,
        "first axis 2, the batch size.*batch_major",
    ),
    "batch of a search": (
        lambda: beam_search(STEP, START[:1], FIRST, 3, beams=2, eos=1),
        RuntimeError,
        "first axis 2, the batch size",
    ),
    "no pair": (
        lambda: generate(lambda s, t: s, START, FIRST, 3, key=KEY),
        RuntimeError,
        r"pair \(output, state\), got int64\[2\]",
    ),
    "other state": (
        lambda: generate(lambda s, t: (jnp.ones((2, 3)), s[:, None]), START, FIRST, 3, key=KEY),
        RuntimeError,
        r"Expected int64\[2\], got int64\[2, 1\]",
    ),
    "logits": (
        lambda: generate(lambda s, t: (jnp.ones(3), s), START, FIRST, 3, key=KEY),
        RuntimeError,
        r"logits \(2, V\) for 2 tokens, got float64\[3\]",
    ),
    "output of a rollout": (
        lambda: rollout(lambda s, x: (x[:, :1], s), (), jnp.ones((2, 3)), 3),
        RuntimeError,
        r"Expected float64 \(2, 3\), got float64 \(2, 1\)",
    ),
    "rollout length": (
        lambda: rollout(lambda s, x: (x, s), (), jnp.ones((2, 3)), 0),
        ValueError,
        "length",
    ),
    "directions": (
        lambda: token_step(jaxrnn.GRU(3, 4, bidirectional=True, rngs=nnx.Rngs(0))),
        ValueError,
        "needs a unidirectional layer",
    ),
    "values, directions": (
        lambda: generation.value_step(jaxrnn.RNN(4, 2, bidirectional=True, rngs=nnx.Rngs(0))),
        ValueError,
        "needs a unidirectional layer",
    ),
    "no size": (lambda: token_step(nnx.Linear(3, 4, rngs=nnx.Rngs(0))), ValueError, "Pass embed="),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_argument_names_the_expected_one(name: str) -> None:
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call()


def test_a_traced_call_is_checked() -> None:
    with pytest.raises(ValueError, match="key=jax"):
        jax.jit(lambda t: generate(STEP, START, FIRST, 3, temperature=t))(0.0)
    with pytest.raises(TypeError, match="integers"):
        jax.jit(lambda t: generate(STEP, START, t, 3, key=KEY))(FIRST * 1.0)


def test_active_dropout_is_refused() -> None:
    layer = jaxrnn.GRU(3, 3, 2, dropout=0.5, rngs=nnx.Rngs(0))
    step = token_step(layer)
    with pytest.raises(ValueError, match=r"dropout=0\.5 is active.*eval"):
        generate(step, step.initial_state(1), [0], 3, temperature=0)
    layer.eval()
    assert generate(step, step.initial_state(1), [0], 3, temperature=0).tokens.shape == (1, 3)
    step = token_step(jaxrnn.GRU(3, 3, recurrent_dropout=0.3, zoneout=0.2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"recurrent_dropout=0\.3, zoneout=0\.2 is active.*eval"):
        generate(step, step.initial_state(1), [0], 3, temperature=0)


def test_rows_first_is_its_own_inverse() -> None:
    states = (jnp.arange(24.0).reshape(2, 3, 4), jnp.arange(6.0).reshape(2, 3, 1))
    back = batch_major(batch_major(states))
    jax.tree.map(np.testing.assert_array_equal, back, states)
    assert batch_major(states)[0].shape == (3, 2, 4)
    assert batch_major(states)[0][1, 0].tolist() == [4.0, 5.0, 6.0, 7.0]
