"""Gradient steps in one compiled loop: `train_steps`, `jit_steps` and `truncated_bptt`."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrnn import _checks as checks
from jaxrnn.training.history import Progress

Loss = Callable[..., Any]
"""``loss(params, batch) -> value`` or ``(value, metrics)``; with a carry,
``loss(params, carry, batch) -> (value, (carry, metrics))``."""


class Trained(NamedTuple):
    """Result of a number of training steps.

    Attributes:
        params, opt_state, carry: values after the last step; carry is None without a carry.
        losses: loss of each step before its update (steps,).
        metrics: metrics of each step, stacked; None if the loss returns none.
    """

    params: Any
    opt_state: Any
    carry: Any
    losses: jax.Array
    metrics: Any


def train_steps(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Any,
    batches: Any,
    *,
    carry: Any = None,
    opt_state: Any = None,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> Trained:
    r"""Run one gradient step per batch in one `lax.scan`.

    .. math::

        (\ell_k, c_{k+1}) &= \mathrm{loss}(\theta_k, c_k, b_k) \\
        (u_k, s_{k+1}) &= \mathrm{optimizer}(\nabla_{\theta} \ell_k, s_k, \theta_k) \\
        \theta_{k+1} &= \theta_k + u_k

    The carry passes from step to step as a value: no gradient flows through it. The function is
    pure; compile it with `jax.jit`, or use `jit_steps`.

    Args:
        loss: ``loss(params, batch) -> value`` or ``(value, metrics)``; with a carry,
            ``loss(params, carry, batch) -> (value, (carry, metrics))``. The value is a scalar, the
            metrics any pytree of arrays. A further argument named ``key`` receives
            ``jax.random.fold_in(key, k)`` at step k.
        optimizer: an optax optimizer.
        params: a pytree of parameters.
        batches: a pytree of arrays (steps, ...), one batch per step along the first axis.
        carry: the carry of the first step, e.g. a hidden state; None for a loss without a carry.
        opt_state: the optimizer state to start from; None for ``optimizer.init(params)``.
        key: a random key for a loss with an argument ``key``.
        progress: a progress bar, updated from inside the compiled loop.

    Returns:
        `Trained`.

    Raises:
        ValueError: if `batches` has no arrays or their first axes differ; if the loss is not a
            scalar; if the loss takes a key and `key` is None.
        TypeError: if the result of the loss has another structure.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def loss(w, x):
        ...     return (w * x - 1.0) ** 2
        >>> run = jax.jit(lambda w, xs: train_steps(loss, optax.sgd(0.1), w, xs))
        >>> run(jnp.float32(0), jnp.ones(50)).params.round(3).item()
        1.0
    """
    count = checks.leading_axis("batches", batches, "batches", allow_empty=True)
    if opt_state is None:
        opt_state = optimizer.init(params)
    adapted = _adapt_loss(loss, carry is not None, key)
    return _scan_steps(adapted, optimizer, (params, opt_state, carry), batches, progress, 0, count)


def jit_steps(loss: Loss, optimizer: optax.GradientTransformation) -> Callable[..., Trained]:
    """Compile `train_steps` with donated buffers, for a loop over chunks of steps.

    Each call overwrites the parameters, the optimizer state and the carry that it receives, so
    that one copy of each exists.

    Args:
        loss: as for `train_steps`.
        optimizer: an optax optimizer.

    Returns:
        ``steps(params, batches, *, carry=None, opt_state=None, key=None) -> Trained``. The arrays
        in `params`, `carry` and `opt_state` are donated: they cannot be read after the call, and
        none may appear twice. The arrays of ``nnx.state(model)`` belong to the model: call
        ``nnx.update(model, params)`` after the last chunk.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def loss(w, x):
        ...     return (w * x - 1.0) ** 2
        >>> optimizer = optax.sgd(0.1)
        >>> steps = jit_steps(loss, optimizer)
        >>> w = jnp.zeros(())
        >>> opt_state = optimizer.init(w)
        >>> for chunk in jnp.ones((5, 10)):  # five calls of ten steps
        ...     w, opt_state, _, losses, _ = steps(w, chunk, opt_state=opt_state)
        >>> w.round(3).item(), losses.shape
        (1.0, (10,))
    """
    steps = functools.partial(train_steps, loss, optimizer)
    return jax.jit(steps, donate_argnames=("params", "carry", "opt_state"))


def truncated_bptt(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Any,
    stream: Any,
    *,
    window: int,
    carry: Any = None,
    opt_state: Any = None,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> Trained:
    r"""Train on windows of a long stream, one gradient step per window.

    .. math::

        (\ell_k, c_{k+1}) = \mathrm{loss}(\theta_k, c_k, x_{kW}, \ldots, x_{kW + W - 1})
        \qquad
        \theta_{k+1} = \theta_k + u(\partial \ell_k / \partial \theta_k)

    The windows are the batches of `train_steps`: window k + 1 starts from the state that ended
    window k, and no gradient flows from one into the other. The gradient needs the memory of one
    window for any T.

    If W does not divide T, the remaining T % W steps form a shorter last window. A loss that
    averages over steps gives its update full weight; a loss that sums over steps, a smaller one.
    W of T or more is full backpropagation through time.

    Args:
        loss: as for `train_steps`; its batch is `stream` with K steps in place of T, K being W or
            the remainder. It is traced once for each.
        optimizer, params, carry, opt_state, key, progress: as for `train_steps`.
        stream: a pytree of arrays (T, ...). N parallel streams have leaves (T, N, ...) and a carry
            of batch size N; `jaxrnn.data.streams` cuts them from one long series.
        window: W, the number of steps in a window, at least 1.

    Returns:
        `Trained`. `losses` has one element per window (ceil(T / W),). `metrics` are concatenated
        along their first axis: arrays (K, ...) of each window become (T, ...), arrays (1, ...)
        become (ceil(T / W), ...).

    Raises:
        ValueError: if `window` is not an integer of at least 1; if `stream` has no arrays or no
            steps, or its first axes differ; if a metric is a scalar.

    Example:
        >>> import functools, jax, jax.numpy as jnp, jaxrnn, optax
        >>> from flax import nnx
        >>> from jaxrnn.training import truncated_bptt
        >>> graph, params = nnx.split(jaxrnn.LSTM(1, 8, proj_size=1, rngs=nnx.Rngs(0)))
        >>> def loss(params, hx, batch):
        ...     x, y = batch
        ...     predicted, hx = nnx.merge(graph, params)(x, hx)
        ...     return jnp.mean((predicted - y) ** 2), (hx, predicted)
        >>> wave = jnp.sin(0.1 * jnp.arange(1001.0))[:, None, None]  # N = 1 stream
        >>> hx = jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 8))
        >>> train = functools.partial(truncated_bptt, loss, optax.adam(0.03), window=30)
        >>> trained = jax.jit(train)(params, (wave[:-1], wave[1:]), carry=hx)
        >>> trained.losses.shape, trained.metrics.shape  # 33 windows of 30 steps, one of 10
        ((34,), (1000, 1, 1))
        >>> bool(trained.losses[-5:].mean() < 0.1 * trained.losses[:5].mean())
        True

    Differs from PyTorch: PyTorch needs a loop with ``detach()`` between the windows. Here the
    carry is an argument of the loss, and nothing has to be detached.

    Source: R. J. Williams, J. Peng, An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories, Neural Computation 2 (1990), BPTT(h; h') with h = h' = W;
    I. Sutskever, Training recurrent neural networks, PhD thesis, Toronto (2013), section 2.8.6.
    """
    checks.at_least("window", window, 1)
    steps = checks.leading_axis("stream", stream, "time steps")
    if opt_state is None:
        opt_state = optimizer.init(params)
    adapted = _adapt_loss(loss, carry is not None, key)
    state = params, opt_state, carry
    whole, remainder = divmod(steps, window)
    total = whole + (remainder > 0)
    losses, metrics = [], []
    for first, count, size in ((0, whole, window), (whole, 1, remainder)):
        if count and size:
            batches = _windows(stream, first * window, count, size)
            trained = _scan_steps(adapted, optimizer, state, batches, progress, first, total)
            state = trained[:3]
            losses.append(trained.losses)
            metrics.append(jax.tree.map(_merge_windows, trained.metrics))
    join = functools.partial(jax.tree.map, lambda *parts: jnp.concatenate(parts))
    return Trained(*state, join(*losses), join(*metrics))


def _scan_steps(
    adapted: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    state: tuple[Any, Any, Any],
    batches: Any,
    progress: Progress | None,
    first: int,
    total: int,
) -> Trained:
    """Scan over gradient steps `first`, `first` + 1, ... of `total`."""

    def _step(state: Any, inputs: Any) -> tuple[Any, Any]:
        params, opt_state, carry = state
        index, batch = inputs
        (value, (carry, metrics)), grads = jax.value_and_grad(adapted, has_aux=True)(
            params, carry, batch, index
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        if progress is not None:
            progress.tick(index, total, value)
        return (optax.apply_updates(params, updates), opt_state, carry), (value, metrics)

    count = len(jax.tree.leaves(batches)[0])
    state, (losses, metrics) = lax.scan(_step, state, (jnp.arange(first, first + count), batches))
    return Trained(*state, losses, metrics)


def _adapt_loss(loss: Loss, has_carry: bool, key: Any) -> Callable[..., Any]:
    """Return ``f(params, carry, batch, step) -> (value, (carry, metrics))`` for any loss."""
    keyed = _takes_key(loss, 3 if has_carry else 2)
    if keyed and key is None:
        raise ValueError("`loss` has an argument `key`: pass key=jax.random.key(0), say.")

    def _adapted(params: Any, carry: Any, batch: Any, step: Any) -> tuple[Any, tuple[Any, Any]]:
        arguments = (params, carry, batch) if has_carry else (params, batch)
        keys = {"key": jax.random.fold_in(key, step)} if keyed else {}
        return _unpack_loss(loss(*arguments, **keys), carry, has_carry)

    return _adapted


def _takes_key(loss: Loss, inputs: int) -> bool:
    """Return True if the loss has an argument ``key`` besides its first inputs."""
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):  # not a Python function
        return False
    key = parameters.get("key")
    return key is not None and (key.kind is key.KEYWORD_ONLY or "key" in list(parameters)[inputs:])


def _unpack_loss(result: Any, carry: Any, has_carry: bool) -> tuple[Any, tuple[Any, Any]]:
    """Return ``(value, (carry, metrics))`` from the result of a loss."""
    expected = "value or (value, metrics)"
    try:
        if has_carry:
            expected = "(value, (carry, metrics)) if there is a carry"
            value, (carry, metrics) = result
        else:
            value, metrics = result if isinstance(result, tuple) else (result, None)
    except (TypeError, ValueError):
        got = jax.tree.map(lambda _: "...", result)
        raise TypeError(f"`loss` must return {expected}, got {got}") from None
    if jnp.shape(value) != ():
        raise ValueError(f"`loss` must return a scalar value, got shape {jnp.shape(value)}")
    return value, (carry, metrics)


def _windows(stream: Any, start: int, count: int, size: int) -> Any:
    """Cut `count` windows from step `start` on: leaves (count, size, ...)."""
    return jax.tree.map(
        lambda a: a[start : start + count * size].reshape(count, size, *a.shape[1:]), stream
    )


def _merge_windows(metric: jax.Array) -> jax.Array:
    """Concatenate the metrics of windows (windows, K, ...) to (windows * K, ...)."""
    if metric.ndim < 2:
        raise ValueError(
            "`loss` must return metrics with a first axis, concatenated over the windows: (K, ...) "
            "or (1, ...), got a scalar. Return metric[None]."
        )
    return metric.reshape(-1, *metric.shape[2:])


class Timed(NamedTuple):
    """Result of `compile_and_run`, with the seconds of compiling and of the call."""

    result: Any
    compile_seconds: float
    run_seconds: float


def compile_and_run(function: Callable[..., Any], *arguments: Any) -> Timed:
    """Compile a pure function, call it once, and time both.

    Args:
        function: a function that `jax.jit` accepts.
        arguments: its arguments.

    Returns:
        `Timed`.

    Example:
        >>> import jax.numpy as jnp
        >>> compile_and_run(jnp.sin, jnp.zeros(3)).result.shape
        (3,)
    """
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    ready = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return Timed(result, ready - start, time.perf_counter() - ready)
