"""The four heads of a recurrent layer and a linear one.

Axis letters: N batch, T time, D input features, O output features, H hidden size, R the size of h,
L layers, F directions (2 if bidirectional).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import generation
from jaxrnn._checks import ShapeError
from jaxrnn.backends.step import zero_padding
from jaxrnn.core import masks as ragged
from jaxrnn.layers import _checks as torch_checks
from jaxrnn.layers.linear import linear


class Head(nnx.Module):
    """What the heads share: a recurrent layer and a linear one on F*R features of it.

    Args:
        rnn: any layer of this package.
        out_features: O, the size of each output.
        rngs: the stream for the linear layer's parameters (``params``).

    The linear layer computes in the recurrent layer's ``dtype`` and holds its ``param_dtype``.
    """

    def __init__(self, rnn: Any, out_features: int, *, rngs: nnx.Rngs):
        checks.at_least("out_features", out_features, 1)
        self.rnn = rnn
        dtypes = {"dtype": rnn.dtype, "param_dtype": rnn.param_dtype}
        self.fc = linear(rnn.output_size, out_features, rngs=rngs, **dtypes)

    @property
    def out_features(self) -> int:
        """O, the size of each output."""
        return self.fc.out_features


class ManyToMany(Head):
    r"""A sequence in, a sequence as long out: the linear layer at every step.

    .. code-block:: text

        h_1 ... h_T = rnn(x_1 ... x_T);      y_t = W h_t + b

    Call: ``model(x, hx=None, *, lengths=None, resets=None, rngs=None) -> (y, h_n)``: what the layer
    takes, and what it gives out, with O features in place of F*R. Past a row's length y is zero, as
    the layer's output is. A PackedSequence gives a PackedSequence.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.models import ManyToMany
        >>> rngs = nnx.Rngs(0)
        >>> rnn = jaxrnn.RNN(1, 32, batch_first=True, rngs=rngs)
        >>> y, h_n = ManyToMany(rnn, 1, rngs=rngs)(jnp.ones((1, 20, 1)))
        >>> y.shape, h_n.shape
        ((1, 20, 1), (1, 1, 32))
    """

    def __call__(
        self, x: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None, rngs: Any = None
    ) -> tuple[Any, Any]:
        """The outputs at every step, and the state after the last."""
        output, last = self.rnn(x, hx, lengths=lengths, resets=resets, rngs=rngs)
        y = jax.tree.map(self.fc, output)  # of a PackedSequence, its data
        return y if lengths is None else self._own(y, jnp.asarray(lengths)), last

    def _own(self, y: jax.Array, lengths: jax.Array) -> jax.Array:
        """Zero past a row's length, where the linear layer has put its bias."""
        rows_first = y.ndim == 3 and self.rnn.batch_first
        valid = ragged.valid_mask(lengths, y.shape[1 if rows_first else 0])
        return zero_padding(valid if rows_first else valid.T, y)


class ManyToOne(Head):
    r"""A sequence in, one output: the linear layer on the state after the last valid step.

    .. code-block:: text

        y = W h_end + b                              one direction
        y = W [h_end forward; h_end reverse] + b     two: after the last valid step, after the first

    Call: ``model(x, hx=None, *, lengths=None, resets=None, rngs=None) -> (y, h_n)``: the arguments
    are the layer's, x may be a PackedSequence; y is (N, O), or (O,) for (T, D) without a batch.
    Each direction's end is read from the last layer's h_n, so a row's length decides where it is: a
    row of length 0 is judged by its initial state. Of a row with resets it is the last piece that
    counts in the forward direction, the first in the reverse one.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.models import ManyToOne
        >>> rngs = nnx.Rngs(0)
        >>> rnn = jaxrnn.LSTM(5, 8, bidirectional=True, batch_first=True, rngs=rngs)
        >>> model = ManyToOne(rnn, 3, rngs=rngs)
        >>> y, (h_n, c_n) = model(jnp.ones((2, 7, 5)), lengths=jnp.array([7, 4]))
        >>> y.shape, h_n.shape
        ((2, 3), (2, 2, 8))

    Differs from PyTorch's usual ``fc(output[:, -1])``: that reads padding where rows are shorter,
    and of a reverse direction the state after a single step.
    """

    def __call__(
        self, x: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None, rngs: Any = None
    ) -> tuple[jax.Array, Any]:
        """The output, and the state after the last step."""
        _, last = self.rnn(x, hx, lengths=lengths, resets=resets, rngs=rngs)
        h_n = last[0] if isinstance(last, tuple) else last
        ends = h_n[-2:] if self.rnn.bidirectional else h_n[-1:]  # (F, N, R), of the last layer
        return self.fc(jnp.concatenate(list(ends), axis=-1)), last


