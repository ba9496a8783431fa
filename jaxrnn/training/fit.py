"""`fit`: train a model on data, chunk by chunk of compiled steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn.training import meshes, processes, sources
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.compiled import Form, Job, MeanLoss, takes_key
from jaxrnn.training.history import History, Recorder
from jaxrnn.training.progress import Progress
from jaxrnn.training.running import Evaluation, NonFiniteLoss, Run
from jaxrnn.training.snapshots import Saver, Snapshot
from jaxrnn.training.stopping import Best, EarlyStopping

NEVER = 2**31
"""An interval longer than any training."""


class Fitted(NamedTuple):
    """What `fit` leaves.

    Attributes:
        model: the trained model: the Flax module that was given, or a new pytree of parameters.
        opt_state: the optimiser's state after the last step.
        carry: what the last step handed on; None if nothing is.
        history: the course of the training.
        stopped: whether early stopping ended it.
    """

    model: Any
    opt_state: Any
    carry: Any
    history: History
    stopped: bool


def fit(
    model: Any,
    optimizer: optax.GradientTransformation,
    loss: Callable[..., Any],
    data: Any,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = True,
    take: sources.Take | None = None,
    examples: int | None = None,
    carry: Any = None,
    opt_state: Any = None,
    wrt: Any = nnx.Param,
    key: int | jax.Array = 0,
    evaluate: Callable[..., Any] | None = None,
    validation: Any = None,
    evaluate_every: int | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    chunk: int | None = None,
    mesh: Any = None,
    progress: Progress | bool = True,
) -> Fitted:
    """Train a model: batches, steps, evaluation, checkpoints, and a bar to watch.

    .. code-block:: text

        order_e  = permutation(fold_in(shuffle_key, e), S)           of the S examples, epoch e
        batch_k  = data[(order_0, order_1, ...)[k*B ... k*B + B-1]]                  of step k
        loss_k   = loss(model as of params_k, batch_k)      random streams from fold_in(step_key, k)
        params_{k+1} = params_k + updates of the optimiser from d loss_k / d params_k

    Many steps run in each compiled call (`train_steps`, the buffers of the state given away), with
    the batches gathered on the device inside of it. Everything random is a function of `key` and
    of the number of the step, so that a run that goes on from a checkpoint is, bit for bit, the
    run that was never interrupted.

    Args:
        model: a Flax module, trained in place as by ``nnx.Optimizer``, in training mode whatever
            mode it is in; or a pytree of parameters, of Haiku, Equinox or one's own, which is left
            as it was.
        optimizer: an optax optimiser, schedules and clipping included:
            ``optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))`` with, say,
            ``schedule = optax.cosine_decay_schedule(1e-3, steps)``.
        loss: ``loss(model, batch) -> value`` or ``(value, metrics)``, metrics a dict of single
            numbers. With a `carry` it is ``loss(model, carry, batch) -> (value, (carry,
            metrics))``: a hidden state, say, goes on from step to step as a value. An argument
            named ``key`` gets the key of the step; the random streams of a module (dropout) are
            set from it in any case.
        data: arrays, or batches.

            - A pytree of arrays (S, ...), S examples along the first axes, held on the device.
            - Any iterable of batches, all of one shape: a list, a generator, a loader (of grain,
              say). As many as a call needs are stacked on the host, while the device is busy with
              the call before. It is begun again when it ends, unless it is an iterator.
        steps: how many steps, or:
        epochs: how often all S examples: ceil(epochs * S / B) steps. Where B does not divide S, a
            batch has the last examples of an epoch and the first of the next: all batches have one
            shape and no example is left out.
        batch_size: B, examples at each step; None for all of them at each step, unshuffled.
        shuffle: a new order for each epoch; False for the order of the data.
        take: ``take(data, index) -> batch`` makes a batch from the numbers of its examples (B,),
            for what is not rows: windows of a series, say. Compiled into the call.
        examples: S, where `take` makes the examples; None for the length of the first axes.
        carry: what the first step gets; None for a loss without one.
        opt_state: the optimiser's state to go on from; None for a fresh one.
        wrt: what is trained of a module, a filter of Flax; other variables are state.
        key: a seed or a key, from which ``shuffle_key, step_key = jax.random.split(key)``.
        evaluate: ``evaluate(model) -> metrics``, or ``evaluate(model, validation)`` if there is
            `validation`; compiled, the model in evaluation mode. None with `validation` for the
            loss and its metrics, as means over batches of B.
        validation: a pytree of arrays for it.
        evaluate_every: evaluate after every so many steps and after the last; None for every epoch
            (with batches of unknown number, after the last step only).
        early_stopping: when to stop before the last step, and to end with the best parameters.
        checkpoints: where to save the state of the training, and how often.
        resume: go on from the newest checkpoint, if there is one. All other arguments have to be
            as they were, `steps` may be more.
        chunk: steps in one compiled call, between which there is the host: the bar, the check of
            the losses, Ctrl-C. None for at most 100, fewer where that fits the intervals above.
        mesh: the devices to train on, a ``jax.sharding.Mesh`` with the axes "data" and "model", or
            how many of ``jax.devices()``; None for one. Each has a part of the rows of every batch,
            the first axis of its arrays. The parameters are on all of them; along "model", the
            recurrent weights and what the optimiser keeps of them lie in pieces, and are put
            together for each step. In the end all is where it was before. Where there are several
            processes, all call `fit` alike, with the same arrays; an iterable gives out the
            process's own part of each batch.
        progress: the bar: True for one on standard error if that is a terminal, False for none.

    Returns:
        `Fitted`.

    Raises:
        NonFiniteLoss: for a loss that is infinite or not a number. The model is left as it was;
            checkpoints are from before that step.
        ValueError, TypeError: for arguments that can't be, before anything is computed; for a
            checkpoint of another model, optimiser, key or data.
        CheckpointError: for checkpoints that can't be written or read.
        ProcessLost: if there are several processes and another one has ended.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn, optax
        >>> from flax import nnx
        >>> from jaxrnn.layers.heads import ManyToMany
        >>> from jaxrnn.training import EarlyStopping, fit
        >>> rngs = nnx.Rngs(0)
        >>> lstm = jaxrnn.LSTM(1, 16, batch_first=True, rngs=rngs)
        >>> model = ManyToMany(lstm, 1, rngs=rngs)
        >>> x = jax.random.uniform(jax.random.key(1), (120, 10, 1))
        >>> y = jnp.cumsum(x, axis=1) / 10
        >>> def loss(model, batch):
        ...     x, y = batch
        ...     predicted, _ = model(x)
        ...     error = predicted - y
        ...     return (error**2).mean(), {"largest": jnp.abs(error).max()}
        >>> fitted = fit(
        ...     model, optax.adam(optax.cosine_decay_schedule(0.03, 150)), loss,
        ...     (x[:100], y[:100]), epochs=50, batch_size=32, validation=(x[100:], y[100:]),
        ...     evaluate_every=25, early_stopping=EarlyStopping("loss", patience=3),
        ... )
        >>> fitted.history.losses.shape, sorted(fitted.history.train)
        ((157,), ['largest', 'loss'])
        >>> fitted.history.evaluated.tolist(), bool(fitted.history.validation["loss"][-1] < 1e-2)
        ([25, 50, 75, 100, 125, 150, 157], True)

    Ctrl-C ends it with the parameters of the last call in the model.

    Differs from PyTorch: there it is a loop of one's own. `shuffle` and batches are as of a
    ``DataLoader``, except for the batch that goes over the end of an epoch.
    """
    _check_kinds(optimizer, loss, checkpoints)
    layout = meshes.make(mesh)
    with processes.together():
        root = _key(key)
        shuffle_key, step_key = jax.random.split(root)
        source = sources.make(data, batch_size, shuffle, take, examples, shuffle_key, layout)
        steps = _steps(steps, epochs, source.epoch)
        if chunk is not None:
            checks.at_least("chunk", chunk, 1)
        if resume and checkpoints is None:
            raise ValueError("resume=True needs checkpoints to go on from")
        form, evaluated_form = _forms(model, wrt)
        parts = form.split(model)
        if not jax.tree.leaves(parts.params):
            raise ValueError("the model has no parameters to train")
        layout.check_model(parts.params)
        job = Job(form, loss, optimizer, source.how, carry is not None, takes_key(loss))
        every = evaluate_every
        evaluation = _evaluation(job, evaluate, validation, every, source.epoch, batch_size, layout)
        if evaluation is not None:
            evaluation = evaluation._replace(form=evaluated_form, key=layout.whole(step_key))
            evaluation.check(parts, early_stopping)
        elif early_stopping is not None or evaluate_every is not None:
            raise ValueError("early_stopping and evaluate_every need evaluate or validation")
        due = [what.every for what in (evaluation, checkpoints) if what and what.every < steps]
        due.append(sources.chunks(steps, due) if chunk is None else chunk)

        if opt_state is None:
            opt_state = optimizer.init(parts.params)
        elif _shapes(opt_state) != _shapes(jax.eval_shape(optimizer.init, parts.params)):
            raise ValueError("opt_state is not the state of this optimizer with these parameters")
        before = (parts.params, opt_state, (parts.state, carry))
        processes.agree(
            parameters=before, key=root, steps=(steps, batch_size, due), data=source.data
        )
        copied = jax.tree.map(lambda a: jnp.array(a, copy=True), before)
        placed = layout.weights(copied[0]), layout.weights(copied[1]), layout.whole(copied[2])
        now = Snapshot(0, *placed, best=Best(early_stopping), recorder=Recorder())
        saver = None
        if checkpoints is not None:
            saver = Saver(checkpoints, source, root)
            now = saver.begin(now, steps, resume)
        if layout.mesh is not None:
            job = job._replace(places=tuple(jax.tree.leaves(meshes.places(placed))))
        random, step_key = layout.whole((parts.random, step_key))
        run = Run(job, source, random, step_key, evaluation, saver, now)
        bar = Progress("fit", steps) if progress is True else progress or None
        if not processes.is_first():
            bar = None

        def finish(best: bool = False) -> tuple[Any, Any, Any]:
            """The model, the optimiser's state and the carry, where they were before."""
            run.now = run.now.back(layout, before)
            return run.give(model, best=best), run.now.opt_state, run.now.carry[1]

        try:
            shown = contextlib.nullcontext() if bar is None else bar
            with layout.here(), shown, processes.together():
                run.until(steps, due, bar)
        except (NonFiniteLoss, processes.ProcessLost):
            raise
        except BaseException:
            finish()
            raise
        trained, opt_state, carry = finish(best=True)
        now = run.now
        return Fitted(trained, opt_state, carry, now.recorder.history(), now.best.over)


