"""Forecasts of a series of one's own: a recurrent layer learns from it, and says what comes next.

.. code-block:: text

    options     Options              what there is to choose
    series      prepare, Series      rows of numbers in three parts
    units       Units                what the model sees of them, and the way back
    baselines   LinearRegression     what it has to beat
    learning    fit_forecaster       the training, and the judgement
    forecaster  Forecaster           the model, in the units of the data
    saved       save, load           it as one file, and back
    report      write_csv            the forecasts as a CSV file, the errors as a table
    figure      draw                 the forecasts as a picture
    command     main                 the command ``jaxrnn forecast``
    predicting  main                 the command ``jaxrnn predict``

Example:
    >>> import os, tempfile
    >>> import numpy as np
    >>> from jaxrnn import data
    >>> from jaxrnn.forecasting import Forecaster, Options, fit_forecaster
    >>> months = data.read_csv(data.sample("co2.csv"), ["co2"]).values[:240]
    >>> options = Options(horizon=6, hidden_size=8, epochs=5)
    >>> forecaster = fit_forecaster(months, ["co2"], options).forecaster
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = Forecaster.load(forecaster.save(os.path.join(folder, "co2.safetensors")))
    >>> again.columns, again.model.rnn
    (('co2',), LSTM(2, 8, batch_first=True))
    >>> np.array_equal(again.predict(months), forecaster.predict(months))
    True
"""

from jaxrnn.forecasting.baselines import LinearRegression, persistence
from jaxrnn.forecasting.forecaster import Forecaster
from jaxrnn.forecasting.learning import Errors, Fitted, fit_forecaster
from jaxrnn.forecasting.options import Options
from jaxrnn.forecasting.saved import load, save
from jaxrnn.forecasting.series import Series, prepare
from jaxrnn.forecasting.units import Units

__all__ = [
    "Errors",
    "Fitted",
    "Forecaster",
    "LinearRegression",
    "Options",
    "Series",
    "Units",
    "fit_forecaster",
    "load",
    "persistence",
    "prepare",
    "save",
]
