"""HTTP servers for tests that need answers which no real server gives."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Request(BaseHTTPRequestHandler):
    """A request, with its `body`, and the way to answer it."""

    protocol_version = "HTTP/1.1"  # because boto3 waits a second for a reply 100, which 1.0 has not
    body = b""


@contextmanager
def serve(respond: Callable[[Request], None]) -> Iterator[str]:
    """Yield the URL of a server that answers every request by `respond`; a client that leaves ends its request."""

    class Handler(Request):
        def handle_one_request(self) -> None:
            with suppress(ConnectionError):
                super().handle_one_request()

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            respond(self)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False  # because a request may be answered forever
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def reply(request: Request, status: int = 200, content: bytes = b"", **headers: str) -> None:
    """Answer a request; `_` in the name of a header stands for `-`."""
    request.send_response(status)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    for name, value in ({"Content-Length": str(len(content))} | headers).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def error(request: Request, status: int, code: str, **fields: str) -> None:
    """Answer a request with an error of S3."""
    extra = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    xml = f"<Error><Code>{code}</Code><Message>refused</Message>{extra}</Error>"
    reply(request, status, xml.encode(), Content_Type="application/xml")
