"""The product with a given transpose equals the plain product under every transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.backends.step import matmul, matmul_batch_major, matmul_with_transpose, project


def draw(outputs: int, inputs: int, batch: int, *, models: int = 0) -> tuple[jax.Array, jax.Array]:
    random = np.random.RandomState(0)
    lead = (models,) if models else ()
    w, a = random.uniform(-1, 1, (*lead, outputs, inputs)), random.uniform(-1, 1, (inputs, batch))
    return jnp.asarray(w), jnp.asarray(a)


def paired(w: Any, a: Any) -> Any:
    return matmul_with_transpose(w, jnp.swapaxes(w, -1, -2), a)


def close(got: Any, want: Any) -> None:
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-12), got, want)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("outputs", "inputs"), [(8, 2), (2, 8)])
def test_values_and_derivatives_equal_the_plain_product(
    outputs: int, inputs: int, batch: int
) -> None:
    w, a = draw(outputs, inputs, batch)
    dw, da = jnp.sin(w), jnp.cos(a)

    def results(f: Any) -> Any:
        def loss(w: Any, a: Any) -> Any:
            return (f(w, a) ** 3).sum()

        twice = jax.grad(lambda w, a: sum((g**2).sum() for g in jax.grad(loss, (0, 1))(w, a)))
        return (
            f(w, a),
            jax.jvp(f, (w, a), (dw, da)),
            jax.jvp(lambda w: f(w, a), (w,), (dw,)),
            jax.grad(loss, (0, 1))(w, a),
            twice(w, a),
            jax.jacfwd(jax.grad(loss, 1), 1)(w, a),
        )

    run = jax.jit(results, static_argnums=0)
    close(run(paired), run(matmul))


@pytest.mark.parametrize("axes", [(None, 0), (None, 1), (0, None), (0, 1)], ids=str)
def test_vmap_over_batches_and_weights(axes: tuple[int | None, int | None]) -> None:
    w, a = draw(6, 4, 3, models=0 if axes[0] is None else 5)
    if axes[1] is not None:
        a = jnp.stack([a * k for k in range(1, 6)], axis=axes[1])

    def results(f: Any) -> Any:
        mapped = jax.vmap(f, axes)
        pulled = jax.vmap(jax.grad(lambda w, a: (f(w, a) ** 2).sum(), (0, 1)), axes)
        pushed = jax.grad(lambda w, a: (mapped(w, a) ** 2).sum(), (0, 1))
        return mapped(w, a), pulled(w, a), pushed(w, a)

    run = jax.jit(results, static_argnums=0)
    close(run(paired), run(matmul))


def test_sums_are_at_least_float32() -> None:
    w, a = (v.astype(jnp.bfloat16) for v in draw(3, 2, 4))
    out, pullback = jax.vjp(lambda a: paired(w, a), a)
    (da,) = pullback(jnp.ones_like(out))
    assert out.dtype == matmul(w, a).dtype == jnp.float32
    assert da.dtype == jnp.bfloat16


def test_batch_major_and_feature_major_products_agree() -> None:
    w, a = draw(3, 2, 4)
    x = jnp.stack([a.T, 2 * a.T])  # (K, N, D)
    close(matmul_batch_major(w, x), project(x, w).swapaxes(1, 2))
    close(matmul_batch_major(w, x)[1], matmul(w, 2 * a))
    assert matmul(None, a) is None
    assert matmul_batch_major(w, None) is None
