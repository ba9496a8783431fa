"""`fit`: train a model in compiled chunks of steps, with evaluation, checkpoints and history."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from jaxrnn import _checks as checks
from jaxrnn.backends import sharding
from jaxrnn.training import distributed
from jaxrnn.training.batches import (
    Take,
    _ArraySource,
    _chunk_size,
    _is_number,
    _IterableSource,
    _make_source,
    _Sampler,
)
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.distributed import ProcessLost
from jaxrnn.training.history import History, Progress, _concatenate
from jaxrnn.training.steps import Loss, _adapt_loss, train_steps

_NEVER = 2**31
"""An interval longer than any training."""


class NonFiniteLoss(FloatingPointError):
    """Error of a loss that is infinite or NaN.

    Attributes:
        step: the step, counted from 1.
        value: its loss.
    """

    def __init__(self, step: int, value: float, checkpoints: Checkpoints | None = None):
        words = f"The loss must be finite, got {value} at step {step}. The model is unchanged"
        if checkpoints is not None and (steps := checkpoints.steps()):
            words += f"; {checkpoints.folder} has a checkpoint of step {steps[-1]}"
        super().__init__(words)
        self.step, self.value = step, value


@dataclass(frozen=True)
class EarlyStopping:
    r"""Rule that stops a training when a metric of the evaluation no longer improves.

    A value m improves on the best value m* if :math:`m^* - m > \mathrm{min\_delta}` in mode "min",
    or :math:`m - m^* > \mathrm{min\_delta}` in mode "max". Training ends with the parameters of the
    best evaluation, whether it was stopped or not.

    Args:
        metric: the name of a metric of `evaluate`.
        patience: number of successive evaluations without improvement that stop the training.
        mode: "min" or "max".
        min_delta: the least improvement, in the unit of the metric.

    Raises:
        ValueError: if `patience` < 1, `mode` is unknown, or `min_delta` is negative or infinite.

    Example:
        >>> EarlyStopping("accuracy", patience=3, mode="max").better(0.9, than=0.8)
        True
    """

    metric: str = "loss"
    patience: int = 5
    mode: str = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least("patience", self.patience, 1)
        checks.choice("mode", self.mode, ("min", "max"))
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"`min_delta` must be a finite number >= 0, got {self.min_delta!r}")

    def better(self, value: float, than: float | None) -> bool:
        """Return True if a value is an improvement; the first value is, NaN never is."""
        if math.isnan(value) or than is None:
            return not math.isnan(value)
        return (than - value if self.mode == "min" else value - than) > self.min_delta


class Fitted(NamedTuple):
    """Result of `fit`.

    Attributes:
        model: the trained model: the Flax module itself, or a new pytree of parameters.
        opt_state: the optimizer state after the last step.
        carry: the carry after the last step; None without a carry.
        history: losses and metrics.
        stopped: True if early stopping ended the training.
    """

    model: Any
    opt_state: Any
    carry: Any
    history: History
    stopped: bool


class FitOptions(TypedDict, total=False):
    """Further options of `fit`.

    Attributes:
        shuffle: If True, the default, draw a new order of the examples for each epoch.
        take: ``take(data, indices) -> batch`` builds a batch from the indices of its examples
            (B,), e.g. windows of a series; it is compiled. Defaults to indexing the first axes.
        examples: S if `take` builds the examples. Defaults to the length of the first axes.
        opt_state: the optimizer state to start from. Defaults to ``optimizer.init(params)``.
        wrt: the variables of a Flax module to train, an `nnx` filter; other variables are state.
            Defaults to ``nnx.Param``.
        evaluate_every: steps between two evaluations, besides the one after the last step.
            Defaults to one epoch of arrays.
        early_stopping: rule that ends the training early, with the best parameters.
        resume: If True, continue from the newest checkpoint if one exists. All other arguments
            must be unchanged; `steps` may be larger. Defaults to False.
        chunk: steps per compiled call. The progress bar, the check of the losses and Ctrl-C act
            between calls. Defaults to at most 100, fewer where the intervals require it.
        mesh: a ``jax.sharding.Mesh`` with axes "data" and "model", or a number of devices. Batches
            are split over all devices along their first axis, parameters are replicated; along
            "model", recurrent weights and their optimizer state are sharded, and gathered for each
            step. Afterwards every array is back on its former device. With several processes, an
            iterable yields the process's part of each batch. Defaults to one device.
        progress: True, the default, for a progress bar on standard error if that is a terminal,
            False for none, or a `Progress`.
    """

    shuffle: bool
    take: Take | None
    examples: int | None
    opt_state: Any
    wrt: Any
    evaluate_every: int | None
    early_stopping: EarlyStopping | None
    resume: bool
    chunk: int | None
    mesh: Any
    progress: Progress | bool


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
    randomness is a function of `key` and the step: a resumed training equals the uninterrupted one
    bit for bit.

    Args:
        loss: ``loss(model, batch) -> value`` or ``(value, metrics)``; with a carry,
            ``loss(model, carry, batch) -> (value, (carry, metrics))``, as for `train_steps`.
            Metrics are a dict of scalars. A further argument ``key`` receives the key of the step,
            from which the random streams of a Flax module (dropout) are set, too.
        optimizer: an optax optimizer, including schedules and clipping.
        model: a Flax module, trained in place and in training mode; or a pytree of parameters
            (Haiku, Equinox, plain JAX), which is not changed.
        data: a pytree of arrays (S, ...), which stays on the device; or an iterable of batches of
            one shape (a list, a generator, a loader), which are stacked on the host while the
            device is busy. An iterable is restarted at its end, an iterator is not.
        steps: number of steps. Exactly one of `steps` and `epochs` is required.
        epochs: number of passes over the examples: ceil(epochs * S / B) steps. If B does not divide
            S, a batch joins the last examples of an epoch and the first of the next.
        batch_size: B, examples per step; None for all of them in each step, unshuffled.
        carry: the carry of the first step; None for a loss without a carry.
        validation: a pytree of arrays for `evaluate`.
        evaluate: ``evaluate(model) -> metrics``, or ``evaluate(model, validation) -> metrics`` if
            `validation` is passed; compiled, with the model in evaluation mode. None for the means
            of the loss and its metrics over `validation`, B examples at a time.
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
        >>> model = ManyToMany(jaxrnn.LSTM(1, 16, batch_first=True, rngs=rngs), 1, rngs=rngs)
        >>> x = jax.random.uniform(jax.random.key(1), (120, 10, 1))
        >>> y = jnp.cumsum(x, axis=1) / 10
        >>> def loss(model, batch):
        ...     x, y = batch
        ...     error = model(x)[0] - y
        ...     return (error**2).mean(), {"largest": jnp.abs(error).max()}
        >>> fitted = fit(
        ...     loss, optax.adam(0.01), model, (x[:100], y[:100]), epochs=50, batch_size=32,
        ...     validation=(x[100:], y[100:]), early_stopping=EarlyStopping("loss", patience=10),
        ... )
        >>> sorted(fitted.history.train), bool(fitted.history.validation["loss"].min() < 1e-2)
        (['largest', 'loss'], True)

    Differs from PyTorch: PyTorch has no such function. Shuffling and batches follow
    ``torch.utils.data.DataLoader``, except that a batch may span two epochs.
    """
    unknown = options.keys() - FitOptions.__optional_keys__
    if unknown:
        raise TypeError(
            f"Options of `fit` must be among {', '.join(FitOptions.__annotations__)}, got "
            f"{', '.join(sorted(unknown))}"
        )
    _check_types(optimizer, loss, checkpoints)
    if options.get("resume") and checkpoints is None:
        raise ValueError("`resume` must be combined with `checkpoints`, got checkpoints=None")
    layout = distributed._make_layout(options.get("mesh"))
    with distributed._detect_lost_process():
        root = _make_key(key)
        shuffle_key, step_key = jax.random.split(root)
        source = _make_source(data, batch_size, options, shuffle_key, layout)
        steps = _count_steps(steps, epochs, source.epoch_steps)
        form, evaluation_form = _forms(model, options.get("wrt", nnx.Param))
        params, variables, random = form.split(model)
        if not jax.tree.leaves(params):
            raise ValueError("`model` must have parameters to train, got no parameters")
        layout.check_model(params)
        opt_state = options.get("opt_state")
        if opt_state is None:
            opt_state = optimizer.init(params)
        elif _shapes(opt_state) != _shapes(jax.eval_shape(optimizer.init, params)):
            raise ValueError(
                "`opt_state` must be a state of `optimizer` for the parameters of the model, got "
                f"shapes {_shapes(opt_state)}"
            )
        stopping, every = options.get("early_stopping"), options.get("evaluate_every")
        evaluation = None
        if evaluate is not None or validation is not None:
            if every is None:
                every = math.ceil(source.epoch_steps or _NEVER)
            checks.at_least("evaluate_every", every, 1)
            evaluate = evaluate or _MeanLoss(loss, carry is not None, batch_size)
            sets = () if validation is None else (layout.replicate(validation),)
            key = layout.replicate(step_key)
            evaluation = _Evaluation(evaluation_form, evaluate, sets, every, key)
            evaluation.check(params, variables, random, stopping)
        elif stopping is not None or every is not None:
            raise ValueError(
                "`early_stopping` and `evaluate_every` must be combined with `evaluate` or "
                "`validation`, got neither"
            )
        due = [timed.every for timed in (evaluation, checkpoints) if timed and timed.every < steps]
        chunk = options.get("chunk")
        due.append(_chunk_size(steps, due) if chunk is None else chunk)
        checks.at_least("chunk", due[-1], 1)

        original = {"params": params, "opt_state": opt_state, "state": variables, "carry": carry}
        intervals = (steps, batch_size, due)
        distributed._check_equal(parameters=original, key=root, steps=intervals, data=source.data)
        state = jax.tree.map(lambda a: jnp.array(a, copy=True), original)
        weights = layout.shard_weights({name: state[name] for name in ("params", "opt_state")})
        state = layout.replicate(state | weights)  # the weights keep their shards
        shardings = None
        if layout.mesh is not None:
            shardings = tuple(leaf.sharding for leaf in jax.tree.leaves(state))
        job = _Job(form, loss, optimizer, source.sampler, carry is not None, shardings)
        random, step_key = layout.replicate((random, step_key))
        progress = options.get("progress", True)
        bar = Progress("fit", steps) if progress is True else progress or None
        if not distributed._is_first():
            bar = None
        run = _Run(job, source, random, step_key, evaluation, checkpoints, stopping, bar, state)
        if checkpoints is not None:
            run.open_checkpoints(checkpoints, root, steps, options.get("resume", False))
        try:
            shown = bar or contextlib.nullcontext()
            with layout.context(), shown, distributed._detect_lost_process():
                run.train(steps, due)
        except (NonFiniteLoss, ProcessLost):
            raise
        except BaseException:
            run.finish(model, layout, original, best=False)
            raise
        model = run.finish(model, layout, original, best=True)
        opt_state, carry = run.state["opt_state"], run.state["carry"]
        return Fitted(model, opt_state, carry, run.history(), run.stopped)


