"""A curve arrives exactly once through a real server, whatever befalls the server, its database or the sender."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import HELPERS
from helpers.kill_spooling import read_history
from mlflow import MlflowClient
from mlflow.entities import Dataset
from servers.faults import Fault, FaultProxy
from servers.fixtures import s3_environment, without_keys
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.processes import wait_for
from servers.s3 import S3Server

from jobs.config import TrackingConfig
from jobs.errors import UserError
from jobs.events import CheckpointSaved, MetricPoint, TrainingResumed, TrainingWarning
from jobs.tracking.client import Tracker
from jobs.tracking.uploader import MetricUploader, UploadRecovery

DATASET = Dataset(name="digits", digest="abc", source_type="local", source="/data")
CURVE = [
    MetricPoint(step, 1_700_000_000_000 + step, {"train/loss": step / 7, "train/kl": 1 / step}) for step in range(1, 61)
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call fails after a second at most."""
    without_keys(monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


def open_run(uri: str, folder: Path) -> tuple[Tracker, str]:
    tracker = Tracker(TrackingConfig(uri=uri), folder)
    return tracker, tracker.start_run("r", {}, DATASET, key=str(folder))


def train(sender: MetricUploader, points: list[MetricPoint]) -> float:
    """Post points and commits as a training does; the seconds for which the poll loop was held up."""
    held_up = 0.0
    for point in points:
        for message in (point, CheckpointSaved(point.step)) if point.step % 2 == 0 else (point,):
            begin = time.perf_counter()
            sender.take(message)
            held_up += time.perf_counter() - begin
        time.sleep(0.01)
    return held_up


def curve(tracker: Tracker, run_id: str, metric: str = "train/loss") -> list[tuple[int, int, float]]:
    return sorted((p.step, p.timestamp, p.value) for p in MlflowClient(tracker.uri).get_metric_history(run_id, metric))


def expected(points: list[MetricPoint], metric: str = "train/loss") -> list[tuple[int, int, float]]:
    return [(point.step, point.time_ms, point.metrics[metric]) for point in points]


def check(tracker: Tracker, run_id: str, folder: Path, points: list[MetricPoint] = CURVE) -> None:
    for metric in ("train/loss", "train/kl"):
        assert curve(tracker, run_id, metric) == expected(points, metric)
    assert list((folder / "spool").iterdir()) == []


def check_news(news: list[str]) -> None:
    """That MLflow is away, and that it is back, as often as it was; `news` of a whole training."""
    assert news
    assert all("training goes on without MLflow, its curve waits in " in line for line in news[::2])
    assert set(news[1::2]) == {"MLflow is back, and the curve has arrived"}
    assert len(news) % 2 == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "503", "reset", "hang", "lose", "truncate"])
def test_calls_that_fail(faulty_mlflow: FaultProxy, tmp_path: Path, kind: Any) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    faulty_mlflow.inject(Fault(kind, "POST", "runs/log-batch", count=2), Fault(kind, "GET", "runs/get", first=3))
    with MetricUploader(tracker, run_id, tmp_path / "spool") as sender:
        assert train(sender, CURVE) < 0.5
        sender.take(TrainingWarning(3, "bad_steps", "the gradient was not finite"))
        sender.close(60)
        check_news(sender.news())
    assert [hit.fault for hit in faulty_mlflow.hits].count(kind) == 3
    check(tracker, run_id, tmp_path)
    assert MlflowClient(tracker.uri).get_run(run_id).data.tags["warning.bad_steps"] == "the gradient was not finite"


