"""Heads equal a linear layer on explicit outputs of any layer; their losses; their errors."""

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
from jaxrnn import cells, packing
from jaxrnn.layers.heads import (
    CharacterModel,
    Classifier,
    ManyToMany,
    ManyToOne,
    OneToMany,
    OneToOne,
    Regressor,
)
from jaxrnn.layers.recurrent import Recurrent

N, T, D, H, K = 3, 5, 3, 4, 2
LENGTHS = np.array([5, 0, 3])
RANDOM = np.random.RandomState(0)
X = RANDOM.uniform(-1, 1, (N, T, D))  # NumPy, since indexing it compiles nothing

close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)


@dataclasses.dataclass(frozen=True)
class Light(cells.Cell):
    """A user-defined cell: a gate, a candidate, one state."""

    gates = ("f", "n")

    def step(self, z: Any, state: Any) -> Any:
        (h,), (f, n) = state, self.split_gates(z)
        f = jax.nn.sigmoid(f)
        return ((1 - f) * h + f * jnp.tanh(n),)


def make_layer(kind: str) -> Any:
    """Return a layer in float64."""
    rngs = nnx.Rngs(0)
    options: dict[str, Any] = {"param_dtype": jnp.float64, "rngs": rngs}
    if kind == "rnn":
        return jaxrnn.RNN(D, H, **options)
    if kind == "lstm":
        return jaxrnn.LSTM(D, H, 2, bidirectional=True, proj_size=2, batch_first=True, **options)
    if kind == "gru":
        return jaxrnn.GRU(D, H, 2, batch_first=True, **options)
    return Recurrent(Light(), D, H, 1, True, False, 0.0, True, **options)


KINDS = ("rnn", "lstm", "gru", "custom")


@functools.cache
def make_head(head: Any, kind: str) -> Any:
    return head(make_layer(kind), K, rngs=nnx.Rngs(1))


def inputs(rnn: Any, x: Any = X) -> Any:
    """Return (N, T, ...) with the axes of the layer, or the reverse."""
    return x if rnn.batch_first else x.swapaxes(0, 1)


def h_of(last: Any) -> jax.Array:
    return last[0] if isinstance(last, tuple) else last


@pytest.mark.parametrize("kind", KINDS)
def test_many_to_one_reads_the_final_state_of_each_direction(kind: str) -> None:
    model = make_head(ManyToOne, kind)
    rnn = model.rnn
    dirty = np.where((np.arange(T)[None] < LENGTHS[:, None])[..., None], X, np.nan)
    y, last = model(inputs(rnn, dirty), lengths=LENGTHS)
    assert y.shape == (N, K)
    output, h_n = rnn(inputs(rnn), lengths=LENGTHS)
    output = np.asarray(inputs(rnn, output))  # (N, T, F*R)
    size = rnn.proj_size or H
    for index, length in enumerate(LENGTHS):
        ends = [output[index, length - 1, :size], output[index, 0, size:]]
        end = np.concatenate(ends) if length else np.zeros(output.shape[-1])
        close(y[index], model.fc(end))
    jax.tree.map(close, last, h_n)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_many_to_one_of_unbatched_and_packed_input(kind: str) -> None:
    model = make_head(ManyToOne, kind)
    whole, _ = model(inputs(model.rnn), lengths=np.array([5, 2, 3]))
    alone, _ = model(X[1, :2])
    close(alone, whole[1])
    packed = packing.pack_padded_sequence(inputs(model.rnn), [5, 2, 3], True, False)
    close(model(packed)[0], whole)


def test_many_to_one_with_resets_reads_the_outer_pieces() -> None:
    model = make_head(ManyToOne, "lstm")
    resets = np.arange(T)[None].repeat(N, 0) == 3
    y, _ = model(X, resets=resets)
    first, last = (h_of(model.rnn(piece)[1]) for piece in (X[:, :3], X[:, 3:]))
    close(y, model.fc(np.concatenate([last[2], first[3]], -1)))


@pytest.mark.parametrize("kind", KINDS)
def test_many_to_many_is_the_linear_layer_at_valid_steps(kind: str) -> None:
    model = make_head(ManyToMany, kind)
    output, last = model.rnn(inputs(model.rnn), lengths=LENGTHS)
    y, h_n = model(inputs(model.rnn), lengths=LENGTHS)
    valid = inputs(model.rnn, (np.arange(T)[None] < LENGTHS[:, None])[..., None])
    close(y, np.where(valid, model.fc(output), 0))
    jax.tree.map(close, h_n, last)
    short, _ = model(X[2], lengths=jnp.asarray(3))
    close(short, inputs(model.rnn, y)[2])


