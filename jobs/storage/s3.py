"""A storage on S3, or on any server that speaks its protocol, through boto3.

Credentials, region and endpoint come from where boto3 looks for them (environment, profile, role of the machine), never
from settings. This module handles two failures that boto3 does not: truncated responses, and bytes changed in transit.
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

from jobs.errors import UnavailableError, UserError, os_error_reason
from jobs.storage.base import corrupted_object, missing_object

_Result = TypeVar("_Result")

_CHUNK = 2**20  # bytes
_UPLOAD_PART = 16 * 2**20  # bytes
_STALE = timedelta(days=1)
_CREDENTIALS_IN_URL = re.compile(r"//[^/]*@")
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_LOST_RACE = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_REFUSED = {"401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_CHANGED_IN_TRANSIT = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


class TruncatedResponseError(Exception):
    """A response ended before its last byte, or its bytes are not those that were stored."""


class S3Storage:
    """Objects below s3://bucket/prefix, with `timeout` seconds per connection or response and growing retry pauses."""

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
        settings = {
            "connect_timeout": self._timeout,
            "read_timeout": self._timeout,
            "retries": {"mode": "standard", "max_attempts": self._tries},
            # Not boto3's own checksum, because the sha256 of every shard is checked on every read.
            "response_checksum_validation": "when_required",
            "max_pool_connections": 32,
        }
        with _user_errors(self._url):
            session = boto3.session.Session()
            client = session.client("s3", config=Config(**settings))
            if "amazonaws.com" in client.meta.endpoint_url:
                return client
            # Paths, because other servers rarely have a host name per bucket.
            return session.client("s3", config=Config(**settings, s3={"addressing_style": "path"}))

    def read(self, name: str) -> bytes | None:
        def get() -> bytes | None:
            try:
                response = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, ChecksumMode="ENABLED")
            except botocore.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
            return b"".join(_chunks(response["Body"]))

        return self._retry(name, get)

    def write(self, name: str, content: bytes) -> None:
        self._retry(name, lambda: self._put(name, content))

    def create(self, name: str, content: bytes) -> bytes:
        def put() -> bytes | None:
            try:
                self._put(name, content, IfNoneMatch="*")
            except botocore.exceptions.ClientError as error:
                # Also if the first try of this call arrived and only its response was lost: the content decides.
                if _code(error) in _LOST_RACE:
                    return self.read(name)
                raise
            return content

        for attempt in range(self._tries):
            current = self._retry(name, put)
            if current is not None:
                return current
            time.sleep(0.2 * 2**attempt)  # another writer is active, or the object was removed between the two calls
        raise UnavailableError(
            f"{self._url}/{name}: S3 reports that the object exists and is missing. Check the server."
        )

    def _put(self, name: str, content: bytes, **conditions: str) -> None:
        key = self._prefix + name
        self._client.put_object(Bucket=self._bucket, Key=key, Body=content, ChecksumAlgorithm="SHA256", **conditions)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        try:
            with tempfile.TemporaryDirectory(prefix="vlae-") as folder:
                yield Path(folder)
        except OSError as error:
            path = error.filename or tempfile.gettempdir()
            message = f"{path}: {os_error_reason(error)}. Free space there or set TMPDIR."
            raise UserError(message, retry=True) from error

    def publish(self, path: Path, name: str) -> None:
        transfer = TransferConfig(multipart_threshold=_UPLOAD_PART, multipart_chunksize=_UPLOAD_PART, max_concurrency=4)
        extra = {"ChecksumAlgorithm": "SHA256"}
        key = self._prefix + name
        self._retry(
            name, lambda: self._client.upload_file(str(path), self._bucket, key, ExtraArgs=extra, Config=transfer)
        )
        path.unlink()

    def local_path(self, name: str) -> None:  # noqa: ARG002
        return None

    def fetch(self, name: str, file: BinaryIO, sha256: str) -> None:
        digest = ""
        for _ in range(2):  # because bytes may change in transit
            file.seek(0)
            digest = self._stream(name, file)
            if digest == sha256:
                file.truncate()
                return
        raise corrupted_object(f"{self._url}/{name}", digest, sha256)

    def _stream(self, name: str, file: BinaryIO) -> str:
        """Copy an object to a file, continuing truncated responses, and return the sha256 of the received bytes."""
        digest, etag, tries = hashlib.sha256(), "", 0
        while True:
            start = file.tell()
            response = self._retry(name, partial(self._get_from, name, start, etag))
            if response is None:
                break
            etag = response["ETag"]
            try:
                for chunk in _chunks(response["Body"]):
                    digest.update(chunk)
                    file.write(chunk)
                break
            except TruncatedResponseError as error:
                tries = 1 if file.tell() > start else tries + 1
                if tries == self._tries:
                    message = f"{self._url}/{name}: S3 truncates its responses ({error}). Check the network."
                    raise UnavailableError(message) from error
        file.flush()
        return digest.hexdigest()

    def _get_from(self, name: str, start: int, etag: str) -> dict[str, Any] | None:
        """Return the response with an object's bytes from `start` on, or None if there are no more."""
        conditions = {"Range": f"bytes={start}-", "IfMatch": etag} if start else {}
        try:
            response: dict[str, Any] = self._client.get_object(
                Bucket=self._bucket, Key=self._prefix + name, **conditions
            )
        except botocore.exceptions.ClientError as error:
            if _code(error) in _ABSENT:
                raise missing_object(f"{self._url}/{name}") from None
            if start and _code(error) in {"416", "InvalidRange"}:  # truncated after its last byte
                return None
            raise
        return response

    def names(self, prefix: str = "") -> Iterator[str]:
        for page in self._pages(prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._prefix)
                if name:  # because some servers list the folder itself
                    yield name

    def folders(self, prefix: str = "") -> Iterator[str]:
        for page in self._pages(prefix):
            for entry in page.get("CommonPrefixes", ()):
                yield entry["Prefix"].removeprefix(self._prefix).rstrip("/")

    def _pages(self, prefix: str) -> Iterator[dict[str, Any]]:
        with _user_errors(self._url):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, Delimiter="/")

    def remove(self, name: str) -> None:
        with _user_errors(f"{self._url}/{name}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def clear(self, first: str) -> None:
        for name in (first, *self.names()):
            self.remove(name)

    def sweep(self) -> None:
        with _user_errors(self._url):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for upload in page.get("Uploads", ()):
                    if datetime.now(UTC) - upload["Initiated"] > _STALE:
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )

    def _retry(self, name: str, call: Callable[[], _Result]) -> _Result:
        """Call a function, and again after a transient failure that boto3 does not retry."""
        with _user_errors(f"{self._url}/{name}"):
            for attempt in range(self._tries - 1):
                try:
                    return call()
                except Exception as error:
                    if not _is_transient(error):
                        raise
                    time.sleep(0.2 * 2**attempt)
            return call()


