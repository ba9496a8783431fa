"""Many runs at once, over seeds and hyper-parameters: a training function under `vmap`."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Swept(NamedTuple):
    """What a sweep leaves. Every array has one leading axis for each axis of the sweep, in order.

    Attributes:
        results: what the function returned, of all runs.
        grid: the value that each run had of each argument, by the argument's name.
    """

    results: Any
    grid: dict[str, Any]


def sweep(train: Callable[..., Any], /, **axes: Any) -> Swept:
    """Call a function for every combination of its arguments' values, all in one compiled call.

    .. code-block:: text

        results[i, j, ...] = train(a=a[i], b=b[j], ...)      for  sweep(train, a=a, b=b, ...)

    The runs share every step: the N rows of a recurrence become M * N rows, for M runs. What
    depends on one argument only, initial weights from a key say, is computed once for each of its
    values.

    Args:
        train: a pure function, called with one value of each axis by name. A hyper-parameter of
            an optimiser reaches it as a traced scalar: ``optax.adam(lr)`` inside of `train`.
        axes: the values of each argument along the first axis of an array, or of every array of a
            pytree. Arguments that belong together are one axis: ``run={"key": keys, "lr": rates}``
            pairs them instead of combining them.

    Returns:
        `Swept`: for ``sweep(train, key=keys, lr=rates)`` every array is (keys, rates, ...).

    Raises:
        TypeError: for no axes, arguments that `train` doesn't take or needs, or no arrays.
        ValueError: for an axis without values, or arrays of one axis that differ in length.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxrnn.training import sweep, train_steps
        >>> def train(key, lr):
        ...     def loss(w, x):
        ...         return (w * x - 1.0) ** 2
        ...     w = jax.random.normal(key)
        ...     return train_steps(loss, optax.adam(lr), w, jnp.ones(50)).losses
        >>> keys, rates = jax.random.split(jax.random.key(0), 8), jnp.logspace(-3, -1, 4)
        >>> losses, grid = sweep(train, key=keys, lr=rates)
        >>> losses.shape, grid["lr"].shape
        ((8, 4, 50), (8, 4))
        >>> best = jnp.median(losses[..., -1], axis=0).argmin()
        >>> round(grid["lr"][0, best].item(), 3)
        0.1

    The function is compiled once and kept for later sweeps of the same shapes, as long as `train`
    is the same object.
    """
    lengths = _lengths(train, axes)
    results, grid = _sweep(train, tuple(axes), lengths, tuple(axes.values()))
    return Swept(results, dict(zip(axes, grid)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sweep(train: Any, names: tuple[str, ...], lengths: tuple[int, ...], axes: Any) -> Any:
    def run(*values: Any) -> Any:
        return train(**dict(zip(names, values))), values

    for index in reversed(range(len(names))):  # the first axis is mapped last: it is the outermost
        in_axes = [0 if other == index else None for other in range(len(names))]
        run = jax.vmap(run, in_axes, axis_size=lengths[index])
    return run(*axes)


def _lengths(train: Callable[..., Any], axes: dict[str, Any]) -> tuple[int, ...]:
    """The length of each axis, after all that can be wrong with them."""
    if not axes:
        raise TypeError("sweep needs at least one axis: an argument by name, its values an array")
    with_signature = _signature(train)
    if with_signature is not None:
        name = getattr(train, "__name__", type(train).__name__)
        try:
            with_signature.bind(**axes)
        except TypeError as error:
            given = ", ".join(axes)
            raise TypeError(f"sweep: {name}{with_signature} given {given}: {error}") from None
    return tuple(_length(name, values) for name, values in axes.items())


def _signature(train: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(train)
    except ValueError:  # a function that is not Python's and does not tell
        return None


def _length(name: str, values: Any) -> int:
    """The number of values of an axis."""
    leaves = jax.tree.leaves(values)
    wrong = [leaf for leaf in leaves if not isinstance(leaf, (jax.Array, np.ndarray))]
    if wrong or not leaves or any(leaf.ndim == 0 for leaf in leaves):
        raise TypeError(
            f"sweep: {name} should be an array with the values along its first axis, or a pytree "
            f"of such arrays, got {reprlib.repr(values)}"
        )
    lengths = sorted({len(leaf) for leaf in leaves})
    if len(lengths) > 1:
        raise ValueError(f"sweep: the arrays of {name} should have one length, got {lengths}")
    if lengths[0] == 0:
        raise ValueError(f"sweep: {name} has no values, its shape is {leaves[0].shape}")
    return lengths[0]
