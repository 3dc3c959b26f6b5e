"""HTTP/1.1 messages as bytes: read from a stream, passed on as they came, or harmed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

BLOCK = 1 << 16  # bytes
# A body in the order of the wire: bytes, and whether they are content (else they frame a chunk of it).
Body = AsyncIterator[tuple[bytes, bool]]


@dataclass(frozen=True)
class Head:
    """The start of a message: all its bytes, the words of its first line, its fields with names in lower case."""

    raw: bytes
    words: list[str]
    fields: dict[str, str]

    @property
    def chunked(self) -> bool:
        return "chunked" in self.fields.get("transfer-encoding", "").lower()

    @property
    def framed(self) -> bool:
        """Whether it says where its body ends, so that another message can follow on the connection."""
        return self.chunked or "content-length" in self.fields

    @property
    def closes(self) -> bool:
        return self.fields.get("connection", "").lower() == "close"


async def read_head(reader: asyncio.StreamReader) -> Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Head(raw, first.split(" ", 2), {name.strip().lower(): value.strip() for name, _, value in pairs})


async def read_body(reader: asyncio.StreamReader, head: Head) -> Body:
    """The body of a request (none, if the head names no length) or of a framed reply."""
    if head.chunked:
        while size := int((line := await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield line, False
            yield await reader.readexactly(size), True
            yield await reader.readexactly(2), False
        yield line, False
        while line != b"\r\n":  # trailers, then the empty line that ends them
            line = await reader.readuntil(b"\r\n")
            yield line, False
        return
    left = int(head.fields.get("content-length", 0))
    while left:
        piece = await reader.read(min(left, BLOCK))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece, True


async def read_to_end(reader: asyncio.StreamReader) -> Body:
    """The body of a reply that ends with its connection."""
    while piece := await reader.read(BLOCK):
        yield piece, True


async def no_body() -> Body:
    """Of a reply to HEAD, or one with status 204 or 304, whatever length it names."""
    return
    yield b"", True  # never reached: it makes this a generator


async def discard(body: Body) -> None:
    async for _ in body:
        pass


async def forward(body: Body, writer: asyncio.StreamWriter) -> None:
    """When the receiver has left, the rest is read all the same: only then will the sender read its answer."""
    async for piece, _ in body:
        if not writer.is_closing():
            writer.write(piece)
            with contextlib.suppress(ConnectionError):
                await writer.drain()


async def harmed(body: Body, *, cut: bool) -> bytes:
    """The body up to the middle of its content, or with one bit wrong there; what frames the chunks is left whole."""
    pieces = [piece async for piece in body]
    content = [at for at, piece in enumerate(pieces) if piece[1]]
    if not content:
        raise ValueError("a fault was asked for in the body of a message without one")
    raw, left, middle = bytearray(), sum(len(pieces[at][0]) for at in content) // 2, 0
    for piece, is_content in pieces:
        if is_content and 0 <= left < len(piece):
            middle = len(raw) + left
        left -= len(piece) if is_content else 0
        raw += piece
    raw[middle] ^= 1
    return bytes(raw[:middle] if cut else raw)
