"""Checkpoints: all that a training is, in a folder, there whole or not at all.

Orbax writes the arrays; beside them is a file, written last, with the size and the checksum of
each of Orbax's files, and the names, shapes and dtypes of the arrays. A checkpoint is written
under another name and moved to its place, so one that is there and agrees with that file is whole.

.. code-block:: text

    folder/step-00000300/manifest.json
                         arrays/            what Orbax wrote: one array a name, "params/rnn/..."
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn.training import written
from jaxrnn.training.written import (
    ARRAYS,
    FORMAT,
    MANIFEST,
    CheckpointError,
    Damaged,
    Saved,
    named,
    unnamed,
)

PART = ".part"
"""The end of the name of what is being written, or deleted."""


@dataclass(frozen=True)
class Checkpoints:
    """Where to keep the state of a training, how often, and how many.

    A checkpoint has the parameters, the state of the optimiser, what the model and the loss carry,
    the random key, the number of the step and the place in the data (of arrays: a checksum), the
    best parameters of early stopping, and the history until there. It is there whole or not at all,
    whenever the process ends; what is older than the last `keep` is deleted after a new one is
    there.

    Args:
        folder: made if it is not there; it should hold nothing else.
        every: steps from one to the next. A run that is killed loses at most so many. There is one
            at the end as well.
        keep: how many are kept, at least 1. With 2 or more there is one to fall back on.

    Raises:
        ValueError: for `every` or `keep` below 1.

    Example:
        >>> import tempfile, jax.numpy as jnp, optax
        >>> from jaxrnn.training import Checkpoints, fit
        >>> def loss(w, batch):
        ...     return ((w * batch - 1.0) ** 2).mean()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = Checkpoints(folder, every=10)
        ...     first = fit(loss, optax.sgd(0.1), jnp.zeros(()), jnp.ones(4), steps=20,
        ...                 checkpoints=saved)
        ...     steps = saved.steps()
        ...     more = fit(loss, optax.sgd(0.1), jnp.zeros(()), jnp.ones(4), steps=50,
        ...                checkpoints=saved, resume=True)
        ...     steps, saved.steps(), len(more.history.losses)
        ([10, 20], [30, 40, 50], 50)

    The arrays can be read without this package:
    ``orbax.checkpoint.PyTreeCheckpointer().restore(folder / "step-00000050" / "arrays")`` is a
    dict of them by name.
    """

    folder: str | os.PathLike[str]
    every: int
    keep: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, os.PathLike)):
            raise TypeError(f"folder should be a path, got {type(self.folder).__name__}")
        checks.at_least("every", self.every, 1)
        checks.at_least("keep", self.keep, 1)

    def steps(self) -> list[int]:
        """How many steps had been done at each checkpoint there is, in order."""
        folder = Path(self.folder)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        found = [re.fullmatch(r"step-(\d{8,})", name) for name in names]
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Where the checkpoint after so many steps is."""
        return Path(self.folder).absolute() / f"step-{step:08d}"

    def prepare(self) -> None:
        """Make the folder and see that it can be written to; sweep away what a kill left there.

        Raises:
            CheckpointError: if it can't.
        """
        folder = Path(self.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            words = f"checkpoints can't be written to {str(folder)!r}: {error.strerror or error}"
            raise CheckpointError(error.errno, words) from None
        for path in folder.glob(f"step-*{PART}"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, arrays: dict[str, Any], facts: dict[str, Any]) -> Path:
        """Write a checkpoint, then delete those that are too old.

        Args:
            step: how many steps have been done.
            arrays: by name.
            facts: anything else, as JSON has it.

        Raises:
            CheckpointError: if it can't be written; the ones before stay as they were.
        """
        arrays = {name: written.plain(leaf) for name, leaf in arrays.items()}
        size = sum(leaf.nbytes for leaf in arrays.values())
        target = self.path(step)
        part = target.with_name(f"{target.name}.{os.getpid()}{PART}")

        def write() -> None:
            part.mkdir()
            written.reserve(part / MANIFEST, size)
            some = {name: leaf for name, leaf in arrays.items() if leaf.size}  # Orbax refuses none
            written.checkpointer().save(part / ARRAYS, some)
            manifest = {
                "format": FORMAT,
                "step": step,
                "facts": facts,
                "leaves": {name: written.kind(a) for name, a in arrays.items()},
                "files": {
                    str(path.relative_to(part)): written.print_of(path)
                    for path in sorted(part.rglob("*"))
                    if path.is_file()
                },
            }
            manifest["sum"] = written.sum_of(manifest)
            with (part / MANIFEST).open("w", encoding="utf-8") as file:
                json.dump(manifest, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():  # a damaged one, or of a run from which this one has turned off
                os.replace(target, aside := part.with_name(f"{part.name}.old{PART}"))
                shutil.rmtree(aside, ignore_errors=True)
            os.replace(part, target)

        failure = written.failure(write)
        if failure is not None:
            shutil.rmtree(part, ignore_errors=True)
            before = [old for old in self.steps() if old != step]
            rest = f"the one of step {before[-1]} is intact" if before else "there is none yet"
            number, words = failure
            words = f"checkpoint of step {step} can't be written to {target}: {words}; {rest}"
            raise CheckpointError(*([number] if number else []), words)
        for old in [old for old in self.steps() if old <= step][: -self.keep]:
            gone = self.path(old)
            with contextlib.suppress(OSError):  # renamed first: never there in part
                os.replace(gone, aside := gone.with_name(f"{gone.name}.{os.getpid()}{PART}"))
                shutil.rmtree(aside, ignore_errors=True)
        return target

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole; None if there is none at all.

        A damaged one is passed over, with a warning that says so.

        Raises:
            CheckpointError: if there are some, and none is whole.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                saved = written.open_whole(self.path(step), step)
            except Damaged as error:
                damaged.append(f"{self.path(step)} {error}")
                continue
            if damaged:
                warnings.warn(
                    f"checkpoint {'; '.join(damaged)}: going on from the one of step {step}",
                    stacklevel=3,
                )
            return saved
        if damaged:
            raise CheckpointError(f"no checkpoint is whole: {'; '.join(damaged)}")
        return None

    def load(self, model: Any, *, best: bool = False) -> Any:
        """Give a model the parameters of the newest checkpoint.

        Args:
            model: a Flax module, which is changed, or a pytree of arrays, which is not.
            best: those of the best evaluation, of a run with early stopping.

        Returns:
            The model.

        Raises:
            CheckpointError: if there is no checkpoint, or none is whole.
            ValueError: if it is one of another model, or has no best parameters.

        Example:
            >>> import tempfile, jax.numpy as jnp, optax
            >>> from jaxrnn.training import fit
            >>> def loss(w, batch):
            ...     return ((w * batch - 1.0) ** 2).mean()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     saved = Checkpoints(folder, every=50)
            ...     _ = fit(loss, optax.sgd(0.1), jnp.zeros(()), jnp.ones(4), steps=50,
            ...             checkpoints=saved)
            ...     saved.load(jnp.zeros(())).round(3).item()
            1.0
        """
        saved = self.newest()
        if saved is None:
            raise CheckpointError(f"there is no checkpoint in {str(self.folder)!r}")
        heads = ("best_params", "best_state") if best else ("params", "state")
        there = {n.removeprefix(h): n for h in heads for n in saved.leaves if _under(h, n)}
        if best and not there:
            raise ValueError(f"{saved.path} has no best parameters: early stopping keeps them")
        variables = model
        if isinstance(model, nnx.Module):
            variables = nnx.state(model, nnx.Not(nnx.RngState))
        tails = {n.removeprefix(heads[0]): a for n, a in named(variables, heads[0]).items()}
        like = {there.get(tail, heads[0] + tail): leaf for tail, leaf in tails.items()}
        saved.check(like, list(there.values()))
        read = saved.read(like)
        arrays = {heads[0] + tail: read[there[tail]] for tail in tails}
        variables = unnamed(variables, arrays, heads[0])
        if isinstance(model, nnx.Module):
            nnx.update(model, variables)
            return model
        return variables


def _under(prefix: str, name: str) -> bool:
    """Whether a name is that of an array of this part of a checkpoint."""
    return name == prefix or name.startswith(f"{prefix}/")
