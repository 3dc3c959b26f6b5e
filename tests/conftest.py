"""Shared fixtures. Ray starts once for the whole session: each start costs seconds."""

import gc
import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

# No token file in the home folder of whoever runs the tests.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from jobs.data.config import DataSection
from jobs.data.manifest import Manifest
from jobs.data.shard_files import DataAccess
from jobs.data.shards import write_parts
from jobs.data.source import Source, Split
from jobs.data.sources.config import DigitsConfig
from jobs.data.sources.digits import DigitScenes
from jobs.data.split import ShardedSplit
from jobs.shard import plan_parts, publish

# A shell's background job starts with Ctrl-C ignored, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["minutes", "servers.fixtures", "servers.tracking", "servers.browser"]


def write_dataset(source: Source, url: str | Path, config: DataSection) -> Manifest:
    """What the shard job does, without Ray."""
    parts = plan_parts(source, config)
    for part in parts:
        list(write_parts(source, str(url), [part], config))
    return publish(source, config, str(url), parts)


def local(folder: Path) -> DataAccess:
    """A dataset in a folder, with a cache beside it."""
    return DataAccess(str(folder), folder.with_name(f"{folder.name}-cache"), 2**30)


def open_split(folder: Path, split: Split) -> ShardedSplit:
    """A split of a dataset in a folder."""
    return ShardedSplit(local(folder), split)


@pytest.fixture(scope="session")
def digits_config() -> DigitsConfig:
    return DigitsConfig(num_images=300, image_size=16, samples_per_task=120, validation_fraction=0.1, test_fraction=0.2)


@pytest.fixture(scope="session")
def digit_scenes(digits_config: DigitsConfig) -> DigitScenes:
    return DigitScenes(digits_config.num_images, digits_config.image_size, digits_config.channels, 0)


@pytest.fixture(scope="session")
def digit_dataset(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small sharded dataset; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_dataset(digit_scenes, folder, digits_config)
    return folder


@pytest.fixture(scope="session")
def png_dataset(
    digit_scenes: DigitScenes, digits_config: DigitsConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same with PNG in its shards."""
    folder = tmp_path_factory.mktemp("data") / "png"
    write_dataset(digit_scenes, folder, digits_config.model_copy(update={"encoding": "png"}))
    return folder


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
