"""Every cell with every option of a layer; a new cell is one line in `CELLS` or `MORE_CELLS`.

The reference is a loop over the functions of a cell, one sequence at a time. Sequences end at
their lengths, and a reset splits a sequence in two independent ones.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn import sigmoid

import jaxrnn
from jaxrnn import Recurrent, RecurrentCell, cells
from jaxrnn.backends.step import has_output_function
from jaxrnn.cells import Cell, GeneralCell, LinearCell, Parameter, StateSpec
from jaxrnn.core import stack
from jaxrnn.sequences.streaming import jit_step, piece_lengths

T, N, D, H = 5, 3, 3, 4
RANDOM = np.random.RandomState(0)
LENGTHS = np.array([5, 0, 3])
RESETS = np.zeros((T, N), bool)
RESETS[[0, 2, 3, 2, 4], [0, 0, 0, 2, 2]] = True  # the last one is padding


@dataclasses.dataclass(frozen=True)
class OneGate(Cell):
    gates = ("f", "n")

    def step(self, z: Any, state: Any) -> Any:
        (h,), (f, n) = state, self.split_gates(z)
        f = sigmoid(f)
        return ((1 - f) * h + f * jnp.tanh(n),)


@dataclasses.dataclass(frozen=True)
class Normed(Cell):
    """Layer normalisation, which is not elementwise; split, with a matrix and a bias."""

    gates, split = ("u", "n"), True
    parameters = {"scale": Parameter(("G*H",), 1.0), "mix": ("H", "H"), "bias_u": ("H",)}

    def step(self, z: Any, state: Any, params: Any) -> Any:
        zx, zh = z
        centred = zh - zh.mean(0, keepdims=True)
        normed = centred / jnp.sqrt((centred**2).mean(0, keepdims=True) + 1e-2)
        u, n = self.split_gates(zx + params["scale"] * normed)
        return (state[0] * sigmoid(u + params["bias_u"]) + params["mix"] @ jnp.tanh(n),)


@dataclasses.dataclass(frozen=True)
class ThreeStates(GeneralCell):
    """States of three sizes, one of them complex, and an output that is not a state."""

    slots: int = 2
    states = {"h": StateSpec(), "s": StateSpec("slots", complex=True), "m": StateSpec(3)}
    output_size = "2*H"
    parameters = {"w": ("H", "D"), "a": ("slots", "H"), "b": (3, "slots")}

    def step(self, x: Any, state: Any, params: Any) -> Any:
        h, s, m = state
        h = jnp.tanh(params["w"] @ x + 0.5 * h + m.sum())
        s = (0.5 + 0.4j) * s + params["a"] @ h
        return h, s, 0.3 * m + params["b"] @ s.imag

    def output(self, x: Any, state: Any, params: Any) -> Any:
        h, s, m = state
        return jnp.concatenate([h * x.sum(), h + (s.real.sum() + m.sum())])


@dataclasses.dataclass(frozen=True)
class Rotation(LinearCell):
    """A complex state of another size than the output, which reads the input too."""

    modes: int = 3
    states, output_size = {"s": StateSpec("modes", complex=True)}, "H"
    parameters = {
        "decay": Parameter(("modes",), 0.1),
        "angle": ("modes", "D"),
        "b": ("modes", "D"),
        "c": ("H", "modes"),
    }

    def coefficients(self, x: Any, params: Any) -> Any:
        a = jnp.exp(-jnp.exp(params["decay"]) + 1j * (params["angle"] @ x))
        return a, params["b"] @ x

    def output(self, x: Any, state: Any, params: Any) -> Any:
        return params["c"] @ (state[0].real + state[0].imag) + x.sum()


CELLS: list[Any] = [  # of every base class, in all tests
    cells.LSTM(),
    OneGate(),
    Normed(),
    ThreeStates(),
    cells.PeepholeLSTM(),
    cells.IndRNN(),
    cells.GRUResetBefore(),
    Rotation(),
    cells.LRU(),
]
MORE_CELLS: list[Any] = [  # in the most demanding tests only
    cells.Elman(),  # and `tests/test_parity.py`
    cells.GRU(),
    cells.CoupledLSTM(),
    cells.CoupledPeepholeLSTM(),
    cells.LayerNormLSTM(),
    cells.LayerNormGRU(),
    cells.MinimalGatedUnit(),
    cells.MinGRU(),
    cells.MinLSTM(),
]
USER_CELLS: list[Any] = [OneGate(), Normed(), ThreeStates(), Rotation()]  # written by a user
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)


def product(names: str, cases: list[Any], *, of_all: Any) -> Any:
    """Parametrize every case for `CELLS`, and one case for all cells."""
    whole = [(cell, *case) for case in cases for cell in CELLS + MORE_CELLS * (case == of_all)]
    ids = [", ".join(map(str, (type(cell).__name__, *case))) for cell, *case in whole]
    return pytest.mark.parametrize(("cell", *names.split()), whole, ids=ids)


# The reference


def one_step(cell: Any, weights: Any, x: Any, state: Any) -> Any:
    """Return the output and the new state of one step of one sequence."""
    own = weights.cell_params or {}
    if isinstance(cell, LinearCell):
        a, b = cell.coefficients(x, own)
        new = (a * state[0] + b,)
        return cell.output(x, new, own), new
    if isinstance(cell, GeneralCell):
        new = cell.step(cell.inputs(x, own), state, own)
        return cell.output(x, new, own), new
    zx = weights.weight_ih @ x
    zh = jnp.zeros_like(zx) if weights.weight_hh is None else weights.weight_hh @ state[0]
    zx = zx if weights.bias_ih is None else zx + weights.bias_ih
    zh = zh if weights.bias_hh is None else zh + weights.bias_hh
    columns = ({n: a[:, None] if a.ndim == 1 else a for n, a in own.items()},) if own else ()
    z = (zx[:, None], zh[:, None]) if cell.split else (zx + zh)[:, None]
    new = tuple(s[:, 0] for s in cell.step(z, tuple(s[:, None] for s in state), *columns))
    return new[0], new


STEP = jax.jit(one_step, static_argnums=0)


def pieces(length: int, resets: Any) -> Iterator[range]:
    """Yield the steps of a sequence between its resets."""
    cuts = [0, *(t for t in range(1, length) if resets[t]), length]
    for first, end in itertools.pairwise(cuts):
        yield range(first, end)


def one_sequence(
    cell: Any, weights: Any, x: Any, state: Any, length: int, resets: Any, reverse: bool
) -> Any:
    """Return the outputs, zero at padding, the states after each step and the final state."""
    zeros = tuple(np.zeros_like(s) for s in state)
    outputs, states, last = {}, {}, state
    parts = list(pieces(length, resets))
    for piece in reversed(parts) if reverse else parts:
        fresh = piece is not parts[-1] if reverse else piece is not parts[0] or resets[0]
        last = zeros if fresh else state
        for t in reversed(piece) if reverse else piece:
            outputs[t], last = STEP(cell, weights, x[t], last)
            states[t] = last
    if not outputs:
        shape = jax.eval_shape(lambda: one_step(cell, weights, x[0], state)[0])
        outputs[0], nothing = np.zeros(shape.shape), True
    else:
        nothing = False
    blank = np.zeros_like(next(iter(outputs.values())))
    y = [blank if nothing else outputs.get(t, blank) for t in range(len(x))]
    every = [states.get(t, zeros) for t in range(len(x))]
    return np.stack(y), every, last


def reference(
    cell: Any, weights: Any, x: Any, hx: Any, lengths: Any, resets: Any, directions: int
) -> Any:
    """Return outputs (T, N, F*R), states (T, F*L, N, S) and final states (F*L, N, S)."""
    steps, batch = x.shape[:2]
    lengths = [steps] * batch if lengths is None else lengths
    resets = np.zeros((steps, batch), bool) if resets is None else resets
    every, last = [], []
    for first in range(0, len(weights), directions):
        outputs = []
        for index in range(first, first + directions):
            w = weights[index]
            ran = [
                one_sequence(cell, w, x[:, n], tuple(s[index, n] for s in hx), int(lengths[n]),
                        resets[:, n], index > first)
                for n in range(batch)
            ]  # fmt: skip
            outputs.append(np.stack([y for y, _, _ in ran], 1))
            every.append([np.stack([np.stack([s[k] for s in states]) for _, states, _ in ran], 1)
                          for k in range(len(hx))])  # fmt: skip
            last.append([np.stack([final[k] for _, _, final in ran]) for k in range(len(hx))])
        x = np.concatenate(outputs, -1)
    at = lambda which, axis: tuple(np.stack(s, axis) for s in zip(*which))  # noqa: E731
    return x, at(every, 1), at(last, 0)


# Layers and inputs


@functools.cache
def make_layer(cell: Any, layers: int = 1, bidirectional: bool = False, **options: Any) -> Any:
    return Recurrent(
        cell, D, H, layers, bidirectional=bidirectional, rngs=nnx.Rngs(1), param_dtype=jnp.float64,
        **options,
    )  # fmt: skip


def drawn(shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    real = RANDOM.uniform(-1, 1, shape)
    whole = real + 1j * RANDOM.uniform(-1, 1, shape) if np.dtype(dtype).kind == "c" else real
    return np.asarray(whole, dtype)


X = drawn((T, N, D))


@functools.cache
def initial_state(cell: Any, count: int) -> Any:
    sizes, dtypes = make_layer(cell).state_sizes, cell.state_dtypes(np.float64)
    return tuple(drawn((count, N, s), d) for s, d in zip(sizes, dtypes, strict=True))


def unwrap(states: Any) -> Any:
    return states[0] if len(states) == 1 else states


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    check = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(check, got, want)


@product(
    "layers bidirectional ragged",
    [(2, True, "both"), (1, False, "lengths"), (1, True, "resets")],
    of_all=(2, True, "both"),
)
def test_a_stack_equals_a_loop(cell: Any, layers: int, bidirectional: bool, ragged: str) -> None:
    """Outputs, final states and all states, with initial states."""
    at_once = {"backend": "parallel"} if layers == 2 and isinstance(cell, LinearCell) else {}
    directions = 2 if bidirectional else 1
    layer = make_layer(cell, layers, bidirectional, **at_once)
    hx = initial_state(cell, layers * directions)
    lengths = LENGTHS if ragged != "resets" else None
    resets = RESETS if ragged != "lengths" else None
    y, every, last = reference(cell, layer._weights(), X, hx, lengths, resets, directions)
    if layers == 2:
        got = layer(X, unwrap(hx), lengths=lengths, resets=resets, return_all_states=True)
        close(got, (y, unwrap(every)))
    else:
        close(layer(X, unwrap(hx), lengths=lengths, resets=resets), (y, unwrap(last)))


@every_cell
def test_layouts_zeros_and_no_bias(cell: Any) -> None:
    layer = make_layer(cell, batch_first=True, bias=False)
    zeros = tuple(np.zeros_like(s) for s in initial_state(cell, 1))
    weights = [
        w._replace(cell_params=with_zero_biases(cell, w.cell_params)) for w in layer._weights()
    ]
    assert not any("bias" in name for name in layer.parameter_names)
    y, _, last = reference(cell, weights, X, zeros, None, None, 1)
    close(layer(X.swapaxes(0, 1)), (y.swapaxes(0, 1), unwrap(last)))
    close(layer(X[:, 0]), (y[:, 0], unwrap(tuple(s[:, 0] for s in last))))


def with_zero_biases(cell: Any, own: Any) -> Any:
    """Return the parameters of a cell with zeros for its biases."""
    shapes = cells.BaseCell.shapes(cell, cells.Sizes(D, H, H))
    return {n: (own or {}).get(n, jnp.zeros(s)) for n, s in shapes.items()} or None


@pytest.mark.parametrize("cell", [*CELLS, cells.MinLSTM()], ids=str)
def test_packed_streamed_and_single_steps_equal_one_call(cell: Any) -> None:
    layers = 2 if len(cell.states) > 1 else 1  # several states also in a stack
    layer = make_layer(cell, layers)
    hx, lengths = initial_state(cell, layers), np.array([4, 1, 3])
    y, last = layer(X, unwrap(hx), lengths=lengths, resets=RESETS)

    first, state = layer(X[:2], unwrap(hx), lengths=piece_lengths(lengths, 0, 2), resets=RESETS[:2])
    rest, state = layer(X[2:], state, lengths=piece_lengths(lengths, 2, 3), resets=RESETS[2:])
    close((np.concatenate([first, rest]), state), (y, last))

    packed = jaxrnn.pack_padded_sequence(jnp.asarray(X), lengths, enforce_sorted=False)
    plain, plain_last = layer(X, unwrap(hx), lengths=lengths)
    out, state = layer(packed, unwrap(hx))
    close((jaxrnn.pad_packed_sequence(out)[0], state), (plain[:4], plain_last))

    step, state, outputs = jit_step(layer), unwrap(hx), []
    for t in range(T):
        output, state = step(X[t], state, RESETS[t])
        outputs.append(output)
    close((np.stack(outputs), state), layer(X, unwrap(hx), resets=RESETS))


@every_cell
def test_a_single_step_equals_a_layer(cell: Any) -> None:
    layer = make_layer(cell)
    single = RecurrentCell(cell, D, H, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    named = {n.removesuffix("_l0"): a for n, a in jaxrnn.state_dict(layer).items()}
    assert list(named) == list(cell.shapes(layer._layer_sizes[0]))  # in the order declared
    jaxrnn.load_state_dict(single, named)
    hx = initial_state(cell, 1)
    y, last = layer(X[:1], unwrap(hx))
    got = single(X[0], unwrap(tuple(s[0] for s in hx)))
    new = jax.tree.map(lambda s: s[0], last)
    close(got, (y[0], new) if has_output_function(cell) else new)


@pytest.mark.parametrize(
    ("cell", "remat"),
    [*((cell, True) for cell in CELLS + MORE_CELLS), *((cell, False) for cell in USER_CELLS)],
    ids=str,
)
def test_derivatives(cell: Any, remat: bool) -> None:
    """jvp equals finite differences, grad.v equals jvp, and the same for second derivatives.

    Without `remat` one cell of each base class; `tests/test_recurrence.py` covers the others.
    """
    plan = stack.StackOptions(cell, bidirectional=not remat, remat=remat, backend="scan")
    if isinstance(cell, LinearCell) and not remat:
        plan = dataclasses.replace(plan, backend="parallel")
    weights = make_layer(cell, 1, plan.bidirectional)._weights()
    hx, lengths = initial_state(cell, plan.directions), jnp.asarray(LENGTHS)
    x, resets = X, jnp.asarray(RESETS)

    def f(weights: Any, x: Any, hx: Any) -> Any:
        y, last = stack.run(plan, weights, x, hx, None, lengths, resets)
        return (y * jnp.cos(y)).sum() + sum((s * s.conj()).real.sum() for s in last)

    at = (weights, x, hx)
    v, w = (jax.tree.map(lambda a: drawn(a.shape, a.dtype), at) for _ in range(2))
    moved = lambda eps: jax.tree.map(lambda a, d: np.asarray(a) + eps * d, at, v)  # noqa: E731
    # JAX's gradient with respect to a complex number is the conjugate of what `dot` needs.
    dot = lambda a, b: sum(  # noqa: E731
        (p * q).real.sum() for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    grad, twice = jax.grad(f, (0, 1, 2)), remat and cell in CELLS

    @jax.jit
    def everything(at: Any, v: Any) -> Any:
        """Return f, its value and jvp along v, its gradient, and Hessian-vector products."""
        moves = grad(*at), ()
        if twice:  # forward over reverse, and twice in reverse mode
            g, hv = jax.jvp(grad, at, v)
            moves = g, (hv, jax.grad(lambda *a: dot(grad(*a), v), (0, 1, 2))(*at))
        return f(*at), *jax.jvp(f, at, v), *moves

    plain, value, forward, g, second = jax.tree.map(np.asarray, everything(at, v))
    close(value, plain)
    above, below = (everything(moved(eps), v)[0] for eps in (1e-5, -1e-5))
    close(forward, (above - below) / 2e-5, 1e-6)
    close(dot(g, v), forward)
    if twice:
        close(dot(second[1], w), dot(second[0], w), 1e-9)


# Invalid cells


def gated(**members: Any) -> Any:
    """Return a cell of gates with the given members."""
    base = {"gates": ("f",), "step": lambda self, z, state: (z,)}
    return dataclasses.dataclass(frozen=True)(type("Own", (Cell,), base | members))()


def linear(**members: Any) -> Any:
    base: dict[str, Any] = {"coefficients": lambda self, x, params: (params["a"], params["a"])}
    base["parameters"] = {"a": ("H",)}
    return dataclasses.dataclass(frozen=True)(type("Own", (LinearCell,), base | members))()


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a class": (OneGate, TypeError, "must be an instance, got the class OneGate"),
    "no cell": ("lstm", TypeError, "must be a jaxrnn.cells.Cell.*got str: 'lstm'"),
    "no step": (gated(step=Cell.step), TypeError, r"Own must define step\(z, state\)"),
    "no coefficients": (
        linear(coefficients=LinearCell.coefficients),
        TypeError,
        "Own must define coefficients",
    ),
    "no gates": (gated(gates=()), ValueError, r"`gates` of Own\(\) must be .* names, got \(\)"),
    "no states": (gated(states=()), ValueError, r"`states` of Own\(\) must be .* names, got \(\)"),
    "letters": (gated(states="h"), ValueError, "must be a non-empty tuple of names, got 'h'"),
    "a size": (gated(parameters={"u": ("K",)}), ValueError, "Size 'K' of .* got None for 'K'"),
    "a shape": (gated(parameters={"u": "H"}), ValueError, "'u'.*must be a shape.*got 'H'"),
    "a name": (gated(parameters={"weight_ih": ("H",)}), ValueError, "'weight_ih'.* every Cell has"),
    "reserved": (gated(parameters={"bias": ("H",)}), ValueError, "'bias'.* module's attribute"),
    "nothing split": (gated(split=True, recurrent=False), ValueError, "`split` .* must be False"),
    "states of a gated cell": (
        gated(states={"h": StateSpec(2)}),
        ValueError,
        "only GeneralCell and LinearCell support StateSpec",
    ),
    "two linear states": (linear(states=("h", "c")), ValueError, "one state, got .'h', 'c'"),
    "a single array": (
        gated(step=lambda self, z, state: z),
        ValueError,
        r"Own.step must return h float32\[4, 2\], a tuple of 1, got float32\[4, 2\]",
    ),
    "too many": (gated(step=lambda self, z, state: (z, z)), ValueError, "of 1, got 2 of them"),
    "another shape": (
        gated(step=lambda self, z, state: (z[:1],)),
        ValueError,
        r"must return h float32\[4, 2\], got float32\[1, 2\]",
    ),
    "integers": (
        gated(step=lambda self, z, state: (z.astype(int),)),
        ValueError,
        r"must return h float32\[4, 2\], got int",
    ),
    "complex coefficients": (
        linear(coefficients=lambda self, x, params: (1j * params["a"], params["a"])),
        ValueError,
        r"Own.coefficients must return a float32\[4\], b float32\[4\], got complex64",
    ),
    "a complex output": (
        linear(states={"s": StateSpec(complex=True)}),
        ValueError,
        r"Own.output must return output float32\[4\], got complex64\[4\]",
    ),
}


@pytest.mark.parametrize("module", [Recurrent, RecurrentCell])
@pytest.mark.parametrize(("cell", "error", "message"), WRONG.values(), ids=WRONG)
def test_invalid_cells_raise_at_construction(
    cell: Any, error: Any, message: str, module: Any
) -> None:
    with pytest.raises(error, match=message):
        module(cell, D, H, rngs=nnx.Rngs(0))


def test_an_error_inside_a_step_has_a_note() -> None:
    cell = gated(step=lambda self, z, state: (z + jnp.zeros(3),))
    with pytest.raises((TypeError, ValueError)) as raised:
        Recurrent(cell, D, H, rngs=nnx.Rngs(0))
    note = "in Own().step, called with float32[4, 2], (float32[4, 2],)"
    assert note in raised.value.__notes__


def test_invalid_states_raise() -> None:
    layer = make_layer(cells.PeepholeLSTM())
    for hx, message in (
        (jnp.zeros((1, N, H)), r"two hidden states \(h, c\), got one"),
        ((jnp.zeros((1, N, H)),), r"two hidden states \(h, c\), got 1"),
        ((jnp.zeros((1, N, H)), jnp.zeros((1, N, 3))), r"hidden\[1\] size \(1, 3, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(X, hx)
    with pytest.raises(ValueError, match=r"must have dtype complex128.*got float64"):
        make_layer(cells.LRU())(X, jnp.zeros((1, N, H)))


@pytest.mark.parametrize(
    ("cell", "backend", "reason"),
    [
        (Normed(), "kernel", r"parameter mix \('H', 'H'\) is not a vector of a multiple of H"),
        (cells.IndRNN(), "kernel", "IndRNN has no recurrent matrix"),
        (cells.GRUResetBefore(), "kernel", "GRUResetBefore is not a Cell with gates"),
        (OneGate(), "parallel", "OneGate is not a LinearCell"),
    ],
    ids=lambda value: str(value),
)
def test_unsupported_backends_raise(cell: Any, backend: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_layer(cell, backend=backend)(X)
