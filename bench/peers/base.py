"""Base of the JAX peers: stacking, conversion of PyTorch's weights and gradients, compilation.

Each peer is called in its best form: one function of (parameters, input), compiled ahead of time,
parameters as a flat tuple of arrays so that no call pays for flattening a container.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.core import Contender
from bench.layers import Spec, draw_cotangent, draw_input, draw_weights
from bench.reference import errors

Weights = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """A layer as pure functions, in the library's own parameters.

    Attributes:
        apply: (params, x) -> output.
        convert: PyTorch's weights by name -> params; traceable, so that its transpose carries
            gradients back to PyTorch's layout.
    """

    apply: Callable[[Any, jax.Array], Any]
    convert: Callable[[Weights], Any]


def temporary_bytes(compiled: Any) -> float:
    """Return the temporary bytes of a compiled program; NaN if unknown."""
    analysis = compiled.memory_analysis()
    return float("nan") if analysis is None else float(analysis.temp_size_in_bytes)


@contextmanager
def on_host() -> Iterator[None]:
    """Return a context in which JAX computes on the CPU, where small operations compile fast."""
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS has none.
        yield
        return
    with jax.default_device(cpu):
        yield


class JaxPeer:
    """Base of the adapters of JAX libraries."""

    batch_major = False
    """Whether input and output are (N, T, features) instead of (T, N, features)."""

    dtype = "float32"
    """Of the case that is being built, for libraries that depend on it."""

    options: dict[str, Any] | None = None
    """For the compiler, if there are any."""

    def direction(self, cell: str, D: int, H: int, reverse: bool) -> Layer:
        """One layer in one direction, from a zero state. Its output is in the input's order.

        `convert` is given ``weight_ih``, ``weight_hh``, ``bias_ih`` and ``bias_hh``. Raises
        `Unsupported` for what the library does not have.
        """
        raise NotImplementedError

    def other_formula(self, cell: str) -> str:
        """Return the difference of the library's cell from PyTorch's, or an empty string."""
        del cell
        return ""

    def note(self, cell: str) -> str:
        """Return remarks on the construction of the cell."""
        del cell
        return ""

    def layer(self, spec: Spec) -> Layer:
        """Return the stack; adapters of libraries with stacked layers override it."""
        parts = [
            (suffix, self.direction(spec.cell, spec.width(k), spec.H, reverse))
            for k, reverse, suffix in spec.parts()
        ]

        def apply(params: list[Any], x: jax.Array) -> jax.Array:
            F = spec.directions
            for k in range(spec.num_layers):
                pairs = zip(parts[k * F : k * F + F], params[k * F : k * F + F], strict=True)
                outputs = [layer.apply(p, x) for (_, layer), p in pairs]
                x = outputs[0] if F == 1 else jnp.concatenate(outputs, axis=-1)
            return x

        def convert(weights: Weights) -> list[Any]:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            return [
                layer.convert({name: weights[f"{name}_{suffix}"] for name in names})
                for suffix, layer in parts
            ]

        return Layer(apply, convert)

    def functions(self, spec: Spec) -> tuple[Callable, Callable, tuple[jax.Array, ...], Callable]:
        """Return pure functions of a flat tuple of parameters.

        Returns:
            forward ``(params, x) -> output``; backward ``(params, x, dy) -> (output, gradients)``;
            the parameters; and the map of a gradient tuple to PyTorch's layout.
        """
        self.dtype = spec.dtype
        layer = self.layer(spec)
        with on_host():
            weights = {
                name: jnp.asarray(value, spec.dtype) for name, value in draw_weights(spec).items()
            }
            params, tree = jax.tree.flatten(layer.convert(weights))
        params = jax.device_put(params, jax.devices()[0])

        def forward(params: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
            return layer.apply(jax.tree.unflatten(tree, params), x)

        def backward(params: tuple[jax.Array, ...], x: jax.Array, dy: jax.Array) -> Any:
            # The output is returned too: in training the loss reads it, so it has to be written.
            output, pullback = jax.vjp(lambda p: forward(p, x), params)
            return output, pullback(dy)[0]

        def to_torch(gradients: tuple[jax.Array, ...]) -> dict[str, np.ndarray]:
            with on_host():
                _, pullback = jax.vjp(layer.convert, weights)
                here = [jnp.asarray(np.asarray(gradient)) for gradient in gradients]
                (found,) = pullback(jax.tree.unflatten(tree, here))
            return {name: np.asarray(value) for name, value in found.items()}

        return forward, backward, tuple(params), to_torch

    def to_layout(self, array: Any) -> Any:
        """Swap time and batch for batch-major libraries; an involution."""
        return array.swapaxes(0, 1) if self.batch_major else array

    def contender(self, spec: Spec, backward: bool) -> Contender:
        """Compile the layer for a case: forward, or forward and backward."""
        forward, gradient, params, to_torch = self.functions(spec)
        x = jnp.asarray(np.ascontiguousarray(self.to_layout(draw_input(spec))), spec.dtype)
        cotangent = np.ascontiguousarray(self.to_layout(draw_cotangent(spec)))
        dy = jnp.ones(cotangent.shape, x.dtype)
        arguments = (params, x, dy) if backward else (params, x)
        start = perf_counter()
        lowered = jax.jit(gradient if backward else forward).lower(*arguments)
        compiled = lowered.compile(compiler_options=self.options)
        compile_s = perf_counter() - start

        def check() -> dict[str, float]:
            last = (jnp.asarray(cotangent, x.dtype),) if backward else ()
            result = compiled(params, x, *last)
            output, gradients = result if backward else (result, None)
            return errors(
                spec,
                self.to_layout(np.asarray(output)),
                None if gradients is None else to_torch(gradients),
            )

        different = self.other_formula(spec.cell)
        return Contender(
            run=lambda: jax.block_until_ready(compiled(*arguments)),
            compile_s=compile_s,
            layout="(N, T, D)" if self.batch_major else "(T, N, D)",
            note=different or self.note(spec.cell),
            check=None if different else check,
            no_check="n/a (other formula)" if different else "",
            memory=lambda: temporary_bytes(compiled),
        )
