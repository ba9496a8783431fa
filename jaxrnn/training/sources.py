"""Where the batches of a training come from: arrays on the device, or whatever gives them out.

A source has two sides. `how`, hashable, is the part of it inside of the compiled call: it tells
what each step scans over and makes a batch of that. The rest is on the host: what to hand to the
next call, and where the source was, for a run that goes on later.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import _checks as checks
from jaxrnn.backends import sharding as devices
from jaxrnn.training.meshes import Layout

Take = Callable[[Any, jax.Array], Any]


class How(Protocol):
    """The part of a source inside of the compiled call."""

    def pieces(self, feed: Any, count: int) -> Any:
        """What each step gets, along a first axis of `count`; None for nothing."""
        ...

    def batch(self, data: Any, piece: Any) -> Any:
        """The batch of a step."""
        ...


class Whole(NamedTuple):
    """All of the data at each step."""

    def pieces(self, feed: Any, count: int) -> Any:
        """Nothing."""
        return None

    def batch(self, data: Any, piece: Any) -> Any:
        """The data."""
        return data


class Rows(NamedTuple):
    """B of the S examples at each step, by their numbers."""

    take: Take
    size: int
    examples: int

    def pieces(self, feed: Any, count: int) -> Any:
        """The numbers of the examples of each step (count, B)."""
        orders, offset = feed
        places = offset + jnp.arange(count * self.size, dtype=jnp.int32)
        epoch, place = places // self.examples, places % self.examples
        numbers = place if orders is None else orders[epoch, place]
        return numbers.reshape(count, self.size)

    def batch(self, data: Any, piece: Any) -> Any:
        """The examples with these numbers."""
        return self.take(data, piece)


class Given(NamedTuple):
    """Batches as they come."""

    def pieces(self, feed: Any, count: int) -> Any:
        """The batches."""
        return feed

    def batch(self, data: Any, piece: Any) -> Any:
        """The batch."""
        return piece


def rows(data: Any, index: jax.Array) -> Any:
    """The rows of every array of a pytree."""
    return jax.tree.map(lambda a: a[index], data)


class Arrays:
    """Arrays on the device: B examples a step in a random order, or all of them.

    Args:
        data: a pytree of arrays.
        batch_size: B; None for all of the data.
        shuffle: a new order for each epoch.
        take: makes a batch of the data and the numbers of its examples; None for `rows`.
        examples: S; None for the length of the first axes.
        key: where the orders come from.
        layout: the devices.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int | None,
        shuffle: bool,
        take: Take | None,
        examples: int | None,
        key: jax.Array,
        layout: Layout,
    ):
        self.data = layout.whole(data)
        self.how: How = Whole()
        self.epoch, self._size, self._examples = 1.0, 0, 0
        self._key = layout.whole(key) if shuffle else None
        self._made: tuple[Any, Any] = (None, None)
        if batch_size is not None:
            self._size, self._examples = batch_size, examples or length("data", data)
            self.how = Rows(take or rows, batch_size, self._examples)
            self.epoch = self._examples / batch_size
        if layout.mesh is not None:
            piece = jax.ShapeDtypeStruct((self._size,), jnp.int32)
            layout.check_batch(jax.eval_shape(self.how.batch, self.data, piece))
        self.settings = {
            "batch_size": batch_size,
            "examples": self._examples or None,
            "shuffle": bool(shuffle and batch_size),
        }

    def feed(self, start: int, count: int) -> Any:
        """The orders of the epochs that these steps touch (epochs, S), and the place in them."""
        if not self._size:
            return None
        epoch, offset = divmod(start * self._size, self._examples)
        if self._examples + count * self._size >= 2**31:
            raise ValueError(
                f"{self._examples} examples and {count} batches of {self._size} in a call are more "
                "than an int32 can number: a smaller chunk"
            )
        if self._key is None:
            return None, np.int32(offset)
        # As many as such a chunk can touch, so that every chunk has one shape.
        epochs = (self._examples - 1 + count * self._size - 1) // self._examples + 1
        if self._made[0] != (epoch, epochs):
            orders = _orders(self._key, np.int32(epoch), epochs, self._examples)
            self._made = (epoch, epochs), orders
        return self._made[1], np.int32(offset)

    def position(self) -> Any:
        """Nothing: the number of the step says it all."""
        return None

    def seek(self, step: int, position: Any) -> None:
        """Nothing to do."""


@functools.partial(jax.jit, static_argnums=(2, 3))
def _orders(key: jax.Array, first: Any, epochs: int, examples: int) -> jax.Array:
    """The orders of the examples in some epochs from one on (epochs, S), int32."""

    def order(epoch: jax.Array) -> jax.Array:
        numbers = jnp.arange(examples, dtype=jnp.int32)
        return jax.random.permutation(jax.random.fold_in(key, epoch), numbers)

    return devices.gathered(jax.vmap(order)(first + jnp.arange(epochs, dtype=jnp.int32)))


