"""cuDNN's LSTM: weights and calls by JAX's own reference, and the lowered call.

On an NVIDIA GPU cuDNN itself runs, elsewhere the scan in its place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir

from jaxrnn import cells
from jaxrnn.backends import cudnn
from jaxrnn.backends import select as backends
from jaxrnn.core import stack
from jaxrnn.core.stack import Stack
from tests.test_fused import close

rnn: Any = cudnn._rnn()
T, N, D, H = 5, 3, 4, 6
LENGTHS = jnp.array([5, 0, 2], jnp.int32)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What JAX's CUDA plugin has for the lowering, with made-up sizes; nothing runs.

    Where it is there, it is left alone.
    """
    if jax.default_backend() == "gpu":
        yield
        return
    gpu = rnn.gpu_rnn
    monkeypatch.setattr(
        *(gpu, "compute_rnn_workspace_reserve_space_sizes", lambda *a: (16, 24)), raising=False
    )
    library = SimpleNamespace(build_rnn_descriptor=lambda *a: b"sizes")
    before = {rnn.rnn_fwd_p: gpu.cudnn_rnn_lowering, rnn.rnn_bwd_p: gpu.cudnn_rnn_bwd_lowering}
    for p, rule in before.items():
        rule = functools.partial(rule.func, library, "cu")
        mlir.register_lowering(p, rule, platform="cuda")
    yield
    for p, rule in before.items():
        mlir.register_lowering(p, rule, platform="cuda")


def drawn(layers: int, bidirectional: bool, bias: bool = True) -> Any:
    options: Any = dict(num_layers=layers, bidirectional=bidirectional, bias=bias)
    weights = stack.init(jax.random.key(0), cells.LSTM(), D, H, **options)
    random = np.random.RandomState(0)
    x, h, c = (
        jnp.asarray(random.randn(*s), jnp.float32)
        for s in ((T, N, D), (len(weights), N, H), (len(weights), N, H))
    )
    return weights, x, (h, c)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_weights_in_a_row_are_ours(bidirectional: bool) -> None:
    weights, x, states = drawn(2, bidirectional)
    lengths = jnp.array([5, 1, 2], jnp.int32)
    sizes = D, H, 2, bidirectional
    parts = rnn.unpack_lstm_weights(cudnn.packed(weights), *sizes)
    y, *last = rnn.lstm_ref(
        *(x.swapaxes(0, 1), *states, *parts, lengths, D, H, 2, 0.0, bidirectional)
    )
    how = Stack(cells.LSTM(), bidirectional=bidirectional, backend="scan")
    expected = stack.run(how, weights, x, states, None, lengths)
    close((y.swapaxes(0, 1), tuple(last)), expected, 1e-5)


def both(numbers: Any, arguments: Any, **how: Any) -> None:
    """What is computed of a run by cuDNN, for which the scan stands on a CPU, and by the scan."""

    def run(which: Any) -> Any:
        plan = Stack(cells.LSTM(), **how, **which)
        lengths = LENGTHS if how["bidirectional"] else None
        return jax.jit(functools.partial(numbers, lambda *a: stack.run(plan, *a, None, lengths)))

    close(
        run(dict(backend="cudnn", platform="cuda"))(*arguments),
        run(dict(backend="scan"))(*arguments),
        2e-5,
    )


@pytest.mark.usefixtures("plugin")
def test_a_stack_by_cudnn_is_a_stack() -> None:
    """All around the call: layers, directions, rows of every length; values and gradients."""

    def numbers(run: Any, *arguments: Any) -> Any:
        value, pull = jax.vjp(run, *arguments)
        return value, pull(jax.tree.map(jnp.cos, value))

    both(numbers, drawn(2, True, bias=False), bidirectional=True)


@pytest.mark.usefixtures("plugin")
def test_what_cudnn_has_no_code_for() -> None:
    """Forward mode, forward over reverse, and `vmap` of the gradient."""

    def numbers(run: Any, weights: Any, x: Any, states: Any) -> Any:
        loss = lambda x: (run(weights, x, states)[0] ** 2).sum()  # noqa: E731
        slope = jax.grad(loss)
        return jax.jvp(slope, (x,), (jnp.cos(x),)), jax.vmap(slope)(jnp.stack([x, 2 * x]))

    both(numbers, drawn(1, False), bidirectional=False)


