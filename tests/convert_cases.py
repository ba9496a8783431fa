"""Random layers for the tests of `jaxrnn.interop`, drawn from frozen generators."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn

COUNT = 20
KINDS = ("RNN_TANH", "RNN_RELU", "LSTM", "GRU")


@dataclass(frozen=True)
class Config:
    """A configuration of a layer and the shape of its input."""

    number: int
    kind: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    steps: int
    batch: int

    def __str__(self) -> str:
        flags = ("bias", "batch_first", "bidirectional")
        sizes = f"{self.input_size}x{self.hidden_size}x{self.num_layers}"
        return "-".join([self.kind.lower(), sizes, *(f for f in flags if getattr(self, f))])

    @property
    def options(self) -> dict[str, Any]:
        names = ("num_layers", "bias", "batch_first", "bidirectional")
        options = {name: getattr(self, name) for name in names}
        return options | ({"nonlinearity": "relu"} if self.kind == "RNN_RELU" else {})

    def input(self) -> np.ndarray:
        """(T, N, D), or (N, T, D) if batch_first, float32."""
        x = np.random.RandomState(1000 + self.number)
        lead = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        return x.uniform(-1, 1, (*lead, self.input_size)).astype(np.float32)

    def layer(self, **options: Any) -> Any:
        """Return a layer with random weights and both biases."""
        return layer(self.kind, self.input_size, self.hidden_size, **self.options | options)


def layer(kind: str, *sizes: int, seed: int = 0, **options: Any) -> Any:
    """Return a layer with weights drawn by NumPy."""
    made = getattr(jaxrnn, kind.split("_")[0])
    if kind == "RNN_RELU":
        options["nonlinearity"] = "relu"
    abstract = nnx.eval_shape(lambda: made(*sizes, rngs=nnx.Rngs(0), **options))
    graph, state = nnx.split(abstract)
    random = np.random.RandomState(seed)
    draw = lambda value: jnp.asarray(random.uniform(-0.7, 0.7, value.shape), value.dtype)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(draw, state))


def configs(seed: int) -> list[Config]:
    """Return 20 random configurations, five of each kind."""
    random = np.random.RandomState(seed)
    flag = lambda: bool(random.randint(2))  # noqa: E731
    return [
        Config(
            number=number,
            kind=KINDS[number % len(KINDS)],
            input_size=int(random.choice((1, 3, 5))),
            hidden_size=int(random.choice((1, 2, 4))),
            num_layers=int(random.choice((1, 1, 2, 2, 3))),
            bias=number % 5 > 0,
            batch_first=flag(),
            bidirectional=flag(),
            steps=int(random.randint(1, 7)),
            batch=int(random.randint(1, 4)),
        )
        for number in range(COUNT)
    ]


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Check equal shape and dtype, and values up to float32 rounding."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def same_weights(one: Any, other: Any) -> None:
    """Check that two layers have equal arguments and bitwise equal parameters."""
    assert repr(one) == repr(other)
    assert getattr(one, "nonlinearity", None) == getattr(other, "nonlinearity", None)
    first, second = jaxrnn.state_dict(one), jaxrnn.state_dict(other)
    assert list(first) == list(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def with_one_bias(layer: Any, *, but_n: bool = False) -> Any:
    """Return a copy with both biases summed in the first, except b_n of a GRU if `but_n`."""
    copy = nnx.clone(layer)
    if copy.bias:
        for name in [n for n in copy.parameter_names if n.startswith("bias_ih")]:
            first, second = getattr(copy, name), getattr(copy, name.replace("_ih", "_hh"))
            total = first[...] + second[...]
            left = jnp.zeros_like(total)
            if but_n:
                begin = 2 * copy.hidden_size
                total = total.at[begin:].set(first[begin:])
                left = left.at[begin:].set(second[begin:])
            first[...], second[...] = total, left
    return copy


def quietly(name: str, import_or_skip: Any) -> Any:
    """Import a library without the warnings of its import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_or_skip(name)
