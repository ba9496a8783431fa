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


def windows(values: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Every `size` values in a row, and the value that follows them.

    Args:
        values: a series (T,).
        size: D, less than T.

    Returns:
        x, the windows (T - D, D), and y, the next values (T - D, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = windows(jnp.arange(5), 3)
        >>> x.tolist(), y.tolist()
        ([[0, 1, 2], [1, 2, 3]], [[3], [4]])
    """
    starts = jnp.arange(len(values) - size)
    return values[starts[:, None] + jnp.arange(size)[None]], values[size:, None]


def next_characters(text: str) -> tuple[str, jax.Array, jax.Array]:
    """A text as one-hot characters, and the number of the character that follows each.

    Args:
        text: at least two characters.

    Returns:
        The different characters, D of them in the order in which they appear; x, all characters
        of the text but the last (T, D), float32; y, the numbers of all but the first (T,), int32.

    Example:
        >>> characters, x, y = next_characters("hihello")
        >>> characters, x.shape, y.tolist()
        ('hielo', (6, 5), [1, 0, 2, 3, 3, 4])
    """
    characters = "".join(dict.fromkeys(text))
    numbers = jnp.array([characters.index(c) for c in text], jnp.int32)
    return characters, jax.nn.one_hot(numbers[:-1], len(characters), dtype=jnp.float32), numbers[1:]
