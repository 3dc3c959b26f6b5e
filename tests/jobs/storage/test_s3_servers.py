"""Test S3 servers that lack a part of the protocol, refuse for good, or never end: one line says so in time."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256

import pytest
from servers.fake_s3 import FakeS3, TruncatingS3
from servers.fixtures import clear_aws_environment
from servers.http import Request, error, reply, serve

from jobs import http_limits
from jobs.errors import CorruptedError, UserError
from jobs.storage import s3 as s3_module
from jobs.storage.s3 import S3Storage

CONTENT = bytes(range(256)) * 400
DIGEST = sha256(CONTENT).hexdigest()
Open = Callable[[Callable[[Request], None]], S3Storage]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Return a function that starts a server and opens a storage on it."""
    clear_aws_environment(monkeypatch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with ExitStack() as stack:

        def open_on(respond: Callable[[Request], None]) -> S3Storage:
            monkeypatch.setenv("AWS_ENDPOINT_URL", stack.enter_context(serve(respond)))
            return S3Storage("s3://b/data", timeout=2.0, tries=3)

        yield open_on


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "_WINDOW_SECONDS", 0.3)
    monkeypatch.setattr(http_limits, "_NOTICE_SECONDS", 0.1)


def publish(storage: S3Storage, content: bytes = CONTENT) -> None:
    with storage.scratch() as folder:
        (folder / "a.tar").write_bytes(content)
        storage.publish(folder / "a.tar", "a.tar")


def fetch(storage: S3Storage, num_bytes: int = len(CONTENT), digest: str = DIGEST) -> bytes:
    file = io.BytesIO()
    storage.fetch("a.tar", file, digest, num_bytes)
    return file.getvalue()


def test_s3_real_server_has_all_capabilities(s3: str) -> None:
    storage = S3Storage(f"s3://{s3}/data")
    assert storage.check() == []
    assert list(storage.names()) == []  # the probe is removed


@pytest.mark.parametrize("lacking", ["conditions", "checked conditions"])
def test_s3_without_conditional_writes_works_with_note(connect: Open, lacking: str) -> None:
    server = FakeS3(lacking)
    storage = connect(server)
    (note,) = storage.check()
    assert "conditional writes" in note
    assert storage.create("manifest.json", b"first") == b"first"
    assert storage.create("manifest.json", b"second") == b"first"
    assert server.objects == {"/b/data/manifest.json": b"first"}


@pytest.mark.parametrize("lacking", ["checksums", "decoding"])
def test_s3_without_checksums_works_with_note(connect: Open, lacking: str) -> None:
    """A server that refuses checksums, or stores their framing with the content, gets none."""
    server = FakeS3(lacking)
    storage = connect(server)
    (note,) = storage.check()
    assert "checksums" in note
    storage.write("a.json", b"{}")
    publish(storage)
    assert storage.create("manifest.json", b"ours") == b"ours"
    assert server.objects == {"/b/data/a.json": b"{}", "/b/data/a.tar": CONTENT, "/b/data/manifest.json": b"ours"}


def test_s3_probe_runs_once_and_not_for_reads(connect: Open) -> None:
    server = FakeS3()
    storage = connect(server)
    assert storage.read("a.json") is None
    assert not [path for _, path in server.requests if ".probe-" in path]
    storage.write("a.json", b"1")
    count = len([path for _, path in server.requests if ".probe-" in path])
    assert count == 4
    S3Storage("s3://b/data").write("b.json", b"2")
    assert len([path for _, path in server.requests if ".probe-" in path]) == count


@pytest.mark.parametrize(
    ("status", "code", "fields", "expected"),
    [
        (501, "NotImplemented", {}, "does not support.*NotImplemented"),
        (301, "PermanentRedirect", {"Region": "ap-south-1"}, "ap-south-1.*AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", {"Region": "ap-south-1"}, "ap-south-1.*AWS_DEFAULT_REGION"),
        (403, "RequestTimeTooSkewed", {}, "clock"),
        (400, "ExpiredToken", {}, "expired.*AWS_SESSION_TOKEN"),
        (400, "TokenRefreshRequired", {}, "expired.*AWS_SESSION_TOKEN"),
        (403, "AccessDenied", {}, "AWS_SECRET_ACCESS_KEY"),
        (403, "AccountProblem", {}, "AccountProblem"),
        (400, "EntityTooLarge", {}, "EntityTooLarge"),
    ],
)
def test_s3_permanent_refusal_raises_early(
    connect: Open, status: int, code: str, fields: dict[str, str], expected: str
) -> None:
    """The check at the start of a command fails, without the hint to run the command again."""
    storage = connect(lambda request: error(request, status, code, **fields))
    for call in (storage.check, lambda: storage.write("a", b""), lambda: publish(storage), lambda: storage.read("a")):
        with pytest.raises(UserError, match=rf"s3://b/data.*{expected}") as caught:
            call()
        assert not caught.value.retry
        assert "\n" not in str(caught.value)


