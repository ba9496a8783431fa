"""The real data that comes with the package: a path to a file, to try things with."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "samples"


def sample(name: str) -> Path:
    """The path of a file that comes with the package; beside each is a note of its source, .md.

    Args:
        name: ``alice.txt``, five chapters of a novel by Lewis Carroll, 57,560 characters;
            ``co2.csv``, the carbon dioxide in the air at Mauna Loa, 608 months.

    Raises:
        ValueError: for a name that there is not.

    Example:
        >>> from jaxrnn.data import sample
        >>> sample("alice.txt").read_text(encoding="utf-8")[:14]
        'CHAPTER I. Dow'
    """
    there = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".md")
    if name not in there:
        raise ValueError(f"there is no sample {name!r}, there are {', '.join(there)}")
    return FOLDER / name
