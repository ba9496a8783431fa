r"""A recurrent cell and its loop over time written out in plain JAX, and `RNN` held against it.

This is the sequential reference: one step is two products, a bias and a tanh, a sequence is a
`for` loop that hands the state on. The layer does the same in one product for the inputs of all
steps and one compiled loop, and has to give the same numbers and the same gradients.

.. code-block:: text

    h_t = tanh(W_x x_t + W_h h_{t-1} + b)

The notebook that this is made after writes such a cell in PyTorch, and it can't run: it keeps the
state only where there is one already, so that there never is any and every step is the first; its
W_h is as wide as the input, D, where it multiplies the state, H; its loop takes a state and does
not use it, writes the number H where the state h belongs, and calls `torch.tensor.zeros`, which
does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxrnn import RNN, plotting
from jaxrnn import _checks as checks

REPORTED = "nothing, its cell can't run"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run scratch``."""

    batch: int = field(default=3, metadata={"help": "sequences side by side"})
    steps: int = field(default=50, metadata={"help": "steps of each"})
    features: int = field(default=10, metadata={"help": "input features"})
    hidden: int = field(default=20, metadata={"help": "hidden features"})
    seed: int = field(default=0, metadata={"help": "seed of weights, input and first state"})
    out: str = field(
        default="scratch.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "features", "hidden"):
            checks.at_least(name, getattr(self, name), 1)
        checks.seed(self.seed)


class Weights(NamedTuple):
    """W_x (H, D), W_h (H, H), b (H,). PyTorch has two biases, whose sum is b."""

    W_x: jax.Array
    W_h: jax.Array
    b: jax.Array

    @classmethod
    def of(cls, rnn: Any) -> Weights:
        """The weights of a layer of one direction, shared, and the sum of its biases."""
        w = rnn._weights()[0]
        return cls(w.weight_ih, w.weight_hh, w.bias_ih + w.bias_hh)


def cell(weights: Weights, x: jax.Array, h: jax.Array) -> jax.Array:
    """One step: from an input (N, D) and the state (N, H) to the new state (N, H)."""
    W_x, W_h, b = weights
    return jnp.tanh(x @ W_x.T + h @ W_h.T + b[None])


def time_loop(weights: Weights, xs: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All steps: from inputs (N, T, D) and a state (N, H) to all states (N, T, H) and the last."""
    hs = []
    for t in range(xs.shape[1]):
        h = cell(weights, xs[:, t], h)
        hs.append(h)
    return jnp.stack(hs, axis=1), h


class Row(NamedTuple):
    """Two arrays that should be the same.

    Attributes:
        name: what they are.
        shape: their shape.
        largest: the largest magnitude in the layer's.
        difference: the largest difference between them.
    """

    name: str
    shape: tuple[int, ...]
    largest: float
    difference: float

    @property
    def relative(self) -> float:
        """The difference as a part of the largest magnitude."""
        return self.difference / self.largest


class History(NamedTuple):
    """What a run leaves.

    Attributes:
        rows: the comparison, values first, then gradients.
        scratch, layer: the states of the first sequence after each step (T, H).
    """

    rows: list[Row]
    scratch: np.ndarray
    layer: np.ndarray


def draw_inputs(settings: Settings) -> tuple[RNN, jax.Array, jax.Array, jax.Array]:
    """A layer, an input (N, T, D), a first state (N, H), and what weighs the outputs (N, T, H)."""
    rngs = nnx.Rngs(settings.seed)  # one stream for all: keys of two could be the same
    rnn = RNN(settings.features, settings.hidden, batch_first=True, rngs=rngs)
    batch, steps, hidden = settings.batch, settings.steps, settings.hidden
    shapes = [(batch, steps, settings.features), (batch, hidden), (batch, steps, hidden)]
    xs, h_0, weigh = (jax.random.normal(rngs.params(), shape, jnp.float32) for shape in shapes)
    return rnn, xs, h_0, weigh


def compare(settings: Settings = Settings()) -> History:
    """Run both, with one loss, and compare everything that comes out."""
    rnn, xs, h_0, weigh = draw_inputs(settings)
    graph, params = nnx.split(rnn)

    def scratch_loss(weights: Weights, xs: jax.Array, h_0: jax.Array) -> Any:
        outputs, last = time_loop(weights, xs, h_0)
        return (outputs * weigh).sum() + (last * weigh[:, -1]).sum(), (outputs, last)

    def layer_loss(params: Any, xs: jax.Array, h_0: jax.Array) -> Any:
        outputs, h_n = nnx.merge(graph, params)(xs, h_0[None])
        return (outputs * weigh).sum() + (h_n[0] * weigh[:, -1]).sum(), (outputs, h_n[0])

    (_, ours), gradients = jax.value_and_grad(scratch_loss, (0, 1, 2), has_aux=True)(
        Weights.of(rnn), xs, h_0
    )
    (_, theirs), (of_params, *of_inputs) = jax.jit(
        jax.value_and_grad(layer_loss, (0, 1, 2), has_aux=True)
    )(params, xs, h_0)
    of_weights, *rest = gradients
    d_b = of_weights.b
    pairs = {
        "h_1 ... h_T": (ours[0], theirs[0]),
        "h_T": (ours[1], theirs[1]),
        "dL/dW_x": (of_weights.W_x, of_params["weight_ih_l0"][...]),
        "dL/dW_h": (of_weights.W_h, of_params["weight_hh_l0"][...]),
        "dL/db, b_ih": (d_b, of_params["bias_ih_l0"][...]),
        "dL/db, b_hh": (d_b, of_params["bias_hh_l0"][...]),
        "dL/dx": (rest[0], of_inputs[0]),
        "dL/dh_0": (rest[1], of_inputs[1]),
    }
    rows = [
        Row(name, a.shape, float(jnp.abs(b).max()), float(jnp.abs(a - b).max()))
        for name, (a, b) in pairs.items()
    ]
    return History(rows, np.asarray(ours[0][0]), np.asarray(theirs[0][0]))


def as_table(rows: list[Row]) -> Table:
    """The rows as a table for the terminal."""
    table = Table(title="Written out and by the layer", title_justify="left")
    for name in ("", "shape", "largest", "largest difference", "relative"):
        table.add_column(name, justify="left" if name in ("", "shape") else "right")
    for row in rows:
        figures = [f"{row.largest:.3g}", f"{row.difference:.1e}", f"{row.relative:.1e}"]
        table.add_row(row.name, str(row.shape), *figures)
    return table


def draw(history: History) -> Any:
    """The states of both over time, and their difference."""
    states = {
        "written out": history.scratch,
        "RNN": history.layer,
        "difference": history.scratch - history.layer,
    }
    return plotting.hidden_states(states, title="The hidden state of the first sequence")


def result(history: History) -> str:
    """What came out, in a line."""
    worst = max(row.relative for row in history.rows)
    return f"the layer differs by {worst:.1e} of the largest value"


def main(settings: Settings) -> History:
    """Compare, print the differences, save the figure."""
    target = plotting.check_target(settings.out)
    history = compare(settings)
    Console().print(as_table(history.rows))
    worst = max(history.rows, key=lambda row: row.relative)
    print(f"largest difference: {worst.relative:.1e} of the largest value, in {worst.name}")
    print(f"figure: {plotting.save(draw(history), target)}")
    return history
