"""Sines, sampled so that they stay exact however far they go."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def half_waves(index: jax.Array, points: int) -> tuple[jax.Array, jax.Array]:
    """One window of a sine and the same window one point later.

    The window with number k covers ``linspace(k * pi, (k + 1) * pi, points + 1)``, in radians.

    Args:
        index: k, an integer scalar; map over it with `jax.vmap`.
        points: points in the window.

    Returns:
        x, the first `points` values (points, 1), and y, the last (points, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.vmap(lambda k: half_waves(k, 20))(jnp.arange(75))
        >>> x.shape, bool((x[:, 1:] == y[:, :-1]).all())
        ((75, 20, 1), True)
    """
    # sin(k pi + t) = (-1)^k sin(t): exact for any k, where float32 would lose the phase.
    sign = 1 - 2 * (index % 2)
    wave = sign * jnp.sin(jnp.linspace(0.0, jnp.pi, points + 1, dtype=jnp.float32))
    return wave[:-1, None], wave[1:, None]


def wave(points: int, period: int) -> jax.Array:
    """A sine at whole numbers, ``sin(2 pi t / period)`` for t = 0 ... points - 1.

    Args:
        points: how many values.
        period: points in one wave.

    Returns:
        The values (points,), float32.

    Example:
        >>> wave(4, 4).round(3).tolist()
        [0.0, 1.0, -0.0, -1.0]
    """
    # The whole waves are taken off as integers: exact for any t, as in `half_waves`.
    phase = (jnp.arange(points) % period).astype(jnp.float32)
    return jnp.sin(2 * jnp.pi / period * phase)
