"""Against MLflow itself, on a SQLite file."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset

from jobs.config import TrackingConfig
from jobs.errors import UserError
from jobs.events import CheckpointSaved, Event, MetricPoint, TrainingResumed, TrainingWarning
from jobs.tracking.client import Tracker, TrackingUnavailableError
from jobs.tracking.uploader import MetricUploader

PATIENCE = [f"MLFLOW_HTTP_REQUEST_{name}" for name in ("TIMEOUT", "MAX_RETRIES", "BACKOFF_FACTOR")]
DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")


def point(step: int, loss: float = 1.0) -> MetricPoint:
    return MetricPoint(step, 1_700_000_000_000 + step, {"train/loss": loss + step, "train/kl": 2.0})


def test_a_run_is_found_again_by_its_key(tracker: Tracker, client: MlflowClient) -> None:
    settings = {"model": "vlae", "model.latent_dims": "3,3,4"}
    run_id = tracker.start_run("vlae-digits", settings, DATASET, key="k1")
    tracker.end_run(run_id, "KILLED")
    assert client.get_run(run_id).info.status == "KILLED"
    assert tracker.start_run("vlae-digits", settings, DATASET, key="k1") == run_id
    assert client.get_run(run_id).info.status == "KILLED"  # looking is not running
    tracker.resume_run(run_id)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(run_id).data.params == settings
    assert client.get_run(run_id).inputs.dataset_inputs[0].dataset.digest == "abc"
    assert tracker.start_run("vlae-digits", settings, DATASET, key="k2") != run_id


def send(tracker: Tracker, run_id: str, *messages: Event) -> None:
    """What one process does with these messages, to its end."""
    with MetricUploader(tracker, run_id, Path(tracker.uri.removeprefix("sqlite:///")).parent / "spool") as sender:
        for message in messages:
            sender.take(message)
        sender.close(20)


def test_the_curve_has_each_step_once_whatever_was_killed_when(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    history = [point(step) for step in (2, 4)]
    send(tracker, run_id, TrainingResumed(0), *history)
    assert client.get_metric_history(run_id, "train/loss") == []  # nothing that might have to be taken back
    send(tracker, run_id, TrainingResumed(0), *history, CheckpointSaved(5), point(6), point(8))
    # Killed at step 8. The next one computes 6 and 8 again, a little differently.
    again = [point(step, loss=1.5) for step in (6, 8, 10)]
    send(tracker, run_id, TrainingResumed(5, history), *again, CheckpointSaved(10))
    # Killed after a commit that was not sent: the checkpoint's history has it all.
    send(tracker, run_id, TrainingResumed(12, [*history, *again, point(12, loss=1.5)]))
    curve = client.get_metric_history(run_id, "train/loss")
    assert [(p.step, p.value) for p in curve] == [(2, 3.0), (4, 5.0), (6, 7.5), (8, 9.5), (10, 11.5), (12, 13.5)]


def test_workers_that_begin_again_repeat_no_point(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    begun = [TrainingResumed(0), point(2), point(4), CheckpointSaved(5), point(6), point(8)]
    send(tracker, run_id, *begun, TrainingResumed(5, [point(2), point(4)]), point(6, loss=1.5), CheckpointSaved(6))
    curve = client.get_metric_history(run_id, "train/loss")
    assert [(p.step, p.value) for p in curve] == [(2, 3.0), (4, 5.0), (6, 7.5)]


def test_a_run_resumed_from_an_older_checkpoint_repeats_no_point(tracker: Tracker, client: MlflowClient) -> None:
    """The newest checkpoint was damaged: steps that MLflow has already are computed again."""
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    score = MetricPoint(5, 1_700_000_000_005, {"validation/elbo": -3.0})
    send(tracker, run_id, point(2), point(4), score, point(6), CheckpointSaved(6))
    again = [point(4, loss=1.5), MetricPoint(5, 1_700_000_001_000, {"validation/elbo": -2.9})]
    send(
        tracker,
        run_id,
        TrainingResumed(2, [point(2)]),
        *again,
        point(6, loss=1.5),
        point(8, loss=1.5),
        CheckpointSaved(8),
    )
    assert [p.step for p in client.get_metric_history(run_id, "train/loss")] == [2, 4, 6, 8]
    assert [p.value for p in client.get_metric_history(run_id, "validation/elbo")] == [-3.0]


def test_a_point_of_which_a_part_was_sent_becomes_whole(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    whole = MetricPoint(2, 1_700_000_000_000, {"train/loss": 1.0, "validation/elbo": -3.0})
    tracker.log_points(run_id, [MetricPoint(2, whole.time_ms, {"train/loss": 1.0})])
    send(tracker, run_id, TrainingResumed(2, [whole]))
    for name in whole.metrics:
        assert [p.step for p in client.get_metric_history(run_id, name)] == [2]


def test_a_number_that_is_none_is_one_point(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    broken = [MetricPoint(2, 1_700_000_000_000, {"train/loss": math.nan, "train/kl": math.inf})]
    for _ in range(2):
        send(tracker, run_id, TrainingResumed(2, broken))
    (loss,) = client.get_metric_history(run_id, "train/loss")
    assert math.isnan(loss.value)
    assert len(client.get_metric_history(run_id, "train/kl")) == 1


def test_a_warning_is_a_tag(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    for _ in range(2):
        send(tracker, run_id, TrainingWarning(3, "bad_steps", "the gradient was not finite"))
    assert client.get_run(run_id).data.tags["warning.bad_steps"] == "the gradient was not finite"


def test_a_training_is_marked_as_running_by_its_sender(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    tracker.end_run(run_id, "KILLED")
    send(tracker, run_id, TrainingResumed(0))
    assert client.get_run(run_id).info.status == "RUNNING"
    with pytest.raises(KeyboardInterrupt), tracker.marking_failure(run_id):
        raise KeyboardInterrupt
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_run_that_was_deleted_is_told_once(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    client.delete_run(run_id)
    with MetricUploader(tracker, run_id, tmp_path / "spool") as sender:
        for step in (2, 4):
            sender.take(point(step))
            sender.take(CheckpointSaved(step))
        sender.close(20)
        assert sender.news() == [f"the run {run_id} was deleted in MLflow: its curve is sent there no more"]
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_whole_curve_for_a_run_that_has_none_of_it(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    history = [point(step) for step in (2, 4, 6)]
    tracker.complete_curve(run_id, history[:1])
    for _ in range(2):
        tracker.complete_curve(run_id, history)
    assert [p.step for p in client.get_metric_history(run_id, "train/loss")] == [2, 4, 6]


def test_scores_of_a_step_that_was_computed_again_are_those_of_the_curve(
    tracker: Tracker, client: MlflowClient
) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    first = [point(2), point(4)]
    tracker.complete_curve(run_id, first)
    again = MetricPoint(4, 5, {"train/loss": 9.0, "train/kl": 9.0, "validation/elbo": 1.0})
    known = tracker.as_known(run_id, [again])
    assert {key: value for p in known for key, value in p.metrics.items()} == {
        **first[1].metrics,
        "validation/elbo": 1.0,
    }
    tracker.log_points(run_id, known)
    assert [p.timestamp for p in client.get_metric_history(run_id, "train/loss")] == [p.time_ms for p in first]


@pytest.mark.parametrize("name", ["a b", "a#b", "ä"])
def test_a_workspace_of_any_name(empty_database: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    before = (folder / "mlflow.db").read_bytes()
    Tracker(TrackingConfig(), folder).start_run("r", {}, DATASET, key="k")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / "mlflow.db").read_bytes() != before


def test_more_points_than_mlflow_takes_at_once(tracker: Tracker) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    assert tracker.last_steps(run_id) == {}
    tracker.log_points(run_id, [point(step) for step in range(1200)])
    assert tracker.last_steps(run_id) == {"train/loss": 1199, "train/kl": 1199}
    assert tracker.last_steps("0" * 32) is None


def test_a_server_that_is_away_is_named_by_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path)
    expected = r"MLflow at http://127\.0\.0\.1:9 failed: \[Errno 111\] Connection refused; run the same command again"
    with pytest.raises(TrackingUnavailableError, match=expected):
        tracker.start_run("r", {}, DATASET, key="k")


def test_a_server_that_hangs_is_given_up_on_in_good_time(monkeypatch: pytest.MonkeyPatch, tracker: Tracker) -> None:
    """By the settings with which MLflow's client is used: each try is as long as a server may hang."""
    for name in PATIENCE:
        monkeypatch.delenv(name, raising=False)
    words = [sys.executable, "-c", "import jobs, os, sys; print(*map(os.environ.get, sys.argv[1:]))", *PATIENCE]
    timeout, retries, factor = map(int, subprocess.check_output(words, text=True).split())
    pauses = sum(factor * 2**n for n in range(1, retries)) + retries  # the first is none, and each has a random second
    assert timeout * (1 + retries) + pauses <= 25
    monkeypatch.setenv(PATIENCE[0], str(timeout))
    with tracker.transfer(3_000_000_000):  # which an answer takes longer to
        assert int(os.environ[PATIENCE[0]]) > 3000
    assert int(os.environ[PATIENCE[0]]) == timeout


def test_a_damaged_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, whatever its name says" * 50)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # MLflow tries again for two minutes
    with pytest.raises(UserError, match=r"mlflow\.db failed"):
        Tracker(TrackingConfig(), tmp_path)


def test_a_deleted_experiment_is_named(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    client.delete_experiment(tracker.experiment)
    with pytest.raises(UserError, match=r"tracking\.experiment=vlae was deleted"):
        Tracker(TrackingConfig(), tmp_path).start_run("r", {}, DATASET, key="k")
