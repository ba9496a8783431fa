"""Encoder-decoder models equal PyTorch with ragged sources and targets; decoding; errors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.generation import generate
from jaxrnn.layers.attention import Attention
from jaxrnn.layers.heads import cross_entropy
from jaxrnn.layers.seq2seq import Decoder, Encoder, Seq2Seq
from tests import oracle
from tests.seq2seq_oracle import (
    BOS,
    CASES,
    EOS,
    SOURCE_LENGTHS,
    TARGET_LENGTHS,
    V_IN,
    V_OUT,
    Case,
    D,
    H,
    N,
    S,
    T,
    expected,
    tokens,
)
from tests.test_generation import CountedTraces

NAMES = [case.name for case in CASES]
DOT, GENERAL, ADDITIVE = NAMES[1:]
SOURCE, TARGET = tokens()
RAGGED = (SOURCE, TARGET, SOURCE_LENGTHS, TARGET_LENGTHS)


def make(case: Case, dropout: float = 0.0, **options: Any) -> Seq2Seq:
    kind, rngs = getattr(jaxrnn, case.cell), nnx.Rngs(0)
    options |= {"num_layers": case.num_layers, "dropout": dropout, "rngs": rngs}
    options.setdefault("param_dtype", jnp.float64)
    encoder = kind(D, H, bidirectional=case.bidirectional, **options)
    # One of the two is batch-first, which has no effect.
    decoder = kind(D, H, batch_first=True, **options)
    return Seq2Seq(
        Encoder(encoder, V_IN, rngs=rngs),
        Decoder(decoder, V_OUT, case.attention, case.memory_size, rngs=rngs),
        bos=BOS,
        eos=EOS,
        rngs=rngs,
    )


@functools.cache
def model_of(name: str) -> Seq2Seq:
    """Return the model of a case with its weights."""
    (case,) = (case for case in CASES if case.name == name)
    model = make(case)
    shapes = {name: array.shape for name, array in jaxrnn.state_dict(model).items()}
    jaxrnn.load_state_dict(model, case.weights(shapes))
    return model


TRACES: list[str] = []


@functools.cache
def trained(name: str) -> Any:
    """Return a compiled function to loss, logits, attention weights and all gradients."""
    graph, params = nnx.split(model_of(name))

    def loss(params: Any, source: Any, target: Any, lengths: Any, target_lengths: Any) -> Any:
        TRACES.append(name)
        logits, weights = nnx.merge(graph, params)(source, target, lengths, target_lengths)
        return cross_entropy(logits, target, target_lengths), (logits, weights)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def call(*arguments: Any) -> dict[str, np.ndarray]:
        (value, (logits, weights)), grads = run(params, *map(jnp.asarray, arguments))
        results = {"loss": value, "logits": logits}
        if weights is not None:
            results["weights"] = weights
        gradients = jaxrnn.state_dict(nnx.merge(graph, grads))
        results |= {f"grad_{name}": value for name, value in gradients.items()}
        return {name: np.asarray(value) for name, value in results.items()}

    return call


@functools.cache
def results_of(name: str) -> dict[str, np.ndarray]:
    return trained(name)(*RAGGED)


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    compare = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
    jax.tree.map(compare, got, want)


@pytest.fixture(scope="module")
def pytorch_results() -> dict[str, np.ndarray]:
    return expected()


@pytest.mark.parametrize("name", NAMES)
def test_logits_weights_and_gradients_equal_pytorch(name: str, pytorch_results: Any) -> None:
    results = results_of(name) | {"written": free_running(name).astype(float)}
    close(oracle.flatten(results), pytorch_results[name])


@functools.cache
def scheduled(name: str) -> Any:
    """Return a compiled function of teacher-forcing ratio and key to logits and weights."""
    model = model_of(name)

    def run(ratio: Any, key: Any) -> Any:
        return model(SOURCE, TARGET, SOURCE_LENGTHS, teacher_forcing=ratio, key=key)

    return jax.jit(run)


def free_running(name: str) -> np.ndarray:
    """Return the most likely token of each step, which is the next input."""
    return np.asarray(scheduled(name)(0.0, jax.random.key(0))[0].argmax(-1))


@pytest.mark.parametrize("name", NAMES)
def test_padding_has_no_effect(name: str) -> None:
    source = np.where(np.arange(S)[None] < SOURCE_LENGTHS[:, None], SOURCE, -(2**31))
    target = np.where(np.arange(T)[None] < TARGET_LENGTHS[:, None], TARGET, 2**31 - 1)
    results = trained(name)(source, target, SOURCE_LENGTHS, TARGET_LENGTHS)
    jax.tree.map(np.testing.assert_array_equal, results, results_of(name))
    assert (results["logits"][1, 2:] == 0).all()
    if "weights" in results:
        assert (results["weights"][0, :, 3:] == 0).all()
        close(results["weights"][0].sum(-1), np.ones(T))


def test_padding_of_a_source_has_no_effect_on_decoding() -> None:
    source = np.where(np.arange(S)[None] < SOURCE_LENGTHS[:, None], SOURCE, -(2**31))
    greedy = model_of(DOT).greedy
    decoded = greedy(SOURCE, T, SOURCE_LENGTHS)
    jax.tree.map(np.testing.assert_array_equal, greedy(source, T, SOURCE_LENGTHS), decoded)


@pytest.mark.parametrize("name", NAMES)
def test_zero_length_sources_and_targets(name: str) -> None:
    results = trained(name)(SOURCE, TARGET, np.array([3, 5, 0]), np.array([4, 0, 3]))
    assert all(np.isfinite(value).all() for value in results.values())
    close(results["logits"][0], results_of(name)["logits"][0])  # other examples are unchanged
    assert (results["logits"][1] == 0).all()
    if "weights" in results:
        assert (results["weights"][2] == 0).all()
    empty = trained(name)(SOURCE, TARGET, np.zeros(N, int), np.zeros(N, int))
    assert empty["loss"] == 0
    assert all((value == 0).all() for value in empty.values())


def test_an_empty_source_returns_the_initial_state_and_a_zero_context() -> None:
    model = model_of(GENERAL)
    memory, state = jax.jit(model.encode)(SOURCE, jnp.array([3, 5, 0]))
    assert model.bridge is not None
    close(state[:, 2:], model.bridge(model.encoder.rnn.initial_state(1)))
    assert model.decoder.attention is not None
    context, _ = model.decoder.attention(jnp.ones((N, 1, H)), memory)
    assert (context[2] == 0).all()
    assert (context[0] != 0).all()


def test_other_lengths_compile_nothing() -> None:
    name = DOT
    results_of(name)
    before = TRACES.count(name)
    for lengths in ([1, 2, 3], [0, 5, 5]):
        trained(name)(SOURCE, TARGET, np.array(lengths), TARGET_LENGTHS)
    assert TRACES.count(name) == before == 1


def test_without_lengths_every_token_is_valid() -> None:
    model = model_of(DOT)
    full = trained(DOT)(SOURCE, TARGET, np.full(N, S), np.full(N, T))
    close(model.loss(SOURCE, TARGET), full["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_full_teacher_forcing_step_by_step_equals_one_call(name: str) -> None:
    valid = (np.arange(T)[None] < TARGET_LENGTHS[:, None])[..., None]
    logits, weights = scheduled(name)(1.0, jax.random.key(0))
    close(np.where(valid, logits, 0), results_of(name)["logits"])
    if weights is not None:
        close(np.where(valid, weights, 0), results_of(name)["weights"])


def test_scheduled_sampling_feeds_the_target_or_the_prediction() -> None:
    model, run = model_of(DOT), scheduled(DOT)
    key = jax.random.key(3)
    half, _ = run(0.5, key)
    jax.tree.map(np.testing.assert_array_equal, run(0.5, key)[0], half)
    assert any((run(0.5, jax.random.key(i))[0] != half).any() for i in range(4))
    # Step by step: each input is the target or the most likely token, as drawn.
    forced = np.asarray(jax.random.bernoulli(key, 0.5, (T, N)))
    assert 0 < forced[1:].sum() < forced[1:].size
    memory, state = model.encode(SOURCE, SOURCE_LENGTHS)
    token = np.full(N, BOS)
    for t in range(T):
        logits, state, _ = model.decoder(token[:, None], state, memory)
        close(half[:, t], logits[:, 0])
        if t + 1 < T:
            token = np.where(forced[t + 1], TARGET[:, t], logits[:, 0].argmax(-1))


@pytest.mark.parametrize("name", [DOT, ADDITIVE])
def test_no_teacher_forcing_is_greedy_decoding(name: str) -> None:
    predicted = free_running(name)
    decoded = model_of(name).greedy(SOURCE, T, SOURCE_LENGTHS)
    ended = np.arange(T)[None] >= np.asarray(decoded.lengths)[:, None]
    np.testing.assert_array_equal(decoded.tokens, np.where(ended, EOS, predicted))


def test_a_loop_over_steps_has_the_gradient_of_one_call() -> None:
    """With equal inputs, since the choice of a token has no gradient."""
    graph, params = nnx.split(model_of(DOT))

    @jax.jit
    def grad(ratio: Any, target: Any, target_lengths: Any) -> Any:
        def loss(params: Any) -> Any:
            model, key = nnx.merge(graph, params), jax.random.key(0)
            lengths = (SOURCE_LENGTHS, target_lengths)
            return model.loss(SOURCE, target, *lengths, teacher_forcing=ratio, key=key)

        return jax.grad(loss)(params)

    garbage = np.where(np.arange(T)[None] < TARGET_LENGTHS[:, None], TARGET, -(2**31))
    for ratio, target, lengths, want in (
        (1.0, garbage, TARGET_LENGTHS, results_of(DOT)),
        (0.0, free_running(DOT), np.full(N, T), None),
    ):
        want = trained(DOT)(SOURCE, target, SOURCE_LENGTHS, lengths) if want is None else want
        got = jaxrnn.state_dict(nnx.merge(graph, grad(ratio, target, lengths)))
        close(got, {name: want[f"grad_{name}"] for name in got})


def test_the_loss_is_the_mean_over_valid_tokens() -> None:
    logits = np.random.RandomState(0).normal(size=(N, T, 7))
    valid = np.arange(T)[None] < TARGET_LENGTHS[:, None]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_target = np.take_along_axis(probabilities, TARGET[..., None], -1)[..., 0]
    logits[~valid] = np.nan
    value, grad = jax.value_and_grad(cross_entropy)(jnp.asarray(logits), TARGET, TARGET_LENGTHS)
    close(value, -np.log(of_target[valid]).mean())
    gradient = (probabilities - np.eye(7)[TARGET]) / valid.sum()
    close(grad, np.where(valid[..., None], gradient, 0))
    assert cross_entropy(jnp.zeros((N, T, 7)), TARGET, np.zeros(N, int)) == 0


@pytest.mark.parametrize("name", [DOT, ADDITIVE])
def test_a_beam_of_width_one_is_greedy_decoding(name: str) -> None:
    model = model_of(name)
    greedy = model.greedy(SOURCE, T, SOURCE_LENGTHS)
    result = model.beam(SOURCE, T, SOURCE_LENGTHS, beams=1)
    np.testing.assert_array_equal(result.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(result.lengths[:, 0], greedy.lengths)


@pytest.mark.parametrize("name", [DOT, GENERAL])
def test_the_score_of_a_hypothesis_is_its_log_probability(name: str) -> None:
    """Each beam has a state, and all beams of an example share its memory."""
    model, beams = model_of(name), 3
    result = model.beam(SOURCE, T, SOURCE_LENGTHS, beams=beams)
    for beam in range(beams):
        tokens, lengths = (np.asarray(a[:, beam], int) for a in (result.tokens, result.lengths))
        logits = trained(name)(SOURCE, tokens, SOURCE_LENGTHS, lengths)["logits"]
        logs = jax.nn.log_softmax(logits)
        logs = jnp.take_along_axis(logs, tokens[..., None], -1)[..., 0]
        valid = jnp.arange(T)[None] < lengths[:, None]
        close(jnp.where(valid, logs, 0).sum(1), result.scores[:, beam])


def test_samples_depend_on_the_key_and_equal_generate() -> None:
    model, key = model_of(DOT), jax.random.key(2)
    sample = functools.partial(model.sample, SOURCE, T, SOURCE_LENGTHS)
    one = sample(key=key, temperature=2.0)
    jax.tree.map(np.testing.assert_array_equal, sample(key=key, temperature=2.0), one)
    assert any((sample(key=jax.random.key(i)).tokens != one.tokens).any() for i in range(4))

    @jax.jit
    def generated(key: Any) -> Any:
        step, state = model.step(SOURCE, SOURCE_LENGTHS)
        return generate(step, state, jnp.full(N, BOS), T, key=key, temperature=2.0, eos=EOS)

    close(one, generated(key))
    with pytest.raises(ValueError, match="key=jax"):
        sample()


def test_decoding_compiles_once_and_uses_current_parameters() -> None:
    model = nnx.clone(model_of(DOT))
    decoder: Any = model.decoder
    decoder.fc = counted = CountedTraces(decoder.fc)
    model.greedy(SOURCE, T, SOURCE_LENGTHS)
    traces = CountedTraces.count
    counted.module.bias[...] = jnp.array([0.0, 0, 0, 0, 0, 0, 99.0])
    decoded = model.greedy(SOURCE, T, SOURCE_LENGTHS[::-1].copy())
    assert (decoded.tokens == 6).all()
    assert CountedTraces.count == traces


def test_padding_of_a_memory_has_no_effect() -> None:
    attention = Attention("additive", 3, 2, 5, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    graph, params = nnx.split(attention)
    assert jaxrnn.state_dict(attention)["memory.weight"].shape == (5, 2)

    @jax.jit
    def run(params: Any, memory: Any, queries: Any) -> Any:
        def loss(params: Any, memory: Any, queries: Any) -> Any:
            attention = nnx.merge(graph, params)
            prepared = attention.prepare(memory, jnp.array([2, 0]))
            return (attention(queries, prepared)[0] ** 2).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(params, memory, queries)

    memory = np.random.RandomState(0).normal(size=(2, 3, 2))
    queries = np.random.RandomState(1).normal(size=(4, 1, 3))  # two beams per example
    garbage = memory.copy()
    garbage[0, 2], garbage[1] = np.nan, np.inf
    value, grads = run(params, garbage, queries)
    jax.tree.map(np.testing.assert_array_equal, (value, grads), run(params, memory, queries))
    assert (grads[1][0, :2] != 0).all()
    assert (grads[1][0, 2] == 0).all()


def test_names_of_parameters_are_pytorchs() -> None:
    four = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    assert set(jaxrnn.state_dict(model_of(ADDITIVE))) == {
        "encoder.embedding.weight",
        *(f"encoder.rnn.{name}_l0{suffix}" for name in four for suffix in ("", "_reverse")),
        *(f"bridge.{state}.{name}" for state in "hc" for name in ("weight", "bias")),
        "decoder.embedding.weight",
        *(f"decoder.rnn.{name}_l0" for name in four),
        "decoder.attention.memory.weight",
        "decoder.attention.query.weight",
        "decoder.attention.query.bias",
        "decoder.attention.score.weight",
        *(f"decoder.{part}.{name}" for part in ("combine", "fc") for name in ("weight", "bias")),
    }


@pytest.mark.parametrize("name", NAMES)
def test_parameters_survive_a_round_trip(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    other = make(case)
    jaxrnn.load_state_dict(other, jaxrnn.state_dict(model_of(name)))
    jax.tree.map(
        np.testing.assert_array_equal,
        jaxrnn.state_dict(nnx.clone(other)),
        jaxrnn.state_dict(model_of(name)),
    )


def test_parameters_are_initialised_as_in_pytorch() -> None:
    rngs = nnx.Rngs(0)
    weights = jaxrnn.state_dict(Decoder(jaxrnn.RNN(50, 64, rngs=rngs), 400, rngs=rngs))
    embedding = weights["embedding.weight"]
    assert abs(embedding.std() - 1) < 0.02
    assert np.abs(embedding).max() > 3
    assert 0.97 / 8 < np.abs(weights["fc.weight"]).max() <= 1 / 8  # 1 / sqrt(64)
    assert 0.9 / 8 < np.abs(weights["fc.bias"]).max() <= 1 / 8


def test_dropout_draws_from_the_streams_and_is_off_in_evaluation() -> None:
    model = make(Case("RNN", 2, False, None), dropout=0.5)
    key = jax.random.key(0)
    run = jax.jit(lambda key: model(*RAGGED, rngs=key)[0])
    one = run(key)
    np.testing.assert_array_equal(one, run(key))
    assert (one != run(jax.random.key(1))).any()
    # Encoder and decoder draw different masks from one key.
    memory, state = model.encode(SOURCE, SOURCE_LENGTHS, rngs=key)
    inputs = np.concatenate([np.full((N, 1), BOS), TARGET[:, :-1]], axis=1)
    logits, _, _ = model.decoder(inputs, state, memory, TARGET_LENGTHS, rngs=key)
    valid = np.arange(T)[None] < TARGET_LENGTHS[:, None]
    assert (np.asarray(logits)[valid] != np.asarray(one)[valid]).any()
    # In a loop over steps no stream can advance: it provides one key for all steps.
    slow = functools.partial(model, *RAGGED, teacher_forcing=0.0)
    np.testing.assert_array_equal(slow(rngs=key)[0], slow(rngs=key)[0])
    streams = nnx.Rngs(0)
    assert (slow(rngs=streams)[0] != slow(rngs=streams)[0]).any()
    with pytest.raises(ValueError, match="dropout is active"):
        slow()
    with pytest.raises(ValueError, match=r"dropout=0\.5 is active.*eval"):
        model.greedy(SOURCE, 3)
    model.eval()
    assert model.greedy(SOURCE, 3).tokens.shape == (N, 3)


def test_a_mask_for_all_steps_is_refused_in_a_loop_over_steps() -> None:
    model = make(Case("RNN", 1, False, None))
    model.decoder.rnn = jaxrnn.RNN(
        *(model.decoder.rnn.input_size, model.decoder.rnn.hidden_size),
        batch_first=True,
        recurrent_dropout=0.5,
        rngs=nnx.Rngs(0),
    )
    with pytest.raises(ValueError, match=r"recurrent_dropout=0\.5 of the decoder needs one mask"):
        model(*RAGGED, teacher_forcing=0.0, rngs=jax.random.key(0))


def test_low_precision_computes_and_sums_in_float32() -> None:
    model = make(CASES[2], param_dtype=jnp.float32, dtype=jnp.bfloat16)
    jaxrnn.load_state_dict(model, jaxrnn.state_dict(model_of(GENERAL)))
    logits, weights = jax.jit(lambda: model(*RAGGED))()
    assert logits.dtype == jnp.bfloat16
    close(logits.astype(float), results_of(GENERAL)["logits"], 0.05)
    assert weights is not None
    loss, decoded = jax.eval_shape(lambda: (cross_entropy(logits, TARGET), model.greedy(SOURCE, 3)))
    assert weights.dtype == loss.dtype == decoded.log_probs.dtype == jnp.float32


def parts(**options: Any) -> tuple[Any, Any]:
    rngs = nnx.Rngs(0)
    first = jaxrnn.GRU(3, options.pop("hidden", 4), options.pop("layers", 1), rngs=rngs)
    encoder = Encoder(first, 6, rngs=rngs)
    cell = options.pop("cell", jaxrnn.GRU)
    return encoder, Decoder(cell(3, 4, rngs=rngs), 7, options.pop("attention", None), rngs=rngs)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "bos": (lambda m: Seq2Seq(*parts(), bos=7, eos=1), ValueError, "bos` .* 0 to 6, got 7"),
    "eos": (lambda m: Seq2Seq(*parts(), bos=0, eos=-1), ValueError, "eos` .* 0 to 6, got -1"),
    "layers": (lambda m: Seq2Seq(*parts(layers=2), bos=0, eos=1), ValueError, "got 2 and 1"),
    "cells": (
        lambda m: Seq2Seq(*parts(cell=jaxrnn.LSTM), bos=0, eos=1),
        ValueError,
        r"GRU\(3, 4\).*LSTM\(3, 4\)",
    ),
    "bridge": (lambda m: Seq2Seq(*parts(hidden=5), bos=0, eos=1), ValueError, "pass rngs="),
    "memory": (
        lambda m: Seq2Seq(*parts(hidden=5, attention="dot"), bos=0, eos=1),
        ValueError,
        "memory_size=5",
    ),
    "directions": (
        lambda m: Decoder(
            jaxrnn.GRU(3, 4, bidirectional=True, rngs=nnx.Rngs(0)), 7, rngs=nnx.Rngs(0)
        ),
        ValueError,
        "must be unidirectional",
    ),
    "attention": (
        lambda m: parts(attention="luong"),
        ValueError,
        "'dot', 'general', 'additive', got 'luong'",
    ),
    "sizes of a dot product": (
        lambda m: Attention("dot", 4, 8, rngs=nnx.Rngs(0)),
        ValueError,
        "got 4 and 8. attention='general'",
    ),
    "vocabulary": (
        lambda m: Encoder(jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0)), 0, rngs=nnx.Rngs(0)),
        ValueError,
        "vocab_size",
    ),
    "real tokens": (lambda m: m(SOURCE * 1.0, TARGET), TypeError, "source` .*got float64"),
    "one sequence": (lambda m: m.encoder(SOURCE[0]), RuntimeError, r"got shape \(5,\)"),
    "unknown token": (lambda m: m.greedy(SOURCE + 6, 3), ValueError, "source` .* 0 to 5, got "),
    "unknown target": (lambda m: m(SOURCE, TARGET - 9), ValueError, "target` .* 0 to 6, got -"),
    "batch sizes": (lambda m: m(SOURCE[:2], TARGET), RuntimeError, r"\(2, 5\) and \(3, 4\)"),
    "lengths": (lambda m: m(SOURCE, TARGET, [6, 1, 1]), ValueError, "0 and 5.*got 6"),
    "target lengths": (
        lambda m: m(SOURCE, TARGET, None, [1, 1]),
        RuntimeError,
        r"of shape \(3,\), got \(2,\)",
    ),
    "probability": (
        lambda m: m(SOURCE, TARGET, teacher_forcing=1.5, key=jax.random.key(0)),
        ValueError,
        "from 0 to 1, got 1.5",
    ),
    "probabilities": (
        lambda m: m(SOURCE, TARGET, teacher_forcing=np.ones(3), key=jax.random.key(0)),
        RuntimeError,
        r"one number, got shape \(3,\)",
    ),
    "no key": (lambda m: m(SOURCE, TARGET, teacher_forcing=0.5), ValueError, "pass key="),
    "no memory": (lambda m: m.decoder(TARGET, None), ValueError, r"decoder\.prepare"),
    "top_k": (
        lambda m: m.sample(SOURCE, 3, key=jax.random.key(0), top_k=8),
        ValueError,
        "from 1 to 7",
    ),
    "beams": (lambda m: m.beam(SOURCE, 3, beams=0), ValueError, "beams"),
    "length": (lambda m: m.greedy(SOURCE, 0), ValueError, "length"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_argument_names_the_expected_one(name: str) -> None:
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call(model_of(ADDITIVE if name == "directions" else DOT))
