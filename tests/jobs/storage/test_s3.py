"""S3 that fails in all the ways it does: the content arrives, or one line says why not."""

import io
import time
from hashlib import sha256

import boto3
import pytest
from servers.faults import Fault, FaultProxy

from jobs.errors import UserError
from jobs.storage.s3 import S3Store

CONTENT = bytes(range(256)) * 2**14  # 4 MiB
DIGEST = sha256(CONTENT).hexdigest()


@pytest.fixture
def store(faulty_s3: tuple[str, FaultProxy]) -> S3Store:
    return S3Store(f"s3://{faulty_s3[0]}/place", timeout=1.0, tries=3)


@pytest.fixture
def proxy(faulty_s3: tuple[str, FaultProxy]) -> FaultProxy:
    return faulty_s3[1]


def fetch(store: S3Store, digest: str = DIGEST) -> bytes:
    file = io.BytesIO()
    store.fetch("a.tar", file, digest)
    return file.getvalue()


def publish(store: S3Store, content: bytes = CONTENT) -> None:
    with store.scratch() as folder:
        (folder / "a.tar").write_bytes(content)
        store.publish(folder / "a.tar", "a.tar")


@pytest.mark.parametrize("kind", ["503", "reset", "hang", "truncate", "lose", "flip"])
def test_a_read_survives(store: S3Store, proxy: FaultProxy, kind: str) -> None:
    publish(store)
    store.write("small.json", b"{}" * 100)
    proxy.inject(Fault(kind, "GET", "a.tar"))
    assert fetch(store) == CONTENT
    proxy.inject(Fault(kind, "GET", "small.json"))
    assert store.read("small.json") == b"{}" * 100
    assert any(hit.fault == kind for hit in proxy.hits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "reset", "hang", "lose", "flip_upload"])
@pytest.mark.parametrize("large", [False, True])
def test_a_write_survives(store: S3Store, proxy: FaultProxy, kind: str, large: bool) -> None:
    content = CONTENT * 5 if large else CONTENT
    proxy.inject(Fault(kind, "PUT", r"a\.tar.*partNumber=2" if large else "a.tar"))
    publish(store, content)
    assert any(hit.fault == kind for hit in proxy.hits)
    assert fetch(store, sha256(content).hexdigest()) == content


@pytest.mark.parametrize("method", ["POST"])
def test_the_end_of_an_upload_may_be_lost(store: S3Store, proxy: FaultProxy, method: str) -> None:
    content = CONTENT * 5
    proxy.inject(Fault("lose", method, r"a\.tar.*uploadId"))
    publish(store, content)
    assert fetch(store, sha256(content).hexdigest()) == content


@pytest.mark.parametrize("kind", ["503", "reset", "lose"])
def test_our_own_lost_reply_is_no_other_winner(store: S3Store, proxy: FaultProxy, kind: str) -> None:
    proxy.inject(Fault(kind, "PUT", "manifest"))
    assert store.create("manifest.json", b"ours") == b"ours"
    assert store.read("manifest.json") == b"ours"


def test_replies_that_are_cut_again_and_again(store: S3Store, proxy: FaultProxy) -> None:
    """Each brings half of what is left; the file is put together from the pieces."""
    publish(store)
    proxy.inject(Fault("truncate", "GET", "a.tar", count=6))
    assert fetch(store) == CONTENT


def test_bytes_that_are_wrong_for_good_are_named(store: S3Store, proxy: FaultProxy) -> None:
    publish(store)
    proxy.inject(Fault("flip", "GET", "a.tar", count=99))
    with pytest.raises(UserError, match=r"s3://.*/place/a\.tar is damaged .*force=shard"):
        fetch(store)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "reset", "hang"])
def test_a_server_that_stays_ill_is_named(store: S3Store, proxy: FaultProxy, kind: str) -> None:
    proxy.inject(Fault(kind, "*", "place", count=999))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"s3://.*/place/a\.json: S3 .*run again when it") as caught:
        store.read("a.json")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 60


def test_a_server_that_is_away_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"s3://b/p/a: S3 does not answer.*127\.0\.0\.1:9"):
        S3Store("s3://b/p", timeout=1.0, tries=2).read("a")


def test_wrong_credentials_are_told_without_them(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    store = S3Store(f"s3://{s3}/p")
    for call in (
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: list(store.names()),
        lambda: publish(store),
    ):
        with pytest.raises(UserError, match=r"refuses the credentials.*AWS_SECRET_ACCESS_KEY") as caught:
            call()
        assert "not-the-secret" not in str(caught.value)


def test_missing_credentials_are_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="no credentials for S3; set AWS_ACCESS_KEY_ID"):
        S3Store(f"s3://{s3}/p").read("a")


def test_a_missing_bucket_is_named(s3: str) -> None:
    with pytest.raises(UserError, match=r"s3://nowhere-at-all/p.*bucket does not exist"):
        S3Store("s3://nowhere-at-all/p").write("a", b"")
    with pytest.raises(UserError, match="bucket does not exist"):
        list(S3Store("s3://nowhere-at-all/p").names())


@pytest.mark.slow
def test_many_names_come_in_pages(s3: str) -> None:
    client = boto3.client("s3")
    for number in range(1005):
        client.put_object(Bucket=s3, Key=f"p/task-{number:05d}.json", Body=b"")
    assert len(set(S3Store(f"s3://{s3}/p").names("task-"))) == 1005
