"""Rows that are moved: the values and all derivatives of JAX's own gather."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.packing.gather import gather

THERE, BACK = np.array([3, 0, 5, 5, 1]), np.array([1, 4, 5, 0, 5])  # of 5 rows, and into 5
X = jnp.sin(jnp.arange(30.0)).reshape(5, 3, 2)


def ours(x: Any) -> jax.Array:
    return gather(x, THERE, BACK)


def plain(x: jax.Array) -> jax.Array:
    return x.at[THERE].get(mode="fill", fill_value=0)


def cubes(function: Any) -> Any:
    """A scalar of the rows that were moved, in which each element counts otherwise."""

    def total(x: jax.Array) -> jax.Array:
        y = function(x)
        return (jnp.arange(1.0, y.size + 1).reshape(y.shape) * y**3).sum()

    return total


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int64", "uint8", "bool"])
def test_rows_are_moved_in_any_dtype_on_the_host_and_on_the_device(dtype: str) -> None:
    x = (10 * X).astype(dtype)
    for made in (ours(x), ours(np.asarray(x)), jax.jit(ours)(x)):
        assert isinstance(made, jax.Array)
        assert made.dtype == dtype
        np.testing.assert_array_equal(made, plain(x))


@pytest.mark.parametrize(
    "transform",
    [
        jax.grad,
        jax.hessian,
        lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),)),
        lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jnp.cos(x),)),
        lambda f: jax.vmap(f, 1),
        lambda f: jax.vmap(jax.grad(f), 2, 1),
        lambda f: jax.grad(jax.checkpoint(f)),
    ],
    ids=["grad", "hessian", "jvp", "jvp-of-grad", "vmap", "vmap-of-grad", "checkpoint"],
)
def test_every_transformation_is_that_of_a_gather(transform: Any) -> None:
    both = jax.jit(lambda x: tuple(transform(cubes(f))(x) for f in (ours, plain)))
    got, expected = both(X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, expected)


def test_the_gradient_is_a_gather_too() -> None:
    """Adding into the rows that were read takes up to twenty times as long."""
    text = str(jax.make_jaxpr(jax.grad(cubes(ours)))(X))
    assert text.count("gather_rows") == 2
    assert "scatter" not in text
