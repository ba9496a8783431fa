"""Products with weights, and one that brings its own transpose.

Weights are (S, D): S outputs, D inputs. Rows (the batch) are the last axis of what goes on inside
a step, so that a gate is a contiguous slab and each weight is read along its rows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.interpreters import ad

from jaxrnn.backends.operations import ruled
from jaxrnn.cells.base import compute_dtype


def product(w: Any, a: Any) -> Any:
    """``w @ a`` (S, N) for w (S, D) and a (D, N), in the wide dtype; None if either is None."""
    return None if w is None or a is None else _dot(w, a, 0)


def product_of_rows(w: Any, x: Any) -> Any:
    """``w @ x.T`` (..., S, N) for w (S, D) and x (N, D) or (K, N, D); None if either is None."""
    if w is None or x is None:
        return None
    z = _dot(w, x, x.ndim - 1)
    return z if x.ndim == 2 else z.swapaxes(0, 1)


def rows_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w.T`` (..., S) for x (..., D) and w (S, D), in the wide dtype."""
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, w, contract, preferred_element_type=compute_dtype(x.dtype))


def _dot(w: jax.Array, a: jax.Array, axis: int) -> jax.Array:
    contract = (((1,), (axis,)), ((), ()))
    return lax.dot_general(w, a, contract, preferred_element_type=compute_dtype(a.dtype))


def paired_product(w: jax.Array, wt: jax.Array, a: jax.Array) -> jax.Array:
    """``w @ a`` whose transpose is ``wt @ ct``, for w (S, D), wt = w.T and a (D, N).

    The value and all derivatives are those of ``product(w, a)``; `wt` has none of its own. Written
    as ``w.T @ ct``, the transpose would read `w` across its rows at every step of a loop, and XLA
    on a CPU is then two to thirteen times as slow; a transpose that is handed in is made once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.backends.products import paired_product
        >>> w = jnp.array([[1.0, 2.0]])
        >>> jax.grad(lambda a: paired_product(w, w.T, a).sum())(jnp.ones((2, 3)))[:, 0].tolist()
        [1.0, 2.0]
    """
    return _paired_p.bind(w, wt, a)


def _value(w: jax.Array, wt: jax.Array, a: jax.Array) -> jax.Array:
    if a.shape[1] == 1 and w.shape[0] < w.shape[1]:
        # A single row is the exception: few long dot products are slower than many sums.
        contract = (((0,), (0,)), ((), ()))
        return lax.dot_general(wt, a, contract, preferred_element_type=compute_dtype(a.dtype))
    return _dot(w, a, 0)


def _aval(w: Any, wt: Any, a: Any) -> Any:
    del wt
    return ShapedArray((w.shape[0], a.shape[1]), compute_dtype(a.dtype))


def _jvp(primals: Any, tangents: Any) -> Any:
    w, wt, a = primals
    dw, _, da = tangents
    out = paired_product(w, wt, a)
    terms = [] if isinstance(dw, ad.Zero) else [_dot(dw, a, 0)]
    if not isinstance(da, ad.Zero):
        terms.append(paired_product(w, wt, da))
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


def _transpose(ct: Any, w: Any, wt: Any, a: Any) -> Any:
    if isinstance(ct, ad.Zero):
        return None, None, ad.Zero(a.aval)
    da = paired_product(wt, w, ct.astype(w.dtype))
    return None, None, da.astype(a.aval.dtype)


def _batch(args: Any, axes: Any) -> Any:
    w, wt, a = args
    if axes[0] is None and axes[1] is None:  # the same weights for all: more rows
        size = a.shape[axes[2]]
        a = jnp.moveaxis(a, axes[2], -1)
        out = paired_product(w, wt, a.reshape(a.shape[0], -1))
        return out.reshape(out.shape[0], -1, size), 2
    return jax.vmap(_value, in_axes=tuple(axes))(w, wt, a), 0


_paired_p = ruled("paired_product", _value, _aval, jvp=_jvp, transpose=_transpose, batch=_batch)
