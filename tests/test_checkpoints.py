"""Checkpoints: bit-exact resume, damage, foreign checkpoints and full disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn.training import CheckpointError, Checkpoints, EarlyStopping, NonFiniteLoss, fit
from tests.test_fit import ALONE, DATA, Net, error

resource = pytest.importorskip("resource")

ADAM, SGD = optax.adam(0.01), optax.sgd(0.1)
STEPS, EVERY = 240, 20


def train(checkpoints: Checkpoints | None, resume: bool = False, steps: int = STEPS) -> Any:
    """Train with dropout, shuffling, validation and early stopping."""
    return fit(
        error,
        ADAM,
        Net(nnx.Rngs(params=0, dropout=5)),
        DATA,
        steps=steps,
        batch_size=4,
        key=2,
        validation=DATA,
        evaluate_every=40,
        early_stopping=EarlyStopping("loss", patience=100),
        checkpoints=checkpoints,
        resume=resume,
    )


def values(run: Any) -> Any:
    return nnx.state(run.model, nnx.Param), run.opt_state, run.history


def assert_equal(one: Any, other: Any) -> None:
    """Assert equality bit for bit."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def uninterrupted() -> Any:
    return values(train(None))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with checkpoints of steps 10, 20 and 30."""
    folder = tmp_path_factory.mktemp("written")
    small(Checkpoints(folder, every=10))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def square(w: Any, batch: Any) -> Any:
    return ((w * batch - 1.0) ** 2).mean()


def small(checkpoints: Checkpoints | None, steps: int = 30, **options: Any) -> Any:
    arguments: dict[str, Any] = {"model": {"w": jnp.zeros(()), "long": jnp.ones(3000)}}
    arguments |= {"loss": lambda m, b: square(m["w"], b), "optimizer": ADAM, "data": np.arange(6.0)}
    arguments |= {"steps": steps, "batch_size": 2, "chunk": 10, "checkpoints": checkpoints}
    return fit(**(arguments | options))


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, uninterrupted: Any) -> None:
    command = [sys.executable, "-m", "tests.test_checkpoints", str(tmp_path)]
    environment = os.environ | {"JAX_ENABLE_X64": "1"}
    child = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[1])
    saved = Checkpoints(tmp_path, every=EVERY)
    limit = time.monotonic() + 120
    while not saved.steps() and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    wait = random.SystemRandom().uniform(0, 0.4)
    time.sleep(wait)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run ended before it was killed"
    reached = saved.steps()
    assert reached, f"killed {wait} s after the first checkpoint"
    run = train(saved, resume=True)
    assert_equal(values(run), uninterrupted)
    assert saved.steps() == [STEPS - 2 * EVERY, STEPS - EVERY, STEPS]
    assert set(tmp_path.iterdir()) == {saved.path(step) for step in saved.steps()}


def test_a_complete_run_is_restored(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, every=20, keep=1)
    first = train(saved, steps=40)
    assert saved.steps() == [40]
    again = train(saved, resume=True, steps=40)
    assert_equal(values(again), values(first))
    loaded = saved.load(Net(nnx.Rngs(9)))
    last = saved.load(Net(nnx.Rngs(9)), best=True)
    assert_equal(nnx.state(loaded, nnx.Param), nnx.state(first.model, nnx.Param))
    assert_equal(nnx.state(last, nnx.Param), nnx.state(first.model, nnx.Param))


class Reader:
    """Iterator whose state can be saved and restored, like those of grain."""

    def __init__(self, as_bytes: bool):
        self.place, self.drawn, self.as_bytes = 0, 0, as_bytes

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.place, self.drawn = self.place + 1, self.drawn + 1
        return np.arange(3.0) + self.place

    def get_state(self) -> Any:
        return str(self.place).encode() if self.as_bytes else {"place": self.place}

    def set_state(self, state: Any) -> None:
        self.place = int(state if self.as_bytes else state["place"])


@pytest.mark.parametrize("kind", ["bytes", "json", "generator"])
def test_iterators_resume_at_their_position(tmp_path: Path, kind: str) -> None:
    def batches() -> Any:
        if kind == "generator":
            return (np.arange(3.0) + place for place in range(1, 100))
        return Reader(as_bytes=kind == "bytes")

    def run(data: Any, steps: int, **options: Any) -> Any:
        return fit(square, SGD, jnp.zeros(()), data, steps=steps, chunk=4, **options)

    whole = run(batches(), 24).history.losses[:20]
    saved = Checkpoints(tmp_path, every=8, keep=1)
    run(batches(), 8, checkpoints=saved)
    data = batches()
    rest = run(data, 20, checkpoints=saved, resume=True)
    assert_equal(rest.history.losses, whole)
    if kind != "generator":
        assert data.drawn == 12


def test_every_kind_of_array_is_restored(tmp_path: Path) -> None:
    def loss(model: Any, carry: Any, batch: Any) -> Any:
        key, used = jax.random.split(carry["key"])
        error = (model["half"] * batch.sum() - jax.random.uniform(used)) ** 2
        return error + model["empty"].sum(), (carry | {"key": key}, {})

    model = {"half": jnp.ones((), jnp.bfloat16), "empty": jnp.zeros((0, 3))}
    carry = {"key": jax.random.key(3), "empty": jnp.zeros((2, 0), jnp.int32)}

    def run(steps: int, **options: Any) -> Any:
        return fit(loss, ADAM, model, ALONE, steps=steps, carry=carry, chunk=5, **options)

    whole, saved = run(10), Checkpoints(tmp_path, every=5)
    run(5, checkpoints=saved)
    again = run(10, checkpoints=saved, resume=True)
    assert_equal((again.model, again.history), (whole.model, whole.history))
    assert again.model["half"].dtype == jnp.bfloat16
    assert (again.carry["key"] == whole.carry["key"]).all()
    assert again.carry["empty"].shape == (2, 0)


def damage_checkpoint(path: Path, damage: str) -> None:
    """Damage a checkpoint."""
    files = [file for file in (path / "arrays").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    content, middle = largest.read_bytes(), largest.stat().st_size // 2
    record = path / "record" / "metadata"
    if damage == "truncated":
        largest.write_bytes(content[:middle])
    elif damage == "changed":
        largest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "a file less":
        largest.unlink()
    elif damage == "no record":
        shutil.rmtree(path / "record")
    elif damage == "a record changed":
        record.write_text(record.read_text().replace('"shuffle": true', '"shuffle": null'))
    elif damage == "half a record":
        record.write_text(record.read_text()[: record.stat().st_size // 2])
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"format": "another"}))


WORDS = {
    "truncated": "cannot be read",
    "changed": "damaged: .* another content|cannot be read",
    "a file less": "cannot be read",
    "no record": "cannot be read",
    "a record changed": "damaged: its record has another content",
    "half a record": "cannot be read",
    "foreign": "another format, 'another'",
}


@pytest.mark.parametrize("damage", WORDS)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    folder: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = Checkpoints(folder, every=10)
    assert saved.steps() == [10, 20, 30]
    damage_checkpoint(saved.path(30), damage)
    with pytest.warns(UserWarning, match=f"({WORDS[damage]}).*continuing from step 20"):
        run = small(saved, resume=True)
    assert_equal(run.history.losses, small(None).history.losses)
    assert_equal(saved.load(run.model), run.model)
    for step in saved.steps():
        damage_checkpoint(saved.path(step), damage)
    with pytest.raises(
        CheckpointError, match=f"no checkpoint is valid.*({WORDS[damage]})"
    ) as caught:
        small(saved, resume=True)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


FOREIGN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "shape": (
        {"model": {"w": jnp.zeros(()), "long": jnp.ones(2)}},
        ["another model or optimizer", "params/long is float64 (3000,), expected float64 (2,)"],
    ),
    "dtype": (
        {"model": {"w": jnp.zeros((), jnp.float32), "long": jnp.ones(3000)}},
        ["params/w is float64 (), expected float32 ()"],
    ),
    "names": (
        {"model": {"v": jnp.zeros(()), "w": jnp.zeros(()), "long": jnp.ones(3000)}},
        ["opt_state/0/mu/v is missing, expected float64 ()", "params/v is missing"],
    ),
    "optimiser": ({"optimizer": SGD}, ["opt_state/0/count", "expected missing"]),
    "key": ({"key": 1}, ["key=[0, 0]", "[0, 1]"]),
    "batch_size": ({"batch_size": 3}, ["batch_size=2", "3"]),
    "examples": ({"data": np.arange(7.0)}, ["examples=6", "7"]),
    "order": ({"shuffle": False}, ["shuffle=True"]),
    "data": ({"data": np.arange(6.0) + 1}, ["checksum of the data="]),
    "fewer steps": ({"steps": 25}, ["`steps` must be at least 30", "25"]),
    "no resume": ({"resume": False}, ["checkpoint of step 30", "resume=True"]),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_checkpoint_raises_one_clear_error(folder: Path, name: str) -> None:
    changed, words = FOREIGN[name]
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=r"\A.*\Z") as caught:
        small(Checkpoints(folder, every=10), **({"resume": True} | changed))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert sorted(folder.rglob("*")) == before


def test_loading_into_another_model_raises_one_clear_error(folder: Path, tmp_path: Path) -> None:
    saved = Checkpoints(folder, every=10)
    with pytest.raises(ValueError, match=r"params/v is missing, expected float64 \(\)"):
        saved.load({"v": jnp.zeros(())})
    with pytest.raises(ValueError, match="early_stopping=EarlyStopping"):
        saved.load({"w": jnp.zeros(()), "long": jnp.ones(3000)}, best=True)
    with pytest.raises(CheckpointError, match="must have a checkpoint, got none in"):
        Checkpoints(tmp_path / "none", every=10).load(jnp.zeros(()))


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the size of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 3000])
def test_a_full_disk_raises_and_preserves_the_previous_checkpoint(
    folder: Path, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = Checkpoints(folder, every=10)
    # Fill JAX's compilation cache first: the limit applies to its files, too.
    another = Path(shutil.copytree(folder, folder.with_name("another")))
    small(Checkpoints(another, every=10), steps=50, resume=True)
    with (
        full_disk(size),
        pytest.raises(CheckpointError, match=r"step_00000040 .*too large") as caught,
    ):
        small(saved, steps=50, resume=True)
    assert_refused(caught.value, saved)
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_fills_up_while_writing_raises_one_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    def full(self: Any, step: int, *_: Any, **__: Any) -> None:
        part = folder / f"step_{step:08d}.orbax-checkpoint-tmp"
        part.mkdir()
        (part / "half").write_text("half")
        raise ValueError(
            "RESOURCE_EXHAUSTED: Failed writing\nNo space left on device [os_error_code='28']"
        )

    saved = Checkpoints(folder, every=10)
    with monkeypatch.context() as patched:
        patched.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(CheckpointError, match=r"step_00000040 .*No space left") as caught:
            small(saved, steps=50, resume=True)
    assert caught.value.errno == errno.ENOSPC
    assert_refused(caught.value, saved)


def assert_refused(error: Exception, saved: Checkpoints) -> None:
    """Assert a message of one line, an unchanged folder, and a working resume."""
    assert "the one of step 30 is intact" in str(error)
    assert "\n" not in str(error)
    assert set(Path(saved.folder).iterdir()) == {saved.path(step) for step in (10, 20, 30)}
    run = small(saved, steps=50, resume=True)
    assert_equal(run.history.losses, small(None, steps=50).history.losses)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Drop the privileges of root, which may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def never(*_: Any) -> Any:
    pytest.fail("training started")


def test_a_read_only_folder_raises_before_training(unprivileged: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        with pytest.raises(CheckpointError, match=r"cannot be written to.*Permission denied"):
            small(Checkpoints(folder, every=10), loss=never)
        with pytest.raises(CheckpointError, match=r"cannot be written to.*Permission denied"):
            small(Checkpoints(Path(folder, "new"), every=10), loss=never)
        Path(folder).chmod(0o755)


def test_a_folder_under_a_file_raises_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/folder"):
        with pytest.raises(CheckpointError, match="cannot be written to") as caught:
            small(Checkpoints(tmp_path / name, every=10), loss=never)
        assert isinstance(caught.value, OSError)


def test_a_non_finite_loss_preserves_the_last_checkpoint(tmp_path: Path) -> None:
    data = np.where(np.arange(100) == 26, np.inf, 1.0)
    saved = Checkpoints(tmp_path, every=10)
    with pytest.raises(NonFiniteLoss, match=r"at step 27.*checkpoint of step 20"):
        fit(square, SGD, jnp.zeros(()), data, steps=50, batch_size=1, shuffle=False,
            checkpoints=saved)  # fmt: skip
    assert saved.steps() == [10, 20]
    np.testing.assert_allclose(saved.load(jnp.zeros(())), 1 - 0.8**20)


def test_incomplete_checkpoints_are_deleted(folder: Path) -> None:
    part = folder / "step_00000040.orbax-checkpoint-tmp"
    part.mkdir()
    (part / "half").write_text("half")
    small(Checkpoints(folder, every=10), resume=True)
    assert not part.exists()


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 5, "keep": 0}], ids=str)
def test_invalid_options_raise(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be an integer >= 1"):
        Checkpoints("folder", **options)


if __name__ == "__main__":  # the process that is killed
    assert not any(name.startswith("orbax") for name in sys.modules)  # slow to import
    train(Checkpoints(sys.argv[1], every=EVERY))
    time.sleep(60)
