"""Layers and models as programs that run without this package: `jax.export`.

What `export` gives is a compiled program's portable form, the weights inside, with axes left open.
Whoever loads it needs jax and nothing else:

.. code-block:: python

    from jax import export
    program = export.deserialize(open("lstm.jaxexport", "rb").read())
    output, (h_n, c_n) = program.call(x)          # any T, any N
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export as jax_export

from jaxrnn import _checks as checks
from jaxrnn._files import write_whole
from jaxrnn.backends import kernels
from jaxrnn.backends import platform as tuning
from jaxrnn.backends import select as backends
from jaxrnn.layers.recurrent import Recurrent


def export(
    model: Any,
    *inputs: Any,
    path: str | os.PathLike[str] | None = None,
    platforms: Sequence[str] | None = None,
    vjp_order: int = 0,
    **named: Any,
) -> bytes:
    """Serialise a layer, a model or a function of arrays, its weights inside.

    Args:
        model: a layer, a model made of them, or any other ``nnx`` module, which is exported as
            ``model.eval()`` leaves it, so without dropout; or a pure function of JAX.
        inputs: what the model is called with, each array described by a string: ``"T, N, 10"`` are
            axes, letters for those left open, the same letter for the same length, at least 1; a
            dtype goes around them, ``"int32[N]"``, where it is not that of the model's parameters
            (of a function: float32). Or an array, or ``jax.ShapeDtypeStruct``, for its shape and
            dtype; or a pytree of these, such as the pair of an LSTM's states.
        path: a file to write too; what is there stays if that fails.
        platforms: what it shall run on, of "cpu", "cuda", "rocm" and "tpu"; None for what JAX runs
            on here. Loops are kernels where those of a platform can be part of a program
            (`jaxrnn.backends.select`) and no axis of the input is open; else scans.
        vjp_order: how often reverse mode may be applied to what is loaded.
        named: the same for arguments with names, ``lengths="int32[N]"``.

    Returns:
        What ``jax.export.deserialize`` takes. Its ``call`` takes arrays as `inputs` and `named`
        describe them, and gives out what the model does. JAX keeps it loadable for at least six
        months of later versions.

    Raises:
        ValueError: for axes or a dtype that can't be read, or another platform.
        TypeError: for inputs that are neither.
        OSError: if the file can't be written.

    A loop over an open T has one block (`jaxrnn.backends.blocks`): the input product of all steps at once,
    and for the derivative the gates are computed again.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.export import export
        >>> gru = jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0))
        >>> data = export(gru, "T, N, 3", lengths="int32[N]")
        >>> program = jax.export.deserialize(data)
        >>> y, h_n = program.call(jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))
        >>> y.shape, h_n.shape
        ((7, 2, 4), (1, 2, 4))
        >>> program.call(jnp.ones((5, 1, 3)), lengths=jnp.array([5]))[0].shape
        (5, 1, 4)
    """
    for name in platforms or ():
        checks.choice("platforms", name, tuning.PLATFORMS)
    checks.at_least("vjp_order", vjp_order, 0)
    # A kernel for a CPU is code of this machine; others are part of the program.
    targets = platforms or (backends.platform(),)
    carrier = next((name for name in targets if kernels.portable(name)), None)
    function, floating = model, jnp.dtype("float32")
    if isinstance(model, nnx.Module):
        copy = nnx.clone(model)
        copy.eval()
        for _, layer in nnx.iter_graph(copy):
            if isinstance(layer, Recurrent):
                layer.backend = layer.backend if carrier else "scan"
        function = lambda *args, **kwargs: copy(*args, **kwargs)  # noqa: E731
        floating = _dtype(model)
    scope = jax_export.SymbolicScope()
    described = jax.tree.map(lambda one: _described(one, floating, scope), (inputs, named))
    lower = jax_export.export(jax.jit(function), platforms=platforms)
    with contextlib.nullcontext() if carrier is None else tuning.traced_for(carrier):
        data = bytes(lower(*described[0], **described[1]).serialize(vjp_order=vjp_order))
    if path is not None:
        write_whole(Path(path), lambda temporary: temporary.write_bytes(data))
    return data


def _dtype(model: nnx.Module) -> Any:
    """The floating dtype of a module's first parameter that has one."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    return next((d for d in dtypes if jnp.issubdtype(d, jnp.floating)), jnp.dtype("float32"))


def _described(one: Any, floating: Any, scope: Any) -> jax.ShapeDtypeStruct:
    """An input as JAX describes it."""
    if not isinstance(one, str):
        if not hasattr(one, "shape") or not hasattr(one, "dtype"):
            raise TypeError(
                'an input is described by its axes, "T, N, 10" or "int32[N]", or by an array, '
                f"got {one!r}"
            )
        return jax.ShapeDtypeStruct(one.shape, one.dtype)
    match = re.fullmatch(r"\s*(?:(\w+)\[(.*)\]|([^\[\]]*))\s*", one)
    if match is None:
        raise ValueError(f'expected axes, as "T, N, 10", or a dtype around them, got {one!r}')
    name, inside, alone = match.groups()
    try:
        dtype = floating if name is None else jnp.dtype(name)
    except TypeError as error:
        raise ValueError(f"expected a dtype before the axes, got {name!r} in {one!r}") from error
    axes = (alone if name is None else inside).strip()
    shape = jax_export.symbolic_shape(axes, scope=scope) if axes else ()
    return jax.ShapeDtypeStruct(shape, dtype)
