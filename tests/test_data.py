"""Data: windows by index, chronological splits, scaling, characters, batches, CSV files."""

from __future__ import annotations

import functools
import pickle
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import data
from jaxrnn.data import Windows
from jaxrnn.training import fit, streams, train_steps

SERIES = np.arange(60.0).reshape(20, 3)  # the value at step t, column c: 3 t + c


def reference_windows(cut: Windows, series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all windows of a series, one by one, by the equations."""
    x, y = [], []
    for k in range(0, len(series) - cut.size - cut.horizon + 1, cut.stride):
        features = list(cut.features or range(series.shape[1]))
        targets = list(cut.targets or range(series.shape[1]))
        first = k + (cut.horizon if cut.every_step else cut.size)
        x.append(series[k : k + cut.size][:, features])
        y.append(series[first : k + cut.size + cut.horizon][:, targets])
    return np.stack(x), np.stack(y)


@pytest.mark.parametrize(
    "cut",
    [
        Windows(4),
        Windows(1, stride=3),
        Windows(4, horizon=3, stride=2, features=(2, 0), targets=(1,)),
        Windows(5, horizon=2, targets=(0, 2), every_step=True),
        Windows(19),
    ],
    ids=repr,
)
def test_windows_satisfy_the_equations(cut: Windows) -> None:
    x, y = reference_windows(cut, SERIES)
    assert cut.count(len(SERIES)) == len(x)
    got = jax.jit(cut.take)(SERIES, jnp.arange(len(x)))
    np.testing.assert_array_equal(got[0], x)
    np.testing.assert_array_equal(got[1], y)
    one = cut.take(SERIES, len(x) - 1)
    np.testing.assert_array_equal(one[0], x[-1])
    np.testing.assert_array_equal(one[1], y[-1])
    source = data.WindowSource(SERIES, cut)
    assert len(source) == len(x)
    np.testing.assert_array_equal(source.take(range(len(source)))[0], x)
    np.testing.assert_array_equal(source[-1][1], y[-1])


@pytest.mark.parametrize("steps", range(8))
def test_a_series_needs_the_span_of_a_window(steps: int) -> None:
    assert Windows(4, horizon=2).count(steps) == max(0, steps - 5)
    assert Windows(4, horizon=2, stride=3).count(steps) == (1 if steps >= 6 else 0)


def test_windows_of_a_one_dimensional_series_have_no_column_axis() -> None:
    x, y = Windows(2, every_step=True).take(jnp.arange(5), np.array([0, 2], np.int8))
    assert x.tolist() == [[0, 1], [2, 3]]
    assert y.tolist() == [[1, 2], [3, 4]]
    assert x.dtype == jnp.arange(5).dtype


def test_an_int8_index_times_the_stride_does_not_overflow() -> None:
    x, _ = Windows(1, stride=200).take(jnp.arange(1000), np.array([4], np.int8))
    assert x.tolist() == [[800]]


def test_take_supports_vmap_and_grad() -> None:
    cut, index = Windows(3, targets=(1,)), jnp.array([0, 1])
    several = jnp.stack([SERIES, 2 * SERIES])
    x, y = jax.vmap(cut.take, in_axes=(0, None))(several, index)
    np.testing.assert_array_equal(x[1], 2 * x[0])
    assert y.shape == (2, 2, 1, 1)
    gradient = jax.grad(lambda s: cut.take(s, index)[0].sum())(jnp.asarray(SERIES))
    np.testing.assert_array_equal(gradient[:, 0], [1, 2, 2, 1, *[0] * 16])


@pytest.mark.parametrize("cut", [Windows(64, targets=(0,)), Windows(64, every_step=True)], ids=repr)
def test_a_batch_of_a_long_series_needs_the_memory_of_a_batch(cut: Windows) -> None:
    series = jax.ShapeDtypeStruct((10_000_000, 4), jnp.float32)
    index = jax.ShapeDtypeStruct((128,), jnp.int32)
    memory: Any = jax.jit(cut.take).lower(series, index).compile().memory_analysis()
    batch = 128 * 65 * 4 * 4
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 4 * batch


def test_training_on_a_long_series_copies_nothing_of_it() -> None:
    cut = Windows(32)
    series = jax.ShapeDtypeStruct((10_000_000,), jnp.float32)

    def training(series: Any, key: Any) -> Any:
        def loss(w: Any, index: Any) -> Any:
            x, y = cut.take(series, index)
            return ((x @ w - y[:, 0]) ** 2).mean()

        index = jax.random.randint(key, (100, 64), 0, cut.count(len(series)))
        return train_steps(loss, optax.sgd(0.01), jnp.zeros(32), index).losses

    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled: Any = jax.jit(training).lower(series, key).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1_000_000  # the series: 40 MB


def test_an_epoch_covers_the_windows_of_a_long_series() -> None:
    with jax.enable_x64(False):
        series, cut = jnp.arange(10_000_000, dtype=jnp.int32), Windows(8, horizon=2)
        assert cut.count(len(series)) == 9_999_991
        index, mask = data.epoch(cut.count(len(series)), 4096)
        assert index.shape == (2442, 4096)
        assert mask.sum() == 9_999_991
        x, y = jax.jit(cut.take)(series, index[-1])
        np.testing.assert_array_equal(x[:, 0], index[-1])
        np.testing.assert_array_equal(y[:, 1], index[-1] + 9)


def test_fit_gathers_windows_by_index() -> None:
    wave = jnp.sin(0.3 * jnp.arange(400.0))[:, None]
    cut, (train, _) = Windows(2), data.split(400, (0.8, 0.2))

    def loss(w: Any, batch: Any) -> Any:
        x, y = batch
        return ((x[..., 0] @ w - y[:, 0, 0]) ** 2).mean()

    fitted = fit(
        loss,
        optax.adam(0.1),
        jnp.zeros(2),
        wave,
        take=cut.take,
        examples=len(cut.within(train)),
        batch_size=32,
        steps=300,
    )
    np.testing.assert_allclose(fitted.model, [-1, 2 * np.cos(0.3)], atol=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Windows(0), "`size` must be an integer >= 1, got 0"),
        (lambda: Windows(2, horizon=0), "horizon"),
        (lambda: Windows(2, stride=-1), "stride"),
        (lambda: Windows(2, features=()), "`features` must be a tuple of column indices, got ()"),
        (lambda: Windows(2, targets=(-1,)), "`targets[0]` must be"),
        (
            lambda: Windows(20).take(SERIES, 0),
            "a window of 20 and a horizon of 1, and shorter than 2**31, got 20",
        ),
        (
            lambda: Windows(2, targets=(3,)).take(SERIES, 0),
            "`series` must have column 3, got 3 columns",
        ),
        (
            lambda: Windows(2, targets=(0,)).take(SERIES[:, 0], 0),
            "`series` must have shape (T, C), got (20,)",
        ),
        (lambda: Windows(2).take(SERIES[None], 0), "got (1, 20, 3)"),
        (lambda: Windows(2).take(SERIES, 0.0), "`index` must be integers"),
        (lambda: Windows(2).take(SERIES, np.zeros((2, 2), int)), "int64 (2, 2)"),
        (lambda: Windows(2).check_shape((2**31, 1)), "shorter than 2**31, got"),
        (
            lambda: Windows(9).within(range(4, 12)),
            "`part` must be as long as a window of 9 and a horizon of 1, got range(4, 12)",
        ),
        (lambda: Windows(2).within(range(0, 9, 2)), "consecutive steps"),
        (lambda: Windows(2, every_step=True).within(range(9), context=True), "context"),
        (lambda: data.WindowSource(SERIES, Windows(2), range(21)), "within the 20 steps"),
        (lambda: data.split(10, (0.5, 0.4)), "sum to 1, got (0.5, 0.4)"),
        (lambda: data.split(10, (1.5, -0.5)), "> 0"),
        (lambda: data.split(2, (0.9, 0.1)), "`steps` must be enough for parts"),
    ],
)
def test_invalid_windows_and_splits_raise(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


@pytest.mark.parametrize("steps", [11, 100, 997])
@pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.7, 0.1, 0.2), (1.0,)])
def test_a_split_partitions_the_steps_in_order(steps: int, fractions: tuple[float, ...]) -> None:
    parts = data.split(steps, fractions)
    assert [t for part in parts for t in part] == list(range(steps))
    for part, fraction in zip(parts, fractions):
        assert abs(len(part) - steps * fraction) <= 1


@pytest.mark.parametrize("cut", [Windows(3), Windows(3, horizon=2, stride=2), Windows(2, 2, 5)])
@pytest.mark.parametrize("context", [False, True])
def test_targets_of_different_parts_are_disjoint(cut: Windows, context: bool) -> None:
    parts = data.split(40, (0.5, 0.2, 0.3))
    targets = []
    for part in parts:
        starts = [k * cut.stride for k in cut.within(part, context=context)]
        seen = {s + i for s in starts for i in range(cut.size)}
        asked = {s + cut.size + i for s in starts for i in range(cut.horizon)}
        assert asked <= set(part)
        assert max(seen) < part.stop
        assert context or seen <= set(part)
        # No other window of the series qualifies.
        whole = [k * cut.stride for k in range(cut.count(40))]
        first = part.start - cut.size * context
        assert starts == [s for s in whole if s >= first and s + cut.span <= part.stop]
        targets.append(asked)
    assert not functools.reduce(set.intersection, targets)


@pytest.mark.parametrize("make", [data.min_max, data.standard])
def test_a_scaling_depends_on_the_training_part_alone_and_has_an_inverse(make: Any) -> None:
    values = np.random.default_rng(0).normal(5, 3, (50, 4))
    values[:, 2] = 0.1  # constant, without an exact binary value
    train = range(30)
    scaling = make(values, train)
    changed = np.concatenate([values[:30], 1000 + values[30:]])
    for ours, other in zip(scaling, make(changed, train)):
        np.testing.assert_array_equal(ours, other)
    scaled = jax.jit(lambda scaling, values: scaling(values))(scaling, values)
    np.testing.assert_allclose(scaling.inverse(scaled), values, rtol=1e-12)
    varying = np.asarray(scaled[:30, [0, 1, 3]])
    if make is data.min_max:
        np.testing.assert_allclose(varying.min(0), 0, atol=1e-12)
        np.testing.assert_allclose(varying.max(0), 1)
    else:
        np.testing.assert_allclose(varying.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(varying.std(0), 1)
    np.testing.assert_array_equal(scaled[:, 2], 0)
    batch = jnp.ones((2, 3, 1))
    np.testing.assert_allclose(
        scaling.columns([3])(batch)[0, 0, 0], scaling(jnp.ones((1, 4)))[0, 3]
    )


@pytest.mark.parametrize("make", [data.min_max, data.standard])
@pytest.mark.parametrize("value", [0.1, 1e-30, 3e7])
def test_a_constant_column_becomes_zero_in_float32(make: Any, value: float) -> None:
    values = jnp.full((1001,), value, jnp.float32)
    scaling = make(values)
    np.testing.assert_array_equal(scaling(values), 0)
    np.testing.assert_array_equal(scaling.inverse(jnp.zeros(3, jnp.float32)), values[:3])
    tiny = jnp.array([0, 1e-30], jnp.float32)  # whose variance underflows in float32
    assert jnp.isfinite(make(tiny)(tiny)).all()


def test_scalings_support_vmap() -> None:
    several = jnp.stack([SERIES, 10 * SERIES])
    scaled = jax.vmap(lambda s: data.standard(s)(s))(several)
    np.testing.assert_allclose(scaled[0], scaled[1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.min_max(np.arange(3)), "floating point"),
        (lambda: data.standard(np.zeros((2, 2, 2))), "(2, 2, 2)"),
        (lambda: data.standard(np.zeros((2, 2)), range(2, 4)), "`part` must select at least one"),
        (lambda: data.standard(SERIES)(np.zeros((5, 2))), "must have 3 columns, got shape (5, 2)"),
    ],
)
def test_invalid_scalings_raise(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


@pytest.mark.parametrize("text", ["hihello", "a\nb", "안녕 世界 🌊", "x", "\ud800y"])
def test_decode_inverts_encode(text: str) -> None:
    vocabulary = data.Vocabulary.of(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert vocabulary.decode(ids) == text
    assert [vocabulary.characters.index(c) for c in text] == ids.tolist()
    one_hot = vocabulary.one_hot(ids[None])
    assert one_hot.shape == (1, len(text), len(vocabulary))
    assert one_hot.dtype == jnp.float32
    np.testing.assert_array_equal(one_hot.argmax(-1), ids[None])
    assert vocabulary.decode(vocabulary.encode("")) == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v: v.encode("abz"), "character 'z' at position 2 is not in the vocabulary of 3"),
        (lambda v: v.encode("🌊"), "character '🌊' at position 0"),
        (
            lambda v: v.decode([0, 3]),
            "`ids` must be < 3, the size of the vocabulary, and >= 0, got 3 at position 1",
        ),
        (lambda v: v.decode([-1]), "got -1 at position 0"),
        (lambda v: v.decode([[0]]), "(1, 1)"),
        (lambda v: v.decode([0.5]), "float64"),
        (lambda v: data.Vocabulary("aba"), "`characters` must be distinct, got 'a' more than once"),
        (lambda v: data.Vocabulary.of(""), "at least one"),
    ],
)
def test_invalid_characters_and_ids_raise(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call(data.Vocabulary("abc"))


@pytest.mark.parametrize(("examples", "size"), [(10, 3), (9, 3), (2, 5), (range(5, 16), 4)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_contains_each_example_once(examples: Any, size: int, shuffle: bool) -> None:
    numbers = list(examples if isinstance(examples, range) else range(examples))
    key = jax.random.key(1) if shuffle else None
    index, mask = data.epoch(examples, size, key=key)
    assert index.shape == mask.shape == (-(-len(numbers) // size), size)
    there = np.asarray(index)[np.asarray(mask)]
    assert sorted(there) == numbers
    assert set(np.asarray(index).ravel()) == set(numbers)
    assert shuffle or there.tolist() == numbers
    if len(numbers) >= size:
        whole = data.epoch(examples, size, key=key, drop_last=True)
        assert whole.index.shape == (len(numbers) // size, size)
        assert bool(whole.mask.all())
        np.testing.assert_array_equal(whole.index, index[: len(whole.index)])


def test_the_key_determines_the_order_under_vmap_too() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(lambda key: data.epoch(20, 8, key=key)))(keys)
    assert together.index.shape == (3, 3, 8)
    np.testing.assert_array_equal(together.index[1], data.epoch(20, 8, key=keys[1]).index)
    assert (together.index[0] != together.index[1]).any()


def test_training_and_data_share_streams() -> None:
    assert data.streams is streams


@pytest.mark.parametrize("bounds", [1, 3, 100, [5, 10, 20]], ids=str)
@pytest.mark.parametrize("key", [None, 0])
def test_buckets_contain_each_sequence_once_within_its_bounds(bounds: Any, key: int | None) -> None:
    lengths = np.random.default_rng(0).integers(0, 20, 57)
    found = data.buckets(lengths, 4, bounds, key=None if key is None else jax.random.key(key))
    members = [np.asarray(bucket.index)[np.asarray(bucket.mask)] for bucket in found]
    assert sorted(np.concatenate(members)) == list(range(57))
    shortest = 0
    for bucket, numbers in zip(found, members):
        assert bucket.index.shape == bucket.mask.shape == (-(-len(numbers) // 4), 4)
        assert lengths[numbers].max() <= bucket.steps
        assert lengths[numbers].min() >= shortest
        shortest = bucket.steps + 1
        assert key is not None or (np.diff(numbers) > 0).all()
    assert [b.steps for b in found] == sorted({b.steps for b in found})


def test_buckets_reduce_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    padded = [
        sum(b.steps * int(b.mask.sum()) for b in data.buckets(lengths, 10, count))
        for count in (1, 8)
    ]
    assert padded[0] > 1.8 * lengths.sum()
    assert padded[1] < 1.15 * lengths.sum()


def test_buckets_drop_the_last_batches() -> None:
    found = data.buckets([1, 1, 1, 9, 2], 2, [2, 9], drop_last=True)
    assert [(b.steps, b.index.tolist()) for b in found] == [(2, [[0, 1], [2, 4]])]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.epoch(5, 0), "`size` must be"),
        (lambda: data.epoch(0, 5), "`examples` must not be empty"),
        (lambda: data.epoch(2**31 + 1, 2**20), "fit in int32"),
        (
            lambda: data.epoch(3, 4, drop_last=True),
            "`size` must be <= 3, the number of examples, got 4",
        ),
        (lambda: data.buckets([], 2), "`lengths` must be integers (M,)"),
        (lambda: data.buckets([1.5], 2), "float64"),
        (lambda: data.buckets([3, -1], 2), ">= 0, got -1"),
        (lambda: data.buckets([3, 9], 2, [4, 8]), "sequence 1 of length 9"),
        (lambda: data.buckets([3], 2, [4, 4]), "increasing integers >= 1, got [4, 4]"),
        (lambda: data.buckets([3], 2, []), "increasing"),
        (lambda: data.buckets([3], 2, 0), "bounds"),
    ],
)
def test_invalid_batches_raise(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap:
    """Return a memory-mapped series."""
    path = tmp_path / "series.npy"
    np.save(path, SERIES)
    return np.load(path, mmap_mode="r")


def test_a_source_copies_windows_from_a_file(mapped: np.memmap) -> None:
    cut, (_, test) = Windows(3, targets=(1,), stride=2), data.split(20, (0.5, 0.5))
    source = data.WindowSource(mapped, cut, test, context=True)
    assert len(source) == 5
    for place, number in enumerate(cut.within(test, context=True)):
        for ours, expected in zip(source[place], cut.take(SERIES, number)):
            np.testing.assert_array_equal(ours, expected)
            assert type(ours) is np.ndarray
            assert ours.base is None or not isinstance(ours.base, np.memmap)
    with pytest.raises(IndexError):
        source[5]
    assert len(list(iter(source))) == 5  # by the sequence protocol, as in many loaders
    assert "5 windows from index 4" in repr(source)


@pytest.mark.parametrize("whole", [True, False])
def test_a_source_pickles_a_memory_map_by_name(mapped: np.memmap, whole: bool) -> None:
    series = mapped if whole else mapped[4:]
    source = data.WindowSource(series, Windows(3))
    sent = pickle.dumps(source)
    again = pickle.loads(sent)
    assert (b"series.npy" in sent) == whole
    assert again.indices == source.indices
    for ours, expected in zip(again.take(range(13)), source.take(range(13))):
        np.testing.assert_array_equal(ours, expected)


GOOD = "Date, Open,Close\n2024-01-02,10,-1.5\n2024-01-03,1e1,2\n2024-01-04,11.,.5\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.encode(),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode() + b"\r\n\r\n",
        GOOD.replace("10,", ' "10",').encode(),
        GOOD.rstrip().encode(),
        GOOD.replace("2024-01-03", '"the third\nof January, 2024"').encode(),
        GOOD.replace("2024-01-03", "").encode(),
    ],
    ids=["plain", "bom", "windows", "quotes", "no last newline", "quoted newline", "gap in text"],
)
def test_read_csv_returns_the_numeric_columns(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "prices.csv"
    path.write_bytes(text)
    names, values = data.read_csv(path, allow_constant=True)
    assert names == ("Open", "Close")
    assert values.tolist() == [[10, -1.5], [10, 2], [11, 0.5]]
    assert values.dtype == np.float64
    assert data.read_csv(path, ["Close"]).values.tolist() == [[-1.5], [2], [0.5]]
    assert data.read_csv(path, ["Close", "Open"]).names == ("Close", "Open")


def test_read_csv_accepts_a_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("a;b\n1;2\n3;4\n")
    assert data.read_csv(path, delimiter=";").values.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="`delimiter` must be one character"):
        data.read_csv(path, delimiter="; ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ", line 1: the header is missing"),
        ("\na,b\n1,2\n", ", line 1: the header is missing, the line is empty"),
        ("a,b\n1,2\n,4\n", ", line 3, column 'a': the cell is empty"),
        ("a,b\n1,2\n3, \n", ", line 3, column 'b': the cell is empty"),
        ("a,b\n1,2\n3,n/a\n5,x\n", ", line 3, column 'b': 'n/a' is not a finite number"),
        ("a,b\n1,x\n3,4\n5,6\n", ", line 2, column 'b': 'x' is not a finite number"),
        ("a,b\n1,2\n3,inf\n", ", line 3, column 'b': 'inf' is not"),
        ("a,b\n1,2\n3,nan\n", ", line 3, column 'b': 'nan' is not"),
        ("a,b\n1,2\n3,1_0\n", ", line 3, column 'b': '1_0' is not"),
        ('a,b\n1,2\n3,"1,000"\n', ", line 3, column 'b': '1,000' is not"),
        ("a,b\n1,2\n3\n", ", line 3: the line must have 2 cells, like the header, got 1"),
        ("a,b\n1,2\n3,4,5\n", ", line 3: the line must have 2 cells, like the header, got 3"),
        ("a,b\n1,2\n\n3,4\n", ", line 3: the line is empty"),
        ("a\n1\n\n3\n", ", line 3: the line is empty"),
        ("a,b\n", " must have at least 2 data lines, got 0"),
        ("a,b\n1,2\n", " must have at least 2 data lines, got 1"),
        ("a,b\n1,2\n1,3\n", ", column 'a' is constant: 1 in every line"),
        (
            "a;b\n1;2\n3;4\n",
            ", line 1: the header has a single column. The delimiter seems to be ';', not ','",
        ),
        ("a\tb\n1\t2\n", "The delimiter seems to be '\\t'"),
        ("1,2\n3,4\n5,6\n", ", line 1: the header must be column names, got numbers"),
        ("a,b,a\n1,2,3\n", ", line 1: column 'a' occurs 2 times"),
        ("a,b\nx,y\nz,w\n", " has no column of numbers"),
        ('a,b\n1,"2\n3,4\n', ", line 3: unexpected end of data"),
    ],
)
def test_an_invalid_file_raises_one_line_with_its_place(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        data.read_csv(path, min_rows=2)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"a,b\n1,2\n3,\xe94\n", ", line 3: byte 0xe9 is not UTF-8 text"),
        (GOOD.encode("utf-16"), ", line 1: byte 0xff is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_utf8_raises_with_its_line(
    tmp_path: Path, raw: bytes, words: str
) -> None:
    path = tmp_path / "prices.csv"
    path.write_bytes(raw)
    with pytest.raises(ValueError) as caught:
        data.read_csv(path)
    assert str(caught.value) == f"{path}{words}"


def test_an_unknown_column_raises_with_the_columns_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(GOOD)
    words = ", line 1: column 'close' must be one of the columns 'Date', 'Open', 'Close'"
    with pytest.raises(ValueError, match=re.escape(words)):
        data.read_csv(path, ["close"])
    with pytest.raises(ValueError, match="line 2, column 'Date': '2024-01-02' is not a finite"):
        data.read_csv(path, ["Date"])
    with pytest.raises(FileNotFoundError):
        data.read_csv(tmp_path / "none.csv")
