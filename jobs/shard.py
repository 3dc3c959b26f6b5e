"""The shard job: Ray tasks write a source's tars in parallel; the manifest comes last."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ray
from ray.exceptions import RayTaskError

from jobs.config import DigitsConfig, FashionMnistConfig, ImagesConfig
from jobs.data.manifest import Manifest, Shard, task_file, write_json, write_manifest
from jobs.data.shards import write_task
from jobs.data.source import SPLITS, Source
from jobs.errors import UserError

_ORIGIN = "origin.json"  # which source the tars of an unfinished job are from


def run_sharding(
    source: Source,
    config: DigitsConfig | FashionMnistConfig | ImagesConfig,
    folder: Path,
    on_progress: Callable[[int], None],
) -> Manifest:
    """Write the dataset, or what an earlier, interrupted call left unwritten.

    Args:
        source: picklable; every task reads its own range.
        config: splits and samples per task.
        folder: of this dataset alone, seen by every node.
        on_progress: called with the number of samples that are written.

    Raises:
        UserError: the source is damaged, the folder cannot be written, or a split came out empty.
    """
    total = source.num_samples
    ranges = [
        range(start, min(start + config.samples_per_task, total)) for start in range(0, total, config.samples_per_task)
    ]
    try:
        _prepare(folder, source.fingerprint)
        todo = {number: part for number, part in enumerate(ranges) if not (folder / task_file(number)).exists()}
        before = total - sum(map(len, todo.values()))
        _run_tasks(source, config, folder, todo, lambda done: on_progress(before + done))
        shards = [
            Shard(**shard)
            for number in range(len(ranges))
            for shard in json.loads((folder / task_file(number)).read_text())
        ]
        ordered = tuple(sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.name)))
        manifest = Manifest(source.image_shape, source.factors, source.fingerprint, ordered)
        for split in ("train", "test"):
            if not manifest.num_samples(split):
                raise UserError(
                    f"no sample fell into the {split} split: give more images or a larger data.test_fraction"
                )
        write_manifest(folder, manifest)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
    return manifest


def _prepare(folder: Path, fingerprint: str) -> None:
    """Keep the finished tasks of the same source, and nothing else."""
    origin = folder / _ORIGIN
    try:
        same = json.loads(origin.read_text()) == fingerprint
    except (OSError, ValueError):
        same = False
    if not same and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(origin, fingerprint)


def _run_tasks(
    source: Source,
    config: DigitsConfig | FashionMnistConfig | ImagesConfig,
    folder: Path,
    todo: dict[int, range],
    on_done: Callable[[int], None],
) -> None:
    write = ray.remote(write_task).options(num_cpus=1)
    shared = ray.put(source)
    pending = {
        write.remote(shared, folder, number, part, config.validation_fraction, config.test_fraction): part
        for number, part in todo.items()
    }
    done = 0
    on_done(done)
    while pending:
        ready, _ = ray.wait(list(pending), timeout=1.0)
        for task in ready:
            try:
                ray.get(task)
            except RayTaskError as error:
                if isinstance(error.cause, UserError | OSError):
                    raise error.cause from error
                raise
            done += len(pending.pop(task))
        on_done(done)
