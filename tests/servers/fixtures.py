"""Fixtures for real servers (S3, PostgreSQL, MLflow); conftest.py loads them for all tests."""

import os
from collections.abc import Iterator

import boto3
import pytest
from servers.faults import FaultProxy
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.s3 import REGION, S3Server


def s3_environment(server: S3Server, endpoint: str) -> dict[str, str]:
    """Return the environment in which an S3 client uses this endpoint and none of the user's files."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def clear_aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove S3's address and credentials from the environment, and bypass proxies for 127.0.0.1."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def use_s3_endpoint(monkeypatch: pytest.MonkeyPatch, server: S3Server, endpoint: str) -> None:
    """Let every S3 client made from now on, also in new processes, use this endpoint."""
    clear_aws_environment(monkeypatch)
    for name, value in s3_environment(server, endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # because boto3 keeps the first credentials


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for all tests, which starts in a second. A test that kills servers starts its own."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a new bucket; the environment names its server."""
    use_s3_endpoint(monkeypatch, s3_server, s3_server.endpoint)
    return s3_server.make_bucket()


@pytest.fixture
def faulty_s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FaultProxy]]:
    """Name of a new bucket, and the proxy that the environment names, without faults and hits yet."""
    with FaultProxy(s3_server.endpoint) as proxy:
        use_s3_endpoint(monkeypatch, s3_server, proxy.endpoint)
        yield s3_server.make_bucket(), proxy


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests, each with a database of its own. A test that kills servers starts its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(postgres: PostgresServer, s3_server: S3Server) -> Iterator[MlflowServer]:
    """One MLflow on PostgreSQL and S3 for all tests, because it starts slowly. Its clients need no credentials."""
    destination = f"s3://{s3_server.make_bucket()}/mlflow"
    env = s3_environment(s3_server, s3_server.endpoint)
    with MlflowServer(postgres.create_database("mlflow"), destination, env) as server:
        yield server


@pytest.fixture
def faulty_mlflow(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Proxy of MLflow without faults and hits yet; its `endpoint` is the tracking URI. There are no S3 credentials."""
    clear_aws_environment(monkeypatch)
    with FaultProxy(mlflow_server.uri) as proxy:
        yield proxy
