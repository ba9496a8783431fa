"""Shapes of recurrent layers: input, output and hidden state, and the effect of each argument.

Axis letters: N batch, T time, D input features, H hidden size, L layers, F directions.

Source: the lesson "Simple RNN" of Udacity's course on deep learning, and PyTorch's reference of
``torch.nn.RNN``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from rich.console import Console

from jaxrnn import RNN, plotting
from jaxrnn._files import write_atomically
from jaxrnn.examples import make_table
from jaxrnn.layers.heads import ManyToMany

Shape = tuple[int, ...]


class Call(NamedTuple):
    """A call of a layer and the shapes of its arguments and results."""

    layer: str
    note: str
    input: Shape
    h_0: Shape | None
    output: Shape
    h_n: Shape


def measure(note: str, input: Shape, h_0: Shape | None, *args: Any, **kwargs: Any) -> Call:
    """Build an `RNN`, call it and record the shapes."""
    rnn = RNN(*args, rngs=nnx.Rngs(0), **kwargs)
    state = None if h_0 is None else jnp.zeros(h_0, jnp.float32)
    output, h_n = rnn(jnp.ones(input, jnp.float32), state)
    return Call(repr(rnn), note, input, h_0, output.shape, h_n.shape)


def measure_sine() -> Call:
    """Record the shapes of the network of `jaxrnn.examples.sine`, its output flattened."""
    rngs = nnx.Rngs(0)
    model = ManyToMany(RNN(1, 10, 2, batch_first=True, rngs=rngs), 1, rngs=rngs)
    y, h_n = model(jnp.ones((1, 20, 1), jnp.float32))
    y = y.reshape(-1, 1)
    return Call(f"{model.rnn} + linear", "(N * T, 1)", (1, 20, 1), None, y.shape, h_n.shape)


def layouts() -> list[Call]:
    """Call layers with batched, unbatched, time-major and batch-first input."""
    return [
        measure_sine(),
        measure("(T, N, D), h (L, N, H)", (5, 3, 10), (2, 3, 20), 10, 20, 2),
        measure("(N, T, D), same h", (3, 5, 10), (2, 3, 20), 10, 20, 2, batch_first=True),
        measure("(T, D), unbatched", (5, 10), (2, 20), 10, 20, 2),
        measure("(T, D) for any batch_first", (5, 10), (2, 20), 10, 20, 2, batch_first=True),
        measure("two directions: F*H, F*L", (5, 3, 10), (4, 3, 20), 10, 20, 2, bidirectional=True),
    ]


def arguments() -> list[Call]:
    """Call layers that differ in one of the eight arguments of the constructor."""
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


def wrong_state() -> str:
    """Return the error of a layer that receives the state of two layers."""
    try:
        measure("", (5, 3, 10), (2, 3, 20), 10, 20)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("one layer accepted the state of two layers")


def main(*, out: str = "") -> str:
    """Print the shapes of inputs, outputs and states for each argument of a layer.

    Args:
        out: save the tables as a figure, an .svg file.
    """
    target = plotting.check_target(out, formats=("svg",)) if out else None
    calls, error = layouts(), wrong_state()
    console = Console(record=True, width=118)
    columns = ("layer", "", "input", "h_0", "output", "h_n")
    console.print(make_table("Layouts", columns, calls))
    console.print(make_table("RNN(10, 20), one argument changed", columns, arguments()))
    console.print("RNN(10, 20) with h_0 (2, 3, 20):", error, highlight=False)
    if target is not None:
        write_atomically(
            target, lambda path: console.save_svg(str(path), title="jaxrnn run shapes")
        )
        print(f"figure: {target}")
    return "; ".join([*(f"{call.input} -> {call.output}, {call.h_n}" for call in calls[:2]), error])
