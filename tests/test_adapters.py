"""Adapters of cells: values and gradients in the loops of Flax and of jaxrnn agree."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxrnn
from jaxrnn import Recurrent, RecurrentCell, cells
from jaxrnn.interop.adapters import FromLinen, FromNnx, ToLinen, ToNnx
from tests.test_cells import close

N, T, D, H = 3, 4, 3, 4
RANDOM = np.random.RandomState(0)
X = jnp.asarray(RANDOM.uniform(-1, 1, (N, T, D)))
LENGTHS = jnp.array([4, 1, 3])
VALID = (np.arange(T) < np.asarray(LENGTHS)[:, None])[..., None]
RNN: Any = nnx.RNN  # returns an array or a pair
WIDE: Any = {"param_dtype": jnp.float64}

CELLS = [cells.LSTM(), cells.PeepholeLSTM(), cells.GRUResetBefore(), cells.LRU()]  # of every kind
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)


def last_of(hx: Any) -> Any:
    """Return the states of a single layer without the layer axis."""
    return jax.tree.map(lambda s: s[0], hx)


def weights_of(layer: Any, reverse: bool = False) -> dict[str, Any]:
    suffix = "_l0_reverse" if reverse else "_l0"
    arrays = jaxrnn.state_dict(layer)
    return {n.removesuffix(suffix): a for n, a in arrays.items() if n.endswith(suffix)}


def nnx_cell(layer: Any, reverse: bool = False) -> ToNnx:
    kinds: dict[Any, Any] = {cells.LSTM: jaxrnn.LSTMCell, cells.GRU: jaxrnn.GRUCell}
    make = kinds.get(type(layer.cell), functools.partial(RecurrentCell, layer.cell))
    single = make(D, H, rngs=nnx.Rngs(7), **WIDE)
    jaxrnn.load_state_dict(single, weights_of(layer, reverse))
    return ToNnx(single)


# jaxrnn cells in Flax


@every_cell
def test_nnx_rnn_equals_the_layer(cell: Any) -> None:
    layer = Recurrent(cell, D, H, batch_first=True, bidirectional=True, rngs=nnx.Rngs(1), **WIDE)
    y, hx = layer(X, lengths=LENGTHS)
    forward, back = nnx_cell(layer), nnx_cell(layer, reverse=True)
    both = nnx.Bidirectional(RNN(forward), RNN(back), return_carry=True)

    @nnx.jit
    def run(both: Any, back: Any) -> Any:
        options = dict(time_major=True, reverse=True, keep_order=True, return_carry=True)
        return both(X, seq_lengths=LENGTHS), RNN(back)(X.swapaxes(0, 1), **options)

    (carries, got), (carry, alone) = jax.tree.map(np.asarray, run(both, back))
    close(np.where(VALID, got, 0), y, 1e-12)
    close(carries, (last_of(hx), jax.tree.map(lambda s: s[1], hx)), 1e-12)

    features = y.shape[-1] // 2
    whole, hx = jax.tree.map(np.asarray, layer(X))
    close(alone.swapaxes(0, 1), whole[..., features:], 1e-12)
    close(carry, jax.tree.map(lambda s: s[1], hx), 1e-12)


@every_cell
def test_linen_rnn_equals_the_layer(cell: Any) -> None:
    layer = Recurrent(cell, D, H, batch_first=True, rngs=nnx.Rngs(1), **WIDE)
    variables = {"params": {"cell": weights_of(layer)}}
    rnn: Any = linen.RNN(ToLinen(cell, H, **WIDE), return_carry=True)

    @jax.jit
    def run(variables: Any) -> Any:
        carry, got = rnn.apply(variables, X, seq_lengths=LENGTHS)
        start = jax.tree.map(lambda s: s + 0.3, carry)
        options = dict(initial_carry=start, time_major=True, return_carry=False)
        return carry, got, start, rnn.apply(variables, X.swapaxes(0, 1), **options)

    carry, got, start, options = jax.tree.map(np.asarray, run(variables))
    y, hx = layer(X, lengths=LENGTHS)
    close(np.where(VALID, got, 0), y, 1e-12)
    close(carry, last_of(hx), 1e-12)
    close(options.swapaxes(0, 1), layer(X, jax.tree.map(lambda s: s[None], start))[0], 1e-12)

    drawn = jax.eval_shape(rnn.init, jax.random.key(0), X)["params"]["cell"]
    assert {n: a.shape for n, a in drawn.items()} == {
        n: a.shape for n, a in weights_of(layer).items()
    }


def test_gradients_through_the_loops_of_flax() -> None:
    layer = Recurrent(cells.GRU(), D, H, batch_first=True, rngs=nnx.Rngs(1), **WIDE)
    graph, params = nnx.split(layer)
    loss = lambda p, x: (nnx.merge(graph, p)(x)[0] ** 2).sum()  # noqa: E731
    ours = jax.jit(jax.grad(loss, (0, 1)))(params, X)
    ours = {n: ours[0][n + "_l0"][...] for n in weights_of(layer)}, ours[1]

    graph2, params2, rest = nnx.split(RNN(nnx_cell(layer)), nnx.Param, ...)
    h_0 = jnp.zeros((N, H))
    loss = lambda p, x: (nnx.merge(graph2, p, rest)(x, initial_carry=h_0) ** 2).sum()  # noqa: E731
    theirs = jax.jit(jax.grad(loss, (0, 1)))(params2, X)
    close(({n: theirs[0]["cell"]["cell"][n][...] for n in ours[0]}, theirs[1]), ours, 1e-12)

    rnn: Any = linen.RNN(ToLinen(cells.GRU(), H, **WIDE))
    loss = lambda p, x: (rnn.apply({"params": {"cell": p}}, x) ** 2).sum()  # noqa: E731
    theirs = jax.jit(jax.grad(loss, (0, 1)))(weights_of(layer), X)
    close(theirs, ours, 1e-12)


def test_float32_and_batch_axes() -> None:
    layer = Recurrent(cells.LSTM(), D, H, rngs=nnx.Rngs(1), dtype=jnp.float32, **WIDE)
    x = X.astype(jnp.float32)
    single = jaxrnn.LSTMCell(D, H, rngs=nnx.Rngs(1), dtype=jnp.float32, **WIDE)
    jaxrnn.load_state_dict(single, weights_of(layer))
    want = layer(x.swapaxes(0, 1))[0].swapaxes(0, 1)
    got = RNN(ToNnx(single))(jnp.stack([x, 2 * x]))
    assert got.dtype == jnp.float32
    close(got[0], want, 1e-6)
    close(RNN(ToNnx(single))(x[0]), want[0], 1e-6)
    variables = {"params": {"cell": weights_of(layer)}}
    got = linen.RNN(ToLinen(cells.LSTM(), H, dtype=jnp.float32, **WIDE)).apply(variables, x)
    close(got, want, 1e-6)


def test_carry_init() -> None:
    cell = ToNnx(jaxrnn.LSTMCell(D, H, rngs=nnx.Rngs(0)))
    h, c = cell.initialize_carry((5, 2, D), nnx.Rngs(0), jax.nn.initializers.normal())
    assert h.shape == c.shape == (5, 2, H)
    assert not bool((h == c).any())
    assert not any(bool(s.any()) for s in cell.initialize_carry((D,)))
    with pytest.raises(ValueError, match="`rngs` must be given"):
        cell.initialize_carry((D,), carry_init=jax.nn.initializers.normal())


def test_errors_of_cells_in_flax() -> None:
    with pytest.raises(TypeError, match=r"must be a RecurrentCell, .*got GRU"):
        ToNnx(cells.GRU())  # pyright: ignore
    with pytest.raises(TypeError, match=r"must be a jaxrnn.cells.Cell.*got str"):
        linen.RNN(ToLinen("gru", H)).init(jax.random.key(0), X)  # pyright: ignore
    rnn: Any = linen.RNN(ToLinen(cells.GRU(), H, **WIDE))
    for carry, message in (
        (jnp.zeros((N, 5)), "hidden0 has inconsistent hidden_size: got 5, expected 4"),
        (jnp.zeros((2, H)), "Input batch size 3 doesn't match hidden0 batch size 2"),
        (jnp.zeros((N, H), jnp.float32), "float32"),
    ):
        with pytest.raises(ValueError, match=message):
            rnn.init(jax.random.key(0), X, initial_carry=carry)


# Flax cells in jaxrnn


class Own(nnx.RNNCellBase):
    """A cell with an output outside its carry, a matrix and a scalar state, a list and a bias."""

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        self.parts = nnx.List([nnx.Linear(in_features, H, rngs=rngs, param_dtype=jnp.float64)])
        self.bias = nnx.Param(jnp.full((H,), 0.1, jnp.float64))

    def __call__(self, carry: Any, inputs: Any) -> Any:
        z = self.parts[0](inputs)
        v = jnp.tanh(z + jnp.broadcast_to(self.bias[...], z.shape))
        memory = 0.5 * carry["memory"] + v[..., :, None] * v[..., None, :]
        count = carry["count"] + 1.0
        output = (memory * v[..., None, :]).sum(-1) + carry["count"][..., None]
        return {"memory": memory, "count": count}, output

    def initialize_carry(self, input_shape: Any, rngs: Any = None, carry_init: Any = None) -> Any:
        batch = input_shape[:-1]
        return {"memory": jnp.zeros((*batch, H, H)), "count": jnp.zeros(batch)}

    @property
    def num_feature_axes(self) -> int:
        return 1


def cell_of(kind: Any) -> Any:
    options = WIDE | {"dtype": None}
    return functools.partial(kind, hidden_features=H, **options)


MAKERS: dict[str, Any] = {
    "LSTMCell": cell_of(nnx.LSTMCell),
    "OptimizedLSTMCell": cell_of(nnx.OptimizedLSTMCell),
    "GRUCell": cell_of(nnx.GRUCell),
    "SimpleCell": cell_of(nnx.SimpleCell),
    "Own": Own,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_layer_equals_nnx_rnn(make: Any) -> None:
    source = make(D, rngs=nnx.Rngs(3))
    cell = FromNnx(source)
    layer = Recurrent(cell, D, H, batch_first=True, rngs=nnx.Rngs(1), **WIDE)
    rnn = RNN(source, return_carry=True)
    graph, params = nnx.split(layer)
    graph2, params2, rest = nnx.split(rnn, nnx.Param, ...)
    start = source.initialize_carry((N, D), nnx.Rngs(0))

    @jax.jit
    def our(p: Any, x: Any) -> Any:
        loss = lambda p, x: (nnx.merge(graph, p)(x)[0] ** 2).sum()  # noqa: E731
        return nnx.merge(graph, p)(x, lengths=LENGTHS), jax.grad(loss, (0, 1))(p, x)

    @jax.jit
    def their(p: Any, rest: Any, x: Any) -> Any:
        run = lambda p, x, **options: nnx.merge(graph2, p, rest)(x, **options)  # noqa: E731
        loss = lambda p, x: (run(p, x, initial_carry=start)[1] ** 2).sum()  # noqa: E731
        return run(p, x, seq_lengths=LENGTHS), jax.grad(loss, (0, 1))(p, x)

    (y, hx), ours = jax.tree.map(np.asarray, our(params, X))
    (carry, got), theirs = jax.tree.map(np.asarray, their(params2, rest, X))
    close(y, np.where(VALID, got, 0), 1e-12)
    close(cell.carry(last_of(hx)), carry, 1e-12)
    close(
        [ours[0][n][...] for n in layer.parameter_names],
        jax.tree.leaves(nnx.to_pure_dict(theirs[0]["cell"])),
        1e-11,
    )
    close(ours[1], theirs[1], 1e-11)


@pytest.mark.parametrize("kind", [linen.OptimizedLSTMCell, linen.MGUCell])
def test_layer_equals_linen_rnn(kind: Any) -> None:
    module = kind(H, param_dtype=jnp.float64)
    cell = FromLinen(module)
    layer = Recurrent(cell, D, H, batch_first=True, rngs=nnx.Rngs(1), **WIDE)
    x = X[0]
    start = cell.carry(tuple(jnp.zeros(n) for n in layer.state_sizes))
    abstract = jax.eval_shape(module.init, jax.random.key(0), start, x[0])
    leaves = [getattr(layer, n)[...] for n in layer.parameter_names]
    params = jax.tree.unflatten(jax.tree.structure(abstract["params"]), leaves)
    rnn: Any = linen.RNN(module, return_carry=True)
    run = jax.jit(lambda p: rnn.apply({"params": {"cell": p}}, X, seq_lengths=LENGTHS))
    carry, got = run(params)
    y, hx = layer(X, lengths=LENGTHS)
    close(y, np.where(VALID, got, 0), 1e-12)
    close(cell.carry(last_of(hx)), carry, 1e-12)


@pytest.mark.parametrize("cell", [FromNnx(Own), FromLinen(linen.GRUCell(H))], ids=["Own", "linen"])
def test_stack_of_flax_cells(cell: Any) -> None:
    """Two bidirectional layers with resets equal pieces, single steps and single layers."""
    layer = Recurrent(cell, D, H, 2, bidirectional=True, rngs=nnx.Rngs(1), **WIDE)
    x, resets = X.swapaxes(0, 1), np.zeros((T, N), bool)
    resets[2] = True
    y, _ = layer(x, resets=resets)
    first, second = layer(x[:2])[0], layer(x[2:])[0]
    close(y, jnp.concatenate([first, second]), 1e-12)
    assert not any(np.allclose(a, b) for a, b in zip(first, second))

    # Layers and directions have different initial weights.
    kernels = [a for n, a in jaxrnn.state_dict(layer).items() if "kernel" in n]
    pairs = [(a, b) for i, a in enumerate(kernels) for b in kernels[:i] if a.shape == b.shape]
    assert pairs
    assert not any((a == b).any() for a, b in pairs)

    single = RecurrentCell(cell, D, H, rngs=nnx.Rngs(2), **WIDE)
    one = Recurrent(cell, D, H, rngs=nnx.Rngs(1), **WIDE)
    jaxrnn.load_state_dict(single, weights_of(one))
    close(single(x[0]), last_of(one(x[:1])[1]), 1e-12)


def test_construction_within_a_transformation() -> None:
    cell = FromNnx(Own)
    run = lambda key: Recurrent(cell, D, H, rngs=nnx.Rngs(key), **WIDE)(X)[0]  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 2)
    close(jax.jit(jax.vmap(run))(keys)[1], run(keys[1]), 1e-12)


def test_equal_cells_are_equal_static_arguments() -> None:
    a, b = (FromNnx(nnx.GRUCell(D, H, rngs=nnx.Rngs(0))) for _ in range(2))
    c = FromNnx(nnx.GRUCell(D, H, rngs=nnx.Rngs(1)))
    assert a == b
    assert hash(a) == hash(b)
    assert a != c


class Noisy(nnx.GRUCell):
    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        super().__init__(in_features, H, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


class NoisyLinen(linen.GRUCell):
    @linen.compact
    def __call__(self, carry: Any, inputs: Any) -> Any:
        return carry, linen.Dropout(0.5, deterministic=False)(carry)


class Counting(linen.GRUCell):
    @linen.compact
    def __call__(self, carry: Any, inputs: Any) -> Any:
        self.variable("counts", "n", lambda: jnp.zeros(()))
        return carry, carry


class Normed(nnx.GRUCell):
    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        super().__init__(in_features, H, rngs=rngs)
        self.norm = nnx.BatchNorm(H, rngs=rngs)


def ones(in_features: int, *, rngs: nnx.Rngs) -> Any:
    cell = nnx.GRUCell(in_features, H, rngs=rngs)
    cell.carry_init = jax.nn.initializers.ones
    return cell


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a string": (lambda: FromNnx("lstm"), TypeError, "expected|got 'lstm'"),
    "a linen cell": (lambda: FromNnx(linen.GRUCell(H)), TypeError, "must be an nnx.RNNCellBase"),
    "an nnx cell": (lambda: FromLinen(MAKERS["Own"]), TypeError, "must be a linen.RNNCellBase"),
    "another module": (
        lambda: FromNnx(lambda d, rngs: nnx.Linear(d, H, rngs=rngs)),
        TypeError,
        "expected an nnx.RNNCellBase, got Linear",
    ),
    "dropout": (
        lambda: FromNnx(Noisy),
        ValueError,
        r"Noisy must not draw .*drop/rngs",
    ),
    "dropout of an instance": (
        lambda: FromNnx(Noisy(D, rngs=nnx.Rngs(0))),
        ValueError,
        "Noisy must not draw",
    ),
    "dropout in linen": (
        lambda: FromLinen(NoisyLinen(H)),
        ValueError,
        "NoisyLinen must not draw",
    ),
    "statistics": (
        lambda: FromNnx(Normed),
        ValueError,
        "but parameters, got norm/mean",
    ),
    "a collection": (
        lambda: FromLinen(Counting(H)),
        ValueError,
        "but parameters, got counts",
    ),
    "a first carry": (lambda: FromNnx(ones), ValueError, "must have an initial carry of zeros"),
    "images": (
        lambda: FromLinen(linen.ConvLSTMCell(H, (3, 3))),
        ValueError,
        "ConvLSTMCell must have one feature axis, got 3",
    ),
}


@pytest.mark.parametrize(("cell", "error", "message"), WRONG.values(), ids=WRONG)
def test_unsupported_flax_cells(cell: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Recurrent(cell(), D, H, rngs=nnx.Rngs(0))


def test_wrong_sizes() -> None:
    cell = FromNnx(nnx.GRUCell(D, H, rngs=nnx.Rngs(0)))
    wrong: Any = (
        ((D, 5), {}, "`hidden_size` must be 4.*got 5"),
        ((5, H), {}, "GRUCell does not accept the 5 input features.*Pass a function"),
        ((D, H, 2), {}, "GRUCell does not accept the 4 input features"),
        ((D, H), {"bias": False}, "`bias` must be True .* got False"),
        ((D, H), {"proj_size": 2}, "proj_size=2"),
    )
    for arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            Recurrent(cell, *arguments, rngs=nnx.Rngs(0), **options)
    square = FromNnx(nnx.GRUCell(H, H, rngs=nnx.Rngs(0)))
    assert Recurrent(square, H, H, 3, rngs=nnx.Rngs(0))(jnp.ones((T, N, H), jnp.float32))[0].shape


def test_updated_cell_is_not_cached() -> None:
    source = nnx.GRUCell(D, H, rngs=nnx.Rngs(0), **WIDE)
    before = Recurrent(FromNnx(source), D, H, rngs=nnx.Rngs(0), **WIDE)(X)[0]
    source.dense_i.kernel[...] += 1.0
    after = Recurrent(FromNnx(source), D, H, rngs=nnx.Rngs(0), **WIDE)(X)[0]
    want = RNN(source, time_major=True)(X)
    close(after, want, 1e-12)
    assert not np.allclose(before, want)


def test_cell_with_a_fixed_size() -> None:
    """H is not a size of its parameters, and the layer has no other hidden size."""

    @dataclasses.dataclass(frozen=True)
    class Fixed(cells.GeneralCell):
        hidden_size = 4
        states = {"h": cells.StateSpec(4)}
        parameters = {"w": (4, "D")}

        def step(self, x: Any, state: Any, params: Any) -> Any:
            return (jnp.tanh(params["w"] @ x + state[0]),)

    assert Recurrent(Fixed(), D, H, 2, rngs=nnx.Rngs(0), **WIDE)(X)[0].shape == (N, T, H)
