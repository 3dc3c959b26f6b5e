"""Test that a dataset on S3 is read like a local one, or an error names what is wrong."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from helpers.datasets import open_split, write_dataset
from servers.faults import Fault, FaultProxy

from jobs.data.dataset import ShardedDataset
from jobs.data.loader import BatchLoader
from jobs.data.sampling import GlobalShuffle
from jobs.data.shard_reader import DataAccess
from jobs.data.sources.digits import DigitScenes, DigitsConfig
from jobs.errors import UserError


@pytest.fixture
def url(faulty_s3: tuple[str, FaultProxy], digit_scenes: DigitScenes, digits_config: DigitsConfig) -> str:
    """The digit dataset, written to S3 as the shard job does."""
    address = f"s3://{faulty_s3[0]}/shards/digits"
    write_dataset(digit_scenes, address, digits_config)
    return address


@pytest.fixture
def proxy(faulty_s3: tuple[str, FaultProxy]) -> Iterator[FaultProxy]:
    return faulty_s3[1]


@pytest.fixture
def access(url: str, tmp_path: Path) -> DataAccess:
    return DataAccess(url, tmp_path / "cache", 2**30)


def all_images(data: ShardedDataset) -> torch.Tensor:
    return data.images(np.arange(len(data)))


def test_loader_s3_batches_equal_local_batches(access: DataAccess, digit_dataset: Path) -> None:
    remote, local = ShardedDataset(access, "train"), open_split(digit_dataset, "train")
    assert remote.manifest == local.manifest
    order = GlobalShuffle(local.shard_sizes, batch_size=24, seed=5)
    streams = [BatchLoader(data, order, num_microbatches=4).batches(0, 12) for data in (remote, local)]
    for far, near in zip(*streams, strict=True):
        assert torch.equal(far, near)
    numbers = np.arange(len(local))
    np.testing.assert_array_equal(remote.factors(numbers), local.factors(numbers))


# Every kind of object; tests/jobs/storage/test_s3.py tests the faults one by one, among the fast tests.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "reset", "truncate", "lose", "flip"])
def test_dataset_s3_faults_change_no_image(
    access: DataAccess, proxy: FaultProxy, digit_dataset: Path, kind: str
) -> None:
    expected = all_images(open_split(digit_dataset, "train"))
    # Every object once: the manifest, each tar, each index.
    proxy.inject(*(Fault(kind, "GET", name) for name in ("manifest", r"00\.tar", r"01\.tar", r"02\.tar", "index")))
    assert torch.equal(all_images(ShardedDataset(access, "train")), expected)
    assert sum(hit.fault == kind for hit in proxy.hits) == 5


def test_dataset_s3_second_open_reads_cached_copies(access: DataAccess, proxy: FaultProxy) -> None:
    first = all_images(ShardedDataset(access, "train"))
    proxy.clear()
    assert torch.equal(all_images(ShardedDataset(access, "train")), first)
    assert {hit.path.rpartition("/")[2].partition("?")[0] for hit in proxy.hits} == {"manifest.json"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train-00001.tar", "train-00001.index.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_dataset_s3_damaged_object_error_names_it(access: DataAccess, name: str, damage: str) -> None:
    bucket, _, key = f"{access.url}/{name}".removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    if damage == "remove":
        client.delete_object(Bucket=bucket, Key=key)
    else:
        content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        changed = bytes([content[0] ^ 1]) + content[1:] if damage == "flip" else content[: len(content) // 2]
        client.put_object(Bucket=bucket, Key=key, Body=changed)
    with pytest.raises(UserError, match=rf"{access.url}/{name}.*force=shard"):
        all_images(ShardedDataset(access, "train"))


@pytest.mark.slow
def test_dataset_s3_changed_copy_is_fetched_again(access: DataAccess) -> None:
    expected = all_images(ShardedDataset(access, "train"))
    for path in access.cache_dir.rglob("*.tar"):
        content = bytearray(path.read_bytes())
        content[2000] ^= 1
        path.write_bytes(content)
    assert torch.equal(all_images(ShardedDataset(access, "train")), expected)


def test_dataset_s3_wrong_credentials_error_names_object(access: DataAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(UserError, match=r"manifest\.json.*AWS_SECRET_ACCESS_KEY"):
        ShardedDataset(access, "train")


@pytest.mark.slow
def test_loader_s3_small_cache_reads_all_in_blocks(access: DataAccess, digit_dataset: Path) -> None:
    """The cache has space for two of the three tars at a time."""
    local = open_split(digit_dataset, "train")
    order = GlobalShuffle(local.shard_sizes, batch_size=24, seed=5, block_shards=1)
    small = ShardedDataset(replace(access, cache_bytes=480_000), "train")
    with pytest.raises(UserError, match=r"data\.cache_bytes=480000"):
        small.check_capacity(0, 24)
    streams = [BatchLoader(data, order, num_microbatches=4).batches(0, 30) for data in (small, local)]
    for far, near in zip(*streams, strict=True):
        assert torch.equal(far, near)
