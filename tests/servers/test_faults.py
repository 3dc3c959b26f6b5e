"""The S3 server is complete enough, and the proxy in front of it injects exactly the faults that it was given."""

import contextlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    FlexibleChecksumError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from numpy.random import default_rng
from servers.faults import Fault, FaultProxy
from servers.s3 import S3Server

pytestmark = pytest.mark.slow  # because these test the tools of other tests

BODY = default_rng(0).bytes(300_001)  # more than a block and than what a socket holds
LARGE = default_rng(1).bytes(12 << 20)
PARTS = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=3)


def make_client(**settings: Any) -> Any:
    """Return a client of the endpoint in the environment that does not retry, so that each fault shows."""
    return boto3.client("s3", config=Config(**{"retries": {"total_max_attempts": 1}, **settings}))


@pytest.fixture
def client(faulty_s3: tuple[str, FaultProxy]) -> Iterator[Any]:
    with contextlib.closing(make_client()) as client:
        yield client


@pytest.fixture
def bucket(faulty_s3: tuple[str, FaultProxy]) -> str:
    return faulty_s3[0]


@pytest.fixture
def proxy(faulty_s3: tuple[str, FaultProxy]) -> FaultProxy:
    return faulty_s3[1]


def read(client: Any, bucket: str, key: str, **how: Any) -> bytes:
    # Not `with body`, because that gives urllib3's object, which compares no checksum.
    with contextlib.closing(client.get_object(Bucket=bucket, Key=key, **how)["Body"]) as body:
        return body.read()


def status(call: Callable[..., Any], **arguments: Any) -> int:
    """Return the HTTP status of a call that fails."""
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return error.value.response["ResponseMetadata"]["HTTPStatusCode"]


def in_trailer(params: dict[str, Any], **_: Any) -> None:
    """Send the body in chunks with a checksum after them, which boto3 does over https only."""
    params["context"]["checksum"]["request_algorithm"]["in"] = "trailer"


@pytest.mark.parametrize("body", [b"", b"x", BODY, LARGE], ids=len)
def test_proxy_passes_objects_unchanged(client: Any, bucket: str, proxy: FaultProxy, body: bytes) -> None:
    for key, source in (("bytes", body), ("file", io.BytesIO(body))):
        client.put_object(Bucket=bucket, Key=key, Body=source)
        assert read(client, bucket, key) == body
        assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(body)
        client.delete_object(Bucket=bucket, Key=key)
    methods = ["PUT", "GET", "HEAD", "DELETE"]
    assert proxy.hits == [(m, f"/{bucket}/{key}", None) for key in ("bytes", "file") for m in methods]


def test_proxy_passes_chunked_bodies_unchanged(client: Any, bucket: str, proxy: FaultProxy) -> None:
    client.meta.events.register("before-call.s3.PutObject", in_trailer)
    client.put_object(Bucket=bucket, Key="chunked", Body=LARGE)
    assert read(client, bucket, "chunked") == LARGE
    proxy.inject(Fault("flip_upload", "PUT", "/chunked$"))
    assert status(client.put_object, Bucket=bucket, Key="chunked", Body=LARGE) == 400
    assert read(client, bucket, "chunked") == LARGE


def test_server_supports_multipart_and_ranges(client: Any, bucket: str, proxy: FaultProxy) -> None:
    client.upload_fileobj(io.BytesIO(LARGE), bucket, "large", Config=PARTS)
    kinds = [re.sub(r"uploadId=[^&]+", "uploadId", hit.path.partition("?")[2]) for hit in proxy.hits]
    assert kinds[0] == "uploads"
    assert sorted(kinds[1:-1]) == [f"uploadId&partNumber={index}" for index in (1, 2, 3)]
    assert kinds[-1] == "uploadId"
    assert read(client, bucket, "large", Range="bytes=5242870-5242890") == LARGE[5242870:5242891]
    copy = io.BytesIO()
    client.download_fileobj(bucket, "large", copy, Config=PARTS)
    assert copy.getvalue() == LARGE


def test_server_supports_conditional_requests(client: Any, bucket: str) -> None:
    tag = client.put_object(Bucket=bucket, Key="once", Body=b"first", IfNoneMatch="*")["ETag"]
    assert status(client.put_object, Bucket=bucket, Key="once", Body=b"second", IfNoneMatch="*") == 412
    assert status(client.put_object, Bucket=bucket, Key="once", Body=LARGE, IfNoneMatch="*") == 412
    assert status(client.get_object, Bucket=bucket, Key="once", IfNoneMatch=tag) == 304
    assert status(client.get_object, Bucket=bucket, Key="once", IfMatch='"0"') == 412
    assert status(client.get_object, Bucket=bucket, Key="never") == 404
    assert read(client, bucket, "once") == b"first"


def test_server_lists_objects_in_pages(client: Any, bucket: str) -> None:
    names = [f"folder/{index:04}" for index in range(60)]
    for name in names:
        client.put_object(Bucket=bucket, Key=name, Body=b"")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 50})
    assert [entry["Key"] for page in pages for entry in page["Contents"]] == names


@pytest.mark.parametrize("body", [b"small", LARGE], ids=len)
def test_server_refuses_a_wrong_secret(client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"own")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with contextlib.closing(make_client()) as stranger:
        assert status(stranger.list_buckets) == 403
        assert status(stranger.get_object, Bucket=bucket, Key="k") == 403
        assert status(stranger.put_object, Bucket=bucket, Key="k", Body=body) == 403
    assert read(client, bucket, "k") == b"own"


