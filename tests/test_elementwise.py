"""Graphs of elementwise steps: their derivatives equal JAX's, with few residuals."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import sigmoid

from jaxrnn import cells
from jaxrnn.backends.elementwise.lower import cell_graphs
from jaxrnn.backends.elementwise.residuals import derivative_rule
from jaxrnn.backends.elementwise.trace import NotElementwise
from jaxrnn.core.unroll import StepMasks, Weights, unroll
from tests.test_recurrence import PlainGRU, PlainLSTM

H, N = 3, 2


@dataclasses.dataclass(frozen=True)
class Root(cells.Cell):
    """A derivative that divides by a state; exponential, maximum and comparison."""

    gates, states = ("a", "b"), ("h", "s")

    def step(self, z: Any, state: Any) -> Any:
        (h, s), (a, b) = state, self.split_gates(z)
        h = jnp.sqrt(1.3 + a * a + jnp.tanh(h))
        return h, jnp.maximum(s / (1 + jnp.exp(-b)), jnp.where(b > h, 0.1, -0.2))


@jax.custom_jvp
def reversed_gradient(x: Any) -> Any:
    return x


@reversed_gradient.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return reversed_gradient(primals[0]), -tangents[0]


@dataclasses.dataclass(frozen=True)
class Reversed(cells.Cell):
    gates = ("a",)

    def step(self, z: Any, state: Any) -> Any:
        return (jnp.tanh(reversed_gradient(z) + state[0]),)


@dataclasses.dataclass(frozen=True)
class Grouped(cells.Cell):
    """A step that cannot be traced for two units."""

    gates = ("a",)

    def step(self, z: Any, state: Any) -> Any:
        groups = z.reshape(-1, 3, z.shape[1])
        return (jnp.tanh(groups - groups.mean(1, keepdims=True)).reshape(z.shape),)


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        (PlainLSTM(), 4),  # the gates; tanh(c) is recomputed
        (PlainGRU(), 4),  # the gates and the operand of the reset gate, not six pre-activations
        (cells.CoupledLSTM(), 3),
        (cells.PeepholeLSTM(), 4),
        (cells.IndRNN("tanh"), 0),  # the new state suffices
        (cells.IndRNN(), 1),  # relu has a custom derivative
        (Reversed(), 1),
        (Root(), 2),
    ],
    ids=str,
)
def test_residual_counts(cell: cells.Cell, count: int) -> None:
    assert sum(cell_graphs(cell, jnp.dtype("float32")).residual_counts) == count


@pytest.mark.parametrize(
    "cell", [PlainLSTM(), PlainGRU(), cells.PeepholeLSTM(), Root(), Reversed()], ids=str
)
def test_first_and_second_derivatives_equal_jax(cell: cells.Cell) -> None:
    """With respect to all arguments of the step, in double precision."""
    random = np.random.RandomState(0)
    array = lambda *s: jnp.asarray(random.uniform(-1, 1, s))  # noqa: E731
    gates = array(len(cell.gates) * H, N)
    z = (gates, array(*gates.shape)) if cell.split else gates
    old = tuple(array(H, N) for _ in cell.states)
    shapes = cell.cell_parameter_shapes(cells.Sizes(1, H, H))
    params = ({n: array(*s, 1) for n, s in shapes.items()},) if shapes else ()
    primals = (z, old, *params)
    along, further = (jax.tree.map(lambda a: array(*a.shape), primals) for _ in range(2))
    rule = derivative_rule(cell)

    def by_rule(z: Any, old: Any, *params: Any) -> Any:
        new, saved = rule.save(z, old, *params)
        dz, dold, *down = along
        coefficients = rule.linearize(saved, old, new, *params)
        return new, rule.tangent(coefficients, dz, dold, *params, *down)

    by_jax = lambda *primals: jax.jvp(cell.step, primals, along)  # noqa: E731
    got, want = (jax.jvp(f, primals, further) for f in (by_rule, by_jax))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), got, want)


def test_padding_gives_no_nan() -> None:
    """The state at padding is zero, and the derivative divides by the state."""
    weights = Weights(jnp.ones((2 * H, 1)), jnp.ones((2 * H, H)) / H)
    valid = jnp.array([[True, False]] * 4)

    def loss(weights: Any) -> jax.Array:
        return unroll(Root(), weights, jnp.ones((4, N, 1)), masks=StepMasks(None, valid))[0].sum()

    for slope in (jax.grad(loss), lambda w: jax.jvp(jax.grad(loss), (w,), (w,))[1]):
        found = jax.tree.leaves(jax.jit(slope)(weights))
        assert all(np.isfinite(a).all() for a in found)
        assert any(np.abs(a).max() > 0.01 for a in found)


def test_a_step_that_cannot_be_traced_has_the_default_rule() -> None:
    with pytest.raises(NotElementwise, match="cannot be traced for 2 units"):
        cell_graphs(Grouped(), jnp.dtype("float32"))
    assert derivative_rule(Grouped()).save.__func__ is cells.Cell.save
    weights = Weights(jnp.ones((H, 1)), jnp.eye(H))
    y, _ = unroll(Grouped(), weights, jnp.ones((2, N, 1)))
    np.testing.assert_allclose(y, 0, atol=1e-12)


@dataclasses.dataclass(frozen=True)
class WithFunction(cells.Cell):
    """A step with a given function of its pre-activation."""

    function: Any
    gates = ("a",)

    def step(self, z: Any, state: Any) -> Any:
        return (jnp.tanh(self.function(z) + state[0]),)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda z: (4 * z).astype(jnp.int32).astype(z.dtype), "float32 as int32"),
        (lambda z: z.astype(jnp.float16).astype(z.dtype), "float32 as float16"),
        (lambda z: ((z > 0).astype(jnp.uint8) - (z > 1).astype(jnp.uint8)) * z, "sub of uint8"),
        (lambda z: jnp.where((z > 0) == (z > 1), z, 0), "eq of bool"),
    ],
    ids=["truncated", "rounded", "wrapped", "conditions"],
)
def test_conversions_without_a_vector_form(function: Any, words: str) -> None:
    with pytest.raises(NotElementwise, match=f"{words} has no vector form"):
        cell_graphs(WithFunction(function), jnp.dtype("float32"))
    assert derivative_rule(WithFunction(function)).save.__func__ is cells.Cell.save


def test_a_parameter_that_is_not_elementwise() -> None:
    @dataclasses.dataclass(frozen=True)
    class Scaled(cells.Cell):
        gates, parameters = ("a",), {"scale": (1,)}

        def step(self, z: Any, state: Any, params: Any) -> Any:
            return (sigmoid(z * params["scale"]),)

    with pytest.raises(NotElementwise, match=r"scale \(1,\) is not a vector of a multiple of H"):
        cell_graphs(Scaled(), jnp.dtype("float32"))
