"""Ctrl-C while the log of a job is followed: the job keeps running unless the user stops it on a terminal."""

import io
import os
import pty
import signal
import sys

import pytest
from servers.dashboard import Dashboard, job_details

from jobs.submit.__main__ import main


class InterruptedOutput(io.StringIO):
    """Output during which Ctrl-C is pressed, once the log is shown."""

    def write(self, text: str) -> int:
        if "begun" in text:
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_ctrl_c_without_a_terminal_leaves_the_job(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", output := InterruptedOutput())
    with Dashboard(job_details("a", "RUNNING", None), log="begun\n") as dashboard:
        assert main(["logs", "a", f"address={dashboard.address}"]) == 130
    assert output.getvalue() == "begun\n"
    assert "job a is left running" in capfd.readouterr().err
    assert dashboard.stopped == []


@pytest.mark.parametrize(("answer", "stopped", "code"), [(b"s\n", ["a"], 130), (b"\n", [], 130), (b"\x03", [], 130)])
def test_ctrl_c_on_a_terminal_asks_whether_to_stop(answer: bytes, stopped: list[str], code: int) -> None:
    """The terminal sends Ctrl-C to the process that it controls; a second one leaves the job running."""
    with Dashboard(job_details("a", "RUNNING", None), log="begun\n") as dashboard:
        child, terminal = pty.fork()
        if child == 0:
            os.execv(sys.executable, [sys.executable, "-m", "jobs.submit", "logs", "a", f"address={dashboard.address}"])
        output = read_until(terminal, "begun")
        os.write(terminal, b"\x03")
        output += read_until(terminal, "[s/L]")
        os.write(terminal, answer)
        output += read_until(terminal, "\0")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
        os.close(terminal)
    assert dashboard.stopped == stopped
    assert ("job a stopped" if stopped else "job a is left running") in output


def read_until(terminal: int, text: str) -> str:
    """Return what a terminal shows up to a text, or to its end."""
    output = b""
    while text.encode() not in output:
        try:
            chunk = os.read(terminal, 1000)
        except OSError:  # the process has ended
            chunk = b""
        if not chunk:
            break
        output += chunk
    return output.decode()
