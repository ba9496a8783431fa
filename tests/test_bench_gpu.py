"""GPU benchmark without a GPU: its journal, its supervision and its counts of launches."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import ahead, cli, journal, launches, runner, supervised
from bench.core import Case, Contender, Settings, Suite, Unsupported
from bench.layers import Spec, draw_cotangent, draw_input, draw_weights
from bench.peers import PEERS
from bench.precision import precision
from bench.reference import errors, run_stack
from bench.runner import build_all, run_suite
from bench.suites import SUITES, tilings
from jaxrnn import cells
from jaxrnn.backends.hopper import tiling as hopper_tiling

SUITE = SUITES["gpu"]


# What is compiled.


def test_compiling_ahead_fills_the_cache(tmp_path: Path) -> None:
    cases = [case for case in SUITE.cases if case.name == "tiny-lstm-16-4-12-bfloat16-forward"]
    said: list[str] = []
    deadline = time.time() + 120
    assert ahead.build_ahead(SUITE, cases, ["jaxrnn"], str(tmp_path), deadline, said.append) == 1
    assert list(tmp_path.glob("*-cache"))
    assert said == ["gpu: 1 of 1 cases compiled ahead"]


def test_compiling_ahead_stops_at_its_deadline(tmp_path: Path) -> None:
    """The processes are polled once, right after their start."""
    deadline = time.time() + 0.05
    assert ahead.build_ahead(SUITE, SUITE.cases, ["jaxrnn"], str(tmp_path), deadline, print) == 0


def test_tilings_are_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert tilings.UNITS == hopper_tiling.UNITS
    assert tilings.BATCH_TILES == hopper_tiling.BATCH_TILES
    clusters = []
    for name in tilings.CLUSTERS:
        with contextlib.suppress(Unsupported):
            clusters.append(tilings.tiling_of(name, cells.LSTM(), jnp.bfloat16, 32, 512))
    assert {(t.C, t.U, t.B) for t in clusters} >= {(16, 32, 16)}
    assert tilings.tiling_of("jaxrnn", cells.LSTM(), jnp.bfloat16, 32, 512) in clusters
    groups = []
    for name in tilings.GROUPED:
        with contextlib.suppress(Unsupported):
            groups.append(tilings.tiling_of(name, cells.LSTM(), jnp.bfloat16, 64, 1024))
    assert tilings.tiling_of("jaxrnn", cells.LSTM(), jnp.bfloat16, 64, 1024) in groups
    assert {t.C for t in groups} == set(hopper_tiling.GROUP_CLUSTER_SIZES)
    with pytest.raises(Unsupported, match="does not fit"):
        tilings.tiling_of("jaxrnn", cells.LSTM(), jnp.bfloat16, 32, 2048)


# What is compared.


def test_the_first_sequences_and_steps_represent_all() -> None:
    """For a cotangent that is zero elsewhere, the gradients of the part and the whole are equal."""
    spec = Spec("gru", 3, 7, 4, 5, sample=(2, 4))
    weights, x = draw_weights(spec), draw_input(spec).astype(np.float64)
    weights = {name: w.astype(np.float64) for name, w in weights.items()}
    torch = pytest.importorskip("torch")
    layer = torch.nn.GRU(4, 5).double()
    layer.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    output = layer(torch.from_numpy(x))[0]
    found = torch.autograd.grad(
        output, list(layer.parameters()), torch.from_numpy(draw_cotangent(spec)).double()
    )
    names = [name for name, _ in layer.named_parameters()]
    gradients = {name: g.numpy() for name, g in zip(names, found, strict=True)}
    assert max(errors(spec, output.detach().numpy(), gradients).values()) < 1e-12
    gradients["weight_hh_l0"] = gradients["weight_hh_l0"] + 0.1
    assert errors(spec, output.detach().numpy(), gradients)["gradient"] > 0.01


def test_low_precision_starts_from_rounded_values() -> None:
    spec = Spec("lstm", 2, 3, 4, 5, dtype="bfloat16")
    drawn = draw_weights(spec)["weight_hh_l0"]
    np.testing.assert_array_equal(drawn, np.asarray(jnp.asarray(drawn, jnp.bfloat16), np.float32))
    assert not np.array_equal(drawn, draw_weights(replace(spec, dtype="float32"))["weight_hh_l0"])


def test_tf32_is_set_in_both_libraries_and_restored() -> None:
    torch = pytest.importorskip("torch")
    a = jnp.ones((2, 2), jnp.float32)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for tf32, word in ((True, "HIGH,"), (False, "HIGHEST,")):
        with precision(tf32):
            assert word in jax.jit(lambda a: a @ a).lower(a).as_text()
            assert torch.backends.cuda.matmul.allow_tf32 is tf32
            assert torch.backends.cudnn.allow_tf32 is tf32
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_weights_are_packed_in_cudnns_layout() -> None:
    from jax.experimental import rnn

    from bench.peers.jax_rnn import pack

    spec = Spec("lstm", 2, 3, 4, 5, 2, True)
    weights = draw_weights(spec)
    packed = pack(spec, {name: jnp.asarray(w) for name, w in weights.items()})
    sizes = (spec.D, spec.H, spec.num_layers, spec.bidirectional)
    assert packed.size == rnn.get_num_params_in_lstm(*sizes)
    zeros = jnp.zeros((4, spec.N, spec.H), jnp.float32)
    x = jnp.asarray(draw_input(spec)).swapaxes(0, 1)
    lengths = jnp.full((spec.N,), spec.T, jnp.int32)
    parts = rnn.unpack_lstm_weights(packed, *sizes)
    output = rnn.lstm_ref(x, zeros, zeros, *parts, lengths, *sizes[:3], 0.0, spec.bidirectional)[0]
    expected = run_stack(spec, weights, draw_input(spec), False)[0]
    np.testing.assert_allclose(output.swapaxes(0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("peer", ["jax.rnn", "torch.graph", "jaxrnn.kernel"])
def test_an_unsupported_peer_has_a_reason(peer: str) -> None:
    if peer == "torch.graph":
        pytest.importorskip("torch")
    with pytest.raises(Unsupported, match=r"GPU|dtype|float"):
        PEERS[peer].load().contender(Spec("lstm", 2, 3, 4, 5, dtype="bfloat16"), True)


def test_a_captured_graph_is_replayed_and_warmed_up_before(monkeypatch: Any) -> None:
    """Fakes replace CUDA; the test checks the order of the calls."""
    torch = pytest.importorskip("torch")
    from contextlib import contextmanager

    from bench.peers import pytorch

    said: list[str] = []

    @contextmanager
    def inside(name: str) -> Any:
        said.append(f"{name}(")
        yield
        said.append(")")

    stream = SimpleNamespace(wait_stream=lambda other: said.append("wait"))
    graph = SimpleNamespace(replay=lambda: said.append("replay"))
    for name, stand_in in (
        ("Stream", lambda: stream),
        ("current_stream", lambda: stream),
        ("stream", lambda side: inside("side")),
        ("CUDAGraph", lambda: graph),
        ("graph", lambda graph: inside("capture")),
        ("synchronize", lambda: said.append("synchronize")),
        ("memory_allocated", lambda: 3),
        ("reset_peak_memory_stats", lambda: said.append("reset")),
        ("max_memory_allocated", lambda: 10),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    replay, taken = pytorch.captured(lambda: said.append("run") or "results")
    assert taken == 7
    assert replay() == "results"
    warm = ["wait", "side(", "run", "run", "run", ")", "wait"]
    capture = ["synchronize", "reset", "capture(", "run", ")"]
    assert said == [*warm, *capture, "replay", "synchronize"]


# What is written, and what survives.


def plain_case(name: str, slow: bool = False) -> Case:
    def build(peer: str) -> Contender:
        if peer == "flax.nnx":
            raise MemoryError("out of memory: 80 GB")
        if peer == "haiku":
            raise Unsupported("it can't")
        return Contender(
            run=lambda: time.sleep(0.2 if slow else 0.0005),
            check=lambda: {"output": 1e-7},
            memory=lambda: 3e6,
        )

    peers = ("jaxrnn", "torch", "flax.nnx", "haiku")
    return Case(name, build, peers, "forward", name, flops=1e6, steps=10)


def settings(seconds: float) -> Settings:
    return Settings(2, 0.001, 0.0, deadline=time.time() + seconds, case_s=seconds)


def run(cases: list[Case], path: Path, seconds: float = 60.0) -> list[dict[str, Any]]:
    suite = Suite("gpu", "", tuple(cases))
    peers = ("jaxrnn", "torch", "flax.nnx", "haiku")
    quiet = lambda *_: None  # noqa: E731
    log = journal.Journal(path)
    return run_suite(suite, cases, peers, settings(seconds), lambda c: 1e9, quiet, quiet, log)


def test_a_failed_contender_is_reported_and_the_others_continue(tmp_path: Path) -> None:
    (record,) = run([plain_case("a")], tmp_path / "gpu.jsonl")
    assert record["peers"]["flax.nnx"] == {
        "status": "failed",
        "reason": "MemoryError: out of memory: 80 GB",
    }
    assert record["peers"]["haiku"]["status"] == "left out"
    ours = record["peers"]["jaxrnn"]
    assert ours["us_a_step"] == pytest.approx(1e5 * ours["min"])
    assert ours["gemm_fraction"] == pytest.approx(1e-3 / ours["min"])
    assert ours["temporary_bytes"] == 3e6


def test_the_journal_of_an_interrupted_run_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    a, b = plain_case("a"), plain_case("b")
    run([a, b], path)
    lines = path.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if json.loads(line)["event"] == "round")
    path.write_text("\n".join([*lines[: last + 1], lines[-1][:40]]))  # Killed while writing.
    cases, peaks = {"a": a, "b": b}, {"float32": 1e9}
    whole, part = journal.records(journal.read(path), cases, (), peaks)
    assert part["peers"]["torch"]["gemm_fraction"] > 0
    calls = [e["calls"]["torch"] for e in journal.read(path) if e["event"] == "round"]
    assert part["peers"]["torch"]["calls"] == calls[-1] > 1
    assert whole["peers"]["torch"]["samples"]
    assert len(part["peers"]["torch"]["samples"]) == 2
    assert part["peers"]["torch"]["ratio"] > 0
    assert part["peers"]["flax.nnx"]["status"] == "failed"
    assert [r["case"] for r in run([a, b], path)] == ["a", "b"]  # Goes on from there.
    assert [e["case"] for e in journal.read(path) if e["event"] == "case"] == ["a", "b"]
    with path.open("ab") as file:
        file.write(b"\xff\n[]\n{}\n")
    assert len(journal.records(journal.read(path), {})) == 2


def test_missing_contenders_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    run([plain_case("a")], path)
    events = [e for e in journal.read(path) if e["event"] == "begin"][:1]
    (record,) = journal.records(events, {"a": plain_case("a")}, ["jaxrnn", "torch"])
    assert {name: entry["reason"] for name, entry in record["peers"].items()} == {
        "jaxrnn": "the run ended before it was built",
        "torch": "the run ended before it was built",
    }


def test_a_contender_without_memory_leaves_the_rounds(tmp_path: Path) -> None:
    calls = iter(range(9))

    def exhausted() -> None:
        if next(calls) > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    case = plain_case("a")
    build = lambda p: Contender(run=exhausted) if p == "torch" else case.build(p)  # noqa: E731
    (record,) = run([replace(case, build=build)], tmp_path / "gpu.jsonl")
    assert record["peers"]["torch"]["status"] == "failed"
    assert "RESOURCE_EXHAUSTED" in record["peers"]["torch"]["reason"]
    assert len(record["peers"]["jaxrnn"]["samples"]) == 2


def test_a_backend_that_lost_a_process_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    for peer in ("jaxrnn.kernel", "torch"):
        why = {"reason": "no sign of life for 60 s"}
        journal.Journal(path).write({"event": "lost", "case": "a", "peer": peer, **why})
    events = journal.read(path)
    assert journal.left_alone(events, "a").keys() == {"jaxrnn.kernel", "torch"}
    assert journal.left_alone(events, "b") == {
        "jaxrnn.kernel": "lost in a before: no sign of life for 60 s"
    }


def test_jax_contenders_compile_in_parallel_after_the_others(tmp_path: Path) -> None:
    """Each waits at a barrier for the others; after the loss of a process they compile in turn."""
    barrier, order = threading.Barrier(3), []
    case = plain_case("a")

    def build(peer: str) -> Contender:
        order.append(peer)
        if peer != "torch":
            barrier.wait(10)
        return case.build(peer)

    def built(lost: dict[str, str]) -> Any:
        names = ("jaxrnn", "torch", "flax.nnx", "haiku")
        watch = lambda event: None  # noqa: E731
        order.clear()
        return build_all(replace(case, build=build), names, watch, lost, 60.0, together=True)

    with mock.patch.object(runner, "usable_cores", return_value=3):
        contenders, entries = built({})
    assert order[0] == "torch"
    assert list(contenders) == ["jaxrnn", "torch"]
    assert list(entries) == ["jaxrnn", "torch", "flax.nnx", "haiku"]
    assert "MemoryError" in entries["flax.nnx"]["reason"]
    barrier = threading.Barrier(1)
    assert list(built({journal.TOGETHER: "the process died"})[0]) == ["jaxrnn", "torch"]
    assert order == ["jaxrnn", "torch", "flax.nnx", "haiku"]


@pytest.mark.parametrize(
    "line",
    ["", "\0\0", "{}", '{"event": "report"}', '{"event": "report", "report": {"suite": "x"}}'],
)
def test_a_damaged_journal_is_one_line(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "gpu.jsonl"
    assert cli.main(["--journal", str(path)]) == 2
    path.write_text(f"{line}\n")
    assert cli.main(["--journal", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert [str(path) in said for said in err.splitlines()] == [True, True]


def test_the_deadline_ends_a_run_and_its_cases(tmp_path: Path) -> None:
    cases = [plain_case(name, slow=True) for name in "abc"]
    records = run(cases, tmp_path / "gpu.jsonl", seconds=1.0)
    assert 1 <= len(records) < 3


def test_a_poisoned_device_ends_the_process_that_has_it(tmp_path: Path) -> None:
    def build(peer: str) -> Contender:
        if peer == "torch":
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access")
        return Contender(run=lambda: None)

    path = tmp_path / "gpu.jsonl"
    with pytest.raises(SystemExit) as stop:
        run([replace(plain_case("a"), build=build)], path)
    assert stop.value.code == supervised.POISONED
    assert [event["peer"] for event in journal.read(path) if event["event"] == "failed"] == [
        "torch"
    ]


WORKER = """
import os, sys, time, json
from bench.journal import Journal, lost, read
path = sys.argv[1]
from pathlib import Path
journal = Journal(Path(path))
events = read(Path(path)) if os.path.exists(path) else []
for peer in ("good", "hangs", "dies", "last"):
    if peer in lost(events, "a"):
        continue
    journal.write({"event": "begin", "case": "a", "peer": peer})
    if peer == "hangs":
        time.sleep(60)
    if peer == "dies":
        os.kill(os.getpid(), 9)
    journal.write({"event": "built", "case": "a", "peer": peer, "entry": {"status": "ok"}})
