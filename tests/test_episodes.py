"""Episodes that end inside of a row: the reset belongs to the step after a done, in acting and in
the update; an agent that remembers learns, one that does not stays at chance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxrnn.examples import episodes
from jaxrnn.examples.episodes import ActorCritic, Now, Rollout, Settings
from jaxrnn.sequences.episodes import Recall, RecallParams, RecallState, resets_from_dones

# Episodes of 3 or 4 steps in rollouts of 7: most begin in one rollout and end in the next.
SMALL = Settings(hidden=4, cues=2, silent=2, envs=8, steps=7)
KINDS = [("gru", jnp.float64), ("lstm", jnp.float64), ("gru", jnp.float32)]


class Played(NamedTuple):
    """Three rollouts one after another, where each began, and all logits again, by resets."""

    begun: list[Now]
    rollouts: list[Rollout]
    again: list[dict[str, jax.Array]]
    whole: jax.Array


@functools.cache
def played(cell: str, dtype: Any) -> Played:
    def run() -> Played:
        rngs = nnx.Rngs(0)
        layer = episodes.LAYERS[cell](3, 4, 2, rngs=rngs, dtype=dtype, param_dtype=dtype)
        model, key = ActorCritic(layer, 2, rngs=rngs), rngs.episodes()

        @jax.jit
        def one(now: Now, key: jax.Array) -> tuple[Now, Rollout, dict[str, jax.Array]]:
            after, rollout = episodes.act(SMALL, model, now, key)
            again = {k: episodes.again(model, now, rollout, k)[0] for k in episodes.RESETS}
            untold = now._replace(dones=jnp.zeros_like(now.dones))
            again["untold"] = episodes.again(model, untold, rollout, "next")[0]
            return after, rollout, again

        now = jax.jit(functools.partial(episodes.begin, SMALL, model))(key)
        begun, results = [], []
        for step in range(3):
            begun.append(now)
            now, *result = one(now, jax.random.fold_in(key, step))
            results.append(result)
        rollouts, again = map(list, zip(*results))
        total = jax.tree.map(lambda *a: np.concatenate(a), *rollouts)
        return Played(begun, rollouts, again, episodes.again(model, begun[0], total, "next")[0])

    with jax.enable_x64(dtype == jnp.float64):
        return jax.tree.map(np.asarray, run())


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1].__name__}")
def play(request: pytest.FixtureRequest) -> tuple[Played, float]:
    """The rollouts, and how far two ways to compute the same may be apart."""
    cell, dtype = request.param
    return played(cell, dtype), 1e-10 if dtype == jnp.float64 else 1e-6


def test_one_call_gives_the_logits_acted_with(play: tuple[Played, float]) -> None:
    run, tolerance = play
    for rollout, logits in zip(run.rollouts, run.again, strict=True):
        assert rollout.dones.any(0).all()  # every row has the end of an episode in it
        assert rollout.logits.dtype == (np.float64 if tolerance == 1e-10 else np.float32)
        np.testing.assert_allclose(logits["next"], rollout.logits, rtol=0, atol=tolerance)
    acted = np.concatenate([rollout.logits for rollout in run.rollouts])
    np.testing.assert_allclose(run.whole, acted, rtol=0, atol=tolerance)


def test_the_reset_acted_with_is_the_done_of_the_step_before(play: tuple[Played, float]) -> None:
    run, _ = play
    dones = np.concatenate([rollout.dones for rollout in run.rollouts])
    resets = np.concatenate([rollout.resets for rollout in run.rollouts])
    np.testing.assert_array_equal(resets[1:], dones[:-1])
    assert not resets[0].any()
    for now, before in zip(run.begun[1:], run.rollouts):
        np.testing.assert_array_equal(now.dones, before.dones[-1])


@pytest.mark.parametrize("kind", ["same", "never", "always"])
def test_other_resets_give_other_numbers(play: tuple[Played, float], kind: str) -> None:
    run, _ = play
    for rollout, logits in zip(run.rollouts, run.again, strict=True):
        assert np.abs(logits[kind] - rollout.logits).max() > 1e-2


def test_off_by_one_is_wrong_at_the_last_step_and_ever_after(play: tuple[Played, float]) -> None:
    """The first rollout begins with an episode, so it is right until the first done."""
    run, tolerance = play
    rollout, logits = run.rollouts[0], run.again[0]["same"]
    wrong = np.abs(logits - rollout.logits).max(-1)
    before = np.cumsum(rollout.dones, 0) == 0
    assert (wrong[before] <= tolerance).all()
    assert (wrong[~before] > tolerance).all()
    first = np.diff(~before, axis=0, prepend=False)
    assert (first.sum(0) == 1).all()
    assert (wrong[first] > 1e-4).all()  # the step of the done itself, where the question is


def test_never_is_wrong_from_the_first_step_of_the_next_episode_on(
    play: tuple[Played, float],
) -> None:
    run, tolerance = play
    rollout, logits = run.rollouts[0], run.again[0]["never"]
    wrong = np.abs(logits - rollout.logits).max(-1)
    begun_again = np.cumsum(rollout.resets, 0) > 0
    assert begun_again.any()
    assert (wrong[~begun_again] <= tolerance).all()
    assert (wrong[begun_again] > tolerance).all()


def test_the_last_done_of_a_rollout_belongs_to_the_next(play: tuple[Played, float]) -> None:
    """Without it just those rows are wrong whose episode ended with the rollout before."""
    run, tolerance = play
    ended = [now.dones for now in run.begun]
    assert not ended[0].any()
    assert np.any(ended[1:])
    assert not np.all(ended[1:])
    for rows, rollout, logits in zip(ended, run.rollouts, run.again, strict=True):
        wrong = np.abs(logits["untold"] - rollout.logits).max(-1)[0]
        np.testing.assert_array_equal(wrong > tolerance, rows)


ENV = Recall(3)


@functools.cache
def watched() -> Callable[..., Any]:
    """100 steps in 32 environments, compiled; the answers are the cue plus `off`, modulo 3."""

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


def watch(off: Any, shortest: int = 1, longest: int = 3) -> Any:
    params = RecallParams(jnp.int32(shortest), jnp.int32(longest))
    off = jnp.broadcast_to(jnp.asarray(off, jnp.int32), (100,))
    return jax.tree.map(np.asarray, watched()(jax.random.key(0), off, params))


def lengths(dones: np.ndarray) -> np.ndarray:
    """The lengths of all episodes that end, in any order."""
    ends = [np.flatnonzero(row) for row in dones.T]
    return np.concatenate([np.diff(end, prepend=-1) for end in ends])


@pytest.mark.parametrize(("shortest", "longest"), [(1, 3), (2, 2), (0, 1)])
def test_an_episode_is_a_cue_silence_and_the_question(shortest: int, longest: int) -> None:
    observation, state, _, dones, _ = watch(0, shortest, longest)
    assert observation.dtype == np.float32
    assert observation.shape == (100, 32, 4)
    assert dones.dtype == bool
    first = np.concatenate([np.ones((1, 32), bool), dones[:-1]])
    one_hot = np.eye(4)
    np.testing.assert_array_equal(observation[first], one_hot[state.cue[first]])
    np.testing.assert_array_equal(observation[dones], one_hot[[3] * dones.sum()])
    np.testing.assert_array_equal(observation[~first & ~dones], 0)
    assert set(lengths(dones)) == {silent + 2 for silent in range(shortest, longest + 1)}
    later = ~first[1:]  # the cue stays what it was until the episode is over
    np.testing.assert_array_equal(state.cue[1:][later], state.cue[:-1][later])


def test_cues_and_lengths_are_drawn_anew_and_evenly() -> None:
    _, state, _, dones, _ = watch(0)
    counts = np.bincount(state.cue[dones], minlength=3)
    assert counts.sum() > 700
    assert counts.min() > 0.8 * counts.mean()
    counts = np.bincount(lengths(dones))[3:]
    assert counts.min() > 0.8 * counts.mean()
    ends = np.flatnonzero(dones[:, 0])
    assert len(set(state.cue[ends, 0])) == 3


def test_the_answer_counts_at_the_question_only() -> None:
    off = np.arange(100) % 3
    _, _, reward, dones, right = watch(off)
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


def test_what_is_earned_stops_at_a_done() -> None:
    random = np.random.RandomState(0)
    rewards, dones = random.uniform(-1, 1, (9, 4)), random.uniform(size=(9, 4)) < 0.3
    last = random.uniform(-1, 1, 4)
    expected, later = np.zeros((9, 4)), last
    for t in reversed(range(9)):
        later = rewards[t] + 0.9 * np.where(dones[t], 0, later)
        expected[t] = later
    rollout = Rollout(*[None] * 8)._replace(rewards=jnp.asarray(rewards), dones=jnp.asarray(dones))
    earned = episodes.discounted(rollout, jnp.asarray(last), 0.9)
    np.testing.assert_allclose(earned, expected, rtol=0, atol=1e-12)


TASK = Settings(hidden=16, cues=2, silent=3, envs=32, steps=16, updates=80, lr=0.01)


@functools.cache
def learned(resets: str) -> np.ndarray:
    """The fraction of right answers of three seeds, over the first 5 and the last 20 updates."""
    with jax.enable_x64(False):
        right = episodes.right_by(replace(TASK, resets=resets), seed=jnp.arange(3))
    assert right.shape == (3, 80)
    return np.stack([right[:, :5].mean(-1), right[:, -20:].mean(-1)])


def test_an_agent_that_remembers_learns() -> None:
    before, after = learned("next")
    assert (before < 0.7).all()
    assert (after > 0.95).all()


def test_an_agent_without_a_memory_stays_at_chance() -> None:
    _, after = learned("always")
    np.testing.assert_allclose(after, 0.5, atol=0.06)


def test_off_by_one_learns_nothing() -> None:
    """The update resets the state just before the question, so it never sees what was asked for.

    The state acted with has the cue in it, so that chance is not exact here.
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
def test_what_are_no_dones_is_one_clear_error(
    dones: Any, last: Any, kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        resets_from_dones(dones, last)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_run_prints_what_was_learned_and_saves_its_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "episodes.svg"
    sizes = Settings(hidden=4, cues=2, silent=1, envs=4, steps=4, updates=3, out=str(path))
    with jax.enable_x64(False):
        history = episodes.main(sizes)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["update 0", "update 1", "update 2"]
    assert lines[3].startswith("before training: return ")
    assert lines[4].startswith("after training: return ")
    assert lines[5] == "without a memory, at best: return +0.00, right 50.0%"
    assert [line.split()[:2] for line in lines[7:11]] == [["resets", k] for k in episodes.RESETS]
    assert lines[-1] == f"figure: {path}"
    assert list(tmp_path.iterdir()) == [path]
    assert history.differences["next"] < 1e-6
    assert min(history.differences[kind] for kind in ("same", "never", "always")) > 1e-3
    assert history.losses.shape == history.returns.shape == history.right.shape == (3,)
    np.testing.assert_allclose(history.returns, 2 * history.right - 1, atol=1e-6)
    assert history.after.output.shape == (12, 4, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cues", 1),
        *[(name, 0) for name in ("hidden", "silent", "envs", "steps", "updates")],
        *[(name, value) for name in ("discount", "lr") for value in (0.0, float("nan"))],
        ("resets", "later"),
        ("cell", "mgu"),
        ("seed", -1),
    ],
)
def test_a_setting_that_can_not_be_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        replace(Settings(), **{name: value})
