"""A proxy between an HTTP client and its server, such as S3 or MLflow, that harms chosen requests in chosen ways.

What is not harmed passes byte by byte, the Host header too: the server sees the host that the client has signed.
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

from servers.exchange import GONE, Kind, Stream, refuse, relay
from servers.wire import read_head


@dataclass(frozen=True)
class Fault:
    """What befalls requests `first` to `first + count - 1` of those with this method and path.

    "500", "503", "reset" and "hang" keep a request from the server: the proxy answers InternalError or SlowDown, or
    resets the connection, or holds it without a word until the client leaves. The others let the server do its work:
    "truncate" ends the connection half-way through the reply's body, "lose" ends it before the reply, "flip" and
    "flip_upload" turn over one bit in the middle of the reply's or the request's body.

    Attributes:
        kind: see above.
        method: "GET", "PUT", ...; "*" is any.
        path: regular expression, searched for in the path with its query: "/bucket/key?partNumber=2".
        first: counted from 1, which is the next such request after the fault was injected.
        count: of requests.
    """

    kind: Kind
    method: str
    path: str
    first: int = 1
    count: int = 1


class Hit(NamedTuple):
    """A request, as it came in, and what befell it."""

    method: str
    path: str
    fault: Kind | None


class Rule:
    """A fault, and how many requests of its method and path it has seen."""

    def __init__(self, fault: Fault) -> None:
        self._fault, self._seen = fault, 0

    def judge(self, method: str, path: str) -> Kind | None:
        fault = self._fault
        if fault.method not in ("*", method) or not re.search(fault.path, path):
            return None
        self._seen += 1
        return fault.kind if fault.first <= self._seen < fault.first + fault.count else None


class FaultProxy:
    """HTTP/1.1 on a free port of 127.0.0.1, in a thread of its own. Any thread may call any method.

    Attributes:
        endpoint: URL, from the first `start` on.
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
        """All requests so far, in the order in which they came in."""
        with self._lock:
            return list(self._hits)

    def inject(self, *faults: Fault) -> None:
        """Add faults. When several fire at one request, the oldest is what befalls it."""
        with self._lock:
            self._rules += [Rule(fault) for fault in faults]

    def clear(self) -> None:
        """Forget all faults and hits."""
        with self._lock:
            self._rules, self._hits = [], []

    def start(self) -> None:
        """Take a port, the same each time, and answer on it. Raises if it runs already."""
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
        """End all connections and the thread. A second call does nothing.

        Raises:
            RuntimeError: a fault could not be done, or the proxy itself has an error.
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
        """Within, connections are refused, and those that were open are ended; after, all is as it was before."""
        self.stop()
        try:
            with socket.socket() as placeholder:  # else the port could be given to someone else meanwhile
                placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                placeholder.bind(("127.0.0.1", urlsplit(self.endpoint).port))
                yield
        finally:
            self.start()

    async def _main(self, listener: socket.socket, started: "Future[asyncio.AbstractEventLoop]") -> None:
        async with await asyncio.start_server(self._serve, sock=listener):
            started.set_result(asyncio.get_running_loop())
            await self._stopping.wait()
        # Tasks are ended by their connections and not canceled, which could leave a socket open. More than once,
        # as a client may have come in last, or the server's connection to a task.
        while True:
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.sleep(0.01)
            if not self._tasks:
                return

    @contextlib.asynccontextmanager
    async def _open(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        """Within, `stop` can end the connection; after, it is closed, and all that was written is sent."""
        self._writers.add(writer)
        try:
            yield
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            async with self._open(writer):
                with contextlib.suppress(*GONE):
                    while await self._exchange(Stream(reader, writer)):
                        pass
        except Exception as error:  # for the thread that stops the proxy: here nobody would see it
            self._errors.append(repr(error))
        finally:
            self._tasks.discard(task)

    async def _exchange(self, client: Stream) -> bool:
        """One request and its reply. Returns whether another can follow."""
        request = await read_head(client.reader)
        method, path = request.words[:2]
        with self._lock:
            kinds = [kind for rule in self._rules if (kind := rule.judge(method, path))]
            kind = kinds[0] if kinds else None
            self._hits.append(Hit(method, path, kind))
        if kind in ("500", "503", "reset", "hang"):
            await refuse(kind, request, client)
            return False
        # A connection for each request: one that is kept can be closed by the server just as it is used.
        server = Stream(*await asyncio.open_connection(*self._server))
        async with self._open(server.writer):
            return await relay(kind, request, client, server)
