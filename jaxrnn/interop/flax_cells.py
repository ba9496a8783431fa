"""What both of Flax's interfaces, linen and nnx, share: their modules, and which cells are ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.interop._parts import Part

CELLS = {"SimpleCell": "RNN", "LSTMCell": "LSTM", "OptimizedLSTMCell": "LSTM", "GRUCell": "GRU"}
"""The kind of each cell that ours can hold."""

FUNCTIONS = {
    "sigmoid": (jax.nn.sigmoid,),
    "tanh": (jnp.tanh, jax.nn.tanh, jax.lax.tanh),
    "relu": (jax.nn.relu,),
}
"""The functions of the gates that are ours, under each of their names in JAX and Flax."""


def function_name(function: Any) -> str:
    """Which of `FUNCTIONS` a function is, or else what it is called."""
    for name, functions in FUNCTIONS.items():
        if function in functions:
            return name
    return getattr(function, "__name__", repr(function))


def kind_of(cell: Any, flax: Any) -> str | None:
    """Which of our kinds a cell of ``flax.linen`` or ``flax.nnx`` is."""
    return next((kind for name, kind in CELLS.items() if type(cell) is getattr(flax, name)), None)


def check_cell(cell: Any, kind: str, where: str, problems: list[str]) -> None:
    """Note the functions and options of a cell that ours doesn't have."""
    wanted = {"activation_fn": ("tanh", "relu") if kind == "RNN" else ("tanh",)}
    if kind != "RNN":
        wanted["gate_fn"] = ("sigmoid",)
    for name, allowed in wanted.items():
        got = function_name(getattr(cell, name))
        if got not in allowed:
            problems.append(f"{where}: expected {name} {' or '.join(allowed)}, got {got}")
    if cell.carry_init not in (None, jax.nn.initializers.zeros):
        problems.append(
            f"{where}: expected a carry that begins from zeros, got carry_init "
            f"{function_name(cell.carry_init)}, which a layer takes as hx"
        )
    if getattr(cell, "residual", False):
        problems.append(f"{where}: expected residual=False, got True")


def cells_of(
    modules: Iterable[Any], flax: Any, problems: list[str]
) -> tuple[list[list[tuple[str, Any]]], bool]:
    """The cells in modules one upon the other, all that ours can't hold noted.

    Args:
        modules: of `flax`: an ``RNN``, a ``Bidirectional`` or a cell alone for each layer.
        flax: ``flax.linen`` or ``flax.nnx``, which call everything alike.
        problems: where they are noted.

    Returns:
        For each layer the cells of its directions, each with its name for errors; and whether the
        modules are time-major.
    """
    layers: list[list[tuple[str, Any]]] = []
    majors: list[bool] = []
    for number, module in enumerate(modules):
        where = f"{number} ({type(module).__name__})"
        found = [(where, module)]
        if isinstance(module, flax.Bidirectional):
            if module.merge_fn is not flax.Bidirectional.merge_fn:
                problems.append(
                    f"{where}: expected merge_fn to be Flax's own, which concatenates, "
                    f"got {function_name(module.merge_fn)}"
                )
            both = {"forward_rnn": module.forward_rnn, "backward_rnn": module.backward_rnn}
            found = [(f"{where}.{name}", getattr(rnn, "cell", rnn)) for name, rnn in both.items()]
            majors.append(module.time_major)
        elif isinstance(module, flax.RNN):
            if module.reverse:
                problems.append(
                    f"{where}: expected reverse=False outside of a Bidirectional, got True"
                )
            found = [(where, module.cell)]
            majors.append(module.time_major)
        for name, cell in found:
            kind = kind_of(cell, flax)
            if kind is None:
                problems.append(
                    f"{name}: expected one of {', '.join(CELLS)}, got {type(cell).__name__}"
                )
            else:
                check_cell(cell, kind, name, problems)
        layers.append(found)
    if len(set(majors)) > 1:
        problems.append(f"expected one time_major in all layers, got {majors}")
    return layers, bool(majors) and majors[0]


def modules_of(
    stack: Sequence[Sequence[Part]], cell: Callable[[Part], Any], flax: Any, *, time_major: bool
) -> list[Any]:
    """The other way round: for each layer an ``RNN``, or a ``Bidirectional`` of two.

    Args:
        stack: the directions of each layer.
        cell: a direction as a cell of `flax`.
        flax: ``flax.linen`` or ``flax.nnx``.
        time_major: of all of them.
    """
    made = []
    for directions in stack:
        rnns = [flax.RNN(cell(part), time_major=time_major) for part in directions]
        two = len(rnns) == 2
        made.append(flax.Bidirectional(*rnns, time_major=time_major) if two else rnns[0])
    return made


def cell_of(part: Part, layer: Any, flax: Any, *sizes: int, **options: Any) -> Any:
    """A cell of the kind of one direction of one of our layers; its weights are still to come."""
    kinds = {"RNN": flax.SimpleCell, "LSTM": flax.OptimizedLSTMCell, "GRU": flax.GRUCell}
    if part.kind == "RNN":
        options["activation_fn"] = jax.nn.relu if part.nonlinearity == "relu" else jnp.tanh
    dtypes = {"dtype": layer.dtype, "param_dtype": part.weight_ih.dtype}
    return kinds[part.kind](*sizes, part.hidden_size, **dtypes, **options)


def described(cell: Any, kind: str) -> dict[str, Any]:
    """The fields of a `Part` that a cell says beside its weights; None stands for the defaults."""
    if cell is None:
        return {}
    nonlinearity = function_name(cell.activation_fn) if kind == "RNN" else "tanh"
    dtype = None if cell.dtype is None else jnp.dtype(cell.dtype)
    return {"nonlinearity": nonlinearity, "dtype": dtype}
