"""Test that batches are the same for any number of workers and from any step, and never damaged."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
from helpers.datasets import copy, local, open_split, stock_samples, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jobs.data.dataset import ShardedDataset
from jobs.data.loader import BatchLoader
from jobs.data.sampling import GlobalShuffle
from jobs.data.sources.base import Factor, Sample, Source
from jobs.data.sources.digits import DigitScenes, DigitsConfig
from jobs.errors import UserError

MICROBATCHES = 24  # divisible by 1, 2, 3, 4 and 8 ranks


def test_dataset_images_and_factors_equal_source(
    digit_scenes: DigitScenes, digit_dataset: Path, png_dataset: Path
) -> None:
    written = {sample.key: sample for sample in digit_scenes.read(0, 300)}
    num_read = 0
    for split in ("train", "validation", "test"):
        raw, png = open_split(digit_dataset, split), open_split(png_dataset, split)
        numbers = np.arange(len(raw))
        images, factors = raw.images(numbers), raw.factors(numbers)
        keys = [sample["__key__"] for sample in stock_samples(digit_dataset, f"{split}-*.tar")]
        for number, key in enumerate(keys):
            np.testing.assert_array_equal(images[number].permute(1, 2, 0), written[key].image)
            assert factors[number].tolist() == list(written[key].factors.values())
        assert torch.equal(png.images(numbers), images)
        np.testing.assert_array_equal(png.factors(numbers), factors)
        num_read += len(keys)
    assert num_read == 300


def test_dataset_samples_of_uneven_length_are_read(tmp_path: Path) -> None:
    """The JSON of the factors takes one block of the tar in some samples and two in others."""
    names = [f"one rather long factor name {number}" for number in range(13)]

    class Uneven(Source):
        image_size, channels, num_samples, fingerprint = 16, 3, 300, "uneven"
        factors = tuple(Factor(name, (0, 1)) for name in names)

        def read(self, start: int, stop: int) -> Iterator[Sample]:
            for number, sample in enumerate(DigitScenes(300, 16, 3, 0).read(start, stop), start):
                yield replace(sample, factors=dict.fromkeys(names, number**3))

    source = Uneven()
    write_dataset(source, tmp_path / "data", DigitsConfig(samples_per_task=120))
    (index,) = (np.load(path) for path in tmp_path.glob("data/train-00000.index.npy"))
    assert len(np.unique(np.diff(index[:, 0]))) > 1
    written = {sample.key: sample for sample in source.read(0, 300)}
    data = open_split(tmp_path / "data", "train")
    samples = stock_samples(tmp_path / "data", "train-*.tar")
    numbers = np.random.default_rng(0).permutation(len(data))
    for image, row, number in zip(data.images(numbers), data.factors(numbers), numbers, strict=True):
        sample = written[samples[number]["__key__"]]
        np.testing.assert_array_equal(image.permute(1, 2, 0), sample.image)
        assert row.tolist() == list(sample.factors.values())


def loader(
    data: ShardedDataset, seed: int = 0, block_shards: int = 0, rank: int = 0, world_size: int = 1, batch_size: int = 48
) -> BatchLoader:
    order = GlobalShuffle(data.shard_sizes, batch_size=batch_size, seed=seed, block_shards=block_shards)
    return BatchLoader(data, order, num_microbatches=MICROBATCHES, rank=rank, world_size=world_size)


def fingerprint(loaders: list[BatchLoader], step: int) -> str:
    """Return a hash of the global batch that these ranks read together: its sample ids and pixels."""
    digest = hashlib.sha256(loaders[0].order.batch(step).tobytes())
    for rank_loader in loaders:
        digest.update(rank_loader.images(step).permute(0, 2, 3, 1).numpy().tobytes())
    return digest.hexdigest()


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**62),
    block_shards=st.integers(0, 3),
    stop=st.integers(0, 30),
    before=st.sampled_from([1, 2, 3, 4, 8]),
    after=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_loader_any_ranks_any_resume_same_batches(
    digit_dataset: Path, seed: int, block_shards: int, stop: int, before: int, after: int
) -> None:
    """Some ranks read up to a step and others from there on, with and without reading ahead."""
    data, steps = open_split(digit_dataset, "train"), 32
    single = loader(data, seed, block_shards)
    expected = [fingerprint([single], step) for step in range(steps)]
    first = [loader(data, seed, block_shards, rank, before) for rank in range(before)]
    assert [fingerprint(first, step) for step in range(stop)] == expected[:stop]
    resumed = [loader(open_split(digit_dataset, "train"), seed, block_shards, rank, after) for rank in range(after)]
    streams = [rank_loader.batches(stop, steps) for rank_loader in resumed]
    for step, batches in enumerate(zip(*streams, strict=True), start=stop):
        digest = hashlib.sha256(single.order.batch(step).tobytes())
        for batch in batches:
            digest.update(batch.permute(0, 2, 3, 1).numpy().tobytes())
        assert digest.hexdigest() == expected[step]


def test_loader_other_seed_or_block_gives_other_order(digit_dataset: Path) -> None:
    data = open_split(digit_dataset, "train")
    prints = {fingerprint([loader(data, seed, block_shards)], 1) for seed in (0, 1) for block_shards in (0, 1, 2)}
    assert len(prints) == 6


def test_loader_preloaded_images_are_equal(digit_dataset: Path) -> None:
    data = open_split(digit_dataset, "train")
    order = GlobalShuffle(data.shard_sizes, batch_size=48, seed=0)
    preloaded = BatchLoader(data, order, num_microbatches=MICROBATCHES, preload=torch.device("cpu"))
    for step, images in zip(range(9), preloaded.batches(0, 9), strict=True):
        assert torch.equal(images, loader(data).images(step))


def test_loader_closed_stream_stops_reading_ahead(digit_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch was taken, the second is being read, and the third is canceled."""
    rank_loader, submitted, steps = loader(open_split(digit_dataset, "train")), Queue[Future[Tensor]](), list[int]()
    read, reading = rank_loader.images, threading.Event()

    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments: Any) -> Any:
            future = super().submit(*arguments)
            submitted.put(future)
            return future

    def images(step: int) -> Tensor:
        steps.append(step)
        if step == 1:
            reading.set()
            third = [submitted.get(timeout=60) for _ in range(3)][2]
            with suppress(CancelledError, TimeoutError):
                third.result(timeout=10)
        return read(step)

    monkeypatch.setattr("jobs.data.loader.ThreadPoolExecutor", Pool)
    monkeypatch.setattr(rank_loader, "images", images)
    stream = rank_loader.batches(0, 10**9)
    next(stream)
    assert reading.wait(60)
    stream.close()
    assert steps == [0, 1]


