"""The cells beside PyTorch's compute what their papers say: each against its equations in NumPy.

The references are loops over steps for a single row, in double precision, written from the papers
and not from the cells. That every cell runs with every option of a layer is `tests/test_cells.py`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxrnn
from jaxrnn import Recurrent, cells
from jaxrnn.convert.parts import reordered
from tests.convert_cases import quietly

T, N, D, H = 6, 3, 3, 4
X = np.random.RandomState(0).uniform(-2, 2, (T, N, D))


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def norm(z: Any, epsilon: float = 1e-5) -> Any:
    """Formula 4 of the paper, and epsilon."""
    return (z - z.mean()) / np.sqrt(z.var() + epsilon)


def total(p: Any) -> Any:
    return p["bias_ih"] + p["bias_hh"]


# One step of each, in the letters of its paper: y is the output of an LSTM.


def peephole_lstm(p: Any, x: Any, y: Any, c: Any) -> Any:
    i, f, g, o = np.split(p["weight_ih"] @ x + p["weight_hh"] @ y + total(p), 4)
    new = sigmoid(f + p["weight_cf"] * c) * c + sigmoid(i + p["weight_ci"] * c) * np.tanh(g)
    y = sigmoid(o + p["weight_co"] * new) * np.tanh(new)
    return y, (y, new)


def coupled_lstm(p: Any, x: Any, y: Any, c: Any) -> Any:
    """The rows "CIFG" and "NP" of Greff et al. together, or "CIFG" alone."""
    i, z, o = np.split(p["weight_ih"] @ x + p["weight_hh"] @ y + total(p), 3)
    i = sigmoid(i + p.get("weight_ci", 0) * c)
    new = np.tanh(z) * i + c * (1 - i)
    y = np.tanh(new) * sigmoid(o + p.get("weight_co", 0) * new)
    return y, (y, new)


def layer_norm_lstm(p: Any, x: Any, h: Any, c: Any) -> Any:
    """Formulas 20 to 22 of the supplement, with the shifts of both norms and b in one."""
    inner = p["gain_h"] * norm(p["weight_hh"] @ h) + p["gain_x"] * norm(p["weight_ih"] @ x)
    i, f, g, o = np.split(inner + p["bias_z"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(p["gain_c"] * norm(c) + p["bias_c"])
    return h, (h, c)


def layer_norm_gru(p: Any, x: Any, h: Any) -> Any:
    """In the paper z takes the new state: it has the other sign here."""
    gates, new = slice(2 * H), slice(2 * H, None)
    w, u, gw, gu, b = (p[n] for n in ("weight_ih", "weight_hh", "gain_x", "gain_h", "bias_z"))
    both = gu[gates] * norm(u[gates] @ h) + gw[gates] * norm(w[gates] @ x) + b[gates]
    r, minus_z = np.split(both, 2)
    z = sigmoid(-minus_z)
    inside = gu[new] * norm(u[new] @ h) + p["bias_hn"]
    candidate = np.tanh(gw[new] * norm(w[new] @ x) + b[new] + sigmoid(r) * inside)
    h = (1 - z) * h + z * candidate
    return h, (h,)


def ind_rnn(p: Any, x: Any, h: Any, *, activation: Any = lambda z: np.maximum(z, 0)) -> Any:
    h = activation(p["weight_ih"] @ x + p["weight_u"] * h + p["bias_ih"])
    return h, (h,)


def gru_reset_before(p: Any, x: Any, h: Any) -> Any:
    (wr, wz, wn), (ur, uz, un) = np.split(p["weight_ih"], 3), np.split(p["weight_hh"], 3)
    br, bz, bn = np.split(total(p), 3)
    r, z = sigmoid(wr @ x + ur @ h + br), sigmoid(wz @ x + uz @ h + bz)
    h = z * h + (1 - z) * np.tanh(wn @ x + un @ (r * h) + bn)
    return h, (h,)


def minimal_gated_unit(p: Any, x: Any, h: Any) -> Any:
    (wf, wh), (uf, uh), (bf, bh) = (
        np.split(p[n], 2) for n in ("weight_ih", "weight_hh", "bias_ih")
    )
    f = sigmoid(wf @ x + uf @ h + bf)
    h = (1 - f) * h + f * np.tanh(wh @ x + uh @ (f * h) + bh)
    return h, (h,)


def above_zero(n: Any) -> Any:
    return np.where(n >= 0, n + 0.5, sigmoid(n))


def min_gru(p: Any, x: Any, h: Any, *, q: Any = lambda n: n) -> Any:
    z, n = np.split(p["weight_ih"] @ x + p["bias_ih"], 2)
    h = (1 - sigmoid(z)) * h + sigmoid(z) * q(n)
    return h, (h,)


def min_lstm(p: Any, x: Any, h: Any, *, q: Any = lambda n: n) -> Any:
    f, i, n = np.split(p["weight_ih"] @ x + p["bias_ih"], 3)
    f, i = sigmoid(f), sigmoid(i)
    h = f / (f + i) * h + i / (f + i) * q(n)
    return h, (h,)


def lru(p: Any, u: Any, s: Any) -> Any:
    diagonal = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    s = diagonal * s + np.exp(p["gamma_log"]) * ((p["B_re"] + 1j * p["B_im"]) @ u)
    return ((p["C_re"] + 1j * p["C_im"]) @ s).real + p["D"] * u, (s,)


PAPERS: list[tuple[Any, Any]] = [
    (cells.PeepholeLSTM(), peephole_lstm),
    (cells.CoupledLSTM(), coupled_lstm),
    (cells.CoupledPeepholeLSTM(), coupled_lstm),
    (cells.LayerNormLSTM(), layer_norm_lstm),
    (cells.LayerNormGRU(), layer_norm_gru),
    (cells.IndRNN(), ind_rnn),
    (cells.IndRNN("tanh"), functools.partial(ind_rnn, activation=np.tanh)),
    (cells.GRUResetBefore(), gru_reset_before),
    (cells.MinimalGatedUnit(), minimal_gated_unit),
    (cells.MinGRU(), min_gru),
    (cells.MinGRU(positive=True), functools.partial(min_gru, q=above_zero)),
    (cells.MinLSTM(), min_lstm),
    (cells.MinLSTM(positive=True), functools.partial(min_lstm, q=above_zero)),
    (cells.LRU(), lru),
]


@functools.cache
def layer_of(cell: Any, dtype: Any = jnp.float64) -> Any:
    """A layer all of whose parameters differ from each other, also those that begin alike."""
    layer = Recurrent(cell, D, H, rngs=nnx.Rngs(0), param_dtype=dtype)
    random = np.random.RandomState(1)
    for name in layer.parameter_names:
        value = getattr(layer, name)[...]
        getattr(layer, name)[...] = value + jnp.asarray(
            random.uniform(-0.5, 0.5, value.shape), dtype
        )
    return layer


def named(layer: Any) -> dict[str, Any]:
    return {n.removesuffix("_l0"): np.asarray(a) for n, a in jaxrnn.state_dict(layer).items()}


def loop(step: Any, parameters: Any, x: Any, start: Any) -> Any:
    outputs = []
    for row in range(x.shape[1]):
        state, one = tuple(s[0, row] for s in start), []
        for now in x[:, row]:
            y, state = step(parameters, now, *state)
            one.append(y)
        outputs.append((np.stack(one), state))
    ys, lasts = zip(*outputs)
    return np.stack(ys, 1), tuple(np.stack(s)[None] for s in zip(*lasts))


def start_of(layer: Any) -> tuple[Any, ...]:
    random, states = np.random.RandomState(2), []
    for zero in jax.tree.leaves(layer.initial_state(N)):
        real, imaginary = random.uniform(-1, 1, (2, *zero.shape))
        states.append(real + 1j * imaginary if np.iscomplexobj(zero) else real)
    return tuple(states)


@pytest.mark.parametrize(("cell", "step"), PAPERS, ids=[str(cell) for cell, _ in PAPERS])
def test_a_cell_is_its_paper(cell: Any, step: Any) -> None:
    layer = layer_of(cell)
    start = start_of(layer)
    want, last = loop(step, named(layer), X, start)
    output, state = layer(jnp.asarray(X), layer.hx_of(tuple(map(jnp.asarray, start))))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    close(output, want)
    jax.tree.map(close, state, layer.hx_of(last))
