"""Flax nnx: cells, nnx.RNN and nnx.Bidirectional around them, nnx.Sequential of these."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.interop._parts import Part, one_bias, put_together, refuse, taken_apart
from jaxrnn.interop.flax_cells import cell_of, cells_of, described, kind_of, modules_of


def from_nnx(modules: Any) -> Any:
    """One of our layers from recurrent modules of Flax nnx.

    Args:
        modules: an ``nnx.RNN`` or ``nnx.Bidirectional``, or a cell alone: ``SimpleCell`` (tanh or
            relu), ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell``; a list or ``nnx.Sequential`` of
            nothing but these, one upon the other, all of one kind and size.

    Returns:
        An `RNN`, `LSTM` or `GRU` with as many layers, batch-first unless they are time-major. Their
        one bias is ``bias_ih``, beside zeros. A carry of an LSTM is (c, h) in Flax, here (h, c).

    Raises:
        TypeError: for anything that is no module.
        ConversionError: a ValueError that lists all that can't be held.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn.interop.convert import from_nnx
        >>> theirs = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
        >>> ours = from_nnx(theirs)
        >>> ours
        GRU(3, 4, batch_first=True)
        >>> x = jnp.linspace(-1, 1, 30).reshape(2, 5, 3)
        >>> bool(jnp.allclose(ours(x)[0], theirs(x), atol=1e-6))
        True
    """
    if isinstance(modules, nnx.Sequential):
        modules = modules.layers
    elif isinstance(modules, nnx.Module) and not isinstance(modules, nnx.List):
        modules = [modules]
    if not isinstance(modules, Iterable) or isinstance(modules, (str, bytes)):
        raise TypeError(f"from_nnx takes modules of nnx, got {type(modules).__name__}")
    problems: list[str] = []
    stack, major = cells_of(modules, nnx, problems)
    refuse(problems, "from_nnx can't hold:")
    layers = [[_part(name, cell) for name, cell in found] for found in stack]
    return put_together(layers, batch_first=not major, function="from_nnx")


def to_nnx(layer: Any) -> nnx.Sequential:
    """An ``nnx.Sequential`` of Flax from one of our layers.

    Args:
        layer: an `RNN`, `LSTM` (without a projection) or `GRU`.

    Returns:
        For each layer an ``nnx.RNN`` around a ``SimpleCell``, ``OptimizedLSTMCell`` or ``GRUCell``,
        or an ``nnx.Bidirectional`` of two, time-major unless ``layer.batch_first``. Each cell gets
        the sum of both biases.

    Raises:
        TypeError: for anything but a layer of ours.
        ConversionError: a ValueError, for a cell or a projection that Flax doesn't have, and for a
            GRU whose ``bias_hh`` is not zero for the gate n: in nnx it has none to be added before
            the reset (in linen it has: `to_linen`).

    Warns:
        UserWarning: of dropout, which is not converted.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.convert import to_nnx
        >>> rnn = jaxrnn.RNN(3, 4, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> theirs, x = to_nnx(rnn), jnp.linspace(-1, 1, 30).reshape(5, 2, 3)
        >>> bool(jnp.allclose(rnn(x)[0], theirs(x), atol=1e-6))
        True
    """
    stack = taken_apart(layer, "to_nnx")
    problems = []
    for part in (part for directions in stack for part in directions):
        if part.kind == "GRU" and part.bias_hh is not None:
            b_hn = part.bias_hh[2 * part.hidden_size :]
            if b_hn.any():
                problems.append(
                    f"{part.where}: expected b_hn of zeros, got up to {np.abs(b_hn).max():.3g}"
                )
    refuse(problems, "to_nnx: nnx.GRUCell has no bias inside the reset product, to_linen has:")
    make = functools.partial(_cell, layer=layer)
    return nnx.Sequential(*modules_of(stack, make, nnx, time_major=not layer.batch_first))


def _part(where: str, cell: Any) -> Part:
    """The weights of a cell, in PyTorch's order, which is Flax's."""
    kind = kind_of(cell, nnx)
    assert kind is not None  # `cells_of` has seen to it

    def joined(dense: list[Any], name: str) -> np.ndarray:
        arrays = [np.array(getattr(one, name)[...]) for one in dense]
        return np.ascontiguousarray(np.concatenate(arrays, axis=-1).T)

    if isinstance(cell, nnx.LSTMCell):
        dense_i = [cell.ii, cell.if_, cell.ig, cell.io]
        dense_h = [cell.hi, cell.hf, cell.hg, cell.ho]
    else:
        dense_i, dense_h = [cell.dense_i], [cell.dense_h]
    bias = joined(dense_h if kind == "LSTM" else dense_i, "bias")
    return Part(
        where,
        kind,
        joined(dense_i, "kernel"),
        joined(dense_h, "kernel"),
        bias,
        np.zeros_like(bias),
        **described(cell, kind),
    )


def _cell(part: Part, layer: Any) -> Any:
    """A cell with the weights of one direction."""
    zeros = nnx.initializers.zeros_init()
    drawn: dict[str, Any] = {"kernel_init": zeros, "recurrent_kernel_init": zeros}
    cell = cell_of(part, layer, nnx, part.weight_ih.shape[1], rngs=nnx.Rngs(0), **drawn)
    cell.dense_i.kernel[...] = jnp.array(part.weight_ih.T)
    cell.dense_h.kernel[...] = jnp.array(part.weight_hh.T)
    biased = cell.dense_h if part.kind == "LSTM" else cell.dense_i
    biased.bias[...] = jnp.array(one_bias(part))
    return cell
