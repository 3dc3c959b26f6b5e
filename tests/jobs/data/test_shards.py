"""What is written, read back by stock webdataset and by tarfile."""

import gc
import hashlib
import json
import shutil
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from conftest import write_dataset

from jobs.data.loader import BatchLoader, ShardedSplit
from jobs.data.manifest import read_manifest
from jobs.data.shards import split_of, write_task
from jobs.data.source import Sample
from jobs.data.sources.digits import DigitScenes
from jobs.errors import UserError


def stock_samples(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Samples as webdataset itself reads them, in the order of the tars."""
    tars = sorted(str(path) for path in folder.glob(pattern))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the garbage collector
        samples = list(wds.WebDataset(tars, shardshuffle=False).decode())
        gc.collect()
    return samples


def test_stock_webdataset_reads_every_sample(digit_scenes: DigitScenes, digit_dataset: Path) -> None:
    read = {sample["__key__"]: sample for sample in stock_samples(digit_dataset, "*.tar")}
    written = list(digit_scenes.read(0, 300))
    assert set(read) == {sample.key for sample in written}
    for sample in written:
        np.testing.assert_array_equal(read[sample.key]["npy"], sample.image)
        assert read[sample.key]["json"] == sample.factors


def test_index_points_where_tarfile_does(digit_dataset: Path) -> None:
    for path in digit_dataset.glob("*.tar"):
        index = np.load(path.with_suffix(".index.npy"), allow_pickle=False)
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar.getmembers()}
        tables = [member for name, member in members.items() if name.endswith(".json")]
        images = [member for name, member in members.items() if name.endswith(".npy")]
        np.testing.assert_array_equal(index[:, 1], [member.offset_data for member in tables])
        np.testing.assert_array_equal(index[:, 2], [member.size for member in tables])
        np.testing.assert_array_equal(index[:, 0], [m.offset_data + m.size - 16 * 16 * 3 for m in images])


def test_manifest_says_what_there_is(digit_scenes: DigitScenes, digit_dataset: Path) -> None:
    manifest = read_manifest(digit_dataset)
    assert manifest is not None
    assert manifest.factors == digit_scenes.factors
    assert manifest.image_shape == (16, 16, 3)
    assert sum(shard.num_samples for shard in manifest.shards) == 300
    for shard in manifest.shards:
        content = (digit_dataset / f"{shard.name}.tar").read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.num_bytes, shard.sha256)


def test_equal_samples_give_equal_bytes(digit_scenes: DigitScenes, digit_dataset: Path, tmp_path: Path) -> None:
    again = write_dataset(digit_scenes, tmp_path / "again", samples_per_task=120)
    manifest = read_manifest(digit_dataset)
    assert manifest is not None
    assert again.fingerprint == manifest.fingerprint
    other = write_dataset(DigitScenes(300, 16, 3, 1), tmp_path / "other", samples_per_task=120)
    assert other.fingerprint != again.fingerprint


def test_split_by_hash_of_the_key() -> None:
    samples = [Sample(f"{number}", np.zeros((1, 1, 1), np.uint8), {}) for number in range(20_000)]
    shares = Counter(split_of(sample, 0.05, 0.1) for sample in samples)
    assert shares["validation"] / 20_000 == pytest.approx(0.05, abs=0.006)
    assert shares["test"] / 20_000 == pytest.approx(0.1, abs=0.008)
    # The publisher's word counts: his test set stays whole, and nothing of his training set joins it.
    for split, expected in (("test", {"test"}), ("train", {"train", "validation"}), ("validation", {"validation"})):
        published = [Sample(sample.key, sample.image, {}, split) for sample in samples[:500]]
        assert {split_of(sample, 0.2, 0.2) for sample in published} == expected


class Failing(DigitScenes):
    def read(self, start: int, stop: int) -> Iterator[Sample]:
        yield from super().read(start, stop - 1)
        raise UserError("picture 17 is damaged")


def test_a_failing_source_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="picture 17"):
        write_task(Failing(100, 16, 3, 0), tmp_path, 0, range(100), 0.1, 0.2)
    assert list(tmp_path.iterdir()) == []


def test_loader_gives_back_images_and_factors(digit_scenes: DigitScenes, digit_dataset: Path) -> None:
    written = {sample.key: sample for sample in digit_scenes.read(0, 300)}
    seen = 0
    for split in ("train", "validation", "test"):
        data = ShardedSplit(digit_dataset, split)
        numbers = np.arange(len(data))
        images, factors = data.images(numbers), data.factors(numbers)
        keys = [sample["__key__"] for sample in stock_samples(digit_dataset, f"{split}-*.tar")]
        for number, key in enumerate(keys):
            np.testing.assert_array_equal(images[number].permute(1, 2, 0), written[key].image)
            assert factors[number].tolist() == list(written[key].factors.values())
        seen += len(keys)
    assert seen == 300


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_together_read_what_one_reads(digit_dataset: Path, world_size: int) -> None:
    data = ShardedSplit(digit_dataset, "train")
    settings = {"seed": 3, "batch_size": 24, "num_slices": 4}
    alone = BatchLoader(data, **settings)
    workers = [BatchLoader(data, **settings, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 1, 50):
        together = np.concatenate([worker.images(step).numpy() for worker in workers])
        np.testing.assert_array_equal(alone.images(step).numpy(), together)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


@pytest.mark.parametrize("name", ["train-00001.tar", "train-00001.index.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named(digit_dataset: Path, tmp_path: Path, name: str, damage: str) -> None:
    path = copy(digit_dataset, tmp_path) / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*force=shard"):
        ShardedSplit(path.parent, "train")


def test_a_damaged_manifest_is_named(digit_dataset: Path, tmp_path: Path) -> None:
    path = copy(digit_dataset, tmp_path) / "manifest.json"
    good = json.loads(path.read_text())
    for bad in ("{", json.dumps({**good, "shards": good["shards"][1:]}), json.dumps({**good, "format": 99}), "[]"):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"manifest\.json.*force=shard"):
            read_manifest(path.parent)
    path.unlink()
    with pytest.raises(UserError, match="run stage=shard"):
        ShardedSplit(path.parent, "train")