def _check_kinds(optimizer: Any, loss: Any, checkpoints: Any) -> None:
    """Whether these are what they should be."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        call = ": it is to be called first" if callable(optimizer) else ""
        raise TypeError(f"optimizer should be one of optax, got {_kind(optimizer)}{call}")
    if not callable(loss):
        raise TypeError(f"loss should be a function, got {_kind(loss)}")
    if not isinstance(checkpoints, Checkpoints | None):
        raise TypeError(f"checkpoints should be Checkpoints(folder, every), got {checkpoints!r}")


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _kind(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)


def _key(key: Any) -> jax.Array:
    """The root of all randomness."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape:
            raise ValueError(f"key should be one key, its shape is {key.shape}")
        return key
    if not isinstance(key, int):
        raise TypeError(f"key should be a seed or a key of jax.random.key, got {key!r}")
    checks.seed(key)
    return jax.random.key(key)


def _steps(steps: Any, epochs: Any, epoch: float | None) -> int:
    """How many steps there are to be."""
    if (steps is None) == (epochs is None):
        raise ValueError(f"either steps or epochs, got steps={steps} and epochs={epochs}")
    if steps is not None:
        checks.at_least("steps", steps, 1)
        return steps
    checks.at_least("epochs", epochs, 1)
    if epoch is None:
        raise ValueError("epochs are for arrays: with an iterable it is steps, a batch each")
    return math.ceil(epochs * epoch)


