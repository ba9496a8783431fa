"""User-defined cells compared with built-in ones, and a linear cell by scan or in parallel.

The user-defined cells are an LSTM and a GRU.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from bench.core import Case, Contender, Suite
from bench.layers import NAMES, Spec, draw_input, flops, relative_error
from bench.peers import PEERS
from bench.suites.layers import SIZES


def own_cells() -> dict[str, Any]:
    """Return cells with a step only: no derivative rule, one sigmoid per gate."""
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
    """Build the built-in layer, or `jaxrnn.Recurrent` with the cell above."""
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


LINEAR = {  # name: N, T, D, H
    f"{N}x{T}x{H}": (N, T, H, H) for N in (1, 32) for T in (100, 1000) for H in (64, 256)
}


def build_linear(spec: Spec, backward: bool, name: str) -> Contender:
    """Build a `MinGRU` with the default backend ("jaxrnn"), or the one that the name ends with."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import jaxrnn

    backend = name.partition(".")[2] or "auto"
    layer = jaxrnn.Recurrent(
        jaxrnn.cells.MinGRU(), spec.D, spec.H, backend=backend, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(layer)
    x = jnp.asarray(draw_input(spec))
    dy = jnp.ones((spec.T, spec.N, spec.H), x.dtype)

    def forward(params: Any, x: Any, dy: Any) -> Any:
        del dy
        return nnx.merge(graph, params)(x)[0]

    def both(params: Any, x: Any, dy: Any) -> Any:
        output, pullback = jax.vjp(lambda p: forward(p, x, dy), params)
        return output, pullback(dy)[0]

    start = perf_counter()
    compiled = jax.jit(both if backward else forward).lower(params, x, dy).compile()
    compile_s = perf_counter() - start

    def check() -> dict[str, float]:
        result = compiled(params, x, dy)
        w, b = (array.astype(float) for array in jaxrnn.state_dict(layer).values())
        z, n = np.split(np.asarray(x, float) @ w.T + b, 2, axis=2)
        h, z, states = np.zeros((spec.N, spec.H)), 1 / (1 + np.exp(-z)), []
        for t in range(spec.T):
            h = (1 - z[t]) * h + z[t] * n[t]
            states.append(h)
        return {"output": relative_error(result[0] if backward else result, np.stack(states))}

    return Contender(
        run=lambda: jax.block_until_ready(compiled(params, x, dy)),
        compile_s=compile_s,
        layout="(T, N, D)",
        check=check,
    )


def linear_cases(size: str) -> list[Case]:
    spec = Spec("rnn", *LINEAR[size])
    return [
        Case(
            name=f"linear-{size}-{'backward' if backward else 'forward'}",
            build=partial(build_linear, spec, backward),
            peers=("jaxrnn", "jaxrnn.scan", "jaxrnn.parallel"),
            table=f"linear in its state, {'forward+backward' if backward else 'forward'}",
            row=f"MinGRU {size}",
            group="MinGRU",
            detail={"N": spec.N, "T": spec.T, "D": spec.D, "H": spec.H},
            flops=2.0 * spec.T * spec.N * 2 * spec.H * spec.D * (2 if backward else 1),
        )
        for backward in (False, True)
    ]


SUITE = Suite(
    name="cells",
    about="an LSTM and a GRU written by a user, and the built-in ones; a cell parallel in time",
    cases=tuple(
        case
        for cell in ("lstm", "gru")
        for size in ("window", "chars", "small", "mid")
        for case in cases(cell, size)
    )
    + tuple(case for size in LINEAR for case in linear_cases(size)),
    quick=("*-window-*", "linear-1x100x64-*"),
    notes=(
        "jaxrnn.own is `jaxrnn.Recurrent` with a cell of ten lines that defines only a step.",
        "MinGRU N x T x H, D = H: jaxrnn.scan is a loop, jaxrnn.parallel an associative scan; "
        "jaxrnn selects one of the two by platform and shape.",
    ),
)
