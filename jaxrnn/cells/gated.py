"""The gate form: a cell that owns no matrix product, which all kernels and shortcuts serve.

The recurrence (`jaxrnn.core.unroll`) multiplies the input and the hidden state with the weights,
hands the result to :meth:`Cell.step`, and gets the new state back:

.. code-block:: text

    zx = x_t @ W_ih.T + b_ih        (..., G*H)   for all steps of a block in one product
    zh = h_{t-1} @ W_hh.T + b_hh    (..., G*H)   inside the loop
    state_t = cell.step(z, state_{t-1})          z = zx + zh, or the pair (zx, zh)

Axis letters: H hidden size, G gates, N rows (the batch). Features come first and rows last, z
(G*H, N) and each state (H, N), so that a gate is one contiguous piece of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn.cells.base import BaseCell, Sizes, State


@dataclass(frozen=True)
class Cell(BaseCell):
    """A cell of gates: name the gates and the states, write :meth:`step`, and be done.

    A subclass is a frozen dataclass without arrays, so that it can be a static argument of
    ``jax.jit``. Its first state is the hidden state ``h``, the one that is multiplied with
    ``W_hh`` and given out at each step.

    Attributes:
        gates: the names of the gates, in the order of the rows of the weights.
        states: the names of the states; the first is the hidden state.
        split: False if the step needs only the sum ``z = zx + zh``; True if it treats what comes
            from the input and what comes from the hidden state apart, and takes ``(zx, zh)``.
        recurrent: False for no ``W_hh`` and ``b_hh``: z is zx alone.
        biased: False for no ``b_ih`` and ``b_hh``: `parameters` has others, elsewhere.
        parameters: of its own, beside the weights: names to shapes, or to `Parameter`. The step of
            a cell that has some takes them as a third argument, a dict. A vector (H,) comes as
            (H, 1), so that it meets z and the states along their features.

    Example:
        One gate (Zhou et al., 2016, without their reset), with every derivative, direction and
        option:

        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.cells import Cell
        >>> @dataclasses.dataclass(frozen=True)
        ... class OneGate(Cell):
        ...     gates = ("f", "n")
        ...     def step(self, z, state):
        ...         (h,), (f, n) = state, self.split_gates(z)
        ...         f = jax.nn.sigmoid(f)
        ...         return ((1 - f) * h + f * jnp.tanh(n),)
        >>> layer = jaxrnn.Recurrent(OneGate(), 3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((5, 2, 3)))
        >>> output.shape, h_n.shape
        ((5, 2, 8), (2, 2, 4))

        One with parameters of its own and without a recurrent matrix (IndRNN, Li et al., 2018):

        >>> @dataclasses.dataclass(frozen=True)
        ... class Independent(Cell):
        ...     gates, recurrent, parameters = ("h",), False, {"weight_u": ("H",)}
        ...     def step(self, z, state, params):
        ...         return (jax.nn.relu(z + params["weight_u"] * state[0]),)
        >>> layer = jaxrnn.Recurrent(Independent(), 3, 4, rngs=nnx.Rngs(0))
        >>> {name: array.shape for name, array in jaxrnn.state_dict(layer).items()}
        {'weight_ih_l0': (4, 3), 'bias_ih_l0': (4,), 'weight_u_l0': (4,)}
    """

    recurrent: ClassVar[bool] = True
    biased: ClassVar[bool] = True

    def step(self, *args: Any, **kwargs: Any) -> State:
        """``step(z, state)`` or ``step(z, state, params)``: the new state; elementwise, pure.

        Args:
            z: the gate inputs (G*H, N); with `split` the pair (zx, zh).
            state: the old state, a tuple of (H, N).
            params: for a cell with `parameters`, and only there: a dict of them.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(z, state)")

    def split_gates(self, z: jax.Array) -> list[jax.Array]:
        """``z`` (G*H, N) as G arrays (H, N), in the order of :attr:`gates`."""
        return jnp.split(z, len(self.gates))

    def shapes(self, sizes: Sizes, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter of a layer and direction, in PyTorch's order."""
        rows = len(self.gates) * sizes.H
        shape: dict[str, tuple[int, ...]] = {"weight_ih": (rows, sizes.D)}
        if self.recurrent:
            shape["weight_hh"] = (rows, sizes.R)
        if bias and self.biased:
            shape |= {"bias_ih": (rows,)} | ({"bias_hh": (rows,)} if self.recurrent else {})
        if sizes.R != sizes.H:
            shape["weight_hr"] = (sizes.R, sizes.H)
        return shape | self.cell_parameter_shapes(sizes, bias=bias)

    # What follows is the pointwise derivative. The base takes it from `jax.jvp` of `step`; where it
    # is elementwise the recurrence has a better one from its graph (`jaxrnn.backends.elementwise`), and a cell
    # may write its own. `save` runs in the forward loop, `linearize` on a block of steps under
    # `vmap`, `tangent` in the loop of the derivative. A cell with parameters gets them in each as a
    # further argument.

    def save(self, z: Any, state: State, *params: Any) -> tuple[State, Any]:
        """:meth:`step`, and what the derivative needs of it beside the states."""
        return self.step(z, state, *params), z

    def linearize(self, saved: Any, old: State, new: State, *params: Any) -> Any:
        """The coefficients of :meth:`tangent`, from what was saved and the states around a step."""
        del new, params
        return saved, old

    def tangent(self, coefficients: Any, dz: Any, dstate: State, *params: Any) -> State:
        """The derivative of :meth:`step`, linear in ``dz``, ``dstate`` and ``dparams``.

        A cell with parameters gets ``params`` and ``dparams``, the latter None where they have no
        derivative, as it is from step to step.
        """
        z, old = coefficients
        if not params:
            return jax.jvp(self.step, (z, old), (dz, dstate))[1]
        own, dparams = params
        if dparams is None:
            return jax.jvp(lambda z, old: self.step(z, old, own), (z, old), (dz, dstate))[1]
        return jax.jvp(self.step, (z, old, own), (dz, dstate, dparams))[1]
