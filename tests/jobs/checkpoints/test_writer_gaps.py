"""After the first checkpoint there is a complete one at every instant, despite faults and kills."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import HELPERS, ROOT
from helpers.small_job import EventScript, run, same_result, small_job
from servers.faults import Fault, FaultProxy
from servers.s3 import S3Server

from jobs.checkpoints import writer as checkpoint_writer
from jobs.checkpoints.manager import CheckpointManager
from jobs.events import CheckpointSaved
from jobs.storage.base import Storage
from jobs.storage.s3 import S3Storage
from jobs.training.loop import train_model
from jobs.training.state import Worker


class ObservedStore:
    """A store that records after each change whether it has a complete checkpoint.

    Args:
        store: Storage to use.
        direct: The same store without faults, for the observation.
        folder: Local folder for copies.
    """

    def __init__(self, store: Storage, direct: Storage, folder: Path) -> None:
        self._store, self._direct, self._folder = store, direct, folder
        self.has_checkpoint: list[bool] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def publish(self, path: Path, name: str) -> None:
        with self._observed():
            self._store.publish(path, name)

    def remove(self, name: str) -> None:
        with self._observed():
            self._store.remove(name)

    @contextmanager
    def _observed(self) -> Iterator[None]:
        try:
            yield
        finally:
            manager = CheckpointManager(self._direct.url)
            manager._store = self._direct
            self.has_checkpoint.append(manager.latest(self._folder) is not None)


# By the steps of the training, the last of which is saved again where it fails; each outlasts the store's tries.
FAULTS = {
    2: [Fault("503", "DELETE", "00000001/model", count=4)],
    3: [Fault("503", "GET", "prefix=[^&]*00000002", count=4), Fault("lose", "PUT", "00000003/checkpoint", count=8)],
    12: [Fault("503", "PUT", "trained", first=3, count=4), Fault("lose", "DELETE", "checkpoint.json", 7, 8)],
}


@pytest.mark.slow
@pytest.mark.parametrize("steps", FAULTS)
def test_s3_always_has_a_complete_checkpoint(
    digit_dataset: Path,
    tmp_path: Path,
    s3_server: S3Server,
    faulty_s3: tuple[str, FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """Also after changes that fail halfway and are repeated."""
    bucket, proxy = faulty_s3
    url = f"s3://{bucket}/checkpoints"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    direct = S3Storage(url)
    assert direct.read("nothing") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    observed = ObservedStore(S3Storage(url, timeout=0.3, tries=2), direct, tmp_path / "copies")
    proxy.inject(*FAULTS[steps])
    monkeypatch.setattr("jobs.checkpoints.manager.open_storage", lambda _: observed)
    monkeypatch.setattr(checkpoint_writer, "_RETRY_SECONDS", 0.05)
    run(small_job(digit_dataset, url, checkpoint_every=1, keep_checkpoints=1, steps=steps))
    assert all(observed.has_checkpoint[observed.has_checkpoint.index(True) :])
    hits = {(hit.method, hit.fault) for hit in proxy.hits if hit.fault}
    assert hits == {(fault.method, fault.kind) for fault in FAULTS[steps]}
    assert CheckpointManager(url).steps() == [steps]


@pytest.mark.slow
def test_readers_always_load_a_checkpoint(digit_dataset: Path, tmp_path: Path) -> None:
    job = small_job(digit_dataset, tmp_path / "checkpoints", checkpoint_every=1, keep_checkpoints=1)
    steps: list[int] = []
    first, done = threading.Event(), threading.Event()

    def read() -> None:
        first.wait()
        manager = CheckpointManager(job.checkpoints)
        while not done.is_set():
            latest = manager.latest(tmp_path)
            steps.append(manager.step_of(latest) if latest else -1)

    thread = threading.Thread(target=read)
    thread.start()
    train_model(job, Worker(), EventScript((CheckpointSaved, 1, first.set)))
    done.set()
    thread.join()
    assert len(steps) > 10
    assert steps == sorted(steps)
    assert steps[0] >= 1


@pytest.mark.slow
def test_kills_at_random_instants_lose_no_checkpoint(digit_dataset: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS.parent}"}
    for name, kills in {"killed": 10, "undisturbed": 0}.items():
        arguments = [str(digit_dataset), str(tmp_path / name), str(kills), "7"]
        command = [sys.executable, "-m", "helpers.kill_training", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    killed, undisturbed = (small_job(digit_dataset, tmp_path / name) for name in ("killed", "undisturbed"))
    assert same_result(killed, undisturbed, tmp_path)