def _chunks(body: Any) -> Iterator[bytes]:
    """Yield the bytes of a response, with network errors converted, so that they differ from errors of the disk."""
    with body:
        try:
            yield from body.iter_chunks(_CHUNK)
        except (botocore.exceptions.BotoCoreError, ConnectionError, TimeoutError) as error:
            raise TruncatedResponseError(type(error).__name__) from error


def _code(error: botocore.exceptions.ClientError) -> str:
    """Return the code in a response of S3: a name, or an HTTP status if the response has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_transient(error: Exception) -> bool:
    """Return whether a second try may succeed after an error that boto3 does not retry itself."""
    if isinstance(error, botocore.exceptions.ClientError):
        return _code(error) in _CHANGED_IN_TRANSIT
    if isinstance(error, boto3.exceptions.S3UploadFailedError):  # boto3 keeps the cause as text only
        return any(code in str(error) for code in _CHANGED_IN_TRANSIT)
    # botocore raises AttributeError or TypeError when it parses the headers of some failed GETs.
    parsing = AttributeError, TypeError, ConnectionError, botocore.exceptions.ConnectionClosedError
    return isinstance(error, (TruncatedResponseError, *parsing))


@contextmanager
def _user_errors(address: str) -> Iterator[None]:
    """Convert the errors of boto3 and of the disk to UserErrors."""
    try:
        yield
    except UserError:
        raise
    except botocore.exceptions.ClientError as error:
        raise _request_failed(address, _code(error), error) from error
    except boto3.exceptions.S3UploadFailedError as error:
        code = next((code for code in sorted(_REFUSED | {"NoSuchBucket"}) if f"({code})" in str(error)), "")
        raise _request_failed(address, code, error) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        message = f"{address}: no credentials for S3. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile."
        raise UserError(message) from error
    except botocore.exceptions.ParamValidationError as error:
        raise UserError(f"{address}: {_one_line(error)}. Set storage_path to another address.") from error
    except botocore.exceptions.BotoCoreError as error:  # before OSError, because some of these are one
        raise _unavailable(address, error) from error
    except OSError as error:
        reason = f"{error.filename or address}: {os_error_reason(error)}"
        raise UserError(f"{reason}. Check the permissions and the free space of the disk.", retry=True) from error
    except Exception as error:
        raise _unavailable(address, error) from error


def _request_failed(address: str, code: str, error: Exception) -> UserError:
    if code in _REFUSED:
        advice = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their permissions."
        return UserError(f"{address}: S3 refuses the credentials ({code}). {advice}")
    if code == "NoSuchBucket":
        return UserError(f"{address}: bucket not found. Create it, or set storage_path to another address.")
    return _unavailable(address, error)


def _unavailable(address: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"{address}: S3 is unavailable ({_one_line(error)}). Check the server and AWS_ENDPOINT_URL."
    )


def _one_line(error: Exception) -> str:
    # Without credentials, which an endpoint in a message of botocore may contain.
    return _CREDENTIALS_IN_URL.sub("//", " ".join(str(error).split())) or type(error).__name__
