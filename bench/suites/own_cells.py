"""A cell of one's own beside the package's: the LSTM and the GRU written as a user would."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from bench.core import Case, Contender, Suite
from bench.layers import NAMES, Spec, flops
from bench.peers import PEERS
from bench.suites.layers import SIZES


def own_cells() -> dict[str, Any]:
    """The equations and nothing else: no derivative, no saved values, one sigmoid a gate."""
    import jax.numpy as jnp
    from jax.nn import sigmoid

    from jaxrnn import Cell

    @dataclasses.dataclass(frozen=True)
    class OwnLSTM(Cell):
        gates, states = ("i", "f", "g", "o"), ("h", "c")

        def step(self, z: Any, state: Any) -> Any:
            (_, c), (i, f, g, o) = state, self.split_gates(z)
            c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
            return sigmoid(o) * jnp.tanh(c), c

    @dataclasses.dataclass(frozen=True)
    class OwnGRU(Cell):
        gates, split = ("r", "z", "n"), True

        def step(self, z: Any, state: Any) -> Any:
            (h,), (xr, xz, xn), (hr, hz, hn) = state, *map(self.split_gates, z)
            u = sigmoid(xz + hz)
            n = jnp.tanh(xn + sigmoid(xr + hr) * hn)
            return ((1 - u) * n + u * h,)

    return {"lstm": OwnLSTM(), "gru": OwnGRU()}


def build(spec: Spec, backward: bool, name: str) -> Contender:
    """The package's layer, or `jaxrnn.Recurrent` around the cell above."""
    if name == "jaxrnn":
        return PEERS["jaxrnn"].load().contender(spec, backward)
    from flax import nnx

    import jaxrnn
    from bench.peers import ours

    class Peer(ours.Peer):
        def module(self, spec: Spec) -> Any:
            cell = own_cells()[spec.cell]
            return jaxrnn.Recurrent(cell, spec.D, spec.H, rngs=nnx.Rngs(0))

    return Peer().contender(spec, backward)


def cases(cell: str, size: str) -> list[Case]:
    spec = Spec(cell, *SIZES[size])
    return [
        Case(
            name=f"own-{cell}-{size}-{'backward' if backward else 'forward'}",
            build=partial(build, spec, backward),
            peers=("jaxrnn", "jaxrnn.own"),
            table="forward+backward" if backward else "forward",
            row=f"{NAMES[cell]} {size}",
            group=NAMES[cell],
            detail={"N": spec.N, "T": spec.T, "D": spec.D, "H": spec.H},
            flops=flops(spec, backward),
        )
        for backward in (False, True)
    ]


SUITE = Suite(
    name="cells",
    about="an LSTM and a GRU written by a user on the protocol, beside the package's own",
    cases=tuple(
        case
        for cell in ("lstm", "gru")
        for size in ("window", "chars", "small", "mid")
        for case in cases(cell, size)
    ),
    quick=("*-window-*",),
    notes=("jaxrnn.own is `jaxrnn.Recurrent` around a cell of ten lines that has only a step.",),
)
