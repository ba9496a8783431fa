"""The recurrence against its definition: cells, blocks, directions, masks, rematerialisation."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import sigmoid

from jaxrnn import cells, reference
from jaxrnn.backends.scan import block_length, scan_blocks
from jaxrnn.backends.step import advance, input_pre_activations
from jaxrnn.core import stack
from jaxrnn.core.unroll import StepMasks, Weights, unroll

T, N, D, H = 5, 2, 3, 4


@dataclasses.dataclass(frozen=True)
class PlainLSTM(cells.Cell):
    """An LSTM as a user writes it, without a derivative."""

    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    def step(self, z: Any, state: Any) -> Any:
        i, f, g, o = self.split_gates(z)
        c = sigmoid(f) * state[1] + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c


@dataclasses.dataclass(frozen=True)
class PlainGRU(cells.Cell):
    """A GRU as a user writes it, with `split`."""

    gates = ("r", "z", "n")
    split = True

    def step(self, z: Any, state: Any) -> Any:
        (xr, xz, xn), (hr, hz, hn) = map(self.split_gates, z)
        n = jnp.tanh(xn + sigmoid(xr + hr) * hn)
        return (n + sigmoid(xz + hz) * (state[0] - n),)


CELLS = [cells.Elman(), cells.Elman("relu"), cells.LSTM(), cells.GRU(), PlainLSTM(), PlainGRU()]


def draw(cell: cells.Cell, *, proj: int = 0, bias: bool = True, seed: int = 0) -> Any:
    random = np.random.RandomState(seed)
    array = lambda *s: jnp.asarray(random.uniform(-1, 1, s))  # noqa: E731
    shapes = stack.param_shapes(cell, D, H, bias=bias, proj_size=proj)
    named: dict[str, Any] = {name: array(*shape) for name, shape in shapes.items()}
    weights = Weights(**named)
    state = (array(N, proj or H), array(N, H))[: len(cell.states)]
    masks = StepMasks(jnp.asarray(random.rand(T, N) < 0.3), jnp.asarray(random.rand(T, N) < 0.7))
    return weights, array(T, N, D), state, masks, array(T, N, proj or H)


def results_and_grads(run: Any, cotangent: Any) -> Any:
    """A function of weights, x and state to what `run` gives, and the gradients of a loss."""

    def loss(weights: Any, x: Any, state: Any) -> Any:
        hs, last = run(weights, x, state)
        return (hs * cotangent).sum() + sum((s**2).sum() for s in last), (hs, last)

    def both(*args: Any) -> Any:
        (_, results), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*args)
        return results, grads

    return both


@functools.lru_cache
def expected(
    cell: cells.Cell, reverse: bool, *, masked: bool = True, proj: int = 0, bias: bool = True
) -> Any:
    """Return the results and gradients of the definition for what `draw` returns."""
    weights, x, state, masks, cotangent = draw(cell, proj=proj, bias=bias)
    masks = masks if masked else StepMasks()

    def run(weights: Any, x: Any, state: Any) -> Any:
        options: Any = dict(
            reset_mask=masks.reset_mask, valid_mask=masks.valid_mask, reverse=reverse
        )
        output, _, final = reference.unroll(cell, weights, x, state, **options)
        return output, final

    return results_and_grads(run, cotangent)(weights, x, state)


def close(got: Any, want: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, want)


SAME = {PlainLSTM(): cells.LSTM(), PlainGRU(): cells.GRU()}
"""Cells with the equations of another, whose definition is run once for both."""


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("remat", [False, True], ids=["residuals", "remat"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_values_and_gradients_equal_the_definition(
    cell: cells.Cell, reverse: bool, remat: bool, masked: bool
) -> None:
    """Blocks of two, the last of one; resets and padding at any step."""
    weights, x, state, masks, cotangent = draw(cell)
    masks = masks if masked else StepMasks()
    run = functools.partial(unroll, cell, masks=masks, reverse=reverse, remat=remat, block_length=2)
    both = results_and_grads(run, cotangent)
    # The forward pass alone saves no residuals and is another program.
    (results, grads), alone = jax.jit(lambda *a: (both(*a), run(*a)))(weights, x, state)
    want = expected(SAME.get(cell, cell), reverse, masked=masked)
    close((results, grads), want)
    close(alone, want[0])


@pytest.mark.parametrize("remat", [False, True], ids=["residuals", "remat"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU(), PlainLSTM()], ids=repr)
def test_projection_equals_the_definition(cell: cells.Cell, reverse: bool, remat: bool) -> None:
    weights, x, state, masks, cotangent = draw(cell, proj=2, bias=False)
    if isinstance(cell, cells.GRU):  # its step mixes h with the gates: no projection fits
        with pytest.raises(TypeError):
            jax.eval_shape(lambda: unroll(cell, weights, x, state))
        return
    run = functools.partial(unroll, cell, masks=masks, reverse=reverse, remat=remat, block_length=2)
    got = jax.jit(results_and_grads(run, cotangent))(weights, x, state)
    close(got, expected(SAME.get(cell, cell), reverse, proj=2, bias=False))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    ("cell", "proj"),
    [(cells.LSTM(), 0), (cells.LSTM(), 2), (cells.GRU(), 0), (PlainLSTM(), 2)],
    ids=repr,
)
def test_residuals_that_exceed_the_budget_are_recomputed(
    cell: cells.Cell, proj: int, reverse: bool
) -> None:
    weights, x, state, masks, cotangent = draw(cell, proj=proj)
    options = dict(masks=masks, reverse=reverse, block_length=2, residual_bytes=0)
    run = functools.partial(unroll, cell, **options)
    got = jax.jit(results_and_grads(run, cotangent))(weights, x, state)
    close(got, expected(SAME.get(cell, cell), reverse, proj=proj))


@pytest.mark.parametrize("block", [1, 2, 3, 5, 100, None])
def test_the_block_length_changes_no_value(block: int | None) -> None:
    weights, x, state, _, _ = draw(cells.LSTM())
    run = jax.jit(functools.partial(unroll, cells.LSTM(), block_length=block))
    close(run(weights, x, state), expected(cells.LSTM(), False, masked=False)[0])


def test_an_empty_batch_gives_empty_results() -> None:
    weights, _, _, _, _ = draw(cells.GRU())
    grads = jax.grad(lambda w: unroll(cells.GRU(), w, jnp.zeros((T, 0, D)))[0].sum())(weights)
    output, (h_n,) = unroll(cells.GRU(), weights, jnp.zeros((T, 0, D)))
    assert output.shape == (T, 0, H)
    assert h_n.shape == (0, H)
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_one_step_is_the_recurrence_of_one_step() -> None:
    weights, x, state, _, _ = draw(cells.LSTM())
    rows_last = tuple(s.T for s in state)
    new, m, _ = advance(
        cells.LSTM(), weights, input_pre_activations(cells.LSTM(), weights, x[0]), rows_last
    )
    hs, last = unroll(cells.LSTM(), weights, x[:1], state)
    close((*(s.T for s in new), m.T), (*last, hs[0]))


def test_the_weight_gradient_is_one_product_a_block() -> None:
    """No product with the size of the weights is inside the loop over the steps of a block."""
    cell = cells.LSTM()
    weights, x, state, _, _ = draw(cell)
    f = jax.grad(lambda w: unroll(cell, w, x, state, block_length=T, backend="scan")[0].sum())
    jaxpr = jax.make_jaxpr(f)(weights)
    inner = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
    shapes = [
        out.aval.shape
        for eqn in inner
        for step in eqn.params["jaxpr"].jaxpr.eqns
        if step.primitive.name == "dot_general"
        for out in step.outvars
    ]
    assert shapes
    assert all(shape[1] == N for shape in shapes), shapes


def test_rematerialisation_saves_memory() -> None:
    """The compiled gradient needs less temporary memory, and more so the longer the sequence."""
    cell = cells.LSTM()
    weights, _, _, _, _ = draw(cell)

    def temporary(remat: bool) -> int:
        f = lambda w, x: unroll(cell, w, x, remat=remat, block_length=10)[0].sum()  # noqa: E731
        shape = jax.ShapeDtypeStruct((1000, 16, D), jnp.float64)
        compiled = jax.jit(jax.grad(f)).lower(weights, shape).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary(True) < 0.5 * temporary(False)


def test_the_size_of_the_compiled_gradient_does_not_depend_on_the_length() -> None:
    weights, _, _, _, _ = draw(cells.GRU())

    def lines(steps: int) -> int:
        f = jax.grad(lambda w, x: unroll(cells.GRU(), w, x)[0].sum())
        shape = jax.ShapeDtypeStruct((steps, 64, D), jnp.float64)
        return len(jax.jit(f).lower(weights, shape).as_text().splitlines())

    assert lines(1000) == lines(10_000)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 10])
def test_blocks_pass_every_step_once_in_order(length: int, reverse: bool) -> None:
    def body(carry: Any, steps: Any, index: Any) -> Any:
        return carry * 31 + steps.sum(), steps + index, carry

    carry, out, values = scan_blocks(
        body, jnp.float64(1), jnp.arange(10.0), jnp.arange(10.0), length=length, reverse=reverse
    )
    pieces = [np.arange(10.0)[i : i + length] for i in range(0, 10, length)]
    want, starts = 1.0, {}
    order = list(enumerate(pieces))
    for index, piece in reversed(order) if reverse else order:
        starts[index] = want
        want = want * 31 + piece.sum()
    np.testing.assert_allclose(carry, want)
    np.testing.assert_allclose(out, np.concatenate([p + i for i, p in order]))
    np.testing.assert_allclose(values, [starts[i] for i, _ in order])


@pytest.mark.parametrize("steps", [1, 5, 25, 32, 97, 100, 500, 4096])
@pytest.mark.parametrize("batch", [0, 1, 16, 64, 1000])
def test_block_lengths_are_possible(steps: int, batch: int) -> None:
    assert 1 <= block_length(steps, batch) <= steps
