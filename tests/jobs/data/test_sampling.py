"""The order of the samples: a permutation for every size and key, shared out without a gap."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.sampling import Order, permute, worker_slices


@settings(deadline=None)
@given(num_samples=st.integers(1, 5000), key=st.integers(0, 2**63 - 1))
def test_permute_is_a_permutation(num_samples: int, key: int) -> None:
    image = permute(np.arange(num_samples), num_samples, key)
    assert sorted(image.tolist()) == list(range(num_samples))


def test_permute_reaches_any_place_of_a_huge_range_at_once() -> None:
    place = np.array([0, 1, 10**12 - 1])
    image = permute(place, 10**12, 7)
    assert len(set(image.tolist())) == 3
    assert ((image >= 0) & (image < 10**12)).all()


def test_permutations_look_random() -> None:
    """Mean displacement of a random permutation is n / 3, and it has one fixed point on average."""
    n = 3000
    images = np.stack([permute(np.arange(n), n, key) for key in range(40)])
    assert np.abs(images - np.arange(n)).mean() == pytest.approx(n / 3, rel=0.02)
    assert (images == np.arange(n)).sum(1).mean() == pytest.approx(1, abs=0.6)
    neighbors = np.corrcoef(images[:, :-1].ravel(), images[:, 1:].ravel())[0, 1]
    assert abs(neighbors) < 0.02


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**62),
    shards=sizes,
    batch=st.integers(1, 64),
    step=st.integers(0, 40),
    window=st.integers(0, 13),
)
def test_epochs_visit_every_sample_once(seed: int, shards: list[int], batch: int, step: int, window: int) -> None:
    num_samples = sum(shards)
    order = Order(shards, batch_size=batch, seed=seed, window=window)
    steps = -(-num_samples // batch) + step
    stream = np.concatenate([order.batch(t) for t in range(steps)])
    for epoch in range(len(stream) // num_samples):
        visited = stream[epoch * num_samples : (epoch + 1) * num_samples]
        np.testing.assert_array_equal(np.sort(visited), np.arange(num_samples))
    # A fresh object, asked for one step, knows it: nothing depends on what was asked before.
    again = Order(shards, batch_size=batch, seed=seed, window=window)
    np.testing.assert_array_equal(stream[step * batch :][:batch], again.batch(step))


@settings(deadline=None)
@given(seed=st.integers(0, 2**62), shards=sizes, batch=st.integers(1, 16), window=st.integers(1, 5))
def test_a_window_is_read_from_its_shards_alone(seed: int, shards: list[int], batch: int, window: int) -> None:
    order = Order(shards, batch_size=batch, seed=seed, window=window)
    if window >= len(shards):
        assert order.windows(0) == []
        return
    shard_of = np.repeat(np.arange(len(shards)), shards)
    stream = np.concatenate([order.batch(t) for t in range(-(-sum(shards) // batch))])[: sum(shards)]
    visited = shard_of[stream]
    seen: set[int] = set()
    start = 0
    while start < len(stream):  # cut the epoch where the windows should end
        members = set(visited[start:].tolist()) - seen
        first = list(dict.fromkeys(visited[start:].tolist()))[: min(window, len(members))]
        length = sum(shards[shard] for shard in first)
        assert set(visited[start : start + length].tolist()) == set(first)
        seen |= set(first)
        start += length


@settings(deadline=None)
@given(seed=st.integers(0, 2**62), shards=sizes, batch=st.integers(1, 16), window=st.integers(1, 5))
def test_windows_name_the_shards_to_come(seed: int, shards: list[int], batch: int, window: int) -> None:
    order = Order(shards, batch_size=batch, seed=seed, window=window)
    shard_of = np.repeat(np.arange(len(shards)), shards)
    for step in range(2 * -(-sum(shards) // batch)):
        windows = order.windows(step)
        if not windows:
            return
        assert all(1 <= len(part) <= window for part in windows)
        assert shard_of[order.batch(step)[-1]] in windows[0]
        coming = [shard_of[order.batch(t)] for t in (step + 1, step + 2)]
        if len(coming[0]) <= min(shards):  # a batch cannot leap over a whole window
            assert set(coming[0].tolist()) <= set(np.concatenate(windows).tolist())


def test_windows_shuffle_samples_and_shards() -> None:
    order = Order([50] * 20, batch_size=1000, seed=1, window=4)
    first, second = order.batch(0), order.batch(1)
    assert abs(np.corrcoef(first[:200], np.arange(200))[0, 1]) < 0.3
    assert (first // 50)[:200].tolist() != (second // 50)[:200].tolist()


def test_epochs_and_seeds_differ() -> None:
    order = Order([100], batch_size=100, seed=0)
    assert not np.array_equal(order.batch(0), order.batch(1))
    assert not np.array_equal(order.batch(0), Order([100], batch_size=100, seed=1).batch(0))


def test_the_order_of_this_version_is_that_of_all_versions() -> None:
    """A run that is resumed after an upgrade must go on with the same batches."""
    assert Order([300, 20], batch_size=6, seed=3).batch(7).tolist() == [276, 316, 240, 32, 55, 67]
    assert Order([10, 20, 50], batch_size=6, seed=3, window=2).batch(7).tolist() == [42, 29, 11, 31, 28, 67]


def test_a_billion_samples_take_no_memory() -> None:
    tracemalloc.start()
    order = Order([10**9], batch_size=4096, seed=0)
    held = tracemalloc.get_traced_memory()[0]
    batch = order.batch(123_456_789)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 10**6
    assert peak < 4 * 10**6
    assert len(set(batch.tolist())) == 4096


@pytest.mark.parametrize("world_size", range(1, 9))
def test_workers_share_the_slices_out(world_size: int) -> None:
    parts = [list(worker_slices(8, rank, world_size)) for rank in range(world_size)]
    assert [number for part in parts for number in part] == list(range(8))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_workers_than_slices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"8 slices.*9 workers"):
        worker_slices(8, 0, 9)


def test_a_share_of_the_batch_is_that_part_of_it() -> None:
    """Whatever the steps before, through the ends of epochs and of windows."""
    for window in (0, 3):
        order = Order([70, 30, 5, 95, 40, 60, 8], batch_size=48, seed=2, window=window)
        for step in (0, 1, 6, 7, 40, 3):
            whole = order.batch(step)
            for places in (range(48), range(1), range(12, 24), range(47, 48)):
                assert order.share(step, places).tolist() == whole[places.start : places.stop].tolist()
