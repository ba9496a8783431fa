"""Partition of the batch among devices.

XLA partitions any program by the sharding of its arrays, with two exceptions: it cannot partition a
kernel, and it cannot keep the batch axis separate once it is merged with time. Both are handled
here if the mesh is known when a program is traced, under `jax.set_mesh`, as in
`jaxrnn.training.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def current_mesh() -> Any:
    """Return the mesh that a program is traced with; None without one or with explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto} else None


def partition_batch(
    function: Callable[..., Any],
    mesh: Any,
    in_axes: Sequence[int | None],
    out_axes: Sequence[int | None],
) -> Callable[..., Any]:
    """Partition a function over the batch among all devices of a mesh.

    Args:
        function: a function of arrays that returns a list of arrays and treats each batch element
            independently.
        mesh: the mesh.
        in_axes: the batch axis of each argument; None for an argument without one.
        out_axes: the batch axis of each result; None for a sum over the batch.
    """

    def _spec(axis: int | None) -> P:
        return P() if axis is None else P(*[None] * axis, mesh.axis_names)

    def _on_each_device(*arguments: Any) -> list[Any]:
        results = function(*arguments)
        sums = [r for r, axis in zip(results, out_axes) if axis is None]
        totals = iter(jax.lax.psum(sums, mesh.axis_names))
        return [next(totals) if axis is None else r for r, axis in zip(results, out_axes)]

    return jax.shard_map(
        _on_each_device,
        mesh=mesh,
        in_specs=tuple(map(_spec, in_axes)),
        out_specs=list(map(_spec, out_axes)),
        check_vma=False,  # a kernel does not declare which results are equal on all devices
    )


def merge_steps(a: jax.Array) -> jax.Array:
    """Merge the axes of time and batch, (K, N, D) to (K*N, D).

    A partitioned batch comes first: otherwise XLA would gather it on every device.
    """
    return (a if current_mesh() is None else a.swapaxes(0, 1)).reshape(-1, a.shape[2])


def split_steps(a: jax.Array, steps: int, axis: int = 0) -> jax.Array:
    """Split the merged axis of `merge_steps`, (..., K*N, ...) to (..., K, N, ...)."""
    before, after = a.shape[:axis], a.shape[axis + 1 :]
    if current_mesh() is None:
        return a.reshape(*before, steps, -1, *after)
    return a.reshape(*before, -1, steps, *after).swapaxes(axis, axis + 1)


def shard_batch(tree: Any) -> Any:
    """Shard arrays along their first axis among all devices, if the axis is divisible."""
    mesh = current_mesh()
    if mesh is None:
        return tree

    def _shard(a: Any) -> Any:
        if a.ndim == 0 or a.shape[0] % mesh.size or not a.shape[0]:
            return a
        return jax.lax.with_sharding_constraint(a, P(mesh.axis_names))

    return jax.tree.map(_shard, tree)


def replicate(tree: Any) -> Any:
    """Replicate arrays on every device."""
    if current_mesh() is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, P()), tree)


def device_put(a: Any, target: Any) -> Any:
    """Put an array on a sharding that may span processes; each process holds the whole array."""
    if isinstance(a, jax.Array) and a.sharding == target:
        return a
    addressable = not isinstance(a, jax.Array) or a.is_fully_addressable
    if addressable and target.is_fully_addressable:
        return jax.device_put(a, target)
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        data = device_put(jax.random.key_data(a), target)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
    if not addressable and not target.is_fully_addressable:
        return jax.jit(lambda a: a, out_shardings=target)(a)
    host = to_host(a)
    return jax.make_array_from_callback(host.shape, target, lambda index: host[index])


def uncommitted(a: jax.Array) -> jax.Array:
    """Return a copy that is not committed to a device."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        data = uncommitted(jax.random.key_data(a))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
    return jnp.asarray(to_host(a))


def to_host(a: Any) -> np.ndarray:
    """Copy an array to the host. If it spans processes, all of them must call this."""
    if isinstance(a, jax.Array) and not a.is_fully_addressable:
        if isinstance(a.sharding, NamedSharding) and not a.is_fully_replicated:
            a = jax.jit(lambda a: a, out_shardings=NamedSharding(a.sharding.mesh, P()))(a)
        a = a.addressable_data(0)
    return np.asarray(a)
