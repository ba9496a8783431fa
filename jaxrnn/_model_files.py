"""A model as one safetensors file: its weights, and in its header what makes it again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax import nnx

from jaxrnn._files import read_safetensors, write_safetensors
from jaxrnn.interop.torch import state_dict

Model = TypeVar("Model")


def write(path: str | os.PathLike[str], model: nnx.Module, entry: str, described: Any) -> Path:
    """Write a model; what was there before stays until the file is whole.

    Args:
        path: the file.
        model: whose parameters it holds, under PyTorch's names.
        entry: where in the header the description is.
        described: the description, which is kept as JSON.

    Raises:
        OSError: if it can't be written.
    """
    return write_safetensors(path, state_dict(model), **{entry: json.dumps(described)})


def read(
    path: str | os.PathLike[str],
    entry: str,
    what: str,
    make: Callable[[Any, dict[str, np.ndarray]], Model],
) -> Model:
    """Read a model that `write` has written.

    Args:
        path: the file.
        entry: where in the header the description is.
        what: what the model is, for messages: "character model".
        make: makes it of the description and the arrays.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, or not all of it.
    """
    arrays, metadata = read_safetensors(path)
    where = os.fspath(path)
    if entry not in metadata:
        raise ValueError(f"{where} is a safetensors file, but not of a {what}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{where} is no good {what}: {name} has numbers that are not finite")
    try:
        return make(json.loads(metadata[entry]), arrays)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        words = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{where} is not a whole {what}: {words}") from None


def check_shapes(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Whether arrays are there with these shapes, None for any: before a model of any size is made.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, shape in expected.items():
        if name not in arrays or shape not in (None, arrays[name].shape):
            found = arrays[name].shape if name in arrays else "nothing"
            raise ValueError(f"{name} should be there, {shape or 'of any shape'}, found {found}")
