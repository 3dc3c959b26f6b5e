"""Checkpoints are written while training continues; a fault of the store harms neither training nor checkpoints."""

import subprocess
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.datasets import tiny_disk
from helpers.small_job import EventScript, run, same_result, small_job, steps_of
from servers.faults import Fault, FaultProxy

from jobs.checkpoints import writer as checkpoint_writer
from jobs.checkpoints.format import Snapshot
from jobs.checkpoints.manager import CheckpointManager
from jobs.checkpoints.writer import CheckpointWriter
from jobs.errors import UnavailableError, UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingWarning
from jobs.storage import open_storage
from jobs.storage.base import Storage
from jobs.storage.s3 import S3Storage
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker

FOREVER = 10**6


@pytest.fixture(scope="module")
def undisturbed(digit_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A finished training of twelve steps with a checkpoint at each."""
    job = small_job(digit_dataset, tmp_path_factory.mktemp("undisturbed"), checkpoint_every=1)
    run(job)
    return job


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_with_timeout(url: str) -> Storage:
        return S3Storage(url, timeout=0.3, tries=2) if url.startswith("s3://") else open_storage(url)

    monkeypatch.setattr("jobs.checkpoints.manager.open_storage", open_with_timeout)
    monkeypatch.setattr(checkpoint_writer, "_RETRY_SECONDS", 0.05)


def fail() -> None:
    raise RuntimeError("an unrelated error")


def join_writers() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoints":
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "503", "hang", "lose"])
def test_training_continues_during_an_outage(
    undisturbed: TrainJob,
    faulty_s3: tuple[str, FaultProxy],
    short_timeouts: None,
    tmp_path: Path,
    kind: str,
) -> None:
    """The store is available again only after five more steps."""
    bucket, proxy = faulty_s3
    job = replace(undisturbed, checkpoints=f"s3://{bucket}/checkpoints")
    outage = ExitStack()

    def start() -> None:
        if kind == "refused":
            outage.enter_context(proxy.refusing())
        else:
            proxy.inject(Fault(kind, "*" if kind != "lose" else "PUT", "", count=FOREVER))
            outage.callback(proxy.clear)

    def end() -> None:
        outage.close()
        assert script.wait_for(CheckpointSaved, 3)

    script = EventScript((CheckpointSaved, 2, start), (MetricPoint, 8, end))
    assert train_model(job, Worker(), script) == 12
    assert len(steps_of(script.events, TrainingWarning)) == 1
    assert same_result(job, undisturbed, tmp_path)
    saved = steps_of(script.events, CheckpointSaved)
    assert saved[:2] == [1, 2]
    assert saved[-1] == 12
    assert saved == sorted(set(saved))


@pytest.mark.slow
def test_permanent_outage_ends_training(
    digit_dataset: Path,
    faulty_s3: tuple[str, FaultProxy],
    short_timeouts: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint_writer, "_MAX_OUTAGE_SECONDS", 0.3)
    bucket, proxy = faulty_s3
    job = small_job(digit_dataset, f"s3://{bucket}/checkpoints", steps=FOREVER, checkpoint_every=1)
    with ExitStack() as outage:
        script = EventScript((CheckpointSaved, 2, lambda: outage.enter_context(proxy.refusing())))
        with pytest.raises(UnavailableError, match=f"s3://{bucket}/checkpoints"):
            train_model(job, Worker(), script)
    assert len(steps_of(script.events, TrainingWarning)) == 1
    assert CheckpointManager(job.checkpoints).latest(tmp_path).name == "step-00000002"


@pytest.mark.slow
def test_unresponsive_store_does_not_delay_training(
    digit_dataset: Path, faulty_s3: tuple[str, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing answer counts as an outage after minutes only; neither steps nor an error wait for that."""
    bucket, proxy = faulty_s3
    monkeypatch.setattr("jobs.checkpoints.manager.open_storage", lambda url: S3Storage(url, timeout=FOREVER, tries=1))
    monkeypatch.setattr(checkpoint_writer, "_MAX_STALL_SECONDS", 0.1)
    monkeypatch.setattr(checkpoint_writer, "_GRACE_SECONDS", 0.1)
    hang = Fault("hang", "PUT", "", count=FOREVER)
    job = small_job(digit_dataset, f"s3://{bucket}/checkpoints", steps=FOREVER, checkpoint_every=1)
    script = EventScript((CheckpointSaved, 2, lambda: proxy.inject(hang)), (MetricPoint, 10, fail))
    with pytest.raises(RuntimeError, match="unrelated"):
        train_model(job, Worker(), script)
    assert sum(step >= 2 for step in steps_of(script.events, CheckpointSaved)) == 1
    proxy.clear()
    with proxy.refusing():  # ends the pending request
        join_writers()


@pytest.mark.slow
def test_error_does_not_wait_for_an_unavailable_store(
    digit_dataset: Path, faulty_s3: tuple[str, FaultProxy], short_timeouts: None, tmp_path: Path
) -> None:
    bucket, proxy = faulty_s3
    job = small_job(digit_dataset, f"s3://{bucket}/checkpoints", steps=FOREVER, checkpoint_every=1)
    with ExitStack() as outage:
        steps = (
            (CheckpointSaved, 2, lambda: outage.enter_context(proxy.refusing())),
            (TrainingWarning, 0, lambda: None),
            (MetricPoint, 0, fail),
        )
        with pytest.raises(RuntimeError, match="unrelated"):
            train_model(job, Worker(), EventScript(*steps))
        join_writers()
    assert CheckpointManager(job.checkpoints).latest(tmp_path).name == "step-00000002"


def test_error_waits_for_the_last_checkpoint(digit_dataset: Path, tmp_path: Path) -> None:
    job = small_job(digit_dataset, tmp_path / "checkpoints", steps=FOREVER, checkpoint_every=5, log_every=5)
    script = EventScript((MetricPoint, 6, fail))
    with pytest.raises(RuntimeError, match="unrelated"):
        train_model(job, Worker(), script)
    assert not any(thread.name == "checkpoints" for thread in threading.enumerate())
    assert steps_of(script.events, CheckpointSaved) == [5]


@pytest.mark.parametrize("pages", [20, 60, 75, 88])  # in the first checkpoint, or in some file of the second
def test_full_disk_keeps_the_last_checkpoint(undisturbed: TrainJob, tmp_path: Path, pages: int) -> None:
    with tiny_disk(tmp_path / "disk", f"{4 * pages}k") as disk:
        job = replace(undisturbed, checkpoints=str(disk / "checkpoints"))
        script = EventScript()
        with pytest.raises(UserError, match=r"disk/checkpoints/.*: .*No space left on device"):
            train_model(job, Worker(), script)
        assert steps_of(script.events, CheckpointSaved) == [1][: pages // 50]
        assert max(steps_of(script.events, MetricPoint)) <= 4  # training ends soon
        assert [path.name for path in (disk / "checkpoints").iterdir()] == ["step-00000001"][: pages // 50]
        latest = CheckpointManager(job.checkpoints).latest(tmp_path)
        assert (latest and latest.name) == ("step-00000001" if pages > 50 else None)
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        run(job)
        assert same_result(job, undisturbed, tmp_path)


def test_read_only_disk_ends_training(digit_dataset: Path, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "10m") as disk:
        job = small_job(digit_dataset, disk / "checkpoints", steps=FOREVER, checkpoint_every=1)

        def remount() -> None:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

        with pytest.raises(UserError, match=r"disk/checkpoints/.*: .*Read-only file system"):
            train_model(job, Worker(), EventScript((CheckpointSaved, 2, remount)))
        assert CheckpointManager(job.checkpoints).latest(tmp_path).name in ("step-00000002", "step-00000003")


def test_checkpoint_swept_by_others_is_written_again(
    undisturbed: TrainJob, short_timeouts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then no older checkpoint is removed."""
    job = replace(
        undisturbed,
        checkpoints=str(tmp_path / "checkpoints"),
        train=undisturbed.train.model_copy(update={"keep_checkpoints": 1, "checkpoint_every": 4}),
    )
    publish, latest_steps = CheckpointManager.publish, []

    def publish_and_lose(manager: CheckpointManager, folder: Path) -> None:
        publish(manager, folder)
        if folder.name == "step-00000008" and not latest_steps:
            (tmp_path / "checkpoints/step-00000008/model.safetensors").unlink()
            latest = manager.latest(tmp_path)
            latest_steps.append(latest and manager.step_of(latest))

    monkeypatch.setattr(CheckpointManager, "publish", publish_and_lose)
    events = run(job)
    assert latest_steps == [4]
    assert steps_of(events, CheckpointSaved)[0] == 4
    assert 12 in CheckpointManager(job.checkpoints).steps()
    (warning,) = (event for event in events if isinstance(event, TrainingWarning))
    assert "step-00000008" in warning.text


def test_writer_error_ends_training(digit_dataset: Path, tmp_path: Path) -> None:
    """A file has replaced the folder."""
    folder = tmp_path / "checkpoints"
    job = small_job(digit_dataset, folder, steps=FOREVER, checkpoint_every=1)

    def replace_folder() -> None:
        folder.rename(tmp_path / "moved")
        folder.write_text("other")

    with pytest.raises(UserError, match=r"checkpoints.*: .*(Not a directory|File exists)"):
        train_model(job, Worker(), EventScript((CheckpointSaved, 2, replace_folder)))
    assert CheckpointManager(str(tmp_path / "moved")).latest(tmp_path).name == "step-00000002"


class UnsteadyManager(CheckpointManager):
    """Saves nothing; each call of `save` waits for its turn, and fails where the store is unavailable."""

    def __init__(self, available: list[bool]) -> None:
        self._available, self.saved = available, list[int]()
        self.begun, self.turn = threading.Semaphore(0), threading.Semaphore(0)

    def save(self, snapshot: Snapshot) -> None:
        self.begun.release()
        assert self.turn.acquire(timeout=60)
        if not self._available.pop(0):
            raise UnavailableError("no answer")
        self.saved.append(snapshot.step)

    def prune(self, keep: int, latest: int) -> None:
        pass


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, None, {}, None, {}, [], [], {})


def test_writer_warns_of_each_outage(short_timeouts: None) -> None:
    manager, events = UnsteadyManager([False, False, True, False, True]), list[Event]()
    with CheckpointWriter(manager, 1, events.append) as writer:
        manager.turn.release(5)
        for step in (1, 2):
            writer.save(snapshot(step))
            writer.flush()
    assert steps_of(events, TrainingWarning) == [1, 2]
    assert steps_of(events, CheckpointSaved) == manager.saved == [1, 2]


def test_writer_saves_what_was_handed_over_meanwhile(short_timeouts: None) -> None:
    """A newer snapshot replaces the waiting one just as the store accepts the older."""
    manager = UnsteadyManager([False, True, True])
    with CheckpointWriter(manager, 1, lambda event: None) as writer:
        writer.save(snapshot(1))
        manager.turn.release()
        for _ in range(2):
            assert manager.begun.acquire(timeout=60)
        writer.save(snapshot(2))
        manager.turn.release(2)
    assert manager.saved == [1, 2]
