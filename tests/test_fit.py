"""`fit`: equality with a training loop, history, early stopping and errors."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from jaxrnn import RNN
from jaxrnn.layers.heads import ManyToMany
from jaxrnn.training import EarlyStopping, History, NonFiniteLoss, Progress, fit, train_steps

EXAMPLES, BATCH, STEPS = 10, 4, 8
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adamw(optax.cosine_decay_schedule(0.03, STEPS))
)
SGD = optax.sgd(0.1)
X = np.random.default_rng(0).standard_normal((EXAMPLES, 5, 3))
DATA = {"x": X, "y": X.sum(-1, keepdims=True)}
ALONE = np.arange(1.0, 7.0)


class Net(nnx.Module):
    """Two linear layers with dropout, which compile fast."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(3, 4, param_dtype=jnp.float64, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.last = nnx.Linear(4, 1, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(self.dropout(jnp.tanh(self.first(x))))


def make_net() -> Net:
    return Net(nnx.Rngs(params=0, dropout=5))


def make_rnn() -> ManyToMany:
    """Return two recurrent layers with dropout between them."""
    rngs = nnx.Rngs(params=0, dropout=5)
    rnn = RNN(3, 4, 2, batch_first=True, dropout=0.4, param_dtype=jnp.float64, rngs=rngs)
    model = ManyToMany(rnn, 1, rngs=rngs)
    model.fc = nnx.Linear(4, 1, param_dtype=jnp.float64, rngs=rngs)
    return model


def difference(model: Any, batch: Any) -> Any:
    """Return the error of the predictions."""
    y = model(batch["x"])
    return (y[0] if isinstance(y, tuple) else y) - batch["y"]


def error(model: Any, batch: Any) -> Any:
    """Return a loss and a metric."""
    wrong = difference(model, batch)
    return (wrong**2).mean(), {"largest": jnp.abs(wrong).max()}


def line(w: Any, batch: Any) -> Any:
    """Return the loss of a scalar model."""
    return ((w * batch - 1.0) ** 2).mean()


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(one: Any, other: Any, rtol: float = 1e-12) -> None:
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14)


@functools.partial(jax.jit, static_argnums=0)
def one_step(graph: Any, params: Any, rest: Any, opt_state: Any, batch: Any, key: Any) -> Any:
    """Run a gradient step of a model with one random stream."""
    random, other = rest

    def loss(params: Any) -> Any:
        fresh = jax.tree.map(lambda a: key if a.dtype == key.dtype else a * 0, random)
        return error(nnx.merge(graph, params, fresh, other), batch)

    value, grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def by_hand(model: Any, batches: list[Any], key: Any) -> tuple[Any, Any, Any]:
    """Run the same training as a Python loop."""
    graph, params, *rest = nnx.split(model, nnx.Param, nnx.RngState, ...)
    opt_state, values = OPTIMIZER.init(params), []
    for k, batch in enumerate(batches):
        stream = jax.random.fold_in(jax.random.fold_in(key, k), 0)  # the first of its streams
        params, opt_state, value = one_step(graph, params, rest, opt_state, batch, stream)
        values.append({"loss": value[0], **value[1]})
    return params, opt_state, jax.tree.map(lambda *a: np.stack(a), *values)


def expected_batches(key: int) -> tuple[list[Any], Any]:
    """Return the documented batches and step key of a training."""
    shuffle_key, step_key = jax.random.split(jax.random.key(key))
    orders = [
        jax.random.permutation(jax.random.fold_in(shuffle_key, e), EXAMPLES) for e in range(4)
    ]
    chosen = np.concatenate(orders)[: STEPS * BATCH].reshape(STEPS, BATCH)
    return [{name: a[index] for name, a in DATA.items()} for index in chosen], step_key


OPTIONS: Any = dict(steps=STEPS, batch_size=BATCH, chunk=4, key=3, evaluate_every=4)


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, Net]:
    """Train with validation in two chunks."""
    model = make_net()
    return fit(error, OPTIMIZER, model, DATA, validation=DATA, **OPTIONS), model


def test_fit_equals_a_training_loop(fitted: Any) -> None:
    run, model = fitted
    params, opt_state, values = by_hand(make_net(), *expected_batches(3))
    assert_same(nnx.state(model, nnx.Param), params)
    assert_same(run.opt_state, opt_state)
    assert_same(run.history.train, values)
    assert run.model is model
    assert not run.stopped


