"""Cells equal the equations of their papers, Keras and onnxruntime.

The references are NumPy loops over the steps of one sequence, in double precision, written from the
papers. `tests/test_cells.py` runs every cell with every option of a layer.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import Recurrent, cells
from tests.convert_cases import quietly

with pytest.MonkeyPatch.context() as environment:
    environment.setenv("KERAS_BACKEND", "jax")  # read once, when Keras is imported
    keras: Any = quietly("keras", pytest.importorskip)
onnx: Any = quietly("onnx", pytest.importorskip)
ort: Any = quietly("onnxruntime", pytest.importorskip)

T, N, D, H = 6, 3, 3, 4
X = np.random.RandomState(0).uniform(-2, 2, (T, N, D))


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def norm(z: Any, epsilon: float = 1e-5) -> Any:
    """Equation 4 of the paper, with epsilon."""
    return (z - z.mean()) / np.sqrt(z.var() + epsilon)


def total(p: Any) -> Any:
    return p["bias_ih"] + p["bias_hh"]


# One step of each cell, in the letters of its paper; y is the output of an LSTM.


def peephole_lstm(p: Any, x: Any, y: Any, c: Any) -> Any:
    i, f, g, o = np.split(p["weight_ih"] @ x + p["weight_hh"] @ y + total(p), 4)
    new = sigmoid(f + p["weight_cf"] * c) * c + sigmoid(i + p["weight_ci"] * c) * np.tanh(g)
    y = sigmoid(o + p["weight_co"] * new) * np.tanh(new)
    return y, (y, new)


def coupled_lstm(p: Any, x: Any, y: Any, c: Any) -> Any:
    """Variant CIFG of Greff et al., without peepholes (NP) if it has no weight_ci."""
    i, z, o = np.split(p["weight_ih"] @ x + p["weight_hh"] @ y + total(p), 3)
    i = sigmoid(i + p.get("weight_ci", 0) * c)
    new = np.tanh(z) * i + c * (1 - i)
    y = np.tanh(new) * sigmoid(o + p.get("weight_co", 0) * new)
    return y, (y, new)


def layer_norm_lstm(p: Any, x: Any, h: Any, c: Any) -> Any:
    """Equations 20 to 22 of the supplement, with one bias for both shifts and b."""
    inner = p["gain_h"] * norm(p["weight_hh"] @ h) + p["gain_x"] * norm(p["weight_ih"] @ x)
    i, f, g, o = np.split(inner + p["bias_z"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(p["gain_c"] * norm(c) + p["bias_c"])
    return h, (h, c)


def layer_norm_gru(p: Any, x: Any, h: Any) -> Any:
    """The paper's z weights the new state, so its pre-activation has the opposite sign."""
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
    """Return a layer whose parameters all differ, also constant initial ones."""
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
    for n in range(x.shape[1]):
        state, one = tuple(s[0, n] for s in start), []
        for now in x[:, n]:
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
def test_a_cell_equals_its_paper(cell: Any, step: Any) -> None:
    layer = layer_of(cell)
    start = start_of(layer)
    want, last = loop(step, named(layer), X, start)
    output, state = layer(jnp.asarray(X), layer._as_hx(tuple(map(jnp.asarray, start))))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    close(output, want)
    jax.tree.map(close, state, layer._as_hx(last))


# Other libraries


@pytest.fixture
def keras_settings() -> Iterator[None]:
    """Allow rank promotion, which Keras relies on."""
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_reset_before_equals_keras(keras_settings: None) -> None:
    layer = layer_of(cells.GRUResetBefore(), jnp.float32)
    p = named(layer)
    theirs = keras.layers.GRU(
        H, reset_after=False, return_sequences=True, recurrent_initializer="zeros"
    )
    x = X.swapaxes(0, 1).astype(np.float32)
    theirs.build(x.shape)
    ours = (p["weight_ih"], p["weight_hh"], p["bias_ih"] + p["bias_hh"])
    theirs.set_weights([reordered(array, "rzn", "zrn").T for array in ours])
    want = np.asarray(theirs(x)).swapaxes(0, 1)
    np.testing.assert_allclose(layer(X.astype(np.float32))[0], want, atol=1e-5)


def reordered(array: Any, source: str, target: str) -> np.ndarray:
    """Reorder gates, one letter each."""
    gates = dict(zip(source, np.split(array, len(source)), strict=True))
    return np.concatenate([gates[letter] for letter in target])


