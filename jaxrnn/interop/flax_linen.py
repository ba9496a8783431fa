"""Flax linen: the params of cells, of nn.RNN and nn.Bidirectional around them, of nn.Sequential."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxrnn.interop._parts import GATES, Part, one_bias, put_together, refuse, taken_apart
from jaxrnn.interop.flax_cells import cell_of, cells_of, described, kind_of, modules_of

DENSE = {
    "RNN": (("i",), ("h",)),
    "LSTM": (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "GRU": (("ir", "iz", "in"), ("hr", "hz", "hn")),
}
"""The dense layers of a cell, from the input and from the state, a gate each in PyTorch's order."""

BIASED = {"RNN": ("i",), "LSTM": DENSE["LSTM"][1], "GRU": (*DENSE["GRU"][0], "hn")}
"""Those of them that have a bias."""


def from_linen(params: Any, module: Any = None) -> Any:
    """One of our layers from the params of recurrent modules of Flax linen.

    Args:
        params: of an ``nn.RNN`` or ``nn.Bidirectional``, or of a cell alone: ``SimpleCell``,
            ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell``; of an ``nn.Sequential`` of nothing but
            these, or a list of such params, one upon the other, all of one kind and size. Which
            cell it is, its names say. ``{"params": params}``, as ``init`` gives it, is taken too.
        module: what the params are of, or a list of what each is of. They don't say which functions
            are in the cells, the layout and the dtype of the computation; None stands for Flax's
            defaults.

    Returns:
        An `RNN`, `LSTM` or `GRU` with as many layers, batch-first unless the module is time-major.
        One bias is ``bias_ih``, beside zeros; of a GRU that of ``hn`` is the n of ``bias_hh``. A
        carry of an LSTM is (c, h) in Flax, here (h, c).

    Raises:
        TypeError: for params or modules of other types.
        ConversionError: a ValueError that lists all that can't be held.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from jaxrnn.interop.convert import from_linen
        >>> module, x = nn.RNN(nn.GRUCell(4)), jnp.linspace(-1, 1, 30).reshape(2, 5, 3)
        >>> variables = module.init(jax.random.key(0), x)
        >>> gru = from_linen(variables, module)
        >>> gru
        GRU(3, 4, batch_first=True)
        >>> bool(jnp.allclose(gru(x)[0], module.apply(variables, x), atol=1e-6))
        True
    """
    problems: list[str] = []
    trees = _trees(nn.meta.unbox(params), problems)
    refuse(problems, "from_linen can't hold:")
    modules, major = [[None] * len(directions) for directions in trees], False
    if module is not None:
        modules, major = _modules(module, problems)
        if [len(found) for found in modules] != [len(directions) for directions in trees]:
            problems.append(
                f"the module has layers of {[len(found) for found in modules]} directions, "
                f"the params of {[len(directions) for directions in trees]}"
            )
    refuse(problems, "from_linen can't hold:")
    layers = [
        [_part(*tree, cell, problems) for tree, cell in zip(directions, found, strict=True)]
        for directions, found in zip(trees, modules, strict=True)
    ]
    refuse(problems, "from_linen can't hold:")
    return put_together(layers, batch_first=not major, function="from_linen")


def to_linen(layer: Any) -> tuple[nn.Sequential, dict[str, Any]]:
    """An ``nn.Sequential`` of Flax linen and its params from one of our layers.

    Args:
        layer: an `RNN`, `LSTM` (without a projection) or `GRU`.

    Returns:
        The module: for each layer an ``nn.RNN`` around a ``SimpleCell``, ``OptimizedLSTMCell`` or
        ``GRUCell``, or an ``nn.Bidirectional`` of two, time-major unless ``layer.batch_first``. And
        its params: each gate gets the sum of both biases, but for the n of a GRU, which has both.

    Raises:
        TypeError: for anything but a layer of ours.
        ConversionError: a ValueError, for a cell or a projection that Flax doesn't have.

    Warns:
        UserWarning: of dropout, which is not converted.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.convert import to_linen
        >>> gru = jaxrnn.GRU(3, 4, num_layers=2, rngs=nnx.Rngs(0))
        >>> module, params = to_linen(gru)
        >>> x = jnp.linspace(-1, 1, 30).reshape(5, 2, 3)
        >>> bool(jnp.allclose(gru(x)[0], module.apply({"params": params}, x), atol=1e-6))
        True
    """
    stack = taken_apart(layer, "to_linen")
    make = functools.partial(cell_of, layer=layer, flax=nn)
    modules, params = modules_of(stack, make, nn, time_major=not layer.batch_first), {}
    for number, directions in enumerate(stack):
        trees = [{"cell": _tree(part)} for part in directions]
        both = dict(zip(("forward_rnn", "backward_rnn"), trees))
        params[f"layers_{number}"] = both if len(trees) == 2 else trees[0]
    return nn.Sequential(tuple(modules)), params


