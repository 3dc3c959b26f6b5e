"""Checkpoints are written while training goes on, and what befalls their place befalls neither training nor them."""

import subprocess
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.datasets import tiny_disk
from helpers.small_job import EventScript, ended_alike, run, small_job, steps_of
from servers.faults import Fault, FaultProxy

from jobs.checkpoints import writer as checkpoint_writer
from jobs.checkpoints.manager import Checkpoints
from jobs.errors import UnavailableError, UserError
from jobs.events import CheckpointSaved, MetricPoint, TrainingWarning
from jobs.storage import open_store
from jobs.storage.base import Store
from jobs.storage.s3 import S3Store
from jobs.training.loop import train_model
from jobs.training.state import TrainJob, Worker

FOREVER = 10**6


@pytest.fixture(scope="module")
def undisturbed(digit_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A training of twelve steps with a checkpoint at each, all done."""
    job = small_job(digit_dataset, tmp_path_factory.mktemp("undisturbed"), checkpoint_every=1)
    run(job)
    return job


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store and writer as they are, but for how long they wait."""

    def impatient_store(url: str) -> Store:
        return S3Store(url, timeout=0.3, tries=2) if url.startswith("s3://") else open_store(url)

    monkeypatch.setattr("jobs.checkpoints.manager.open_store", impatient_store)
    monkeypatch.setattr(checkpoint_writer, "_PAUSE", 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "503", "hang", "lose"])
def test_a_store_that_is_away_for_a_while(
    undisturbed: TrainJob,
    faulty_s3: tuple[str, FaultProxy],
    impatient: None,
    tmp_path: Path,
    kind: str,
) -> None:
    """Training goes on: the store is back only after five more steps."""
    bucket, proxy = faulty_s3
    job = replace(undisturbed, checkpoints=f"s3://{bucket}/place")
    away = ExitStack()

    def go() -> None:
        if kind == "refused":
            away.enter_context(proxy.refusing())
        else:
            proxy.inject(Fault(kind, "*" if kind != "lose" else "PUT", "", count=FOREVER))
            away.callback(proxy.clear)

    def come_back() -> None:
        away.close()
        assert story.told(CheckpointSaved, 3)

    story = EventScript((CheckpointSaved, 2, go), (MetricPoint, 8, come_back))
    assert train_model(job, Worker(), story) == 12
    assert len(steps_of(story.messages, TrainingWarning)) == 1
    assert ended_alike(job, undisturbed, tmp_path)
    committed = steps_of(story.messages, CheckpointSaved)
    assert committed[:2] == [1, 2]
    assert committed[-1] == 12
    assert committed == sorted(set(committed))


@pytest.mark.slow
def test_a_store_that_stays_away(
    digit_dataset: Path,
    faulty_s3: tuple[str, FaultProxy],
    impatient: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint_writer, "_PATIENCE", 0.3)
    bucket, proxy = faulty_s3
    job = small_job(digit_dataset, f"s3://{bucket}/place", steps=FOREVER, checkpoint_every=1)
    with ExitStack() as away:
        story = EventScript((CheckpointSaved, 2, lambda: away.enter_context(proxy.refusing())))
        with pytest.raises(UnavailableError, match=f"s3://{bucket}/place.*: S3 .*; run again when it does"):
            train_model(job, Worker(), story)
    assert len(steps_of(story.messages, TrainingWarning)) == 1
    assert Checkpoints(job.checkpoints).newest(tmp_path).name == "step-00000002"


