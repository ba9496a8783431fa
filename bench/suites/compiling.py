"""Compile time of a gradient by T and depth, and import time."""

import subprocess
import sys
from functools import partial
from typing import Any

from bench.core import Case, Contender, Suite
from bench.layers import Spec
from bench.peers import ANYWHERE, JAX_PEERS, PEERS

SPECS = {
    **{f"T{T}": (Spec("lstm", 8, T, 64, 64), f"LSTM T {T}") for T in (20, 100, 500, 2000)},
    "layers1": (Spec("lstm", 8, 100, 64, 64), "LSTM 1 layer"),
    "layers2": (Spec("lstm", 8, 100, 64, 64, 2), "LSTM 2 layers"),
    "layers4": (Spec("lstm", 8, 100, 64, 64, 4), "LSTM 4 layers"),
    "bi2": (Spec("lstm", 8, 100, 64, 64, 2, True), "LSTM 2 layers, bidirectional"),
    "gru-bi2": (Spec("gru", 8, 100, 64, 64, 2, True), "GRU 2 layers, bidirectional"),
    "rnn-bi2": (Spec("rnn", 8, 100, 64, 64, 2, True), "RNN 2 layers, bidirectional"),
}

SHARED = ("flax.linen", "flax.nnx", "torch.compile")
"""Peers without an import of their package."""

IMPORT = """
import sys, time, os
os.environ["KERAS_BACKEND"] = "jax"
import jax, flax.nnx
start = time.perf_counter()
import {package}
print(time.perf_counter() - start)
"""


def compile_seconds(peer: Any, spec: Spec) -> float:
    """Return the seconds of tracing and compiling with empty caches."""
    import jax

    jax.clear_caches()
    seconds = peer.contender(spec, True).compile_s
    assert seconds is not None
    return seconds


def import_seconds(package: str) -> float:
    """Return the seconds of an import in a new interpreter after jax and flax.nnx."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(package=package)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the import failed"])[-1])
    return float(done.stdout.split()[-1])


def build_compile(spec: Spec, name: str) -> Contender:
    peer = PEERS[name].load()
    peer.layer(spec)  # Raises `Unsupported` now rather than during the rounds.
    return Contender(value=lambda: compile_seconds(peer, spec))


def build_import(name: str) -> Contender:
    PEERS[name].require()
    return Contender(value=lambda: import_seconds(PEERS[name].package))


SUITE = Suite(
    name="compile",
    about="seconds to compile a gradient against T and layers; seconds to import",
    cases=(
        *(
            Case(
                name=name,
                build=partial(build_compile, spec),
                peers=JAX_PEERS,
                table="trace and compile the gradient",
                row=label,
                detail={"N": spec.N, "T": spec.T, "D": spec.D, "H": spec.H},
                unit="s",
            )
            for name, (spec, label) in SPECS.items()
        ),
        Case(
            name="import",
            build=build_import,
            peers=tuple(n for n in ANYWHERE if n not in SHARED),
            table="import, beyond jax and flax.nnx",
            row="import",
            unit="s",
        ),
    ),
    quick=("T20", "T500", "bi2", "import"),
    reps=3,
    notes=("Ratios compare compile times here, not speed.",),
)
