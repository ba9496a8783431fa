"""Recurrent layers of DeepBench's training set: one layer, D = H, three cells, both passes.

Source: Baidu Research, DeepBench, ``code/kernels/rnn_problems.h``: hidden units, batch size and
time steps of speech recognition, machine translation and language models. Only the sizes are
DeepBench's: it times cuDNN without the product for the input and without the gradient of the
weights, and calls its plain cell vanilla; here a layer is that of the other suites.
"""

from dataclasses import replace
from itertools import product

from bench.core import Case, Suite
from bench.layers import NAMES, Spec, flops
from bench.suites.layers import layer_cases

CONFIGURATIONS: tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    # cell, hidden units, batch sizes, time steps: every combination of a line
    ("rnn", (1760, 2048, 2560), (16, 32, 64, 128), (50,)),
    ("lstm", (512, 1024, 2048, 4096), (16, 32, 64, 128), (25,)),
    ("lstm", (1536,), (8, 16, 32), (50,)),
    ("lstm", (256,), (16, 32, 64), (150,)),
    ("gru", (2816,), (32,), (750, 375, 187)),
    ("gru", (2048, 1536, 2560), (32,), (1500, 750, 375, 187)),
    ("gru", (512,), (32,), (1,)),
    ("gru", (1024,), (32, 64), (1500,)),
)

SPECS = tuple(
    Spec(cell, N, T, H, H) for cell, *axes in CONFIGURATIONS for H, N, T in product(*axes)
)

CPU_FLOPS, CPU_BYTES = 0.1e12, 1e9
"""Limits of forward+backward on a CPU: about a second per call, and memory per contender."""


def array_bytes(spec: Spec) -> float:
    """Return the bytes of weights, input, output, gates and their gradients, in float32.

    >>> array_bytes(Spec("lstm", N=16, T=25, D=512, H=512)) / 1e6
    25.821184
    """
    D, H = spec.D, spec.H
    weights = spec.gates * H * (D + H + 2)
    steps = spec.T * spec.N * (D + 2 * H + 2 * spec.gates * H)
    return 4.0 * (2 * weights + steps)


def needs_gpu(spec: Spec) -> str:
    """Return the reason to skip a configuration on a CPU; empty to run it."""
    fits = flops(spec, backward=True) <= CPU_FLOPS and array_bytes(spec) <= CPU_BYTES
    return "" if fits else f"more than {CPU_FLOPS / 1e12:g} TFLOP or {CPU_BYTES / 1e9:g} GB"


def cases(spec: Spec) -> list[Case]:
    """Return both passes of a configuration."""
    name = f"{spec.cell}-{spec.H}-{spec.N}-{spec.T}"
    row = f"{NAMES[spec.cell]} {spec.H}, {spec.N}, {spec.T}"
    return [replace(case, gpu_only=needs_gpu(spec)) for case in layer_cases(name, spec, row)]


SUITE = Suite(
    name="deepbench",
    about="DeepBench's training configurations of RNN, LSTM and GRU (hidden units, batch, steps)",
    cases=tuple(case for spec in SPECS for case in cases(spec)),
    quick=("lstm-512-16-25",),
    reps=5,
    notes=(
        "Sizes of Baidu's DeepBench; the input is as wide as the layer. Its vanilla RNN is the "
        "RNN(tanh) here.",
    ),
)
