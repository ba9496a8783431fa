"""JAX primitives that are defined by a reference function and may have kernels.

The reference is what runs without a kernel, and what JAX differentiates, batches or transposes when
a program asks for more than a kernel computes.
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

from jaxrnn.backends import sharding

Shapes = list[jax.ShapeDtypeStruct]


def shape_like(shape: tuple[int, ...], array: Any) -> jax.ShapeDtypeStruct:
    """Return a shape with the dtype of an array."""
    return jax.ShapeDtypeStruct(shape, array.dtype)


def define_kernel_primitive(
    name: str,
    reference: Callable[..., list[jax.Array]],
    output_shapes: Callable[..., Shapes],
    unbatched: Callable[..., set[int] | None],
    kernels: Mapping[str, Callable[..., Any]],
    summed: Callable[..., set[int]] = lambda **_: set(),
    portable: Callable[[str], bool] = lambda platform: False,
) -> Primitive:
    """Define a primitive by a reference function, with kernels for some platforms.

    All functions but `portable` take the parameters of the primitive as keyword arguments.

    Args:
        name: name of the primitive.
        reference: ``(*operands) -> results``.
        output_shapes: ``(operands) -> shapes and dtypes of the results``.
        unbatched: the indices of operands without a batch axis. If these are not mapped, `jax.vmap`
            makes one larger batch of the others. None if that is impossible.
        kernels: by platform, ``(*operands) -> results``, or None if the kernel is unsupported.
        summed: the indices of results that are sums over the batch.
        portable: ``(platform) -> bool``, True if the kernel may be part of an exported program.
    """
    p = Primitive(name)
    p.multiple_results = True

    @functools.cache
    def _compiled(parameters: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(lambda *operands: p.bind(*operands, **dict(parameters)))

    def _avals(*operands: Any, **parameters: Any) -> list[ShapedArray]:
        return [ShapedArray(s.shape, s.dtype) for s in output_shapes(operands, **parameters)]

    def _jvp(primals: Any, tangents: Any, **parameters: Any) -> Any:
        differentiated = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

        def _of_differentiated(*some: jax.Array) -> list[jax.Array]:
            operands = list(primals)
            for i, operand in zip(differentiated, some, strict=True):
                operands[i] = operand
            return reference(*operands, **parameters)

        return jax.jvp(
            _of_differentiated,
            [primals[i] for i in differentiated],
            [tangents[i] for i in differentiated],
        )

    def _batch(operands: Any, axes: Any, **parameters: Any) -> Any:
        shared = unbatched(**parameters)
        if shared is None or summed(**parameters) or any(axes[i] is not None for i in shared):
            each = functools.partial(reference, **parameters)
            out = jax.vmap(each, in_axes=tuple(axes))(*operands)
            return out, [0] * len(out)
        size = next(o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)
        merged = [
            o if i in shared else _merge_into_batch(o, a, size)
            for i, (o, a) in enumerate(zip(operands, axes, strict=True))
        ]
        out = p.bind(*merged, **parameters)
        out_axes = [_batch_axis(o) for o in out]
        split = [
            o.reshape(*o.shape[:a], size, -1, *o.shape[a + 1 :])
            for o, a in zip(out, out_axes, strict=True)
        ]
        return split, out_axes

    p.def_impl(lambda *operands, **parameters: _compiled(tuple(parameters.items()))(*operands))
    p.def_abstract_eval(_avals)
    ad.primitive_jvps[p] = _jvp
    batching.primitive_batchers[p] = _batch

    def _run(platform: str, *operands: jax.Array, **parameters: Any) -> Any:
        out = kernels[platform](*operands, **parameters)
        return reference(*operands, **parameters) if out is None else out

    def _lower(
        platform: str, context: Any, *operands: Any, mesh: Any = None, **parameters: Any
    ) -> Any:
        shared, sums = unbatched(**parameters), summed(**parameters)
        in_axes = [
            None if i in (shared or ()) else _batch_axis(a) for i, a in enumerate(context.avals_in)
        ]
        out_axes = [None if i in sums else _batch_axis(a) for i, a in enumerate(context.avals_out)]
        chosen = None
        if portable(platform) or not _is_for_export(context):
            kernel = functools.partial(_run, platform, **parameters)
            mesh = None if shared is None else mesh
            chosen = _partition_kernel(context, platform, kernel, mesh, in_axes, out_axes)
        if chosen is None:
            chosen = functools.partial(reference, **parameters)
        return mlir.lower_fun(chosen, multiple_results=True)(context, *operands)

    mlir.register_lowering(p, mlir.lower_fun(reference, multiple_results=True))
    for platform in kernels:
        mlir.register_lowering(p, functools.partial(_lower, platform), platform=platform)
    return p


def define_primitive(
    name: str,
    value: Callable[..., jax.Array],
    aval: Callable[..., ShapedArray],
    *,
    jvp: Callable[..., Any],
    transpose: Callable[..., Any],
    batch: Callable[..., Any],
) -> Primitive:
    """Define a primitive with one result by a reference function and JAX's rules for it.

    Args:
        name: name of the primitive.
        value: ``(*operands) -> result``.
        aval: ``(*operands) -> shape and dtype of the result``.
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


