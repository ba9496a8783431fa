"""jaxrnn: split state, merged inside the compiled function."""

from typing import Any

import jax
from flax import nnx

import jaxrnn
from bench.layers import NAMES, Spec
from bench.peers.base import JaxPeer, Layer, Weights


def module(spec: Spec, **options: Any) -> Any:
    """The layer of a case, freshly initialised."""
    make = getattr(jaxrnn, NAMES[spec.cell])
    return make(
        spec.D,
        spec.H,
        num_layers=spec.num_layers,
        bidirectional=spec.bidirectional,
        rngs=nnx.Rngs(0),
        **options,
    )


class Peer(JaxPeer):
    """The layers; `options` go to their constructors."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def layer(self, spec: Spec) -> Layer:
        graphdef, state, rest = nnx.split(module(spec, **self.options), nnx.Param, ...)

        def convert(weights: Weights) -> Any:
            filled = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(filled, dict(weights))
            return filled

        return Layer(lambda params, x: nnx.merge(graphdef, params, rest)(x)[0], convert)