def _check_types(optimizer: Any, loss: Any, checkpoints: Any) -> None:
    """Check the types of the arguments of `fit`."""
    optimizer_name, loss_name = (
        getattr(value, "__name__", type(value).__name__) for value in (optimizer, loss)
    )
    if not callable(loss):
        raise TypeError(f"`loss` must be a function, got {loss_name}")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        fix = f". Call it: {optimizer_name}(1e-3)" if callable(optimizer) else ""
        raise TypeError(
            f"`optimizer` must be an optax.GradientTransformation, got {optimizer_name}{fix}"
        )
    if not isinstance(checkpoints, Checkpoints | None):
        raise TypeError(f"`checkpoints` must be Checkpoints(folder, every), got {checkpoints!r}")


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _make_key(key: Any) -> jax.Array:
    """Return the root key of a training."""
    if distributed._is_key(key):
        if key.shape:
            raise ValueError(f"`key` must be one key, got shape {key.shape}")
        return key
    if not isinstance(key, int):
        raise TypeError(f"`key` must be a seed or a key of jax.random.key, got {key!r}")
    checks.seed(key)
    return jax.random.key(key)


def _count_steps(steps: Any, epochs: Any, epoch_steps: float | None) -> int:
    """Return the number of steps of a training."""
    if (steps is None) == (epochs is None):
        raise ValueError(
            f"Exactly one of `steps` and `epochs` must be set, got steps={steps}, epochs={epochs}"
        )
    name, count = ("epochs", epochs) if steps is None else ("steps", steps)
    checks.at_least(name, count, 1)
    if steps is not None:
        return steps
    if epoch_steps is None:
        raise ValueError("`epochs` must be None if `data` is an iterable. Use steps instead.")
    return math.ceil(epochs * epoch_steps)


