"""Many training steps in one compiled call: a scan over steps around a gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrnn import _checks as checks
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

    Raises:
        ValueError: for batches without arrays, or whose first axes differ.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def loss(w, carry, x):
        ...     return (w * x - 1.0) ** 2, (carry, w)
        >>> run = jax.jit(lambda w, xs: train_steps(loss, optax.sgd(0.1), w, None, xs))
        >>> run(jnp.float32(0), jnp.ones(50)).params.round(3).item()
        1.0
    """
    what = "one batch for each step along their first axes, as many in each"
    count = checks.first_axes("batches", batches, what, None)
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


def jit_steps(
    loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[[Any, Any, Any, Any], Trained]:
    """`train_steps` compiled, with the buffers of its state given away: training in place.

    The function returned is made for a loop over chunks of steps: what one call returns is what
    the next is given, and is overwritten by it, so that there is one copy of the parameters and of
    the optimiser's state, and nothing around the steps but one call a chunk. It is an ordinary
    `jax.jit` function, traced once for each shape of its arguments.

    Args:
        loss: as for `train_steps`.
        optimizer: an optax optimiser; ``optimizer.init(params)`` is the first `opt_state`.

    Returns:
        ``steps(params, opt_state, carry, batches) -> Trained``. The arrays in `params`,
        `opt_state` and `carry` are donated: they can't be read after the call, and none may be in
        there twice. The parameters of a Flax module, ``nnx.state(model)``, are its own arrays:
        after the last chunk, ``nnx.update(model, params)``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def loss(w, carry, x):
        ...     return (w * x - 1.0) ** 2, (carry, w)
        >>> optimizer = optax.sgd(0.1)
        >>> steps = jit_steps(loss, optimizer)
        >>> w, carry = jnp.zeros(()), None
        >>> opt_state = optimizer.init(w)
        >>> for chunk in jnp.ones((5, 10)):  # five calls of ten steps
        ...     w, opt_state, carry, losses, _ = steps(w, opt_state, carry, chunk)
        >>> w.round(3).item(), losses.shape
        (1.0, (10,))
    """

    def steps(params: Any, opt_state: Any, carry: Any, batches: Any) -> Trained:
        return train_steps(loss, optimizer, params, carry, batches, opt_state=opt_state)

    return jax.jit(steps, donate_argnums=(0, 1, 2))
