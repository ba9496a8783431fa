"""What a forecast has to beat: that nothing changes, and linear regression on the same windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrnn.data import Windows

CHUNK = 4096
"""Windows that are laid out at once."""


def persistence(values: np.ndarray, cut: Windows, numbers: range) -> np.ndarray:
    """The last value of each window, for every row that follows it.

    Args:
        values: the series (T, C), the forecast column first.
        cut: the windows.
        numbers: those to forecast from, K of them in a row.

    Returns:
        The forecasts (K, H).
    """
    last = values[numbers.start + cut.size - 1 : numbers.stop + cut.size - 1, 0]
    return np.repeat(last[:, None], cut.horizon, axis=1)


def truth(values: np.ndarray, cut: Windows, numbers: range) -> np.ndarray:
    """What follows each window (K, H); the arguments are those of `persistence`."""
    followed = np.lib.stride_tricks.sliding_window_view(values[:, 0], cut.horizon)
    return followed[numbers.start + cut.size : numbers.stop + cut.size]


class LinearRegression:
    r"""Each row that follows a window as a weighted sum of all numbers in it, and a constant.

    .. code-block:: text

        z = (row - mean) / deviation                             of the training part
        forecast_h = sum over w, c of A[w, c, h] z[w, c] + b[h]

    The least squares of the training windows, by orthogonal factors: the triangular one is
    brought up to date with a few thousand windows at a time, so that neither are all windows laid
    out nor are products of them formed, which would lose half the digits. Where weights are not
    determined, with fewer windows than weights, they are the least.

    Args:
        values: the series (T, C), float64, the forecast column first.
        cut: the windows.
        numbers: those to learn from, in a row.
        rows: the rows that the mean and the deviation are from.

    Example:
        A wave is a sum of what it was before, whatever its phase:

        >>> import numpy as np
        >>> from jaxrnn.data import Windows
        >>> from jaxrnn.forecasting import LinearRegression
        >>> values = np.sin(0.3 * np.arange(100.0))[:, None]
        >>> linear = LinearRegression(values, Windows(4, 2), range(60), range(66))
        >>> bool(np.abs(linear(values, range(70, 71)) - values[74:76, 0]).max() < 1e-12)
        True
    """

    def __init__(self, values: np.ndarray, cut: Windows, numbers: range, rows: range):
        known = values[rows.start : rows.stop]
        self.cut, self.mean, self.deviation = cut, known.mean(0), known.std(0)
        inputs = cut.size * values.shape[1] + 1
        factor: Any = np.zeros((0, inputs + cut.horizon))
        for some in _chunks(numbers):
            followed = (truth(values, cut, some) - self.mean[0]) / self.deviation[0]
            block = np.concatenate([self._inputs(values, some), followed], axis=1)
            factor = np.linalg.qr(np.concatenate([factor, block]), mode="r")
        known, sums = factor[:inputs, :inputs], factor[:inputs, inputs:]
        self.weights = np.linalg.lstsq(known, sums, rcond=None)[0]

    def __call__(self, values: np.ndarray, numbers: range) -> np.ndarray:
        """The forecasts of windows in a row, by their numbers: (K, H), in the units of the data."""
        said = [self._inputs(values, some) @ self.weights for some in _chunks(numbers)]
        return self.mean[0] + self.deviation[0] * np.concatenate(said)

    def _inputs(self, values: np.ndarray, numbers: range) -> np.ndarray:
        """The windows laid out, and a column of ones."""
        some = values[numbers.start : numbers.stop + self.cut.size - 1]
        z = (some - self.mean) / self.deviation
        laid: Any = np.lib.stride_tricks.sliding_window_view(z, self.cut.size, axis=0)
        return np.concatenate([laid.reshape(len(numbers), -1), np.ones((len(numbers), 1))], axis=1)


def _chunks(numbers: range) -> list[range]:
    """A range in pieces."""
    return [numbers[first : first + CHUNK] for first in range(0, len(numbers), CHUNK)]
