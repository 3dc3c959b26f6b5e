"""Write, open, copy and read small datasets; mount a tiny disk; drop root's right to read everything."""

import gc
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import webdataset as wds
from servers.processes import skip_or_fail

from jobs.data.dataset import ShardedDataset
from jobs.data.manifest import Manifest
from jobs.data.shard_reader import DataAccess
from jobs.data.shard_writer import write_tasks
from jobs.data.sources.base import BaseDataConfig, Source, Split
from jobs.shard import plan_tasks, publish


def write_dataset(source: Source, url: str | Path, config: BaseDataConfig) -> Manifest:
    """Write a dataset as the shard stage does, without Ray."""
    tasks = plan_tasks(source, config)
    for task in tasks:
        list(write_tasks(source, str(url), [task], config))
    return publish(source, config, str(url), tasks)


def local(folder: Path) -> DataAccess:
    """Return the access to a dataset in a folder, with a cache beside it."""
    return DataAccess(str(folder), folder.with_name(f"{folder.name}-cache"), 2**30)


def open_split(folder: Path, split: Split) -> ShardedDataset:
    """Open a split of a dataset in a folder."""
    return ShardedDataset(local(folder), split)


def stock_samples(folder: Path, pattern: str, images: str = "rgb8") -> list[dict[str, Any]]:
    """Return samples as webdataset itself reads them, in the order of the tars."""
    tars = sorted(str(path) for path in folder.glob(pattern))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        samples = list(wds.WebDataset(tars, shardshuffle=False).decode(images))
        gc.collect()
    return samples


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


@contextmanager
def tiny_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a file system of one megabyte, so that tests can fill a disk."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if done.returncode:
        skip_or_fail(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Act as a user whom permissions bind, and return a folder of that user."""
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, whose parents are closed to other users
        if is_root := os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)
