"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a file beside `path`, then move it there.

    What was there before stays if anything fails, and nothing else is left behind.

    Args:
        path: where the file shall be.
        write: called with the path to write to, which has the same suffix.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_whole(Path(folder, "a.txt"), lambda p: p.write_text("whole"))
        ...     path.read_text(), len(list(Path(folder).iterdir()))
        ('whole', 1)
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):  # the reader knows the file by its own name
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path
