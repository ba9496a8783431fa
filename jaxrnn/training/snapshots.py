"""The whole state of a training at a step, to and from a checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.backends import sharding as devices
from jaxrnn.training import meshes, processes, sources
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.history import History, Recorder
from jaxrnn.training.stopping import Best
from jaxrnn.training.written import Saved, named, plain, unnamed


class Snapshot(NamedTuple):
    """All that a training is after so many steps.

    Attributes:
        step: how many have been done.
        params: the parameters.
        opt_state: the optimiser's state.
        carry: the other state of the model, and what the loss carries.
        best: the best evaluation until now.
        recorder: the history.
    """

    step: int
    params: Any
    opt_state: Any
    carry: tuple[Any, Any]
    best: Best
    recorder: Recorder

    def trees(self) -> dict[str, Any]:
        """What is trained, by the names that it has in a checkpoint."""
        state, own = self.carry
        return {"params": self.params, "opt_state": self.opt_state, "state": state, "carry": own}

    def back(self, layout: meshes.Layout, before: Any) -> Snapshot:
        """The same, its arrays where those are that a training began with."""
        if any(leaf.is_deleted() for leaf in jax.tree.leaves((self.params, self.carry[0]))):
            return self  # interrupted in the middle of a call, which had them
        params, opt_state, carry = before
        if self.best.kept is not None:
            self.best.kept = layout.back(self.best.kept, (params, carry[0]))
        return self._replace(
            params=layout.back(self.params, params),
            opt_state=layout.back(self.opt_state, opt_state),
            carry=layout.back(self.carry, carry),
        )


class Saver:
    """Writes snapshots, and begins from one.

    Args:
        checkpoints: where and how often.
        source: the data, whose place is saved too.
        key: the root of all randomness.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        source: sources.Arrays | sources.Batches,
        key: jax.Array,
    ):
        self.checkpoints, self.source, self.every = checkpoints, source, checkpoints.every
        data = jax.tree.leaves(source.data)
        here = data and all(map(processes.is_here, data))
        self._settings = {
            "key": jax.random.key_data(key).tolist(),
            **source.settings,
            "checksum of the data": processes.sum_of(data) if here else None,
        }

    def save(self, now: Snapshot) -> None:
        """Write a checkpoint."""
        history, best = now.recorder.history(), now.best
        trees = {
            **now.trees(),
            "history/train": history.train,
            "history/validation": history.validation,
        }
        if best.kept is not None:
            trees["best_params"], trees["best_state"] = best.kept
        facts = {
            "settings": self._settings,
            "data": self.source.position(),
            "evaluated": history.evaluated.tolist(),
            "best": {"value": best.value, "step": best.step, "since": best.since},
        }
        arrays = _named(trees)
        if jax.process_count() > 1:
            arrays = {name: devices.local(plain(leaf)) for name, leaf in arrays.items()}
        if processes.is_first():
            self.checkpoints.save(now.step, arrays, facts)

    def begin(self, start: Snapshot, steps: int, resume: bool) -> Snapshot:
        """The snapshot to begin with: of the newest checkpoint, or the one given if there is none.

        Raises:
            ValueError: if there is one and it is not to be gone on from, or can't be.
            CheckpointError: if the folder can't be written to, or no checkpoint is whole.
        """
        if processes.is_first():
            self.checkpoints.prepare()
        processes.agree()  # nobody looks before that is done
        there = self.checkpoints.steps()
        if there and not resume:
            raise ValueError(
                f"{str(self.checkpoints.folder)!r} has a checkpoint of step {there[-1]}: "
                "resume=True goes on from it, or give an empty folder"
            )
        saved = self.checkpoints.newest()
        processes.agree(checkpoint=None if saved is None else saved.step)
        if saved is None:
            return start
        if saved.step > steps:
            raise ValueError(f"checkpoint {saved.path} is of a step beyond the {steps} asked for")
        was = saved.facts["settings"]
        for name, value in self._settings.items():
            unknown = name == "checksum of the data" and None in (was.get(name), value)
            if was.get(name) != value and not unknown:
                raise ValueError(
                    f"checkpoint {saved.path} is of a training with {name}={was.get(name)}, "
                    f"not {value}"
                )
        self.source.seek(saved.step, saved.facts["data"])
        return _restored(saved, start)


def _restored(saved: Saved, start: Snapshot) -> Snapshot:
    """The snapshot in a checkpoint, with the trees of a fresh one."""
    trees = start.trees()
    keeps = start.best.stopping is not None and saved.facts["best"]["value"] is not None
    if keeps:
        trees |= {"best_params": trees["params"], "best_state": trees["state"]}
    like = _named(trees)
    saved.check(like, [name for name in saved.leaves if name.split("/")[0] in trees])
    arrays = saved.read(like, [name for name in saved.leaves if name.startswith("history/")])
    trees = {prefix: unnamed(tree, arrays, prefix) for prefix, tree in trees.items()}
    best = Best(start.best.stopping)
    if keeps:
        best = Best(start.best.stopping, **saved.facts["best"])
        best.kept = trees["best_params"], trees["best_state"]
    history = History(
        _under("history/train/", arrays),
        _under("history/validation/", arrays),
        np.array(saved.facts["evaluated"], np.int64),
    )
    carry = trees["state"], trees["carry"]
    return Snapshot(saved.step, trees["params"], trees["opt_state"], carry, best, Recorder(history))


def _named(trees: dict[str, Any]) -> dict[str, Any]:
    """The leaves of all trees by their paths."""
    return {name: a for prefix, tree in trees.items() for name, a in named(tree, prefix).items()}


def _under(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