def test_server_without_the_proxy_keeps_an_object(s3: str) -> None:
    with contextlib.closing(make_client()) as client:
        client.put_object(Bucket=s3, Key="k", Body=BODY)
        assert read(client, s3, "k") == BODY


NO_REPLY = {"503": ClientError, "reset": ConnectionClosedError, "hang": ReadTimeoutError, "lose": ConnectionClosedError}


@pytest.mark.parametrize("kind", NO_REPLY)
def test_fault_without_a_reply_raises_and_passes(client: Any, bucket: str, proxy: FaultProxy, kind: Any) -> None:
    calls = {
        "PUT": lambda client: client.put_object(Bucket=bucket, Key="k", Body=BODY),
        "GET": lambda client: read(client, bucket, "k"),
        "HEAD": lambda client: client.head_object(Bucket=bucket, Key="k"),
    }
    with contextlib.closing(make_client(read_timeout=0.5) if kind == "hang" else make_client()) as victim:
        for method, call in calls.items():
            client.put_object(Bucket=bucket, Key="k", Body=b"old")
            proxy.clear()
            proxy.inject(Fault(kind, method, "/k$"))
            with pytest.raises(NO_REPLY[kind]) as raised:
                call(victim)
            if kind == "503":
                assert raised.value.response["Error"]["Code"] == ("503" if method == "HEAD" else "SlowDown")
            assert proxy.hits == [(method, f"/{bucket}/k", kind)]
            assert read(client, bucket, "k") == (BODY if (method, kind) == ("PUT", "lose") else b"old")
            call(client)
            assert [hit.fault for hit in proxy.hits] == [kind, None, None]


def test_truncate_ends_a_body_halfway(client: Any, bucket: str, proxy: FaultProxy) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=BODY)
    proxy.inject(Fault("truncate", "GET", "/k$"))
    half = len(BODY) // 2
    with contextlib.closing(client.get_object(Bucket=bucket, Key="k")["Body"]) as body:
        assert body.read(half) == BODY[:half]
        with pytest.raises(ResponseStreamingError):
            body.read()
    assert read(client, bucket, "k") == BODY


def test_flip_changes_one_bit_of_a_reply(client: Any, bucket: str, proxy: FaultProxy) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=BODY)
    proxy.inject(Fault("flip", "GET", "/k$", 1, 2))
    with pytest.raises(FlexibleChecksumError):
        read(client, bucket, "k")
    with contextlib.closing(make_client(response_checksum_validation="when_required")) as trusting:
        flipped = read(trusting, bucket, "k")
        assert read(trusting, bucket, "k") == BODY
    assert [(index, a ^ b) for index, (a, b) in enumerate(zip(flipped, BODY, strict=True)) if a != b] == [
        (len(BODY) // 2, 1)
    ]


def test_flip_upload_is_refused_by_the_server(client: Any, bucket: str, proxy: FaultProxy) -> None:
    proxy.inject(Fault("flip_upload", "PUT", "/k$"))
    with pytest.raises(ClientError, match="BadDigest"):
        client.put_object(Bucket=bucket, Key="k", Body=BODY)
    assert status(client.get_object, Bucket=bucket, Key="k") == 404


def test_faults_apply_to_the_hits_they_name(client: Any, bucket: str, proxy: FaultProxy) -> None:
    proxy.inject(Fault("503", "PUT", "/a$", 2, 2), Fault("reset", "*", "/b$"), Fault("lose", "*", "/", 5, 9))
    for key in "aabaaab":
        with contextlib.suppress(ClientError, BotoCoreError):
            client.put_object(Bucket=bucket, Key=key, Body=b"x")
    kinds = [None, "503", "reset", "503", "lose", "lose", "lose"]
    assert [hit.fault for hit in proxy.hits] == kinds
    proxy.clear()
    client.put_object(Bucket=bucket, Key="a", Body=b"x")
    assert proxy.hits == [("PUT", f"/{bucket}/a", None)]


def test_stop_raises_for_a_fault_without_a_body(s3_server: S3Server, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("flip", "truncate", "flip_upload"):
        proxy = FaultProxy(s3_server.endpoint, Fault(kind, "HEAD", "/"))
        proxy.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with contextlib.closing(make_client()) as client, pytest.raises(ConnectionClosedError):
            client.head_bucket(Bucket=s3)
        with pytest.raises(RuntimeError, match="body"):
            proxy.stop()
        proxy.stop()


def test_stop_ends_hanging_connections(s3_server: S3Server, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy(s3_server.endpoint, Fault("hang", "GET", "/", 1, 4)) as proxy, ThreadPoolExecutor(4) as pool:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with contextlib.closing(make_client()) as client:
            waiting = [pool.submit(client.list_objects_v2, Bucket=s3) for _ in range(4)]
            while len(proxy.hits) < 4:
                time.sleep(0.01)
            proxy.stop()
            assert [type(call.exception()) for call in waiting] == 4 * [ConnectionClosedError]
    assert "fault-proxy" not in [thread.name for thread in threading.enumerate()]


def test_restart_of_a_killed_server_keeps_objects() -> None:
    with S3Server() as server, contextlib.closing(server.client()) as client:
        bucket = server.make_bucket()
        client.put_object(Bucket=bucket, Key="k", Body=BODY)
        server.kill()
        assert server.process.returncode == -9
        with pytest.raises(BotoCoreError):
            client.list_buckets()
        server.restart()
        assert read(client, bucket, "k") == BODY
    assert not server.folder.exists()