def test_many_to_many_accepts_a_state_resets_and_packed_input() -> None:
    model = make_head(ManyToMany, "gru")
    first, state = model(X[:, :3])
    second, _ = model(X[:, 3:], state)
    whole, _ = model(X)
    close(np.concatenate([first, second], 1), whole)
    cut, _ = model(X, state, resets=np.arange(T)[None].repeat(N, 0) == 0)
    close(cut, whole)
    packed = packing.pack_padded_sequence(X, [5, 4, 2], batch_first=True)
    unpacked, _ = packing.pad_packed_sequence(model(packed)[0], batch_first=True)
    close(unpacked, model(X, lengths=np.array([5, 4, 2]))[0])


@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_repeated_one_to_one_is_many_to_many(kind: str) -> None:
    model = make_head(OneToOne, kind)
    aligned = make_head(ManyToMany, kind)
    whole = np.asarray(inputs(model.rnn, aligned(inputs(model.rnn))[0]))
    state, alone = None, None
    for t in range(T):
        y, state = model(X[:, t], state)
        one, alone = model(X[1, t], alone)
        close(y, whole[:, t])
        close(one, whole[1, t])
    y = np.asarray(model(X[:, 0], state, resets=np.array([True, False, True]))[0])
    close(y[::2], whole[::2, 0])
    assert (np.abs(y - whole[:, 0])[1] > 1e-6).all()


@functools.cache
def feedback_model(kind: str) -> OneToMany:
    return OneToMany(make_layer(kind), rngs=nnx.Rngs(1))


@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_one_to_many_feeds_outputs_back(kind: str) -> None:
    model = feedback_model(kind)
    graph, params = nnx.split(model)
    step = OneToOne(model.rnn, D, rngs=nnx.Rngs(0))
    step.fc = model.fc
    one_step, step_params = nnx.split(step)

    def compiled(params: Any, x: Any, hx: Any) -> Any:
        y, last = nnx.merge(graph, params)(x, T, hx)
        return (y**2).sum() + last.sum(), (inputs(model.rnn, y), last)

    def looped(params: Any, x: Any, hx: Any) -> Any:
        outputs = []
        for _ in range(T):
            x, hx = nnx.merge(one_step, params)(x, hx)
            outputs.append(x)
        y = jnp.stack(outputs, 1)
        return (y**2).sum() + hx.sum(), (y, hx)

    hx = np.full((model.rnn.num_layers, N, H), 0.1)
    results = [
        jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(p, X[:, 0], hx)
        for f, p in ((compiled, params), (looped, step_params))
    ]
    for got, want in zip(*map(jax.tree.leaves, results), strict=True):
        close(got, want)
    alone, last = model(X[1, 0], T, hx[:, 1])
    (_, (y, h_n)), _ = results[0]
    close(alone, y[1])
    close(last, h_n[:, 1])
    start, _ = model(X[:, 0], 1)  # from zeros
    close(start, model(X[:, 0], 1, jnp.zeros_like(hx))[0])


def test_one_to_many_of_an_lstm_accepts_a_list_of_states() -> None:
    model = OneToMany(
        jaxrnn.LSTM(D, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)
    )
    y, (h_n, c_n) = model(X[:, 0], 2, [jnp.ones((1, N, H)), jnp.zeros((1, N, H))])
    assert (y.shape, h_n.shape, c_n.shape) == ((2, N, D), (1, N, H), (1, N, H))


