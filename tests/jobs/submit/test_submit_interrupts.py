"""Ctrl-C while the log of a job is followed: the job goes on, unless a terminal says otherwise."""

import os
import pty
import signal
import sys
import threading

import pytest
from servers.dashboard import Dashboard, described

from jobs.submit.__main__ import main


def test_ctrl_c_without_a_terminal_leaves_the_job_running(capfd: pytest.CaptureFixture[str]) -> None:
    with Dashboard(described("a", "RUNNING", None), log="begun\n") as dashboard:
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert main(["logs", "a", f"address={dashboard.address}"]) == 130
    out, err = capfd.readouterr()
    assert out == "begun\n"
    assert "job a is left running" in err
    assert dashboard.stopped == []


@pytest.mark.parametrize(("answer", "stopped", "code"), [(b"s\n", ["a"], 130), (b"\n", [], 130), (b"\x03", [], 130)])
def test_ctrl_c_on_a_terminal_asks(answer: bytes, stopped: list[str], code: int) -> None:
    """Ctrl-C as a terminal sends it, to the process that it controls; a second one leaves the job running."""
    with Dashboard(described("a", "RUNNING", None), log="begun\n") as dashboard:
        child, terminal = pty.fork()
        if child == 0:
            os.execv(sys.executable, [sys.executable, "-m", "jobs.submit", "logs", "a", f"address={dashboard.address}"])
        seen = read_until(terminal, "begun")
        os.write(terminal, b"\x03")
        seen += read_until(terminal, "[s/L]")
        os.write(terminal, answer)
        seen += read_until(terminal, "\0")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
        os.close(terminal)
    assert dashboard.stopped == stopped
    assert ("job a stopped" if stopped else "job a is left running") in seen


def read_until(terminal: int, text: str) -> str:
    """What a terminal shows up to a text, or to its end."""
    seen = b""
    while text.encode() not in seen:
        try:
            piece = os.read(terminal, 1000)
        except OSError:  # the process has ended
            piece = b""
        if not piece:
            break
        seen += piece
    return seen.decode()
