"""PackedSequence: a named tuple to its users, a pytree of one leaf to JAX."""

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
    padded,
    repacked,
    unpack_sequence,
    unpad_sequence,
)


@pytest.fixture(scope="module")
def packed() -> PackedSequence:
    """Three sequences, given out of order, of two features."""
    x = jnp.linspace(-1, 1, 24).reshape(4, 3, 2)
    return pack_padded_sequence(x, [1, 4, 2], enforce_sorted=False)


def same(ours: PackedSequence, theirs: PackedSequence) -> None:
    """The same data, batch sizes and order."""
    assert type(ours) is type(theirs) is PackedSequence
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_a_named_tuple(packed: PackedSequence) -> None:
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


def test_it_can_be_made_by_hand(packed: PackedSequence) -> None:
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
        made = getattr(counts, method)()
        assert made.data.dtype == dtype
        same(made, counts._replace(data=counts.data.astype(dtype)))
        assert getattr(made, method)() is made
        same(counts.to(dtype), made)
        same(counts.to(dtype=jnp.dtype(dtype)), made)
        same(counts.to(np.ones(1, dtype)), made)


def test_devices_of_the_data(packed: PackedSequence) -> None:
    cpu = jax.devices("cpu")[0]
    there = packed.to(cpu)
    for made in (there.to(cpu), there.to("cpu"), there.to("cpu:0"), there.to(device=cpu)):
        assert made is there
    assert there.to() is there
    assert there.cpu() is there.pin_memory() is there
    assert there.to(there.data, non_blocking=True) is there
    assert not there.is_cuda
    assert not there.is_pinned()
    copied = there.to("cpu", copy=True)
    assert copied is not there
    same(copied, there)
    both = there.to("cpu", jnp.float32)
    assert (both.data.dtype, both.data.devices()) == ("float32", {cpu})
    same(jax.jit(lambda p: p.to(cpu, "float32"))(there), both)


def test_devices_that_are_not_there(packed: PackedSequence) -> None:
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


def test_without_double_precision_there_is_jaxs_warning(packed: PackedSequence) -> None:
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


def test_only_the_data_is_a_leaf(packed: PackedSequence) -> None:
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


def test_it_goes_into_and_out_of_compiled_functions() -> None:
    traced = []

    @jax.jit
    def double(p: PackedSequence) -> tuple[PackedSequence, jax.Array]:
        traced.append(p.batch_sizes.tolist())
        x, lengths = pad_packed_sequence(p)
        return pack_padded_sequence(2 * x, lengths, enforce_sorted=False), x

    rows = [jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0])]
    for scale in (1, 10):
        given = pack_sequence([scale * row for row in rows], enforce_sorted=False)
        got, x = double(given)
        same(got, given._replace(data=2 * given.data))
        np.testing.assert_array_equal(x, pad_sequence([scale * row for row in rows]))
    assert len(traced) == 1
    double(pack_sequence(rows[::-1]))
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
def test_the_gradient_of_what_is_padding_is_zero(batch_first: bool) -> None:
    x = np.ones((4, 3, 2))
    lengths = np.array([1, 4, 2])
    valid = np.arange(4)[:, None, None] < lengths[:, None]
    x = np.where(valid, x, np.nan)
    x = jnp.asarray(x.swapaxes(0, 1) if batch_first else x)

    def total(x: jax.Array) -> jax.Array:
        p = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        y, _ = pad_packed_sequence(p, batch_first, total_length=6)
        return (y**2).sum() + sum((row**3).sum() for row in unpack_sequence(p))

    gradient = jax.grad(total)(x)
    expected = np.broadcast_to(5.0 * valid, (4, 3, 2))
    np.testing.assert_array_equal(gradient, expected.swapaxes(0, 1) if batch_first else expected)


def test_lists_are_packed_padded_and_unpacked_under_transformations() -> None:
    rows = [jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0])]

    def total(rows: list[jax.Array]) -> jax.Array:
        p = pack_sequence(rows, enforce_sorted=False)
        again = unpack_sequence(p._replace(data=p.data**2))
        x = pad_sequence(again, padding_value=7.0, padding_side="left")
        first, second = unpad_sequence(x[::-1], [2, 3])
        return (first * jnp.array([1.0, 10.0])).sum() + second.sum()

    for function in (total, jax.jit(total)):
        gradient = jax.grad(function)(rows)
        assert gradient[0].tolist() == [20.0, 4.0]
        assert gradient[1].tolist() == [6.0, 8.0, 10.0]


def test_vmap_goes_over_many_batches_of_the_same_lengths() -> None:
    x = jnp.arange(24.0).reshape(2, 4, 3)

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        p = pack_padded_sequence(x, [1, 4, 2], enforce_sorted=False)
        return p.data, pad_packed_sequence(p, padding_value=-1)[0]

    data, again = jax.vmap(both)(x)
    for index in range(2):
        one, other = both(x[index])
        np.testing.assert_array_equal(data[index], one)
        np.testing.assert_array_equal(again[index], other)


def test_it_is_carried_through_loops(packed: PackedSequence) -> None:
    def step(p: PackedSequence, _: Any) -> tuple[PackedSequence, jax.Array]:
        return p._replace(data=p.data + 1), padded(p)[0]

    last, all_steps = jax.lax.scan(step, packed, None, 3)
    same(last, packed._replace(data=packed.data + 1 + 1 + 1))
    assert all_steps.shape == (3, 4, 3, 2)
    same(nnx.jit(lambda p: p)(packed), packed)


def test_padded_and_repacked_are_each_others_inverse_in_the_order_given(
    packed: PackedSequence,
) -> None:
    x, lengths = padded(packed)
    assert isinstance(lengths, np.ndarray)
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [1, 4, 2]
    full = jnp.linspace(-1, 1, 24).reshape(4, 3, 2)
    valid = np.arange(4)[:, None] < lengths
    np.testing.assert_array_equal(x, np.where(valid[..., None], full, 0))
    same(repacked(packed, x), packed)
    wider = repacked(packed, jnp.concatenate([x, x], -1))
    assert wider.data.shape == (7, 4)
