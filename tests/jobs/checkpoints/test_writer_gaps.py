"""From the first checkpoint on there is a whole one at every instant, whatever fails and whenever it is killed."""

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import HELPERS, ROOT
from helpers.small_job import EventScript, ended_alike, run, small_job
from servers.faults import Fault, FaultProxy
from servers.s3 import S3Server

from jobs.checkpoints import writer as checkpoint_writer
from jobs.checkpoints.manager import Checkpoints
from jobs.events import CheckpointSaved
from jobs.storage.base import Store
from jobs.storage.s3 import S3Store
from jobs.training.loop import train_model
from jobs.training.state import Worker


class Watched:
    """A store, and whether there is a whole checkpoint in it after each change; `straight` sees it without faults."""

    def __init__(self, store: Store, straight: Store, folder: Path) -> None:
        self._store, self._straight, self._folder = store, straight, folder
        self.seen: list[bool] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def publish(self, path: Path, name: str) -> None:
        with self._looking():
            self._store.publish(path, name)

    def remove(self, name: str) -> None:
        with self._looking():
            self._store.remove(name)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        try:
            yield
        finally:
            place = Checkpoints(self._straight.url)
            place._store = self._straight
            self.seen.append(place.newest(self._folder) is not None)


# By the steps of the training, the last of which is done again where it fails; each outlasts the store's tries.
FAULTS = {
    2: [Fault("503", "DELETE", "00000001/model", count=4)],
    3: [Fault("503", "GET", "prefix=[^&]*00000002", count=4), Fault("lose", "PUT", "00000003/checkpoint", count=8)],
    12: [Fault("503", "PUT", "trained", first=3, count=4), Fault("lose", "DELETE", "checkpoint.json", 7, 8)],
}


@pytest.mark.slow
@pytest.mark.parametrize("steps", FAULTS)
def test_there_is_always_a_whole_one_on_s3(
    digit_dataset: Path,
    tmp_path: Path,
    s3_server: S3Server,
    faulty_s3: tuple[str, FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """After every change, also those that fail half-way and are done again."""
    bucket, proxy = faulty_s3
    url = f"s3://{bucket}/place"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    straight = S3Store(url)
    assert straight.read("nothing") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    watched = Watched(S3Store(url, timeout=0.3, tries=2), straight, tmp_path / "copies")
    proxy.inject(*FAULTS[steps])
    monkeypatch.setattr("jobs.checkpoints.manager.open_store", lambda _: watched)
    monkeypatch.setattr(checkpoint_writer, "_PAUSE", 0.05)
    run(small_job(digit_dataset, url, checkpoint_every=1, keep_checkpoints=1, steps=steps))
    assert all(watched.seen[watched.seen.index(True) :])
    befell = {(hit.method, hit.fault) for hit in proxy.hits if hit.fault}
    assert befell == {(fault.method, fault.kind) for fault in FAULTS[steps]}
    assert Checkpoints(url).steps() == [steps]


@pytest.mark.slow
def test_whoever_looks_while_it_is_trained_finds_one(digit_dataset: Path, tmp_path: Path) -> None:
    job = small_job(digit_dataset, tmp_path / "place", checkpoint_every=1, keep_checkpoints=1)
    found: list[int] = []
    first, done = threading.Event(), threading.Event()

    def look() -> None:
        first.wait()
        place = Checkpoints(job.checkpoints)
        while not done.is_set():
            newest = place.newest(tmp_path)
            found.append(place.step_of(newest) if newest else -1)

    thread = threading.Thread(target=look)
    thread.start()
    train_model(job, Worker(), EventScript((CheckpointSaved, 1, first.set)))
    done.set()
    thread.join()
    assert len(found) > 10
    assert found == sorted(found)
    assert found[0] >= 1


@pytest.mark.slow
def test_killed_at_random_instants(digit_dataset: Path, tmp_path: Path) -> None:
    script = HELPERS / "kill_training.py"
    seed = random.SystemRandom().randrange(10**6)
    for name, kills in {"place": 10, "undisturbed": 0}.items():
        command = [sys.executable, str(script), str(digit_dataset), str(tmp_path / name), str(kills), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        print(done.stdout)
        assert done.returncode == 0, done.stderr
    killed, undisturbed = (small_job(digit_dataset, tmp_path / name) for name in ("place", "undisturbed"))
    assert ended_alike(killed, undisturbed, tmp_path)
