"""Against MLflow itself, on a SQLite file."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset

from jobs.config import TrackingConfig
from jobs.errors import UserError
from jobs.messages import Committed, Point, Started
from jobs.tracking import Tracker

DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")


def point(step: int, loss: float = 1.0) -> Point:
    return Point(step, 1_700_000_000_000 + step, {"train/loss": loss + step, "train/kl": 2.0})


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


def test_the_curve_has_each_step_once_whatever_was_killed_when(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    first = tracker.curve(run_id)
    first.take(Started(0))
    history = [point(step) for step in (2, 4)]
    for sent in history:
        first.take(sent)
    assert client.get_metric_history(run_id, "train/loss") == []  # nothing that might have to be taken back
    first.take(Committed(5))
    for lost in (6, 8):
        first.take(point(lost))
    # Killed at step 8. The next one computes 6 and 8 again, a little differently.
    second = tracker.curve(run_id)
    second.take(Started(5, history))
    for step in (6, 8, 10):
        second.take(point(step, loss=1.5))
    second.take(Committed(10))
    # Killed after a commit that was not sent: the checkpoint's history has it all.
    third = tracker.curve(run_id)
    third.take(Started(12, [*history, *(point(step, loss=1.5) for step in (6, 8, 10, 12))]))
    curve = client.get_metric_history(run_id, "train/loss")
    assert [(p.step, p.value) for p in curve] == [(2, 3.0), (4, 5.0), (6, 7.5), (8, 9.5), (10, 11.5), (12, 13.5)]


def test_a_run_resumed_from_an_older_checkpoint_repeats_no_point(tracker: Tracker, client: MlflowClient) -> None:
    """The newest checkpoint was damaged: steps that MLflow has already are computed again."""
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    first = tracker.curve(run_id)
    for step in (2, 4, 6):
        first.take(point(step))
    first.take(Committed(6))
    second = tracker.curve(run_id)
    second.take(Started(2, [point(2)]))
    for step in (4, 6, 8):
        second.take(point(step, loss=1.5))
    second.take(Committed(8))
    assert [p.step for p in client.get_metric_history(run_id, "train/loss")] == [2, 4, 6, 8]


def test_a_point_of_which_a_part_was_sent_becomes_whole(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    whole = Point(2, 1_700_000_000_000, {"train/loss": 1.0, "validation/elbo": -3.0})
    tracker.log_points(run_id, [Point(2, whole.time_ms, {"train/loss": 1.0})])
    tracker.curve(run_id).take(Started(2, [whole]))
    for name in whole.metrics:
        assert [p.step for p in client.get_metric_history(run_id, name)] == [2]


def test_what_could_not_be_sent_goes_with_the_next_commit(
    tracker: Tracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    curve = tracker.curve(run_id)
    curve.take(point(2))
    with monkeypatch.context() as away:
        away.setattr(tracker, "client", MlflowClient("http://127.0.0.1:9"))
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(UserError):
            curve.take(Committed(2))
    curve.take(point(4))
    curve.take(Committed(4))
    assert [p.step for p in client.get_metric_history(run_id, "train/loss")] == [2, 4]


@pytest.mark.parametrize("name", ["a b", "a#b", "ä"])
def test_a_workspace_of_any_name(empty_database: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    before = (folder / "mlflow.db").read_bytes()
    Tracker(TrackingConfig(), folder).start_run("r", {}, DATASET, key="k")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / "mlflow.db").read_bytes() != before


def test_more_points_than_mlflow_takes_at_once(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    tracker.log_points(run_id, [point(step) for step in range(1200)])
    assert tracker.last_step(run_id, "train/loss") == 1199
    assert tracker.last_step(run_id, "nothing") == -1


def test_a_server_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 failed.*run the same command again"):
        Tracker(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path)


def test_a_damaged_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, whatever its name says" * 50)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # MLflow tries again for two minutes
    with pytest.raises(UserError, match=r"mlflow\.db failed"):
        Tracker(TrackingConfig(), tmp_path)


def test_a_deleted_experiment_is_named(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    found = client.get_experiment_by_name("vlae")
    assert found is not None
    client.delete_experiment(found.experiment_id)
    with pytest.raises(UserError, match=r"tracking\.experiment=vlae was deleted"):
        Tracker(TrackingConfig(), tmp_path)
