"""Batch sources of `fit`: device arrays and Python iterables.

Axis letters: S examples, B batch size.
"""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import _checks as checks
from jaxrnn.backends import sharding
from jaxrnn.training.distributed import _Layout

Take = Callable[[Any, jax.Array], Any]
"""``take(data, indices) -> batch``, the batch of the examples with these indices (B,)."""


class _Sampler(NamedTuple):
    """Static part of a source inside the compiled call; size B is 0 for whole batches."""

    size: int = 0
    examples: int = 0
    take: Take | None = None

    def inputs(self, feed: Any, count: int) -> Any:
        """Return the inputs of `count` steps: indices (count, B), stacked batches or None."""
        if not self.size:
            return feed
        orders, offset = feed
        positions = offset + jnp.arange(count * self.size, dtype=jnp.int32)
        epoch, position = positions // self.examples, positions % self.examples
        indices = position if orders is None else orders[epoch, position]
        return indices.reshape(count, self.size)

    def batch(self, data: Any, inputs: Any) -> Any:
        """Return the batch of a step."""
        if self.take is not None:
            return self.take(data, inputs)
        return data if inputs is None else inputs


def _index(data: Any, indices: jax.Array) -> Any:
    return jax.tree.map(lambda a: a[indices], data)


class _ArraySource:
    """Source of batches of arrays on the device, in a random order for each epoch."""

    def __init__(self, data: Any, sampler: _Sampler, key: jax.Array | None, layout: _Layout):
        size, examples, _ = sampler
        self.data, self.sampler = layout.replicate(data), sampler
        self.epoch_steps = examples / size if size else 1.0
        self._key = None if key is None else layout.replicate(key)
        self._orders: tuple[Any, Any] = (None, None)
        if layout.mesh is not None:
            indices = jax.ShapeDtypeStruct((size,), jnp.int32)
            layout.check_batch(jax.eval_shape(sampler.batch, self.data, indices if size else None))
        self.settings = {
            "batch_size": size or None,
            "examples": examples or None,
            "shuffle": key is not None,
        }

    def feed(self, start: int, count: int) -> Any:
        """Return the orders of the epochs of these steps (epochs, S), and the first position."""
        size, examples, _ = self.sampler
        if not size:
            return None
        epoch, offset = divmod(start * size, examples)
        if examples + count * size >= 2**31:
            raise ValueError(
                f"`chunk` must be below {(2**31 - examples) // size + 1}, the range of int32, got "
                f"{count} steps per call."
            )
        if self._key is None:
            return None, np.int32(offset)
        # The maximum for `count` steps, so that the shape does not depend on `start`.
        epochs = (examples - 1 + count * size - 1) // examples + 1
        if self._orders[0] != (epoch, epochs):
            orders = _permutations(self._key, np.int32(epoch), epochs, examples)
            self._orders = (epoch, epochs), orders
        return self._orders[1], np.int32(offset)

    def position(self) -> Any:
        """Return None: the position follows from the step."""
        return None

    def seek(self, step: int, position: Any) -> None:
        """Do nothing: the position follows from the step."""


@functools.partial(jax.jit, static_argnums=(2, 3))
def _permutations(key: jax.Array, first: Any, epochs: int, examples: int) -> jax.Array:
    """Return the orders of the examples in consecutive epochs (epochs, S), int32."""

    def _order(epoch: jax.Array) -> jax.Array:
        indices = jnp.arange(examples, dtype=jnp.int32)
        return jax.random.permutation(jax.random.fold_in(key, epoch), indices)

    return sharding.replicate(jax.vmap(_order)(first + jnp.arange(epochs, dtype=jnp.int32)))


