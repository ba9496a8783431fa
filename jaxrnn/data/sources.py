"""Windows of a series that is larger than memory, read from its file as they are asked for."""

from __future__ import annotations

import mmap
import operator
from typing import Any

import numpy as np

from jaxrnn.data.series import Windows


class WindowSource:
    """The windows of an array on the host, of one in a file most of all, by their numbers.

    ``len(source)`` and ``source[k]`` are all that a loader asks of a source: those of Grain and of
    PyTorch take this one as it is. Nothing is read but the windows asked for.

    Args:
        series: (T, C) or (T,), a NumPy array: ``np.load(path, mmap_mode="r")`` or
            ``np.memmap(path, dtype, "r", shape=(T, C))`` for one that stays in its file.
        windows: how it is cut.
        rows: the steps of the part to cut it from, as `split` gives them; None for all.
        context: let the inputs reach back before the part, see `Windows.within`.

    Raises:
        ValueError: for a series of other axes or too short, or a column it does not have.

    Example:
        A series in a file, scaled by its first part, in shuffled batches on the way to the device:

        >>> import os, tempfile
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> from jaxrnn.data import Windows, WindowSource, epoch, split, standard
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = os.path.join(folder.name, "series.npy")
        >>> np.save(path, np.arange(3000, dtype=np.float32).reshape(1000, 3))
        >>> series = np.load(path, mmap_mode="r")
        >>> train, test = split(len(series), (0.8, 0.2))
        >>> source = WindowSource(series, Windows(24, targets=(0,)), train)
        >>> len(source), [a.shape for a in source[0]]
        (776, [(24, 3), (1, 1)])
        >>> scaling = standard(series[:500])  # from as much of the training part as fits
        >>> for index in np.asarray(epoch(len(source), 64, key=jax.random.key(0)).index):
        ...     x, y = source.take(index)
        ...     x, y = scaling(x), scaling.columns([0])(y)  # and a step of training
        >>> x.shape, y.shape
        ((64, 24, 3), (64, 1, 1))
        >>> del series, source; folder.cleanup()

        Through Grain (``pip install grain``), which shuffles, batches and reads ahead, in other
        processes if asked to. `jaxrnn.training.fit` takes its iterators, and keeps their position
        in its checkpoints:

        .. code-block:: python

            loader = grain.MapDataset.source(source).seed(0).shuffle().repeat().batch(64)
            fit(loss, optimizer, model, iter(loader.to_iter_dataset()), steps=10_000)

    It can be pickled, as other processes need it. A series that is a whole memory map goes to
    them as the name of its file.
    """

    def __init__(
        self, series: Any, windows: Windows, rows: range | None = None, *, context: bool = False
    ):
        windows.check(series.shape)
        rows = range(len(series)) if rows is None else rows
        if rows.stop > len(series):
            raise ValueError(f"rows {rows} are more than the {len(series)} steps of the series")
        self.series, self.windows = series, windows
        self.numbers = windows.within(rows, context=context)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        """The inputs (size, D) and targets (horizon, K) of a window, copied from the series."""
        start = self.numbers[operator.index(index)] * self.windows.stride
        window = np.array(self.series[start : start + self.windows.span])
        return self.windows.cut(window)

    def take(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        """The windows of many numbers (B,) on a first axis: x (B, size, D), y (B, horizon, K)."""
        x, y = zip(*(self[number] for number in index))
        return np.stack(x), np.stack(y)

    def __repr__(self) -> str:
        return (
            f"WindowSource({self.series.dtype} {self.series.shape}, {self.windows}, "
            f"{len(self)} windows from number {self.numbers.start} on)"
        )

    def __getstate__(self) -> dict[str, Any]:
        series, state = self.series, self.__dict__.copy()
        # Pickled as an array, a memory map would be read into memory and sent. The offset of a
        # part of one is not known, so parts are.
        whole = isinstance(series, np.memmap) and isinstance(series.base, mmap.mmap)
        if whole and series.filename is not None and series.flags.c_contiguous:
            file = (str(series.filename), series.dtype, "r", series.offset, series.shape)
            state["series"] = _File(file)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.series, _File):
            self.series = np.memmap(*self.series.arguments)


class _File:
    """What it takes to open a memory map again."""

    def __init__(self, arguments: Any):
        self.arguments = arguments
