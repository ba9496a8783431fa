"""What a run of the recurrence is told, and what its loop hands to its derivative.

Both kinds of loops have this in common, the scans (`jaxrnn.backends.scan`) and those of kernels
(`jaxrnn.backends.fused_loops`). Rows are last in all states and in all that is kept by the former, first in
those of the latter.
Axis letters: K steps in a block, N batch, D input features, R size of h (P if projected, else H).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxrnn.backends.step import StepMasks, gives_output
from jaxrnn.cells import State


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it is traced; a static argument.

    Attributes:
        cell: the cell.
        reverse: read the sequence from its last step to its first.
        remat: keep only the output and the states between blocks for the derivative, and compute
            the rest again from them: one product and one loop a block more, far less memory.
        block: steps in a block; None chooses from the shapes (`jaxrnn.backends.blocks.block_length`).
        all_states: give out every state at each step, and not the hidden state alone.
        backend: who runs the loop: "scan"; "kernel", one operation with a kernel of its own
            (`jaxrnn.backends.primitives`); or "parallel", all steps of a block at once (`jaxrnn.backends.parallel`).
    """

    cell: Any  # of `jaxrnn.cells`
    reverse: bool = False
    remat: bool = False
    block: int | None = None
    all_states: bool = False
    backend: str = "scan"

    def given_out(self, state: State) -> State:
        """The states that are given out at each step."""
        return state if self.all_states or gives_output(self.cell) else state[:1]

    def apart(self, given: State) -> tuple[jax.Array, State | None]:
        """Of what `forward` gave out, the output, and the states if they were asked for."""
        states = given[1:] if gives_output(self.cell) else given
        return given[0], states if self.all_states else None


class Keep(enum.Enum):
    """What the derivative is to have of the steps of a block, beside x and the output."""

    NOTHING = enum.auto()
    STATES = enum.auto()
    ALL = enum.auto()


class Kept(NamedTuple):
    """What the derivative needs of the steps beside x and the output.

    Attributes:
        rest: the states after each step but h.
        m: the output before projection, if there is one.
        saved: what the cell saved; None with `m` where both are computed again.
    """

    rest: State
    m: jax.Array | None = None
    saved: Any = None


class Block(NamedTuple):
    """A block of steps as the derivative finds it.

    Attributes:
        x: the input (K, N, D).
        start: the states before its first step.
        masks: of its steps.
        hs: the h given out at each step (K, N, R).
        kept: what else was kept of them; None for nothing.
    """

    x: jax.Array
    start: State
    masks: StepMasks
    hs: jax.Array
    kept: Kept | None
