"""Checkpoints: the whole state of a training in a folder, written atomically.

Orbax's `CheckpointManager` writes, lists and deletes checkpoints. A checkpoint is valid if its
record and its arrays agree with their CRC-32 checksums.

.. code-block:: text

    folder/step_00000300/arrays      "params/rnn/weight_ih_l0", "opt_state/0/mu/...", ...
                         record      format, step, settings, position in the data, checksums
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn.backends import sharding
from jaxrnn.training.distributed import (
    _array_checksum,
    _is_first,
    _is_key,
    _key_data,
    _leaf_name,
    _named_leaves,
)

_FORMAT = "jaxrnn checkpoint 3"


class CheckpointError(OSError):
    """Error of a checkpoint that cannot be written or read."""


@dataclass(frozen=True)
class Checkpoints:
    """Folder, interval and number of the checkpoints of a training.

    A checkpoint contains the parameters, the optimizer state, the other variables of the model, the
    carry, the key, the step, the position in the data (for arrays: a checksum), the best parameters
    of early stopping, and the history. It is written atomically, before older ones are deleted.
    ``orbax.checkpoint.PyTreeCheckpointer().restore(path / "arrays")`` reads it as well.

    Args:
        folder: a folder for checkpoints only; it is created if it does not exist.
        every: steps between two checkpoints, besides the one after the last step.
        keep: number of checkpoints to retain. With 2 or more, a damaged one can be skipped.

    Raises:
        ValueError: if `every` or `keep` is below 1.
        TypeError: if `folder` is not a path.

    Example:
        >>> import tempfile, jax.numpy as jnp, optax
        >>> from jaxrnn.training import Checkpoints, fit
        >>> def loss(w, batch):
        ...     return ((w * batch - 1.0) ** 2).mean()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder, every=10)
        ...     arguments = loss, optax.sgd(0.1), jnp.zeros(()), jnp.ones(4)
        ...     first = fit(*arguments, steps=20, checkpoints=checkpoints)
        ...     more = fit(*arguments, steps=50, checkpoints=checkpoints, resume=True)
        ...     checkpoints.steps(), len(more.history.losses)
        ([30, 40, 50], 50)
    """

    folder: str | os.PathLike[str]
    every: int
    keep: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, os.PathLike)):
            raise TypeError(f"`folder` must be a path, got {type(self.folder).__name__}.")
        checks.at_least("every", self.every, 1)
        checks.at_least("keep", self.keep, 1)

    def steps(self) -> list[int]:
        """Return the steps of the existing checkpoints in increasing order."""
        return sorted(found.step for found in _name_format().find_all(self._folder))

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self._folder / _name_format().build_name(step)

    def load(self, model: Any, *, best: bool = False) -> Any:
        """Load the parameters of the newest valid checkpoint into a model.

        Args:
            model: a Flax module, which is updated, or a pytree of arrays, which is not.
            best: if True, load the parameters of the best evaluation of early stopping.

        Returns:
            The model.

        Raises:
            CheckpointError: if there is no valid checkpoint.
            ValueError: if the checkpoint is from another model or has no best parameters.

        Example:
            >>> import tempfile, jax.numpy as jnp, optax
            >>> from jaxrnn.training import Checkpoints, fit
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     checkpoints = Checkpoints(folder, every=50)
            ...     _ = fit(lambda w, x: ((w * x - 1.0) ** 2).mean(), optax.sgd(0.1),
            ...             jnp.zeros(()), jnp.ones(4), steps=50, checkpoints=checkpoints)
            ...     checkpoints.load(jnp.zeros(())).round(3).item()
            1.0
        """
        saved = self._newest()
        if saved is None:
            raise CheckpointError(f"`folder` must have a checkpoint, got none in {self._folder}.")
        prefixes = ("best_params", "best_state") if best else ("params", "state")
        arrays = {
            f"params{name}": array
            for prefix in prefixes
            for name, array in saved.arrays_under(prefix).items()
        }
        if best and not arrays:
            raise ValueError(
                f"{saved.path} has no best parameters. Train with early_stopping=EarlyStopping()."
            )
        is_module = isinstance(model, nnx.Module)
        variables = nnx.state(model, nnx.Not(nnx.RngState)) if is_module else model
        variables = saved._replace(arrays=arrays).restore({"params": variables})["params"]
        if not is_module:
            return variables
        nnx.update(model, variables)
        return model

    @property
    def _folder(self) -> Path:
        return Path(self.folder).absolute()

    def _prepare(self) -> None:
        """Create the folder, check that it is writable, and delete incomplete checkpoints."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            words = f"checkpoints cannot be written to {self._folder}: {error.strerror or error}"
            raise CheckpointError(error.errno, words) from None
        self._manager().close()

    def _save(self, step: int, arrays: dict[str, Any], record: dict[str, Any]) -> None:
        """Write a checkpoint and delete old ones; an error leaves the existing ones unchanged."""
        import orbax.checkpoint as ocp

        leaves = {name: _leaf_record(a) for name, a in arrays.items()}
        record = {"format": _FORMAT, "step": step, "leaves": leaves, **record}
        items = ocp.args.Composite(
            arrays=ocp.args.PyTreeSave({name: a for name, a in arrays.items() if a.size}),
            record=ocp.args.JsonSave(record | {"checksum": _record_checksum(record)}),
        )
        try:
            with _quiet():
                _reserve(self._folder, sum(a.nbytes for a in arrays.values()))
                with self._manager() as manager:
                    for old in self.steps():
                        if old >= step:  # damaged, or of an abandoned continuation
                            manager.delete(old)
                    manager.save(step, args=items, force=True)
        except Exception as error:
            self._manager().close()  # deletes the incomplete checkpoint
            number, words = _explain(error)
            before = [old for old in self.steps() if old != step]
            rest = f"the one of step {before[-1]} is intact" if before else "there is no other"
            words = f"checkpoint {self.path(step)} cannot be written: {words}; {rest}"
            raise CheckpointError(*([number] if number else []), words) from None

    def _newest(self) -> _Saved | None:
        """Return the newest valid checkpoint, None if there are none; warn of damaged ones."""
        damaged, saved = [], None
        for step in reversed(self.steps()):
            try:
                saved = self._read(step)
                break
            except _Damaged as error:
                damaged.append(f"{self.path(step)} {error}")
        shown = "; ".join(damaged)
        if damaged and saved is None:
            raise CheckpointError(f"no checkpoint is valid: {shown}")
        if damaged and saved is not None:
            warnings.warn(f"checkpoint {shown}: continuing from step {saved.step}", stacklevel=3)
        return saved

    def _read(self, step: int) -> _Saved:
        """Read a checkpoint and verify its checksums."""
        import orbax.checkpoint as ocp

        try:
            with _quiet(), self._manager() as manager:
                item = ocp.args.Composite(record=ocp.args.JsonRestore())
                record = manager.restore(step, args=item).record
                if record.get("format") != _FORMAT:
                    raise _Damaged(f"has another format, {record.get('format')!r}")
                if record.pop("checksum") != _record_checksum(record) or record["step"] != step:
                    raise _Damaged("is damaged: its record has another content")
                leaves = record.pop("leaves")
                arrays = {n: np.zeros(shape, dtype) for n, (shape, dtype, _) in leaves.items()}
                as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
                stored = {name: as_numpy for name, a in arrays.items() if a.size}
                if stored:
                    item = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=stored))
                    arrays |= manager.restore(step, args=item).arrays
        except _Damaged:
            raise
        except Exception as error:
            raise _Damaged(f"cannot be read: {_explain(error)[1]}") from None
        for name, expected in leaves.items():
            if _leaf_record(arrays[name]) != expected:
                raise _Damaged(f"is damaged: {name} has another content")
        return _Saved(self.path(step), step, record, arrays)

    def _manager(self) -> Any:
        """Return the manager of the folder, which deletes what an interrupted one left."""
        import orbax.checkpoint as ocp  # slow to import

        # Each process reads by itself and the first one writes: none waits for another.
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep,
            step_name_format=_name_format(),
            create=False,
            cleanup_tmp_directories=_is_first(),
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process,
                active_processes={process},
                barrier_sync_key_prefix=f"process{process}",
            ),
        )
        return ocp.CheckpointManager(self._folder, options=options)


