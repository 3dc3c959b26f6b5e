"""Relay of one request and its reply between a client and a server, with at most one fault."""

import asyncio
import socket
import struct
from typing import Literal, NamedTuple

from servers.wire import Body, Head, corrupted_body, discard, forward, no_body, read_body, read_head, read_to_end

Kind = Literal["500", "503", "reset", "hang", "truncate", "lose", "flip", "flip_upload"]
DISCONNECTED = (ConnectionError, asyncio.IncompleteReadError)  # raised when one of the two sides has left
# Answers of S3; MLflow's client reads the status only.
REFUSALS = {
    "500": ("Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "503": ("Slow Down", "SlowDown", "Please reduce your request rate."),
}


class Stream(NamedTuple):
    """Both directions of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def refuse(kind: Kind, request: Head, client: Stream) -> None:
    """Apply a fault that keeps a request from the server: 500, 503, reset or hang. The connection ends."""
    if kind == "hang":
        await discard(read_to_end(client.reader))
        return
    if "expect" not in request.fields:  # because the client otherwise holds the body back until a reply 100
        await discard(read_body(client.reader, request))
    if kind == "reset":
        no_linger = struct.pack("ii", 1, 0)  # so that closing sends RST
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        client.writer.transport.abort()
        return
    reason, code, message = REFUSALS[kind]
    content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    body = b"" if request.start_line[0] == "HEAD" else content
    fields = f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    client.writer.write(f"HTTP/1.1 {kind} {reason}\r\n{fields}\r\n\r\n".encode() + body)


async def relay(kind: Kind | None, request: Head, client: Stream, server: Stream) -> bool:
    """Relay a request and its reply, with one of the other faults or none.

    Returns:
        Whether another request can follow on the connection.

    Raises:
        ValueError: There is no body to corrupt.
        ConnectionError: One of the two sides has left; also as IncompleteReadError.
    """
    # In both directions at once, because the server may answer before it has read the whole body.
    upload = asyncio.create_task(_upload(kind, request, client.reader, server.writer))
    try:
        held_back = "expect" in request.fields
        while (reply := await read_head(server.reader)).start_line[1].startswith("1"):
            client.writer.write(reply.raw)
            held_back = False
        another = await _reply(kind, request, reply, server.reader, client.writer)
        if held_back and not upload.done():
            return False  # because it is unknown whether the body still comes
        await upload
        return another
    finally:
        upload.cancel()
        error = (await asyncio.gather(upload, return_exceptions=True))[0]
        if isinstance(error, ValueError):  # because the error of the connection would hide it
            raise error


async def _upload(kind: Kind | None, request: Head, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
    body = read_body(client, request)
    try:
        server.write(request.raw)
        if kind == "flip_upload":
            server.write(await corrupted_body(body, cut=False))
        else:
            await forward(body, server)
    except Exception:
        server.transport.abort()  # because the server would wait for the rest, and the client for the server
        raise


async def _reply(
    kind: Kind | None, request: Head, reply: Head, server: asyncio.StreamReader, client: asyncio.StreamWriter
) -> bool:
    has_no_body = request.start_line[0] == "HEAD" or reply.start_line[1] in ("204", "304")
    body: Body = no_body() if has_no_body else read_body(server, reply) if reply.framed else read_to_end(server)
    if kind == "lose":
        await discard(body)
        return False
    if kind in ("truncate", "flip"):
        client.write(reply.raw + await corrupted_body(body, cut=kind == "truncate"))
    else:
        client.write(reply.raw)
        await forward(body, client)
    return kind != "truncate" and (has_no_body or reply.framed) and not reply.closes
