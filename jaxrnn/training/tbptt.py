"""Truncated backpropagation through time: a long stream in windows, one gradient step each.

.. code-block:: text

    window k:        steps k*window ... (k+1)*window - 1
    loss_k, carry:   loss(params, carry, window k)       the state goes on as a value ...
    params:          one step of the optimiser on d loss_k / d params        ... and is cut
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrnn import _checks as checks
from jaxrnn.training.progress import Progress
from jaxrnn.training.steps import Loss, Trained, train_steps


def truncated_bptt(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Any,
    carry: Any,
    stream: Any,
    *,
    window: int,
    opt_state: Any = None,
    progress: Progress | None = None,
) -> Trained:
    """One gradient step for each window of a long stream; a pure function to put under `jit`.

    These are the steps of `train_steps`, with the windows as its batches: window k + 1 starts
    from the state that window k ended with, before the update of window k, and no gradient flows
    from one into the other. The memory of the gradient is that of one window, whatever T is.

    If `window` does not divide T, the T % window steps that are left are a last, shorter window
    with an update of its own. A loss that is a mean over steps gives that update the weight of
    any other; one that is a sum over steps, a smaller one. A `window` of T or more is full
    backpropagation through time.

    Args:
        loss: ``loss(params, carry, piece) -> (value, (carry, output))``; `piece` is `stream` with
            K steps in place of T, K the window or what is left. It is traced once for each.
        optimizer: an optax optimiser.
        params: a pytree of parameters.
        carry: the state before the first step, shaped as the loss returns it.
        stream: a pytree of arrays (T, ...), time first. For N streams side by side the leaves are
            (T, N, ...) and the carry has N rows; `jaxrnn.data.streams` makes them of one long
            series.
        window: steps in a window, at least 1.
        opt_state: the optimiser's state to go on from; None for a fresh one.
        progress: told of the windows as they are done, from inside of the compiled loop.

    Returns:
        `Trained`. `losses` are those of the windows, each before its update (ceil(T / window),).
        `outputs` are the outputs of the windows laid end to end along their first axis: what the
        loss gives out for each step (K, ...) becomes (T, ...), what it gives out once a window
        with an axis for it, (1, ...), becomes (ceil(T / window), ...).

    Raises:
        ValueError: for a window that is not a whole number of at least 1; a stream without arrays
            or without steps, arrays without a first axis or with first axes that differ; an
            output that has no first axis.

    Example:
        >>> import functools, jax, jax.numpy as jnp, jaxrnn, optax
        >>> from flax import nnx
        >>> from jaxrnn.training import truncated_bptt
        >>> graph, params = nnx.split(jaxrnn.LSTM(1, 8, proj_size=1, rngs=nnx.Rngs(0)))
        >>> def loss(params, hx, piece):
        ...     x, y = piece
        ...     predicted, hx = nnx.merge(graph, params)(x, hx)
        ...     return jnp.mean((predicted - y) ** 2), (hx, predicted)
        >>> wave = jnp.sin(0.1 * jnp.arange(1001.0))[:, None, None]  # N = 1 stream
        >>> start = jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 8))
        >>> train = functools.partial(truncated_bptt, loss, optax.adam(0.03), window=30)
        >>> trained = jax.jit(train)(params, start, (wave[:-1], wave[1:]))
        >>> trained.losses.shape, trained.outputs.shape  # 33 windows of 30 steps, one of 10
        ((34,), (1000, 1, 1))
        >>> bool(trained.losses[-5:].mean() < 0.1 * trained.losses[:5].mean())
        True

        In place, the buffers of the state given away as `jit_steps` does it, chunk by chunk of a
        stream that is read as it comes:

        >>> steps = jax.jit(train, donate_argnames=("params", "carry", "opt_state"))
        >>> params, opt_state, carry, _, _ = steps(params, start, (wave[:500], wave[1:501]))
        >>> trained = steps(params, carry, (wave[500:-1], wave[501:]), opt_state=opt_state)
        >>> trained.losses.shape
        (17,)

    Differs from PyTorch: there it is a loop of one's own with ``detach()`` between the windows.
    Here the carry is an argument of the loss, so there is nothing to detach, nor to forget.

    Source: R. J. Williams, J. Peng, An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories, Neural Computation 2 (1990), where this is BPTT(h; h') with h
    and h' both the window; I. Sutskever, Training recurrent neural networks, PhD thesis,
    University of Toronto (2013), section 2.8.6.
    """
    checks.at_least("window", window, 1)
    steps = checks.time_first("stream", stream)
    whole, left = divmod(steps, window)
    count = whole + (left > 0)
    losses, outputs = [], []
    for first, pieces, size in ((0, whole, window), (whole, 1, left)):
        if pieces and size:
            batches = _windows(stream, first * window, pieces, size)
            part = None if progress is None else _Part(progress, first, count)
            trained = train_steps(
                loss, optimizer, params, carry, batches, opt_state=opt_state, progress=part
            )
            params, opt_state, carry = trained[:3]
            losses.append(trained.losses)
            outputs.append(jax.tree.map(_end_to_end, trained.outputs))
    join = functools.partial(jax.tree.map, lambda *parts: jnp.concatenate(parts))
    return Trained(params, opt_state, carry, join(*losses), join(*outputs))


class _Part(Progress):
    """The part of a bar that one of two loops fills."""

    def __init__(self, whole: Progress, done: int, count: int):
        self._whole, self._done, self._count = whole, done, count

    def tick(self, index: jax.Array, count: int, loss: jax.Array) -> None:
        del count
        self._whole.tick(self._done + index, self._count, loss)


def _windows(tree: Any, first: int, count: int, size: int) -> Any:
    """So many pieces of a size, one after the other from a step on: leaves (count, size, ...)."""
    return jax.tree.map(
        lambda a: a[first : first + count * size].reshape(count, size, *a.shape[1:]), tree
    )


def _end_to_end(outputs: jax.Array) -> jax.Array:
    """The outputs of windows (windows, K, ...) as one sequence (windows * K, ...)."""
    if outputs.ndim < 2:
        raise ValueError(
            "the loss should give out arrays whose first axis is laid end to end over the "
            "windows: (K, ...) for K steps, or (1, ...) for the window; got a scalar"
        )
    return outputs.reshape(-1, *outputs.shape[2:])
