"""Errors of packing: PyTorch's exception types, and its deliberate messages.

With PyTorch installed, each case runs there as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import packing
from jaxrnn.packing import (
    PackedSequence,
    invert_permutation,
    pack_padded_sequence,
    pad_sequence,
    repack,
    unpad_sequence,
)
from tests.oracle import torch


def raised(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


class Wrong(NamedTuple):
    """A wrong call of either library with its arrays."""

    call: Callable[[Any, Any], Any]
    error: type[Exception]
    words: str
    exact: bool = True  # False if our message replaces an accidental one of PyTorch


SORTED = (
    "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can "
    "pass `enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to sidestep this "
    "requirement if you do not need ONNX exportability."
)
POSITIVE = (
    "Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0"
)
COUNT = "Expected `len(lengths)` to be equal to batch_size, but got {} (batch_size={})"
ONE_AXIS = "'lengths' argument should be a 1D CPU int64 tensor, but got {}D cpu Long tensor"
EMPTY = "Cannot pack empty tensors."
NO_AXIS = "a padded batch must have at least two axes, got shape"
NO_SEQUENCES = "received an empty list of sequences"
NO_ARRAY = "each sequence must be a NumPy or JAX array, got {1} for sequence {0}"

WRONG = {
    "unsorted": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [1, 4, 2]), RuntimeError, SORTED
    ),
    "zero": Wrong(lambda r, z: r.pack_padded_sequence(z(4, 3), [4, 2, 0]), RuntimeError, POSITIVE),
    "negative": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [4, -1, 2], enforce_sorted=False),
        RuntimeError,
        POSITIVE,
    ),
    "zero-first": Wrong(  # looked at last, as PyTorch does
        lambda r, z: r.pack_padded_sequence(z(4, 3), [0, 2, 4]), RuntimeError, SORTED
    ),
    "zero-and-unsorted": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [1, 4, 0]), RuntimeError, POSITIVE
    ),
    "too-few": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [4, 2]), RuntimeError, COUNT.format(2, 3)
    ),
    "too-many": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [4, 3, 2, 1]), RuntimeError, COUNT.format(4, 3)
    ),
    "none": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), []), RuntimeError, COUNT.format(0, 3)
    ),
    "batch-first": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [4, 2, 1], True),
        RuntimeError,
        COUNT.format(3, 4),
    ),
    "two-axes": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [[4, 2, 1]]), RuntimeError, ONE_AXIS.format(2)
    ),
    "no-axis": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), 3), RuntimeError, ONE_AXIS.format(0)
    ),
    "lengths-none": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), None), TypeError, "lengths", exact=False
    ),
    "lengths-words": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [4, "a", 1]),
        TypeError,
        "'a'",
        exact=False,
    ),
    "lengths-complex": Wrong(
        lambda r, z: r.pack_padded_sequence(z(4, 3), [4j, 2, 1]), TypeError, "4j", exact=False
    ),
    "no-steps": Wrong(lambda r, z: r.pack_padded_sequence(z(0, 3), [1, 1, 1]), RuntimeError, EMPTY),
    "no-rows": Wrong(lambda r, z: r.pack_padded_sequence(z(3, 0), []), RuntimeError, EMPTY),
    "no-features": Wrong(lambda r, z: r.pack_padded_sequence(z(3, 1, 0), [2]), RuntimeError, EMPTY),
    "one-axis": Wrong(
        lambda r, z: r.pack_padded_sequence(z(3), [3]), IndexError, NO_AXIS, exact=False
    ),
    "number": Wrong(
        lambda r, z: r.pack_padded_sequence(z(), [3]),
        IndexError,
        NO_AXIS,
        exact=False,
    ),
    "total-length": Wrong(
        lambda r, z: r.pad_packed_sequence(r.pack_sequence([z(4)]), total_length=3),
        ValueError,
        "Expected total_length to be at least the length of the longest sequence in input, but got "
        "total_length=3 and max sequence length being 4",
    ),
    "total-length-part": Wrong(
        lambda r, z: r.pad_packed_sequence(r.pack_sequence([z(4)]), total_length=4.5),
        TypeError,
        "'float' object cannot be interpreted as an integer",
        exact=False,
    ),
    "padding-value": Wrong(
        lambda r, z: r.pad_packed_sequence(r.pack_sequence([z(4)]), padding_value="a"),
        TypeError,
        "padding_value",
        exact=False,
    ),
    "not-packed": Wrong(
        lambda r, z: r.pad_packed_sequence((z(4), [1, 1, 1, 1])),
        AttributeError,
        "expected a jaxrnn.PackedSequence, got tuple",
        exact=False,
    ),
    "unpack-not-packed": Wrong(
        lambda r, z: r.unpack_sequence(3),
        AttributeError,
        "expected a jaxrnn.PackedSequence, got int",
        exact=False,
    ),
    "pad-nothing": Wrong(lambda r, z: r.pad_sequence([]), RuntimeError, NO_SEQUENCES),
    "pad-number": Wrong(
        lambda r, z: r.pad_sequence(3),
        RuntimeError,
        "pad_sequence: Expected iterable for input sequences, but got arg of type: <class 'int'>",
    ),
    "pad-side": Wrong(
        lambda r, z: r.pad_sequence([z(2)], padding_side="foo"),
        RuntimeError,
        "Expected padding_side to be one of left or right, but got foo.",
    ),
    "pad-list": Wrong(
        lambda r, z: r.pad_sequence([[1, 2]]),
        TypeError,
        NO_ARRAY.format(0, "list"),
        exact=False,
    ),
    "pad-string": Wrong(
        lambda r, z: r.pad_sequence("ab"), TypeError, NO_ARRAY.format(0, "str"), exact=False
    ),
    "pad-none": Wrong(
        lambda r, z: r.pad_sequence([z(2), None]),
        TypeError,
        NO_ARRAY.format(1, "NoneType"),
        exact=False,
    ),
    "pad-scalar": Wrong(lambda r, z: r.pad_sequence([z()]), RuntimeError, "scalar", exact=False),
    "pad-unequal": Wrong(
        lambda r, z: r.pad_sequence([z(2, 3), z(2, 4)]), RuntimeError, "(2, 4)", exact=False
    ),
    "pad-axes": Wrong(
        lambda r, z: r.pad_sequence([z(2, 3), z(2)]), RuntimeError, "(2,)", exact=False
    ),
    "pack-nothing": Wrong(lambda r, z: r.pack_sequence([]), RuntimeError, NO_SEQUENCES),
    "pack-number": Wrong(
        lambda r, z: r.pack_sequence(3), TypeError, "'int' object is not iterable"
    ),
    "pack-unsorted": Wrong(lambda r, z: r.pack_sequence([z(1), z(2)]), RuntimeError, SORTED),
    "pack-empty": Wrong(lambda r, z: r.pack_sequence([z(2), z(0)]), RuntimeError, POSITIVE),
    "pack-all-empty": Wrong(lambda r, z: r.pack_sequence([z(0), z(0)]), RuntimeError, EMPTY),
    "pack-list": Wrong(
        lambda r, z: r.pack_sequence([[1, 2]]), AttributeError, "got list", exact=False
    ),
    "pack-scalar": Wrong(
        lambda r, z: r.pack_sequence([z()]),
        IndexError,
        "got a scalar for sequence 0",
        exact=False,
    ),
    "pair": Wrong(
        lambda r, z: r.PackedSequence(z(2)),
        AssertionError,
        "Expected data to be a list or tuple of length 2",
    ),
    "pair-of-one": Wrong(
        lambda r, z: r.PackedSequence((z(2),)),
        AssertionError,
        "Expected data to be a list or tuple of length 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_pytorch(name: str) -> None:
    wrong = WRONG[name]
    error = raised(lambda: wrong.call(packing, lambda *shape: jnp.zeros(shape)))
    assert isinstance(error, wrong.error)
    assert isinstance(error, (ValueError, TypeError))
    assert wrong.words in str(error)
    if torch is not None:
        rnn, make = torch.nn.utils.rnn, torch.zeros
        theirs = raised(lambda: wrong.call(rnn, lambda *shape: make(shape)))
        assert isinstance(error, type(theirs))
        if wrong.exact:
            assert str(theirs) in str(error)


X = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pack_padded_sequence(X, [5, 2, 1]), "from 0 to 4, the steps of the batch"),
        (lambda: pack_padded_sequence(X, [1, 5, 2], enforce_sorted=False), "got [5]"),
        (lambda: pack_padded_sequence(X, [2, 1], enforce_sorted=False), COUNT.format(2, 3)),
        (lambda: pack_padded_sequence(X, [3, 2, 2, 1], enforce_sorted=False), COUNT.format(4, 3)),
        (lambda: pack_padded_sequence(X, [[4, 2, 1]], enforce_sorted=False), ONE_AXIS.format(2)),
        (lambda: pack_padded_sequence(X, [4.7, 2.0, 1.0]), "but got 1D cpu float64 tensor"),
        (lambda: pack_padded_sequence(X, jnp.ones(3, "float32")), "float32"),
        (lambda: pack_padded_sequence(X, [True, True, True]), "bool"),
        (lambda: unpad_sequence(X, [4, 5, 1]), "from 0 to 4, the steps of the batch, got [5]"),
        (lambda: unpad_sequence(X, [4, -1, 1]), "got [-1]"),
        (lambda: unpad_sequence(X, [4, 2]), COUNT.format(2, 3)),
        (lambda: unpad_sequence(X, [4.5, 2, 1]), "float64"),
        (lambda: unpad_sequence(X, [[4, 2, 1]]), ONE_AXIS.format(2)),
        (lambda: unpad_sequence(X[0], [1, 1, 1]), NO_AXIS),
        (lambda: pad_sequence([X[:, :1], X]), "(4, 1) and (4, 3)"),
        (lambda: PackedSequence(X, []), "positive and non-increasing, got []"),
        (lambda: PackedSequence(X, [2, 3]), "positive and non-increasing, got [2, 3]"),
        (lambda: PackedSequence(X, [4, 0]), "positive and non-increasing, got [4, 0]"),
        (
            lambda: PackedSequence(X, [2, 1]),
            "(3, ...), the sum of batch_sizes, got shape (4, 3)",
        ),
        (
            lambda: PackedSequence(X[0, 0], [1]),
            "(1, ...), the sum of batch_sizes, got shape ()",
        ),
        (lambda: PackedSequence(X, [2.5, 1.5]), "'batch_sizes' argument should be a 1D CPU int64"),
        (lambda: PackedSequence(X, [2, 2], [0, 0]), "permutation of 0 ... 1, got [0, 0]"),
        (lambda: PackedSequence(X, [2, 2], [0, 2, 1]), "`sorted_indices` must be (2,), got (3,)"),
        (lambda: PackedSequence(X, [3, 1], [2, 0, 1], [2, 0, 1]), "[1, 2, 0], got [2, 0, 1]"),
        (lambda: invert_permutation([2, 0, 5]), "permutation of 0 ... 2, got [2, 0, 5]"),
        (lambda: invert_permutation([[1, 0]]), "'permutation' argument should be a 1D"),
        (lambda: repack(PackedSequence(X, [3, 1]), jnp.ones((2, 2, 5))), "(2, 3, ...)"),
    ],
)
def test_errors_where_pytorch_has_none(call: Callable[[], Any], words: str) -> None:
    error = raised(call)
    assert isinstance(error, ValueError)
    assert isinstance(error, RuntimeError)
    assert words in str(error)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda n: pack_padded_sequence(X, n, enforce_sorted=False), "lengths"),
        (lambda n: pack_padded_sequence(X, [1, n[0], 1]), "lengths"),
        (lambda n: unpad_sequence(X, n), "lengths"),
        (lambda n: PackedSequence(jnp.ones(4), n), "batch_sizes"),
        (lambda n: PackedSequence(jnp.ones(4), [3, 1], n), "sorted_indices"),
    ],
)
def test_traced_lengths_are_refused(function: Callable[[Any], Any], name: str) -> None:
    with pytest.raises(TypeError, match=rf"^`{name}` must be concrete.*lengths=lengths"):
        jax.jit(function)(jnp.array([2, 1, 1]))
