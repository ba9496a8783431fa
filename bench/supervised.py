"""Supervision of a measuring process: a deadlock or crash costs one contender of one case.

A kernel with a deadlock never returns, and one with an illegal memory access ruins the device for
its process. The measuring process writes the start of each step to its journal. If it dies, or
writes nothing for too long, the last started contender is recorded as lost, and a new process
continues.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.journal import Journal, read

POISONED = 75
"""Exit status of a process whose device has failed."""

SIGNS = ("illegal memory access", "ILLEGAL_ADDRESS", "LAUNCH_FAILED", "misaligned address")
"""Messages of errors after which a process cannot use its GPU."""


START_S = 120.0
"""Silence limit in seconds before the first case, for imports and initialization."""


PROGRESS = ("built", "round", "case")
"""Events that count as progress of a process."""


def poisoned(reason: str) -> bool:
    """Return True if an error leaves the device unusable for the process."""
    return any(sign.lower() in reason.lower() for sign in SIGNS)


def supervise(
    command: Sequence[str],
    path: Path,
    deadline: float,
    silence_s: float,
    say: Callable[[str], None],
    every_s: float = 0.2,
    env: Mapping[str, str] | None = None,
) -> bool:
    """Run a command that writes a journal until it has finished or `deadline` (`time.time`).

    Args:
        command: continues from the journal, and exits with 0 when finished.
        path: the journal.
        deadline: end of the command.
        silence_s: silence limit in seconds.
        say: prints a line of progress.
        every_s: polling interval in seconds.
        env: environment of the process. Defaults to this one's.

    Returns:
        True if the command finished.
    """
    progress = 0
    while True:
        process = subprocess.Popen(list(command), env=env)
        try:
            why = watch(process, path, deadline, silence_s, every_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if why is None:
            return True
        begun = [event for event in (read(path) if path.exists() else []) if event.get("case")]
        last = begun[-1] if begun else {"event": "", "case": "", "peer": ""}
        over = time.time() >= deadline  # then no contender is to blame
        blamed = last.get("peer") if last["event"] in ("begin", "built", "failed") else None
        blamed = None if over else blamed
        why = last.get("reason", why) if last["event"] == "failed" and not over else why
        Journal(path).write(
            {"event": "lost", "case": last["case"], "peer": blamed or "", "reason": why}
        )
        say(f"lost: {last['case']} {blamed or ''}: {why}")
        # Without progress or a contender to blame, the next process would fail in the same place.
        before, progress = progress, sum(event["event"] in PROGRESS for event in begun)
        if over or not (blamed or progress > before):
            return False


def end_with_parent(every_s: float = 0.5) -> None:
    """End this process soon after its parent, since another may continue the journal."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def stopped(pid: int) -> bool:
    """Return True if a process is stopped by a signal; False if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def watch(
    process: subprocess.Popen, path: Path, deadline: float, silence_s: float, every_s: float
) -> str | None:
    """Wait for a process, and return the reason of its loss; None if it finished."""
    size, heard = path.stat().st_size if path.exists() else -1, time.time()
    before, patience_s = max(0, size), max(silence_s, START_S)
    while True:
        status = process.poll()
        if status is not None:
            if status == 0:
                return None
            if status == POISONED:
                return "the device failed"
            return f"the process died ({f'signal {-status}' if status < 0 else f'status {status}'})"
        now, found = time.time(), path.stat().st_size if path.exists() else -1
        if found != size:
            size, heard = found, now
            if patience_s != silence_s and b'"case":' in path.read_bytes()[before:]:
                patience_s = silence_s
        if stopped(process.pid):
            heard = now  # stopped by a signal, not a deadlock
        if now >= deadline:
            return "the time was over"
        if now - heard > patience_s:
            return f"no sign of life for {patience_s:g} s"
        time.sleep(every_s)
