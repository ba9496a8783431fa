"""The compiled calls of `jaxrnn.training.fit`: a chunk of steps, and an evaluation.

Both take everything that differs from call to call as arguments, and what they are made of as one
hashable value, so that JAX keeps what it compiled for the next call and for the next training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from jaxrnn.backends import sharding as devices
from jaxrnn.training import meshes, sources
from jaxrnn.training.steps import Trained, _adapt_loss, train_steps


class Parts(NamedTuple):
    """A model taken apart.

    Attributes:
        params: what is trained.
        state: other variables, statistics say, that the training changes.
        random: the random streams of a Flax module, which it does not.
    """

    params: Any
    state: Any
    random: Any


class Form(NamedTuple):
    """How to put a model together: that of a Flax module, or of any pytree of parameters.

    Attributes:
        graph: the graph definition of the module; None for a pytree.
        wrt: the filter of what is trained.
    """

    graph: Any
    wrt: Any

    def split(self, model: Any) -> Parts:
        """Take a model apart."""
        if self.graph is None:
            return Parts(model, None, None)
        _, params, random, state = nnx.split(model, self.wrt, nnx.RngState, ...)
        return Parts(params, state, random)

    def merge(self, parts: Parts, key: Any) -> Any:
        """Put it together, its random streams as of this key."""
        if self.graph is None:
            return parts.params
        streams = _streams(parts.random, key)
        # Copied, so that a loss that is differentiated can change them.
        return nnx.merge(self.graph, parts.params, streams, parts.state, copy=True)


def _streams(random: Any, key: Any) -> Any:
    """Random streams from which nothing was drawn, the n-th one's key ``fold_in(key, n)``."""
    leaves, tree = jax.tree.flatten(random)
    count = 0
    for index, leaf in enumerate(leaves):
        leaves[index] = jnp.zeros_like(leaf)  # how many keys were drawn
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            one = jax.random.fold_in(key, count)
            leaves[index] = jax.random.split(one, leaf.shape) if leaf.shape else one
            count += 1
    return jax.tree.unflatten(tree, leaves)


class Job(NamedTuple):
    """What the compiled calls are made of.

    Attributes:
        form: how to put the model together.
        loss: the loss function.
        optimizer: an optax optimiser.
        how: how to make the batch of a step.
        has_carry: True if the loss has a carry.
        places: where the arrays of the state lie, one after another, if among several devices.
    """

    form: Form
    loss: Callable[..., Any]
    optimizer: optax.GradientTransformation
    how: Any
    has_carry: bool
    places: tuple[Any, ...] | None = None


def numbers(what: str, metrics: Any) -> dict[str, Any]:
    """Metrics by name, each one number."""
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, dict):
        raise TypeError(f"the metrics of {what} should be a dict, got {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(name, str) or not sources.is_number(value) or jnp.shape(value) != ():
            got = jnp.shape(value) if sources.is_number(value) else type(value).__name__
            raise TypeError(f"metric {name!r} of {what} should be one number, got {got}")
    return metrics


def loss_metrics(metrics: Any) -> dict[str, Any]:
    """Check the metrics of a loss in `fit`."""
    metrics = numbers("the loss", metrics)
    if "loss" in metrics:
        raise ValueError('the metrics of the loss can\'t have the name "loss", it has it')
    return metrics


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3, 4))
def run_steps(
    job: Job,
    count: int,
    params: Any,
    opt_state: Any,
    carry: Any,
    random: Any,
    data: Any,
    feed: Any,
    start: Any,
    key: jax.Array,
) -> Trained:
    """So many steps from step `start` on; what is in `params`, `opt_state`, `carry` is given away.

    The carry is a pair: the other state of the model, and what the user's loss carries.
    """
    adapted = _adapt_loss(job.loss, job.has_carry, key)

    def loss(params: Any, carry: Any, inputs: Any) -> Any:
        (state, carry), (step, piece) = carry, inputs
        step_key = jax.random.fold_in(key, step)
        model = job.form.merge(Parts(meshes.gathered(params), state, random), step_key)
        batch = devices.share(job.how.batch(data, devices.share(piece)))
        value, (carry, metrics) = adapted(model, carry, batch, step)
        return value, ((job.form.split(model).state, carry), loss_metrics(metrics))

    steps = start + jnp.arange(count, dtype=jnp.int32)
    batches = (steps, job.how.pieces(feed, count))
    trained = train_steps(loss, job.optimizer, params, batches, carry=carry, opt_state=opt_state)
    state = meshes.kept((trained.params, trained.opt_state, trained.carry), job.places)
    return Trained(*state, *devices.gathered((trained.losses, trained.metrics)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_evaluation(
    form: Form, evaluate: Callable[..., Any], parts: Parts, validation: Any, key: jax.Array
) -> dict[str, jax.Array]:
    """What a function measures of a model."""
    model = form.merge(parts._replace(params=meshes.gathered(parts.params)), key)
    measured = numbers("evaluate", evaluate(model, *validation))
    return devices.gathered({name: jnp.asarray(value) for name, value in measured.items()})


class MeanLoss(NamedTuple):
    """The loss and its metrics on examples it was not trained on, as the mean over them.

    Attributes:
        loss: the loss function, a mean over the examples of a batch.
        size: how many examples at once; None for all.
    """

    loss: Callable[..., Any]
    size: int | None

    def __call__(self, model: Any, data: Any) -> dict[str, Any]:
        """The mean of each over all examples."""
        adapted = _adapt_loss(self.loss, False, jax.random.key(0))

        def measure(batch: Any) -> dict[str, Any]:
            value, (_, metrics) = adapted(model, None, devices.share(batch), 0)
            return {"loss": jnp.asarray(value), **loss_metrics(metrics)}

        if self.size is None:
            return measure(data)
        examples = sources.length("validation", data)
        whole, left = divmod(examples, self.size)
        cut = examples - left
        total: Any = []
        if whole:
            batches = jax.tree.map(lambda a: a[:cut].reshape(whole, self.size, *a.shape[1:]), data)
            measured = lax.map(measure, batches)
            total.append(jax.tree.map(lambda a: a.mean(0) * (cut / examples), measured))
        if left:
            measured = measure(jax.tree.map(lambda a: a[cut:], data))
            total.append(jax.tree.map(lambda a: a * (left / examples), measured))
        return jax.tree.map(lambda *parts: sum(parts), *total)