class _Form(NamedTuple):
    """Graph definition of a Flax module and filter of its parameters; None for a pytree."""

    graph: Any
    wrt: Any

    def split(self, model: Any) -> tuple[Any, Any, Any]:
        """Split a model into parameters, other variables and random streams."""
        if self.graph is None:
            return model, None, None
        _, params, random, variables = nnx.split(model, self.wrt, nnx.RngState, ...)
        return params, variables, random

    def merge(self, params: Any, variables: Any, random: Any, key: Any) -> Any:
        """Merge a model whose n-th random stream starts from ``fold_in(key, n)``."""
        if self.graph is None:
            return params
        leaves, structure = jax.tree.flatten(random)
        count = 0
        for index, leaf in enumerate(leaves):
            leaves[index] = jnp.zeros_like(leaf)  # the number of keys drawn
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                stream = jax.random.fold_in(key, count)
                leaves[index] = jax.random.split(stream, leaf.shape) if leaf.shape else stream
                count += 1
        random = jax.tree.unflatten(structure, leaves)
        # A copy, so that a differentiated loss may change the variables.
        return nnx.merge(self.graph, params, random, variables, copy=True)


def _forms(model: Any, wrt: Any) -> tuple[_Form, _Form]:
    """Return the forms of a model in training and in evaluation mode."""
    if isinstance(model, nnx.Module):
        copy = nnx.clone(model)
        copy.train()
        graph = nnx.graphdef(copy)
        copy.eval()
        return _Form(graph, wrt), _Form(nnx.graphdef(copy), wrt)
    for leaf in jax.tree.leaves(model):
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise TypeError(
                "`model` must be a Flax module or a pytree of arrays, got a leaf of type "
                f"{type(leaf).__name__}"
            )
    return _Form(None, None), _Form(None, None)


