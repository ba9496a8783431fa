"""Arithmetic of the benchmark, and one complete case."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench import cli, running, timing
from bench.core import Unsupported
from bench.layers import Spec, draw_input, draw_weights
from bench.peers import PEERS
from bench.reference import errors
from bench.suites import SUITES, ragged
from bench.suites.deepbench import SPECS, needs_gpu


def test_ratios_are_taken_pair_by_pair() -> None:
    table = timing.summarise({"jaxrnn": [1.0, 10.0, 1.0], "torch": [2.0, 20.0, 3.0]})
    assert table["torch"]["ratio"] == 2.0
    assert table["torch"]["min"] == 2.0
    assert table["jaxrnn"]["median"] == 1.0


def test_the_geometric_mean_of_inverses_is_the_inverse() -> None:
    values = [0.3, 2.0, 7.0]
    product = timing.geometric_mean(values) * timing.geometric_mean([1 / v for v in values])
    assert math.isclose(product, 1.0)


def test_a_case_runs_and_is_written(tmp_path: Path) -> None:
    arguments = ["layers", "--cases", "gru-sine", "--peers", "flax.linen", "--reps", "1", "--quick"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "layers.json").read_text())
    assert {"jaxrnn", "flax.linen"} <= set(report["records"][0]["peers"])
    ours = report["records"][0]["peers"]["jaxrnn"]
    assert ours["status"] == "ok"
    assert max(ours["error"].values()) < 1e-5
    assert "jaxrnn" in (tmp_path / "layers.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        *(["lyers"], ["layers", "--peers", "torhc"], ["--reps", "x"], ["--budget", "nan"]),
        *(["tilings", "--quick"], ["--out", "/dev/null/no"]),
    ],
)
def test_a_wrong_name_is_one_clear_line(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words) != 0
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("stack", [(1, False), (2, True)])
def test_onnxruntime_computes_the_same(cell: str, stack: tuple[int, bool]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    spec, peer = Spec(cell, 3, 5, 4, 6, *stack), PEERS["onnxruntime"].load()
    contender = peer.contender(spec, False)
    assert contender.check is not None
    assert contender.check()["output"] < 1e-5
    with pytest.raises(Unsupported, match="forward only"):
        peer.contender(spec, True)


@pytest.mark.filterwarnings("ignore")  # PyTorch's tracing warns about itself.
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_layer_for_torch_compile_is_correct(cell: str) -> None:
    """Run without the compiler, which takes seconds."""
    torch = pytest.importorskip("torch")
    from bench.peers import pytorch_compiled

    spec = Spec(cell, 3, 5, 4, 6)
    names, arrays = zip(*draw_weights(spec).items(), strict=True)
    params = [torch.from_numpy(array).requires_grad_() for array in arrays]
    output = pytorch_compiled.formulas(spec)(torch.from_numpy(draw_input(spec)), *params)
    found = torch.autograd.grad(output, params, torch.ones_like(output))
    gradients = dict(zip(names, (g.numpy() for g in found), strict=True))
    relative = errors(spec, output.detach().numpy(), gradients)
    assert max(relative.values()) < 1e-5
    assert pytorch_compiled.checked(spec, relative) == relative
    with pytest.raises(RuntimeError, match="gradient"):
        pytorch_compiled.checked(spec, {"output": 1e-7, "gradient": 0.3})


def test_a_stack_is_refused_before_compilation() -> None:
    pytest.importorskip("torch")
    with pytest.raises(Unsupported, match="one layer"):
        PEERS["torch.compile"].load().contender(Spec("lstm", 1, 2, 3, 4, 2), True)


def test_all_forms_of_ragged_batches_compute_the_same() -> None:
    pytest.importorskip("torch")
    case = ragged.Ragged(Spec("lstm", 4, 30, 3, 5), "uniform")
    for name in ragged.CONTENDERS:
        check = ragged.build(case, name).check
        assert check is not None
        assert max(check().values()) < 1e-5


def test_names_are_unique_and_quick_selects_some() -> None:
    for suite in SUITES.values():
        names = [case.name for case in suite.cases]
        assert len(set(names)) == len(names)
        assert all(any(cli.matches(name, p) for name in names) for p in suite.quick)


def test_a_cpu_runs_the_small_cases_of_deepbench() -> None:
    assert len(SPECS) == len(set(SPECS)) == 52
    assert {spec.cell for spec in SPECS if not needs_gpu(spec)} == {"rnn", "lstm", "gru"}
    cases = SUITES["deepbench"].cases
    selected, left_out = running.for_backend(cases, "cpu")
    assert 0 < len(selected) < len(cases)
    assert left_out[0].startswith(
        f"{len(cases) - len(selected)} of {len(cases)} cases, which need a G"
    )
    assert running.for_backend(cases, "gpu") == (list(cases), [])


def test_quick_skips_peers_that_compile_for_long() -> None:
    suites = cli.choose_suites(["layers"])
    assert "torch.compile" not in cli.choose_peers(None, suites, True)
    assert "torch.compile" in cli.choose_peers(None, suites, False)
    assert "torch.compile" in cli.choose_peers("torch.compile", suites, True)
