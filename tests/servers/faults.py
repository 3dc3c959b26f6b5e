"""A proxy between an HTTP client and its server, such as S3 or MLflow, that injects faults into chosen requests.

Other requests pass unchanged, with their Host header, because S3 clients sign it.
"""

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from servers.exchange import DISCONNECTED, Kind, Stream, refuse, relay
from servers.wire import read_head


@dataclass(frozen=True)
class Fault:
    """A fault of the requests `first` to `first + count - 1` with this method and path.

    "500", "503", "reset" and "hang" keep a request from the server: the proxy answers InternalError or SlowDown, resets
    the connection, or does not answer until the client leaves. With the others the server handles the request:
    "truncate" ends the connection halfway through the reply's body, "lose" before the reply; "flip" and "flip_upload"
    flip one bit in the middle of the reply's or the request's body.

    Attributes:
        kind: See above.
        method: "GET", "PUT", ...; "*" matches all.
        path: Regular expression that is searched for in the path with its query: "/bucket/key?partNumber=2".
        first: First request of this method and path after the injection to fail, counted from 1.
        count: Number of requests to fail.
    """

    kind: Kind
    method: str
    path: str
    first: int = 1
    count: int = 1


class Hit(NamedTuple):
    """A request and its fault, if it had one."""

    method: str
    path: str
    fault: Kind | None


class Rule:
    """A fault with the number of requests of its method and path so far."""

    def __init__(self, fault: Fault) -> None:
        self._fault, self._count = fault, 0

    def match(self, method: str, path: str) -> Kind | None:
        """Count a request; return its fault, if it has one."""
        fault = self._fault
        if fault.method not in ("*", method) or not re.search(fault.path, path):
            return None
        self._count += 1
        return fault.kind if fault.first <= self._count < fault.first + fault.count else None


class FaultProxy:
    """HTTP/1.1 proxy on a free port of 127.0.0.1, in a thread of its own. Thread-safe.

    Args:
        server: URL of the server.
        faults: First faults.

    Attributes:
        endpoint: URL of the proxy, from the first `start` on.
    """

    def __init__(self, server: str, *faults: Fault) -> None:
        url = urlsplit(server)
        self._server = (url.hostname, url.port)
        self._lock = threading.Lock()
        self._rules = [Rule(fault) for fault in faults]
        self._hits: list[Hit] = []
        self._errors: list[str] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._thread: threading.Thread | None = None
        self.endpoint = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def hits(self) -> list[Hit]:
        """All requests so far, in the order of their arrival."""
        with self._lock:
            return list(self._hits)

    def inject(self, *faults: Fault) -> None:
        """Add faults. If several match a request, the oldest is applied."""
        with self._lock:
            self._rules += [Rule(fault) for fault in faults]

    def clear(self) -> None:
        """Remove all faults and hits."""
        with self._lock:
            self._rules, self._hits = [], []

    def start(self) -> None:
        """Answer on a port, which later starts keep.

        Raises:
            RuntimeError: The proxy runs already.
        """
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("the proxy runs already")
            listener = socket.create_server(("127.0.0.1", urlsplit(self.endpoint).port or 0))
            self.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
            started: Future[asyncio.AbstractEventLoop] = Future()
            self._stopping = asyncio.Event()
            self._thread = threading.Thread(
                target=asyncio.run, args=(self._main(listener, started),), name="fault-proxy", daemon=True
            )
            self._thread.start()
            self._loop = started.result()

    def stop(self) -> None:
        """End all connections and the thread. A second call has no effect.

        Raises:
            RuntimeError: A fault could not be applied, or the proxy itself failed.
        """
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join()
        if self._errors:
            errors, self._errors = self._errors, []
            raise RuntimeError("; ".join(errors))

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """End all connections and refuse new ones in a `with` block."""
        self.stop()
        try:
            with socket.socket() as placeholder:  # because the port could be taken meanwhile
                placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                placeholder.bind(("127.0.0.1", urlsplit(self.endpoint).port))
                yield
        finally:
            self.start()

    async def _main(self, listener: socket.socket, started: "Future[asyncio.AbstractEventLoop]") -> None:
        async with await asyncio.start_server(self._serve, sock=listener):
            started.set_result(asyncio.get_running_loop())
            await self._stopping.wait()
        # Tasks end through their connections, because canceling them could leave a socket open. Repeated, because a
        # connection may have been opened meanwhile.
        while True:
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.sleep(0.01)
            if not self._tasks:
                return

    @contextlib.asynccontextmanager
    async def _open(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        """Let `stop` end a connection in a `with` block; afterwards it is flushed and closed."""
        self._writers.add(writer)
        try:
            yield
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of a client."""
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            async with self._open(writer):
                with contextlib.suppress(*DISCONNECTED):
                    while await self._exchange(Stream(reader, writer)):
                        pass
        except Exception as error:  # raised by `stop`, because this thread cannot report it
            self._errors.append(repr(error))
        finally:
            self._tasks.discard(task)

    async def _exchange(self, client: Stream) -> bool:
        """Handle one request; return whether another can follow."""
        request = await read_head(client.reader)
        method, path = request.start_line[:2]
        with self._lock:
            kinds = [kind for rule in self._rules if (kind := rule.match(method, path))]
            kind = kinds[0] if kinds else None
            self._hits.append(Hit(method, path, kind))
        if kind in ("500", "503", "reset", "hang"):
            await refuse(kind, request, client)
            return False
        # A connection per request, because the server may close a kept one just as it is used.
        server = Stream(*await asyncio.open_connection(*self._server))
        async with self._open(server.writer):
            return await relay(kind, request, client, server)