class Batches:
    """Batches from anything that can be iterated over, on the host.

    Args:
        data: an iterator; or an iterable, which is begun again at its end.
        layout: the devices. Each process has batches of its own, its part of the whole ones.
    """

    def __init__(self, data: Any, layout: Layout):
        self._layout = layout
        self.how: How = Given()
        self.data: Any = None
        self.epoch: float | None = None
        self.settings: dict[str, Any] = {"batch_size": None, "examples": None, "shuffle": False}
        self._iterable = data
        self._iterator: Iterator[Any] = iter(data)
        self._shapes: Any = None

    def feed(self, start: int, count: int) -> Any:
        """The next batches, one after another along a new first axis."""
        batches = [self._next(start + index) for index in range(count)]
        for index, batch in enumerate(batches):
            shapes = jax.tree.map(lambda a: (np.shape(a), jnp.result_type(a)), batch)
            if count > 1 and self._shapes not in (None, shapes):
                raise ValueError(
                    f"the batches should be alike, but that of step {start + index + 1} is "
                    f"{shapes}, the ones before it {self._shapes}: chunk=1 takes each by itself"
                )
            self._shapes = shapes
            if self._layout.mesh is not None:
                self._layout.check_batch(batch, jax.process_count())
        return self._layout.fed(jax.tree.map(lambda *leaves: np.stack(leaves), *batches))

    def _next(self, step: int) -> Any:
        for _ in range(2):
            for batch in self._iterator:
                leaves = jax.tree.leaves(batch)
                if not leaves or not all(map(is_number, leaves)):
                    raise TypeError(
                        f"a batch should be arrays, got {type(batch).__name__} for step {step + 1}"
                    )
                return batch
            if self._iterable is self._iterator:
                raise ValueError(
                    f"the data ended after {step} steps: an iterable that can be begun again is "
                    "needed, not an iterator, or fewer steps"
                )
            self._iterator = iter(self._iterable)
        raise ValueError("the data has no batches")

    def position(self) -> Any:
        """The state of the iterator, if it tells."""
        tell = getattr(self._iterator, "get_state", None)
        if tell is None:
            return None
        state = tell()
        if isinstance(state, bytes):
            return {"bytes": base64.b64encode(state).decode()}
        return {"json": json.loads(json.dumps(state))}

    def seek(self, step: int, position: Any) -> None:
        """To where it was: by its state, or else by drawing as many batches as were used."""
        if position is not None and hasattr(self._iterator, "set_state"):
            text = position.get("bytes")
            state = position["json"] if text is None else base64.b64decode(text)
            self._iterator.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
            return
        for index in range(step):
            self._next(index)


def make(
    data: Any,
    batch_size: int | None,
    shuffle: bool,
    take: Take | None,
    examples: int | None,
    key: jax.Array,
    layout: Layout,
) -> Arrays | Batches:
    """The source that some data is, after all that can be wrong with it."""
    if batch_size is not None:
        checks.at_least("batch_size", batch_size, 1)
    for name, value in (("take", take), ("examples", examples)):
        if value is not None and batch_size is None:
            raise ValueError(f"{name} is for batches: it needs a batch_size")
    if not _are_arrays(data, take is not None):
        if not hasattr(data, "__iter__"):
            raise TypeError(
                "data should be a pytree of arrays, or an iterable that gives out batches, got "
                f"{type(data).__name__}"
            )
        if batch_size is not None:
            raise ValueError(
                f"batch_size={batch_size} is for arrays: a {type(data).__name__} gives out its "
                "batches as they are"
            )
        return Batches(data, layout)
    if batch_size is not None:
        if examples is not None:
            checks.at_least("examples", examples, 1)
        count = length("data", data) if examples is None else examples
        if examples is not None and take is None and examples > (there := length("data", data)):
            raise ValueError(f"examples={examples} is more than the {there} that data has")
        if batch_size > count:
            raise ValueError(f"batch_size={batch_size} is more than the {count} examples there are")
    elif not any(np.size(leaf) for leaf in jax.tree.leaves(data)):
        shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(data))
        raise ValueError(f"data has no examples, its shapes are {shapes}")
    return Arrays(data, batch_size, shuffle, take, examples, key, layout)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is an array or a number."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float))


def _are_arrays(data: Any, numbers_too: bool) -> bool:
    """Whether it is a pytree of arrays; a list is a list of batches."""
    if hasattr(data, "__next__") or isinstance(data, list):
        return False
    kinds = (jax.Array, np.ndarray, int, float) if numbers_too else (jax.Array, np.ndarray)
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(isinstance(leaf, kinds) for leaf in leaves)


def length(name: str, data: Any) -> int:
    """How many examples there are along the first axes of all arrays."""
    return checks.leading_axis(name, data, "examples")


def chunks(steps: int, every: list[int]) -> int:
    """Steps in a call, so that calls end where something is due every so many steps.

    Example:
        >>> chunks(75, []), chunks(1000, []), chunks(997, [300, 200]), chunks(997, [])
        (75, 100, 100, 100)
    """
    most = 100
    interval = int(np.gcd.reduce(every)) if every else steps
    fits = next(size for size in range(min(interval, most), 0, -1) if interval % size == 0)
    return fits if fits >= min(10, interval) else most
