"""Selection of a backend: the table matches the kernels, and explanations give reasons."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import cells
from jaxrnn.backends import platform, select
from jaxrnn.core import stack
from jaxrnn.core.stack import StackOptions
from tests.test_primitives import Mixing

pytest.importorskip("llvmlite", reason="the kernels for CPUs need llvmlite")

DTYPES = ("float16", "bfloat16", "float32", "float64")


def request(cell: Any, dtype: str = "float32", H: int = 7, **options: bool) -> select.Request:
    on = frozenset(name.replace("_", " ") for name, value in options.items() if value)
    return select.Request(cell, jnp.dtype(dtype), 50, 3, 4, H, on)


@pytest.mark.parametrize("entry", [r for r in select.TABLE if r.backend == "kernel"])
def test_the_table_matches_the_kernels(entry: select.Support) -> None:
    """The dtypes and cells of the table are those that the kernels support."""
    module = platform.kernel_module(entry.platform)
    for dtype in DTYPES:
        reason = module.unsupported_reason(cells.LSTM(), jnp.dtype(dtype), 50, 3, 4, 7)
        assert (reason is None) == (dtype in entry.dtypes)
        by_table = select.unsupported_reason("kernel", request(cells.LSTM(), dtype), entry.platform)
        assert (by_table is None) == (dtype in entry.dtypes)
    assert entry.cells == "elementwise"
    assert "Mixing is not elementwise" in str(
        module.unsupported_reason(Mixing(), jnp.float32, 50, 3, 4, 7)
    )
    for option in entry.without:
        one = request(cells.LSTM())._replace(features=frozenset([option]))
        assert select.unsupported_reason("kernel", one, entry.platform) == select.FEATURES[option]


def test_every_kernel_is_in_the_table() -> None:
    platforms = {r.platform for r in select.TABLE if r.backend == "kernel"}
    assert platforms == set(platform.KERNELS)
    assert select.support_table() in str(select.__doc__)
    assert {r.backend for r in select.TABLE} == set(select.BACKENDS[1:])


@pytest.mark.parametrize(
    ("platform", "case", "chosen"),
    [
        ("cpu", request(cells.LSTM()), "kernel"),
        ("cpu", request(cells.LSTM(), "bfloat16"), "scan"),
        ("cpu", request(cells.LSTM(), projection=True), "scan"),
        ("cpu", request(cells.LSTM(), H=80)._replace(T=1), "scan"),
        ("tpu", request(cells.LSTM(), H=80)._replace(T=1), "scan"),
        ("tpu", request(cells.GRU(), "bfloat16"), "scan"),
        ("rocm", request(cells.LSTM()), "scan"),
        ("cuda", request(cells.LSTM(), "float64"), "scan"),
        ("cuda", request(cells.LSTM(), "bfloat16", H=512)._replace(N=32), "kernel"),
        ("cuda", request(cells.LSTM(), "bfloat16", H=512)._replace(N=4096), "scan"),
        ("cpu", request(cells.MinGRU()), "scan"),
        ("tpu", request(cells.LRU()), "parallel"),
        ("cuda", request(cells.LRU())._replace(T="t"), "scan"),
    ],
    ids=str,
)
def test_auto(platform: str, case: select.Request, chosen: str) -> None:
    choice = select.decide("auto", case, platform, all_backends=True)
    assert choice.backend == chosen
    assert set(choice.others) == set(select.BACKENDS[1:]) - {chosen}
    assert all(choice.others.values())


def test_unsupported_backends_give_a_reason() -> None:
    with pytest.raises(ValueError, match=r"'kernel' is not supported here: .* 256.0 MiB"):
        select.decide("kernel", request(cells.LSTM(), H=4096), "tpu")
    with pytest.raises(ValueError, match="no such backend for rocm"):
        select.decide("kernel", request(cells.LSTM()), "rocm")
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


def test_a_layer_explains_packed_and_numpy_inputs() -> None:
    """A packed sequence in a batch-first layer; NumPy's float64 becomes float32."""
    layer = jaxrnn.GRU(3, 4, batch_first=True, rngs=nnx.Rngs(0))
    packed = jaxrnn.pack_padded_sequence(jnp.ones((50, 2, 3)), [50, 3])
    with jax.enable_x64(False), jax.default_device(jax.devices("cpu")[0]):
        for x in (packed, np.ones((2, 50, 3))):
            assert layer.explain(x).choices[0].backend == "kernel"


def test_gpu_is_an_alias_of_cuda() -> None:
    layer = jaxrnn.LSTM(3, 512, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    text = str(layer.explain((50, 32, 3), platform="gpu"))
    assert text == str(layer.explain((50, 32, 3), platform="cuda"))
    assert text.startswith("on cuda:\nlayer 0: kernel")
    with platform.traced_for("gpu"):
        assert str(layer.explain((50, 32, 3))) == text
    with pytest.raises(ValueError, match=r"`platform` must be one of 'cpu', 'cuda'.*'GPU'"):
        layer.explain((50, 32, 3), platform="GPU")
    with pytest.raises(ValueError, match="platform"), platform.traced_for("nvidia"):
        pass


def test_the_platform_follows_traced_for() -> None:
    """A layer traced for a TPU has its kernel although the CPU kernel does not support it."""
    layer = jaxrnn.LSTM(3, 4, param_dtype=jnp.bfloat16, backend="kernel", rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((5, 2, 3), jnp.bfloat16)

    def program() -> str:
        return jax.export.export(jax.jit(lambda x: layer(x)[0]), platforms=["tpu"])(x).mlir_module()

    cpu = jax.default_device(jax.devices("cpu")[0])
    with cpu, pytest.raises(ValueError, match="bfloat16"):
        program()
    with platform.traced_for("tpu"):
        assert platform.current_platform() == "tpu"
        assert "tpu_custom_call" in program()
    with cpu:
        assert platform.current_platform() == "cpu"


def test_layers_select_independently() -> None:
    """Every layer selects its backend independently."""
    weights = stack.init(jax.random.key(0), cells.LSTM(), 3, 4, num_layers=2)
    x: Any = jax.ShapeDtypeStruct((50, 2, 3), jnp.float32)
    choices = select.explain(StackOptions(cells.LSTM(), platform="cpu"), weights, x).choices
    assert [c.backend for c in choices] == ["kernel", "kernel"]
