"""Sample files of the package, and sine waves that are exact at any phase."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

_FOLDER = Path(__file__).resolve().parent / "samples"


def sample(name: str) -> Path:
    """Return the path of a sample file. A file ``.md`` beside it documents its source.

    Args:
        name: ``"alice.txt"``, five chapters of a novel by Lewis Carroll, 57,560 characters; or
            ``"co2.csv"``, the monthly carbon dioxide at Mauna Loa, 608 months.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> from jaxrnn.data import sample
        >>> sample("alice.txt").read_text(encoding="utf-8")[:14]
        'CHAPTER I. Dow'
    """
    names = sorted(path.name for path in _FOLDER.iterdir() if path.suffix != ".md")
    if name not in names:
        raise ValueError(f"`name` must be one of {', '.join(names)}, got {name!r}")
    return _FOLDER / name


def half_waves(index: jax.Array, points: int) -> tuple[jax.Array, jax.Array]:
    """Return a half wave of a sine and the same values one point later.

    Window k covers ``linspace(k * pi, (k + 1) * pi, points + 1)``, in radians.

    Args:
        index: k, an integer scalar; map over it with `jax.vmap`.
        points: number of points in the window.

    Returns:
        x, the first `points` values (points, 1), and y, the last (points, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.vmap(lambda k: half_waves(k, 20))(jnp.arange(75))
        >>> x.shape, bool((x[:, 1:] == y[:, :-1]).all())
        ((75, 20, 1), True)
    """
    # sin(k pi + t) = (-1)^k sin(t) is exact for any k, where float32 would lose the phase.
    sign = 1 - 2 * (index % 2)
    values = sign * jnp.sin(jnp.linspace(0.0, jnp.pi, points + 1, dtype=jnp.float32))
    return values[:-1, None], values[1:, None]


def wave(points: int, period: int) -> jax.Array:
    """Return ``sin(2 pi t / period)`` for t = 0 ... points - 1, float32 of shape (points,).

    Args:
        points: number of values.
        period: number of points in a wave.

    Example:
        >>> wave(4, 4).round(3).tolist()
        [0.0, 1.0, -0.0, -1.0]
    """
    # Integer arithmetic reduces the phase exactly for any t.
    phase = (jnp.arange(points) % period).astype(jnp.float32)
    return jnp.sin(2 * jnp.pi / period * phase)
