"""A storage on S3, or on any server that speaks its protocol, through boto3.

Credentials, region and endpoint come from where boto3 looks for them (environment, profile, role of the machine), never
from settings. This module handles what boto3 does not: truncated responses, bytes changed in transit, ignored headers,
and servers without conditional writes or checksums.
"""

import hashlib
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
import boto3.exceptions
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from jobs.cli import mask_credentials
from jobs.errors import CorruptedError, UnavailableError, UserError, os_error_reason
from jobs.http_limits import MIN_RATE, Operation, ResponseLimitError, ResponseTooLargeError, Transfer, operation
from jobs.storage.base import corrupted_object, missing_object

_Result = TypeVar("_Result")

_CHUNK = 2**20  # bytes
_UPLOAD_PART = 16 * 2**20  # bytes
_MAX_SMALL = 2**28  # bytes of an object that is read at once, such as the manifest of 500,000 shards
_MIN_LIMIT = 2**20  # bytes of a response, which may be an error instead of a small object
_MAX_SECONDS = 300.0  # for one small object, with all retries
_MAX_TRANSFER_SECONDS = 86_400.0  # in addition, for a large object
_MAX_RESPONSES = 100  # to read one object
_MAX_PAGES = 10_000  # of a list, each of up to 1000 names
_STALE = timedelta(days=1)
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_LOST_RACE = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_CHANGED_IN_TRANSIT = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
_OTHER_REGION = {
    "301",
    "307",
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "IncorrectEndpoint",
}
_CHECK_CREDENTIALS = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their permissions."
_RENEW_CREDENTIALS = "Renew the credentials, AWS_SESSION_TOKEN included."
# Fault and fix by error code, for errors that no retry changes.
_REFUSALS = {
    **dict.fromkeys(
        ("401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
        ("S3 refuses the credentials", _CHECK_CREDENTIALS),
    ),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidToken"),
        ("the credentials have expired", _RENEW_CREDENTIALS),
    ),
    "RequestTimeTooSkewed": ("the clocks of this machine and of S3 differ", "Set the clock of this machine."),
    "NoSuchBucket": ("bucket not found", "Create it, or set storage_path to another address."),
    **dict.fromkeys(
        ("501", "NotImplemented", "405", "MethodNotAllowed"),
        ("S3 does not support the request", "Set storage_path to another server, or to a folder."),
    ),
}
_RETRYABLE_STATUS = {404, 408, 409, 412, 425, 429}  # of the status codes 4xx
_RETRYABLE = {
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestThrottled",
    *_CHANGED_IN_TRANSIT,
}


class TruncatedResponseError(Exception):
    """A response ended before its last byte, or its bytes are not those that were stored."""


@dataclass(frozen=True)
class Capabilities:
    """Whether a server accepts checksums with a write, and refuses a conditional write to an existing name."""

    checksums: bool
    conditional_writes: bool


