"""Shards that are damaged, missing or of another tool: the one line that names them, and no byte of them is read."""

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import copy, local, open_split, write_dataset

from jobs.data.dataset import ShardedDataset
from jobs.data.sources.config import DigitsConfig
from jobs.data.sources.digits import DigitScenes
from jobs.errors import UserError


def damaged(content: bytes, damage: str) -> bytes:
    """A tar as disks and copies leave it. Its first members' blocks: JSON header, JSON, image header, image."""
    if damage == "flip":
        return content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]
    places = {"header": 512 + 512 + 200, "payload": 512 * 3 + 300, "edge": 512 * 3 + math.ceil((128 + 768) / 512) * 512}
    return content[: places[damage]]


@pytest.mark.parametrize("name", ["train-00001.tar", "train-00001.index.npy"])
@pytest.mark.parametrize("damage", ["flip", "header", "payload", "edge", "remove", "empty"])
@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_a_damaged_shard_is_named(
    digit_dataset: Path, png_dataset: Path, tmp_path: Path, name: str, damage: str, encoding: str
) -> None:
    path = copy(digit_dataset if encoding == "npy" else png_dataset, tmp_path) / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else damaged(content, damage))
    data = open_split(path.parent, "train")
    with pytest.raises(UserError, match=f"{name}.*force=shard"):
        data.images(np.arange(len(data)))


def test_a_shard_of_another_tool_is_refused(digit_dataset: Path, tmp_path: Path) -> None:
    """The same members in a tar with PAX headers, as webdataset writes by default, lie elsewhere."""
    path = copy(digit_dataset, tmp_path) / "train-00000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            member.mtime = 0.5
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=r"train-00000\.tar is damaged"):
        open_split(path.parent, "train").images(np.arange(5))


def test_the_index_of_another_shard_is_refused(digit_dataset: Path, tmp_path: Path) -> None:
    folder = copy(digit_dataset, tmp_path)
    (folder / "train-00001.index.npy").write_bytes((folder / "train-00000.index.npy").read_bytes())
    data = open_split(folder, "train")
    with pytest.raises(UserError, match=r"train-00001\.index\.npy is damaged"):
        data.images(np.arange(len(data)))


def test_decoded_copies_are_made_once_and_mended(png_dataset: Path, tmp_path: Path) -> None:
    folder = copy(png_dataset, tmp_path)
    access = local(folder)
    numbers = np.arange(20)
    expected = ShardedDataset(access, "train").images(numbers)
    (pixels,) = access.cache_dir.glob("*.pixels")
    before = pixels.stat().st_ino
    assert torch.equal(ShardedDataset(access, "train").images(numbers), expected)
    assert pixels.stat().st_ino == before
    content = bytearray(pixels.read_bytes())
    content[100] ^= 1
    pixels.write_bytes(content)
    assert torch.equal(ShardedDataset(access, "train").images(numbers), expected)


def test_empty_splits_and_places_are_named(digit_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run stage=shard"):
        open_split(tmp_path, "train")
    scenes = DigitScenes(30, 16, 3, 0)
    write_dataset(scenes, tmp_path / "few", DigitsConfig(num_images=30, validation_fraction=0, test_fraction=0.2))
    with pytest.raises(UserError, match=r"validation split.*validation_fraction"):
        open_split(tmp_path / "few", "validation")
