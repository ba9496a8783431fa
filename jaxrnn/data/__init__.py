"""Data as pure functions that `jax.jit` compiles and `jax.vmap` maps.

.. code-block:: text

    series      Windows, split, WindowSource     sliding windows by index, chronological splits
                Scaling, min_max, standard       scaling of columns, fitted to the training part
    text        Vocabulary, next_characters      characters as integer ids
    batches     epoch, buckets, streams          the examples of each batch
    csv         read_csv, Table                  columns of a CSV file
    sample_data sample, wave                     sample files, a sine wave
"""

from jaxrnn.data.batches import Batches, Bucket, buckets, epoch, streams
from jaxrnn.data.csv import Table, read_csv
from jaxrnn.data.sample_data import sample, wave
from jaxrnn.data.series import Scaling, Windows, WindowSource, min_max, split, standard
from jaxrnn.data.text import Vocabulary, next_characters

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
    "min_max",
    "next_characters",
    "read_csv",
    "sample",
    "split",
    "standard",
    "streams",
    "wave",
]
