"""The uploader and the recovery against MLflow itself: every metric of every step arrives once, whatever was killed."""

import math
import threading
from pathlib import Path

import pytest
from helpers.kill_uploading import publish_history
from mlflow import MlflowClient
from mlflow.entities import Dataset, Run
from servers.refusals import mlflow_answering

from jobs.config import TrackingConfig
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingWarning
from jobs.tracking.client import Tracker, TrackingError, TrackingUnavailableError
from jobs.tracking.uploader import MetricUploader, UploadRecovery

DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")


def point(step: int, loss: float = 1.0) -> MetricPoint:
    return MetricPoint(step, 1_700_000_000_000 + step, {"train/loss": loss + step, "train/kl": 2.0})


def upload(tracker: Tracker, run_id: str, *events: Event) -> None:
    """Send the events of one process, to its end."""
    with MetricUploader(tracker, run_id) as uploader:
        for event in events:
            uploader.put(event)
        uploader.close(20)


def curve(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in client.get_metric_history(run_id, "train/loss")]


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.start_run("r", {}, DATASET, key="k")


def test_uploader_after_kills_has_sent_each_step_once(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    history = [point(step) for step in (2, 4)]
    upload(tracker, run_id, TrainingResumed(0), *history)
    assert curve(client, run_id) == []  # because these steps may be computed again
    upload(tracker, run_id, TrainingResumed(0), *history, CheckpointSaved(5), point(6), point(8))
    # Killed at step 8. The next process computes steps 6 and 8 again, a little differently.
    again = [point(step, loss=1.5) for step in (6, 8, 10)]
    upload(tracker, run_id, TrainingResumed(5, history), *again, CheckpointSaved(10))
    # Killed after a commit that was not sent: the checkpoint's history has it.
    upload(tracker, run_id, TrainingResumed(12, [*history, *again, point(12, loss=1.5)]))
    assert curve(client, run_id) == [(2, 3.0), (4, 5.0), (6, 7.5), (8, 9.5), (10, 11.5), (12, 13.5)]


def test_uploader_after_a_restart_repeats_no_point(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    first = [TrainingResumed(0), point(2), point(4), CheckpointSaved(5), point(6), point(8)]
    restarted = [TrainingResumed(5, [point(2), point(4)]), point(6, loss=1.5), CheckpointSaved(6)]
    upload(tracker, run_id, *first, *restarted)
    assert curve(client, run_id) == [(2, 3.0), (4, 5.0), (6, 7.5)]


@pytest.mark.parametrize("processes", [1, 2])
def test_uploader_from_an_older_checkpoint_keeps_first_values(
    tracker: Tracker, client: MlflowClient, run_id: str, processes: int
) -> None:
    """The newest checkpoint is damaged, so steps that MLflow has are computed again."""
    elbo = MetricPoint(5, 1_700_000_000_005, {"validation/elbo": -3.0})
    first = [point(2), point(4), elbo, point(6), CheckpointSaved(6)]
    later_elbo = MetricPoint(5, 1_700_000_001_000, {"validation/elbo": -2.9})
    again = [
        *(TrainingResumed(2, [point(2)]), point(4, loss=1.5), later_elbo),
        *(point(6, loss=1.5), point(8, loss=1.5), CheckpointSaved(8)),
    ]
    for events in [[*first, *again]] if processes == 1 else [first, again]:
        upload(tracker, run_id, *events)
    assert curve(client, run_id) == [(2, 3.0), (4, 5.0), (6, 7.0), (8, 9.5)]
    assert [p.value for p in client.get_metric_history(run_id, "validation/elbo")] == [-3.0]


def test_uploader_completes_a_point_that_was_sent_in_part(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    whole = MetricPoint(2, 1_700_000_000_000, {"train/loss": 1.0, "validation/elbo": -3.0})
    tracker.log_points(run_id, [MetricPoint(2, whole.time_ms, {"train/loss": 1.0})])
    upload(tracker, run_id, TrainingResumed(2, [whole]))
    for name in whole.metrics:
        assert [p.step for p in client.get_metric_history(run_id, name)] == [2]


def test_uploader_sends_nonfinite_values_once(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    nonfinite = [MetricPoint(2, 1_700_000_000_000, {"train/loss": math.nan, "train/kl": math.inf})]
    for _ in range(2):
        upload(tracker, run_id, TrainingResumed(2, nonfinite))
    (loss,) = client.get_metric_history(run_id, "train/loss")
    assert math.isnan(loss.value)
    assert len(client.get_metric_history(run_id, "train/kl")) == 1


def test_uploader_leaves_out_a_metric_that_mlflow_refuses(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    history = [MetricPoint(p.step, p.time_ms, {**p.metrics, "a/../b": 1.0}) for p in (point(2), point(4))]
    with MetricUploader(tracker, run_id) as uploader:
        uploader.put(TrainingResumed(2, history[:1], {"good": "kept", "a/../b": "refused"}))
        uploader.put(history[1])
        uploader.put(CheckpointSaved(4))
        uploader.close(20)
        metric, tag = uploader.drain_notices()
    assert curve(client, run_id) == [(2, 3.0), (4, 5.0)]
    assert client.get_run(run_id).data.tags["warning.good"] == "kept"
    assert "a/../b" in metric
    assert "warning.a/../b" in tag


def test_uploader_stops_where_mlflow_denies_access(tmp_path: Path) -> None:
    with mlflow_answering(403) as uri, MetricUploader(Tracker(TrackingConfig(uri=uri), tmp_path), "0" * 32) as uploader:
        uploader.put(TrainingResumed(2, [point(2)]))
        with pytest.raises(TrackingError, match="permissions") as caught:
            uploader.close(20)
        assert not caught.value.retry
        assert len(uploader.drain_notices()) == 1


def test_recovery_goes_on_after_a_refused_metric(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    runs = [tracker.start_run("r", {}, DATASET, key=name) for name in "ab"]
    publish_history(str(tmp_path / runs[0]), [MetricPoint(2, 1, {"train/loss": 3.0, "a/../b": 1.0})])
    publish_history(str(tmp_path / runs[1]), [point(2)])
    notices = UploadRecovery(tracker, {run_id: str(tmp_path / run_id) for run_id in runs}).finish(20)
    assert ["a/../b" in notice for notice in notices] == [True, False]
    assert curve(client, runs[0]) == curve(client, runs[1]) == [(2, 3.0)]


def test_uploader_sends_a_warning_as_a_tag(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    for _ in range(2):
        upload(tracker, run_id, TrainingWarning(3, "bad_steps", "the gradient was not finite"))
    upload(tracker, run_id, TrainingResumed(2, [], {"processor": "another one"}))
    assert client.get_run(run_id).data.tags["warning.processor"] == "another one"
    assert client.get_run(run_id).data.tags["warning.bad_steps"] == "the gradient was not finite"


def test_uploader_marks_a_run_as_running(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    tracker.end_run(run_id, "KILLED")
    upload(tracker, run_id, TrainingResumed(0))
    assert client.get_run(run_id).info.status == "RUNNING"
    with pytest.raises(KeyboardInterrupt), tracker.marking_failure(run_id):
        raise KeyboardInterrupt
    assert client.get_run(run_id).info.status == "KILLED"


def test_uploader_of_a_deleted_run_says_so_once(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    client.delete_run(run_id)
    with MetricUploader(tracker, run_id) as uploader:
        for step in (2, 4):
            uploader.put(point(step))
            uploader.put(CheckpointSaved(step))
        uploader.close(20)
        (notice,) = uploader.drain_notices()
    assert run_id in notice
    assert "deleted" in notice


def test_uploader_left_by_an_error_sends_what_it_can(tracker: Tracker, client: MlflowClient, run_id: str) -> None:
    def train() -> None:
        with MetricUploader(tracker, run_id) as uploader:
            for event in (TrainingResumed(0), point(2), CheckpointSaved(2)):
                uploader.put(event)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert curve(client, run_id) == [(2, 3.0)]


def test_recovery_completes_runs_from_their_newest_checkpoint(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    runs = {
        name: tracker.start_run("r", {}, DATASET, key=name) for name in ("begun", "deleted", "finished", "complete")
    }
    client.delete_run(runs["deleted"])
    tracker.end_run(runs["finished"], "FINISHED")
    history = [point(2), point(4), point(6)]
    for name, run_id in runs.items():
        for last in (2, 3):
            publish_history(str(tmp_path / name), history[:last])
        if name != "deleted":
            tracker.log_points(run_id, history if name == "complete" else history[:1])
    # In place of damaged files an older checkpoint is read, and a training without any is passed over.
    (tmp_path / "begun" / "step-00000006" / "history.json").write_bytes(b"[")
    fresh = tracker.start_run("r", {}, DATASET, key="fresh")
    addresses = {run_id: str(tmp_path / name) for name, run_id in [*runs.items(), ("fresh", fresh)]}
    for attempt in range(2):
        notices = UploadRecovery(tracker, addresses).finish(20)
        assert [runs["begun"] in notice for notice in notices] == ([True] if attempt == 0 else [])
    assert curve(client, runs["begun"]) == [(2, 3.0), (4, 5.0)]
    assert curve(client, runs["finished"]) == [(2, 3.0)]
    assert curve(client, runs["complete"]) == [(2, 3.0), (4, 5.0), (6, 7.0)]
    assert client.get_run(runs["begun"]).info.status == "RUNNING"
    assert client.get_run(runs["begun"]).data.tags["warning.processor"] == "another one"


def test_recovery_without_a_server_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path)
    for name in "ab":
        publish_history(str(tmp_path / name), [point(2)])
    (notice,) = UploadRecovery(tracker, {name: str(tmp_path / name) for name in "ab"}).finish(20)
    assert "Connection refused" in notice
    assert UploadRecovery(tracker, {}).finish(20) == []


def test_uploader_without_a_server_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path)
    with MetricUploader(tracker, "0123abcd") as uploader:
        uploader.put(TrainingResumed(2, [point(2)]))
        with pytest.raises(TrackingUnavailableError, match=r"127\.0\.0\.1:9"):
            uploader.close(0.5)
        assert len(uploader.drain_notices()) == 1
    assert list(tmp_path.iterdir()) == []


def test_uploader_keeps_points_until_they_are_sent(
    tracker: Tracker, client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_accepted, failures = tracker.log_accepted, [True]

    def fail_once(run_id: str, points: list[MetricPoint]) -> dict[str, str]:
        if failures:
            failures.pop()
            raise TrackingUnavailableError("uri", "no answer", 503)
        return log_accepted(run_id, points)

    monkeypatch.setattr("jobs.tracking.uploader._MIN_PAUSE", 0.01)
    monkeypatch.setattr(tracker, "log_accepted", fail_once)
    upload(tracker, run_id, TrainingResumed(4, [point(2), point(4)]))
    assert curve(client, run_id) == [(2, 3.0), (4, 5.0)]


def test_uploader_neither_blocks_nor_outlives_its_command(
    tracker: Tracker, client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow does not answer before the command has failed and has set the final status."""
    get_run, failed = tracker.get_run, threading.Event()

    def wait(run_id: str) -> Run | None:
        assert failed.wait(60)
        return get_run(run_id)

    monkeypatch.setattr(tracker, "get_run", wait)
    uploader = MetricUploader(tracker, run_id)
    for event in (TrainingResumed(0), point(2), CheckpointSaved(2)):
        uploader.put(event)
    with pytest.raises(TrackingUnavailableError):
        uploader.close(0)
    tracker.end_run(run_id, "FAILED")
    failed.set()
    uploader._thread.join(60)
    assert curve(client, run_id) == [(2, 3.0)]
    assert client.get_run(run_id).info.status == "FAILED"
