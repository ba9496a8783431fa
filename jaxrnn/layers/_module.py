"""PyTorch's repr for Flax modules, hints for PyTorch's methods, and random streams."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from flax import nnx
from flax.errors import TraceContextError
from flax.nnx import reprlib

_DEVICE = "jax.device_put(nnx.state(module), device) moves its arrays, nnx.update stores them"
_DTYPE = "param_dtype= of the constructor is the dtype of parameters, dtype= that of computation"

UNSUPPORTED_METHOD_HINTS = {
    "parameters": "use nnx.state(module, nnx.Param)",
    "named_parameters": "use jaxrnn.state_dict(module)",
    "state_dict": "use the function jaxrnn.state_dict(module)",
    "load_state_dict": "use the function jaxrnn.load_state_dict(module, mapping)",
    "forward": "call the module",
    "flatten_parameters": "remove the call, it is not needed",
    "zero_grad": "remove the call, jax.grad and nnx.grad return gradients as values",
    "requires_grad_": "pass wrt=, a filter, to nnx.grad and nnx.Optimizer",
    "reset_parameters": "construct the module again with other rngs",
    "to": f"{_DEVICE}; {_DTYPE}",
    "cuda": _DEVICE,
    "cpu": _DEVICE,
    "double": _DTYPE,
    "float": _DTYPE,
    "half": _DTYPE,
    "bfloat16": _DTYPE,
}
"""Replacements of the methods of ``torch.nn.Module`` that a Flax module does not have."""


class PyTorchModule(nnx.Module):
    """Base class of layers and cells: PyTorch's repr, and hints for its missing methods.

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
        AttributeError: 'GRU' object has no attribute 'flatten_parameters': remove the call, ...
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Flax's metaclass hides the constructor from `inspect.signature`.
        signature = inspect.signature(cls.__init__)
        cls.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def extra_repr(self) -> str:
        """Return the arguments as PyTorch prints them, without those that have their default."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    __str__ = __repr__

    def __nnx_repr__(self) -> Any:
        yield reprlib.Object(type(self), start=f"({self.extra_repr()}")

    if not TYPE_CHECKING:  # a type checker should report missing attributes

        def __getattr__(self, name: str) -> Any:
            if name not in UNSUPPORTED_METHOD_HINTS:
                # Python's own error, also one raised inside a property.
                return object.__getattribute__(self, name)
            hint = f"{type(self).__name__!r} object has no attribute {name!r}: "
            hint += UNSUPPORTED_METHOD_HINTS[name]
            raise AttributeError(hint, name=name, obj=self)


def check_rngs(rngs: Any) -> None:
    """Check that `rngs` are random streams, and not a seed or a key."""
    if not isinstance(rngs, nnx.Rngs):
        got = type(rngs).__name__
        raise TypeError(f"`rngs` must be flax.nnx.Rngs, got {got}. Pass rngs=nnx.Rngs(0).")


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
