"""Training on several devices and in several processes.

.. code-block:: text

    batch                     split over all devices of the mesh along its first axis
    data, carry, keys         replicated
    parameters, opt_state     replicated; along the mesh axis "model", recurrent weights are sharded
                              along G*H and gathered for each step

An array that is already on the devices of the mesh keeps its sharding.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn import _checks as checks
from jaxrnn.backends import sharding

# The axis of gates or hidden units, counted from the end: weights may be stacked.
_UNIT_AXES = {"weight_ih": 2, "weight_hh": 2, "bias_ih": 1, "bias_hh": 1, "weight_hr": 1}
_WEIGHT_NAME = re.compile(rf"(?:^|/)({'|'.join(_UNIT_AXES)})(?:_l\d+(?:_reverse)?)?$")

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_lost = False


class ProcessLost(RuntimeError):
    """Error of a process that cannot continue because another one has ended."""


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 30,
) -> None:
    """Connect this process with the others of a training, before any other use of JAX.

    Missing arguments are read from the environment variables ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, or detected by JAX under SLURM, Open MPI and on
    TPUs. Without any of them the process is the only one, and the call has no effect.

    .. code-block:: sh

        python -m jaxrnn.training.launch -n 2 train.py            # two processes on this machine
        srun --ntasks=16 python train.py                          # sixteen processes under SLURM

    If a process ends early, the others end too: at once with `ProcessLost` if Gloo reports a
    closed connection, otherwise with the words "another task died" of JAX's coordination service.

    Args:
        coordinator: host and free port of process 0, e.g. "10.0.0.1:9999".
        processes: number of processes.
        process: index of this process, from 0.
        timeout: seconds without a heartbeat after which a process counts as dead.

    Raises:
        ValueError: if only some of the three values are available, or one is invalid.
        RuntimeError: if JAX was used before, or the others do not connect within 5 minutes.

    Example:
        >>> import jax
        >>> from jaxrnn.training import initialize
        >>> initialize()  # the only process
        >>> jax.process_count()
        1
    """
    given: list[Any] = [coordinator, processes, process]
    for index, name in enumerate(_VARIABLES):
        if given[index] is None and os.environ.get(name):
            given[index] = _integer(name) if index else os.environ[name]
    checks.at_least("timeout", timeout, 1)
    missing = [name for name, value in zip(_VARIABLES, given) if value is None]
    if missing:
        if len(missing) < len(given):
            raise ValueError(
                "`coordinator`, `processes` and `process` must be set together, as arguments or "
                f"environment variables, got no {', '.join(missing)}"
            )
        if not _in_cluster():
            return
    else:
        checks.at_least("processes", given[1], 1)
        checks.at_least("process", given[2], 0)
        if given[2] >= given[1]:
            raise ValueError(f"`process` must be below processes={given[1]}, got {given[2]}")
        if not re.fullmatch(r".+:\d+", str(given[0])):
            raise ValueError(f'`coordinator` must be "host:port", got {given[0]!r}.')
    jax.distributed.initialize(
        *given, heartbeat_timeout_seconds=timeout, shutdown_timeout_seconds=timeout
    )
    atexit.register(_exit_if_lost)


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name} must be an integer, got {os.environ[name]!r}") from None


def _in_cluster() -> bool:
    """Return True if JAX can detect the other processes."""
    slurm = {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS"} <= os.environ.keys()
    others = {"OMPI_MCA_orte_hnp_uri", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"}
    return slurm or not others.isdisjoint(os.environ)


def _exit_if_lost() -> None:
    """Skip JAX's shutdown, which would wait for a process that has ended."""
    if _lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _is_first() -> bool:
    """Return True in the process that writes files and prints."""
    return jax.process_index() == 0


