"""A store on S3, or on any server that speaks its protocol, through boto3.

Credentials, region and endpoint come from where boto3 looks for them (environment, profile, role of the
machine), never from settings. What boto3 does not heal is healed here: a reply that is cut half-way, and
bytes that changed on the way.
"""

import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
import boto3.exceptions
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from jobs.errors import UnavailableError, UserError
from jobs.storage.base import damaged, missing

_CREDENTIALS = re.compile(r"//[^/]*@")
ABSENT = {"404", "NoSuchKey", "NotFound"}
LOST_RACE = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_REFUSED = {"401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_CHANGED_ON_THE_WAY = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


class TruncatedResponseError(Exception):
    """A reply ended before its last byte, or its bytes are not those that were stored."""


def code_of(error: botocore.exceptions.ClientError) -> str:
    """The code that S3 gave: a name, or a HTTP status where the reply has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def may_pass(error: Exception) -> bool:
    """Whether a second try may go well, of what boto3 has not tried again already."""
    if isinstance(error, botocore.exceptions.ClientError):
        return code_of(error) in _CHANGED_ON_THE_WAY
    if isinstance(error, boto3.exceptions.S3UploadFailedError):  # it keeps the cause as text only
        return any(code in str(error) for code in _CHANGED_ON_THE_WAY)
    # botocore can stumble over the headers of a failed GET, and give these instead of the failure.
    stumbles = AttributeError, TypeError, ConnectionError, botocore.exceptions.ConnectionClosedError
    return isinstance(error, (TruncatedResponseError, *stumbles))


@contextmanager
def explained(address: str) -> Iterator[None]:
    """What went wrong with an address, in one line that says what to do.

    botocore's own messages hold no secrets, but an endpoint may: only its host is told.
    """
    try:
        yield
    except UserError:
        raise
    except botocore.exceptions.ClientError as error:
        raise _advice(address, code_of(error), str(error)) from error
    except boto3.exceptions.S3UploadFailedError as error:
        code = next((code for code in sorted(_REFUSED | {"NoSuchBucket"}) if f"({code})" in str(error)), "")
        raise _advice(address, code, str(error)) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        raise UserError(f"{address}: no credentials for S3; {advice}") from error
    except botocore.exceptions.ParamValidationError as error:
        raise UserError(f"{address}: {' '.join(str(error).split())}: set storage_path= to another") from error
    except botocore.exceptions.BotoCoreError as error:  # some of these are an OSError too
        raise _silence(address, error) from error
    except OSError as error:
        raise UserError(f"{error.filename or address}: {error.strerror or error}; mend that and run again") from error
    except Exception as error:
        raise _silence(address, error) from error


def _silence(address: str, error: Exception) -> UnavailableError:
    reason = _CREDENTIALS.sub("//", " ".join(str(error).split())) or type(error).__name__
    return UnavailableError(f"{address}: S3 does not answer as it should ({reason}); run again when it does")


def _advice(address: str, code: str, text: str) -> UserError:
    if code in _REFUSED:
        advice = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights"
        return UserError(f"{address}: S3 refuses the credentials ({code}): {advice}")
    if code == "NoSuchBucket":
        return UserError(f"{address}: the bucket does not exist: create it, or set storage_path= to another")
    return UnavailableError(f"{address}: S3 failed ({' '.join(text.split())}): run again when it works")


_Result = TypeVar("_Result")

_CHUNK = 2**20
_PART = 16 * 2**20
_STALE = timedelta(days=1)


class S3Store:
    """Objects below s3://bucket/prefix.

    Args:
        url: of the place.
        timeout: seconds that a connection or a reply may take.
        tries: of each request, with growing pauses between them.
    """

    def __init__(self, url: str, timeout: float = 20.0, tries: int = 6) -> None:
        self._url = url.rstrip("/")
        self._bucket, _, prefix = self._url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._timeout, self._tries = timeout, tries

    @property
    def url(self) -> str:
        return self._url

    @cached_property
    def _client(self) -> Any:
        # Shards have a sha256 of their own, which is checked on every read.
        settings = {
            "connect_timeout": self._timeout,
            "read_timeout": self._timeout,
            "retries": {"mode": "standard", "max_attempts": self._tries},
            "response_checksum_validation": "when_required",
            "max_pool_connections": 32,
        }
        with explained(self._url):
            session = boto3.session.Session()
            client = session.client("s3", config=Config(**settings))
            if "amazonaws.com" in client.meta.endpoint_url:
                return client
            # Other servers rarely have a host name per bucket.
            return session.client("s3", config=Config(**settings, s3={"addressing_style": "path"}))

    def read(self, name: str) -> bytes | None:
        def get() -> bytes | None:
            try:
                reply = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, ChecksumMode="ENABLED")
            except botocore.exceptions.ClientError as error:
                if code_of(error) in ABSENT:
                    return None
                raise
            return b"".join(_chunks(reply["Body"]))

        return self._retry(name, get)

    def write(self, name: str, content: bytes) -> None:
        self._retry(name, lambda: self._put(name, content))

    def create(self, name: str, content: bytes) -> bytes:
        def put() -> bytes | None:
            try:
                self._put(name, content, IfNoneMatch="*")
            except botocore.exceptions.ClientError as error:
                # Also when our own first try arrived and only its reply was lost: what is there tells.
                if code_of(error) in LOST_RACE:
                    return self.read(name)
                raise
            return content

        for attempt in range(self._tries):
            there = self._retry(name, put)
            if there is not None:
                return there
            time.sleep(0.2 * 2**attempt)  # somebody else is at it, or it was removed between the two calls
        raise UserError(f"{self._url}/{name}: S3 says that it is there, and then that it is not; run again later")

    def _put(self, name: str, content: bytes, **conditions: str) -> None:
        key = self._prefix + name
        self._client.put_object(Bucket=self._bucket, Key=key, Body=content, ChecksumAlgorithm="SHA256", **conditions)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        try:
            with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
                yield Path(folder)
        except OSError as error:
            where = error.filename or tempfile.gettempdir()
            raise UserError(f"{where}: {error.strerror or error}; mend that or set TMPDIR, and run again") from error

    def publish(self, path: Path, name: str) -> None:
        transfer = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=4)
        extra = {"ChecksumAlgorithm": "SHA256"}
        key = self._prefix + name
        self._retry(
            name, lambda: self._client.upload_file(str(path), self._bucket, key, ExtraArgs=extra, Config=transfer)
        )
        path.unlink()

    def local_path(self, name: str) -> None:  # noqa: ARG002
        return None

    def fetch(self, name: str, file: BinaryIO, sha256: str) -> None:
        found = ""
        for _ in range(2):  # bytes may change on the way
            file.seek(0)
            found = self._stream(name, file)
            if found == sha256:
                file.truncate()
                return
        raise damaged(f"{self._url}/{name}", found, sha256)

    def _stream(self, name: str, file: BinaryIO) -> str:
        """Copy an object to a file, going on where a reply was cut; returns the sha256 of what came."""
        digest, etag = hashlib.sha256(), ""

        tries = 0
        while True:
            start = file.tell()
            reply = self._retry(name, partial(self._get_rest, name, start, etag))
            if reply is None:
                break
            etag = reply["ETag"]
            try:
                for chunk in _chunks(reply["Body"]):
                    digest.update(chunk)
                    file.write(chunk)
                break
            except TruncatedResponseError as error:
                tries = 1 if file.tell() > start else tries + 1
                if tries == self._tries:
                    raise UnavailableError(
                        f"{self._url}/{name}: S3 cuts its replies ({error}); run again later"
                    ) from error
        file.flush()
        return digest.hexdigest()

    def _get_rest(self, name: str, start: int, etag: str) -> dict[str, Any] | None:
        """The reply with an object's bytes from `start` on, of the same version; None if there are no more."""
        more = {"Range": f"bytes={start}-", "IfMatch": etag} if start else {}
        try:
            reply: dict[str, Any] = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, **more)
        except botocore.exceptions.ClientError as error:
            if code_of(error) in ABSENT:
                raise missing(f"{self._url}/{name}") from None
            if start and code_of(error) in {"416", "InvalidRange"}:  # it was cut after its last byte
                return None
            raise
        return reply

    def names(self, prefix: str = "") -> Iterator[str]:
        for page in self._pages(prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._prefix)
                if name:  # some servers show the folder itself
                    yield name

    def folders(self, prefix: str = "") -> Iterator[str]:
        for page in self._pages(prefix):
            for entry in page.get("CommonPrefixes", ()):
                yield entry["Prefix"].removeprefix(self._prefix).rstrip("/")

    def _pages(self, prefix: str) -> Iterator[dict[str, Any]]:
        with explained(self._url):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, Delimiter="/")

    def remove(self, name: str) -> None:
        with explained(f"{self._url}/{name}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def clear(self, first: str) -> None:
        for name in (first, *self.names()):
            self.remove(name)

    def sweep(self) -> None:
        with explained(self._url):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for upload in page.get("Uploads", ()):
                    if datetime.now(UTC) - upload["Initiated"] > _STALE:
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )

    def _retry(self, name: str, call: Callable[[], _Result]) -> _Result:
        """Call again after what a second try may mend; boto3 has already tried what it knows."""
        with explained(f"{self._url}/{name}"):
            for attempt in range(self._tries - 1):
                try:
                    return call()
                except Exception as error:
                    if not may_pass(error):
                        raise
                    time.sleep(0.2 * 2**attempt)
            return call()


def _chunks(body: Any) -> Iterator[bytes]:
    """The bytes of a reply. Errors of the line are told from those of our own disk here."""
    with body:
        try:
            yield from body.iter_chunks(_CHUNK)
        except (botocore.exceptions.BotoCoreError, ConnectionError, TimeoutError) as error:
            raise TruncatedResponseError(type(error).__name__) from error
