"""A learning curve reaches a real server exactly once, whatever fails: the server, its database or the driver."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import HELPERS
from helpers.kill_uploading import publish_history
from mlflow import MlflowClient
from mlflow.entities import Dataset
from servers.faults import Fault, FaultProxy
from servers.fixtures import clear_aws_environment, s3_environment
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.processes import wait_for
from servers.s3 import S3Server

from jobs.checkpoints.manager import CheckpointManager
from jobs.config import TrackingConfig
from jobs.events import CheckpointSaved, MetricPoint, TrainingResumed, TrainingWarning
from jobs.tracking.client import Tracker, TrackingUnavailableError
from jobs.tracking.uploader import MetricUploader, UploadRecovery

DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")
CURVE = [
    MetricPoint(step, 1_700_000_000_000 + step, {"train/loss": step / 7, "train/kl": 1 / step}) for step in range(1, 61)
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call fail after a second."""
    clear_aws_environment(monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


def open_run(uri: str, folder: Path) -> tuple[Tracker, str]:
    tracker = Tracker(TrackingConfig(uri=uri), folder)
    return tracker, tracker.start_run("r", {}, DATASET, key=str(folder))


def train(uploader: MetricUploader, points: list[MetricPoint]) -> None:
    """Put points and commits as a training does."""
    for point in points:
        for event in (point, CheckpointSaved(point.step)) if point.step % 2 == 0 else (point,):
            uploader.put(event)
        time.sleep(0.01)


def check(tracker: Tracker, run_id: str, points: list[MetricPoint] = CURVE) -> None:
    """Compare what MLflow has with a curve, point for point."""
    for name in ("train/loss", "train/kl"):
        history = MlflowClient(tracker.uri).get_metric_history(run_id, name)
        expected = [(point.step, point.time_ms, point.metrics[name]) for point in points]
        assert sorted((p.step, p.timestamp, p.value) for p in history) == expected


def check_notices(notices: list[str]) -> None:
    """The notices of a whole training say that MLflow is unavailable and available again, in turns."""
    assert notices
    assert all("training continues while MLflow is unavailable" in notice for notice in notices[::2])
    assert all("MLflow is available again" in notice for notice in notices[1::2])
    assert len(notices) % 2 == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "503", "reset", "hang", "lose", "truncate"])
def test_uploader_repeats_calls_that_fail(faulty_mlflow: FaultProxy, tmp_path: Path, kind: Any) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    faulty_mlflow.inject(Fault(kind, "POST", "runs/log-batch", count=2), Fault(kind, "GET", "runs/get", first=3))
    with MetricUploader(tracker, run_id) as uploader:
        train(uploader, CURVE)
        uploader.put(TrainingWarning(3, "bad_steps", "the gradient was not finite"))
        uploader.close(60)
        check_notices(uploader.drain_notices())
    assert [hit.fault for hit in faulty_mlflow.hits].count(kind) == 3
    check(tracker, run_id)
    assert MlflowClient(tracker.uri).get_run(run_id).data.tags["warning.bad_steps"] == "the gradient was not finite"