def test_fit_equals_a_training_loop_with_recurrent_dropout() -> None:
    model = make_rnn()
    run = fit(error, OPTIMIZER, model, DATA, steps=STEPS, batch_size=BATCH, key=4)
    params, _, values = by_hand(make_rnn(), *expected_batches(4))
    assert_same(nnx.state(model, nnx.Param), params)
    assert_same(run.history.train, values)


def examples_in_order(data: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda a: a[data["order"][index]], data["all"])


@pytest.mark.parametrize("form", ["list", "generator", "take", "arrays"])
def test_all_kinds_of_data_give_the_same_training(form: str) -> None:
    order = np.random.default_rng(1).integers(EXAMPLES, size=(STEPS, BATCH))
    batches: list[Any] = [{name: a[index] for name, a in DATA.items()} for index in order]
    options: Any = {"steps": STEPS, "chunk": 4, "key": 3}
    if form in ("take", "arrays"):
        options |= {"batch_size": BATCH, "shuffle": False}
    if form == "take":
        options |= {"examples": order.size, "take": examples_in_order}
    data: Any = {
        "list": batches[:4],  # restarted at its end
        "generator": (batch for batch in batches),
        "take": {"all": DATA, "order": order.ravel()},
        "arrays": jax.tree.map(lambda *a: np.concatenate(a), *batches),
    }[form]
    model = make_net()
    run = fit(error, OPTIMIZER, model, data, **options)
    used = batches[:4] * 2 if form == "list" else batches
    params, _, values = by_hand(make_net(), used, jax.random.split(jax.random.key(3))[1])
    assert_same(nnx.state(model, nnx.Param), params)
    assert_same(run.history.train, values)


def test_results_do_not_depend_on_the_chunk_size(fitted: Any) -> None:
    run, trained = fitted
    for chunk in (1, 2):
        model = make_net()
        options = OPTIONS | {"chunk": chunk}
        again = fit(error, OPTIMIZER, model, DATA, validation=DATA, **options)
        assert_same(nnx.state(model, nnx.Param), nnx.state(trained, nnx.Param))
        assert_same(again.history, run.history)


def test_a_second_training_is_not_traced_again() -> None:
    traced = []

    def counted(w: Any, batch: Any) -> Any:
        traced.append(1)
        return line(w, batch)

    counts = []
    for key in range(3):
        w = jnp.ones(())
        run = fit(counted, SGD, w, ALONE, steps=30, batch_size=2, chunk=10, key=key)
        counts.append(len(traced))
        assert float(w) == 1.0  # the user's array is not donated
        assert run.history.losses.shape == (30,)
    assert counts[0] == counts[-1]


def test_an_evaluation_is_a_mean_over_examples_without_dropout(fitted: Any) -> None:
    run, model = fitted
    assert run.history.evaluated.tolist() == [4, 8]
    alone = nnx.clone(model)
    alone.eval()
    value, metrics = error(alone, DATA)
    assert_same(run.history.validation["loss"][-1], value)
    # Ten examples in batches of 4, 4 and 2, weighted by their sizes.
    parts = [error(alone, {n: a[i : i + 4] for n, a in DATA.items()})[1] for i in (0, 4, 8)]
    largest = sum(w * p["largest"] for w, p in zip((0.4, 0.4, 0.2), parts))
    assert_same(run.history.validation["largest"][-1], largest)
    assert metrics["largest"] > largest


def test_the_mode_and_the_random_streams_of_the_model_are_unchanged(fitted: Any) -> None:
    _, model = fitted
    assert not model.dropout.deterministic
    before, after = (nnx.state(m, nnx.RngState) for m in (make_net(), model))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a == b).all()


def test_every_example_is_used_once_per_epoch() -> None:
    seen = fit(lambda w, index: -w[index].sum(), optax.sgd(1.0), jnp.zeros(6), np.arange(6),
               epochs=2, batch_size=4, key=1)  # fmt: skip
    assert seen.history.losses.shape == (3,)  # ceil(2 * 6 / 4)
    assert seen.model.tolist() == [2.0] * 6
    apart = [fit(lambda w, i: -w[i].sum(), optax.sgd(1.0), jnp.zeros(6), np.arange(6),
                 steps=1, batch_size=3, key=k).model.tolist() for k in range(6)]  # fmt: skip
    assert len(set(map(tuple, apart))) > 1


