"""Limits of HTTP responses: notices only while a server is slow, one deadline, and parts that are sent again."""

import time
from collections.abc import Iterator

import pytest
import requests
from servers.http import Request, reply, serve

from jobs import http_limits
from jobs.http_limits import ResponseLimitError, Transfer, operation


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "_NOTICE_SECONDS", 0.4)


def parts() -> Iterator[bytes]:
    """Yield a body at far over the minimum rate, in twice the time until a notice."""
    for _ in range(20):
        time.sleep(0.05)
        yield b"x" * 2**14


def respond(request: Request) -> None:
    if request.path == "/slow":
        time.sleep(1.0)
    while request.command == "POST" and request.rfile.readline() != b"0\r\n":
        pass
    reply(request, Content_Length=str(20 * 2**14))
    for part in parts() if request.path == "/large" else [b"x" * 20 * 2**14]:
        request.wfile.write(part)


@pytest.mark.parametrize("action", ["download", "upload", "compute", "wait"])
def test_operation_notice_only_while_the_server_is_slow(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An operation within another one has the requests, as with a shard on S3."""
    paths = {"download": "large", "wait": "slow"}
    with serve(respond) as url, operation("the outer", 2**30, 60.0), operation("the inner", 2**30, 60.0):
        if action == "upload":
            requests.post(url, data=(b"\n" + part for part in parts()), timeout=10.0)
        else:
            requests.get(f"{url}/{paths.get(action, '')}", timeout=10.0)
        if action == "compute":
            time.sleep(1.0)
    assert capsys.readouterr().err.strip() == ("waiting for the outer ..." if action == "wait" else "")


def test_operation_in_another_has_the_earlier_deadline() -> None:
    with operation("the outer", 1, -1.0), operation("the inner", 1, 60.0) as inner, pytest.raises(ResponseLimitError):
        inner.check_time()


def test_transfer_part_sent_again_restarts_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "_WINDOW_SECONDS", 0.2)
    with operation("the server", 2**30, 60.0):
        transfer = Transfer()
        transfer.advance(2**20)
        time.sleep(0.3)
        transfer.advance(-(2**20))
        time.sleep(0.3)
        with pytest.raises(ResponseLimitError, match="only 1 bytes"):
            transfer.advance(1)
