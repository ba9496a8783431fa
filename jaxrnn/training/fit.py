"""`fit`: train a model on data, chunk by chunk of compiled steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn.training import meshes, processes, sources
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.compiled import Form, Job, MeanLoss
from jaxrnn.training.history import History, Recorder
from jaxrnn.training.progress import Progress
from jaxrnn.training.running import Evaluation, NonFiniteLoss, Run
from jaxrnn.training.snapshots import Saver, Snapshot
from jaxrnn.training.steps import Loss
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


class FitOptions(TypedDict, total=False):
    """Further options of `fit`.

    Attributes:
        shuffle: if True, draw a new order of the examples for each epoch. Defaults to True.
        take: ``take(data, indices) -> batch`` builds a batch from the indices of its examples
            (B,), e.g. windows of a series. It is compiled. None, the default, indexes the first
            axes.
        examples: S if `take` builds the examples. Defaults to the length of the first axes.
        opt_state: the optimizer state to start from. Defaults to ``optimizer.init(params)``.
        wrt: the variables of a Flax module to train, an `nnx` filter; other variables are state.
            Defaults to ``nnx.Param``.
        evaluate_every: steps between two evaluations; there is one after the last step too.
            Defaults to one epoch, or to one evaluation after the last step if the number of
            batches is unknown.
        early_stopping: the rule that ends the training early, with the best parameters. Defaults
            to None.
        resume: if True, continue from the newest checkpoint if one exists. All other arguments
            must be unchanged; `steps` may be larger. Defaults to False.
        chunk: steps per compiled call. The progress bar, the check of the losses and Ctrl-C act
            between calls. Defaults to at most 100, fewer where the intervals require it.
        mesh: the devices, a ``jax.sharding.Mesh`` with axes "data" and "model", or a number of
            ``jax.devices()``. Every batch is split over all devices along its first axis.
            Parameters are replicated; along "model", recurrent weights and their optimizer state
            are stored in shards and gathered for each step. Afterwards every array is back on its
            former device. With several processes, each calls `fit` with the same arguments; an
            iterable yields the process's part of each batch. Defaults to None, one device.
        progress: True for a progress bar on standard error if that is a terminal, False for none,
            or a `Progress`. Defaults to True.
    """

    shuffle: bool
    take: sources.Take | None
    examples: int | None
    opt_state: Any
    wrt: Any
    evaluate_every: int | None
    early_stopping: EarlyStopping | None
    resume: bool
    chunk: int | None
    mesh: Any
    progress: Progress | bool


_DEFAULTS = FitOptions(
    shuffle=True,
    take=None,
    examples=None,
    opt_state=None,
    wrt=nnx.Param,
    evaluate_every=None,
    early_stopping=None,
    resume=False,
    chunk=None,
    mesh=None,
    progress=True,
)


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    model: Any,
    data: Any,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    carry: Any = None,
    validation: Any = None,
    evaluate: Callable[..., Any] | None = None,
    checkpoints: Checkpoints | None = None,
    key: int | jax.Array = 0,
    **options: Unpack[FitOptions],
) -> Fitted:
    r"""Train a model, with batching, validation, checkpoints and a progress bar.

    .. math::

        \begin{aligned}
        \pi_e &= \mathrm{permutation}(\mathrm{fold\_in}(\mathrm{shuffle\_key}, e), S) \\
        b_k &= \mathrm{data}[(\pi_0, \pi_1, \ldots)_{kB, \ldots, kB + B - 1}] \\
        \ell_k &= \mathrm{loss}(\theta_k, b_k;\ \mathrm{fold\_in}(\mathrm{step\_key}, k)) \\
        \theta_{k+1} &= \theta_k + \mathrm{optimizer}(\nabla_{\theta} \ell_k)
        \end{aligned}

    Here e counts epochs, k steps, S examples and B the batch size. Each compiled call runs many
    steps (`train_steps` with donated buffers) and gathers their batches on the device. All
    randomness is a function of `key` and of the step number, so a training resumed from a
    checkpoint equals the uninterrupted one bit for bit.

    Args:
        loss: ``loss(model, batch) -> value`` or ``(value, metrics)``; with a carry,
            ``loss(model, carry, batch) -> (value, (carry, metrics))``, as for `train_steps`. The
            metrics are a dict of scalars. A further argument named ``key`` receives the key of the
            step. The random streams of a Flax module (dropout) are set from that key in any case.
        optimizer: an optax optimizer, including schedules and clipping:
            ``optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))``.
        model: a Flax module, trained in place and in training mode; or a pytree of parameters
            (Haiku, Equinox, plain JAX), which is not changed.
        data: a pytree of arrays (S, ...), which stays on the device; or any iterable of batches of
            one shape (a list, a generator, a loader), which are stacked on the host while the
            device is busy. An iterable is restarted at its end, an iterator is not.
        steps: number of steps. Exactly one of `steps` and `epochs` is required.
        epochs: number of passes over the S examples, which is ceil(epochs * S / B) steps. If B does
            not divide S, a batch joins the last examples of an epoch and the first of the next, so
            that all batches have one shape and no example is dropped.
        batch_size: B, examples per step; None for all of them in each step, unshuffled.
        carry: the carry of the first step; None for a loss without a carry.
        validation: a pytree of arrays for `evaluate`.
        evaluate: ``evaluate(model) -> metrics``, or ``evaluate(model, validation) -> metrics`` if
            `validation` is passed; compiled, with the model in evaluation mode. None evaluates the
            loss and its metrics as means over batches of B examples of `validation`.
        checkpoints: the folder and the interval of checkpoints.
        key: a seed or a key; ``shuffle_key, step_key = jax.random.split(key)``.
        **options: see `FitOptions`.

    Returns:
        `Fitted`. Ctrl-C leaves the parameters of the last call in the model.

    Raises:
        NonFiniteLoss: if a loss is infinite or NaN. The model is unchanged; existing checkpoints
            are from before that step.
        ValueError, TypeError: if an argument is invalid, before anything is computed; if a
            checkpoint is from another model, optimizer, key or data.
        CheckpointError: if a checkpoint cannot be written or read.
        ProcessLost: if another of several processes has ended.

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
        ...     loss, optax.adam(optax.cosine_decay_schedule(0.03, 150)), model,
        ...     (x[:100], y[:100]), epochs=50, batch_size=32, validation=(x[100:], y[100:]),
        ...     evaluate_every=25, early_stopping=EarlyStopping("loss", patience=3),
        ... )
        >>> fitted.history.losses.shape, sorted(fitted.history.train)
        ((157,), ['largest', 'loss'])
        >>> fitted.history.evaluated.tolist(), bool(fitted.history.validation["loss"][-1] < 1e-2)
        ([25, 50, 75, 100, 125, 150, 157], True)

    Differs from PyTorch: PyTorch has no such function. Shuffling and batches follow
    ``torch.utils.data.DataLoader``, except that a batch may span two epochs.
    """
    unknown = sorted(options.keys() - _DEFAULTS.keys())
    if unknown:
        raise TypeError(
            f"`fit` must be called with options among {', '.join(_DEFAULTS)}, got "
            f"{', '.join(unknown)}."
        )
    options = cast(FitOptions, _DEFAULTS | options)
    chunk, resume, opt_state = options["chunk"], options["resume"], options["opt_state"]
    early_stopping, every = options["early_stopping"], options["evaluate_every"]
    _check_kinds(optimizer, loss, checkpoints)
    layout = meshes.make(options["mesh"])
    with processes.together():
        root = _key(key)
        shuffle_key, step_key = jax.random.split(root)
        order = options["shuffle"], options["take"], options["examples"]
        source = sources.make(data, batch_size, *order, shuffle_key, layout)
        steps = _steps(steps, epochs, source.epoch)
        if chunk is not None:
            checks.at_least("chunk", chunk, 1)
        if resume and checkpoints is None:
            raise ValueError("resume=True needs checkpoints to go on from")
        form, evaluated_form = _forms(model, options["wrt"])
        parts = form.split(model)
        if not jax.tree.leaves(parts.params):
            raise ValueError("the model has no parameters to train")
        layout.check_model(parts.params)
        job = Job(form, loss, optimizer, source.how, carry is not None)
        evaluation = _evaluation(job, evaluate, validation, every, source.epoch, batch_size, layout)
        if evaluation is not None:
            evaluation = evaluation._replace(form=evaluated_form, key=layout.whole(step_key))
            evaluation.check(parts, early_stopping)
        elif early_stopping is not None or every is not None:
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
        progress = options["progress"]
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
        if job.has_carry:
            raise ValueError("a loss with a carry needs an evaluate beside validation")
        shapes = _shapes(validation)
        if not any(math.prod(shape) for shape in shapes):
            raise ValueError(f"validation has no examples, its shapes are {shapes}")
        evaluate = MeanLoss(job.loss, batch_size)
    given = () if validation is None else (layout.whole(validation),)
    if every is None:
        every = NEVER if epoch is None else math.ceil(epoch)
    return Evaluation(job.form, evaluate, given, every)