class _IterableSource:
    """Source of batches of an iterable, or of an iterator, which is not restarted at its end."""

    def __init__(self, data: Any, layout: _Layout):
        self._layout = layout
        self.sampler = _Sampler()
        self.data: Any = None
        self.epoch_steps: float | None = None
        self.settings: dict[str, Any] = {"batch_size": None, "examples": None, "shuffle": False}
        self._iterable = data
        self._iterator: Iterator[Any] = iter(data)
        self._shapes: Any = None

    def feed(self, start: int, count: int) -> Any:
        """Return the next batches, stacked along a new first axis."""
        batches = [self._next(start + index) for index in range(count)]
        for step, batch in enumerate(batches, start + 1):
            shapes = jax.tree.map(lambda a: (np.shape(a), jnp.result_type(a)), batch)
            if count > 1 and self._shapes not in (None, shapes):
                raise ValueError(
                    f"`data` must yield batches of one shape, got {shapes} at step {step} after "
                    f"{self._shapes}. Use chunk=1 to run each batch in its own call."
                )
            self._shapes = shapes
            self._layout.check_batch(batch, jax.process_count())
        return self._layout.stack_batches(jax.tree.map(lambda *leaves: np.stack(leaves), *batches))

    def _next(self, step: int) -> Any:
        for _ in range(2):
            for batch in self._iterator:
                leaves = jax.tree.leaves(batch)
                if not leaves or not all(map(_is_number, leaves)):
                    kind = type(batch).__name__
                    raise TypeError(f"`data` must yield batches of arrays, got {kind}")
                return batch
            if self._iterable is self._iterator:
                raise ValueError(
                    f"`data` must yield a batch for every step, but it ended after {step} steps. "
                    "Pass an iterable instead of an iterator, or fewer steps."
                )
            self._iterator = iter(self._iterable)
        raise ValueError("`data` must yield batches, got no batches")

    def position(self) -> Any:
        """Return the state of the iterator as JSON, if it has a method ``get_state``."""
        if not hasattr(self._iterator, "get_state"):
            return None
        state = self._iterator.get_state()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(state, bytes):
            return {"bytes": base64.b64encode(state).decode()}
        return {"json": json.loads(json.dumps(state))}

    def seek(self, step: int, position: Any) -> None:
        """Set the state of the iterator, or else draw the batches of the first `step` steps."""
        if position is not None and hasattr(self._iterator, "set_state"):
            text = position.get("bytes")
            state = position["json"] if text is None else base64.b64decode(text)
            self._iterator.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
            return
        for index in range(step):
            self._next(index)


def _make_source(
    data: Any, batch_size: int | None, options: Mapping[str, Any], key: jax.Array, layout: _Layout
) -> _ArraySource | _IterableSource:
    """Check the arguments and options of `fit` for the data, and return their source."""
    take, examples = options.get("take"), options.get("examples")
    for name, value in (("batch_size", batch_size), ("take", take), ("examples", examples)):
        if value is not None and batch_size is None:
            raise ValueError(f"`{name}` must be combined with `batch_size`, got batch_size=None")
        if value is not None and name != "take":
            checks.at_least(name, value, 1)
    if not _are_arrays(data, take is not None):
        if not hasattr(data, "__iter__"):
            kind = type(data).__name__
            raise TypeError(f"`data` must be arrays or an iterable of batches, got {kind}")
        if batch_size is not None:
            raise ValueError(
                f"`batch_size` must be None if `data` yields batches, got batch_size={batch_size}"
            )
        return _IterableSource(data, layout)
    if batch_size is None:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(data)]
        if not any(map(math.prod, shapes)):
            raise ValueError(f"`data` must have examples, got no examples in shapes {shapes}")
        return _ArraySource(data, _Sampler(), None, layout)
    available = None if examples and take else checks.leading_axis("data", data, "examples")
    if examples and available and examples > available:
        raise ValueError(f"`examples` must be at most {available}, got examples={examples}")
    count = examples or available or 0
    if batch_size > count:
        raise ValueError(
            f"`batch_size` must be at most the {count} examples, got batch_size={batch_size}"
        )
    sampler = _Sampler(batch_size, count, take or _index)
    return _ArraySource(data, sampler, key if options.get("shuffle", True) else None, layout)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float))


def _are_arrays(data: Any, allow_numbers: bool) -> bool:
    """Return True for a pytree of arrays; a list counts as a list of batches."""
    if hasattr(data, "__next__") or isinstance(data, list):
        return False
    types = (jax.Array, np.ndarray, int, float) if allow_numbers else (jax.Array, np.ndarray)
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(isinstance(leaf, types) for leaf in leaves)


def _chunk_size(steps: int, intervals: list[int]) -> int:
    """Return the number of steps per call: at most 100, a divisor of the intervals if possible.

    >>> _chunk_size(75, []), _chunk_size(1000, []), _chunk_size(997, [300, 200])
    (75, 100, 100)
    """
    most = 100
    interval = int(np.gcd.reduce(intervals)) if intervals else steps
    divisor = next(size for size in range(min(interval, most), 0, -1) if interval % size == 0)
    return divisor if divisor >= min(10, interval) else most