@pytest.mark.slow
def test_a_server_that_refuses_for_a_while(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    with MetricUploader(tracker, run_id, tmp_path / "spool") as sender:
        train(sender, CURVE[:20])
        with faulty_mlflow.refusing():
            assert train(sender, CURVE[20:]) < 0.5
            time.sleep(1)
        sender.close(60)
        check_news(sender.news())
    check(tracker, run_id, tmp_path)


@pytest.mark.slow
def test_a_server_that_is_away_at_the_end(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    """The last process gives up; a later one, which knows of no training, sends what waits."""
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    with faulty_mlflow.refusing():
        with MetricUploader(tracker, run_id, tmp_path / "spool") as sender:
            train(sender, CURVE)
            with pytest.raises(UserError, match=r"MLflow at .* failed: .*Connection refused; run the same command"):
                sender.close(1)
        assert "earlier curves wait still" in UploadRecovery(tracker, tmp_path / "spool").finish(10)[0]
    assert curve(tracker, run_id) == []
    news = UploadRecovery(tracker, tmp_path / "spool").finish(10)
    assert news == [f"the rest of an earlier curve has arrived in MLflow: run {run_id}"]
    check(tracker, run_id, tmp_path)


@pytest.mark.slow
def test_a_training_that_begins_without_its_server(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    tracker.log_points(run_id, CURVE[:7])
    tracker.end_run(run_id, "KILLED")
    with faulty_mlflow.refusing():
        sender = MetricUploader(
            Tracker(TrackingConfig(uri=faulty_mlflow.endpoint), tmp_path), run_id, tmp_path / "spool"
        )
        sender.take(TrainingResumed(10, CURVE[:10]))
        train(sender, CURVE[10:])
    with sender:
        sender.close(60)
    check(tracker, run_id, tmp_path)
    assert MlflowClient(tracker.uri).get_run(run_id).info.status == "RUNNING"


@pytest.fixture(scope="module")
def own(s3_server: S3Server) -> Iterator[tuple[PostgresServer, MlflowServer]]:
    """Servers that may be killed."""
    destination = f"s3://{s3_server.make_bucket()}/mlflow"
    with PostgresServer() as postgres:
        uri, env = postgres.create_database("own"), s3_environment(s3_server, s3_server.endpoint)
        with MlflowServer(uri, destination, env) as mlflow:
            yield postgres, mlflow


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["postgres", "mlflow"])
def test_a_server_that_is_killed_and_comes_back(
    own: tuple[PostgresServer, MlflowServer], tmp_path: Path, which: int
) -> None:
    tracker, run_id = open_run(own[1].uri, tmp_path)
    with MetricUploader(tracker, run_id, tmp_path / "spool") as sender:
        train(sender, CURVE[:20])
        own[which].kill()
        assert train(sender, CURVE[20:40]) < 0.5
        news: list[str] = []
        assert wait_for(lambda: bool(news.extend(sender.news()) or news), 30)
        own[which].restart()
        assert train(sender, CURVE[40:]) < 0.5
        sender.close(60)
        check_news(news + sender.news())
    check(tracker, run_id, tmp_path)


def kill_drivers(uri: str, folder: Path, run_id: str, seed: int) -> list[MetricPoint]:
    """The curve in the checkpoint that the last of several killed drivers has left."""
    words = [sys.executable, HELPERS / "kill_spooling.py", uri, folder, run_id, "8", str(seed)]
    subprocess.run(words, check=True, timeout=100)
    history = read_history(folder)
    assert len(history) > 50
    return history


def finish_killed(tracker: Tracker, run_id: str, folder: Path, history: list[MetricPoint]) -> None:
    """What the spool has reaches MLflow without the training, and all there is with it; each point once."""
    (spool,) = (folder / "spool").iterdir()
    lines = spool.read_text().split("\n")[1:-1]
    kept = max((json.loads(line)["step"] for line in lines), default=0)
    UploadRecovery(tracker, folder / "spool").finish(30)
    found = curve(tracker, run_id)
    assert kept <= len(found) <= len(history)
    assert found == expected(history)[: len(found)]
    with MetricUploader(tracker, run_id, folder / "spool") as sender:
        sender.take(TrainingResumed(len(history), history))
        sender.close(30)
    check(tracker, run_id, folder, history)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_of_the_sender_before_a_server_that_loses_replies(
    faulty_mlflow: FaultProxy, tmp_path: Path, seed: int
) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    faulty_mlflow.inject(*(Fault("lose", "POST", "log-batch", first=n) for n in range(2, 100, 7)))
    history = kill_drivers(faulty_mlflow.endpoint, tmp_path, run_id, seed)
    faulty_mlflow.clear()
    finish_killed(tracker, run_id, tmp_path, history)


@pytest.mark.slow
def test_kill_9_of_the_sender_while_the_server_is_away(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    tracker, run_id = open_run(faulty_mlflow.endpoint, tmp_path)
    with faulty_mlflow.refusing():
        history = kill_drivers(faulty_mlflow.endpoint, tmp_path, run_id, 2)
    finish_killed(tracker, run_id, tmp_path, history)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_kill_9_of_the_sender_with_a_file_as_the_database(tracker: Tracker, tmp_path: Path, seed: int) -> None:
    run_id = tracker.start_run("r", {}, DATASET, key="k")
    history = kill_drivers("", tmp_path, run_id, seed)
    finish_killed(tracker, run_id, tmp_path, history)
