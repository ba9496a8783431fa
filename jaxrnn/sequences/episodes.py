"""Episodes that end inside of a row: where the reset of the state belongs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._checks import ShapeError


def resets_from_dones(dones: Any, last_done: Any) -> jax.Array:
    """The `resets` of a layer from the `dones` of an environment.

    .. code-block:: text

        step t:      state_t = layer(observation_t, state_{t-1});  done_t = env.step(action_t)
        resets[0]  = last_done            the done of the step before the first one here
        resets[t]  = dones[t - 1]         for t = 1 ... T - 1

    An environment says after step t that the episode is over, so `done_t` belongs to the step that
    follows: observation t + 1 is the first of the next episode and has to meet a state of zeros,
    while observation t is the last of the old one and needs the state. With ``resets=dones`` the
    state is lost just before the last step of every episode, and leaks into the first of the next.

    The last `done` of a rollout belongs to the first step of the next: hand ``dones[-1]`` on, with
    the state, as its `last_done`. Before the very first step either value will do where the state
    is zeros.

    Args:
        dones: bool, (T, N), or (T,) for one environment; time first, also for a layer that is
            `batch_first`, whose resets are the result transposed.
        last_done: bool, (N,), or () for one environment.

    Returns:
        The resets, bool, shaped as `dones`.

    Raises:
        TypeError: for anything but bool.
        ValueError: for shapes that don't fit, T = 0 included.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.sequences.episodes import resets_from_dones
        >>> dones = jnp.array([False, False, True, False])  # the episode ends with step 2
        >>> resets_from_dones(dones, jnp.array(True)).tolist()  # another had ended just before
        [True, False, False, True]
    """
    dones, last_done = jnp.asarray(dones), jnp.asarray(last_done)
    for name, value in (("dones", dones), ("last_done", last_done)):
        if value.dtype != bool:
            raise TypeError(
                f"{name} should be bool, got {value.dtype.name}. Convert it: {name}.astype(bool)"
            )
    if dones.ndim not in (1, 2) or not dones.shape[0]:
        raise ShapeError(f"dones should be (T, N) or (T,), T at least 1, got {dones.shape}")
    if last_done.shape != dones.shape[1:]:
        raise ShapeError(
            "last_done should be the dones of one step. "
            f"Expected shape {dones.shape[1:]}, got {last_done.shape}"
        )
    return jnp.concatenate([last_done[None], dones[:-1]])
