"""Episodes that end inside the training sequences.

The reset belongs to the step after a done, in acting and in the update. A policy with memory
learns, one without stays at chance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxrnn.cli import main
from jaxrnn.examples import episodes
from jaxrnn.examples.episodes import ActorCritic, RunnerState, Task, Trajectory
from jaxrnn.layers.heads import LAYERS
from jaxrnn.sequences.episodes import Recall, RecallParams, RecallState, resets_from_dones
from jaxrnn.training import sweep

# Episodes of 3 or 4 steps in segments of 7: most start in one segment and end in the next.
SMALL = Task(cues=2, silent=2, envs=8, steps=7)
KINDS = [("gru", jnp.float64), ("lstm", jnp.float64), ("gru", jnp.float32)]


class Segments(NamedTuple):
    """Three consecutive segments, their initial states, and logits for each reset mask."""

    starts: list[RunnerState]
    trajectories: list[Trajectory]
    logits: list[dict[str, jax.Array]]
    whole: jax.Array


@functools.cache
def run_segments(cell: str, dtype: Any) -> Segments:
    def run() -> Segments:
        rngs = nnx.Rngs(0)
        layer = LAYERS[cell](3, 4, 2, rngs=rngs, dtype=dtype, param_dtype=dtype)
        model, key = ActorCritic(layer, 2, rngs=rngs), rngs.episodes()

        @jax.jit
        def one(runner: RunnerState, key: jax.Array) -> Any:
            after, trajectory = episodes.collect(SMALL, model, runner, key)
            kinds = episodes.RESETS
            logits = {k: episodes.evaluate(model, runner, trajectory, k)[0] for k in kinds}
            no_dones = runner._replace(dones=jnp.zeros_like(runner.dones))
            logits["no last done"] = episodes.evaluate(model, no_dones, trajectory, "next")[0]
            return after, trajectory, logits

        runner = jax.jit(functools.partial(episodes.start, SMALL, model))(key)
        starts, results = [], []
        for step in range(3):
            starts.append(runner)
            runner, *result = one(runner, jax.random.fold_in(key, step))
            results.append(result)
        trajectories, logits = map(list, zip(*results))
        total = jax.tree.map(lambda *a: np.concatenate(a), *trajectories)
        whole = episodes.evaluate(model, starts[0], total, "next")[0]
        return Segments(starts, trajectories, logits, whole)

    with jax.enable_x64(dtype == jnp.float64):
        return jax.tree.map(np.asarray, run())


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1].__name__}")
def play(request: pytest.FixtureRequest) -> tuple[Segments, float]:
    """The segments, and the tolerance of two computations of the same values."""
    cell, dtype = request.param
    return run_segments(cell, dtype), 1e-10 if dtype == jnp.float64 else 1e-6


def test_one_call_returns_the_logits_of_acting(play: tuple[Segments, float]) -> None:
    run, tolerance = play
    for trajectory, logits in zip(run.trajectories, run.logits, strict=True):
        assert trajectory.dones.any(0).all()  # an episode ends in every sequence
        assert trajectory.logits.dtype == (np.float64 if tolerance == 1e-10 else np.float32)
        np.testing.assert_allclose(logits["next"], trajectory.logits, rtol=0, atol=tolerance)
    acting = np.concatenate([trajectory.logits for trajectory in run.trajectories])
    np.testing.assert_allclose(run.whole, acting, rtol=0, atol=tolerance)


def test_the_reset_in_acting_is_the_done_of_the_step_before(play: tuple[Segments, float]) -> None:
    run, _ = play
    dones = np.concatenate([trajectory.dones for trajectory in run.trajectories])
    resets = np.concatenate([trajectory.resets for trajectory in run.trajectories])
    np.testing.assert_array_equal(resets[1:], dones[:-1])
    assert not resets[0].any()
    for runner, before in zip(run.starts[1:], run.trajectories):
        np.testing.assert_array_equal(runner.dones, before.dones[-1])


@pytest.mark.parametrize("kind", ["same", "never", "always"])
def test_other_resets_return_other_logits(play: tuple[Segments, float], kind: str) -> None:
    run, _ = play
    for trajectory, logits in zip(run.trajectories, run.logits, strict=True):
        assert np.abs(logits[kind] - trajectory.logits).max() > 1e-2


def test_resets_off_by_one_are_wrong_from_the_first_done_on(play: tuple[Segments, float]) -> None:
    """The first segment starts with an episode, so it is right until the first done."""
    run, tolerance = play
    trajectory, logits = run.trajectories[0], run.logits[0]["same"]
    wrong = np.abs(logits - trajectory.logits).max(-1)
    before = np.cumsum(trajectory.dones, 0) == 0
    assert (wrong[before] <= tolerance).all()
    assert (wrong[~before] > tolerance).all()
    first = np.diff(~before, axis=0, prepend=False)
    assert (first.sum(0) == 1).all()
    assert (wrong[first] > 1e-4).all()  # the step of the done itself, which has the question


def test_no_resets_are_wrong_from_the_next_episode_on(play: tuple[Segments, float]) -> None:
    run, tolerance = play
    trajectory, logits = run.trajectories[0], run.logits[0]["never"]
    wrong = np.abs(logits - trajectory.logits).max(-1)
    later = np.cumsum(trajectory.resets, 0) > 0
    assert later.any()
    assert (wrong[~later] <= tolerance).all()
    assert (wrong[later] > tolerance).all()


def test_the_last_done_of_a_segment_belongs_to_the_next(play: tuple[Segments, float]) -> None:
    """Without it, just the sequences are wrong whose episode ended with the segment before."""
    run, tolerance = play
    ended = [runner.dones for runner in run.starts]
    assert not ended[0].any()
    assert np.any(ended[1:])
    assert not np.all(ended[1:])
    for dones, trajectory, logits in zip(ended, run.trajectories, run.logits, strict=True):
        wrong = np.abs(logits["no last done"] - trajectory.logits).max(-1)[0]
        np.testing.assert_array_equal(wrong > tolerance, dones)


ENV = Recall(3)


@functools.cache
def compiled_run() -> Callable[..., Any]:
    """Compile 100 steps in 32 environments; the answers are the cue plus `off`, modulo 3."""

    def run(key: jax.Array, off: jax.Array, params: RecallParams) -> Any:
        reset = jax.vmap(ENV.reset, (0, None))
        first = reset(jax.random.split(key, 32), params)

        def step(now: Any, inputs: Any) -> Any:
            (observation, state), (key, off) = now, inputs
            keys = jax.random.split(key, 32)
            action = (state.cue + off) % 3
            *after, reward, done, info = jax.vmap(ENV.step, (0, 0, 0, None))(
                keys, state, action, params
            )
            return tuple(after), (observation, state, reward, done, info["right"])

        return lax.scan(step, first, (jax.random.split(key, 100), off))[1]

    return jax.jit(run)


def run_environments(off: Any, shortest: int = 1, longest: int = 3) -> Any:
    params = RecallParams(jnp.int32(shortest), jnp.int32(longest))
    off = jnp.broadcast_to(jnp.asarray(off, jnp.int32), (100,))
    return jax.tree.map(np.asarray, compiled_run()(jax.random.key(0), off, params))


def lengths(dones: np.ndarray) -> np.ndarray:
    """Return the lengths of all finished episodes."""
    ends = [np.flatnonzero(sequence) for sequence in dones.T]
    return np.concatenate([np.diff(end, prepend=-1) for end in ends])


@pytest.mark.parametrize(("shortest", "longest"), [(1, 3), (2, 2), (0, 1)])
def test_an_episode_has_a_cue_silence_and_a_question(shortest: int, longest: int) -> None:
    observation, state, _, dones, _ = run_environments(0, shortest, longest)
    assert observation.dtype == np.float32
    assert observation.shape == (100, 32, 4)
    assert dones.dtype == bool
    first = np.concatenate([np.ones((1, 32), bool), dones[:-1]])
    one_hot = np.eye(4)
    np.testing.assert_array_equal(observation[first], one_hot[state.cue[first]])
    np.testing.assert_array_equal(observation[dones], one_hot[[3] * dones.sum()])
    np.testing.assert_array_equal(observation[~first & ~dones], 0)
    assert set(lengths(dones)) == {silent + 2 for silent in range(shortest, longest + 1)}
    later = ~first[1:]  # the cue is constant within an episode
    np.testing.assert_array_equal(state.cue[1:][later], state.cue[:-1][later])


def test_cues_and_lengths_are_uniform() -> None:
    _, state, _, dones, _ = run_environments(0)
    counts = np.bincount(state.cue[dones], minlength=3)
    assert counts.sum() > 700
    assert counts.min() > 0.8 * counts.mean()
    counts = np.bincount(lengths(dones))[3:]
    assert counts.min() > 0.8 * counts.mean()
    ends = np.flatnonzero(dones[:, 0])
    assert len(set(state.cue[ends, 0])) == 3


def test_only_the_answer_to_the_question_is_rewarded() -> None:
    off = np.arange(100) % 3
    _, _, reward, dones, right = run_environments(off)
    assert reward.dtype == np.float32
    np.testing.assert_array_equal(reward[~dones], 0)
    np.testing.assert_array_equal(right, dones & (off == 0)[:, None])
    np.testing.assert_array_equal(reward[dones], np.where(right, 1, -1)[dones])


def test_an_environment_has_default_parameters() -> None:
    assert Recall().cues == 4
    assert Recall().default_params == RecallParams(1, 6)
    state = RecallState(jnp.int32(2), jnp.int32(0))
    _, _, reward, done, _ = Recall().step(jax.random.key(0), state, jnp.int32(2))
    assert (reward, done) == (1, True)


def test_discounted_returns_stop_at_a_done() -> None:
    random = np.random.RandomState(0)
    rewards, dones = random.uniform(-1, 1, (9, 4)), random.uniform(size=(9, 4)) < 0.3
    bootstrap = random.uniform(-1, 1, 4)
    expected, following = np.zeros((9, 4)), bootstrap
    for t in reversed(range(9)):
        following = rewards[t] + 0.9 * np.where(dones[t], 0, following)
        expected[t] = following
    trajectory = Trajectory(*[None] * 8)
    trajectory = trajectory._replace(rewards=jnp.asarray(rewards), dones=jnp.asarray(dones))
    returns = episodes.discounted_returns(trajectory, jnp.asarray(bootstrap), 0.9)
    np.testing.assert_allclose(returns, expected, rtol=0, atol=1e-12)


@functools.cache
def learned(resets: str) -> np.ndarray:
    """Return the fraction of right answers of three seeds, in the first 5 and last 20 updates."""
    task = Task(cues=2, silent=3, envs=32, steps=16, resets=resets)

    def run(seed: Any) -> jax.Array:
        rngs = nnx.Rngs(jax.random.key(seed))
        graph, params = nnx.split(episodes.make_model(task, "gru", 16, rngs=rngs))
        options: Any = {"task": task, "updates": 80, "lr": 0.01}
        return episodes.train(graph, params, rngs.episodes(), **options).metrics[1]

    with jax.enable_x64(False):
        right = sweep(run, seed=jnp.arange(3)).results
    assert right.shape == (3, 80)
    return np.stack([right[:, :5].mean(-1), right[:, -20:].mean(-1)])


def test_a_policy_with_memory_learns() -> None:
    before, after = learned("next")
    assert (before < 0.7).all()
    assert (after > 0.95).all()


def test_a_policy_without_memory_stays_at_chance() -> None:
    _, after = learned("always")
    np.testing.assert_allclose(after, 0.5, atol=0.06)


def test_resets_off_by_one_learn_nothing() -> None:
    """The update resets the state just before the question, so it never sees the cue.

    The state in acting contains the cue, so that chance is not exact here.
    """
    _, after = learned("same")
    np.testing.assert_allclose(after, 0.5, atol=0.25)


def test_resets_are_the_dones_one_step_later() -> None:
    dones = np.random.RandomState(0).uniform(size=(6, 3)) < 0.5
    last = np.array([True, False, True])
    resets = resets_from_dones(dones, last)
    np.testing.assert_array_equal(resets[0], last)
    np.testing.assert_array_equal(resets[1:], dones[:-1])
    one = jax.jit(resets_from_dones)(dones[:, 0], last[0])
    np.testing.assert_array_equal(one, resets[:, 0])
    np.testing.assert_array_equal(resets_from_dones(dones[:1], last), last[None])
    assert resets.dtype == one.dtype == bool


BOOLS = np.zeros((4, 2), bool)


@pytest.mark.parametrize(
    ("dones", "last", "kind", "words"),
    [
        (BOOLS.astype(float), BOOLS[0], TypeError, ["dones", "float64", "dones.astype(bool)"]),
        (BOOLS, BOOLS[0].astype(int), TypeError, ["last_done", "int64", "last_done.astype(bool)"]),
        (BOOLS[0, 0], BOOLS[0], ValueError, ["(T, N) or (T,)", "()"]),
        (BOOLS[None], BOOLS, ValueError, ["(T, N) or (T,)", "(1, 4, 2)"]),
        (BOOLS[:0], BOOLS[0], ValueError, ["T at least 1", "(0, 2)"]),
        (BOOLS, BOOLS[:, 0], ValueError, ["last_done", "(2,)", "(4,)"]),
        (BOOLS, False, ValueError, ["last_done", "(2,)", "()"]),
        (BOOLS[:, 0], BOOLS[0], ValueError, ["last_done", "()", "(2,)"]),
    ],
)
def test_wrong_dones_are_one_clear_error(
    dones: Any, last: Any, kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        resets_from_dones(dones, last)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_the_command_prints_the_accuracy_and_saves_its_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "episodes.svg"
    sizes: Any = {"hidden": 4, "cues": 2, "silent": 1, "envs": 4, "steps": 4, "updates": 3}
    with jax.enable_x64(False):
        episodes.main(**sizes, out=str(path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["update 0", "update 1", "update 2"]
    for line in lines[:3]:
        mean_return, right = float(line.split()[3].strip(",")), float(line.split()[-1].strip("%"))
        np.testing.assert_allclose(mean_return, right / 50 - 1, atol=6e-3)
    assert lines[3].startswith("before training: return ")
    assert lines[4].startswith("after training: return ")
    assert lines[5] == "without a memory, at best: return +0.00, right 50.0%"
    differences = dict(line.split()[1:] for line in lines[7:11])
    assert list(differences) == list(episodes.RESETS)
    assert float(differences["next"]) < 1e-6
    assert min(float(differences[kind]) for kind in ("same", "never", "always")) > 1e-3
    assert lines[-1] == f"figure: {path}"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cues", 1),
        *[(name, 0) for name in ("hidden", "silent", "envs", "steps", "updates")],
        *[(name, value) for name in ("discount", "lr") for value in (0.0, float("nan"))],
        ("seed", -1),
    ],
)
def test_impossible_options_are_one_line(
    capsys: pytest.CaptureFixture[str], name: str, value: Any
) -> None:
    assert main(["run", "episodes", f"--{name}", str(value)]) == 2
    error = capsys.readouterr().err
    assert f"`{name}` must be " in error
    assert error.count("\n") == 1
