r"""Train a recurrent policy on episodes that end inside the training sequences.

Many environments run in parallel; a new episode begins right after the last step of one. The policy
acts step by step. The update evaluates the stored observations (T, N) in one call of the layer,
with `resets` at the first steps of episodes: the done of step t - 1 is the reset of step t. With
``--resets same``, off by one, the update never sees a cue and its question in one segment.

The loss is that of an advantage actor-critic with discounted returns :math:`G_t`:

.. math::

    G_t = r_t + \gamma (1 - d_t) G_{t+1}, \quad
    L = \tfrac{1}{2} (G_t - V_t)^2 - (G_t - V_t) \log \pi(a_t) - 0.01 H(\pi)

with the advantage :math:`G_t - V_t` constant in the second term.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from matplotlib.figure import Figure

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.examples import Cell, FigurePath, Hidden, LearningRate, PositiveFloat, PositiveInt, Seed
from jaxrnn.layers.heads import LAYERS, linear
from jaxrnn.sequences.episodes import Recall, RecallParams, resets_from_dones
from jaxrnn.training import Progress, Trained, compile_and_run, train_steps

RESETS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "next": resets_from_dones,
    "same": lambda dones, last_done: dones,
    "never": lambda dones, last_done: jnp.zeros_like(dones),
    "always": lambda dones, last_done: jnp.ones_like(dones),
}
"""Reset masks from dones (T, N): the right one, two errors, and no memory."""


class Task(NamedTuple):
    """Environments and segments, as the arguments of `main`."""

    cues: int = 4
    silent: int = 6
    envs: int = 64  # N
    steps: int = 32  # T
    resets: str = "next"


class RunnerState(NamedTuple):
    """State of N environments and their policy between two steps."""

    env: Any  # states of the environments, leaves (N, ...)
    observations: jax.Array  # of the next step (N, D)
    dones: jax.Array  # True if the last step ended an episode (N,)
    hx: Any  # state of the layer, not reset yet


class Trajectory(NamedTuple):
    """T steps of N environments."""

    observations: Any  # (T, N, D)
    logits: Any  # while acting (T, N, cues)
    actions: Any  # (T, N), as the next four
    rewards: Any
    dones: Any  # True at the last step of an episode
    right: Any  # True for a right answer to a question
    resets: Any  # True if the state was reset before the step
    output: Any  # hidden state after the step (T, N, H)

    def per_episode(self, values: Any) -> Any:
        """Return the sum of values (T, N) divided by the number of finished episodes."""
        return values.sum() / self.dones.sum()


class ActorCritic(nnx.Module):
    """A recurrent layer with linear layers for the policy and the value.

    Call: ``model(observations, hx, resets) -> ((logits, values), output, h_n)`` with observations
    (T, N, D), resets (T, N), logits (T, N, actions), values (T, N) and output (T, N, H).
    """

    def __init__(self, rnn: Any, actions: int, *, rngs: nnx.Rngs):
        self.rnn = rnn
        self.actor = linear(rnn.hidden_size, actions, rngs=rngs)
        self.critic = linear(rnn.hidden_size, 1, rngs=rngs)

    def __call__(self, observations: Any, hx: Any, resets: Any) -> tuple[Any, Any, Any]:
        """Return logits and values, the outputs of the layer, and its final state."""
        output, h_n = self.rnn(observations, hx, resets=resets)
        return (self.actor(output), self.critic(output)[..., 0]), output, h_n


def make_model(task: Task, cell: str, hidden: int, *, rngs: nnx.Rngs) -> ActorCritic:
    """Build the policy of a task."""
    return ActorCritic(LAYERS[cell](task.cues + 1, hidden, rngs=rngs), task.cues, rngs=rngs)


def start(task: Task, model: ActorCritic, key: jax.Array) -> RunnerState:
    """Start an episode in every environment."""
    keys, params = jax.random.split(key, task.envs), RecallParams(longest=task.silent)
    observations, env = jax.vmap(Recall(task.cues).reset, (0, None))(keys, params)
    dones = jnp.zeros(task.envs, bool)
    return RunnerState(env, observations, dones, model.rnn.initial_state(task.envs))


def collect(
    task: Task, model: ActorCritic, runner: RunnerState, key: jax.Array
) -> tuple[RunnerState, Trajectory]:
    """Run the policy for T steps, one call of the layer per step."""
    env, params = Recall(task.cues), RecallParams(longest=task.silent)

    def _step(runner: RunnerState, key: jax.Array) -> tuple[RunnerState, Trajectory]:
        action_key, env_key = jax.random.split(key)
        resets = runner.dones | (task.resets == "always")  # the dones of the step before
        (logits, _), output, hx = model(runner.observations[None], runner.hx, resets[None])
        actions = jax.random.categorical(action_key, logits[0])
        observations, state, rewards, dones, info = jax.vmap(env.step, (0, 0, 0, None))(
            jax.random.split(env_key, task.envs), runner.env, actions, params
        )
        results = logits[0], actions, rewards, dones, info["right"], resets, output[0]
        after = RunnerState(state, observations, dones, hx)
        return after, Trajectory(runner.observations, *results)

    return lax.scan(_step, runner, jax.random.split(key, task.steps))


def evaluate(
    model: ActorCritic, runner: RunnerState, trajectory: Trajectory, kind: str
) -> tuple[Any, Any]:
    """Return logits and values of a trajectory that started at `runner`, in one call."""
    resets = RESETS[kind](trajectory.dones, runner.dones)
    return model(trajectory.observations, runner.hx, resets)[0]


def discounted_returns(trajectory: Trajectory, bootstrap: jax.Array, discount: float) -> jax.Array:
    """Return the discounted returns (T, N), with `bootstrap` (N,) the value after the last step."""

    def _step(following: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        reward, done = now
        value = reward + discount * jnp.where(done, 0, following)
        return value, value

    return lax.scan(_step, bootstrap, (trajectory.rewards, trajectory.dones), reverse=True)[1]


def train(
    graph: Any,
    params: Any,
    key: jax.Array,
    *,
    task: Task,
    updates: int,
    discount: float = 0.9,
    lr: Any = 0.005,
    progress: Progress | None = None,
) -> Trained:
    """Train with Adam; a pure function of parameters and key.

    The metrics are the mean return and the fraction of right answers of the episodes
        that ended before each update, (updates,) each, NaN without such episodes.
    """

    def _loss(params: Any, runner: RunnerState, key: jax.Array) -> Any:
        policy = nnx.merge(graph, lax.stop_gradient(params))
        after, trajectory = collect(task, policy, runner, key)
        (_, bootstrap), _, _ = policy(after.observations[None], after.hx, after.dones[None])
        returns = discounted_returns(trajectory, bootstrap[0], discount)
        logits, values = evaluate(nnx.merge(graph, params), runner, trajectory, task.resets)
        log_probs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probs, trajectory.actions[..., None], -1)[..., 0]
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
        advantage = lax.stop_gradient(returns - values)
        value = (0.5 * (returns - values) ** 2 - advantage * chosen - 0.01 * entropy).mean()
        metrics = map(trajectory.per_episode, (trajectory.rewards, trajectory.right))
        return value, (after, tuple(metrics))

    start_key, key = jax.random.split(key)
    runner = start(task, nnx.merge(graph, params), start_key)
    keys = jax.random.split(key, updates)
    return train_steps(_loss, optax.adam(lr), params, keys, carry=runner, progress=progress)


def play(task: Task, model: ActorCritic, key: jax.Array) -> tuple[Trajectory, dict[str, Any]]:
    """Collect a trajectory that starts inside episodes, and evaluate it with each reset mask.

    The second result is the largest difference between the logits of one call and those while
    acting, for each key of `RESETS`.
    """
    task = task._replace(steps=4 * (task.silent + 2))
    keys = jax.random.split(key, 3)
    runner, _ = collect(task, model, start(task, model, keys[0]), keys[1])
    _, trajectory = collect(task, model, runner, keys[2])
    logits = {kind: evaluate(model, runner, trajectory, kind)[0] for kind in RESETS}
    return trajectory, {
        kind: jnp.abs(values - trajectory.logits).max() for kind, values in logits.items()
    }


def draw(right: np.ndarray, trajectory: Trajectory, cues: int, title: str) -> Figure:
    """Draw the right answers during training, one environment, and the state of the policy."""
    figure = Figure(figsize=(12.6, 5.6), layout="constrained")
    figure.suptitle(title)
    halves: Any = figure.subfigures(1, 2, width_ratios=(2, 3))
    curve, (events, states) = halves[0].subplots(), halves[1].subplots(2, sharex=True)
    curve.plot(right, color=plotting.BLUE, label="policy")
    options: Any = {"color": plotting.GREY, "linestyle": "--", "label": "best without memory"}
    curve.axhline(1 / cues, **options)
    curve.set(title="training", xlabel="update", ylabel="right answers", ylim=(-0.02, 1.02))
    curve.grid(color=plotting.GREY, alpha=0.25)
    curve.legend(loc="best")

    one = jax.tree.map(lambda a: a[:40, 0], trajectory)
    image_options: Any = {"aspect": "auto", "interpolation": "nearest"}
    values = np.column_stack([one.observations, one.dones, one.resets])
    names = [*(f"cue {cue}" for cue in range(cues)), "question", "done", "reset"]
    events.imshow(values.T, cmap="Blues", vmin=0, vmax=1.3, **image_options)
    for answer, color in (("right", plotting.PALETTE[2]), ("wrong", plotting.VERMILLION)):
        steps = np.flatnonzero(one.dones & (one.right == (answer == "right")))
        events.plot(steps, one.actions[steps], "o", color=color, label=f"{answer} answer")
    events.set_yticks(range(len(names)), names)
    events.set_title("the trained policy in one environment", loc="left")
    events.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small")
    image = states.imshow(one.output.T, cmap="RdBu_r", vmin=-1, vmax=1, **image_options)
    figure.colorbar(image, ax=states)
    for axis in (events, states):
        for step in np.flatnonzero(one.resets):
            axis.axvline(step - 0.5, color=plotting.PALETTE[-1], linewidth=1)
    states.set_title("its hidden state, reset at each line", loc="left")
    states.set(xlabel="step", ylabel="feature")
    return figure


def main(
    *,
    cell: Cell = "gru",
    hidden: Hidden = 32,
    cues: PositiveInt = 4,
    silent: PositiveInt = 6,
    envs: PositiveInt = 64,
    steps: PositiveInt = 32,
    updates: PositiveInt = 300,
    discount: PositiveFloat = 0.9,
    lr: LearningRate = 0.005,
    resets: Literal["next", "same", "never", "always"] = "next",
    seed: Seed = 0,
    out: FigurePath = "episodes.png",
) -> str:
    """Train a policy that must remember, on episodes that end inside the training sequences.

    Args:
        cues: number of cues, at least 2.
        silent: largest number of steps between cue and question.
        envs: number of parallel environments.
        steps: steps of each environment between two updates.
        updates: gradient steps.
        discount: discount factor of rewards.
        resets: reset mask of the update: at the step after a done, at its step, never, or at
            every step; "always" also resets in acting, so that the policy has no memory.
        seed: seed of weights, episodes and actions.
    """
    checks.at_least("cues", cues, 2)
    target = plotting.check_target(out)
    task, rngs = Task(cues, silent, envs, steps, resets), nnx.Rngs(seed)
    model = make_model(task, cell, hidden, rngs=rngs)
    graph, params = nnx.split(model)
    with Progress("episodes", updates) as progress:
        options: Any = {"task": task, "updates": updates, "discount": discount, "lr": lr}
        run = partial(train, graph, **options, progress=progress)
        trained, compile_seconds, run_seconds = compile_and_run(run, params, rngs.episodes())
    returns, right = map(np.asarray, trained.metrics)
    for index in plotting.spread(range(updates), 7):
        print(f"update {index}: return {returns[index]:+.2f}, right {right[index]:.1%}")
    evaluation = jax.jit(lambda params, key: play(task, nnx.merge(graph, params), key))
    key = rngs.episodes()
    (before, _), (after, differences) = (
        jax.tree.map(np.asarray, evaluation(p, key)) for p in (params, trained.params)
    )
    for name, trajectory in (("before", before), ("after", after)):
        mean_return, accuracy = map(trajectory.per_episode, (trajectory.rewards, trajectory.right))
        count = trajectory.dones.sum()
        print(f"{name} training: return {mean_return:+.2f}, right {accuracy:.1%} of {count}")
    print(f"without a memory, at best: return {2 / cues - 1:+.2f}, right {1 / cues:.1%}")
    print("logits of one call and logits while acting, largest difference:")
    for kind in RESETS:
        print(f"  resets {kind:<7}{differences[kind]:.1e}")
    print(f"compiled in {compile_seconds:.2f} s, {updates} updates in {run_seconds:.2f} s")
    figure = draw(right, after, cues, f"Recall of one of {cues} cues: {model.rnn} + linear")
    print(f"figure: {plotting.save(figure, target)}")
    return f"{after.per_episode(after.right):.1%} of answers are right"
