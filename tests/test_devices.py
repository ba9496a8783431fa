"""Several devices and processes: the numbers of one device, and the loss of a process."""

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
    """Start processes of the job, with standard error in files."""
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
            quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling dominates
            env = {**os.environ, **quick, **environment}
            begun.append(subprocess.Popen(command, env=env, cwd=ROOT, stderr=error, text=True))
    return begun


def stderr(folder: Path, index: int = 0) -> str:
    return (folder / f"error-{index}").read_text()


def close(one: Any, other: Any, tolerance: float) -> None:
    for name in ("losses", "validation", "params"):
        np.testing.assert_allclose(one[name], other[name], rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of eight devices; one worker of the tests computes them for all."""
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
    assert (folder / "results").exists(), stderr(folder)
    return json.loads((folder / "results").read_text())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_several_devices_equal_one(results: dict[str, Any], kind: str) -> None:
    alone = results[f"{kind} none"]
    assert len(alone["losses"]) == devices_job.STEPS
    others = [name for name in results if name.startswith(kind) and name != f"{kind} none"]
    assert others == [f"{kind} {how}" for how in devices_job.HOW[kind]]
    for name in others:
        close(results[name], alone, 1e-12)


def test_a_checkpoint_moves_between_meshes(results: dict[str, Any]) -> None:
    moved = [name for name in results if name.startswith("from")]
    assert len(moved) == 2
    for name in moved:
        close(results[name], results["LSTM none"], 1e-12)


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
def test_indivisible_sizes_raise_one_clear_error(results: dict[str, Any], name: str) -> None:
    message = results[f"wrong {name}"]
    assert re.match(WRONG[name], message), message
    assert "\n" not in message


def test_two_processes_equal_one(tmp_path: Path) -> None:
    jobs = start(tmp_path, processes=2)
    with jax.enable_x64(False):
        devices_job.main(tmp_path, "")  # in this process
    for index, job in enumerate(jobs):
        assert job.wait(600) == 0, stderr(tmp_path, index)
    one, *two = [json.loads((tmp_path / f"numbers-{n}").read_text()) for n in ("1-0", "2-0", "2-1")]
    assert two[0] == two[1]
    for name in one:
        close(two[0][name], one[name], 1e-6)
    assert (tmp_path / "saved-2" / "step_00000008").is_dir()
    written = [tmp_path / f"history-{n}.csv" for n in ("1-0", "2-0", "2-1")]
    assert [path.exists() for path in written] == [True, True, False]  # the first process writes
    assert len(written[1].read_text().splitlines()) == 1 + devices_job.STEPS


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_ends_when_another_is_killed(tmp_path: Path, killed: int) -> None:
    """The processes also reject unequal parameters before they train."""
    jobs = start(tmp_path, "kill", processes=2)
    limit = time.monotonic() + 600
    while not (tmp_path / "saved" / "step_00000012").exists() and time.monotonic() < limit:
        assert all(job.poll() is None for job in jobs), stderr(tmp_path, 0) + stderr(tmp_path, 1)
        time.sleep(0.02)
    jobs[killed].kill()
    begun = time.monotonic()
    assert jobs[1 - killed].wait(120) != 0
    assert time.monotonic() - begun < 60
    for index in range(2):
        message = (tmp_path / f"unlike-{index}").read_text()
        assert "parameters must be equal in all processes" in message
        assert "process 0 and process 1" in message
    words = stderr(tmp_path, 1 - killed)
    assert re.search("ProcessLost: .*another of the 2 processes has ended|another task died", words)
    assert jobs[killed].wait() == -9


def test_the_launcher_kills_its_processes(tmp_path: Path) -> None:
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
def test_invalid_launches_are_reported(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
