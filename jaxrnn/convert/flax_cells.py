"""What the cells of both of Flax's interfaces share: which of their functions are ours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

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


def check_directions(module: Any, kind: Any, where: str, problems: list[str]) -> None:
    """Note what the wrapper of two directions does that ours doesn't.

    Args:
        module: a `Bidirectional`.
        kind: its class.
        where: its name, for the problems.
        problems: where they are noted.
    """
    if module.merge_fn is not kind.merge_fn:
        problems.append(
            f"{where}: expected merge_fn to be Flax's own, which concatenates, "
            f"got {function_name(module.merge_fn)}"
        )


def check_one_way(rnn: Any, where: str, problems: list[str]) -> None:
    """Note a single direction that reads from the last step."""
    if rnn.reverse:
        problems.append(f"{where}: expected reverse=False outside of a Bidirectional, got True")


def check_time(majors: list[bool], problems: list[str]) -> None:
    """Note layers that don't agree in their layout."""
    if len(set(majors)) > 1:
        problems.append(f"expected one time_major in all layers, got {majors}")