def test_loader_error_while_reading_ahead_is_raised(digit_dataset: Path, tmp_path: Path) -> None:
    folder = copy(digit_dataset, tmp_path)
    (folder / "train-00001.tar").unlink()
    with pytest.raises(UserError, match=r"train-00001\.tar"):
        list(loader(open_split(folder, "train")).batches(0, 5))


@pytest.fixture(scope="module")
def many_shards(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Fifteen PNG shards of about 14 images, 10 kB decoded, and a last one of few."""
    folder = tmp_path_factory.mktemp("data") / "many"
    write_dataset(digit_scenes, folder, digits_config.model_copy(update={"encoding": "png", "samples_per_task": 19}))
    return folder


def test_dataset_cache_too_small_raises_before_reading(many_shards: Path) -> None:
    data = ShardedDataset(replace(local(many_shards), cache_bytes=60_000), "train")
    data.check_capacity(1, batch_size=8)
    for block_shards, batch_size in ((0, 8), (2, 8), (1, 100)):
        with pytest.raises(UserError, match=r"data\.cache_bytes=60000.*shuffle_block_shards=1 "):
            data.check_capacity(block_shards, batch_size)
    with pytest.raises(UserError, match=r"data\.cache_bytes=30000"):
        ShardedDataset(replace(local(many_shards), cache_bytes=30_000), "train").check_capacity(1, 8)


@pytest.mark.parametrize("ranks", [1, 2])
def test_loader_blocks_stay_below_cache_limit(many_shards: Path, tmp_path: Path, ranks: int) -> None:
    """With a cache for four of the shards every sample is read, also by ranks that share the copies."""
    access = replace(local(many_shards), cache_dir=tmp_path / "small", cache_bytes=60_000)
    whole = loader(open_split(many_shards, "train"), block_shards=1, batch_size=24)
    small = [
        loader(ShardedDataset(access, "train"), block_shards=1, batch_size=24, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    for rank_loader in small:
        rank_loader.data.check_capacity(1, 8)
    for step, batches in enumerate(zip(*(rank_loader.batches(0, 40) for rank_loader in small), strict=True)):
        assert torch.equal(torch.cat(batches), whole.images(step))
    for rank_loader in small:
        rank_loader.data._pool.shutdown()  # while files come and go, their sizes cannot be added up
    assert size_of(access.cache_dir) <= 60_000


def test_dataset_read_with_few_open_shards_is_equal(many_shards: Path, tmp_path: Path) -> None:
    access = replace(local(many_shards), cache_dir=tmp_path / "small", cache_bytes=40_000)
    small, whole = ShardedDataset(access, "train"), open_split(many_shards, "train")
    numbers = np.random.default_rng(0).permutation(len(whole))
    images, factors = small.read(numbers)
    assert torch.equal(images, whole.images(numbers))
    np.testing.assert_array_equal(factors, whole.factors(numbers))
    order = GlobalShuffle(whole.shard_sizes, batch_size=48, seed=0)
    preloaded = BatchLoader(
        ShardedDataset(access, "train"), order, num_microbatches=MICROBATCHES, preload=torch.device("cpu")
    )
    assert torch.equal(preloaded.images(3), loader(whole).images(3))


def size_of(folder: Path) -> int:
    sizes = []
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # removed meanwhile
            sizes.append(entry.stat().st_size)
    return sum(sizes)