def test_the_calls_take_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of `jax.experimental.rnn`, whose reference is called in cuDNN's place."""
    weights, x, states = drawn(1, True)
    sizes = dict(input_size=D, hidden_size=H, num_layers=1, bidirectional=True)
    lengths = jnp.array([5, 1, 2], jnp.int32)

    def reference(x: Any, h: Any, c: Any, w: Any) -> Any:
        parts = rnn.unpack_lstm_weights(w, *sizes.values())
        return rnn.lstm_ref(x, h, c, *parts, lengths, D, H, 1, 0.0, True)

    def lstm_fwd(x: Any, h: Any, c: Any, w: Any, lengths: Any, **options: Any) -> Any:
        assert options == sizes | dict(dropout=0.0, precision=None)
        out = reference(x, h, c, w)
        return out, (x, h, c, w, lengths, out[0], jnp.zeros(7))

    def lstm_bwd(*given: Any) -> Any:
        *options, residuals, ct = given
        assert options == [D, H, 1, 0.0, True, None]
        assert residuals[6].shape == (7,)
        return (*jax.vjp(reference, *residuals[:4])[1](ct), None)

    w = cudnn.packed(weights)
    monkeypatch.setattr(rnn, "lstm_fwd", lstm_fwd)
    monkeypatch.setattr(rnn, "lstm_bwd", lstm_bwd)
    operands = (x, w, *states, lengths)
    got = jax.jit(functools.partial(cudnn._forward, **sizes))(*operands)
    expected = jax.jit(functools.partial(cudnn._forward_reference, **sizes, reserve=7))(*operands)
    close(got, expected, 1e-5)
    y, h_n, c_n, reserve = got
    operands = (jnp.cos(y), h_n, c_n, *operands, y, reserve)
    close(
        jax.jit(functools.partial(cudnn._backward, **sizes, reserve=7))(*operands),
        jax.jit(functools.partial(cudnn._backward_reference, **sizes, reserve=7))(*operands),
        1e-5,
    )


@pytest.mark.usefixtures("plugin")
def test_lowered_for_a_gpu() -> None:
    weights, x, states = drawn(3, True)
    how = Stack(cells.LSTM(), bidirectional=True, platform="cuda", backend="cudnn")

    def loss(weights: Any, x: Any, states: Any) -> Any:
        return (stack.run(how, weights, x, states, None, LENGTHS)[0] ** 2).sum()

    traced = jax.jit(jax.grad(loss)).trace(weights, x, states)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@cudnn_rnn_ffi") == 1
    assert text.count("@cudnn_rnn_bwd_ffi") == 1
    assert text.count("@LayoutConstraint") == 16, "XLA may transpose what is not held to an order"
    assert "stablehlo.while" not in text
    exported = jax.export.export(jax.jit(loss), platforms=["cuda"])(weights, x, states)
    assert "@cudnn" not in exported.mlir_module(), "no part of a program that is to last"


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(cell=cells.GRU()), "it has no GRU, only LSTM"),
        (dict(all_states=True), "does not give out all states"),
        (dict(remat=True), "whatever `remat` says"),
        (dict(dropout=0.5), "no dropout between layers"),
        (dict(platform="cpu"), "there is none for cpu"),
        (dict(dtype=jnp.float16), "it computes in float32, not in float16"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_what_it_can_t_serve(options: Any, reason: str) -> None:
    how = Stack(**dict(cell=cells.LSTM(), backend="cudnn", platform="cuda") | options)
    weights = stack.init(jax.random.key(0), how.cell, D, H, num_layers=2)
    with pytest.raises(ValueError, match=reason):
        stack.run(how, weights, jnp.ones((T, N, D), jnp.float32), None, jax.random.key(0))


@pytest.mark.usefixtures("plugin")
def test_resets_and_single_layers() -> None:
    weights, x, _ = drawn(1, False)
    how = Stack(cells.LSTM(), backend="cudnn", platform="cuda")
    with pytest.raises(ValueError, match="does not reset a row"):
        stack.run(how, weights, x, None, None, None, jnp.zeros((T, N), bool))
    with pytest.raises(ValueError, match="it runs whole stacks"):
        backends.choose("cudnn", cells.LSTM(), weights[0], x, platform="cuda")


def test_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rnn.gpu_rnn, "compute_rnn_workspace_reserve_space_sizes", raising=False)
    weights, x, _ = drawn(1, False)
    with pytest.raises(ValueError, match=r"JAX's CUDA plugin, .* is not installed"):
        stack.run(Stack(cells.LSTM(), backend="cudnn", platform="cuda"), weights, x)
