"""The command with a tracking server on PostgreSQL and S3, which is killed at the worst moments."""

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
from helpers.kill_uploading import publish_history
from mlflow import MlflowClient
from PIL import Image
from servers.fixtures import clear_aws_environment, s3_environment
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.processes import descendants
from servers.s3 import S3Server

from jobs.checkpoints.format import read_history
from jobs.events import MetricPoint
from jobs.files import write_json
from pipeline.session import RunContext
from pipeline.settings.parse import read_config
from pipeline.terminal import Reporter
from pipeline.workspace import Workspace

STEPS = 240
LONG = {"train__steps": STEPS, "train__checkpoint_every": 30, "train__log_every": 10}


@pytest.fixture(scope="module")
def server(postgres: PostgresServer, s3_server: S3Server) -> Iterator[MlflowServer]:
    """A server that a test may kill and must restart."""
    destination = f"s3://{s3_server.make_bucket()}/mlflow"
    env = s3_environment(s3_server, s3_server.endpoint)
    with MlflowServer(postgres.create_database("pipeline"), destination, env) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_aws_environment(monkeypatch)


def begin(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start the command and wait for its first checkpoint."""
    process = subprocess.Popen(
        command(arguments),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: steps_of(folder), process)
    return process


def steps_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(folder)]


def check_curve(client: MlflowClient, run_id: str, folder: Path) -> None:
    """MLflow has what the last checkpoint has, each point once."""
    history = read_history(checkpoints(folder)[-1]).points
    assert [point.step for point in history if "train/loss" in point.metrics] == list(range(10, STEPS + 1, 10))
    for name in ("train/loss", "train/kl_rung_1", "validation/elbo"):
        expected = [(point.step, point.time_ms, point.metrics[name]) for point in history if name in point.metrics]
        points = client.get_metric_history(run_id, name)
        assert sorted((point.step, point.timestamp, point.value) for point in points) == expected


def check_artifacts(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Figures and the registered model come through the server, without credentials of the store behind it."""
    assert not [name for name in os.environ if name.startswith("AWS_")]
    assert client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:")
    with Image.open(client.download_artifacts(run_id, "figures/blocks.png", str(folder))) as picture:
        assert picture.width > 300
    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    codes = model.predict(np.zeros((2, 16, 16, 3), dtype=np.uint8))
    assert [len(codes[name]) for name in ("rung_0", "rung_1", "rung_2")] == [2, 2, 2]


@pytest.mark.slow
def test_training_outlasts_a_restart_of_its_server(server: MlflowServer, tmp_path: Path) -> None:
    process = begin(small(tracking__uri=server.uri, stage="shard,train", **LONG), tmp_path)
    server.kill()
    wait_for(lambda: steps_of(tmp_path)[-1] >= 90, process)
    server.restart()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert errors.count("training continues while MLflow is unavailable") == 1
    assert errors.count("MLflow is available again") == 1
    client = MlflowClient(server.uri)
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    check_curve(client, result["run_id"], tmp_path)


@pytest.mark.slow
def test_command_completes_the_run_once_its_server_is_back(server: MlflowServer, tmp_path: Path) -> None:
    arguments = small(tracking__uri=server.uri, **LONG)
    process = begin(arguments, tmp_path)
    server.kill()
    wait_for(lambda: steps_of(tmp_path)[-1] >= 90, process)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    for resumed in (True, False):  # from a checkpoint; then there is nothing to train
        done = run(arguments, tmp_path)
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        assert lines[-1].startswith("error: ")
        assert f"MLflow at {server.uri}" in lines[-1]
        assert lines[-1].endswith("Run the command again to continue.")
        assert any(" from step " in line for line in lines) == resumed
        assert sum("training continues while MLflow is unavailable" in line for line in lines) == resumed
        assert "Traceback" not in done.stderr
    server.restart()
    result = result_of(run(arguments, tmp_path))
    assert result["stages"] == {"shard": "skipped", "train": "resumed", "evaluate": "done"}
    client = MlflowClient(server.uri)
    (record,) = tmp_path.glob("ws/runs/*/run.json")
    key = json.loads(record.read_text())["key"]
    experiment = client.get_run(result["run_id"]).info.experiment_id
    (tracked,) = client.search_runs([experiment], f"tags.`pipeline.key` = '{key}'")
    assert (tracked.info.run_id, tracked.info.status) == (result["run_id"], "FINISHED")
    check_curve(client, result["run_id"], tmp_path)
    check_artifacts(client, result["run_id"], tmp_path)


@pytest.mark.slow
def test_new_training_without_a_server_fails(tmp_path: Path) -> None:
    arguments = small(tracking__uri="http://127.0.0.1:9")
    done = run(arguments, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: MLflow at http://127.0.0.1:9")
    assert checkpoints(tmp_path) == []


def test_tracker_of_a_session_completes_earlier_curves(
    empty_database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose training was killed gets the history of its checkpoint; finished runs and other MLflows do not."""
    workspace = Workspace(read_config([f"workspace={tmp_path}"]))
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    history = [MetricPoint(1, 2, {"train/loss": 3.0})]
    runs = {}
    for name, uri, storage in (
        ("killed", "", ""),
        ("stored", "", f"{tmp_path}/s"),
        ("done", "", ""),
        ("other", "x", ""),
    ):
        runs[name] = client.create_run("0").info.run_id
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        tracking = {"uri": uri, "experiment": "vlae", "run_id": runs[name]}
        record = {"key": "k", "settings": {"seed": "0"}, "data_fingerprint": "f", "storage_path": storage}
        write_json(folder / "run.json", {**record, "tracking": tracking})
        if name == "done":
            write_json(
                folder / "train.json", {"run_id": runs[name], "checkpoint": "c", "step": 1, "weights_sha256": "w"}
            )
        publish_history(f"{storage}/runs/{name}/checkpoints" if storage else str(folder / "checkpoints"), history)
    with ExitStack() as stack:
        assert RunContext(workspace, Reporter(json_output=False), stack).tracker.uri == client.tracking_uri
    notices = capsys.readouterr().out.strip().splitlines()
    assert [name for name, run_id in runs.items() if any(run_id in notice for notice in notices)] == [
        "killed",
        "stored",
    ]
    for name, run_id in runs.items():
        points = client.get_metric_history(run_id, "train/loss")
        expected = [(1, 2, 3.0)] if name in ("killed", "stored") else []
        assert [(point.step, point.timestamp, point.value) for point in points] == expected
