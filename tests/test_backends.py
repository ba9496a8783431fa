"""One table of who can serve: it says what the code does, and the choice says why."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import cells
from jaxrnn.backends import platform as tuning
from jaxrnn.backends import select as backends
from jaxrnn.core import stack
from jaxrnn.core.stack import StackOptions
from tests.test_fused import Mixing

pytest.importorskip("llvmlite", reason="the kernels for CPUs need llvmlite")

DTYPES = ("float16", "bfloat16", "float32", "float64")


def asked(cell: Any, dtype: str = "float32", H: int = 7, **options: bool) -> backends.Request:
    on = frozenset(name.replace("_", " ") for name, value in options.items() if value)
    return backends.Request(cell, jnp.dtype(dtype), 50, 3, 4, H, on)


@pytest.mark.parametrize("row", [r for r in backends.TABLE if r.backend == "kernel"])
def test_the_table_says_what_the_kernels_do(row: backends.Support) -> None:
    """Its dtypes and cells are those for which a module of kernels has no objection."""
    module = tuning.kernel_module(row.platform)
    for dtype in DTYPES:
        own = module.unsupported_reason(cells.LSTM(), jnp.dtype(dtype), 50, 3, 4, 7)
        assert (own is None) == (dtype in row.dtypes)
        by_table = backends.unsupported_reason("kernel", asked(cells.LSTM(), dtype), row.platform)
        assert (by_table is None) == (dtype in row.dtypes)
    assert row.cells == "elementwise"
    assert "Mixing is not elementwise" in str(
        module.unsupported_reason(Mixing(), jnp.float32, 50, 3, 4, 7)
    )
    for option in row.without:
        run = asked(cells.LSTM())._replace(features=frozenset([option]))
        assert backends.unsupported_reason("kernel", run, row.platform) == backends.FEATURES[option]


def test_every_kernel_is_in_the_table() -> None:
    rows = {r.platform for r in backends.TABLE if r.backend == "kernel"}
    assert rows == set(tuning.KERNELS)
    assert backends.support_table() in str(backends.__doc__)
    assert {r.backend for r in backends.TABLE} == set(backends.BACKENDS[1:])


@pytest.mark.parametrize(
    ("platform", "case", "chosen"),
    [
        ("cpu", asked(cells.LSTM()), "kernel"),
        ("cpu", asked(cells.LSTM(), "bfloat16"), "scan"),
        ("cpu", asked(cells.LSTM(), projection=True), "scan"),
        ("cpu", asked(cells.LSTM(), H=80)._replace(T=1), "scan"),
        ("tpu", asked(cells.LSTM(), H=80)._replace(T=1), "scan"),
        ("tpu", asked(cells.GRU(), "bfloat16"), "scan"),
        ("rocm", asked(cells.LSTM()), "scan"),
        ("cuda", asked(cells.LSTM(), "float64"), "scan"),
        ("cuda", asked(cells.LSTM(), "bfloat16", H=512)._replace(N=32), "kernel"),
        ("cuda", asked(cells.LSTM(), "bfloat16", H=512)._replace(N=4096), "scan"),
        ("cpu", asked(cells.MinGRU()), "scan"),
        ("tpu", asked(cells.LRU()), "parallel"),
        ("cuda", asked(cells.LRU())._replace(T="t"), "scan"),
    ],
    ids=str,
)
def test_auto(platform: str, case: backends.Request, chosen: str) -> None:
    choice = backends.decide("auto", case, platform, all_backends=True)
    assert choice.backend == chosen
    assert set(choice.others) == set(backends.BACKENDS[1:]) - {chosen}
    assert all(choice.others.values())


def test_what_cannot_serve_says_why() -> None:
    with pytest.raises(ValueError, match=r"'kernel' is not supported here: .* 256.0 MiB"):
        backends.decide("kernel", asked(cells.LSTM(), H=4096), "tpu")
    with pytest.raises(ValueError, match="no such backend for rocm"):
        backends.decide("kernel", asked(cells.LSTM()), "rocm")
    with pytest.raises(ValueError, match="backend"):
        jaxrnn.LSTM(3, 4, backend="fastest", rngs=nnx.Rngs(0))


def test_a_layer_explains() -> None:
    layer = jaxrnn.GRU(3, 4, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    text = str(layer.explain((50, 2, 3), platform="tpu"))
    assert text.splitlines()[0] == "on tpu:"
    assert 'layer 1, reverse: scan ("auto" tries no other on tpu)' in text
    assert text.count("kernel: supported") == 4
    with jax.default_device(jax.devices("cpu")[0]):
        here = layer.explain(jnp.ones((50, 2, 3), jnp.float32))
    assert {c.backend for c in here.choices} == {"kernel"}
    assert len(here.choices) == 4
    single = layer.explain((50, 3), return_all_states=True)
    assert single.choices[0].others["kernel"] == "returning all states is not supported"
    with pytest.raises(ValueError, match="5"):
        layer.explain((50, 2, 5))


def test_a_layer_explains_what_it_is_called_with() -> None:
    """A packed sequence, in a layer that takes the batch first; NumPy's float64 becomes float32."""
    layer = jaxrnn.GRU(3, 4, batch_first=True, rngs=nnx.Rngs(0))
    packed = jaxrnn.pack_padded_sequence(jnp.ones((50, 2, 3)), [50, 3])
    with jax.enable_x64(False), jax.default_device(jax.devices("cpu")[0]):
        for x in (packed, np.ones((2, 50, 3))):
            assert layer.explain(x).choices[0].backend == "kernel"


def test_a_gpu_is_named_twice_and_nothing_else_is_one() -> None:
    layer = jaxrnn.LSTM(3, 512, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    text = str(layer.explain((50, 32, 3), platform="gpu"))
    assert text == str(layer.explain((50, 32, 3), platform="cuda"))
    assert text.startswith("on cuda:\nlayer 0: kernel")
    with tuning.traced_for("gpu"):
        assert str(layer.explain((50, 32, 3))) == text
    with pytest.raises(ValueError, match=r"`platform` must be one of 'cpu', 'cuda'.*'GPU'"):
        layer.explain((50, 32, 3), platform="GPU")
    with pytest.raises(ValueError, match="platform"), tuning.traced_for("nvidia"):
        pass


def test_the_platform_is_that_of_the_call() -> None:
    """A layer traced for a TPU has its kernel where this machine's would not serve."""
    layer = jaxrnn.LSTM(3, 4, param_dtype=jnp.bfloat16, backend="kernel", rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((5, 2, 3), jnp.bfloat16)

    def program() -> str:
        return jax.export.export(jax.jit(lambda x: layer(x)[0]), platforms=["tpu"])(x).mlir_module()

    cpu = jax.default_device(jax.devices("cpu")[0])
    with cpu, pytest.raises(ValueError, match="bfloat16"):
        program()
    with tuning.traced_for("tpu"):
        assert tuning.current_platform() == "tpu"
        assert "tpu_custom_call" in program()
    with cpu:
        assert tuning.current_platform() == "cpu"


def test_layers_choose_each_for_itself() -> None:
    """An input that no kernel takes does not keep the layers above from theirs."""
    weights = stack.init(jax.random.key(0), cells.LSTM(), 3, 4, num_layers=2)
    x: Any = jax.ShapeDtypeStruct((50, 2, 3), jnp.float32)
    choices = backends.explain(StackOptions(cells.LSTM(), platform="cpu"), weights, x).choices
    assert [c.backend for c in choices] == ["kernel", "kernel"]
