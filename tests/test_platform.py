"""The scan tuned for a GPU: the same values, and few kernels a step.

Traced on the CPU under `traced_for`. `bench.launches` counts the kernels; here their operations are
counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import jaxprs_in_params

from jaxrnn import cells
from jaxrnn.backends import platform
from jaxrnn.core import stack
from jaxrnn.core.unroll import StepMasks, Weights, unroll

T, N, D, H = 10, 3, 4, 5
CELLS = {"rnn": cells.Elman(), "lstm": cells.LSTM(), "gru": cells.GRU()}


def case(name: str, features: int = D, proj_size: int = 0) -> tuple[Any, Weights, jax.Array]:
    (weights,) = stack.init(
        jax.random.key(0),
        CELLS[name],
        features,
        H,
        proj_size=proj_size,
        dtype=jnp.float64,
    )
    return CELLS[name], weights, jax.random.normal(jax.random.key(1), (T, N, features))


@pytest.fixture
def on_a_gpu() -> Iterator[None]:
    with platform.traced_for("gpu"):
        yield


def loops(jaxpr: Any) -> list[Any]:
    """Return the `scan` equations, nested ones included."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            found.append(eqn)
        for inner in jaxprs_in_params(eqn.params):
            found += loops(inner)
    return found


def count(jaxpr: Any, name: str) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        total += eqn.primitive.name == name
        total += sum(count(inner, name) for inner in jaxprs_in_params(eqn.params))
    return total


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("rnn", "plain"), ("lstm", "reverse and masked"), ("gru", "reverse and masked")),
        *(("lstm", "one feature"), ("gru", "one feature"), ("lstm", "remat")),
    ],
)
def test_values_equal_those_of_a_cpu(name: str, kind: str) -> None:
    cell, weights, x = case(name, 1 if kind == "one feature" else D)
    rng = np.random.default_rng(0)
    masks = StepMasks()
    if "masked" in kind:
        masks = StepMasks(
            jnp.asarray(rng.random((T, N)) < 0.2), jnp.asarray(rng.random((T, N)) < 0.8)
        )

    def run(weights: Weights, x: jax.Array) -> Any:
        y, last = unroll(
            cell,
            weights,
            x,
            reverse="reverse" in kind,
            masks=masks,
            remat=kind == "remat",
            block_length=9 if "masked" in kind else None,
            backend="scan",
        )
        return (y * jnp.arange(H)[None, None]).sum() + sum(map(jnp.sum, last)), (y, last)

    def derivative(name: str) -> Any:
        with platform.traced_for(name):
            f = jax.value_and_grad(lambda w, x: run(w, x), (0, 1), has_aux=True)
            return jax.jit(f)(weights, x)

    expected, found = (derivative(p) for p in ("cpu", "gpu"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-12), found, expected)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("on_a_gpu")
def test_a_step_has_one_product_and_an_iteration_eight_steps(name: str) -> None:
    """Each loop has one product a step and none for the input, over all steps at once."""
    cell, weights, x = case(name)
    x = jnp.zeros((24, N, D))
    gradient = jax.grad(lambda w: unroll(cell, w, x, backend="scan")[0].sum())
    products = {
        eqn: sum(
            count(eqn.params["jaxpr"].jaxpr, name)
            for name in ("dot_general", "matmul_with_transpose")
        )
        for eqn in loops(jax.make_jaxpr(gradient)(weights).jaxpr)
    }
    found = [eqn for eqn, inside in products.items() if inside]
    assert [products[eqn] for eqn in found] == [1, 1]
    assert [eqn.params["length"] for eqn in found] == [24, 24]
    assert [eqn.params["unroll"] for eqn in found] == [8, 8]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.usefixtures("on_a_gpu")
def test_no_gate_is_stored_at_each_step(name: str) -> None:
    """A stored array costs one kernel an iteration: only the states are stored."""
    cell, weights, x = case(name)
    run = lambda w: unroll(cell, w, x, backend="scan")[0]  # noqa: E731
    forward, *_ = loops(jax.make_jaxpr(lambda w: jax.vjp(run, w)[0])(weights).jaxpr)
    each = forward.params["jaxpr"].jaxpr.outvars
    pairs = zip(forward.outvars, each, strict=True)
    stored = [of_all for of_all, of_one in pairs if of_all.aval.shape != of_one.aval.shape]
    assert len(stored) == len(cell.states)


def test_a_cpu_does_not_unroll() -> None:
    cell, weights, x = case("lstm")
    jaxpr = jax.make_jaxpr(lambda w: unroll(cell, w, x, backend="scan")[0])(weights).jaxpr
    assert {eqn.params["unroll"] for eqn in loops(jaxpr)} == {1}
    assert platform.tuning(platform.current_platform()) == platform.CPU


def test_a_program_with_symbolic_length_exports_for_a_gpu() -> None:
    cell, weights, _ = case("lstm")
    (steps,) = export.symbolic_shape("T")
    x = jax.ShapeDtypeStruct((steps, N, D), weights.weight_ih.dtype)
    with platform.traced_for("gpu"):
        assert platform.tuning(platform.current_platform()) == platform.GPU
        run = jax.jit(lambda w, x: unroll(cell, w, x, backend="scan")[0])
        exported = export.export(run, platforms=["cuda"])(weights, x)
    assert exported.platforms == ("cuda",)
    assert platform.tuning(platform.current_platform()) == platform.CPU
