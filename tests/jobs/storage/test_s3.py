"""Test S3 with injected faults: the content arrives, or a one-line error says why not."""

import io
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import boto3
import pytest
from servers.faults import Fault, FaultProxy

from jobs.errors import UserError
from jobs.storage import s3 as s3_module
from jobs.storage.s3 import S3Storage, TruncatedResponseError

CONTENT = bytes(range(256)) * 2**14  # 4 MiB
DIGEST = sha256(CONTENT).hexdigest()


@pytest.fixture
def storage(faulty_s3: tuple[str, FaultProxy]) -> S3Storage:
    return S3Storage(f"s3://{faulty_s3[0]}/data", timeout=1.0, tries=3)


@pytest.fixture
def proxy(faulty_s3: tuple[str, FaultProxy]) -> FaultProxy:
    return faulty_s3[1]


def fetch(storage: S3Storage, digest: str = DIGEST) -> bytes:
    file = io.BytesIO()
    storage.fetch("a.tar", file, digest, 2**27)
    return file.getvalue()


def publish(storage: S3Storage, content: bytes = CONTENT) -> None:
    with storage.scratch() as folder:
        (folder / "a.tar").write_bytes(content)
        storage.publish(folder / "a.tar", "a.tar")


@pytest.mark.parametrize("kind", ["503", "reset", "hang", "truncate", "lose", "flip"])
def test_s3_read_survives_fault(storage: S3Storage, proxy: FaultProxy, kind: str) -> None:
    publish(storage)
    storage.write("small.json", b"{}" * 100)
    proxy.inject(Fault(kind, "GET", "a.tar"))
    assert fetch(storage) == CONTENT
    proxy.inject(Fault(kind, "GET", "small.json"))
    assert storage.read("small.json") == b"{}" * 100
    assert any(hit.fault == kind for hit in proxy.hits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "reset", "hang", "lose", "flip_upload"])
@pytest.mark.parametrize("large", [False, True])
def test_s3_write_survives_fault(storage: S3Storage, proxy: FaultProxy, kind: str, large: bool) -> None:
    content = CONTENT * 5 if large else CONTENT
    proxy.inject(Fault(kind, "PUT", r"a\.tar.*partNumber=2" if large else "a.tar"))
    publish(storage, content)
    assert any(hit.fault == kind for hit in proxy.hits)
    assert fetch(storage, sha256(content).hexdigest()) == content


@pytest.mark.parametrize("method", ["POST"])
def test_s3_lost_end_of_upload_is_repeated(storage: S3Storage, proxy: FaultProxy, method: str) -> None:
    content = CONTENT * 5
    proxy.inject(Fault("lose", method, r"a\.tar.*uploadId"))
    publish(storage, content)
    assert fetch(storage, sha256(content).hexdigest()) == content


@pytest.mark.parametrize("kind", ["503", "reset", "lose"])
def test_s3_create_lost_response_returns_own_content(storage: S3Storage, proxy: FaultProxy, kind: str) -> None:
    proxy.inject(Fault(kind, "PUT", "manifest"))
    assert storage.create("manifest.json", b"ours") == b"ours"
    assert storage.read("manifest.json") == b"ours"


def test_s3_fetch_repeatedly_truncated_is_complete(storage: S3Storage, proxy: FaultProxy) -> None:
    """Each response brings half of the rest; the file is assembled from the pieces."""
    publish(storage)
    proxy.inject(Fault("truncate", "GET", "a.tar", count=6))
    assert fetch(storage) == CONTENT


def test_s3_fetch_always_wrong_bytes_error_names_object(storage: S3Storage, proxy: FaultProxy) -> None:
    publish(storage)
    proxy.inject(Fault("flip", "GET", "a.tar", count=99))
    with pytest.raises(UserError, match=r"s3://.*/data/a\.tar.*force=shard"):
        fetch(storage)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "reset", "hang"])
def test_s3_lasting_fault_error_names_object(storage: S3Storage, proxy: FaultProxy, kind: str) -> None:
    proxy.inject(Fault(kind, "*", "data", count=999))
    with pytest.raises(UserError, match=r"s3://.*/data/a\.json") as caught:
        storage.read("a.json")
    assert "\n" not in str(caught.value)


def test_s3_unreachable_server_error_names_endpoint(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"s3://b/p/a.*127\.0\.0\.1:9"):
        S3Storage("s3://b/p", timeout=1.0, tries=2).read("a")


def test_s3_wrong_credentials_error_hides_secret(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    storage = S3Storage(f"s3://{s3}/p")
    for call in (
        lambda: storage.read("a"),
        lambda: storage.write("a", b""),
        lambda: list(storage.names()),
        lambda: publish(storage),
    ):
        with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as caught:
            call()
        assert "not-the-secret" not in str(caught.value)


def test_s3_missing_credentials_error_names_variable(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID"):
        S3Storage(f"s3://{s3}/p").read("a")


def test_s3_missing_bucket_error_names_address(s3: str) -> None:
    with pytest.raises(UserError, match=r"s3://nowhere-at-all/p.*storage_path"):
        S3Storage("s3://nowhere-at-all/p").write("a", b"")
    with pytest.raises(UserError, match="s3://nowhere-at-all/p"):
        list(S3Storage("s3://nowhere-at-all/p").names())


@pytest.mark.slow
def test_s3_names_over_one_page_are_all_listed(s3: str) -> None:
    client = boto3.client("s3")
    for number in range(1005):
        client.put_object(Bucket=s3, Key=f"p/task-{number:05d}.json", Body=b"")
    assert len(set(S3Storage(f"s3://{s3}/p").names("task-"))) == 1005


def test_s3_sweep_keeps_uploads_of_others(s3: str) -> None:
    """An upload that has just begun may be one of a running command."""
    client = boto3.client("s3")
    upload = client.create_multipart_upload(Bucket=s3, Key="p/a.tar")
    S3Storage(f"s3://{s3}/p").sweep()
    (listed,) = client.list_multipart_uploads(Bucket=s3)["Uploads"]
    assert listed["UploadId"] == upload["UploadId"]


def test_s3_unreachable_server_error_hides_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9") as caught:
        S3Storage("s3://b/p", timeout=1.0, tries=1).read("a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["http://me:hun/ter2@127.0.0.1:9", "me:hun/ter2@127.0.0.1:9", "localhost:9000", "http://host:port"]
)
def test_s3_invalid_endpoint_error_names_variable(s3: str, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Repeating the command cannot help, and no part of a password is shown."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL") as caught:
        S3Storage("s3://b/p", timeout=1.0, tries=1).read("a")
    assert not re.findall("hun|ter2", str(caught.value))
    assert not caught.value.retry


def test_s3_fetch_truncated_after_the_last_byte_is_complete(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is reset instead of closed; the server answers the request for the rest with an error."""
    storage, chunks, truncated = S3Storage(f"s3://{s3}/data"), s3_module._chunks, []

    def truncate(body: Any) -> Iterator[bytes]:
        yield from chunks(body)
        if not truncated:
            truncated.append(True)
            raise TruncatedResponseError("reset")

    publish(storage, b"content")
    monkeypatch.setattr(s3_module, "_chunks", truncate)
    assert fetch(storage, sha256(b"content").hexdigest()) == b"content"
    assert truncated
