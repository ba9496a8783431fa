"""A training on its way: call after call of compiled steps, and what is due between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.training import sources
from jaxrnn.training.compiled import Form, Job, Parts, run_evaluation, run_steps
from jaxrnn.training.progress import Progress
from jaxrnn.training.snapshots import Saver, Snapshot
from jaxrnn.training.stopping import EarlyStopping


class NonFiniteLoss(FloatingPointError):
    """The loss of a step is infinite or not a number.

    Attributes:
        step: which one, counted from 1.
        value: its loss.
    """

    def __init__(self, message: str, step: int, value: float):
        super().__init__(message)
        self.step, self.value = step, value


class Evaluation(NamedTuple):
    """What to measure, and how often."""

    form: Form
    function: Callable[..., Any]
    validation: tuple[Any, ...]
    every: int
    key: Any = None

    def check(self, parts: Parts, stopping: EarlyStopping | None) -> None:
        """Trace it once, before the training: what is wrong with it shows now."""
        names = sorted(
            run_evaluation.eval_shape(self.form, self.function, parts, self.validation, self.key)
        )
        if stopping is not None and stopping.metric not in names:
            raise ValueError(
                f"early stopping goes by {stopping.metric!r}, but evaluate gives out "
                f"{', '.join(map(repr, names)) or 'nothing'}"
            )

    def measure(self, parts: Parts) -> dict[str, np.ndarray]:
        """Measure it."""
        measured = run_evaluation(self.form, self.function, parts, self.validation, self.key)
        return {name: np.asarray(value) for name, value in measured.items()}


class Run:
    """A training on its way."""

    def __init__(
        self,
        job: Job,
        source: sources.Arrays | sources.Batches,
        random: Any,
        key: jax.Array,
        evaluation: Evaluation | None,
        saver: Saver | None,
        now: Snapshot,
    ):
        self.job, self.source, self.random, self.key = job, source, random, key
        self.evaluation, self.saver, self.now = evaluation, saver, now

    def until(self, steps: int, due: list[int], bar: Progress | None) -> None:
        """Go on until so many steps are done, or early stopping ends it."""
        done, waiting = self.now.step, []
        if bar is not None:
            bar.skip(done)
        while done < steps and not self.now.best.over:
            end = min(steps, *(done - done % every + every for every in due))
            feed = self.source.feed(done, end - done)
            trained = run_steps(
                self.job,
                end - done,
                *(self.now.params, self.now.opt_state, self.now.carry),
                self.random,
                self.source.data,
                feed,
                np.int32(done),
                self.key,
            )
            self.now = self.now._replace(
                step=end,
                params=trained.params,
                opt_state=trained.opt_state,
                carry=trained.carry,
            )
            # The call before is looked at while this one runs.
            waiting.append((done, trained.losses, trained.metrics))
            self._record(waiting[:-1], bar)
            del waiting[:-1]
            done = end
            evaluated = self._is_due(self.evaluation, end, steps)
            saved = self._is_due(self.saver, end, steps)
            if evaluated or saved or end == steps:
                self._record(waiting, bar)
                waiting.clear()
            if evaluated:
                self._evaluate()
            if self.saver is not None and (saved or self.now.best.over):
                self.saver.save(self.now)

    def _is_due(self, what: Evaluation | Saver | None, done: int, steps: int) -> bool:
        return what is not None and (done % what.every == 0 or done == steps)

    def _record(self, waiting: list[Any], bar: Progress | None) -> None:
        """Keep what was measured in calls that are done, if all is well."""
        for start, losses, metrics in waiting:
            losses = np.asarray(losses)
            wrong = np.flatnonzero(~np.isfinite(losses))
            if wrong.size:
                self._fail(start + int(wrong[0]) + 1, float(losses[wrong[0]]))
            measured = {name: np.asarray(values) for name, values in metrics.items()}
            self.now.recorder.train({"loss": losses, **measured})
            if bar is not None:
                bar.update(start + len(losses), float(losses[-1]))

    def _fail(self, step: int, value: float) -> None:
        words = f"the loss of step {step} is {value}: the model is left as it was before"
        if self.saver is not None and (kept := self.saver.checkpoints.steps()):
            words += (
                f"; there is a checkpoint of step {kept[-1]} in {self.saver.checkpoints.folder}"
            )
        raise NonFiniteLoss(words, step, value)

    def _parts(self) -> Parts:
        return Parts(self.now.params, self.now.carry[0], self.random)

    def _evaluate(self) -> None:
        """Measure, and see whether it is the best."""
        assert self.evaluation is not None
        measured = self.evaluation.measure(self._parts())
        self.now.recorder.validation(self.now.step, measured)
        best = self.now.best
        if best.stopping is None:
            return
        if best.better(self.now.step, float(measured[best.stopping.metric])):
            kept = (self.now.params, self.now.carry[0])
            best.kept = jax.tree.map(lambda a: jnp.array(a, copy=True), kept)

    def give(self, model: Any, *, best: bool = False) -> Any:
        """The model with the parameters of now, or with the best if there are such."""
        params, state = self.now.params, self.now.carry[0]
        if best and self.now.best.kept is not None:
            params, state = self.now.best.kept
        if self.job.form.graph is None:
            return params
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, state))):
            nnx.update(model, params, state)
        return model
