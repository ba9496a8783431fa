"""Systems of recurrent networks, each one self-contained script.

Each script has a function with keyword arguments that trains the network, prints its results, saves
a figure and returns a one-line summary. ``jaxrnn run NAME`` calls it: the signature and the
docstring define the options of the command. `EXAMPLES` lists the scripts with the figures that
their sources report, and `jaxrnn.examples.run_all` compares the two.
"""

from functools import partial
from typing import Annotated, Literal, NamedTuple

from jaxrnn import _checks

Cell = Literal["rnn", "lstm", "gru"]
PositiveInt = Annotated[int, partial(_checks.at_least, minimum=1)]
PositiveFloat = Annotated[float, _checks.positive]
Seed = Annotated[int, lambda name, value: _checks.seed(value)]


class Example(NamedTuple):
    """Entry point of an example, and the figures that its source reports.

    Attributes:
        function: ``"module:function"``.
        reported: results of the source, or of PyTorch if the source reports none.
    """

    function: str
    reported: str


EXAMPLES = {
    "sine": Example(
        "jaxrnn.examples.sine:main",
        "loss 0.354 0.0550 0.0118 0.00131 0.00089, every 15 steps",
    ),
    "shapes": Example(
        "jaxrnn.examples.shapes:main",
        "(1, 20, 1) -> (20, 1), (2, 1, 10); (5, 3, 10) -> (5, 3, 20), (2, 3, 20); then an error",
    ),
    "scratch": Example("jaxrnn.examples.scratch:main", "none: the cell of the source fails"),
    "hello": Example("jaxrnn.examples.words:hello", "(3, 5, 4) -> (3, 5, 2)"),
    "hihello": Example(
        "jaxrnn.examples.characters:hihello",
        "'ihello'; PyTorch: 5 or 6 of 6 right, depending on the seed",
    ),
    "charseq": Example("jaxrnn.examples.characters:charseq", "'if you want you', 15 of 15 right"),
    "longseq": Example(
        "jaxrnn.examples.longseq:main",
        "PyTorch: accuracy 0.89, median of 20 seeds; some seeds near 0.39",
    ),
    "stocks": Example("jaxrnn.examples.stocks:main", "a figure; the baseline is persistence"),
    "seq2seq": Example("jaxrnn.examples.seq2seq:main", "the task; all pairs must be reproduced"),
    "packed": Example(
        "jaxrnn.examples.words:packed",
        "the task; packed outputs must equal those of each word alone",
    ),
    "keras": Example(
        "jaxrnn.examples.keras_sine:main",
        "a figure: the networks predict worse than the regression",
    ),
    "stateful": Example(
        "jaxrnn.examples.stateful:main",
        "PyTorch, seed 42: loss 650 at first, 6.07 at epoch 9, 1.66 at epoch 33",
    ),
    "taxonomy": Example("jaxrnn.examples.taxonomy:main", "a figure; each head must learn its task"),
    "episodes": Example(
        "jaxrnn.examples.episodes:main", "no source; without memory, 25 % of answers are right"
    ),
}
