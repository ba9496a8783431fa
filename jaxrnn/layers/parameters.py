"""What a stack of layers holds: its parameters, under PyTorch's names, and what their sizes are.

Axis letters: D input features, H hidden size, P projection, R = P or H, L layers, F directions
(2 if bidirectional).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import cells
from jaxrnn.cells.weights import Weights
from jaxrnn.core import dropout as regularisers
from jaxrnn.core import params as initial_weights
from jaxrnn.core import skips
from jaxrnn.core import state as states
from jaxrnn.layers._module import Printed

_SHOWN = {
    "proj_size": 0,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0,
    "bidirectional": False,
    "input_dropout": 0,
    "recurrent_dropout": 0,
    "zoneout": 0,
    "weight_drop": 0,
    "weight_norm": False,
    "learn_initial_state": False,
    "skip": None,
}
"""The arguments that are printed after the sizes where they are not the default."""


class Parameters(Printed, nnx.Module):
    """The sizes and parameters of a stack of layers: what `Recurrent` is without its call."""

    mode: str = ""  # PyTorch's name of the kind of layer

    cell: cells.BaseCell
    input_size: int
    hidden_size: Any  # H, or a tuple of one for each layer
    num_layers: int
    bias: bool
    bidirectional: bool
    proj_size: int
    dtype: Any
    param_dtype: Any
    weight_norm: Any
    learn_initial_state: bool
    skip: str | None

    def _hold(self, key: jax.Array) -> None:
        """Draw the parameters; all that is declared above is there already."""
        # Of each layer; kept, for to read them from the cell takes longer than to check a call.
        self.each_state_sizes = tuple(self.cell.state_sizes(sizes) for sizes in self.layer_sizes)
        around = skips.places(self.skip, self.cell, self.layer_sizes, self.directions)
        drawn = initial_weights.init(
            key,
            self.cell,
            self.input_size,
            self.hidden_size,
            num_layers=self.num_layers,
            bias=self.bias,
            bidirectional=bool(self.bidirectional),
            proj_size=self.proj_size,
            dtype=self.param_dtype,
        )
        normed = regularisers.normed_names(self.weight_norm, drawn[0].shapes())
        names = []
        for suffix, weights in zip(self._suffixes, drawn):
            there = weights.named()
            if normed:
                there = regularisers.taken_apart(there, normed)
            names.append(tuple((field, _name(field, suffix, normed)) for field in there))
            for (_, name), value in zip(names[-1], there.values()):
                setattr(self, name, nnx.Param(value))
        self._names = tuple(names)
        self._learned = self._hold_initial_state() if self.learn_initial_state else ()
        self._gates = self._hold_gates(key, around) if self.skip == "highway" else ()

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The features of each state: R for h, H for each other one, or what the cell declares.

        Raises:
            ValueError: where they differ from layer to layer.
        """
        each = self.each_state_sizes
        if states.layered(each):
            raise ValueError(f"{self!r} has states of other sizes in each layer: {list(each)}")
        return each[0]

    @property
    def directions(self) -> int:
        """F."""
        return 2 if self.bidirectional else 1

    @property
    def layer_sizes(self) -> tuple[cells.Sizes, ...]:
        """D, H and R of each layer."""
        return states.layer_sizes(
            *(self.cell, self.input_size, self.hidden_size, self.num_layers),
            directions=self.directions,
            proj_size=self.proj_size,
        )

    @property
    def _suffixes(self) -> list[str]:
        """Of the names of the parameters, for each layer and direction."""
        ways = ("", "_reverse")[: self.directions]
        return [f"_l{layer}{way}" for layer in range(self.num_layers) for way in ways]

    @property
    def output_size(self) -> int:
        """F*R, the features of the output."""
        return self.directions * self.cell.output_features(self.layer_sizes[-1])

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of the parameters, in PyTorch's order; those it does not have follow."""
        names = tuple(name for names in self._names for _, name in names)
        learned = tuple(name for names in self._learned for name in names)
        gates = tuple(name for names in self._gates for name in names)
        return names + learned + gates

    @property
    def all_weights(self) -> list[list[nnx.Param]]:
        """The parameters, a list for each layer and direction, in PyTorch's order."""
        return [[getattr(self, name) for _, name in names] for names in self._names]

    def weights(self) -> tuple[Weights, ...]:
        """The parameters as `jaxrnn.core.stack.run` takes them."""
        each = [{field: getattr(self, name)[...] for field, name in names} for names in self._names]
        if self.weight_norm:
            each = map(regularisers.put_together, each)
        return tuple(Weights.from_named(self.cell, named) for named in each)

    def gates(self) -> tuple[skips.Gate | None, ...] | None:
        """The parameters of a highway as `jaxrnn.core.stack.run` takes them, one for each layer."""
        if self.skip != "highway":
            return None
        values = [[getattr(self, name)[...] for name in names] for names in self._gates]
        return tuple(skips.Gate(*there) if there else None for there in values)

    def learned_state(self) -> tuple[Any, ...] | None:
        """The states that are parameters, without rows; None where none are."""
        if not self._learned:
            return None
        each = [tuple(getattr(self, name)[...] for name in names) for names in self._learned]
        return states.stacked(each, self.directions, 0)

    def initial_state(self, batch_size: int | None = None) -> Any:
        """The state that None stands for, of zeros or learned, shaped as `hx` of a call.

        Args:
            batch_size: N; None for an unbatched state.
        """
        dtypes = self.cell.state_dtypes(self.param_dtype if self.dtype is None else self.dtype)
        learned = self.learned_state()
        if learned is not None:
            return self.hx_of(states.cast(states.repeated(learned, batch_size), dtypes))
        batch = () if batch_size is None else (batch_size,)
        return self.hx_of(states.zeros(self.state_shapes(*batch), dtypes))

    def hx_of(self, states: tuple[Any, ...]) -> Any:
        """The states as a call takes and gives them: one as an array, several as a tuple."""
        return states[0] if len(states) == 1 else states

    def extra_repr(self) -> str:
        """The arguments as PyTorch prints them: only those that are not the default."""
        cell = "" if self.mode else f"{self.cell}, "
        text = f"{cell}{self.input_size}, {self.hidden_size}"
        for name, default in _SHOWN.items():
            value = getattr(self, name)
            shown = repr(value) if name == "skip" else value
            # As PyTorch: what stands for True or False is shown as it came.
            usual = value is default if isinstance(default, bool) else value == default
            text += "" if usual else f", {name}={shown}"
        return text

    def state_shapes(self, *batch: int) -> tuple[Any, ...]:
        """The shapes of the states, h first; see `jaxrnn.core.state.shapes`."""
        return states.shapes(self.each_state_sizes, self.directions, *batch)

    def _hold_initial_state(self) -> tuple[tuple[str, ...], ...]:
        """Make the parameters of a learned initial state; their names."""
        dtypes = self.cell.state_dtypes(self.param_dtype)
        held = []
        for index, suffix in enumerate(self._suffixes):
            held.append(tuple(f"{state}_0{suffix}" for state in self.cell.states))
            sizes = self.each_state_sizes[index // self.directions]
            for name, size, dtype in zip(held[-1], sizes, dtypes):
                setattr(self, name, nnx.Param(jnp.zeros(size, dtype)))
        return tuple(held)

    def _hold_gates(self, key: jax.Array, around: Sequence[bool]) -> tuple[tuple[str, ...], ...]:
        """Make the parameters of a highway; their names for each layer, or none."""
        held: list[tuple[str, ...]] = []
        for layer, (whether, sizes) in enumerate(zip(around, self.layer_sizes)):
            held.append(())
            if whether:
                own = jax.random.fold_in(key, 2**32 - 1 - layer)
                gate = skips.init(own, sizes.D, bias=self.bias, dtype=self.param_dtype)
                made = {f"{n}_highway_l{layer}": a for n, a in gate._asdict().items()}
                made = {name: value for name, value in made.items() if value is not None}
                held[-1] = tuple(made)
                for name, value in made.items():
                    setattr(self, name, nnx.Param(value))
        return tuple(held)


def _name(field: str, suffix: str, normed: Sequence[str]) -> str:
    """The name of a parameter: "weight_hh" and "weight_hh_g" of layer 0 as PyTorch has them."""
    whole = field[:-2]
    apart = whole in normed and field[-2:] in ("_g", "_v")
    return f"{whole}{suffix}{field[-2:]}" if apart else field + suffix
