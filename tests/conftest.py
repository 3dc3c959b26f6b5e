"""Shared fixtures. Ray starts once for the whole session: each start costs seconds."""

import os
from pathlib import Path

import pytest

# No token file in the home folder of whoever runs the tests.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from jobs.data.config import DigitsConfig
from jobs.data.manifest import Manifest, write_manifest
from jobs.data.shards import write_task
from jobs.data.source import SPLITS, Source
from jobs.data.sources.digits import DigitScenes


def write_dataset(source: Source, folder: Path, samples_per_task: int) -> Manifest:
    """What the shard job does, without Ray."""
    folder.mkdir(parents=True)
    shards = []
    for task, start in enumerate(range(0, source.num_samples, samples_per_task)):
        part = range(start, min(start + samples_per_task, source.num_samples))
        shards += write_task(source, folder, task, part, 0.1, 0.2)
    ordered = tuple(sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.name)))
    manifest = Manifest(source.image_shape, source.factors, source.fingerprint, ordered)
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture(scope="session")
def digit_scenes() -> DigitScenes:
    config = DigitsConfig(num_images=300, image_size=16)
    return DigitScenes(config.num_images, config.image_size, config.channels, config.scene_seed)


@pytest.fixture(scope="session")
def digit_dataset(digit_scenes: DigitScenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sharded dataset; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_dataset(digit_scenes, folder, samples_per_task=120)
    return folder


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    tree, todo = [], [pid]
    while todo:
        tree.append(todo.pop())
        todo += children.get(tree[-1], [])
    return tree
