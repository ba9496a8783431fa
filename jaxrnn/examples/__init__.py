"""Systems of recurrent networks, each one self-contained script.

Each script has a function with keyword arguments that trains the network, prints its results, saves
a figure and returns a one-line summary. ``jaxrnn run NAME`` calls it: the signature and the
docstring define the options of the command. The types of common options carry their descriptions.
`EXAMPLES` lists the functions with the figures that their sources report, and
`jaxrnn.examples.run_all` compares the two.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from jaxrnn import _checks

# Types of options, each with its check and, for those of most examples, its description.
PositiveInt = Annotated[int, partial(_checks.at_least, minimum=1)]
PositiveFloat = Annotated[float, _checks.positive]
Cell = Annotated[Literal["rnn", "lstm", "gru"], "the cell"]
FigurePath = Annotated[str, "the figure, a .png, .svg or .pdf file"]
Hidden = Annotated[PositiveInt, "hidden features"]
Layers = Annotated[PositiveInt, "recurrent layers"]
LearningRate = Annotated[PositiveFloat, "learning rate of Adam"]
Every = Annotated[PositiveInt, "print the results every this number of steps"]
Seed = Annotated[int, lambda name, value: _checks.seed(value), "seed of the initial weights"]


class Example(NamedTuple):
    """Entry point of an example, and the figures that its source, or PyTorch, reports."""

    function: str  # "module:function"
    reported: str


EXAMPLES = {
    name: Example(f"jaxrnn.examples.{function}", reported)
    for name, function, reported in [
        ("sine", "sine:main", "loss 0.354 0.0550 0.0118 0.00131 0.00089, every 15 steps"),
        (
            "shapes",
            "shapes:main",
            "(1, 20, 1) -> (20, 1), (2, 1, 10); (5, 3, 10) -> (5, 3, 20), (2, 3, 20); an error",
        ),
        ("scratch", "scratch:main", "none: the cell of the source fails"),
        ("hello", "words:hello", "(3, 5, 4) -> (3, 5, 2)"),
        ("hihello", "characters:hihello", "'ihello'; PyTorch: 5 or 6 of 6 right, by the seed"),
        ("charseq", "characters:charseq", "'if you want you', 15 of 15 right"),
        ("longseq", "longseq:main", "PyTorch: accuracy 0.89, median of 20 seeds; some near 0.39"),
        ("stocks", "stocks:main", "a figure; the baseline is persistence"),
        ("seq2seq", "seq2seq:main", "the task; all pairs must be reproduced"),
        ("packed", "words:packed", "the task; outputs must equal those of each word alone"),
        ("keras", "keras_sine:main", "a figure: the networks predict worse than the regression"),
        (
            "stateful",
            "stateful:main",
            "PyTorch: loss 650 at first, 6.07 at epoch 9, 1.66 at epoch 33",
        ),
        ("taxonomy", "taxonomy:main", "a figure; each head must learn its task"),
        ("episodes", "episodes:main", "no source; without memory, 25 % of answers are right"),
    ]
}


def make_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Iterable[Any]],
    *,
    right: Sequence[str] = (),
    lines: bool = False,
) -> Any:
    """Return a table for the terminal; columns in `right` are right-aligned, `lines` divide it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_lines=lines)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return table
