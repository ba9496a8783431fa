"""A character model as one file: its weights, and what it takes to make it again."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxrnn import _model_files as described
from jaxrnn.data import Vocabulary
from jaxrnn.interop.torch import load_state_dict
from jaxrnn.layers.heads import LAYERS, CharacterModel

ENTRY = "jaxrnn.characters"
"""Where in the header of the file the description is."""


def save(model: CharacterModel, path: str | os.PathLike[str]) -> Path:
    """Write a model to a safetensors file; what was there before stays until it is written whole.

    The tensors are the parameters under PyTorch's names, as `jaxrnn.save_safetensors` writes them;
    the header of the file holds, as JSON, the vocabulary, the layer and its arguments, and the size
    of the embedding.

    Args:
        model: on an `RNN`, `LSTM` or `GRU`; its embedding an `nnx.Embed` or none. What it computes
            in is not kept: it comes back in float32.
        path: the file.

    Raises:
        ValueError: for another layer or embedding.
        OSError: if it can't be written.

    Example:
        >>> import os, tempfile
        >>> from jaxrnn.data import Vocabulary
        >>> from jaxrnn.text import load, make_model, save
        >>> model = make_model(Vocabulary.of("hello"), hidden=8, layers=2, embedding=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(model, os.path.join(folder, "hello.safetensors")))
        >>> again.rnn, again.vocabulary
        (LSTM(4, 8, num_layers=2), Vocabulary(characters='helo'))
        >>> again.generate("he", 8, temperature=0) == model.generate("he", 8, temperature=0)
        True
    """
    return described.write(path, model, ENTRY, _description(model))


def load(path: str | os.PathLike[str]) -> CharacterModel:
    """Read a model that `save` has written, in evaluation mode.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, or not all of it.
    """
    return described.read(path, ENTRY, "character model", _make)


def _description(model: CharacterModel) -> dict[str, Any]:
    """What it takes to make the model again, but its weights."""
    kinds = {kind: name for name, kind in LAYERS.items()}
    if type(model.rnn) not in kinds:
        raise ValueError(f"only models on {', '.join(LAYERS)} can be saved, got one on {model.rnn}")
    if not isinstance(model.embedding, nnx.Embed | None):
        raise ValueError(
            f"only an nnx.Embed can be saved as an embedding, got {type(model.embedding).__name__}"
        )
    return {
        "vocabulary": model.vocabulary.characters,
        "cell": kinds[type(model.rnn)],
        "layer": {name: getattr(model.rnn, name) for name in _arguments(type(model.rnn))},
        "embedding": None if model.embedding is None else model.embedding.features,
    }


def _arguments(kind: type[nnx.Module]) -> list[str]:
    """The names of the arguments of a layer that say what it is."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD and p.name != "self"]


def _make(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> CharacterModel:
    """The model of a description, once its sizes are those of the arrays."""
    vocabulary, layer = Vocabulary(str(description["vocabulary"])), description["layer"]
    size, features = len(vocabulary), description["embedding"]
    wide = (layer.get("proj_size") or layer["hidden_size"]) * (2 if layer["bidirectional"] else 1)
    rows, hidden = len(arrays.get("rnn.weight_hh_l0", ())), max(1, layer["hidden_size"])
    expected = {
        "fc.weight": (size, wide),
        "rnn.weight_ih_l0": (rows // hidden * hidden, layer["input_size"]),
        f"rnn.weight_hh_l{layer['num_layers'] - 1}": None,
        **({} if features is None else {"embedding.weight": (size, features)}),
    }
    described.check_shapes(arrays, expected)
    rngs = nnx.Rngs(0)
    embedding = None if features is None else nnx.Embed(size, features, rngs=rngs)
    rnn = LAYERS[description["cell"]](**layer, rngs=rngs)
    model = CharacterModel(rnn, vocabulary, embedding, rngs=rngs)
    load_state_dict(model, arrays)
    model.eval()
    return model
