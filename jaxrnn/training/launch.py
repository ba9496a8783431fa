"""Launcher of several processes: ``python -m jaxrnn.training.launch -n 2 train.py``.

The script calls `jaxrnn.training.initialize` first. Each process runs on separate cores. After one
fails, the others have some seconds to notice before they are killed.
"""

from __future__ import annotations

import argparse
import math
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
    """Run a script in several processes on this machine.

    Args:
        script: a Python script and its arguments.
        processes: number of processes.
        patience: seconds from the failure of a process until the others are killed.

    Returns:
        The exit status of the first process that failed, or 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _exit) if in_main else None
    running: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(processes):
            environment = os.environ | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
            running.append(subprocess.Popen([sys.executable, *script], env=environment))
            _set_cores(running[-1].pid, index, processes)
        status, deadline = 0, math.inf
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            time.sleep(0.05)
            codes = [process.returncode for process in running if process.returncode]
            if codes and not status:
                status, deadline = codes[0], time.monotonic() + patience
        status = status or next((p.returncode for p in running if p.returncode), 0)
        return 128 - status if status < 0 else status  # a signal, in the convention of shells
    finally:
        for process in running:
            process.kill()
            process.wait()
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: object) -> NoReturn:
    """Raise an exception at a signal, so that the processes are killed; ignore further ones."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _set_cores(process: int, index: int, processes: int) -> None:
    """Bind a process to its part of the cores, if there are enough."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= processes:
            os.sched_setaffinity(process, cores[index::processes])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxrnn.training.launch", description=__doc__)
    parser.add_argument("-n", "--processes", type=int, required=True, help="number of processes")
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
        parser.error(f"{options.processes} processes cannot be started: {error}")
    except KeyboardInterrupt:
        print("jaxrnn.training.launch: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
