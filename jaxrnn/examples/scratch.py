r"""A recurrent cell and its loop over time in plain JAX, compared with `RNN`.

The loop is the sequential reference: one step is two matrix products, a bias and a tanh.

.. math::

    h_t = \tanh(W_x x_t + W_h h_{t-1} + b)

`RNN` computes the input projections of all steps in one product and compiles one loop. Values and
gradients must be equal.

The PyTorch notebook that this example corrects cannot run. Its cell creates the hidden state only
if one exists already, so every step is a first step. Its :math:`W_h` has D columns instead of H.
Its loop ignores the state argument and writes the size H for the state h. It calls
``torch.tensor.zeros``, which does not exist.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from jaxrnn import RNN, plotting
from jaxrnn.examples import FigurePath, Hidden, PositiveInt, Seed, make_table


class Weights(NamedTuple):
    """Weights W_x (H, D), W_h (H, H) and b (H,). PyTorch has two biases, whose sum is b."""

    W_x: jax.Array
    W_h: jax.Array
    b: jax.Array

    @classmethod
    def from_layer(cls, rnn: Any) -> Weights:
        """Share the weights of a layer with one direction, with the sum of its biases."""
        bias = rnn.bias_ih_l0[...] + rnn.bias_hh_l0[...]
        return cls(rnn.weight_ih_l0[...], rnn.weight_hh_l0[...], bias)


def step(weights: Weights, x: jax.Array, h: jax.Array) -> jax.Array:
    """Return the next state (N, H) from an input (N, D) and a state (N, H)."""
    W_x, W_h, b = weights
    return jnp.tanh(x @ W_x.T + h @ W_h.T + b[None])


def unroll(weights: Weights, xs: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return all states (N, T, H) and the final one, from inputs (N, T, D) and a state (N, H)."""
    hs = []
    for t in range(xs.shape[1]):
        h = step(weights, xs[:, t], h)
        hs.append(h)
    return jnp.stack(hs, axis=1), h


class Comparison(NamedTuple):
    """Largest magnitude of an array of the layer, and its difference from the reference."""

    name: str
    shape: tuple[int, ...]
    largest: float
    difference: float

    @property
    def relative(self) -> float:
        """Difference divided by the largest magnitude."""
        return self.difference / self.largest


def make_inputs(
    batch: int, steps: int, features: int, hidden: int, seed: int
) -> tuple[RNN, jax.Array, jax.Array, jax.Array]:
    """Draw a layer, inputs (N, T, D), an initial state (N, H) and loss weights (N, T, H)."""
    rngs = nnx.Rngs(seed)
    rnn = RNN(features, hidden, batch_first=True, rngs=rngs)
    shapes = [(batch, steps, features), (batch, hidden), (batch, steps, hidden)]
    xs, h_0, loss_weights = (jax.random.normal(rngs.params(), s, jnp.float32) for s in shapes)
    return rnn, xs, h_0, loss_weights


def compare(
    rnn: RNN, xs: jax.Array, h_0: jax.Array, loss_weights: jax.Array
) -> tuple[list[Comparison], jax.Array, jax.Array]:
    """Compare outputs, states and all gradients; return also the outputs (N, T, H) of both."""
    graph, params = nnx.split(rnn)

    def _loss(outputs: jax.Array, h_n: jax.Array) -> Any:
        value = (outputs * loss_weights).sum() + (h_n * loss_weights[:, -1]).sum()
        return value, (outputs, h_n)

    def _reference_loss(weights: Weights, xs: jax.Array, h_0: jax.Array) -> Any:
        return _loss(*unroll(weights, xs, h_0))

    def _layer_loss(params: Any, xs: jax.Array, h_0: jax.Array) -> Any:
        outputs, h_n = nnx.merge(graph, params)(xs, h_0[None])
        return _loss(outputs, h_n[0])

    reference_grad, layer_grad = (
        jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)
        for f in (_reference_loss, _layer_loss)
    )
    (_, (outputs, h_n)), (d_weights, d_xs, d_h_0) = reference_grad(Weights.from_layer(rnn), xs, h_0)
    (_, layer_values), (d_params, *d_inputs) = jax.jit(layer_grad)(params, xs, h_0)
    reference = {
        "h_1 ... h_T": outputs,
        "h_T": h_n,
        "dL/dW_x": d_weights.W_x,
        "dL/dW_h": d_weights.W_h,
        "dL/db, b_ih": d_weights.b,
        "dL/db, b_hh": d_weights.b,
        "dL/dx": d_xs,
        "dL/dh_0": d_h_0,
    }
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer = [*layer_values, *(d_params[name][...] for name in names), *d_inputs]
    comparisons = [
        Comparison(name, a.shape, float(jnp.abs(b).max()), float(jnp.abs(a - b).max()))
        for (name, a), b in zip(reference.items(), layer, strict=True)
    ]
    return comparisons, outputs, layer_values[0]


def main(
    *,
    batch: PositiveInt = 3,
    steps: PositiveInt = 50,
    features: PositiveInt = 10,
    hidden: Hidden = 20,
    seed: Seed = 0,
    out: FigurePath = "scratch.png",
) -> str:
    """Compare a hand-written cell and time loop with `RNN`, values and gradients.

    Args:
        batch: batch size.
        steps: time steps.
        features: input features.
        seed: seed of weights, inputs and initial state.
    """
    target = plotting.check_target(out)
    inputs = make_inputs(batch, steps, features, hidden, seed)
    comparisons, *outputs = compare(*inputs)
    rows = [
        (one.name, one.shape, f"{one.largest:.3g}", f"{one.difference:.1e}", f"{one.relative:.1e}")
        for one in comparisons
    ]
    columns = ("", "shape", "largest", "largest difference", "relative")
    Console().print(make_table("Reference and layer", columns, rows, right=columns[2:]))
    worst = max(comparisons, key=lambda one: one.relative)
    print(f"largest difference: {worst.relative:.1e} of the largest value, in {worst.name}")
    reference, layer = (np.asarray(h[0]) for h in outputs)
    panels = {"reference": reference, "RNN": layer, "difference": reference - layer}
    figure = plotting.hidden_states(panels, title="The hidden state of the first sequence")
    print(f"figure: {plotting.save(figure, target)}")
    return f"the layer differs by {worst.relative:.1e} of the largest value"