def _check_equal(**values: Any) -> None:
    """Check that pytrees of arrays and numbers are equal in all processes."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    sums = np.array([0, *map(_tree_checksum, values.values())], np.uint32)
    gathered = np.asarray(multihost_utils.process_allgather(sums))
    for index, name in enumerate(values, 1):
        different = np.flatnonzero(gathered[:, index] != gathered[0, index])
        if different.size:
            raise ValueError(
                f"{name} must be equal in all processes, got a difference between process 0 and "
                f"process {different[0]}."
            )


def _tree_checksum(tree: Any) -> int:
    """Return the CRC-32 of a pytree; of an array that spans processes, its shape and dtype."""
    total = 0
    leaves, structure = jax.tree.flatten(tree)
    for leaf in map(_key_data, leaves):
        total = zlib.crc32(f"{np.shape(leaf)}{jnp.result_type(leaf)}".encode(), total)
        if _is_local(leaf):
            total = _array_checksum(sharding.to_host(leaf), total)
    return zlib.crc32(str(structure).encode(), total)


def _array_checksum(array: np.ndarray, start: int = 0) -> int:
    """Return the CRC-32 of the bytes of an array."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, start)


def _is_local(leaf: Any) -> bool:
    """Return True if this process holds the whole array."""
    return not isinstance(leaf, jax.Array) or (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    """Return the integers of random keys, and any other array unchanged."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


@contextlib.contextmanager
def _detect_lost_process() -> Iterator[None]:
    """Raise `ProcessLost` in place of the errors of a closed connection."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        global _lost
        words = r"gloo|nccl|connection (closed|reset|refused)|coordination|heartbeat|socket closed"
        remote = jax.process_count() > 1 and re.search(words, str(error), re.IGNORECASE)
        if isinstance(error, ProcessLost) or not remote:
            raise
        _lost = True
        line = str(error).strip().splitlines()[0][:200]
        raise ProcessLost(
            f"process {jax.process_index()} cannot continue: another of the {jax.process_count()} "
            f"processes has ended or is unreachable; its own output says why: {line}"
        ) from None


def _leaf_name(path: Any) -> str:
    """Return the name of a leaf of a pytree, e.g. ``rnn/weight_ih_l0``."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    is_attribute = path and isinstance(path[-1], jax.tree_util.GetAttrKey)
    return name.removesuffix("/value") if is_attribute else name  # of a Flax variable


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {_leaf_name(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError(f"Arrays must have unique names, got {len(leaves)} for {list(named)}")
    return named


class _Layout(NamedTuple):
    """Placement of arrays on a mesh; None for one device."""

    mesh: Mesh | None

    @property
    def _shards(self) -> int:
        return 1 if self.mesh is None else dict(self.mesh.shape).get("model", 1)

    def context(self) -> Any:
        """Return the context in which programs are traced and run."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def replicate(self, tree: Any) -> Any:
        """Put arrays on every device."""
        return jax.tree.map(lambda a: self._put(a, P()), tree)

    def shard_weights(self, tree: Any) -> Any:
        """Put parameters or an optimizer state on the mesh, recurrent weights in shards."""
        return jax.tree_util.tree_map_with_path(
            lambda path, a: self._put(a, _weight_spec(path, a, self._shards)), tree
        )

    def stack_batches(self, batches: Any) -> Any:
        """Combine the stacked batches of this process (count, ...) with those of the others."""
        mesh = self.mesh
        if mesh is None:
            return batches
        specs = jax.tree.map(lambda a: P(None, mesh.axis_names) if a.ndim > 1 else P(), batches)
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        return jax.tree.map(jax.make_array_from_process_local_data, shardings, batches)

    def restore(self, tree: Any, original: Any) -> Any:
        """Put arrays back on the devices of `original`."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda a, b: _put_like(a, jnp.asarray(b)), tree, original)

    def check_model(self, params: Any) -> None:
        """Check that the axis "model" divides the hidden units of every layer."""
        leaves = _named_leaves(params)
        for name, leaf in leaves.items():
            projected = name.replace("weight_hh", "weight_hr") in leaves
            kind = "weight_hr" if projected else "weight_hh"
            if _weight_kind(name) == kind and leaf.shape[-1] % self._shards:
                raise ValueError(
                    f"The axis 'model' of `mesh` must divide the {leaf.shape[-1]} hidden units "
                    f"of {name}, got {self._shards} devices"
                )

    def check_batch(self, batch: Any, processes: int = 1) -> None:
        """Check that the devices divide the first axes of a batch."""
        if self.mesh is None:
            return
        count = self.mesh.size // processes
        for size in sorted({np.shape(a)[0] for a in jax.tree.leaves(batch) if np.ndim(a)}):
            if size % count or not size:
                each = " of each process" if processes > 1 else ""
                raise ValueError(
                    f"The batch size must be a multiple of the {count} devices{each}, got an array "
                    f"with first axis {size}."
                )

    def _put(self, a: Any, spec: P) -> Any:
        a = jnp.asarray(a)
        if self.mesh is None:
            return a
        current = a.sharding
        if isinstance(current, NamedSharding) and isinstance(current.mesh, Mesh):
            same_axes = current.mesh.shape_tuple == self.mesh.shape_tuple
            if same_axes and list(current.mesh.devices.flat) == list(self.mesh.devices.flat):
                spec = current.spec
        return sharding.device_put(a, NamedSharding(self.mesh, spec))


def _put_like(a: Any, original: jax.Array) -> jax.Array:
    return (
        sharding.device_put(a, original.sharding) if original.committed else sharding.uncommitted(a)
    )


def _make_layout(mesh: Any) -> _Layout:
    """Return the layout of the option `mesh` of `fit`."""
    if mesh is None:
        return _Layout(None)
    if isinstance(mesh, int) and not isinstance(mesh, bool):
        checks.at_least("mesh", mesh, 1)
        available = jax.devices()
        if mesh > len(available):
            raise ValueError(f"`mesh` must be at most the {len(available)} devices, got {mesh}")
        mesh = Mesh(np.array(available[:mesh]), ("data",))
    if not isinstance(mesh, Mesh):
        kind = type(mesh).__name__
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh or a number of devices, got a {kind}")
    names = mesh.axis_names
    if not names or not set(names) <= {"data", "model"}:
        raise ValueError(f"The axes of `mesh` must be 'data' and 'model', got {names}")
    absent = set(range(jax.process_count())) - {d.process_index for d in mesh.devices.flat}
    if absent:
        raise ValueError(f"`mesh` must have devices of every process, got none of {min(absent)}")
    return _Layout(Mesh(mesh.devices, names))  # axes that XLA partitions, whatever their types were


def _gather_weights(params: Any) -> Any:
    """Replicate sharded weights inside a compiled step."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: sharding.replicate(a) if _weight_kind(_leaf_name(path)) else a, params
    )


def _constrain(tree: Any, shardings: tuple[Any, ...] | None) -> Any:
    """Constrain the results of a compiled call to the shardings of its arguments."""
    if shardings is None:
        return tree
    shardings = jax.tree.unflatten(jax.tree.structure(tree), shardings)
    return jax.lax.with_sharding_constraint(tree, shardings)


def _weight_spec(path: Any, leaf: Any, shards: int) -> P:
    """Return the partition of a parameter, or of its optimizer state, over the axis "model"."""
    from_end = _UNIT_AXES.get(_weight_kind(_leaf_name(path)), 0) if shards > 1 else 0
    axis = np.ndim(leaf) - from_end
    if not from_end or axis < 0 or np.shape(leaf)[axis] % shards:
        return P()
    return P(*[None] * axis, "model")


def _weight_kind(name: str) -> str:
    """Return the kind of a recurrent weight, e.g. ``weight_ih``; "" for other parameters."""
    match = _WEIGHT_NAME.search(name)
    return match[1] if match else ""
