"""`FromNnx` and `FromLinen`: Flax's cells as general cells, for `jaxrnn.Recurrent`.

What Flax calls the carry and the output of a step are the states here. The first state is what the
cell gives out: one of the arrays of the carry, where it is one, and else a state of its own, which
no step reads. The other arrays of the carry follow in their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxrnn.cells import GeneralCell, Sizes, State, StateSpec
from jaxrnn.interop.adapters_reading import Form, Instance, linen_form, nnx_form

_ANY = 64  # input features to look at a cell with, where it takes any number


@dataclass(frozen=True)
class _FlaxCell(GeneralCell):
    """What both have in common."""

    def form(self, features: int) -> Form:
        """The cell for an input of so many features."""
        raise NotImplementedError

    def draw(self, key: Any, sizes: Sizes, dtype: Any) -> dict[str, jax.Array]:  # pyright: ignore
        raise NotImplementedError

    def _any_form(self) -> Form:
        return self.form(_ANY)

    @property
    def states(self) -> Mapping[str, StateSpec]:  # pyright: ignore
        form = self._any_form()
        paths = jax.tree_util.tree_leaves_with_path(form.carry)
        named = {}
        for index in form.first:
            path, leaf = ((), form.output) if index is None else paths[index]
            name = "output" if index is None else "carry" + jax.tree_util.keystr(path)
            whether = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
            named[name] = StateSpec(math.prod(leaf.shape), whether)
        return named

    @property
    def hidden_size(self) -> int:  # pyright: ignore
        return self._any_form().output.shape[0]

    def cell_parameter_shapes(
        self, sizes: Sizes, *, bias: bool = True
    ) -> dict[str, tuple[int, ...]]:
        if not bias:
            raise ValueError(f"bias=False: the biases of {self} are its own, make it without them")
        if self.hidden_size != sizes.H:
            raise ValueError(
                f"hidden_size should be {self.hidden_size}, the features that {self} gives out, "
                f"got {sizes.H}"
            )
        form = self.form(sizes.D)
        leaves = jax.tree.leaves(form.parameters)
        return {name: leaf.shape for name, leaf in zip(form.names, leaves, strict=True)}

    def step(self, x: jax.Array, state: State, params: Any) -> State:  # pyright: ignore
        form = self.form(x.shape[-1])
        leaves, tree = jax.tree.flatten(form.carry)
        for index, array in zip(form.first, state, strict=True):
            if index is not None:
                leaves[index] = array.reshape(leaves[index].shape)
        structure = jax.tree.structure(form.parameters)
        parameters = jax.tree.unflatten(structure, [params[name] for name in form.names])
        carry, output = form.call(parameters, jax.tree.unflatten(tree, leaves), x)
        new = jax.tree.leaves(carry)
        return tuple(output if i is None else new[i].reshape(-1) for i in form.first)

    def carry(self, hx: Any) -> Any:
        """The carry in Flax's form, of a state of `jaxrnn.Recurrent` (..., S), of any rows."""
        form, states = self._any_form(), hx if isinstance(hx, (tuple, list)) else (hx,)
        leaves, tree = jax.tree.flatten(form.carry)
        for index, array in zip(form.first, states, strict=True):
            if index is not None:
                leaves[index] = array.reshape(*array.shape[:-1], *leaves[index].shape)
        return jax.tree.unflatten(tree, leaves)


@dataclass(frozen=True)
class FromNnx(_FlaxCell):
    """A cell of Flax's nnx for `jaxrnn.Recurrent`, with all that the layers can do.

    Args:
        source: a function ``(in_features, rngs=) -> nnx.RNNCellBase`` that makes one for an input
            of so many features: each layer and direction is one. Or a cell itself, whose weights
            they all begin with; it has an input of one size, so that a second layer fits only
            where what goes in and out has as many features.

    The parameters of the layer are those of the cell, their paths joined by "_":
    ``dense_i_kernel_l0``. Its states begin from zeros.

    The same function object is the same cell to ``jax.jit``: make it once.

    Raises:
        TypeError: for what is neither.
        ValueError: for a cell with several feature axes, with random numbers or variables that
            change, with a carry that does not begin from zeros, or of integers; for a
            `hidden_size` that is not the features that it gives out, an input that it does not
            take, and ``bias=False``.

    Example:
        >>> import functools, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.interop.adapters import FromNnx
        >>> cell = FromNnx(functools.partial(nnx.GRUCell, hidden_features=4))
        >>> layer = jaxrnn.Recurrent(cell, 3, 4, 2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)), lengths=jnp.array([5, 2]))
        >>> output.shape, h_n.shape
        ((5, 2, 8), (4, 2, 4))

        One that is there, with its weights:

        >>> cell = FromNnx(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
        >>> layer = jaxrnn.Recurrent(cell, 3, 4, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape, layer.parameter_names[:2]
        ((5, 2, 4), (1, 2, 4), ('hf_bias_l0', 'hf_kernel_l0'))
    """

    source: Any

    def __post_init__(self):
        if isinstance(self.source, nnx.RNNCellBase):
            object.__setattr__(self, "source", Instance(self.source))
        elif not callable(self.source) or isinstance(self.source, (nnx.Module, linen.Module)):
            raise TypeError(
                "source should be an nnx.RNNCellBase or a function (in_features, rngs=) that makes "
                f"one, got {self.source!r}"
            )

    def form(self, features: int) -> Form:
        """The cell for an input of so many features."""
        if isinstance(self.source, Instance):
            self.source.takes(features)
            return self.source.form
        return nnx_form(self.source, features)

    def _any_form(self) -> Form:
        return self.source.form if isinstance(self.source, Instance) else super()._any_form()

    def draw(self, key: Any, sizes: Sizes, dtype: Any) -> dict[str, jax.Array]:  # pyright: ignore
        """The parameters that the cell begins with, by its own initialisers."""
        names = self.form(sizes.D).names
        if isinstance(self.source, Instance):
            leaves = [jnp.asarray(value) for value in self.source.values]
        else:
            made = self.source(sizes.D, rngs=nnx.Rngs(key))
            leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(made, nnx.Param)))
        return {name: leaf.astype(dtype) for name, leaf in zip(names, leaves, strict=True)}


@dataclass(frozen=True)
class FromLinen(_FlaxCell):
    """A cell of Flax's linen for `jaxrnn.Recurrent`, with all that the layers can do.

    Args:
        source: the unbound ``linen.RNNCellBase``; each layer and direction has parameters of its
            own, drawn by it, named by their paths joined by "_".

    Raises:
        TypeError, ValueError: as of `FromNnx`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import linen, nnx
        >>> from jaxrnn.interop.adapters import FromLinen
        >>> cell = FromLinen(linen.MGUCell(4))
        >>> layer = jaxrnn.Recurrent(cell, 3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 2, 3)))[0].shape
        (5, 2, 8)
    """

    source: Any

    def __post_init__(self):
        if not isinstance(self.source, linen.RNNCellBase):
            raise TypeError(f"source should be a linen.RNNCellBase, got {self.source!r}")

    def form(self, features: int) -> Form:
        """The cell for an input of so many features."""
        return linen_form(self.source, features)

    def draw(self, key: Any, sizes: Sizes, dtype: Any) -> dict[str, jax.Array]:  # pyright: ignore
        """The parameters that the cell begins with, by its own initialisers."""
        form = self.form(sizes.D)
        x = jnp.zeros(sizes.D)
        carry = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), form.carry)
        leaves = jax.tree.leaves(self.source.init(key, carry, x)["params"])
        return {name: leaf.astype(dtype) for name, leaf in zip(form.names, leaves, strict=True)}
