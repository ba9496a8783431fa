"""What every cell declares as data: its states, its parameters, and what their sizes are.

A size is a number, or a product of numbers and letters: ``"H"``, ``"3*H"``, ``"D"``.

| letter | what |
|---|---|
| D | input features of the layer; those of an upper layer are the output of the one below |
| H | hidden size |
| G | gates |
| R | features of h: P if projected, else H |
| a name | an attribute of the cell, a whole number |
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

State = tuple[jax.Array, ...]
Size = int | str


def compute_dtype(dtype: Any) -> Any:
    """Return the dtype of sums and of a cell's step: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def upcast(tree: Any) -> Any:
    """Cast every array of a pytree to its compute dtype."""
    return jax.tree.map(lambda a: a.astype(compute_dtype(a.dtype)), tree)


def cast(tree: Any, dtype: Any) -> Any:
    """Cast every array of a pytree to a dtype."""
    return jax.tree.map(lambda a: a.astype(dtype), tree)


class Parameter(NamedTuple):
    """A parameter of a cell: its shape and how it begins.

    Attributes:
        shape: sizes, see `jaxrnn.cells.base`.
        init: None for PyTorch's U(-1/sqrt(H), 1/sqrt(H)); a number for that number; or a function
            ``(key, shape, dtype) -> array``, one of `jax.nn.initializers` say.
    """

    shape: tuple[Size, ...]
    init: float | Callable[..., jax.Array] | None = None


class StateSpec(NamedTuple):
    """A state of a cell that is not H real numbers.

    Attributes:
        size: its features, see `jaxrnn.cells.base`.
        complex: whether it is complex.
    """

    size: Size = "H"
    complex: bool = False


class Sizes(NamedTuple):
    """What the letters stand for in one layer."""

    D: int
    H: int
    R: int


@dataclass(frozen=True)
class BaseCell:
    """What all kinds of cells have in common; see `Cell`, `GeneralCell` and `LinearCell`.

    A cell is a frozen dataclass without arrays, so that it can be a static argument of ``jax.jit``.

    Attributes:
        states: the names of the states, H real features each; or a mapping of names to
            `StateSpec`. The first is the hidden state ``h``.
        parameters: a mapping of names to shapes, or to `Parameter`. A layer holds each as
            ``<name>_l{k}{_reverse}``. One whose name begins with "bias" is none of the layer's if
            it has ``bias=False``; the step gets zeros then.
        output_size: features of the output at each step; None for those of the first state.
        hidden_size: H, of a cell that has one of its own; None for one that goes by its layer.
        draw: None; or ``draw(key, sizes, dtype) -> dict``, which draws all of its parameters.
    """

    states: ClassVar[Sequence[str] | Mapping[str, StateSpec]] = ("h",)
    parameters: ClassVar[Mapping[str, Any]] = {}
    output_size: ClassVar[Size | None] = None
    hidden_size: ClassVar[int | None] = None
    draw: ClassVar[Callable[..., dict[str, jax.Array]] | None] = None
    gates: ClassVar[tuple[str, ...]] = ()  # of the gate form, see `Cell`; () elsewhere
    split: ClassVar[bool] = False

    def initialize(self, parameters: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The parameters a layer begins with, from those drawn: where one depends on another."""
        return parameters

    def parameter_specs(self) -> dict[str, Parameter]:
        """The parameters of its own, by name."""
        own = self.parameters.items()
        return {n: p if isinstance(p, Parameter) else Parameter(tuple(p)) for n, p in own}

    def shapes(self, sizes: Sizes, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter of a layer and direction, in their order."""
        return self.cell_parameter_shapes(sizes, bias=bias)

    def cell_parameter_shapes(
        self, sizes: Sizes, *, bias: bool = True
    ) -> dict[str, tuple[int, ...]]:
        """Of those among them that are the cell's own."""
        return {
            name: tuple(self.evaluate_size(size, sizes) for size in parameter.shape)
            for name, parameter in self.parameter_specs().items()
            if bias or not name.startswith("bias")
        }

    def state_specs(self) -> tuple[StateSpec, ...]:
        """What each state is."""
        if isinstance(self.states, Mapping):
            return tuple(self.states.values())
        return (StateSpec("R"), *(StateSpec(),) * (len(self.states) - 1))

    def state_sizes(self, sizes: Sizes) -> tuple[int, ...]:
        """The features of each state."""
        return tuple(self.evaluate_size(spec.size, sizes) for spec in self.state_specs())

    def state_dtypes(self, dtype: Any) -> tuple[Any, ...]:
        """The dtype of each state, where real ones have this."""
        wide = jnp.result_type(dtype, jnp.complex64)
        return tuple(wide if spec.complex else jnp.dtype(dtype) for spec in self.state_specs())

    def output_features(self, sizes: Sizes) -> int:
        """The features of the output."""
        size = self.state_specs()[0].size if self.output_size is None else self.output_size
        return self.evaluate_size(size, sizes)

    def evaluate_size(self, size: Size, sizes: Sizes) -> int:
        """What a size is in a layer.

        Example:
            >>> from jaxrnn.cells import LSTM
            >>> from jaxrnn.cells.base import Sizes
            >>> LSTM().number("G*H", Sizes(D=3, H=5, R=5))
            20
        """
        total = 1
        for factor in str(size).split("*"):
            name = factor.strip()
            letters = sizes._asdict() | {"G": len(self.gates)}
            value: Any = (
                int(name) if name.isdigit() else letters.get(name, getattr(self, name, None))
            )
            if not hasattr(value, "__index__") or value < 0:
                raise ValueError(
                    f"{self} has a size {size!r}: expected a number, or a product of "
                    f"numbers, D, H, G, R and attributes of the cell that are such; {name!r} is "
                    f"{'none' if value is None else repr(value)}"
                )
            total *= operator.index(value)
        return total
