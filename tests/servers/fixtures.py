"""Fixtures around a real S3 server. conftest.py loads them, for all tests."""

import os
from collections.abc import Iterator

import boto3
import pytest
from servers.faults import FaultProxy
from servers.s3 import REGION, S3Server


def point_at(monkeypatch: pytest.MonkeyPatch, server: S3Server, endpoint: str) -> None:
    """Every S3 client made from now on, here or in a new process, uses this endpoint and no file of the user's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
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
    for name, value in settings.items():
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
