"""Test the shard stage: no sample is lost, doubled or incomplete after kills and beside other commands."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from helpers import HELPERS
from helpers.datasets import write_dataset
from helpers.kill_sharding import CONFIG, SOURCE
from servers.processes import descendants

from jobs.cluster.ray_cluster import Resources, cluster
from jobs.config import RayConfig
from jobs.data.shard_writer import write_tasks
from jobs.data.sources.base import Factor, Sample, Source
from jobs.data.sources.digits import DigitScenes, DigitsConfig
from jobs.errors import UserError
from jobs.shard import group_consecutive, plan_tasks, publish, run_sharding
from jobs.storage import open_storage
from jobs.storage.base import Storage

KILLER = HELPERS / "kill_sharding.py"


def test_plan_tasks_covers_the_source() -> None:
    tasks = plan_tasks(SOURCE, CONFIG)
    assert [number for number, _ in tasks] == list(range(12))
    assert [sample for _, ids in tasks for sample in ids] == list(range(600))


def test_group_consecutive_splits_at_gaps() -> None:
    tasks = [task for task in plan_tasks(SOURCE, CONFIG) if task[0] not in (3, 8)]
    groups = group_consecutive(tasks, 3)
    assert [task for group in groups for task in group] == tasks
    assert [[number for number, _ in group] for group in groups] == [[0, 1, 2], [4, 5, 6], [7], [9, 10, 11]]


def test_publish_of_a_source_that_has_grown_is_refused(tmp_path: Path) -> None:
    config, url = DigitsConfig(samples_per_task=30), str(tmp_path / "data")
    tasks = plan_tasks(DigitScenes(60, 16, 3, 0), config)
    list(write_tasks(DigitScenes(60, 16, 3, 0), url, tasks, config))
    with pytest.raises(UserError, match=r"data: 60 samples instead of 61.*force=shard"):
        publish(DigitScenes(61, 16, 3, 0), config, url, tasks)
    assert publish(DigitScenes(60, 16, 3, 0), config, url, tasks).num_samples("train") > 40


def contents(storage: Storage) -> dict[str, str]:
    """Return the sha256 of every object."""
    return {name: hashlib.sha256(storage.read(name) or b"").hexdigest() for name in storage.names()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "data"
    write_dataset(SOURCE, folder, CONFIG)
    return contents(open_storage(str(folder)))


def kill(url: str, num_kills: int) -> str:
    done = subprocess.run(
        [sys.executable, str(KILLER), url, str(num_kills), "7"],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_shard_fifty_kills_change_no_byte(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    url = str(tmp_path / "data")
    assert kill(url, 50).startswith("50 kills")
    assert contents(open_storage(url)) == undisturbed
    assert {path.name for path in (tmp_path / "data").iterdir()} == set(undisturbed)  # without leftovers


@pytest.mark.slow
def test_shard_s3_kills_change_no_byte(s3: str, undisturbed: dict[str, str]) -> None:
    url = f"s3://{s3}/data"
    assert kill(url, 10).startswith("10 kills")
    assert contents(open_storage(url)) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_shard_concurrent_commands_write_equal_bytes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    url = str(tmp_path / "data") if kind == "folder" else f"s3://{request.getfixturevalue('s3')}/data"
    command = [sys.executable, str(KILLER), url, "0", "0"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert contents(open_storage(url)) == undisturbed


def test_shard_other_content_at_same_address_raises(tmp_path: Path) -> None:
    """Two sources should never share an address; the command that comes second gets an error."""
    url = str(tmp_path / "data")
    write_dataset(SOURCE, url, CONFIG)
    before = contents(open_storage(url))
    for name in list(before):
        if name.startswith("task-"):
            (tmp_path / "data" / name).unlink()
    with pytest.raises(UserError, match=r"data: .*force=shard"):
        write_dataset(DigitScenes(600, 16, 3, 1), tmp_path / "data", CONFIG)


class Endless(Source):
    """Any number of large images that are fast to make."""

    image_size, channels, num_samples = 64, 3, 0
    factors = (Factor("half", (0, 1)),)
    fingerprint = "endless"
    sequential = True

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        for number in range(start, stop):
            yield Sample(f"{number:06d}", np.full(self.image_shape, number % 256, np.uint8), {"half": number % 2})


@pytest.mark.parametrize("encoding", ["npy", "png"])
def test_write_tasks_memory_is_constant(tmp_path: Path, encoding: str) -> None:
    """Sixteen times as many images, 98 MB, need no more memory."""
    config = DigitsConfig(samples_per_task=1000, encoding=encoding)
    write_dataset(Endless(500), tmp_path / "small", config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_dataset(Endless(8000), tmp_path / "large", config)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.fixture(scope="module")
def cpus() -> Iterator[Resources]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import the tests
    with cluster(RayConfig(num_cpus=2)) as resources:
        yield resources


@pytest.mark.slow
def test_run_sharding_killed_tasks_are_repeated(tmp_path: Path, cpus: Resources, undisturbed: dict[str, str]) -> None:
    """The processes of Ray's tasks are killed three times while they write."""
    killed: list[int] = []
    stop = threading.Event()

    def kill_tasks() -> None:
        while len(killed) < 3 and not stop.wait(0.3):
            for pid in descendants(os.getpid()):
                try:
                    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::write_tasks"):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                        break
                except OSError:
                    continue

    killer = threading.Thread(target=kill_tasks)
    killer.start()
    progress: list[int] = []
    try:
        run_sharding(Slow(600, 16, 3, 0), CONFIG, str(tmp_path / "data"), cpus, progress.append)
    finally:
        stop.set()
        killer.join()
    assert len(killed) == 3
    actual = contents(open_storage(str(tmp_path / "data")))
    assert {name: digest for name, digest in actual.items() if name != "manifest.json"} == {
        name: digest for name, digest in undisturbed.items() if name != "manifest.json"
    }
    assert progress[-1] == 600
    assert progress == sorted(progress)


class Slow(DigitScenes):
    """A source that takes long enough to be killed."""

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        for sample in super().read(start, stop):
            time.sleep(0.02)
            yield sample


@pytest.mark.slow
def test_run_sharding_sequential_source_opened_per_cpu(tmp_path: Path, cpus: Resources) -> None:
    """A sequential source is opened about once per CPU, not once per task."""
    source = Counting(400, tmp_path / "opened")
    run_sharding(source, DigitsConfig(samples_per_task=20), str(tmp_path / "data"), cpus, lambda done: None)
    assert (tmp_path / "opened").read_text().count("\n") == 2
    alone = write_dataset(Endless(400), tmp_path / "alone", DigitsConfig(samples_per_task=20))
    with_ray = contents(open_storage(str(tmp_path / "data")))
    assert with_ray == contents(open_storage(str(tmp_path / "alone")))
    assert alone.num_samples("train") > 300


class Counting(Endless):
    def __init__(self, num_samples: int, path: Path) -> None:
        super().__init__(num_samples)
        self.path = path

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        with self.path.open("a") as file:
            file.write(f"{start} {stop}\n")
        return super().read(start, stop)
