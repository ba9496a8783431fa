"""Parallel compilation of the contenders of a suite into JAX's persistent cache.

Compiling is most of the time of a suite whose calls take milliseconds, and runs on cores that the
measurement does not need. `python -m bench.ahead SUITE CASE PEERS` builds those of one case.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from bench.core import Case, Suite, prepare_environment

NOTE = (
    "Compiled ahead, in processes beside each other: the compile times are those of reading the "
    "programs back from JAX's cache."
)


def environment(cache: str) -> dict[str, str]:
    """Return the environment variables of a persistent compilation cache in a folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def build_ahead(
    suite: Suite,
    cases: Sequence[Case],
    peers: Sequence[str],
    cache: str,
    deadline: float,
    say: Callable[[str], None],
    at_once: int | None = None,
) -> int:
    """Build the contenders of all cases until `deadline` (`time.time`), in order.

    Returns:
        The number of cases that were built completely.
    """
    left, running, done = list(cases), {}, 0
    most = at_once or os.cpu_count() or 1
    env = os.environ | environment(cache)
    try:
        while (left or running) and time.time() < deadline:
            while left and len(running) < most:
                case = left.pop(0)
                command = [sys.executable, "-m", "bench.ahead", suite.name, case.name]
                process = subprocess.Popen([*command, ",".join(peers)], env=env)
                running[process] = case
            ended = [process for process in running if process.poll() is not None]
            done += sum(process.returncode == 0 for process in ended)
            for process in ended:
                del running[process]
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()
            process.wait()
    say(f"{suite.name}: {done} of {len(cases)} cases compiled ahead")
    return done


def build(case: Case, peers: Sequence[str]) -> None:
    """Build all contenders of a case; errors are reported when it is measured."""
    with case.within():
        for name in case.peers:
            if name in peers:
                with suppress(Exception):
                    case.build(name)


if __name__ == "__main__":
    from bench.suites import SUITES

    prepare_environment()
    _, _suite, _case, _peers = sys.argv
    build(next(c for c in SUITES[_suite].cases if c.name == _case), _peers.split(","))
