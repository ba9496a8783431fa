"""Operations of JAX that are defined by what they compute, and run by a kernel where there is one.

An operation is a primitive with a reference, a function of JAX: that is what runs where there is no
kernel, and what is differentiated, batched or transposed where more than a kernel is asked for. A
smaller one, `ruled`, has no kernel, but rules of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn.backends import sharding as devices


def kind(shape: tuple[int, ...], like: Any) -> jax.ShapeDtypeStruct:
    """A result of a shape, and of another array's dtype."""
    return jax.ShapeDtypeStruct(shape, like.dtype)


Kinds = list[jax.ShapeDtypeStruct]


def operation(
    name: str,
    reference: Callable[..., list[jax.Array]],
    kinds: Callable[..., Kinds],
    shared: Callable[..., set[int] | None],
    kernel: Mapping[str, Callable[..., Any]],
    sums: Callable[..., set[int]] = lambda **_: set(),
    portable: Callable[[str], bool] = lambda platform: False,
) -> Primitive:
    """A primitive that computes what a function does, with kernels where there are some.

    Args:
        name: of the primitive.
        reference: what it computes.
        kinds: shapes and dtypes of the results.
        shared: which operands have no rows; where these are one for all, `jax.vmap` makes a larger
            batch of the others. None if no other batch can be made of one.
        kernel: what to call in its place, by platform; it gives None where it can't serve.
        sums: which results have no rows either, but are sums over them.
        portable: whether the kernel of a platform may be part of a program to export.
    """
    p = Primitive(name)
    p.multiple_results = True

    @functools.cache
    def compiled(parameters: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(lambda *operands: p.bind(*operands, **dict(parameters)))

    def avals(*operands: Any, **parameters: Any) -> list[ShapedArray]:
        return [ShapedArray(k.shape, k.dtype) for k in kinds(operands, **parameters)]

    def jvp(primals: Any, tangents: Any, **parameters: Any) -> Any:
        moved = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

        def of_moved(*some: jax.Array) -> list[jax.Array]:
            operands = list(primals)
            for i, operand in zip(moved, some, strict=True):
                operands[i] = operand
            return reference(*operands, **parameters)

        return jax.jvp(of_moved, [primals[i] for i in moved], [tangents[i] for i in moved])

    def batch(operands: Any, axes: Any, **parameters: Any) -> Any:
        alike = shared(**parameters)
        if alike is None or sums(**parameters) or any(axes[i] is not None for i in alike):
            each = functools.partial(reference, **parameters)
            out = jax.vmap(each, in_axes=tuple(axes))(*operands)
            return out, [0] * len(out)
        size = next(o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)
        rows = [
            o if i in alike else _more_rows(o, a, size)
            for i, (o, a) in enumerate(zip(operands, axes, strict=True))
        ]
        out = p.bind(*rows, **parameters)
        where = [_row_axis(o) for o in out]
        apart = [
            o.reshape(*o.shape[:a], size, -1, *o.shape[a + 1 :])
            for o, a in zip(out, where, strict=True)
        ]
        return apart, where

    p.def_impl(lambda *operands, **parameters: compiled(tuple(parameters.items()))(*operands))
    p.def_abstract_eval(avals)
    ad.primitive_jvps[p] = jvp
    batching.primitive_batchers[p] = batch

    def run(platform: str, *operands: jax.Array, **parameters: Any) -> Any:
        out = kernel[platform](*operands, **parameters)
        return reference(*operands, **parameters) if out is None else out

    def lower(
        platform: str, context: Any, *operands: Any, mesh: Any = None, **parameters: Any
    ) -> Any:
        same, added = shared(**parameters), sums(**parameters)
        rows = [None if i in (same or ()) else _row_axis(a) for i, a in enumerate(context.avals_in)]
        out = [None if i in added else _row_axis(a) for i, a in enumerate(context.avals_out)]
        chosen = None
        if portable(platform) or not _to_export(context):
            told = functools.partial(run, platform, **parameters)
            mesh = None if same is None else mesh
            chosen = _possible(context, platform, told, mesh, rows, out)
        if chosen is None:
            chosen = functools.partial(reference, **parameters)
        return mlir.lower_fun(chosen, multiple_results=True)(context, *operands)

    mlir.register_lowering(p, mlir.lower_fun(reference, multiple_results=True))
    for platform in kernel:
        mlir.register_lowering(p, functools.partial(lower, platform), platform=platform)
    return p


def ruled(
    name: str,
    value: Callable[..., jax.Array],
    aval: Callable[..., ShapedArray],
    *,
    jvp: Callable[..., Any],
    transpose: Callable[..., Any],
    batch: Callable[..., Any],
) -> Primitive:
    """A primitive that computes what a function does, one array, with derivatives of its own.

    Args:
        name: of the primitive.
        value: what it computes.
        aval: shape and dtype of that.
        jvp, transpose, batch: the rules, as JAX calls them.
    """
    p = Primitive(name)
    p.def_impl(jax.jit(value))
    p.def_abstract_eval(aval)
    ad.primitive_jvps[p] = jvp
    ad.primitive_transposes[p] = transpose
    batching.primitive_batchers[p] = batch
    mlir.register_lowering(p, mlir.lower_fun(value, multiple_results=False))
    return p


def _row_axis(a: Any) -> int:
    """The axis of the rows: of (T, N, ...) and flags (T, N) the second, of states the first."""
    return 1 if a.ndim == 3 or a.dtype == jnp.uint8 else 0


def _more_rows(a: jax.Array, axis: int | None, size: int) -> jax.Array:
    """An operand whose batch axis becomes one with its rows; one without is repeated."""
    if axis is None:
        a, axis = jnp.broadcast_to(a, (size, *a.shape)), 0
    a = jnp.moveaxis(a, axis, 0)
    rows = _row_axis(jax.ShapeDtypeStruct(a.shape[1:], a.dtype))
    a = jnp.moveaxis(a, 0, rows)
    return a.reshape(*a.shape[:rows], -1, *a.shape[rows + 2 :])


def _to_export(context: Any) -> bool:
    """Whether a program is lowered to be exported."""
    parameters = getattr(context.module_context, "lowering_parameters", None)
    return getattr(parameters, "for_export", False)


def _possible(
    context: Any,
    platform: str,
    kernel: Callable[..., Any],
    mesh: Any,
    rows: list[Any],
    out: list[Any],
) -> Callable[..., Any] | None:
    """A kernel as the program that is lowered can have it; None if it can't.

    One that XLA is to split among devices has it where it was traced with their mesh
    (`jax.set_mesh`): each device runs it on rows of its own. Inside of `jax.shard_map` it is split
    already.

    Args:
        context: of the lowering.
        platform: that it is lowered for.
        kernel: what to call.
        mesh: the mesh that it was traced with, if there was one.
        rows: the axis of the rows of each operand; None for one that is the same for all rows.
        out: the axis of the rows of each result; None for a sum over them.
    """
    count = getattr(context.module_context.axis_context, "num_devices", 1) or 1
    if count == 1:
        return kernel
    first = next(a for a, axis in zip(context.avals_in, rows, strict=True) if axis == 1)
    if mesh is None or mesh.size != count or first.shape[1] % count:
        return None
    if platform == "cpu":  # whose devices share the cores
        kernel = functools.partial(kernel, at_once=jax.local_device_count())
    return devices.split_rows(kernel, mesh, rows, out)


def transposed_by(linear: Primitive, other: Primitive, count: Callable[..., int]) -> None:
    """Make one operation the transpose of another by its first `count` operands.

    It takes the cotangents, then the operands in which the first is not linear.
    """

    def transpose(cts: Any, *operands: Any, **parameters: Any) -> list[Any]:
        residuals = operands[count(**parameters) :]
        made = [ad.instantiate_zeros(ct) for ct in cts]
        out = other.bind(*made, *residuals, **parameters)
        return [*out, *[None] * len(residuals)]

    ad.primitive_transposes[linear] = transpose
