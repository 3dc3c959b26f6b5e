"""The terminal: a progress line that fits, and no progress in a pipe."""

import sys

import pytest

from pipeline.plan import Step
from pipeline.terminal import Reporter, training_line

METRICS = {
    "train/images_per_second": 843.21,
    "train/loss": 14321.06,
    "train/kl_rung_0": 15.64,
    "train/kl_rung_1": 3.04,
    "train/kl": 18.7,
}


def test_training_line_has_speed_loss_and_time() -> None:
    line = training_line(300, 1500, METRICS, 0.125)
    assert line == "train 300/1500  843 images/s  loss 14321.1 nats  KL 15.6 3.0  2:30 min left"


def test_reporter_in_a_pipe_prints_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter(json_output=False)
    report.step(Step("train", "resume", "an earlier command was interrupted"))
    report.progress("half way")
    report.done("train", "all well")
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["train    resuming", "train    done in 0.0 s"]
    assert err == ""


def test_reporter_with_json_leaves_stdout_empty(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(json_output=True).line("text")
    assert capsys.readouterr() == ("", "text\n")


def test_reporter_on_a_terminal_rewrites_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress line fits the terminal, and a shorter line overwrites a longer one."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report = Reporter(json_output=False)
    report.progress(training_line(300, 1500, METRICS, 0.125))
    report.progress("short")
    report.line("done")
    out, err = capsys.readouterr()
    assert out == "done\n"
    first, second, cleared = err.split("\r")[1:4]
    assert (len(first), second.rstrip(), cleared.strip()) == (39, "short", "")
    assert len(second) == 39
