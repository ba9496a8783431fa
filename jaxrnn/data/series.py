"""Sliding windows, chronological splits and scaling of a time series.

A series of T steps has about T windows of K steps, which together are K times its size. `Windows`
describes them without data and gathers a batch of windows by index, within the compiled step:

.. code-block:: text

    series        0  1  2  3  4  5  6  7  8  9          T = 10
    window 0      x  x  x  y  y                         size 3, horizon 2, stride 2
    window 1            x  x  x  y  y
    window 2                  x  x  x  y  y
"""

from __future__ import annotations

import itertools
import math
import mmap
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import _checks as checks


@dataclass(frozen=True)
class Windows:
    """Sliding windows of a series: inputs, and the targets that follow them.

    .. code-block:: text

        s   = k * stride                                        first step of window k
        x_k = series[s : s + size, features]
        y_k = series[s + size : s + size + horizon, targets]
        y_k = series[s + horizon : s + horizon + size, targets]       with every_step

    Windows are hashable, so they are a static argument of `jax.jit`.

    Args:
        size: number of input steps.
        horizon: number of target steps; with `every_step`, the distance from each input to its
            target.
        stride: steps from the start of a window to the start of the next.
        features: the columns of the inputs. Defaults to all.
        targets: the columns of the targets. Defaults to all.
        every_step: If True, each input step has a target, e.g. the next character of each.

    Raises:
        ValueError: for sizes that are not integers >= 1, or invalid columns.

    Example:
        Three days of four columns as inputs, the last column of the next two days as targets:

        >>> import jax, jax.numpy as jnp
        >>> series = jnp.arange(40.0).reshape(10, 4)
        >>> windows = Windows(3, horizon=2, targets=(3,))
        >>> windows.count(len(series))
        6
        >>> x, y = jax.jit(windows.take)(series, jnp.array([0, 5]))
        >>> x.shape, y.shape, y[0, :, 0].tolist()
        ((2, 3, 4), (2, 2, 1), [15.0, 19.0])

        In training, ``fit(..., series, take=windows.take, examples=len(windows.within(train)))``.
    """

    size: int
    horizon: int = 1
    stride: int = 1
    features: tuple[int, ...] | None = None
    targets: tuple[int, ...] | None = None
    every_step: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "horizon", "stride"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("features", "targets"):
            columns = getattr(self, name)
            if columns is None:
                continue
            if not isinstance(columns, Sequence) or not columns:
                raise ValueError(f"`{name}` must be a tuple of column indices, got {columns!r}")
            for number, column in enumerate(columns):
                checks.at_least(f"{name}[{number}]", column, 0)
            object.__setattr__(self, name, tuple(columns))  # hashable even if given as a list

    @property
    def span(self) -> int:
        """Number of steps from the first input to the last target, inclusive."""
        return self.size + self.horizon

    def count(self, steps: int) -> int:
        """Return the number of windows in a series of `steps` steps."""
        return max(0, (steps - self.span) // self.stride + 1)

    def within(self, part: range, *, context: bool = False) -> range:
        """Return the indices of the windows in a part of a series.

        Args:
            part: consecutive steps, as returned by `split`.
            context: If True, only the targets must lie in the part, and inputs may precede it: when
                the first step of a test set is predicted, the steps before it are known. Not
                available with `every_step`.

        Returns:
            The indices. Without `context`, windows of different parts share no step.

        Raises:
            ValueError: for a part that is shorter than a window.

        Example:
            >>> train, test = split(100, (0.8, 0.2))
            >>> windows = Windows(7)
            >>> windows.within(train), windows.within(test), windows.within(test, context=True)
            (range(0, 73), range(80, 93), range(73, 93))
        """
        if context and self.every_step:
            raise ValueError("`context` must be False with every_step=True")
        if part.step != 1 or part.start < 0:
            raise ValueError(f"`part` must be a range of consecutive steps >= 0, got {part}")
        first = max(0, part.start - (self.size if context else 0))
        indices = range(-(-first // self.stride), self.count(part.stop))
        if not indices:
            raise ValueError(f"`part` must be as long as {self._described}, got {part}")
        return indices

    def take(self, series: Any, index: Any) -> tuple[jax.Array, jax.Array]:
        """Gather a batch of windows; a pure, differentiable function.

        Args:
            series: (T, C), or (T,) for one column.
            index: indices of windows (B,), or () for one window, integers. Indices out of bounds
                are clamped, as JAX does.

        Returns:
            x (B, size, D) and y (B, horizon, K), or (B, size, K) with `every_step`, in the dtype
            of the series; no axis B for a scalar index, no axes D and K for a series (T,).

        Raises:
            ValueError: for an invalid shape of the series or the index.
        """
        series, index = jnp.asarray(series), jnp.asarray(index)
        self.check_shape(series.shape)
        if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim > 1:
            raise ValueError(
                f"`index` must be integers of shape (B,) or (), got {index.dtype} {index.shape}"
            )
        if index.ndim:
            return jax.vmap(self.take, in_axes=(None, 0))(series, index)
        index = index.astype(jnp.int32)  # the product with the stride may overflow an int8
        return self.separate(lax.dynamic_slice_in_dim(series, index * self.stride, self.span))

    def separate(self, window: Any) -> tuple[Any, Any]:
        """Return the inputs and the targets of a window (span, C) or (span,)."""
        x = window[: self.size]
        y = window[self.horizon :] if self.every_step else window[self.size :]
        if self.features is not None:
            x = x[:, np.array(self.features)]
        if self.targets is not None:
            y = y[:, np.array(self.targets)]
        return x, y

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Check that a series of this shape has windows, or raise a ValueError."""
        columns = [*(self.features or ()), *(self.targets or ())]
        if len(shape) not in (1, 2) or (columns and len(shape) == 1):
            axes = "(T, C)" if columns else "(T,) or (T, C)"
            raise ValueError(f"`series` must have shape {axes}, got {shape}")
        if not self.span <= shape[0] < 2**31:
            raise ValueError(
                f"`series` must be as long as {self._described}, and shorter than 2**31, got "
                f"{shape[0]} steps"
            )
        if columns and max(columns) >= shape[1]:
            raise ValueError(f"`series` must have column {max(columns)}, got {shape[1]} columns")

    @property
    def _described(self) -> str:
        return f"a window of {self.size} and a horizon of {self.horizon}"


def split(steps: int, fractions: Sequence[float] = (0.7, 0.15, 0.15)) -> tuple[range, ...]:
    """Split the steps of a series chronologically, e.g. for training, validation and test.

    Args:
        steps: T.
        fractions: fraction of each part; their sum is 1.

    Returns:
        The steps of each part, consecutive ranges that together are ``range(T)``.

    Raises:
        ValueError: for invalid fractions, or a part without steps.

    Example:
        >>> split(10, (0.7, 0.3))
        (range(0, 7), range(7, 10))
    """
    checks.at_least("steps", steps, 1)
    valid = all(0 < fraction <= 1 for fraction in fractions)
    if not valid or not math.isclose(sum(fractions), 1, abs_tol=1e-9):
        raise ValueError(f"`fractions` must be > 0 and sum to 1, got {tuple(fractions)}")
    # Rounded, so that 0.7 + 0.1 of ten steps, 7.999 in binary, are eight.
    ends = [0, *(round(steps * total) for total in itertools.accumulate(fractions))]
    parts = tuple(range(*pair) for pair in itertools.pairwise(ends))
    if not all(parts):
        raise ValueError(f"`steps` must be enough for parts of {tuple(fractions)}, got {steps}")
    return parts


class WindowSource:
    """Windows of a NumPy array by index, a data source for the loaders of Grain and PyTorch.

    Windows are read on demand, so the array may be a file larger than memory.

    Args:
        series: (T, C) or (T,), a NumPy array: ``np.load(path, mmap_mode="r")`` or
            ``np.memmap(path, dtype, "r", shape=(T, C))`` stays in its file.
        windows: the windows.
        part: the steps to take windows from, as returned by `split`. Defaults to all.
        context: If True, inputs may precede the part, see `Windows.within`.

    Raises:
        ValueError: for an invalid shape of the series, or steps that it does not have.

    Example:
        >>> import os, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = os.path.join(folder.name, "series.npy")
        >>> np.save(path, np.arange(3000, dtype=np.float32).reshape(1000, 3))
        >>> series = np.load(path, mmap_mode="r")
        >>> train, test = split(len(series), (0.8, 0.2))
        >>> source = WindowSource(series, Windows(24, targets=(0,)), train)
        >>> len(source), [a.shape for a in source.take([0, 5])]
        (776, [(2, 24, 3), (2, 1, 1)])
        >>> del series, source; folder.cleanup()

        `jaxrnn.training.fit` takes the iterators of Grain and stores their position in checkpoints:

        .. code-block:: python

            loader = grain.MapDataset.source(source).seed(0).shuffle().repeat().batch(64)
            fit(loss, optimizer, model, iter(loader.to_iter_dataset()), steps=10_000)
    """

    def __init__(
        self, series: Any, windows: Windows, part: range | None = None, *, context: bool = False
    ):
        windows.check_shape(series.shape)
        part = range(len(series)) if part is None else part
        if part.stop > len(series):
            raise ValueError(f"`part` must end within the {len(series)} steps, got {part}")
        self.series, self.windows = series, windows
        self.indices = windows.within(part, context=context)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of the inputs (size, D) and the targets (horizon, K) of a window."""
        start = self.indices[operator.index(index)] * self.windows.stride
        return self.windows.separate(np.array(self.series[start : start + self.windows.span]))

    def take(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return a batch of windows by indices (B,): x (B, size, D) and y (B, horizon, K)."""
        x, y = zip(*(self[number] for number in index))
        return np.stack(x), np.stack(y)

    def __repr__(self) -> str:
        return (
            f"WindowSource({self.series.dtype} {self.series.shape}, {self.windows}, "
            f"{len(self)} windows from index {self.indices.start})"
        )

    def __getstate__(self) -> dict[str, Any]:
        series, state = self.series, self.__dict__.copy()
        # NumPy pickles a memory map as an array; a whole one is sent to worker processes as the
        # name of its file. The offset of a slice is unknown.
        whole = isinstance(series, np.memmap) and isinstance(series.base, mmap.mmap)
        if whole and series.filename is not None and series.flags.c_contiguous:
            file = (str(series.filename), series.dtype, "r", series.offset, series.shape)
            state["series"] = _MemoryMap(file)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.series, _MemoryMap):
            self.series = np.memmap(*self.series.arguments)


class _MemoryMap(NamedTuple):
    """Arguments of `np.memmap`."""

    arguments: Any


class Scaling(NamedTuple):
    """Affine scaling of columns; a pytree, so `jax.jit` and `jax.vmap` accept it as an argument.

    .. code-block:: text

        scaling(x)         = (x - shift) / scale
        scaling.inverse(z) = z * scale + shift

    Attributes:
        shift: the value of each column that becomes 0 (C,).
        scale: its distance to the value that becomes 1 (C,), nonzero.

    Example:
        >>> series = jnp.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0], [9.0, 5.0]])
        >>> train, test = split(4, (0.75, 0.25))
        >>> scaling = min_max(series, train)  # without the test set
        >>> scaling(series).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.5, 0.0], [4.0, 0.0]]
        >>> scaling.columns([0]).inverse(jnp.array([[0.5]])).tolist()
        [[2.0]]
    """

    shift: jax.Array
    scale: jax.Array

    def __call__(self, values: Any) -> jax.Array:
        """Scale values (..., C)."""
        shift, scale = self._broadcast(values)
        return (values - shift) / scale

    def inverse(self, values: Any) -> jax.Array:
        """Return scaled values (..., C) in the units of the data."""
        shift, scale = self._broadcast(values)
        return values * scale + shift

    def columns(self, columns: Sequence[int]) -> Scaling:
        """Return the scaling of selected columns, e.g. of the targets."""
        selected = np.array(columns)
        return Scaling(self.shift[selected], self.scale[selected])

    def _broadcast(self, values: Any) -> tuple[jax.Array, jax.Array]:
        """Return shift and scale with the axes of the values; a series (T,) has one column."""
        shape, columns = jnp.shape(values), jnp.shape(self.shift)
        if columns and shape[-1:] != columns:
            raise ValueError(f"`values` must have {columns[0]} columns, got shape {shape}")
        axes = (1,) * (len(shape) - len(columns)) + columns
        return self.shift.reshape(axes), self.scale.reshape(axes)


def min_max(values: Any, part: range | None = None) -> Scaling:
    """Return the scaling of each column from its minimum and maximum to 0 and 1.

    Args:
        values: a series (T, C), or (T,) for one column, floating point.
        part: the steps to fit, those of the training set. Defaults to all. Other steps may exceed
            0 and 1.

    Returns:
        A `Scaling`. Constant columns become 0.

    Raises:
        ValueError: for values that are not floating point, of another shape or without steps.

    Example:
        >>> min_max(jnp.array([2.0, 4.0, 3.0]))(jnp.array([3.0, 6.0])).tolist()
        [0.5, 2.0]
    """
    minimum, spread = _spread(_selected(values, part))
    return Scaling(minimum[0], spread[0])


def standard(values: Any, part: range | None = None) -> Scaling:
    """Return the scaling of each column to mean 0 and (population) standard deviation 1.

    Arguments and errors are those of `min_max`. Constant columns become 0.

    Example:
        >>> scaling = standard(jnp.array([[2.0, 0.1], [4.0, 0.1]]))
        >>> scaling(jnp.array([[4.0, 0.1]])).tolist()
        [[1.0, 0.0]]
    """
    values = _selected(values, part)
    # Of values in [0, 1], the mean of a constant column is exact, and squares do not underflow.
    minimum, spread = _spread(values)
    unit = (values - minimum) / spread
    deviation = unit.std(0)
    return Scaling(
        minimum[0] + spread[0] * unit.mean(0), spread[0] * jnp.where(deviation > 0, deviation, 1)
    )


def _spread(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the minimum of each column and its range, or 1 if constant: (1, C)."""
    minimum = values.min(0, keepdims=True)
    spread = values.max(0, keepdims=True) - minimum
    return minimum, jnp.where(spread > 0, spread, 1)


def _selected(values: Any, part: range | None) -> jax.Array:
    values = jnp.asarray(values)
    if values.ndim not in (1, 2) or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            "`values` must be floating point of shape (T,) or (T, C), "
            f"got {values.dtype.name} {values.shape}"
        )
    selected = values if part is None else values[part.start : part.stop]
    if not len(selected):
        raise ValueError(f"`part` must select at least one of the {len(values)} steps, got {part}")
    return selected
