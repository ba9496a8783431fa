"""The two Keras networks of the example `keras`: weights, losses and predictions.

The tests need no Keras: ``python -m tests.keras_oracle`` recorded the values with Keras 3 on JAX.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tests.oracle import GOLDEN

EPOCHS = 150


def keras_runs() -> dict[str, np.ndarray]:
    """Train both networks like the source, unshuffled.

    Of network k: ``k.0``, ``k.1``, ... the initial weights in Keras's order, ``k.losses`` the mean
    loss of each epoch (150,), ``k.predictions`` those of the trained network (47,).
    """
    os.environ["KERAS_BACKEND"] = "jax"  # read at the import of Keras
    import keras as imported  # pyright: ignore[reportMissingImports]

    keras: Any = imported
    keras.utils.set_random_seed(0)
    values = np.sin(2 * np.pi * 0.125 * np.linspace(0, 20, 50))
    x = np.stack([values[i - 3 : i] for i in range(3, 50)])[..., None]
    y = values[3:, None]
    results: dict[str, np.ndarray] = {}
    for number, sizes in enumerate(((), (10, 1))):
        dense: list[Any] = [keras.layers.Dense(size, activation="linear") for size in sizes]
        network = keras.Sequential([keras.Input((3, 1)), keras.layers.SimpleRNN(1), *dense])
        results |= {f"{number}.{i}": w for i, w in enumerate(network.get_weights())}
        network.compile(loss="mse", optimizer="sgd")
        history = network.fit(x, y, epochs=EPOCHS, verbose=0, shuffle=False)
        results[f"{number}.losses"] = np.array(history.history["loss"])
        results[f"{number}.predictions"] = np.asarray(network.predict(x, verbose=0))[:, 0]
    return results


def expected() -> dict[str, np.ndarray]:
    """Keras's numbers, as they were recorded."""
    with np.load(GOLDEN / "keras.npz") as file:
        return dict(file)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN / "keras.npz", allow_pickle=False, **keras_runs())
