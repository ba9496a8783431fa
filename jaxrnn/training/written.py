"""A checkpoint on the disk: what is in it, whether it is whole, and what went wrong with it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.backends import sharding as devices

FORMAT = "jaxrnn checkpoint 2"
MANIFEST, ARRAYS = "manifest.json", "arrays"


class CheckpointError(OSError):
    """A checkpoint that can't be written, or none that can be read."""


class Damaged(Exception):
    """A checkpoint that is not whole, and how."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole.

    Attributes:
        path: its folder.
        step: how many steps had been done.
        facts: what is in it beside the arrays.
        leaves: the shape and the dtype of each array by name.
    """

    path: Path
    step: int
    facts: dict[str, Any]
    leaves: dict[str, Any]

    def check(self, expected: dict[str, Any], names: list[str]) -> None:
        """Whether these arrays of the checkpoint are those that are expected, in every shape.

        Raises:
            ValueError: naming some of those that are not.
        """
        here = {name: kind(leaf) for name, leaf in expected.items()}
        there = {name: self.leaves[name] for name in names}
        wrong = [
            f"{name} is {_words(there.get(name))}, expected {_words(here.get(name))}"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
        if wrong:
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(
                f"checkpoint {self.path} is one of another model or optimiser: "
                f"{'; '.join(wrong[:3])}{more}"
            )

    def read(self, like: dict[str, Any] | None = None, names: list[str] | None = None) -> Any:
        """Arrays by name: those in `like` as JAX arrays placed as these, or `names` as NumPy's."""
        import orbax.checkpoint as ocp

        wanted = {} if like is None else {n: plain(a) for n, a in like.items()}
        read = {n: a for n, a in wanted.items() if not a.size}  # those are not written
        arguments: dict[str, Any] = {
            name: ocp.ArrayRestoreArgs(sharding=jnp.asarray(a).sharding)
            for name, a in wanted.items()
            if a.size
        }
        among = jax.process_count() > 1  # each process reads all of it, and keeps its part
        for name in [*(names or []), *(arguments if among else [])]:
            arguments[name] = ocp.RestoreArgs(restore_type=np.ndarray)
        item: Any = {name: wanted.get(name, 0) for name in arguments}

        def restore() -> None:
            read.update(
                checkpointer().restore(
                    self.path / ARRAYS,
                    item=item,
                    restore_args=arguments,
                    partial_restore=True,
                )
            )

        wrong = failure(restore) if arguments else None
        if wrong is not None:
            raise CheckpointError(f"checkpoint {self.path} can't be read: {wrong[1]}")
        for name in wanted if among else []:
            read[name] = devices.put(read[name], jnp.asarray(wanted[name]).sharding)
        for name, leaf in (like or {}).items():
            if _is_key(leaf):
                read[name] = jax.random.wrap_key_data(read[name], impl=jax.random.key_impl(leaf))
        return read


def named(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a pytree by their paths.

    Example:
        >>> list(named({"rnn": [1, 2]}, "params"))
        ['params/rnn/0', 'params/rnn/1']
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = name_of(path, prefix)
        if name in leaves:
            raise ValueError(f"two arrays have the name {name!r}")
        leaves[name] = leaf
    return leaves


def unnamed(tree: Any, leaves: dict[str, Any], prefix: str = "") -> Any:
    """A pytree like another, with the leaves of these names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[name_of(path, prefix)], tree)


def name_of(path: Any, prefix: str = "") -> str:
    """The name of a leaf, of its path in a pytree."""
    words = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    if words and isinstance(path[-1], jax.tree_util.GetAttrKey) and words[-1] == "value":
        words = words[:-1]  # of a Flax variable
    return "/".join([prefix, *words] if prefix else words) or "value"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain(leaf: Any) -> Any:
    """What can be written of an array: of random keys, the integers that they are."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def kind(leaf: Any) -> list[Any]:
    """Shape and dtype, as JSON has them."""
    leaf = plain(leaf)
    return [list(np.shape(leaf)), np.dtype(jnp.result_type(leaf)).name]


def _words(kind: Any) -> str:
    return "missing" if kind is None else f"{kind[1]} {tuple(kind[0])}"


def print_of(path: Path) -> list[int]:
    """The size and the checksum of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]


def sum_of(manifest: dict[str, Any]) -> int:
    """The checksum of a manifest, of all that is in it beside the checksum."""
    rest = {name: value for name, value in manifest.items() if name != "sum"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def open_whole(path: Path, step: int) -> Saved:
    """A checkpoint, after a look at every file of it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise Damaged(f"is of another format, {manifest['format']!r}")
        if manifest["sum"] != sum_of(manifest):
            raise Damaged(f"is damaged: {MANIFEST} has another content")
        found = Saved(path, manifest["step"], manifest["facts"], manifest["leaves"])
        if found.step != step:
            raise Damaged(f"says that it is of step {found.step}")
        for name, expected in manifest["files"].items():
            got = print_of(path / name)
            if got[0] != expected[0]:
                raise Damaged(f"is damaged: {name} has {got[0]} bytes, not {expected[0]}")
            if got != expected:
                raise Damaged(f"is damaged: {name} has another content")
    except FileNotFoundError as error:
        missing = Path(error.filename).relative_to(path)
        words = "is not one of jaxrnn" if missing.name == MANIFEST else "is damaged"
        raise Damaged(f"{words}: there is no {missing}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"can't be read: {type(error).__name__}: {error}") from None
    return found


def reserve(path: Path, size: int) -> None:
    """See that there is room for so many bytes and for what Orbax writes beside them.

    Orbax leaves its event loop in disorder where a disk is full in the middle of its work.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + (1 << 16))
        path.unlink()


def checkpointer() -> Any:
    """What writes and reads the arrays."""
    import orbax.checkpoint as ocp  # slow to import

    # Each process reads for itself, and one of them writes: none waits for another.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    options: Any = {} if jax.process_count() == 1 else {"multiprocessing_options": alone}
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options), **options)


def failure(action: Callable[[], None]) -> tuple[int, str] | None:
    """Do it; the number and the words of what went wrong, in one line.

    Orbax and TensorStore tell of an error of the system as a ValueError of many lines, and log it
    once for each array.
    """
    with _silent("asyncio"), _silent("absl"):
        try:
            action()
        except OSError as error:
            return error.errno or 0, error.strerror or str(error)
        except Exception as error:
            number = re.search(r"os_error_code='(\d+)'", str(error))
            if number:
                return int(number[1]), os.strerror(int(number[1]))
            lines = str(error).strip().splitlines() or [""]
            return 0, f"{type(error).__name__}: {lines[0][:200]}"
    return None


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Without the words of a logger."""
    logger = logging.getLogger(name)
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
