"""Several devices and several processes: the numbers of one, and an end when one is missing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxrnn.training import launch
from tests import devices_job

ROOT = Path(__file__).parents[1]


def start(folder: Path, *words: str, processes: int = 1, **environment: str) -> list[Any]:
    """Processes of the job; each one's standard error in a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    begun = []
    for index in range(processes):
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        with (folder / f"error-{index}").open("w") as error:
            command = [sys.executable, "-m", "tests.devices_job", str(folder), *words]
            quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # most of the time is compiling
            env = {**os.environ, **quick, **environment}
            begun.append(subprocess.Popen(command, env=env, cwd=ROOT, stderr=error, text=True))
    return begun


def said(folder: Path, index: int = 0) -> str:
    return (folder / f"error-{index}").read_text()


def close(one: Any, other: Any, tolerance: float) -> None:
    for name in ("losses", "validation", "params"):
        np.testing.assert_allclose(one[name], other[name], rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What eight devices of one process gave; one worker of the tests runs it for all."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "eight"
    try:
        folder.mkdir()
    except FileExistsError:
        limit = time.monotonic() + 600
        while not (folder / "done").exists() and time.monotonic() < limit:
            time.sleep(0.1)
    else:
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        (job,) = start(folder, "eight", XLA_FLAGS=flags, JAX_ENABLE_X64="1")
        job.wait(600)
        (folder / "done").touch()
    assert (folder / "found").exists(), said(folder)
    return json.loads((folder / "found").read_text())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_devices_have_the_numbers_of_one(found: dict[str, Any], kind: str) -> None:
    alone = found[f"{kind} none"]
    assert len(alone["losses"]) == devices_job.STEPS
    others = [name for name in found if name.startswith(kind) and name != f"{kind} none"]
    assert others == [f"{kind} {how}" for how in devices_job.HOW[kind]]
    for name in others:
        close(found[name], alone, 1e-12)


def test_a_checkpoint_goes_from_any_devices_to_any(found: dict[str, Any]) -> None:
    moved = [name for name in found if name.startswith("from")]
    assert len(moved) == 2
    for name in moved:
        close(found[name], found["LSTM none"], 1e-12)


WRONG = {
    "batch": r"ValueError: .* 8 devices.* 12",
    "all of the data": r"ValueError: .* 8 devices.* 20",
    "fed": r"ValueError: .* 8 devices.* 3",
    "names": r"ValueError: .*'data' and 'model', got \('rows',\)",
    "too many": r"ValueError: `mesh` .* 8 devices, got 9",
    "kind": r"TypeError: .*Mesh.*str",
    "units": r"ValueError: .*'model'.* 12 hidden units.* 8 devices",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_devices_can_not_share_is_one_clear_error(found: dict[str, Any], name: str) -> None:
    said = found[f"wrong {name}"]
    assert re.match(WRONG[name], said), said
    assert "\n" not in said


def test_two_processes_have_the_numbers_of_one(tmp_path: Path) -> None:
    jobs = start(tmp_path, processes=2)
    with jax.enable_x64(False):
        devices_job.main(tmp_path, "")  # the one is this
    for index, job in enumerate(jobs):
        assert job.wait(600) == 0, said(tmp_path, index)
    one, *two = [json.loads((tmp_path / f"numbers-{n}").read_text()) for n in ("1-0", "2-0", "2-1")]
    assert two[0] == two[1]
    for name in one:
        close(two[0][name], one[name], 1e-6)
    assert (tmp_path / "saved-2" / "step_00000008").is_dir()
    written = [tmp_path / f"history-{n}.csv" for n in ("1-0", "2-0", "2-1")]
    assert [path.exists() for path in written] == [True, True, False]  # the first one writes
    assert len(written[1].read_text().splitlines()) == 1 + devices_job.STEPS


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_the_other_ends_and_says_why(tmp_path: Path, killed: int) -> None:
    """Before, the processes begin unlike, say so, and go on alike."""
    jobs = start(tmp_path, "kill", processes=2)
    limit = time.monotonic() + 600
    while not (tmp_path / "saved" / "step_00000012").exists() and time.monotonic() < limit:
        assert all(job.poll() is None for job in jobs), said(tmp_path, 0) + said(tmp_path, 1)
        time.sleep(0.02)
    jobs[killed].kill()
    begun = time.monotonic()
    assert jobs[1 - killed].wait(120) != 0
    assert time.monotonic() - begun < 60
    for index in range(2):
        told = (tmp_path / f"unlike-{index}").read_text()
        assert "parameters must be equal in all processes" in told
        assert "process 0 and process 1" in told
    words = said(tmp_path, 1 - killed)
    assert re.search("ProcessLost: .*another of the 2 processes has ended|another task died", words)
    assert jobs[killed].wait() == -9


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, pathlib, signal, time\n"
        "me = os.environ['JAX_PROCESS_ID']\n"
        "part = pathlib.Path(__file__).with_name(me + 'part')\n"
        "part.write_text(str(os.getpid()))\n"
        "part.rename(part.with_name(me))\n"
        "while not pathlib.Path(__file__).with_name('1').exists(): time.sleep(0.01)\n"
        "if me == '0': os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        launch.run([str(script)], 2)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    for name in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / name).read_text()), 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0", "a.py"], "at least one process and a script are needed"),
        (["-n", "2"], "at least one process and a script are needed"),
        (["-n", "2", "none.py", "-x"], "there is no script 'none.py'"),
        (["-n", "many", "a.py"], "'many'"),
    ],
    ids=" ".join,
)
def test_what_can_not_be_launched_is_said(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
