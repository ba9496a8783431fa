"""Text of one's own: a character model learns from it, and writes more.

.. code-block:: text

    texts      read_text, prepare     a file as text, a text as windows in three parts
    baselines  counted_loss           what counting says of it
    learning   make_model, learn      the model, and its training
    saved      save, load             a model as one file, and back
    command    main                   the command ``jaxrnn chars``

Example:
    >>> import tempfile
    >>> from jaxrnn import data
    >>> from jaxrnn import text as writing
    >>> text = writing.prepare(writing.read_text(data.sample("alice.txt")))
    >>> size = len(text.vocabulary)
    >>> round(writing.counted_loss(text.numbers, text.cut, text.held_out, 3, size), 2)  # trigrams
    1.97
    >>> model = writing.make_model(text.vocabulary)  # that writing.learn(text, model) trains
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = writing.save(model, folder + "/alice.safetensors")
    ...     again = writing.load(path)
    >>> again.rnn
    LSTM(32, 128)
"""

from jaxrnn.text.baselines import counted_loss
from jaxrnn.text.learning import Learned, learn, make_model, mean_loss
from jaxrnn.text.saved import load, save
from jaxrnn.text.texts import Text, prepare, read_text

__all__ = [
    "Learned",
    "Text",
    "counted_loss",
    "learn",
    "load",
    "make_model",
    "mean_loss",
    "prepare",
    "read_text",
    "save",
]
