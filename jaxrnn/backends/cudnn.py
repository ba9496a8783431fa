"""cuDNN's LSTM, through `jax.experimental.rnn`: whole stacks in float32 on NVIDIA's GPUs.

Its weights are one vector: of each layer and direction W_ih and W_hh, row by row, then of each both
biases; the gates are in PyTorch's order. Where a derivative is asked for that cuDNN does not have,
the scan computes it; the first one in reverse mode is cuDNN's own. It takes rows of at least one
step: an empty row is given one of zeros, whose effect is taken away again.

Products are in TF32 as XLA's are on such a GPU, unless ``jax_default_matmul_precision`` is
"highest".
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from jaxrnn.backends import operations
from jaxrnn.cells import LSTM, Cell, State
from jaxrnn.cells.weights import Weights


def _rnn() -> Any:
    """`jax.experimental.rnn`, imported when it is needed."""
    return importlib.import_module("jax.experimental.rnn")


def why_not(cell: Cell) -> str | None:
    """Why cuDNN can't serve; None if it can."""
    if type(cell) is not LSTM:
        return f"it has no {type(cell).__name__}, only LSTM"
    if not hasattr(_rnn().gpu_rnn, "compute_rnn_workspace_reserve_space_sizes"):
        return "JAX's CUDA plugin, which asks cuDNN for the memory it needs, is not installed"
    return None


def packed(weights: Sequence[Weights]) -> jax.Array:
    """The weights of a stack as one vector."""
    zeros = jnp.zeros(len(weights[0].weight_ih), weights[0].weight_ih.dtype)
    parts = [a for w in weights for a in (w.weight_ih, w.weight_hh)]
    parts += [zeros if b is None else b for w in weights for b in (w.bias_ih, w.bias_hh)]
    return jnp.concatenate([a.ravel() for a in parts])


def unpacked(
    w: jax.Array, input_size: int, hidden_size: int, num_layers: int, bidirectional: bool
) -> list[Weights]:
    """The other way round."""
    parts = _rnn().unpack_lstm_weights(w, input_size, hidden_size, num_layers, bidirectional)
    w_ih, w_hh, b_ih, b_hh = parts
    return [Weights(w_ih[i], w_hh[i], b_ih[i], b_hh[i]) for i in range(len(w_ih))]


def run(
    weights: Sequence[Weights],
    x: jax.Array,
    states: State,
    lengths: jax.Array | None,
    *,
    bidirectional: bool,
) -> tuple[jax.Array, State]:
    """A stack of LSTM layers: the output and the last states.

    Args:
        weights: F*L of them.
        x: (T, N, D), zero past a row's length.
        states: h and c (F*L, N, H).
        lengths: int32 (N,), any; None for T each.
        bidirectional: whether there are two directions.

    The output past a row's length is not defined.
    """
    T, N, D = x.shape
    sizes = dict(
        input_size=D,
        hidden_size=states[0].shape[2],
        num_layers=len(weights) // (2 if bidirectional else 1),
        bidirectional=bidirectional,
    )
    at_least_one = jnp.full(N, T, jnp.int32) if lengths is None else jnp.clip(lengths, 1, T)
    y, *last = _lstm(tuple(sizes.items()), x, packed(weights), *states, at_least_one)
    if lengths is not None:
        own = (lengths > 0)[None, :, None]
        last = [jnp.where(own, new, old) for new, old in zip(last, states, strict=True)]
    return y, tuple(last)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _lstm(sizes: Any, *operands: jax.Array) -> list[jax.Array]:
    return forward_p.bind(*operands, **dict(sizes), reserve=_reserve(sizes, operands))[:3]


@_lstm.defjvp
def _lstm_jvp(sizes: Any, operands: Any, tangents: Any) -> Any:
    how = dict(sizes, reserve=_reserve(sizes, operands))
    *out, reserve = forward_p.bind(*operands, **how)
    moved = linear_p.bind(*tangents[:4], *operands, out[0], reserve, **how)
    return out, moved


def _row_major(a: jax.Array) -> jax.Array:
    """As it is, rows first in memory: cuDNN is called with arrays as XLA has laid them out.

    JAX's call says nothing of layouts, so XLA hands on a transposed view as if it were none.
    """
    return with_layout_constraint(a, Layout(major_to_minor=tuple(range(a.ndim))))


