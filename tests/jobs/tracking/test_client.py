"""The tracking client against MLflow itself, on a SQLite file."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from servers.refusals import mlflow_answering

from jobs.config import TrackingConfig
from jobs.errors import UserError
from jobs.events import MetricPoint
from jobs.tracking.client import (
    PARENT_RUN,
    Tracker,
    TrackingError,
    TrackingUnavailableError,
    last_steps,
    missing_points,
)

RETRY_SETTINGS = [f"MLFLOW_HTTP_REQUEST_{name}" for name in ("TIMEOUT", "MAX_RETRIES", "BACKOFF_FACTOR")]
DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")


def point(step: int, loss: float = 1.0) -> MetricPoint:
    return MetricPoint(step, 1_700_000_000_000 + step, {"train/loss": loss + step, "train/kl": 2.0})


def test_start_run_with_a_known_key_returns_the_run(tracker: Tracker, client: MlflowClient) -> None:
    settings = {"model": "vlae", "model.latent_dims": "3,3,4"}
    run_id = tracker.start_run("vlae-digits", settings, DATASET, key="k1")
    tracker.end_run(run_id, "KILLED")
    assert client.get_run(run_id).info.status == "KILLED"
    assert tracker.start_run("vlae-digits", settings, DATASET, key="k1") == run_id
    assert client.get_run(run_id).info.status == "KILLED"  # looking a run up does not resume it
    tracker.resume_run(run_id)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(run_id).data.params == settings
    assert client.get_run(run_id).inputs.dataset_inputs[0].dataset.digest == "abc"
    assert tracker.start_run("vlae-digits", settings, DATASET, key="k2") != run_id


def test_missing_points_keeps_metrics_beyond_their_last_step() -> None:
    points = [point(2), MetricPoint(4, 1, {"a": 1.0, "b": 2.0})]
    steps = {"train/loss": 2, "train/kl": 3, "a": 4}
    assert missing_points(points, steps) == [MetricPoint(4, 1, {"b": 2.0})]
    assert missing_points(points, {}) == points


def test_complete_curve_twice_logs_each_point_once(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    history = [point(step) for step in (2, 4, 6)]
    tracker.complete_curve(run_id, history[:1])
    for _ in range(2):
        tracker.complete_curve(run_id, history)
    assert [p.step for p in client.get_metric_history(run_id, "train/loss")] == [2, 4, 6]


def test_first_logged_keeps_values_of_a_step_computed_again(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    first = [point(2), point(4)]
    tracker.complete_curve(run_id, first)
    again = MetricPoint(4, 5, {"train/loss": 9.0, "train/kl": 9.0, "validation/elbo": 1.0})
    points = tracker.first_logged(run_id, [again])
    assert {key: value for p in points for key, value in p.metrics.items()} == {
        **first[1].metrics,
        "validation/elbo": 1.0,
    }
    tracker.log_points(run_id, points)
    assert [p.timestamp for p in client.get_metric_history(run_id, "train/loss")] == [p.time_ms for p in first]


@pytest.mark.parametrize("name", ["a b", "a#b", "ä"])
def test_tracker_in_a_workspace_of_any_name_uses_its_file(empty_database: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    before = (folder / "mlflow.db").read_bytes()
    Tracker(TrackingConfig(), folder).start_run("r", {}, DATASET, key="k")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / "mlflow.db").read_bytes() != before


def test_log_points_beyond_the_limit_of_a_call_logs_all(tracker: Tracker) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    run = tracker.get_run(run_id)
    assert run is not None
    assert last_steps(run) == {}
    tracker.log_points(run_id, [point(step) for step in range(1200)])
    run = tracker.get_run(run_id)
    assert run is not None
    assert last_steps(run) == {"train/loss": 1199, "train/kl": 1199}


def test_get_run_of_a_deleted_or_unknown_run_is_none(tracker: Tracker, client: MlflowClient) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    client.delete_run(run_id)
    assert tracker.get_run(run_id) is None
    assert tracker.get_run("0" * 32) is None


def test_start_run_without_a_server_names_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path)
    with pytest.raises(TrackingUnavailableError, match=r"http://127\.0\.0\.1:9") as caught:
        tracker.start_run("r", {}, DATASET, key="k")
    assert caught.value.reason == "[Errno 111] Connection refused"
    assert caught.value.retry


@pytest.mark.parametrize(
    ("status", "error_code", "retry"),
    [
        (400, "INVALID_PARAMETER_VALUE", False),
        (401, "", False),
        (403, "PERMISSION_DENIED", False),
        (404, "ENDPOINT_NOT_FOUND", False),
        (413, "", False),
        (408, "", True),
        (429, "REQUEST_LIMIT_EXCEEDED", True),
        (500, "INTERNAL_ERROR", True),
        (503, "", True),
    ],
)
def test_error_says_whether_a_repetition_can_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, error_code: str, retry: bool
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").write_text("")
    with mlflow_answering(status, error_code) as uri:
        tracker = Tracker(TrackingConfig(uri=uri), tmp_path)
        with pytest.raises(TrackingError) as of_call:
            tracker.tag("0" * 32, {"a": "b"})
        assert (of_call.value.retry, isinstance(of_call.value, TrackingUnavailableError)) == (retry, retry)
        repository = get_artifact_repository("mlflow-artifacts:/a", tracking_uri=uri)
        with pytest.raises(TrackingError) as of_upload, tracker.errors():
            repository.log_artifact(str(tmp_path / "file"))
        assert of_upload.value.retry == retry


def test_request_settings_bound_the_wait_for_a_server(monkeypatch: pytest.MonkeyPatch, tracker: Tracker) -> None:
    """A server that hangs is given up within 25 s; a transfer raises the limit for its size."""
    for name in RETRY_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    program = "import jobs, os, sys; print(*map(os.environ.get, sys.argv[1:]))"
    output = subprocess.check_output([sys.executable, "-c", program, *RETRY_SETTINGS], text=True)
    timeout, retries, factor = map(int, output.split())
    # urllib3 pauses before each retry but the first, and adds up to a second of jitter to each.
    pauses = sum(factor * 2**n for n in range(1, retries)) + retries
    assert timeout * (1 + retries) + pauses <= 25
    monkeypatch.setenv(RETRY_SETTINGS[0], str(timeout))
    with tracker.transfer(3_000_000_000):
        assert int(os.environ[RETRY_SETTINGS[0]]) > 3000
    assert int(os.environ[RETRY_SETTINGS[0]]) == timeout


def test_tracker_with_a_damaged_database_names_it(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/mlflow.db")):
        Tracker(TrackingConfig(), tmp_path)


def test_start_run_in_a_deleted_experiment_names_it(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    client.delete_experiment(tracker.experiment)
    with pytest.raises(UserError, match=r"tracking\.experiment=vlae"):
        Tracker(TrackingConfig(), tmp_path).start_run("r", {}, DATASET, key="k")


def test_start_run_adds_what_a_known_run_lacks(tracker: Tracker, client: MlflowClient) -> None:
    """A kill came before the dataset was logged, and the training was not part of a search then."""
    tags = {"pipeline.key": "k"}
    run_id = client.create_run(tracker.experiment, tags=tags).info.run_id
    for parent in ("first", "second"):
        assert tracker.start_run("r", {}, DATASET, key="k", tags={PARENT_RUN: parent}) == run_id
    run = client.get_run(run_id)
    assert [dataset_input.dataset.digest for dataset_input in run.inputs.dataset_inputs] == ["abc"]
    assert run.data.tags[PARENT_RUN] == "first"
