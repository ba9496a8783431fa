"""A call of a layer: its arguments checked, and its key for what is random."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.core import stack
from jaxrnn.core import state as states
from jaxrnn.layers import _checks as torch_checks
from jaxrnn.layers._module import as_key


def check(
    layer: Any, x: jax.Array, hx: Any, *, time_major: bool = False
) -> tuple[str, tuple[Any, ...] | None]:
    """Check a call, in PyTorch's order.

    Args:
        layer: a `Recurrent`.
        x: the input.
        hx: the states, or None.
        time_major: whether x is (T, N, D) whatever the layer says.

    Returns:
        The axes of the input, and the states as a tuple.

    Raises:
        ValueError, RuntimeError, TypeError: in PyTorch's words.
    """
    kind = layer.kind
    batched = torch_checks.layer_input(kind, x)
    layout = "TD" if not batched else "NTD" if layer.batch_first and not time_major else "TND"
    given, initial = (), None
    apart = hx is not None and states.layered(layer.each_state_sizes)
    if hx is not None and not apart:
        if layer.mode == "LSTM":
            given = torch_checks.two_states(hx)
        else:
            given = torch_checks.states(hx, tuple(layer.cell.states))
        initial = tuple(map(jnp.asarray, given[: len(layer.cell.states)]))
        torch_checks.state_axes(initial, batched)
    if layer.dtype is None:
        torch_checks.input_dtype(x, layer.param_dtype)
    torch_checks.input_size(x, layer.input_size)
    batch = x.shape[layout.index("N")] if batched else 1
    if apart:
        initial = states.check_layered(
            hx, tuple(layer.cell.states), layer.state_shapes(batch), batched
        )
    elif initial is not None:
        torch_checks.state_shapes(initial, layer.state_shapes(batch), batched)
        torch_checks.state_count(given, len(initial))
    torch_checks.sequence_length(x.shape[layout.index("T")])
    if layer.dtype is None and initial is not None:
        dtypes = layer.cell.state_dtypes(layer.param_dtype)
        for of_layer in zip(*initial) if apart else (initial,):
            torch_checks.state_dtypes(of_layer, dtypes)
    return layout, initial


def dropout_key(layer: Any, plan: stack.StackOptions, rngs: Any) -> Any:
    """A key where randomness is needed; otherwise no random stream is touched."""
    drawn = {} if plan.regularisers is None else plan.regularisers.drawn
    if 0 < plan.dropout < 1:
        drawn = {"dropout": plan.dropout} | drawn
    if not drawn:
        return None
    source = layer.rngs if rngs is None else rngs
    if source is None:
        name, p = next(iter(drawn.items()))
        raise ValueError(
            f"{name}={p} is active but there is no random stream: pass rngs= to the "
            "call, or give the constructor rngs with a 'dropout' or 'default' stream"
        )
    return as_key(source)
