"""Packing and padding: PyTorch's values, orders, dtypes and gradients, live or recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import packing
from jaxrnn.packing import (
    PackedSequence,
    invert_permutation,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)
from tests import packing_oracle
from tests.oracle import flatten, torch
from tests.packing_oracle import CASES, Case, T


def our_results(case: Case, make: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    """Results of `packing_oracle.torch_results`, with arrays converted by `make`."""
    batch, lengths, listed, cotangent = case.draw()
    x, arrays = make(batch), [make(sequence) for sequence in listed]
    first, padding, enforce = case.batch_first, case.padding, case.enforce_sorted
    side = ("left", "right")[enforce]
    packed = pack_padded_sequence(x, lengths, first, enforce)
    again, lengths_again = pad_packed_sequence(packed, first, padding, T + 3)
    results: dict[str, Any] = {f"packed_{name}": a for name, a in packed._asdict().items()}
    results |= {"padded": again, "lengths": lengths_again}
    results["shortest"] = pad_packed_sequence(packed, not first)[0]
    listed_packed = pack_sequence(arrays, enforce)
    results |= {f"listed_{name}": a for name, a in listed_packed._asdict().items()}
    results["sequences"] = pad_sequence(arrays, first, padding, side)
    unpadded = unpad_sequence(x, lengths, first)
    for name, sequences in (("unpadded", unpadded), ("unpacked", unpack_sequence(packed))):
        results |= {f"{name}_{n}": sequence for n, sequence in enumerate(sequences)}
    if jnp.issubdtype(packed.data.dtype, jnp.floating):

        def total(x: Any) -> Any:
            packed = pack_padded_sequence(x, lengths, first, enforce)
            changed = PackedSequence(jnp.tanh(packed.data) ** 2, *packed[1:])
            again, _ = pad_packed_sequence(changed, first, padding, T + 3)
            return (again * jnp.asarray(cotangent, x.dtype)).sum()

        results["gradient"] = jax.grad(jax.jit(total))(jnp.asarray(x))
    arrays = {name: a for name, a in results.items() if a is not None}
    assert all(isinstance(a, (np.ndarray, jax.Array)) for a in arrays.values())
    assert all(isinstance(a, jax.Array) for a in (packed.data, again, *unpadded))
    return {name: np.asarray(a) for name, a in arrays.items()}


TOLERANCE = {"float64": 1e-12, "float32": 1e-6}  # of the gradients; values are exact


@pytest.mark.parametrize(
    ("case", "make"),
    [
        *(pytest.param(case, jnp.asarray, id=f"{case.name}-jax") for case in CASES),
        *(pytest.param(case, np.asarray, id=f"{case.name}-numpy") for case in CASES[::5]),
    ],
)
def test_values_orders_and_gradients_equal_pytorch(case: Case, make: Callable[[Any], Any]) -> None:
    got, tolerance = our_results(case, make), TOLERANCE.get(case.dtype, 0)
    assert got["packed_data"].dtype == case.dtype
    np.testing.assert_allclose(flatten(got), packing_oracle.expected(case), rtol=0, atol=tolerance)
    if torch is not None:
        kinds = {name: (a.shape, a.dtype) for name, a in got.items()}
        want = packing_oracle.torch_results(case)
        assert kinds == {name: (a.shape, a.dtype) for name, a in want.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recorded_numbers_are_those_of_pytorch(case: Case) -> None:
    """Live torch and the recording agree."""
    np.testing.assert_allclose(
        packing_oracle.recorded()[case.name], packing_oracle.expected(case), rtol=0, atol=1e-6
    )


def test_every_case_is_recorded() -> None:
    assert sorted(packing_oracle.recorded()) == sorted(case.name for case in CASES)


# Properties, on NumPy arrays of any size, which are packed without compilation


@pytest.mark.parametrize("seed", range(12))
def test_packing_and_padding_are_inverse(seed: int) -> None:
    random = np.random.RandomState(seed)
    batch, steps = random.randint(1, 70), random.randint(1, 50)
    lengths = random.randint(1, steps + 1, batch)
    x = random.randint(1, 100, (batch, steps, 2))
    x[np.arange(steps) >= lengths[:, None]] = 0
    before = x.copy()
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    again, lengths_again = pad_packed_sequence(packed, batch_first=True, total_length=steps)
    np.testing.assert_array_equal(again, x)
    np.testing.assert_array_equal(lengths_again, lengths)
    order = packed.sorted_indices
    assert order is not None
    assert (np.diff(lengths[order]) <= 0).all()
    expected = [x[n, t] for t in range(steps) for n in order if t < lengths[n]]
    np.testing.assert_array_equal(packed.data, expected)
    assert packed.batch_sizes.tolist() == [n for n in (lengths > np.c_[:steps]).sum(1) if n]
    sequences = unpack_sequence(packed)
    assert [s.shape for s in sequences] == [(length, 2) for length in lengths]
    same = pack_sequence(sequences, enforce_sorted=False)
    jax.tree.map(np.testing.assert_array_equal, tuple(same), tuple(packed))
    np.testing.assert_array_equal(pad_sequence(sequences), x.swapaxes(0, 1)[: lengths.max()])
    np.testing.assert_array_equal(x, before)


def test_sequences_of_equal_length_keep_their_order() -> None:
    lengths = np.tile([1, 3, 2], 20)
    packed = pack_padded_sequence(np.ones((3, 60)), lengths, enforce_sorted=False)
    assert packed.sorted_indices is not None
    expected = [n for length in (3, 2, 1) for n in range(60) if lengths[n] == length]
    assert packed.sorted_indices.tolist() == expected


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_large_batch_equals_a_loop(batch_first: bool) -> None:
    lengths = np.random.RandomState(0).randint(1, 1001, 64)
    x = np.arange(1, 64_001).reshape((64, 1000) if batch_first else (1000, 64))
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    order = packed.sorted_indices
    assert order is not None
    pairs = [(t, n) for t, size in enumerate(packed.batch_sizes) for n in order[:size]]
    assert packed.data.tolist() == [x[n, t] if batch_first else x[t, n] for t, n in pairs]
    again, lengths_again = pad_packed_sequence(packed, batch_first, total_length=1000)
    valid = np.arange(1000) < lengths[:, None]
    np.testing.assert_array_equal(again, np.where(valid if batch_first else valid.T, x, 0))
    np.testing.assert_array_equal(lengths_again, lengths)


@pytest.mark.parametrize("make", [list, tuple, np.array, np.int32, np.uint8, jnp.array])
def test_lengths_are_lists_or_arrays(make: Callable[[Any], Any]) -> None:
    x = np.arange(12.0).reshape(4, 3)
    packed = pack_padded_sequence(x, make([4, 2, 1]))
    assert packed.data.tolist() == [0, 1, 2, 3, 4, 6, 9]
    assert [s.tolist() for s in unpad_sequence(x, make([4, 0, 1]))] == [[0, 3, 6, 9], [], [2]]


@pytest.mark.skipif(torch is None, reason="needs PyTorch's tensors")
def test_lengths_and_data_may_be_tensors() -> None:
    assert torch is not None
    x, lengths = torch.arange(12).reshape(4, 3), torch.tensor([4, 2, 1])
    packed = pack_padded_sequence(x, lengths)
    expected = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    assert packed.data.tolist() == expected.data.tolist()
    assert pad_sequence([x[0], x[1, :2]]).tolist() == [[0, 3], [1, 4], [2, 0]]
    assert invert_permutation(torch.tensor([2, 0, 1])).tolist() == [1, 2, 0]  # pyright: ignore


def test_any_iterable_in_the_dtype_of_the_first() -> None:
    sequences = [np.array([1, 2], "int16"), np.array([3.9, 4.2, 5.0])]
    stacked = pad_sequence(sequence for sequence in sequences)
    assert stacked.dtype == "int16"
    assert stacked.tolist() == [[1, 3], [2, 4], [0, 5]]
    assert pad_sequence([jnp.asarray(sequences[0]), sequences[1]]).dtype == "int16"
    assert pack_sequence(iter(sequences), enforce_sorted=False).data.tolist() == [3, 1, 4, 2, 5]
    assert pad_sequence(jnp.ones((2, 3))).shape == (3, 2)
    traced = jax.jit(lambda *sequences: pad_sequence(sequences, True, 9, "left"))(
        *map(jnp.asarray, sequences)
    )
    assert traced.dtype == "int16"
    assert traced.tolist() == [[9, 1, 2], [3, 4, 5]]


def test_host_results_return_to_the_device() -> None:
    device = jax.devices()[0]
    sequences = [jax.device_put(np.ones(n), device) for n in (3, 2)]
    x = pad_sequence(sequences)
    for made in (x, pack_sequence(sequences).data, *unpad_sequence(x, [3, 2])):
        assert made.committed
        assert made.devices() == {device}
    assert not pad_sequence([np.ones(2)]).committed


def test_empty_sequences_can_be_padded_and_unpadded() -> None:
    sequences = [np.zeros((0, 2)), np.ones((2, 2)), np.zeros((0, 2))]
    for side in ("left", "right"):
        x = pad_sequence(sequences, padding_value=5, padding_side=side)
        assert x[:, ::2].tolist() == [[[5, 5]] * 2] * 2
    again = unpad_sequence(pad_sequence(sequences), [0, 2, 0])
    assert [s.shape for s in again] == [(0, 2), (2, 2), (0, 2)]
    assert pad_sequence([sequences[0]]).shape == (0, 1, 2)
    assert pad_sequence([jnp.zeros((0, 2))], batch_first=True).shape == (1, 0, 2)
    assert unpad_sequence(np.ones((3, 0, 2)), []) == []


def test_arguments_are_neither_modified_nor_aliased() -> None:
    x, lengths, sequence = np.arange(6.0).reshape(2, 3), np.array([1, 2, 1]), np.ones(3)
    copies = x.copy(), lengths.copy(), sequence.copy()
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    made = [*unpad_sequence(x, lengths), pad_sequence([sequence]), *pack_sequence([sequence])[:2]]
    made += [packed.data, *packed[1:], *PackedSequence(sequence, [1, 1, 1])[:2]]
    for given, copied in zip((x, lengths, sequence), copies, strict=True):
        np.testing.assert_array_equal(given, copied)
    before = [np.array(a) for a in made]
    x[:], lengths[:], sequence[:] = -1, 2, -1
    for now, then in zip(made, before, strict=True):
        np.testing.assert_array_equal(now, then)
    with pytest.raises(ValueError, match="read-only"):
        packed.batch_sizes[0] = 1


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        *(("int8", -1, -1), ("int8", 2.7, 2), ("int8", 127.5, None), ("int8", 128, None)),
        *(("uint8", -1, 255), ("uint8", -255, 1), ("uint8", 300, None), ("uint8", -1.5, None)),
        *(("int64", True, 1), ("int64", 1e20, None), ("int64", float("inf"), None)),
        *(("int32", float("nan"), None), ("int32", 2**31, None), ("int32", np.float32(3.5), 3)),
        *(("bool", 2.7, True), ("bool", 0, False), ("float16", 1e20, None)),
        *(("float16", float("inf"), float("inf")), ("bfloat16", -2.5, -2.5), ("float32", 1, 1)),
        *(("float32", 1j, None), ("complex64", 1j, 1j), ("complex64", 2, 2)),
    ],
)
def test_conversion_of_padding_values(dtype: str, value: Any, expected: Any) -> None:
    """Converted to the dtype of the data; None for a value that it cannot represent."""
    libraries: list[Any] = [(packing, jnp.asarray([1, 0], dtype))]
    if torch is not None:
        one = torch.tensor([1, 0]).to(getattr(torch, dtype))
        libraries.append((torch.nn.utils.rnn, one))
    for library, one in libraries:
        packed = library.pack_sequence([one, one[:1]])
        calls = [
            lambda: library.pad_packed_sequence(packed, padding_value=value)[0][1, 1],  # noqa: B023
            lambda: library.pad_sequence([one, one[:1]], False, value)[1, 1],  # noqa: B023
        ]
        if dtype == "uint8" or isinstance(value, complex):
            calls = calls[:1]  # PyTorch's pad_sequence differs here
        for call in calls:
            if expected is None:
                words = f"must be representable as {dtype}" if library is packing else "overflow"
                with pytest.raises(RuntimeError, match=words):
                    call()
            else:
                got = call()
                assert str(got.dtype).removeprefix("torch.") == dtype
                assert got.item() == expected
