"""MLflow's server on PostgreSQL and S3 keeps what it acknowledged, and fails its clients as injected."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from numpy.random import default_rng
from servers.faults import Fault, FaultProxy
from servers.fixtures import clear_aws_environment, s3_environment
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.processes import running_processes
from servers.s3 import S3Server

pytestmark = pytest.mark.slow

BODY = default_rng(0).bytes(300_001)
POINTS = [(step, step / 7) for step in range(20)]


class Servers(NamedTuple):
    """Servers that a test may kill."""

    postgres: PostgresServer
    mlflow: MlflowServer


@pytest.fixture(scope="module")
def own_servers(s3_server: S3Server) -> Iterator[Servers]:
    destination = f"s3://{s3_server.make_bucket()}/mlflow"
    with PostgresServer() as postgres:
        uri, env = postgres.create_database("own"), s3_environment(s3_server, s3_server.endpoint)
        with MlflowServer(uri, destination, env) as mlflow:
            yield Servers(postgres, mlflow)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients have no S3 credentials and do not retry, so that each fault shows."""
    clear_aws_environment(monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def write_run(client: MlflowClient, folder: Path) -> str:
    """Create a run with a parameter, a metric and an artifact; return its id."""
    run_id = client.create_run("0", run_name="ladder").info.run_id
    client.log_param(run_id, "rungs", "3")
    for step, value in POINTS:
        client.log_metric(run_id, "loss", value, step=step)
    (folder / "body.bin").write_bytes(BODY)
    client.log_artifact(run_id, str(folder / "body.bin"), "below")
    client.set_terminated(run_id)
    return run_id


def check_run(client: MlflowClient, run_id: str, folder: Path) -> None:
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == ("ladder", "FINISHED", {"rungs": "3"})
    assert [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")] == POINTS
    assert [entry.path for entry in client.list_artifacts(run_id, "below")] == ["below/body.bin"]
    folder.mkdir()
    assert Path(client.download_artifacts(run_id, "below/body.bin", str(folder))).read_bytes() == BODY


def test_server_stores_a_run_and_its_artifact(mlflow_server: MlflowServer, s3_server: S3Server, tmp_path: Path) -> None:
    client = MlflowClient(mlflow_server.uri)
    run_id = write_run(client, tmp_path)
    check_run(client, run_id, tmp_path / "download")
    assert client.get_run(run_id).info.artifact_uri == f"mlflow-artifacts:/0/{run_id}/artifacts"
    bucket = mlflow_server.artifacts_destination.split("/")[2]
    key = f"mlflow/0/{run_id}/artifacts/below/body.bin"
    with contextlib.closing(s3_server.client()) as s3:
        assert key in [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
        with contextlib.closing(s3.get_object(Bucket=bucket, Key=key)["Body"]) as body:
            assert body.read() == BODY


def test_restart_of_a_killed_server_keeps_runs(own_servers: Servers, tmp_path: Path) -> None:
    client = MlflowClient(own_servers.mlflow.uri)
    run_id = write_run(client, tmp_path)
    group = own_servers.mlflow.process.pid
    own_servers.mlflow.kill()
    assert own_servers.mlflow.process.returncode == -9
    assert group not in [process.group for process in running_processes()]
    with pytest.raises(MlflowException):
        client.get_run(run_id)
    own_servers.mlflow.restart()
    check_run(client, run_id, tmp_path / "download")
    write_run(client, tmp_path)


def test_restart_of_a_killed_database_keeps_runs(own_servers: Servers, tmp_path: Path) -> None:
    client = MlflowClient(own_servers.mlflow.uri)
    run_id = write_run(client, tmp_path)
    own_servers.postgres.kill()
    assert own_servers.postgres.process.returncode == -9
    with pytest.raises(MlflowException):
        client.log_metric(run_id, "loss", 1.0, step=99)
    own_servers.postgres.restart()
    check_run(client, run_id, tmp_path / "download")
    write_run(client, tmp_path)


def test_server_outlasts_a_restart_of_its_database(own_servers: Servers, tmp_path: Path) -> None:
    client = MlflowClient(own_servers.mlflow.uri)
    run_id = write_run(client, tmp_path)
    own_servers.postgres.restart()
    check_run(client, run_id, tmp_path / "download")


ERRORS = {
    "500": "too many 500",
    "503": "too many 503",
    "reset": "Connection reset",
    "hang": "Read timed out",
    "lose": "closed connection without response",
}


@pytest.mark.parametrize("kind", ERRORS)
def test_client_sees_each_fault(faulty_mlflow: FaultProxy, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    client = MlflowClient(faulty_mlflow.endpoint)
    run_id = client.create_run("0").info.run_id
    faulty_mlflow.inject(Fault(kind, "POST", "/runs/log-metric$"))
    with pytest.raises(MlflowException, match=ERRORS[kind]):
        client.log_metric(run_id, "loss", 1.0, step=1)
    assert [hit.fault for hit in faulty_mlflow.hits] == [None, kind]
    assert len(client.get_metric_history(run_id, "loss")) == (kind == "lose")
    client.log_metric(run_id, "loss", 2.0, step=2)
    assert client.get_run(run_id).data.metrics == {"loss": 2.0}


@pytest.mark.parametrize("kind", ["500", "503", "reset"])
def test_client_with_a_retry_hides_a_fault(
    faulty_mlflow: FaultProxy, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    client = MlflowClient(faulty_mlflow.endpoint)
    faulty_mlflow.inject(Fault(kind, "POST", "/runs/create$"))
    run_id = client.create_run("0").info.run_id
    assert [hit.fault for hit in faulty_mlflow.hits] == [kind, None]
    assert client.get_run(run_id).info.status == "RUNNING"


def test_proxy_injects_a_fault_into_an_upload(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    client = MlflowClient(faulty_mlflow.endpoint)
    faulty_mlflow.inject(Fault("503", "PUT", "/body.bin$"))
    with pytest.raises(MlflowException, match="503"):
        write_run(client, tmp_path)
    check_run(client, write_run(client, tmp_path), tmp_path / "download")
    assert not [name for name in os.environ if name.startswith("AWS_")]


def test_proxy_that_refuses_keeps_faults_and_hits(faulty_mlflow: FaultProxy, tmp_path: Path) -> None:
    client, endpoint = MlflowClient(faulty_mlflow.endpoint), faulty_mlflow.endpoint
    run_id = write_run(client, tmp_path)
    hits = faulty_mlflow.hits
    faulty_mlflow.inject(Fault("503", "GET", "/runs/get"))
    for _ in range(2):
        with faulty_mlflow.refusing(), pytest.raises(MlflowException, match="Connection refused"):
            client.get_run(run_id)
    assert (faulty_mlflow.endpoint, faulty_mlflow.hits) == (endpoint, hits)
    with pytest.raises(MlflowException, match="503"):
        client.get_run(run_id)
    check_run(client, run_id, tmp_path / "download")


def test_postgres_creates_databases_with_a_password(postgres: PostgresServer) -> None:
    uri = postgres.create_database('a "name"').replace("+psycopg2", "")
    with contextlib.closing(psycopg2.connect(uri)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        assert cursor.fetchall() == [('a "name"',)]
    with pytest.raises(psycopg2.errors.DuplicateDatabase):
        postgres.create_database('a "name"')
    user, _, host = uri.partition("@")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(f"{user[:-1]}@{host}")


def test_stop_of_a_killed_postgres_leaves_nothing() -> None:
    with PostgresServer() as server:
        postmaster = server.process.pid
        children = {process.pid for process in running_processes() if process.parent == postmaster}
        assert len(children) >= 3
        assert postmaster in owners_of_shared_memory()
        server.kill()
    server.stop()
    assert not server.folder.exists()
    assert not {postmaster, *children} & {process.pid for process in running_processes()}
    assert postmaster not in owners_of_shared_memory()


def owners_of_shared_memory() -> list[int]:
    """Return the ids of the processes that made the System V segments of this machine."""
    names, *lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    return [int(line.split()[names.split().index("cpid")]) for line in lines]


def test_server_that_cannot_start_shows_its_log() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*nosuchdatabase"):
        MlflowServer("nosuchdatabase://", "/nowhere", {})