def _forms(model: Any, wrt: Any) -> tuple[Form, Form]:
    """How to put the model together in training and in evaluation."""
    if not isinstance(model, nnx.Module):
        wrong = [a for a in jax.tree.leaves(model) if not isinstance(a, (jax.Array, np.ndarray))]
        if wrong:
            raise TypeError(
                "model should be a Flax module or a pytree of arrays, got one with a "
                f"{type(wrong[0]).__name__}"
            )
        return Form(None, None), Form(None, None)
    copy = nnx.clone(model)
    copy.train()
    graph = nnx.graphdef(copy)
    copy.eval()
    return Form(graph, wrt), Form(nnx.graphdef(copy), wrt)


def _evaluation(
    job: Job,
    evaluate: Callable[..., Any] | None,
    validation: Any,
    every: int | None,
    epoch: float | None,
    batch_size: int | None,
    layout: meshes.Layout,
) -> Evaluation | None:
    """What to measure; None for nothing."""
    if every is not None:
        checks.at_least("evaluate_every", every, 1)
    if evaluate is None and validation is None:
        return None
    if evaluate is None:
        if job.carries:
            raise ValueError("a loss with a carry needs an evaluate beside validation")
        shapes = _shapes(validation)
        if not any(math.prod(shape) for shape in shapes):
            raise ValueError(f"validation has no examples, its shapes are {shapes}")
        evaluate = MeanLoss(job.loss, batch_size, job.keyed)
    given = () if validation is None else (layout.whole(validation),)
    if every is None:
        every = NEVER if epoch is None else math.ceil(epoch)
    return Evaluation(job.form, evaluate, given, every)
