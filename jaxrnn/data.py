"""Data as pure functions, to be mapped with `vmap` and compiled with `jit`."""

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
