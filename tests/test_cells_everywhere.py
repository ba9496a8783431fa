"""Cells of users outside the layers; a new cell is one line in `USER_CELLS` of `test_cells`.

Kernels, `vmap`, Hessians, generation, sweeps, truncated backpropagation, exported programs and
dtypes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import Recurrent
from jaxrnn.backends import select
from jaxrnn.cells import LinearCell
from jaxrnn.generation import batch_major, beam_search, generate, token_step
from jaxrnn.interop.export import export
from jaxrnn.training import sweep, truncated_bptt
from tests.test_cells import (
    CELLS,
    LENGTHS,
    MORE_CELLS,
    RESETS,
    USER_CELLS,
    D,
    H,
    N,
    T,
    X,
    close,
    initial_state,
    make_layer,
    unwrap,
)

every_kind = pytest.mark.parametrize("cell", USER_CELLS, ids=lambda cell: type(cell).__name__)


def split(cell: Any, **options: Any) -> tuple[Any, Any]:
    """Return a layer as a function of its parameters, and the parameters."""
    graph, params = nnx.split(make_layer(cell, **options))
    return lambda params, *args, **named: nnx.merge(graph, params)(*args, **named), params


def supported(cell: Any) -> bool:
    """Return True if the CPU kernels support a cell."""
    if type(cell).__module__ == "jaxrnn.cells.standard":
        return False
    asked = select.Request(cell, jnp.dtype("float64"), T, N, D, H)
    return select.unsupported_reason("kernel", asked, "cpu") is None


@pytest.mark.parametrize("cell", [c for c in CELLS + MORE_CELLS if supported(c)], ids=repr)
def test_kernels_equal_the_scan(cell: Any) -> None:
    """Values and gradients in two directions, with lengths and resets."""
    hx, found = initial_state(cell, 2), []
    for backend in ("kernel", "scan"):
        run, params = split(cell, bidirectional=True, backend=backend)

        def loss(params: Any, x: Any, hx: Any, run: Any = run) -> Any:
            y, last = run(params, x, unwrap(hx), lengths=LENGTHS, resets=RESETS)
            return (y * jnp.cos(y)).sum() + sum((s**2).sum() for s in jax.tree.leaves(last))

        found.append(jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(params, X, hx))
    close(*found)


@every_kind
def test_vmap_over_models_and_inputs(cell: Any) -> None:
    run, params = split(cell)
    call = lambda params, x: run(params, x, lengths=LENGTHS)  # noqa: E731
    models = jax.tree.map(lambda a: jnp.stack([a, -0.5 * a]), params)
    inputs = jnp.stack([X, X[::-1]])
    axes_of = {"both": (0, 0), "models": (0, None), "inputs": (None, 0)}

    @jax.jit
    def mapped(models: Any, inputs: Any) -> Any:
        given = {0: (models, inputs), None: (params, X)}
        return {n: jax.vmap(call, a)(given[a[0]][0], given[a[1]][1]) for n, a in axes_of.items()}

    got, one = mapped(models, inputs), jax.jit(call)
    for name, axes in axes_of.items():
        for index in range(2):
            model = params if axes[0] is None else jax.tree.map(lambda a, i=index: a[i], models)
            want = one(model, X if axes[1] is None else inputs[index])
            close(jax.tree.map(lambda a, i=index: a[i], got[name]), want)


@every_kind
def test_a_hessian(cell: Any) -> None:
    """Forward over reverse, reverse over reverse and finite differences agree."""
    run, params = split(cell)

    def loss(scale: Any) -> Any:
        y, last = run(params, X * scale[None, None], resets=RESETS)
        return jnp.sin(y).sum() + sum((abs(s) ** 2).sum() for s in jax.tree.leaves(last))

    grad = jax.jit(jax.grad(loss))
    forward, reverse = jax.jit(lambda s: (jax.hessian(loss)(s), jax.jacrev(jax.grad(loss))(s)))(
        at := jnp.linspace(0.5, 1.5, D)
    )
    close(forward, reverse)
    close(forward, forward.T)
    moved = [(grad(at + 1e-5 * e) - grad(at - 1e-5 * e)) / 2e-5 for e in jnp.eye(D)]
    close(forward, jnp.stack(moved), 1e-7)


@every_kind
def test_generation(cell: Any) -> None:
    """Greedy decoding, sampling and beam search agree with one call on the whole sequence."""
    layer, key, first, length = make_layer(cell), jax.random.key(5), jnp.array([0, 2]), 3
    weight = jnp.asarray(np.random.RandomState(4).normal(size=(layer.output_size, D)))
    head = nnx.Linear(layer.output_size, D, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    head.kernel[...] = 2 * weight
    step = token_step(layer, head)
    begin = batch_major(unwrap(tuple(s[:, :2] for s in initial_state(cell, 1))))

    @jax.jit
    def logits_of(tokens: Any, state: Any) -> Any:
        """Return the logits (N, T, V) of one call."""
        x = jax.nn.one_hot(tokens, D, dtype=X.dtype)
        return head(layer(x.swapaxes(0, 1), batch_major(state))[0]).swapaxes(0, 1)

    decoded = generate(step, begin, first, length, key=key, temperature=jnp.array([0.0, 1.5]))
    logits = logits_of(jnp.concatenate([first[:, None], decoded.tokens[:, :-1]], 1), begin)
    keys = [jax.random.fold_in(key, t) for t in range(length)]
    drawn = [jax.random.categorical(keys[t], logits[:, t] / 1.5)[1] for t in range(length)]
    np.testing.assert_array_equal(decoded.tokens, [logits[0].argmax(-1).tolist(), drawn])
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits), decoded.tokens[..., None], -1)
    close(decoded.log_probs, logs[..., 0])

    count = D**2  # beams for every sequence of two tokens
    found = beam_search(step, begin, first, 2, beams=count, eos=None)
    every = jnp.stack(jnp.divmod(jnp.arange(count), D), 1)  # (V * V, 2)
    for n in range(2):
        tokens = jnp.stack([jnp.full(count, first[n]), every[:, 0]], 1)
        state = jax.tree.map(lambda s, n=n: jnp.repeat(s[n : n + 1], count, 0), begin)
        logs = jax.nn.log_softmax(logits_of(tokens, state))
        total = jnp.take_along_axis(logs, every[..., None], -1)[..., 0].sum(1)
        np.testing.assert_array_equal(found.tokens[n], every[jnp.argsort(-total)])
        close(found.scores[n], jnp.sort(total)[::-1])


@every_kind
def test_a_sweep_of_truncated_backpropagation(cell: Any) -> None:
    """Two rates at once, windows of 2, 2 and 1 steps, compared with a loop."""
    run, params = split(cell)
    hx, rates = unwrap(initial_state(cell, 1)), jnp.array([0.1, 0.02])

    def loss(params: Any, hx: Any, x: Any) -> Any:
        y, hx = run(params, x, hx)
        return (jnp.sin(y) ** 2).sum(), (hx, y)

    def train(rate: Any) -> Any:
        return truncated_bptt(loss, optax.sgd(rate), params, X, window=2, carry=hx)

    swept = sweep(train, rate=rates).results
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for index, rate in enumerate(rates):
        now, carry, values = params, hx, []
        for window in (X[:2], X[2:4], X[4:]):
            (value, (carry, _)), gradient = step(now, carry, window)
            now = jax.tree.map(lambda a, g, r=rate: a - r * g, now, gradient)
            values.append(value)
        got = jax.tree.map(lambda a, i=index: a[i], (swept.params, swept.carry, swept.losses))
        close(got, (now, carry, jnp.stack(values)))


@every_kind
def test_an_exported_program(cell: Any) -> None:
    """With symbolic T and N, lengths and resets."""
    layer = make_layer(cell, layers=2)
    named: dict[str, Any] = {"lengths": "int32[N]", "resets": "bool[T, N]"}
    program = jax.export.deserialize(bytearray(export(layer, f"T, N, {D}", **named)))
    for steps, batch in ((T, N), (2, 1)):
        lengths = np.minimum(LENGTHS[:batch], steps).astype(np.int32)
        given = {"lengths": lengths, "resets": jnp.asarray(RESETS[:steps, :batch])}
        close(program.call(X[:steps, :batch], **given), layer(X[:steps, :batch], **given))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 4e-2)])
@pytest.mark.parametrize(
    "cell", [c for c in (*CELLS, *MORE_CELLS) if not c.gates], ids=lambda cell: type(cell).__name__
)
def test_dtypes(cell: Any, dtype: str, tolerance: float) -> None:
    """Results equal float64 with the same rounded weights; outputs and states have their dtypes."""
    exact, x = make_layer(cell), jnp.asarray(X, dtype)
    named = {n: jnp.asarray(a, dtype) for n, a in jaxrnn.state_dict(exact).items()}

    def layer(dtype: Any, **options: Any) -> tuple[Any, Any]:
        """Return a layer of a dtype as a function of its parameters, and the parameters."""
        make = functools.partial(Recurrent, cell, D, H, param_dtype=dtype, **options)
        graph, params = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
        nnx.replace_by_pure_dict(params, {n: a.astype(dtype) for n, a in named.items()})
        return lambda params, x: nnx.merge(graph, params)(x, lengths=LENGTHS), params

    run, params = layer(jnp.float64)
    want = run(params, x.astype(float))
    for backend in ("scan", "parallel")[: 1 + isinstance(cell, LinearCell)]:
        run, params = layer(jnp.dtype(dtype), backend=backend)
        y, last = run(params, x)
        assert y.dtype == dtype
        assert [s.dtype for s in jax.tree.leaves(last)] == list(cell.state_dtypes(y.dtype))
        wide = jax.tree.map(lambda a: a.astype(np.result_type(a.dtype, float)), (y, last))
        close(wide, want, tolerance)
        loss = lambda params, x, run=run: run(params, x)[0].sum()  # noqa: E731
        gradients = jax.eval_shape(jax.grad(loss, (0, 1)), params, x)
        assert {g.dtype for g in jax.tree.leaves(gradients)} == {y.dtype}
