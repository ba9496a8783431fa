"""Where the arrays of a training lie among several devices.

.. code-block:: text

    a batch                   split by its rows among all devices of the mesh
    data, carry, keys         on every device
    parameters, optimiser     on every device; along an axis "model" of the mesh, the recurrent
                              weights in pieces of G*H / model rows, and whole while they are used

An array that lies on the devices of the mesh already stays as it lies.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn import _checks as checks
from jaxrnn.backends import sharding as devices
from jaxrnn.training.written import name_of, named

DATA, MODEL = "data", "model"

# The axis of the gates' rows or the hidden units, from the end: weights may be stacked.
_UNITS = {"weight_ih": 2, "weight_hh": 2, "bias_ih": 1, "bias_hh": 1, "weight_hr": 1}


class Layout(NamedTuple):
    """A mesh, or None for one device."""

    mesh: Mesh | None

    @property
    def size(self) -> int:
        """How many devices there are."""
        return 1 if self.mesh is None else self.mesh.size

    def here(self) -> Any:
        """The mesh as the one that programs are traced with and run on."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def whole(self, tree: Any) -> Any:
        """Arrays on every device."""
        return jax.tree.map(lambda a: self._put(a, P()), tree)

    def weights(self, tree: Any) -> Any:
        """Parameters, or the state of their optimiser."""
        shards = 1 if self.mesh is None else dict(self.mesh.shape).get(MODEL, 1)
        return jax.tree_util.tree_map_with_path(
            lambda path, a: self._put(a, _spec(path, a, shards)), tree
        )

    def fed(self, feed: Any) -> Any:
        """Batches of this process, stacked along a first axis, as those of all processes."""
        mesh = self.mesh
        if mesh is None:
            return feed

        def put(a: np.ndarray) -> Any:
            spec = P(None, mesh.axis_names) if a.ndim > 1 else P()
            return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), a)

        return jax.tree.map(put, feed)

    def back(self, tree: Any, before: Any) -> Any:
        """Arrays to where those are that they have come from."""
        if self.mesh is None:
            return tree

        def put(a: Any, origin: Any) -> Any:
            origin = jnp.asarray(origin)
            return devices.put(a, origin.sharding) if origin.committed else devices.free(a)

        return jax.tree.map(put, tree, before)

    def check_model(self, params: Any) -> None:
        """Whether the axis "model" can share the hidden units.

        Raises:
            ValueError: if not.
        """
        shards = 1 if self.mesh is None else dict(self.mesh.shape).get(MODEL, 1)
        leaves = named(params)
        for name, leaf in leaves.items():
            projected = name.replace("weight_hh", "weight_hr") in leaves
            if _kind(name) not in ("weight_hh", "weight_hr") or projected != ("weight_hr" in name):
                continue
            if leaf.shape[-1] % shards:
                raise ValueError(
                    f"the axis {MODEL!r} of the mesh has {shards} devices, which can't share the "
                    f"{leaf.shape[-1]} hidden units of {name} evenly"
                )

    def check_batch(self, batch: Any, processes: int = 1) -> None:
        """Whether the devices can share the rows of a batch.

        Raises:
            ValueError: if not.
        """
        sizes = {np.shape(a)[0] for a in jax.tree.leaves(batch) if np.ndim(a)}
        count = self.size // processes
        for size in sorted(sizes):
            if size % count or not size:
                here = " of each process" if processes > 1 else ""
                raise ValueError(
                    f"an array of a batch has {size} rows along its first axis, which the {count} "
                    f"devices{here} can't share evenly: it should be a multiple of {count}"
                )

    def _put(self, a: Any, spec: P) -> Any:
        a = jnp.asarray(a)
        if self.mesh is None:
            return a
        there = getattr(a, "sharding", None)
        if isinstance(there, NamedSharding) and isinstance(there.mesh, Mesh):
            ours = tuple(self.mesh.shape.items()), list(self.mesh.devices.flat)
            if (tuple(there.mesh.shape.items()), list(there.mesh.devices.flat)) == ours:
                spec = there.spec
        return devices.put(a, NamedSharding(self.mesh, spec))


def make(mesh: Any) -> Layout:
    """The layout that `fit` is asked for.

    Raises:
        ValueError, TypeError: for a mesh that can't be.
    """
    if mesh is None:
        return Layout(None)
    if isinstance(mesh, int) and not isinstance(mesh, bool):
        checks.at_least("mesh", mesh, 1)
        there = jax.devices()
        if mesh > len(there):
            raise ValueError(f"mesh={mesh} is more than the {len(there)} devices there are")
        mesh = Mesh(np.array(there[:mesh]), (DATA,))
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh should be a jax.sharding.Mesh or a number of devices, got {type(mesh).__name__}"
        )
    names = mesh.axis_names
    if not names or not set(names) <= {DATA, MODEL}:
        raise ValueError(f"the axes of the mesh should be {DATA!r} and {MODEL!r}, got {names}")
    absent = set(range(jax.process_count())) - {d.process_index for d in mesh.devices.flat}
    if absent:
        raise ValueError(f"the mesh has no device of process {min(absent)}: all take part")
    return Layout(Mesh(mesh.devices, names))  # XLA's to split, whatever the axes' types were


def gathered(params: Any) -> Any:
    """Parameters as they are used in a step: those that lie in pieces are put together."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: devices.gathered(a) if _kind(path) else a, params
    )


def places(tree: Any) -> Any:
    """Where the arrays of a pytree are."""
    return jax.tree.map(lambda a: jnp.asarray(a).sharding, tree)


def kept(tree: Any, where: tuple[Any, ...] | None) -> Any:
    """Arrays of a compiled call where those are that they take the place of."""
    if where is None:
        return tree
    leaves, form = jax.tree.flatten(tree)
    constrain = jax.lax.with_sharding_constraint
    return jax.tree.unflatten(form, [constrain(a, s) for a, s in zip(leaves, where, strict=True)])


def _spec(path: Any, leaf: Any, shards: int) -> P:
    """How a parameter, or what an optimiser keeps of it, lies on a mesh."""
    from_end = _UNITS.get(_kind(path), 0) if shards > 1 else 0
    axis = np.ndim(leaf) - from_end
    if not from_end or axis < 0 or np.shape(leaf)[axis] % shards:
        return P()
    return P(*[None] * axis, MODEL)


def _kind(path: Any) -> str:
    """Which recurrent weight it is that has a path; "" for another parameter."""
    name = path if isinstance(path, str) else name_of(path)
    found = re.search(rf"(?:^|/)({'|'.join(_UNITS)})(?:_l\d+(?:_reverse)?)?$", name)
    return found[1] if found else ""