def set_transpose(linear: Primitive, transpose: Primitive, count: Callable[..., int]) -> None:
    """Make one primitive the transpose of another in its first `count` operands.

    The transpose takes the cotangents, then the operands in which the other is not linear.
    """

    def _rule(cts: Any, *operands: Any, **parameters: Any) -> list[Any]:
        residuals = operands[count(**parameters) :]
        dense = [ad.instantiate_zeros(ct) for ct in cts]
        out = transpose.bind(*dense, *residuals, **parameters)
        return [*out, *[None] * len(residuals)]

    ad.primitive_transposes[linear] = _rule


def _batch_axis(a: Any) -> int:
    """Return the batch axis: 1 of (T, N, ...) and of packed masks (T, N), 0 of states."""
    return 1 if a.ndim == 3 or a.dtype == jnp.uint8 else 0


def _merge_into_batch(a: jax.Array, axis: int | None, size: int) -> jax.Array:
    """Merge a mapped axis of an operand into its batch axis; repeat an operand without one."""
    if axis is None:
        a, axis = jnp.broadcast_to(a, (size, *a.shape)), 0
    a = jnp.moveaxis(a, axis, 0)
    batch = _batch_axis(jax.ShapeDtypeStruct(a.shape[1:], a.dtype))
    a = jnp.moveaxis(a, 0, batch)
    return a.reshape(*a.shape[:batch], -1, *a.shape[batch + 2 :])


def _is_for_export(context: Any) -> bool:
    """Return True if a program is lowered to be exported."""
    parameters = getattr(context.module_context, "lowering_parameters", None)
    return getattr(parameters, "for_export", False)


def _partition_kernel(
    context: Any,
    platform: str,
    kernel: Callable[..., Any],
    mesh: Any,
    in_axes: list[Any],
    out_axes: list[Any],
) -> Callable[..., Any] | None:
    """Partition a kernel among the devices of the program being lowered; None if impossible.

    A program for several devices needs the mesh that it was traced with (`jax.set_mesh`): each
    device runs the kernel on its part of the batch. Inside `jax.shard_map` it is partitioned
    already.

    Args:
        context: the context of the lowering.
        platform: the platform lowered for.
        kernel: the kernel.
        mesh: the mesh, or None.
        in_axes: the batch axis of each operand; None for an operand without one.
        out_axes: the batch axis of each result; None for a sum over the batch.
    """
    count = getattr(context.module_context.axis_context, "num_devices", 1) or 1
    if count == 1:
        return kernel
    first = next(a for a, axis in zip(context.avals_in, in_axes, strict=True) if axis == 1)
    if mesh is None or mesh.size != count or first.shape[1] % count:
        return None
    if platform == "cpu":  # whose devices share the cores
        kernel = functools.partial(kernel, local_devices=jax.local_device_count())
    return sharding.partition_batch(kernel, mesh, in_axes, out_axes)
