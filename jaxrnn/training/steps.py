"""Many training steps in one compiled call: a scan over steps around a gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrnn.training.progress import Progress

Loss = Callable[[Any, Any, Any], tuple[jax.Array, tuple[Any, Any]]]


class Trained(NamedTuple):
    """What a run of training steps leaves.

    Attributes:
        params: the parameters after the last step.
        opt_state: the optimiser's state after the last step, to go on with.
        carry: what the last step handed on.
        losses: the loss at each step, before its update (steps,).
        outputs: what the loss function gave out at each step, stacked.
    """

    params: Any
    opt_state: Any
    carry: Any
    losses: jax.Array
    outputs: Any


def train_steps(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Any,
    carry: Any,
    batches: Any,
    *,
    opt_state: Any = None,
    progress: Progress | None = None,
) -> Trained:
    """One gradient step for each batch, as one `lax.scan`; a pure function to put under `jit`.

    Args:
        loss: ``loss(params, carry, batch) -> (value, (carry, output))``. The carry, a hidden
            state say, goes to the next step as a value: no gradient flows back through it.
        optimizer: an optax optimiser.
        params: a pytree of parameters.
        carry: what the first step gets.
        batches: a pytree whose leaves hold one batch for each step along their first axis.
        opt_state: the optimiser's state to go on from; None for a fresh one.
        progress: told of the steps as they are done, from inside of the compiled loop.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def loss(w, carry, x):
        ...     return (w * x - 1.0) ** 2, (carry, w)
        >>> run = jax.jit(lambda w, xs: train_steps(loss, optax.sgd(0.1), w, None, xs))
        >>> run(jnp.float32(0), jnp.ones(50)).params.round(3).item()
        1.0
    """
    count = jax.tree.leaves(batches)[0].shape[0]
    if opt_state is None:
        opt_state = optimizer.init(params)

    def step(state: Any, inputs: Any) -> tuple[Any, Any]:
        params, opt_state, carry = state
        index, batch = inputs
        (value, (carry, output)), grads = jax.value_and_grad(loss, has_aux=True)(
            params, carry, batch
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        if progress is not None:
            progress.tick(index, count, value)
        return (optax.apply_updates(params, updates), opt_state, carry), (value, output)

    start = (params, opt_state, carry)
    (params, opt_state, carry), (losses, outputs) = lax.scan(
        step, start, (jnp.arange(count), batches)
    )
    return Trained(params, opt_state, carry, losses, outputs)