def _trees(params: Any, problems: list[str]) -> list[list[tuple[str, Any]]]:
    """The params of the cells: layers of directions, each with its name."""
    if isinstance(params, Mapping) and set(params) == {"params"}:
        params = params["params"]
    if isinstance(params, Mapping):
        names = [re.fullmatch(r"layers_(\d+)", name) for name in params]
        if params and all(names):
            ordered = sorted(params, key=lambda name: int(name.split("_")[1]))
            named = [(name, params[name]) for name in ordered]
        else:
            named = [("the cell", params)]
    elif isinstance(params, Sequence) and not isinstance(params, (str, bytes)):
        named = [(str(number), tree) for number, tree in enumerate(params)]
    else:
        raise TypeError(f"from_linen takes params, a dict or a list, got {type(params).__name__}")
    return [_directions(where, tree, problems) for where, tree in named]


def _directions(where: str, tree: Any, problems: list[str]) -> list[tuple[str, Any]]:
    """The params of the cells of one layer."""
    names = set(tree) if isinstance(tree, Mapping) else {type(tree).__name__}
    if names == {"params"}:
        return _directions(where, tree["params"], problems)
    if names == {"forward_rnn", "backward_rnn"}:
        both = ("forward_rnn", "backward_rnn")
        return [d for name in both for d in _directions(f"{where}.{name}", tree[name], problems)]
    if names == {"cell"}:
        return _directions(where, tree["cell"], problems)
    if not any(names == {*i, *h} for i, h in DENSE.values()):
        known = "; ".join(" ".join((*i, *h)) for i, h in DENSE.values())
        problems.append(f"{where}: expected the entries of a cell ({known}), got {sorted(names)}")
    return [(where, tree)]


def _modules(module: Any, problems: list[str]) -> tuple[list[list[Any]], bool]:
    """The cells of modules: layers of directions; and whether they are time-major."""
    if isinstance(module, nn.Sequential):
        module = module.layers
    modules = list(module) if isinstance(module, Sequence) else [module]
    layers, major = cells_of(modules, nn, problems)
    return [[cell for _, cell in directions] for directions in layers], major


def _part(where: str, tree: Any, cell: Any, problems: list[str]) -> Part:
    """The weights of a cell; the number of gates is that of its dense layers."""
    (kind,) = (kind for kind, (i, h) in DENSE.items() if set(tree) == {*i, *h})
    if cell is not None and kind_of(cell, nn) != kind:
        problems.append(f"{where}: the params are those of another cell than {type(cell).__name__}")
    got = {(name, leaf) for name, dense in tree.items() for leaf in dense}
    wanted = {(name, "kernel") for name in tree} | {(name, "bias") for name in BIASED[kind]}
    if got != wanted:
        for word, some in (("missing", wanted - got), ("unexpected", got - wanted)):
            problems.extend(f"{where}: {word} {'.'.join(pair)}" for pair in sorted(some))
        empty = np.zeros((0, 0), np.float32)
        return Part(where, kind, empty, empty)

    def joined(names: Sequence[str], leaf: str) -> np.ndarray:
        arrays = [np.asarray(tree[name][leaf]) for name in names]
        return np.ascontiguousarray(np.concatenate(arrays, axis=-1).T)

    from_i, from_h = DENSE[kind]
    bias = joined(BIASED[kind][: len(GATES[kind])], "bias")
    other = np.zeros_like(bias)
    if kind == "GRU":
        b_hn = np.asarray(tree["hn"]["bias"])
        other[len(other) - len(b_hn) :] = b_hn
    weights = joined(from_i, "kernel"), joined(from_h, "kernel")
    return Part(where, kind, *weights, bias, other, **described(cell, kind))


def _tree(part: Part) -> dict[str, Any]:
    """The params of a cell with the weights of one direction."""
    from_i, from_h = DENSE[part.kind]
    tree: dict[str, Any] = {}
    for names, weight in ((from_i, part.weight_ih), (from_h, part.weight_hh)):
        for name, gate in zip(names, np.split(weight, len(names)), strict=True):
            tree[name] = {"kernel": jnp.array(gate.T)}
    total = one_bias(part)
    if part.kind == "GRU":
        first = 2 * part.hidden_size
        zeros = np.zeros_like(total)
        b_ih, b_hh = (zeros if b is None else b for b in (part.bias_ih, part.bias_hh))
        total = np.concatenate([total[:first], b_ih[first:]])
        tree["hn"]["bias"] = jnp.array(b_hh[first:])
    names = BIASED[part.kind][: len(from_i)]
    for name, gate in zip(names, np.split(total, len(names)), strict=True):
        tree[name]["bias"] = jnp.array(gate)
    return tree
