"""Dispatch overhead of a call: tiny layers under jax.jit on split state."""

from functools import partial
from typing import Any

from bench.core import Case, Contender, Suite
from bench.layers import NAMES, Spec, draw_input, draw_weights
from bench.peers import ANYWHERE, PEERS

SPECS = {
    **{cell: Spec(cell, 1, 1, 4, 4) for cell in NAMES},
    "lstm-layers4": Spec("lstm", 1, 1, 4, 4, num_layers=4),
}


def jitted(peer: Any, spec: Spec) -> Contender:
    """Return jax.jit over the parameter container of the library."""
    import jax
    import jax.numpy as jnp

    layer = peer.layer(spec)
    params = layer.convert({k: jnp.asarray(v) for k, v in draw_weights(spec).items()})
    x = jnp.asarray(peer.to_layout(draw_input(spec)))
    call = jax.jit(layer.apply)
    return Contender(run=lambda: jax.block_until_ready(call(params, x)))


def nnx_jitted(spec: Spec) -> Contender:
    """Return the same layer as a module under nnx.jit, which flattens it at every call."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from bench.peers.ours import module

    layer, x = module(spec), jnp.asarray(draw_input(spec))
    call = nnx.jit(lambda layer, x: layer(x)[0])
    return Contender(run=lambda: jax.block_until_ready(call(layer, x)))


def build(spec: Spec, name: str) -> Contender:
    if name == "jaxrnn+nnx.jit":
        PEERS["jaxrnn"].require()
        return nnx_jitted(spec)
    if not PEERS[name].uses_jax:
        return PEERS[name].load().contender(spec, False)
    return jitted(PEERS[name].load(), spec)


SUITE = Suite(
    name="dispatch",
    about="microseconds per call of a tiny layer (N 1, T 1, D = H 4), jax.jit on split state",
    cases=tuple(
        Case(
            name=name,
            build=partial(build, spec),
            peers=("jaxrnn", "jaxrnn+nnx.jit", *(n for n in ANYWHERE if n != "jaxrnn")),
            table="a call of a tiny layer",
            row=NAMES[spec.cell] + (f", {spec.num_layers} layers" if spec.num_layers > 1 else ""),
            unit="us",
        )
        for name, spec in SPECS.items()
    ),
)