@pytest.mark.slow
def test_a_silent_store_does_not_hold_training_up(
    digit_dataset: Path, faulty_s3: tuple[str, FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first silence is not known as one before minutes have passed; neither steps nor an error wait for that."""
    bucket, proxy = faulty_s3
    monkeypatch.setattr("jobs.checkpoints.manager.open_store", lambda url: S3Store(url, timeout=FOREVER, tries=1))
    monkeypatch.setattr(checkpoint_writer, "_STALL", 0.1)
    monkeypatch.setattr(checkpoint_writer, "_GRACE", 0.1)

    def fail() -> None:
        raise RuntimeError("someone else's error")

    hang = Fault("hang", "PUT", "", count=FOREVER)
    job = small_job(digit_dataset, f"s3://{bucket}/place", steps=FOREVER, checkpoint_every=1)
    story = EventScript((CheckpointSaved, 2, lambda: proxy.inject(hang)), (MetricPoint, 10, fail))
    with pytest.raises(RuntimeError, match="someone else's error"):
        train_model(job, Worker(), story)
    assert sum(step >= 2 for step in steps_of(story.messages, CheckpointSaved)) == 1
    proxy.clear()
    with proxy.refusing():  # which ends the silence
        join_writers()


def join_writers() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoints":
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.slow
def test_an_error_in_training_does_not_wait_for_a_store_that_is_away(
    digit_dataset: Path, faulty_s3: tuple[str, FaultProxy], impatient: None, tmp_path: Path
) -> None:
    bucket, proxy = faulty_s3

    def fail() -> None:
        raise RuntimeError("someone else's error")

    job = small_job(digit_dataset, f"s3://{bucket}/place", steps=FOREVER, checkpoint_every=1)
    with ExitStack() as away:
        turns = (
            (CheckpointSaved, 2, lambda: away.enter_context(proxy.refusing())),
            (TrainingWarning, 0, lambda: None),
            (MetricPoint, 0, fail),
        )
        with pytest.raises(RuntimeError, match="someone else's error"):
            train_model(job, Worker(), EventScript(*turns))
        join_writers()
    assert Checkpoints(job.checkpoints).newest(tmp_path).name == "step-00000002"


def test_an_error_in_training_waits_for_the_last_checkpoint(digit_dataset: Path, tmp_path: Path) -> None:
    job = small_job(digit_dataset, tmp_path / "place", steps=FOREVER, checkpoint_every=5, log_every=5)

    def fail() -> None:
        raise RuntimeError("someone else's error")

    story = EventScript((MetricPoint, 6, fail))
    with pytest.raises(RuntimeError, match="someone else's error"):
        train_model(job, Worker(), story)
    assert not any(thread.name == "checkpoints" for thread in threading.enumerate())
    assert steps_of(story.messages, CheckpointSaved) == [5]


@pytest.mark.parametrize("pages", [20, 60, 75, 88])  # in the first checkpoint, or in some file of the second
def test_a_full_disk(undisturbed: TrainJob, tmp_path: Path, pages: int) -> None:
    with tiny_disk(tmp_path / "disk", f"{4 * pages}k") as disk:
        job = replace(undisturbed, checkpoints=str(disk / "place"))
        story = EventScript()
        with pytest.raises(UserError, match=r"disk/place/.*: .*No space left on device.*; mend that and run again$"):
            train_model(job, Worker(), story)
        assert steps_of(story.messages, CheckpointSaved) == [1][: pages // 50]
        assert max(steps_of(story.messages, MetricPoint)) <= 4  # it does not go on to the end
        assert [path.name for path in (disk / "place").iterdir()] == ["step-00000001"][: pages // 50]
        newest = Checkpoints(job.checkpoints).newest(tmp_path)
        assert (newest and newest.name) == ("step-00000001" if pages > 50 else None)
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        run(job)
        assert ended_alike(job, undisturbed, tmp_path)


def test_a_place_that_can_no_longer_be_written(digit_dataset: Path, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "10m") as disk:
        job = small_job(digit_dataset, disk / "place", steps=FOREVER, checkpoint_every=1)

        def close() -> None:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

        with pytest.raises(UserError, match=r"disk/place/.*: Read-only file system; mend that and run again$"):
            train_model(job, Worker(), EventScript((CheckpointSaved, 2, close)))
        assert Checkpoints(job.checkpoints).newest(tmp_path).name in ("step-00000002", "step-00000003")


def test_one_that_others_swept_while_it_was_written_is_written_again(
    undisturbed: TrainJob, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And until then no older one is dropped."""
    job = replace(
        undisturbed,
        checkpoints=str(tmp_path / "place"),
        train=undisturbed.train.model_copy(update={"keep_checkpoints": 1, "checkpoint_every": 4}),
    )
    publish, seen = Checkpoints.publish, []

    def publish_and_lose(place: Checkpoints, folder: Path) -> None:
        publish(place, folder)
        if folder.name == "step-00000008" and not seen:
            (tmp_path / "place/step-00000008/model.safetensors").unlink()
            newest = place.newest(tmp_path)
            seen.append(newest and place.step_of(newest))

    monkeypatch.setattr(Checkpoints, "publish", publish_and_lose)
    messages = run(job)
    assert seen == [4]
    assert steps_of(messages, CheckpointSaved)[0] == 4
    assert 12 in Checkpoints(job.checkpoints).steps()
    (told,) = (message for message in messages if isinstance(message, TrainingWarning))
    assert "was removed while it was written" in told.text


def test_an_error_of_the_writer_ends_training(digit_dataset: Path, tmp_path: Path) -> None:
    """Somebody has put a file where the folder was."""
    place = tmp_path / "place"
    job = small_job(digit_dataset, place, steps=FOREVER, checkpoint_every=1)

    def replace_folder() -> None:
        place.rename(tmp_path / "moved")
        place.write_text("mine")

    with pytest.raises(UserError, match=r"place.*: (Not a directory|File exists); mend that and run again$"):
        train_model(job, Worker(), EventScript((CheckpointSaved, 2, replace_folder)))
    assert Checkpoints(str(tmp_path / "moved")).newest(tmp_path).name == "step-00000002"
