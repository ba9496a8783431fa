"""The shapes of recurrent layers: input, output and hidden state, and what each argument does.

Axis letters: N batch, T time, D input features, H hidden size, L layers, F directions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxrnn import RNN, plotting
from jaxrnn._files import write_atomically
from jaxrnn.layers.heads import ManyToMany

REPORTED = "(1, 20, 1) -> (20, 1), (2, 1, 10); (5, 3, 10) -> (5, 3, 20), (2, 3, 20); then an error"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run shapes``."""

    out: str = field(default="", metadata={"help": "save the tables as a figure, an .svg file"})


class Row(NamedTuple):
    """One call: how the layer was made, and the shapes of what went in and what came out."""

    layer: str
    what: str
    input: tuple[int, ...]
    h_0: tuple[int, ...] | None
    output: tuple[int, ...]
    h_n: tuple[int, ...]


class History(NamedTuple):
    """The rows of the tables, and the message that the last call ends in."""

    layouts: list[Row]
    arguments: list[Row]
    error: str


def measure(
    what: str, input: tuple[int, ...], h_0: tuple[int, ...] | None, *args: Any, **kw: Any
) -> Row:
    """Make an `RNN`, call it, and note the shapes."""
    rnn = RNN(*args, rngs=nnx.Rngs(0), **kw)
    output, h_n = rnn(
        jnp.ones(input, jnp.float32), None if h_0 is None else jnp.zeros(h_0, jnp.float32)
    )
    return Row(repr(rnn), what, input, h_0, output.shape, h_n.shape)


def sine_shapes() -> Row:
    """The network of the `sine` experiment with 10 hidden features and 2 layers, flattened."""
    rngs = nnx.Rngs(0)
    model = ManyToMany(RNN(1, 10, 2, batch_first=True, rngs=rngs), 1, rngs=rngs)
    y, h_n = model(jnp.ones((1, 20, 1), jnp.float32))
    y = y.reshape(-1, 1)
    return Row(f"{model.rnn} + linear", "one row per step", (1, 20, 1), None, y.shape, h_n.shape)


def layouts() -> list[Row]:
    """Batched, unbatched, time-major, batch-first."""
    return [
        sine_shapes(),
        measure("(T, N, D), h (L, N, H)", (5, 3, 10), (2, 3, 20), 10, 20, 2),
        measure("(N, T, D), h the same", (3, 5, 10), (2, 3, 20), 10, 20, 2, batch_first=True),
        measure("(T, D), no batch", (5, 10), (2, 20), 10, 20, 2),
        measure("(T, D) whatever batch_first", (5, 10), (2, 20), 10, 20, 2, batch_first=True),
        measure("two directions: F*H, F*L", (5, 3, 10), (4, 3, 20), 10, 20, 2, bidirectional=True),
    ]


def arguments() -> list[Row]:
    """The eight arguments of the constructor, one changed at a time."""
    x = (5, 3, 10)
    return [
        measure("input_size=7: D", (5, 3, 7), None, 7, 20),
        measure("hidden_size=8: H", x, None, 10, 8),
        measure("num_layers=2: L", x, None, 10, 20, 2),
        measure("nonlinearity='relu'", x, None, 10, 20, nonlinearity="relu"),
        measure("bias=False", x, None, 10, 20, bias=False),
        measure("batch_first=True: N, T, D", (3, 5, 10), None, 10, 20, batch_first=True),
        measure("dropout=0.5: between layers", x, None, 10, 20, 2, dropout=0.5),
        measure("bidirectional=True: F = 2", x, None, 10, 20, bidirectional=True),
    ]


def wrong_layers() -> str:
    """A state of two layers given to a layer of one: the message of the error."""
    try:
        measure("", (5, 3, 10), (2, 3, 20), 10, 20)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("a state of two layers was taken by one layer")


def as_table(title: str, rows: list[Row]) -> Table:
    """The rows as a table for the terminal."""
    table = Table(title=title, title_justify="left")
    for name in ("layer", "", "input", "h_0", "output", "h_n"):
        table.add_column(name)
    for row in rows:
        table.add_row(row.layer, row.what, *(str(s) for s in row[2:]))
    return table


def result(history: History) -> str:
    """What came out, in a line."""
    shapes = [f"{row.input} -> {row.output}, {row.h_n}" for row in history.layouts[:2]]
    return f"{'; '.join(shapes)}; {history.error}"


def main(settings: Settings) -> History:
    """Print the tables and the error; save them if asked to."""
    target = plotting.check_target(settings.out, formats=("svg",)) if settings.out else None
    history = History(layouts(), arguments(), wrong_layers())
    console = Console(record=True, width=118)
    console.print(as_table("Layouts", history.layouts))
    console.print(as_table("RNN(10, 20), one argument changed", history.arguments))
    console.print("RNN(10, 20) with h_0 (2, 3, 20):", history.error, highlight=False)
    if target is not None:
        write_atomically(target, lambda p: console.save_svg(str(p), title="jaxrnn run shapes"))
        print(f"figure: {target}")
    return history
