"""The derivative that is made of a cell's graph: JAX's own, and what is saved for it."""

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
    """Whose state is divided by in its derivative; an exponential, a maximum, a comparison."""

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
    """Not to be traced on two units."""

    gates = ("a",)

    def step(self, z: Any, state: Any) -> Any:
        groups = z.reshape(-1, 3, z.shape[1])
        return (jnp.tanh(groups - groups.mean(1, keepdims=True)).reshape(z.shape),)


@pytest.mark.parametrize(
    ("cell", "saved"),
    [
        (PlainLSTM(), 4),  # the gates; tanh(c) is computed again
        (PlainGRU(), 4),  # the gates, and what the reset gate is multiplied with; not six inputs
        (cells.CoupledLSTM(), 3),
        (cells.PeepholeLSTM(), 4),
        (cells.IndRNN("tanh"), 0),  # all that is needed is the state after the step
        (cells.IndRNN(), 1),  # relu has a derivative of its own
        (Reversed(), 1),
        (Root(), 2),
    ],
    ids=str,
)
def test_what_is_saved(cell: cells.Cell, saved: int) -> None:
    assert sum(cell_graphs(cell, jnp.dtype("float32")).residual_counts) == saved


@pytest.mark.parametrize(
    "cell", [PlainLSTM(), PlainGRU(), cells.PeepholeLSTM(), Root(), Reversed()], ids=str
)
def test_first_and_second_derivatives_are_those_of_jax(cell: cells.Cell) -> None:
    """By all arguments of the step; whatever is saved, and rounded to nothing in between."""
    random = np.random.RandomState(0)
    array = lambda *s: jnp.asarray(random.uniform(-1, 1, s))  # noqa: E731
    gates = array(len(cell.gates) * H, N)
    z = (gates, array(*gates.shape)) if cell.split else gates
    old = tuple(array(H, N) for _ in cell.states)
    shapes = cell.cell_parameter_shapes(cells.Sizes(1, H, H))
    own = ({n: array(*s, 1) for n, s in shapes.items()},) if shapes else ()
    primals = (z, old, *own)
    along, further = (jax.tree.map(lambda a: array(*a.shape), primals) for _ in range(2))
    made = derivative_rule(cell)

    def by_rule(z: Any, old: Any, *own: Any) -> Any:
        new, saved = made.save(z, old, *own)
        dz, dold, *down = along
        coefficients = made.linearize(saved, old, new, *own)
        return new, made.tangent(coefficients, dz, dold, *own, *down)

    by_jax = lambda *primals: jax.jvp(cell.step, primals, along)  # noqa: E731
    got, want = (jax.jvp(f, primals, further) for f in (by_rule, by_jax))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), got, want)


def test_steps_that_are_not_a_row_s_own_give_no_nan() -> None:
    """Where the state stays zero, and a derivative would be divided by it."""
    weights = Weights(jnp.ones((2 * H, 1)), jnp.ones((2 * H, H)) / H)
    valid = jnp.array([[True, False]] * 4)

    def loss(weights: Any) -> jax.Array:
        return unroll(Root(), weights, jnp.ones((4, N, 1)), masks=StepMasks(None, valid))[0].sum()

    for slope in (jax.grad(loss), lambda w: jax.jvp(jax.grad(loss), (w,), (w,))[1]):
        found = jax.tree.leaves(jax.jit(slope)(weights))
        assert all(np.isfinite(a).all() for a in found)
        assert any(np.abs(a).max() > 0.01 for a in found)


def test_a_step_that_wants_more_units_is_run_by_its_own_derivative() -> None:
    with pytest.raises(NotElementwise, match="cannot be traced for 2 units"):
        cell_graphs(Grouped(), jnp.dtype("float32"))
    assert derivative_rule(Grouped()).save.__func__ is cells.Cell.save
    weights = Weights(jnp.ones((H, 1)), jnp.eye(H))
    y, _ = unroll(Grouped(), weights, jnp.ones((2, N, 1)))
    np.testing.assert_allclose(y, 0, atol=1e-12)


@dataclasses.dataclass(frozen=True)
class Of(cells.Cell):
    """Whose step is a function of its gate input."""

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
def test_what_a_vector_of_real_numbers_would_get_wrong_is_not_run_so(
    function: Any, words: str
) -> None:
    with pytest.raises(NotElementwise, match=f"{words} has no vector form"):
        cell_graphs(Of(function), jnp.dtype("float32"))
    assert derivative_rule(Of(function)).save.__func__ is cells.Cell.save


def test_a_parameter_that_is_not_one_of_each_unit() -> None:
    @dataclasses.dataclass(frozen=True)
    class Scaled(cells.Cell):
        gates, parameters = ("a",), {"scale": (1,)}

        def step(self, z: Any, state: Any, params: Any) -> Any:
            return (sigmoid(z * params["scale"]),)

    with pytest.raises(NotElementwise, match=r"scale \(1,\) is not a vector of a multiple of H"):
        cell_graphs(Scaled(), jnp.dtype("float32"))
