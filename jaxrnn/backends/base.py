"""Protocol of the backends: static options, residuals, and the two functions of a loop.

A loop backend is a module with

.. code-block:: text

    forward(options, weights, x, state, masks, policy) -> ForwardResult
    linear(options, weights, x, masks, result, tangents) -> (output tangents, final-state tangents)

`forward` runs the cell over time. `linear` is its derivative, linear in the tangents of the
weights, the input and the initial state; JAX transposes it into the backward pass. Two modules
implement the protocol: `jaxrnn.backends.scan`, and `jaxrnn.backends.primitives`, whose operations
have kernels.

Arrays are batch-major: x (T, N, D), states (N, H), outputs (T, N, H).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxrnn.backends import platform
from jaxrnn.backends.step import has_output_function
from jaxrnn.cells import State


@dataclass(frozen=True)
class UnrollOptions:
    """Static options of an unroll over time.

    Attributes:
        cell: the cell, see `jaxrnn.cells`.
        reverse: if True, read the sequence from its last step to its first.
        remat: if True, save only the output and the states between blocks for the backward pass
            and recompute the rest: one more product and one more loop a block, far less memory.
        block_length: steps in a block; None chooses it from the shapes.
        return_all_states: if True, return every state at each step, not the hidden state alone.
        backend: "scan"; "kernel", primitives with kernels; or "parallel", an associative scan.
        platform: the platform that the loop is tuned for.
        residual_bytes: the residuals of the cell are saved if the gates take at most this many
            bytes. Otherwise a block recomputes its gates from the states by one product, which
            takes 10 to 20 % longer and, for an LSTM, a third of the memory.
    """

    cell: Any  # a cell of `jaxrnn.cells`
    reverse: bool = False
    remat: bool = False
    block_length: int | None = None
    return_all_states: bool = False
    backend: str = "scan"
    platform: str = "cpu"
    residual_bytes: int = 256_000_000

    @property
    def tuning(self) -> platform.Tuning:
        """The tuning of the scan for the platform."""
        return platform.tuning(self.platform)

    def stacked_states(self, state: State) -> State:
        """Return the states of a step that the loop stacks over time."""
        keep_all = self.return_all_states or has_output_function(self.cell)
        return state if keep_all else state[:1]

    def split_outputs(self, outputs: State) -> tuple[jax.Array, State | None]:
        """Split stacked outputs into the output and, if requested, all states."""
        states = outputs[1:] if has_output_function(self.cell) else outputs
        return outputs[0], states if self.return_all_states else None


class ResidualPolicy(enum.Enum):
    """Residuals that the forward pass saves beside the input and the output."""

    NOTHING = enum.auto()
    STATES = enum.auto()
    ALL = enum.auto()


class Residuals(NamedTuple):
    """Values saved by the forward pass for the backward pass.

    Attributes:
        states: the states after each step, without h.
        unprojected: h before its projection, if there is a projection.
        cell: the residuals of the cell; None if they are recomputed.
    """

    states: State
    unprojected: jax.Array | None = None
    cell: Any = None


class ForwardResult(NamedTuple):
    """Result of a forward loop.

    Attributes:
        outputs: the stacked outputs, (T, N, R), (T, N, H), ...
        final_state: the state after the last step.
        residuals: what was saved, in the backend's layout; None for nothing.
        block_states: the states before each block, in the backend's layout.
        policy: the residual policy of the loop.
    """

    outputs: State
    final_state: State
    residuals: Residuals | None
    block_states: State
    policy: ResidualPolicy


class Tangents(NamedTuple):
    """Tangents of the arguments of a loop; None for an argument without one.

    Attributes:
        weights: of the weights, each leaf an array or None.
        x: of the input.
        state: of the initial state.
    """

    weights: Any
    x: jax.Array | None
    state: State