class _Job(NamedTuple):
    """Static arguments of a compiled chunk of steps; hashable, so that JAX caches the program."""

    form: _Form
    loss: Loss
    optimizer: optax.GradientTransformation
    sampler: _Sampler
    has_carry: bool
    shardings: tuple[Any, ...] | None


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2,))
def _run_steps(
    job: _Job, count: int, state: Any, random: Any, data: Any, feed: Any, start: Any, key: Any
) -> tuple[dict[str, Any], Any, Any]:
    """Run `count` steps from step `start` on; the buffers of the state are donated."""
    adapted = _adapt_loss(job.loss, job.has_carry, key)

    def _loss(params: Any, carry: Any, batch: Any) -> Any:
        (variables, carry), (step, inputs) = carry, batch
        params = distributed._gather_weights(params)
        model = job.form.merge(params, variables, random, jax.random.fold_in(key, step))
        batch = sharding.shard_batch(job.sampler.batch(data, sharding.shard_batch(inputs)))
        value, (carry, metrics) = adapted(model, carry, batch, step)
        _, variables, _ = job.form.split(model)
        return value, ((variables, carry), _check_metrics("loss", metrics))

    batches = start + jnp.arange(count, dtype=jnp.int32), job.sampler.inputs(feed, count)
    params, opt_state, (variables, carry), losses, metrics = train_steps(
        _loss, job.optimizer, state["params"], batches,
        carry=(state["state"], state["carry"]), opt_state=state["opt_state"],
    )  # fmt: skip
    state = {"params": params, "opt_state": opt_state, "state": variables, "carry": carry}
    return distributed._constrain(state, job.shardings), *sharding.replicate((losses, metrics))


def _check_metrics(source: str, metrics: Any) -> dict[str, Any]:
    """Check that the metrics of `loss` or `evaluate` are a dict of scalars."""
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, dict):
        raise TypeError(f"Metrics of `{source}` must be a dict, got {type(metrics).__name__}")
    if source == "loss" and "loss" in metrics:
        raise ValueError('Metrics of `loss` must have other names, got "loss"')
    for name, value in metrics.items():
        if not isinstance(name, str) or not _is_number(value) or jnp.shape(value) != ():
            got = f"shape {jnp.shape(value)}" if _is_number(value) else type(value).__name__
            raise TypeError(f"Metric {name!r} of `{source}` must be a scalar, got {got}")
    return metrics


