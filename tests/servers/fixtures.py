"""Fixtures around real servers: S3, PostgreSQL, MLflow. conftest.py loads them, for all tests."""

import os
from collections.abc import Iterator

import boto3
import pytest
from servers.faults import FaultProxy
from servers.mlflow_server import MlflowServer
from servers.postgres import PostgresServer
from servers.s3 import REGION, S3Server


def s3_environment(server: S3Server, endpoint: str) -> dict[str, str]:
    """With these variables, an S3 client uses this endpoint and no file of the user's."""
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


def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment tells where S3 is or who may enter, and no proxy of the network is before a server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def point_at(monkeypatch: pytest.MonkeyPatch, server: S3Server, endpoint: str) -> None:
    """Every S3 client made from now on, here or in a new process, uses this endpoint and no file of the user's."""
    without_keys(monkeypatch)
    for name, value in s3_environment(server, endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it has read first


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for all tests: it takes a second to start. A test that kills one starts its own."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a fresh bucket; the environment points at its server."""
    point_at(monkeypatch, s3_server, s3_server.endpoint)
    return s3_server.make_bucket()


@pytest.fixture
def faulty_s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FaultProxy]]:
    """The name of a fresh bucket, and the proxy at which the environment points; it has no faults and no hits yet."""
    with FaultProxy(s3_server.endpoint) as proxy:
        point_at(monkeypatch, s3_server, proxy.endpoint)
        yield s3_server.make_bucket(), proxy


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests, each of which makes a database of its own. A test that kills one starts its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(postgres: PostgresServer, s3_server: S3Server) -> Iterator[MlflowServer]:
    """MLflow on PostgreSQL and S3, one for all tests: it takes many seconds to start, and its client needs no keys."""
    destination = f"s3://{s3_server.make_bucket()}/mlflow"
    env = s3_environment(s3_server, s3_server.endpoint)
    with MlflowServer(postgres.create_database("mlflow"), destination, env) as server:
        yield server


@pytest.fixture
def faulty_mlflow(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy before MLflow, without faults and hits yet: its `endpoint` is the tracking URI. No keys are around."""
    without_keys(monkeypatch)
    with FaultProxy(mlflow_server.uri) as proxy:
        yield proxy
