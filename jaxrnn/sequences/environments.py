"""An environment that can be solved by remembering only, as pure functions under `vmap` and `scan`.

The calls are those of gymnax (R. T. Lange, 2022): a rollout written for this environment runs with
gymnax's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class RecallParams(NamedTuple):
    """What may be changed from call to call.

    Attributes:
        shortest, longest: bounds of the number of silent steps in an episode, both included.
    """

    shortest: Any = 1
    longest: Any = 6


class RecallState(NamedTuple):
    """Where an episode is.

    Attributes:
        cue: the number of the cue shown, int32 ().
        left: steps until the question, 0 at the question itself, int32 ().
    """

    cue: jax.Array
    left: jax.Array


class Recall:
    """Which of the signs was it? A cue, silence of random length, and the question.

    .. code-block:: text

        step            0        1 ... d            d + 1
        observation     cue      zeros              question
        action          ignored  ignored            right if it is the number of the cue
        reward          0        0                  +1 if right, -1 if wrong
        done            False    False              True

    Each episode draws one of `cues` cues and d, from `shortest` to `longest`, both uniformly. The
    observation of the question is the same after every cue: an agent without a memory is right
    with a probability of 1 / cues, whatever it does, and gets 2 / cues - 1 an episode.

    Args:
        cues: how many cues and actions there are.

    Calls, each for one environment, to be mapped with `jax.vmap`:

    - ``reset(key, params) -> (observation, state)``.
    - ``step(key, state, action, params) -> (observation, state, reward, done, info)``. After the
      last step of an episode the observation and the state are already the first of the next one;
      `reward` and `done` are still those of the step. ``info["right"]`` is whether the question
      was answered rightly in this step.

    The observation is float32 (cues + 1,): the cue one-hot, and a 1 at the question. The action is
    an integer from 0 to cues - 1, the reward float32, `done` bool.

    Example:
        >>> import jax
        >>> env, key = Recall(2), jax.random.key(0)
        >>> observation, state = env.reset(key, RecallParams(shortest=1, longest=1))
        >>> for _ in range(3):
        ...     now, action = observation.tolist(), state.cue
        ...     observation, state, reward, done, info = env.step(key, state, action)
        ...     now, reward.item(), done.item()
        ([0.0, 1.0, 0.0], 0.0, False)
        ([0.0, 0.0, 0.0], 0.0, False)
        ([0.0, 0.0, 1.0], 1.0, True)

    Source: the T-maze of B. Bakker, Reinforcement learning with long short-term memory, NIPS 2001,
    without the walking.
    """

    def __init__(self, cues: int = 4):
        self.cues = cues

    @property
    def default_params(self) -> RecallParams:
        """From 1 to 6 silent steps."""
        return RecallParams()

    def reset(
        self, key: jax.Array, params: RecallParams = RecallParams()
    ) -> tuple[jax.Array, RecallState]:
        """The first observation of an episode, the cue, and its state."""
        # One draw for both: the generator takes longer to compile than the rest of the environment.
        both = jax.random.uniform(key, (2,), jnp.float32)
        choices = jnp.array([self.cues, params.longest - params.shortest + 1], jnp.float32)
        cue, silent = jnp.floor(both * choices).astype(jnp.int32)
        left = jnp.asarray(params.shortest + silent + 1, jnp.int32)
        return jax.nn.one_hot(cue, self.cues + 1, dtype=jnp.float32), RecallState(cue, left)

    def step(
        self,
        key: jax.Array,
        state: RecallState,
        action: jax.Array,
        params: RecallParams = RecallParams(),
    ) -> tuple[jax.Array, RecallState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """One step, and the beginning of the next episode where this one is over."""
        done = state.left == 0
        right = done & (action == state.cue)
        reward = jnp.where(done, jnp.where(right, 1.0, -1.0), 0.0).astype(jnp.float32)
        later = RecallState(state.cue, state.left - 1)
        question = jax.nn.one_hot(self.cues, self.cues + 1, dtype=jnp.float32)
        observation = jnp.where(later.left == 0, question, jnp.zeros_like(question))
        observation, later = jax.tree.map(
            lambda new, old: jnp.where(done, new, old),
            self.reset(key, params),
            (observation, later),
        )
        return observation, later, reward, done, {"right": right}