class _MeanLoss(NamedTuple):
    """Evaluation of a loss and its metrics as means over all examples, `size` at a time."""

    loss: Loss
    has_carry: bool
    size: int | None

    def __call__(self, model: Any, data: Any) -> dict[str, Any]:
        if self.has_carry:
            raise ValueError("`evaluate` must be a function if the loss has a carry, got None")
        if not any(map(math.prod, _shapes(data))):
            raise ValueError(f"`validation` must have examples, got shapes {_shapes(data)}")
        adapted = _adapt_loss(self.loss, False, jax.random.key(0))

        def _measure(batch: Any) -> dict[str, Any]:
            value, (_, metrics) = adapted(model, None, sharding.shard_batch(batch), 0)
            return {"loss": jnp.asarray(value), **_check_metrics("loss", metrics)}

        if self.size is None:
            return _measure(data)
        examples = checks.leading_axis("validation", data, "examples")
        size = min(self.size, examples)
        count, remainder = divmod(examples, size)
        cut = examples - remainder
        batches = jax.tree.map(lambda a: a[:cut].reshape(count, size, *a.shape[1:]), data)
        mean = jax.tree.map(lambda a: a.mean(0), lax.map(_measure, batches))
        if not remainder:
            return mean
        rest = _measure(jax.tree.map(lambda a: a[cut:], data))
        weights = cut / examples, remainder / examples
        return jax.tree.map(lambda a, b: a * weights[0] + b * weights[1], mean, rest)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_evaluation(form: _Form, evaluate: Any, model: Any, sets: Any, key: Any) -> dict[str, Any]:
    """Return the metrics of a model, given as parameters, other variables and random streams."""
    params, variables, random = model
    model = form.merge(distributed._gather_weights(params), variables, random, key)
    metrics = _check_metrics("evaluate", evaluate(model, *sets))
    return sharding.replicate({name: jnp.asarray(value) for name, value in metrics.items()})


class _Evaluation(NamedTuple):
    """Evaluation function, its validation set if there is one, and its interval."""

    form: _Form
    function: Callable[..., Any]
    sets: tuple[Any, ...]
    every: int
    key: Any

    def check(self, params: Any, variables: Any, random: Any, rule: EarlyStopping | None) -> None:
        """Trace the evaluation before the training, so that its errors appear early."""
        model = params, variables, random
        metrics = _run_evaluation.eval_shape(self.form, self.function, model, self.sets, self.key)
        if rule is not None and rule.metric not in metrics:
            raise ValueError(
                f"The metric of `early_stopping` must be among {sorted(metrics)}, got "
                f"{rule.metric!r}"
            )

    def measure(self, *model: Any) -> dict[str, np.ndarray]:
        """Return the metrics of (parameters, other variables, random streams) on the host."""
        metrics = _run_evaluation(self.form, self.function, model, self.sets, self.key)
        return {name: np.asarray(value) for name, value in metrics.items()}