def _forward(*operands: Any, reserve: int | None = None, **sizes: Any) -> Any:
    """CuDNN's forward pass, rows second."""
    del reserve
    x, w, h, c, lengths = operands
    x, h, c = map(_row_major, (x.swapaxes(0, 1), h, c))
    given, kept = _rnn().lstm_fwd(x, h, c, w, lengths, **sizes, dropout=0.0, precision=None)
    y, h_n, c_n = map(_row_major, given)
    return [y.swapaxes(0, 1), h_n, c_n, kept[-1]]


def _backward(*operands: Any, reserve: int, **sizes: Any) -> Any:
    """CuDNN's backward pass."""
    del reserve
    dy, dh, dc, x, w, h, c, lengths, y, space = operands
    x, y, dy = (a.swapaxes(0, 1) for a in (x, y, dy))
    x, h, c, y, dy, dh, dc = map(_row_major, (x, h, c, y, dy, dh, dc))
    kept = (x, h, c, w, lengths, y, space)
    how = (sizes["input_size"], sizes["hidden_size"], sizes["num_layers"], 0.0)
    dx, dh_0, dc_0, dw, _ = _rnn().lstm_bwd(
        *(*how, sizes["bidirectional"], None, kept, (dy, dh, dc))
    )
    dx, dh_0, dc_0 = map(_row_major, (dx, dh_0, dc_0))
    return [dx.swapaxes(0, 1), dw, dh_0, dc_0]


def _reserve(sizes: Any, operands: Any) -> int:
    """The size of what cuDNN keeps for its backward pass."""
    return jax.eval_shape(functools.partial(_forward, **dict(sizes)), *operands)[3].shape[0]


# What the operations compute


def _forward_reference(*operands: Any, reserve: int, **sizes: Any) -> list[jax.Array]:
    from jaxrnn.core import stack

    x, w, h, c, lengths = operands
    how = stack.Stack(LSTM(), bidirectional=sizes["bidirectional"], backend="scan")
    y, last = stack.run(how, unpacked(w, **sizes), x, (h, c), None, lengths)
    return [y, *last, jnp.zeros(reserve, x.dtype)]


def _linear_reference(*operands: Any, **how: Any) -> list[jax.Array]:
    along, at, lengths = operands[:4], operands[4:8], operands[8]
    run = lambda *at: _forward_reference(*at, lengths, **how)[:3]  # noqa: E731
    return jax.jvp(run, at, along)[1]


def _backward_reference(*operands: Any, **how: Any) -> list[jax.Array]:
    ct, residuals = operands[:3], operands[3:]
    run = lambda *at: _forward_reference(*at, residuals[4], **how)[:3]  # noqa: E731
    return list(jax.vjp(run, *residuals[:4])[1](list(ct)))


def _forward_kinds(operands: Any, *, reserve: int, **sizes: Any) -> operations.Kinds:
    x, _, h, c, _ = operands
    features = sizes["hidden_size"] * (2 if sizes["bidirectional"] else 1)
    shapes = ((*x.shape[:2], features), h.shape, c.shape, (reserve,))
    return [operations.kind(shape, x) for shape in shapes]


def _linear_kinds(operands: Any, **how: Any) -> operations.Kinds:
    return _forward_kinds(operands[4:9], **how)[:3]


def _backward_kinds(operands: Any, **how: Any) -> operations.Kinds:
    return [operations.kind(a.shape, a) for a in operands[3:7]]


def _one_by_one(**how: Any) -> None:
    """No larger batch under `jax.vmap`: what cuDNN keeps can't be taken apart."""


forward_p = operations.operation(
    "cudnn_forward", _forward_reference, _forward_kinds, _one_by_one, {"cuda": _forward}
)
linear_p = operations.operation("cudnn_linear", _linear_reference, _linear_kinds, _one_by_one, {})
backward_p = operations.operation(
    "cudnn_backward", _backward_reference, _backward_kinds, _one_by_one, {"cuda": _backward}
)
operations.transposed_by(linear_p, backward_p, lambda **_: 4)
