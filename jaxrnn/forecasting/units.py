"""What a forecaster sees of a series, and how its answers become numbers of the series again."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import data

LEAST, MOST = 1e-100, 1e100
"""The bounds of what is scaled: its deviation and its size."""

FARTHEST = 1e30
"""How many deviations from the mean a number may be."""


class Units(NamedTuple):
    r"""The scales of a series, from its training part alone. C columns, the forecast one first.

    .. code-block:: text

        z_t   = (row_t - mean) / deviation                      (C,)
        x_t   = [z_t, (z_t - z_{t-1}) / step]                   (2C,)   the change is 0 at first
        y_h   = (z_{t+h} - z_t) / change                        h = 1 ... H, of the first column
        row_{t+h} = row_t + y_h change deviation                the way back

    A forecast is a change since the last row of the window: a model that says 0 says "as now",
    persistence. A series that has left the range it was learned from, as one with a trend does, is
    still forecast from where it is: with z itself as the target, and without the changes among the
    inputs, the error on the held-out part of ``co2.csv`` was 30 times as large.

    Attributes:
        scaling: mean and deviation of each column, float64.
        step: the root mean square of the change of z from row to row (C,), float64.
        change: that of z's first column over 1 to H rows.
    """

    scaling: data.Scaling
    step: np.ndarray
    change: float

    @classmethod
    def of(cls, values: np.ndarray, train: range, horizon: int, name: str = "the series") -> Units:
        """The scales of the rows `train` of values (T, C), float64, no column of them constant.

        Raises:
            ValueError: for numbers so large or so close together that they can't be scaled.
        """
        with np.errstate(all="ignore"), jax.enable_x64(True):
            scaling = jax.tree.map(np.asarray, data.standard(values, train))
            z = scaling(values[: train.stop])
            step = np.sqrt(np.mean(np.diff(z, axis=0) ** 2, axis=0))
            ahead = range(1, min(horizon, len(z) - 1) + 1)
            change = np.sqrt(np.mean([np.mean((z[h:, 0] - z[:-h, 0]) ** 2) for h in ahead]))
            rest = scaling(values[train.stop :])
        scales = np.concatenate([scaling.scale, step, [change]])
        # Errors are squared in the units of the data, and what is scaled is float32.
        sane = np.isfinite(scales).all() and (scales > 0).all() and (scaling.scale > LEAST).all()
        within = (np.abs(values) < MOST).all()
        if not (sane and within and all((np.abs(part) < FARTHEST).all() for part in (z, rest))):
            raise ValueError(
                f"{name}: the numbers are too large, or too far apart, to be scaled, or too close "
                f"together: they should be below {MOST:g}, their deviation above {LEAST:g}, and "
                f"none {FARTHEST:g} deviations from their mean"
            )
        return cls(scaling, step, float(change))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Rows (..., C) as z, found in float64, for the model float32.

        Raises:
            ValueError: for numbers that are too far away from those that the scales are from.
        """
        with np.errstate(all="ignore"):
            z = np.asarray(self.scaling(values))
        if not (np.abs(z) < FARTHEST).all():
            raise ValueError(
                f"there are numbers more than {FARTHEST:g} deviations from the mean of those that "
                "were learned from"
            )
        return z.astype(np.float32)

    def inputs(self, z: jax.Array) -> jax.Array:
        """What the model reads of windows z (..., W, C): (..., W, 2C)."""
        first = [(0, 0)] * (z.ndim - 2) + [(1, 0), (0, 0)]
        step = jnp.asarray(self.step, z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))
        changes = jnp.pad(jnp.diff(z, axis=-2) / step, first)
        return jnp.concatenate([z, changes], axis=-1)

    def targets(self, z: jax.Array, later: jax.Array) -> jax.Array:
        """What it should say of windows (..., W, C) that are followed by (..., H, C): (..., H)."""
        return (later[..., 0] - z[..., -1, :1]) / jnp.asarray(self.change, z.dtype)

    def answers(self, last: Any, said: Any) -> np.ndarray:
        """Its answers (..., H) in the units of the data, after the last values (...), float64."""
        unit = self.change * self.scaling.scale[0]
        return np.asarray(last, np.float64)[..., None] + unit * np.asarray(said, np.float64)
