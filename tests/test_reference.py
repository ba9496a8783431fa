"""Every backend against the definition: stacks of any cell, lengths, resets, both directions."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells, reference
from jaxrnn.core import stack

T, N, D, H = 6, 4, 3, 4

CELLS = {
    "elman": cells.Elman(),
    "relu": cells.Elman("relu"),
    "lstm": cells.LSTM(),
    "gru": cells.GRU(),
    "peephole": cells.PeepholeLSTM(),
    "layer-norm": cells.LayerNormGRU(),
    "indrnn": cells.IndRNN(),
    "reset-before": cells.GRUResetBefore(),
    "mingru": cells.MinGRU(),
}
BACKENDS = {name: ("scan", "parallel") if name == "mingru" else ("auto", "scan") for name in CELLS}
CASES = [
    (name, backend, *options)
    for name in CELLS
    for backend in BACKENDS[name]
    for options in itertools.product((False, True), repeat=2)
]


@pytest.mark.parametrize(("name", "backend", "bidirectional", "ragged"), CASES, ids=str)
def test_a_stack_equals_the_definition(
    name: str, backend: str, bidirectional: bool, ragged: bool
) -> None:
    """Two layers, outputs, final states and all gradients; an empty and a full sequence."""
    cell, random = CELLS[name], np.random.RandomState(0)
    array = lambda *shape: jnp.asarray(random.uniform(-1, 1, shape))  # noqa: E731
    options: Any = dict(num_layers=2, bidirectional=bidirectional, dtype=jnp.float64)
    weights = stack.init(jax.random.key(0), cell, D, H, **options)
    x = array(T, N, D)
    state = tuple(array(len(weights), N, H) for _ in cell.states)
    lengths = jnp.array([T, 0, 3, 5]) if ragged else None
    resets = jnp.asarray(random.rand(T, N) < 0.3) if ragged else None
    if lengths is not None:  # padding reaches nothing
        x = jnp.where((jnp.arange(T)[:, None] < lengths[None])[..., None], x, jnp.nan)

    def fast(weights: Any, x: Any, state: Any) -> Any:
        stack_options = stack.StackOptions(cell, bidirectional=bidirectional, backend=backend)
        return stack.run(stack_options, weights, x, state, None, lengths, resets)

    slow = functools.partial(
        reference.stack, cell, lengths=lengths, resets=resets, bidirectional=bidirectional
    )
    weighting = jnp.cos(jnp.arange(T * N * (1 + bidirectional) * H).reshape(T, N, -1))

    def value_and_gradients(run: Any) -> Any:
        def loss(*arguments: Any) -> Any:
            output, final = run(*arguments)
            return (output * weighting).sum() + sum((s**2).sum() for s in final), (output, final)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(weights, x, state)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10),
        value_and_gradients(fast),
        value_and_gradients(slow),
    )