@pytest.mark.parametrize("kind", ["lstm", "custom"])
def test_one_to_many_without_feedback_repeats_its_input(kind: str) -> None:
    model = OneToMany(make_layer(kind), K, feedback=False, rngs=nnx.Rngs(1))
    y, last = model(X[:, 0], T)
    output, h_n = model.rnn(inputs(model.rnn, np.repeat(X[:, :1], T, axis=1)))
    close(y, model.fc(output))
    jax.tree.map(close, last, h_n)
    close(model(X[1, 0], T)[0], inputs(model.rnn, y)[1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda r: OneToMany(jaxrnn.GRU(3, 4, rngs=r), 2, rngs=r), "`out_features` must be 3"),
        (
            lambda r: OneToMany(jaxrnn.GRU(3, 4, bidirectional=True, rngs=r), rngs=r),
            "unidirectional",
        ),
        (
            lambda r: ManyToOne(jaxrnn.GRU(3, 4, rngs=r), 0, rngs=r),
            "`out_features` must be an integer",
        ),
        (lambda r: OneToMany(jaxrnn.GRU(3, 4, rngs=r), rngs=r)(jnp.ones((2, 3)), 0), "length"),
        (
            lambda r: OneToMany(jaxrnn.GRU(3, 4, rngs=r), rngs=r)(jnp.ones((2, 4), jnp.float32), 2),
            "Expected 3, got 4",
        ),
        (lambda r: OneToOne(jaxrnn.GRU(3, 4, rngs=r), 2, rngs=r)(jnp.ones((2, 2, 3))), "1D or 2D"),
        (
            lambda r: OneToOne(jaxrnn.GRU(3, 4, rngs=r), 2, rngs=r)(jnp.ones(4, jnp.float32)),
            "Expected 3, got 4",
        ),
        (lambda r: Classifier(jaxrnn.GRU(3, 4, rngs=r), 1, rngs=r), "`classes` must be an integer"),
        (
            lambda r: CharacterModel(jaxrnn.GRU(3, 4, rngs=r), "abca", rngs=r),
            "more than once",
        ),
        (lambda r: CharacterModel(jaxrnn.GRU(3, 4, rngs=r), "a", rngs=r), ">= 2, got 1"),
        (lambda r: CharacterModel(jaxrnn.GRU(3, 4, rngs=r), "ab", rngs=r), "input_size of 2"),
    ],
)
def test_a_wrong_argument_names_the_expected_one(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(nnx.Rngs(0))


def test_a_wrong_state_raises_the_error_of_the_layer() -> None:
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(2, 3, 4\), got \[2, 1, 4\]"):
        feedback_model("gru")(X[:, 0], 2, jnp.zeros((2, 1, H)))


def test_a_rollout_refuses_active_dropout() -> None:
    rngs = nnx.Rngs(0)
    model = OneToMany(jaxrnn.GRU(3, 4, 2, dropout=0.5, rngs=rngs), rngs=rngs)
    with pytest.raises(ValueError, match=r"dropout=0.5 is active"):
        model(jnp.ones((2, 3), jnp.float32), 2)
    model.eval()
    assert model(jnp.ones((2, 3), jnp.float32), 2)[0].shape == (2, 2, 3)


def test_the_parameters_have_pytorchs_names() -> None:
    rngs = nnx.Rngs(0)
    layer = jaxrnn.GRU(2, 4, rngs=rngs)
    model = CharacterModel(layer, "abcde", nnx.Embed(5, 2, rngs=rngs), rngs=rngs)
    state = jaxrnn.state_dict(model)
    names = [f"rnn.{n}" for n in layer.parameter_names]
    assert list(state) == [*names, "fc.weight", "fc.bias", "embedding.weight"]
    assert [state[n].shape for n in ("fc.weight", "embedding.weight")] == [(5, 4), (5, 2)]
    changed = {name: array + 1 for name, array in state.items()}
    jaxrnn.load_state_dict(model, changed)
    for name, array in jaxrnn.state_dict(model).items():
        np.testing.assert_array_equal(array, changed[name])


@pytest.mark.parametrize("head", [ManyToMany, ManyToOne, OneToOne, OneToMany])
def test_the_linear_layer_has_the_dtypes_of_the_recurrent_layer(head: Any) -> None:
    rngs = nnx.Rngs(0)
    model = head(jaxrnn.GRU(3, 4, dtype=jnp.bfloat16, rngs=rngs), 3, rngs=rngs)
    assert model.fc.kernel.dtype == jnp.float32
    x = jnp.ones((2, 3) if head in (OneToOne, OneToMany) else (T, 2, 3), jnp.float32)
    hx = jnp.ones((1, 2, 4), jnp.float32)
    y, _ = model(x, 2, hx) if head is OneToMany else model(x, hx)
    assert y.dtype == jnp.bfloat16
    assert make_head(ManyToMany, "gru").fc.kernel.dtype == jnp.float64


def test_losses_are_means() -> None:
    rnn = make_layer("gru")
    regressor = Regressor(rnn, K, rngs=nnx.Rngs(1))
    lengths, target = np.array([5, 2, 3]), RANDOM.uniform(-1, 1, (N, K))
    predicted, _ = regressor(X, lengths=lengths)
    close(regressor.loss(X, target, lengths=lengths), np.mean((predicted - target) ** 2))
    with pytest.raises(ValueError, match=r"Expected \(3, 2\), got \(3,\)"):
        regressor.loss(X, target[:, 0])

    classifier = Classifier(rnn, 4, rngs=nnx.Rngs(1))
    labels = np.array([3, 1, 0])
    odds = classifier.probabilities(X, lengths=lengths)
    close(odds.sum(-1), 1)
    logits, _ = classifier(X, lengths=lengths)
    close(odds, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    loss = classifier.loss(X, labels, lengths=lengths)
    close(loss, -np.log(odds[np.arange(N), labels]).mean())
    close(classifier.loss(X[2, :3], labels[2]), -np.log(odds[2, 0]))
    with pytest.raises(ValueError, match=r"Expected shape \(3,\), got \(3, 1\)"):
        classifier.loss(X, labels[:, None])
    with pytest.raises(TypeError, match="`y` must be integers, got float64"):
        classifier.loss(X, labels + 0.5)


@pytest.mark.parametrize(("batch_first", "embedded"), [(True, False), (False, True)])
def test_a_character_model_predicts_and_generates(batch_first: bool, embedded: bool) -> None:
    options: dict[str, Any] = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    size = 3 if embedded else 4
    layer = jaxrnn.LSTM(size, 8, 2, batch_first=batch_first, **options)
    embedding = nnx.Embed(4, size, **options) if embedded else None
    model = CharacterModel(layer, "helo", embedding, rngs=nnx.Rngs(1))
    model.fc.kernel[...] *= 30  # separates the most likely character from the next
    ids = RANDOM.randint(0, 4, (N, T + 1))
    x, y = (inputs(layer, jnp.asarray(part)) for part in (ids[:, :-1], ids[:, 1:]))

    lengths = np.array([5, 0, 3])
    logits, _ = model(x, lengths=lengths)
    log_odds = np.asarray(jax.nn.log_softmax(inputs(layer, logits)))
    each = -np.take_along_axis(log_odds, ids[:, 1:, None], -1)[..., 0]
    close(model.loss(x, y, lengths=lengths), (each[0].sum() + each[2, :3].sum()) / 8)
    close(model.loss(ids[2, :-1], ids[2, 1:], lengths=jnp.asarray(3)), each[2, :3].mean())

    text = model.generate("hello", 6, temperature=0)
    logits, state = model(jnp.asarray(model.vocabulary.encode("hello")))
    expected = []
    for _ in range(6):
        expected.append(int(logits[-1].argmax()))
        logits, state = model(jnp.array(expected[-1:]), state)
    assert model.vocabulary.decode(expected) == text
    drawn = model.generate("h", 20, key=jax.random.key(0), temperature=100.0)
    assert set(drawn) == set("helo")


def test_a_character_model_refuses_wrong_prompts_and_inputs() -> None:
    rngs = nnx.Rngs(0)
    model = CharacterModel(jaxrnn.GRU(4, 8, 2, dropout=0.5, rngs=rngs), "helo", rngs=rngs)
    with pytest.raises(ValueError, match=r"dropout=0.5 is active"):
        model.generate("he", 2, temperature=0)
    model.eval()
    with pytest.raises(ValueError, match="'y' at position 2"):
        model.generate("hey", 2, temperature=0)
    with pytest.raises(ValueError, match="`prompt` must have at least one character"):
        model.generate("", 2, temperature=0)
    with pytest.raises(ValueError, match="needs a PRNG key"):
        model.generate("he", 2)
    with pytest.raises(TypeError, match="must be integers, got float32"):
        model(jnp.ones((T, N), jnp.float32))
    with pytest.raises(
        ValueError, match=r"must have the shape of x. Expected \(5, 3\), got \(5,\)"
    ):
        model.loss(np.zeros((T, N), int), np.zeros(T, int))


def test_a_character_model_accepts_packed_input() -> None:
    rngs = nnx.Rngs(0)
    model = CharacterModel(jaxrnn.GRU(4, 8, rngs=rngs), "helo", rngs=rngs)
    ids = jnp.asarray(RANDOM.randint(0, 4, (T, N)))
    packed = packing.pack_padded_sequence(ids, [5, 4, 2])
    unpacked, _ = packing.pad_packed_sequence(model(packed)[0])
    np.testing.assert_allclose(unpacked, model(ids, lengths=np.array([5, 4, 2]))[0], atol=1e-6)