"""


def test_a_hanging_or_dying_contender_is_lost_and_the_rest_is_measured(tmp_path: Path) -> None:
    path, said = tmp_path / "gpu.jsonl", []
    command = [sys.executable, "-c", WORKER, str(path)]
    assert supervised.supervise(command, path, time.time() + 200, 3, said.append, 0.02)
    why = journal.lost(journal.read(path), "a")
    assert why == {"hangs": "no sign of life for 3 s", "dies": "the process died (signal 9)"}
    assert journal.read(path)[-1]["peer"] == "last"
    assert len(said) == 2


def test_the_deadline_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert not supervised.supervise(command, path, time.time() + 0.3, 30, lambda line: None, 0.02)
    assert journal.read(path)[-1]["reason"] == "the time was over"


def test_the_deadline_blames_no_contender(tmp_path: Path) -> None:
    """A later run measures the last started contender."""
    path = tmp_path / "gpu.jsonl"
    begin = {"event": "begin", "case": "a", "peer": "slow"}
    journal.Journal(path).write(begin)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert not supervised.supervise(command, path, time.time() + 0.3, 30, lambda line: None, 0.02)
    assert journal.lost(journal.read(path), "a") == {}


PARENT = """
import subprocess, sys, time
child = "import time, bench.supervised as s; s.end_with_parent(0.02); print(1, flush=True); "
subprocess.Popen([sys.executable, "-c", child + "time.sleep(20); print('it lives')"])
time.sleep(60)
"""


def test_a_worker_ends_with_its_supervisor() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"1\n"
    parent.kill()
    assert parent.stdout.read() == b""  # Closed when the worker has ended, too.
    parent.wait()
    parent.stdout.close()


# The suite itself.


def test_a_worker_measures_and_its_journal_becomes_the_report(tmp_path: Path) -> None:
    words = ["gpu", "--cases", "tiny-lstm-16-4-12-bfloat16-forward", "--peers", "flax.nnx,jax.rnn"]
    words += ["--quick", "--reps", "1", "--out", str(tmp_path)]
    assert cli.main([*words, "--worker", repr(time.time() + 60)]) == 0
    for suffix in ("json", "md", "png"):
        (tmp_path / f"gpu.{suffix}").unlink(missing_ok=True)
    assert cli.main(["--journal", str(tmp_path / "gpu.jsonl")]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    (record,) = report["records"]
    assert record["peers"]["jaxrnn"]["error"]["output"] < 0.02
    assert record["peers"]["jax.rnn"]["reason"] == "it takes float32 only"
    assert report["peak"][0]["precision"] == "bfloat16"
    text = (tmp_path / "gpu.md").read_text()
    assert "microseconds a step" in text
    assert "GEMM peak" in text
    assert cli.main([*words]) == 2  # The folder holds another run's journal.


def test_the_most_important_cases_come_first() -> None:
    names = [case.name for case in SUITE.cases]
    assert names[:3] == [
        "lstm-512-32-256-bfloat16-backward",
        "lstm-768-16-1024-float16-backward",
        "lstm-128-64-512-float32-backward",
    ]
    wanted = {f"lstm-512-32-256-{kind}-backward" for kind in ("float32", "tf32", "bfloat16")}
    for sizes in ("lstm-768-16-1024", "lstm-1024-64-512"):
        wanted |= {f"{sizes}-{kind}-backward" for kind in ("float16", "bfloat16")}
    wanted |= {f"gru-{sizes}-bfloat16-backward" for sizes in ("512-32-256", "1024-32-1500")}
    wanted |= {"lstm-3x2-512-32-256-tf32-backward", "lstm-128-64-512-tf32-backward"}
    assert wanted | {"lstm-ragged-256-128-128-tf32", "lstm-adam-language-tf32"} <= set(names)
    everybody = {"jaxrnn", "torch", "torch.graph", "flax.nnx", "keras", "jax.rnn"}
    assert everybody <= set(SUITE.cases[0].peers)
    for case in SUITE.cases:
        assert {"jaxrnn", "torch", "flax.nnx"} <= set(case.peers)
        assert case.steps
        assert case.flops
    table = [i for i, name in enumerate(names) if name.startswith("deepbench")]
    assert len(table) == 52
    assert min(table) > names.index("lstm-adam-language-tf32")
    assert SUITE.budget_s is not None
    assert SUITE.budget_s <= 480


# Counting kernels.

MODULE = """HloModule m

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %a = f32[4]{0} get-tuple-element(%p), index=1
  %dot = f32[4]{0} fusion(%a), kind=kCustom, calls=%gemm
  %both = (f32[4]{0}, f32[4]{0}) fusion(%dot), kind=kLoop, calls=%pointwise
  %i = s32[] fusion(%p), kind=kLoop, calls=%add
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %dot)
}

%graph (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0)
  ROOT %copy.1 = f32[4]{0} copy(%q)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %c = f32[4]{0} call(%x), to_apply=%graph
  %w = (s32[], f32[4]{0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %y = f32[4]{0} custom-call(%c), custom_call_target="__cublas$gemm"
}
"""  # noqa: E501


def test_launches_are_counted_through_loops_and_calls() -> None:
    assert launches.launches(MODULE) == 5 * 3 + 1 + 1
    with pytest.raises(ValueError, match="unknown length"):
        launches.launches(MODULE.replace("known_trip_count", "nothing"))


def test_a_module_of_xla_is_read() -> None:
    """The compiler for CPUs writes the same format."""
    run = lambda x: jax.lax.scan(lambda c, x: (jnp.tanh(c @ c + x), None), x[0], x)[0]  # noqa: E731
    text = jax.jit(run).lower(jnp.ones((6, 3, 3))).compile().as_text() or ""
    found, entry = launches.computations(text)
    assert entry in found
    assert launches.launches(text) >= 6 * 2
