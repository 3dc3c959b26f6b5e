"""The command with its tracking server, on PostgreSQL and S3, which is killed at the worst moments."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import mlflow
import numpy as np
import pytest
from helpers.commands import checkpoints, command, result_of, run, small, wait_for
from mlflow import MlflowClient
from PIL import Image
from servers.fixtures import s3_environment, without_keys
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.processes import descendants
from servers.s3 import S3Server

from jobs.checkpoints.format import read_history
from jobs.events import MetricPoint
from jobs.tracking.spool import Spool
from pipeline.session import Session
from pipeline.settings.parse import read_config
from pipeline.terminal import Reporter
from pipeline.workspace import Workspace

STEPS = 240
LONG = {"train__steps": STEPS, "train__checkpoint_every": 30, "train__log_every": 10}
FINISHED = "error: training is finished and nothing is lost, but MLflow at {} failed: [Errno 111] Connection refused; "


@pytest.fixture(scope="module")
def server(postgres: PostgresServer, s3_server: S3Server) -> Iterator[MlflowServer]:
    """One that may be killed; it runs when a test begins."""
    destination = f"s3://{s3_server.make_bucket()}/mlflow"
    env = s3_environment(s3_server, s3_server.endpoint)
    with MlflowServer(postgres.create_database("pipeline"), destination, env) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch)


def begin(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """The command, as soon as it has made a checkpoint."""
    process = subprocess.Popen(
        command(words), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: steps_of(folder), process)
    return process


def steps_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(folder)]


def check_curve(client: MlflowClient, run_id: str, folder: Path) -> None:
    """MLflow has what the last checkpoint has, each point once, and nothing waits any more."""
    history = read_history(checkpoints(folder)[-1])
    assert [point.step for point in history if "train/loss" in point.metrics] == list(range(10, STEPS + 1, 10))
    for name in ("train/loss", "train/kl_rung_1", "validation/elbo"):
        expected = [(point.step, point.time_ms, point.metrics[name]) for point in history if name in point.metrics]
        found = [(point.step, point.timestamp, point.value) for point in client.get_metric_history(run_id, name)]
        assert sorted(found) == expected
    assert list((folder / "ws" / "spool").iterdir()) == []


def check_artifacts(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Pictures and the registered model come through the server, without keys of the store behind it."""
    assert not [name for name in os.environ if name.startswith("AWS_")]
    assert client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:")
    with Image.open(client.download_artifacts(run_id, "figures/blocks.png", str(folder))) as picture:
        assert picture.width > 300
    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    codes = model.predict(np.zeros((2, 16, 16, 3), dtype=np.uint8))
    assert [len(codes[name]) for name in ("rung_0", "rung_1", "rung_2")] == [2, 2, 2]


@pytest.mark.slow
def test_a_server_that_is_killed_in_mid_training_and_comes_back(server: MlflowServer, tmp_path: Path) -> None:
    process = begin(small(tracking__uri=server.uri, stage="shard,train", **LONG), tmp_path)
    server.kill()
    wait_for(lambda: steps_of(tmp_path)[-1] >= 90, process)
    server.restart()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert errors.count("training goes on without MLflow, its curve waits in ") == 1
    assert errors.count("MLflow is back, and the curve has arrived") == 1
    client = MlflowClient(server.uri)
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    check_curve(client, result["run_id"], tmp_path)


@pytest.mark.slow
def test_a_server_that_stays_away_until_the_command_has_ended(server: MlflowServer, tmp_path: Path) -> None:
    words = small(tracking__uri=server.uri, **LONG)
    process = begin(words, tmp_path)
    server.kill()
    wait_for(lambda: steps_of(tmp_path)[-1] >= 90, process)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    for going_on in (True, False):  # from a checkpoint; then there is nothing to train
        done = run(words, tmp_path)
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        assert lines[-1] == FINISHED.format(server.uri) + "run the same command again to send it the rest"
        assert any("going on from step" in line for line in lines) == going_on
        assert sum("training goes on without MLflow" in line for line in lines) == going_on
        assert "Traceback" not in done.stderr
    server.restart()
    result = result_of(run(words, tmp_path))
    assert result["stages"] == {"shard": "skipped", "train": "resumed", "evaluate": "done"}
    client = MlflowClient(server.uri)
    (record,) = tmp_path.glob("ws/runs/*/run.json")
    key = json.loads(record.read_text())["key"]
    experiment = client.get_run(result["run_id"]).info.experiment_id
    (found,) = client.search_runs([experiment], f"tags.`pipeline.key` = '{key}'")
    assert (found.info.run_id, found.info.status) == (result["run_id"], "FINISHED")
    check_curve(client, result["run_id"], tmp_path)
    check_artifacts(client, result["run_id"], tmp_path)


@pytest.mark.slow
def test_a_new_training_needs_its_server(tmp_path: Path) -> None:
    words = small(tracking__uri="http://127.0.0.1:9")
    done = run(words, tmp_path)
    assert done.returncode == 1
    expected = "error: MLflow at http://127.0.0.1:9 failed: [Errno 111] Connection refused; run the same command again"
    assert done.stderr.splitlines()[-1].startswith(expected)
    assert checkpoints(tmp_path) == []


def test_a_command_of_the_workspace_sends_what_is_left(
    empty_database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(read_config([f"workspace={tmp_path}"]))
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = client.create_run("0").info.run_id
    spool = Spool.claim(tmp_path / "spool" / f"{run_id}.jsonl", {"uri": "", "experiment": "vlae"})
    assert spool is not None
    spool.append([MetricPoint(1, 2, {"train/loss": 3.0})])
    spool.close()
    with ExitStack() as stack:
        assert Session(workspace, Reporter(json_output=False), stack).tracker.uri == client.tracking_uri
    assert capsys.readouterr().out.strip() == f"the rest of an earlier curve has arrived in MLflow: run {run_id}"
    (point,) = client.get_metric_history(run_id, "train/loss")
    assert (point.step, point.timestamp, point.value) == (1, 2, 3.0)
    assert list((tmp_path / "spool").iterdir()) == []
