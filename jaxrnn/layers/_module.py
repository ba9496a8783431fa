"""What PyTorch's modules have and a Flax module has not: errors that say what there is instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import nnx
from flax.errors import TraceContextError
from flax.nnx import reprlib

_MOVED = "jax.device_put(nnx.state(module), device) moves its arrays, nnx.update puts them back"
_DTYPE = "param_dtype= of the constructor is that of the parameters, dtype= what is computed in"

INSTEAD = {
    "parameters": "nnx.state(module, nnx.Param) has its parameters",
    "named_parameters": "jaxrnn.state_dict(module) has them by name",
    "state_dict": "it is a function, jaxrnn.state_dict(module)",
    "load_state_dict": "it is a function, jaxrnn.load_state_dict(module, mapping)",
    "forward": "call the module",
    "flatten_parameters": "there is nothing to lay out, leave the call away",
    "zero_grad": "jax.grad and nnx.grad give gradients as values, there is nothing to clear",
    "requires_grad_": "nnx.grad and nnx.Optimizer take wrt=, a filter of what is trained",
    "reset_parameters": "make it anew, with other rngs",
    "to": f"{_MOVED}; {_DTYPE}",
    "cuda": _MOVED,
    "cpu": _MOVED,
    "double": _DTYPE,
    "float": _DTYPE,
    "half": _DTYPE,
    "bfloat16": _DTYPE,
}
"""What to use in place of a method of ``torch.nn.Module``."""


def check_rngs(rngs: Any) -> None:
    """Whether a module can draw its parameters from this.

    Raises:
        TypeError: for a seed or a key, say.
    """
    if not isinstance(rngs, nnx.Rngs):
        kind = type(rngs).__name__
        raise TypeError(f"rngs should be flax.nnx.Rngs, nnx.Rngs(0) say, got {kind}")


def as_key(source: Any) -> Any:
    """Return a PRNG key from an `nnx.Rngs`, by its ``dropout`` stream, from a stream, or a key."""
    if isinstance(source, nnx.Rngs):
        source = source["dropout"]
    try:
        return source() if callable(source) else source
    except TraceContextError as error:
        raise TraceContextError(
            "The dropout stream cannot count its keys inside a function that JAX transforms and "
            "that holds the module. Give the call a key, rngs=key, or use nnx.jit or nnx.grad with "
            f"the module as an argument. {str(error).split(' (')[0]}"
        ) from error


class Printed:
    """A module that prints as PyTorch's do, inside of a model too, and knows PyTorch's names.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0))
        >>> nnx.List([gru])
        List([
          GRU(3, 4)
        ])
        >>> gru.flatten_parameters()
        Traceback (most recent call last):
        AttributeError: 'GRU' object has no attribute 'flatten_parameters': there is nothing to ...
    """

    def extra_repr(self) -> str:
        """The arguments as PyTorch prints them: only those that are not the default."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    __str__ = __repr__

    def __nnx_repr__(self) -> Any:
        yield reprlib.Object(type(self), start=f"({self.extra_repr()}")

    if not TYPE_CHECKING:  # for a type checker, what is missing is missing

        def __getattr__(self, name: str) -> Any:
            if name not in INSTEAD:
                # Python's own error, also one from within a property.
                return object.__getattribute__(self, name)
            kind = type(self).__name__
            raise AttributeError(
                f"{kind!r} object has no attribute {name!r}: {INSTEAD[name]}", name=name, obj=self
            )
