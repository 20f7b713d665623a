"""The order of samples: permutation, mixture, stream."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.errors import DataError
from krzem.train.data import (
    BuildRequest,
    Component,
    Options,
    SampleStream,
    TokenDataset,
    build,
    content_hash,
)
from krzem.train.data.stream import Mixture, permute


def shuffled(size: int, key: int) -> np.ndarray:
    positions = np.arange(size, dtype=np.uint64)
    return permute(positions, size, np.full(size, key, dtype=np.uint64))


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    assert np.array_equal(np.sort(shuffled(size, key)), np.arange(size))


def test_permutation_of_one_place_needs_no_others() -> None:
    size, keys = 10**12, np.full(4, 99, dtype=np.uint64)
    places = np.array([0, 1, 7, size - 1], dtype=np.uint64)
    together = permute(places, size, keys)
    assert together.max() < size
    assert [int(permute(p[None], size, keys[:1])[0]) for p in places] == together.tolist()


def test_permutation_has_no_preferred_place() -> None:
    """Over many keys every element lands everywhere equally often: chi-square per element."""
    size, keys = 40, 4000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), shuffled(size, key)] += 1
    expected = keys / size
    chi2 = ((counts - expected) ** 2 / expected).sum(axis=1)
    # 39 degrees of freedom: mean 39, standard deviation 8.8
    assert chi2.max() < 39 + 5 * 8.9
    assert abs(chi2.mean() - 39) < 5


def test_permutation_separates_neighbours() -> None:
    size = 10_000
    step = np.abs(np.diff(shuffled(size, 5).astype(np.int64)))
    assert abs(step.mean() - size / 3) < size * 0.02
    assert np.unique(step).size > size / 3


weights = st.lists(st.integers(1, 30), min_size=1, max_size=7)


@given(weights=weights)
@settings(max_examples=60, deadline=None)
def test_every_prefix_matches_the_weights_within_one_sample(weights: list[int]) -> None:
    mixture = Mixture.of(weights)
    count = 2 * int(mixture.component.size) + 3
    component, _ = mixture.assign(np.arange(count))
    served = np.cumsum(component[:, None] == np.arange(len(weights)), axis=0)
    share = np.array(weights) / sum(weights)
    ideal = np.arange(1, count + 1)[:, None] * share
    assert np.abs(served - ideal).max() < 1


@given(weights=weights, start=st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_mixture_counts_go_on_anywhere(weights: list[int], start: int) -> None:
    mixture = Mixture.of(weights)
    component, served = mixture.assign(np.arange(start, start + 200))
    for k in range(len(weights)):
        mine = served[component == k]
        assert np.array_equal(np.diff(mine), np.ones(max(0, mine.size - 1)))
        assert not mine.size or abs(mine[0] - start * weights[k] / sum(weights)) < 1


def test_decimal_weights_are_exact() -> None:
    assert Mixture.of([0.1, 0.2, 0.7]).weights == tuple(Fraction(n, 10) for n in (1, 2, 7))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([0, 1], "above zero"),
        ([-1, 2], "above zero"),
        ([float("nan"), 1], "numbers"),
        (["a", 1], "numbers"),
        ([], "none"),
        ([0.123456789, 0.5], "round them"),
    ],
)
def test_bad_weights_teach(weights: list[float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Mixture.of(weights)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenDataset]:
    """Two small data sets in several shards each."""
    made = {}
    for name, seed, documents in (("a", 1, 120), ("b", 2, 50)):
        folder = tmp_path_factory.mktemp(name)
        rng = np.random.default_rng(seed)
        lines = [
            "".join(rng.choice(list("abcdef "), rng.integers(1, 90))) for _ in range(documents)
        ]
        (folder / "text.txt").write_text("\n".join(f"{n} {t}" for n, t in enumerate(lines)))
        request = BuildRequest(
            sources=(folder / "text.txt",),
            out=folder / "tokens",
            options=Options(documents="line"),
            part_bytes=700,
        )
        build(request)
        made[name] = TokenDataset.open(folder / "tokens")
        assert len(made[name].manifest.splits["train"].shards) > 2
    return made


def two(data: dict[str, TokenDataset], seed: int = 3, sequence: int = 16) -> SampleStream:
    components = [
        Component(dataset=data["a"], weight=0.75),
        Component(dataset=data["b"], weight=0.25),
    ]
    return SampleStream(components, sequence=sequence, seed=seed)


def test_an_epoch_shows_every_sample_once_and_epochs_differ(data: dict[str, TokenDataset]) -> None:
    stream = SampleStream(data["a"], sequence=16, seed=0)
    size = stream.sizes[0]
    first, second = stream.places(0, size), stream.places(size, size)
    assert np.array_equal(np.sort(first.sample), np.arange(size))
    assert np.array_equal(np.sort(second.sample), np.arange(size))
    assert not np.array_equal(first.sample, second.sample)
    assert set(first.epoch) == {0}
    assert set(second.epoch) == {1}


def test_components_keep_their_own_epochs(data: dict[str, TokenDataset]) -> None:
    stream = two(data)
    places = stream.places(0, 4 * sum(stream.sizes))
    for k, size in enumerate(stream.sizes):
        for epoch in range(int(places.epoch[places.component == k].max())):
            seen = places.sample[(places.component == k) & (places.epoch == epoch)]
            assert Counter(seen.tolist()) == Counter(range(size))


@given(
    start=st.integers(0, 5000),
    count=st.integers(1, 48),
    ranks=st.integers(1, 7),
    micro=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_tokens_do_not_depend_on_how_the_batch_is_cut(
    data: dict[str, TokenDataset], start: int, count: int, ranks: int, micro: int
) -> None:
    whole = two(data).batch(start, count)
    edges = np.linspace(0, count, ranks + 1).astype(int)
    stream = two(data)
    pieces = [
        stream.batch(start + at, min(micro, high - at))
        for low, high in itertools.pairwise(edges)
        for at in range(low, high, micro)
    ]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert content_hash(whole) == content_hash(np.concatenate(pieces))


def test_samples_are_the_tokens_in_place(data: dict[str, TokenDataset]) -> None:
    dataset = data["a"]
    stream = SampleStream(dataset, sequence=16, seed=0)
    row = dataset.read(0, dataset.tokens)
    places = stream.places(0, 50)
    for tokens, sample in zip(stream.batch(0, 50), places.sample, strict=True):
        assert np.array_equal(tokens, row[sample * 16 : sample * 16 + 17])


@pytest.mark.parametrize("sequence", [5, 16, 200])
def test_document_masks_follow_the_end_tokens(data: dict[str, TokenDataset], sequence: int) -> None:
    stream = two(data, sequence=sequence)
    batch = stream.batch_with_documents(0, 60)
    assert np.array_equal(batch.tokens, stream.batch(0, 60))
    for tokens, documents, positions in zip(
        batch.tokens, batch.documents, batch.positions, strict=True
    ):
        document = position = 0
        for n, token in enumerate(tokens):
            assert (documents[n], positions[n]) == (document, position)
            position += 1
            if token == 256:
                document, position = document + 1, 0


def test_fingerprint_tells_orders_apart(data: dict[str, TokenDataset]) -> None:
    base = two(data)
    assert base.fingerprint == two(data).fingerprint
    others = [
        two(data, seed=4),
        two(data, sequence=8),
        SampleStream(data["a"], sequence=16, seed=3),
    ]
    assert len({base.fingerprint, *(o.fingerprint for o in others)}) == 4
    assert not np.array_equal(base.batch(0, 8), two(data, seed=4).batch(0, 8))


def test_order_is_pinned(tmp_path: Path) -> None:
    """If this order ever changes, a run resumed after an update skips and repeats tokens."""
    (tmp_path / "t.txt").write_text("".join(chr(97 + n % 26) for n in range(1000)))
    build(BuildRequest(sources=(tmp_path / "t.txt",), out=tmp_path / "o"))
    stream = SampleStream(TokenDataset.open(tmp_path / "o"), sequence=10, seed=7)
    assert stream.places(0, 12).sample.tolist() == PINNED


PINNED = [72, 58, 19, 62, 54, 73, 56, 45, 52, 34, 15, 32]


def test_a_data_set_shorter_than_a_sample_is_refused(data: dict[str, TokenDataset]) -> None:
    with pytest.raises(DataError, match="fewer than the 1,000,001 of one sample"):
        SampleStream(data["a"], sequence=1_000_000, seed=0)
    with pytest.raises(DataError, match="at least 1"):
        SampleStream(data["a"], sequence=0, seed=0)
    with pytest.raises(IndexError):
        SampleStream(data["a"], sequence=8, seed=0).batch(-1, 2)
