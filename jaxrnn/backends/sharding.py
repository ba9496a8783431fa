"""Rows split among devices: how a program that is traced with a mesh is written for them.

XLA splits any program by the sharding of its arrays. Two things it can't do by itself: split a
kernel, and keep rows apart that were merged with the steps. Both are done where the mesh is known
when a program is traced, under `jax.set_mesh`, as `jaxrnn.training.fit` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def mesh() -> Any:
    """The mesh that a program is traced with; None for none, or one whose axes are not XLA's."""
    found = jax.sharding.get_abstract_mesh()
    return found if found.size > 1 and set(found.axis_types) == {AxisType.Auto} else None


def split_rows(
    function: Callable[..., Any],
    mesh: Any,
    rows: Sequence[int | None],
    out: Sequence[int | None],
) -> Callable[..., Any]:
    """A function of which each device computes rows of its own.

    Args:
        function: of arrays, to a list of arrays; none of its rows needs another.
        mesh: among whose devices, all of them.
        rows: the axis of the rows of each argument; None for one that is the same for all rows.
        out: the axis of the rows of each result; None for a sum over rows.
    """

    def along(axis: int | None) -> P:
        return P() if axis is None else P(*[None] * axis, mesh.axis_names)

    def each(*arguments: Any) -> list[Any]:
        results = function(*arguments)
        sums = iter(jax.lax.psum([r for r, a in zip(results, out) if a is None], mesh.axis_names))
        return [next(sums) if a is None else r for r, a in zip(results, out)]

    return jax.shard_map(
        each,
        mesh=mesh,
        in_specs=tuple(map(along, rows)),
        out_specs=list(map(along, out)),
        check_vma=False,  # a kernel does not say what of its results is the same on all devices
    )


def merged(a: jax.Array) -> jax.Array:
    """Steps and rows (K, N, D) as one axis (K*N, D); the order is that of `unmerged`.

    Rows that are split have to come first: XLA would gather them on every device otherwise.
    """
    return (a if mesh() is None else a.swapaxes(0, 1)).reshape(-1, a.shape[2])


def unmerged(a: jax.Array, steps: int, axis: int = 0) -> jax.Array:
    """The axis of steps and rows (..., K*N, ...) apart again (..., K, N, ...)."""
    before, after = a.shape[:axis], a.shape[axis + 1 :]
    if mesh() is None:
        return a.reshape(*before, steps, -1, *after)
    return a.reshape(*before, -1, steps, *after).swapaxes(axis, axis + 1)


def share(tree: Any) -> Any:
    """Arrays with rows first, split among all devices where the number of rows allows it."""
    found = mesh()
    if found is None:
        return tree

    def split(a: Any) -> Any:
        if a.ndim == 0 or a.shape[0] % found.size or not a.shape[0]:
            return a
        return jax.lax.with_sharding_constraint(a, P(found.axis_names))

    return jax.tree.map(split, tree)


def gathered(tree: Any) -> Any:
    """Arrays as a whole on every device."""
    if mesh() is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, P()), tree)


def put(a: Any, place: Any) -> Any:
    """An array to a place, which may be among several processes; each has the whole array."""
    if isinstance(a, jax.Array) and a.sharding == place:
        return a
    here = not isinstance(a, jax.Array) or a.is_fully_addressable
    if here and place.is_fully_addressable:
        return jax.device_put(a, place)
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(a), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
    if not here and not place.is_fully_addressable:
        return jax.jit(lambda a: a, out_shardings=place)(a)
    host = local(a)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def free(a: jax.Array) -> jax.Array:
    """An array that computations may move to any device, as those are that nobody has placed."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(free(jax.random.key_data(a)), impl=jax.random.key_impl(a))
    return jnp.asarray(local(a))


def local(a: Any) -> np.ndarray:
    """An array on the host, also one of which other processes have pieces; all call this alike."""
    if isinstance(a, jax.Array) and not a.is_fully_addressable:
        if isinstance(a.sharding, NamedSharding) and not a.is_fully_replicated:
            a = jax.jit(lambda a: a, out_shardings=NamedSharding(a.sharding.mesh, P()))(a)
        a = a.addressable_data(0)
    return np.asarray(a)
