"""A text as numbers in windows: what there is to learn from, and what is held out.

Axis letters: S characters of the text, K windows, T steps in a window, N rows, V characters there
are.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrnn import _checks as checks
from jaxrnn.data import Vocabulary, streams

LEAST = 100
"""The characters that a text has to have."""


def read_text(path: str | os.PathLike[str]) -> str:
    r"""The text of a UTF-8 file, with a byte order mark or without; every end of line a newline.

    Raises:
        ValueError: for bytes that are not UTF-8: which, and in which line.
        OSError: for a file that can't be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.txt")
        ...     _ = path.write_bytes(b"one\r\ntwo")
        ...     read_text(path)
        'one\ntwo'
    """
    found = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = found.decode()
    except UnicodeDecodeError as error:
        line, byte = found.count(b"\n", 0, error.start) + 1, found[error.start]
        raise ValueError(
            f"{os.fspath(path)}, line {line}: byte {byte:#04x} is not UTF-8 text"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


class Text(NamedTuple):
    """A text that is to be learned.

    Attributes:
        vocabulary: its characters, V of them, those of the held-out parts too.
        numbers: the number of each character (S,), int32.
        cut: how many of them there are to learn from.
        learned, watched, held_out: the places of the characters of the three parts, each to be
            predicted from all before it in its row, as windows (K, T, N): row n goes on from
            window to window. What does not fill a window of all rows, at the end of each row, is
            left out.
    """

    vocabulary: Vocabulary
    numbers: np.ndarray
    cut: int
    learned: np.ndarray
    watched: np.ndarray
    held_out: np.ndarray

    def pairs(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The characters before these places, and those at them, shaped as the places."""
        return self.numbers[places - 1], self.numbers[places]


def prepare(
    text: str, *, window: int = 64, rows: int = 16, share: float = 0.1, name: str = "the text"
) -> Text:
    """Number the characters of a text, and cut it into three parts and those into windows.

    .. code-block:: text

        | learned ................................... | watched | held out |      in this order
        learned[k, t, n] = 1 + n * each + k * T + t,     each = (cut - 1) // N steps in a row

    By the second part one sees when to stop learning, by the third what was learned.

    Args:
        text: at least 100 characters, two of them different.
        window: T, steps in a window; fewer where a part has less.
        rows: N, rows side by side; fewer where they would not be a window long. Those of the
            other parts have at least 2000 characters, so that what a row's first characters
            cost, of which nothing before is known, does not count for much.
        share: of the text in the second part, and in the third, above 0 and at most 0.25.
        name: what the text is called in messages.

    Raises:
        ValueError: for a text that is empty, too short, or one character over and over; for
            settings that can't be.

    Example:
        >>> text = prepare("to be or not " * 20, window=8, rows=4)
        >>> text.cut, text.learned.shape, text.watched.shape, text.held_out.shape
        (208, (6, 8, 4), (3, 8, 1), (3, 8, 1))
        >>> x, y = text.pairs(text.learned)
        >>> text.vocabulary.decode(x[0, :, 0]), text.vocabulary.decode(y[0, :, 0])
        ('to be or', 'o be or ')
    """
    checks.at_least("window", window, 1)
    checks.at_least("rows", rows, 1)
    check_share(share)
    if not text:
        raise ValueError(f"{name} is empty")
    if len(text) < LEAST:
        raise ValueError(f"{name} has {len(text)} characters, at least {LEAST} are needed")
    vocabulary = Vocabulary.of(text)
    if len(vocabulary) < 2:
        raise ValueError(f"{name} is {text[0]!r} over and over, there is nothing to learn from it")
    held_out = max(1, round(share * len(text)))
    cut, end = len(text) - 2 * held_out, len(text) - held_out
    few = min(rows, held_out // 2000)
    return Text(
        vocabulary,
        vocabulary.encode(text),
        cut,
        _windows(1, cut, window, min(rows, cut // window)),
        _windows(cut, end, window, few),
        _windows(end, len(text), window, few),
    )


def check_share(share: float) -> None:
    """Whether so much of a text can be held out."""
    if not 0 < share <= 0.25:
        raise ValueError(f"share should be above 0 and at most 0.25, got {share!r}")


def _windows(start: int, end: int, window: int, rows: int) -> np.ndarray:
    """The places from start to end, in rows one after another, in windows (K, T, N)."""
    row = streams(np.arange(start, end, dtype=np.int32), max(rows, 1), drop_last=True)
    window = min(window, len(row))
    count = len(row) // window
    return row[: count * window].reshape(count, window, -1)
