"""`PackedSequence` as a named tuple and a pytree, and transformations of packing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrnn.packing import (
    PackedSequence,
    invert_permutation,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    repack,
    to_padded,
    unpack_sequence,
    unpad_sequence,
)


@pytest.fixture(scope="module")
def packed() -> PackedSequence:
    """Three unsorted sequences of two features."""
    x = jnp.linspace(-1, 1, 24).reshape(4, 3, 2)
    return pack_padded_sequence(x, [1, 4, 2], enforce_sorted=False)


def same(ours: PackedSequence, theirs: PackedSequence) -> None:
    """Check that data, batch sizes and order are equal."""
    assert type(ours) is type(theirs) is PackedSequence
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_named_tuple(packed: PackedSequence) -> None:
    data, batch_sizes, order, ranks = packed
    assert packed._fields == ("data", "batch_sizes", "sorted_indices", "unsorted_indices")
    assert packed[0] is packed.data is data
    for numbers in (batch_sizes, order, ranks):
        assert isinstance(numbers, np.ndarray)
        assert numbers.dtype == np.int64
    assert repr(packed).startswith("PackedSequence(data=Array([[")
    same(copy.deepcopy(packed), packed)
    same(pickle.loads(pickle.dumps(packed)), packed)
    assert packed._replace(data=data + 1).data[0, 0] == data[0, 0] + 1


def test_constructor(packed: PackedSequence) -> None:
    data, batch_sizes, order, ranks = packed
    same(PackedSequence(data, batch_sizes, order, ranks), packed)
    same(PackedSequence(data, batch_sizes, order), packed)
    same(PackedSequence(data, batch_sizes, unsorted_indices=ranks), packed)
    same(PackedSequence((data, batch_sizes), None, order), packed)
    same(PackedSequence([np.asarray(data), batch_sizes.tolist()], sorted_indices=order), packed)
    assert PackedSequence(data, batch_sizes)[2:] == (None, None)
    assert PackedSequence(data, batch_sizes).data is data


def test_inverse_permutations() -> None:
    assert invert_permutation(None) is None
    for permutation in ([2, 0, 1], np.array([2, 0, 1], "int32"), jnp.array([2, 0, 1])):
        inverse = invert_permutation(permutation)
        assert inverse is not None
        assert inverse.dtype == np.int64
        assert inverse.tolist() == [1, 2, 0]
    assert invert_permutation([]).tolist() == []  # pyright: ignore


def test_conversions_of_the_data(packed: PackedSequence) -> None:
    dtypes = {
        "double": "float64",
        "float": "float32",
        "half": "float16",
        "long": "int64",
        "int": "int32",
        "short": "int16",
        "char": "int8",
        "byte": "uint8",
    }
    counts = packed._replace(data=jnp.arange(14.0).reshape(7, 2) + 0.75)
    for method, dtype in dtypes.items():
        converted = getattr(counts, method)()
        assert converted.data.dtype == dtype
        same(converted, counts._replace(data=counts.data.astype(dtype)))
        assert getattr(converted, method)() is converted
        same(counts.to(dtype), converted)
        same(counts.to(dtype=jnp.dtype(dtype)), converted)
        same(counts.to(np.ones(1, dtype)), converted)


def test_devices_of_the_data(packed: PackedSequence) -> None:
    cpu = jax.devices("cpu")[0]
    on_cpu = packed.to(cpu)
    for converted in (on_cpu.to(cpu), on_cpu.to("cpu"), on_cpu.to("cpu:0"), on_cpu.to(device=cpu)):
        assert converted is on_cpu
    assert on_cpu.to() is on_cpu
    assert on_cpu.cpu() is on_cpu.pin_memory() is on_cpu
    assert on_cpu.to(on_cpu.data, non_blocking=True) is on_cpu
    assert not on_cpu.is_cuda
    assert not on_cpu.is_pinned()
    copied = on_cpu.to("cpu", copy=True)
    assert copied is not on_cpu
    same(copied, on_cpu)
    both = on_cpu.to("cpu", jnp.float32)
    assert (both.data.dtype, both.data.devices()) == ("float32", {cpu})
    same(jax.jit(lambda p: p.to(cpu, "float32"))(on_cpu), both)


def test_missing_devices(packed: PackedSequence) -> None:
    with pytest.raises(ValueError, match="no device 'cpu:99'"):
        packed.to("cpu:99")
    with pytest.raises(ValueError, match="no device 'cpu:x'"):
        packed.to("cpu:x")
    with pytest.raises(TypeError, match="floaty"):
        packed.to("floaty")
    if all(device.platform == "cpu" for device in jax.devices()):
        for call in (packed.cuda, lambda: packed.cuda(1), lambda: packed.to("cuda:1")):
            with pytest.raises(RuntimeError):
                call()


def test_conversion_to_64_bits_warns_without_x64(packed: PackedSequence) -> None:
    with jax.enable_x64(False):
        single = pack_sequence([np.ones(2), np.ones(1)])
        assert single.data.dtype == "float32"
        with pytest.warns(UserWarning, match="float64.*is not available.*jax_enable_x64"):
            assert single.double() is single
        with pytest.warns(UserWarning, match="int64.*is not available"):
            assert single.long().data.dtype == "int32"
        labels = pack_padded_sequence(np.array([[1, 2], [3, 0]]), [2, 1])
        x, lengths = pad_packed_sequence(labels, padding_value=-100)
        assert (x.dtype, lengths.dtype) == ("int32", "int64")
        assert x.tolist() == [[1, 2], [3, -100]]


# Transformations


def test_data_is_the_only_leaf(packed: PackedSequence) -> None:
    (leaf,), tree = jax.tree.flatten(packed)
    assert leaf is packed.data
    same(jax.tree.unflatten(tree, [leaf]), packed)
    ((path, _),) = jax.tree_util.tree_leaves_with_path(packed)
    assert jax.tree_util.keystr(path) == ".data"
    assert tree == jax.tree.structure(packed._replace(data=0))
    assert hash(tree) == hash(jax.tree.structure(packed._replace(data=0)))
    other = packed._replace(batch_sizes=np.array([4, 2, 1]))
    assert tree != jax.tree.structure(other)
    shapes = jax.eval_shape(lambda p: p, packed)
    assert shapes.data.shape == packed.data.shape
    np.testing.assert_array_equal(shapes.batch_sizes, packed.batch_sizes)


def test_argument_and_result_of_jit() -> None:
    traced = []

    @jax.jit
    def double(p: PackedSequence) -> tuple[PackedSequence, jax.Array]:
        traced.append(p.batch_sizes.tolist())
        x, lengths = pad_packed_sequence(p)
        return pack_padded_sequence(2 * x, lengths, enforce_sorted=False), x

    sequences = [jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0])]
    for scale in (1, 10):
        given = pack_sequence([scale * sequence for sequence in sequences], enforce_sorted=False)
        got, x = double(given)
        same(got, given._replace(data=2 * given.data))
        np.testing.assert_array_equal(x, pad_sequence([scale * sequence for sequence in sequences]))
    assert len(traced) == 1
    double(pack_sequence(sequences[::-1]))
    assert traced == [[2, 2, 1]] * 2  # the same sizes in another order


def test_derivatives_with_respect_to_a_packed_sequence(packed: PackedSequence) -> None:
    def total(p: PackedSequence) -> jax.Array:
        x, _ = pad_packed_sequence(p, padding_value=3.0)
        return (jnp.sin(x) ** 2).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(packed)
    same(gradient, packed._replace(data=gradient.data))
    np.testing.assert_allclose(gradient.data, jnp.sin(2 * packed.data), atol=1e-12)
    assert value > total(packed) - 1e-12
    tangent = packed._replace(data=jnp.cos(packed.data))
    _, forward = jax.jvp(total, (packed,), (tangent,))
    np.testing.assert_allclose(forward, (gradient.data * tangent.data).sum(), atol=1e-12)
    _, second = jax.jvp(jax.grad(total), (packed,), (tangent,))
    expected = 2 * jnp.cos(2 * packed.data) * tangent.data
    np.testing.assert_allclose(second.data, expected, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_gradient_of_padding_is_zero(batch_first: bool) -> None:
    x = np.ones((4, 3, 2))
    lengths = np.array([1, 4, 2])
    valid = np.arange(4)[:, None, None] < lengths[:, None]
    x = np.where(valid, x, np.nan)
    x = jnp.asarray(x.swapaxes(0, 1) if batch_first else x)

    def total(x: jax.Array) -> jax.Array:
        p = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        y, _ = pad_packed_sequence(p, batch_first, total_length=6)
        return (y**2).sum() + sum((sequence**3).sum() for sequence in unpack_sequence(p))

    gradient = jax.grad(total)(x)
    expected = np.broadcast_to(5.0 * valid, (4, 3, 2))
    np.testing.assert_array_equal(gradient, expected.swapaxes(0, 1) if batch_first else expected)


def test_lists_under_transformations() -> None:
    sequences = [jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0])]

    def total(sequences: list[jax.Array]) -> jax.Array:
        p = pack_sequence(sequences, enforce_sorted=False)
        again = unpack_sequence(p._replace(data=p.data**2))
        x = pad_sequence(again, padding_value=7.0, padding_side="left")
        first, second = unpad_sequence(x[::-1], [2, 3])
        return (first * jnp.array([1.0, 10.0])).sum() + second.sum()

    for function in (total, jax.jit(total)):
        gradient = jax.grad(function)(sequences)
        assert gradient[0].tolist() == [20.0, 4.0]
        assert gradient[1].tolist() == [6.0, 8.0, 10.0]


def test_vmap_over_batches_of_equal_lengths() -> None:
    x = jnp.arange(24.0).reshape(2, 4, 3)

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        p = pack_padded_sequence(x, [1, 4, 2], enforce_sorted=False)
        return p.data, pad_packed_sequence(p, padding_value=-1)[0]

    data, again = jax.vmap(both)(x)
    for index in range(2):
        one, other = both(x[index])
        np.testing.assert_array_equal(data[index], one)
        np.testing.assert_array_equal(again[index], other)


def test_carry_of_a_loop(packed: PackedSequence) -> None:
    def step(p: PackedSequence, _: Any) -> tuple[PackedSequence, jax.Array]:
        return p._replace(data=p.data + 1), to_padded(p)[0]

    last, all_steps = jax.lax.scan(step, packed, None, 3)
    same(last, packed._replace(data=packed.data + 1 + 1 + 1))
    assert all_steps.shape == (3, 4, 3, 2)
    same(nnx.jit(lambda p: p)(packed), packed)


def test_to_padded_and_repack_are_inverse(
    packed: PackedSequence,
) -> None:
    x, lengths = to_padded(packed)
    assert isinstance(lengths, np.ndarray)
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [1, 4, 2]
    full = jnp.linspace(-1, 1, 24).reshape(4, 3, 2)
    valid = np.arange(4)[:, None] < lengths
    np.testing.assert_array_equal(x, np.where(valid[..., None], full, 0))
    same(repack(packed, x), packed)
    wider = repack(packed, jnp.concatenate([x, x], -1))
    assert wider.data.shape == (7, 4)


LENGTHS = np.array([2, 4, 1])
X = jnp.sin(jnp.arange(24.0)).reshape(4, 3, 2)
VALID = np.arange(4)[:, None] < LENGTHS


def weighted_cubes(function: Any) -> Any:
    """Return a scalar function of `function` with a distinct weight for each element."""

    def total(x: jax.Array) -> jax.Array:
        y = function(x)
        return (jnp.arange(1.0, y.size + 1).reshape(y.shape) * y**3).sum()

    return total


def pack(x: jax.Array) -> jax.Array:
    return pack_padded_sequence(x, LENGTHS, enforce_sorted=False).data


def pack_by_indexing(x: jax.Array) -> jax.Array:
    pairs = [(t, n) for t in range(4) for n in np.argsort(-LENGTHS) if t < LENGTHS[n]]
    return x[tuple(np.array(pairs).T)]


def pack_and_pad(x: jax.Array) -> jax.Array:
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    return pad_packed_sequence(packed, total_length=5)[0]


def mask(x: jax.Array) -> jax.Array:
    return jnp.pad(jnp.where(VALID[..., None], x, 0), ((0, 1), (0, 0), (0, 0)))


@pytest.mark.parametrize(
    "transform",
    [
        jax.grad,
        jax.hessian,
        lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),)),
        lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jnp.cos(x),)),
        lambda f: lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])),
        lambda f: lambda x: jax.vmap(jax.grad(f), 2, 1)(jnp.stack([x, 2 * x], 2)),
        lambda f: jax.grad(jax.checkpoint(f)),
    ],
    ids=["grad", "hessian", "jvp", "jvp-of-grad", "vmap", "vmap-of-grad", "checkpoint"],
)
def test_transformations_equal_those_of_indexing(transform: Any) -> None:
    functions = (pack, pack_by_indexing, pack_and_pad, mask)
    results = jax.jit(lambda x: [transform(weighted_cubes(f))(x) for f in functions])(X)
    for actual, expected in (results[:2], results[2:]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, expected)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int64", "uint8", "bool"])
def test_any_dtype_on_host_and_device(dtype: str) -> None:
    x = (10 * X).astype(dtype)
    for packed in (pack(x), pack(np.asarray(x)), jax.jit(pack)(x)):  # pyright: ignore
        assert isinstance(packed, jax.Array)
        assert packed.dtype == dtype
        np.testing.assert_array_equal(packed, pack_by_indexing(x))


def test_gradients_have_no_scatter() -> None:
    """A scatter-add takes up to 20 times as long as a gather."""
    text = str(jax.make_jaxpr(jax.grad(weighted_cubes(pack_and_pad)))(X))
    assert "gather" in text
    assert "scatter" not in text
