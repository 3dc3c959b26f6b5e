"""Test that damaged, missing and foreign shards raise an error that names them, and are never read."""

import io
import math
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from helpers.datasets import copy, local, open_split, write_dataset

from jobs.data.cache import SUBFOLDER, Cache, Make
from jobs.data.dataset import ShardedDataset
from jobs.data.manifest import FORMAT, _seal, _unseal
from jobs.data.sources.digits import DigitScenes, DigitsConfig
from jobs.errors import UserError


def damage_tar(content: bytes, damage: str) -> bytes:
    """Return a tar as failing disks and copies leave it. Its first blocks: JSON header, JSON, image header, image."""
    if damage == "flip":
        return content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]
    lengths = {
        "header": 512 + 512 + 200,
        "payload": 512 * 3 + 300,
        "edge": 512 * 3 + math.ceil((128 + 768) / 512) * 512,
    }
    return content[: lengths[damage]]


@pytest.mark.parametrize("name", ["train-00001.tar", "train-00001.index.npy"])
@pytest.mark.parametrize("damage", ["flip", "header", "payload", "edge", "remove", "empty"])
@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_dataset_damaged_shard_error_names_file(
    digit_dataset: Path, png_dataset: Path, tmp_path: Path, name: str, damage: str, encoding: str
) -> None:
    path = copy(digit_dataset if encoding == "npy" else png_dataset, tmp_path) / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else damage_tar(content, damage))
    data = open_split(path.parent, "train")
    with pytest.raises(UserError, match=f"{name}.*force=shard"):
        data.images(np.arange(len(data)))


def test_dataset_shard_of_other_tool_raises(digit_dataset: Path, tmp_path: Path) -> None:
    """The same members are at other offsets in a tar with PAX headers, which webdataset writes by default."""
    path = copy(digit_dataset, tmp_path) / "train-00000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            member.mtime = 0.5
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=r"train-00000\.tar"):
        open_split(path.parent, "train").images(np.arange(5))


def test_dataset_index_of_other_shard_raises(digit_dataset: Path, tmp_path: Path) -> None:
    folder = copy(digit_dataset, tmp_path)
    (folder / "train-00001.index.npy").write_bytes((folder / "train-00000.index.npy").read_bytes())
    data = open_split(folder, "train")
    with pytest.raises(UserError, match=r"train-00001\.index\.npy"):
        data.images(np.arange(len(data)))


def test_dataset_png_copy_made_once_and_repaired(png_dataset: Path, tmp_path: Path) -> None:
    folder = copy(png_dataset, tmp_path)
    access = local(folder)
    numbers = np.arange(20)
    expected = ShardedDataset(access, "train").images(numbers)
    (pixels,) = access.cache_dir.rglob("*.pixels")
    before = pixels.stat().st_ino
    assert torch.equal(ShardedDataset(access, "train").images(numbers), expected)
    assert pixels.stat().st_ino == before
    content = bytearray(pixels.read_bytes())
    content[100] ^= 1
    pixels.write_bytes(content)
    assert torch.equal(ShardedDataset(access, "train").images(numbers), expected)


def test_dataset_missing_or_empty_split_raises(digit_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage=shard"):
        open_split(tmp_path, "train")
    scenes = DigitScenes(30, 16, 3, 0)
    write_dataset(scenes, tmp_path / "few", DigitsConfig(num_images=30, validation_fraction=0, test_fraction=0.2))
    with pytest.raises(UserError, match=r"data\.validation_fraction"):
        open_split(tmp_path / "few", "validation")


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """Change the manifest, with a valid hash of itself."""
    content = _unseal((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(_seal(content | changes))


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_dataset_of_other_format_raises(digit_dataset: Path, tmp_path: Path, version: int) -> None:
    folder = copy(digit_dataset, tmp_path)
    rewrite_manifest(folder, format=version)
    with pytest.raises(UserError, match=rf"manifest\.json: format {version} .*force=shard"):
        open_split(folder, "train")


def test_dataset_index_of_other_shape_raises(digit_dataset: Path, tmp_path: Path) -> None:
    """The manifest has a factor less than the index, whose hash is right."""
    folder = copy(digit_dataset, tmp_path)
    rewrite_manifest(folder, factors=_unseal((folder / "manifest.json").read_bytes())["factors"][1:])
    with pytest.raises(UserError, match=r"train-00000\.index\.npy: .*force=shard"):
        open_split(folder, "train").images(np.arange(5))


def test_dataset_png_of_other_mode_raises(png_dataset: Path, tmp_path: Path) -> None:
    """The images are in color, by the manifest gray; all hashes are right."""
    folder = copy(png_dataset, tmp_path)
    rewrite_manifest(folder, image_shape=[16, 16, 1])
    with pytest.raises(UserError, match=r"train-00000\.tar: .*PNG.*force=shard"):
        open_split(folder, "train").images(np.arange(5))


def test_dataset_copy_on_a_failing_disk_raises(
    png_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is damaged again after it was made anew is not used."""
    access = local(copy(png_dataset, tmp_path))
    open_file, damaged = Cache.open, []

    def damage(cache: Cache, name: str, num_bytes: int, make: Make) -> BinaryIO:
        file = open_file(cache, name, num_bytes, make)
        if name.endswith(".pixels"):
            path = access.cache_dir / SUBFOLDER / name
            content = path.read_bytes()
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            damaged.append(name)
        return file

    monkeypatch.setattr(Cache, "open", damage)
    with pytest.raises(UserError, match=r"\.pixels"):
        ShardedDataset(access, "train").images(np.arange(5))
    assert len(damaged) > 1
