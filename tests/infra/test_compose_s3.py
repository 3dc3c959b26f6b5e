"""The S3 server as compose.yaml starts it: without keys nothing can be read or written through any of its ports."""

import contextlib
import http.client
import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import grpc
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError
from servers.processes import listening_sockets, wait_for
from servers.s3 import GRPC_OFFSET, REGION, ROLES, free_ports, weed_program

pytestmark = pytest.mark.slow

COMPOSE = Path(__file__).parents[2] / "infra" / "compose.yaml"
KEY, SECRET = "key", "secret" * 4
OUTSIDE = "127.0.0.2"  # like another host, it reaches only the sockets that listen on all addresses
BODY = b"pictures " * 1000
# Methods of the gRPC services on S3's port; the first writes an identity, and the last deletes objects.
IAM = "/messaging_pb.SeaweedS3IamCache/"
GRPC_METHODS = [
    *(f"{IAM}{action}Identity" for action in ("Put", "Remove")),
    *(f"{IAM}{action}Policy" for action in ("Put", "Get", "Delete")),
    *(f"{IAM}{action}Group" for action in ("Put", "Remove")),
    f"{IAM}ListPolicies",
    "/s3_lifecycle_pb.SeaweedS3LifecycleInternal/LifecycleDelete",
]
REQUESTS = [
    "/",
    "/vlae",
    "/vlae?list-type=2",
    "/vlae/shard",
    "/buckets/vlae/shard",
    "/dir/assign",
    "/vol/status",
    "/1,1",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, dict[int, str]]]:
    """Yield S3's port and the listening sockets, with the object `shard` in the bucket `vlae`."""
    folder = tmp_path_factory.mktemp("s3")
    service = yaml.safe_load(COMPOSE.read_text())["services"]["s3"]
    values = {"S3_ACCESS_KEY": KEY, "S3_SECRET_KEY": SECRET}
    env = {
        name: re.sub(r"\$\{(\w+):\?[^}]+\}", lambda match: values[match[1]], value)
        for name, value in service["environment"].items()
    }
    ports = dict(zip(ROLES, free_ports(len(ROLES)), strict=True))
    command = [str(weed_program()), *service["entrypoint"][1:], *service["command"], f"-dir={folder}"]
    command += [f"-{role}.port={ports[role]}" for role in ("master", "volume", "filer", "s3")]
    command += [f"-{role}.localSocket={folder}/{role}.sock" for role in ("filer", "s3")]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env={"HOME": str(folder), **env}, stdout=log, stderr=log)
    try:
        with contextlib.closing(make_client(ports["s3"], KEY, SECRET)) as client:
            ready = wait_for(lambda: succeeds(lambda: client.create_bucket(Bucket="vlae")), 60)
            assert ready, (folder / "weed.log").read_text()
            client.put_object(Bucket="vlae", Key="shard", Body=BODY)
            yield ports["s3"], listening_sockets([process.pid])
            with client.get_object(Bucket="vlae", Key="shard")["Body"] as body:
                assert body.read() == BODY
            assert [entry["Key"] for entry in client.list_objects_v2(Bucket="vlae")["Contents"]] == ["shard"]
    finally:
        process.kill()
        process.wait()


def make_client(port: int, key: str, secret: str) -> Any:
    settings = Config(proxies={}, retries={"total_max_attempts": 1})
    session = boto3.Session(aws_access_key_id=key, aws_secret_access_key=secret, region_name=REGION)
    return session.client("s3", endpoint_url=f"http://{OUTSIDE}:{port}", config=settings)


def succeeds(call: Any) -> bool:
    try:
        call()
    except Exception:
        return False
    return True


def test_only_s3_listens_outside(server: tuple[int, dict[int, str]]) -> None:
    port, sockets = server
    assert {port for port, address in sockets.items() if address != "127.0.0.1"} == {port, port + GRPC_OFFSET}
    assert len(sockets) == 8


def test_http_without_keys_is_refused(server: tuple[int, dict[int, str]]) -> None:
    statuses = set()
    for port, path, method in itertools.product(server[1], REQUESTS, ("GET", "PUT", "POST", "DELETE")):
        with contextlib.closing(http.client.HTTPConnection(OUTSIDE, port, timeout=10)) as connection:
            try:
                connection.request(method, path, b"foreign")
                statuses.add(connection.getresponse().status)
            except (OSError, http.client.HTTPException):  # nothing listens, or gRPC does
                statuses.add(0)
    assert statuses <= {0, 400, 403, 404, 405}
    assert {0, 403} <= statuses


def test_grpc_without_keys_is_refused(server: tuple[int, dict[int, str]]) -> None:
    port = server[0]

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    credential = field(1, b"foreign") + field(2, b"foreign-secret")
    identity = field(1, b"foreign") + field(2, credential) + field(3, b"Admin")
    with grpc.insecure_channel(f"{OUTSIDE}:{port + GRPC_OFFSET}", [("grpc.enable_http_proxy", 0)]) as channel:
        for method in GRPC_METHODS:
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(method)(field(1, identity), timeout=10)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED, method
    foreign = make_client(port, "foreign", "foreign-secret")
    with contextlib.closing(foreign), pytest.raises(ClientError, match="InvalidAccessKeyId"):
        foreign.list_buckets()
