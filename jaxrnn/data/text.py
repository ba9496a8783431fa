"""Characters as integer ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Vocabulary:
    """Mapping between characters and integer ids; hashable, so a static argument of `jax.jit`.

    Args:
        characters: distinct characters; the id of each is its position.

    Raises:
        ValueError: for an empty string, or a repeated character.

    Example:
        >>> from jaxrnn.data import Vocabulary, Windows
        >>> vocabulary = Vocabulary.of("hihello")
        >>> vocabulary.characters, len(vocabulary)
        ('hielo', 5)
        >>> ids = vocabulary.encode("hello")
        >>> ids.tolist(), vocabulary.decode(ids)
        ([0, 2, 3, 3, 4], 'hello')
        >>> vocabulary.one_hot(ids).shape  # or nnx.Embed(len(vocabulary), features)(ids)
        (5, 5)

        Windows of a text with the next character of each as the target:

        >>> x, y = Windows(3, every_step=True).take(ids, [0, 1])
        >>> [vocabulary.decode(window) for window in (*x, *y)]
        ['hel', 'ell', 'ell', 'llo']
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters:
            raise ValueError("`characters` must have at least one character")
        if len(set(self.characters)) < len(self.characters):
            repeated = next(c for c in self.characters if self.characters.count(c) > 1)
            raise ValueError(f"`characters` must be distinct, got {repeated!r} more than once")

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Return the distinct characters of a text, in order of their first occurrence."""
        return cls("".join(dict.fromkeys(text)))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text (T,), int32.

        Raises:
            ValueError: for a character outside the vocabulary.
        """
        ids = {character: number for number, character in enumerate(self.characters)}
        try:
            return np.fromiter(map(ids.__getitem__, text), np.int32, len(text))
        except KeyError as error:
            unknown = error.args[0]
            shown = self.characters if len(self) <= 40 else self.characters[:40] + "..."
            raise ValueError(
                f"character {unknown!r} at position {text.index(unknown)} is not in the vocabulary "
                f"of {len(self)} characters {shown!r}"
            ) from None

    def decode(self, ids: Any) -> str:
        """Return the text of ids (T,).

        Raises:
            ValueError: for ids of another shape or dtype, or out of bounds.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
            raise ValueError(f"`ids` must be integers (T,), got {ids.dtype} {ids.shape}")
        invalid = np.flatnonzero((ids < 0) | (ids >= len(self)))
        if invalid.size:
            position = int(invalid[0])
            raise ValueError(
                f"`ids` must be < {len(self)}, the size of the vocabulary, and >= 0, got "
                f"{ids[position]} at position {position}"
            )
        return "".join(self.characters[number] for number in ids)

    def one_hot(self, ids: Any, dtype: Any = jnp.float32) -> jax.Array:
        """Return the one-hot vectors of ids (...): (..., D) with D the size of the vocabulary."""
        return jax.nn.one_hot(jnp.asarray(ids), len(self), dtype=dtype)


def next_characters(text: str) -> tuple[str, jax.Array, jax.Array]:
    """Return the one-hot characters of a text, and the id of the character after each.

    Args:
        text: at least two characters.

    Returns:
        The D distinct characters, in order of their first occurrence; x, all characters but the
        last (T, D), float32; y, the ids of all characters but the first (T,), int32.

    Example:
        >>> characters, x, y = next_characters("hihello")
        >>> characters, x.shape, y.tolist()
        ('hielo', (6, 5), [1, 0, 2, 3, 3, 4])
    """
    vocabulary = Vocabulary.of(text)
    ids = jnp.asarray(vocabulary.encode(text))
    return vocabulary.characters, vocabulary.one_hot(ids[:-1]), ids[1:]
