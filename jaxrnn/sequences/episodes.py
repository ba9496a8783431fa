"""Reset masks for reinforcement learning, and a memory task as an environment."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError

__all__ = ["Recall", "RecallParams", "RecallState", "resets_from_dones"]


def resets_from_dones(dones: Any, last_done: Any) -> jax.Array:
    """Convert the `dones` of an environment to the `resets` of a layer.

    .. code-block:: text

        step t:      state_t = layer(observation_t, state_{t-1});  done_t = env.step(action_t)
        resets[0]  = last_done
        resets[t]  = dones[t - 1]         for t = 1 ... T - 1

    If ``done_t`` is True, observation t is the last of its episode and observation t + 1 is the
    first of the next one. The state has to be reset before observation t + 1. With
    ``resets=dones`` it would be lost one step early and leak into the next episode.

    Args:
        dones: episode ends, bool (T, N), or (T,) for one environment. Time comes first; transpose
            the result for a `batch_first` layer.
        last_done: ``dones[-1]`` of the previous rollout, bool (N,), or () for one environment. Has
            no effect if the initial state is zero.

    Returns:
        The reset mask, bool, of the shape of `dones`.

    Raises:
        TypeError: if an argument is not bool.
        ValueError: if the shapes are inconsistent or T is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.sequences.episodes import resets_from_dones
        >>> dones = jnp.array([False, False, True, False])  # the episode ends with step 2
        >>> resets_from_dones(dones, jnp.array(True)).tolist()
        [True, False, False, True]
    """
    dones, last_done = jnp.asarray(dones), jnp.asarray(last_done)
    for name, value in (("dones", dones), ("last_done", last_done)):
        if value.dtype != bool:
            raise TypeError(
                f"`{name}` must be bool, got {value.dtype.name}. Convert it: {name}.astype(bool)"
            )
    if dones.ndim not in (1, 2) or not dones.shape[0]:
        raise ShapeError(f"`dones` must be (T, N) or (T,), T at least 1, got shape {dones.shape}")
    if last_done.shape != dones.shape[1:]:
        raise ShapeError(
            f"`last_done` must have shape {dones.shape[1:]}, that of dones[-1], got "
            f"{last_done.shape}"
        )
    return jnp.concatenate([last_done[None], dones[:-1]])


class RecallParams(NamedTuple):
    """Inclusive bounds of the number of silent steps of a `Recall` episode."""

    shortest: Any = 1
    longest: Any = 6


class RecallState(NamedTuple):
    """Cue and number of steps until the question of a `Recall` episode, int32 ()."""

    cue: jax.Array
    left: jax.Array


class Recall:
    """Environment that shows a cue, is silent for a random number of steps, and asks for the cue.

    .. code-block:: text

        step            0        1 ... d            d + 1
        observation     cue      zeros              question
        action          ignored  ignored            right if it is the index of the cue
        reward          0        0                  +1 if right, -1 if wrong
        done            False    False              True

    The cue is uniform over `cues` classes and d is uniform from `shortest` to `longest`. The
    question looks the same after every cue: without memory, the probability of a right answer is
    1 / cues and the expected return is 2 / cues - 1.

    The interface is that of gymnax (R. T. Lange, 2022) for one environment; use `jax.vmap` for a
    batch. The observation is float32 (cues + 1,), the one-hot cue and the flag of the question; the
    action is an integer in [0, cues); the reward is float32 and `done` is bool.

    Args:
        cues: number of cues and of actions.

    Example:
        >>> import jax
        >>> env, key = Recall(2), jax.random.key(0)
        >>> observation, state = env.reset(key, RecallParams(shortest=1, longest=1))
        >>> for _ in range(3):
        ...     current, action = observation.tolist(), state.cue
        ...     observation, state, reward, done, info = env.step(key, state, action)
        ...     current, reward.item(), done.item()
        ([0.0, 1.0, 0.0], 0.0, False)
        ([0.0, 0.0, 0.0], 0.0, False)
        ([0.0, 0.0, 1.0], 1.0, True)

    Source: the T-maze of B. Bakker, Reinforcement learning with long short-term memory, NIPS 2001,
    without the walk.
    """

    def __init__(self, cues: int = 4):
        self.cues = cues

    @property
    def default_params(self) -> RecallParams:
        """Parameters with 1 to 6 silent steps."""
        return RecallParams()

    def reset(
        self, key: jax.Array, params: RecallParams = RecallParams()
    ) -> tuple[jax.Array, RecallState]:
        """Return the first observation of an episode and its state."""
        # One draw for both numbers: the generator dominates the compile time of the environment.
        uniform = jax.random.uniform(key, (2,), jnp.float32)
        sizes = jnp.array([self.cues, params.longest - params.shortest + 1], jnp.float32)
        cue, silent = jnp.floor(uniform * sizes).astype(jnp.int32)
        left = jnp.asarray(params.shortest + silent + 1, jnp.int32)
        return jax.nn.one_hot(cue, self.cues + 1, dtype=jnp.float32), RecallState(cue, left)

    def step(
        self,
        key: jax.Array,
        state: RecallState,
        action: jax.Array,
        params: RecallParams = RecallParams(),
    ) -> tuple[jax.Array, RecallState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Advance one step, and start the next episode after the last step of one.

        Returns:
            ``(observation, state, reward, done, info)``. If `done`, the observation and the state
            are the first of the next episode. ``info["right"]`` is True for a right answer.
        """
        done = state.left == 0
        right = done & (action == state.cue)
        reward = jnp.where(done, jnp.where(right, 1.0, -1.0), 0.0).astype(jnp.float32)
        next_state = RecallState(state.cue, state.left - 1)
        question = jax.nn.one_hot(self.cues, self.cues + 1, dtype=jnp.float32)
        observation = jnp.where(next_state.left == 0, question, jnp.zeros_like(question))
        observation, next_state = jax.tree.map(
            lambda first, following: jnp.where(done, first, following),
            self.reset(key, params),
            (observation, next_state),
        )
        return observation, next_state, reward, done, {"right": right}
