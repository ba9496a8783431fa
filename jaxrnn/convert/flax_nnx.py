"""Flax nnx: cells, nnx.RNN and nnx.Bidirectional around them, nnx.Sequential of these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.convert.flax_cells import (
    check_cell,
    check_directions,
    check_one_way,
    check_time,
    function_name,
)
from jaxrnn.convert.parts import Part, one_bias, put_together, refuse, taken_apart

CELLS = {
    nnx.SimpleCell: "RNN",
    nnx.LSTMCell: "LSTM",
    nnx.OptimizedLSTMCell: "LSTM",
    nnx.GRUCell: "GRU",
}


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
        >>> from jaxrnn.convert import from_nnx
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
    modules = list(modules)
    problems: list[str] = []
    stack: list[list[tuple[str, Any]]] = []
    majors: list[bool] = []
    for number, module in enumerate(modules):
        where = f"{number} ({type(module).__name__})"
        if isinstance(module, nnx.Bidirectional):
            check_directions(module, nnx.Bidirectional, where, problems)
            majors.append(module.time_major)
            both = {"forward_rnn": module.forward_rnn, "backward_rnn": module.backward_rnn}
            found = [(f"{where}.{name}", getattr(rnn, "cell", rnn)) for name, rnn in both.items()]
        elif isinstance(module, nnx.RNN):
            check_one_way(module, where, problems)
            majors.append(module.time_major)
            found = [(where, module.cell)]
        else:
            found = [(where, module)]
        for name, cell in found:
            kind = CELLS.get(type(cell))
            if kind is None:
                known = ", ".join(cell.__name__ for cell in CELLS)
                problems.append(f"{name}: expected one of {known}, got {type(cell).__name__}")
            else:
                check_cell(cell, kind, name, problems)
        stack.append(found)
    check_time(majors, problems)
    refuse(problems, "from_nnx can't hold:")
    layers = [[_part(name, cell) for name, cell in found] for found in stack]
    first = bool(majors) and majors[0]
    return put_together(layers, batch_first=not first, function="from_nnx")


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
        >>> from jaxrnn.convert import to_nnx
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
    major = not layer.batch_first
    made = []
    for directions in stack:
        rnns = [nnx.RNN(_cell(part, layer), time_major=major) for part in directions]
        made.append(nnx.Bidirectional(*rnns, time_major=major) if len(rnns) == 2 else rnns[0])
    return nnx.Sequential(*made)


def _part(where: str, cell: Any) -> Part:
    """The weights of a cell, in PyTorch's order, which is Flax's."""
    kind = CELLS[type(cell)]

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
        function_name(cell.activation_fn) if kind == "RNN" else "tanh",
        None if cell.dtype is None else jnp.dtype(cell.dtype),
    )


def _cell(part: Part, layer: Any) -> Any:
    """A cell with the weights of one direction."""
    zeros = nnx.initializers.zeros_init()
    kinds = {"RNN": nnx.SimpleCell, "LSTM": nnx.OptimizedLSTMCell, "GRU": nnx.GRUCell}
    options: dict[str, Any] = {}
    if part.kind == "RNN":
        options["activation_fn"] = jax.nn.relu if part.nonlinearity == "relu" else jnp.tanh
    cell = kinds[part.kind](
        part.weight_ih.shape[1],
        part.hidden_size,
        dtype=layer.dtype,
        param_dtype=part.weight_ih.dtype,
        kernel_init=zeros,
        recurrent_kernel_init=zeros,
        rngs=nnx.Rngs(0),
        **options,
    )
    cell.dense_i.kernel[...] = jnp.array(part.weight_ih.T)
    cell.dense_h.kernel[...] = jnp.array(part.weight_hh.T)
    biased = cell.dense_h if part.kind == "LSTM" else cell.dense_i
    biased.bias[...] = jnp.array(one_bias(part))
    return cell