def test_s3_passing_failure_has_retry_hint(connect: Open) -> None:
    with pytest.raises(UserError, match="InternalError") as caught:
        connect(lambda request: error(request, 500, "InternalError")).check()
    assert caught.value.retry


@pytest.mark.parametrize("lacking", ["", "ranges"])
@pytest.mark.parametrize("count", [1, 2])
def test_s3_fetch_resumed_joins_no_halves(connect: Open, lacking: str, count: int) -> None:
    server = TruncatingS3(lacking, count=count)
    server.objects["/b/data/a.tar"] = CONTENT
    assert fetch(connect(server)) == CONTENT


def test_s3_fetch_ignored_range_always_truncated_ends(connect: Open) -> None:
    server = TruncatingS3("ranges", count=999)
    server.objects["/b/data/a.tar"] = CONTENT
    with pytest.raises(UserError, match=r"s3://b/data/a\.tar.*truncates") as caught:
        fetch(connect(server))
    assert caught.value.retry


def test_s3_fetch_replaced_meanwhile_starts_anew(connect: Open) -> None:
    server = TruncatingS3(replacement=CONTENT)
    server.objects["/b/data/a.tar"] = b"x" * len(CONTENT)
    assert fetch(connect(server)) == CONTENT


def test_s3_larger_object_is_refused_unread(connect: Open) -> None:
    """A header that announces a petabyte, for a shard, a small object and a list."""
    storage = connect(lambda request: reply(request, content=b"<", Content_Length=str(10**15), ETag='"a"'))
    with pytest.raises(CorruptedError, match=r"s3://b/data/a\.tar.*force=shard"):
        fetch(storage)
    with pytest.raises(UserError, match=r"s3://b/data/a\.json.*more than"):
        storage.read("a.json")
    with pytest.raises(UserError, match=r"s3://b/data.*more than"):
        list(storage.names())


def endless(request: Request) -> None:
    """Send a body without a length and without an end."""
    request.send_response(200)
    request.send_header("ETag", '"a"')
    request.send_header("Connection", "close")
    request.end_headers()
    while True:
        request.wfile.write(b"x" * 2**20)


def trickle(request: Request) -> None:
    """Send a body byte by byte."""
    reply(request, Content_Length="5000", ETag='"a"')
    while True:
        request.wfile.write(b"x")
        time.sleep(0.02)


def test_s3_endless_response_is_refused(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "_MAX_SMALL", 10 * 2**20)
    storage = connect(endless)
    for call in (lambda: storage.read("a.json"), lambda: list(storage.names()), lambda: fetch(storage)):
        with pytest.raises(UserError, match=r"s3://b/data.*more than"):
            call()


@pytest.mark.usefixtures("impatient")
def test_s3_trickling_response_ends_with_notice(connect: Open, capsys: pytest.CaptureFixture[str]) -> None:
    storage = connect(trickle)
    for call in (lambda: storage.read("a.json"), lambda: list(storage.names()), lambda: fetch(storage)):
        with pytest.raises(UserError, match=r"s3://b/data.*bytes in 0 s") as caught:
            call()
        assert caught.value.retry
        assert "waiting for s3://b/data" in capsys.readouterr().err


@pytest.mark.parametrize("token", ["same", "new"])
def test_s3_endless_list_ends(connect: Open, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setattr(s3_module, "_MAX_PAGES", 20)
    pages = iter(range(10**6))

    def respond(request: Request) -> None:
        next_token = token if token == "same" else str(next(pages))
        key = "<Contents><Key>data/a</Key></Contents>"
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{next_token}</NextContinuationToken>"
        reply(request, content=f"<ListBucketResult>{key}{more}</ListBucketResult>".encode())

    with pytest.raises(UserError, match="s3://b/data"):
        list(connect(respond).names())