@dataclass
class _Run:
    """Training in progress: compiled chunks of steps, and evaluations and checkpoints between.

    `state` has the arrays that a step updates, `best` the parameters and other variables of the
    best evaluation, both under their names in a checkpoint.
    """

    job: _Job
    source: _ArraySource | _IterableSource
    random: Any
    key: jax.Array
    evaluation: _Evaluation | None
    checkpoints: Checkpoints | None
    stopping: EarlyStopping | None
    bar: Progress | None
    state: dict[str, Any]
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    best_value: float | None = None
    since_best: int = 0
    training: list[dict[str, np.ndarray]] = field(default_factory=list)
    validation: list[dict[str, np.ndarray]] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        """True if the patience of early stopping is exhausted."""
        return self.stopping is not None and self.since_best >= self.stopping.patience

    def history(self) -> History:
        """Return the history until now."""
        train, validation = _concatenate(self.training), _concatenate(self.validation)
        return History(train, validation, np.array(self.evaluated, np.int64))

    def open_checkpoints(
        self, checkpoints: Checkpoints, root: jax.Array, steps: int, resume: bool
    ) -> None:
        """Prepare the folder of checkpoints, and continue from the newest one."""
        arrays = jax.tree.leaves(self.source.data)
        complete = arrays and all(map(distributed._is_local, arrays))
        self.settings = {
            "key": jax.random.key_data(root).tolist(),
            **self.source.settings,
            "checksum of the data": distributed._tree_checksum(arrays) if complete else None,
        }
        if distributed._is_first():
            checkpoints._prepare()
        distributed._check_equal()  # a barrier
        existing = checkpoints.steps()
        if existing and not resume:
            raise ValueError(
                f"`checkpoints` must have an empty folder, got a checkpoint of step {existing[-1]} "
                f"in {checkpoints.folder}. Use resume=True to continue from it."
            )
        saved = checkpoints._newest()
        distributed._check_equal(checkpoint=None if saved is None else saved.step)
        if saved is None:
            return
        if saved.step > steps:
            raise ValueError(f"`steps` must be at least {saved.step} ({saved.path}), got {steps}")
        saved.check_settings(self.settings)
        self.source.seek(saved.step, saved.record["data"])
        trees = dict(self.state)
        if self.stopping is not None and saved.arrays_under("best_"):
            trees |= {"best_params": trees["params"], "best_state": trees["state"]}
        trees = saved.restore(trees)
        self.step = saved.step
        self.state = {name: trees.pop(name) for name in self.state}
        self.best = trees
        self.training = [saved.arrays_under("history/train/")]
        self.evaluated = saved.arrays["history/evaluated"].tolist()
        if self.evaluated:
            validation = saved.arrays_under("history/validation/")
            self.validation = [validation]
            for index in range(len(self.evaluated) if self.best else 0):
                self._improves({name: a[index] for name, a in validation.items()})

    def train(self, steps: int, due: list[int]) -> None:
        """Train until `steps` steps are complete or early stopping ends the training."""
        pending = None
        if self.bar is not None:
            self.bar.skip(self.step)
        while self.step < steps and not self.stopped:
            start = self.step
            end = min(steps, *(start - start % every + every for every in due))
            feed = self.source.feed(start, end - start)
            arguments = self.random, self.source.data, feed, np.int32(start), self.key
            self.state, *results = _run_steps(self.job, end - start, self.state, *arguments)
            self.step = end
            if pending is not None:  # the host reads the previous results while this call runs
                self._record(*pending)
            pending = start, *results
            evaluated, saved = (
                timed is not None and (end % timed.every == 0 or end == steps)
                for timed in (self.evaluation, self.checkpoints)
            )
            if evaluated or saved or end == steps:
                self._record(*pending)
                pending = None
            if evaluated:
                self._evaluate()
            if saved or self.stopped:
                self._save()

    def finish(self, model: Any, layout: Any, original: Any, *, best: bool) -> Any:
        """Move arrays back to their original devices; return the model with the parameters."""
        variables = self.state["params"], self.state["state"]
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(variables)):
            return model  # interrupted inside a call, which owns the buffers
        self.state = layout.restore(self.state, original)
        variables = self.state["params"], self.state["state"]
        if best and self.best:
            variables = self.best["best_params"], self.best["best_state"]
            variables = layout.restore(variables, (original["params"], original["state"]))
        if self.job.form.graph is None:
            return variables[0]
        nnx.update(model, *variables)
        return model

    def _record(self, start: int, losses: Any, metrics: dict[str, Any]) -> None:
        """Add the losses and metrics of a completed call to the history."""
        losses = np.asarray(losses)
        wrong = np.flatnonzero(~np.isfinite(losses))
        if wrong.size:
            step, value = start + int(wrong[0]) + 1, float(losses[wrong[0]])
            raise NonFiniteLoss(step, value, self.checkpoints)
        self.training.append({"loss": losses, **{n: np.asarray(a) for n, a in metrics.items()}})
        if self.bar is not None:
            self.bar.update(start + len(losses), float(losses[-1]))

    def _evaluate(self) -> None:
        """Add an evaluation to the history; copy the parameters if it is the best."""
        assert self.evaluation is not None
        params, variables = self.state["params"], self.state["state"]
        metrics = self.evaluation.measure(params, variables, self.random)
        self.validation.append({name: value[None] for name, value in metrics.items()})
        self.evaluated.append(self.step)
        if self._improves(metrics):
            best = {"best_params": params, "best_state": variables}
            self.best = jax.tree.map(lambda a: jnp.array(a, copy=True), best)

    def _improves(self, metrics: dict[str, Any]) -> bool:
        """Report an evaluation to early stopping; return True if it is the best."""
        if self.stopping is None:
            return False
        value = float(metrics[self.stopping.metric])
        improved = self.stopping.better(value, self.best_value)
        self.best_value = value if improved else self.best_value
        self.since_best = 0 if improved else self.since_best + 1
        return improved

    def _save(self) -> None:
        """Write a checkpoint."""
        if self.checkpoints is None:
            return
        trees = self.state | self.best | {"history": self.history()}
        arrays = {
            name: sharding.to_host(distributed._key_data(leaf))
            for name, leaf in distributed._named_leaves(trees).items()
        }
        record = {"settings": self.settings, "data": self.source.position()}
        if distributed._is_first():
            self.checkpoints._save(self.step, arrays, record)