@pytest.mark.slow
def test_uploader_outlasts_refused_connections(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    with MetricUploader(tracker, run_id) as uploader:
        train(uploader, CURVE[:20])
        with faulty_mlflow.refusing():
            train(uploader, CURVE[20:])
            time.sleep(1)
        uploader.close(60)
        check_notices(uploader.drain_notices())
    check(tracker, run_id)


@pytest.mark.slow
def test_recovery_sends_what_an_unavailable_server_missed(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    """The training's process gives up; a later one, which knows nothing of it, sends its checkpoint's history."""
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    publish_history(str(tmp_path / "checkpoints"), CURVE)
    addresses = {run_id: str(tmp_path / "checkpoints")}
    with faulty_mlflow.refusing():
        with MetricUploader(tracker, run_id) as uploader:
            train(uploader, CURVE)
            with pytest.raises(TrackingUnavailableError, match=faulty_mlflow.endpoint):
                uploader.close(1)
        (notice,) = UploadRecovery(tracker, addresses).finish(10)
        assert "were not completed" in notice
    check(tracker, run_id, [])
    (notice,) = UploadRecovery(tracker, addresses).finish(10)
    assert run_id in notice
    check(tracker, run_id)


@pytest.mark.slow
def test_uploader_that_starts_without_its_server_catches_up(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    tracker.log_points(run_id, CURVE[:7])
    tracker.end_run(run_id, "KILLED")
    with faulty_mlflow.refusing():
        uploader = MetricUploader(Tracker(TrackingConfig(uri=faulty_mlflow.endpoint), tmp_path), run_id)
        uploader.put(TrainingResumed(10, CURVE[:10]))
        train(uploader, CURVE[10:])
    with uploader:
        uploader.close(60)
    check(tracker, run_id)
    assert MlflowClient(tracker.uri).get_run(run_id).info.status == "RUNNING"


@pytest.fixture(scope="module")
def own_servers(s3_server: S3Server) -> Iterator[tuple[PostgresServer, MlflowServer]]:
    """Servers that a test may kill."""
    destination = f"s3://{s3_server.make_bucket()}/mlflow"
    with PostgresServer() as postgres:
        uri, env = postgres.create_database("own"), s3_environment(s3_server, s3_server.endpoint)
        with MlflowServer(uri, destination, env) as mlflow:
            yield postgres, mlflow


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["postgres", "mlflow"])
def test_uploader_outlasts_a_killed_server(
    own_servers: tuple[PostgresServer, MlflowServer], tmp_path: Path, victim: int
) -> None:
    tracker, run_id = open_run(own_servers[1].uri, tmp_path)
    with MetricUploader(tracker, run_id) as uploader:
        train(uploader, CURVE[:20])
        own_servers[victim].kill()
        train(uploader, CURVE[20:40])
        notices: list[str] = []
        assert wait_for(lambda: bool(notices.extend(uploader.drain_notices()) or notices), 30)
        own_servers[victim].restart()
        train(uploader, CURVE[40:])
        uploader.close(60)
        check_notices(notices + uploader.drain_notices())
    check(tracker, run_id)


def kill_drivers(uri: str, folder: Path, run_id: str, seed: int) -> list[MetricPoint]:
    """Return the learning curve in the checkpoint that the last of several killed drivers left."""
    command = [sys.executable, HELPERS / "kill_uploading.py", uri, folder, run_id, "8", str(seed)]
    subprocess.run(command, check=True, timeout=100)
    history = CheckpointManager(str(folder / "checkpoints")).latest_history().points
    assert len(history) > 50
    return history


def check_recovery(tracker: Tracker, run_id: str, folder: Path, history: list[MetricPoint]) -> None:
    """The recovery alone completes the curve, and a resumed training repeats nothing."""
    UploadRecovery(tracker, {run_id: str(folder / "checkpoints")}).finish(30)
    check(tracker, run_id, history)
    with MetricUploader(tracker, run_id) as uploader:
        uploader.put(TrainingResumed(len(history), history))
        uploader.close(30)
    check(tracker, run_id, history)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_before_a_server_that_loses_replies(faulty_mlflow: FaultProxy, tmp_path: Path, seed: int) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    faulty_mlflow.inject(*(Fault("lose", "POST", "log-batch", first=n) for n in range(2, 100, 7)))
    history = kill_drivers(faulty_mlflow.endpoint, tmp_path, run_id, seed)
    faulty_mlflow.clear()
    check_recovery(tracker, run_id, tmp_path, history)


@pytest.mark.slow
def test_kill_9_while_the_server_is_unavailable(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    with faulty_mlflow.refusing():
        history = kill_drivers(faulty_mlflow.endpoint, tmp_path, run_id, 2)
    check_recovery(tracker, run_id, tmp_path, history)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_kill_9_with_a_file_as_the_database(tracker: Tracker, tmp_path: Path, seed: int) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    history = kill_drivers("", tmp_path, run_id, seed)
    check_recovery(tracker, run_id, tmp_path, history)
