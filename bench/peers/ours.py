"""jaxrnn: split state, merged inside the compiled function."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxrnn
from bench.core import Contender, Unsupported
from bench.layers import NAMES, Spec
from bench.peers.base import JaxPeer, Layer, Weights


def module(spec: Spec, **options: Any) -> Any:
    """Build the layer of a case."""
    make = getattr(jaxrnn, NAMES[spec.cell])
    return make(
        spec.D,
        spec.H,
        num_layers=spec.num_layers,
        bidirectional=spec.bidirectional,
        param_dtype=jnp.dtype(spec.dtype),
        rngs=nnx.Rngs(0),
        **options,
    )


class Peer(JaxPeer):
    """The layers of jaxrnn, with compiler options and arguments of their constructors."""

    def __init__(self, compiler: dict[str, Any] | None = None, **arguments: Any) -> None:
        self.options = compiler
        self.arguments = arguments

    def contender(self, spec: Spec, backward: bool) -> Contender:
        try:
            backends = self.backends(spec)
            made = super().contender(spec, backward)
        except ValueError as error:  # an unsupported backend
            if "backend" not in str(error):
                raise
            raise Unsupported(str(error)) from error
        made.backend = ", ".join(backends)
        return made

    def backends(self, spec: Spec) -> list[str]:
        """Return the selected backends."""
        explained = self.module(spec).explain((spec.T, spec.N, spec.D))
        return list(dict.fromkeys(choice.backend for choice in explained.choices))

    def default_backend(self, spec: Spec) -> str:
        """Return the requested backend if it is also the default one, else an empty string."""
        backend: str = self.arguments.get("backend", "")
        return backend if not self.options and Peer().backends(spec) == [backend] else ""

    def module(self, spec: Spec) -> Any:
        """Build the measured layer."""
        return module(spec, **self.arguments)

    def layer(self, spec: Spec) -> Layer:
        graphdef, state, rest = nnx.split(self.module(spec), nnx.Param, ...)

        def convert(weights: Weights) -> Any:
            filled = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(filled, dict(weights))
            return filled

        return Layer(lambda params, x: nnx.merge(graphdef, params, rest)(x)[0], convert)
