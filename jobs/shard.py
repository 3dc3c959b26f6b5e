"""The shard job: Ray tasks write a source's tars in parallel; the manifest comes last."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from jobs.cluster import Resources, task_result
from jobs.data.config import DigitsConfig, FashionMnistConfig, ImagesConfig
from jobs.data.manifest import ORIGIN, Manifest, Shard, is_partial, task_file, write_manifest
from jobs.data.shards import write_task
from jobs.data.source import SPLITS, Source
from jobs.errors import UserError
from jobs.files import remove_folder, write_json


def run_sharding(
    source: Source,
    config: DigitsConfig | FashionMnistConfig | ImagesConfig,
    folder: Path,
    resources: Resources,
    on_progress: Callable[[int], None],
) -> Manifest:
    """Write the dataset, or what an earlier, interrupted call left unwritten.

    Args:
        source: picklable; every task reads its own range.
        config: splits and samples per task.
        folder: of this dataset alone, seen by every node.
        resources: of the running cluster; a few tasks per CPU are kept waiting, not all of them.
        on_progress: called with the number of samples that are written.

    Raises:
        UserError: the source is damaged, the folder cannot be written, or a split came out empty.
    """
    total = source.num_samples
    ranges = [
        range(start, min(start + config.samples_per_task, total)) for start in range(0, total, config.samples_per_task)
    ]
    try:
        _prepare(folder, source)
        todo = {number: part for number, part in enumerate(ranges) if not (folder / task_file(number)).exists()}
        before = total - sum(map(len, todo.values()))
        _run_tasks(
            source, config, folder, todo, 3 * max(1, resources.num_cpus), lambda done: on_progress(before + done)
        )
        manifest = Manifest(source.image_shape, source.factors, source.fingerprint, _shards(folder, len(ranges)))
        for split in ("train", "test"):
            if not manifest.num_samples(split):
                raise UserError(f"none of the {total} samples fell into the {split} split: use more images")
        write_manifest(folder, manifest)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}; mend that and run again") from error
    return manifest


def _shards(folder: Path, num_tasks: int) -> tuple[Shard, ...]:
    """What the tasks wrote, by split and name."""
    texts = [(folder / task_file(number)).read_text() for number in range(num_tasks)]
    shards = [Shard(**shard) for text in texts for shard in json.loads(text)]
    return tuple(sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.name)))


def _prepare(folder: Path, source: Source) -> None:
    """Keep the finished tasks of the same source, and nothing else."""
    if not is_partial(folder, source):
        remove_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ORIGIN, source.fingerprint)


def _run_tasks(
    source: Source,
    config: DigitsConfig | FashionMnistConfig | ImagesConfig,
    folder: Path,
    todo: dict[int, range],
    most_pending: int,
    on_done: Callable[[int], None],
) -> None:
    write = ray.remote(write_task).options(num_cpus=1)
    shared = ray.put(source)
    waiting, done = list(todo.items()), 0
    pending: dict[Any, range] = {}
    while waiting or pending:
        while waiting and len(pending) < most_pending:
            number, part = waiting.pop(0)
            task = write.remote(shared, folder, number, part, config.validation_fraction, config.test_fraction)
            pending[task] = part
        for task in ray.wait(list(pending), timeout=1.0)[0]:
            task_result(task)
            done += len(pending.pop(task))
        on_done(done)
