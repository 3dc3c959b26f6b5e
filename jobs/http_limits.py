"""Limits of size, rate and time for the HTTP responses of all clients that use urllib3: boto3, MLflow and requests.

These clients limit the time of a connection and of one read. A server that sends one byte a second, or never ends,
would hold a command forever or fill its memory. The limits are checked where bytes leave the socket, because threads of
MLflow and boto3 read there too. Importing this module sets the limits for the process.
"""

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import urllib3.connection

from jobs.errors import UnavailableError

MIN_RATE = 2**10  # bytes per second
_WINDOW_SECONDS = 60.0  # over which the rate is averaged
_NOTICE_SECONDS = 10.0  # below the minimum rate until a notice is printed
_HEADER_BYTES = 2**16
_MAX_BYTES = 2**34  # of a response outside of an `operation`, such as an artifact that a thread of MLflow downloads


class ResponseLimitError(UnavailableError):
    """A transfer exceeds a limit of rate, time or size."""


class ResponseTooLargeError(ResponseLimitError):
    """A response has more bytes than expected."""


@dataclass
class _Progress:
    """What the notice of an outermost operation depends on.

    Attributes:
        num_bytes: Bytes sent and received so far.
        waiting_since: Time of the monotonic clock at which the wait for the server began; None between requests.
    """

    num_bytes: int = 0
    waiting_since: float | None = field(default_factory=time.monotonic)


@dataclass
class Operation:
    """Requests to one address that belong together.

    Attributes:
        address: What is read or written, for messages.
        max_bytes: Size of the largest response that is accepted.
        deadline: Time of the monotonic clock after which no response is read.
        progress: Progress of the outermost operation.
    """

    address: str
    max_bytes: int
    deadline: float
    progress: _Progress

    def check_time(self) -> None:
        """Raise a ResponseLimitError after the deadline."""
        if time.monotonic() > self.deadline:
            raise ResponseLimitError(f"{self.address}: not finished in time. Check the network and the server.")

    def check_size(self, num_bytes: int) -> None:
        """Raise a ResponseTooLargeError if a response has too many bytes."""
        if num_bytes > self.max_bytes:
            raise ResponseTooLargeError(
                f"{self.address}: the response has more than the {self.max_bytes:,} bytes expected. Check the server."
            )


_operation: ContextVar[Operation | None] = ContextVar("_operation", default=None)
# Of the main thread, and of threads without an operation, because MLflow and boto3 work in such threads for it.
_main_progress = _Progress()


@contextmanager
def operation(address: str, max_bytes: int, seconds: float) -> Iterator[Operation]:
    """Limit the responses that this thread reads in a `with` block; print a notice while the main thread waits.

    An operation within another one ends at the earlier deadline, and only the outermost one prints a notice.

    Args:
        address: What is read or written, for messages.
        max_bytes: Size of the largest response that is accepted.
        seconds: Duration after which no response is read.

    Yields:
        The operation.
    """
    outer, start, done = _operation.get(), time.monotonic(), threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if outer:
        current = Operation(address, max_bytes, min(start + seconds, outer.deadline), outer.progress)
    else:
        current = Operation(address, max_bytes, start + seconds, _main_progress if in_main_thread else _Progress())
        current.progress.waiting_since = start
    token = _operation.set(current)
    if in_main_thread and not outer:  # because uploads in the background block no command
        threading.Thread(target=_print_notice, args=(current, done), name="waiting", daemon=True).start()
    try:
        yield current
    finally:
        done.set()
        _operation.reset(token)


def current_operation() -> Operation:
    """Return the operation of this thread, or a new one that limits one response alone."""
    return _operation.get() or Operation("the server", _MAX_BYTES, float("inf"), _main_progress)


def _print_notice(current: Operation, done: threading.Event) -> None:
    """Print a notice on stderr once an operation is slow, unless it is done before."""
    progress = current.progress
    before = progress.num_bytes
    while not done.wait(_NOTICE_SECONDS):
        since = progress.waiting_since
        is_waiting = since is not None and time.monotonic() - since >= _NOTICE_SECONDS
        if is_waiting and progress.num_bytes - before < MIN_RATE * _NOTICE_SECONDS:
            line_end = "\n" if sys.stderr.isatty() else ""  # of a progress line
            print(f"{line_end}waiting for {current.address} ...", file=sys.stderr, flush=True)
            return
        before = progress.num_bytes


class Transfer:
    """Counter of the bytes of one transfer in one direction, within the `operation` of this thread."""

    def __init__(self) -> None:
        self._operation, self._num_bytes = current_operation(), 0
        self._window_start: float | None = None
        self._window_bytes = 0

    def advance(self, num_bytes: int) -> None:
        """Count bytes, or take back those that boto3 sends again.

        Args:
            num_bytes: Number of bytes, negative if they are sent again.

        Raises:
            ResponseLimitError: The bytes are too many, too slow or too late.
        """
        self._operation.progress.num_bytes += max(num_bytes, 0)
        self._num_bytes += num_bytes
        self._operation.check_size(self._num_bytes - _HEADER_BYTES)
        self._operation.check_time()
        now = time.monotonic()
        # The wait for the first byte, also that of a repeated request, has a timeout of the client.
        if self._window_start is None or num_bytes < 0:
            self._window_start, self._window_bytes = now, 0
        self._window_bytes += max(num_bytes, 0)
        elapsed = now - self._window_start
        if elapsed >= _WINDOW_SECONDS:
            if self._window_bytes < MIN_RATE * elapsed:
                raise ResponseLimitError(
                    f"{self._operation.address}: only {self._window_bytes:,} bytes in {elapsed:.0f} s. Check the "
                    "network and the server."
                )
            self._window_start, self._window_bytes = now, 0


class _LimitedSocket(io.RawIOBase):
    """The bytes of a socket, counted."""

    def __init__(self, raw: io.RawIOBase, transfer: Transfer) -> None:
        self._raw, self._transfer = raw, transfer
        self._progress = current_operation().progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        size: int | None = self._raw.readinto(buffer)
        self._transfer.advance(size or 0)
        return size

    def close(self) -> None:
        self._progress.waiting_since = None  # the response is complete
        self._raw.close()
        super().close()


class _LimitedResponse(HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._operation = current_operation()
        self._operation.check_time()
        self.fp = io.BufferedReader(_LimitedSocket(self.fp.detach(), Transfer()))

    def begin(self) -> None:
        super().begin()
        self._operation.check_size(self.length or 0)


def _send(connection: HTTPConnection, data: Any) -> None:
    """Send a part of a request, and count its bytes."""
    progress = current_operation().progress
    if progress.waiting_since is None:
        progress.waiting_since = time.monotonic()
    HTTPConnection.send(connection, data)
    progress.num_bytes += len(data)


urllib3.connection.HTTPConnection.response_class = _LimitedResponse
urllib3.connection.HTTPConnection.send = _send  # type: ignore[assignment]
