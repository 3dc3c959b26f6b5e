"""HTTP/1.1 messages as bytes: read from a stream, passed on as they came, or corrupted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

BLOCK = 1 << 16  # bytes
# A body in the order of the wire: bytes, and whether they are content or framing of a chunk.
Body = AsyncIterator[tuple[bytes, bool]]


@dataclass(frozen=True)
class Head:
    """Start line and header of a message.

    Attributes:
        raw: All bytes.
        start_line: Words of the first line.
        fields: Header fields by name in lower case.
    """

    raw: bytes
    start_line: list[str]
    fields: dict[str, str]

    @property
    def chunked(self) -> bool:
        return "chunked" in self.fields.get("transfer-encoding", "").lower()

    @property
    def framed(self) -> bool:
        """Whether the header says where the body ends, so that another message can follow on the connection."""
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
    """Yield the body of a framed message; a request without a length has none."""
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
    """Yield the body of a reply that ends with its connection."""
    while piece := await reader.read(BLOCK):
        yield piece, True


async def no_body() -> Body:
    """Yield nothing, for a reply to HEAD or with status 204 or 304, whose length is meaningless."""
    return
    yield b"", True  # never reached; it makes this a generator


async def discard(body: Body) -> None:
    async for _ in body:
        pass


async def forward(body: Body, writer: asyncio.StreamWriter) -> None:
    """Write a body; the rest is read even if the receiver has left, because the sender waits for that."""
    async for piece, _ in body:
        if not writer.is_closing():
            writer.write(piece)
            with contextlib.suppress(ConnectionError):
                await writer.drain()


async def corrupted_body(body: Body, *, cut: bool) -> bytes:
    """Return a body that ends in the middle of its content, or has one bit flipped there; framing stays intact."""
    pieces = [piece async for piece in body]
    content = [index for index, piece in enumerate(pieces) if piece[1]]
    if not content:
        raise ValueError("cannot corrupt a message without a body")
    raw, left, middle = bytearray(), sum(len(pieces[index][0]) for index in content) // 2, 0
    for piece, is_content in pieces:
        if is_content and 0 <= left < len(piece):
            middle = len(raw) + left
        left -= len(piece) if is_content else 0
        raw += piece
    raw[middle] ^= 1
    return bytes(raw[:middle] if cut else raw)
