"""Sample files of the package, and a sine wave."""

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