_CAPABILITIES: dict[tuple[str, str], Capabilities] = {}  # of this process, by endpoint and bucket


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
    def _session(self) -> Any:
        return boto3.session.Session()

    @cached_property
    def _client(self) -> Any:
        return self._connect(checksums=True)

    @cached_property
    def _writer(self) -> Any:
        return self._client if self._capabilities.checksums else self._connect(checksums=False)

    def _connect(self, *, checksums: bool) -> Any:
        settings = {
            "connect_timeout": self._timeout,
            "read_timeout": self._timeout,
            "retries": {"mode": "standard", "max_attempts": self._tries},
            # Not boto3's own checksum, because the sha256 of every shard is checked on every read.
            "response_checksum_validation": "when_required",
            "request_checksum_calculation": "when_supported" if checksums else "when_required",
            "max_pool_connections": 32,
        }
        with _user_errors(self._url):
            try:
                client = self._session.client("s3", config=Config(**settings))
            except ValueError as error:
                if isinstance(error, botocore.exceptions.BotoCoreError):  # such as an invalid region
                    raise
                raise UserError(f"AWS_ENDPOINT_URL: {_one_line(error)}. Set it to http(s)://host:port.") from error
            if "amazonaws.com" not in client.meta.endpoint_url:
                # Paths, because other servers rarely have a host name per bucket.
                client = self._session.client("s3", config=Config(**settings, s3={"addressing_style": "path"}))
            client.meta.events.register_first("needs-retry.s3", _raise_limit_error)
            return client

    @cached_property
    def _capabilities(self) -> Capabilities:
        key = (self._client.meta.endpoint_url, self._bucket)
        if key not in _CAPABILITIES:
            name = f".probe-{uuid.uuid4().hex}"
            _CAPABILITIES[key] = self._retry(name, lambda: self._probe(name))
        return _CAPABILITIES[key]

    def check(self) -> list[str]:
        notes = []
        if not self._capabilities.checksums:
            notes.append(
                f"{self._url}: S3 refuses checksums, so damage in transit is found only when the data are read."
            )
        if not self._capabilities.conditional_writes:
            notes.append(
                f"{self._url}: S3 has no conditional writes. Run one command at a time that writes the same data."
            )
        return notes

    def _probe(self, name: str) -> Capabilities:
        """Write, read, overwrite and remove an object, and return what the server can do."""
        checksums = self._stores(name, self._client, ChecksumAlgorithm="SHA256")
        client = self._client if checksums else self._connect(checksums=False)
        if not checksums and not self._stores(name, client):
            raise UserError(f"{self._url}: S3 changes the content of objects. Set storage_path to another server.")
        try:
            client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=b"second", IfNoneMatch="*")
            conditional = False  # the server ignores the condition
        except botocore.exceptions.ClientError as error:
            conditional = _code(error) in _LOST_RACE
            if not conditional and not _is_unsupported(error):
                raise
        self.remove(name)
        return Capabilities(checksums, conditional)

    def _stores(self, name: str, client: Any, **checksum: str) -> bool:
        """Return whether an object is stored unchanged. Some servers store the framing of a checksum with it."""
        key, content = self._prefix + name, name.encode()
        try:
            client.put_object(Bucket=self._bucket, Key=key, Body=content, **checksum)
        except botocore.exceptions.ClientError as error:
            if checksum and _is_unsupported(error):
                return False
            raise
        return bool(client.get_object(Bucket=self._bucket, Key=key)["Body"].read() == content)

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
        if not self._capabilities.conditional_writes:
            return self._create_unprotected(name, content)

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

    def _create_unprotected(self, name: str, content: bytes) -> bytes:
        """Create an object on a server without conditional writes, where the last of concurrent calls wins."""
        current = self.read(name)
        if current is not None:
            return current
        self.write(name, content)
        current = self.read(name)
        return content if current is None else current

    def _put(self, name: str, content: bytes, **conditions: str) -> None:
        options = self._write_options | conditions
        self._writer.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content, **options)

    @property
    def _write_options(self) -> dict[str, str]:
        return {"ChecksumAlgorithm": "SHA256"} if self._capabilities.checksums else {}

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
        key, extra = self._prefix + name, self._write_options

        def upload() -> None:
            callback = Transfer().advance
            self._writer.upload_file(str(path), self._bucket, key, ExtraArgs=extra, Config=transfer, Callback=callback)

        self._retry(name, upload, self._tries * path.stat().st_size)
        path.unlink()

    def local_path(self, name: str) -> None:  # noqa: ARG002
        return None

    def fetch(self, name: str, file: BinaryIO, sha256: str, num_bytes: int) -> None:
        digest = ""
        for _ in range(2):  # because bytes may change in transit
            try:
                with self._limits(name, num_bytes):  # errors of the disk are the caller's
                    digest = self._stream(name, file, num_bytes)
            except ResponseTooLargeError as error:
                raise CorruptedError(
                    f"{self._url}/{name}: has more than {num_bytes:,} bytes. Write the shards again with force=shard."
                ) from error
            if digest == sha256:
                file.truncate()
                return
        raise corrupted_object(f"{self._url}/{name}", digest, sha256)

    def _stream(self, name: str, file: BinaryIO, num_bytes: int) -> str:
        """Copy an object to a file, continuing truncated responses, and return the sha256 of the received bytes."""
        digest, etag = hashlib.sha256(), ""
        file.seek(0)
        furthest, tries, reason = 0, 0, "no response"
        for _ in range(_MAX_RESPONSES):
            start = file.tell()
            response = self._retry(name, partial(self._get_from, name, start, etag), num_bytes)
            if response is None:
                file.flush()
                return digest.hexdigest()
            complete = response["ResponseMetadata"]["HTTPStatusCode"] != 206
            if start and (complete or response["ETag"] != etag):  # the server ignores Range or If-Match
                file.seek(0)
                digest = hashlib.sha256()
            etag = response["ETag"]
            if complete or response.get("ContentRange", "").startswith(f"bytes {file.tell()}-"):
                try:
                    for chunk in _chunks(response["Body"]):
                        digest.update(chunk)
                        file.write(chunk)
                except TruncatedResponseError as error:
                    reason = str(error)
                else:
                    file.flush()
                    return digest.hexdigest()
            else:
                response["Body"].close()
                reason = "another part than was asked for"
            tries = 1 if file.tell() > furthest else tries + 1
            furthest = max(furthest, file.tell())
            if tries == self._tries:
                break
        raise UnavailableError(f"{self._url}/{name}: S3 truncates its responses ({reason}). Check the network.")

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
            if start and _code(error) in _LOST_RACE:  # replaced since the first bytes were read
                return self._get_from(name, 0, "")
            raise
        return response

    def names(self, prefix: str = "") -> Iterator[str]:
        for page in self._pages("list_objects_v2", prefix, Delimiter="/"):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._prefix)
                if name:  # because some servers list the folder itself
                    yield name

    def folders(self, prefix: str = "") -> Iterator[str]:
        for page in self._pages("list_objects_v2", prefix, Delimiter="/"):
            for entry in page.get("CommonPrefixes", ()):
                yield entry["Prefix"].removeprefix(self._prefix).rstrip("/")

    def _pages(self, list_name: str, prefix: str = "", **options: str) -> Iterator[dict[str, Any]]:
        """Yield the pages of a list; boto3 raises an error where a server repeats a page."""
        with _user_errors(self._url):
            paginator = self._client.get_paginator(list_name)
            pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, **options))
        for _ in range(_MAX_PAGES):
            with self._operation(prefix):
                page = next(pages, None)
            if page is None:
                return
            yield page
        raise UserError(f"{self._url}: the list of names does not end. Check the server.")

    def remove(self, name: str) -> None:
        with self._operation(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def clear(self, first: str) -> None:
        for name in (first, *self.names()):
            self.remove(name)

    def sweep(self) -> None:
        for page in self._pages("list_multipart_uploads"):
            for upload in page.get("Uploads", ()):
                if datetime.now(UTC) - upload["Initiated"] > _STALE:
                    with self._operation(upload["Key"]):
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )

    def _limits(self, name: str, num_bytes: int | None = None) -> AbstractContextManager[Operation]:
        """Limit requests that transfer at most `num_bytes`, or one small object."""
        seconds = _MAX_SECONDS + min((num_bytes or 0) / MIN_RATE, _MAX_TRANSFER_SECONDS)
        max_bytes = _MAX_SMALL if num_bytes is None else max(_MIN_LIMIT, num_bytes)
        return operation(f"{self._url}/{name}", max_bytes, seconds)

    @contextmanager
    def _operation(self, name: str, num_bytes: int | None = None) -> Iterator[Operation]:
        """Limit requests as `_limits` does, and convert their errors."""
        with _user_errors(f"{self._url}/{name}"), self._limits(name, num_bytes) as current:
            yield current

    def _retry(self, name: str, call: Callable[[], _Result], num_bytes: int | None = None) -> _Result:
        """Call a function, and again after a transient failure that boto3 does not retry."""
        with self._operation(name, num_bytes) as current:
            for attempt in range(self._tries - 1):
                try:
                    return call()
                except Exception as error:
                    if not _is_transient(error):
                        raise
                    time.sleep(0.2 * 2**attempt)
                    current.check_time()
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
    if isinstance(error, boto3.exceptions.S3UploadFailedError):
        return isinstance(error.__context__, Exception) and _is_transient(error.__context__)
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
        raise _request_failed(address, error) from error
    except boto3.exceptions.S3UploadFailedError as error:
        if isinstance(error.__context__, botocore.exceptions.ClientError):
            raise _request_failed(address, error.__context__) from error
        raise _unavailable(address, error) from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        message = f"{address}: no credentials for S3. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile."
        raise UserError(message) from error
    except botocore.exceptions.ParamValidationError as error:
        raise UserError(f"{address}: {_one_line(error)}. Set storage_path to another address.") from error
    except botocore.exceptions.EndpointResolutionError as error:  # before a request is sent
        raise UserError(f"{address}: {_one_line(error)}. Check AWS_ENDPOINT_URL and storage_path.") from error
    except botocore.exceptions.BotoCoreError as error:  # before OSError, because some of these are one
        raise _unavailable(address, error) from error
    except OSError as error:
        reason = f"{error.filename or address}: {os_error_reason(error)}"
        raise UserError(f"{reason}. Check the permissions and the free space of the disk.", retry=True) from error
    except Exception as error:
        raise _unavailable(address, error) from error


