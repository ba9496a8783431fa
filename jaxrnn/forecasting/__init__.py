"""Forecasts of a time series: a recurrent model with its scales, trained and tested on the series.

.. code-block:: text

    forecaster  Options         hyperparameters of the model and its training
                Scales          normalisation of the series
                Forecaster      the model in the units of the data, and its file
    train       prepare         training, validation and test set
                fit_forecaster  training, and evaluation against two baselines
    command     forecast        the command ``jaxrnn forecast``
                predict         the command ``jaxrnn predict``

Example:
    >>> import os, tempfile
    >>> import numpy as np
    >>> from jaxrnn import data
    >>> from jaxrnn.forecasting import Forecaster, Options, fit_forecaster
    >>> months = data.read_csv(data.sample("co2.csv"), ["co2"]).values[:240]
    >>> options = Options(horizon=6, hidden_size=8, epochs=5)
    >>> forecaster = fit_forecaster(months, ["co2"], options).forecaster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loaded = Forecaster.load(forecaster.save(os.path.join(folder, "co2.safetensors")))
    >>> loaded.columns, loaded.model.rnn
    (('co2',), LSTM(2, 8, batch_first=True))
    >>> np.array_equal(loaded.predict(months), forecaster.predict(months))
    True
"""

from jaxrnn.forecasting.forecaster import Forecaster, Options, Scales
from jaxrnn.forecasting.train import (
    Errors,
    Fitted,
    LinearRegression,
    Series,
    fit_forecaster,
    persistence,
    prepare,
)

__all__ = [
    "Errors",
    "Fitted",
    "Forecaster",
    "LinearRegression",
    "Options",
    "Scales",
    "Series",
    "fit_forecaster",
    "persistence",
    "prepare",
]