def in_onnx(kind: str, layer: Any, ours: str, theirs: str, **attributes: Any) -> Any:
    """Return the output of one onnxruntime node with the weights of a layer."""
    p, helper = named(layer), onnx.helper
    reorder = lambda array: reordered(array, ours, theirs)  # noqa: E731
    constants = {
        "W": reorder(p["weight_ih"])[None],
        "R": reorder(p["weight_hh"])[None],
        "B": np.concatenate([reorder(p["bias_ih"]), reorder(p["bias_hh"])])[None],
    }
    names = ["x", "W", "R", "B"]
    if kind == "LSTM":
        constants["P"] = np.concatenate([p[f"weight_c{gate}"] for gate in "iof"])[None]
        names += ["", "", "", "P"]
    node = helper.make_node(kind, names, ["y"], hidden_size=H, **attributes)
    tensor = lambda name, *axes: helper.make_tensor_value_info(name, 1, axes)  # noqa: E731
    graph = helper.make_graph(
        [node],
        "one",
        [tensor("x", T, N, D)],
        [tensor("y", T, 1, N, H)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X.astype(np.float32)})[0][:, 0]


@pytest.mark.parametrize(
    ("cell", "kind", "orders", "attributes"),
    [
        (cells.GRUResetBefore(), "GRU", ("rzn", "zrn"), {"linear_before_reset": 0}),
        (cells.PeepholeLSTM(), "LSTM", ("ifgo", "iofg"), {}),
    ],
    ids=["GRU", "LSTM"],
)
def test_a_cell_equals_onnxruntime(cell: Any, kind: str, orders: Any, attributes: Any) -> None:
    layer = layer_of(cell, jnp.float32)
    want = in_onnx(kind, layer, *orders, **attributes)
    np.testing.assert_allclose(layer(X.astype(np.float32))[0], want, atol=1e-5)


# Parallel in time


@pytest.mark.parametrize("cell", [cells.MinGRU(), cells.MinLSTM(), cells.LRU(0.9, 0.999)], ids=str)
def test_the_associative_scan_equals_the_loop(cell: Any) -> None:
    """A longer sequence, ragged and with resets, in both directions."""
    steps = 70
    random = np.random.RandomState(3)
    x, resets = random.uniform(-1, 1, (steps, N, D)), random.uniform(size=(steps, N)) < 0.1
    ran = []
    for backend in ("parallel", "scan"):
        layer = Recurrent(
            cell, D, H, bidirectional=True, backend=backend, rngs=nnx.Rngs(0), param_dtype=float
        )
        ran.append(layer(jnp.asarray(x), lengths=np.array([70, 0, 33]), resets=resets))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), *ran)


def test_min_lstm_gates_that_underflow() -> None:
    """In float32 both sigmoids are 0; i is e times as large as f."""
    cell, params = cells.MinLSTM(), {"weight_ih": jnp.zeros((3, 1)), "bias_ih": jnp.zeros(3)}
    params["bias_ih"] = jnp.array([-201.0, -200.0, 2.0], jnp.float32)
    a, b = cell.coefficients(jnp.zeros(1, jnp.float32), params)
    np.testing.assert_allclose([a[0], b[0]], [sigmoid(-1.0), 2 * sigmoid(1.0)], rtol=1e-6)


# Initial parameters


def test_lru_initialisation_is_uniform_on_its_ring() -> None:
    cell = cells.LRU(r_min=0.4, r_max=0.8, max_phase=1.5)
    p = named(Recurrent(cell, 6, 2000, rngs=nnx.Rngs(0)))
    radius, phase = np.exp(-np.exp(p["nu_log"])), np.exp(p["theta_log"])
    np.testing.assert_allclose(np.exp(p["gamma_log"]), np.sqrt(1 - radius**2), rtol=1e-5)
    for drawn, low, high in ((radius**2, 0.16, 0.64), (phase, 0, 1.5)):  # uniform in the area
        assert low <= drawn.min() <= low + 0.01
        assert high - 0.01 <= drawn.max() <= high
        np.testing.assert_allclose(drawn.mean(), (low + high) / 2, rtol=0.03)
    for name, variance in (("B_re", 1 / 12), ("B_im", 1 / 12), ("C_re", 1 / 2000)):
        np.testing.assert_allclose(p[name].var(), variance, rtol=0.05)


def test_initial_gains_biases_and_recurrent_weights() -> None:
    p = named(Recurrent(cells.LayerNormLSTM(), D, H, rngs=nnx.Rngs(0)))
    assert not any(name in p for name in ("bias_ih", "bias_hh"))
    for name, value in (("gain_x", 1), ("gain_h", 1), ("gain_c", 1), ("bias_z", 0), ("bias_c", 0)):
        assert (p[name] == value).all()
    u = named(Recurrent(cells.IndRNN(), 1, 2000, rngs=nnx.Rngs(0)))["weight_u"]
    assert 0 <= u.min() < 0.01
    assert 0.99 < u.max() <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r_min": 0.9, "r_max": 0.5}, "0 <= r_min < r_max <= 1, got r_min=0.9, r_max=0.5"),
        ({"r_max": 1.5}, "r_max=1.5"),
        ({"max_phase": 0}, "`max_phase` must be positive, got 0"),
    ],
)
def test_an_invalid_ring_raises(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cells.LRU(**options)


def test_an_invalid_nonlinearity_raises() -> None:
    with pytest.raises(ValueError, match="Unknown nonlinearity 'elu'"):
        cells.IndRNN("elu")
