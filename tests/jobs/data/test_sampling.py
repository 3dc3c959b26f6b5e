"""Test the order of the samples: a permutation for every size and key, divided without a gap."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.sampling import GlobalShuffle, permute, worker_microbatches


@settings(deadline=None)
@given(num_samples=st.integers(1, 5000), key=st.integers(0, 2**63 - 1))
def test_permute_any_size_is_a_permutation(num_samples: int, key: int) -> None:
    image = permute(np.arange(num_samples), num_samples, key)
    assert sorted(image.tolist()) == list(range(num_samples))


def test_permute_huge_range_maps_single_positions() -> None:
    position = np.array([0, 1, 10**12 - 1])
    image = permute(position, 10**12, 7)
    assert len(set(image.tolist())) == 3
    assert ((image >= 0) & (image < 10**12)).all()


def test_permute_many_keys_look_random() -> None:
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
    block_shards=st.integers(0, 13),
)
def test_shuffle_epoch_visits_every_sample_once(
    seed: int, shards: list[int], batch: int, step: int, block_shards: int
) -> None:
    num_samples = sum(shards)
    order = GlobalShuffle(shards, batch_size=batch, seed=seed, block_shards=block_shards)
    steps = -(-num_samples // batch) + step
    stream = np.concatenate([order.batch(t) for t in range(steps)])
    for epoch in range(len(stream) // num_samples):
        visited = stream[epoch * num_samples : (epoch + 1) * num_samples]
        np.testing.assert_array_equal(np.sort(visited), np.arange(num_samples))
    # A new object gives the same batch, because nothing depends on earlier calls.
    again = GlobalShuffle(shards, batch_size=batch, seed=seed, block_shards=block_shards)
    np.testing.assert_array_equal(stream[step * batch :][:batch], again.batch(step))


@settings(deadline=None)
@given(seed=st.integers(0, 2**62), shards=sizes, batch=st.integers(1, 16), block_shards=st.integers(1, 5))
def test_shuffle_block_reads_only_its_shards(seed: int, shards: list[int], batch: int, block_shards: int) -> None:
    order = GlobalShuffle(shards, batch_size=batch, seed=seed, block_shards=block_shards)
    if block_shards >= len(shards):
        assert order.blocks(0) == []
        return
    shard_of = np.repeat(np.arange(len(shards)), shards)
    stream = np.concatenate([order.batch(t) for t in range(-(-sum(shards) // batch))])[: sum(shards)]
    visited = shard_of[stream]
    seen: set[int] = set()
    start = 0
    while start < len(stream):  # cut the epoch where the blocks should end
        members = set(visited[start:].tolist()) - seen
        first = list(dict.fromkeys(visited[start:].tolist()))[: min(block_shards, len(members))]
        length = sum(shards[shard] for shard in first)
        assert set(visited[start : start + length].tolist()) == set(first)
        seen |= set(first)
        start += length


@settings(deadline=None)
@given(seed=st.integers(0, 2**62), shards=sizes, batch=st.integers(1, 16), block_shards=st.integers(1, 5))
def test_shuffle_blocks_contain_coming_shards(seed: int, shards: list[int], batch: int, block_shards: int) -> None:
    order = GlobalShuffle(shards, batch_size=batch, seed=seed, block_shards=block_shards)
    shard_of = np.repeat(np.arange(len(shards)), shards)
    for step in range(2 * -(-sum(shards) // batch)):
        blocks = order.blocks(step)
        if not blocks:
            return
        assert all(1 <= len(block) <= block_shards for block in blocks)
        assert shard_of[order.batch(step)[-1]] in blocks[0]
        coming = [shard_of[order.batch(t)] for t in (step + 1, step + 2)]
        if len(coming[0]) <= min(shards):  # a batch cannot skip a whole block
            assert set(coming[0].tolist()) <= set(np.concatenate(blocks).tolist())


def test_shuffle_block_shuffles_samples_and_shards() -> None:
    order = GlobalShuffle([50] * 20, batch_size=1000, seed=1, block_shards=4)
    first, second = order.batch(0), order.batch(1)
    assert abs(np.corrcoef(first[:200], np.arange(200))[0, 1]) < 0.3
    assert (first // 50)[:200].tolist() != (second // 50)[:200].tolist()


def test_shuffle_epochs_and_seeds_differ() -> None:
    order = GlobalShuffle([100], batch_size=100, seed=0)
    assert not np.array_equal(order.batch(0), order.batch(1))
    assert not np.array_equal(order.batch(0), GlobalShuffle([100], batch_size=100, seed=1).batch(0))


def test_shuffle_order_equals_earlier_versions() -> None:
    """A run that is resumed after an upgrade must continue with the same batches."""
    assert GlobalShuffle([300, 20], batch_size=6, seed=3).batch(7).tolist() == [276, 316, 240, 32, 55, 67]
    assert GlobalShuffle([10, 20, 50], batch_size=6, seed=3, block_shards=2).batch(7).tolist() == [
        42,
        29,
        11,
        31,
        28,
        67,
    ]


def test_shuffle_billion_samples_takes_no_memory() -> None:
    tracemalloc.start()
    order = GlobalShuffle([10**9], batch_size=4096, seed=0)
    kept = tracemalloc.get_traced_memory()[0]
    batch = order.batch(123_456_789)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept < 10**6
    assert peak < 4 * 10**6
    assert len(set(batch.tolist())) == 4096


@pytest.mark.parametrize("world_size", range(1, 9))
def test_worker_microbatches_cover_all_evenly(world_size: int) -> None:
    ranges = [list(worker_microbatches(8, rank, world_size)) for rank in range(world_size)]
    assert [index for indices in ranges for index in indices] == list(range(8))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_worker_microbatches_too_many_workers_raises() -> None:
    with pytest.raises(ValueError, match=r"8 .*9"):
        worker_microbatches(8, 0, 9)


def test_sample_ids_equal_positions_of_batch() -> None:
    """The steps before do not matter, also across the ends of epochs and of blocks."""
    for block_shards in (0, 3):
        order = GlobalShuffle([70, 30, 5, 95, 40, 60, 8], batch_size=48, seed=2, block_shards=block_shards)
        for step in (0, 1, 6, 7, 40, 3):
            whole = order.batch(step)
            for positions in (range(48), range(1), range(12, 24), range(47, 48)):
                assert order.sample_ids(step, positions).tolist() == whole[positions.start : positions.stop].tolist()
