"""Data as pure functions, to be mapped with `vmap` and compiled with `jit`.

.. code-block:: text

    series     Windows, split            windows by their numbers, parts in the order of time
    scaling    min_max, standard         columns on a common scale, by the training part, and back
    text       Vocabulary                characters as numbers, and back
    batches    epoch, buckets, streams   which examples each step sees
    sources    WindowSource              a series larger than memory, for Grain and other loaders
    samples    sample                    real data that comes with the package
    tables     read_csv                  a CSV file, or one line that says what is wrong with it
    waves      wave, half_waves          sines
"""

from jaxrnn.data._samples import sample
from jaxrnn.data.batches import Batches, Bucket, buckets, epoch, streams
from jaxrnn.data.scaling import Scaling, min_max, standard
from jaxrnn.data.series import Windows, split, windows
from jaxrnn.data.sources import WindowSource
from jaxrnn.data.tables import Table, read_csv
from jaxrnn.data.text import Vocabulary, next_characters
from jaxrnn.data.waves import half_waves, wave

__all__ = [
    "Batches",
    "Bucket",
    "Scaling",
    "Table",
    "Vocabulary",
    "WindowSource",
    "Windows",
    "buckets",
    "epoch",
    "half_waves",
    "min_max",
    "next_characters",
    "read_csv",
    "sample",
    "split",
    "standard",
    "streams",
    "wave",
    "windows",
]
