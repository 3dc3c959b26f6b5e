"""The shard job: Ray tasks write a source's tars in parallel; the manifest comes last."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import ray

from jobs.cluster.ray_cluster import Resources, task_result
from jobs.data.config import BaseDataConfig
from jobs.data.manifest import Manifest, Shard, finished_tasks, read_task_file, write_manifest
from jobs.data.shard_writer import write_parts
from jobs.data.sources.base import SPLITS, Source
from jobs.errors import UserError
from jobs.storage import open_store

Part = tuple[int, range]  # number of a task file, and the samples it speaks of


def run_sharding(
    source: Source, config: BaseDataConfig, url: str, resources: Resources, on_progress: Callable[[int], None]
) -> Manifest:
    """Write the dataset, or what an earlier, interrupted call left unwritten.

    Two calls at once, on one machine or on several, write the same bytes under the same names, so that neither
    can harm the other.

    Args:
        source: picklable; every task reads its own range.
        config: splits, encoding and samples per task.
        url: of this dataset alone, reached by every node.
        resources: of the running cluster; a few tasks per CPU are kept waiting, not all of them.
        on_progress: called with the number of samples that are written.

    Raises:
        UserError: the source is damaged, the place cannot be written, or a split came out empty.
    """
    parts, store = plan_parts(source, config), open_store(url)
    done = finished_tasks(store)
    todo = [part for part in parts if part[0] not in done]
    before = source.num_samples - sum(len(samples) for _, samples in todo)
    cpus = max(1, resources.num_cpus)
    runs = consecutive_runs(todo, -(-len(todo) // cpus) if source.sequential else 1)
    _run_tasks(source, config, url, runs, 3 * cpus, lambda written: on_progress(before + written))
    return publish(source, config, url, parts)


def plan_parts(source: Source, config: BaseDataConfig) -> list[Part]:
    """The samples of each task."""
    total, step = source.num_samples, config.samples_per_task
    return [(number, range(start, min(start + step, total))) for number, start in enumerate(range(0, total, step))]


def publish(source: Source, config: BaseDataConfig, url: str, parts: list[Part]) -> Manifest:
    """Write the manifest of a dataset whose tasks are all done.

    Raises:
        UserError: a split came out empty, or another command has published other content there.
    """
    store = open_store(url)
    shards = [shard for number, _ in parts for shard in read_task_file(store, number)]
    manifest = Manifest(source.image_shape, config.encoding, source.factors, source.fingerprint, _in_order(shards))
    for split in ("train", "test"):
        if not manifest.num_samples(split):
            raise UserError(f"none of the {source.num_samples} samples fell into the {split} split: use more images")
    if sum(shard.num_samples for shard in shards) != source.num_samples:
        raise UserError(f"{url} holds other than the {source.num_samples:,} samples of the source: use force=shard")
    write_manifest(store, manifest)
    with suppress(UserError):  # the dataset is there, whether we may tidy up or not
        store.sweep()
    return manifest


def consecutive_runs(parts: list[Part], longest: int) -> list[list[Part]]:
    """Cut parts into runs of at most `longest` that follow one another without a gap."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and len(runs[-1]) < longest and runs[-1][-1][1].stop == part[1].start:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _in_order(shards: list[Shard]) -> tuple[Shard, ...]:
    """By split and name."""
    return tuple(sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.name)))


def _run_tasks(
    source: Source,
    config: BaseDataConfig,
    url: str,
    runs: list[list[Part]],
    most_pending: int,
    on_written: Callable[[int], None],
) -> None:
    # Ray would fill one node first: disks and networks of all are wanted.
    write = ray.remote(write_parts).options(num_cpus=1, scheduling_strategy="SPREAD")
    shared = ray.put(source)
    waiting: Iterator[list[Part]] = iter(runs)
    pending: list[Any] = []  # streams of the tasks' counts
    written = 0
    while True:
        while len(pending) < most_pending and (run := next(waiting, None)) is not None:
            pending.append(write.remote(shared, url, run, config))
        if not pending:
            return
        for stream in ray.wait(pending, num_returns=len(pending), timeout=0.5)[0]:
            try:
                written += task_result(next(cast(Iterator[Any], stream)))
            except StopIteration:
                pending.remove(stream)
        on_written(written)
