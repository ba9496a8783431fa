"""Sizes for GPUs: those of cuDNN's persistent kernels, and others.

cuDNN runs an LSTM in one kernel that keeps its weights on the chip ("persistent") for float16, one
layer, one direction and sizes that are multiples of what its tiles hold, and step by step otherwise
(bfloat16, float32, GRU, stacks, packed sequences). Both kinds are here, the most important first: a
run ends with its time.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from bench.core import Case, Contender, Suite, Unsupported
from bench.jobs import language
from bench.layers import NAMES, Spec, flops
from bench.peers import PEERS
from bench.precision import precision
from bench.suites import deepbench, ragged, training

KINDS: dict[str, tuple[str, bool | None]] = {  # name: dtype, TF32
    "float32": ("float32", False),
    "tf32": ("float32", True),
    "bfloat16": ("bfloat16", None),
    "float16": ("float16", None),
}

FEWER = ("jaxrnn", "torch", "torch.graph", "flax.nnx", "jaxrnn.kernel", "jaxrnn.scan")
EVERYONE = (*FEWER, "jax.rnn", "jaxrnn.graph", "keras")
"""In the order in which they are built, should the time for a case not suffice for all."""

SAMPLE = (2, 64)
"""Rows and steps that are compared with the float64 reference, which a CPU computes."""

BOTH, BACKWARD, FORWARD = (True, False), (True,), (False,)


def slot(
    spec: Spec,
    kind: str,
    passes: tuple[bool, ...] = BACKWARD,
    peers: tuple[str, ...] = EVERYONE,
    gpu_only: str = "the sizes of a GPU",
    prefix: str = "",
) -> Iterator[Case]:
    """Return the cases of a size in a precision, one per pass (True for backward)."""
    dtype, tf32 = KINDS[kind]
    spec = replace(spec, dtype=dtype, tf32=tf32, sample=SAMPLE)
    label = f"{NAMES[spec.cell]} {spec.H}"
    words = [spec.cell, str(spec.H), str(spec.N), str(spec.T), kind]
    if spec.num_layers > 1:
        label += f", {spec.num_layers} layers" + ", bidirectional" * spec.bidirectional
        words.insert(1, f"{spec.num_layers}x{spec.directions}")

    def build(backward: bool, peer: str) -> Contender:
        made = PEERS[peer].load()
        if PEERS[peer].ours and made.default_backend(spec):
            raise Unsupported("it is what jaxrnn takes by itself")
        return made.contender(spec, backward)

    for backward in passes:
        yield Case(
            name="-".join([*([prefix] if prefix else []), *words])
            + ("-backward" if backward else "-forward"),
            build=partial(build, backward),
            peers=peers,
            table=prefix or ("forward+backward" if backward else "forward"),
            row=f"{label}, {kind}",
            group=kind,
            detail={"N": spec.N, "T": spec.T, "D": spec.D, "H": spec.H},
            flops=flops(spec, backward),
            steps=spec.T,
            precision=(dtype, tf32),
            within=partial(precision, tf32),
            gpu_only=gpu_only,
        )


def layer(cell: str, H: int, N: int, T: int, num_layers: int = 1, both: bool = False) -> Spec:
    return Spec(cell, N, T, H, H, num_layers, both)


def others() -> Iterator[Case]:
    """Return cases of the `ragged` and `training` suites."""
    spec = Spec("lstm", 128, 128, 256, 256)
    padded = ragged.ragged_case(spec, "uniform", "lstm-ragged-256-128-128-tf32")
    (job,) = (case for case in training.SUITE.cases if case.name == "language")
    tf32: dict[str, Any] = dict(
        precision=("float32", True),
        within=partial(precision, True),
        gpu_only="the sizes of a GPU",
    )
    yield replace(
        padded,
        peers=(*padded.peers, "flax.nnx"),
        table="ragged batches and resets, forward+backward",
        flops=flops(spec, True),
        steps=spec.T,
        **tf32,
    )
    yield replace(
        job,
        name="lstm-adam-language-tf32",
        peers=(*job.peers, "flax.nnx"),
        table="four training steps with Adam",
        detail={"N": language.N, "T": language.T, "D": language.SIZE, "H": language.SIZE},
        flops=language.operations(),
        steps=language.STEPS * language.T,
        **tf32,
    )


SLOTS = (
    *slot(layer("lstm", 512, 32, 256), "bfloat16"),
    *slot(layer("lstm", 768, 16, 1024), "float16", peers=FEWER),
    *slot(layer("lstm", 128, 64, 512), "float32"),
    *slot(layer("gru", 512, 32, 256), "bfloat16"),
    *slot(layer("lstm", 1024, 64, 512), "float16", peers=FEWER),
    *slot(layer("lstm", 512, 32, 256), "tf32"),
    *slot(layer("gru", 1024, 32, 1500), "bfloat16", peers=FEWER),
    *slot(layer("lstm", 512, 32, 256, 3, True), "tf32", peers=FEWER),
    *others(),
    *slot(layer("lstm", 768, 16, 1024), "bfloat16", peers=FEWER),
    *slot(layer("lstm", 1024, 64, 512), "bfloat16", peers=FEWER),
    *slot(layer("lstm", 128, 64, 512), "tf32", peers=FEWER),
    *slot(layer("lstm", 512, 32, 256), "float32", peers=FEWER),
    *slot(layer("lstm", 768, 16, 1024), "float16", FORWARD, FEWER),
    *slot(layer("lstm", 512, 32, 256), "bfloat16", FORWARD, FEWER),
    *slot(layer("gru", 512, 32, 256), "bfloat16", FORWARD, FEWER),
    *slot(layer("lstm", 1024, 64, 512), "float16", FORWARD, FEWER),
    *slot(layer("gru", 1024, 32, 1500), "tf32", peers=FEWER),
)
"""One of each kind first: what the kernel has room for, cuDNN's persistent slots (float16; a small
H), stacks, ragged batches, training; then the same in other precisions, and forward."""

TABLE = tuple(
    case
    for spec in sorted(deepbench.SPECS, key=lambda spec: flops(spec, True))
    for case in slot(spec, "tf32", peers=("jaxrnn", "torch", "flax.nnx"), prefix="deepbench")
)

TINY = (
    *slot(layer("lstm", 16, 4, 12), "bfloat16", BOTH, gpu_only="", prefix="tiny"),
    *slot(layer("gru", 16, 4, 12, 2, True), "float32", gpu_only="", prefix="tiny"),
)

SUITE = Suite(
    name="gpu",
    about="layers at the sizes of a GPU, with TF32, without it, and in low precision",
    cases=(*SLOTS, *TABLE, *TINY),
    quick=("tiny",),
    reps=5,
    budget_s=480.0,
    case_s=40.0,
    together=True,
    notes=(
        "float32: without TF32 on either side (jax_default_matmul_precision highest, "
        "torch.backends.cuda.matmul.allow_tf32 and cudnn.allow_tf32 False); tf32: with it on both "
        "(tensorfloat32, True, True). bfloat16 and float16 are the dtype of the input, the weights "
        "and the output.",
        f"Errors are those of the first {SAMPLE[0]} sequences and {SAMPLE[1]} steps (all steps of "
        "bidirectional layers), at the full size: the reference computes only these, and the "
        "cotangent is zero elsewhere. The reference starts from weights and input rounded to the "
        "dtype.",
        "torch.graph is eager PyTorch captured as a CUDA graph; jaxrnn.graph is the scan with "
        "XLA's loops captured as CUDA graphs, by compiler options of that one function.",
        "Temporary memory: of JAX what the compiled program reserves, of torch the most that was "
        "allocated during a run, results included.",
        "DeepBench's sizes are in order of their operations, forward+backward.",
        "The JAX contenders of a case compile in parallel threads, which affects their compile "
        "times. Nothing else is measured meanwhile.",
        "The fraction of peak of ragged batches counts the operations of the padded batch. A step "
        "of the training job is a time step of all four steps of Adam.",
    ),
)