class _Damaged(Exception):
    """Description of the damage of a checkpoint."""


class _Saved(NamedTuple):
    """Contents of a valid checkpoint."""

    path: Path
    step: int
    record: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Check that the checkpoint is from a training with these settings."""
        for name, value in settings.items():
            before = self.record["settings"].get(name)
            unknown = name == "checksum of the data" and None in (before, value)
            if before != value and not unknown:
                raise ValueError(
                    f"checkpoint {self.path} is from a training with {name}={before}, not {value}"
                )

    def arrays_under(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays whose names have a prefix, without it."""
        return {n.removeprefix(prefix): a for n, a in self.arrays.items() if n.startswith(prefix)}

    def restore(self, trees: dict[str, Any]) -> dict[str, Any]:
        """Return pytrees like `trees`, by prefix, with the arrays of the checkpoint."""
        stored = {n: a for n, a in self.arrays.items() if n.split("/")[0] in trees}
        got = {name: f"{a.dtype.name} {a.shape}" for name, a in stored.items()}
        expected = {
            name: f"{jnp.result_type(data := _key_data(leaf)).name} {np.shape(data)}"
            for name, leaf in _named_leaves(trees).items()
        }
        wrong = [
            f"{name} is {got.get(name, 'missing')}, expected {expected.get(name, 'missing')}"
            for name in sorted(dict(got.items() ^ expected.items()))
        ]
        if wrong:
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(
                f"checkpoint {self.path} is from another model or optimizer: "
                f"{'; '.join(wrong[:3])}{more}"
            )

        def _restore(path: Any, leaf: Any) -> Any:
            data = jnp.asarray(_key_data(leaf))
            array = sharding.device_put(stored[_leaf_name(path)], data.sharding)
            if not _is_key(leaf):
                return array
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))

        return jax.tree_util.tree_map_with_path(_restore, trees)


def _name_format() -> Any:
    import orbax.checkpoint as ocp

    return ocp.path.step.standard_name_format(step_prefix="step", step_format_fixed_length=8)


def _leaf_record(array: np.ndarray) -> list[Any]:
    return [list(array.shape), array.dtype.name, _array_checksum(array)]


def _record_checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _reserve(folder: Path, size: int) -> None:
    """Check the space for a file: Orbax keeps writing after an error of a full disk."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size + (1 << 16))


def _explain(error: Exception) -> tuple[int, str]:
    """Return the number and one line of text of an error of Orbax, TensorStore or the system."""
    if isinstance(error, OSError):
        return error.errno or 0, error.strerror or str(error)
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return int(number[1]), os.strerror(int(number[1]))
    lines = str(error).strip().splitlines() or [""]
    return 0, f"{type(error).__name__}: {lines[0][:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the output of Orbax and TensorStore, which report each error several times."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    before, hook = [logger.disabled for logger in loggers], sys.excepthook
    sys.excepthook = lambda *_: None
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        sys.excepthook = hook
        for logger, disabled in zip(loggers, before):
            logger.disabled = disabled
