# pyright: reportMissingImports=false
"""Sequences of unequal length in one batch, resets within sequences, and one step at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from time import perf_counter
from typing import Any

import numpy as np

from bench.core import BASELINE, Case, Contender, Suite
from bench.layers import NAMES, Spec, draw_input, draw_weights, relative_error
from bench.peers import PEERS
from bench.reference import errors

CONTENDERS = ("jaxrnn", "jaxrnn+lengths", "jaxrnn+bins", "jaxrnn+resets", "torch", "torch+packed")
ALIKE = {"jaxrnn+bins": "jaxrnn+lengths", "torch+packed": "jaxrnn+lengths", "torch": "jaxrnn"}
"""Contenders of the same computation as another one."""

RESETS = 0.03
"""Fraction of steps with a reset."""

STREAMED = 5
"""Number of single steps that are compared with a whole sequence."""


def draw_lengths(kind: str, spec: Spec) -> np.ndarray:
    """Draw lengths (N,) from 1 to T, the longest T: uniform, or log-normal with median T / 5.

    >>> spec = Spec("lstm", N=64, T=100, D=1, H=1)
    >>> {kind: int(draw_lengths(kind, spec).sum()) for kind in ("uniform", "lognormal")}
    {'uniform': 3434, 'lognormal': 1779}
    """
    rng, N, T = np.random.default_rng(2), spec.N, spec.T
    if kind == "uniform":
        lengths = rng.integers(1, T + 1, N)
    else:
        lengths = np.clip(np.rint(rng.lognormal(np.log(T / 5), 0.8, N)), 1, T).astype(np.int64)
    lengths[lengths.argmax()] = T
    return lengths


def draw_resets(spec: Spec) -> np.ndarray:
    """Draw a reset mask (T, N)."""
    return np.random.default_rng(3).random((spec.T, spec.N)) < RESETS


@dataclass(frozen=True)
class Ragged:
    """A layer and the distribution of the lengths of its sequences."""

    spec: Spec
    kind: str

    def masks(self, name: str) -> dict[str, np.ndarray]:
        """Return the masks of a contender: lengths, resets or none."""
        if name == "jaxrnn+resets":
            return {"resets": draw_resets(self.spec)}
        if name in (BASELINE, "torch"):
            return {}
        return {"lengths": draw_lengths(self.kind, self.spec)}


@lru_cache(maxsize=3)
def expected(case: Ragged, alike: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the float64 output and weight gradients with the masks of a contender."""
    from bench.reference import run_stack

    spec = case.spec
    return run_stack(spec, draw_weights(spec), draw_input(spec), True, **case.masks(alike))