class OneToOne(Head):
    r"""One input, one output: a single step of the layer and the linear one.

    .. code-block:: text

        h = rnn(x, h_0);      y = W h + b

    Call: ``model(x, hx=None, *, resets=None, rngs=None) -> (y, h_n)``, x (N, D), y (N, O), or (D,)
    and (O,) without a batch, whatever ``batch_first`` says. With the state handed on, call after
    call is `ManyToMany` step by step; `resets`, bool (N,) or (), sets a row's state to zero before
    x is consumed.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.models import OneToOne
        >>> rngs = nnx.Rngs(0)
        >>> model = OneToOne(jaxrnn.GRU(15, 8, rngs=rngs), 10, rngs=rngs)
        >>> y, h_n = model(jnp.ones((4, 15)))
        >>> y.shape, h_n.shape
        ((4, 10), (1, 4, 8))
    """

    def __call__(
        self, x: Any, hx: Any = None, *, resets: Any = None, rngs: Any = None
    ) -> tuple[jax.Array, Any]:
        """The output, and the state after the step."""
        x = _one_input(self, x)
        time = _time_axis(self.rnn, x)
        resets = None if resets is None else jnp.expand_dims(jnp.asarray(resets), time)
        output, last = self.rnn(jnp.expand_dims(x, time), hx, resets=resets, rngs=rngs)
        return self.fc(output.squeeze(time)), last


class OneToMany(Head):
    r"""One input, a sequence out.

    .. code-block:: text

        feedback:       h_1 = rnn(x, h_0);    h_t = rnn(y_{t-1}, h_{t-1})      y_t = W h_t + b
        no feedback:    h_1 = rnn(x, h_0);    h_t = rnn(x, h_{t-1})            y_t = W h_t + b

    Args:
        rnn: any layer of this package, with `feedback` of one direction.
        out_features: O; None for D.
        feedback: whether each output is the next input, so that O = D: a series that goes on by
            itself. If not, the layer sees x at every step: a description of x, in as many words as
            it takes.
        rngs: the stream for the linear layer's parameters (``params``).

    Call: ``model(x, length, hx=None, *, rngs=None) -> (y, h_n)``, x (N, D) or (D,), `length` the
    number T of outputs; y (T, N, O), (N, T, O) if ``batch_first``, (T, O) without a batch. With
    feedback it is `jaxrnn.generation.roll_out`, differentiable through all steps; there is no
    dropout there. For tokens that are drawn, and end where they like, `jaxrnn.generation.generate`.

    Raises:
        ValueError: with feedback, for O other than D, two directions or active dropout.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.layers.models import OneToMany
        >>> rngs = nnx.Rngs(0)
        >>> model = OneToMany(jaxrnn.GRU(2, 8, batch_first=True, rngs=rngs), rngs=rngs)
        >>> y, h_n = model(jnp.ones((3, 2)), 6)
        >>> y.shape, h_n.shape
        ((3, 6, 2), (1, 3, 8))
    """

    def __init__(
        self, rnn: Any, out_features: int | None = None, feedback: bool = True, *, rngs: nnx.Rngs
    ):
        size: int = rnn.input_size if out_features is None else out_features
        if feedback and size != rnn.input_size:
            raise ValueError(
                f"each output is the next input: out_features should be {rnn.input_size}, the "
                f"input_size of {rnn}, got {size}; or pass feedback=False"
            )
        if feedback:
            generation.value_step(rnn)  # refuses two directions
        super().__init__(rnn, size, rngs=rngs)
        self.feedback = feedback

    def __call__(
        self, x: Any, length: int, hx: Any = None, *, rngs: Any = None
    ) -> tuple[jax.Array, Any]:
        """The outputs, and the state after the last step."""
        checks.at_least("length", length, 1)
        x = _one_input(self, x)
        time = _time_axis(self.rnn, x)
        if not self.feedback:
            steps = jnp.repeat(jnp.expand_dims(x, time), length, axis=time)
            output, last = self.rnn(steps, hx, rngs=rngs)
            return self.fc(output), last
        # Checked as the call of a step would be, before a row is made of an input without a batch.
        _, given = self.rnn.check(jnp.expand_dims(x, time), hx)
        batched = x.ndim == 2
        if given is None:
            states = self.rnn.initial_state(len(x) if batched else None)
        else:
            states = given if len(given) == 2 else given[0]
        if self.rnn.dtype is not None:
            x, states = jax.tree.map(lambda a: a.astype(self.rnn.dtype), (x, states))
        if not batched:
            x, states = x[None], jax.tree.map(lambda s: s[:, None], states)
        step = generation.value_step(self.rnn, self.fc)
        y, last = generation.roll_out(step, generation.rows_first(states), x, length)
        last = generation.rows_first(last)
        if not batched:
            return y[0], jax.tree.map(lambda s: s[:, 0], last)
        return y if self.rnn.batch_first else y.swapaxes(0, 1), last


def _one_input(head: Head, x: Any) -> jax.Array:
    """One input a row, (N, D) or (D,)."""
    x, kind = jnp.asarray(x), type(head).__name__
    torch_checks.cell_input(kind, x)
    if x.shape[-1] != head.rnn.input_size:
        raise ShapeError(
            f"{kind}: Expected {head.rnn.input_size} features, the input_size of {head.rnn}, got "
            f"{x.shape[-1]} (input of shape {x.shape})"
        )
    return x


def _time_axis(rnn: Any, x: jax.Array) -> int:
    """Where the layer has its axis of time, for inputs (N, D) or (D,)."""
    return 1 if rnn.batch_first and x.ndim == 2 else 0
