"""Export of layers and models by `jax.export`, to programs that run without jaxrnn.

.. code-block:: python

    from jax import export
    program = export.deserialize(open("lstm.jaxexport", "rb").read())
    output, (h_n, c_n) = program.call(x)          # any T, any N
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export as jax_export

from jaxrnn import _checks
from jaxrnn._files import write_atomically
from jaxrnn.backends import platform
from jaxrnn.layers.recurrent import Recurrent


def export(
    model: Any,
    *inputs: Any,
    path: str | os.PathLike[str] | None = None,
    platforms: Sequence[str] | None = None,
    vjp_order: int = 0,
    **named: Any,
) -> bytes:
    """Serialise a layer, a model or a function, with its weights and dynamic axes.

    Args:
        model: a layer or another ``nnx`` module, exported in ``eval()`` mode, or a pure function.
        inputs: specifications of the positional arguments: ``"T, N, 10"`` names dynamic axes, equal
            names for equal lengths; ``"int32[N]"`` has a dtype, which defaults to that of the
            parameters, or float32 for a function. Or arrays, ``jax.ShapeDtypeStruct`` or pytrees.
        path: file to write, optional. Replaced atomically.
        platforms: "cpu", "cuda", "rocm" or "tpu", optional. Defaults to the current platform.
            Kernels are exported if the platform's kernels are portable (`jaxrnn.backends.platform`)
            and no input axis is dynamic; otherwise scans.
        vjp_order: order of reverse-mode differentiation to include. Defaults to 0.
        named: specifications of keyword arguments, ``lengths="int32[N]"``.

    Returns:
        Bytes for ``jax.export.deserialize``. JAX loads them for at least six months of later
        versions.

    Raises:
        ValueError: if a specification or a platform is invalid.
        TypeError: if an input is neither a specification nor an array.
        OSError: if the file cannot be written.

    With a dynamic T the loop is one block of steps, and its gradient recomputes the gates.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.export import export
        >>> gru = jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0))
        >>> program = jax.export.deserialize(export(gru, "T, N, 3", lengths="int32[N]"))
        >>> y, h_n = program.call(jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))
        >>> y.shape, h_n.shape
        ((7, 2, 4), (1, 2, 4))
    """
    for name in platforms or ():
        _checks.choice("platforms", name, platform.PLATFORMS)
    _checks.at_least("vjp_order", vjp_order, 0)
    # CPU kernels are machine code of this process; GPU and TPU kernels are part of the program.
    targets = platforms or (platform.current_platform(),)
    kernel_platform = next((name for name in targets if platform.is_portable(name)), None)
    function, dtype = model, jnp.dtype("float32")
    if isinstance(model, nnx.Module):
        copy = nnx.clone(model)
        copy.eval()
        for _, layer in nnx.iter_graph(copy):
            if isinstance(layer, Recurrent):
                layer.backend = layer.backend if kernel_platform else "scan"
        function = lambda *args, **kwargs: copy(*args, **kwargs)  # noqa: E731
        dtypes = (leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        dtype = next((d for d in dtypes if jnp.issubdtype(d, jnp.floating)), dtype)
    scope = jax_export.SymbolicScope()
    parse = functools.partial(_shape_dtype, default_dtype=dtype, scope=scope)
    args, kwargs = jax.tree.map(parse, (inputs, named))
    lower = jax_export.export(jax.jit(function), platforms=platforms)
    context = platform.traced_for(kernel_platform) if kernel_platform else nullcontext()
    with context:
        data = bytes(lower(*args, **kwargs).serialize(vjp_order=vjp_order))
    if path is not None:
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(data))
    return data


def _shape_dtype(spec: Any, default_dtype: Any, scope: Any) -> jax.ShapeDtypeStruct:
    """Parse a specification."""
    if not isinstance(spec, str):
        if not hasattr(spec, "shape") or not hasattr(spec, "dtype"):
            raise TypeError(f'an input must be "T, N, 10", "int32[N]" or an array, got {spec!r}')
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    match = re.fullmatch(r"\s*(?:(\w+)\[)?([^\[\]]*)(?(1)\])\s*", spec)  # "axes" or "dtype[axes]"
    if match is None:
        raise ValueError(f'an input must be "T, N, 10" or "int32[N]", got {spec!r}')
    name, axes = match.groups()
    try:
        dtype = default_dtype if name is None else jnp.dtype(name)
    except TypeError as error:
        raise ValueError(f"expected a dtype before the axes, got {name!r} in {spec!r}") from error
    return jax.ShapeDtypeStruct(jax_export.symbolic_shape(axes, scope=scope), dtype)
