"""Character models of a text: training, evaluation against n-grams, and generation.

.. code-block:: text

    model     read_text, prepare    a text as training, validation and test set
              make_model            a `CharacterModel`
              save_model            its file
              load_model
              ngram_loss            the baseline
              train                 training, and evaluation against the baseline
    command   chars                 the command ``jaxrnn chars``

Example:
    >>> import tempfile
    >>> from jaxrnn import data, text
    >>> novel = text.prepare(text.read_text(data.sample("alice.txt")))
    >>> size = len(novel.vocabulary)
    >>> round(text.ngram_loss(novel.ids, novel.train_size, novel.test, 3, size), 2)  # trigrams
    1.97
    >>> model = text.make_model(novel.vocabulary)  # for text.train(novel, model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text.load_model(text.save_model(model, folder + "/alice.safetensors")).rnn
    LSTM(32, 128)
"""

from jaxrnn.text.model import (
    Text,
    Trained,
    load_model,
    make_model,
    mean_loss,
    ngram_loss,
    prepare,
    read_text,
    save_model,
    train,
)

__all__ = [
    "Text",
    "Trained",
    "load_model",
    "make_model",
    "mean_loss",
    "ngram_loss",
    "prepare",
    "read_text",
    "save_model",
    "train",
]
