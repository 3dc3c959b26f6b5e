"""One request and its reply between a client and a server, with at most one fault."""

import asyncio
import socket
import struct
from typing import Literal, NamedTuple

from servers.wire import Body, Head, discard, forward, harmed, no_body, read_body, read_head, read_to_end

Kind = Literal["500", "503", "reset", "hang", "truncate", "lose", "flip", "flip_upload"]
GONE = (ConnectionError, asyncio.IncompleteReadError)  # one of the two sides has left
# What S3 says. MLflow's client looks at the status alone.
REFUSALS = {
    "500": ("Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "503": ("Slow Down", "SlowDown", "Please reduce your request rate."),
}


class Stream(NamedTuple):
    """A connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def refuse(kind: Kind, request: Head, client: Stream) -> None:
    """The faults that keep a request from the server: 500, 503, reset and hang. No request can follow."""
    if kind == "hang":
        await discard(read_to_end(client.reader))
        return
    if "expect" not in request.fields:  # else the body is held back until someone says 100
        await discard(read_body(client.reader, request))
    if kind == "reset":
        no_linger = struct.pack("ii", 1, 0)  # closing then sends RST
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        client.writer.transport.abort()
        return
    reason, code, message = REFUSALS[kind]
    content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    body = b"" if request.words[0] == "HEAD" else content
    fields = f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    client.writer.write(f"HTTP/1.1 {kind} {reason}\r\n{fields}\r\n\r\n".encode() + body)


async def relay(kind: Kind | None, request: Head, client: Stream, server: Stream) -> bool:
    """Ask the server, with one of the other faults or none. Returns whether another request can follow.

    Raises:
        ValueError: there is no body to harm.
        ConnectionError: or IncompleteReadError: one of the two has left.
    """
    # Both ways at once: the server may answer before it has read all, and 100 Continue before it gets any of the body.
    upload = asyncio.create_task(_upload(kind, request, client.reader, server.writer))
    try:
        held_back = "expect" in request.fields
        while (reply := await read_head(server.reader)).words[1].startswith("1"):
            client.writer.write(reply.raw)
            held_back = False
        another = await _reply(kind, request, reply, server.reader, client.writer)
        if held_back and not upload.done():
            return False  # nobody knows whether the body is still to come
        await upload
        return another
    finally:
        upload.cancel()
        error = (await asyncio.gather(upload, return_exceptions=True))[0]
        if isinstance(error, ValueError):  # else hidden by that of the connection, which it has ended
            raise error


async def _upload(kind: Kind | None, request: Head, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
    body = read_body(client, request)
    try:
        server.write(request.raw)
        if kind == "flip_upload":
            server.write(await harmed(body, cut=False))
        else:
            await forward(body, server)
    except Exception:
        server.transport.abort()  # else the server waits for the rest, and the client for the server
        raise


async def _reply(
    kind: Kind | None, request: Head, reply: Head, server: asyncio.StreamReader, client: asyncio.StreamWriter
) -> bool:
    bare = request.words[0] == "HEAD" or reply.words[1] in ("204", "304")
    body: Body = no_body() if bare else read_body(server, reply) if reply.framed else read_to_end(server)
    if kind == "lose":
        await discard(body)
        return False
    if kind in ("truncate", "flip"):
        client.write(reply.raw + await harmed(body, cut=kind == "truncate"))
    else:
        client.write(reply.raw)
        await forward(body, client)
    return kind != "truncate" and (bare or reply.framed) and not reply.closes
