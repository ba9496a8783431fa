"""Several processes that train one model: how they find each other, and what if one ends.

Each runs the same script and calls `fit` alike. JAX's coordination service, in process 0, hears
from each of them every few seconds; the devices talk among themselves, on CPUs through Gloo.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import _checks as checks
from jaxrnn.backends import sharding as devices
from jaxrnn.training.written import plain

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_lost = False


class ProcessLost(RuntimeError):
    """Another process of a training has ended, so that this one can't go on."""


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 30,
) -> None:
    """Join the other processes of a training; before anything else is done with JAX.

    What is not given is read from the environment: ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``; or found by JAX under SLURM, Open MPI and on TPUs.
    Where there is nothing of that, the process is the only one, and nothing is done.

    .. code-block:: sh

        python -m jaxrnn.training.launch -n 2 train.py            # two processes on this machine
        srun --ntasks=16 python train.py                 # sixteen, wherever SLURM puts them
        JAX_COORDINATOR_ADDRESS=node0:9999 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 python train.py

    If a process ends before the others are done, these end too: with `ProcessLost` where Gloo says
    that a connection is gone, at once; otherwise by JAX's coordination service, which ends a
    process with the words "another task died" when nothing was heard for `timeout` seconds.

    Args:
        coordinator: host and port of process 0, "10.0.0.1:9999"; any free port.
        processes: how many there are.
        process: which one this is, from 0.
        timeout: seconds without a sign of life after which a process is taken for dead; more than
            a process may be suspended.

    Raises:
        ValueError: if only some of the three are there, or they can't be.
        RuntimeError: if JAX has been used before, or the others don't come within 5 minutes.

    Example:
        >>> import jax
        >>> from jaxrnn.training.processes import initialize
        >>> initialize()  # alone
        >>> jax.process_count()
        1
    """
    given: list[Any] = [coordinator, processes, process]
    for index, name in enumerate(_VARIABLES):
        if given[index] is None and os.environ.get(name):
            given[index] = os.environ[name]
            if index:
                given[index] = _number(name, os.environ[name])
    checks.at_least("timeout", timeout, 1)
    missing = [name for name, value in zip(_VARIABLES, given) if value is None]
    if missing:
        if len(missing) < len(given):
            raise ValueError(
                "coordinator, processes and process go together, as arguments or as variables of "
                f"the environment: {', '.join(missing)} missing"
            )
        if not _in_a_cluster():
            return
    else:
        checks.at_least("processes", given[1], 1)
        checks.at_least("process", given[2], 0)
        if given[2] >= given[1]:
            raise ValueError(f"process should be below processes={given[1]}, got {given[2]}")
        if not re.fullmatch(r".+:\d+", str(given[0])):
            raise ValueError(f'coordinator should be "host:port", got {given[0]!r}')
    jax.distributed.initialize(
        *given, heartbeat_timeout_seconds=timeout, shutdown_timeout_seconds=timeout
    )
    atexit.register(_leave)


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} should be a whole number, got {value!r}") from None


def _in_a_cluster() -> bool:
    """Whether JAX can find the others by itself."""
    here = {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS"} <= os.environ.keys()
    return here or any(
        name in os.environ
        for name in ("OMPI_MCA_orte_hnp_uri", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")
    )


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def agree(**things: Any) -> None:
    """See that all processes have the same: arrays or numbers, or pytrees of them, by name.

    Raises:
        ValueError: naming what differs, and in which process.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mine = np.array([0, *map(sum_of, things.values())], np.uint32)
    all_of_them = np.asarray(multihost_utils.process_allgather(mine))
    for index, name in enumerate(things, 1):
        others = np.flatnonzero(all_of_them[:, index] != all_of_them[0, index])
        if others.size:
            raise ValueError(
                f"all processes should begin alike, but process {others[0]} has other {name} "
                "than process 0"
            )


def sum_of(tree: Any) -> int:
    """A checksum of arrays and numbers; of an array in pieces among the processes, of its shape."""
    total = 0
    leaves, form = jax.tree.flatten(tree)
    for leaf in leaves:
        leaf = plain(leaf)
        total = zlib.crc32(f"{np.shape(leaf)}{jnp.result_type(leaf)}".encode(), total)
        if is_here(leaf):
            flat = np.ascontiguousarray(devices.local(leaf)).reshape(-1)
            total = zlib.crc32(flat.view(np.uint8).data, total)
    return zlib.crc32(str(form).encode(), total)


def is_here(leaf: Any) -> bool:
    """Whether this process has all of an array."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable or leaf.is_fully_replicated


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What other processes have to take part in.

    Raises:
        ProcessLost: if one has ended.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        known = isinstance(error, ProcessLost)
        if known or jax.process_count() == 1 or not _is_of_the_others(error):
            raise
        global _lost
        _lost = True
        line = str(error).strip().splitlines()[0][:200]
        raise ProcessLost(
            f"another of the {jax.process_count()} processes has ended or can't be reached, so "
            f"process {jax.process_index()} can't go on; what it printed says why: {line}"
        ) from None


def _is_of_the_others(error: Exception) -> bool:
    words = r"gloo|nccl|connection (closed|reset|refused)|coordination|heartbeat|socket closed"
    return re.search(words, str(error), re.IGNORECASE) is not None


def _leave() -> None:
    """JAX would wait at the end for a process that is no more."""
    if _lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