def _raise_limit_error(caught_exception: Exception | None, **_: Any) -> None:
    """Raise the error of a limit instead of letting botocore, which wraps it, try again."""
    if isinstance(caught_exception, botocore.exceptions.HTTPClientError):
        cause = caught_exception.kwargs.get("error")
        if isinstance(cause, ResponseLimitError):
            raise cause


def _is_unsupported(error: botocore.exceptions.ClientError) -> bool:
    """Return whether a server may have refused a request for its headers, and accept it without them."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = _code(error)
    permanent = code in _REFUSALS and code not in {"501", "NotImplemented"}
    return status in (400, 411, 501) and not permanent and code not in _RETRYABLE | _OTHER_REGION


def _request_failed(address: str, error: botocore.exceptions.ClientError) -> UserError:
    """Return the error of a refused request; it is an UnavailableError only if a later try may succeed."""
    code, metadata = _code(error), error.response.get("ResponseMetadata", {})
    if code in _OTHER_REGION:
        headers = metadata.get("HTTPHeaders", {})
        region = error.response["Error"].get("Region") or headers.get("x-amz-bucket-region")
        endpoint = error.response["Error"].get("Endpoint") or headers.get("location")
        location = (
            f"in region {region}" if region else f"at {mask_credentials(endpoint)}" if endpoint else "in another region"
        )
        return UserError(f"{address}: the bucket is {location} ({code}). Set AWS_DEFAULT_REGION or AWS_ENDPOINT_URL.")
    if code in _REFUSALS:
        reason, advice = _REFUSALS[code]
        return UserError(f"{address}: {reason} ({code}). {advice}")
    status = metadata.get("HTTPStatusCode", 0)
    if 400 <= status < 500 and status not in _RETRYABLE_STATUS and code not in _RETRYABLE:
        return UserError(f"{address}: S3 refuses the request ({_one_line(error)}). Check the server and its settings.")
    return _unavailable(address, error)


def _unavailable(address: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"{address}: S3 is unavailable ({_one_line(error)}). Check the server and AWS_ENDPOINT_URL."
    )


def _one_line(error: Exception) -> str:
    # Masked, because an endpoint in a message of botocore may contain credentials.
    return mask_credentials(" ".join(str(error).split())) or type(error).__name__