def ragged_errors(
    case: Ragged, name: str, output: np.ndarray, gradients: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return the relative errors of the output and of the worst weight gradient."""
    reference, weights = expected(case, ALIKE.get(name, name))
    worst = max(relative_error(gradients[key], g) for key, g in weights.items())
    return {"output": relative_error(output, reference), "gradient": worst}


def build_jaxrnn(case: Ragged, name: str) -> Contender:
    """Compile jaxrnn's layer, with masks and bins as arguments of the compiled call."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import jaxrnn
    from bench.peers.base import temporary_bytes
    from bench.peers.ours import module
    from jaxrnn.sequences.bin_packing import assign_bins, run_bins

    layer = module(case.spec)
    jaxrnn.load_state_dict(layer, draw_weights(case.spec))
    graph, state = nnx.split(layer)
    params, tree = jax.tree.flatten(state)
    masks: Any = jax.tree.map(jnp.asarray, case.masks(name))
    note = ""
    if name == "jaxrnn+bins":
        bins = assign_bins(masks["lengths"])
        bin_length, num_bins = bins.sequence.shape
        note = f"packed into {num_bins} bins of {bin_length} steps, unpacked in the compiled call"
        masks = jax.tree.map(jnp.asarray, bins)

    def backward(params: list[jax.Array], masks: Any, x: jax.Array, dy: jax.Array) -> Any:
        def forward(params: list[jax.Array]) -> jax.Array:
            layer = nnx.merge(graph, jax.tree.unflatten(tree, params))
            if name == "jaxrnn+bins":
                return run_bins(layer, x, masks, return_states=False)[0]
            return layer(x, **masks)[0]

        output, pullback = jax.vjp(forward, params)
        return output, pullback(dy)[0]

    x = jnp.asarray(draw_input(case.spec))
    dy = jnp.ones((*x.shape[:2], case.spec.H), x.dtype)
    arguments = (params, masks, x, dy)
    start = perf_counter()
    compiled = jax.jit(backward).lower(*arguments).compile()
    compile_s = perf_counter() - start

    def check() -> dict[str, float]:
        output, gradients = compiled(*arguments)
        found = nnx.to_pure_dict(jax.tree.unflatten(tree, gradients))
        arrays = {key: np.asarray(value) for key, value in found.items()}
        return ragged_errors(case, name, np.asarray(output), arrays)

    return Contender(
        run=lambda: jax.block_until_ready(compiled(*arguments)),
        compile_s=compile_s,
        layout="(T, N, D)",
        note=note,
        check=check,
        memory=lambda: temporary_bytes(compiled),
    )


def build_torch(case: Ragged, name: str) -> Contender:
    """Build eager PyTorch, padded, or packed and padded again."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    from bench.peers.pytorch import device, module, peak_bytes, wait

    spec, where = case.spec, device()
    layer = module(spec, where)
    x = torch.from_numpy(draw_input(spec)).to(where)
    dy = torch.ones(spec.T, spec.N, spec.H, device=where)
    names, params = zip(*layer.named_parameters(), strict=True)
    lengths = torch.from_numpy(draw_lengths(case.kind, spec))

    def forward() -> Any:
        if name == "torch":
            return layer(x)[0]
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], total_length=spec.T)[0]

    def run() -> Any:
        output = forward()
        gradients = torch.autograd.grad(output, params, dy)
        wait(where)
        return output, gradients

    def check() -> dict[str, float]:
        output, gradients = run()
        arrays = {k: g.cpu().numpy() for k, g in zip(names, gradients, strict=True)}
        return ragged_errors(case, name, output.detach().cpu().numpy(), arrays)

    note = "" if name == "torch" else "PackedSequence, enforce_sorted=False, packed and padded"
    return Contender(
        run=run,
        layout="(T, N, D)",
        note=note,
        check=check,
        memory=lambda: peak_bytes(run, where),
    )


def build(case: Ragged, name: str) -> Contender:
    PEERS[name.split("+")[0]].require()
    if name in PEERS and name not in CONTENDERS:  # the padded batch by another library
        return PEERS[name].load().contender(case.spec, True)
    return (build_torch if name.startswith("torch") else build_jaxrnn)(case, name)


def jaxrnn_step(spec: Spec) -> tuple[Callable, Callable]:
    """Return the compiled step ``(x, state) -> (y, state)``, and a function to place inputs."""
    import jax
    import jax.numpy as jnp

    import jaxrnn
    from bench.peers.ours import module
    from jaxrnn.sequences.streaming import jit_step

    layer = module(spec)
    jaxrnn.load_state_dict(layer, draw_weights(spec))
    step = jit_step(layer)
    return lambda x, state: jax.block_until_ready(step(x, state)), jnp.asarray


def torch_step(spec: Spec) -> tuple[Callable, Callable]:
    """Return the same for ``torch.nn.LSTMCell`` or ``GRUCell``."""
    import torch

    from bench.peers.pytorch import device, wait

    where = device()
    cell = getattr(torch.nn, f"{NAMES[spec.cell]}Cell")(spec.D, spec.H)
    weights = {k.removesuffix("_l0"): torch.from_numpy(v) for k, v in draw_weights(spec).items()}
    cell.load_state_dict(weights)
    cell = cell.to(where)

    def step(x: Any, state: Any) -> Any:
        with torch.inference_mode():
            state = cell(x, state)
        wait(where)
        return state[0] if spec.cell == "lstm" else state, state

    return step, lambda x: torch.from_numpy(x).to(where)


def build_step(spec: Spec, name: str) -> Contender:
    """Build one step per call, each from the state of the call before."""
    PEERS[name].require()
    step, place = (torch_step if name == "torch" else jaxrnn_step)(spec)
    xs = [place(x) for x in draw_input(spec)]

    def check() -> dict[str, float]:
        outputs, state = [], None
        for x in xs:
            y, state = step(x, state)
            outputs.append(np.asarray(y.cpu() if name == "torch" else y))
        return errors(spec, np.stack(outputs), None)

    state = step(xs[0], None)[1]

    def run() -> None:
        nonlocal state
        _, state = step(xs[0], state)

    return Contender(run=run, layout="(N, D)", check=check)


def ragged_case(spec: Spec, kind: str, name: str) -> Case:
    ragged, T = Ragged(spec, kind), spec.T
    part = draw_lengths(kind, spec).mean() / T
    return Case(
        name=name,
        build=partial(build, ragged),
        peers=CONTENDERS,
        table="forward+backward",
        row=f"{NAMES[spec.cell]} {spec.H}, {kind}",
        group=kind,
        detail={
            **{"N": spec.N, "T": T, "D": spec.D, "H": spec.H},
            "sum of lengths / N T": round(float(part), 3),
        },
    )


def step_case(cell: str, batch: int) -> Case:
    return Case(
        name=f"{cell}-step-N{batch}",
        build=partial(build_step, Spec(cell, batch, STREAMED, 128, 128)),
        peers=("jaxrnn", "torch"),
        table="one step a call",
        row=f"{NAMES[cell]}, N {batch}",
        group="step",
        detail={"N": batch, "D": 128, "H": 128},
        unit="us",
    )


SUITE = Suite(
    name="ragged",
    about="sequences of unequal length, resets within sequences, and single steps",
    cases=(
        *(
            ragged_case(Spec(cell, 64, 100, H, H), kind, f"{cell}-{H}-{kind}")
            for cell in ("lstm", "gru")
            for H in (128, 256)
            for kind in ("uniform", "lognormal")
        ),
        *(step_case(cell, batch) for cell in ("lstm", "gru") for batch in (1, 64)),
    ),
    quick=("lstm-128-uniform", "gru-128-lognormal", "step"),
    notes=(
        "jaxrnn and torch take the padded batch as it is, and so compute the padding too; jaxrnn "
        "is the baseline of the ratios. +lengths passes the lengths to the layer, +bins "
        "packs the sequences end to end into fewer bins, +packed is PyTorch's PackedSequence, "
        f"+resets the padded batch cut at {100 * RESETS:g} % of its steps. Compute that follows "
        "the sum of the lengths would reduce the ratio to the last number of the second "
        "column.",
        "The output and the gradient of every weight, for a cotangent of ones. The error is that "
        "from the same computation, with the same lengths or resets, in float64.",
        "One step a call: inference, a compiled step (jaxrnn.sequences.streaming.jit_step) beside "
        "torch.nn.LSTMCell and GRUCell, the state handed from call to call.",
    ),
)
