"""The shard stage: Ray tasks write a source's tars in parallel; the manifest is written last."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import ray

from jobs.cluster.ray_cluster import Resources, task_result
from jobs.data.manifest import Manifest, finished_tasks, read_task_file, task_file, write_manifest
from jobs.data.shard_writer import ShardTask, write_tasks
from jobs.data.sources.base import SPLITS, BaseDataConfig, Source
from jobs.errors import UserError
from jobs.storage import open_storage

_MAX_LISTED = 100  # skipped samples in a manifest


def run_sharding(
    source: Source, config: BaseDataConfig, url: str, resources: Resources, on_progress: Callable[[int], None]
) -> Manifest:
    """Write a dataset, or the tasks that an interrupted call left.

    Concurrent calls, also on several machines, write the same bytes under the same names and do not disturb each other.

    Args:
        source: Source of the samples; it is pickled, and every task reads its own range.
        config: Split fractions, encoding and samples per task.
        url: Address of this dataset alone, reachable from every node.
        resources: Resources of the running cluster.
        on_progress: Called with the number of samples that are written.

    Returns:
        Content of the dataset.

    Raises:
        UserError: The source is damaged, the storage cannot be written, a split is empty, or samples cannot be decoded.
    """
    tasks = plan_tasks(source, config)
    done = finished_tasks(open_storage(url))
    remaining = [task for task in tasks if task[0] not in done]
    written = source.num_samples - sum(len(ids) for _, ids in remaining)
    num_cpus = max(1, resources.num_cpus)
    # A sequential source passes over all samples before its range, so that each CPU reads one long range.
    groups = iter(group_consecutive(remaining, -(-len(remaining) // num_cpus) if source.sequential else 1))
    # SPREAD, because Ray would fill one node first and leave the disks and networks of the others unused.
    write = ray.remote(write_tasks).options(num_cpus=1, scheduling_strategy="SPREAD")
    shared_source = ray.put(source)
    pending: list[Any] = []  # generators of sample counts; a few per CPU, because there may be many tasks
    while True:
        while len(pending) < 3 * num_cpus and (group := next(groups, None)) is not None:
            pending.append(write.remote(shared_source, url, group, config))
        if not pending:
            return publish(source, config, url, tasks)
        for counts in ray.wait(pending, num_returns=len(pending), timeout=0.5)[0]:
            try:
                written += task_result(next(cast(Iterator[Any], counts)))
            except StopIteration:
                pending.remove(counts)
        on_progress(written)


def plan_tasks(source: Source, config: BaseDataConfig) -> list[ShardTask]:
    """Divide the samples of a source among tasks of `samples_per_task` each."""
    total, step = source.num_samples, config.samples_per_task
    return [(task, range(start, min(start + step, total))) for task, start in enumerate(range(0, total, step))]


def publish(source: Source, config: BaseDataConfig, url: str, tasks: list[ShardTask]) -> Manifest:
    """Write the manifest of finished tasks.

    Args:
        source: Source of the samples.
        config: Encoding, and what happens to samples that cannot be decoded.
        url: Address of the dataset.
        tasks: All tasks.

    Returns:
        Content of the dataset.

    Raises:
        UserError: Samples cannot be decoded and are not to be skipped, a split is empty, or other content exists.
    """
    storage = open_storage(url)
    outputs = {task: read_task_file(storage, task) for task, _ in tasks}
    shards = [shard for output in outputs.values() for shard in output.shards]
    shards.sort(key=lambda shard: (SPLITS.index(shard.split), shard.name))
    skipped = [sample for output in outputs.values() for sample in output.skipped]
    manifest = Manifest(
        source.image_shape,
        config.encoding,
        source.factors,
        source.fingerprint,
        tuple(shards),
        dict(source.left_out),
        len(skipped),
        tuple(skipped[:_MAX_LISTED]),
    )
    if skipped and config.on_error == "error":
        for task, output in outputs.items():
            if output.skipped:  # decoded again by the next command, because the cause may be outside the files
                storage.remove(task_file(task))
        raise manifest.decode_error()
    for split in ("train", "test"):
        if not manifest.num_samples(split):
            raise UserError(f"data: none of the {source.num_samples} samples is in the {split} split. Use more images.")
    num_samples = sum(shard.num_samples for shard in shards) + len(skipped)
    if num_samples != source.num_samples:
        raise UserError(
            f"{url}: {num_samples:,} samples instead of {source.num_samples:,}. Write them again with force=shard."
        )
    write_manifest(storage, manifest)
    with suppress(UserError):  # because the dataset is complete without the clean-up
        storage.sweep()
    return manifest


def group_consecutive(tasks: list[ShardTask], max_length: int) -> list[list[ShardTask]]:
    """Group at most `max_length` tasks whose samples follow one another without a gap."""
    groups: list[list[ShardTask]] = []
    for task in tasks:
        if groups and len(groups[-1]) < max_length and groups[-1][-1][1].stop == task[1].start:
            groups[-1].append(task)
        else:
            groups.append([task])
    return groups
