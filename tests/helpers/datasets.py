"""Small datasets: written, opened, read with stock webdataset, copied, and put on a tiny disk."""

import gc
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

from jobs.data.config import BaseDataConfig
from jobs.data.dataset import ShardedDataset
from jobs.data.manifest import Manifest
from jobs.data.shard_reader import DataAccess
from jobs.data.shard_writer import write_parts
from jobs.data.sources.base import Source, Split
from jobs.shard import plan_parts, publish


def write_dataset(source: Source, url: str | Path, config: BaseDataConfig) -> Manifest:
    """What the shard job does, without Ray."""
    parts = plan_parts(source, config)
    for part in parts:
        list(write_parts(source, str(url), [part], config))
    return publish(source, config, str(url), parts)


def local(folder: Path) -> DataAccess:
    """A dataset in a folder, with a cache beside it."""
    return DataAccess(str(folder), folder.with_name(f"{folder.name}-cache"), 2**30)


def open_split(folder: Path, split: Split) -> ShardedDataset:
    """A split of a dataset in a folder."""
    return ShardedDataset(local(folder), split)


def stock_samples(folder: Path, pattern: str, images: str = "rgb8") -> list[dict[str, Any]]:
    """Samples as webdataset itself reads them, in the order of the tars."""
    tars = sorted(str(path) for path in folder.glob(pattern))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the garbage collector
        samples = list(wds.WebDataset(tars, shardshuffle=False).decode(images))
        gc.collect()
    return samples


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


@contextmanager
def tiny_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A file system of one megabyte, so that a full disk is a real one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
