"""Run a script in several processes: ``python -m jaxrnn.training.launch -n 2 train.py``.

Each process finds the others through `jaxrnn.training.initialize`, which the script calls first,
and has cores of its own. When one ends with an error, the others get some time to notice, and are
ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn


def run(script: Sequence[str], processes: int, patience: float = 30.0) -> int:
    """Run it; the exit status of the first process that failed, or 0.

    Args:
        script: a Python script and its arguments.
        processes: how many.
        patience: seconds that the others have after one has failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _end) if here else None
    running = []
    try:
        for index in range(processes):
            environment = os.environ | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
            command = [sys.executable, *script]
            one = subprocess.Popen(command, env=environment)
            running.append(one)
            _own_cores(one.pid, index, processes)
        failed, deadline = 0, None
        while any(one.poll() is None for one in running):
            codes = [one.returncode for one in running if one.returncode]
            if codes and deadline is None:
                failed, deadline = codes[0], time.monotonic() + patience
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(0.05)
        codes = [one.returncode for one in running if one.returncode]
        status = failed or (codes[0] if codes else 0)
        return 128 - status if status < 0 else status  # of a signal, as shells say it
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
            one.wait()
        if here:
            signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: object) -> NoReturn:
    """Of a signal: as an exception, so that no process is left behind."""
    del frame
    signal.signal(number, signal.SIG_IGN)  # nor by a second one
    raise SystemExit(128 + number)


def _own_cores(process: int, index: int, processes: int) -> None:
    """Give a process its part of the cores, if there are enough."""
    if not hasattr(os, "sched_getaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= processes:
        os.sched_setaffinity(process, cores[index::processes])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxrnn.training.launch", description=__doc__)
    parser.add_argument("-n", "--processes", type=int, required=True, help="how many processes")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="a Python script, its arguments")
    options = parser.parse_args(arguments)
    if options.processes < 1 or not options.script:
        parser.error("at least one process and a script are needed")
    script = options.script[0]
    if not script.startswith("-") and not os.path.exists(script):
        parser.error(f"there is no script {script!r}")
    try:
        return run(options.script, options.processes)
    except OSError as error:
        parser.error(f"{options.processes} processes can't be started: {error}")
    except KeyboardInterrupt:
        print("jaxrnn.training.launch: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
