"""Characters as numbers, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Vocabulary:
    """Characters and their numbers; hashable, so that it may be a static argument of `jax.jit`.

    Args:
        characters: the characters, each at the place of its number.

    Raises:
        ValueError: for no characters, or one that is there twice.

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
        >>> vocabulary.encode("hey")
        Traceback (most recent call last):
        ValueError: character 'y' at place 2 is not one of the 5 of the vocabulary: 'hielo'

        Windows of a text, and from each of their characters the next:

        >>> x, y = Windows(3, every_step=True).take(ids, [0, 1])
        >>> [vocabulary.decode(row) for row in (*x, *y)]
        ['hel', 'ell', 'ell', 'llo']
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters:
            raise ValueError("a vocabulary needs at least one character")
        if len(set(self.characters)) < len(self.characters):
            twice = next(c for c in self.characters if self.characters.count(c) > 1)
            raise ValueError(f"character {twice!r} is in the vocabulary more than once")

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The different characters of a text, in the order in which they appear."""
        return cls("".join(dict.fromkeys(text)))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the characters of a text (T,), int32, for an embedding or `one_hot`.

        Raises:
            ValueError: for a character that is not in the vocabulary: which, and where.
        """
        known, codes = _codes(self.characters), _codes(text)
        order = np.argsort(known)
        places = np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)
        ids = order[places].astype(np.int32)
        unknown = np.flatnonzero(known[ids] != codes)
        if unknown.size:
            place = int(unknown[0])
            shown = self.characters if len(self) <= 40 else self.characters[:40] + "..."
            raise ValueError(
                f"character {text[place]!r} at place {place} is not one of the {len(self)} of the "
                f"vocabulary: {shown!r}"
            )
        return ids

    def decode(self, ids: Any) -> str:
        """The text of numbers (T,).

        Raises:
            ValueError: for numbers of another shape or dtype, or that no character has.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
            raise ValueError(f"ids should be integers (T,), got {ids.dtype} {ids.shape}")
        wrong = np.flatnonzero((ids < 0) | (ids >= len(self)))
        if wrong.size:
            place = int(wrong[0])
            raise ValueError(
                f"id {ids[place]} at place {place} is not one of the {len(self)} of the "
                f"vocabulary, 0 to {len(self) - 1}"
            )
        return "".join(self.characters[number] for number in ids)

    def one_hot(self, ids: Any, dtype: Any = jnp.float32) -> jax.Array:
        """Numbers (...) as vectors (..., D) with one 1 each, D the characters there are; pure."""
        return jax.nn.one_hot(jnp.asarray(ids), len(self), dtype=dtype)


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
    vocabulary = Vocabulary.of(text)
    ids = jnp.asarray(vocabulary.encode(text))
    return vocabulary.characters, vocabulary.one_hot(ids[:-1]), ids[1:]


def _codes(text: str) -> np.ndarray:
    """The code points of a text; half of a surrogate pair is one too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
