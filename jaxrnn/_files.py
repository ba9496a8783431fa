"""Atomic writes, checks of paths, and safetensors files with a description of their model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_Model = TypeVar("_Model")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file through a temporary file beside it, so that a failure changes nothing.

    `write` is a function of the temporary path, which has the suffix of `path`. Symbolic links are
    followed, permissions of an existing file are preserved, and special files such as
    ``/dev/stdout`` are written to directly.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    exists = target.exists()
    if exists and not target.is_file():
        write(target)
        return path
    # Not derived from the name of the target, which may have the maximal length.
    name = f".part-{os.getpid()}-{threading.get_ident()}{target.suffix}"
    temporary = target.with_name(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if exists:
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def decode_utf8(path: str | os.PathLike[str], content: bytes) -> str:
    """Decode the content of a file; errors name the file, the line and the byte."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ValueError(
            f"{os.fspath(path)}, line {line}: byte {byte:#04x} is not UTF-8 text"
        ) from None


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], **metadata: str
) -> Path:
    """Write arrays to a safetensors file with `metadata` in its header."""
    from safetensors.numpy import save

    data = save(dict(arrays), metadata={"format": "pt"} | metadata)
    return write_atomically(Path(path), lambda temporary: temporary.write_bytes(data))


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a safetensors file and the metadata of its header."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # raises the operating system's error
        pass
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{os.fspath(path)} is not a safetensors file, or is truncated: {error}"
        ) from error
    except (TypeError, AttributeError) as error:  # a dtype of at most 8 bits
        raise ValueError(
            f"{os.fspath(path)} has a dtype that NumPy does not support: {error}"
        ) from error


def read_model(
    path: str | os.PathLike[str],
    entry: str,
    kind: str,
    build: Callable[[Any, dict[str, np.ndarray]], _Model],
) -> _Model:
    """Read a model of some `kind` from a safetensors file.

    `entry` is the key of a JSON description in the header. `build` returns the model for the
    description and the arrays. Its exceptions become a ValueError that names the file.
    """
    arrays, metadata = read_safetensors(path)
    name = os.fspath(path)
    if entry not in metadata:
        raise ValueError(f"{name} is a safetensors file, but not of a {kind}")
    for parameter, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} is a corrupt {kind}: {parameter!r} contains non-finite values"
            )
    try:
        return build(json.loads(metadata[entry]), arrays)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        missing = isinstance(error, KeyError)
        cause = f"{error} is missing" if missing else " ".join(str(error).split())
        raise ValueError(f"{name} is a corrupt {kind}: {cause}") from None


def check_shapes(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Check the shapes of arrays before a model of any size is built; None is any shape."""
    for name, shape in expected.items():
        actual = arrays[name].shape if name in arrays else None
        if actual is None or shape not in (None, actual):
            raise ValueError(
                f"{name} must have {f'shape {shape}' if shape else 'a value'}, got "
                f"{'nothing' if actual is None else actual}"
            )