def test_full_batches_are_the_default() -> None:
    run = fit(line, SGD, jnp.zeros(()), ALONE, steps=5)
    w = 0.0
    for loss in run.history.losses:
        np.testing.assert_allclose(loss, ((w * ALONE - 1) ** 2).mean(), rtol=1e-12)
        w -= 0.1 * (2 * ALONE * (w * ALONE - 1)).mean()
    np.testing.assert_allclose(run.model, w, rtol=1e-12)


def test_a_carry_passes_between_steps_and_calls() -> None:
    def loss(w: Any, carry: Any, batch: Any) -> Any:
        carry = 0.5 * carry + batch.sum()
        return (w * carry - 1.0) ** 2, (carry, {"carry": carry})

    batches = jnp.arange(12.0).reshape(6, 2) / 10
    run = fit(loss, SGD, jnp.ones(()), list(batches), steps=6, carry=jnp.ones(()), chunk=2)
    whole = train_steps(loss, SGD, jnp.ones(()), batches, carry=jnp.ones(()))
    assert_same(
        (run.model, run.carry, run.history.losses), (whole.params, whole.carry, whole.losses)
    )
    assert_same(run.history.train["carry"], whole.metrics["carry"])


def test_a_loss_receives_the_key_of_its_step() -> None:
    def loss(w: Any, batch: Any, *, key: Any) -> Any:
        return w * batch.sum(), {"drawn": jax.random.uniform(key)}

    run = fit(loss, SGD, jnp.ones(()), ALONE, steps=3, key=jax.random.key(7))
    step_key = jax.random.split(jax.random.key(7))[1]
    drawn = [jax.random.uniform(jax.random.fold_in(step_key, k)) for k in range(3)]
    assert_same(run.history.train["drawn"], np.array(drawn))


