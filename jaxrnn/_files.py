"""Files that are there whole or not at all, and those of arrays among them."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a file beside `path`, then move it there.

    What was there before stays if anything fails, and nothing else is left behind. A link is
    followed; the permissions of a file that is replaced stay; what is no file, as ``/dev/stdout``,
    is written to as it is.

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
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    there = target.exists()
    if there and not target.is_file():
        write(target)
        return path
    # Named by who writes it: the name of the target may be as long as names can be.
    name = f".part-{os.getpid()}-{threading.get_ident()}{target.suffix}"
    temporary = target.with_name(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if there:
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        # The reader knows the file by its own name.
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], **metadata: str
) -> Path:
    """Write arrays to a safetensors file, whose header says what `metadata` does."""
    from safetensors.numpy import save

    data = save(dict(arrays), metadata={"format": "pt"} | metadata)
    return write_whole(Path(path), lambda temporary: temporary.write_bytes(data))


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, and what its header says.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, or has numbers that NumPy has not.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # the operating system's own words for a file that can't be read
        pass
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{os.fspath(path)} is not a safetensors file, or not all of one: {error}"
        ) from error
    except (TypeError, AttributeError) as error:  # of 8 bits and fewer, by NumPy's own words
        raise ValueError(
            f"{os.fspath(path)} has numbers of a dtype that NumPy has not: {error}"
        ) from error


def check_apart(what: str, path: str | os.PathLike[str], *read: str | os.PathLike[str]) -> None:
    """Whether a file to write is none of those that are read.

    Raises:
        ValueError: if it is, under whatever name.
    """
    for source in read:
        with contextlib.suppress(OSError):  # of which one isn't there
            if os.path.samefile(path, source):
                raise ValueError(
                    f"{what} {os.fspath(path)!r}: that is the file which is read, "
                    f"{os.fspath(source)!r}"
                )
