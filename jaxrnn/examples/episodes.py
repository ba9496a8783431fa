"""An agent that has to remember, trained on episodes that end in the middle of a row.

Many environments run side by side; where an episode ends, the next begins at once. The agent acts
step by step, and the update runs all stored observations (T, N) through the layer in one call.
Its resets say where an episode begins: a done, given after a step, is the reset of the next step.
With ``--resets same``, off by one, the update never sees the cue and the question in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from matplotlib.figure import Figure

from jaxrnn import _checks as checks
from jaxrnn import plotting
from jaxrnn.layers.heads import LAYERS, linear
from jaxrnn.sequences.episodes import Recall, RecallParams, resets_from_dones
from jaxrnn.training import Progress, Trained, compile_and_run, sweep, train_steps

RESETS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "next": resets_from_dones,
    "same": lambda dones, last_done: dones,
    "never": lambda dones, last_done: jnp.zeros_like(dones),
    "always": lambda dones, last_done: jnp.ones_like(dones),
}
"""What can be made of the dones (T, N): what is right, two mistakes, and no memory at all."""


REPORTED = "no source; an agent without memory is right 25 % of the time"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run episodes``."""

    cell: str = field(default="gru", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    hidden: int = field(default=32, metadata={"help": "hidden features"})
    cues: int = field(default=4, metadata={"help": "cues to tell apart"})
    silent: int = field(default=6, metadata={"help": "most steps between cue and question"})
    envs: int = field(default=64, metadata={"help": "environments side by side"})
    steps: int = field(default=32, metadata={"help": "steps of each between two updates"})
    updates: int = field(default=300, metadata={"help": "gradient steps"})
    discount: float = field(default=0.9, metadata={"help": "weight of a reward one step later"})
    lr: float = field(default=0.005, metadata={"help": "learning rate of Adam"})
    resets: str = field(
        default="next",
        metadata={
            "help": "where the update resets the state: at the step next to a done, at the same "
            "step, never, or always, in acting too: an agent without memory",
            "choices": tuple(RESETS),
        },
    )
    seed: int = field(default=0, metadata={"help": "seed of weights, episodes and actions"})
    out: str = field(
        default="episodes.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        for name in ("hidden", "silent", "envs", "steps", "updates"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("cues", self.cues, 2)
        checks.seed(self.seed)
        for name in ("discount", "lr"):
            checks.positive(name, getattr(self, name))
        checks.choice("cell", self.cell, tuple(LAYERS))
        checks.choice("resets", self.resets, tuple(RESETS))


class Now(NamedTuple):
    """Where N environments and their agent are between two steps.

    Attributes:
        env: the states of the environments, leaves (N, ...).
        observations: what the agent sees next (N, D).
        dones: whether the last step ended an episode (N,), and the observation begins another.
        hidden: the agent's state after the last step, not reset yet, shaped as `hx`.
    """

    env: Any
    observations: jax.Array
    dones: jax.Array
    hidden: Any


class Rollout(NamedTuple):
    """What happened in T steps of N environments.

    Attributes:
        observations: what the agent saw (T, N, D).
        logits: of the actions, when it acted (T, N, cues).
        actions, rewards, dones: what it did, and what the environment said to it (T, N).
        right: whether it answered a question rightly (T, N).
        resets: whether its state was set to zero before the step (T, N).
        output: its hidden state after the step (T, N, H).
    """

    observations: Any
    logits: Any
    actions: Any
    rewards: Any
    dones: Any
    right: Any
    resets: Any
    output: Any

    def per_episode(self, what: Any) -> Any:
        """The sum of what each step gave (T, N), by the number of episodes that ended."""
        return what.sum() / self.dones.sum()


class History(NamedTuple):
    """What a run leaves.

    Attributes:
        losses: the loss at each update (updates,).
        returns: what an episode earned on average, of those that ended before each update and
            after the one before it (updates,); NaN where none did.
        right: the fraction of them with the right answer (updates,).
        before, after: a rollout of the untrained and one of the trained agent.
        differences: by how much the logits of one call over the rollout `after` miss those acted
            with, at most, for each way to make resets of the dones.
        model: the trained agent.
        compile_seconds, run_seconds: what compiling and what training took.
    """

    losses: np.ndarray
    returns: np.ndarray
    right: np.ndarray
    before: Rollout
    after: Rollout
    differences: dict[str, float]
    model: ActorCritic
    compile_seconds: float
    run_seconds: float


class ActorCritic(nnx.Module):
    """A recurrent layer with two linear ones on its output: what to do, and what it is worth.

    Call: ``model(observations, hx, resets) -> ((logits, values), output, h_n)`` with observations
    (T, N, D), resets (T, N), logits (T, N, actions), values (T, N) and output (T, N, H).
    """

    def __init__(self, rnn: Any, actions: int, *, rngs: nnx.Rngs):
        self.rnn = rnn
        self.actor = linear(rnn.hidden_size, actions, rngs=rngs)
        self.critic = linear(rnn.hidden_size, 1, rngs=rngs)

    def __call__(self, observations: Any, hx: Any, resets: Any) -> tuple[Any, Any, Any]:
        """The logits and values at every step, the hidden states, the state after the last."""
        output, last = self.rnn(observations, hx, resets=resets)
        return (self.actor(output), self.critic(output)[..., 0]), output, last


def make_model(settings: Settings, rngs: nnx.Rngs) -> ActorCritic:
    """The agent for the settings' environment."""
    rnn = LAYERS[settings.cell](settings.cues + 1, settings.hidden, rngs=rngs)
    return ActorCritic(rnn, settings.cues, rngs=rngs)


def environment(settings: Settings) -> tuple[Recall, RecallParams]:
    """The environment and its parameters."""
    return Recall(settings.cues), RecallParams(longest=settings.silent)


def begin(settings: Settings, model: ActorCritic, key: jax.Array) -> Now:
    """Every environment at the beginning of an episode."""
    env, params = environment(settings)
    keys = jax.random.split(key, settings.envs)
    observations, state = jax.vmap(env.reset, (0, None))(keys, params)
    dones = jnp.zeros(settings.envs, bool)
    return Now(state, observations, dones, model.rnn.initial_state(settings.envs))


def act(settings: Settings, model: ActorCritic, now: Now, key: jax.Array) -> tuple[Now, Rollout]:
    """T steps in every environment, the layer called for one step at a time."""
    env, params = environment(settings)

    def step(now: Now, key: jax.Array) -> tuple[Now, Rollout]:
        key_action, key_env = jax.random.split(key)
        resets = now.dones | (settings.resets == "always")  # the dones of the step before
        (logits, _), output, hidden = model(now.observations[None], now.hidden, resets[None])
        actions = jax.random.categorical(key_action, logits[0])
        keys = jax.random.split(key_env, settings.envs)
        observations, state, rewards, dones, info = jax.vmap(env.step, (0, 0, 0, None))(
            keys, now.env, actions, params
        )
        heard = rewards, dones, info["right"]
        seen = Rollout(now.observations, logits[0], actions, *heard, resets, output[0])
        return Now(state, observations, dones, hidden), seen

    return lax.scan(step, now, jax.random.split(key, settings.steps))


def again(model: ActorCritic, now: Now, rollout: Rollout, kind: str) -> tuple[Any, Any]:
    """The logits and values of a rollout that began with `now`, all steps in one call."""
    resets = RESETS[kind](rollout.dones, now.dones)
    return model(rollout.observations, now.hidden, resets)[0]


def discounted(rollout: Rollout, last: jax.Array, discount: float) -> jax.Array:
    """What an episode earns from each step on (T, N); after the rollout, what `last` (N,) says."""

    def step(later: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
        reward, done = now
        earned = reward + discount * jnp.where(done, 0, later)
        return earned, earned

    return lax.scan(step, last, (rollout.rewards, rollout.dones), reverse=True)[1]


def make_training(settings: Settings, model: ActorCritic, progress: Progress | None = None) -> Any:
    """All updates as one pure function of the parameters and a key, an advantage actor-critic.

    The carry is where the environments and the agent are; the outputs are what an episode earned
    and how many were right, on average before each update.
    """
    graph = nnx.graphdef(model)

    def loss(params: Any, now: Now, key: jax.Array) -> Any:
        actor = nnx.merge(graph, lax.stop_gradient(params))
        after, rollout = act(settings, actor, now, key)
        (_, last), _, _ = actor(after.observations[None], after.hidden, after.dones[None])
        earned = discounted(rollout, last[0], settings.discount)
        logits, values = again(nnx.merge(graph, params), now, rollout, settings.resets)
        logs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logs, rollout.actions[..., None], -1)[..., 0]
        entropy = -(jnp.exp(logs) * logs).sum(-1)
        advantage = lax.stop_gradient(earned - values)
        value = (0.5 * (earned - values) ** 2 - advantage * chosen - 0.01 * entropy).mean()
        return value, (after, tuple(map(rollout.per_episode, (rollout.rewards, rollout.right))))

    def training(params: Any, key: jax.Array, lr: Any = settings.lr) -> Trained:
        key_begin, key = jax.random.split(key)
        now, keys = begin(settings, model, key_begin), jax.random.split(key, settings.updates)
        return train_steps(loss, optax.adam(lr), params, keys, carry=now, progress=progress)

    return training


def play(settings: Settings, model: ActorCritic, key: jax.Array) -> tuple[Rollout, Any]:
    """A rollout that goes on from another one, and the differences of `History`."""
    settings = replace(settings, steps=4 * (settings.silent + 2))  # four of the longest episodes
    keys = jax.random.split(key, 3)
    now, _ = act(settings, model, begin(settings, model, keys[0]), keys[1])
    _, rollout = act(settings, model, now, keys[2])
    return rollout, {
        kind: jnp.abs(again(model, now, rollout, kind)[0] - rollout.logits).max() for kind in RESETS
    }


def train(settings: Settings = Settings(), model: ActorCritic | None = None) -> History:
    """Train, from the seed or from an agent's weights; the agent given is left as it was."""
    rngs = nnx.Rngs(settings.seed)
    model = make_model(settings, rngs) if model is None else nnx.clone(model)
    graph, params = nnx.split(model)
    with Progress("episodes", settings.updates) as progress:
        timed = compile_and_run(make_training(settings, model, progress), params, rngs.episodes())
    trained, key = timed.result, rngs.episodes()
    show = jax.jit(lambda params: play(settings, nnx.merge(graph, params), key))
    (before, _), (after, differences) = (show(p) for p in (params, trained.params))
    nnx.update(model, trained.params)
    returns, right = map(np.asarray, trained.metrics)
    return History(
        losses=np.asarray(trained.losses),
        returns=returns,
        right=right,
        before=jax.tree.map(np.asarray, before),
        after=jax.tree.map(np.asarray, after),
        differences={kind: float(differences[kind]) for kind in RESETS},
        model=model,
        compile_seconds=timed.compile_seconds,
        run_seconds=timed.run_seconds,
    )


def right_by(settings: Settings, **axes: jax.Array) -> np.ndarray:
    """The fraction of right answers before each update, for every combination of seeds and rates.

    ``right_by(settings, seed=jnp.arange(8), lr=jnp.array([0.003, 0.01]))`` is (8, 2, updates).
    """

    def run(seed: Any = settings.seed, lr: Any = settings.lr) -> jax.Array:
        rngs = nnx.Rngs(jax.random.key(seed))
        model = make_model(settings, rngs)
        training = make_training(settings, model)
        return training(nnx.state(model, nnx.Param), rngs.episodes(), lr).metrics[1]

    return np.asarray(sweep(run, **axes).results)


def draw(history: History, settings: Settings) -> Figure:
    """The right answers during training, one environment for some steps, and the agent's state."""
    figure = Figure(figsize=(12.6, 5.6), layout="constrained")
    figure.suptitle(f"Recall of one of {settings.cues} cues: {history.model.rnn} + linear")
    halves: Any = figure.subfigures(1, 2, width_ratios=(2, 3))
    curve, (events, states) = halves[0].subplots(), halves[1].subplots(2, sharex=True)
    curve.plot(history.right, color=plotting.BLUE, label="agent")
    curve.axhline(
        1 / settings.cues, color=plotting.GREY, linestyle="--", label="at best, without a memory"
    )
    curve.set(title="training", xlabel="update", ylabel="right answers", ylim=(-0.02, 1.02))
    curve.grid(color=plotting.GREY, alpha=0.25)
    curve.legend(loc="best")

    one = jax.tree.map(lambda a: a[:40, 0], history.after)
    rows = np.column_stack([one.observations, one.dones, one.resets])
    names = [*(f"cue {cue}" for cue in range(settings.cues)), "question", "done", "reset"]
    events.imshow(rows.T, cmap="Blues", vmin=0, vmax=1.3, aspect="auto", interpolation="nearest")
    for answer, color in (("right", plotting.PALETTE[2]), ("wrong", plotting.VERMILLION)):
        at = np.flatnonzero(one.dones & (one.right == (answer == "right")))
        events.plot(at, one.actions[at], "o", color=color, label=f"{answer} answer")
    events.set_yticks(range(len(names)), names)
    events.set_title("the trained agent in one environment", loc="left")
    events.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small")
    image = states.imshow(
        one.output.T, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
    )
    figure.colorbar(image, ax=states)
    for axis in (events, states):
        for step in np.flatnonzero(one.resets):
            axis.axvline(step - 0.5, color=plotting.PALETTE[-1], linewidth=1)
    states.set_title("its hidden state, from zeros at each line", loc="left")
    states.set(xlabel="step", ylabel="feature")
    return figure


def result(history: History) -> str:
    """What came out, in a line."""
    return f"right {history.after.per_episode(history.after.right):.1%} of the time"


def main(settings: Settings) -> History:
    """Train, print what was learned and what each kind of resets makes of it, save the figure."""
    target = plotting.check_target(settings.out)
    history = train(settings)
    for index in plotting.spread(range(settings.updates), 7):
        print(f"update {index}: return {history.returns[index]:+.2f}", end=", ")
        print(f"right {history.right[index]:.1%}")
    for name, rollout in (("before", history.before), ("after", history.after)):
        earned, right = map(rollout.per_episode, (rollout.rewards, rollout.right))
        print(f"{name} training: return {earned:+.2f}, right {right:.1%} of", rollout.dones.sum())
    bound = 1 / settings.cues
    print(f"without a memory, at best: return {2 * bound - 1:+.2f}, right {bound:.1%}")
    print("logits of one call beside those acted with, largest difference:")
    for kind, difference in history.differences.items():
        print(f"  resets {kind:<7}{difference:.1e}")
    print(f"compiled in {history.compile_seconds:.2f} s", end=", ")
    print(f"{settings.updates} updates in {history.run_seconds:.2f} s")
    print(f"figure: {plotting.save(draw(history, settings), target)}")
    return history