def test_other_variables_are_updated_and_wrt_selects_parameters() -> None:
    class Normed(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.fc = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.fc(self.norm(x))

    x = X.reshape(-1, 3).astype(np.float32)
    model, data = Normed(), {"x": x, "y": x[:, :1]}
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    chosen = nnx.All(nnx.Param, nnx.PathContains("fc"))
    fit(error, SGD, model, data, steps=3, wrt=chosen)
    after = nnx.to_pure_dict(nnx.state(model))
    assert (after["norm"]["scale"] == before["norm"]["scale"]).all()
    assert (after["fc"]["kernel"] != before["fc"]["kernel"]).any()
    mean = data["x"].mean(0) * (1 - 0.99**3)  # the momentum of the running mean
    np.testing.assert_allclose(after["norm"]["mean"], mean, rtol=1e-5)


def away_from_one(w: Any, batch: Any) -> Any:
    """Return a loss with constant gradient: each step adds 0.1."""
    return -w + 0.0 * batch.sum()


def test_early_stopping_restores_the_best_parameters() -> None:
    def evaluate(w: Any, target: Any) -> Any:
        return {"distance": (w - target) ** 2, "w": w}

    options: Any = dict(steps=60, evaluate=evaluate, validation=np.float64(1.0), evaluate_every=2)
    stopping = EarlyStopping("distance", patience=3)
    run = fit(away_from_one, SGD, jnp.zeros(()), ALONE, early_stopping=stopping, **options)
    np.testing.assert_allclose(run.model, 1.0)
    assert run.stopped
    assert run.history.evaluated.tolist() == list(range(2, 18, 2))  # the best is at 10
    assert run.history.losses.shape == (16,)
    np.testing.assert_allclose(run.history.validation["w"][-1], 1.6)
    most = EarlyStopping("w", patience=3, mode="max")
    run = fit(away_from_one, SGD, jnp.zeros(()), ALONE, early_stopping=most, **options)
    assert not run.stopped
    np.testing.assert_allclose(run.model, 6.0)


def test_min_delta_and_nan_are_no_improvement() -> None:
    stopping = EarlyStopping("loss", min_delta=0.1)
    assert stopping.better(0.8, than=1.0)
    assert not stopping.better(0.95, than=1.0)
    assert not stopping.better(float("nan"), than=None)


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_non_finite_loss_raises_with_its_step(chunk: int) -> None:
    data = np.where(np.arange(12) == 6, np.nan, 1.0)
    model = make_net()
    start = leaves(nnx.state(model, nnx.Param))

    def loss(model: Any, batch: Any) -> Any:
        return (model(jnp.ones((1, 3))) ** 2).sum() * batch.sum()

    with pytest.raises(NonFiniteLoss, match="must be finite, got nan at step 7") as caught:
        fit(loss, SGD, model, data, steps=12, batch_size=1, shuffle=False, chunk=chunk)
    assert isinstance(caught.value, FloatingPointError)
    assert caught.value.step == 7
    assert_same(start, leaves(nnx.state(model, nnx.Param)))


def test_an_interrupted_training_keeps_its_progress() -> None:
    def batches() -> Iterator[Any]:
        yield from [{"x": X, "y": X[..., :1]}] * 6
        raise KeyboardInterrupt

    interrupted, short = make_net(), make_net()
    with pytest.raises(KeyboardInterrupt):
        fit(error, SGD, interrupted, batches(), steps=20, chunk=3)
    fit(error, SGD, short, [{"x": X, "y": X[..., :1]}], steps=6, chunk=3)
    assert_same(nnx.state(interrupted, nnx.Param), nnx.state(short, nnx.Param))


def test_the_csv_file_has_every_number(fitted: Any, tmp_path: Any) -> None:
    history: History = fitted[0].history
    path = history.to_csv(tmp_path / "history.csv")
    names, *rows = [text.split(",") for text in path.read_text().splitlines()]
    assert names == ["step", "loss", "largest", "validation_loss", "validation_largest"]
    assert [int(row[0]) for row in rows] == list(range(1, STEPS + 1))
    losses = [float(row[names.index("loss")]) for row in rows]
    assert losses == history.losses.tolist()  # to the last digit
    measured = [row[names.index("validation_loss")] for row in rows]
    assert [bool(text) for text in measured] == [False] * 3 + [True] + [False] * 3 + [True]
    assert [float(t) for t in measured if t] == history.validation["loss"].tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_the_progress_bar_shows_steps_loss_and_speed(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=120)
    bar = Progress("learning", 40, console=terminal)
    run = fit(line, SGD, jnp.zeros(()), ALONE, steps=40, chunk=10, progress=bar)
    text = file.getvalue()
    for words in ("learning", "40/40", "steps/s", f"loss {run.history.losses[-1]:.3g}"):
        assert words in text
    fit(line, SGD, jnp.zeros(()), ALONE, steps=40, chunk=10)  # no output without a terminal
    assert capsys.readouterr() == ("", "")


WRONG: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "no steps": ({"steps": 0}, ValueError, ["steps", "0"]),
    "steps of 1.5": ({"steps": 1.5}, ValueError, ["steps", "1.5"]),
    "neither": ({"steps": None}, ValueError, ["one of `steps` and `epochs`"]),
    "both": ({"epochs": 2}, ValueError, ["one of `steps` and `epochs`"]),
    "epochs of a list": ({"steps": None, "epochs": 1, "data": [ALONE]}, ValueError, ["iterable"]),
    "batch too large": ({"batch_size": 7}, ValueError, ["batch_size=7", "6 examples"]),
    "batch of nothing": ({"batch_size": 0}, ValueError, ["batch_size", "0"]),
    "no examples": ({"data": ALONE[:0], "batch_size": 1}, ValueError, ["nonempty axis", "(0,)"]),
    "lengths differ": (
        {"data": (ALONE, ALONE[:4]), "batch_size": 2}, ValueError, ["(6,), (4,)"]),
    "a scalar": ({"data": (ALONE, np.array(1.0)), "batch_size": 2}, ValueError, ["()"]),
    "no data": ({"data": None}, TypeError, ["data", "NoneType"]),
    "batches in batches": ({"data": [ALONE], "batch_size": 2}, ValueError, ["batch_size=2"]),
    "take alone": ({"take": examples_in_order}, ValueError, ["take", "batch_size"]),
    "a batch of words": ({"data": ["words"]}, TypeError, ["batch", "str"]),
    "an empty list": ({"data": []}, ValueError, ["no batches"]),
    "an unknown option": ({"patience": 3}, TypeError, ["fit", "patience", "early_stopping"]),
    "chunk": ({"chunk": 0}, ValueError, ["chunk", "0"]),
    "key": ({"key": "seed"}, TypeError, ["key", "'seed'"]),
    "negative seed": ({"key": -1}, ValueError, ["seed", "-1"]),
    "many keys": ({"key": jax.random.split(jax.random.key(0))}, ValueError, ["(2,)"]),
    "model": ({"model": "net"}, TypeError, ["model", "str"]),
    "no parameters": ({"model": ()}, ValueError, ["no parameters"]),
    "all of no examples": ({"data": ALONE[:0]}, ValueError, ["no examples", "(0,)"]),
    "examples": ({"examples": 9, "batch_size": 2}, ValueError, ["examples=9", "6"]),
    "an optimiser not called": (
        {"optimizer": optax.adam}, TypeError, ["optimizer", "adam", "Call it: adam("]),
    "no optimiser": ({"optimizer": 0.1}, TypeError, ["optimizer", "float"]),
    "no loss": ({"loss": "mse"}, TypeError, ["loss", "str"]),
    "a folder alone": ({"checkpoints": "folder"}, TypeError, ["Checkpoints(", "'folder'"]),
    "another opt_state": (
        {"opt_state": optax.adam(0.1).init(jnp.ones(()))}, ValueError, ["opt_state"]),
    "validation of nothing": ({"validation": ALONE[:0]}, ValueError, ["validation", "(0,)"]),
    "resume": ({"resume": True}, ValueError, ["resume", "checkpoints"]),
    "stopping alone": ({"early_stopping": EarlyStopping()}, ValueError, ["evaluate"]),
    "evaluate_every alone": ({"evaluate_every": 5}, ValueError, ["evaluate"]),
    "evaluate_every": (
        {"evaluate_every": 0, "validation": ALONE}, ValueError, ["evaluate_every", "0"]),
    "no such metric": (
        {"validation": ALONE, "early_stopping": EarlyStopping("accuracy")},
        ValueError, ["'accuracy'", "'loss'"]),
    "evaluate gives a number": (
        {"evaluate": lambda w: w}, TypeError, ["evaluate", "dict"]),
    "evaluate gives an array": (
        {"evaluate": lambda w: {"a": jnp.ones(3)}}, TypeError, ["'a'", "(3,)"]),
    "validation of a carry": (
        {"carry": 1.0, "validation": ALONE}, ValueError, ["carry", "evaluate"]),
    "loss of a carry": ({"carry": 1.0}, TypeError, ["(value, (carry, metrics))"]),
    "loss of many": ({"loss": lambda w, b: w * b}, ValueError, ["loss", "(6,)"]),
    "metric of many": (
        {"loss": lambda w, b: (w, {"m": b})}, TypeError, ["'m'", "(6,)"]),
    "metrics without names": ({"loss": lambda w, b: (w, b)}, TypeError, ["dict"]),
    "a metric named loss": ({"loss": lambda w, b: (w, {"loss": w})}, ValueError, ['"loss"']),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_invalid_arguments_raise_one_clear_error(name: str) -> None:
    changed, kind, words = WRONG[name]
    arguments: dict[str, Any] = {"model": jnp.ones(()), "loss": lambda w, *b: line(w, b[-1])}
    arguments |= {"data": ALONE, "steps": 3, "optimizer": SGD}
    with pytest.raises(kind) as caught:
        fit(**(arguments | changed))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_exhausted_or_uneven_batches_raise() -> None:
    with pytest.raises(ValueError, match="ended after 3 steps"):
        fit(line, SGD, jnp.ones(()), iter([ALONE] * 3), steps=5, chunk=2)
    uneven = [ALONE, ALONE, ALONE[:4]]
    with pytest.raises(ValueError, match=r"step 3 .*chunk=1"):
        fit(line, SGD, jnp.ones(()), uneven, steps=3, chunk=3)
    assert fit(line, SGD, jnp.ones(()), uneven, steps=3, chunk=1).history.losses.shape == (3,)


@pytest.mark.parametrize(
    "options", [{"patience": 0}, {"mode": "least"}, {"min_delta": -1.0}], ids=str
)
def test_invalid_early_stopping_raises(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EarlyStopping(**options)
