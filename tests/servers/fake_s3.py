"""An S3 server in memory that lacks what other servers than Amazon's lack."""

import hashlib
from urllib.parse import unquote, urlsplit

from servers.http import Request, error, reply


class FakeS3:
    """Answers requests for single objects; `lacks` names the features that the server ignores or refuses.

    Attributes:
        objects: Content by path, `/bucket/key`.
        requests: Method and path of each request.
    """

    def __init__(self, *lacks: str) -> None:
        self._lacks = lacks
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []

    def __call__(self, request: Request) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path))
        {"PUT": self._put, "GET": self._get, "DELETE": self._delete}[request.command](request, path)

    def _put(self, request: Request, path: str) -> None:
        content = request.body
        if "writes" in self._lacks:
            error(request, 501, "NotImplemented")
            return
        checksum = any(name.lower().startswith("x-amz-checksum") for name in request.headers)
        if checksum and "checksums" in self._lacks:
            error(request, 400, "InvalidArgument")
            return
        if checksum and "decoding" in self._lacks:  # as servers that store the framing of aws-chunked
            content = b"10;chunk-signature\r\n" + content
        if request.headers.get("If-None-Match") == "*":
            if "conditions" in self._lacks:
                error(request, 501, "NotImplemented")
                return
            if path in self.objects and "checked conditions" not in self._lacks:
                error(request, 412, "PreconditionFailed")
                return
        self.objects[path] = content
        reply(request, ETag=self._etag(content))

    def _get(self, request: Request, path: str) -> None:
        if "list-type=2" in request.path:
            reply(request, content=b"<ListBucketResult></ListBucketResult>")  # of no objects
            return
        if path not in self.objects:
            error(request, 404, "NoSuchKey")
            return
        content = self.objects[path]
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": self._etag(content)}
        if "If-Match" in request.headers and request.headers["If-Match"] != headers["ETag"]:
            error(request, 412, "PreconditionFailed")
        elif start and "ranges" not in self._lacks:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(request, 206, content[start:], headers)
        else:
            self._send(request, 200, content, headers)

    def _delete(self, request: Request, path: str) -> None:
        self.objects.pop(path, None)
        reply(request, 204)

    def _send(self, request: Request, status: int, content: bytes, headers: dict[str, str]) -> None:
        reply(request, status, content, **headers)

    @staticmethod
    def _etag(content: bytes) -> str:
        return f'"{hashlib.md5(content).hexdigest()}"'


class TruncatingS3(FakeS3):
    """Sends only half of an object in its first `count` responses, and replaces the object after the first.

    Attributes:
        replacement: New content after the first response; None: the object stays.
    """

    def __init__(self, *lacks: str, count: int = 1, replacement: bytes | None = None) -> None:
        super().__init__(*lacks)
        self._count, self.replacement = count, replacement

    def _send(self, request: Request, status: int, content: bytes, headers: dict[str, str]) -> None:
        if self._count > 0 and len(content) > 100:
            self._count -= 1
            reply(request, status, content[: len(content) // 2], **{"Content-Length": str(len(content)), **headers})
            request.close_connection = True
            if self.replacement is not None:
                self.objects[unquote(request.path)] = self.replacement
        else:
            reply(request, status, content, **headers)
