"""A suite in a process of its own, watched: one that hangs or dies costs one contender of one case.

A kernel that waits for itself never returns, and one that touches memory which is not its own takes
down all that the process had on the device. So the process that measures says in its journal what
it begins. If it dies, or says nothing for too long, whoever was begun last is written down as lost,
and a new process goes on from there.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.journal import Journal, read

POISONED = 75
"""The exit status of a process whose device has failed: what follows in it would fail too."""

SIGNS = ("illegal memory access", "ILLEGAL_ADDRESS", "LAUNCH_FAILED", "misaligned address")
"""What an error says after which a process can do nothing more on its GPU."""


START_S = 120.0
"""How long a process may write nothing until its first case: it imports and finds its device."""


PROGRESS = ("built", "round", "case")
"""Events after which a process that is started anew comes further than the one before."""


def poisoned(reason: str) -> bool:
    """Whether an error leaves the device unusable for the process."""
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
        command: goes on from the journal, and exits with 0 once all is done.
        path: the journal.
        deadline: when it is stopped.
        silence_s: how long it may write nothing.
        say: for a line of progress.
        every_s: how often it is looked after.
        env: the environment of its processes; None for this one's.

    Returns:
        whether it finished.
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
        over = time.time() >= deadline  # Then it is nobody's fault.
        blamed = last.get("peer") if last["event"] in ("begin", "built", "failed") else None
        blamed = None if over else blamed
        why = last.get("reason", why) if last["event"] == "failed" and not over else why
        Journal(path).write(
            {"event": "lost", "case": last["case"], "peer": blamed or "", "reason": why}
        )
        say(f"lost: {last['case']} {blamed or ''}: {why}")
        # Without anybody to blame, and nothing measured, it would be lost in the same way again.
        before, progress = progress, sum(event["event"] in PROGRESS for event in begun)
        if over or not (blamed or progress > before):
            return False


def end_with_parent(every_s: float = 0.5) -> None:
    """End this process soon after the one that watches it: another may go on with its journal."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal; False where it cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def watch(
    process: subprocess.Popen, path: Path, deadline: float, silence_s: float, every_s: float
) -> str | None:
    """Why the process was lost; None if it finished."""
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
            heard = now  # Somebody stopped it; it does not hang.
        if now >= deadline:
            return "the time was over"
        if now - heard > patience_s:
            return f"no sign of life for {patience_s:g} s"
        time.sleep(every_s)
